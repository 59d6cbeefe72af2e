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

from .backend import Array
from .callbacks import Callback, History, Progress
from .checks import whole
from .data import minibatches
from .losses import Loss, reduced
from .metrics import accuracy
from .optimizers import Optimizer
from .step import Carry, Step, check_part

if TYPE_CHECKING:
    from .network import Sequential

Metric = Callable[[Array, Array], Any]
Batch = tuple[Array, Array]


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
        self._carry = self._published = self._safe = step_function.start

    @property
    def net(self) -> "Sequential":
        if self._published is not self._carry:
            self._step_function.publish(self._carry, self._net)
            self._published = self._carry
        return self._net

    def train_epoch(self, batches: Callable[[], Iterator[Batch]], step_end: Callable[[], None]) -> np.ndarray:
        """Take a step on each batch, until Ctrl-C; returns the losses.

        The host waits for the device once, at the end. Where something is not finite then, the epoch is run again
        step by step to find the first fault, and `_carry` goes back to the parameters whose loss was last finite.
        """
        start, last, values = self._carry, self._carry, []
        began = time.perf_counter()
        for batch in batches():
            last = self._carry
            value, self._carry = self._step_function(last, *batch)
            values.append(value)
            self.step += 1
            step_end()
            if self.history.interrupted:
                break
        backend = self._net.backend
        losses = backend.to_numpy(backend.xp.stack([backend.asarray(v) for v in values])).astype(np.float64)
        self.history.seconds += time.perf_counter() - began
        self.history.steps = self.step
        if not (np.isfinite(losses).all() and self._step_function.finite(self._carry)):
            self._carry = self._safe
            raise self._divergence(start, batches(), losses)
        self._safe = last
        return losses

    def _divergence(self, carry: Carry, batches: Iterator[Batch], losses: np.ndarray) -> DivergenceError:
        """Take the epoch's steps again, up to the first that does not stay finite."""
        number, fault = int(np.isfinite(losses).argmin()) + 1, "the loss, once and not when repeated"
        for i, batch in enumerate(batches, 1):
            value, after = self._step_function(carry, *batch)
            finite = math.isfinite(float(value))
            if not (finite and self._step_function.finite(after)):
                number, fault = i, self._step_function.fault(carry, *batch)
                self._carry = carry if finite else self._safe
                break
            self._safe, carry = carry, after
        return DivergenceError(
            f"fit: not finite in epoch {self.epoch + 1}, batch {number}: {fault}. The network keeps the parameters "
            "whose loss was last finite. Lower the learning rate, set clip_norm, or scale the inputs.",
            self.epoch + 1,
            number,
            self.history,
        )

    def settle(self) -> None:
        """At the end, whatever ended it: give the network the last parameters that are finite."""
        if not self._step_function.finite(self._carry):
            self._carry = self._safe
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
    run = Run(net, Step(net, loss, optimizer), epochs, len(slices))

    def call(hook: str) -> None:
        for callback in hooks:
            getattr(callback, hook)(run)

    with net.backend.scope(), ctrl_c_stops(run):
        try:
            call("train_begin")
            while run.epoch < epochs and not run.stop:
                call("epoch_begin")
                shuffled = (x, y) if not shuffle or len(slices) == 1 else take_rows(net, rng.permutation(rows), x, y)
                losses = run.train_epoch(lambda: batches_of(shuffled, slices), lambda: call("step_end"))  # noqa: B023
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


def take_rows(net: "Sequential", order: np.ndarray, *arrays: Array) -> Batch:
    """The arrays with their rows in this order: one gather an epoch, whose batches are then slices."""
    index = net.backend.asarray(order)
    x, y = (net.backend.xp.take(a, index, axis=0) for a in arrays)
    return x, y


def batches_of(arrays: Batch, slices: Sequence[slice]) -> Iterator[Batch]:
    """The batches of x and y, slice by slice."""
    x, y = arrays
    return ((x[rows, ...], y[rows, ...]) for rows in slices)


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
