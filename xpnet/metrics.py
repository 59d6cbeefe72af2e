"""Metrics of predictions (N, K) against targets: integer classes (N,) or rows (N, K). Results stay on the device."""

import math
from typing import Any

import numpy as np

from . import ops
from .backend import Array, backend_of, namespace


def accuracy(prediction: Array, target: Any, threshold: float = 0.5) -> Array:
    """The share of rows whose largest output is the target's class.

    With one output, or target rows with any number of ones (several classes at once), instead the share of entries
    on the right side of `threshold`: 0.5 for probabilities, 0 for logits.
    """
    target = _native(prediction, target)
    xp = namespace(prediction)
    n, k = prediction.shape
    rows = tuple(target.shape) == (n, k)
    if k == 1 or (rows and bool(xp.any(xp.sum(target, axis=1) != 1))):
        right = (prediction >= threshold) == (xp.reshape(target, (n, k)) >= 0.5)
    else:
        right = xp.argmax(prediction, axis=1) == _labels(prediction, target)
    return xp.mean(xp.astype(right, prediction.dtype))


def top_k_accuracy(prediction: Array, target: Any, k: int = 5) -> Array:
    """The share of rows whose target's class is among the k largest outputs; a tie counts against it."""
    xp = namespace(prediction)
    if not 1 <= k <= prediction.shape[1]:
        raise ValueError(f"top_k_accuracy: k must lie between 1 and the {prediction.shape[1]} outputs, got {k}")
    hot = ops.one_hot(_labels(prediction, _native(prediction, target)), prediction.shape[1], prediction.dtype)
    own = xp.sum(xp.where(hot == 1.0, prediction, 0.0), axis=1, keepdims=True)
    rivals = xp.sum(xp.astype((prediction >= own) & (hot == 0.0), xp.int32), axis=1)
    return xp.mean(xp.astype(rivals < k, prediction.dtype))


def mean_squared_error(prediction: Array, target: Any) -> Array:
    """The mean of (prediction - target)² over every element."""
    target = _native(prediction, target)
    if tuple(target.shape) == tuple(prediction.shape[:1]) and prediction.shape[1:] == (1,):
        target = target[:, None]
    if tuple(target.shape) != tuple(prediction.shape):
        raise ValueError(
            f"mean_squared_error: target of shape {tuple(target.shape)} does not fit the prediction's "
            f"{tuple(prediction.shape)}"
        )
    xp = namespace(prediction)
    return xp.mean((prediction - xp.astype(target, prediction.dtype)) ** 2)


def confusion_matrix(prediction: Array, target: Any) -> Array:
    """(K, K) counts, int32: in row i and column j, how many of class i were taken for class j."""
    xp = namespace(prediction)
    k = prediction.shape[1]
    labels = _labels(prediction, _native(prediction, target))
    truth = ops.one_hot(labels, k, prediction.dtype)
    taken = ops.one_hot(xp.astype(xp.argmax(prediction, axis=1), labels.dtype), k, prediction.dtype)
    return xp.astype(xp.round(truth.T @ taken), xp.int32)


def _native(prediction: Array, target: Any) -> Array:
    if prediction.ndim != 2 or not prediction.shape[0] or np.shape(target)[:1] != tuple(prediction.shape[:1]):
        raise ValueError(
            f"metrics take predictions (n, outputs) and n targets, n >= 1; got shapes {tuple(prediction.shape)} and "
            f"{np.shape(target)}"
        )
    return backend_of(prediction).adopt("metrics: the target", target)


def _labels(prediction: Array, target: Array) -> Array:
    """Integer classes (N,) from classes or one-hot rows."""
    xp = namespace(target)
    if tuple(target.shape) == tuple(prediction.shape):
        return xp.argmax(target, axis=1)
    if target.ndim > 1 and math.prod(target.shape[1:]) != 1:
        raise ValueError(
            f"metrics: target of shape {tuple(target.shape)} does not fit the prediction's {tuple(prediction.shape)}"
        )
    return xp.astype(xp.reshape(target, (-1,)), xp.int32)
