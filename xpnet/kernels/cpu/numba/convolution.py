"""A convolution with a pointwise function and a pool: bias, ReLU and pool in loops. Axes as in `..convolution`."""

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.extending import intrinsic

from ....layers import activations
from ....layers.base import Layer
from ...stages import Part, Site, Stage
from .. import convolution
from ..correlation import Pair
from .compiling import compiled, compiling
from .vectors import BYTE, FLOATS, constant, filled, in_vectors, load, store

NO_ENTRY = 255  # the argmax of windows that ReLU cuts off: dz is 0 at all of their entries


def write_max(
    builder: Any, index: Any, kind: Any, lanes: int, entries: Any, bias: Any, y: Any, argmax: Any, relu: str
) -> None:
    """Emit y = max z + bias over a window, and the argmax, its first such entry, of adjacent numbers.

    `relu` is "after" for ReLU of that, "before" for the maximum of ReLU(z + bias), or "" without ReLU.
    """
    zero, none = constant(kind, 0.0, lanes), constant(BYTE, NO_ENTRY, lanes)
    largest, first = load(builder, entries[0], index, kind, lanes), constant(BYTE, 0, lanes)
    for i, entry in enumerate(entries[1:], 1):
        new = load(builder, entry, index, kind, lanes)
        larger, nan = builder.fcmp_ordered(">", new, largest), builder.fcmp_unordered("uno", new, new)
        replaces = builder.or_(larger, nan)
        largest = builder.select(replaces, new, largest)
        first = builder.select(replaces, constant(BYTE, i, lanes), first)
    largest = builder.fadd(largest, filled(builder, bias, lanes))
    if relu:
        below = builder.fcmp_ordered("<", largest, zero)
        largest, first = builder.select(below, zero, largest), builder.select(below, none, first)
    if relu == "before":  # ReLU made all entries 0: dy goes to the first, which was below 0, so its dz is 0
        later = builder.icmp_unsigned("!=", first, constant(BYTE, 0, lanes))
        later = builder.and_(later, builder.fcmp_ordered("==", largest, zero))
        first = builder.select(later, none, first)
    store(builder, largest, y, index, kind, lanes)
    store(builder, first, argmax, index, BYTE, lanes)


def write_dz(
    builder: Any, index: Any, kind: Any, lanes: int, entries: Any, bias: Any, dy: Any, argmax: Any, relu: str
) -> None:
    """Emit dz = dy at the entry `argmax` of a window, and 0 at its others."""
    value, first = load(builder, dy, index, kind, lanes), load(builder, argmax, index, BYTE, lanes)
    for i, entry in enumerate(entries):
        chosen = builder.icmp_unsigned("==", first, constant(BYTE, i, lanes))
        store(builder, builder.select(chosen, value, constant(kind, 0.0, lanes)), entry, index, kind, lanes)


@functools.cache
def over_windows(window: Pair, emit: Any, relu: str = "") -> Any:
    """Return a loop over all windows of z (P, O, Q, N), whose code is that of `emit`, in vectors over the batch.

    `y` and `argmax` are (O, A, B, N); `first` is the number of z's first row of windows; `bias` may be None.
    """
    height, width = window

    @intrinsic
    def code_of(typing: Any, bias: Any, z: Any, down: Any, across: Any, y: Any, argmax: Any, n: Any) -> Any:
        kind = FLOATS[bias]

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            shift, z, down, across, y, argmax, n = args
            entries = [
                builder.add(z, builder.add(builder.mul(down, n.type(i)), builder.mul(across, n.type(j))))
                for i in range(height) for j in range(width)
            ]  # fmt: skip
            for index, lanes in in_vectors(builder, bias.bitwidth // 8, n):
                emit(builder, index, kind, lanes, entries, shift, y, argmax, relu)
            return context.get_dummy_value()

        return types.void(bias, *[types.intp] * 6), code

    @compiling({"reassoc", "contract"}, (window, emit.__name__, relu))
    def loop(z, bias, first, y, argmax):
        down, step, across, _ = z.strides
        for a in range(z.shape[0] // height):
            for o in range(z.shape[1]):
                shift = z.dtype.type(0.0) if bias is None else bias[o]
                for b in range(y.shape[2]):
                    start = z.ctypes.data + a * height * down + o * step + b * width * across
                    y_row, entry = y[o, first + a, b], argmax[o, first + a, b]
                    code_of(shift, start, down, across, y_row.ctypes.data, entry.ctypes.data, y_row.size)

    return loop


@compiled
def sums(dy, argmax, total):
    """Write Σ dy (O, R, N), without windows that ReLU cuts off, to `total` (O,)."""
    zero = dy.dtype.type(0.0)
    for o in range(dy.shape[0]):
        of_rows = 0.0
        for r in range(dy.shape[1]):
            of_row = zero
            for n in range(dy.shape[2]):
                of_row += dy[o, r, n] if argmax[o, r, n] != NO_ENTRY else zero
            of_rows += of_row
        total[o] = of_rows


class Pool(convolution.Pool):
    """The maxima with bias and ReLU, in one loop."""

    relu = ""  # as for `write_max`

    def forward(self, z: np.ndarray, rows: slice, bias: np.ndarray | None = None) -> None:
        loop = over_windows(self.window, write_max, self.relu)
        loop(z, bias, self.windows(rows).start, self.y.transpose(1, 0, 2, 3), self.argmax)

    def backward(self, dy: np.ndarray, rows: slice, dz: np.ndarray) -> None:
        loop = over_windows(self.window, write_dz)
        loop(dz, None, self.windows(rows).start, dy.transpose(1, 0, 2, 3), self.argmax)

    def sums(self, dy: np.ndarray, total: np.ndarray) -> None:
        """Write Σ dy (O, A B N), without windows that ReLU cuts off, to `total` (O,)."""
        o, a, b, n = self.argmax.shape
        sums(dy.reshape((o, a * b, n)), self.argmax.reshape((o, a * b, n)), total)


class Convolution(convolution.Convolution):
    """`..convolution.Convolution` with compiled pools and transforms of tiles. A ReLU beside a pool is part of it."""

    relu = ""

    def __init__(self, site: Site, before: Stage | None, part: Part, following: Sequence[Layer]):
        super().__init__(site, before, part, following)
        if self.pool_layer and type(self.f) is activations.ReLU:
            self.relu = "before" if self.f_before_pool else "after"
            self.f, self.f_before_pool, self.y_read_once = None, False, True

    def bind(self, x: np.ndarray, before: Stage | None) -> None:
        super().bind(x, before)
        pool, rows = self.pool, self.forward_rows
        if isinstance(pool, Pool):  # it adds the bias
            pool.relu, self.forward_rows = self.relu, lambda stage, _: rows(stage, None)
            if self.f is None:
                self.forward_rows, self.backward_rows = (lambda *_: None), (lambda _, dy, dbias: pool.sums(dy, dbias))
