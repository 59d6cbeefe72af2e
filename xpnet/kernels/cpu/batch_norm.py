"""Batch norm and a pointwise function, in calls."""

from collections.abc import Mapping
from typing import Any

from ...backends import Array
from .. import stages
from .functions import RowsStage


class BatchNorm(stages.BatchNorm, RowsStage):
    """Batch norm in calls. x - μ overwrites x if nothing else reads x."""

    meets = True
    centred: Array
    deviation: Array  # √(v + eps)
    gain: Array  # γ / √(v + eps)
    scratch: Array  # (H,), for intermediate results
    mean: Array
    var: Array

    def bind(self, x: Array, before: Any) -> None:
        h, n = x.shape
        self.n = n
        self.average, self.share = self.shared.filled(1.0 / n, (n,)), self.shared.filled(1.0 / n)
        self.eps_number = self.shared.filled(self.eps)
        centred = x if before and before.y_read_once else self.work("centred", (h, n))
        vectors = {name: self.work(name, (h,)) for name in ("deviation", "gain", "scratch")}
        vectors |= dict(zip(("mean", "var"), self.own_statistics(h), strict=True))
        self.bind_rows(h, n, y=self.output(h, n), centred=centred, **vectors)
        self.forward_rows = self.by_rows(BatchNorm.forward_part)
        self.backward_rows = self.by_rows(BatchNorm.backward_part)
        self.centre_rows, self.shift_rows = self.by_rows(BatchNorm.centre), self.by_rows(BatchNorm.shift_and_normalize)
        self.sum_rows, self.dz_rows = self.by_rows(BatchNorm.slope_and_sums), self.by_rows(BatchNorm.write_dz)
        self.infer_rows = self.by_rows(BatchNorm.infer_part)

    def _connect(self) -> None:
        super()._connect()
        vectors = self.gain, self.scratch, self.mean
        self.gain_column, self.scratch_column, self.mean_column = (vector[:, None] for vector in vectors)

    def forward(self, x: Array, params: Any) -> Array:
        gamma, _, beta, bias = params
        self.forward_rows(self, x, gamma, beta)
        if bias is not None:
            self.lib.add(self.mean, bias, out=self.mean)
        return self.y

    def forward_part(self, x: Array, gamma: Array, beta: Array) -> None:
        """Run the forward pass, except for the bias, on all rows or a block of them; `beta` is a column."""
        self.centre(x)
        self.normalize(gamma, beta)

    def centre(self, x: Array) -> None:
        """Compute μ, v and x - μ."""
        lib, mean, var = self.lib, self.mean, self.var
        self.sums(x, self.average, out=mean)
        centred = lib.subtract(x, self.mean_column, out=self.centred)
        mean += self.sums(centred, self.average, out=self.scratch)  # corrects the mean's rounding error
        centred -= self.scratch_column
        self.row_dot(centred, centred, out=var)
        var *= self.share

    def normalize(self, gamma: Array, beta: Array) -> None:
        """Compute y from x - μ and v."""
        lib, centred = self.lib, self.centred
        deviation = lib.add(self.var, self.eps_number, out=self.deviation)
        lib.sqrt(deviation, out=deviation)
        lib.divide(gamma, deviation, out=self.gain)
        lib.multiply(centred, self.gain_column, out=self.y)
        self.apply(beta)

    def infer(self, x: Array, params: Any, arrays: Mapping[str, Array]) -> Array:
        gamma, _, beta, bias = params
        self.take_averages(bias, arrays)
        self.infer_rows(self, x, gamma, beta)
        return self.y

    def infer_part(self, x: Array, gamma: Array, beta: Array) -> None:
        """Compute y from μ and v, on all rows or a block of them."""
        self.lib.subtract(x, self.mean_column, out=self.centred)
        self.normalize(gamma, beta)

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        dgamma, dbeta, _, dbias = grads
        if dbias is not None:
            dbias[...] = 0.0
        self.backward_rows(self, dy, dgamma, dbeta)
        return dy

    def backward_part(self, dy: Array, dgamma: Array, dbeta: Array) -> None:
        """Run the backward pass on all rows or a block of them."""
        self.slope_and_sums(dy, dgamma, dbeta)
        self.write_dz(dy, dgamma, dbeta)

    def slope_and_sums(self, dy: Array, dgamma: Array, dbeta: Array) -> None:
        """Turn dy into du in place, and write dγ and dβ."""
        self.times_slope(dy)
        self.sums(dy, self.ones, out=dbeta)
        self.row_dot(dy, self.centred, out=dgamma)
        dgamma /= self.deviation

    def write_dz(self, dy: Array, dgamma: Array, dbeta: Array) -> None:
        """Turn du, in `dy`, into dz in place, given dγ and dβ."""
        lib, centred, scratch = self.lib, self.centred, self.scratch
        lib.divide(dgamma, self.deviation, out=scratch)
        scratch *= self.share
        centred *= self.scratch_column
        dy -= centred
        lib.multiply(dbeta, self.share, out=scratch)
        dy -= self.scratch_column
        dy *= self.gain_column

    def begin_forward(self, x: Array, params: Any) -> None:
        self.centre_rows(self, x)

    def end_forward(self, x: Array, params: Any) -> Array:
        gamma, _, beta, _ = params
        self.shift_rows(self, self.shift[:, None], gamma, beta)
        return self.y

    def shift_and_normalize(self, shift: Array, gamma: Array, beta: Array) -> None:
        """Finish the forward pass of a stretch, whose μ exceeds the batch's by `shift`."""
        centred = self.centred
        centred += shift
        self.normalize(gamma, beta)

    def begin_backward(self, dy: Array, params: Any, grads: Any) -> None:
        dgamma, dbeta, _, dbias = grads
        if dbias is not None:
            dbias[...] = 0.0
        self.sum_rows(self, dy, dgamma, dbeta)

    def end_backward(self, dy: Array, params: Any, sums: Any) -> Array:
        self.dz_rows(self, dy, *sums)
        return dy
