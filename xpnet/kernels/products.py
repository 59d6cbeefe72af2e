"""NumPy's matrix product, a middling one in parts."""

import numpy as np

SMALL, MOST = 10**6, 2**22  # multiplications


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """A @ b, from SMALL to MOST multiplications as several products along its longest axis, in this thread.

    OpenBLAS multiplies up to SMALL without copying the matrices into blocks first, at nearly twice the speed; and other
    threads would take the results into their own caches.
    """
    if b.ndim == 1 or not SMALL < a.size * b.shape[1] <= MOST:
        return np.dot(a, b, out=out)
    (m, k), n = a.shape, b.shape[1]
    longest = max(m, k, n)
    stretch = longest // -(-m * k * n // SMALL)
    parts = [slice(start, start + stretch) for start in range(0, longest, stretch)]
    if k == longest:
        np.matmul(a[:, parts[0]], b[parts[0]], out=out)
        term = np.empty_like(out)
        for part in parts[1:]:
            out += np.matmul(a[:, part], b[part], out=term)
    elif m == longest:
        for part in parts:
            np.dot(a[part], b, out=out[part])
    else:
        for part in parts:
            np.matmul(a, b[:, part], out=out[:, part])
    return out
