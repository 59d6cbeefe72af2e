"""The work of `calls.py` in loops that Numba compiles: a feature's row is gone through while it is in cache.

Axes: N batch, H features, K classes. Matrices are (H, N), a feature's batch in one row of memory; vectors are (H,).
The compiled code is kept on disk, beside this file or where NUMBA_CACHE_DIR says. Where it cannot be read or written,
it is compiled anew in each process.
"""

import contextlib
import functools
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
from ...layers.activations import ReLU
from ...layers.base import Layer
from ...optimizers import Optimizer, Slots
from ..formulas import functions_in, names_in, python, times
from ..table import POINTWISE, RULES, Pointwise, lines_of, numbers_in, numbers_of
from . import calls, threads
from .calls import Calls, Work

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, so it compiles nothing")

TILE = 256  # columns of the loss at a time


class Cache(FunctionCache):
    """A function's compiled code on disk, which is made anew where files are damaged or the disk is full."""

    formulas: object = None  # that are compiled into it beside its own source

    def _index_key(self, sig, codegen):
        return sig, codegen.magic_tuple(), repr(self.formulas)

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


def compiling(fastmath: Any, formulas: object = None) -> Callable[[Any], Any]:
    """The decorator that has Numba compile a function when it is first called, to be kept in a `Cache`.

    A function of the same source may stand for several, which the `formulas` that are compiled into it tell apart.
    """

    def decorate(function: Any) -> Any:
        dispatcher = njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
        dispatcher._cache = Cache(function)  # as cache=True sets Numba's own
        dispatcher._cache.formulas = formulas
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


# --- pointwise functions ----------------------------------------------------------------------------------------------

# ReLU's y is -0.0 where x is below 0: its sign tells backward which, in x's place
FORMULAS = POINTWISE | {ReLU: Pointwise("where(x < 0, -0.0, x + 0)", "where(is_negative(y), 0, 1)")}
INSIDE = {"exp", "where", "is_negative"}  # the functions that stand in the loops; others are NumPy's to call


class Function:
    """A pointwise function's loops; without a `kind`, of the identity."""

    def __init__(self, kind: type[Layer] | None):
        value, slope = FORMULAS[kind] if kind else ("x", "1")
        self.settings = sorted((names_in(value) | names_in(slope)) - {"x", "y"})
        self.inside = functions_in(value) <= INSIDE  # else the loops leave x, and NumPy makes y of it
        self.keeps = "x" in names_in(slope)  # backward needs x, so y takes another place
        formulas = value if self.inside else "x", times(slope), *self.settings
        self.activation, self.activation_backward, self.batch_norm, self.batch_norm_backward = loops(*formulas)


@functools.cache
def function(kind: type[Layer] | None) -> Function:
    """It, compiled once."""
    return Function(kind)


def scalar(formula: str, arguments: str, settings: tuple[str, ...]) -> Any:
    """A formula as a function of numbers of one type and of the settings, a tuple, which becomes part of the loops."""
    scope = {"exp": exp, "is_negative": is_negative, "expm1": np.expm1, "tanh": np.tanh}
    source = [f"def f({arguments}, s):", f"    T = type({arguments.partition(',')[0]})"]
    source += [f"    {name} = s[{i}]" for i, name in enumerate(settings)]
    exec("\n".join([*source, f"    return {python(formula)}"]), scope)
    return njit(inline="always")(scope["f"])


# Arrays that are changed in place are one argument, not two of the same memory, which no compiler may vectorise.
# Sums begin at `wide`, the zero of float64, and are taken in it; where it is None, in the numbers' own dtype.


