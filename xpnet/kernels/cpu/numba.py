"""The work of `calls.py` in loops that Numba compiles: a feature's row is gone through while it is in cache.

Axes: N batch, H features, K classes. Matrices are (H, N), a feature's batch in one row of memory; vectors are (H,).
The compiled code is kept on disk, beside this file or where NUMBA_CACHE_DIR says. Where it cannot be read or written,
it is compiled anew in each process.
"""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic, overload

from ... import ops
from ...backends import Array, Backend
from ...common.warn import warn
from ...layers.activations import ReLU, Sigmoid, Tanh
from ...layers.base import Layer
from ...optimizers import Optimizer, Slots
from ..rules import RULES
from . import threads
from .calls import Calls, Work

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, so it compiles nothing")

IDENTITY, SIGMOID, RELU, TANH = range(4)  # Tanh is NumPy's to compute, in place
KINDS = {type(None): IDENTITY, Sigmoid: SIGMOID, ReLU: RELU, Tanh: TANH}
TILE = 256  # columns of the loss at a time


class Cache(FunctionCache):
    """A function's compiled code on disk, which is made anew where files are damaged or the disk is full."""

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a file that was cut short fails in as many ways as pickle has
            with contextlib.suppress(OSError):
                self.flush()  # else it could not be written anew either
            return None

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except Exception as error:  # no space, no right to write, or what Numba cannot write
            warn(
                f"what Numba has compiled cannot be kept in {self.cache_path} ({type(error).__name__}: {error}): each "
                "process compiles it anew. Make room there, or set NUMBA_CACHE_DIR",
                RuntimeWarning,
            )


def compiling(fastmath: Any) -> Callable[[Any], Any]:
    """The decorator that has Numba compile a function when it is first called, to be kept in a `Cache`."""

    def decorate(function: Any) -> Any:
        dispatcher = njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
        dispatcher._cache = Cache(function)  # as cache=True sets Numba's own
        return dispatcher

    return decorate


exact = compiling(False)  # in the order written, whoever calls it
compiled = compiling({"reassoc", "contract"})  # sums in any order

# --- functions of one number, in arithmetic that becomes vector instructions ------------------------------------------


@intrinsic
def as_float(typing: Any, bits: Any) -> Any:
    """The float32 or float64 that an int32 or int64 holds the bits of."""
    float_type, kind = {32: (types.float32, ir.FloatType()), 64: (types.float64, ir.DoubleType())}[bits.bitwidth]
    return float_type(bits), lambda context, builder, signature, args: builder.bitcast(args[0], kind)


@intrinsic
def is_negative(typing: Any, x: Any) -> Any:
    """Whether the sign bit of x is set: of a number below 0, and of -0.0."""

    def code(context, builder, signature, args):
        kind = ir.IntType(x.bitwidth)
        return builder.icmp_signed("<", builder.bitcast(args[0], kind), ir.Constant(kind, 0))

    return types.boolean(x), code


@exact
def relu(u):
    """max(u, 0), as -0.0 where u is below 0: its sign tells backward which. NaN stays."""
    zero = type(u)(0.0)
    return -zero if u < zero else u + zero


@exact
def exp32(x):
    """e^x = 2^n e^r with n whole and |r| <= ln 2 / 2, e^r a polynomial. Moshier's Cephes, expf; within 1 ulp."""
    f = np.float32
    x = f(-87.0) if x < f(-87.0) else x  # a NaN stays
    x = f(88.0) if x > f(88.0) else x
    n = np.floor(x * f(1.44269504088896341) + f(0.5))
    r = x - n * f(0.693359375) - n * f(-2.12194440e-4)
    p = f(1.9875691500e-4) * r + f(1.3981999507e-3)
    p = p * r + f(8.3334519073e-3)
    p = p * r + f(4.1665795894e-2)
    p = p * r + f(1.6666665459e-1)
    p = p * r + f(5.0000001201e-1)
    return (p * r * r + r + f(1.0)) * as_float(np.int32((np.int32(n) + 127) << 23))


