"""The maxima of windows, with bias and ReLU where they are the pool's, and where their dy goes."""

import numpy as np
import pytest

from xpnet.kernels.stages import Workspace

pytestmark = pytest.mark.numpy_only

POOLS = "calls", pytest.param("numba", marks=pytest.mark.numba_only)
A, C, B, N = 3, 2, 2, 37


def pool_of(name, window, dtype, relu=""):
    if name == "numba":
        from xpnet.kernels.cpu.numba.convolution import Pool
    else:
        from xpnet.kernels.cpu.convolution import Pool
    room = Workspace(np, np.dtype(dtype), None)
    pool = Pool(room, room, window, np.full((C, A, B, N), np.nan, dtype).transpose(1, 0, 2, 3))
    pool.relu = relu
    return pool


def numbers(window, dtype, rng):
    """z (P, C, Q, N) of few values, so that maxima are several, with some that are not finite."""
    height, width = window
    z = rng.integers(-2, 3, (A * height, C, B * width, N)).astype(dtype)
    z[rng.random(z.shape) < 0.02] = np.inf
    z[rng.random(z.shape) < 0.02] = -np.inf
    z[rng.random(z.shape) < 0.02] = np.nan
    return z


def entries(a, window):
    """(P, C, Q, N) as what each window has, in its order, (TH TW, A, C, B, N)."""
    height, width = window
    return a.reshape(A, height, C, B, width, N).transpose(1, 4, 0, 2, 3, 5).reshape(-1, A, C, B, N)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("window", [(2, 2), (1, 3), (1, 1), (3, 2)])
@pytest.mark.parametrize("name", POOLS)
def test_maxima_and_their_dy(name, window, dtype):
    rng = np.random.default_rng(0)
    pool, z = pool_of(name, window, dtype), numbers(window, dtype, rng)
    dy = rng.standard_normal((C, A, B, N)).astype(dtype).transpose(1, 0, 2, 3)
    dy[rng.random(dy.shape) < 0.02] = np.inf
    dz = np.full(z.shape, np.nan, dtype)
    for a in range(A):  # one row of windows after another
        rows = slice(window[0] * a, window[0] * (a + 1))
        pool.forward(z[rows], rows)
        pool.backward(dy, rows, dz[rows])
    seen, given = entries(z, window), entries(dz, window)
    np.testing.assert_array_equal(pool.y, seen.max(axis=0))  # NaN where one of them is
    certain = ~np.isnan(seen).any(axis=0)
    expected = np.where(np.arange(len(seen)).reshape(-1, 1, 1, 1, 1) == seen.argmax(axis=0), dy, 0.0)
    np.testing.assert_array_equal(given[:, certain], expected[:, certain])


@pytest.mark.numba_only
@pytest.mark.parametrize("relu", ["before", "after"])
def test_maxima_with_bias_and_relu(relu):
    window, rng = (2, 2), np.random.default_rng(1)
    pool, z, bias = pool_of("numba", window, "float64", relu), numbers(window, "float64", rng), np.asarray([-1.0, 1.0])
    dy = rng.integers(1, 9, (C, A, B, N)).astype("float64").transpose(1, 0, 2, 3)
    dz, total = np.empty_like(z), np.empty(C)
    pool.forward(z, slice(0, 2 * A), bias)
    pool.backward(dy, slice(0, 2 * A), dz)
    pool.sums(np.ascontiguousarray(dy.transpose(1, 0, 2, 3)).reshape(C, -1), total)

    x = entries(z, window) + bias[:, None, None]
    first = np.where(x < 0, 0.0, x).argmax(axis=0) if relu == "before" else x.argmax(axis=0)
    passes = np.take_along_axis(x, first[None], axis=0)[0] >= 0.0  # ReLU's derivative of the entry that is taken
    y = np.where(x < 0, 0.0, x).max(axis=0)
    certain = ~np.isnan(x).any(axis=0)
    expected = np.where((np.arange(4).reshape(-1, 1, 1, 1, 1) == first) & passes, dy, 0.0)
    np.testing.assert_array_equal(pool.y, y)
    np.testing.assert_array_equal(entries(dz, window)[:, certain], expected[:, certain])
    np.testing.assert_array_equal(total, entries(dz, window).sum(axis=(0, 1, 3, 4)))
