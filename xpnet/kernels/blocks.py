"""The stages about the branches of a container: chains that are each given x, and whose outputs it merges.

In the list of stages, for two branches: a `Fork`, the first one's stages, a `Turn`, the second one's, a `Join`.

    forward:   the Fork hands on x, the Turn keeps the first output and hands on x again, the Join merges both
    backward:  the Join keeps a copy of the first branch's part of dy and hands on the second's, the Turn keeps the
               second's dx and hands on that copy, the Fork adds what the Turn kept to the first's dx

`Residual` has two branches, the first without layers.
"""

import itertools
import math
from collections.abc import Sequence
from typing import Any

from ..backends import Array
from ..layers.base import Layer
from .stages import Part, Site, Stage, in_memory_order, reversed_images


class Block:
    """What the stages of one container have in common."""

    fork: Any  # the stage that begins it, bound to arrays once there are some
    turns: list[Any]  # and those between its branches

    def __init__(self, layer: Layer, place: str):
        self.layer: Any = layer
        self.place = place  # the name of its memory, of what other containers beside it may keep meanwhile


class Mark(Stage):
    """The base of them. Among the parts, one has its class and block in place of a layer."""

    def __init__(self, site: Site, before: Stage | None, block: Block, axes: int):
        super().__init__(site, before)
        self.block, self.axes = block, axes
        self.images = before is not None and before.images

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        mark = parts[0].layer if parts else None
        if not isinstance(mark, tuple) or (before and before.bias):
            return None
        kind, block = mark
        stage: Stage = kind(site, before, block, parts[0].axes)
        return stage

    @property
    def features(self) -> int | None:  # type: ignore[override]
        """Of x, which the next stage is given, too."""
        return None if self.after is None else self.after.features

    def make_y(self, shape: tuple[int, ...]) -> None:
        """Have a place of its own for y."""
        if len(shape) == 2:
            self.output(*shape)
        elif self.images:  # which may become rows of features
            *sizes, n = shape
            self.y = reversed_images(self.output(math.prod(sizes), n).reshape((*sizes[::-1], n)))
        else:
            self.y = in_memory_order(self.work, "y", shape, images=False)


class Fork(Mark):
    """Hands on x if it is a stage's y, else a copy."""

    dx: Array  # what the branches but the first give

    def __init__(self, site: Site, before: Stage | None, block: Block, axes: int):
        super().__init__(site, before, block, axes)
        self.in_place, block.fork = before is not None and not before.foreign, self

    def bind(self, x: Array, before: Stage | None) -> None:
        self.block.fork, self.block.turns = self, []
        if before is None:
            self.make_y(tuple(x.shape))
        else:
            self.y, self.y_and_ones = x, before.y_and_ones

    def forward(self, x: Array, params: Any) -> Array:
        if not self.in_place:
            self.y[...] = x
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        dy += self.dx
        return dy


class Turn(Mark):
    """Between two branches: keeps the first one's y, and the dx of those behind."""

    in_place = keeps = True

    def __init__(self, site: Site, before: Stage, block: Block, axes: int):
        super().__init__(site, before, block, axes)
        self.of_images, self.images, self.before = self.images, block.fork.images, block.fork
        self.direct = before is block.fork  # nothing is computed before the Fork takes the dx

    def bind(self, x: Array, before: Stage | None) -> None:
        block = self.block
        self.fork, self.turns = block.fork, block.turns
        self.y, self.y_and_ones = self.fork.y, self.fork.y_and_ones
        self.dy = in_memory_order(self.shared, f"dy{len(self.turns)}{block.place}", tuple(x.shape), self.of_images)
        self.dx = in_memory_order(self.shared, f"dx{block.place}", tuple(self.y.shape), self.images)
        self.turns.append(self)

    def forward(self, x: Array, params: Any) -> Array:
        self.cache = x
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        if self.turns[-1] is not self:
            self.dx += dy
        elif not self.direct:
            self.dx[...] = dy
        self.fork.dx = dy if self.direct and len(self.turns) == 1 else self.dx
        return self.dy


class Join(Mark):
    """Adds up the branches' outputs, in the last one's place where that is free, or puts them side by side."""

    features = None
    y_read_once = True

    def __init__(self, site: Site, before: Stage, block: Block, axes: int):
        super().__init__(site, before, block, axes)
        self.adds = block.layer.merge == "add"
        self.in_place = self.adds and before.y_read_once

    def bind(self, x: Array, before: Stage | None) -> None:
        layer, self.turns = self.block.layer, self.block.turns
        shapes = [tuple(a.shape) for a in (*[turn.cache for turn in self.turns], x)]
        shape = layer._merged([shape[::-1] for shape in shapes])[::-1]  # which refuses those that do not fit
        if self.in_place and before:
            self.y, self.y_and_ones = x, before.y_and_ones
        else:
            self.make_y(shape)
        self.places: list[Any] = [...] * len(shapes)  # of each branch in y
        if not self.adds:
            axis = x.ndim - 1 - layer.axis % x.ndim
            ends = [0, *itertools.accumulate(shape[axis] for shape in shapes)]
            self.places = [(slice(None),) * axis + (slice(*pair),) for pair in itertools.pairwise(ends)]
            self.dy = in_memory_order(self.shared, f"dy{len(self.turns)}{self.block.place}", shapes[-1], self.images)

    def forward(self, x: Array, params: Any) -> Array:
        if not self.adds:
            for place, a in zip(self.places, (*[turn.cache for turn in self.turns], x), strict=True):
                self.y[place] = a
            return self.y
        total = x
        for turn in self.turns:
            total = self.work.xp.add(total, turn.cache, out=self.y)
        return total

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        for turn, place in zip(self.turns, self.places, strict=False):
            turn.dy[...] = dy[place]
        if self.adds:
            return dy
        self.dy[...] = dy[self.places[-1]]
        return self.dy
