"""Dropout, in CUDA."""

import functools
import importlib
import math
from collections.abc import Sequence
from typing import Any

from ...backends import Array
from ...layers import dropout
from .. import stages
from ..stages import Part, Site, Stage, in_memory_order
from .launching import in_rows, laid_out, over_vector


class Dropout(stages.Dropout):
    """The mask is not kept: backward draws the same one again."""

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> "Stage | None":
        fits = parts and type(parts[0].layer) is dropout.Dropout and parts[0].axes <= 4
        return cls(site, before, parts[0]) if fits and not (before and before.bias) else None

    def __init__(self, site: Site, before: Stage | None, part: Part):
        super().__init__(site, before, part)
        if before is None or before.foreign:
            self.images = part.axes == 4

    def bind(self, x: Array, before: Any) -> None:
        if self.axes == 2 or self.images:
            self.given = laid_out(self.output(math.prod(x.shape[:-1]), x.shape[-1]), x.shape)
        else:
            self.given = in_memory_order(self.work, "y", tuple(x.shape), images=False)

    def forward(self, x: Array, params: Any) -> Array:
        self.key = self.layer.state["key"]
        self.next_key = mask(x, self.key, self.layer.rate, self.given, counts=True)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        mask(dy, self.key, self.layer.rate, dy)
        return dy


def mask(x: Array, key: Array, rate: float, y: Array, counts: bool = False) -> Any:
    """y = x m, in x's place perhaps; returns the next key if it `counts`. They have their axes the other way round."""
    next_key = importlib.import_module("cupy").empty_like(key) if counts else None
    if x.strides != y.strides:
        y[...] = x
        x = y
    numbers = round(rate * 2**24), float(1.0 / (1.0 - rate)), y.size, *places(y.shape, y.strides)
    over_vector("dropout", y, x, in_rows(key, key.dtype), *numbers, y, next_key)
    return next_key


@functools.cache
def places(shape: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, ...]:
    """The sizes of the last three of four axes as they lie in memory, and what a step along each of four adds to a
    number's place in C order.
    """
    steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
    order = sorted(range(len(shape)), key=lambda axis: -strides[axis])
    if order == sorted(order):  # as one axis
        return 1, 1, math.prod(shape), 0, 0, 0, 1
    sizes, steps = [shape[axis] for axis in order], [steps[axis] for axis in order]
    more = 4 - len(sizes)
    return *([1] * more + sizes)[1:], *[0] * more, *steps
