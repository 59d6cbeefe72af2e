"""A bias and a pointwise function, or one of them, in CUDA."""

from collections.abc import Sequence
from typing import Any

from ...backends import Array
from .. import stages
from ..stages import Part, Site, Stage
from ..table import pointwise
from .launching import RowsStage, blocks, in_rows


class Pointwise(stages.Pointwise, RowsStage):
    """Its x stays: backward takes the derivative there."""

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        f = parts[0].layer if parts and pointwise(parts[0].layer) else None
        return cls(site, before, f) if before and not before.foreign and (f or before.bias) else None

    def __init__(self, site: Site, before: Stage, f: Any):
        super().__init__(site, before, f)
        self.images = before.images

    def bind(self, x: Array, before: Any) -> None:
        self.z = in_rows(x, x.dtype)
        self.bind_rows(x)

    def forward(self, x: Array, params: Any) -> Array:
        grid = self.grid[0], blocks(self.n, 65535)
        self.over_rows("pointwise", self.z, params[0], self.setting, self.n, self.y, grid=grid)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        d = in_rows(dy, dy.dtype)
        arguments = d, self.z, self.y, params[0], self.setting, self.n, d, grads[0]
        self.over_rows("pointwise_backward", *arguments, *self.sums)
        return dy
