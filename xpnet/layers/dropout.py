"""Dropout."""

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from .. import ops
from ..backends import Array, floating, namespace
from ..common.checks import fraction
from ..common.share import span
from .base import Layer


class Dropout(Layer):
    """In training, drop each entry with probability `rate` and scale up the rest; otherwise pass x through.

    forward:   y  = x m          m = 1 / (1 - rate) with probability 1 - rate, else 0
    backward:  dx = dy m

    The mask m is a pure function of the state `key` (2,) int32: a number drawn at `initialize` and the count of calls,
    which training counts up. So a call changes nothing, a step can be repeated, and every backend drops the same
    entries. Processes that share a batch drop them, too, since a row's number in the whole batch is what counts.
    Source: Srivastava et al. 2014, section 10 (the scaling moved to training).

    Raises ValueError unless `rate` is in [0, 1).

    >>> import numpy as np
    >>> net = xn.Sequential(xn.Dropout(0.5)).initialize(seed=0)
    >>> net.predict(np.ones((1, 4)))
    array([[1., 1., 1., 1.]], dtype=float32)
    """

    formula = "y = x m, m = 1 / (1 - rate) or 0", "dx = dy m"

    least_state: ClassVar[Mapping[str, float]] = {"key": 0.0}

    def __init__(self, rate: float = 0.5):
        self.rate = fraction("Dropout: rate", rate)

    def initial_state(self, rng: "np.random.Generator") -> dict[str, np.ndarray]:
        return {"key": np.array([rng.integers(2**31), 0], dtype=np.int32)}

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = floating(x, self)
        if not training:
            return x, (self, x.shape, None)
        keep = ops.random_keep(self.state["key"], x.shape, self.rate, *span(x.shape[0]))
        mask = xp.astype(keep, x.dtype) * (1.0 / (1.0 - self.rate))
        return x * mask, (self, x.shape, mask)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        (mask,) = self.saved(cache, dy)
        return (dy if mask is None else dy * mask), {}

    def next_state(self, cache: Any) -> dict[str, Array]:
        (mask,) = self.kept(cache)
        if mask is None:
            return self.state
        key = self.state["key"]
        xp = namespace(key)
        return {"key": xp.concat([key[:1], key[1:] + 1])}