@exact
def exp64(x):
    """The same with e^r = 1 + 2 r P(r²) / (Q(r²) - r P(r²)). Moshier's Cephes, exp; within 2 ulp."""
    x = -708.0 if x < -708.0 else x
    x = 709.0 if x > 709.0 else x
    n = np.floor(x * 1.4426950408889634073599 + 0.5)
    r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6
    s = r * r
    p = r * ((1.26177193074810590878e-4 * s + 3.02994407707441961300e-2) * s + 9.99999999999999999910e-1)
    q = ((3.00198505138664455042e-6 * s + 2.52448340349684104192e-3) * s + 2.27265548208155028766e-1) * s + 2.0
    return (1.0 + 2.0 * (p / (q - p))) * as_float((np.int64(np.int32(n)) + 1023) << 52)


def exp(x):
    """Of the dtype that x has; for x beyond what it can hold, that of its ends."""


@overload(exp)
def _exp(x):
    return (lambda x: exp32(x)) if x == types.float32 else (lambda x: exp64(x))


# --- rows: features ---------------------------------------------------------------------------------------------------


# Arrays that are changed in place are one argument, not two of the same memory, which no compiler may vectorise.
# Sums begin at `wide`, the zero of float64, and are taken in it; where it is None, in the numbers' own dtype.


@compiled
def activation(kind, z, bias):
    """z ← f(z + bias), f(z) without a bias"""
    one = z.dtype.type(1.0)
    for i in range(z.shape[0]):
        b = z.dtype.type(0.0) if bias is None else bias[i]
        if kind == RELU:
            for j in range(z.shape[1]):
                z[i, j] = relu(z[i, j] + b)
        elif kind == SIGMOID:
            for j in range(z.shape[1]):
                z[i, j] = one / (one + exp(-(z[i, j] + b)))
        else:
            for j in range(z.shape[1]):
                z[i, j] += b


@compiled
def activation_backward(kind, y, d, dbias, wide):
    """d ← d f', dbias = Σ_n d unless it is None"""
    one = y.dtype.type(1.0)
    zero = y.dtype.type(0.0)
    none = zero if wide is None else wide
    for i in range(y.shape[0]):
        total = none
        if kind == RELU:
            for j in range(y.shape[1]):
                d[i, j] = zero if is_negative(y[i, j]) else d[i, j]
                total += d[i, j]
        elif kind == IDENTITY:
            for j in range(y.shape[1]):
                total += d[i, j]
        else:
            for j in range(y.shape[1]):
                v = y[i, j]
                d[i, j] *= v * (one - v) if kind == SIGMOID else one - v * v
                total += d[i, j]
        if dbias is not None:
            dbias[i] = total


@compiled
def batch_norm(kind, z, gamma, beta, eps, mean, var, scale, y, wide):
    """y = f(γ (z - μ) scale + β), scale = 1 / √(v + eps)"""
    n = z.shape[1]
    one = y.dtype.type(1.0)
    zero = y.dtype.type(0.0)
    none = zero if wide is None else wide
    share = one / y.dtype.type(n)
    for i in range(z.shape[0]):
        total = none
        for j in range(n):
            total += z[i, j]
        m = y.dtype.type(total * share)
        rest = none
        for j in range(n):
            rest += z[i, j] - m
        m += y.dtype.type(rest * share)  # what a sum of large numbers loses of its mean
        total = none
        rest = none
        for j in range(n):
            c = z[i, j] - m
            total += c * c
            rest += c
        rest *= share  # what is less than the mean's last digit
        v = y.dtype.type(total * share - rest * rest)
        s = one / np.sqrt(v + y.dtype.type(eps))
        mean[i] = m
        var[i] = v
        scale[i] = s
        gain = gamma[i] * s
        b = beta[i]
        if kind == RELU:
            for j in range(n):
                y[i, j] = relu((z[i, j] - m) * gain + b)
        elif kind == SIGMOID:
            for j in range(n):
                y[i, j] = one / (one + exp(-((z[i, j] - m) * gain + b)))
        else:
            for j in range(n):
                y[i, j] = (z[i, j] - m) * gain + b


