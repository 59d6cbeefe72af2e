"""Pooling, in CUDA."""

import math
from collections.abc import Sequence
from typing import Any

from ...backends import Array
from ...layers import pooling
from ..cpu.convolution import as_given, as_images
from ..stages import Part, Site, Stage
from .launching import in_rows, over_vector
from .windows import WindowsStage, takes_images

MAXIMA = pooling.MaxPool1d, pooling.MaxPool2d
MEANS = pooling.AveragePool1d, pooling.AveragePool2d, pooling.GlobalAveragePool


class Pool(WindowsStage):
    """The maximum of each window, whose dy goes to the first maximum, or the mean, whose dy is divided among all."""

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) in (*MAXIMA, *MEANS) and parts[0].axes in (3, 4) and takes_images(before)
        fits = fits and getattr(parts[0].layer, "axes", parts[0].axes - 2) == parts[0].axes - 2
        return cls(site, before, parts[0]) if fits else None

    def __init__(self, site: Site, before: Stage | None, part: Part):
        super().__init__(site, before)
        self.layer, self.axes, self.turn = part.layer, part.axes, 1 - self.turn
        self.images = type(part.layer) is not pooling.GlobalAveragePool
        self.part = "OfMaxima" if type(part.layer) in MAXIMA else "OfMeans"

    def bind(self, x: Array, before: Stage | None) -> None:
        self.layer.output_shape(tuple(x.shape)[::-1])  # raises ValueError for an x that does not fit
        self.bind_windows(x, self.layer)
        images = as_images(x)
        shape = self.channels, *self.outputs, images.shape[-1]
        self.pooled = self.output(math.prod(shape[:-1]), shape[-1])
        self.given = as_given(self.pooled.reshape(shape), self.axes) if self.images else self.pooled
        xp = self.work.xp
        self.number = self.work("number", (self.pooled.size,), xp.int32) if self.part == "OfMaxima" else None
        self.dx = self.shared(f"dx{self.turn}", images.shape)

    def forward(self, x: Array, params: Any) -> Array:
        y = self.pooled
        over_vector("pool", y, in_rows(x, y.dtype), self.channels, *self.windows, y, self.number)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        self.spread(self.part, in_rows(dy, dy.dtype), self.number, slice(0, self.outputs[0]), self.dx)
        return as_given(self.dx, self.axes)
