"""Batch norm and a pointwise function, in calls."""

from typing import Any

from ...backends import Array
from .. import stages
from .functions import RowsStage


class BatchNorm(stages.BatchNorm, RowsStage):
    """x - μ stands in x's place where that is free."""

    meets = True
    centred: Array
    deviation: Array  # √(v + eps)
    gain: Array  # γ / √(v + eps)
    small: Array  # (H,), of what is found on the way
    mean: Array
    var: Array

    def bind(self, x: Array, before: Any) -> None:
        h, n = x.shape
        self.n = n
        self.average, self.share = self.shared.filled(1.0 / n, (n,)), self.shared.filled(1.0 / n)
        self.eps_number = self.shared.filled(self.eps)
        centred = x if before and before.y_read_once else self.work("centred", (h, n))
        vectors = {name: self.work(name, (h,)) for name in ("deviation", "gain", "small")}
        vectors |= dict(zip(("mean", "var"), self.own_statistics(h), strict=True))
        self.bind_rows(h, n, y=self.output(h, n), centred=centred, **vectors)
        self.forward_rows, self.backward_rows = self.by_rows(BatchNorm.ahead), self.by_rows(BatchNorm.back)
        self.centre_rows, self.shift_rows = self.by_rows(BatchNorm.centre), self.by_rows(BatchNorm.ahead_from)
        self.total_rows, self.spread_rows = self.by_rows(BatchNorm.total), self.by_rows(BatchNorm.spread)

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
        self.centre(x)
        self.normalize(gamma, beta)

    def centre(self, x: Array) -> None:
        """x - μ, with μ and v"""
        lib, mean, var = self.lib, self.mean, self.var
        self.sums(x, self.average, out=mean)
        centred = lib.subtract(x, self.mean_column, out=self.centred)
        mean += self.sums(centred, self.average, out=self.small)  # what a sum of large numbers loses of its mean
        centred -= self.small_column
        self.row_dot(centred, centred, out=var)
        var *= self.share

    def normalize(self, gamma: Array, beta: Array) -> None:
        """y of x - μ and v"""
        lib, centred = self.lib, self.centred
        deviation = lib.add(self.var, self.eps_number, out=self.deviation)
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
        self.total(dy, dgamma, dbeta)
        self.spread(dy, dgamma, dbeta)

    def total(self, dy: Array, dgamma: Array, dbeta: Array) -> None:
        """dy ← du, and its sums"""
        self.times_slope(dy)
        self.sums(dy, self.ones, out=dbeta)
        self.row_dot(dy, self.centred, out=dgamma)
        dgamma /= self.deviation

    def spread(self, dy: Array, dgamma: Array, dbeta: Array) -> None:
        """dz in the place of du, by the sums"""
        lib, centred, small = self.lib, self.centred, self.small
        lib.divide(dgamma, self.deviation, out=small)
        small *= self.share
        centred *= self.small_column
        dy -= centred
        lib.multiply(dbeta, self.share, out=small)
        dy -= self.small_column
        dy *= self.gain_column

    def begin_forward(self, x: Array, params: Any) -> None:
        self.centre_rows(self, x)

    def end_forward(self, x: Array, params: Any) -> Array:
        gamma, _, beta, _ = params
        self.shift_rows(self, self.shift[:, None], gamma, beta)
        return self.y

    def ahead_from(self, shift: Array, gamma: Array, beta: Array) -> None:
        """The rest of a stretch's forward pass: its μ is so much more than the batch's."""
        centred = self.centred
        centred += shift
        self.normalize(gamma, beta)

    def begin_backward(self, dy: Array, params: Any, grads: Any) -> None:
        dgamma, dbeta, _, dbias = grads
        if dbias is not None:
            dbias[...] = 0.0
        self.total_rows(self, dy, dgamma, dbeta)

    def end_backward(self, dy: Array, params: Any, sums: Any) -> Array:
        self.spread_rows(self, dy, *sums)
        return dy