@compiled
def batch_norm_backward(kind, z, gamma, mean, scale, y, d, dgamma, dbeta, wide):
    """du = d f', dβ = Σ_n du, dγ = Σ_n du x̂, d ← γ scale (du - dβ / N - x̂ dγ / N) with x̂ = (z - μ) scale"""
    n = z.shape[1]
    one = y.dtype.type(1.0)
    zero = y.dtype.type(0.0)
    none = zero if wide is None else wide
    share = one / y.dtype.type(n)
    for i in range(z.shape[0]):
        m = mean[i]
        s = scale[i]
        gain = gamma[i] * s
        sum_u = none
        sum_uc = none
        if kind == RELU:
            for j in range(n):
                u = zero if is_negative(y[i, j]) else d[i, j]
                d[i, j] = u
                sum_u += u
                sum_uc += u * (z[i, j] - m)
        elif kind == IDENTITY:
            for j in range(n):
                u = d[i, j]
                sum_u += u
                sum_uc += u * (z[i, j] - m)
        else:
            for j in range(n):
                v = y[i, j]
                u = d[i, j] * (v * (one - v) if kind == SIGMOID else one - v * v)
                d[i, j] = u
                sum_u += u
                sum_uc += u * (z[i, j] - m)
        dbeta[i] = sum_u
        dgamma[i] = sum_uc * s
        shift = y.dtype.type(sum_u * share)
        slope = y.dtype.type(sum_uc * s * s * share)
        for j in range(n):
            d[i, j] = gain * (d[i, j] - shift - (z[i, j] - m) * slope)


# --- columns: rows of the batch ---------------------------------------------------------------------------------------


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


# --- optimizers: any stretch of the vectors, the slots in place -------------------------------------------------------


@compiled
def clip(g, limit):
    """g ← g within ±limit, NaN where it is not finite; as it is where the limit is infinite"""
    if limit < np.inf:
        zero = g.dtype.type(0.0)
        for i in range(g.size):
            low = -limit if g[i] < -limit else g[i]
            g[i] = (limit if low > limit else low) + zero * g[i]


@exact
def square(share, g):
    """share g², which overflows only where that does."""
    return share * g * g


@compiled
def sgd(w, v, new, c):
    """See `rules`; `new` holds the gradient, and then the new w. In c stand the clip value, λ and the rule's numbers.

    The sum that it returns is finite only if w and the slots are.
    """
    total = w.dtype.type(0.0)
    clip(new, c[0])
    for i in range(w.size):
        d = new[i] + c[1] * (w[i] - c[2] * v[i])
        velocity = c[3] * v[i] + c[4] * d
        v[i] = velocity
        moved = w[i] - velocity
        new[i] = moved
        total += moved * velocity
    return total


@compiled
def root_mean_square(w, s, new, c):
    """As `sgd`."""
    total = w.dtype.type(0.0)
    clip(new, c[0])
    for i in range(w.size):
        d = new[i] + c[1] * w[i]
        squares = c[2] * s[i] + square(c[3], d)
        s[i] = squares
        moved = w[i] - c[4] * d / np.sqrt(squares + c[5])
        new[i] = moved
        total += moved * squares
    return total


@compiled
def adam(w, m, v, new, c):
    """As `sgd`."""
    total = w.dtype.type(0.0)
    clip(new, c[0])
    for i in range(w.size):
        d = new[i] + c[1] * w[i]
        mean = c[3] * m[i] + c[4] * d
        squares = c[5] * v[i] + square(c[6], d)
        m[i] = mean
        v[i] = squares
        moved = c[2] * w[i] - c[7] * mean / (np.sqrt(squares) + c[8])
        new[i] = moved
        total += moved * squares
    return total


# --- as `buffered.Block` calls them -----------------------------------------------------------------------------------


