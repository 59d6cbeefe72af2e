"""The training loop, evaluation, and the checks on what they are given."""

import contextlib
import copy
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array
from .callbacks import Callback, CSVLog, Doctor, EarlyStopping, History, Progress, ReduceOnPlateau, TimeLimit
from .callbacks.watching import Watching
from .checkpoints import Checkpoint
from .checks import whole
from .data import minibatches
from .kernels import training_step
from .losses import Loss, Objective, reduced
from .metrics import accuracy
from .optimizers import Optimizer, Slots
from .run import Run, batches_of

if TYPE_CHECKING:
    from .network import Sequential

AHEAD = 32  # full-batch epochs, which nobody looks at one by one, that a device of its own is given at a time

TRAINED: set[int] = set()  # the layers, by their id, that a `fit` under way trains

SILENT = {CSVLog, Doctor, EarlyStopping, ReduceOnPlateau, TimeLimit}  # callbacks that record nothing of validation
HOOKS = "train_begin", "epoch_begin", "step_end", "epoch_end", "train_end"

Metric = Callable[[Array, Array], Any]


def fit(
    net: "Sequential",
    x: Any,
    y: Any,
    *,
    loss: Loss,
    optimizer: Optimizer,
    epochs: int,
    batch_size: int | None,
    shuffle: bool,
    validation_data: tuple[Any, Any] | None,
    metrics: Mapping[str, Metric] | None,
    callbacks: Sequence[Callback] | None,
    progress: bool,
    sample_weight: Any,
    l2: float,
    slots: Slots | None,
    checkpoint: Checkpoint | None,
    resume: bool,
) -> History:
    """`Sequential.fit`, whose docstring it has."""
    check_not_trained(net)
    epochs = whole("fit: epochs", epochs)
    check_part("fit: optimizer", optimizer, ("init", "lookahead", "update"), "xn.Adam(learning_rate=0.001)")
    check_metrics(metrics)
    check_checkpoint(checkpoint, resume)
    own = check_callbacks(callbacks)
    check_monitored(own, validation_data is not None)
    x, y = pair(net, "fit", x, y, loss)
    rows = x.shape[0]
    batch_size = rows if batch_size is None else whole("fit: batch_size", batch_size)
    slices = minibatches(rows, batch_size)
    check_smallest_batch(net, rows, slices[-1].stop - slices[-1].start)
    objective, y, mass = weighted(net, "fit", loss, y, sample_weight, l2)
    held_out = None
    if validation_data is not None:
        check_validation_data(validation_data)
        try:
            held_out = pair(net, "fit: validation data", *validation_data, loss)
        except (ValueError, TypeError) as error:
            error.add_note("in fit's validation_data")
            raise
    hooks = [*([Progress()] if progress else []), *own, *([checkpoint] if checkpoint else [])]

    with net.backend.scope(), checkpoint.locked() if checkpoint else contextlib.nullcontext():
        saved = None
        if checkpoint:
            arrays = {"x": x, "y": y} | dict(zip(("validation x", "validation y"), held_out or (), strict=False))
            settings = {"loss": loss, "l2": l2, "optimizer": optimizer, "batch_size": batch_size, "shuffle": shuffle}
            saved = checkpoint.open(net, arrays, settings | {"metrics": list(metrics or ())}, own, resume)
        if saved:
            net.set_params(saved.params)
            net.set_state(saved.state)
            slots = saved.slots
        step = training_step(net, objective, copy.copy(optimizer))
        if slots is not None:
            step.go_on(slots)
        run = Run(net, step, epochs, len(slices))
        watched = hooks or held_out or net.backend.immediate  # epoch by epoch, or each step as it is done
        together = 1 if watched or len(slices) > 1 else AHEAD
        run.x, run.y, run.loss = x, y, objective
        if saved:
            saved.restore(run)

        begun: list[Callback] = []

        def step_end() -> None:
            for callback in hooks:
                callback.step_end(run)

        with signals_stop(run, terminate=checkpoint is not None):
            trained = check_not_trained(net)  # by now: another thread may have begun since the first look
            TRAINED.update(trained)
            try:
                for callback in hooks:
                    begun.append(callback)
                    callback.train_begin(run)
                if saved:
                    saved.restore_callbacks(run, own)
                while not run.over:
                    for callback in hooks:
                        callback.epoch_begin(run)
                    order = run.order(rows) if shuffle and len(slices) > 1 else None
                    ahead = min(together, epochs - run.epoch)
                    given = slices * ahead
                    losses = run.train(lambda skip: batches_of(step, x, y, given[skip:], order), step_end, ahead)  # noqa: B023
                    if len(losses) < len(slices):  # Ctrl-C: an unfinished epoch has no history
                        break
                    for first in range(0, len(losses), len(slices)):
                        run.end_epoch()
                        epoch = losses[first : first + len(slices)]
                        run.history.record({"loss": mean_of(epoch, mass, slices, order, objective)})
                    if held_out is not None:
                        scores = scored(run.net, "fit", *held_out, loss, metrics, max(batch_size, 1024))
                        run.history.record({f"val_{name}": score for name, score in scores.items()})
                    for callback in hooks:
                        callback.epoch_end(run)
                if checkpoint:
                    checkpoint.save(run)
                run.history.slots = run.slots
            finally:
                TRAINED.difference_update(trained)
                run.settle()
                with contextlib.ExitStack() as ends:  # each that was begun comes to its end, whatever another raises
                    for callback in reversed(begun):
                        ends.callback(callback.train_end, run)
    net.rng = run.rng
    if checkpoint and run.signal:
        checkpoint.leave(run)
    return run.history


