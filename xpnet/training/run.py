"""A training run: its steps, epoch by epoch, and the state it keeps in case one of them is not finite."""

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

RECENT = 1000  # steps: the losses of the last so many of an epoch are kept


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


class Run:
    """A training run, as callbacks see it.

    `epoch` and `step` count what is finished, `step` over the whole run. `net` is the network as trained so far.
    `optimizer` is the run's own copy: a `learning_rate` that is set there holds from the next step on. The run trains
    on `x`, `y` as the loss encodes it and `weight` as the loss takes it (divided by the mean, or as given for a sum;
    None without weights), with `loss`; `data` is a batch of these three. Of a source, they are the first batch. A large
    x that is memory-mapped or of integers is not copied: `run.x[rows, ...]` is an array on the network's backend.

    `steps_per_epoch` is None until the batches of a source have been counted.
    """

    def __init__(self, net: Placed, step_function: Step, feed: Feed, epochs: int):
        self.data, self.loss = feed.sample, step_function.objective
        self.x, self.y, self.weight = feed.sample
        self.epochs = epochs
        self.epoch = self.step = 0
        self.history = History()
        self.stopped = False  # whether a callback has stopped the run; if resumed, it ends at once
        self.signal = 0  # the number of the signal that stopped the run
        self.optimizer = step_function.optimizer
        self.rng = copy.deepcopy(net.rng)  # draws the order of the rows
        self.rng_before: Any = None  # the state of `rng` before the current epoch
        self._resumed = 0  # steps of the current epoch before the run was resumed
        self._done = 0  # steps of the current epoch so far
        self._losses: deque[float] = deque(maxlen=RECENT)  # the epoch's latest losses that are on the host
        self._epoch_loss, self._rows = 0.0, 0  # the epoch's loss, and its number of rows, of the losses on the host
        self._values: list[tuple[Any, int]] = []  # later losses, on the device, with the numbers of rows of the batches
        self._slots_moved = False  # whether a step that was not finite has updated the optimizer's slots
        self._began = 0.0  # when the time started that `history.seconds` does not include yet
        self._net, self._step_function, self._feed = net, step_function, feed
        # the state after the last step, as published to the network, at the last finite loss, and at the last check
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
        """End the training after the current step, because of the signal of this number."""
        self.history.interrupted = True
        self.signal = number

    @property
    def amid_epoch(self) -> bool:
        """Whether the next epoch was begun before the run was resumed."""
        return self._resumed > 0

    @property
    def over(self) -> bool:
        """Whether no epoch is left to train. An epoch that was begun before the run was resumed is finished first."""
        return self.epoch >= self.epochs or self.history.interrupted or (self.stopped and not self.amid_epoch)

    @property
    def slots(self) -> Slots:
        """The optimizer's slots, in the form of `Optimizer.init`; later steps may write to these arrays.

        Raises RuntimeError once the run has diverged, since the step that was not finite has already updated them.
        """
        if self._slots_moved:
            raise RuntimeError("run.slots: the step that was not finite has already updated the optimizer's slots")
        return self._step_function.slots(self._carry)

    @property
    def losses(self) -> np.ndarray:
        """The losses of the epoch's steps so far, at most the last 1,000. Waits for the device."""
        self._fetch()
        return np.array(self._losses, np.float64)

    @property
    def under_way(self) -> tuple[int, float, int, str]:
        """The current epoch's number of steps, loss and number of rows so far, and the digest of a stream's first
        batch, as `resume_from` takes them. Waits for the device.
        """
        self._fetch()
        return self._done, self._epoch_loss, self._rows, self._feed.first_digest

    def _fetch(self) -> None:
        """Fetch the losses of all steps to the host."""
        if self._values:
            values, sizes = zip(*self._values, strict=True)
            for loss, rows in zip(self._net.backend.stack(values), sizes, strict=True):
                self._add_loss(loss, rows)
            self._values.clear()

    def _add_loss(self, loss: Any, rows: int) -> None:
        """Record the loss l of a step on n rows. The epoch's loss is the sum, or the mean m over all N rows so far,
        m ← m + (l − m) n / N.
        """
        self._losses.append(loss := float(loss))
        self._rows += rows
        self._epoch_loss += loss if self.loss.reduction == "sum" else (loss - self._epoch_loss) * (rows / self._rows)

    @property
    def finite(self) -> bool:
        """Whether everything is finite so far. Waits for the device."""
        sound = self._step_function.sound(self._carry)  # before the losses are fetched, so that the host waits once
        self._fetch()
        return sound and math.isfinite(self._epoch_loss)

    def resume_from(
        self, epoch: int, step: int, history: History, rng_state: Any,
        under_way: tuple[int, float, int, str], losses: np.ndarray,
    ) -> None:  # fmt: skip
        """Continue from the position and history of an earlier run; `under_way` and `losses` are those properties."""
        self.epoch, self.step, self.history = epoch, step, history
        self._done, self._epoch_loss, self._rows, self._feed.expected_digest = under_way
        self._resumed = self._done
        self._losses.extend(losses.tolist())
        history.steps = history.resumed = step
        self.rng.bit_generator.state = rng_state

    def order(self) -> np.ndarray:
        """Draw the random order of the rows for the next epoch."""
        self.rng_before = self.rng.bit_generator.state
        return self._feed.order(self.rng)

    def end_epoch(self) -> None:
        """Count the epoch as finished."""
        self.epoch += 1
        self.rng_before, self._resumed, self._done = None, 0, 0
        self._epoch_loss, self._rows = 0.0, 0
        self._losses.clear()
        self._values.clear()

    def train(self, order: np.ndarray | None, callbacks: Sequence[Any], epochs: int = 1) -> list[float]:
        """Take the steps of an epoch, with its rows in this `order`, or of several `epochs` of a single step each.

        Calls the callbacks' `step_end` after each step. Returns the loss of each epoch, including the steps before the
        run was resumed; [] if Ctrl-C has left it unfinished.

        If the device works asynchronously, the host waits for it once, at the end, or repeatedly for a stream. If
        anything is not finite then, the steps are repeated one by one to find the first fault. On other devices, each
        step is checked when it is done. Either way, a fault sets `_carry` back to the last parameters with a finite
        loss.
        """
        step, feed, immediate = self._step_function, self._feed, self._net.backend.immediate
        number, epoch, checks, complete = self._resumed, self.epoch, True, True
        self._start = before = self._carry
        feed.epoch = epoch
        self._began = time.perf_counter()
        for batch, rows in feed.batches(order, number, epochs):
            number, before = number + 1, self._carry
            checks = number == feed.wait_after
            keep = () if immediate else (self._start, self._safe, *[before] * checks)
            value, after = step.on_rows(before, batch, rows, keep)
            if immediate:
                if not (math.isfinite(value) and step.sound(after)):
                    self._count()
                    raise self._fault_in_step(number, before, batch.rows(rows), math.isfinite(value), after)
                self._safe = before
                self._add_loss(value, feed.size(number))
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
                    self.epoch = epoch  # later epochs are counted once they are known to be finite
                self._began = time.perf_counter()
            if self.history.interrupted or (self.stopped and (feed.steps is None or feed.ends_epoch(number))):
                complete = feed.ends_epoch(number) or not self.history.interrupted
                checks = False
                break
            if checks and not immediate:
                self._check_finite(before, order, epochs)
            del batch  # before the next one comes
        if not (checks or immediate):
            self._check_finite(before if number == feed.wait_after else self._start, order, epochs)
        self._count()
        self._fetch()
        if not complete:
            return []
        return list(self._losses) if feed.steps == 1 else [self._epoch_loss]

    def _count(self) -> None:
        """Update the history's number of steps, and its seconds."""
        self.history.steps = self.step
        self.history.seconds += time.perf_counter() - self._began

    def _check_finite(self, safe: Carry, order: np.ndarray | None, epochs: int) -> None:
        """Wait for the device, and raise if anything since the last check is not finite. `safe` is a state whose loss
        is among the losses checked.
        """
        if not self.finite:
            self._count()
            raise self._fault_since(self._feed.replay(order, self._resumed, epochs))
        self._safe, self._start = safe, self._carry

    def _fault_since(self, batches: Iterator[tuple[int, Batch, slice]]) -> DivergenceError | ValueError:
        """Repeat the steps since the last check up to the first that is not finite; return its error."""
        carry, step = self._start, self._step_function
        for number, batch, rows in batches:
            value, after = step.on_rows(carry, batch, rows, (self._start, self._safe, carry))
            finite = math.isfinite(float(value))
            if not (finite and step.sound(after)):
                return self._fault_in_step(number, carry, batch.rows(rows), finite, after)
            self._safe, carry = carry, after
        self._carry = self._safe
        first = self._done - len(self._losses) + int(np.isfinite(self._losses).argmin()) + 1
        return self._divergence(first, "the loss, but not when the step was repeated")

    def _fault_in_step(
        self, number: int, carry: Carry, batch: Batch, finite: bool, after: Carry
    ) -> DivergenceError | ValueError:
        """Return the error for the step from `carry` to `after` on batch `number`, which is not finite.

        `finite` is whether its loss is.
        """
        if not finite and (misfit := self._step_function.misfit(carry, batch.x)):
            self._carry = carry
            self._discard_steps(number)
            before, place = divmod(number - 1, self._feed.steps or number)
            return ValueError(f"fit: in epoch {self.epoch + before + 1}, batch {place + 1}, {misfit}")
        self._carry = carry if finite else self._safe
        fault = self._step_function.fault(carry, batch)
        if not fault and not finite:
            fault = "the loss, but not when the step was repeated"
        elif not fault:
            fault = "the optimizer's slots" if self._step_function.finite(after) else "the optimizer's update"
        return self._divergence(number, fault)

    def _divergence(self, number: int, fault: str) -> DivergenceError:
        self._discard_steps(number)
        before, batch = divmod(number - 1, self._feed.steps or number)
        for loss in self.losses[:before]:  # finished epochs, each of a single step
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
        """Discard step `number` of the epoch and those after it, which a device took before the fault was found."""
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
        if not step.finite(self._carry):  # an asynchronous device may not have been checked since the last steps
            self._carry = self._start
        if self._published is not self._carry:
            step.publish(self._carry, self._net, last=True)
            self._published = self._carry
