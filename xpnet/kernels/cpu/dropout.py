"""Dropout in NumPy's calls."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...backends import Array
from ...common.share import span
from ...layers import dropout
from .. import stages
from ..stages import Part, Site, Stage, in_memory_order

BLOCK = 2**15  # numbers to hash at a time, which stay in cache


class Dropout(stages.Dropout):
    """The mask is kept; its bits are drawn as `ops.random_keep` does, in place."""

    y_read_once = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) is dropout.Dropout and site.family.lib is np
        return cls(site, before, parts[0]) if fits and not (before and before.bias) else None

    def bind(self, x: Array, before: Stage | None) -> None:
        shape, size, room = tuple(x.shape), math.prod(x.shape), self.shared
        self.threshold, self.scale = np.uint32(round(self.layer.rate * 2**24)), 1.0 / (1.0 - self.layer.rate)
        if len(shape) == 2:
            self.output(*shape)
        else:
            self.y = in_memory_order(self.work, "y", shape, self.images)
        mask = self.work("mask", (size,))
        first, rows = span(shape[-1])
        name = f"numbers {shape} {self.images} {first} {rows}"
        numbers = room(name, (size,), np.uint32)  # of the places in C order

        def shaped(a: np.ndarray) -> Array:
            return in_memory_order(lambda _, like: a.reshape(like), "", shape, self.images)

        self.mask, places = shaped(mask), shaped(numbers)
        columns = rows * np.arange(size // shape[-1], dtype=np.uint32).reshape((*shape[:-1], 1))
        places[...] = columns + np.arange(first, first + shape[-1], dtype=np.uint32)
        self.bits, self.spare = (room(name, (BLOCK,), np.uint32) for name in ("bits", "spare bits"))
        self.keep = room("keep", (BLOCK,), np.bool)
        self.blocks = [(numbers[i : i + BLOCK], mask[i : i + BLOCK]) for i in range(0, size, BLOCK)]

    def forward(self, x: Array, params: Any) -> Array:
        key = self.layer.state["key"]
        self.next_key = np.concatenate([key[:1], key[1:] + 1])
        first, second = key[:1].view(np.uint32), key[1:].astype(np.uint32)
        scramble(second, np.empty_like(second))
        for numbers, mask in self.blocks:
            bits, spare, keep = (a[: numbers.size] for a in (self.bits, self.spare, self.keep))
            np.bitwise_xor(numbers, first, out=bits)
            scramble(bits, spare)
            bits ^= second
            scramble(bits, spare)
            bits &= np.uint32(0xFFFFFF)
            np.greater_equal(bits, self.threshold, out=keep)
            np.multiply(keep, self.scale, out=mask, casting="same_kind")
        return np.multiply(x, self.mask, out=self.y)

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        dy *= self.mask
        return dy


def scramble(x: np.ndarray, spare: np.ndarray) -> None:
    """lowbias32 of x, in place."""
    for shift, factor in (16, 0x7FEB352D), (15, 0x846CA68B), (16, 1):
        np.right_shift(x, np.uint32(shift), out=spare)
        x ^= spare
        if factor > 1:
            x *= np.uint32(factor)
