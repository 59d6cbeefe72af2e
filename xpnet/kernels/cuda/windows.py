"""Windows that slide over images, for the CUDA kernels. Images are in memory as (C, H, W, N)."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...backends import Array
from ..cpu.convolution import as_images, pair
from ..stages import Stage
from .launching import over_vector


class WindowsStage(Stage):
    """The base class of convolutions and pooling."""

    windows: tuple[np.int32, ...]

    def bind_windows(self, x: Array, kernel: Sequence[int], outputs: Sequence[int], **settings: Sequence[int]) -> None:
        """Find what the kernels take beside arrays, WINDOWS in windows.cu."""
        self.channels, *sizes, n = as_images(x).shape
        self.outputs, self.kernel = pair(outputs, 1), pair(kernel, 1)
        others = (pair(settings[name], alone) for name, alone in (("stride", 1), ("dilation", 1), ("before", 0)))
        sizes += n, *self.outputs, *self.kernel, *[each for both in others for each in both]
        self.windows = tuple(map(np.int32, sizes))

    def spread(self, part: str, dy: Array, number: Array | None, rows: slice, dx: Array) -> None:
        """dx, of what windows in these rows pass on."""
        arguments = dy, number, self.channels, rows.start, rows.stop - rows.start, *self.windows, dx
        over_vector("spread", dx, *arguments, template=part)


def takes_images(before: Stage | None) -> bool:
    """Whether a stage may follow that takes images, and gives dx, as they lie here."""
    return before is None or before.foreign or before.images


def settings_of(layer: Any, sizes: Sequence[int]) -> dict[str, Sequence[int]]:
    """A layer's kernel, stride, dilation, and for images of these sizes the outputs and the padding before."""
    outputs, before = layer._outputs(sizes)
    how = {"kernel": layer._kernel, "stride": layer._stride, "dilation": layer._dilation}
    return how | {"outputs": outputs, "before": before}
