"""Batch normalisation. Axes: N batch, D features."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from .. import ops
from ..backends import Array, namespace
from ..common.checks import fraction, integer, positive
from .base import Layer, Shape

if TYPE_CHECKING:
    from numpy.random import Generator


class BatchNorm(Layer):
    """Each feature normalised over the batch, then scaled and shifted.

    In training, with μ and v the batch's mean and biased variance:

    forward:   x̂  = (x - μ) / √(v + eps)                              (N, D)
               y  = γ x̂ + β                                           (N, D)
    backward:  dβ = Σ_n dy                                            (D,)
               dγ = Σ_n dy x̂                                          (D,)
               dx = γ / √(v + eps) · (dy - dβ / N - x̂ dγ / N)         (N, D)

    The last two terms of dx come from x's influence on μ and on v. When evaluating, or frozen (`trainable=False`),
    μ and v are the running averages, constants, and dx = γ / √(v + eps) · dy.

    State: `mean` and `var`, momentum · old + (1 - momentum) · the batch's. The first batch sets them: a mean of exactly
    0 with a variance of exactly 1 in every feature, which is what they hold before it, counts as no batch seen.
    Training raises ValueError for a batch of one, whose variance says nothing.
    Source: Ioffe & Szegedy 2015, algorithm 1 and the equations below it.
    """

    least_state: ClassVar[Mapping[str, float]] = {"var": 0.0}

    def __init__(self, features: int, momentum: float = 0.99, eps: float = 0.01, trainable: bool = True):
        self.features = integer("BatchNorm: features", features)
        self.momentum = fraction("BatchNorm: momentum", momentum)
        self.eps = positive("BatchNorm: eps", eps)
        self.trainable = trainable
        self.input_shape = (self.features,)

    @property
    def smallest_batch(self) -> int:  # type: ignore[override]
        return 2 if self.trainable else 1

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"gamma": (self.features,), "beta": (self.features,)}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"mean": (self.features,), "var": (self.features,)}

    def initial_params(self, rng: "Generator") -> dict[str, np.ndarray]:
        return {"gamma": np.ones(self.features), "beta": np.zeros(self.features)}

    def initial_state(self, rng: "Generator") -> dict[str, np.ndarray]:
        return {"mean": np.zeros(self.features), "var": np.ones(self.features)}

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = self.check_matrix(x, self.features)
        n = x.shape[0]
        batch = None
        if training and self.trainable:
            if n < 2:
                raise ValueError(
                    f"{self!r}: a batch of {n} has no variance to train on; use at least 2 rows, "
                    "a batch_size that leaves no single row over, or trainable=False"
                )
            mean = ops.sum_over_batch(x) / n
            centred = x - mean
            rest = ops.sum_over_batch(centred) / n  # what rounding took from the mean of large numbers
            mean, centred = mean + rest, centred - rest
            var = ops.dot_over_batch(centred, centred) / n
            batch = mean, var
        else:
            centred, var = x - self.state["mean"], self.state["var"]
        scale = 1.0 / xp.sqrt(var + self.eps)  # (D,), so that x̂ = centred · scale
        y = centred * (scale * self.params["gamma"])
        y += self.params["beta"]
        return y, (self, y.shape, centred, scale, batch)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        centred, scale, batch = self.saved(cache, dy)
        grads = {"gamma": ops.dot_over_batch(dy, centred) * scale, "beta": ops.sum_over_batch(dy)}
        slope = self.params["gamma"] * scale
        if batch is None:
            return dy * slope, grads
        n = dy.shape[0]
        dx = centred * (scale * grads["gamma"] / -n)
        dx += dy
        dx -= grads["beta"] / n
        dx *= slope
        return dx, grads

    def next_state(self, cache: Any) -> dict[str, Array]:
        *_, batch = self.kept(cache)
        if batch is None:
            return self.state
        mean, var = self.state["mean"], self.state["var"]
        xp = namespace(mean)
        rate = xp.where(xp.all((mean == 0.0) & (var == 1.0)), 0.0 * var + 1.0, 1.0 - self.momentum)
        kept = 1.0 - rate
        return {"mean": kept * mean + rate * batch[0], "var": kept * var + rate * batch[1]}

    def output_shape(self, input_shape: Shape) -> Shape:
        self.check_features(input_shape, self.features)
        return input_shape
