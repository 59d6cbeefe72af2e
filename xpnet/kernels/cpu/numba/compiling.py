"""Compilation of loops by Numba, and functions of one number in arithmetic that becomes vector instructions.

The compiled code is cached on disk, beside the loops' file or in NUMBA_CACHE_DIR. If the cache cannot be read or
written, each process compiles anew.
"""

import contextlib
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import config, njit, types
from numba.core.caching import FunctionCache
from numba.extending import intrinsic, overload

from .... import ops
from ....common.warn import warn
from ...formulas import DENSITY, HALF, python

if config.DISABLE_JIT:
    raise ImportError("NUMBA_DISABLE_JIT is set, so it compiles nothing")

# What loops call of other files is compiled into them, while Numba's cache knows only the file of the loop itself.
SOURCES = hashlib.sha256(b"".join(file.read_bytes() for file in sorted(Path(__file__).parent.glob("*.py")))).hexdigest()


class Cache(FunctionCache):
    """The cache of a function's compiled code on disk. If files are damaged or the disk is full, it compiles anew."""

    formulas: object = None  # compiled into the function beside its own source, so that they are part of its key

    def _index_key(self, sig, codegen):
        return sig, codegen.magic_tuple(), repr(self.formulas), SOURCES, SOURCE

    def load_overload(self, sig, target_context):
        try:
            return super().load_overload(sig, target_context)
        except Exception:  # a truncated file can raise any error that pickle has
            with contextlib.suppress(OSError):
                self.flush()  # otherwise it could not be replaced either
            return None

    def save_overload(self, sig, data):
        try:
            super().save_overload(sig, data)
        except Exception as error:  # no space, no permission, or an object that Numba cannot store
            warn(
                f"what Numba has compiled cannot be kept in {self.cache_path} ({type(error).__name__}: {error}): each "
                "process compiles it anew. Make room there, or set NUMBA_CACHE_DIR",
                RuntimeWarning,
            )


def compiling(fastmath: Any, formulas: object = None) -> Callable[[Any], Any]:
    """Return a decorator with which Numba compiles a function at its first call, and keeps the code in a `Cache`.

    `formulas` distinguish functions of the same source that have different formulas compiled into them.
    """

    def decorate(function: Any) -> Any:
        dispatcher = njit(nogil=True, error_model="numpy", fastmath=fastmath)(function)
        dispatcher._cache = Cache(function)  # as `cache=True` sets Numba's own
        dispatcher._cache.formulas = formulas
        return dispatcher

    return decorate


exact = compiling(False)  # operations stay as written, also when inlined into a caller
compiled = compiling({"reassoc", "contract"})  # sums may be reordered

# --- functions of one number, in arithmetic that becomes vector instructions ------------------------------------------


@intrinsic
def as_float(typing: Any, bits: Any) -> Any:
    """Reinterpret the bits of an int32 or int64 as a float32 or float64."""
    float_type, kind = {32: (types.float32, ir.FloatType()), 64: (types.float64, ir.DoubleType())}[bits.bitwidth]
    return float_type(bits), lambda context, builder, signature, args: builder.bitcast(args[0], kind)


@intrinsic
def is_negative(typing: Any, x: Any) -> Any:
    """Whether the sign bit of x is set, as for numbers below 0 and for -0.0."""

    def code(context, builder, signature, args):
        kind = ir.IntType(x.bitwidth)
        return builder.icmp_signed("<", builder.bitcast(args[0], kind), ir.Constant(kind, 0))

    return types.boolean(x), code


@exact
def exp32(x):
    """Return e^x = 2^n e^r, n whole, |r| <= ln 2 / 2, e^r a polynomial, within 1 ulp. Moshier's Cephes, expf."""
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
    """Return e^x with e^r = 1 + 2 r P(r²) / (Q(r²) - r P(r²)), within 2 ulp. Source: Moshier's Cephes, exp."""
    x = -708.0 if x < -708.0 else x
    x = 709.0 if x > 709.0 else x
    n = np.floor(x * 1.4426950408889634073599 + 0.5)
    r = x - n * 6.93145751953125e-1 - n * 1.42860682030941723212e-6
    s = r * r
    p = r * ((1.26177193074810590878e-4 * s + 3.02994407707441961300e-2) * s + 9.99999999999999999910e-1)
    q = ((3.00198505138664455042e-6 * s + 2.52448340349684104192e-3) * s + 2.27265548208155028766e-1) * s + 2.0
    return (1.0 + 2.0 * (p / (q - p))) * as_float((np.int64(np.int32(n)) + 1023) << 52)


def exp(x):
    """Return e^x in the dtype of x, which is clipped to [-87, 88] in float32 and [-708, 709] in float64."""


@overload(exp)
def _exp(x):
    return (lambda x: exp32(x)) if x == types.float32 else (lambda x: exp64(x))


# --- the normal distribution ---


def horner(x: str, coefficients: tuple[float, ...]) -> str:
    """Return the formula of a polynomial, with the coefficient of the highest power first."""
    return functools.reduce(lambda y, c: f"({y} * {x} + {c})", coefficients[1:], str(coefficients[0]))


# the form of Abramowitz & Stegun 1964, 26.2.17, with one more coefficient: an absolute error of 4e-9 instead of 7.5e-8;
# the coefficients and RATIO were fitted by iteratively reweighted least squares (Lawson's algorithm)
RATIO = 0.276
TAIL = (-0.2843802512, 1.104950424, -0.7867201298, 0.8075076758, 0.1171160785, 0.2948403305)

SOURCE = f"""def density(x):
    T = type(x)
    return T({DENSITY}) * exp(T(-0.5) * x * x)

def normal32(x):
    T = type(x)
    t = T(1.0) / (T(1.0) + T({RATIO}) * abs(x))
    tail = {python(f"density(x) * t * {horner('t', TAIL)}")}
    return tail if x < T(0.0) else T(1.0) - tail

def normal64(x):
    T = type(x)
    z = T({HALF}) * x
    size = abs(z)
    a = {python("where(size < 1, size, 1)")}
    b = {python("where(size < 1, 1, where(size >= 6, 6, size))")}
    s = a * a
    near = {python(f"a * {horner('s', ops.NEAR[0])} / {horner('s', ops.NEAR[1])}")}
    far = {python(f"1 - exp(-b * b) * {horner('b', ops.FAR[0])} / {horner('b', ops.FAR[1])}")}
    y = near if size < T(1.0) else far
    return T(0.5) + T(0.5) * (-y if z < T(0.0) else y)
"""
scope: dict[str, Any] = {"exp": exp}
exec(compile(SOURCE, __file__, "exec"), scope)
density = scope["density"] = njit(inline="always")(scope["density"])
normal32, normal64 = (njit(inline="always")(scope[name]) for name in ("normal32", "normal64"))


def normal(x):
    """Return Φ(x), from Φ(-|x|) = φ(x) t P(t) with t = 1 / (1 + RATIO |x|), or in float64 by `ops.rational_erf`."""


@overload(normal)
def _normal(x):
    return (lambda x: normal32(x)) if x == types.float32 else (lambda x: normal64(x))
