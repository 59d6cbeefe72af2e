"""The optimizers' rules, in calls."""

import functools
from typing import Any

from ...backends import Array
from ...optimizers import Optimizer, Slots
from ..formulas import Program
from ..reference import updated
from ..table import RULES, SPARED, lines_of, numbers_in, numbers_of
from . import threads
from .functions import Compiled


@functools.cache
def rule(lib: Any, kind: type[Optimizer], decays: bool, spares: bool) -> Compiled:
    """An optimizer's lines as a function of g, which becomes the next w, of w, what is spared if it `spares` some, the
    slots, the next ones, numbers.

    `names` are those of the numbers, then of spare arrays.
    """
    lines, slots = lines_of(kind, decays, spares), kind.memory
    new = {name: f"new_{name}" for name in slots}
    program = Program(lines, {"g": "g", "w": "g", **new}, shared=[(place, name) for name, place in new.items()])
    arrays = ["g", "w", *[SPARED] * spares, *slots, *new.values()]
    numbers = numbers_in(lines, slots)
    return Compiled(program.function(lib, *arrays, *numbers), [*numbers, *program.spare], [])


class Update:
    """An optimizer's step on the whole vector of parameters."""

    checked: tuple[Any, float] = (None, 0.0)  # parameters, and a sum that is finite only if they and the slots are

    def __init__(self, family: Any, optimizer: Optimizer):
        self.family, self.optimizer = family, optimizer

    def look_ahead(self, w: Array, slots: Slots, point: Array) -> None:
        """The optimizer's point for the gradient, into `point`."""
        point[...] = self.optimizer.lookahead(w, slots)

    def __call__(self, w: Array, slots: Slots, new: Array, new_slots: Slots) -> Slots:
        """From w to `new`, which holds the gradient; the slots to `new_slots`, perhaps `slots`."""
        if type(self.optimizer) not in RULES:
            copied = self.family.xp.asarray(new, copy=True)  # which it may keep
            new[...], slots = updated(self.optimizer, w, copied, slots)
            return slots
        self.advance(w, slots, new, new_slots)
        return {"step": slots["step"] + 1} | {key: new_slots[key] for key in self.optimizer.memory}

    def given(self, slots: Slots) -> list[Array]:
        """Those of the slots that no step changes."""
        return [slots[SPARED]] if SPARED in self.optimizer.memory else []

    def advance(self, w: Array, slots: Slots, new: Array, new_slots: Slots) -> None:
        """By the table's rule, in the gradient's place: hardly a vector beside those that stay."""
        optimizer, lib, size = self.optimizer, self.family.lib, w.shape[0]
        kind, given = type(optimizer), self.given(slots)
        numbers = numbers_of(optimizer, slots["step"])
        program, names, _ = rule(lib, kind, optimizer.weight_decay != 0.0, bool(given))
        values, spare = [numbers[name] for name in names if name in numbers], [n for n in names if n not in numbers]
        g = optimizer.limited(new)
        if g is not new:
            new[...] = g
        arrays = [new, w, *given, *[each[key] for each in (slots, new_slots) for key in kind.memory]]
        length = threads.BLOCK if self.family.immediate else size  # blocks are for a processor's cache

        def work(block: slice) -> Any:
            parts = [a[block] for a in arrays] if size > length else arrays
            program(*parts, *values, *[lib.empty_like(parts[0]) for _ in spare])
            return self.family.scalar(lib.dot(parts[0], parts[-1]))  # slots that overflow leave w finite, no others do

        self.checked = new, sum(threads.in_blocks(work, size, length, shared=threads.pays(size)))
