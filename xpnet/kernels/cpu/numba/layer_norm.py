"""Layer norm, in loops. Axes: D features, N batch."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ....backends import Array
from ...stages import Part, Site, Stage
from .. import layer_norm
from .compiling import compiled

TILE = 256  # columns at a time


@compiled
def forward(x, gamma, beta, eps, mean, scale, normal, y):
    """normal = x̂ = (x - μ) scale with scale = 1 / √(v + eps), y = γ x̂ + β"""
    d, n = x.shape
    share = y.dtype.type(1.0) / y.dtype.type(d)
    for start in range(0, n, TILE):  # columns that stay in cache, their rows as vectors
        tile = slice(start, start + TILE)
        m = mean[tile]
        s = scale[tile]
        m[:] = y.dtype.type(0.0)
        for i in range(d):
            add(x[i, tile], m)
        s[:] = y.dtype.type(0.0)
        for i in range(d):
            centre(x[i, tile], m, share, normal[i, tile], s)
        m[:] = s
        s[:] = y.dtype.type(0.0)
        for i in range(d):  # what rounding took from the mean of large numbers
            square(m, share, normal[i, tile], s)
        for j in range(s.size):
            s[j] = y.dtype.type(1.0) / np.sqrt(s[j] * share + y.dtype.type(eps))
        for i in range(d):
            stretch(s, gamma[i], beta[i], normal[i, tile], y[i, tile])


@compiled
def add(a, total):
    """total ← total + a"""
    for j in range(a.size):
        total[j] += a[j]


@compiled
def centre(x, total, share, c, rest):
    """c = x - total share, rest ← rest + c"""
    for j in range(x.size):
        c[j] = x[j] - total[j] * share
        rest[j] += c[j]


@compiled
def square(rest, share, c, total):
    """c ← c - rest share, total ← total + c²"""
    for j in range(c.size):
        c[j] -= rest[j] * share
        total[j] += c[j] * c[j]


@compiled
def stretch(scale, gamma, beta, c, y):
    """c ← c scale, y = γ c + β"""
    for j in range(c.size):
        c[j] *= scale[j]
        y[j] = gamma * c[j] + beta


@compiled
def backward(normal, gamma, scale, mean, product, d, sums):
    """With g = γ d: d ← (g - mean(g) - x̂ mean(g x̂)) scale, and sums (2, D) are those of d x̂ and of d."""
    share = d.dtype.type(1.0) / d.dtype.type(d.shape[0])
    sums[:] = 0.0
    for start in range(0, d.shape[1], TILE):
        tile = slice(start, start + TILE)
        mean[tile] = d.dtype.type(0.0)
        product[tile] = d.dtype.type(0.0)
        for i in range(d.shape[0]):
            gather(normal[i, tile], gamma[i], d[i, tile], mean[tile], product[tile], sums[:, i])
        for i in range(d.shape[0]):
            slope(normal[i, tile], mean[tile], product[tile], share, scale[tile], d[i, tile])


@compiled
def gather(c, gamma, d, mean, product, sums):
    """g = γ d in d's place, and the sums that it goes into."""
    of_product = d.dtype.type(0.0)
    of_d = d.dtype.type(0.0)
    for j in range(d.size):
        of_product += d[j] * c[j]
        of_d += d[j]
    sums[0] += of_product
    sums[1] += of_d
    for j in range(d.size):
        d[j] *= gamma
        mean[j] += d[j]
        product[j] += d[j] * c[j]


@compiled
def slope(c, mean, product, share, scale, d):
    """d ← (d - mean share - c product share) scale"""
    for j in range(d.size):
        d[j] = (d[j] - mean[j] * share - c[j] * product[j] * share) * scale[j]


class LayerNorm(layer_norm.LayerNorm):
    """Tiles of columns that stay in cache; sums over the batch are taken in float64 from tile to tile."""

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        return super().take(site, before, parts) if parts and parts[0].axes == 2 else None

    def bind(self, x: Array, before: Stage | None) -> None:
        super().bind(x, before)
        self.product = self.work("product", self.mean.shape)
        self.long_sums = self.work("sums", (2, x.shape[0]), np.float64)

    def forward(self, x: Array, params: Any) -> Array:
        forward(x, *params[:2], self.eps, self.mean, self.scale, self.normal, self.y)
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        backward(self.normal, params[0], self.scale, self.mean, self.product, dy, self.long_sums)
        grads[0][...], grads[1][...] = self.long_sums
        return None if self.lowest else dy
