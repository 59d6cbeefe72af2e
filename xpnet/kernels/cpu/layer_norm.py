"""Layer norm, in calls. Axes: D features, M positions, which are all other axes as one."""

import math
from collections.abc import Sequence
from typing import Any

from ...backends import Array
from ...layers import normalization
from ..stages import Part, Site, Stage, Vector, reversed_axes


class LayerNorm(Stage):
    """As the layer has it, on (D, M): x̂ = (x - μ) / √(v + eps), y = γ x̂ + β. It keeps x̂ and 1 / √(v + eps).

    Of more than two axes the arrays lie in memory as the layers' own code has them, (M, D).
    """

    y_read_once = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) is normalization.LayerNorm and not parts[0].frozen
        return cls(site, before, parts[0]) if fits and not (before and before.bias) else None

    def __init__(self, site: Site, before: Stage | None, part: Part):
        super().__init__(site, before, f"{part.prefix}.gamma", f"{part.prefix}.beta")
        self.features, self.eps, self.axes = part.layer.features, part.layer.eps, part.axes

    def views(self, vector: Vector) -> tuple[Array, ...]:
        """γ and β, and each as a column."""
        gamma, beta = (vector.arrays[name] for name in self.names)
        return gamma, beta, gamma[:, None], beta[:, None]

    def bind(self, x: Array, before: Stage | None) -> None:
        self.shape, self.flat = tuple(x.shape), x.ndim == 2
        d, m = self.shape[0], math.prod(self.shape[1:])
        self.lib, self.column_sums = self.site.family.lib, self.site.family.sums
        self.share, self.eps_number = self.shared.filled(1.0 / d, (d,)), self.shared.filled(self.eps)
        self.ones, (self.sums, _) = self.shared.filled(1.0, (m,)), self.site.family.over_batch(m)
        self.mean, self.scale = self.work("mean", (m,)), self.work("scale", (m,))
        self.gain, self.mean_product = self.shared("gain", (d,)), self.shared("mean product", (m,))
        self.normal = self.place("normal", d, m)
        self.matrix = self.output(d, m) if self.flat else self.place("y", d, m)
        self.y = self.features_first(self.matrix)
        self.spare = self.place("spare", d, m) if self.y_kept else self.matrix

    def place(self, name: str, d: int, m: int) -> Array:
        """An array (D, M) of the workspace."""
        return self.work(name, (d, m)) if self.flat else self.work(name, (m, d)).T

    def as_matrix(self, a: Array) -> Array:
        """(D, ..., N) -> (D, M)"""
        return a if self.flat else reversed_axes(a).reshape((-1, self.shape[0])).T

    def features_first(self, a: Array) -> Array:
        """(D, M) -> (D, ..., N)"""
        return a if self.flat else reversed_axes(a.T.reshape(self.shape[::-1]))

    def forward(self, x: Array, params: Any) -> Array:
        lib, normal, y, mean = self.lib, self.normal, self.matrix, self.mean
        _, _, gamma, beta = params
        x = self.as_matrix(x)
        lib.subtract(x, self.column_sums(x.T, self.share, out=mean), out=normal)
        normal -= self.column_sums(normal.T, self.share, out=mean)  # what rounding took from the mean of large numbers
        lib.multiply(normal, normal, out=y)
        scale = self.column_sums(y.T, self.share, out=self.scale)
        scale += self.eps_number
        lib.sqrt(scale, out=scale)
        lib.reciprocal(scale, out=scale)
        normal *= scale
        lib.multiply(normal, gamma, out=y)
        y += beta
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        """The means of g = γ dy and of g x̂ are products of dy and dy x̂ with γ / D."""
        lib, normal, g, gain = self.lib, self.normal, self.as_matrix(dy), self.gain
        product = lib.multiply(g, normal, out=self.spare)
        self.sums(product, self.ones, out=grads[0])
        self.sums(g, self.ones, out=grads[1])
        if self.lowest:
            return None
        lib.multiply(params[0], self.share, out=gain)
        mean = self.column_sums(g.T, gain, out=self.mean)
        normal *= self.column_sums(product.T, gain, out=self.mean_product)
        g *= params[2]
        g -= mean
        g -= normal
        g *= self.scale
        return self.features_first(g)
