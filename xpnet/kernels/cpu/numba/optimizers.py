"""The optimizers' rules as loops over any stretch of the vectors, the slots in place."""

import functools
from typing import Any

import numpy as np

from ....backends import Array
from ....optimizers import Optimizer, Slots
from ...formulas import python
from ...table import SPARED, lines_of, numbers_in, numbers_of
from .. import optimizers, threads
from .compiling import compiled, compiling

CLIP = "where(g < -limit, -limit, where(g >= limit, limit, g)) + 0 * g"  # NaN where g is not finite


@compiled
def plus(total, w, slot):
    """total + w · slot, a sum in any order: in the rules that of products counts"""
    return total + w * slot


@functools.cache
def rule(kind: type[Optimizer], decays: bool, spares: bool, clips: bool) -> tuple[Any, list[str]]:
    """An optimizer's lines as a loop, and the names of the numbers it takes.

    Its arguments are w, what is spared if it `spares` some, the slots, which become the next ones, g, which becomes the
    next w, and the numbers. The sum that it returns is finite only if the next w and slots are.
    """
    lines, slots = lines_of(kind, decays, spares), kind.memory
    given = [SPARED] * spares
    if clips:
        lines = (("g", CLIP), *lines)
    numbers = numbers_in(lines, slots)
    body = [f"{name} = {python(formula)}" for name, formula in lines]
    source = [
        f"def rule({', '.join(f'vector_{name}' for name in ('w', *given, *slots, 'g'))}, numbers):",
        "    T = vector_w.dtype.type",
        *[f"    {name} = T(numbers[{i}])" for i, name in enumerate(numbers)],
        "    total = T(0.0)",
        "    for i in range(vector_w.size):",
        *[f"        {name} = vector_{name}[i]" for name in ("w", *given, *slots, "g")],
        *[f"        {line}" for line in body],
        *[f"        vector_{name}[i] = {name}" for name in slots],
        "        vector_g[i] = w",
        f"        total = plus(total, w, {slots[-1]})",
        "    return total",
    ]
    # what is in scope is kept on disk with the code; Python's own builtins cannot be where a notebook has changed them
    scope: dict[str, Any] = {"sqrt": np.sqrt, "plus": plus, "__builtins__": {}}
    exec(compile("\n".join(source), __file__, "exec"), scope)
    return compiling({"contract"}, lines)(scope["rule"]), numbers


class Update(optimizers.Update):
    """The rule in one loop, which limits the gradient to `clip_value` and checks the results on its way."""

    def advance(self, w: Array, slots: Slots, new: Array, new_slots: Slots) -> None:
        optimizer, limit, given = self.optimizer, self.optimizer.clip_value, self.given(slots)
        kind, memory = type(optimizer), type(optimizer).memory
        numbers = numbers_of(optimizer, slots["step"])
        if optimizer.clip_norm is not None:
            np.copyto(new, optimizer.limited(new))
            limit = None
        elif limit is not None:
            numbers["limit"] = limit
        if new_slots is not slots:
            for key in memory:
                np.copyto(new_slots[key], slots[key])
        arrays = [w, *given, *[new_slots[key] for key in memory], new]
        loop, names = rule(kind, optimizer.weight_decay != 0.0, bool(given), limit is not None)
        values = np.array([numbers[name] for name in names], dtype=w.dtype)
        if not threads.pays(w.size):
            total = loop(*arrays, values)
        else:
            blocks = threads.in_blocks(lambda part: loop(*[a[part] for a in arrays], values), w.size, threads.BLOCK)
            total = sum(blocks)
        self.checked = new, float(total)
