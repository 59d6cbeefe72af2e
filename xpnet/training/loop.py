"""The training loop, and evaluation: the methods `fit` and `evaluate` of a network."""

import contextlib
import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ..backends import Array, device_of, is_compiled, namespace
from ..callbacks import Doctor
from ..common.checks import brief, flag, integer, non_negative, require
from ..common.publication import published
from ..common.warn import warn
from ..data import minibatches
from ..kernels import training_step
from ..kernels.reference import must_check_range, out_of_range
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..losses.objective import Objective, on_encoded
from ..metrics import OF_CLASSES, accuracy
from ..optimizers import Optimizer, Slots
from ..optimizers import __all__ as known_optimizers
from . import arguments, inputs
from .batches import Batch, Uncast, blocks
from .callback import Callback
from .checkpoints import Checkpoint, with_threads
from .guards import check_not_trained, claimed, signals_stop
from .history import History
from .progress import Progress
from .run import Run

AT_REST = 0.99  # an epoch's loss, as a multiple of that before, from which on it has come to rest
AHEAD = 32  # full-batch epochs that are handed to a GPU at a time, at most, where nothing looks at each of them
PACE = 0.1  # seconds that they may take before the next wait

Metrics = Mapping[str, str | Callable[..., Any]] | Sequence[str | Callable[..., Any]]


