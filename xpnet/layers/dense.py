"""The fully connected layer. Axes: N batch, any others, and last D inputs or H outputs."""

from typing import Any

import numpy as np

from .. import ops
from ..backends import Array, namespace
from ..common.checks import choice, integer
from ..initializers import INITIALIZERS
from .base import Layer, Shape


class Dense(Layer):
    """A fully connected layer.

    forward:   y  = x W + b             (N, ..., H)
    backward:  dW = Σ xᵀ dy             (D, H)
               db = Σ dy                (H,)
               dx = dy Wᵀ               (N, ..., D)

    x (N, ..., D), weight W (D, H), bias b (H,). The sums are over all positions: for x (N, T, D) over N and T.
    `initializer` names the function of `xpnet.initializers` that draws W:
    "fan_in_uniform", "glorot_uniform", "he_normal", ...; b starts at zero. `trainable=False` freezes both.
    Source: Rumelhart, Hinton & Williams 1986, eqs. 1 and 4 to 7.

    `in_features` is D, `out_features` H. Raises ValueError for sizes below 1, for an initializer that there is not, and
    for an x with another D.

    >>> xn.Dense(64, 32).output_shape(("N", 64))
    ('N', 32)
    """

    formula = "y = x W + b", "dx = dy Wᵀ, dW = xᵀ dy, db = Σ dy"

    further_axes = 1

    def __init__(
        self, in_features: int, out_features: int, trainable: bool = True, initializer: str = "fan_in_uniform"
    ):
        self.in_features = integer("Dense: in_features", in_features)
        self.out_features = integer("Dense: out_features", out_features)
        self.trainable = trainable
        self.initializer = choice("Dense: initializer", initializer, INITIALIZERS)
        self.input_shape = (self.in_features,)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.in_features, self.out_features), "bias": (self.out_features,)}

    def initial_params(self, rng: "np.random.Generator") -> dict[str, np.ndarray]:
        shape = self.in_features, self.out_features
        return {"weight": INITIALIZERS[self.initializer](rng, shape), "bias": np.zeros(self.out_features)}

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = self.check_input(x, self.in_features)
        flat = x.ndim == 2
        y = ops.linear(x if flat else ops.matrix(x), self.params["weight"])
        y += self.params["bias"]
        if not flat:
            y = xp.reshape(y, (*x.shape[:-1], self.out_features))
        return y, (self, y.shape, x)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        grads = self.backward_params(dy, cache)
        dx = ops.linear(ops.matrix(dy), self.params["weight"].T)
        return dx if dy.ndim == 2 else namespace(dx).reshape(dx, (*dy.shape[:-1], self.in_features)), grads

    def backward_params(self, dy: Array, cache: Any) -> dict[str, Array]:
        (x,) = self.saved(cache, dy)
        x, dy = ops.matrix(x), ops.matrix(dy)
        return {"weight": x.T @ dy, "bias": ops.sum_over_batch(dy)}

    def output_shape(self, input_shape: Shape) -> Shape:
        self.check_features(input_shape, self.in_features)
        return (*input_shape[:-1], self.out_features)
