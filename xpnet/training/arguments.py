"""The settings that `fit` and `evaluate` are given, checked before anything is done with them."""

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
from .inputs import inputs
from .progress import Progress

SILENT = {getattr(known, name) for name in known.__all__}  # callbacks that record no measure of validation
PACED = {Progress, TimeLimit}  # those that may be told of several epochs at a time
HOOKS = "train_begin", "epoch_begin", "step_end", "epoch_end", "train_end"


# --- the settings -----------------------------------------------------------------------------------------------------


def check_metrics(who: str, metrics: Any) -> dict[str, Callable[..., Any]] | None:
    """The metrics as functions by name. In a list each has its own; None stays None."""
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
            raise ValueError(
                f"{who}: a metric cannot be named 'loss': the loss is among what is returned, by that name"
            )
        found[name] = BY_NAME[metric] if isinstance(metric, str) else metric
    return found


def warn_of_squashed_logits(net: Placed, who: str, loss: Any) -> None:
    """Warn of a loss of logits on a network that ends in probabilities."""
    if getattr(loss, "outputs", None) == "logits" and (last := squashing(net)):
        twin = "CategoricalCrossEntropy()" if getattr(loss, "matrix", False) else "BinaryCrossEntropy()"
        warn(
            f"{who}: the network ends in {last!r}, and {loss!r} takes logits, of which it makes probabilities itself: "
            f"leave that layer out, or take {twin}",
            UserWarning,
        )


def check_callbacks(callbacks: Any) -> list[Callback]:
    """The callbacks, which may come in any iterable, as a list; None is an empty one."""
    given = () if callbacks is None else callbacks
    own: list[Any] = list(given) if isinstance(given, Iterable) and not hasattr(given, "shape") else [None]
    if not all(isinstance(c, Callback) for c in own):
        raise TypeError(f"fit: callbacks must be a list of xn.Callback objects, got {brief(callbacks)}")
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


def looks_at_epochs(callback: Callback) -> bool:
    """Whether it must be called at each epoch's beginning or end."""
    return type(callback) not in PACED and (own_hook(callback, "epoch_begin") or own_hook(callback, "epoch_end"))


def check_checkpoint(checkpoint: object, resume: bool) -> None:
    """Refuse what is no Checkpoint, and going on without one."""
    if checkpoint is not None and not isinstance(checkpoint, Checkpoint):
        raise TypeError(f"fit: checkpoint must be an xn.Checkpoint(folder), got {brief(checkpoint)}")
    if resume and checkpoint is None:
        raise ValueError("fit: resume=True needs checkpoint=xn.Checkpoint(folder), the folder to go on from")


def check_smallest_batch(net: Placed, shape: tuple[int, ...], smallest: int) -> None:
    """Refuse batches that a layer cannot train on, before the first step rather than in the last; `shape` is x's."""
    small = [(prefix, layer) for prefix, layer in net.leaves() if smallest < layer.smallest_batch]
    if not small:
        return
    try:  # a BatchNorm of images may have entries enough in a row
        with net.backend.scope():
            net.forward(inputs(net, "fit", np.zeros((smallest, *shape[1:]), np.int8)), training=True)
    except ValueError as error:
        at = next((f" for layer {prefix}, " for prefix, layer in small if str(error).startswith(f"{layer!r}:")), ": ")
        raise ValueError(f"fit: {shape[0]} rows leave a batch of {smallest}{at}{error}") from error
