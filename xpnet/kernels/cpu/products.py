"""NumPy's matrix product: medium-sized ones in parts and, in a single thread, others as a stack of small ones."""

import functools

import numpy as np

SMALL = 10**6  # multiplications up to which OpenBLAS works without copies
SPLIT_UP_TO = 2**22  # multiplications up to which a product is split into parts of at most SMALL


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write a @ b of two matrices to `out` as `products` does, and return it."""
    parts = longest_axis_slices(*a.shape, b.shape[1])
    return in_parts(a, b, out, parts) if parts else np.dot(a, b, out=out)


def products(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write a @ b of stacks of matrices to `out`, and return it.

    Products of SMALL to SPLIT_UP_TO multiplications are split along their longest axis. Up to SMALL, OpenBLAS works
    without copying the matrices into blocks first, at nearly twice the speed, and in the caller's thread: other threads
    would take the results into their own caches.
    """
    parts = longest_axis_slices(*a.shape[-2:], b.shape[-1])
    return in_parts(a, b, out, parts) if parts else np.matmul(a, b, out=out)


def in_parts(a: np.ndarray, b: np.ndarray, out: np.ndarray, parts: tuple[slice, ...]) -> np.ndarray:
    """Write a @ b, computed in these parts of its longest axis, to `out`, and return it."""
    (m, k), n = a.shape[-2:], b.shape[-1]
    if n >= m and n >= k:
        for part in parts:
            np.matmul(a, b[..., part], out=out[..., part])
    elif m >= k:
        for part in parts:
            np.matmul(a[..., part, :], b, out=out[..., part, :])
    else:
        np.matmul(a[..., parts[0]], b[..., parts[0], :], out=out)
        term = np.empty_like(out)
        for part in parts[1:]:
            out += np.matmul(a[..., part], b[..., part, :], out=term)
    return out


@functools.lru_cache
def longest_axis_slices(m: int, k: int, n: int) -> tuple[slice, ...]:
    """Return nearly equal parts of the longest axis of an (m, k) by (k, n) product; none if it is not to be split."""
    if not SMALL < m * k * n <= SPLIT_UP_TO:
        return ()
    longest = max(m, k, n)
    longest_part = SMALL * longest // (m * k * n)
    length = -(-longest // -(-longest // longest_part))
    return tuple(slice(start, start + length) for start in range(0, longest, length))


def in_stacks(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """Write a @ b of two matrices to `out` in one call that multiplies a few rows of a, or columns of b, at a time.

    In one thread, OpenBLAS's kernels for AVX-512 then take 0.87 to 0.95 of the time of one product, since they work
    without copies up to SMALL multiplications, as `products` says.
    """
    (m, k), n = a.shape, b.shape[1]
    rows, columns = stack_size(m, k, n, a.strides[0] < a.strides[1], b.strides[0] < b.strides[1])
    if rows:
        end = m - m % rows
        np.matmul(a[:end].reshape((-1, rows, k)), b, out=out[:end].reshape((-1, rows, n)))
        if end < m:
            np.matmul(a[end:], b, out=out[end:])
        return out
    if columns:
        end = n - n % columns
        of_b, of_out = (c[:, :end].reshape((len(c), -1, columns)).transpose(1, 0, 2) for c in (b, out))
        np.matmul(a, of_b, out=of_out)
        if end < n:
            np.matmul(a, b[:, end:], out=out[:, end:])
        return out
    return np.dot(a, b, out=out)


@functools.lru_cache
def stack_size(m: int, k: int, n: int, a_turned: bool, b_turned: bool) -> tuple[int, int]:
    """Return how many rows or columns of an (m, k) by (k, n) product to compute at a time; (0, 0) for all in one.

    A matrix in column-major order is `turned`. For such an a, the kernels are faster only with many columns of b; for
    such a b, only with long sums and few numbers in the result.
    """
    if a_turned:
        return (0, 16) if not b_turned and 16 * m * k <= SMALL and n >= 32 else (0, 0)
    fits = (r for r in (8, 4) if r * k * n <= SMALL and m >= 2 * r and (not b_turned or (k >= 192 and r * n <= 1200)))
    return next(fits, 0), 0
