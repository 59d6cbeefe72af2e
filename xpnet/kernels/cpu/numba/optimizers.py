"""The optimizers' rules as loops over the vectors or parts of them; slots are updated in place."""

import functools
from typing import Any

import numpy as np

from ....backends import Array
from ....optimizers import Optimizer, Slots
from ...formulas import python
from ...table import SPARED, lines_of, numbers_in, numbers_of
from .. import optimizers, threads
from .compiling import compiled, compiling

CLIP = "where(g < -limit, -limit, where(g >= limit, limit, g)) + 0 * g"  # NaN if g is not finite


@compiled
def plus(total, w, slot):
    """Return total + w · slot; compiled apart, as this sum may be reordered but the rules' operations may not."""
    return total + w * slot


@functools.cache
def rule(kind: type[Optimizer], decays: bool, spares: bool, clips: bool) -> tuple[Any, list[str]]:
    """Return an optimizer's rule as a loop, and the names of the numbers that it takes.

    The loop's arguments are w, the mask of spared parameters if it `spares` some, the slots, updated in place, g, which
    is replaced by the next w, and the numbers. It returns a sum that is finite only if these results are.
    """
    lines, slots = lines_of(kind, decays, spares), kind.memory
    spared = [SPARED] * spares
    if clips:
        lines = (("g", CLIP), *lines)
    numbers = numbers_in(lines, slots)
    body = [f"{name} = {python(formula)}" for name, formula in lines]
    source = [
        f"def rule({', '.join(f'vector_{name}' for name in ('w', *spared, *slots, 'g'))}, numbers):",
        "    T = vector_w.dtype.type",
        *[f"    {name} = T(numbers[{i}])" for i, name in enumerate(numbers)],
        "    total = T(0.0)",
        "    for i in range(vector_w.size):",
        *[f"        {name} = vector_{name}[i]" for name in ("w", *spared, *slots, "g")],
        *[f"        {line}" for line in body],
        *[f"        vector_{name}[i] = {name}" for name in slots],
        "        vector_g[i] = w",
        f"        total = plus(total, w, {slots[-1]})",
        "    return total",
    ]
    # the scope is stored on disk with the code; the builtins cannot be, if a notebook has changed them
    scope: dict[str, Any] = {"sqrt": np.sqrt, "plus": plus, "__builtins__": {}}
    exec(compile("\n".join(source), __file__, "exec"), scope)
    return compiling({"contract"}, lines)(scope["rule"]), numbers


class Update(optimizers.Update):
    """The rule in one loop, which also clips the gradient to `clip_value` and sums up a check of the results."""

    def advance(self, w: Array, slots: Slots, new: Array, new_slots: Slots) -> None:
        optimizer, limit, spared = self.optimizer, self.optimizer.clip_value, self.given(slots)
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
        arrays = [w, *spared, *[new_slots[key] for key in memory], new]
        loop, names = rule(kind, optimizer.weight_decay != 0.0, bool(spared), limit is not None)
        values = np.array([numbers[name] for name in names], dtype=w.dtype)
        if not threads.pays(w.size):
            total = loop(*arrays, values)
        else:
            blocks = threads.in_blocks(lambda part: loop(*[a[part] for a in arrays], values), w.size, threads.BLOCK)
            total = sum(blocks)
        self.checked = new, float(total)
