"""Functions that the array API standard lacks, written with those it has. Axes: N batch, K classes.

No function writes into its arguments, warns at extreme values, or turns a NaN into a number. In-place operators, which
save memory, are used only on new arrays, and not on the result of a function such as exp, which PyTorch's autograd
keeps, so that autograd works through every `forward`.
"""

import functools
import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from .backends import Array, class_of, device_of, floating, is_compiled, namespace

__all__ = [
    "all_finite", "clip", "dot_over_batch", "erf", "linear", "matrix", "namespace", "one_hot", "random_keep",
    "rows_added", "sigmoid", "sign", "softmax", "sum_of_squares", "sum_over_batch",
]  # fmt: skip

# --- elementwise ------------------------------------------------------------------------------------------------------


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), to full relative accuracy down to the smallest normal number, without overflow.

    Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.sigmoid(np.asarray([0.0, 100.0]))
    array([0.5, 1. ])
    """
    xp = floating(x, "sigmoid")
    limit = 709.0 if x.dtype == xp.float64 else 88.0  # the largest whole number with a finite exp
    return 1.0 / (1.0 + xp.exp(-xp.maximum(x, -limit)))


def clip(x: Array, low: float, high: float) -> Array:
    """min(max(x, low), high).

    Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.clip(np.asarray([-1.0, 0.5, 2.0]), 0.0, 1.0)
    array([0. , 0.5, 1. ])
    """
    xp = floating(x, "clip")
    return xp.minimum(xp.maximum(x, low), high)


def sign(x: Array) -> Array:
    """1, 0 or -1, without waiting for the device as CuPy's own does.

    x is an array of any shape. Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.sign(np.asarray([-2.0, 0.0, 3.0]))
    array([-1.,  0.,  1.])
    """
    xp = floating(x, "sign")
    return xp.where(x > 0.0, 1.0, xp.where(x < 0.0, -1.0, x))


def erf(x: Array) -> Array:
    """2/√π ∫₀ˣ exp(-t²) dt, to the dtype's rounding: the library's own function or, if it has none, one of those below.

    x is a floating array of any shape. Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.erf(np.asarray([0.0, 10.0]))
    array([0., 1.])
    """
    xp = floating(x, "erf")
    y = class_of(xp).erf(x)
    if y is None:
        return rational_erf(x) if x.dtype == xp.float64 else single_erf(clip(x, -6.0, 6.0))
    return y


# the polynomial of `single_erf`, the highest power first
SINGLE = (
    1.4181558005652694e-07, -5.66757904839129e-06, 8.763016984123146e-05, -6.197609538998123e-04,
    -1.918638826004243e-04, 1.0276907279841957e-01, 1.1283792722162453,
)  # fmt: skip


def single_erf(x: Array, coefficients: Sequence[Any] = SINGLE, **out: Array) -> Array:
    """erf x = tanh(x P(x²)) in float32: GELU's approximation by tanh, with a polynomial P of degree 6 instead of 1.

    P minimizes the largest relative error of erf, which is 9.5e-8 where erf is less than 1; it was found by iteratively
    reweighted least squares (Lawson's algorithm). With the rounding of float32, the error is 4 units in the last place.
    """
    return floating(x, "single_erf").tanh(x * _polynomial(x * x, coefficients), **out)


# the polynomials of `rational_erf`, T and U, P and Q, the highest power first
NEAR = (
    (
        9.60497373987051638749, 90.0260197203842689217, 2232.00534594684319226, 7003.32514112805075473,
        55592.3013010394962768,
    ),
    (
        1.0, 33.5617141647503099647, 521.357949780152679795, 4594.32382970980127987, 22629.0000613890934246,
        49267.3942608635921086,
    ),
)  # fmt: skip
FAR = (
    (
        2.46196981473530512524e-10, 0.564189564831068821977, 7.46321056442269912687, 48.6371970985681366614,
        196.520832956077098242, 526.445194995477358631, 934.528527171957607540, 1027.55188689515710272,
        557.535335369399327526,
    ),
    (
        1.0, 13.2281951154744992508, 86.7072140885989742329, 354.937778887819891062, 975.708501743205489753,
        1823.90916687909736289, 2246.33760818710981792, 1656.66309194161350182, 557.535340817727675546,
    ),
)  # fmt: skip


def rational_erf(x: Array) -> Array:
    """erf x = x T(x²) / U(x²) up to |x| = 1, and ±(1 - exp(-x²) P(|x|) / Q(|x|)) beyond; T, U, P, Q are polynomials.

    Source: S. L. Moshier, Cephes Mathematical Library 2.8, 2000, `ndtr.c`.
    """
    xp = floating(x, "rational_erf")
    size = xp.abs(x)
    inner, outer = xp.minimum(size, 1.0), clip(size, 1.0, 6.0)  # from 6 on it is 1, even in float64
    square = inner * inner
    near = inner * _polynomial(square, NEAR[0]) / _polynomial(square, NEAR[1])
    far = 1.0 - xp.exp(-outer * outer) * _polynomial(outer, FAR[0]) / _polynomial(outer, FAR[1])
    y = xp.where(size < 1.0, near, far)
    return xp.where(x < 0.0, -y, y)


def _polynomial(x: Array, coefficients: Sequence[Any]) -> Array:
    """Σ cᵢ xⁿ⁻ⁱ by Horner's rule."""
    y = x * coefficients[0]
    for c in coefficients[1:-1]:
        y += c
        y *= x
    y += coefficients[-1]
    return y


# --- over classes -----------------------------------------------------------------------------------------------------


def softmax(z: Array) -> Array:
    """exp(z) / Σ_K exp(z) over the last axis, with its maximum subtracted first.

    z is (N, ..., K). Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.softmax(np.asarray([[0.0, 0.0]]))
    array([[0.5, 0.5]])
    """
    xp = floating(z, "softmax")
    e = xp.exp(z - xp.max(z, axis=-1, keepdims=True))
    return e / xp.sum(e, axis=-1, keepdims=True)


def one_hot(labels: Array, classes: int, dtype: object) -> Array:
    """Integer labels (N, ...) as rows with a single 1, (N, ..., K); of (N,) the batch contiguous as in `linear`.

    `classes` is K, `dtype` the result's, by name or as the library has it. Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.one_hot(np.asarray([0, 2]), 3, "float32")
    array([[1., 0., 0.],
           [0., 0., 1.]], dtype=float32)
    """
    xp = namespace(labels, "one_hot")
    numbers = xp.arange(classes, dtype=labels.dtype, device=device_of(labels))
    if labels.ndim == 1:
        return xp.astype(numbers[:, None] == labels, dtype).T
    return xp.astype(labels[..., None] == numbers, dtype)


def rows_added(rows: Array, ids: Array, n: int) -> Array:
    """Return the sums (n, D) of the rows (M, D) that have the same id, for each of the n ids in `ids` (M,).

    The array library's own function computes them where it has one, else a product with one-hot ids. Raises TypeError
    for anything but an array.

    >>> import numpy as np
    >>> xn.ops.rows_added(np.asarray([[1.0], [2.0], [3.0]]), np.asarray([0, 1, 0]), 2)
    array([[4.],
           [2.]])
    """
    xp = floating(rows, "rows_added")
    sums = class_of(xp).rows_added(rows, ids, n)
    return one_hot(ids, n, rows.dtype).T @ rows if sums is None else sums


def matrix(x: Array) -> Array:
    """x (N, ..., D) as a matrix (N ..., D), a row of it for each position.

    Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.matrix(np.ones((2, 3, 4))).shape
    (6, 4)
    """
    xp = floating(x, "matrix")
    return x if x.ndim == 2 else xp.reshape(x, (-1, x.shape[-1]))


# --- over the batch ---------------------------------------------------------------------------------------------------


def linear(x: Array, weight: Array) -> Array:
    """x @ weight, (N, D) by (D, H), laid out with the batch contiguous in memory: reductions over the batch or the
    classes are several times faster so. Not on JAX, whose compiler chooses the layout, nor on CuPy, whose elementwise
    functions return C order.

    Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.linear(np.asarray([[1.0, 2.0]]), np.asarray([[1.0], [10.0]]))
    array([[21.]])
    """
    namespace(weight, "linear")
    return x @ weight if class_of(namespace(x, "linear")).plain else (weight.T @ x.T).T


def sum_over_batch(x: Array) -> Array:
    """Column sums, (N, D) -> (D,): as a product with ones, since BLAS is faster than NumPy's and PyTorch's `sum`.

    x is a floating array (N, D). Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.sum_over_batch(np.asarray([[1.0, 2.0], [3.0, 4.0]]))
    array([4., 6.])
    """
    xp, n = floating(x, "sum_over_batch"), x.shape[0]
    if class_of(xp).plain:
        return _plain_sum(x)
    if n > LONG:
        return in_spans(lambda span: sum_over_batch(x[span, ...]), n)
    return xp.ones((n,), dtype=x.dtype, device=device_of(x)) @ x


def dot_over_batch(x: Array, y: Array) -> Array:
    """Column sums of x * y, (N, D) and (N, D) -> (D,), on NumPy and PyTorch without forming the product.

    Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.dot_over_batch(np.asarray([[1.0, 2.0], [3.0, 4.0]]), np.ones((2, 2)))
    array([4., 6.])
    """
    xp, n = floating(x, "dot_over_batch"), x.shape[0]
    floating(y, "dot_over_batch")
    if class_of(xp).plain:
        return _plain_sum(x * y)
    if n > LONG:
        return in_spans(lambda span: dot_over_batch(x[span, ...], y[span, ...]), n)
    return xp.linalg.vecdot(x, y, axis=-2)


def _plain_sum(x: Array) -> Array:
    """Column sums in one call. Each CuPy thread adds up a sixteenth of the rows: if these are many, in float64."""
    xp = namespace(x)
    if x.shape[0] <= LONG or is_compiled(xp):
        return xp.sum(x, axis=0)
    return xp.astype(xp.sum(x, axis=0, dtype=xp.float64), x.dtype)


LONG = 2**13  # terms; float32 rounding adds up in longer sums, which are taken in float64 from spans
SPAN = 2**10  # terms of a span


def in_spans(total: Callable[[slice], Array], n: int) -> Array:
    """A sum over n terms: `total` of each span of them, added up in float64."""
    parts = [total(slice(start, min(start + SPAN, n))) for start in range(0, n, SPAN)]
    xp = namespace(parts[0])
    return xp.astype(xp.sum(xp.stack(parts), axis=0, dtype=xp.float64), parts[0].dtype)


# --- random bits ------------------------------------------------------------------------------------------------------


def random_keep(key: Array, shape: tuple[int, ...], rate: float, first: int = 0, rows: int | None = None) -> Array:
    """A boolean array, False with probability `rate`; the `key`, (2,) int32, gives the same one on every backend.

    Its rows are those from number `first` on of an array that has so many `rows` (None: `shape` is all of it).

    A counter-based generator: each position is hashed with the key, so there is no state to advance on the host. The
    hash is lowbias32 (C. Wellons, "Prospecting for hash functions", 2018) in wrapping int32 arithmetic.

    Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> kept = xn.ops.random_keep(np.asarray([1, 2], dtype="int32"), (1000, 100), 0.5)
    >>> round(float(kept.mean()), 2)
    0.5
    """
    xp = namespace(key, "random_keep")
    rows, device = shape[0] if rows is None else rows, device_of(key)
    columns = xp.arange(math.prod(shape[1:]), dtype=xp.int32, device=device) * rows
    number = columns[:, None] + xp.arange(first, first + shape[0], dtype=xp.int32, device=device)
    number = xp.reshape(number, (-1,))
    bits = _hash(_hash(number ^ key[:1]) ^ _hash(key[1:]))
    keep = xp.reshape((bits & 0xFFFFFF) >= round(rate * 2**24), shape[::-1])
    return xp.permute_dims(keep, tuple(reversed(range(len(shape)))))  # in the memory order of `linear`


def _hash(x: Array) -> Array:
    x = (x ^ ((x >> 16) & 0xFFFF)) * 0x7FEB352D
    x = (x ^ ((x >> 15) & 0x1FFFF)) * -0x7B935975  # 0x846CA68B
    return x ^ ((x >> 16) & 0xFFFF)


# --- many arrays as one vector ----------------------------------------------------------------------------------------


def join(arrays: Sequence[Array]) -> Array:
    """The arrays, flattened, as one vector."""
    xp = namespace(arrays[0], "join")
    return xp.concat([xp.reshape(a, (-1,)) for a in arrays])


def split(flat: Array, shapes: Iterable[tuple[int, ...]]) -> list[Array]:
    """The inverse of `join`: arrays of these shapes, views where the backend has views."""
    xp = namespace(flat, "split")
    arrays, start = [], 0
    for shape in shapes:
        stop = start + math.prod(shape)
        arrays.append(xp.reshape(flat[start:stop], shape))
        start = stop
    return arrays


def sum_of_squares(x: Array) -> Array:
    """Σ x², 0-d, without forming the squares.

    x is a floating array of any shape. Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> float(xn.ops.sum_of_squares(np.asarray([3.0, 4.0])))
    25.0
    """
    flat = floating(x, "sum_of_squares").reshape(x, (-1,))
    return flat @ flat


def all_finite(*arrays: Array) -> bool:
    """Whether every entry is finite. Waits for the device once.

    `arrays` are of one backend. Raises TypeError for anything but an array.

    >>> import numpy as np
    >>> xn.ops.all_finite(np.asarray([1.0, np.inf]))
    False
    """
    xp = namespace(arrays[0], "all_finite")
    if class_of(xp).scans:
        finite = [xp.all(xp.isfinite(a)) for a in arrays]
    else:  # the maximum is NaN if any entry is
        finite = [xp.isfinite(xp.max(xp.abs(a))) for a in arrays if 0 not in a.shape] or [True]
    return bool(functools.reduce(operator.and_, finite))


def __dir__() -> list[str]:
    return __all__
