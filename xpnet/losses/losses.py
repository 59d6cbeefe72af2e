"""Losses: each gives a value and the exact derivative of that value. Axes: N batch, ... others, K outputs or classes.

`loss(prediction, target)` is the value, 0-d, on the prediction's device; `loss.value_and_grad(prediction, target)` adds
its derivative with respect to the prediction it was given. For a loss of your own derive from `Loss` and write `terms`.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np

from .. import ops
from ..backends import Array, backend_of, namespace, shape_of
from ..common import share
from ..common.checks import choice, fraction, integer, pair_from, positive
from ..common.settings import Adjustable
from .targets import as_classes, as_rows, as_shares, check_prediction

THRESHOLDS = {"logits": 0.0, "probabilities": 0.5}


class Loss(Adjustable, ABC):
    """The base class of losses: `loss(prediction, target)` returns the value, `value_and_grad` also its derivative.

    Predictions are (N, ..., K). `reduction="sum"` adds up all elements; "mean" divides the sum by the number of
    elements or rows, as `mean_over` says.

    A subclass defines `terms`, which need not check its arguments: both are floating arrays of the same shape, in
    training that of the network's outputs. Targets of another form or with impossible values raise ValueError or
    TypeError before it is called.

    >>> class Quartic(xn.Loss):
    ...     def terms(self, prediction, target):
    ...         error = prediction - target
    ...         return error**4, 4 * error**3
    >>> sorted(xn.check_gradients(Quartic(), [[1.0, 2.0]], [[0.5, 1.0]]))
    ['prediction']
    """

    mean_over = "elements"  # or "rows": "mean" is over the batch, for a loss of whole rows
    outputs = "numbers"  # the kind of predictions, or "probabilities" or "logits"
    matrix = False  # whether a row (N, ..., K) is one class of K; else each output is a yes or no
    formula: tuple[str, str] | None = None  # of the sum and its derivative, as text for `net.explain`
    threshold: float | None = None  # the prediction for probability 1/2, from `outputs`; None for numbers
    weights_over: str | None = "fit"  # or "batch": "mean" divides weights by their mean in it; None: not at all

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        if "outputs" in vars(cls) and "threshold" not in vars(cls):
            cls.threshold = THRESHOLDS.get(cls.outputs)

    def __init__(self, reduction: str = "mean"):
        """`reduction`: "mean", over the batch for class losses and over all elements for others, or "sum".

        Raises ValueError for any other.
        """
        self.reduction = checked_reduction(self, reduction)

    @abstractmethod
    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        """Return the loss of each element, (N, ..., K), or row, (N, ...), and its sum's derivative, (N, ..., K)."""

    def reduced(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        """As `value_and_grad`, for a target that is already encoded and checked. Does not wait for the device."""
        terms, gradient = checked_terms(self, prediction, target)
        value = namespace(terms).sum(terms)
        if self.reduction == "sum":
            return value, gradient
        divisor = self.divisor(prediction, target)
        return value / divisor, gradient / divisor

    def divisor(self, prediction: Array, target: Array) -> Any:
        """Return the number by which "mean" divides the sum of all terms; if processes share a batch, for all of it."""
        shape = share.rows_of_batch(prediction.shape[0]), *prediction.shape[1:]
        if self.mean_over == "elements":
            return math.prod(shape)
        return math.prod(shape[:-1]) if self.matrix else shape[0]

    def counted(self, target: Array) -> Array | None:
        """Return 1 for each row or position of a target that counts, 0 for others, (N, ...); None if all do."""
        return None

    def value_and_grad(self, prediction: Array, target: Any) -> tuple[Array, Array]:
        """Return the value, 0-d, and its exact derivative with respect to `prediction`, in its shape."""
        check_prediction(type(self).__name__, prediction, self.matrix)
        with backend_of(prediction).scope(autograd=True):
            return self.reduced(prediction, self.encode(target, prediction))

    def __call__(self, prediction: Array, target: Any) -> Array:
        return self.value_and_grad(prediction, target)[0]

    def encode(self, target: Any, prediction: Array) -> Array:
        """Return `target`, checked, as a floating array of the shape, dtype, library and device of `prediction`."""
        return as_rows(type(self).__name__, target, prediction)


def checked_reduction(loss: object, reduction: str) -> str:
    """Return the reduction given for `loss`. Raises ValueError if there is no such reduction."""
    return choice(f"{type(loss).__name__}: reduction", reduction, ("mean", "sum"))


def checked_terms(loss: Loss, prediction: Array, target: Array) -> tuple[Array, Array]:
    """Return the result of `terms`. Raises an error unless it is a loss of each element or row, and a gradient."""
    terms, gradient = pair_from(loss, "terms", loss.terms(prediction, target))
    shape = tuple(np.shape(terms))
    if not shape or shape != tuple(prediction.shape[: len(shape)]):
        raise ValueError(
            f"{loss!r}: terms gave a loss of shape {shape} for a prediction of shape {tuple(prediction.shape)}; "
            "expected that of each element or of each row, which `reduction` adds up"
        )
    return terms, gradient


# --- squared, absolute, Huber -----------------------------------------------------------------------------------------


class MeanSquaredError(Loss):
    """The squared error of each element.

    value:       L  = Σ (p - t)²
    derivative:  dp = 2 (p - t)

    >>> import numpy as np
    >>> float(xn.MeanSquaredError()(np.asarray([[1.0], [3.0]]), np.asarray([[3.0], [3.0]])))
    2.0
    """

    formula = "L = Σ (p - t)²", "dp = 2 (p - t)"

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        error = prediction - target
        return error * error, 2.0 * error


class MeanAbsoluteError(Loss):
    """The absolute error of each element.

    value:       L  = Σ |p - t|
    derivative:  dp = sign(p - t), 0 where they are equal

    >>> import numpy as np
    >>> float(xn.MeanAbsoluteError()(np.asarray([[1.0], [3.0]]), np.asarray([[3.0], [3.0]])))
    1.0
    """

    formula = "L = Σ |p - t|", "dp = sign(p - t)"

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        error = prediction - target
        return namespace(error).abs(error), ops.sign(error)


class Huber(Loss):
    """Squared error for small errors e = p - t, absolute error beyond δ, which is `delta`.

    value:       L  = Σ (e²/2 where |e| <= δ, else δ (|e| - δ/2))
    derivative:  dp = e clipped to ±δ

    Source: Huber 1964.

    >>> import numpy as np
    >>> float(xn.Huber()(np.asarray([[0.0], [3.0]]), np.asarray([[3.0], [3.0]])))
    1.25
    """

    formula = "L = Σ (e²/2 where |e| <= δ, else δ (|e| - δ/2)), e = p - t", "dp = e clipped to ±δ"

    def __init__(self, delta: float = 1.0, reduction: str = "mean"):
        super().__init__(reduction)
        self.delta = positive("Huber: delta", delta)

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        error = prediction - target
        slope = ops.clip(error, -self.delta, self.delta)
        return slope * (error - 0.5 * slope), slope  # both cases in one: s (e - s/2)


# --- classes ----------------------------------------------------------------------------------------------------------


class ClassLoss(Loss):
    """The base class of losses for classes, which are on the last axis of the prediction (N, ..., K).

    "mean" is over the batch; if each position has one class, over all positions, such as N T for (N, T, K). Targets
    are classes 0 to K - 1 (N, ...) or one-hot (N, ..., K).
    """

    mean_over = "rows"
    outputs = "probabilities"
    matrix = True
    ignore: int | None = None

    def encode(self, target: Any, prediction: Array) -> Array:
        who = type(self).__name__
        *positions, outputs = prediction.shape
        shape = shape_of(target, f"{who}: the target")
        if positions and shape in ((*positions,), (*positions, 1)) and (outputs > 1 or self.matrix):
            return ops.one_hot(as_classes(who, target, prediction, self.ignore), outputs, prediction.dtype)
        rows = as_shares(who, target, prediction, self.matrix, "use BinaryCrossEntropyWithLogits")
        return rows / namespace(rows).sum(rows, axis=-1, keepdims=True) if self.matrix else rows


class SoftmaxCrossEntropy(ClassLoss):
    """Cross-entropy from logits z, for one class out of K.

    value:       L  = -Σ_k t_k log p_k,  p = softmax(z)
    derivative:  dz = p - t

    log p_k = s_k - log Σ_j e^{s_j} with s = z - max z is finite for logits up to half the dtype's largest number. A row
    of t adds up to 1, so L = log Σ_j e^{s_j} - Σ_k t_k s_k and ∂L/∂z_j = p_j Σ_k t_k - t_j = p_j - t_j.
    Source: Bridle 1990.

    `label_smoothing` ε takes t' = (1 - ε) t + ε / K in place of t. Source: Szegedy et al. 2016, section 7.

    Positions whose class is `ignore`, such as the -100 or 0 that pads shorter sequences, do not count: their loss and
    derivative are 0, and "mean" averages over the others of the batch (0 if there are none, where PyTorch gives NaN).
    Sample weights multiply the other terms; in `fit` they are still divided by their mean over all positions, and an
    epoch's loss weights its batches by their numbers of rows. Class metrics leave ignored positions out; other metrics
    get the target as the loss encodes it, with rows of 0 there.

    >>> import numpy as np
    >>> float(xn.SoftmaxCrossEntropy()(np.asarray([[0.0, 0.0]]), np.asarray([1])))
    0.6931471805599453
    """

    outputs = "logits"

    @property
    def formula(self) -> tuple[str, str]:  # type: ignore[override]
        """The formulas of the sum and its derivative."""
        return "L = -Σ t log p, p = softmax(z)", "dz = p - t" + ", 0 where ignored" * (self.ignore is not None)

    def __init__(self, reduction: str = "mean", ignore: int | None = None, label_smoothing: float = 0.0):
        super().__init__(reduction)
        self.ignore = None if ignore is None else integer("SoftmaxCrossEntropy: ignore", ignore, -(2**31), 2**31 - 1)
        self.label_smoothing = fraction("SoftmaxCrossEntropy: label_smoothing", label_smoothing)

    def encode(self, target: Any, prediction: Array) -> Array:
        rows = super().encode(target, prediction)
        if not self.label_smoothing:
            return rows
        smoothed = (1.0 - self.label_smoothing) * rows + self.label_smoothing / prediction.shape[-1]
        count = self.counted(rows)
        return smoothed if count is None else smoothed * count[..., None]

    def counted(self, target: Array) -> Array | None:
        if self.ignore is None:
            return None
        xp = namespace(target)
        return xp.astype(xp.max(target, axis=-1) > 0.0, target.dtype)  # the row of an ignored position is 0

    def divisor(self, prediction: Array, target: Array) -> Any:
        if (count := self.counted(target)) is None:
            return super().divisor(prediction, target)
        xp = namespace(count)
        return xp.maximum(share.whole(xp.sum(count)), 1.0)

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        xp = namespace(prediction)
        s = prediction - xp.max(prediction, axis=-1, keepdims=True)
        e = xp.exp(s)
        sums = xp.sum(e, axis=-1, keepdims=True)
        s *= target
        rows = xp.log(sums[..., 0]) - xp.sum(s, axis=-1)
        p = e / sums
        p -= target
        count = self.counted(target)
        return (rows, p) if count is None else (rows * count, p * count[..., None])


class CategoricalCrossEntropy(ClassLoss):
    """Cross-entropy from probabilities p, for one class out of K.

    value:       L  = -Σ_k t_k log p_k
    derivative:  dp = -t / p

    Both are taken at p clipped to [eps, 1 - eps].

    >>> import numpy as np
    >>> float(xn.CategoricalCrossEntropy()(np.asarray([[0.5, 0.5]]), np.asarray([1])))
    0.6931471805599453
    """

    formula = "L = -Σ t log p", "dp = -t / p"

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        p = _clipped(prediction)
        xp = namespace(p)
        return -target * xp.log(p), -target / p


class BinaryCrossEntropy(ClassLoss):
    """Cross-entropy from probabilities p, for outputs that are each a yes or no; summed over the outputs.

    value:       L  = -Σ_k [t_k log p_k + (1 - t_k) log(1 - p_k)]
    derivative:  dp = (1 - t) / (1 - p) - t / p

    Both are taken at p clipped to [eps, 1 - eps]. It is the tutorial's loss.

    >>> import numpy as np
    >>> float(xn.BinaryCrossEntropy()(np.asarray([[0.5, 0.5]]), np.asarray([[1, 0]])))
    1.3862943611198906
    """

    formula = "L = -Σ (t log p + (1 - t) log(1 - p))", "dp = (1 - t) / (1 - p) - t / p"
    matrix = False

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        p = _clipped(prediction)
        xp = namespace(p)
        terms = -(target * xp.log(p) + (1.0 - target) * xp.log1p(-p))
        return terms, (1.0 - target) / (1.0 - p) - target / p


class BinaryCrossEntropyWithLogits(ClassLoss):
    """Cross-entropy from logits z, for outputs that are each a yes or no; summed over the outputs.

    value:       L  = Σ_k [log(1 + e^{z_k}) - t_k z_k]
    derivative:  dz = p - t,  p = sigmoid(z)

    It equals `BinaryCrossEntropy` of p, without the loss of precision if p is close to 0 or 1.

    >>> import numpy as np
    >>> float(xn.BinaryCrossEntropyWithLogits()(np.asarray([[0.0, 0.0]]), np.asarray([[1, 0]])))
    1.3862943611198906
    """

    formula = "L = Σ (log(1 + e^z) - t z)", "dz = p - t, p = sigmoid(z)"
    outputs = "logits"
    matrix = False

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        xp = namespace(prediction)
        rest = xp.log1p(xp.exp(-xp.abs(prediction)))  # log(1 + e^z) = max(z, 0) + rest: no overflow, no cancellation
        return (xp.maximum(prediction, 0.0) - target * prediction) + rest, ops.sigmoid(prediction) - target


def _clipped(p: Array) -> Array:
    """Clip probabilities to [eps, 1 - eps], where eps is 1e-15 in float64 and the dtype's epsilon in float32."""
    xp = namespace(p)
    eps = 1e-15 if p.dtype == xp.float64 else float(xp.finfo(p.dtype).eps)
    return ops.clip(p, eps, 1.0 - eps)