def mean_of(
    losses: np.ndarray, mass: np.ndarray | None, slices: Sequence[slice], order: np.ndarray | None, objective: Objective
) -> float:
    """The loss of an epoch from those of its batches: their sum, or the mean over all rows with their `mass`."""
    if len(losses) == 1:
        return float(losses[0])
    if objective.reduction == "sum":
        return float(losses.sum())
    if mass is None:
        shares = np.array([s.stop - s.start for s in slices], dtype=np.float64)
    else:
        shares = np.add.reduceat(mass if order is None else mass[order], [s.start for s in slices])
    return float(losses @ (shares / shares.sum()))


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
        return scored(net, "evaluate", x, y, loss, metrics, batch_size)


def scored(
    net: "Sequential",
    who: str,
    x: Array,
    y: Array,
    loss: Loss,
    metrics: Mapping[str, Metric] | None,
    batch_size: int | None,
) -> dict[str, float]:
    """The loss and the metrics of the network's predictions, as floats."""
    prediction = forward_in_batches(net, who, x, batch_size)
    if metrics is None:
        threshold = getattr(loss, "threshold", None)
        metrics = {} if threshold is None else {"accuracy": lambda p, t: accuracy(p, t, threshold)}
    value, _ = reduced(loss)(prediction, y)
    scores = {"loss": float(value)}
    for name, metric in metrics.items():
        try:
            scores[name] = float(metric(prediction, y))
        except Exception as error:
            error.add_note(
                f"in the metric {name!r}, which {who} calls with the prediction, of shape {tuple(prediction.shape)}, "
                f"and the target as the loss has it, of shape {tuple(y.shape)}, for one number"
            )
            raise
    return scores


def forward_in_batches(net: "Sequential", who: str, x: Array, batch_size: int | None) -> Array:
    """The network's outputs for inference, at most `batch_size` rows at a time."""
    if batch_size is None or x.shape[0] <= whole(f"{who}: batch_size", batch_size):
        return net.infer(x)
    parts = [net.infer(x[rows, ...]) for rows in minibatches(x.shape[0], batch_size)]
    return net.backend.xp.concat(parts, axis=0)


# --- checks -----------------------------------------------------------------------------------------------------------


def pair(net: "Sequential", who: str, x: Any, y: Any, loss: Loss) -> tuple[Array, Array]:
    """x and y checked and moved to the network's backend, y encoded as its loss takes it."""
    check_part(f"{who.partition(':')[0]}: loss", loss, ("value_and_grad",), "xn.SoftmaxCrossEntropy()")
    with net.backend.scope():
        x = net.check_input(f"{who}: x", x)
        if np.shape(y)[:1] != (x.shape[0],):
            rows = f"{np.shape(y)[0]} rows" if np.shape(y) else "no rows"
            raise ValueError(f"{who}: x has {x.shape[0]} rows and y {rows}; each row of x needs its target")
        outputs = net.forward(x[:1, ...])[0].shape[1:]
        if not hasattr(loss, "encode"):
            return x, net.backend.adopt(f"{who}: y", y)
        like = net.backend.xp.zeros((x.shape[0], *outputs), dtype=x.dtype, device=net.backend.device)
        return x, loss.encode(y, like)


def weighted(
    net: "Sequential", who: str, loss: Loss, y: Array, sample_weight: Any, l2: float
) -> tuple[Objective, Array, np.ndarray | None]:
    """What to minimize, the targets it takes, and the weights on the host, None without."""
    if sample_weight is None:
        return Objective(loss, l2), y, None
    objective, backend = Objective(loss, l2, weighted=True), net.backend
    weights = backend.adopt(f"{who}: sample_weight", sample_weight)
    shape, expected = tuple(weights.shape), (y.shape[0],)
    if shape != expected or y.ndim != 2:
        wanted = f"one number for each row, {expected}" if y.ndim == 2 else "outputs of shape (n, k)"
        raise ValueError(f"{who}: sample_weight has shape {shape}, expected {wanted}")
    with backend.scope():
        weights = backend.xp.astype(weights, y.dtype)
        mass = backend.to_numpy(weights).astype(np.float64)
        if not (np.isfinite(mass).all() and (mass >= 0.0).all() and mass.any()):
            raise ValueError(f"{who}: sample_weight must be finite, at least 0, and not all 0")
        return objective, backend.xp.concat([y, weights[:, None]], axis=1), mass


