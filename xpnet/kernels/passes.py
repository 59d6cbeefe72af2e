"""The forward and backward passes of a network in stages: of a whole batch, or of stretches of its rows in threads."""

import contextlib
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from ..backends import Array
from ..common.share import Stretch, sharing
from .blocks import Mark
from .cpu import threads
from .stages import Entry, Exit, LayerStage, Meetings, Part, Site, Stage, Vector, check_fit, in_memory_order


class Plan(NamedTuple):
    """The stages bound to the arrays for one shape of x."""

    stages: list[Stage]
    stateful: list[Any]  # those of them that have running statistics
    keeping: list[Stage]  # and those whose caches hold more than arrays of theirs


class Passes:
    """The stages of a network, with the memory of `site`.

    Between them stands one wherever arrays of a layer's own code come in or go out.
    """

    alone = contextlib.nullcontext()  # the context of a step: BLAS keeps its threads

    def __init__(self, site: Site, parts: list[Part], end: str):
        """`end` is who gives the derivative with respect to the outputs, in words."""
        self.site = site
        turns = itertools.cycle((0, 1))  # a layer may hand on the very dy that it was given, from one exit to the next
        self.stages = self._stages(parts, turns)
        if not (last := self.stages[-1]).foreign:
            self.stages.append(Exit(site, last, end, f"dy{next(turns)}"))
        self.end = len(self.stages) - (not last.foreign)
        first = next(i for i, stage in enumerate(self.stages) if stage.names)
        self.stages[first].lowest = True
        self.backwards = slice(self.end - 1, first - 1 if first else None, -1)  # those that a gradient goes through
        self.plans: dict[tuple[tuple[int, ...], tuple[int, ...]], Plan] = {}
        self.plan: Plan | None = None
        self.shape: tuple[int, ...] = ()  # of x, that the plan is for
        self.rows: tuple[int, ...] = ()  # the number of the first row in the batch, and how many that has; () of all
        self.largest = 0

    def _stages(self, parts: list[Part], turns: Iterator[int]) -> list[Stage]:
        stages: list[Stage] = []
        before: Stage | None = None
        while parts or (before and before.bias):
            taken = (kind.take(self.site, before, parts) for kind in (*self.site.family.stages, Mark))
            stage = next(filter(None, taken), None) or (LayerStage(self.site, before, parts[0]) if parts else None)
            if stage is None:  # what was left, a bias, has become the product's
                break
            if before and stage.foreign and not before.foreign:
                before.keep_y()
                stages.append(Exit(self.site, before, f"{stage}: backward", f"dy{next(turns)}"))
            elif before and before.foreign and not stage.foreign:
                stages.append(Entry(self.site, before, stage))
            stages.append(stage)
            if before:
                before.after = stage
            before, parts = stage, parts[stage.layers :]
        return stages

    @property
    def splits(self) -> bool:
        """Whether stretches of a batch may go through the stages one by one."""
        return all(not stage.foreign and (stage.rowwise or stage.numbers_rows or stage.meets) for stage in self.stages)

    @property
    def stateful(self) -> list[Any]:
        """The stages with running statistics that the last forward pass went through."""
        return self.plan.stateful if self.plan else []

    def forward(self, x: Array, at: Vector) -> Array:
        """The outputs (K, ..., N) for x (D, ..., N)."""
        if x.shape != self.shape:
            self._turn_to(x.shape, ())
        if self.plan is None:
            *_, (_, x) = self._through(x, at, meets=False)
            return x
        for stage, own in zip(self.plan.stages, at.views, strict=True):
            x = stage.forward(x, own)
        return x

    def forward_of_stretch(self, x: Array, at: Vector, rows: tuple[int, int]) -> Meetings:
        """`forward` of a stretch of a batch, with the number of its first row and how many the batch has."""
        if x.shape != self.shape or rows != self.rows:
            self._turn_to(x.shape, rows)
        return self._through(x, at, meets=True)

    def _turn_to(self, shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
        """Take up the plan for an x of this shape, and these rows of a batch, if there is one."""
        if (size := math.prod(shape)) > self.largest:  # all arrays are made anew, in more memory
            self.largest = size
            self.plans.clear()
        self.shape, self.rows, self.plan = shape, rows, self.plans.get((shape, rows))
        for stage in self.plan.stages if self.plan else ():
            stage.fill()

    def _through(self, a: Array, at: Vector, meets: bool) -> Meetings:
        """A forward pass, which makes the plan on its way if there is none."""
        stages = self.plan.stages if self.plan else []
        for i, own in enumerate(at.views):
            if not self.plan:
                before = stages[-1] if stages and not stages[-1].foreign else None
                stages.append(self.stages[i].bound(a, before))
                stages[i].fill()
            stage = stages[i]
            a = (yield from stage.forward_of_stretch(a, own)) if meets and stage.meets else stage.forward(a, own)
        if not self.plan:
            stateful, keeping = ([stage for stage in stages if getattr(stage, name)] for name in ("states", "keeps"))
            self.plan = self.plans[self.shape, self.rows] = Plan(stages, stateful, keeping)
        yield None, a

    def received(self, dy: Array) -> Array:
        """The derivative with respect to the outputs, as an array that may be written to; ValueError unless it fits."""
        assert self.plan is not None
        return self.plan.stages[-1].backward(dy, (), ()) if self.end < len(self.stages) else dy

    def backward(self, dy: Array, at: Vector, gradient: Vector) -> None:
        """The gradient from such an array."""
        assert self.plan is not None
        part = self.backwards
        for stage, own, places in zip(self.plan.stages[part], at.views[part], gradient.views[part], strict=True):
            dy = stage.backward(dy, own, places)

    def backward_of_stretch(self, dy: Array, at: Vector, gradient: Vector) -> Meetings:
        """`received` and `backward` of a stretch."""
        assert self.plan is not None
        dy, part = self.received(dy), self.backwards
        for stage, own, places in zip(self.plan.stages[part], at.views[part], gradient.views[part], strict=True):
            if stage.meets:
                dy = yield from stage.backward_of_stretch(dy, own, places)
            else:
                dy = stage.backward(dy, own, places)
        yield None, None

    def forget(self) -> None:
        """Let the batch go."""
        for stage in self.plan.keeping if self.plan else ():
            stage.cache = None


class ThreadedPasses:
    """The passes of several threads, each of which takes a stretch of the rows through the stages.

    All cores then work from the first stage to the last, and not in the products alone, where BLAS has threads of its
    own: it runs in one thread for each stretch. Sums over the batch, of gradients and in batch norm, are taken in the
    order of the stretches, so that the same number of threads gives the same bits.

    Before a sum within the stages every stretch stops, and after it they are taken up again: no thread waits for
    another amid its work, so that any number of threads will do, and an error in one stops all.
    """

    def __init__(self, passes: list[Passes], gradients: list[Vector]):
        """Those of each thread, and a place for the gradient of each but the first."""
        self.passes, self.gradients = passes, gradients
        self.stretches: list[slice] = []
        self.y: Any = None

    @property
    def stateful(self) -> list[Any]:
        """As `Passes` have them."""
        return self.passes[0].stateful

    @property
    def alone(self) -> contextlib.AbstractContextManager[None]:
        """The context of a step: BLAS in one thread. More would wait busily on the same cores after each product."""
        return threads.one_blas_thread()

    def _in_threads(self, stretches: list[Meetings]) -> list[Any]:
        """What each of them ends with."""

        def go_on(part: slice) -> Any:
            rows = self.stretches[part.start]
            with sharing(Stretch(rows.start, rows.stop - rows.start, self.stretches[-1].stop)):
                return next(stretches[part.start])

        while True:
            (meet, *_), given = zip(*threads.in_blocks(go_on, len(stretches), 1), strict=True)
            if meet is None:
                return list(given)
            meet(given)

    def forward(self, x: Array, at: Vector) -> Array:
        """The outputs (K, ..., N) for x (D, ..., N)."""
        n, count = x.shape[-1], len(self.passes)
        self.stretches = [slice(n * i // count, n * (i + 1) // count) for i in range(count)]
        given = zip(self.passes, self.stretches, strict=True)
        parts = self._in_threads([own.forward_of_stretch(x[..., rows], at, (rows.start, n)) for own, rows in given])
        shape = *parts[0].shape[:-1], n
        if self.y is None or self.y.shape != shape:
            self.y = in_memory_order(self.passes[0].site.workspace(), "y", shape, images=False)
        for rows, part in zip(self.stretches, parts, strict=True):
            self.y[..., rows] = part
        return self.y

    def received(self, dy: Array) -> Array:
        """The derivative with respect to the outputs; ValueError unless it fits."""
        check_fit(cast(Exit, self.passes[0].stages[-1]).who, dy, self.y.shape, self.y.dtype)
        return dy

    def backward(self, dy: Array, at: Vector, gradient: Vector) -> None:
        """The gradient from such an array."""
        given = zip(self.passes, self.stretches, [gradient, *self.gradients], strict=True)
        self._in_threads([own.backward_of_stretch(dy[..., rows], at, place) for own, rows, place in given])
        for part in self.gradients:
            gradient.flat += part.flat

    def forget(self) -> None:
        """Let the batch go."""
        for passes in self.passes:
            passes.forget()
