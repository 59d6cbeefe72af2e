"""Stages of sequences: arrays of more than two axes, (D, ..., N), that lie in memory as the layers' own code has them.

As a matrix, (M, D), they have a row for each of the M positions.
"""

import math
from collections.abc import Sequence
from typing import Any

from ...backends import Array
from ..stages import Part, Stage
from .launching import contiguous


def columns_grid(m: int, h: int, multiprocessors: int) -> tuple[int, int]:
    """The blocks (32, 16) that add up columns of (M, H): 32 columns each, and as many stretches of rows as give each
    multiprocessor two blocks, of 64 rows at least.
    """
    across = -(-h // 32)
    return across, 1 if across > multiprocessors else max(1, min(2 * multiprocessors // across, m // 64))


def in_positions(a: Array, dtype: Any) -> Array:
    """Sequences (D, ..., N) as a matrix (M, D) in C order: a copy where they lie otherwise."""
    return contiguous(a.T, dtype).reshape((-1, a.shape[0]))


def as_sequences(matrix: Array, shape: tuple[int, ...]) -> Array:
    """`in_positions` undone: a matrix (M, H) as (H, ..., N), in place of an array of that shape."""
    return matrix.reshape((*shape[:0:-1], matrix.shape[1])).T


def of_sequences(before: Stage | None, parts: Sequence[Part]) -> bool:
    """Whether the y of the stage before, which these layers are given, is of sequences, or any array of more axes."""
    axes = parts[0].axes if parts else before.axes if before else 0
    return axes > 2 and not (before and before.images)


class PositionsStage(Stage):
    """The base class of stages of sequences."""

    def place_of_y(self, x: Array, features: int) -> Array:
        """The place of y, (M, H); `given` is it as sequences."""
        self.m = math.prod(x.shape[1:])
        y = self.work("y", (self.m, features))
        self.given = as_sequences(y, x.shape)
        return y

    def place_of_dx(self, x: Array) -> Array:
        """The place of dx, (M, D), in one of two that stages share."""
        return self.shared(f"dx{self.turn}", (self.m, x.shape[0]))
