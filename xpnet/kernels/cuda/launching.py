"""Compilation and launches of CUDA kernels, and the base class of stages of rows. Nothing waits for the device.

A method takes one launch; those of batch norm take several where `columns` lets several blocks share a row.
"""

import functools
import importlib
import math
from typing import Any

import numpy as np

from ...backends import Array
from ...layers.base import Layer
from ..stages import Stage, reversed_images
from ..table import POINTWISE, pointwise
from .source import source

C_TYPES = {"f": "float", "d": "double"}  # of dtypes, by their letters
THREADS = 512  # the most threads of a block, on which the kernels rely
SHARED = 2**14  # entries: several blocks may share a row with at least so many


@functools.cache
def kernel(expression: str) -> Any:
    """Return the kernel of this name, with its template's arguments, compiled on first use."""
    cupy = importlib.import_module("cupy")
    module = cupy.RawModule(code=source(), options=("-std=c++17",), name_expressions=(expression,))
    return module.get_function(expression)


def launch(
    name: str, grid: tuple[int, ...], block: tuple[int, ...], dtype: Any, *arguments: Any, template: str = ""
) -> None:
    """Launch a kernel for this dtype, with the other arguments of its `template`.

    Floats are passed in the kernel's type, None as a null pointer.
    """
    expression = f"{name}<{C_TYPES[dtype.char]}{', ' * bool(template)}{template}>"
    arguments = tuple(
        np.uintp(0) if a is None else np.int64(a) if type(a) is int else dtype.type(a) if type(a) is float else a
        for a in arguments
    )
    kernel(expression)(grid, block, arguments)


def over_vector(name: str, like: Array, *arguments: Any, template: str = "", most: int = 2048) -> None:
    """Launch a kernel with a thread for each number of an array like this one, in up to `most` blocks."""
    launch(name, (blocks(like.size, most),), (THREADS,), like.dtype, *arguments, template=template)


def threads(n: int) -> int:
    """Return the number of threads of a block that share n numbers: whole warps."""
    return min(THREADS, max(1, -(-n // 32)) * 32)


def blocks(size: int, most: int) -> int:
    """How many share a vector, THREADS numbers each, or more where they would be more than `most`."""
    return min(max(1, -(-size // THREADS)), most)


def columns(h: int, n: int, multiprocessors: int) -> int:
    """How many blocks share a row of (H, N): one, unless few long rows would leave most of the device idle.

    Several are enough to give each multiprocessor two blocks, each with four numbers for a thread at least. Batch norm
    then takes more launches, some 5 µs each, which pays where one block would take 20 µs for a row. These numbers are
    estimates, not measurements.
    """
    return 1 if n < SHARED else max(1, min(2 * multiprocessors // h, n // (4 * THREADS)))


def in_rows(a: Array, dtype: Any) -> Array:
    """Return an array as kernels take it, in C order, images as (C, ..., N): a copy if it is laid out otherwise."""
    return contiguous(reversed_images(a) if a.ndim > 2 else a, dtype)


def contiguous(a: Array, dtype: Any) -> Array:
    """Return an array in C order and of this dtype: itself or a copy."""
    if a.flags.c_contiguous and a.dtype == dtype:
        return a
    return importlib.import_module("cupy").ascontiguousarray(a, dtype)


def laid_out(y: Array, shape: tuple[int, ...]) -> Array:
    """y as an array of this shape, whose numbers it has in the order of `in_rows`."""
    *sizes, n = shape
    return y if len(shape) == 2 else reversed_images(y.reshape((*sizes[::-1], n)))


class RowsStage(Stage):
    """The base class of stages with a pointwise function f, whose kernels use one or more blocks for each row."""

    f: Layer | None

    def bind_rows(self, x: Array) -> None:
        """Find y, and what the kernels take beside arrays: f and its setting, and the blocks' sums and count.

        A row is what a feature, or the channel of images, has of a batch.
        """
        y, family = self.output(math.prod(x.shape[:-1]), x.shape[-1]), self.site.family
        h, n = x.shape[-2], math.prod(x.shape[:-2]) * x.shape[-1]
        self.given = laid_out(y, x.shape)
        self.function, self.setting, self.n = str(pointwise(self.f)), setting(self.f), n
        self.columns = columns(h, n, family.multiprocessors)
        self.partial = None if self.columns == 1 else self.work("partial", (2 * h * self.columns,))
        self.sums = self.partial, family.count
        self.dtype, self.grid, self.block = y.dtype, (h, self.columns), (threads(n),)

    def over_rows(self, name: str, *arguments: Any) -> None:
        """Launch a kernel whose template takes f."""
        launch(name, self.grid, self.block, self.dtype, *arguments, template=self.function)


def setting(f: Layer | None) -> float:
    """A pointwise function's setting, if it has one."""
    names = POINTWISE[str(pointwise(f))].settings
    return float(getattr(f, names[0])) if names else 0.0
