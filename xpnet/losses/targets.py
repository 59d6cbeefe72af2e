"""Checks of targets: classes (N, ...) or rows (N, ..., K), for a prediction (N, ..., K)."""

from typing import Any

from .. import ops
from ..backends import DTYPES, Array, backend_of, dtype_name, floating, is_array
from ..common.checks import kind_of

NAMES = "make integers of names: names, y = np.unique(y, return_inverse=True)"


def check_prediction(who: str, prediction: Array, matrix: bool = True) -> None:
    """Raise TypeError or ValueError unless the prediction is floating, with entries, (N, ..., K) for a `matrix`."""
    if not is_array(prediction):
        raise TypeError(f"{who}: prediction must be an array, got {kind_of(prediction)}: np.asarray makes one")
    shape = tuple(prediction.shape)
    if not shape or 0 in shape or (matrix and len(shape) < 2):
        hint = ": give the outputs as predict gives them, not classes" if len(shape) == 1 and shape[0] else ""
        raise ValueError(f"{who}: prediction must be (n, outputs) with n >= 1, got shape {shape}{hint}")
    if dtype_name(prediction.dtype) not in DTYPES:
        raise TypeError(f"{who}: the prediction has dtype {prediction.dtype}, expected float32 or float64")
    floating(prediction, who)


def as_rows(who: str, target: Any, prediction: Array) -> Array:
    """Return `target`, finite, in the shape, dtype, library and device of `prediction`; (n,) fits (n, 1)."""
    backend = backend_of(prediction)
    target = backend.adopt(f"{who}: the target", target)
    shape, wanted = tuple(target.shape), tuple(prediction.shape)
    if (*shape, 1) == wanted:
        target = backend.xp.reshape(target, wanted)
    elif shape != wanted:
        flat = "; give the last layer 1 output, or for classes take SoftmaxCrossEntropy()" if len(shape) == 1 else ""
        raise ValueError(f"{who}: target of shape {shape} does not fit the prediction's {wanted}{flat}")
    with backend.scope():
        target = backend.xp.astype(target, prediction.dtype)
        if not ops.all_finite(target):
            raise ValueError(
                f"{who}: the target has NaN or infinite entries in {prediction.dtype}; drop or fill those rows"
            )
    return target


def as_shares(who: str, target: Any, prediction: Array, one: bool, several: str) -> Array:
    """As `as_rows`, but raise ValueError unless all entries are in [0, 1] and, for `one` class a row, rows add up to 1.

    `several` ends the message for a row that does not: the remedy for several labels a row.
    """
    backend = backend_of(prediction)
    rows, xp = as_rows(who, backend.adopt(f"{who}: the target", target, NAMES), prediction), backend.xp
    with backend.scope():
        largest_error = [xp.max(xp.abs(xp.sum(rows, axis=-1) - 1.0))] if one else []
        low, high, *off = backend.stack([xp.min(rows), xp.max(rows), *largest_error])  # waits for a device once
    if low < 0.0 or high > 1.0:
        remedy = "integer classes (n,) or one-hot rows" if one else "0 for a no and 1 for a yes"
        raise ValueError(f"{who}: a target's entries must lie in [0, 1], got {low:g} to {high:g}; give {remedy}")
    if one and off[0] > 1e-6 * rows.shape[-1]:  # beyond the rounding of float32
        raise ValueError(f"{who}: each row of a one-hot target must add up to 1; for several classes at once {several}")
    return rows


def as_classes(who: str, target: Any, prediction: Array, ignore: int | None = None) -> Array:
    """Return `target` as int32 classes (n, ...), -1 for `ignore`. Raises ValueError for others than 0 to K - 1."""
    *positions, classes = prediction.shape
    backend = backend_of(prediction)
    labels = backend.adopt(f"{who}: the target", target, NAMES)
    if tuple(labels.shape) not in ((*positions,), (*positions, 1)):
        raise ValueError(
            f"{who}: target of shape {tuple(labels.shape)} does not fit the prediction's {tuple(prediction.shape)}"
        )
    xp = backend.xp
    with backend.scope():
        labels = xp.reshape(labels, (*positions,))
        labels = xp.astype(labels, prediction.dtype)  # some libraries cannot compare unsigned integers
        ignored = None if ignore is None else labels == ignore
        if ignored is not None:
            labels = xp.where(ignored, 0.0, labels)
        fraction = xp.max(xp.abs(labels - xp.round(labels)))  # NaN if any label is NaN or infinite
        fraction, low, high = backend.stack([fraction, xp.min(labels), xp.max(labels)])  # waits for a device once
        if fraction == 0.0 and low >= 0 and high < classes:
            return xp.astype(labels if ignored is None else xp.where(ignored, -1.0, labels), xp.int32)
    if classes == 1:
        raise ValueError(
            f"{who}: it needs an output for each class, and the prediction has 1; for two classes take "
            "BinaryCrossEntropyWithLogits(), for numbers MeanSquaredError()"
        )
    if fraction != 0.0:
        raise ValueError(f"{who}: class labels must be whole numbers 0 to {classes - 1}, got fractions or NaN")
    raise ValueError(
        f"{who}: class labels run from {low:.0f} to {high:.0f}, but {classes} outputs take 0 to {classes - 1}; "
        "renumber the labels or widen the last layer"
    )
