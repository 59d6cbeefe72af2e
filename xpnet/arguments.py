"""What `fit`, `evaluate` and `predict` are given, checked before anything is done with it."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import ops
from .backend import Array, shape_of
from .callbacks import Callback, CSVLog, Doctor, EarlyStopping, Progress, ReduceOnPlateau, TimeLimit
from .callbacks.watching import Watching
from .checkpoints import Checkpoint
from .checks import came, non_negative, part, told
from .losses import LOSSES, Loss, Objective
from .metrics import BY_NAME
from .step import squashing
from .warn import warn

if TYPE_CHECKING:
    from .network import Sequential

SILENT = {CSVLog, Doctor, EarlyStopping, ReduceOnPlateau, TimeLimit}  # callbacks that record no measure of validation
PACED = {Progress, TimeLimit}  # those that may be told of several epochs at a time
HOOKS = "train_begin", "epoch_begin", "step_end", "epoch_end", "train_end"


# --- the data ---------------------------------------------------------------------------------------------------------


def inputs(net: "Sequential", who: str, x: Any) -> Array:
    """A user's x as an array of the network's backend and dtype: (n, features), n >= 1, all of it finite.

    The caller is within the backend's `scope`, which it needs for what follows as well.
    """
    x = net.backend.adopt(who, x)
    shape = tuple(x.shape)
    if net.input_shape is not None and shape[1:] != net.input_shape:
        wanted = f"(n, {', '.join(map(str, net.input_shape))})"
        hint = ""
        if shape == net.input_shape:
            hint = "; for a single row give x[None, :]"
        elif shape[1:] == () and net.input_shape == (1,):
            hint = "; for a single feature give x[:, None]"
        elif shape[1:] and (math.prod(shape[1:]),) == net.input_shape:
            hint = "; give x.reshape(len(x), -1)"
        raise ValueError(f"{who} has shape {shape}, expected {wanted}{hint}")
    if not shape or not shape[0]:
        raise ValueError(f"{who} has shape {shape}: no rows; expected at least one")
    x = net.backend.xp.astype(x, net.backend.dtype(net.dtype), copy=False)
    if not ops.all_finite(x):
        bad = ~np.isfinite(net.backend.to_numpy(x).reshape(shape[0], -1))
        row, column = np.argwhere(bad)[0]
        raise ValueError(
            f"{who} has {bad.sum()} NaN or infinite entries in {net.dtype}, the first in row {row}, column "
            f"{column}; drop, fill or rescale them"
        )
    return x


def pair(net: "Sequential", who: str, x: Any, y: Any, loss: Loss) -> tuple[Array, Array]:
    """x and y checked and moved to the network's backend, y encoded as its loss takes it."""
    part(f"{who.partition(':')[0]}: loss", loss, ("value_and_grad",), "xn.SoftmaxCrossEntropy()", LOSSES)
    with net.backend.scope():
        x = inputs(net, f"{who}: x", x)
        shape = shape_of(y, f"{who}: y")
        if shape[:1] != (x.shape[0],):
            rows = f"{shape[0]} rows" if shape else "no rows"
            raise ValueError(f"{who}: x has {x.shape[0]} rows and y {rows}; each row of x needs its target")
        outputs = net.forward(x[:1, ...])[0].shape[1:]
        if not hasattr(loss, "encode"):
            return x, net.backend.adopt(f"{who}: y", y)
        like = net.backend.xp.zeros((x.shape[0], *outputs), dtype=x.dtype, device=net.backend.device)
        return x, loss.encode(y, like)


def validation_pair(net: "Sequential", given: Any, loss: Loss) -> tuple[Array, Array, Any] | None:
    """`pair` of fit's validation data, and its y as it came; None for none.

    Refuses what is no pair, such as Keras's share of the rows.
    """
    if given is None:
        return None
    sized = isinstance(given, (tuple, list))
    if not sized or len(given) != 2:
        got = came(given) + (f" of {len(given)}" if sized else "")
        raise ValueError(
            f"fit: validation_data must be a pair (x, y), got {got}; xn.data.train_test_split(x, y) gives the four "
            "arrays x_train, x_val, y_train, y_val"
        )
    x, y = given
    try:
        return *pair(net, "fit: validation data", x, y, loss), y
    except (ValueError, TypeError) as error:
        error.add_note("in fit's validation_data")
        raise


def weighted(
    net: "Sequential", who: str, loss: Loss, y: Array, sample_weight: Any, l2: float
) -> tuple[Objective, Array]:
    """What to minimize, and the targets it takes."""
    if sample_weight is None:
        return Objective(loss, non_negative(f"{who}: l2", l2)), y
    objective, backend = Objective(loss, non_negative(f"{who}: l2", l2), weighted=True), net.backend
    weights = backend.to_numpy(backend.adopt(f"{who}: sample_weight", sample_weight)).astype(np.float64)
    shape, expected = weights.shape, (y.shape[0],)
    if shape != expected or y.ndim != 2:
        wanted = f"one number for each row, {expected}" if y.ndim == 2 else "outputs of shape (n, k)"
        raise ValueError(f"{who}: sample_weight has shape {shape}, expected {wanted}")
    largest = float(backend.xp.finfo(backend.dtype(net.dtype)).max)
    if not (((weights >= 0.0) & (weights <= largest)).all() and weights.any()):
        raise ValueError(f"{who}: sample_weight must be finite, at least 0, and not all 0")
    if objective.reduction == "mean" and loss.weights_over == "fit":
        weights /= weights.max()  # first: a sum of large ones would overflow
        weights /= weights.mean()
    with backend.scope():
        return objective, backend.xp.concat([y, backend.asarray(weights[:, None], net.dtype)], axis=1)


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
            f'{{"accuracy": xn.accuracy}}, got {told(metrics)}'
        )
    found: dict[str, Callable[..., Any]] = {}
    for name, metric in named:
        if isinstance(metric, type) or not (isinstance(metric, str) or callable(metric)):
            raise TypeError(
                f'{who}: a metric must be a name such as "accuracy", or a function of (prediction, target), got '
                f"{told(metric)}"
            )
        if isinstance(metric, str) and metric not in BY_NAME:
            raise ValueError(
                f"{who}: no metric {metric!r} here; there are {', '.join(BY_NAME)}, and one of your own is given as a "
                'function, {"mine": function}'
            )
        if not isinstance(name, str) or name == "<lambda>":
            raise TypeError(f'{who}: a metric needs a name, as in metrics={{"mine": ...}}, got {told(name)}')
        if name in found:
            raise ValueError(f'{who}: two metrics are named {name!r}; give them names, metrics={{"a": ..., "b": ...}}')
        if name == "loss":
            raise ValueError(
                f"{who}: a metric cannot be named 'loss': the loss is among what is returned, by that name"
            )
        found[name] = BY_NAME[metric] if isinstance(metric, str) else metric
    return found


def warn_of_squashed_logits(net: "Sequential", who: str, loss: Any) -> None:
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
        raise TypeError(f"fit: callbacks must be a list of xn.Callback objects, got {told(callbacks)}")
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
        raise TypeError(f"fit: checkpoint must be an xn.Checkpoint(folder), got {told(checkpoint)}")
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
