"""Pooling: the maximum or mean of each window of a channel. Axes: N batch, C channels, S axes along which windows
slide, M all positions.
"""

import functools
import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends import Array, device_of, floating, namespace
from .base import Layer, Shape, check_shape
from .windows import Sizes, Windows, batch_first, batch_last, packed, slices, spread


class Pool(Windows):
    """The base class of layers that reduce each window of a channel to a number. The stride defaults to its size."""

    def __init__(
        self, kernel_size: int | Sequence[int], stride: int | Sequence[int] | None = None,
        padding: int | Sequence[int] | str = 0,
    ):  # fmt: skip
        self._slide(kernel_size, kernel_size if stride is None else stride, padding)
        self.stride = stride if stride is None else self.stride
        self.input_shape = (None,) * (self.axes + 1)
        widest = (0,) if isinstance(self.padding, str) else self._per_axis(self.padding)
        if any(p >= k for p, k in zip(widest, self._kernel, strict=False)):
            raise ValueError(
                f"{type(self).__name__}: padding must be less than kernel_size, {self.kernel_size}, or a window would "
                f"have no entries, got {self.padding}"
            )

    def output_shape(self, input_shape: Shape) -> Shape:
        return self._shape_after(input_shape, None)

    def _taps(self, x: Array, outputs: Sizes, before: Sizes, fill: float) -> list[Array]:
        """Return for each tap its entries in all windows, (C, outputs..., N)."""
        return slices(x, self._starts(before), self._stride, outputs, fill)


class MaxPool(Pool):
    """forward: y[o] = max_i x[s o + i - p]        backward: dx[j] = Σ dy[o], over the o whose first maximum is x[j]

    The first maximum is that in row-major order, so that each window passes its dy to one entry. Padding is -∞.
    """

    formula = "y[o] = max_i x[s o + i - p]", "dx[j] = Σ dy[o] over the o whose first maximum is x[j]"

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = self._check(x)
        outputs, before = self._outputs(x.shape[2:])
        x = packed(x)
        y = functools.reduce(xp.maximum, self._taps(x, outputs, before, -np.inf))
        return batch_first(y), (self, batch_first(y).shape, x, y, before)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        x, y, before = self.saved(cache, dy)
        xp, dy = namespace(dy), batch_last(dy)
        first = xp.zeros(y.shape, dtype=xp.int32, device=device_of(y))  # the number of the tap with the first maximum
        taps = self._taps(x, y.shape[1:-1], before, -np.inf)
        for i in reversed(range(len(taps))):
            first = xp.where(taps[i] == y, i, first)
        return batch_first(spread(self, lambda i: xp.where(first == i, dy, 0.0), x.shape, before)), {}


class AveragePool(Pool):
    """forward: y[o] = Σ_i x[s o + i - p] / m[o]        backward: dx[j] = Σ dy[o] / m[o], over the o that see x[j]

    m[o] is the number of entries of x in the window, without padding.
    """

    formula = "y[o] = Σ_i x[s o + i - p] / m[o]", "dx[j] = Σ dy[o] / m[o] over the o that see x[j]"

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        self._check(x)
        outputs, before = self._outputs(x.shape[2:])
        x = batch_last(x)
        share = self._share(x, outputs, before)
        y = functools.reduce(operator.add, self._taps(x, outputs, before, 0.0)) * share
        return batch_first(y), (self, batch_first(y).shape, x.shape, share, before)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        shape, share, before = self.saved(cache, dy)
        part = batch_last(dy) * share
        return batch_first(spread(self, lambda i: part, shape, before)), {}

    def _share(self, x: Array, outputs: Sizes, before: Sizes) -> Array:
        """Return 1 / m, (outputs..., 1)."""
        share = np.ones(())
        for size, n, k, s, p in zip(x.shape[1:-1], outputs, self._kernel, self._stride, before, strict=True):
            start = s * np.arange(n) - p
            share = share[..., None] / (np.minimum(start + k, size) - np.maximum(start, 0))
        return namespace(x).asarray(share[..., None], dtype=x.dtype, device=device_of(x))


