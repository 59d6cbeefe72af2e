"""A training run: its steps, epoch by epoch, and what is kept when one of them is not finite."""

import copy
import math
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..kernels.reference import Carry, Step
from ..layers.placed import Placed
from ..optimizers import Slots
from .batches import Batch, Feed
from .history import History

RECENT = 1000  # steps of an epoch whose losses are kept


class DivergenceError(ArithmeticError):
    """The loss or a gradient stopped being finite. The network keeps the parameters whose loss was last finite.

    `epoch` and `batch` say where, counted from 1; `history` holds the epochs before, its `steps` are those before the
    one at fault.

    >>> net = xn.Sequential(xn.Dense(1, 1)).initialize(seed=0)
    >>> try:
    ...     net.fit([[1e30]], [[0]], loss=xn.MeanSquaredError(), optimizer=xn.SGD(1e30), epochs=9)
    ... except xn.DivergenceError as error:
    ...     print("epoch", error.epoch, "batch", error.batch)
    epoch 1 batch 1
    """

    def __init__(self, message: str, epoch: int, batch: int, history: History):
        super().__init__(message)
        self.epoch, self.batch, self.history = epoch, batch, history

    def __reduce__(self) -> tuple[Any, ...]:
        return DivergenceError, (*self.args, self.epoch, self.batch, self.history)


class EpochLoss:
    """The loss of an epoch, from those of its batches as they come: their sum, or the mean over all rows,
    m ← m + (l − m) n / N for a batch of n rows with the loss l, N being those so far, its own included.
    """

    def __init__(self, reduction: str, value: float = 0.0, rows: int = 0):
        self.sums, self.value, self.rows = reduction == "sum", value, rows

    def add(self, loss: float, rows: int) -> None:
        """Take in a batch."""
        self.rows += rows
        self.value += loss if self.sums else (loss - self.value) * (rows / self.rows)


