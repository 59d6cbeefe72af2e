"""Normalisation over the batch or over features. Axes: N batch; C and D features; G groups of channels."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..backends import Array, namespace
from ..common.checks import fraction, integer, positive
from ..common.share import whole
from .base import Layer, Shape, check_shape
from .windows import batch_first, batch_last


class Norm(Layer):
    """The base class of norms, with a parameter for each of the features in `input_shape`."""

    input_shape: tuple[int]
    starts: ClassVar[Mapping[str, float]] = {"gamma": 1.0, "beta": 0.0}  # the initial value of each parameter

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return dict.fromkeys(self.starts, self.input_shape)

    def initial_params(self, rng: "np.random.Generator") -> dict[str, np.ndarray]:
        return {name: np.full(self.input_shape, start) for name, start in self.starts.items()}


class BatchNorm(Norm):
    """Each feature, on axis 1, normalised over all other axes, then scaled and shifted.

    x is (N, C), (N, C, L), (N, C, H, W) or of more axes, and M is how many entries a feature has: N, N L, N H W.
    In training, with μ and v their mean and biased variance:

    forward:   x̂  = (x - μ) / √(v + eps)                              (N, C, ...)
               y  = γ x̂ + β                                           (N, C, ...)
    backward:  dβ = Σ dy                                              (C,)
               dγ = Σ dy x̂                                            (C,)
               dx = γ / √(v + eps) · (dy - dβ / M - x̂ dγ / M)         (N, C, ...)

    The sums are over all axes but 1. The last two terms of dx come from x's influence on μ and on v. When evaluating,
    or frozen (`trainable=False`), μ and v are the running averages, constants, and dx = γ / √(v + eps) · dy. Where
    processes share a batch, μ, v, M and the sums in dx are the whole batch's.

    State: `mean` and `var`, momentum · old + (1 - momentum) · the batch's. The first batch sets them: a mean of exactly
    0 with a variance of exactly 1 in every feature, which is what they hold before it, counts as no batch seen.
    Training raises ValueError for a batch with a single entry a feature, which has no variance.
    Source: Ioffe & Szegedy 2015, algorithm 1 and the equations below it.

    `features` is C. Raises ValueError for an x with another.

    >>> net = xn.Sequential(xn.BatchNorm(4)).initialize()
    >>> sorted(net.params), sorted(net.state)
    (['0.beta', '0.gamma'], ['0.mean', '0.var'])
    """

    least_state: ClassVar[Mapping[str, float]] = {"var": 0.0}
    further_axes = 2

    def __init__(self, features: int, momentum: float = 0.99, eps: float = 0.01, trainable: bool = True):
        self.features = integer("BatchNorm: features", features)
        self.momentum = fraction("BatchNorm: momentum", momentum)
        self.eps = positive("BatchNorm: eps", eps)
        self.trainable = trainable
        self.input_shape = (self.features,)

    @property
    def smallest_batch(self) -> int:  # type: ignore[override]
        return 2 if self.trainable else 1

    @property
    def formula(self) -> tuple[str, str]:  # type: ignore[override]
        """The formulas of forward and backward, in training."""
        forward = "y = γ x̂ + β, x̂ = (x - μ) / √(v + eps)"
        slope = "γ / √(v + eps)"
        dx = f"{slope} (dy - dβ / M - x̂ dγ / M)" if self.trainable else f"{slope} dy"
        return forward, f"dβ = Σ dy, dγ = Σ dy x̂, dx = {dx}"

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"mean": (self.features,), "var": (self.features,)}

    def initial_state(self, rng: "np.random.Generator") -> dict[str, np.ndarray]:
        return {"mean": np.zeros(self.features), "var": np.ones(self.features)}

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp, shape = self.check_input(x, self.features, axis=1), x.shape
        x = as_columns(x)
        batch = None
        if training and self.trainable:
            total, n = whole(ops.sum_over_batch(x), x.shape[0])
            if n < 2:
                raise ValueError(
                    f"{self!r}: a batch of {int(n)} has no variance to train on; use at least 2 rows, "
                    "a batch_size that leaves no single row over, or trainable=False"
                )
            mean = total / n
            centred = x - mean
            rest = whole(ops.sum_over_batch(centred)) / n  # the rounding error in the mean of large numbers
            mean, centred = mean + rest, centred - rest
            var = whole(ops.dot_over_batch(centred, centred)) / n
            batch = mean, var, n
        else:
            centred, var = x - self.state["mean"], self.state["var"]
        scale = 1.0 / xp.sqrt(var + self.eps)  # (C,), so that x̂ = centred · scale
        y = centred * (scale * self.params["gamma"])
        y += self.params["beta"]
        return as_features(y, shape), (self, shape, centred, scale, batch)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        centred, scale, batch = self.saved(cache, dy)
        shape, dy = dy.shape, as_columns(dy)
        grads = {"gamma": ops.dot_over_batch(dy, centred) * scale, "beta": ops.sum_over_batch(dy)}
        slope = self.params["gamma"] * scale
        if batch is None:
            return as_features(dy * slope, shape), grads
        *_, n = batch
        dgamma, dbeta = whole(grads["gamma"], grads["beta"])
        dx = centred * (scale * dgamma / -n)
        dx += dy
        dx -= dbeta / n
        dx *= slope
        return as_features(dx, shape), grads

    def next_state(self, cache: Any) -> dict[str, Array]:
        *_, batch = self.kept(cache)
        if batch is None:
            return self.state
        mean, var = self.state["mean"], self.state["var"]
        new_mean, new_var, _ = batch
        xp = namespace(mean)
        rate = xp.where(xp.all((mean == 0.0) & (var == 1.0)), 0.0 * var + 1.0, 1.0 - self.momentum)
        kept = 1.0 - rate
        return {"mean": kept * mean + rate * new_mean, "var": kept * var + rate * new_var}

    def output_shape(self, input_shape: Shape) -> Shape:
        return as_channels(self, input_shape, self.features)


class FeatureNorm(Norm):
    """The base class of norms over the features of a position, the last axis; the same in training and inference."""

    further_axes = 1

    def __init__(self, features: int, eps: float = 1e-5, trainable: bool = True):
        self.features = integer(f"{type(self).__name__}: features", features)
        self.eps = positive(f"{type(self).__name__}: eps", eps)
        self.trainable = trainable
        self.input_shape = (self.features,)

    def output_shape(self, input_shape: Shape) -> Shape:
        self.check_features(input_shape, self.features)
        return input_shape


class LayerNorm(FeatureNorm):
    """Each position normalised over its features, the last axis, then scaled and shifted.

    x is (N, ..., D), μ and v are the mean and the biased variance of a position's D entries, and the means over them:

    forward:   x̂  = (x - μ) / √(v + eps)                                     (N, ..., D)
               y  = γ x̂ + β                                                  (N, ..., D)
    backward:  dβ = Σ dy                                                     (D,)
               dγ = Σ dy x̂                                                   (D,)
               dx = (g - mean(g) - x̂ mean(g x̂)) / √(v + eps),  g = γ dy      (N, ..., D)

    The sums are over all positions. The last two terms of dx come from x's influence on μ and on v.
    Source: Ba, Kiros & Hinton 2016, eqs. 3 and 4.

    `features` is D, `eps` a number above 0. Raises ValueError for others and for an x with another D.

    >>> xn.LayerNorm(32).output_shape(("N", 10, 32))
    ('N', 10, 32)
    """

    formula = (
        "y = γ x̂ + β, x̂ = (x - μ) / √(v + eps)",
        "dβ = Σ dy, dγ = Σ dy x̂, dx = (g - mean(g) - x̂ mean(g x̂)) / √(v + eps), g = γ dy",
    )

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = self.check_input(x, self.features)
        centred = x - mean_of_last(x)
        centred -= mean_of_last(centred)  # the rounding error in the mean of large numbers
        scale = 1.0 / xp.sqrt(mean_of_last(centred * centred) + self.eps)  # (N, ..., 1)
        normal = centred * scale
        y = normal * self.params["gamma"]
        y += self.params["beta"]
        return y, (self, y.shape, normal, scale)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        normal, scale = self.saved(cache, dy)
        rows = ops.matrix(dy)
        grads = {"gamma": ops.dot_over_batch(rows, ops.matrix(normal)), "beta": ops.sum_over_batch(rows)}
        g = dy * self.params["gamma"]
        dx = normal * -mean_of_last(g * normal)
        dx += g
        dx -= mean_of_last(g)
        dx *= scale
        return dx, grads


class RMSNorm(FeatureNorm):
    """Each position divided by the root mean square of its features, the last axis, then scaled.

    x is (N, ..., D), s is the mean of the squares of a position's D entries, and the means are over them:

    forward:   x̂  = x / √(s + eps)                               (N, ..., D)
               y  = γ x̂                                          (N, ..., D)
    backward:  dγ = Σ dy x̂, over all positions                   (D,)
               dx = (g - x̂ mean(g x̂)) / √(s + eps),  g = γ dy    (N, ..., D)

    Source: Zhang & Sennrich 2019, eq. 4.

    `features` is D, `eps` a number above 0. Raises ValueError for others and for an x with another D.

    >>> xn.RMSNorm(32).output_shape(("N", 10, 32))
    ('N', 10, 32)
    """

    formula = "y = γ x̂, x̂ = x / √(s + eps)", "dγ = Σ dy x̂, dx = (g - x̂ mean(g x̂)) / √(s + eps), g = γ dy"
    starts: ClassVar[Mapping[str, float]] = {"gamma": 1.0}

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = self.check_input(x, self.features)
        scale = 1.0 / xp.sqrt(mean_of_last(x * x) + self.eps)  # (N, ..., 1)
        normal = x * scale
        y = normal * self.params["gamma"]
        return y, (self, y.shape, normal, scale)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        normal, scale = self.saved(cache, dy)
        grads = {"gamma": ops.dot_over_batch(ops.matrix(dy), ops.matrix(normal))}
        g = dy * self.params["gamma"]
        dx = normal * -mean_of_last(g * normal)
        dx += g
        dx *= scale
        return dx, grads


def mean_of_last(x: Array) -> Array:
    """Return the mean over the last axis, (N, ..., D) -> (N, ..., 1)."""
    return namespace(x).mean(x, axis=-1, keepdims=True)


class GroupNorm(Norm):
    """Each row's channels, on axis 1, normalised in groups over all positions, then scaled and shifted by channel.

    x is (N, C, ...), μ and v are the mean and the biased variance of a group's entries in a row, and the means over
    these:

    forward:   x̂  = (x - μ) / √(v + eps)                                     (N, C, ...)
               y  = γ x̂ + β                                                  (N, C, ...)
    backward:  dβ = Σ dy                                                     (C,)
               dγ = Σ dy x̂                                                   (C,)
               dx = (g - mean(g) - x̂ mean(g x̂)) / √(v + eps),  g = γ dy      (N, C, ...)

    The sums are over all axes but 1. With one group it normalises all of a row, with C groups each channel alone. The
    same in training as evaluating. Raises ValueError for groups that do not divide the channels.
    Source: Wu & He 2018, eqs. 1 to 6.

    >>> xn.GroupNorm(4, 16).output_shape(("N", 16, 8, 8))
    ('N', 16, 8, 8)
    """

    formula = LayerNorm.formula
    further_axes = 2

    def __init__(self, groups: int, channels: int, eps: float = 1e-5, trainable: bool = True):
        self.groups = integer("GroupNorm: groups", groups)
        self.channels = integer("GroupNorm: channels", channels)
        if self.channels % self.groups:
            raise ValueError(f"GroupNorm: groups must divide channels, {self.channels}, got {self.groups}")
        self.eps = positive("GroupNorm: eps", eps)
        self.trainable = trainable
        self.input_shape = (self.channels,)

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = self.check_input(x, self.channels, axis=1)
        gamma, beta = self._of_channels()
        x, shape = self._grouped(x), x.shape
        centred = x - xp.mean(x, axis=(1, 2), keepdims=True)
        centred -= xp.mean(centred, axis=(1, 2), keepdims=True)  # the rounding error in the mean of large numbers
        scale = 1.0 / xp.sqrt(xp.mean(centred * centred, axis=(1, 2), keepdims=True) + self.eps)  # (G, 1, 1, N)
        normal = centred * scale
        y = normal * gamma
        y += beta
        return self._ungrouped(y, shape), (self, shape, normal, scale)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        normal, scale = self.saved(cache, dy)
        xp, shape, dy = namespace(dy), dy.shape, self._grouped(dy)
        sums = {"gamma": xp.sum(dy * normal, axis=(2, 3)), "beta": xp.sum(dy, axis=(2, 3))}  # (G, C / G)
        g = dy * self._of_channels()[0]
        dx = g - xp.mean(g, axis=(1, 2), keepdims=True)
        dx -= normal * xp.mean(g * normal, axis=(1, 2), keepdims=True)
        dx *= scale
        return self._ungrouped(dx, shape), {name: xp.reshape(a, (self.channels,)) for name, a in sums.items()}

    def output_shape(self, input_shape: Shape) -> Shape:
        return as_channels(self, input_shape, self.channels)

    def _of_channels(self) -> tuple[Array, Array]:
        """Return γ and β as (G, C / G, 1, 1)."""
        gamma, beta = self.params["gamma"], self.params["beta"]
        xp, shape = namespace(gamma), (self.groups, self.channels // self.groups, 1, 1)
        return xp.reshape(gamma, shape), xp.reshape(beta, shape)

    def _grouped(self, x: Array) -> Array:
        """Return (N, C, ...) as (G, C / G, positions, N)."""
        shape = self.groups, self.channels // self.groups, math.prod(x.shape[2:]), x.shape[0]
        return namespace(x).reshape(batch_last(x), shape)

    def _ungrouped(self, x: Array, shape: tuple[int, ...]) -> Array:
        """Invert `_grouped`; `shape` is (N, C, ...)."""
        return batch_first(namespace(x).reshape(x, (*shape[1:], shape[0])))


def as_channels(layer: Layer, shape: Shape, channels: int) -> Shape:
    """Return `shape` if it has so many channels on axis 1, or on axis 0 without the batch; else raise ValueError."""
    check_shape(layer, shape)
    batched = bool(shape) and not isinstance(shape[0], int)  # a shape of ints alone may lack the batch
    unknown = len(shape) > 2 and not any(shape[1:])
    if not unknown and channels not in (shape[1:2] if batched else shape[:2]):
        raise layer._misfit_of(shape, channels, axis=1)
    return shape


def as_columns(x: Array) -> Array:
    """Return (N, C, ...) as a matrix (... N, C): a view if the batch axis is contiguous in memory."""
    if x.ndim == 2:
        return x
    xp = namespace(x)
    return xp.reshape(xp.permute_dims(x, (*range(2, x.ndim), 0, 1)), (-1, x.shape[1]))


def as_features(columns: Array, shape: tuple[int, ...]) -> Array:
    """Invert `as_columns`; `shape` is (N, C, ...)."""
    if len(shape) == 2:
        return columns
    xp, k = namespace(columns), len(shape) - 2
    return xp.permute_dims(xp.reshape(columns, (*shape[2:], *shape[:2])), (k, k + 1, *range(k)))
