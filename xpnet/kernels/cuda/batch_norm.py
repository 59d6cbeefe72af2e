"""Batch norm and a pointwise function, in CUDA."""

from typing import Any

from ...backends import Array
from .. import stages
from .launching import RowsStage, in_rows


class BatchNorm(stages.BatchNorm, RowsStage):
    """Where several blocks share a row, each part of a kernel is a launch of its own."""

    def bind(self, x: Array, before: Any) -> None:
        (h, n), self.keeps = x.shape, before is None
        self.centre, self.scale = self.work("centre", (h,)), self.work("scale", (h,))
        self.bind_rows(h, n)

    def forward(self, x: Array, params: Any) -> Array:
        gamma, beta, _, bias = params
        self.cache = x = in_rows(x, self.dtype)
        kept = *self.batch, self.centre, self.scale
        arguments = x, gamma, beta, bias, float(self.eps), self.setting, self.n, *kept, self.y, *self.sums
        for part in (0,) if self.columns == 1 else (1, 2, 3):
            self.over_rows("batch_norm", part, *arguments)
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        (gamma, beta, *_), (dgamma, dbeta, _, dbias) = params, grads
        found = self.cache, self.y, gamma, beta, self.centre, self.scale, self.setting, self.n
        arguments = dy, *found, dy, dgamma, dbeta, dbias, *self.sums
        for part in (0,) if self.columns == 1 else (1, 2):
            self.over_rows("batch_norm_backward", part, *arguments)
        return dy
