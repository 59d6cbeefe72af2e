"""Convolutions. Axes: N batch, C input channels, O output channels, G groups, S axes along which the kernel slides, K
its size along each of them.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import ops
from ..backends import Array, class_of, namespace
from ..common.checks import choice, integer
from ..initializers import INITIALIZERS
from .base import Shape
from .windows import Sizes, Windows, batch_first, packed, slices, spread

BLOCK = 2**18  # entries of the columns gathered at a time, so that they stay in the cache


class Convolution(Windows):
    """The base class of convolutions along any number of axes.

    forward:   y[o]  = b + Σ_i W_i x[s o + d i - p]              (N, O, S...)
    backward:  dW_i  = Σ_n Σ_o dy[o] x[s o + d i - p]ᵀ           (O, C / G, K...)
               db    = Σ_n Σ_o dy[o]                             (O,)
               dx[j] = Σ_i W_iᵀ dy[o], where s o + d i - p = j   (N, C, S...)

    i runs over the kernel's taps, with an index for each axis, and x is 0 outside of its bounds. Stride s, dilation d,
    padding p. With G groups, output channels depend on the C / G input channels of their own group.
    """

    formula = (
        "y[o] = b + Σ_i W_i x[s o + d i - p]",
        "dx[j] = Σ_i W_iᵀ dy[o] where s o + d i - p = j, dW_i = Σ dy[o] x[s o + d i - p]ᵀ, db = Σ dy[o]",
    )

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int | Sequence[int], stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0, dilation: int | Sequence[int] = 1, groups: int = 1,
        trainable: bool = True, initializer: str = "fan_in_uniform",
    ):  # fmt: skip
        who = type(self).__name__
        self.in_channels = integer(f"{who}: in_channels", in_channels)
        self.out_channels = integer(f"{who}: out_channels", out_channels)
        self.dilation = self._each(f"{who}: dilation", dilation)
        self._slide(kernel_size, stride, padding, dilation)
        self.groups = integer(f"{who}: groups", groups)
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ValueError(f"{who}: groups must divide {name}, {channels}, got {self.groups}")
        self.trainable = trainable
        self.initializer = choice(f"{who}: initializer", initializer, INITIALIZERS)
        self.input_shape = (self.in_channels, *[None] * self.axes)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            "weight": (self.out_channels, self.in_channels // self.groups, *self._kernel),
            "bias": (self.out_channels,),
        }

    def initial_params(self, rng: "np.random.Generator") -> dict[str, np.ndarray]:
        shape = self.param_shapes()["weight"]
        return {"weight": INITIALIZERS[self.initializer](rng, shape), "bias": np.zeros(self.out_channels)}

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        self._check(x, self.in_channels)
        outputs, before = self._outputs(x.shape[2:])
        x = self._grouped(x)  # (G, C / G, S..., N)
        xp, n, weight = namespace(x), x.shape[-1], self._weight()
        weight = xp.permute_dims(weight, (0, 1, *range(3, weight.ndim), 2))
        weight = xp.reshape(weight, (*weight.shape[:2], -1))  # (G, O / G, K C)
        parts = []
        for rows, columns in blocks(x, self._starts(before), self._stride, outputs, weight.shape[1]):
            parts.append(xp.reshape(weight @ columns, (*weight.shape[:2], rows.stop - rows.start, *outputs[1:], n)))
        y = xp.concat(parts, axis=2) if len(parts) > 1 else parts[0]
        y += xp.reshape(self.params["bias"], (*y.shape[:2], *[1] * (self.axes + 1)))
        y = self._ungrouped(y)
        return y, (self, y.shape, x, before)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        grads = self.backward_params(dy, cache)
        x, before = self.saved(cache, dy)
        xp, dy, weight = namespace(dy), self._grouped(dy), self._weight()
        outputs = xp.reshape(dy, (*dy.shape[:2], -1))
        weight = xp.permute_dims(xp.reshape(weight, (*weight.shape[:3], -1)), (3, 0, 2, 1))  # (K..., G, C / G, O / G)

        def part(i: int) -> Array:
            w = weight[i, ...]
            return xp.reshape(w * outputs if w.shape[2] == 1 else w @ outputs, (*x.shape[:2], *dy.shape[2:]))

        return self._ungrouped(spread(self, part, x.shape, before)), grads

    def backward_params(self, dy: Array, cache: Any) -> dict[str, Array]:
        x, before = self.saved(cache, dy)
        xp, dy = namespace(dy), self._grouped(dy)
        starts, counts = self._starts(before), dy.shape[2:-1]
        total: Any = None
        for rows, columns in blocks(x, starts, self._stride, counts, dy.shape[1]):
            part = xp.reshape(dy[:, :, rows, ...], (*dy.shape[:2], columns.shape[2]))
            more = part @ xp.matrix_transpose(columns)
            total = more if total is None else total + more
        weight = xp.reshape(total, (*dy.shape[:2], *self._kernel, x.shape[1]))  # (G, O / G, K..., C / G)
        weight = xp.permute_dims(weight, (0, 1, 2 + self.axes, *range(2, 2 + self.axes)))
        bias = ops.sum_over_batch(xp.reshape(dy, (self.out_channels, math.prod(dy.shape[2:]))).T)
        return {"weight": xp.reshape(weight, self.params["weight"].shape), "bias": bias}

    def output_shape(self, input_shape: Shape) -> Shape:
        return self._shape_after(input_shape, self.in_channels, self.out_channels)

    def _grouped(self, x: Array) -> Array:
        """Return (N, C, S...) as (G, C / G, S..., N), contiguous in memory."""
        x = packed(x)
        return namespace(x).reshape(x, (self.groups, x.shape[0] // self.groups, *x.shape[1:]))

    def _ungrouped(self, x: Array) -> Array:
        """Invert `_grouped`."""
        return batch_first(namespace(x).reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:])))

    def _weight(self) -> Array:
        """Return the weight as (G, O / G, C / G, K...)."""
        weight = self.params["weight"]
        return namespace(weight).reshape(weight, (self.groups, -1, *weight.shape[1:]))


class Conv1d(Convolution):
    """Convolution along one axis: x (N, C, L), weight W (O, C / G, K), bias b (O,).

    forward:   y[o]  = b + Σ_i W_i x[s o + d i - p]              (N, O, S)
    backward:  dW_i  = Σ dy[o] x[s o + d i - p]ᵀ                 (O, C / G, K)
               db    = Σ dy[o]                                   (O,)
               dx[j] = Σ_i W_iᵀ dy[o], where s o + d i - p = j   (N, C, L)

    i runs over the taps of the kernel, and x is 0 beyond its ends. `stride` is s, `dilation` d and `padding` p: a
    number, "valid" for 0, or "same" for ceil(L / stride) outputs, with as many zeros before as behind and an odd one
    behind. With `groups` G, output channels see the input channels of their own group only, C / G of them.
    `initializer` names the function of `xpnet.initializers` that draws W; b starts at zero.

    `in_channels` is C, `out_channels` O and `kernel_size` K. Raises ValueError for groups that do not divide the
    channels, and for an x with other channels or shorter than the kernel. Source: LeCun et al. 1989, section 3.

    >>> xn.Conv1d(2, 8, 3, stride=2, padding=1).output_shape(("N", 2, 10))
    ('N', 8, 5)
    """

    axes = 1


class Conv2d(Convolution):
    """Convolution of images: x (N, C, H, W), weight W (O, C / G, K, K), bias b (O,).

    forward:   y[o]  = b + Σ_i W_i x[s o + d i - p]              (N, O, S, S)
    backward:  dW_i  = Σ dy[o] x[s o + d i - p]ᵀ                 (O, C / G, K, K)
               db    = Σ dy[o]                                   (O,)
               dx[j] = Σ_i W_iᵀ dy[o], where s o + d i - p = j   (N, C, H, W)

    i, j and o have an index for height and one for width; x is 0 beyond its ends. `kernel_size` K, `stride` s,
    `dilation` d and `padding` p are one number, or two for height and width. `padding` may also be "valid" for 0, or
    "same" for ceil(size / stride) outputs, with as many zeros before as behind and an odd one behind. With `groups` G,
    output channels see the input channels of their own group only, C / G of them. `initializer` names the function of
    `xpnet.initializers` that draws W; b starts at zero.

    `in_channels` is C and `out_channels` O. Raises ValueError for groups that do not divide the channels, and for an x
    with other channels, or smaller with its padding than the kernel.
    Source: LeCun et al. 1989, section 3; groups, Krizhevsky, Sutskever & Hinton 2012; dilation, Yu & Koltun 2016.

    >>> xn.Conv2d(3, 16, 3, padding="same").output_shape(("N", 3, 32, 32))
    ('N', 16, 32, 32)
    """

    axes = 2


def blocks(
    x: Array, starts: Sequence[Sizes], steps: Sizes, counts: Sizes, outputs: int
) -> Iterator[tuple[slice, Array]]:
    """Yield slices of y's first axis of positions, each with the columns (G, K C, positions N) of x from which the
    kernel computes it.

    A block has at least one row of positions, and up to half as many entries as x and y (G, outputs, counts..., N)
    together.
    """
    xp, (groups, channels), n = namespace(x), x.shape[:2], x.shape[-1]
    taps = math.prod(map(len, starts))
    a_row = groups * math.prod(counts[1:]) * n
    most = (math.prod(x.shape) + a_row * outputs * counts[0]) // 2
    most = most if class_of(xp).plain else min(most, BLOCK)
    size = max(1, most // max(1, a_row * taps * channels))
    for first in range(0, counts[0], size):
        rows = slice(first, min(first + size, counts[0]))
        block_starts = [[start + steps[0] * first for start in starts[0]], *starts[1:]]
        parts = slices(x, block_starts, steps, [rows.stop - first, *counts[1:]])
        columns = xp.concat(parts, axis=1) if taps > 1 else parts[0]
        yield rows, xp.reshape(columns, (groups, taps * channels, math.prod(columns.shape[2:])))
