"""The maths that the standard lacks, in pure array API. Axes: N batch, K classes.

No function writes into its arguments, warns at extreme values, or turns a NaN into a number. In-place operators are
used on arrays made a few lines above: they save the memory of another one (where arrays are immutable, they make it).
They are not used on the result of a function such as exp, which PyTorch's autograd keeps: so it can go through all of
`forward`.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence

from .backends import Array, device_of, floating, is_compiled, is_plain, namespace, scans

# --- elementwise ------------------------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), to full relative accuracy down to the smallest normal number; exp cannot overflow."""
    xp = floating(x, "sigmoid")
    limit = 709.0 if x.dtype == xp.float64 else 88.0  # exp(limit) is the last that is finite
    return 1.0 / (1.0 + xp.exp(-xp.maximum(x, -limit)))


def clip(x: Array, low: float, high: float) -> Array:
    """min(max(x, low), high)."""
    xp = floating(x, "clip")
    return xp.minimum(xp.maximum(x, low), high)


def sign(x: Array) -> Array:
    """1, 0 or -1. The namespace's own waits for the device on CuPy."""
    xp = floating(x, "sign")
    return xp.where(x > 0.0, 1.0, xp.where(x < 0.0, -1.0, x))


# --- over classes -----------------------------------------------------------------------------------------------------


def softmax(z: Array) -> Array:
    """exp(z) / sum over K of exp(z), the row's maximum subtracted first. (N, K)"""
    xp = floating(z, "softmax")
    e = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def one_hot(labels: Array, classes: int, dtype: object) -> Array:
    """Integer labels (N,) as rows with a single 1, (N, K), the batch contiguous as in `linear`."""
    xp = namespace(labels, "one_hot")
    numbers = xp.arange(classes, dtype=labels.dtype, device=device_of(labels))
    return xp.astype(numbers[:, None] == labels, dtype).T


# --- over the batch ---------------------------------------------------------------------------------------------------


def linear(x: Array, weight: Array) -> Array:
    """x @ weight, (N, D) by (D, H), with the batch contiguous in memory where elementwise functions keep that order:
    everything over the batch or the classes runs several times faster in it. JAX's compiler lays arrays out by itself,
    and CuPy's functions give C order.
    """
    namespace(weight, "linear")
    return x @ weight if is_plain(namespace(x, "linear")) else (weight.T @ x.T).T


def sum_over_batch(x: Array) -> Array:
    """The sum of each column, (N, D) -> (D,), as a product with ones: no function of NumPy or PyTorch sums as fast as
    the matrix library.
    """
    xp, n = floating(x, "sum_over_batch"), x.shape[0]
    if is_plain(xp):
        return _plain_sum(x)
    if n > LONG:
        return in_spans(lambda span: sum_over_batch(x[span, ...]), n)
    return xp.ones((n,), dtype=x.dtype, device=device_of(x)) @ x


def dot_over_batch(x: Array, y: Array) -> Array:
    """The sum of each column of x * y, (N, D) and (N, D) -> (D,); NumPy and PyTorch need not form the product."""
    xp, n = floating(x, "dot_over_batch"), x.shape[0]
    floating(y, "dot_over_batch")
    if is_plain(xp):
        return _plain_sum(x * y)
    if n > LONG:
        return in_spans(lambda span: dot_over_batch(x[span, ...], y[span, ...]), n)
    return xp.linalg.vecdot(x, y, axis=-2)


def _plain_sum(x: Array) -> Array:
    """Σ over the batch in one call. A thread of CuPy's adds up a sixteenth of the rows: many, in float64."""
    xp = namespace(x)
    if x.shape[0] <= LONG or is_compiled(xp):
        return xp.sum(x, axis=0)
    return xp.astype(xp.sum(x, axis=0, dtype=xp.float64), x.dtype)


LONG = 2**13  # numbers in a sum beside which float32 may round all further ones alike
SPAN = 2**10


def in_spans(total: Callable[[slice], Array], n: int) -> Array:
    """A sum over n numbers from `total` of each span of them: these are added up in float64."""
    parts = [total(slice(start, min(start + SPAN, n))) for start in range(0, n, SPAN)]
    xp = namespace(parts[0])
    return xp.astype(xp.sum(xp.stack(parts), axis=0, dtype=xp.float64), parts[0].dtype)


# --- random bits ------------------------------------------------------------------------------------------------------


def random_keep(key: Array, shape: tuple[int, ...], rate: float) -> Array:
    """A boolean array, False with probability `rate`: the same one on every backend for the same `key`, (2,) int32.

    Counter-based: each position's number is hashed with the key, so there is no generator to advance and no host to
    ask. The hash is lowbias32 (C. Wellons, "Prospecting for hash functions", 2018) in wrapping int32 arithmetic.
    """
    xp = namespace(key, "random_keep")
    number = xp.arange(math.prod(shape), dtype=xp.int32, device=device_of(key))
    bits = _hash(_hash(number ^ key[:1]) ^ _hash(key[1:]))
    keep = xp.reshape((bits & 0xFFFFFF) >= round(rate * 2**24), shape[::-1])
    return xp.permute_dims(keep, tuple(reversed(range(len(shape)))))  # the batch contiguous, as `linear` has it


def _hash(x: Array) -> Array:
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x7B935975  # 0x846CA68B
    return x ^ ((x >> 16) & 0xFFFF)


# --- many arrays as one vector ----------------------------------------------------------------------------------------


def join(arrays: Sequence[Array]) -> Array:
    """One flat vector of all the arrays, end to end."""
    xp = namespace(arrays[0], "join")
    return xp.concat([xp.reshape(a, (-1,)) for a in arrays])


def split(flat: Array, shapes: Iterable[tuple[int, ...]]) -> list[Array]:
    """`join` undone: arrays of these shapes, views where the backend has views."""
    xp = namespace(flat, "split")
    arrays, start = [], 0
    for shape in shapes:
        stop = start + math.prod(shape)
        arrays.append(xp.reshape(flat[start:stop], shape))
        start = stop
    return arrays


def sum_of_squares(x: Array) -> Array:
    """Σ x², 0-d, without forming the squares."""
    flat = floating(x, "sum_of_squares").reshape(x, (-1,))
    return flat @ flat


def all_finite(*arrays: Array) -> bool:
    """Whether no entry of them is NaN or infinite. Waits for the device, once."""
    xp = namespace(arrays[0], "all_finite")
    if scans(xp):
        finite = [xp.all(xp.isfinite(a)) for a in arrays]
    else:  # the largest entry is NaN where any is
        finite = [xp.isfinite(xp.max(xp.abs(a))) for a in arrays if 0 not in a.shape] or [True]
    return bool(functools.reduce(operator.and_, finite))
