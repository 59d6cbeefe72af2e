"""Replacements of libraries that CuPy calls: cuBLAS and Thrust by NumPy; and small blocks for CuPy's reductions."""

import ctypes
import math
import sys
import types
from typing import Any

import numpy as np

from .compiler import build_engine, current
from .log import log

COMPUTE = "32F", "32F_PEDANTIC", "32F_FAST_TF32", "64F", "64F_PEDANTIC"
OTHERS = "GEMM_DEFAULT", "GEMM_DEFAULT_TENSOR_OP", "TENSOR_OP_MATH", "DEFAULT_MATH"
NAMES = [
    *(f"CUBLAS_COMPUTE_{name}" for name in COMPUTE),
    *(f"CUBLAS_{name}" for name in OTHERS),
]  # their values do not matter
DTYPES = {0: np.dtype("f4"), 1: np.dtype("f8")}


def at(address: int, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Return an array in the current device's memory, in C order."""
    dtype = np.dtype(dtype)
    size = math.prod(shape)
    if size and not build_engine().holds(current.device, address, size * dtype.itemsize):
        log.faults.append(f"an array of shape {shape} for a library, where device {current.device} has none")
    return (
        np.ctypeslib.as_array((ctypes.c_char * (size * dtype.itemsize)).from_address(address))
        .view(dtype)
        .reshape(shape)
    )


def matrix(address: int, rows: int, columns: int, leading: int, dtype: np.dtype, transposed: int) -> np.ndarray:
    """Return a matrix in cuBLAS's layout: column by column, with `leading` entries from one to the next."""
    if transposed:
        rows, columns = columns, rows
    if leading < rows:
        raise ValueError(f"a leading dimension of {leading} for {rows} rows")
    flat = at(address, (leading * (columns - 1) + rows if rows * columns else 0,), dtype)
    a = np.lib.stride_tricks.as_strided(flat, (rows, columns), (dtype.itemsize, leading * dtype.itemsize))
    return a.T if transposed else a


def product(handle, ta, tb, m, n, k, alpha, a, a_type, lda, b, b_type, ldb, beta, c, c_type, ldc, *how):  # type: ignore[no-untyped-def]
    """Compute c = a @ b; CuPy always passes alpha = 1 and beta = 0."""
    log.launches.append("gemm")
    dtype = DTYPES[a_type]
    assert a_type == b_type == c_type
    with np.errstate(all="ignore"):
        result = matrix(a, m, k, lda, dtype, ta) @ matrix(b, k, n, ldb, dtype, tb)
    matrix(c, m, n, ldc, dtype, 0)[...] = result


def products(  # type: ignore[no-untyped-def]
    handle, ta, tb, m, n, k, alpha, a, a_type, lda, sa, b, b_type, ldb, sb, beta, c, c_type, ldc, sc, batch, *how
):
    """As `product`, for `batch` matrices."""
    log.launches.append("gemm, batched")
    dtype = DTYPES[a_type]
    size = dtype.itemsize
    with np.errstate(all="ignore"):
        for i in range(batch):
            left = matrix(a + i * sa * size, m, k, lda, dtype, ta)
            right = matrix(b + i * sb * size, k, n, ldb, dtype, tb)
            matrix(c + i * sc * size, m, n, ldc, dtype, 0)[...] = left @ right


def install_cublas() -> None:
    """Replace the module before CuPy imports it, since it links to a library that is missing here."""
    import cupy_backends.cuda.libs

    name = "cupy_backends.cuda.libs.cublas"
    cublas: Any = types.ModuleType(name)
    vars(cublas).update({name: number for number, name in enumerate(NAMES)})
    cublas.create, cublas.destroy = (lambda: 1), (lambda handle: None)
    cublas.gemmEx, cublas.gemmStridedBatchedEx = product, products
    sys.modules[name] = cupy_backends.cuda.libs.cublas = cublas


def sort(dtype, data, keys, shape):  # type: ignore[no-untyped-def]
    """Sort along the last axis, in place."""
    log.launches.append("sort")
    at(data, tuple(shape), dtype).sort(axis=-1, kind="stable")


def argsort(dtype, index, data, keys, shape):  # type: ignore[no-untyped-def]
    """Write the sorting order along the last axis to `index`."""
    log.launches.append("argsort")
    at(index, tuple(shape), "i8")[...] = at(data, tuple(shape), dtype).argsort(axis=-1, kind="stable")


def install_thrust() -> None:
    """Replace Thrust's functions, after CuPy is imported."""
    from cupy.cuda import thrust

    thrust.sort, thrust.argsort = sort, argsort


def use_small_blocks() -> None:
    """Give CuPy's own reductions of few numbers blocks of a warp instead of 512 threads, which are slow on the host.

    CuPy's optimizer, used in the main thread, decides on the numbers of threads, blocks, and results of a block.
    """
    from cupy._core import _optimize_config

    class Blocks(_optimize_config._OptimizationContext):
        def get_params(self, key: Any) -> tuple[int, int, int]:
            shapes = key[2][::2]  # of the arrays, each with its strides
            numbers, results = math.prod(shapes[0]), math.prod(shapes[-1])
            each = max(numbers // results, 1)
            threads = 32 if each <= 256 else 512
            stride = 1 << max(threads // each, 1).bit_length() - 1
            return threads, stride, -(-results // stride)

    config = _optimize_config._OptimizationConfig(None)
    _optimize_config.set_current_context(Blocks("on the host", config))