def loops(formula: str, backward: str, *settings: str) -> tuple[Any, ...]:
    """The loops over rows, a feature's batch, that have these formulas of y and of dy times the slope in them."""
    value, back = scalar(formula, "x", settings), scalar(backward, "dy, x, y", settings)
    made_of = compiling({"reassoc", "contract"}, (formula, backward))

    @made_of
    def activation(z, bias, s, y):
        """y = f(z + bias), f(z) without a bias; y None is z"""
        for i in range(z.shape[0]):
            b = z.dtype.type(0.0) if bias is None else bias[i]
            for j in range(z.shape[1]):
                if y is None:
                    z[i, j] = value(z[i, j] + b, s)
                else:
                    y[i, j] = value(z[i, j] + b, s)

    @made_of
    def activation_backward(z, bias, s, y, d, dbias, wide):
        """d ← d f', dbias = Σ_n d unless it is None"""
        none = d.dtype.type(0.0) if wide is None else wide
        for i in range(d.shape[0]):
            b = d.dtype.type(0.0) if bias is None else bias[i]
            total = none
            for j in range(d.shape[1]):
                d[i, j] = back(d[i, j], z[i, j] + b, y[i, j], s)
                total += d[i, j]
            if dbias is not None:
                dbias[i] = total

    @made_of
    def batch_norm(z, gamma, beta, eps, s, mean, var, scale, y, wide):
        """y = f(γ (z - μ) scale + β), scale = 1 / √(v + eps)"""
        n = z.shape[1]
        one = y.dtype.type(1.0)
        none = y.dtype.type(0.0) if wide is None else wide
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
            scale[i] = one / np.sqrt(v + y.dtype.type(eps))
            mean[i] = m
            var[i] = v
            gain = gamma[i] * scale[i]
            b = beta[i]
            for j in range(n):
                y[i, j] = value((z[i, j] - m) * gain + b, s)

    @made_of
    def batch_norm_backward(z, gamma, beta, s, mean, scale, y, d, dgamma, dbeta, wide):
        """du = d f', dβ = Σ_n du, dγ = Σ_n du x̂, d ← γ scale (du - dβ / N - x̂ dγ / N) with x̂ = (z - μ) scale"""
        n = z.shape[1]
        none = y.dtype.type(0.0) if wide is None else wide
        share = y.dtype.type(1.0) / y.dtype.type(n)
        for i in range(z.shape[0]):
            m = mean[i]
            gain = gamma[i] * scale[i]
            b = beta[i]
            sum_u = none
            sum_uc = none
            for j in range(n):
                c = z[i, j] - m
                u = back(d[i, j], c * gain + b, y[i, j], s)
                d[i, j] = u
                sum_u += u
                sum_uc += u * c
            dbeta[i] = sum_u
            dgamma[i] = sum_uc * scale[i]
            shift = y.dtype.type(sum_u * share)
            slope = y.dtype.type(sum_uc * scale[i] * scale[i] * share)
            for j in range(n):
                d[i, j] = gain * (d[i, j] - shift - (z[i, j] - m) * slope)

    return activation, activation_backward, batch_norm, batch_norm_backward


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

CLIP = "where(g < -limit, -limit, where(g >= limit, limit, g)) + 0 * g"  # NaN where g is not finite


@compiled
def checksum(w, slot):
    """Σ w · slot, which is finite only if they are. Apart from the rules: in those the order of products counts."""
    total = w.dtype.type(0.0)
    for i in range(w.size):
        total += w[i] * slot[i]
    return total


@functools.cache
def rule(kind: type[Optimizer], decays: bool, clips: bool) -> tuple[Any, list[str]]:
    """An optimizer's lines as a loop, and the names of the numbers it takes.

    Its arguments are w, the slots, which become the next ones, g, which becomes the next w, and the numbers. The sum
    that it returns is finite only if the next w and slots are.
    """
    lines, slots = lines_of(kind, decays), kind.memory
    if clips:
        lines = (("g", CLIP), *lines)
    numbers = numbers_in(lines, slots)
    body = [f"{name} = {python(formula)}" for name, formula in lines]
    source = [
        f"def rule(vector_w, {', '.join(f'vector_{name}' for name in slots)}, vector_g, numbers):",
        "    T = vector_w.dtype.type",
        *[f"    {name} = T(numbers[{i}])" for i, name in enumerate(numbers)],
        "    for i in range(vector_w.size):",
        *[f"        {name} = vector_{name}[i]" for name in ("w", *slots, "g")],
        *[f"        {line}" for line in body],
        *[f"        vector_{name}[i] = {name}" for name in slots],
        "        vector_g[i] = w",
        f"    return checksum(vector_g, vector_{slots[-1]})",
    ]
    scope: dict[str, Any] = {"sqrt": np.sqrt, "checksum": checksum}
    exec(compile("\n".join(source), __file__, "exec"), scope)
    return compiling({"contract"}, lines)(scope["rule"]), numbers


