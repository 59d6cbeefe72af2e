"""The transforms of `..winograd`, a tile at a time, as vectors over the batch.

Each is M D Mᵀ of a tile D, with a matrix M of 0, 1 and -1, in registers from the first sum to the last.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .. import winograd
from ..correlation import Pair
from .compiling import compiled
from .vectors import FLOATS, in_vectors, load, store

Matrix = Sequence[Sequence[int]]
A: Matrix = ((1, 0), (1, 1), (1, -1), (0, 1))
AT: Matrix = ((1, 1, 1, 0), (0, 1, -1, 1))
BT: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1))


def by(matrix: Matrix, rows: Sequence[Sequence[Any]], builder: Any) -> list[tuple[Any, ...]]:
    """The instructions for matrix @ rows."""

    def total(line: Sequence[int], column: Sequence[Any]) -> Any:
        first, *rest = sorted((-sign, i) for i, sign in enumerate(line) if sign)  # what is added comes first
        result = column[first[1]]
        for sign, i in rest:
            result = (builder.fsub if sign > 0 else builder.fadd)(result, column[i])
        return result

    return [tuple(total(line, column) for column in zip(*rows, strict=True)) for line in matrix]


def transform(matrix: Matrix) -> Any:
    """A function for compiled code: target ← M D Mᵀ, D the tile at `source`, for n numbers in each entry.

    source and target are the addresses of a tile's first entry, followed by the steps, in bytes, from row to row and
    from column to column, the numbers of the first row and column and how many there are: of entries beyond those
    nothing is read but the zeros at `none`, and what belongs there goes to `nowhere`.
    """

    @intrinsic
    def code_of(typing: Any, zero: Any, source: Any, none: Any, target: Any, nowhere: Any, n: Any) -> Any:
        kind = FLOATS[zero]

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, source, none, target, nowhere, n = args
            integer = n.type

            def entries(tile: Any, count: int, other: Any) -> list[Any]:
                """The addresses of a tile's entries, `other` of those that are not there."""
                start, down, across, top, height, left, width = cgutils.unpack_tuple(builder, tile)
                found = []
                for i in range(count):
                    row = builder.add(start, builder.mul(down, integer(i)))
                    for j in range(count):
                        inside = [
                            builder.icmp_unsigned("<", builder.add(first, integer(k)), end)
                            for first, k, end in ((top, i, height), (left, j, width))
                        ]
                        entry = builder.add(row, builder.mul(across, integer(j)))
                        found.append(builder.select(builder.and_(*inside), entry, other))
                return found

            read, written = entries(source, len(matrix[0]), none), entries(target, len(matrix), nowhere)
            side = len(matrix[0])
            for index, lanes in in_vectors(builder, zero.bitwidth // 8, n):
                values = [load(builder, entry, index, kind, lanes) for entry in read]
                rows = by(matrix, [values[i : i + side] for i in range(0, len(values), side)], builder)
                columns = by(matrix, list(zip(*rows, strict=True)), builder)
                for entry, value in zip(written, [v for row in zip(*columns, strict=True) for v in row], strict=True):
                    store(builder, value, entry, index, kind, lanes)
            return context.get_dummy_value()

        tile = types.UniTuple(types.intp, 7)
        return types.void(zero, tile, types.intp, tile, types.intp, types.intp), code

    return code_of


by_a, by_at, by_bt = (transform(matrix) for matrix in (A, AT, BT))


@compiled
def transform_images(images, top, left, zeros, tiles):
    """tiles ← Bᵀ D B, (4, 4, C, R, S, N), of images (C, H, W, N) that begin so far behind the first tile"""
    _, _, c, r, s, n = tiles.shape
    _, h, w, _ = images.shape
    step, down, across, _ = images.strides
    first, none, of = images.ctypes.data, zeros.ctypes.data, tiles.strides
    for k in range(c):
        for i in range(r):
            for j in range(s):
                y = 2 * i - top
                x = 2 * j - left
                by_bt(
                    images.dtype.type(0.0),
                    (first + k * step + y * down + x * across, down, across, y, h, x, w), none,
                    (tiles.ctypes.data + k * of[2] + i * of[3] + j * of[4], of[0], of[1], 0, 4, 0, 4), none, n,
                )  # fmt: skip


@compiled
def transform_products(made, waste, z):
    """z ← Aᵀ made A, (P, O, Q, N); `waste` takes what is beyond it"""
    _, _, o, r, s, n = made.shape
    p, _, q, _ = z.shape
    down, step, across, _ = z.strides
    first, nowhere, of = z.ctypes.data, waste.ctypes.data, made.strides
    for i in range(r):
        for k in range(o):
            for j in range(s):
                by_at(
                    made.dtype.type(0.0),
                    (made.ctypes.data + k * of[2] + i * of[3] + j * of[4], of[0], of[1], 0, 4, 0, 4), nowhere,
                    (first + 2 * i * down + k * step + 2 * j * across, down, across, 2 * i, p, 2 * j, q), nowhere, n,
                )  # fmt: skip


@compiled
def transform_slopes(dz, zeros, slopes):
    """slopes ← A dZ Aᵀ, of dz (P, O, Q, N)"""
    _, _, o, r, s, n = slopes.shape
    p, _, q, _ = dz.shape
    down, step, across, _ = dz.strides
    first, none, of = dz.ctypes.data, zeros.ctypes.data, slopes.strides
    for i in range(r):
        for k in range(o):
            for j in range(s):
                by_a(
                    dz.dtype.type(0.0),
                    (first + 2 * i * down + k * step + 2 * j * across, down, across, 2 * i, p, 2 * j, q), none,
                    (slopes.ctypes.data + k * of[2] + i * of[3] + j * of[4], of[0], of[1], 0, 4, 0, 4), none, n,
                )  # fmt: skip


class Winograd(winograd.Winograd):
    """With tiles transformed in registers."""

    least = 2**9

    def bind(self, room: Any, sizes: Pair, padding: Pair) -> None:
        self.padding, self.zeros = padding, room.filled(0.0, (self.n,))
        self.waste: np.ndarray = room("waste", (self.n,))

    def transform_images(self, images: np.ndarray, i: int, tiles: np.ndarray) -> None:
        transform_images(images, self.padding[0] - self.stretches[i].start, self.padding[1], self.zeros, tiles)

    def transform_products(self, made: np.ndarray, z: np.ndarray) -> None:
        transform_products(made, self.waste, z)

    def transform_slopes(self, dz: np.ndarray, slopes: np.ndarray) -> None:
        transform_slopes(dz, self.zeros, slopes)
