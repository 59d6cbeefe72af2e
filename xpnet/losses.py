"""Losses: each gives a value and the exact derivative of that value. Axes: N batch, K outputs or classes.

`loss(prediction, target)` is the value, 0-d, on the prediction's device; `loss.value_and_grad(prediction, target)` adds
its derivative with respect to the prediction it was given. One's own loss: derive from `Loss` and write `total`.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from . import ops
from .backend import Array, backend_of, namespace
from .checks import positive
from .settings import Configured


class Loss(Configured, ABC):
    """The base: `reduction="sum"` adds up every element, "mean" divides that by what `mean_over` says.

    A subclass writes `total`, which may trust its arguments: they are floating arrays of one shape (N, K).
    Targets of another form or with impossible values raise ValueError or TypeError before it is called.
    """

    mean_over = "elements"  # or "rows", the batch, where an element alone is no loss
    threshold: float | None = None  # the prediction that stands for probability 1/2, where outputs are classes

    def __init__(self, reduction: str = "mean"):
        if reduction not in ("mean", "sum"):
            raise ValueError(f'{type(self).__name__}: reduction must be "mean" or "sum", got {reduction!r}')
        self.reduction = reduction

    @abstractmethod
    def total(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        """The sum over every element, 0-d, and its derivative with respect to `prediction`, (N, K)."""

    def reduced(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        """`value_and_grad` for a target that `encode` has made: nothing is checked, nothing waits for the device."""
        value, gradient = self.total(prediction, target)
        if self.reduction == "sum":
            return value, gradient
        count = prediction.shape[0] if self.mean_over == "rows" else prediction.shape[0] * prediction.shape[1]
        return value / count, gradient / count

    def value_and_grad(self, prediction: Array, target: Any) -> tuple[Array, Array]:
        """The value, 0-d, and its exact derivative with respect to `prediction`, (N, K)."""
        shape = tuple(prediction.shape)
        if len(shape) != 2 or not shape[0]:
            raise ValueError(f"{type(self).__name__}: prediction must be (n, outputs) with n >= 1, got shape {shape}")
        return self.reduced(prediction, self.encode(target, prediction))

    def __call__(self, prediction: Array, target: Any) -> Array:
        return self.value_and_grad(prediction, target)[0]

    def encode(self, target: Any, prediction: Array) -> Array:
        """`target` checked, and as a floating array like `prediction` in shape, dtype, library and device."""
        return _like(type(self).__name__, target, prediction)


# --- squared, absolute, Huber -----------------------------------------------------------------------------------------


class MeanSquaredError(Loss):
    """(p - t)² per element; derivative 2 (p - t)."""

    def total(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        error = prediction - target
        return namespace(error).sum(error * error), 2.0 * error


class MeanAbsoluteError(Loss):
    """|p - t| per element; derivative sign(p - t), 0 where they are equal."""

    def total(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        error = prediction - target
        xp = namespace(error)
        return xp.sum(xp.abs(error)), xp.sign(error)


class Huber(Loss):
    """e²/2 where |e| <= delta, else delta (|e| - delta/2), e = p - t; derivative e clipped to ±delta. Huber 1964."""

    def __init__(self, delta: float = 1.0, reduction: str = "mean"):
        super().__init__(reduction)
        self.delta = positive("Huber: delta", delta)

    def total(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        error = prediction - target
        slope = ops.clip(error, -self.delta, self.delta)
        return namespace(error).sum(slope * (error - 0.5 * slope)), slope  # both cases in one: s (e - s/2)


# --- classes ----------------------------------------------------------------------------------------------------------


class ClassLoss(Loss):
    """The base of the losses over classes: "mean" is over the batch, targets are integer classes or one-hot rows."""

    mean_over = "rows"
    threshold = 0.5
    exclusive = True  # a row's target entries add up to 1

    def encode(self, target: Any, prediction: Array) -> Array:
        who = type(self).__name__
        shape = np.shape(target)
        n, k = prediction.shape
        if shape in ((n,), (n, 1)) and (k > 1 or self.exclusive):
            labels = _integral(who, target, prediction, k)
            return ops.one_hot(labels, k, prediction.dtype)
        rows = _like(who, target, prediction)
        xp = namespace(rows)
        if bool(xp.any((rows < 0.0) | (rows > 1.0))):
            raise ValueError(f"{who}: a target's entries must lie in [0, 1]; give integer classes (n,) or one-hot rows")
        if self.exclusive:
            slack = 8 * k * float(xp.finfo(rows.dtype).eps)
            if bool(xp.any(xp.abs(xp.sum(rows, axis=1) - 1.0) > slack)):
                raise ValueError(
                    f"{who}: each row of a one-hot target must add up to 1; for several classes at once use "
                    "BinaryCrossEntropyWithLogits"
                )
        return rows


class SoftmaxCrossEntropy(ClassLoss):
    """From logits z: L = -Σ_k t_k log p_k with p = softmax(z); derivative p - t. Finite for any finite z.

    (∂L/∂z_j = p_j Σ_k t_k - t_j, and a row of t adds up to 1.) Source: Bridle 1990.
    """

    threshold = 0.0

    def total(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        xp = namespace(prediction)
        log_p = ops.log_softmax(prediction)
        return -xp.sum(target * log_p), xp.exp(log_p) - target


class CategoricalCrossEntropy(ClassLoss):
    """From probabilities p: L = -Σ_k t_k log p_k; derivative -t / p. Both at p clipped to [eps, 1 - eps]."""

    def total(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        p = _clipped(prediction)
        xp = namespace(p)
        return -xp.sum(target * xp.log(p)), -target / p


class BinaryCrossEntropy(ClassLoss):
    """From probabilities p, each output a yes or no of its own, summed over outputs: the tutorial's loss.

    L = -Σ_k [t_k log p_k + (1 - t_k) log(1 - p_k)]; derivative (1 - t) / (1 - p) - t / p.
    Both at p clipped to [eps, 1 - eps].
    """

    exclusive = False

    def total(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        p = _clipped(prediction)
        xp = namespace(p)
        value = -xp.sum(target * xp.log(p) + (1.0 - target) * xp.log(1.0 - p))
        return value, (1.0 - target) / (1.0 - p) - target / p


class BinaryCrossEntropyWithLogits(ClassLoss):
    """BinaryCrossEntropy of p = sigmoid(z), from logits z: L = Σ_k [log(1 + e^{z_k}) - t_k z_k]; derivative p - t."""

    threshold = 0.0
    exclusive = False

    def total(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        xp = namespace(prediction)
        rest = xp.log1p(xp.exp(-xp.abs(prediction)))  # log(1 + e^z) = max(z, 0) + rest: no overflow, no cancellation
        value = xp.sum((xp.maximum(prediction, 0.0) - target * prediction) + rest)
        return value, ops.sigmoid(prediction) - target


def _clipped(p: Array) -> Array:
    """Probabilities kept within [eps, 1 - eps], eps 1e-15 in float64 and the dtype's own in float32."""
    xp = namespace(p)
    eps = 1e-15 if p.dtype == xp.float64 else float(xp.finfo(p.dtype).eps)
    return ops.clip(p, eps, 1.0 - eps)