class Run:
    """A training run, as callbacks see it.

    `epoch` and `step` count what is finished, `step` over the whole run. `net` is the network as trained so far.
    `optimizer` is the run's own copy: a `learning_rate` that is set there holds from the next step on. `x`, `y` as the
    loss encodes it, `weight` as the loss takes it (of mean 1, or for a sum as given; None where rows have none) and
    `loss` are what it trains on; `data` is the three of them. An x that is large, and memory-mapped or of integers, is
    where it was given: `run.x[rows, ...]` is an array of the network's. Of a source they are the first batch.

    `steps_per_epoch` is None as long as the batches of a source are not counted.
    """

    def __init__(self, net: Placed, step_function: Step, feed: Feed, epochs: int):
        self.data, self.loss = feed.sample, step_function.objective
        self.x, self.y, self.weight = feed.sample
        self.epochs = epochs
        self.epoch = self.step = 0
        self.history = History()
        self.stopped = False  # by a callback: resumed, it ends at once
        self.signal = 0  # the number of the one that stopped it
        self.optimizer = step_function.optimizer
        self.rng = copy.deepcopy(net.rng)  # of the order of the rows
        self.rng_before: Any = None  # its state before the epoch under way
        self.complete = False  # whether `train` has come to the end of an epoch
        self._resumed = 0  # how many steps of the epoch under way were taken before the run was resumed
        self._done = 0  # how many have been taken
        self._losses: deque[float] = deque(maxlen=RECENT)  # those of the last of them, as far as the host has them
        self._epoch_loss = EpochLoss(self.loss.reduction)  # of all of those
        self._values: list[tuple[Any, int]] = []  # and of the steps since, on the device, with their numbers of rows
        self._slots_moved = False  # by a step that was not finite
        self._began = 0.0  # the time since which the steps' seconds are not yet counted
        self._net, self._step_function, self._feed = net, step_function, feed
        # after the last step, as the network has it, the last whose loss was finite, and before the epoch under way
        self._carry = self._published = self._safe = self._start = step_function.start

    @property
    def net(self) -> Placed:
        if self._published is not self._carry:
            self._step_function.publish(self._carry, self._net)
            self._published = self._carry
        return self._net

    @property
    def steps_per_epoch(self) -> int | None:
        return self._feed.steps

    @property
    def steps(self) -> int | None:
        """The number of steps of the whole run, None where it is not known."""
        return None if self._feed.steps is None else self.epochs * self._feed.steps

    @property
    def stop(self) -> bool:
        """Whether the training is to end: a callback has set it, or the run is interrupted."""
        return self.stopped or self.history.interrupted

    @stop.setter
    def stop(self, value: bool) -> None:
        self.stopped = value

    def interrupt(self, number: int) -> None:
        """End the training after the current step: a signal of that number came."""
        self.history.interrupted = True
        self.signal = number

    @property
    def amid_epoch(self) -> bool:
        """Whether the epoch to come is one that was begun before the run was resumed."""
        return self._resumed > 0

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
        """The losses of the epoch's steps so far, the last 1,000 at most. Waits for the device."""
        self._fetch()
        return np.array(self._losses, np.float64)

    @property
    def under_way(self) -> tuple[int, float, int, str]:
        """How many steps the epoch has had so far, its loss, how many rows, and what a stream began it with. Waits for
        the device.
        """
        self._fetch()
        return self._done, self._epoch_loss.value, self._epoch_loss.rows, self._feed.begins

    def _fetch(self) -> None:
        """Fetch the losses of all steps to the host."""
        if self._values:
            values, sizes = zip(*self._values, strict=True)
            for loss, rows in zip(self._net.backend.stack(values), sizes, strict=True):
                self._took(loss, rows)
            self._values.clear()

    def _took(self, loss: Any, rows: int) -> None:
        """Note the loss of a step on so many rows."""
        self._losses.append(loss := float(loss))
        self._epoch_loss.add(loss, rows)

    @property
    def finite(self) -> bool:
        """Whether everything is finite so far. Waits for the device."""
        sound = self._step_function.sound(self._carry)  # asked before the losses: the host is then woken once
        self._fetch()
        return sound and math.isfinite(self._epoch_loss.value)

    def resume_from(
        self, epoch: int, step: int, history: History, rng_state: Any,
        under_way: tuple[int, float, int, str], losses: np.ndarray,
    ) -> None:  # fmt: skip
        """Take over the position and history of an earlier run; `under_way` and `losses` as above, of its epoch."""
        self.epoch, self.step, self.history = epoch, step, history
        done, loss, rows, self._feed.begun = under_way
        self._resumed = self._done = done
        self._losses.extend(losses.tolist())
        self._epoch_loss = EpochLoss(self.loss.reduction, loss, rows)
        history.steps = history.resumed = step
        self.rng.bit_generator.state = rng_state

    def order(self) -> np.ndarray:
        """The random order of the rows in the next epoch."""
        self.rng_before = self.rng.bit_generator.state
        return self._feed.order(self.rng)

    def end_epoch(self) -> None:
        """Count the epoch as finished."""
        self.epoch += 1
        self.rng_before, self._resumed, self._done = None, 0, 0
        self._epoch_loss = EpochLoss(self.loss.reduction)
        self._losses.clear()
        self._values.clear()

    def train(self, order: np.ndarray | None, callbacks: Sequence[Any], epochs: int = 1) -> list[float]:
        """Take the steps of an epoch, its rows in this `order`, or those of several `epochs` of a single step each.

        The callbacks are told of each step's end. Returns the loss of each of the epochs, of the first also by the
        steps that were done before the run was resumed; fewer after Ctrl-C.

        Where the device works on its own, the host waits for it once, at the end, or for a stream of batches every so
        often. If something is not finite then, the steps are taken again one by one to find the first fault. Elsewhere
        each is looked at when it is done. Either way `_carry` goes back to the parameters whose loss was last finite.
        """
        step, feed, immediate = self._step_function, self._feed, self._net.backend.immediate
        number, epoch, looked = self._resumed, self.epoch, True
        self._start = before = self._carry
        feed.epoch = epoch
        self._began, self.complete = time.perf_counter(), False
        for batch, rows in feed.batches(order, number, epochs):
            number, before = number + 1, self._carry
            looked = number == feed.last
            keep = () if immediate else (self._start, self._safe, *[before] * looked)
            value, after = step.on_rows(before, batch, rows, keep)
            if immediate:
                if not (math.isfinite(value) and step.sound(after)):
                    self._count()
                    raise self._fault_in_step(number, before, batch.rows(rows), math.isfinite(value), after)
                self._safe = before
                self._took(value, feed.size(number))
            else:
                self._values.append((value, feed.size(number)))
            self._carry = after
            self.step += 1
            self._done = number
            if callbacks:
                self._count()
                self.epoch = epoch + (number - 1) // (feed.steps or number)
                try:
                    for callback in callbacks:
                        callback.step_end(self)
                finally:
                    self.epoch = epoch  # the others are counted once they have turned out finite
                self._began = time.perf_counter()
            if self.history.interrupted or (self.stopped and (feed.steps is None or feed.ends_epoch(number))):
                self.complete = feed.ends_epoch(number) or not self.history.interrupted
                looked = False
                break
            if looked and not immediate:
                self._check_finite(before, order, epochs)
            del batch  # before the next one comes
        else:
            self.complete = True
        if not (looked or immediate):
            self._check_finite(before if number == feed.last else self._start, order, epochs)
        self._count()
        self._fetch()
        return list(self._losses) if feed.steps == 1 else [self._epoch_loss.value]

    def _count(self) -> None:
        """Count the steps so far, and the seconds that passed in them."""
        self.history.steps = self.step
        self.history.seconds += time.perf_counter() - self._began

    def _check_finite(self, safe: Carry, order: np.ndarray | None, epochs: int) -> None:
        """Wait for the device, and raise if anything since the last check is not finite. If all of it is, so is the
        loss at `safe`.
        """
        if not self.finite:
            self._count()
            raise self._fault_since(self._feed.again(order, self._resumed, epochs))
        self._safe, self._start = safe, self._carry

    def _fault_since(self, batches: Iterator[tuple[int, Batch, slice]]) -> DivergenceError | ValueError:
        """Repeat the steps since the last check, up to the first that is not finite, and return its error."""
        carry, step = self._start, self._step_function
        for number, batch, rows in batches:
            value, after = step.on_rows(carry, batch, rows, (self._start, self._safe, carry))
            finite = math.isfinite(float(value))
            if not (finite and step.sound(after)):
                return self._fault_in_step(number, carry, batch.rows(rows), finite, after)
            self._safe, carry = carry, after
        self._carry = self._safe
        first = self._done - len(self._losses) + int(np.isfinite(self._losses).argmin()) + 1
        return self._divergence(first, "the loss, once and not again")

    def _fault_in_step(
        self, number: int, carry: Carry, batch: Batch, finite: bool, after: Carry
    ) -> DivergenceError | ValueError:
        """The step from `carry` to `after` on batch `number` does not stay finite, though its loss may be."""
        if not finite and (misfit := self._step_function.misfit(carry, batch.x)):
            self._carry = carry
            self._discard_steps(number)
            before, place = divmod(number - 1, self._feed.steps or number)
            return ValueError(f"fit: in epoch {self.epoch + before + 1}, batch {place + 1}, {misfit}")
        self._carry = carry if finite else self._safe
        fault = self._step_function.fault(carry, batch)
        if not fault and not finite:
            fault = "the loss, once and not again"
        elif not fault:
            fault = "the optimizer's slots" if self._step_function.finite(after) else "the optimizer's update"
        return self._divergence(number, fault)

    def _divergence(self, number: int, fault: str) -> DivergenceError:
        self._discard_steps(number)
        before, batch = divmod(number - 1, self._feed.steps or number)
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

    def _discard_steps(self, number: int) -> None:
        """Discard step `number` of the epoch and those after it, taken by a device before the fault was seen."""
        self._slots_moved = True
        self._fetch()
        discarded = self._done - (number - 1)
        self.history.steps = self.step = self.step - discarded
        self._done = number - 1
        for _ in range(min(discarded, len(self._losses))):
            self._losses.pop()

    def publish_finite(self) -> None:
        """Give the network the last finite parameters, however the run ended."""
        step = self._step_function
        if not step.finite(self._carry):  # where the device works on its own, nobody has looked at it yet
            self._carry = self._start
        if self._published is not self._carry:
            step.publish(self._carry, self._net, last=True)
            self._published = self._carry
