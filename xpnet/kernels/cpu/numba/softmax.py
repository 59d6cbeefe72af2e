"""Softmax and cross-entropy, in loops."""

from typing import Any

import numpy as np

from ....backends import Array
from ... import stages
from .compiling import compiled, exp

TILE = 256  # columns at a time


@compiled
def softmax_cross_entropy(z, target, factor, top, sums, dz):
    """With s = z - max z: sums = Σ_k e^{s_k}, dz = factor (e^s / sums - t); returns Σ_n Σ_k t_k s_k."""
    classes, n = z.shape
    f = z.dtype.type(factor)
    total = 0.0
    for start in range(0, n, TILE):  # columns that stay in cache, their rows as vectors
        tile = slice(start, start + TILE)
        high = top[tile]
        sum_e = sums[tile]
        high[:] = z[0, tile]
        sum_e[:] = z.dtype.type(0.0)
        part = z.dtype.type(0.0)
        for k in range(1, classes):
            higher(z[k, tile], high)
        for k in range(classes):
            part += softmax_row(z[k, tile], target[k, tile], high, sum_e, dz[k, tile])
        total += part
        for j in range(high.size):
            high[j] = f / sum_e[j]
        for k in range(classes):
            softmax_slope(dz[k, tile], high, f, target[k, tile])
    return total


@compiled
def higher(z, top):
    """top ← max(top, z)"""
    for j in range(z.size):
        top[j] = z[j] if z[j] > top[j] else top[j]


@compiled
def softmax_row(z, target, top, sums, e):
    """e = e^s, sums ← sums + e with s = z - top; returns Σ_n t s."""
    part = z.dtype.type(0.0)
    for j in range(z.size):
        e[j] = exp(z[j] - top[j])
    for j in range(z.size):
        sums[j] += e[j]
        part += target[j] * (z[j] - top[j])
    return part


@compiled
def softmax_slope(e, over, factor, target):
    """e ← e over - factor t, the derivative, where over is factor / sums."""
    for j in range(e.size):
        e[j] = e[j] * over[j] - factor * target[j]


class SoftmaxCrossEntropy(stages.SoftmaxCrossEntropy):
    """Tiles of columns, the rows of the batch, that stay in cache."""

    def bind(self, x: Array, before: Any) -> None:
        (k, n), self.scale = x.shape, self.share(x.shape[1])
        self.target, self.dz = self.work("target", (k, n)), self.work("dz", (k, n))
        self.top, self.sums = self.work("top", (n,)), self.work("sums", (n,))

    def forward(self, z: Array, target: Array) -> tuple[Any, Array]:
        np.copyto(self.target, target)  # whose rows may be part of longer ones
        total = softmax_cross_entropy(z, self.target, self.scale, self.top, self.sums, self.dz)
        return (float(np.add.reduce(np.log(self.sums, out=self.sums))) - total) * self.scale, self.dz
