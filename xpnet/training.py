"""The training loop, evaluation, and the checks on what they are given."""

import contextlib
import copy
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array, Backend
from .callbacks import Callback, History, Progress
from .checks import whole
from .data import minibatches
from .kernels import training_step
from .losses import Loss, reduced
from .metrics import accuracy
from .optimizers import Optimizer
from .step import Carry, Step, check_part

if TYPE_CHECKING:
    from .network import Sequential

Metric = Callable[[Array, Array], Any]
Batch = tuple[Array, Array, Any]  # x, y, and which rows of them: a slice, or their numbers for a step that gathers
GATHER = 2**17  # entries of x: an epoch of up to so many is put into its order at once, a longer one batch by batch


class DivergenceError(ArithmeticError):
    """The loss or a gradient stopped being finite. The network keeps the parameters whose loss was last finite.

    `epoch` and `batch` say where, counted from 1; `history` holds the epochs before.
    """

    def __init__(self, message: str, epoch: int, batch: int, history: History):
        super().__init__(message)
        self.epoch, self.batch, self.history = epoch, batch, history

    def __reduce__(self) -> tuple[Any, ...]:
        return DivergenceError, (*self.args, self.epoch, self.batch, self.history)


class Run:
    """A training run, as callbacks see it.

    `epoch` and `step` count what is finished, `step` over the whole run. `net` is the network as trained so far.
    """

    def __init__(self, net: "Sequential", step_function: Step, epochs: int, steps_per_epoch: int):
        self.epochs, self.steps_per_epoch = epochs, steps_per_epoch
        self.epoch = self.step = 0
        self.history = History()
        self.stop = False
        self._net, self._step_function = net, step_function
        self._carry = self._published = self._safe = self._start = step_function.start

    @property
    def net(self) -> "Sequential":
        if self._published is not self._carry:
            self._step_function.publish(self._carry, self._net)
            self._published = self._carry
        return self._net

    def train_epoch(self, batches: Callable[[], Iterator[Batch]], step_end: Callable[[], None]) -> np.ndarray:
        """Take a step on each batch, until Ctrl-C; returns the losses.

        Where the device works on its own, the host waits for it once, at the end. If something is not finite then, the
        epoch is run again step by step to find the first fault. Elsewhere each step is looked at when it is done.
        Either way `_carry` goes back to the parameters whose loss was last finite.
        """
        step, immediate = self._step_function, self._net.backend.immediate
        self._start, values, number = self._carry, [], 0
        began = time.perf_counter()
        for number, batch in enumerate(batches(), 1):
            before = self._carry
            keep = () if immediate else (self._start, self._safe, *[before] * (number == self.steps_per_epoch))
            value, self._carry = step.on_rows(before, *batch, keep)
            if immediate:
                if not (math.isfinite(value) and step.finite(self._carry)):
                    raise self._divergence(number, before, batch, math.isfinite(value))
                self._safe = before
            values.append(value)
            self.step += 1
            step_end()
            if self.history.interrupted:
                break
        sound = immediate or step.finite(self._carry)  # asked before the losses: the host is then woken once
        losses = self._net.backend.stack(values)
        self.history.seconds += time.perf_counter() - began
        self.history.steps = self.step
        if not immediate:
            if not (sound and np.isfinite(losses).all()):
                raise self._divergence_in(batches(), losses)
            self._safe = before if number == self.steps_per_epoch else self._start
        return losses

    def _divergence_in(self, batches: Iterator[Batch], losses: np.ndarray) -> DivergenceError:
        """Take the epoch's steps again, up to the first that does not stay finite."""
        carry, step = self._start, self._step_function
        for number, batch in enumerate(batches, 1):
            value, after = step.on_rows(carry, *batch, (self._start, self._safe, carry))
            finite = math.isfinite(float(value))
            if not (finite and step.finite(after)):
                return self._divergence(number, carry, batch, finite)
            self._safe, carry = carry, after
        self._carry = self._safe
        return self._diverged(int(np.isfinite(losses).argmin()) + 1, "the loss, once and not again")

    def _divergence(self, number: int, carry: Carry, batch: Batch, finite: bool) -> DivergenceError:
        """The step from `carry` on batch `number` does not stay finite, though its loss may be."""
        x, y, rows = batch
        self._carry = carry if finite else self._safe
        fault = self._step_function.fault(carry, x[rows, ...], y[rows, ...])
        return self._diverged(number, fault or ("the optimizer's update" if finite else "the loss, once and not again"))

    def _diverged(self, number: int, fault: str) -> DivergenceError:
        return DivergenceError(
            f"fit: not finite in epoch {self.epoch + 1}, batch {number}: {fault}. The network keeps the parameters "
            "whose loss was last finite. Lower the learning rate, set clip_norm, or scale the inputs.",
            self.epoch + 1,
            number,
            self.history,
        )

    def settle(self) -> None:
        """At the end, whatever ended it: give the network the last parameters that are finite."""
        step = self._step_function
        self._carry = next(c for c in (self._carry, self._start, self._safe) if step.finite(c))
        _ = self.net


