"""Metrics of predictions (N, K) against targets, classes (N,) or rows (N, K). Results stay on the device.

Of predictions (N, ..., K), such as a class for each position of a sequence, each position counts as a row.

A classification metric needs to know how to read outputs and targets. Targets (N,) for two or more outputs are classes.
How to read rows (N, K) is up to the `loss`, which `fit` and `evaluate` pass: one class of K, or K independent labels.
Rows whose class is the loss's `ignore` do not count.
Without a loss, rows of two or more outputs are one-hot and those of one output are a label. `threshold`, the output
above which a label is predicted, makes every row K labels and overrides the loss's own: 0 for logits, 0.5 for
probabilities.

A NaN output counts as wrong and predicts nothing. A target that does not fit raises ValueError or TypeError.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from . import ops
from .backends import Array, backend_of, device_of, is_array, namespace, shape_of
from .common.checks import brief, finite, require
from .losses.targets import NAMES, as_classes, as_rows, as_shares, check_prediction

__all__ = [
    "accuracy", "confusion_matrix", "f1", "mean_absolute_error", "mean_squared_error", "r2", "roc_auc",
    "top_k_accuracy",
]  # fmt: skip
SEVERAL = "give threshold= (0.5 for probabilities, 0.0 for logits) or a loss of labels as loss="


# --- of classes -------------------------------------------------------------------------------------------------------


def accuracy(prediction: Array, target: Any, threshold: float | None = None, loss: Any = None) -> Array:
    """The fraction of rows whose largest output is the target's class; for labels, the fraction of correct entries.

    One output without `threshold` or `loss` is a probability with threshold 0.5; ValueError if it is not in [0, 1].

    `prediction` (N, K) are a network's outputs, `target` classes (N,) or one-hot rows; for labels both are (N, K), and
    `threshold` or a `loss` says from which output on it is a yes.

    >>> import numpy as np
    >>> float(xn.accuracy(np.asarray([[0.9, 0.1], [0.4, 0.6]]), [0, 0]))
    0.5
    """
    prediction, truth, limit = _truth("accuracy", prediction, target, threshold, loss)
    xp = namespace(prediction)
    with backend_of(prediction).scope():
        if limit is None:
            right = (xp.argmax(prediction, axis=1) == truth) & ~xp.isnan(xp.max(prediction, axis=1))
        else:
            right = ((prediction > limit) == truth) & ~xp.isnan(prediction)
        return _share(right, prediction)


def top_k_accuracy(prediction: Array, target: Any, k: int = 5, loss: Any = None) -> Array:
    """The fraction of rows whose class is among the k largest outputs; ties count as wrong.

    ValueError if k exceeds the number of outputs. With another k in `metrics`, and `functools.partial`:
    {"top2": partial(xn.top_k_accuracy, k=2)}.

    `prediction` (N, K), `target` classes (N,) or one-hot rows; `loss` says which positions are ignored.

    >>> import numpy as np
    >>> float(xn.top_k_accuracy(np.asarray([[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]), [1, 2], k=2))
    0.5
    """
    prediction, classes, limit = _truth("top_k_accuracy", prediction, target, None, loss)
    if limit is not None:
        raise ValueError(
            "top_k_accuracy: it needs one class a row, of two or more outputs; here each output is a yes or no"
        )
    outputs = prediction.shape[1]
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or not 1 <= k <= outputs:
        raise ValueError(f"top_k_accuracy: k must lie between 1 and the {outputs} outputs, got {brief(k)}")
    xp = namespace(prediction)
    with backend_of(prediction).scope():
        score = xp.take_along_axis(prediction, classes[:, None], axis=1)
        below = xp.count_nonzero(prediction < score, axis=1)  # without ties and NaN
        return _share((below >= outputs - k) & ~xp.isnan(score[:, 0]), prediction)


def f1(prediction: Array, target: Any, threshold: float | None = None, loss: Any = None) -> Array:
    """F1 = 2 TP / (2 TP + FP + FN), the harmonic mean of precision and recall: scikit-learn's `f1_score`.

    For one output or two classes, that of class 1. For more classes the mean over those that occur in predictions or
    targets, for several labels the mean over all (average="macro"). 0 for a label that neither occurs nor is predicted.

    `prediction`, `target`, `threshold` and `loss` as in `accuracy`, ValueError likewise.

    >>> import numpy as np
    >>> round(float(xn.f1(np.asarray([[0.9], [0.8], [0.2]]), [1, 0, 0], threshold=0.5)), 3)
    0.667
    """
    prediction, truth, limit = _truth("f1", prediction, target, threshold, loss)
    xp, k = namespace(prediction), prediction.shape[1]
    with backend_of(prediction).scope():
        if limit is None:
            predicted = xp.where(xp.isnan(xp.max(prediction, axis=1)), k, xp.argmax(prediction, axis=1))
            right = _counts(xp.where(predicted == truth, truth, k), k)
            total = _counts(predicted, k) + _counts(truth, k)
        else:
            predicted = prediction > limit
            right = xp.count_nonzero(predicted & truth, axis=0)
            total = xp.count_nonzero(predicted, axis=0) + xp.count_nonzero(truth, axis=0)
        right, occurs, total = (xp.astype(a, prediction.dtype) for a in (right, total > 0, total))
        scores = 2.0 * right / xp.maximum(total, 1.0)
        if limit is not None:
            return xp.mean(scores)
        return scores[1] if k == 2 else xp.sum(scores) / xp.maximum(xp.sum(occurs), 1.0)


def roc_auc(prediction: Array, target: Any, threshold: float | None = None, loss: Any = None) -> Array:
    """The area under the ROC curve: the probability that a positive row has a larger output than a negative one.

    AUC = (#{pos > neg} + #{pos = neg} / 2) / (#pos #neg), the Mann-Whitney statistic: scikit-learn's `roc_auc_score`.
    For two classes that of class 1; for more the mean over each class against the rest, for several labels the mean
    over them (average="macro"). Logits of classes become probabilities first if `loss` takes logits. ValueError if,
    without `loss`, the outputs for classes do not add up to 1, and for a class that no row or every row has. NaN if an
    output is.

    `prediction` and `target` as in `accuracy`; a `threshold` has no effect.

    >>> import numpy as np
    >>> float(xn.roc_auc(np.asarray([[0.9], [0.4], [0.6]]), [1, 0, 0]))
    1.0
    """
    prediction, truth, limit = _truth("roc_auc", prediction, target, threshold, loss)
    xp, k = namespace(prediction), prediction.shape[1]
    with backend_of(prediction).scope():
        broken = xp.any(xp.isnan(prediction))
        if limit is None:
            if getattr(loss, "outputs", None) == "logits":
                prediction = ops.softmax(prediction)
            elif loss is None and bool(xp.any(xp.abs(xp.sum(prediction, axis=1) - 1.0) > 1e-3)):
                raise ValueError(
                    "roc_auc: the outputs for classes do not add up to 1; for logits give loss=SoftmaxCrossEntropy() "
                    "or xn.ops.softmax(prediction)"
                )
        areas = []
        for i in [1] if limit is None and k == 2 else range(k):
            yes = truth == i if limit is None else truth[:, i]
            areas.append(_area(prediction[:, i], yes, i))
        return xp.where(broken, xp.nan, sum(areas) / len(areas))


def confusion_matrix(prediction: Array, target: Any, threshold: float | None = None, loss: Any = None) -> Array:
    """(K, K) counts, int32: row i and column j counts the rows of class i that are predicted as class j.

    `prediction` is (N, K), or classes (N,) with a target of classes, the largest in either being K - 1. One output
    makes two classes, as in `accuracy`. ValueError for several labels a row, and for an output that is NaN.

    `threshold` and `loss` as in `accuracy`.

    >>> import numpy as np
    >>> xn.confusion_matrix(np.asarray([0, 1, 1]), np.asarray([0, 0, 1])).tolist()
    [[1, 1], [0, 1]]
    """
    who = "confusion_matrix"
    if is_array(prediction) and prediction.ndim == 1 and prediction.shape[0]:
        predicted, truth, k = _pair_of_classes(who, prediction, target)
    else:
        prediction, truth, limit = _truth(who, prediction, target, threshold, loss)
        xp, k = namespace(prediction), max(prediction.shape[1], 2)
        if limit is not None and prediction.shape[1] > 1:
            raise ValueError(f"{who}: it counts one class a row, and these are several labels; call it for each column")
        with backend_of(prediction).scope():
            if bool(xp.any(xp.isnan(xp.max(prediction, axis=1)))):
                raise ValueError(f"{who}: the prediction has NaN entries, which have no class; leave out those rows")
            predicted = xp.argmax(prediction, axis=1)
            if limit is not None:
                predicted, truth = (xp.astype(a[:, 0], predicted.dtype) for a in (prediction > limit, truth))
    xp = namespace(prediction)
    with backend_of(prediction).scope():
        return xp.reshape(xp.astype(_counts(truth * k + predicted, k * k), xp.int32), (k, k))


# --- of numbers -------------------------------------------------------------------------------------------------------


def mean_squared_error(prediction: Array, target: Any) -> Array:
    """The mean of (prediction - target)² over every element.

    `prediction` and `target` are arrays of one shape. Raises ValueError for others.

    >>> import numpy as np
    >>> float(xn.mean_squared_error(np.asarray([[1.0], [3.0]]), np.asarray([[3.0], [3.0]])))
    2.0
    """
    check_prediction("mean_squared_error", prediction)
    with backend_of(prediction).scope(autograd=True):
        error = prediction - as_rows("mean_squared_error", target, prediction)
        return namespace(error).mean(error * error)


def mean_absolute_error(prediction: Array, target: Any) -> Array:
    """The mean of |prediction - target| over every element.

    `prediction` and `target` are arrays of one shape. Raises ValueError for others.

    >>> import numpy as np
    >>> float(xn.mean_absolute_error(np.asarray([[1.0], [3.0]]), np.asarray([[2.0], [3.0]])))
    0.5
    """
    check_prediction("mean_absolute_error", prediction)
    with backend_of(prediction).scope(autograd=True):
        error = prediction - as_rows("mean_absolute_error", target, prediction)
        return namespace(error).mean(namespace(error).abs(error))


def r2(prediction: Array, target: Any) -> Array:
    """R² = 1 - Σ (target - prediction)² / Σ (target - mean)², averaged over the outputs: scikit-learn's `r2_score`.

    0 is no better than predicting the mean. For an output with one target for all rows: 1 if every prediction is right,
    else 0. ValueError for a single row.

    >>> import numpy as np
    >>> float(xn.r2(np.asarray([[1.0], [2.0], [3.0]]), np.asarray([[1.0], [2.0], [3.0]])))
    1.0
    """
    check_prediction("r2", prediction)
    if prediction.shape[0] < 2:
        raise ValueError("r2: it compares rows with their mean, and needs at least two, got 1")
    with backend_of(prediction).scope(autograd=True):
        return weighted_r2(prediction, as_rows("r2", target, prediction))


def weighted_r2(prediction: Array, target: Array, weight: Array | None = None) -> Array:
    """Return `r2` of arrays (N, K), with weights (N,) of the rows."""
    xp = namespace(prediction)
    share = xp.ones_like(target[:, 0]) if weight is None else weight
    share = xp.reshape(share / xp.sum(share), (-1, 1))
    error = prediction - target
    left = xp.sum(share * error * error, axis=0)
    off = target - target[:1, :]  # a constant target gives exactly 0
    off = off - xp.sum(share * off, axis=0)
    total = xp.sum(share * off * off, axis=0)
    varies = total > 0.0
    constant = xp.where(left == 0.0, 1.0, xp.where(xp.isnan(left), left, 0.0))
    return xp.mean(xp.where(varies, 1.0 - left / xp.where(varies, total, 1.0), constant))


# --- classes or labels ------------------------------------------------------------------------------------------------


def _truth(
    who: str, prediction: Array, target: Any, threshold: float | None, loss: Any
) -> tuple[Array, Array, float | None]:
    """Return the prediction as (N, K) with either the target as classes (N,), in the dtype of `argmax`, and None, or
    the target as labels (N, K), bool, and the threshold.
    """
    check_prediction(who, prediction)
    prediction, target = _as_rows(who, prediction, target)
    if threshold is not None:
        finite(f"{who}: threshold", threshold)
    if loss is not None:
        require(f"{who}: loss", loss, ("value_and_grad",), "xn.SoftmaxCrossEntropy()")
    xp, (n, k) = namespace(prediction), prediction.shape
    limit, matrix = getattr(loss, "threshold", None), getattr(loss, "matrix", False)
    labels = threshold is not None or (limit is not None and not matrix)
    with backend_of(prediction).scope():
        if (k > 1 or matrix) and shape_of(target, f"{who}: the target") != (n, k):
            ignore = getattr(loss, "ignore", None)
            classes = xp.astype(as_classes(who, target, prediction, ignore), xp.asarray(0).dtype)
            if ignore is not None:
                counted = classes >= 0
                if not bool(xp.any(counted)):
                    raise ValueError(
                        f"{who}: every row is of class {ignore}, which the loss ignores; leave that metric out"
                    )
                prediction, classes = prediction[counted], classes[counted]
            return prediction, classes, None
        if k > 1 and not labels:
            return prediction, xp.argmax(as_shares(who, target, prediction, True, SEVERAL), axis=1), None
        limit = next(v for v in (threshold, limit, 0.5) if v is not None)
        if threshold is None and loss is None and bool(xp.any((prediction < 0.0) | (prediction > 1.0))):
            low, high = float(xp.min(prediction)), float(xp.max(prediction))
            raise ValueError(
                f"{who}: the outputs run from {low:g} to {high:g} and are not probabilities; for logits give "
                "threshold=0.0, or their loss as loss="
            )
        return prediction, as_shares(who, target, prediction, False, SEVERAL) > 0.5, limit


def _as_rows(who: str, prediction: Array, target: Any) -> tuple[Array, Any]:
    """Return a prediction (N, ..., K) as (N ..., K), and its target in the corresponding shape."""
    if prediction.ndim == 2:
        return prediction, target
    backend, positions = backend_of(prediction), tuple(prediction.shape[:-1])
    target = backend.adopt(f"{who}: the target", target, NAMES)
    shape = tuple(target.shape)
    if shape[: len(positions)] != positions:
        raise ValueError(f"{who}: target of shape {shape} does not fit the prediction's {tuple(prediction.shape)}")
    return ops.matrix(prediction), backend.xp.reshape(target, (-1, *shape[len(positions) :]))


def _pair_of_classes(who: str, prediction: Array, target: Any) -> tuple[Array, Array, int]:
    """Return both as classes (N,), and the number of classes."""
    backend = backend_of(prediction)
    xp = backend.xp
    with backend.scope():
        named = ("prediction", prediction), ("target", target)
        both = [backend.adopt(f"{who}: the {name}", a, NAMES) for name, a in named]
        highest = max(float(xp.max(xp.astype(a, xp.float32))) for a in both)
        k = int(highest) + 1 if 1.0 <= highest < math.inf else 2
        one = xp.zeros((1, 1), dtype=xp.float32, device=device_of(prediction))
        like = xp.broadcast_to(one, (prediction.shape[0], k))
        predicted, truth = (xp.astype(as_classes(who, a, like), xp.asarray(0).dtype) for a in both)
        return predicted, truth, k


def _counts(numbers: Array, k: int) -> Array:
    """Return how often each of 0 to k - 1 occurs, (k,): `bincount`, which the standard lacks."""
    xp = namespace(numbers)
    ordered = xp.sort(numbers)
    edges = xp.searchsorted(ordered, xp.arange(k + 1, dtype=numbers.dtype, device=device_of(numbers)))
    return edges[1:] - edges[:-1]


def _area(score: Array, yes: Array, output: int) -> Array:
    """Return the area under the ROC curve of one output, (N,)."""
    xp, n = namespace(score), score.shape[0]
    positives = int(xp.count_nonzero(yes))
    if positives in (0, n):
        raise ValueError(
            f"roc_auc: {'every' if positives else 'no'} row is a yes for output {output}, and a curve needs both; give "
            "more rows"
        )
    negatives = n - positives
    score = xp.asarray(score, copy=True)  # contiguous: otherwise PyTorch's searchsorted warns
    ordered = xp.sort(xp.where(yes, xp.inf, score))  # the negatives, then the positives
    below = xp.searchsorted(ordered, score)
    not_above = xp.minimum(xp.searchsorted(ordered, score, side="right"), negatives)
    wins = xp.astype(below + not_above, score.dtype) / (2.0 * negatives)
    return xp.sum(xp.where(yes, wins, 0.0)) / positives


def _share(right: Array, prediction: Array) -> Array:
    """Return the fraction that is True, in the prediction's dtype."""
    xp = namespace(right)
    return xp.mean(xp.astype(right, prediction.dtype))


# --- by name ----------------------------------------------------------------------------------------------------------

OF_CLASSES: list[Callable[..., Array]] = [accuracy, top_k_accuracy, f1, roc_auc]  # these take the loss
OF_NUMBERS: list[Callable[..., Array]] = [mean_squared_error, mean_absolute_error, r2]
BY_NAME = {metric.__name__: metric for metric in OF_CLASSES + OF_NUMBERS} | {"top_k": top_k_accuracy}


def __dir__() -> list[str]:
    return __all__
