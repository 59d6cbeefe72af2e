"""Batch norm and a pointwise function, in calls."""

from typing import Any

from ...backends import Array
from .. import stages
from .functions import RowsStage


class BatchNorm(stages.BatchNorm, RowsStage):
    """x - μ stands in x's place where that is free."""

    centred: Array
    deviation: Array  # √(v + eps)
    gain: Array  # γ / √(v + eps)
    small: Array  # (H,), of what is found on the way
    mean: Array
    var: Array

    def bind(self, x: Array, before: Any) -> None:
        h, n = x.shape
        self.average, self.share = self.shared.filled(1.0 / n, (n,)), self.shared.filled(1.0 / n)
        self.eps_number = self.shared.filled(self.eps)
        centred = x if before and before.y_read_once else self.work("centred", (h, n))
        vectors = {name: self.work(name, (h,)) for name in ("deviation", "gain", "small")}
        vectors |= dict(zip(("mean", "var"), self.batch, strict=True))
        self.bind_rows(h, n, y=self.output(h, n), centred=centred, **vectors)
        self.forward_rows, self.backward_rows = self.by_rows(BatchNorm.ahead), self.by_rows(BatchNorm.back)

    def _connect(self) -> None:
        super()._connect()
        vectors = self.gain, self.small, self.mean
        self.gain_column, self.small_column, self.mean_column = (vector[:, None] for vector in vectors)

    def forward(self, x: Array, params: Any) -> Array:
        gamma, _, beta, bias = params
        self.forward_rows(self, x, gamma, beta)
        if bias is not None:
            self.lib.add(self.mean, bias, out=self.mean)
        return self.y

    def ahead(self, x: Array, gamma: Array, beta: Array) -> None:
        """The forward pass but for the bias, of all rows or of a part; beta is a column."""
        lib, mean, var = self.lib, self.mean, self.var
        self.sums(x, self.average, out=mean)
        centred = lib.subtract(x, self.mean_column, out=self.centred)
        mean += self.sums(centred, self.average, out=self.small)  # what a sum of large numbers loses of its mean
        centred -= self.small_column
        self.row_dot(centred, centred, out=var)
        var *= self.share
        deviation = lib.add(var, self.eps_number, out=self.deviation)
        lib.sqrt(deviation, out=deviation)
        lib.divide(gamma, deviation, out=self.gain)
        lib.multiply(centred, self.gain_column, out=self.y)
        self.apply(beta)

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        dgamma, dbeta, _, dbias = grads
        if dbias is not None:
            dbias[...] = 0.0
        self.backward_rows(self, dy, dgamma, dbeta)
        return dy

    def back(self, dy: Array, dgamma: Array, dbeta: Array) -> None:
        """The backward pass of all rows or of a part."""
        lib, centred, small = self.lib, self.centred, self.small
        self.times_slope(dy)
        self.sums(dy, self.ones, out=dbeta)
        self.row_dot(dy, centred, out=dgamma)
        dgamma /= self.deviation
        lib.divide(dgamma, self.deviation, out=small)
        small *= self.share
        centred *= self.small_column
        dy -= centred
        lib.multiply(dbeta, self.share, out=small)
        dy -= self.small_column
        dy *= self.gain_column