def fit(
    net: "Sequential",
    x: Any,
    y: Any,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int | None,
    shuffle: bool,
    validation_data: tuple[Any, Any] | None,
    metrics: Mapping[str, Metric] | None,
    callbacks: Sequence[Callback] | None,
    progress: bool,
) -> History:
    """`Sequential.fit`, whose docstring it has."""
    epochs = whole("fit: epochs", epochs)
    check_part("optimizer", optimizer, "update", "xn.Adam(learning_rate=0.001)")
    check_metrics(metrics)
    hooks = [*([Progress()] if progress else []), *check_callbacks(callbacks)]
    x, y = pair(net, "fit", x, y, loss)
    rows = x.shape[0]
    batch_size = rows if batch_size is None else whole("fit: batch_size", batch_size)
    slices = minibatches(rows, batch_size)
    check_smallest_batch(net, rows, slices[-1].stop - slices[-1].start)
    held_out = None
    if validation_data is not None:
        if not isinstance(validation_data, (tuple, list)) or len(validation_data) != 2:
            raise ValueError("fit: validation_data must be a pair (x, y)")
        held_out = pair(net, "fit: validation data", *validation_data, loss)
    sizes = np.array([s.stop - s.start for s in slices])
    weights = np.ones(len(sizes)) if getattr(loss, "reduction", "mean") == "sum" else sizes / rows
    rng = copy.deepcopy(net.rng)
    step = training_step(net, loss, optimizer)
    run = Run(net, step, epochs, len(slices))

    def call(hook: str) -> None:
        for callback in hooks:
            getattr(callback, hook)(run)

    def step_end() -> None:
        for callback in hooks:
            callback.step_end(run)

    with net.backend.scope(), ctrl_c_stops(run):
        try:
            call("train_begin")
            while run.epoch < epochs and not run.stop:
                call("epoch_begin")
                order = rng.permutation(rows) if shuffle and len(slices) > 1 else None
                losses = run.train_epoch(lambda: batches_of(step, x, y, slices, order), step_end)  # noqa: B023
                if len(losses) < len(slices):  # Ctrl-C: an unfinished epoch has no history
                    break
                run.epoch += 1
                run.history.record({"loss": float(losses @ weights)})
                if held_out is not None:
                    scores = scored(run.net, *held_out, loss, metrics, max(batch_size, 1024))
                    run.history.record({f"val_{name}": score for name, score in scores.items()})
                call("epoch_end")
        finally:
            run.settle()
            call("train_end")
    net.rng = rng
    return run.history


def evaluate(
    net: "Sequential",
    x: Any,
    y: Any,
    loss: Loss,
    metrics: Mapping[str, Metric] | None,
    batch_size: int | None,
) -> dict[str, float]:
    """`Sequential.evaluate`, whose docstring it has."""
    check_metrics(metrics)
    x, y = pair(net, "evaluate", x, y, loss)
    with net.backend.scope():
        return scored(net, x, y, loss, metrics, batch_size)


def scored(
    net: "Sequential", x: Array, y: Array, loss: Loss, metrics: Mapping[str, Metric] | None, batch_size: int | None
) -> dict[str, float]:
    """The loss and the metrics of the network's predictions, as floats."""
    prediction = forward_in_batches(net, x, batch_size)
    if metrics is None:
        threshold = getattr(loss, "threshold", None)
        metrics = {} if threshold is None else {"accuracy": lambda p, t: accuracy(p, t, threshold)}
    value, _ = reduced(loss)(prediction, y)
    return {"loss": float(value)} | {name: float(metric(prediction, y)) for name, metric in metrics.items()}


