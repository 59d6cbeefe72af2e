"""The forward and backward passes of a network in stages, for a whole batch or in threads for stretches of it."""

import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

from ..backends import Array
from ..common.share import Stretch, sharing
from .blocks import Mark
from .cpu import threads
from .stages import Entry, Exit, LayerStage, Meetings, Part, Site, Stage, Vector, check_fit, in_memory_order

PLANS = 256  # the number of shapes of x whose plans are kept, of some 10 to 100 KB each


class Plan(NamedTuple):
    """The stages, bound to the arrays for one shape of x."""

    stages: list[Stage]
    stateful: list[Any]  # the stages with running statistics
    keeping: list[Stage]  # the stages whose cache refers to arrays that are not their own


class Passes:
    """The stages of a network, with the memory of `site`.

    Between a stage of kernels and one that runs a layer's own code there is an `Entry` or an `Exit`.
    """

    def __init__(self, site: Site, parts: list[Part], end: str):
        """`end` names the source of the derivative with respect to the outputs, for error messages."""
        self.site = site
        turns = itertools.cycle((0, 1))  # exits alternate between two buffers, as a layer may return its dy
        self.stages = self._stages(parts, turns)
        if not (last := self.stages[-1]).foreign:
            self.stages.append(Exit(site, last, end, f"dy{next(turns)}"))
        self.end = len(self.stages) - (not last.foreign)
        first = next((i for i, stage in enumerate(self.stages) if stage.names), 0)  # in inference there may be none
        self.stages[first].lowest = True
        self.backwards = slice(self.end - 1, first - 1 if first else None, -1)  # the stages of a backward pass
        self.plans: dict[tuple[tuple[int, ...], tuple[int, ...]], Plan] = {}
        self.plan: Plan | None = None
        self.shape: tuple[int, ...] = ()  # the shape of x that the plan is for
        self.rows: tuple[int, ...] = ()  # number of the first row, and rows in the batch; () for a whole batch
        self.largest_size = 0  # the largest size of an x so far

    def _stages(self, parts: list[Part], turns: Iterator[int]) -> list[Stage]:
        stages: list[Stage] = []
        before: Stage | None = None
        while parts or (before and before.bias):
            candidates = (kind.take(self.site, before, parts) for kind in (*self.site.family.stages, Mark))
            stage = next(filter(None, candidates), None) or (LayerStage(self.site, before, parts[0]) if parts else None)
            if stage is None:  # the only part left was a bias, which the product has taken over
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
        """Whether a batch may be divided into stretches of rows that go through the stages separately."""
        return all(not stage.foreign and (stage.rowwise or stage.numbers_rows or stage.meets) for stage in self.stages)

    @property
    def stateful(self) -> list[Any]:
        """The stages with running statistics, of the last forward pass."""
        return self.plan.stateful if self.plan else []

    def forward(self, x: Array, at: Vector) -> Array:
        """Return the outputs (K, ..., N) for x (D, ..., N); `at` holds the parameters."""
        if x.shape != self.shape:
            self._select_plan(x.shape, ())
        if self.plan is None:
            *_, (_, x) = self._run_forward(x, at)
            return x
        for stage, params in zip(self.plan.stages, at.views, strict=True):
            x = stage.forward(x, params)
        return x

    def forward_of_stretch(self, x: Array, at: Vector, rows: tuple[int, int]) -> Meetings:
        """As `forward`, for a stretch of a batch; `rows` is (number of its first row, number of rows in the batch)."""
        if x.shape != self.shape or rows != self.rows:
            self._select_plan(x.shape, rows)
        return self._run_forward(x, at, meets=True)

    def infer(self, x: Array, at: Vector) -> Array:
        """Return the outputs (K, ..., N) in inference; `at` also holds the running statistics."""
        if x.shape != self.shape:
            self._select_plan(x.shape, ())
        *_, (_, y) = self._run_forward(x, at, infers=True)
        self.forget()
        return cast(Array, y)

    def _select_plan(self, shape: tuple[int, ...], rows: tuple[int, ...]) -> None:
        """Select the plan for this shape of x and these rows of a batch; None if it has yet to be made."""
        if (size := math.prod(shape)) > self.largest_size:  # the workspaces grow, so all arrays are replaced
            self.largest_size = size
            self.plans.clear()
        if len(self.plans) >= PLANS:
            self.plans.clear()
        self.shape, self.rows, self.plan = shape, rows, self.plans.get((shape, rows))
        for stage in self.plan.stages if self.plan else ():
            stage.fill()

    def _run_forward(self, a: Array, at: Vector, meets: bool = False, infers: bool = False) -> Meetings:
        """Run the forward pass, and make the plan along the way if there is none."""
        stages = self.plan.stages if self.plan else []
        for i, params in enumerate(at.views):
            if not self.plan:
                before = stages[-1] if stages and not stages[-1].foreign else None
                stages.append(self.stages[i].bound(a, before))
                stages[i].fill()
            stage = stages[i]
            if meets and stage.meets:
                a = yield from stage.forward_of_stretch(a, params)
            elif infers and stage.infers:
                a = stage.infer(a, params, at.arrays)
            else:
                a = stage.forward(a, params)
        if not self.plan:
            stateful, keeping = ([stage for stage in stages if getattr(stage, name)] for name in ("states", "keeps"))
            self.plan = self.plans[self.shape, self.rows] = Plan(stages, stateful, keeping)
        yield None, a

    def checked_dy(self, dy: Array) -> Array:
        """Return dy of the outputs as an array that may be written to. Raises ValueError for a wrong shape or dtype."""
        assert self.plan is not None
        return self.plan.stages[-1].backward(dy, (), ()) if self.end < len(self.stages) else dy

    def backward(self, dy: Array, at: Vector, gradient: Vector) -> None:
        """Write the gradient into `gradient`, given the dy that `checked_dy` returned. May overwrite dy."""
        assert self.plan is not None
        part = self.backwards
        for stage, params, grads in zip(self.plan.stages[part], at.views[part], gradient.views[part], strict=True):
            dy = stage.backward(dy, params, grads)

    def backward_of_stretch(self, dy: Array, at: Vector, gradient: Vector) -> Meetings:
        """As `checked_dy` and `backward`, for a stretch of a batch."""
        assert self.plan is not None
        dy, part = self.checked_dy(dy), self.backwards
        for stage, params, grads in zip(self.plan.stages[part], at.views[part], gradient.views[part], strict=True):
            if stage.meets:
                dy = yield from stage.backward_of_stretch(dy, params, grads)
            else:
                dy = stage.backward(dy, params, grads)
        yield None, None

    def forget(self) -> None:
        """Drop the references to the batch's arrays."""
        for stage in self.plan.keeping if self.plan else ():
            stage.cache = None