def check_not_trained(net: "Sequential") -> list[int]:
    """The ids of the layers to train. Refuse one that is being trained: one fit would write over another's work."""
    layers = [(prefix, layer) for prefix, layer in net.leaves() if layer.trainable and layer.params]
    for prefix, layer in layers:
        if id(layer) in TRAINED:
            raise RuntimeError(
                f"fit: layer {prefix}, {layer!r}, is being trained by a fit that has not ended, in a callback or "
                "another thread; train a copy, copy.deepcopy(net)"
            )
    return [id(layer) for _, layer in layers]


def check_part(name: str, part: object, needed: Sequence[str], example: str) -> None:
    """Refuse a loss or an optimizer that is none, such as a name or a class, or that lacks a method."""
    lacking = [method for method in needed if not hasattr(part, method)]
    if isinstance(part, type) or lacking == list(needed):
        raise TypeError(f"{name} must be an object such as {example}, got {part!r}")
    if lacking:
        raise TypeError(f"{name} has no {' and no '.join(lacking)}, which {example} has: {part!r}")


def check_metrics(metrics: object) -> None:
    """Refuse metrics that are not functions by name."""
    if metrics is not None and not (isinstance(metrics, Mapping) and all(map(callable, metrics.values()))):
        raise TypeError(f'metrics must be functions by name, such as {{"accuracy": xn.accuracy}}, got {metrics!r}')
    if metrics is not None and "loss" in metrics:
        raise ValueError("a metric cannot be named 'loss': the loss is among what is returned, by that name")


def check_validation_data(given: Any) -> None:
    """Refuse what is no pair, such as Keras's share of the rows."""
    sized = isinstance(given, (tuple, list))
    if not sized or len(given) != 2:
        came = f"a {type(given).__name__}" + (f" of {len(given)}" if sized else "")
        raise ValueError(
            f"fit: validation_data must be a pair (x, y), got {came}; xn.data.train_test_split(x, y) gives the four "
            "arrays x_train, x_val, y_train, y_val"
        )


def check_callbacks(callbacks: Any) -> list[Callback]:
    """The callbacks as a list, if they are some, in any iterable; None is none."""
    own: list[Any] = list(callbacks or ()) if isinstance(callbacks or (), Iterable) else [None]
    if not all(isinstance(c, Callback) for c in own):
        raise TypeError(f"fit: callbacks must be a list of xn.Callback objects, got {callbacks!r}")
    for callback in own:
        if type(callback) is not Callback and not any(own_hook(callback, hook) for hook in HOOKS):
            raise TypeError(
                f"fit: {type(callback).__name__} has none of a callback's hooks, so nothing of it would be called: "
                f"name its methods {', '.join(HOOKS)}, each of (self, run)"
            )
    if any(isinstance(c, Checkpoint) for c in own):
        raise TypeError("fit: give the Checkpoint as checkpoint=..., by itself, not among the callbacks")
    return own


def check_monitored(callbacks: Sequence[Callback], validated: bool) -> None:
    """Refuse to watch a measure of validation without any, before the first epoch rather than after it."""
    for callback in callbacks:
        if type(callback) not in SILENT:  # it may record one
            return
        if isinstance(callback, Watching) and callback.monitor.startswith("val_") and not validated:
            raise callback.missing(["loss"])


def own_hook(callback: Callback, hook: str) -> bool:
    """Whether a hook is the callback's own, not the one of `Callback` that does nothing."""
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


def check_checkpoint(checkpoint: object, resume: bool) -> None:
    """Refuse what is no Checkpoint, and going on without one."""
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise TypeError(f"fit: checkpoint must be an xn.Checkpoint(folder), got {checkpoint!r}")
    if resume and checkpoint is None:
        raise ValueError("fit: resume=True needs checkpoint=xn.Checkpoint(folder), the folder to go on from")


def check_smallest_batch(net: "Sequential", rows: int, smallest: int) -> None:
    """Refuse batches that a layer cannot train on, before the first step rather than in the last."""
    for prefix, layer in net.leaves():
        if smallest < layer.smallest_batch:
            raise ValueError(
                f"fit: {rows} rows leave a batch of {smallest} for layer {prefix}, {layer!r}, which needs at least "
                f"{layer.smallest_batch} to train on; choose another batch_size"
            )


@contextlib.contextmanager
def signals_stop(run: Run, terminate: bool) -> Iterator[None]:
    """Ctrl-C, and where asked SIGTERM, has the run stop after its step; a second one does what it does without us.

    Only where it would have ended the program: not in another thread, nor where a program handles the signal itself.
    """
    numbers = [signal.SIGINT, *([signal.SIGTERM] if terminate else [])]
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    handlers = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is usual[n]}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}

    def stop(number: int, frame: object) -> None:
        signal.signal(number, handlers[signal.Signals(number)])
        run.history.interrupted = True
        run.signal = number

    for number in handlers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