# --- targets ----------------------------------------------------------------------------------------------------------


def _like(who: str, target: Any, prediction: Array) -> Array:
    """`target` as a finite array of `prediction`'s shape, dtype, library and device; (n,) will do for (n, 1)."""
    target = backend_of(prediction).adopt(f"{who}: the target", target)
    xp = namespace(target)
    shape, wanted = tuple(target.shape), tuple(prediction.shape)
    if shape == wanted[:1] and wanted[1] == 1:
        target = xp.reshape(target, wanted)
    elif shape != wanted:
        raise ValueError(f"{who}: target of shape {shape} does not fit the prediction's {wanted}")
    target = xp.astype(target, prediction.dtype)
    if not ops.all_finite(target):
        raise ValueError(f"{who}: the target has NaN or infinite entries; drop or fill those rows")
    return target


def _integral(who: str, target: Any, prediction: Array, classes: int) -> Array:
    """`target` as integer labels (n,) within range(classes), on `prediction`'s device."""
    labels = backend_of(prediction).adopt(f"{who}: the target", target)
    xp = namespace(labels)
    labels = xp.reshape(labels, (-1,))
    if xp.isdtype(labels.dtype, "real floating") and not (
        ops.all_finite(labels) and bool(xp.all(labels == xp.round(labels)))
    ):
        raise ValueError(f"{who}: class labels must be whole numbers 0 to {classes - 1}, got fractions or NaN")
    low, high = int(xp.min(labels)), int(xp.max(labels))
    if low < 0 or high >= classes:
        raise ValueError(
            f"{who}: class labels run from {low} to {high}, but {classes} outputs take 0 to {classes - 1}; "
            "renumber the labels or widen the last layer"
        )
    return xp.astype(labels, xp.int32)
