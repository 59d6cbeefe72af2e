"""A training run: its steps, epoch by epoch, and what is kept when one of them is not finite."""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..kernels.reference import Carry, Step
from ..layers.placed import Placed
from ..optimizers import Slots
from .batches import Batch, batches_of
from .history import History

NONE = np.empty(0)


class DivergenceError(ArithmeticError):
    """The loss or a gradient stopped being finite. The network keeps the parameters whose loss was last finite.

    `epoch` and `batch` say where, counted from 1; `history` holds the epochs before, its `steps` are those before the
    one at fault.
    """

    def __init__(self, message: str, epoch: int, batch: int, history: History):
        super().__init__(message)
        self.epoch, self.batch, self.history = epoch, batch, history

    def __reduce__(self) -> tuple[Any, ...]:
        return DivergenceError, (*self.args, self.epoch, self.batch, self.history)


class Run:
    """A training run, as callbacks see it.

    `epoch` and `step` count what is finished, `step` over the whole run. `net` is the network as trained so far.
    `optimizer` is the run's own copy: a `learning_rate` that is set there holds from the next step on. `x`, `y` as the
    loss encodes it, `weight` as the loss takes it (of mean 1, or for a sum as given; None where rows have none) and
    `loss` are what it trains on; `data` is the three of them. An x that is large, and memory-mapped or of integers, is
    where it was given: `run.x[rows, ...]` is an array of the network's.
    """

    def __init__(self, net: Placed, step_function: Step, data: Batch, slices: list[slice], epochs: int):
        self.data, self.loss = data, step_function.objective
        self.x, self.y, self.weight = data
        self.epochs, self.steps_per_epoch = epochs, len(slices)
        self.epoch = self.step = 0
        self.history = History()
        self.stopped = False  # by a callback: resumed, it ends at once
        self.signal = 0  # the number of the one that stopped it
        self.optimizer = step_function.optimizer
        self.rng = copy.deepcopy(net.rng)  # of the order of the rows
        self.rng_before: Any = None  # its state before the epoch under way
        self._done: np.ndarray = NONE  # the losses of the epoch under way from before the run was resumed
        self._values: list[Any] = []  # and those of its steps since
        self._slots_moved = False  # by a step that was not finite
        self._began = 0.0  # the time since which the steps' seconds are not yet counted
        self._net, self._step_function, self._slices = net, step_function, slices
        # after the last step, as the network has it, the last whose loss was finite, and before the epoch under way
        self._carry = self._published = self._safe = self._start = step_function.start

    @property
    def net(self) -> Placed:
        if self._published is not self._carry:
            self._step_function.publish(self._carry, self._net)
            self._published = self._carry
        return self._net

    @property
    def stop(self) -> bool:
        """Whether the training is to end: a callback has set it, or the run is interrupted."""
        return self.stopped or self.history.interrupted

    @stop.setter
    def stop(self, value: bool) -> None:
        self.stopped = value

    @property
    def amid_epoch(self) -> bool:
        """Whether the epoch to come is one that was begun before the run was resumed."""
        return bool(self._done.size)

    @property
    def over(self) -> bool:
        """Whether no epoch is to follow. One that a resumed run has begun is finished before it stops."""
        return self.epoch >= self.epochs or self.history.interrupted or (self.stopped and not self.amid_epoch)

    @property
    def slots(self) -> Slots:
        """The optimizer's memory, as `Optimizer.init` has it, in arrays that later steps may write to.

        Not to be had once the run has diverged: the step that was not finite has moved it already.
        """
        if self._slots_moved:
            raise RuntimeError("run.slots: the step that was not finite has moved the optimizer's memory already")
        return self._step_function.slots(self._carry)

    @property
    def losses(self) -> np.ndarray:
        """The losses of the epoch's steps so far. Waits for the device."""
        if not self._values:
            return self._done
        values = self._net.backend.stack(self._values)
        return np.concatenate([self._done, values]) if self._done.size else values

    @property
    def finite(self) -> bool:
        """Whether all is, so far. Waits for the device."""
        return self._step_function.sound(self._carry) and bool(np.isfinite(self.losses).all())

    def go_on(self, epoch: int, step: int, history: History, rng_state: Any, losses: np.ndarray) -> None:
        """Start where another run was, in the middle of an epoch where it has had losses."""
        self.epoch, self.step, self.history, self._done = epoch, step, history, losses
        history.steps = step
        self.rng.bit_generator.state = rng_state

    def order(self, rows: int) -> np.ndarray:
        """The random order of the rows in the next epoch."""
        self.rng_before = self.rng.bit_generator.state
        return self.rng.permutation(rows)

    def end_epoch(self) -> None:
        """Count the epoch as finished."""
        self.epoch += 1
        self.rng_before, self._done, self._values = None, NONE, []

    def train(self, order: np.ndarray | None, callbacks: Sequence[Any], epochs: int = 1) -> np.ndarray:
        """Take the steps of an epoch, its rows in this `order`, or those of several `epochs` of a single step each.

        The callbacks are told of each step's end. Returns the losses of all steps, also of those that were done before
        the run was resumed; fewer after Ctrl-C.

        Where the device works on its own, the host waits for it once, at the end. If something is not finite then, the
        steps are taken again one by one to find the first fault. Elsewhere each is looked at when it is done.
        Either way `_carry` goes back to the parameters whose loss was last finite.
        """
        step, immediate = self._step_function, self._net.backend.immediate
        done = number = len(self._done)
        last, epoch = epochs * self.steps_per_epoch, self.epoch
        left = (self._slices * epochs)[done:]
        self._start = before = self._carry
        self._began = time.perf_counter()
        for batch, rows in batches_of(step.backend, self.data, left, order):
            number, before = number + 1, self._carry
            keep = () if immediate else (self._start, self._safe, *[before] * (number == last))
            value, after = step.on_rows(before, batch, rows, keep)
            if immediate:
                if not (math.isfinite(value) and step.sound(after)):
                    self._count()
                    raise self._fault_in_step(number, before, batch.rows(rows), math.isfinite(value), after)
                self._safe = before
            self._carry = after
            self._values.append(value)
            self.step += 1
            if callbacks:
                self._count()
                self.epoch = epoch + (number - 1) // self.steps_per_epoch
                try:
                    for callback in callbacks:
                        callback.step_end(self)
                finally:
                    self.epoch = epoch  # the others are counted once they have turned out finite
                self._began = time.perf_counter()
            if self.history.interrupted or (self.stopped and number % self.steps_per_epoch == 0):
                break
            del batch  # before the next one comes
        sound = immediate or step.sound(self._carry)  # asked before the losses: the host is then woken once
        losses = self.losses
        self._count()
        if not immediate:
            if not (sound and np.isfinite(losses).all()):
                raise self._fault_in_epoch(batches_of(step.backend, self.data, left, order), losses, done)
            self._safe = before if number == last else self._start
        return losses

    def _count(self) -> None:
        """Count the steps so far, and the seconds that passed in them."""
        self.history.steps = self.step
        self.history.seconds += time.perf_counter() - self._began

    def _fault_in_epoch(
        self, batches: Iterator[tuple[Batch, slice]], losses: np.ndarray, done: int
    ) -> DivergenceError | ValueError:
        """Take the epoch's steps again, up to the first that does not stay finite."""
        carry, step = self._start, self._step_function
        for number, (batch, rows) in enumerate(batches, done + 1):
            value, after = step.on_rows(carry, batch, rows, (self._start, self._safe, carry))
            finite = math.isfinite(float(value))
            if not (finite and step.sound(after)):
                return self._fault_in_step(number, carry, batch.rows(rows), finite, after)
            self._safe, carry = carry, after
        self._carry = self._safe
        return self._divergence(int(np.isfinite(losses).argmin()) + 1, "the loss, once and not again")

    def _fault_in_step(
        self, number: int, carry: Carry, batch: Batch, finite: bool, after: Carry
    ) -> DivergenceError | ValueError:
        """The step from `carry` to `after` on batch `number` does not stay finite, though its loss may be."""
        if not finite and (misfit := self._step_function.misfit(carry, batch.x)):
            self._carry = carry
            self._forget(number)
            before, place = divmod(number - 1, self.steps_per_epoch)
            return ValueError(f"fit: in epoch {self.epoch + before + 1}, batch {place + 1}, {misfit}")
        self._carry = carry if finite else self._safe
        fault = self._step_function.fault(carry, batch)
        if not fault and not finite:
            fault = "the loss, once and not again"
        elif not fault:
            fault = "the optimizer's slots" if self._step_function.finite(after) else "the optimizer's update"
        return self._divergence(number, fault)

    def _divergence(self, number: int, fault: str) -> DivergenceError:
        self._forget(number)
        before, batch = divmod(number - 1, self.steps_per_epoch)
        for loss in self.losses[:before]:  # finished epochs, which had a single step each
            self.end_epoch()
            self.history.record({"loss": float(loss)})
        return DivergenceError(
            f"fit: not finite in epoch {self.epoch + 1}, batch {batch + 1}: {fault}. The network keeps the parameters "
            "whose loss was last finite. Lower the learning rate, set clip_norm, or scale the inputs.",
            self.epoch + 1,
            batch + 1,
            self.history,
        )

    def _forget(self, number: int) -> None:
        """Count neither step `number` nor those after it, which a device may have taken before anyone saw."""
        self._slots_moved = True
        sound = number - 1 - len(self._done)
        self.history.steps = self.step = self.step - len(self._values[sound:])
        del self._values[sound:]

    def settle(self) -> None:
        """At the end, whatever ended it: give the network the last parameters that are finite."""
        step = self._step_function
        if not step.finite(self._carry):  # where the device works on its own, nobody has looked at it yet
            self._carry = self._start
        if self._published is not self._carry:
            step.publish(self._carry, self._net, last=True)
            self._published = self._carry
