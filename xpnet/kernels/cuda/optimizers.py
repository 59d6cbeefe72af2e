"""The optimizers, in CUDA."""

import math

from ...backends import Array
from ...optimizers import Nesterov, Slots
from ..cpu import optimizers
from ..table import lines_of, numbers_in, numbers_of
from .launching import blocks, over_vector
from .source import rule_name


class Update(optimizers.Update):
    """An update in one launch for the rule, and one for the gradient's norm if there is a `clip_norm`."""

    def look_ahead(self, w: Array, slots: Slots, point: Array) -> None:
        if type(self.optimizer) is not Nesterov:
            super().look_ahead(w, slots, point)
            return
        over_vector("look_ahead", w, w, slots["velocity"], float(self.optimizer.momentum), w.shape[0], point)

    def advance(self, w: Array, slots: Slots, new: Array, new_slots: Slots) -> None:
        optimizer, kind, size, norm = self.optimizer, type(self.optimizer), w.shape[0], None
        decays, clip, given = bool(optimizer.weight_decay), optimizer.clip_value, self.given(slots)
        numbers, lines = numbers_of(optimizer, slots["step"]), lines_of(kind, decays, bool(given))
        limit = math.inf if clip is None else float(clip)
        if optimizer.clip_norm is not None:
            empty = self.family.cupy.empty
            norm, partial = empty(2, dtype=w.dtype), empty(2 * blocks(size, 256), dtype=w.dtype)
            over_vector("gradient_norm", w, new, limit, size, partial, self.family.count, norm, most=256)
        values = [float(numbers[name]) for name in numbers_in(lines, kind.memory)]
        limits = limit, norm, float(optimizer.clip_norm or 0.0)
        name = rule_name(kind, decays, bool(given))
        before, after = ([each[key] for key in kind.memory] for each in (slots, new_slots))
        over_vector(name, w, w, new, *given, *before, size, *limits, *values, *after, new)
