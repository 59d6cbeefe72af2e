"""Windows that slide over images, for the CUDA kernels. Images are in memory as (C, H, W, N)."""

from typing import Any

import numpy as np

from ...backends import Array
from ...layers import pooling
from ..cpu.convolution import as_images, pair
from ..stages import Stage
from .launching import over_vector


class WindowsStage(Stage):
    """The base class of convolutions and pooling."""

    windows: tuple[np.int32, ...]  # WINDOWS of windows.cu: what the kernels take beside arrays

    def bind_windows(self, x: Array, layer: Any) -> None:
        """Set the windows of a layer; a global pool has a single one."""
        self.channels, *sizes, n = as_images(x).shape
        given = tuple(x.shape)[-3::-1]
        if type(layer) is pooling.GlobalAveragePool:
            outputs, settings = (), (given, (), (), ())
        else:
            outputs, before = layer._outputs(given)
            settings = layer._kernel, layer._stride, layer._dilation, before
        self.outputs = pair(outputs, 1)
        self.kernel, stride, dilation, before = map(pair, settings, (1, 1, 1, 0))
        self.windows = tuple(map(np.int32, (*sizes, n, *self.outputs, *self.kernel, *stride, *dilation, *before)))

    def spread(self, part: str, dy: Array, number: Array | None, rows: slice, dx: Array) -> None:
        """dx, of what windows in these rows pass on."""
        arguments = dy, number, self.channels, rows.start, rows.stop - rows.start, *self.windows, dx
        over_vector("spread", dx, *arguments, template=part)


def takes_images(before: Stage | None) -> bool:
    """Whether a stage may follow that takes images, and gives dx, as they lie here."""
    return before is None or before.foreign or before.images
