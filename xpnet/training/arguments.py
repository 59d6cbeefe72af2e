"""Checks of the arguments of `fit` and `evaluate`."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import callbacks as known
from ..callbacks import TimeLimit
from ..callbacks.watching import Watching
from ..common.checks import brief
from ..common.warn import warn
from ..kernels.reference import squashing
from ..layers.placed import Placed
from ..metrics import BY_NAME
from .callback import Callback
from .checkpoints import Checkpoint
from .inputs import rows_of
from .progress import Progress

SILENT = {getattr(known, name) for name in known.__all__}  # callbacks that record no measures
PACED = {Progress, TimeLimit}  # callbacks whose epoch hooks need not run right after each epoch
HOOKS = "train_begin", "epoch_begin", "step_end", "epoch_end", "train_end"


# --- the settings -----------------------------------------------------------------------------------------------------


def check_metrics(who: str, metrics: Any) -> dict[str, Callable[..., Any]] | None:
    """Return the metrics as functions by name; those in a list are named after themselves. None stays None."""
    if metrics is None:
        return None
    if isinstance(metrics, Mapping):
        named = list(metrics.items())
    elif isinstance(metrics, (list, tuple)):
        named = [(getattr(metric, "__name__", metric), metric) for metric in metrics]
    else:
        raise TypeError(
            f'{who}: metrics must be a list such as ["accuracy"], or a dict of names and functions such as '
            f'{{"accuracy": xn.accuracy}}, got {brief(metrics)}'
        )
    found: dict[str, Callable[..., Any]] = {}
    for name, metric in named:
        if isinstance(metric, type) or not (isinstance(metric, str) or callable(metric)):
            raise TypeError(
                f'{who}: a metric must be a name such as "accuracy", or a function of (prediction, target), got '
                f"{brief(metric)}"
            )
        if isinstance(metric, str) and metric not in BY_NAME:
            raise ValueError(
                f"{who}: no metric {metric!r} here; there are {', '.join(BY_NAME)}, and one of your own is given as a "
                'function, {"mine": function}'
            )
        if not isinstance(name, str) or name == "<lambda>":
            raise TypeError(f'{who}: a metric needs a name, as in metrics={{"mine": ...}}, got {brief(name)}')
        if name in found:
            raise ValueError(f'{who}: two metrics are named {name!r}; give them names, metrics={{"a": ..., "b": ...}}')
        if name == "loss":
            raise ValueError(f"{who}: a metric cannot be named 'loss': the loss itself is returned under that name")
        found[name] = BY_NAME[metric] if isinstance(metric, str) else metric
    return found


def warn_of_squashed_logits(net: Placed, who: str, loss: Any) -> None:
    """Warn if the loss expects logits and the network ends in Softmax or Sigmoid."""
    if getattr(loss, "outputs", None) == "logits" and (last := squashing(net)):
        twin = "CategoricalCrossEntropy()" if getattr(loss, "matrix", False) else "BinaryCrossEntropy()"
        warn(
            f"{who}: the network ends in {last!r}, and {loss!r} takes logits, which it turns into probabilities "
            f"itself: leave that layer out, or take {twin}",
            UserWarning,
        )


def check_callbacks(callbacks: Any) -> list[Callback]:
    """Return the callbacks of any iterable as a list; None gives an empty one."""
    if callbacks is None:
        return []
    iterable = isinstance(callbacks, Iterable) and not hasattr(callbacks, "shape")
    checked: list[Any] = list(callbacks) if iterable else [None]
    if not all(isinstance(c, Callback) for c in checked):
        raise TypeError(f"fit: callbacks must be a list of xn.Callback objects, got {brief(callbacks)}")
    for callback in checked:
        if type(callback) is not Callback and not any(own_hook(callback, hook) for hook in HOOKS):
            raise TypeError(
                f"fit: {type(callback).__name__} has none of a callback's hooks, so it would never be called: "
                f"name its methods {', '.join(HOOKS)}, each of (self, run)"
            )
    if any(isinstance(c, Checkpoint) for c in checked):
        raise TypeError("fit: give the Checkpoint as checkpoint=..., by itself, not among the callbacks")
    return checked


def check_monitored(callbacks: Sequence[Callback], validated: bool) -> None:
    """Raise before training if a callback monitors a validation measure and there is no validation data."""
    for callback in callbacks:
        if type(callback) not in SILENT:  # it may record the measure that a later callback monitors
            return
        if isinstance(callback, Watching) and callback.monitor.startswith("val_") and not validated:
            raise callback.missing(["loss"])


def own_hook(callback: Callback, hook: str) -> bool:
    """Whether the callback overrides this hook of `Callback`."""
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


def looks_at_epochs(callback: Callback) -> bool:
    """Whether the callback must be called at the beginning or end of every single epoch."""
    return type(callback) not in PACED and (own_hook(callback, "epoch_begin") or own_hook(callback, "epoch_end"))


def check_checkpoint(checkpoint: object, resume: bool) -> None:
    """Raise TypeError unless `checkpoint` is None or a Checkpoint, ValueError for `resume` without one."""
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise TypeError(f"fit: checkpoint must be an xn.Checkpoint(folder), got {brief(checkpoint)}")
    if resume and checkpoint is None:
        raise ValueError("fit: resume=True needs checkpoint=xn.Checkpoint(folder), the folder to go on from")


def check_smallest_batch(net: Placed, shape: tuple[int, ...], smallest: int) -> None:
    """Raise ValueError before training if a batch of `smallest` rows is too small for a layer; `shape` is that of x."""
    small = [(prefix, layer) for prefix, layer in net.leaves() if smallest < layer.smallest_batch]
    if not small:
        return
    try:  # for BatchNorm, a single row of images may have enough entries
        with net.backend.scope():
            net.forward(rows_of(net, "fit", np.zeros((smallest, *shape[1:]), np.int8), whole=True), training=True)
    except ValueError as error:
        at = next((f" for layer {prefix}, " for prefix, layer in small if str(error).startswith(f"{layer!r}:")), ": ")
        raise ValueError(f"fit: {shape[0]} rows leave a batch of {smallest}{at}{error}") from error
