"""The product of a Dense with sequences."""

from collections.abc import Sequence
from typing import Any

from ...backends import Array
from ...layers import dense
from ..stages import Part, Site, Stage
from .positions import PositionsStage, as_sequences, in_positions, of_sequences


class ProductOfPositions(PositionsStage):
    """z = x W, (M, D) by (D, H), with dW = xᵀ dz and dx = dz Wᵀ. The next stage adds the bias."""

    y_read_once = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) is dense.Dense and not parts[0].frozen
        fits = fits and of_sequences(before, parts) and not (before and before.bias)
        return cls(site, before, parts[0]) if fits else None

    def __init__(self, site: Site, before: Stage | None, part: Part):
        super().__init__(site, before, f"{part.prefix}.weight")
        self.bias, self.features, self.outputs = f"{part.prefix}.bias", part.layer.in_features, part.layer.out_features
        self.product, self.axes, self.turn = site.family.product, part.axes, 1 - self.turn

    def bind(self, x: Array, before: Stage | None) -> None:
        self.keeps, self.y = before is None, self.place_of_y(x, self.outputs)
        self.dx = None if self.lowest else self.place_of_dx(x)

    def forward(self, x: Array, params: Any) -> Array:
        self.cache = in_positions(x, self.y.dtype)
        self.product(self.cache, params[0], self.y)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        d = in_positions(dy, dy.dtype)
        self.product(self.cache.T, d, grads[0])
        if self.dx is None:
            return None
        return as_sequences(self.product(d, params[0].T, self.dx), self.given.shape)