def forward_in_batches(net: "Sequential", x: Array, batch_size: int | None) -> Array:
    """The network's outputs for inference, at most `batch_size` rows at a time."""
    if batch_size is None or x.shape[0] <= whole("predict: batch_size", batch_size):
        return net.infer(x)
    parts = [net.infer(x[rows, ...]) for rows in minibatches(x.shape[0], batch_size)]
    return net.backend.xp.concat(parts, axis=0)


# --- batches ----------------------------------------------------------------------------------------------------------


def batches_of(step: Step, x: Array, y: Array, slices: Sequence[slice], order: np.ndarray | None) -> Iterator[Batch]:
    """The batches of x and y, slice by slice, in this order of the rows; None: as they lie."""
    backend = step.backend
    if order is None:
        yield from ((x, y, rows) for rows in slices)
    elif step.gathers:
        yield from ((x, y, order[rows]) for rows in slices)
    elif math.prod(x.shape) <= GATHER:
        x, y = take_rows(backend, order, x, y)
        yield from ((x, y, rows) for rows in slices)
    else:
        for rows in slices:
            yield *take_rows(backend, order[rows], x, y), slice(0, rows.stop - rows.start)


def take_rows(backend: Backend, order: np.ndarray, x: Array, y: Array) -> tuple[Array, Array]:
    """The rows of x and y in this order, y's with the batch contiguous as the losses have it."""
    index, xp = backend.asarray(order), backend.xp
    return xp.take(x, index, axis=0), xp.take(y.T, index, axis=1).T if y.ndim == 2 else xp.take(y, index, axis=0)


# --- checks -----------------------------------------------------------------------------------------------------------


def pair(net: "Sequential", who: str, x: Any, y: Any, loss: Loss) -> Batch:
    """X and y checked and moved to the network's backend, y encoded as its loss takes it."""
    check_part("loss", loss, "value_and_grad", "xn.SoftmaxCrossEntropy()")
    x = net.check_input(f"{who}: x", x)
    if np.shape(y)[:1] != (x.shape[0],):
        rows = f"{np.shape(y)[0]} rows" if np.shape(y) else "no rows"
        raise ValueError(f"{who}: x has {x.shape[0]} rows and y {rows}; each row of x needs its target")
    with net.backend.scope():
        outputs = net.forward(x[:1, ...])[0].shape[1:]
        if not hasattr(loss, "encode"):
            return x, net.backend.adopt(f"{who}: y", y)
        like = net.backend.xp.zeros((x.shape[0], *outputs), dtype=x.dtype, device=net.backend.device)
        return x, loss.encode(y, like)


def check_metrics(metrics: object) -> None:
    """Refuse metrics that are not functions by name."""
    if metrics is not None and not (isinstance(metrics, Mapping) and all(map(callable, metrics.values()))):
        raise TypeError(f'metrics must be functions by name, such as {{"accuracy": xn.accuracy}}, got {metrics!r}')


def check_callbacks(callbacks: Sequence[Callback] | None) -> Sequence[Callback]:
    """The callbacks, if they are a sequence of them; None is none."""
    if isinstance(callbacks, Callback) or not all(isinstance(c, Callback) for c in callbacks or ()):
        raise TypeError(f"fit: callbacks must be a list of xn.Callback objects, got {callbacks!r}")
    return callbacks or ()


def check_smallest_batch(net: "Sequential", rows: int, smallest: int) -> None:
    """Refuse batches that a layer cannot train on, before the first step rather than in the last."""
    for prefix, layer in net.leaves():
        if smallest < layer.smallest_batch:
            raise ValueError(
                f"fit: {rows} rows leave a batch of {smallest} for layer {prefix}, {layer!r}, which needs at least "
                f"{layer.smallest_batch} to train on; choose another batch_size"
            )


@contextlib.contextmanager
def ctrl_c_stops(run: Run) -> Iterator[None]:
    """Ctrl-C asks the run to stop after its step; a second one raises KeyboardInterrupt at once.

    Only where Ctrl-C would have raised it: not in another thread, nor where a program handles the signal itself.
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or handler is not signal.default_int_handler:
        yield
        return

    def stop(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, handler)
        run.stop = run.history.interrupted = True

    signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
