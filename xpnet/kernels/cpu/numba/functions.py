"""The pointwise functions of the table within loops that Numba compiles, and stages of such loops over rows.

A row, the batch of a feature, stays in cache during its loops. An array that is changed in place is a single argument,
since a compiler cannot vectorize a loop over two that overlap. Sums start from `wide`: from 0.0 they are in float64,
from None in the arrays' dtype.
"""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from .... import ops
from ....backends import Array
from ....layers.base import Layer
from ...formulas import functions_in, names_in, python, times
from ...stages import Stage
from ...table import POINTWISE, pointwise
from .. import functions, threads
from .compiling import compiling, density, exp, is_negative, normal

# ReLU's y is -0.0 where x is below 0, so that backward needs only the sign of y
RELU = POINTWISE["ReLU"]._replace(value="where(x < 0, -0.0, x + 0)", slope="where(is_negative(y), 0, 1)")
FORMULAS = POINTWISE | {"ReLU": RELU}
# the functions that loops can compute; others are left to NumPy's calls
INSIDE = {"exp", "normal", "density", "where", "is_negative"}
Loops = dict[str, Any]


class Function:
    """A pointwise function of the table, and the loops that `loops` makes from its value and slope."""

    def __init__(self, name: str, loops: Callable[..., Loops]):
        row = FORMULAS[name]
        value, slope = row.formulas
        self.settings = row.settings
        self.inside = functions_in(value) <= INSIDE  # else the loops leave x in y, and NumPy computes f
        formulas = value if self.inside else "x", times(slope)
        scalars = scalar(formulas[0], "x", self.settings), scalar(formulas[1], "dy, x, y", self.settings)
        vars(self).update(loops(*scalars, compiling({"reassoc", "contract"}, formulas)))


@functools.cache
def function(name: str, loops: Callable[..., Loops]) -> Any:
    """Return the function of this name in these loops, made only once."""
    return Function(name, loops)


def reads_x(f: Layer | None) -> bool:
    """Whether the slope depends on x, so that y must not overwrite it."""
    return "x" in names_in(FORMULAS[str(pointwise(f))].formulas[1])


def scalar(formula: str, arguments: str, settings: list[str]) -> Any:
    """Return a formula as a function to inline into loops: of numbers of one type, and of a tuple of the settings."""
    scope = {"exp": exp, "is_negative": is_negative, "expm1": np.expm1, "tanh": np.tanh}
    scope |= {"normal": normal, "density": density}
    source = [f"def f({arguments}, s):", f"    T = type({arguments.partition(',')[0]})"]
    source += [f"    {name} = s[{i}]" for i, name in enumerate(settings)]
    exec("\n".join([*source, f"    return {python(formula)}"]), scope)
    return njit(inline="always")(scope["f"])


class LoopStage(Stage):
    """The base class of stages in loops that end in a pointwise function f."""

    f: Layer | None
    loops: Callable[..., Loops]  # that f is put into

    def bind_rows(self, y: Array) -> None:
        """Set the arrays that f needs beside y."""
        h, n = y.shape
        self.function = function(str(pointwise(self.f)), self.loops)
        number = y.dtype.type
        self.settings = tuple(number(getattr(self.f, name)) for name in self.function.settings)
        self.y, self.wide = y, 0.0 if n > ops.LONG else None
        self.forward_rows, self.backward_rows = (
            self.by_rows(loop, h, n) for loop in (self.function.forward, self.function.backward)
        )
        self.finish: Callable[[], None] | None = None  # computes f of the x that the loops leave in y
        if not self.function.inside:
            calls = functions.function(np, str(pointwise(self.f)))
            made = {"y": y} | dict(zip(calls.settings, self.settings, strict=True))
            program, names, constants = calls.programs["value"]
            flags = {name: np.bool if name.startswith("mask") else None for name in names}
            made |= {name: self.work(name, (h, n), flags[name]) for name in names if name not in made}
            arguments = *[made[name] for name in names], *constants
            self.finish = functools.partial(self.by_rows(program, h, n), *arguments)

    def by_rows(self, loop: Callable[..., Any], h: int, n: int) -> Callable[..., Any]:
        """Return a loop over all rows, which takes much data in blocks, on several cores."""
        if h * n <= threads.LARGE:
            return loop

        def in_blocks(*arrays: Any) -> None:
            def work(rows: slice) -> None:
                loop(*[a[rows] if isinstance(a, np.ndarray) else a for a in arrays])

            threads.in_blocks(work, h, max(1, threads.BLOCK // n))

        return in_blocks