# --- as `planner.Block` calls them ------------------------------------------------------------------------------------


class Bound:
    """What the loops of one block write into, for one size of batch, and what the backward ones want of forward."""

    def __init__(self, f: Layer | None, z: Array, work: Work, own: bool):
        h, n = shape = z.shape
        self.f = function(None) if f is None else function(type(f))
        self.settings = tuple(z.dtype.type(getattr(f, name)) for name in self.f.settings)
        self.y = work("y", shape) if self.f.keeps or not own else z
        self.mean, self.scale = work("mean", (h,)), work("scale", (h,))
        self.wide = 0.0 if n > ops.LONG else None
        self.shared = h * n > threads.LARGE
        self.block = max(1, threads.BLOCK // n)  # rows
        if f is not None and not self.f.inside:
            outside = calls.function(np, type(f))
            made = {"y": self.y} | dict(zip(outside.settings, self.settings, strict=True))
            program, names, constants = outside.value
            made |= {n: work(n, shape, np.bool if n.startswith("mask") else None) for n in names if n not in made}
            self.outside = program, *[made[name] for name in names], *constants

    def by_rows(self, loop: Callable[..., None], *arrays: Any) -> None:
        """A loop over all rows, of much data on several cores."""
        if not self.shared:
            loop(*arrays)
            return
        threads.in_blocks(
            lambda rows: loop(*[a[rows] if isinstance(a, np.ndarray) else a for a in arrays]),
            self.y.shape[0],
            self.block,
        )


class NumbaKernels(Calls):
    """`Calls`, each method's work in one compiled loop."""

    joins_from = 2**16  # the loop adds a bias on its way, and a small product takes longer with one row more

    def __init__(self, backend: Backend):
        super().__init__(backend)
        higher(np.zeros(1), np.zeros(1))  # where Numba compiles nothing, that shows before there is a step to fail

    def bound(self, f: Layer | None, z: Array, work: Work, own: bool = True, eps: float | None = None) -> Any:
        try:
            return work.bound[z.shape[1]]
        except KeyError:
            found = work.bound[z.shape[1]] = Bound(f, z, work, own and eps is None)
            return found

    def in_place(self, f: Layer | None) -> bool:
        return f is None or not function(type(f)).keeps

    def _finished(self, b: Bound) -> Array:
        """y, of the x that the loops have left in its place where the function is NumPy's to call."""
        if not b.f.inside:
            b.by_rows(*b.outside)
        return b.y

    def activation(self, f: Layer | None, z: Array, bias: Array | None, work: Work) -> Array:
        b = self.bound(f, z, work)
        b.by_rows(b.f.activation, z, bias, b.settings, None if b.y is z else b.y)
        return self._finished(b)

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
        b.by_rows(b.f.activation_backward, z, bias, b.settings, y, dz, dbias, b.wide)
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
        b = self.bound(f, z, work, own, eps)
        b.by_rows(b.f.batch_norm, z, gamma, beta, eps, b.settings, b.mean, var, b.scale, b.y, b.wide)
        np.add(b.mean, 0.0 if bias is None else bias, out=mean)
        return self._finished(b)

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
        b.by_rows(b.f.batch_norm_backward, z, gamma, beta, b.settings, b.mean, b.scale, y, dz, dgamma, dbeta, b.wide)
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
        step, memory = slots["step"], optimizer.memory
        numbers, limit = numbers_of(optimizer, step), optimizer.clip_value
        if optimizer.clip_norm is not None:
            np.copyto(new, optimizer.limited(new))
            limit = None
        elif limit is not None:
            numbers["limit"] = limit
        for key in memory:
            if new_slots[key] is not slots[key]:
                np.copyto(new_slots[key], slots[key])
        arrays = [w, *[new_slots[key] for key in memory], new]
        loop, names = rule(type(optimizer), optimizer.weight_decay != 0.0, limit is not None)
        values = np.array([numbers[name] for name in names], dtype=w.dtype)
        if w.size <= threads.LARGE:
            total = loop(*arrays, values)
        else:
            blocks = threads.in_blocks(lambda part: loop(*[a[part] for a in arrays], values), w.size, threads.BLOCK)
            total = sum(blocks)
        self.checked = new, float(total)
        return {"step": step + 1} | {key: new_slots[key] for key in memory}
