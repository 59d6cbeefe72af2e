"""A convolution with a pointwise function and a pool: bias, ReLU and pool in loops. Axes as in `..convolution`.

Loops take the whole arrays of the pool's outputs, (O, A, B, N), and the number of the first row of windows.
"""

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
from ..correlation import Gathered, Pair
from .compiling import compiled, compiling
from .vectors import BYTE, FLOATS, constant, filled, in_vectors, load, store
from .winograd import Winograd

NO_ENTRY = 255  # the argmax of windows that ReLU cuts off: dz is 0 at all of their entries


def max_of_window(window: Pair, relu: str) -> Any:
    """Return an intrinsic for compiled code: y = max z + bias over a window, and the argmax, its first such entry.

    `relu` is "after" for ReLU of that, "before" for the maximum of ReLU(z + bias), or "" without ReLU. `z`, `y` and
    `argmax` are addresses of n adjacent numbers, z's of the window's first entry; `down` and `across` are the strides
    between a window's entries, in bytes.
    """

    @intrinsic
    def code_of(typing: Any, bias: Any, z: Any, down: Any, across: Any, y: Any, argmax: Any, n: Any) -> Any:
        kind = FLOATS[bias]

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            bias, z, down, across, y, argmax, n = args
            entries = [
                builder.add(z, builder.add(builder.mul(down, n.type(i)), builder.mul(across, n.type(j))))
                for i in range(window[0]) for j in range(window[1])
            ]  # fmt: skip
            for index, lanes in in_vectors(builder, signature.args[0].bitwidth // 8, n):
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
            return context.get_dummy_value()

        return types.void(bias, *[types.intp] * 6), code

    return code_of


def scatter(window: Pair) -> Any:
    """Return an intrinsic for compiled code: dz = dy at the entry `argmax` of a window, 0 at its others."""

    @intrinsic
    def code_of(typing: Any, like: Any, dy: Any, argmax: Any, dz: Any, down: Any, across: Any, n: Any) -> Any:
        kind = FLOATS[like]

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, dy, argmax, dz, down, across, n = args
            for index, lanes in in_vectors(builder, like.bitwidth // 8, n):
                value, first = load(builder, dy, index, kind, lanes), load(builder, argmax, index, BYTE, lanes)
                zero = constant(kind, 0.0, lanes)
                for i in range(window[0]):
                    for j in range(window[1]):
                        chosen = builder.icmp_unsigned("==", first, constant(BYTE, i * window[1] + j, lanes))
                        step = builder.add(builder.mul(down, n.type(i)), builder.mul(across, n.type(j)))
                        store(builder, builder.select(chosen, value, zero), builder.add(dz, step), index, kind, lanes)
            return context.get_dummy_value()

        return types.void(like, *[types.intp] * 6), code

    return code_of


@functools.cache
def loops(window: Pair, relu: str) -> tuple[Any, Any]:
    """Return the loops over all windows, forward and backward."""
    height, width = window
    write_max, write_dz = max_of_window(window, relu), scatter(window)
    compiled_for = compiling({"reassoc", "contract"}, (window, relu))

    @compiled_for
    def forward(z, bias, first, y, argmax):
        """Write y and argmax of z (P, O, Q, N)."""
        down, step, across, _ = z.strides
        for a in range(z.shape[0] // height):
            for o in range(z.shape[1]):
                for b in range(y.shape[2]):
                    start = z.ctypes.data + a * height * down + o * step + b * width * across
                    y_row, entry = y[o, first + a, b], argmax[o, first + a, b]
                    write_max(bias[o], start, down, across, y_row.ctypes.data, entry.ctypes.data, y_row.size)

    @compiled_for
    def backward(argmax, dy, first, dz):
        """Write dz (P, O, Q, N)."""
        down, step, across, _ = dz.strides
        for a in range(dz.shape[0] // height):
            for o in range(dz.shape[1]):
                for b in range(dy.shape[2]):
                    start = dz.ctypes.data + a * height * down + o * step + b * width * across
                    dy_row, entry = dy[o, first + a, b], argmax[o, first + a, b]
                    write_dz(dy.dtype.type(0.0), dy_row.ctypes.data, entry.ctypes.data, start, down, across, entry.size)

    return forward, backward


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

    relu = ""  # as for `max_of_window`

    def forward(self, z: np.ndarray, rows: slice, bias: np.ndarray | None = None) -> None:
        forward, _ = loops(self.window, self.relu)
        bias = np.zeros(z.shape[1], z.dtype) if bias is None else bias
        forward(z, bias, self.windows(rows).start, self.y.transpose(1, 0, 2, 3), self.argmax)

    def backward(self, dy: np.ndarray, rows: slice, dz: np.ndarray) -> None:
        _, backward = loops(self.window, self.relu)
        backward(self.argmax, dy.transpose(1, 0, 2, 3), self.windows(rows).start, dz)

    def sums(self, dy: np.ndarray, total: np.ndarray) -> None:
        """Write Σ dy (O, A B N), without windows that ReLU cuts off, to `total` (O,)."""
        o, a, b, n = self.argmax.shape
        sums(dy.reshape((o, a * b, n)), self.argmax.reshape((o, a * b, n)), total)


class Convolution(convolution.Convolution):
    """`..convolution.Convolution` with compiled pools and transforms of tiles. A ReLU beside a pool is part of it."""

    correlations = Winograd, Gathered
    maxima = Pool
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