class Bound:
    """What the kernels of one block write into, for one size of batch, and what the backward ones want of forward."""

    def __init__(self, z: Array, work: Work, own: bool):
        h, n = shape = z.shape
        self.y = z if own else work("y", shape)
        self.mean, self.scale = work("mean", (h,)), work("scale", (h,))
        self.wide = 0.0 if n > ops.LONG else None
        self.shared = h * n > threads.LARGE
        self.block = max(1, threads.BLOCK // n)  # rows


def by_rows(kernel: Callable[..., None], b: Bound, *arrays: Any) -> None:
    """The kernel on all rows, of much data on several cores."""
    if not b.shared:
        kernel(*arrays)
        return
    kind, *rest = arrays
    threads.in_blocks(
        lambda rows: kernel(kind, *[a[rows] if isinstance(a, np.ndarray) else a for a in rest]), b.y.shape[0], b.block
    )


class NumbaKernels(Calls):
    """`Calls`, each method's work in one compiled loop."""

    joins_from = 2**16  # the loop adds a bias on its way, and a small product takes longer with one row more

    def __init__(self, backend: Backend):
        super().__init__(backend)
        higher(np.zeros(1), np.zeros(1))  # where Numba compiles nothing, that shows before there is a step to fail

    def activation(self, f: Layer | None, z: Array, bias: Array | None, work: Work) -> Array:
        try:
            b = work.bound[z.shape[1]]
        except KeyError:
            b = work.bound[z.shape[1]] = Bound(z, work, own=True)
        kind = KINDS[type(f)]
        by_rows(activation, b, kind, z, bias)
        return np.tanh(z, out=z) if kind == TANH else z

    def activation_backward(
        self,
        f: Layer | None,
        dy: Array,
        z: Array,
        y: Array,
        bias: Array | None,
        dz: Array,
        dbias: Array | None,
        work: Work,
    ) -> Array:
        if dz is not dy:
            np.copyto(dz, dy)
        b = work.bound[dy.shape[1]]
        by_rows(activation_backward, b, KINDS[type(f)], y, dz, dbias, b.wide)
        return dz

    def batch_norm(
        self,
        f: Layer | None,
        z: Array,
        gamma: Array,
        beta: Array,
        eps: float,
        mean: Array,
        var: Array,
        work: Work,
        own: bool,
        bias: Array | None = None,
    ) -> Array:
        try:
            b = work.bound[z.shape[1]]
        except KeyError:
            b = work.bound[z.shape[1]] = Bound(z, work, own=False)
        kind = KINDS[type(f)]
        by_rows(batch_norm, b, kind, z, gamma, beta, eps, b.mean, var, b.scale, b.y, b.wide)
        np.add(b.mean, 0.0 if bias is None else bias, out=mean)
        return np.tanh(b.y, out=b.y) if kind == TANH else b.y

    def batch_norm_backward(
        self,
        f: Layer | None,
        dy: Array,
        z: Array,
        y: Array,
        gamma: Array,
        beta: Array,
        dz: Array,
        dgamma: Array,
        dbeta: Array,
        dbias: Array | None,
        work: Work,
    ) -> Array:
        b = work.bound[dy.shape[1]]
        if dbias is not None:
            dbias[...] = 0.0
        if dz is not dy:
            np.copyto(dz, dy)
        by_rows(batch_norm_backward, b, KINDS[type(f)], z, gamma, b.mean, b.scale, y, dz, dgamma, dbeta, b.wide)
        return dz

    def softmax_cross_entropy(self, z: Array, target: Array, scale: float, work: Work) -> tuple[float, Array]:
        n = z.shape[1]
        try:
            t, dz, top, sums = work.bound[n]
        except KeyError:
            vectors = work("top", (n,)), work("sums", (n,))
            t, dz, top, sums = work.bound[n] = (work("target", z.shape), work("dz", z.shape), *vectors)
        np.copyto(t, target)  # whose rows may be part of longer ones
        total = softmax_cross_entropy(z, t, scale, top, sums, dz)
        return (float(np.log(sums, out=sums).sum()) - total) * scale, dz

    def update(self, optimizer: Optimizer, w: Array, slots: Slots, new: Array, new_slots: Slots) -> Slots:
        if type(optimizer) not in RULES:
            return super().update(optimizer, w, slots, new, new_slots)
        step, names = slots["step"], optimizer.memory
        name, *numbers = RULES[type(optimizer)](optimizer, *optimizer.coefficients(step))
        limit = np.inf if optimizer.clip_value is None else optimizer.clip_value
        if optimizer.clip_norm is not None:
            np.copyto(new, optimizer.limited(new))
            limit = np.inf
        for key in names:
            if new_slots[key] is not slots[key]:
                np.copyto(new_slots[key], slots[key])
        arrays = [w, *[new_slots[key] for key in names], new]
        kernel, c = KERNELS[name], np.array((limit, *numbers), dtype=w.dtype)
        if w.size <= threads.LARGE:
            total = kernel(*arrays, c)
        else:
            blocks = threads.in_blocks(lambda part: kernel(*[a[part] for a in arrays], c), w.size, threads.BLOCK)
            total = sum(blocks)
        self.checked = new, float(total)
        return {"step": step + 1} | {key: new_slots[key] for key in names}


KERNELS = {"sgd": sgd, "root_mean_square": root_mean_square, "adam": adam}
