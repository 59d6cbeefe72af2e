"""The pointwise functions of the table within loops that Numba compiles, and stages that go through rows in them.

A row, a feature's batch, is gone through while it is in cache. Arrays that are changed in place are one argument, not
two of the same memory, which no compiler may vectorise. Sums begin at `wide`, the zero of float64, and are taken in it;
where it is None, in the numbers' own dtype.
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

# ReLU's y is -0.0 where x is below 0: its sign tells backward which, in x's place
RELU = POINTWISE["ReLU"]._replace(value="where(x < 0, -0.0, x + 0)", slope="where(is_negative(y), 0, 1)")
FORMULAS = POINTWISE | {"ReLU": RELU}
# the functions that stand in the loops; others are NumPy's to call
INSIDE = {"exp", "normal", "density", "where", "is_negative"}
Loops = dict[str, Any]


class Function:
    """A pointwise function of the table and the loops that have it in them: `loops` makes them of its formulas."""

    def __init__(self, name: str, loops: Callable[..., Loops]):
        row = FORMULAS[name]
        value, slope = row.formulas
        self.settings = row.settings
        self.inside = functions_in(value) <= INSIDE  # else the loops leave x, and NumPy makes y of it
        formulas = value if self.inside else "x", times(slope)
        scalars = scalar(formulas[0], "x", self.settings), scalar(formulas[1], "dy, x, y", self.settings)
        vars(self).update(loops(*scalars, compiling({"reassoc", "contract"}, formulas)))


@functools.cache
def function(name: str, loops: Callable[..., Loops]) -> Any:
    """The function of this name in these loops, compiled once."""
    return Function(name, loops)


def reads_x(f: Layer | None) -> bool:
    """Whether the slope is a formula of x, so that y has to take another place."""
    return "x" in names_in(FORMULAS[str(pointwise(f))].formulas[1])


def scalar(formula: str, arguments: str, settings: list[str]) -> Any:
    """A formula as a function of numbers of one type and of the settings, a tuple, which becomes part of the loops."""
    scope = {"exp": exp, "is_negative": is_negative, "expm1": np.expm1, "tanh": np.tanh}
    scope |= {"normal": normal, "density": density}
    source = [f"def f({arguments}, s):", f"    T = type({arguments.partition(',')[0]})"]
    source += [f"    {name} = s[{i}]" for i, name in enumerate(settings)]
    exec("\n".join([*source, f"    return {python(formula)}"]), scope)
    return njit(inline="always")(scope["f"])


class LoopStage(Stage):
    """The base of stages in loops that end in a pointwise function f."""

    f: Layer | None
    loops: Callable[..., Loops]  # that f is put into

    def bind_rows(self, y: Array) -> None:
        """Find what f writes to beside y."""
        h, n = y.shape
        self.function = function(str(pointwise(self.f)), self.loops)
        number = y.dtype.type
        self.settings = tuple(number(getattr(self.f, name)) for name in self.function.settings)
        self.y, self.wide = y, 0.0 if n > ops.LONG else None
        self.forward_rows, self.backward_rows = (
            self.by_rows(loop, h, n) for loop in (self.function.forward, self.function.backward)
        )
        self.finish: Callable[[], None] | None = None  # makes y of the x that the loops leave in its place
        if not self.function.inside:
            calls = functions.function(np, str(pointwise(self.f)))
            made = {"y": y} | dict(zip(calls.settings, self.settings, strict=True))
            program, names, constants = calls.programs["value"]
            flags = {name: np.bool if name.startswith("mask") else None for name in names}
            made |= {name: self.work(name, (h, n), flags[name]) for name in names if name not in made}
            arguments = *[made[name] for name in names], *constants
            self.finish = functools.partial(self.by_rows(program, h, n), *arguments)

    def by_rows(self, loop: Callable[..., Any], h: int, n: int) -> Callable[..., Any]:
        """A loop over all rows; of much data block by block, on several cores."""
        if h * n <= threads.LARGE:
            return loop

        def in_blocks(*arrays: Any) -> None:
            def work(rows: slice) -> None:
                loop(*[a[rows] if isinstance(a, np.ndarray) else a for a in arrays])

            threads.in_blocks(work, h, max(1, threads.BLOCK // n))

        return in_blocks
