"""The step in stages that write into preallocated arrays: no allocation, no joining and splitting, few calls.

The step owns the vectors of parameters and the optimizer's slots, and decides which of them may be overwritten. Frozen
layers before the first that trains are a network of their own, which is only used in inference.
"""

import contextlib
import functools
import itertools
import math
from typing import Any

from .. import ops
from ..backends import Array
from ..layers.base import Shape
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..optimizers import Optimizer, Slots
from ..training.batches import Batch
from .cpu import threads
from .families import kernels_of
from .inference import infer
from .parts import frozen_first, parts_of
from .passes import Passes, ThreadedPasses
from .reference import Carry, Step, is_within
from .stages import Part, Site, Vector, Workspace, reversed_axes
from .table import SPARED


def training_step(net: Placed, loss: Loss, optimizer: Optimizer, compiled: bool, shape: Shape) -> Step:
    """Return the step in stages, with compiled kernels if `compiled` and available; without any kernels, a `Step`."""
    kernels = kernels_of(net, compiled)
    return BufferedStep(net, loss, optimizer, kernels, shape) if kernels else Step(net, loss, optimizer)


class BufferedStep(Step):
    """`Step` in stages. Each step writes the new parameters into another vector, as their loss may not be finite."""

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer, kernels: Any, shape: Shape = ("N", "D")):
        super().__init__(net, loss, optimizer)
        self.kernels, self.update = kernels, kernels.optimizer(optimizer)
        weights, xp = self.start.weights, self.backend.xp
        first = frozen_first(self.worker) if self.backend.immediate else 0
        frozen = self.worker.parts()[:first]
        self.base: Placed | None = None
        if first:
            self.base = Placed(*(layer for _, layer in frozen))
            self.base._placement = self.worker._find_placement()  # which is searched for otherwise
        self.base_state = {k: a for k, a in self.start.state.items() if any(is_within(k, p) for p, _ in frozen)}
        self.parts = functools.partial(parts_of, self.worker, shape, first)
        parts, axes, idle, self.outputs_per_row = self.parts()
        of_all = parts_of(self.worker, shape)[-1] if kernels.threaded and first else self.outputs_per_row
        self.base_outputs_per_row = of_all - self.outputs_per_row
        self.serial = self._new_passes(parts)
        self.stages = self.serial.stages
        self.fused_loss = kernels.loss(self.serial.site, self.objective.loss, axes)
        self.losses: dict[tuple[int, ...], Any] = {}  # the fused loss, bound to the arrays for each shape of outputs
        zeroed = {name for stage in self.stages for name in stage.idle}  # by the stages themselves
        self.idle = [name for name in idle if name in self.trained and name not in zeroed]
        self.looks_ahead = type(optimizer).lookahead is not Optimizer.lookahead
        self.vectors = [self._vector(weights)]
        self.point = self._vector(xp.zeros_like(weights)) if self.looks_ahead else None
        self.slot_buffers = [self.start.slots]
        self.stateful_stages: list[Any] = [stage for stage in self.stages if stage.states]
        self._join_averages()
        self.split_from = threads.SPLIT_FROM * (1 + sum(stage.meets for stage in self.stages) / 2)
        may_split = kernels.threaded and self.outputs_per_row and self.serial.splits
        self.threads = threads.blas_threads() if may_split else 1

    def _vector(self, flat: Array) -> Vector:
        return Vector(flat, dict(zip(self.names, ops.split(flat, self.shapes), strict=True)), self.stages)

    def _new_passes(self, parts: list[Part], count: int = 1) -> Passes:
        """Return the passes through these layers, with memory of their own, for one of `count` threads."""
        dtype, xp, device = self.start.weights.dtype, self.backend.xp, self.backend.device
        offsets = itertools.accumulate(map(math.prod, self.shapes), initial=0)

        def workspace() -> Workspace:
            return Workspace(xp, dtype, device)

        site = Site(self.kernels, workspace, workspace(), dict(zip(self.names, offsets, strict=False)), count)
        return Passes(site, parts, f"the loss, {self.objective.loss!r},")

    @functools.cached_property
    def in_threads(self) -> ThreadedPasses:
        """The passes for batches that are divided between threads."""
        gradients = [self._vector(self.backend.xp.zeros_like(self.start.weights)) for _ in range(1, self.threads)]
        parts = (self.parts()[0] for _ in range(self.threads))  # each with blocks of its own
        passes = [self._new_passes(each, self.threads) for each in parts]
        for stage, serial in zip(passes[0].stages, self.stages, strict=True):
            stage.batch = serial.batch
        return ThreadedPasses(passes, gradients)

    def _join_averages(self) -> None:
        """Join the stages' running averages into one vector, and likewise the averages of a batch."""
        xp, state, stages = self.backend.xp, self.start.state, [stage for stage in self.stages if stage.averages]
        self.averages = [name for stage in stages for name, _ in stage.averages]
        self.average_shapes = [tuple(state[name].shape) for name in self.averages]
        self.batch = None
        if not stages:
            return
        old = ops.join([state[name] for name in self.averages])
        self.batch, rates, first_rates = xp.zeros_like(old), [], []
        parts = iter(ops.split(self.batch, self.average_shapes))
        for stage in stages:
            stage.batch = tuple(itertools.islice(parts, len(stage.averages)))
            new = [xp.full_like(a, rate) for a, (_, rate) in zip(stage.batch, stage.averages, strict=True)]
            rates += new
            first_rates += new if stage.has_averages() else [xp.ones_like(a) for a in new]
        self.rates, self.first_rates = ops.join(rates), ops.join(first_rates)
        others = {name: a for name, a in state.items() if name not in self.averages}
        self.start = self.start._replace(state={AVERAGES: old} | others)

    def state(self, carry: Carry) -> dict[str, Array]:
        if AVERAGES not in carry.state:
            return carry.state
        named = dict(zip(self.averages, ops.split(carry.state[AVERAGES], self.average_shapes), strict=True))
        return named | {name: a for name, a in carry.state.items() if name != AVERAGES}

    def sound(self, carry: Carry) -> bool:
        if self.backend.immediate:  # a quicker test that proves all finite; the sum may overflow where nothing is wrong
            dot, (checked, total), rest = self.kernels.lib.dot, self.update.checked, self._real_state(carry)
            if checked is not carry.weights:
                total, rest = 0.0, [carry.weights, *self._memory(carry), *rest]
            for a in rest:
                total = total + dot(a, a) if a.ndim == 1 else math.nan
            if math.isfinite(total):
                return True
        return super().sound(carry)

    def __call__(self, carry: Carry, batch: Batch) -> tuple[Array, Carry]:
        return self._advance(carry, batch, (self.start, carry))

    def on_rows(self, carry: Carry, batch: Batch, rows: slice, keep: tuple[Carry, ...]) -> tuple[Array, Carry]:
        return self._advance(carry, batch.rows(rows), keep)

    def _advance(self, carry: Carry, batch: Batch, keep: tuple[Carry, ...]) -> tuple[Array, Carry]:
        n = batch.x.shape[0]
        passes = self._passes_for(n)
        if not self._in_threads(passes, n):  # entering a context that does nothing would take half a microsecond
            return self._advance_by(passes, carry, batch, keep)
        with threads.one_blas_thread():
            return self._advance_by(passes, carry, batch, keep)

    def _advance_by(self, passes: Any, carry: Carry, batch: Batch, keep: tuple[Carry, ...]) -> tuple[Array, Carry]:
        at = self._vector_of(carry)
        value, dy = self._forward(passes, at, carry.state, batch)
        if self.backend.immediate and not math.isfinite(value):
            return value, carry
        new = self._free_vector(carry, keep)  # holds the gradient first, then the new parameters
        value = self._backward(passes, at, new, value, dy, batch)
        slots = self.update(carry.weights, carry.slots, new.flat, self._free_slots(carry, keep))
        state = self._next_state(passes, carry)
        passes.forget()  # release this batch's memory before the next one is made
        return value, Carry(new.flat, slots, state)

    def gradient(self, weights: Array, batch: Batch) -> tuple[Array, Array]:
        at = self._vector_of(self.start)
        at.flat[...] = weights
        n = batch.x.shape[0]
        passes = self._passes_for(n)
        with threads.one_blas_thread() if self._in_threads(passes, n) else contextlib.nullcontext():
            value, dy = self._forward(passes, at, self.start.state, batch)
            new = self._free_vector(self.start, ())
            return self._backward(passes, at, new, value, dy, batch), new.flat

    def _forward(self, passes: Any, at: Vector, state: dict[str, Array], batch: Batch) -> tuple[Array, Array]:
        """Return the loss, and its derivative with respect to the outputs, (K, ..., N)."""
        for stage in self.stateful_stages:
            stage.set_state(state)
        x, y, weight = batch
        if self.base is not None:
            x = infer(self.base, x, self.kernels.compiled)
        a = passes.forward(reversed_axes(x), at)
        if self.fused_loss is not None and weight is None:
            value, dy = (self.losses.get(a.shape) or self._bound_loss(a)).forward(a, y.T)
            return value, dy
        value, dy = self.loss(reversed_axes(a), y, weight)
        return value, passes.checked_dy(reversed_axes(dy))

    def _passes_for(self, n: int) -> Any:
        """Return the passes for a batch of n rows: in threads if the batch is large enough."""
        split = self.threads > 1 and n >= self.threads and n * self.outputs_per_row >= self.split_from
        return self.in_threads if split else self.serial

    def _in_threads(self, passes: Any, n: int) -> bool:
        """Whether threads take parts of a batch of n rows. BLAS then has one, as more would spin on the same cores
        after each product.
        """
        return passes is not self.serial or n * self.base_outputs_per_row >= threads.SPLIT_FROM

    def _bound_loss(self, a: Array) -> Any:
        """Bind the fused loss to outputs of this shape and return it."""
        if all(math.prod(a.shape) > math.prod(shape) for shape in self.losses):  # its memory grows
            self.losses.clear()
        self.losses[a.shape] = self.fused_loss.bound(a, None)
        return self.losses[a.shape]

    def _backward(self, passes: Any, at: Vector, gradient: Vector, value: Array, dy: Array, batch: Batch) -> Array:
        """Write the gradient into `gradient`, with the penalty's, and return the loss with the penalty added."""
        passes.backward(dy, at, gradient)
        for name in self.idle:
            gradient.arrays[name][...] = 0.0
        self._add_up(gradient.flat)
        if self.objective.l2:
            more, slopes = self.objective.penalty(at.arrays, batch.y, batch.weight)
            value = value + (float(more) if self.backend.immediate else more)
            for name, slope in slopes.items():
                gradient.arrays[name] += slope
        return value

    def _add_up(self, gradient: Array) -> None:
        """Add the other processes' gradients, before the penalty's is added; here there is one process."""

    def _next_state(self, passes: Any, carry: Carry) -> dict[str, Array]:
        state = dict(self.base_state)
        if self.batch is not None:
            old = carry.state[AVERAGES]
            rates = self.first_rates if old is self.start.state[AVERAGES] else self.rates
            state[AVERAGES] = self.kernels.averaged(old, self.batch, rates)
        for stage in passes.stateful:
            state |= stage.next_state()
        return state

    # --- which vectors and slots may be overwritten ---

    def _remember(self, slots: Slots) -> None:
        super()._remember(slots)
        self.slot_buffers = [slots]

    def _vector_of(self, carry: Carry) -> Vector:
        """Return the vector of a carry's parameters, or of the point where the optimizer wants the gradient."""
        if self.point is not None:
            self.update.look_ahead(carry.weights, carry.slots, self.point.flat)
            return self.point
        return next(vector for vector in self.vectors if vector.flat is carry.weights)

    def _free_vector(self, carry: Carry, keep: tuple[Carry, ...]) -> Vector:
        """Return a vector that neither `carry` nor the carries in `keep` use."""
        for vector in self.vectors:
            if vector.flat is not carry.weights and not (keep and any(vector.flat is kept.weights for kept in keep)):
                return vector
        self.vectors.append(self._vector(self.backend.xp.zeros_like(carry.weights)))
        return self.vectors[-1]

    def _free_slots(self, carry: Carry, keep: tuple[Carry, ...]) -> Slots:
        """Return slots to write the next ones into: the carry's own, if they are no longer needed."""
        if not (keep or self.looks_ahead):
            return carry.slots
        memory = getattr(self.optimizer, "memory", ())  # a user's own optimizer need not derive from ours
        names = [name for name in memory if name != SPARED]
        in_use = [kept.slots for kept in keep] + [carry.slots] * self.looks_ahead
        for slots in (carry.slots, *self.slot_buffers):
            if all(slots[name] is not other[name] for name in names for other in in_use):
                return slots
        new = {name: self.backend.xp.zeros_like(carry.weights) for name in names}
        self.slot_buffers.append({name: carry.slots[name] for name in memory} | new)
        return self.slot_buffers[-1]

    def publish(self, carry: Carry, net: Placed, last: bool = False) -> None:
        weights = carry.weights if last else self.backend.xp.asarray(carry.weights, copy=True)
        super().publish(carry._replace(weights=weights), net)


AVERAGES = ""  # the key of the vector of all running averages in a carry's state
