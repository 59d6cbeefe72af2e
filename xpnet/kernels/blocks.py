"""Stages for the branches of a container: chains that all take x, and whose outputs are merged.

For two branches the stages are: a `Fork`, those of the first branch, a `Turn`, those of the second, a `Join`.

    forward:   the Fork passes on x; the Turn keeps the first output and passes on x again; the Join merges both
    backward:  the Join keeps a copy of the first branch's part of dy and passes back the second's; the Turn keeps the
               second's dx and passes back that copy; the Fork adds the dx that the Turn kept to the first's

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
    """The data shared by the stages of one container."""

    fork: Any  # its Fork, bound to arrays once there are some
    turns: list[Any]  # its Turns

    def __init__(self, layer: Layer, place: str):
        self.layer: Any = layer
        self.place = place  # in the names of its buffers, to keep them apart from those of other containers


class Mark(Stage):
    """The base class of these stages. In the list of parts, (its class, its block) stands in place of a layer."""

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

    def features_after(self) -> int | None:
        """Return the features of y, if the stage that gets it knows them."""
        if isinstance(self.after, Turn):  # which gets y, and passes on the Fork's
            return self.after.features_after()
        return self.after.features if self.after else None

    def make_y(self, shape: tuple[int, ...]) -> None:
        """Allocate a buffer for y."""
        if len(shape) == 2:
            self.output(*shape)
        elif self.images:  # a later stage may flatten them to rows of features
            *sizes, n = shape
            self.y = reversed_images(self.output(math.prod(sizes), n).reshape((*sizes[::-1], n)))
        else:
            self.y = in_memory_order(self.work, "y", shape, images=False)


class Fork(Mark):
    """Passes on x if it is the y of a stage, else a copy."""

    dx: Array  # of all branches but the first

    def __init__(self, site: Site, before: Stage | None, block: Block, axes: int):
        super().__init__(site, before, block, axes)
        self.in_place, block.fork = before is not None and not before.foreign, self

    @property
    def features(self) -> int | None:  # type: ignore[override]
        """The features of x, which the next stage also gets."""
        return self.features_after()

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
    """Stands between two branches: keeps the y of the one before, and the dx of those after."""

    in_place = keeps = True

    def __init__(self, site: Site, before: Stage, block: Block, axes: int):
        super().__init__(site, before, block, axes)
        self.of_images, self.images, self.before = self.images, block.fork.images, block.fork
        self.direct = before is block.fork  # the branch before has no stages

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
    """Adds the branches' outputs, in the buffer of the last one if it is free, or concatenates them."""

    y_read_once = True

    def __init__(self, site: Site, before: Stage, block: Block, axes: int):
        super().__init__(site, before, block, axes)
        self.adds = block.layer.merge == "add"
        self.in_place = self.adds and before.y_read_once

    def bind(self, x: Array, before: Stage | None) -> None:
        layer, self.turns = self.block.layer, self.block.turns
        shapes = [tuple(a.shape) for a in (*[turn.cache for turn in self.turns], x)]
        shape = layer._merged([shape[::-1] for shape in shapes])[::-1]  # raises for shapes that do not fit
        if self.in_place and before:
            self.y, self.y_and_ones = x, before.y_and_ones
        else:
            self.make_y(shape)
        self.places: list[Any] = [...] * len(shapes)  # the index of each branch's output in y
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
