"""NumPy's matrix product, a middling one in parts, or one for a single thread in stacks."""

import functools

import numpy as np

SMALL, MOST = 10**6, 2**22  # multiplications


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """a @ b of two matrices, as `products` has it."""
    parts = stretches(*a.shape, b.shape[1])
    return in_parts(a, b, out, parts) if parts else np.dot(a, b, out=out)


def products(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """a @ b of stacks of matrices; each of SMALL to MOST multiplications in several products, parted along its longest
    axis.

    OpenBLAS multiplies up to SMALL without copying the matrices into blocks first, at nearly twice the speed, and in
    the caller's thread: others would take the results into their own caches.
    """
    parts = stretches(*a.shape[-2:], b.shape[-1])
    return in_parts(a, b, out, parts) if parts else np.matmul(a, b, out=out)


def in_parts(a: np.ndarray, b: np.ndarray, out: np.ndarray, parts: tuple[slice, ...]) -> np.ndarray:
    """a @ b in the parts of its longest axis."""
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
def stretches(m: int, k: int, n: int) -> tuple[slice, ...]:
    """The parts of the longest axis of an (m, k) by (k, n) product, nearly equal; none: it is best done in one."""
    if not SMALL < m * k * n <= MOST:
        return ()
    longest = max(m, k, n)
    most = SMALL * longest // (m * k * n)
    stretch = -(-longest // -(-longest // most))
    return tuple(slice(start, start + stretch) for start in range(0, longest, stretch))


def in_stacks(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """a @ b of two matrices in one call, which multiplies a few rows of a, or columns of b, at a time.

    In one thread, the kernels that OpenBLAS has for AVX-512 take 0.87 to 0.95 of the time of one product so: each of
    up to SMALL multiplications is done without copies, see `products`.
    """
    (m, k), n = a.shape, b.shape[1]
    rows, columns = stack(m, k, n, a.strides[0] < a.strides[1], b.strides[0] < b.strides[1])
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
def stack(m: int, k: int, n: int, a_turned: bool, b_turned: bool) -> tuple[int, int]:
    """How many rows, or columns, of an (m, k) by (k, n) product at a time; 0, 0 where it is best done in one.

    Of matrices whose columns lie next to each other, which are `turned`, its kernels like those with many columns of b
    and those with long sums and few numbers in the result.
    """
    if a_turned:
        return (0, 16) if not b_turned and 16 * m * k <= SMALL and n >= 32 else (0, 0)
    fits = (r for r in (8, 4) if r * k * n <= SMALL and m >= 2 * r and (not b_turned or (k >= 192 and r * n <= 1200)))
    return next(fits, 0), 0
