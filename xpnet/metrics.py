"""Metrics of predictions (N, K) against targets: integer classes (N,) or rows (N, K). Results stay on the device."""

from typing import Any

import numpy as np

from .backend import Array, backend_of, device_of, namespace
from .targets import as_classes, as_rows, check_prediction


def accuracy(prediction: Array, target: Any, threshold: float = 0.5) -> Array:
    """The share of rows whose largest output is the target's class.

    With one output, or target rows that do not add up to 1 (several classes at once), instead the share of entries
    on the right side of `threshold`: 0.5 for probabilities, 0 for logits. Where an output is NaN it is wrong.
    """
    check_prediction("accuracy", prediction)
    xp = namespace(prediction)
    n, k = prediction.shape
    with backend_of(prediction).scope():
        if k > 1 and np.shape(target) != (n, k):
            classes = as_classes("accuracy", target, prediction)
        else:
            rows = as_rows("accuracy", target, prediction)
            if k == 1 or bool(xp.any(xp.abs(xp.sum(rows, axis=1) - 1.0) > 1e-3)):
                right = (prediction >= threshold) == (rows >= 0.5)
                return _share(right & ~xp.isnan(prediction), prediction)
            classes = xp.argmax(rows, axis=1)
        right = xp.argmax(prediction, axis=1) == classes
        return _share(right & ~xp.isnan(xp.max(prediction, axis=1)), prediction)


def top_k_accuracy(prediction: Array, target: Any, k: int = 5) -> Array:
    """The share of rows whose target's class is among the k largest outputs; a tie counts against it, as does NaN."""
    check_prediction("top_k_accuracy", prediction)
    xp = namespace(prediction)
    if k not in range(1, prediction.shape[1] + 1):
        raise ValueError(f"top_k_accuracy: k must lie between 1 and the {prediction.shape[1]} outputs, got {k}")
    with backend_of(prediction).scope():
        own = _classes("top_k_accuracy", target, prediction)
        score = xp.take_along_axis(prediction, own[:, None], axis=1)
        below = xp.count_nonzero(prediction < score, axis=1)  # what ties is not, nor is NaN
        return _share(below >= prediction.shape[1] - k, prediction)


def mean_squared_error(prediction: Array, target: Any) -> Array:
    """The mean of (prediction - target)² over every element."""
    check_prediction("mean_squared_error", prediction)
    with backend_of(prediction).scope(autograd=True):
        error = prediction - as_rows("mean_squared_error", target, prediction)
        return namespace(error).mean(error * error)


def confusion_matrix(prediction: Array, target: Any) -> Array:
    """(K, K) counts, int32: in row i and column j, how many of class i were taken for class j."""
    check_prediction("confusion_matrix", prediction)
    xp = namespace(prediction)
    k = prediction.shape[1]
    with backend_of(prediction).scope():
        true = _classes("confusion_matrix", target, prediction)
        cells = xp.sort(true * k + xp.argmax(prediction, axis=1))  # counted by where each one's run begins
        edges = xp.searchsorted(cells, xp.arange(k * k + 1, dtype=cells.dtype, device=device_of(cells)))
        return xp.reshape(xp.astype(edges[1:] - edges[:-1], xp.int32), (k, k))


def _classes(who: str, target: Any, prediction: Array) -> Array:
    """Classes (N,), of the integers that `argmax` gives, from classes or from rows with a largest entry."""
    xp = namespace(prediction)
    if np.shape(target) != tuple(prediction.shape) or prediction.shape[1] == 1:
        return xp.astype(as_classes(who, target, prediction), xp.asarray(0).dtype)
    return xp.argmax(as_rows(who, target, prediction), axis=1)


def _share(right: Array, prediction: Array) -> Array:
    """The share of True, in the prediction's dtype."""
    xp = namespace(right)
    return xp.mean(xp.astype(right, prediction.dtype))
