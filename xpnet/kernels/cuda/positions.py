"""Stages of sequences: arrays (D, ..., N) of more than two axes, in memory in the order of the layers, (N, ..., D).

As a matrix (M, D), they have a row for each of the M positions.
"""

import math
from collections.abc import Sequence
from typing import Any

from ...backends import Array
from ..stages import Part, Stage
from .launching import contiguous


def columns_grid(m: int, h: int, multiprocessors: int) -> tuple[int, int]:
    """Return the grid of blocks (32, 16) that add up the columns of (M, H).

    Along x a block has 32 columns; along y there are enough parts of the rows, each of 64 rows or more, to give each
    multiprocessor two blocks.
    """
    across = -(-h // 32)
    return across, 1 if across > multiprocessors else max(1, min(2 * multiprocessors // across, m // 64))


def in_positions(a: Array, dtype: Any) -> Array:
    """Return sequences (D, ..., N) as a matrix (M, D) in C order: a view, or a copy if they are laid out otherwise."""
    return contiguous(a.T, dtype).reshape((-1, a.shape[0]))


def as_sequences(matrix: Array, shape: tuple[int, ...]) -> Array:
    """Return a matrix (M, H) as sequences (H, ..., N), with the other axes those of `shape`."""
    return matrix.reshape((*shape[:0:-1], matrix.shape[1])).T


def of_sequences(before: Stage | None, parts: Sequence[Part]) -> bool:
    """Whether the x of these layers, the y of the stage before, has more than two axes and is not of images."""
    axes = parts[0].axes if parts else before.axes if before else 0
    return axes > 2 and not (before and before.images)


class PositionsStage(Stage):
    """The base class of stages of sequences."""

    def place_of_y(self, x: Array, features: int) -> Array:
        """Return the array for y, (M, H), and set `given`, the same as sequences."""
        self.m = math.prod(x.shape[1:])
        y = self.work("y", (self.m, features))
        self.given = as_sequences(y, x.shape)
        return y

    def place_of_dx(self, x: Array) -> Array:
        """Return the array for dx, (M, D), one of two that stages share."""
        return self.shared(f"dx{self.turn}", (self.m, x.shape[0]))
