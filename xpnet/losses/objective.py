"""The objective of a training run: a loss with weighted rows, and an L2 penalty. Axes: N batch, K outputs."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from .. import ops
from ..backends import Array, namespace
from ..common.checks import non_negative, pair_from
from ..common.share import rows_of_batch, whole
from .losses import Loss, checked_reduction, checked_terms


def on_encoded(loss: Loss, prediction: Array, target: Array, *weight: Array | None) -> tuple[Array, Array]:
    """Return a loss and its derivative for an encoded target, also if it does not derive from `Loss`.

    An `Objective` also takes the rows' `weight`.
    """
    if hasattr(loss, "reduced"):
        return loss.reduced(prediction, target, *weight)
    value, gradient = pair_from(loss, "value_and_grad", loss.value_and_grad(prediction, target))
    if shape := tuple(np.shape(value)):
        raise ValueError(f"{loss!r}: value_and_grad gave a value of shape {shape}, expected one number")
    return value, gradient


class Objective(Loss):
    """The objective of a training run: a loss, whose rows may have weights, and an L2 penalty.

    "sum":   J = Σ_n w_n L_n + l2/2 Σ W²           ∂J/∂W = Σ_n w_n ∂L_n/∂W + l2 W
    "mean":  J = (Σ_n w_n L_n + l2/2 Σ W²) / N     over the N rows of a batch

    For "mean", `fit` has divided the weights by their mean over all rows, so that the sums of the batches' data terms,
    each times its N, are those of all rows. If the mean of a loss is over elements, the data term is divided by N K.

    If `weights_over` is "batch", the divisor is the batch's Σ_n w_n instead of N, as in scikit-learn's MLPs; a batch
    whose weights are all 0 then has value and gradient 0.

    Weights may be those of positions, (N, T) for outputs (N, T, K); N in the data term is then their number.
    """

    def __init__(self, loss: Any, l2: float = 0.0):
        self.reduction = checked_reduction(loss, getattr(loss, "reduction", "mean"))
        self.loss = loss
        self.l2 = non_negative("l2", l2)

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        return checked_terms(self.loss, prediction, target)

    def reduced(self, prediction: Array, target: Array, weight: Array | None = None) -> tuple[Array, Array]:
        if weight is None:
            return on_encoded(self.loss, prediction, target)
        terms, gradient = self.terms(prediction, target)
        if terms.ndim < weight.ndim:
            raise ValueError(
                f"{self.loss!r}: terms gave one loss a row, {tuple(terms.shape)}, and sample_weight is of shape "
                f"{tuple(weight.shape)}; give one weight a row"
            )
        terms, gradient = (a * spread(weight, a) for a in (terms, gradient))
        value = namespace(terms).sum(terms)
        if self.reduction == "sum":
            return value, gradient
        divisor_of_row = self.loss.divisor(prediction, target) / rows_of_batch(target.shape[0])
        divisor = self.rows(target, weight) * divisor_of_row
        return value / divisor, gradient / divisor

    def rows(self, target: Array, weight: Array | None) -> Any:
        """Return N, or for `weights_over="batch"` the sum of the batch's weights, with infinity in place of 0."""
        rows = rows_of_batch(target.shape[0])
        if weight is None or self.loss.weights_over != "batch":
            return rows
        xp = namespace(target)
        if (count := self.loss.counted(target)) is None:
            total = whole(xp.sum(weight)) / math.prod(weight.shape[1:])
        else:
            total, counted = whole(xp.sum(spread(weight, count) * count), xp.sum(count))
            total = total * (rows / xp.maximum(counted, 1.0))
        return xp.where(total > 0.0, total, math.inf)

    def penalty(self, params: Mapping[str, Array], target: Array, weight: Array | None) -> tuple[Any, dict[str, Array]]:
        """Return the L2 penalty on the weights among these parameters, and its derivatives by name."""
        scale = self.l2 / (1.0 if self.reduction == "sum" else self.rows(target, weight))
        weights = {name: a for name, a in params.items() if a.ndim > 1}  # biases, gammas and betas have one axis
        return 0.5 * scale * sum(map(ops.sum_of_squares, weights.values())), {k: scale * w for k, w in weights.items()}

    def penalized(
        self, value: Array, grads: dict[str, Array], params: Mapping[str, Array], target: Array, weight: Array | None
    ) -> tuple[Array, dict[str, Array]]:
        """Return the value and gradients of the data term with those of the penalty added."""
        more, slopes = self.penalty(params, target, weight)
        return value + more, grads | {name: grads[name] + slope for name, slope in slopes.items()}


def spread(weight: Array, a: Array) -> Array:
    """Return weights (N, ...) with axes of size 1 appended, so that they can multiply `a`."""
    return weight[(..., *[None] * (a.ndim - weight.ndim))]
