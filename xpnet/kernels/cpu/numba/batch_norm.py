"""Batch norm and a pointwise function, in loops."""

from typing import Any

import numpy as np

from ....backends import Array
from ... import stages
from .compiling import compiled
from .functions import Loops, LoopStage


@compiled
def averaged(old, batch, rates, new):
    """new = (1 - rates) old + rates batch"""
    one = new.dtype.type(1.0)
    for i in range(new.size):
        new[i] = (one - rates[i]) * old[i] + rates[i] * batch[i]


def loops(value: Any, back: Any, made_of: Any) -> Loops:
    """The loops with y of x in them, and dy times the slope."""

    @made_of
    def forward(z, bias, gamma, beta, eps, s, own, mean, var, scale, y, wide):
        """y = f(γ (z - μ) scale + β), scale = 1 / √(v + eps); `own` is μ, and `mean` that of z + bias.

        Without y it ends when μ and v are found; without `mean` they are there already.
        """
        n = z.shape[1]
        one = z.dtype.type(1.0)
        none = z.dtype.type(0.0) if wide is None else wide
        share = one / z.dtype.type(n)
        for i in range(z.shape[0]):
            if mean is None:
                m = own[i]
                v = var[i]
            else:
                total = none
                for j in range(n):
                    total += z[i, j]
                m = z.dtype.type(total * share)
                rest = none
                for j in range(n):
                    rest += z[i, j] - m
                m += z.dtype.type(rest * share)  # what a sum of large numbers loses of its mean
                total = none
                rest = none
                for j in range(n):
                    c = z[i, j] - m
                    total += c * c
                    rest += c
                rest *= share  # what is less than the mean's last digit
                v = z.dtype.type(total * share - rest * rest)
                own[i] = m
                mean[i] = m if bias is None else m + bias[i]
                var[i] = v
            if y is not None:
                scale[i] = one / np.sqrt(v + z.dtype.type(eps))
                gain = gamma[i] * scale[i]
                b = beta[i]
                for j in range(n):
                    y[i, j] = value((z[i, j] - m) * gain + b, s)

    @made_of
    def backward(z, gamma, beta, s, mean, scale, y, d, dgamma, dbeta, dbias, wide, stop):
        """du = d f', dβ = Σ_n du, dγ = Σ_n du x̂, d ← γ scale (du - dβ / N - x̂ dγ / N) with x̂ = (z - μ) scale.

        Unless `stop` is None it ends when du and the sums are found; without y they are there already.
        """
        n = z.shape[1]
        none = z.dtype.type(0.0) if wide is None else wide
        share = z.dtype.type(1.0) / z.dtype.type(n)
        for i in range(z.shape[0]):
            m = mean[i]
            gain = gamma[i] * scale[i]
            sum_u = none
            sum_ux = none
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
            if stop is None:
                shift = z.dtype.type(sum_u * share)
                slope = z.dtype.type(sum_ux * scale[i] * share)
                for j in range(n):
                    d[i, j] = gain * (d[i, j] - shift - (z[i, j] - m) * slope)

    return {"forward": forward, "backward": backward}


class BatchNorm(stages.BatchNorm, LoopStage):
    """x stays as it is, and `scale` keeps 1 / √(v + eps)."""

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
        made = self.mean, *self.batch, self.scale, self.y
        self.forward_rows(x, bias, gamma, beta, self.eps, self.settings, *made, self.wide)
        if self.finish:
            self.finish()
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        (gamma, beta, *_), (dgamma, dbeta, _, dbias) = params, grads
        kept = self.settings, self.mean, self.scale, self.y
        self.backward_rows(self.cache, gamma, beta, *kept, dy, dgamma, dbeta, dbias, self.wide, None)
        return dy

    def begin_forward(self, x: Array, params: Any) -> None:
        found = self.mean, self.mean, self.var, self.scale
        self.forward_rows(x, None, *params[:2], self.eps, self.settings, *found, None, self.wide)

    def end_forward(self, x: Array, params: Any) -> Array:
        found = self.mean, None, self.var, self.scale
        self.forward_rows(x, None, *params[:2], self.eps, self.settings, *found, self.y, self.wide)
        if self.finish:
            self.finish()
        return self.y

    def begin_backward(self, dy: Array, params: Any, grads: Any) -> None:
        dgamma, dbeta, _, dbias = grads
        kept = self.settings, self.mean, self.scale, self.y
        self.backward_rows(self.cache, *params[:2], *kept, dy, dgamma, dbeta, dbias, self.wide, True)

    def end_backward(self, dy: Array, params: Any, sums: Any) -> Array:
        kept = self.settings, self.mean, self.scale, None
        self.backward_rows(self.cache, *params[:2], *kept, dy, *sums, None, self.wide, None)
        return dy
