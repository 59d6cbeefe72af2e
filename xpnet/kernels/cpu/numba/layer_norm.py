"""Layer norm, in loops. Axes: D features, N batch."""

from typing import Any

import numpy as np

from ....backends import Array
from ...stages import Stage
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
    """d ← g = γ d, and add to the sums."""
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


# --- positions, whose features are contiguous ---


@compiled
def forward_rows(x, gamma, beta, eps, scale, normal, y):
    """As `forward`, for rows (M, D)."""
    m, d = x.shape
    share = y.dtype.type(1.0) / y.dtype.type(d)
    for i in range(m):
        c = normal[i]
        total = y.dtype.type(0.0)
        for j in range(d):
            total += x[i, j]
        mean = total * share
        rest = y.dtype.type(0.0)
        for j in range(d):
            c[j] = x[i, j] - mean
            rest += c[j]
        rest *= share
        total = y.dtype.type(0.0)
        for j in range(d):  # what rounding took from the mean of large numbers
            c[j] -= rest
            total += c[j] * c[j]
        s = y.dtype.type(1.0) / np.sqrt(total * share + y.dtype.type(eps))
        scale[i] = s
        for j in range(d):
            c[j] *= s
            y[i, j] = gamma[j] * c[j] + beta[j]


@compiled
def backward_rows(normal, gamma, scale, d, tile, sums):
    """As `backward`, for rows; `tile` (2, D) is for the sums of TILE rows."""
    m, features = d.shape
    share = d.dtype.type(1.0) / d.dtype.type(features)
    sums[:] = 0.0
    for start in range(0, m, TILE):
        tile[:] = d.dtype.type(0.0)
        for i in range(start, min(start + TILE, m)):
            add_rows(normal[i], d[i], tile[0], tile[1])
            slope_of_row(normal[i], gamma, share, scale[i], d[i])
        sums += tile


@compiled
def add_rows(c, d, of_product, of_d):
    """Add d x̂ and d to their sums."""
    for j in range(d.size):
        of_product[j] += d[j] * c[j]
        of_d[j] += d[j]


@compiled
def slope_of_row(c, gamma, share, scale, d):
    """d ← (g - mean(g) - x̂ mean(g x̂)) scale with g = γ d"""
    total = d.dtype.type(0.0)
    product = d.dtype.type(0.0)
    for j in range(d.size):
        g = gamma[j] * d[j]
        total += g
        product += g * c[j]
    total *= share
    product *= share
    for j in range(d.size):
        d[j] = (gamma[j] * d[j] - total - c[j] * product) * scale


class LayerNorm(layer_norm.LayerNorm):
    """Tiles of columns that stay in cache, or rows; sums over all positions are taken in float64 from tile to tile."""

    def bind(self, x: Array, before: Stage | None) -> None:
        super().bind(x, before)
        self.tile = self.work("tile", (2, x.shape[0]) if x.ndim > 2 else self.mean.shape)
        self.long_sums = self.work("sums", (2, x.shape[0]), np.float64)

    def forward(self, x: Array, params: Any) -> Array:
        gamma, beta, *_ = params
        if self.flat:
            forward(x, gamma, beta, self.eps, self.mean, self.scale, self.normal, self.y)
        else:
            forward_rows(self.as_matrix(x).T, gamma, beta, self.eps, self.scale, self.normal.T, self.matrix.T)
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        if self.flat:
            backward(self.normal, params[0], self.scale, self.mean, self.tile, dy, self.long_sums)
            dx = dy
        else:
            rows = self.as_matrix(dy).T
            backward_rows(self.normal.T, params[0], self.scale, rows, self.tile, self.long_sums)
            dx = self.features_first(rows.T)
        grads[0][...], grads[1][...] = self.long_sums
        return None if self.lowest else dx
