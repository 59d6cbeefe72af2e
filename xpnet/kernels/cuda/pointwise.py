"""A bias and a pointwise function, or one of them, in CUDA."""

from collections.abc import Sequence
from typing import Any

from ...backends import Array
from .. import stages
from ..stages import Part, Site, Stage
from ..table import pointwise
from .launching import RowsStage, blocks, in_rows, laid_out, launch, over_vector, setting
from .positions import PositionsStage, as_sequences, columns_grid, in_positions, of_sequences


class Pointwise(stages.Pointwise, RowsStage):
    """x is kept, since backward computes the derivative from it."""

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        f = parts[0].layer if parts and pointwise(parts[0].layer) else None
        if not (before and not before.foreign and (f or before.bias)):
            return None
        return (PointwiseOfPositions if of_sequences(before, parts) else Pointwise)(site, before, f)

    def __init__(self, site: Site, before: Stage, f: Any):
        super().__init__(site, before, f)
        self.axes, self.images = before.axes, before.images

    def bind(self, x: Array, before: Any) -> None:
        self.z = in_rows(x, x.dtype)
        self.bind_rows(x)

    def forward(self, x: Array, params: Any) -> Array:
        grid = self.grid[0], blocks(self.n, 65535)
        arguments = self.z, params[0], self.setting, self.n, self.y
        launch("pointwise", grid, self.block, self.dtype, *arguments, template=self.function)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        d = in_rows(dy, dy.dtype)
        arguments = d, self.z, self.y, params[0], self.setting, self.n, d, grads[0]
        self.over_rows("pointwise_backward", *arguments, *self.sums)
        return laid_out(d, dy.shape)


class PointwiseOfPositions(stages.Pointwise, PositionsStage):
    """The same for sequences."""

    def __init__(self, site: Site, before: Stage, f: Any):
        super().__init__(site, before, f)
        self.axes = 3

    def bind(self, x: Array, before: Any) -> None:
        self.z = in_positions(x, x.dtype)
        self.y = self.place_of_y(x, x.shape[0])
        self.function = str(pointwise(self.f))
        self.numbers = setting(self.f), *self.y.shape
        self.grid = columns_grid(self.m, x.shape[0], self.site.family.multiprocessors)
        self.partial = self.shared("partial", (self.grid[1] * x.shape[0],))

    def forward(self, x: Array, params: Any) -> Array:
        arguments = self.z, params[0], *self.numbers, self.y
        over_vector("pointwise_columns", self.y, *arguments, template=self.function)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        d = in_positions(dy, dy.dtype)
        found = d, self.z, self.y, params[0], *self.numbers
        arguments = *found, d, grads[0], self.partial, self.site.family.count
        launch("pointwise_columns_backward", self.grid, (32, 16), d.dtype, *arguments, template=self.function)
        return as_sequences(d, dy.shape)
