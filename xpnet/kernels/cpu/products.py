"""NumPy's matrix product, a middling one in parts."""

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