def fit(
    net: Placed,
    x: Any,
    y: Any,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int = 1,
    batch_size: int | None = 32,
    shuffle: bool = True,
    validation_data: tuple[Any, Any] | None = None,
    metrics: Metrics | None = None,
    callbacks: Sequence[Callback] | None = (),
    progress: bool = False,
    sample_weight: Any = None,
    l2: float = 0.0,
    slots: Slots | None = None,
    checkpoint: Checkpoint | None = None,
    resume: bool = False,
) -> History:
    """Train on x (n, features), or of more axes, and targets y (n, ...), NumPy's or the backend's own; returns the
    history. Large memory-mapped files and arrays of integers are never copied as a whole: each batch is cast.

    Each epoch goes through all rows, shuffled unless `shuffle=False`, in batches of `batch_size` (None: all at once),
    the last one smaller where they do not divide. The random order continues from call to call, from `initialize`'s
    seed; the optimizer starts afresh, or from `slots`, an earlier history's.

    `validation_data` (x, y) is evaluated after each epoch with the loss and `metrics`: a list of those in `xn.metrics`,
    by name or as functions, or a dict {name: one of these, or a function of your own}. The library's know from the loss
    what outputs and targets mean; yours is called with (prediction, target), the target as the loss encodes it (classes
    as one-hot rows), and gives one number. None means accuracy, where the loss is of classes.

    `sample_weight`, numbers of at least 0, weights the rows (n,) or their positions (n, ...), and `l2` adds a
    penalty on the trained parameters W with two axes or more (weights, not biases or gammas): scikit-learn's alpha.
    With a loss of reduction "mean" a batch of N rows has (Σ w L + l2/2 Σ W²) / N, where the weights w are divided
    by their mean over all n rows; with "sum" Σ w L + l2/2 Σ W², the weights as given. Both are in the history's
    loss. Validation has neither.

    `callbacks` are called in their order; `progress` shows a bar, or lines where the output is a file. A GPU is waited
    for at an epoch's end alone. Full-batch epochs (`batch_size=None`) go there several at a time, for about 0.1 s,
    unless there is `validation_data`, `checkpoint` or a callback with a hook for each epoch: see `Callback`.
    `checkpoint` saves the run's whole state as it goes, and `resume=True` goes on from there as if nothing had
    happened: see `Checkpoint`.

    Ctrl-C ends the training after the current step, and `fit` returns; a second one raises KeyboardInterrupt at once.
    Raises ValueError or TypeError for what it cannot train on, before the first step, RuntimeError for a network that
    another `fit` is training, ValueError at the first batch with outputs outside [0, 1] for a loss of probabilities,
    and DivergenceError when the loss or a gradient stops being finite. The network keeps the last sound parameters.
    Warns of a loss of logits on a network that ends in Softmax or Sigmoid.
    """
    check_not_trained(net)  # before anything else is looked at
    epochs = integer("fit: epochs", epochs)
    shuffle, progress = flag("fit: shuffle", shuffle), flag("fit: progress", progress)
    resume = flag("fit: resume", resume)
    methods = "init", "lookahead", "update"
    require("fit: optimizer", optimizer, methods, "xn.Adam(learning_rate=0.001)", known_optimizers)
    metrics = arguments.check_metrics("fit", metrics)
    if metrics and validation_data is None:
        raise ValueError("fit: metrics are taken on validation_data alone, and there is none; evaluate takes any data")
    arguments.check_checkpoint(checkpoint, resume)
    own = arguments.check_callbacks(callbacks)
    arguments.check_monitored(own, validation_data is not None)
    x, y = inputs.rows_of_pair(net, "fit", x, y, loss)
    rows = x.shape[0]
    batch_size = rows if batch_size is None else integer("fit: batch_size", batch_size)
    slices = minibatches(rows, batch_size)
    arguments.check_smallest_batch(net, rows, slices[-1].stop - slices[-1].start)
    objective = Objective(loss, non_negative("fit: l2", l2))
    data = Batch(x, y, inputs.weights_for(net, "fit", loss, y, sample_weight))
    held_out = inputs.validation_pair(net, validation_data, loss)
    arguments.warn_of_squashed_logits(net, "fit", loss)
    hooks = [*([Progress()] if progress else []), *own, *([checkpoint] if checkpoint else [])]

    lock = checkpoint.locked() if checkpoint else contextlib.nullcontext()
    with net.backend.scope(), lock, contextlib.ExitStack() as threads, contextlib.ExitStack() as claim:
        claim.enter_context(claimed(net))
        if held_out and metrics:
            try_metrics(net, *held_out, loss, metrics)
        saved = None
        if checkpoint:
            arrays = {name: a for name, a in data._asdict().items() if a is not None}
            arrays |= dict(zip(("validation x", "validation y"), held_out or (), strict=False))
            settings = {"loss": loss, "l2": l2, "optimizer": optimizer, "batch_size": batch_size, "shuffle": shuffle}
            saved = checkpoint.open(net, arrays, settings | {"metrics": dict(metrics or {})}, own, len(slices), resume)
        if saved:
            threads.enter_context(with_threads(saved.threads))
            step = saved.begin(net, own, lambda twin: training_step(twin, objective, copy.copy(optimizer), x.shape))
        else:
            step = training_step(net, objective, copy.copy(optimizer), x.shape)
            if slots is not None:
                step.go_on(slots)
        run = Run(net, step, data, slices, epochs)
        one_by_one = held_out or net.backend.immediate or any(map(arguments.looks_at_epochs, hooks))
        most, together = 1 if one_by_one or len(slices) > 1 else AHEAD, 1  # epochs before the next look at them
        if saved:
            saved.restore(run)

        begun: list[Callback] = []

        with signals_stop(run, terminate=checkpoint is not None):
            try:
                for callback in hooks:
                    begun.append(callback)
                    callback.train_begin(run)
                if saved:
                    saved.restore_callbacks(run, own)
                while not run.over:
                    if not run.amid_epoch:  # one that a resumed run is in the middle of has had it
                        for callback in hooks:
                            callback.epoch_begin(run)
                    order = run.order(rows) if shuffle and len(slices) > 1 else None
                    began = time.perf_counter()
                    losses = run.train(order, hooks, min(together, epochs - run.epoch))
                    quick = time.perf_counter() - began < PACE
                    together = min(2 * together, most) if quick else max(1, together // 2)
                    if len(losses) < len(slices):  # Ctrl-C: an unfinished epoch has no history
                        break
                    for first in range(0, len(losses), len(slices)):
                        run.end_epoch()
                        epoch = losses[first : first + len(slices)]
                        run.history.record({"loss": mean_of(epoch, slices, objective)})
                    if held_out is not None:
                        scores = scored(run.net, "fit", *held_out, loss, metrics, max(batch_size, 1024))
                        run.history.record({f"val_{name}": score for name, score in scores.items()})
                    for callback in hooks:
                        callback.epoch_end(run)
                if checkpoint:
                    checkpoint.save(run)
                run.history.slots = run.slots
            finally:
                run.settle()
                claim.close()  # train_end may train on
                with contextlib.ExitStack() as ends:  # each that was begun comes to its end, whatever another raises
                    for callback in reversed(begun):
                        ends.callback(callback.train_end, run)
        if not any(isinstance(callback, Doctor) for callback in own):
            warn_of_constant_outputs(run)
    net.rng = run.rng
    if checkpoint and run.signal:
        checkpoint.leave(run)
    return run.history


def warn_of_constant_outputs(run: Run) -> None:
    """Warn of a training that has ended finite and useless: some 64 rows get one output, to the bit.

    Its loss has come to rest, or grows: otherwise nothing is computed.
    """
    losses = run.history.get("loss", [])
    if len(losses) < 2 or losses[-1] < AT_REST * losses[-2]:
        return
    rows = slice(0, None, max(1, run.x.shape[0] // 64))
    x, y, _ = run.data.rows(rows)
    if not differ(run.net._infer(x)) and differ(x) and differ(y):
        warn(
            "fit: the network has ended with one output for all rows: it tells nothing apart, as where every unit of a "
            "layer is dead. Train it with callbacks=[xn.Doctor()], which says what went wrong, where, and what may "
            "mend it",
            RuntimeWarning,
        )


def differ(a: Array) -> bool:
    """Whether any row differs from the first."""
    return bool(namespace(a).any(a != a[:1, ...]))


def mean_of(losses: np.ndarray, slices: Sequence[slice], objective: Objective) -> float:
    """The loss of an epoch from those of its batches: their sum, or the mean over all rows."""
    if len(losses) == 1:
        return float(losses[0])
    if objective.reduction == "sum":
        return float(losses.sum())
    rows = np.array([s.stop - s.start for s in slices], dtype=np.float64)
    return float(losses @ (rows / rows.sum()))


def evaluate(
    net: Placed,
    x: Any,
    y: Any,
    loss: Loss,
    metrics: Metrics | None = None,
    batch_size: int | None = None,
) -> dict[str, float]:
    """The loss and the metrics (as in `fit`) of the outputs for x: {"loss": ..., "accuracy": ...}.

    With `batch_size`, that many rows at a time; without, all at once, or where x is large and memory-mapped or of
    integers, in blocks. Raises ValueError or TypeError for what it cannot take, outputs outside [0, 1] for a loss of
    probabilities among them.
    """
    metrics = arguments.check_metrics("evaluate", metrics)
    x, encoded = inputs.rows_of_pair(net, "evaluate", x, y, loss)
    arguments.warn_of_squashed_logits(net, "evaluate", loss)
    with net.backend.scope():
        return scored(net, "evaluate", x, encoded, y, loss, metrics, batch_size)


def scored(
    net: Placed,
    who: str,
    x: Array,
    y: Array,
    given: Any,
    loss: Loss,
    metrics: Mapping[str, Callable[..., Any]] | None,
    batch_size: int | None,
) -> dict[str, float]:
    """The loss and the metrics of the network's predictions, as floats; y encodes the `given` target."""
    prediction = forward_in_batches(net, who, x, batch_size)
    if must_check_range(net, loss) and (misfit := out_of_range(loss, prediction)):
        raise ValueError(f"{who}: {misfit}")
    if metrics is None:
        metrics = {} if getattr(loss, "threshold", None) is None else {"accuracy": accuracy}
    value, _ = on_encoded(loss, prediction, y)
    return {"loss": float(value)} | measured(who, prediction, y, given, loss, metrics)


def measured(
    who: str, prediction: Array, y: Array, given: Any, loss: Loss, metrics: Mapping[str, Callable[..., Any]]
) -> dict[str, float]:
    """The metrics as floats. Those of classes go by the loss and the target as it was given, others by its encoding."""
    scores = {}
    for name, metric in metrics.items():
        try:
            value = metric(prediction, given, loss=loss) if metric in OF_CLASSES else metric(prediction, y)
        except Exception as error:
            error.add_note(
                f"in the metric {name!r}, which {who} calls with the prediction, of shape {tuple(prediction.shape)}, "
                f"and the target as the loss has it, of shape {tuple(y.shape)}, for one number"
            )
            raise
        shape = tuple(getattr(value, "shape", ()))
        if shape or not hasattr(value, "__float__"):
            came = f"an array of shape {shape}" if shape else brief(value)
            raise TypeError(f"{who}: the metric {name!r} gave {came}, expected one number")
        scores[name] = float(value)
    return scores


def try_metrics(
    net: Placed, x: Array, y: Array, given: Any, loss: Loss, metrics: Mapping[str, Callable[..., Any]]
) -> None:
    """Take this library's metrics of classes of outputs that are 0: what they refuse is found before the first step."""
    found = {name: m for name, m in metrics.items() if m in OF_CLASSES}
    measured("fit", inputs.zeros_for(net, x), y, given, loss, found)


def forward_in_batches(net: Placed, who: str, x: Array, batch_size: int | None) -> Array:
    """The network's outputs for inference, at most `batch_size` rows at a time, all with the arrays of one step."""
    uncast = isinstance(x, Uncast)
    if (batch_size is None and not uncast) or (
        batch_size is not None and x.shape[0] <= integer(f"{who}: batch_size", batch_size)
    ):
        x = x[:, ...] if uncast else x
        return published.read(net, lambda net: net._infer(x))
    slices = blocks(x.shape) if batch_size is None else minibatches(x.shape[0], batch_size)
    return published.read(net, lambda net: joined((net._infer(x[rows, ...]) for rows in slices), slices))


def joined(parts: Iterator[Array], slices: Sequence[slice]) -> Array:
    """The parts one after another, each in its slice of one array: many small ones would lie in memory between what is
    needed for the next and then free, and keep that from being given back.
    """
    first = next(parts)
    xp = namespace(first)
    if is_compiled(xp):  # its arrays are not written to
        return xp.concat([first, *parts], axis=0)
    shape = slices[-1].stop, *first.shape[1:]
    whole = xp.empty(shape[::-1], dtype=first.dtype, device=device_of(first))
    whole = xp.permute_dims(whole, tuple(reversed(range(len(shape)))))  # the batch contiguous, as `linear` has it
    whole[slices[0], ...] = first
    for rows in slices[1:]:
        whole[rows, ...] = next(parts)
    return whole
