"""Batch norm and a pointwise function, in loops."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ....backends import Array
from ... import stages
from .compiling import compiled
from .functions import Loops, LoopStage


@compiled
def averaged(old, batch, rates, new):
    """Write (1 - rates) old + rates batch to `new`."""
    one = new.dtype.type(1.0)
    for i in range(new.size):
        new[i] = (one - rates[i]) * old[i] + rates[i] * batch[i]


def loops(value: Any, back: Any, compiled_loop: Any) -> Loops:
    """Return the loops, given a pointwise function f as `value`, and dy times its slope as `back`."""

    @compiled_loop
    def forward(z, bias, gamma, beta, eps, s, mean, mean_with_bias, var, scale, y, wide):
        """Write y = f(γ (z - μ) scale + β), scale = 1 / √(v + eps), `mean` μ, `mean_with_bias` μ + bias, and `var` v.

        If y is None, only write the mean and variance; if `mean_with_bias` is None, read them from `mean` and `var`.
        """
        n = z.shape[1]
        one = z.dtype.type(1.0)
        zero = z.dtype.type(0.0) if wide is None else wide
        share = one / z.dtype.type(n)
        for i in range(z.shape[0]):
            if mean_with_bias is None:
                m = mean[i]
                v = var[i]
            else:
                total = zero
                for j in range(n):
                    total += z[i, j]
                m = z.dtype.type(total * share)
                rest = zero
                for j in range(n):
                    rest += z[i, j] - m
                m += z.dtype.type(rest * share)  # corrects the mean's rounding error
                total = zero
                rest = zero
                for j in range(n):
                    c = z[i, j] - m
                    total += c * c
                    rest += c
                rest *= share  # the remaining error, below the mean's last digit
                v = z.dtype.type(total * share - rest * rest)
                mean[i] = m
                mean_with_bias[i] = m if bias is None else m + bias[i]
                var[i] = v
            if y is not None:
                scale[i] = one / np.sqrt(v + z.dtype.type(eps))
                gain = gamma[i] * scale[i]
                b = beta[i]
                for j in range(n):
                    y[i, j] = value((z[i, j] - m) * gain + b, s)

    @compiled_loop
    def backward(z, gamma, beta, s, mean, scale, y, d, dgamma, dbeta, dbias, wide, sums_only):
        """du = d f', dβ = Σ_n du, dγ = Σ_n du x̂, d ← γ scale (du - dβ / N - x̂ dγ / N) with x̂ = (z - μ) scale.

        Unless `sums_only` is None, only d ← du and the sums are computed; if y is None, they are read instead.
        """
        n = z.shape[1]
        zero = z.dtype.type(0.0) if wide is None else wide
        share = z.dtype.type(1.0) / z.dtype.type(n)
        for i in range(z.shape[0]):
            m = mean[i]
            gain = gamma[i] * scale[i]
            sum_u = zero
            sum_ux = zero
            if y is None:
                sum_u += dbeta[i]
                sum_ux += dgamma[i]
            else:
                b = beta[i]
                for j in range(n):
                    c = z[i, j] - m
                    u = back(d[i, j], c * gain + b, y[i, j], s)
                    d[i, j] = u
                    sum_u += u
                    sum_ux += u * c
                sum_ux *= scale[i]
                dbeta[i] = sum_u
                dgamma[i] = sum_ux
                if dbias is not None:
                    dbias[i] = z.dtype.type(0.0)
            if sums_only is None:
                shift = z.dtype.type(sum_u * share)
                slope = z.dtype.type(sum_ux * scale[i] * share)
                for j in range(n):
                    d[i, j] = gain * (d[i, j] - shift - (z[i, j] - m) * slope)

    return {"forward": forward, "backward": backward}


class BatchNorm(stages.BatchNorm, LoopStage):
    """Batch norm in loops. x is not overwritten; `scale` holds 1 / √(v + eps) for backward."""

    loops = staticmethod(loops)
    meets = True

    def bind(self, x: Array, before: Any) -> None:
        h, n = x.shape
        self.keeps = before is None
        self.cache = x
        self.mean, self.scale, self.n = self.work("mean", (h,)), self.work("scale", (h,)), n
        _, self.var = self.own_statistics(h)
        self.bind_rows(self.output(h, n))

    def forward(self, x: Array, params: Any) -> Array:
        gamma, beta, _, bias = params
        self.cache = x
        outputs = self.mean, *self.batch, self.scale, self.y
        self.forward_rows(x, bias, gamma, beta, self.eps, self.settings, *outputs, self.wide)
        if self.finish:
            self.finish()
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        (gamma, beta, *_), (dgamma, dbeta, _, dbias) = params, grads
        saved = self.settings, self.mean, self.scale, self.y
        self.backward_rows(self.cache, gamma, beta, *saved, dy, dgamma, dbeta, dbias, self.wide, None)
        return dy

    def infer(self, x: Array, params: Any, arrays: Mapping[str, Array]) -> Array:
        self.take_averages(params[-1], arrays)
        return self.end_forward(x, params)

    def begin_forward(self, x: Array, params: Any) -> None:
        statistics = self.mean, self.mean, self.var, self.scale
        self.forward_rows(x, None, *params[:2], self.eps, self.settings, *statistics, None, self.wide)

    def end_forward(self, x: Array, params: Any) -> Array:
        statistics = self.mean, None, self.var, self.scale
        self.forward_rows(x, None, *params[:2], self.eps, self.settings, *statistics, self.y, self.wide)
        if self.finish:
            self.finish()
        return self.y

    def begin_backward(self, dy: Array, params: Any, grads: Any) -> None:
        dgamma, dbeta, _, dbias = grads
        saved = self.settings, self.mean, self.scale, self.y
        self.backward_rows(self.cache, *params[:2], *saved, dy, dgamma, dbeta, dbias, self.wide, True)

    def end_backward(self, dy: Array, params: Any, sums: Any) -> Array:
        saved = self.settings, self.mean, self.scale, None
        self.backward_rows(self.cache, *params[:2], *saved, dy, *sums, None, self.wide, None)
        return dy