class ThreadedPasses:
    """The passes of several threads, each of which takes a stretch of the rows through all stages.

    All cores are then used in every stage, not only in the matrix products by BLAS's own threads. They are to be used
    within `one_blas_thread`. Sums over the batch, of gradients and in batch norm, are taken in the order of the
    stretches, so the same number of threads gives the same bits.

    Where a stage needs a sum over the batch, every stretch stops before it and is resumed after it. No thread waits for
    another in the middle of its work, so fewer threads than stretches will do, and an error in one stops all.
    """

    def __init__(self, passes: list[Passes], gradients: list[Vector]):
        """`passes` are those of each thread; `gradients` are vectors for the gradients of all threads but the first."""
        self.passes, self.gradients = passes, gradients
        self.stretches: list[slice] = []
        self.y: Any = None

    @property
    def stateful(self) -> list[Any]:
        """As `Passes.stateful`."""
        return self.passes[0].stateful

    def _run_in_threads(self, stretches: list[Meetings]) -> list[Any]:
        """Run the stretches in threads, with their meetings, and return the final value of each."""

        def resume(part: slice) -> Any:
            rows = self.stretches[part.start]
            with sharing(Stretch(rows.start, rows.stop - rows.start, self.stretches[-1].stop)):
                return next(stretches[part.start])

        while True:
            (meet, *_), values = zip(*threads.in_blocks(resume, len(stretches), 1), strict=True)
            if meet is None:
                return list(values)
            meet(values)

    def forward(self, x: Array, at: Vector) -> Array:
        """As `Passes.forward`."""
        n, count = x.shape[-1], len(self.passes)
        self.stretches = [slice(n * i // count, n * (i + 1) // count) for i in range(count)]
        pairs = zip(self.passes, self.stretches, strict=True)
        parts = self._run_in_threads([one.forward_of_stretch(x[..., rows], at, (rows.start, n)) for one, rows in pairs])
        shape = *parts[0].shape[:-1], n
        if self.y is None or self.y.shape != shape:
            self.y = in_memory_order(self.passes[0].site.workspace(), "y", shape, images=False)
        for rows, part in zip(self.stretches, parts, strict=True):
            self.y[..., rows] = part
        return self.y

    def checked_dy(self, dy: Array) -> Array:
        """Return dy of the outputs. Raises ValueError for a wrong shape or dtype."""
        check_fit(cast(Exit, self.passes[0].stages[-1]).who, dy, self.y.shape, self.y.dtype)
        return dy

    def backward(self, dy: Array, at: Vector, gradient: Vector) -> None:
        """As `Passes.backward`."""
        triples = zip(self.passes, self.stretches, [gradient, *self.gradients], strict=True)
        self._run_in_threads([one.backward_of_stretch(dy[..., rows], at, place) for one, rows, place in triples])
        for other in self.gradients:
            gradient.flat += other.flat

    def forget(self) -> None:
        """Drop the references to the batch's arrays."""
        for passes in self.passes:
            passes.forget()