class MaxPool1d(MaxPool):
    """The maximum of each window: x (N, C, L). The stride is by default the kernel's size.

    forward:   y[o]  = max_i x[s o + i - p]                                   (N, C, S)
    backward:  dx[j] = Σ dy[o], over the windows o whose first maximum is x[j]   (N, C, L)

    `padding` is a number below the kernel's size, "valid" for 0, or "same": ceil(L / stride) outputs. Raises ValueError
    for an x shorter than the kernel. Source: Ranzato et al. 2007, section 2.

    `kernel_size` is the size of the window.

    >>> xn.MaxPool1d(2).output_shape(("N", 3, 8))
    ('N', 3, 4)
    """

    axes = 1


class MaxPool2d(MaxPool):
    """The maximum of each window of an image: x (N, C, H, W). The stride is by default the kernel's size.

    forward:   y[o]  = max_i x[s o + i - p]                                   (N, C, S, S)
    backward:  dx[j] = Σ dy[o], over the windows o whose first maximum is x[j]   (N, C, H, W)

    i and o have an index for each axis; "first" is meant in row-major order. Settings are a number, or two for height
    and width. `padding` is below the kernel's size, "valid" for 0, or "same": ceil(size / stride) outputs. Raises
    ValueError for an x smaller with its padding than the kernel. Source: Ranzato et al. 2007, section 2.

    `kernel_size` is the size of the window.

    >>> xn.MaxPool2d(3, stride=2, padding=1).output_shape(("N", 3, 8, 8))
    ('N', 3, 4, 4)
    """

    axes = 2


class AveragePool1d(AveragePool):
    """The mean of each window: x (N, C, L). The stride is by default the kernel's size.

    forward:   y[o]  = Σ_i x[s o + i - p] / m[o]                              (N, C, S)
    backward:  dx[j] = Σ dy[o] / m[o], over the windows o that see x[j]       (N, C, L)

    m[o] counts the window's entries of x, not the padding. Settings as those of `MaxPool1d`.
    Source: LeCun et al. 1998, section II.B.

    `kernel_size` is the window's; raises ValueError for an x shorter than it.

    >>> xn.AveragePool1d(2).output_shape(("N", 3, 8))
    ('N', 3, 4)
    """

    axes = 1


class AveragePool2d(AveragePool):
    """The mean of each window of an image: x (N, C, H, W). The stride is by default the kernel's size.

    forward:   y[o]  = Σ_i x[s o + i - p] / m[o]                              (N, C, S, S)
    backward:  dx[j] = Σ dy[o] / m[o], over the windows o that see x[j]       (N, C, H, W)

    m[o] counts the window's entries of x, not the padding. Settings as those of `MaxPool2d`.
    Source: LeCun et al. 1998, section II.B.

    `kernel_size` is the window's; raises ValueError for an x smaller than it.

    >>> xn.AveragePool2d(2).output_shape(("N", 3, 8, 8))
    ('N', 3, 4, 4)
    """

    axes = 2


class GlobalAveragePool(Layer):
    """Each channel's mean over all positions, of x (N, C, ...) with M of them.

    forward:   y  = Σ_m x / M           (N, C)
    backward:  dx = dy / M              (N, C, ...), the same at each position

    Source: Lin, Chen & Yan 2014, section 3.2.

    >>> xn.GlobalAveragePool().output_shape(("N", 16, 8, 8))
    ('N', 16)
    """

    formula = "y = Σ_m x / M", "dx = dy / M"

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = floating(x, self)
        if x.ndim < 2:
            raise ValueError(f"{self!r}: expected input of shape (n, channels, ...), got {tuple(x.shape)}")
        positions = xp.reshape(batch_last(x), (x.shape[1], math.prod(x.shape[2:]), x.shape[0]))
        y = batch_first(xp.mean(positions, axis=1))
        return y, (self, y.shape, x.shape)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        (shape,) = self.saved(cache, dy)
        xp, (n, channels, *sizes) = namespace(dy), shape
        part = xp.reshape(batch_last(dy) / math.prod(sizes), (channels, *[1] * len(sizes), n))
        return batch_first(xp.broadcast_to(part, (channels, *sizes, n))), {}

    def output_shape(self, input_shape: Shape) -> Shape:
        check_shape(self, input_shape)
        return input_shape[:2]
