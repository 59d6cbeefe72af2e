"""The function after a dense layer of positions, in loops."""

from typing import Any

import numpy as np

from ....layers.base import Layer
from ...stages import Stage
from ...table import pointwise
from .. import positions
from .functions import Loops, function, reads_x


def loops(value: Any, back: Any, made_of: Any) -> Loops:
    """Return the loops, given a pointwise function as `value`, and dy times its slope as `back`."""

    @made_of
    def forward(y, bias, s, slope):
        """y ← f(y + bias), and slope ← f' unless it is None"""
        one = y.dtype.type(1.0)
        for i in range(y.shape[0]):
            for j in range(y.shape[1]):
                x = y[i, j] + bias[j]
                f = value(x, s)
                y[i, j] = f
                if slope is not None:
                    slope[i, j] = back(one, x, f, s)

    @made_of
    def backward(d, y, s, slope):
        """d ← d f', with f' from y if no slope was kept"""
        for i in range(d.shape[0]):
            for j in range(d.shape[1]):
                if slope is not None:
                    d[i, j] *= slope[i, j]
                else:
                    d[i, j] = back(d[i, j], y[i, j], y[i, j], s)

    return {"forward": forward, "backward": backward}


class InLoops:
    """As `InBlocks`, in one loop over all rows."""

    def __init__(self, stage: Stage, f: Layer | None, y: np.ndarray):
        self.y, self.compiled = y, function(str(pointwise(f)), loops)
        self.settings = tuple(y.dtype.type(getattr(f, name)) for name in self.compiled.settings)
        self.slope = stage.work("slope", y.shape) if reads_x(f) else None
        self.is_f = f is not None

    def forward(self, bias: np.ndarray) -> None:
        """y ← f(y + b)"""
        self.compiled.forward(self.y, bias, self.settings, self.slope)

    def backward(self, dy: np.ndarray) -> None:
        """dy ← dy f'"""
        if self.is_f:
            self.compiled.backward(dy, self.y, self.settings, self.slope)


class Dense(positions.Dense):
    """`..positions.Dense` with functions in loops."""

    def applied(self, y: np.ndarray) -> Any:
        """Return f with the bias, for the matrix y."""
        inside = function(str(pointwise(self.f)), loops).inside
        return InLoops(self, self.f, y) if inside else super().applied(y)
