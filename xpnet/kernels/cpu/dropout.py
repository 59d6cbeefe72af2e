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

BLOCK = 2**15  # indices that are hashed at a time, in cache


class Dropout(stages.Dropout):
    """Dropout with a mask of bits that are drawn as by `ops.random_keep`, but in place."""

    y_read_once = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) is dropout.Dropout
        return cls(site, before, parts[0]) if fits and not (before and before.bias) else None

    def bind(self, x: Array, before: Stage | None) -> None:
        shape, size, shared = tuple(x.shape), math.prod(x.shape), self.shared
        self.threshold, self.scale = np.uint32(round(self.layer.rate * 2**24)), 1.0 / (1.0 - self.layer.rate)
        if len(shape) == 2 or self.images:  # a later stage may flatten images to rows of features
            y = self.output(math.prod(shape[:-1]), shape[-1])
            self.y = in_memory_order(lambda _, like: y.reshape(like), "", shape, self.images)
        else:
            self.y = in_memory_order(self.work, "y", shape, images=False)
        mask = self.work("mask", (size,))
        first, rows = span(shape[-1])
        name = f"indices {shape} {self.images} {first} {rows}"
        indices = shared(name, (size,), np.uint32)  # of the entries in the batch, in C order

        def shaped(a: np.ndarray) -> Array:
            return in_memory_order(lambda _, like: a.reshape(like), "", shape, self.images)

        self.mask, shaped_indices = shaped(mask), shaped(indices)
        columns = rows * np.arange(size // shape[-1], dtype=np.uint32).reshape((*shape[:-1], 1))
        shaped_indices[...] = columns + np.arange(first, first + shape[-1], dtype=np.uint32)
        self.bits, self.spare = (shared(name, (BLOCK,), np.uint32) for name in ("bits", "spare bits"))
        self.keep = shared("keep", (BLOCK,), np.bool)
        self.blocks = [(indices[i : i + BLOCK], mask[i : i + BLOCK]) for i in range(0, size, BLOCK)]

    def forward(self, x: Array, params: Any) -> Array:
        key = self.layer.state["key"]
        self.next_key = np.concatenate([key[:1], key[1:] + 1])
        first, second = key[:1].view(np.uint32), key[1:].astype(np.uint32)
        scramble(second, np.empty_like(second))
        for indices, mask in self.blocks:
            bits, spare, keep = (a[: indices.size] for a in (self.bits, self.spare, self.keep))
            np.bitwise_xor(indices, first, out=bits)
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
    """Apply the hash lowbias32 to x in place."""
    for shift, factor in (16, 0x7FEB352D), (15, 0x846CA68B), (16, 1):
        np.right_shift(x, np.uint32(shift), out=spare)
        x ^= spare
        if factor > 1:
            x *= np.uint32(factor)
