"""A convolution with a pointwise function and a pool: bias, ReLU and pool in loops. Axes as in `..convolution`.

Arrays of the pool's outputs are whole, (O, A, B, N), with the first of the rows of windows that are meant.
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

NONE = 255  # the number where no entry is given dy


def maximum(window: Pair, relu: str) -> Any:
    """A function for compiled code: y = max z + bias over a window, and the number of the entry that is first.

    `relu` is "after" where y is ReLU of that, and "before" where each entry was to go through it first; "" without it.
    Addresses are those of the first of n numbers next to each other, `down` and `across` the steps in bytes from entry
    to entry.
    """

    @intrinsic
    def code_of(typing: Any, bias: Any, z: Any, down: Any, across: Any, y: Any, number: Any, n: Any) -> Any:
        kind = FLOATS[bias]

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            bias, z, down, across, y, number, n = args
            entries = [
                builder.add(z, builder.add(builder.mul(down, n.type(i)), builder.mul(across, n.type(j))))
                for i in range(window[0]) for j in range(window[1])
            ]  # fmt: skip
            for index, lanes in in_vectors(builder, signature.args[0].bitwidth // 8, n):
                zero, none = constant(kind, 0.0, lanes), constant(BYTE, NONE, lanes)
                most, first = load(builder, entries[0], index, kind, lanes), constant(BYTE, 0, lanes)
                for i, entry in enumerate(entries[1:], 1):
                    new = load(builder, entry, index, kind, lanes)
                    larger, nan = builder.fcmp_ordered(">", new, most), builder.fcmp_unordered("uno", new, new)
                    taken = builder.or_(larger, nan)
                    most = builder.select(taken, new, most)
                    first = builder.select(taken, constant(BYTE, i, lanes), first)
                most = builder.fadd(most, filled(builder, bias, lanes))
                if relu:
                    below = builder.fcmp_ordered("<", most, zero)
                    most, first = builder.select(below, zero, most), builder.select(below, none, first)
                if relu == "before":  # then the first of all entries below 0 is 0 too, and ReLU's derivative there
                    late = builder.icmp_unsigned("!=", first, constant(BYTE, 0, lanes))
                    late = builder.and_(late, builder.fcmp_ordered("==", most, zero))
                    first = builder.select(late, none, first)
                store(builder, most, y, index, kind, lanes)
                store(builder, first, number, index, BYTE, lanes)
            return context.get_dummy_value()

        return types.void(bias, *[types.intp] * 6), code

    return code_of


def chosen(window: Pair) -> Any:
    """A function for compiled code: dz = dy at the entry of that number, else 0."""

    @intrinsic
    def code_of(typing: Any, like: Any, dy: Any, number: Any, dz: Any, down: Any, across: Any, n: Any) -> Any:
        kind = FLOATS[like]

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, dy, number, dz, down, across, n = args
            for index, lanes in in_vectors(builder, like.bitwidth // 8, n):
                value, first = load(builder, dy, index, kind, lanes), load(builder, number, index, BYTE, lanes)
                zero = constant(kind, 0.0, lanes)
                for i in range(window[0]):
                    for j in range(window[1]):
                        own = builder.icmp_unsigned("==", first, constant(BYTE, i * window[1] + j, lanes))
                        step = builder.add(builder.mul(down, n.type(i)), builder.mul(across, n.type(j)))
                        store(builder, builder.select(own, value, zero), builder.add(dz, step), index, kind, lanes)
            return context.get_dummy_value()

        return types.void(like, *[types.intp] * 6), code

    return code_of


@functools.cache
def loops(window: Pair, relu: str) -> tuple[Any, Any]:
    """The loops over all windows, forward and backward."""
    height, width = window
    of_window, to_entries = maximum(window, relu), chosen(window)
    made = compiling({"reassoc", "contract"}, (window, relu))

    @made
    def forward(z, bias, first, y, number):
        """y and number of z (P, O, Q, N)"""
        down, step, across, _ = z.strides
        for a in range(z.shape[0] // height):
            for o in range(z.shape[1]):
                for b in range(y.shape[2]):
                    start = z.ctypes.data + a * height * down + o * step + b * width * across
                    row, places = y[o, first + a, b], number[o, first + a, b]
                    of_window(bias[o], start, down, across, row.ctypes.data, places.ctypes.data, row.size)

    @made
    def backward(number, dy, first, dz):
        """dz (P, O, Q, N)"""
        down, step, across, _ = dz.strides
        for a in range(dz.shape[0] // height):
            for o in range(dz.shape[1]):
                for b in range(dy.shape[2]):
                    start = dz.ctypes.data + a * height * down + o * step + b * width * across
                    row, places = dy[o, first + a, b], number[o, first + a, b]
                    to_entries(dy.dtype.type(0.0), row.ctypes.data, places.ctypes.data, start, down, across, row.size)

    return forward, backward


@compiled
def sums(dy, number, total):
    """total (O,) = Σ dy (O, R, N), of those that some entry is given"""
    zero = dy.dtype.type(0.0)
    for o in range(dy.shape[0]):
        of_rows = 0.0
        for r in range(dy.shape[1]):
            of_row = zero
            for n in range(dy.shape[2]):
                of_row += dy[o, r, n] if number[o, r, n] != NONE else zero
            of_rows += of_row
        total[o] = of_rows


class Pool(convolution.Pool):
    """Each window's maximum with bias and ReLU in one go."""

    relu = ""

    def forward(self, z: np.ndarray, rows: slice, bias: np.ndarray | None = None) -> None:
        forward, _ = loops(self.window, self.relu)
        bias = np.zeros(z.shape[1], z.dtype) if bias is None else bias
        forward(z, bias, self.windows(rows).start, self.y.transpose(1, 0, 2, 3), self.numbers)

    def backward(self, dy: np.ndarray, rows: slice, dz: np.ndarray) -> None:
        _, backward = loops(self.window, self.relu)
        backward(self.numbers, dy.transpose(1, 0, 2, 3), self.windows(rows).start, dz)

    def sums(self, dy: np.ndarray, total: np.ndarray) -> None:
        """total = Σ dy (O, A B N), of those that some entry is given"""
        o, a, b, n = self.numbers.shape
        sums(dy.reshape((o, a * b, n)), self.numbers.reshape((o, a * b, n)), total)


class Convolution(convolution.Convolution):
    """A pool and the transforms of tiles in loops; ReLU beside a pool is part of it."""

    correlations = Winograd, Gathered
    maxima = Pool
    relu = ""

    def __init__(self, site: Site, before: Stage | None, part: Part, following: Sequence[Layer]):
        super().__init__(site, before, part, following)
        if self.tiles and type(self.f) is activations.ReLU:
            self.relu = "before" if self.f_before_pool else "after"
            self.f, self.f_before_pool, self.y_read_once = None, False, True

    def bind(self, x: np.ndarray, before: Stage | None) -> None:
        super().bind(x, before)
        pool, rows = self.pool, self.forward_rows
        if isinstance(pool, Pool):  # which has added the bias
            pool.relu, self.forward_rows = self.relu, lambda stage, _: rows(stage, None)
            if self.f is None:
                self.forward_rows, self.backward_rows = (lambda *_: None), (lambda _, dy, dbias: pool.sums(dy, dbias))
