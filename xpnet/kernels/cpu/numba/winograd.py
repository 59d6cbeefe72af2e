"""The transforms of `..winograd`, one tile at a time, in vectors over the batch.

Each is M D Mᵀ of a tile D, with a matrix M of 0, 1 and -1; all intermediate sums stay in registers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from .. import winograd
from ..correlation import Pair
from .compiling import compiling
from .vectors import FLOATS, in_vectors, load, store

Matrix = Sequence[Sequence[int]]
A: Matrix = ((1, 0), (1, 1), (1, -1), (0, 1))
AT: Matrix = ((1, 1, 1, 0), (0, 1, -1, 1))
BT: Matrix = ((1, 0, -1, 0), (0, 1, 1, 0), (0, -1, 1, 0), (0, -1, 0, 1))


def by(matrix: Matrix, rows: Sequence[Sequence[Any]], builder: Any) -> list[tuple[Any, ...]]:
    """Emit the instructions for matrix @ rows, and return the rows of the result."""

    def total(line: Sequence[int], column: Sequence[Any]) -> Any:
        first, *rest = sorted((-sign, i) for i, sign in enumerate(line) if sign)  # positive terms first
        result = column[first[1]]
        for sign, i in rest:
            result = (builder.fsub if sign > 0 else builder.fadd)(result, column[i])
        return result

    return [tuple(total(line, column) for column in zip(*rows, strict=True)) for line in matrix]


def transform(matrix: Matrix) -> Any:
    """Return an intrinsic for compiled code that writes M D Mᵀ to `target`, with D the tile at `source`.

    A tile's entries are vectors of n numbers. A tile is a tuple: the address of its first entry; the strides in bytes
    between its rows and between its columns; its first row in an image, and the image's height; its first column, and
    the width. Entries outside of the image are read or written at the address `outside`.
    """

    @intrinsic
    def code_of(typing: Any, zero: Any, source: Any, target: Any, outside: Any, n: Any) -> Any:
        kind = FLOATS[zero]

        def code(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            _, source, target, outside, n = args
            integer = n.type

            def entries(tile: Any, count: int) -> list[Any]:
                """Return the addresses of a tile's entries, with `outside` for those outside of the image."""
                start, down, across, top, height, left, width = cgutils.unpack_tuple(builder, tile)
                addresses = []
                for i in range(count):
                    row = builder.add(start, builder.mul(down, integer(i)))
                    for j in range(count):
                        inside = [
                            builder.icmp_unsigned("<", builder.add(first, integer(k)), end)
                            for first, k, end in ((top, i, height), (left, j, width))
                        ]
                        entry = builder.add(row, builder.mul(across, integer(j)))
                        addresses.append(builder.select(builder.and_(*inside), entry, outside))
                return addresses

            side = len(matrix[0])
            read, written = entries(source, side), entries(target, len(matrix))
            for index, lanes in in_vectors(builder, zero.bitwidth // 8, n):
                values = [load(builder, entry, index, kind, lanes) for entry in read]
                rows = by(matrix, [values[i : i + side] for i in range(0, len(values), side)], builder)
                columns = by(matrix, list(zip(*rows, strict=True)), builder)
                for entry, value in zip(written, [v for row in zip(*columns, strict=True) for v in row], strict=True):
                    store(builder, value, entry, index, kind, lanes)
            return context.get_dummy_value()

        tile = types.UniTuple(types.intp, 7)
        return types.void(zero, tile, tile, types.intp, types.intp), code

    return code_of


def over_tiles(matrix: Matrix, to_images: bool = False) -> Any:
    """Return a loop that transforms the tiles of images (C, H, W, N) into `tiles` (4, 4, C, R, S, N), or back.

    `top` and `left` are the images' padding; numbers outside of them are read from or written to `outside`.
    """
    transformed = transform(matrix)

    @compiling({"reassoc", "contract"}, (matrix, to_images))
    def loop(images, top, left, outside, tiles):
        _, h, w, n = images.shape
        step, down, across, _ = images.strides
        first, start, of = images.ctypes.data, tiles.ctypes.data, tiles.strides
        for k in range(tiles.shape[2]):
            for i in range(tiles.shape[3]):
                y = 2 * i - top
                for j in range(tiles.shape[4]):
                    x = 2 * j - left
                    part = first + k * step + y * down + x * across, down, across, y, h, x, w
                    tile = start + k * of[2] + i * of[3] + j * of[4], of[0], of[1], 0, 4, 0, 4
                    source, target = (tile, part) if to_images else (part, tile)
                    transformed(images.dtype.type(0.0), source, target, outside.ctypes.data, n)

    return loop


b_of_images, products_by_a, a_of_gradients = over_tiles(BT), over_tiles(AT, to_images=True), over_tiles(A)


class Winograd(winograd.Winograd):
    """`..winograd.Winograd` with the transforms in compiled loops."""

    least = 2**9, 2**9

    def bind(self, workspace: Any, sizes: Pair, padding: Pair) -> None:
        self.padding, self.zeros = padding, workspace.filled(0.0, (self.n,))
        self.scratch: np.ndarray = workspace("scratch", (self.n,))

    def transform_images(self, images: np.ndarray, i: int, tiles: np.ndarray) -> None:
        b_of_images(images, self.padding[0] - self.blocks[i].start, self.padding[1], self.zeros, tiles)

    def transform_products(self, tiles: np.ndarray, z: np.ndarray) -> None:
        products_by_a(z.transpose(1, 0, 2, 3), 0, 0, self.scratch, tiles)

    def transform_gradients(self, dz: np.ndarray, tiles: np.ndarray) -> None:
        a_of_gradients(dz.transpose(1, 0, 2, 3), 0, 0, self.zeros, tiles)
