"""Vectors for ids, such as those of words, and for positions. Axes: N batch, T positions, D features; V ids."""

from typing import Any

import numpy as np

from .. import ops
from ..backends import Array, class_of, floating, namespace
from ..common.checks import integer, kind_of
from .base import Layer, Shape, check_shape


class Embedding(Layer):
    """A vector for each id from 0 to V - 1, where V is `vocabulary`: Dense on one-hot rows, without making these.

    forward:   y  = W[x]                                (N, ..., D)
    backward:  dW[i] = Σ dy over all places of id i     (V, D)

    x (N, ...) of integers, weight W (V, D), which starts standard normal. There is no dx.

    Raises TypeError for an x that is not of integers, and ValueError, with the position, for an id outside of the
    vocabulary: `fit`, `predict` and `evaluate` check before they start. `forward` itself checks only if this does not
    wait for a device; elsewhere, and within `jax.jit`, the vector of such an id is NaN, on every library.
    Source: Bengio et al. 2003, section 2.

    `features` is D.

    >>> xn.Embedding(100, 16).output_shape(("N", 6))
    ('N', 6, 16)
    """

    formula = "y = W[x]", "dW[i] = Σ dy over all places of id i"
    takes = "integers"
    decays = False
    vocabulary: int
    input_shape = ()
    further_axes = 1

    def __init__(self, vocabulary: int, features: int, trainable: bool = True):
        self.vocabulary = integer("Embedding: vocabulary", vocabulary)
        self.features = integer("Embedding: features", features)
        self.trainable = trainable

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.vocabulary, self.features)}

    def initial_params(self, rng: "np.random.Generator") -> dict[str, np.ndarray]:
        return {"weight": rng.normal(size=(self.vocabulary, self.features))}

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        weight = self.params["weight"]
        xp = namespace(weight)
        if namespace(x, self) is not xp or not xp.isdtype(x.dtype, "integral"):
            raise TypeError(f"{self!r}: expected integers of the library of its weight, got {kind_of(x)} of {x.dtype}")
        ids = xp.reshape(x, (-1,))
        if class_of(xp).at_hand(x):
            check_ids(repr(self), x, self.vocabulary)
            rows = xp.take(weight, ids, axis=0)
        else:
            outside = (ids < 0) | (ids >= self.vocabulary)
            ids = xp.where(outside, 0, ids)
            rows = xp.where(outside[:, None], xp.nan, xp.take(weight, ids, axis=0))
        y = xp.reshape(rows, (*x.shape, self.features))
        return y, (self, y.shape, ids)

    def backward(self, dy: Array, cache: Any) -> tuple[None, dict[str, Array]]:
        (ids,) = self.saved(cache, dy)
        return None, {"weight": ops.rows_added(ops.matrix(dy), ids, self.vocabulary)}

    def output_shape(self, input_shape: Shape) -> Shape:
        check_shape(self, input_shape)
        return (*input_shape, self.features)


class PositionalEmbedding(Layer):
    """A vector added for each of up to `length` positions.

    forward:   y  = x + W[:T]                           (N, T, D)
    backward:  dW[t] = Σₙ dy[n, t], 0 from T on         (length, D)
               dx = dy                                  (N, T, D)

    x (N, T, D), weight W (length, D), which starts normal with standard deviation 0.02. Raises ValueError for a
    sequence that is longer.
    Source: Gehring et al. 2017, section 3.1; the start is that of GPT-2.

    `features` is D.

    >>> xn.PositionalEmbedding(16, 32).output_shape(("N", 10, 32))
    ('N', 10, 32)
    """

    formula = "y = x + W[:T]", "dW[t] = Σₙ dy[n, t], dx = dy"

    decays = False

    def __init__(self, length: int, features: int, trainable: bool = True):
        self.length = integer("PositionalEmbedding: length", length)
        self.features = integer("PositionalEmbedding: features", features)
        self.trainable = trainable
        self.input_shape = (None, self.features)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"weight": (self.length, self.features)}

    def initial_params(self, rng: "np.random.Generator") -> dict[str, np.ndarray]:
        return {"weight": rng.normal(0.0, 0.02, (self.length, self.features))}

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        floating(x, self)
        check_sequence(self, x.shape, self.features, batched=True)
        self._check_length(x.shape[1])
        return x + self.params["weight"][: x.shape[1], :], (self, x.shape)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        self.saved(cache, dy)
        xp, (n, t, d) = namespace(dy), dy.shape
        sums = xp.reshape(ops.sum_over_batch(xp.reshape(dy, (n, t * d))), (t, d))
        rest = xp.zeros_like(self.params["weight"][t:, :])
        return dy, {"weight": xp.concat([sums, rest], axis=0)}

    def output_shape(self, input_shape: Shape) -> Shape:
        check_sequence(self, input_shape, self.features)
        if isinstance(positions := input_shape[-2], int):
            self._check_length(positions)
        return input_shape

    def _check_length(self, positions: int) -> None:
        if positions > self.length:
            raise ValueError(
                f"{self!r}: a sequence of {positions} positions is longer than {self.length}, the length that it has "
                "vectors for; give shorter ones, or a layer of that length"
            )


def check_ids(who: str, x: Array, vocabulary: int, first_row: int = 0) -> None:
    """Raise ValueError, with `who`, for ids outside of 0 to `vocabulary` - 1. Waits for the device."""
    xp = namespace(x)
    if 0 in x.shape or (int(xp.min(x)) >= 0 and int(xp.max(x)) < vocabulary):
        return
    outside = xp.reshape((x < 0) | (x >= vocabulary), (-1,))
    first = int(xp.argmax(xp.astype(outside, xp.int32)))
    place = [int(i) for i in np.unravel_index(first, tuple(x.shape))]
    place[0] += first_row
    raise ValueError(
        f"{who}: id {int(xp.reshape(x, (-1,))[first])} at {place} is outside of the vocabulary of {vocabulary}, whose "
        f"ids run from 0 to {vocabulary - 1}"
    )


def check_sequence(layer: Layer, shape: Shape, features: int, batched: bool = False) -> None:
    """Raise ValueError for a shape other than (n, T, features) and, unless `batched`, (T, features)."""
    check_shape(layer, shape)
    alone = not batched and len(shape) == 2 and not isinstance(shape[0], str)
    if not (alone or len(shape) == 3) or shape[-1] != features:
        raise ValueError(f"{layer!r}: expected sequences of shape (n, positions, {features}), got {tuple(shape)}")
