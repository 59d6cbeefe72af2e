"""The pointwise functions of the table in calls of NumPy or PyTorch, and stages that process rows in blocks."""

import copy
import functools
import re
from collections.abc import Callable
from typing import Any, NamedTuple, Self

from ...backends import Array
from ...layers.base import Layer
from ..formulas import Program, names_in
from ..stages import Stage
from ..table import POINTWISE, pointwise
from . import threads

SMALL = 2**16  # entries up to which a matrix of zeros is made, rather than one row that NumPy broadcasts more slowly


class Compiled(NamedTuple):
    """A program: the function, and the names of its arguments and the constants, in their order."""

    function: Callable[..., None]
    names: list[str]
    constants: list[float]


class Function:
    """A pointwise function in a library's calls, which overwrite x, in the array y, with f(x).

    A slope that depends on x is computed first, in forward, and kept: as a mask if it is 1 or 0. A slope that depends
    on y alone is computed in backward.
    """

    def __init__(self, lib: Any, name: str):
        _, value, slope, _, common = row = POINTWISE[name]
        condition = re.fullmatch(r"where\((.*), 1, 0\)", slope)
        self.keeps, self.masks = "x" in names_in(row.formulas[1]), condition is not None
        self.settings = row.settings
        lines = [("common", common)] * bool(common), [("slope", condition[1] if condition else slope)], [("y", value)]
        if self.keeps:
            self.programs = {"value": self._compiled(lib, [*lines[0], *lines[1], *lines[2]])}
            return
        self.programs = {"value": self._compiled(lib, lines[2]), "slope_of": self._compiled(lib, lines[1])}
        if len(re.findall(r"\bx\b", value)) == value.count("-x"):  # a function of -x: -(x + shift) in one call
            value = value.replace("-x", "(minus_shift - x)")
            self.programs["negated"] = self._compiled(lib, [("y", value)], "minus_shift")

    def numbers(self, f: Any, filled: Callable[..., Array], rows: int, n: int) -> dict[Any, Array]:
        """Return arrays for f's settings, by name, and for the constants, by value: 0 as a matrix, others without axes.

        NumPy compares with a matrix of zeros, and takes the maximum with one, at several times the speed.
        """
        values: dict[Any, float] = {key: getattr(f, key) for key in self.settings}
        values |= {constant: constant for program in self.programs.values() for constant in program.constants}
        return {key: filled(value, () if key != 0.0 else (rows, n)) for key, value in values.items()}

    def spares(self) -> set[str]:
        """Return the names of the arrays that the programs take beside y and the settings."""
        return {key for program in self.programs.values() for key in program.names} - {"y", *self.settings}

    def bound(self, arrays: dict[Any, Array]) -> dict[str, Callable[..., None]]:
        """Return the programs, by name, with these arrays as their arguments."""
        return {
            name: functools.partial(made, *[arrays[key] for key in (*names, *constants)])
            for name, (made, names, constants) in self.programs.items()
        }

    def _compiled(self, lib: Any, lines: list[tuple[str, str]], *last: str) -> Compiled:
        places = {name: name for name, _ in lines}
        program = Program(lines, places, {"x": "y"})
        names = list(dict.fromkeys(["y", *places, *self.settings]))
        return Compiled(program.function(lib, *names, last=last), [*names, *program.spare], [*program.constants])


def first_rows(numbers: dict[Any, Array], count: int) -> dict[Any, Array]:
    """Return `numbers` with no more than `count` rows of each matrix."""
    return {key: a[:count] if a.ndim else a for key, a in numbers.items()}


@functools.cache
def function(lib: Any, name: str) -> Function:
    """Return the function of this name, made only once."""
    return Function(lib, name)


class RowsStage(Stage):
    """The base class of stages in calls that end in a pointwise function f, with arrays of as many rows as y."""

    f: Layer | None
    y: Array
    value: Callable[[], None]
    slope_of: Callable[[], None]
    negated: Callable[[Array], None] | None = None
    sums: Callable[..., Array]
    row_dot: Callable[..., Array]
    ones: Array
    slope: Array

    def bind_rows(self, h: int, n: int, **arrays: Array) -> None:
        """Set the arrays that f needs beside the given ones, which are y and others with a row for each feature."""
        family, name = self.site.family, pointwise(self.f)
        self.lib, self.integers = family.lib, family.integers.get(arrays["y"].itemsize)
        shared = family.threaded and h * n > threads.LARGE
        self.block = max(1, threads.BLOCK // n) if shared else h  # rows at a time
        self.parts: dict[int, Self] = {}
        self.ones = self.shared.filled(1.0, (n,))
        self.sums, self.row_dot = family.over_batch(n)
        self.function = None if self.f is None else function(family.lib, str(name))
        self.arrays, self.numbers = arrays, dict[Any, Array]()
        if self.function is not None:
            self.numbers = self.function.numbers(self.f, self.shared.filled, h if h * n <= SMALL else 1, n)
            for key in self.function.spares():
                flags = key.startswith("mask") or (key == "slope" and self.function.masks)
                place = "mask" if key == "slope" and flags else key
                self.arrays[key] = self.work(place, (h, n), self.work.xp.bool if flags else None)
        self._connect()

    def _connect(self) -> None:
        vars(self).update(self.arrays)
        if self.function is not None:
            vars(self).update(self.function.bound(self.arrays | self.numbers))

    def part(self, rows: slice) -> Self:
        """Return the stage for these rows alone."""
        if rows.start not in self.parts:
            part = self.parts[rows.start] = copy.copy(self)
            part.arrays = {name: a[rows] for name, a in self.arrays.items()}
            part.parts = {}
            part.numbers = first_rows(self.numbers, rows.stop - rows.start)
            part._connect()
        return self.parts[rows.start]

    def by_rows(self, method: Callable[..., None]) -> Callable[..., None]:
        """Return a method of a stage and arrays that takes much data in blocks, which fit the cache, on all cores."""
        h, block = self.y.shape[0], self.block

        def in_blocks(stage: RowsStage, *arrays: Array | None) -> None:
            def work(rows: slice) -> None:
                method(stage.part(rows), *[a if a is None else a[rows] for a in arrays])

            threads.in_blocks(work, h, block)

        return in_blocks if block < h else method

    def apply(self, shift: Array | None) -> None:
        """y ← f(y + shift) for a column `shift`, or f(y) for None"""
        if shift is not None:
            if self.negated is not None:
                self.negated(-shift)
                return
            y = self.y
            y += shift
        if self.function is not None:
            self.value()

    def times_slope(self, dy: Array) -> None:
        """dy ← dy f'"""
        if self.function is None:
            return
        if self.function.masks:  # dy or 0, even where dy is infinite: its bits by 1 or 0, 10 times as fast as `where`
            dy = dy.view(self.integers)
        elif not self.function.keeps:
            self.slope_of()
        self.lib.multiply(dy, self.slope, out=dy)
