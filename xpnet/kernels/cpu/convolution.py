"""A convolution with its bias, a pointwise function and a pool, in NumPy's calls.

Axes: N batch, C input channels, O output channels, (H, W) what a window sees, (KH, KW) the kernel, K = KH KW C; (P, Q)
the convolution's outputs, (A, B) the pool's, (TH, TW) its window. A sequence is an image of one row.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...backends import Array
from ...layers import activations, convolution, pooling, shape
from ...layers.base import Layer
from ..stages import Part, Site, Stage, Vector
from ..table import pointwise
from .correlation import Correlation, Gathered, Pair, Spread
from .functions import RowsStage
from .winograd import Winograd

OUTPUTS = 3 * 2**15  # entries of outputs made at a time that a pool reads
LONGER = 4  # times as many, and as many patches, where threads wait for one another between calls
TAPS = 255  # of a pool at most: their numbers are bytes, and one is of none
CONVOLUTIONS, POOLS = (convolution.Conv1d, convolution.Conv2d), (pooling.MaxPool1d, pooling.MaxPool2d)


class Pool:
    """The maxima of windows that lie side by side, and the number of the first entry that each is."""

    def __init__(self, work: Any, shared: Any, window: Pair, y: np.ndarray):
        """y (A, O, B, N)"""
        self.window, self.y = window, y
        a, o, b, n = y.shape
        self.numbers = work("numbers", (o, a, b, n), np.uint8)
        self.number = self.numbers.transpose(1, 0, 2, 3)
        self.flags = shared("flags", y.shape, np.uint8)

    def windows(self, rows: slice) -> slice:
        """Those in these rows of z."""
        return slice(rows.start // self.window[0], rows.stop // self.window[0])

    def taps(self, z: np.ndarray) -> list[np.ndarray]:
        """Of z (P, O, Q, N) what all windows have at each of their entries, (A, O, B, N)."""
        (th, tw), (p, o, q, n) = self.window, z.shape
        z = z.reshape((p // th, th, o, q // tw, tw, n))
        return [z[:, i, :, :, j] for i in range(th) for j in range(tw)]

    def forward(self, z: np.ndarray, rows: slice, bias: np.ndarray | None = None) -> None:
        """y and the numbers, of the windows in these rows of z; `bias` is for pools that add it"""
        y, number = self.y[self.windows(rows)], self.number[self.windows(rows)]
        flags = self.flags[: y.shape[0]]
        first, *rest = self.taps(z)
        if not rest:
            np.copyto(y, first)
            number.fill(0)
        for i, tap in enumerate(rest, 1):
            before = y if i > 1 else first
            if i == 1:
                np.greater(tap, before, out=number.view(np.bool))
            else:
                np.greater(tap, before, out=flags.view(np.bool))
                np.multiply(flags, np.uint8(i), out=flags)
                np.maximum(number, flags, out=number)
            np.maximum(before, tap, out=y)

    def backward(self, dy: np.ndarray, rows: slice, dz: np.ndarray) -> None:
        """These rows of dz: dy or 0, even where dy is infinite: its bits by 1 or 0"""
        integer = np.int32 if dy.itemsize == 4 else np.int64
        number, dy = self.number[self.windows(rows)], dy[self.windows(rows)].view(integer)
        flags = self.flags[: dy.shape[0]].view(np.bool)
        for i, tap in enumerate(self.taps(dz)):
            np.equal(number, np.uint8(i), out=flags)
            np.multiply(dy, flags, out=tap.view(integer))

    def first_of_zeros(self, y: np.ndarray, slope: np.ndarray) -> None:
        """Let no dy through where ReLU's y is 0 by another entry than the first: ReLU's of the first is 0, too."""
        late = self.flags.reshape(y.shape).view(np.bool)
        np.equal(y, 0.0, out=late)
        late &= self.numbers.reshape(y.shape).view(np.bool)
        np.greater(slope, late, out=slope)


class Convolution(RowsStage):
    """y = f(p + b) with p the maxima over a pool's windows of z[o] = Σ_i W_i x[o + i - p]; without a pool p is z.

    Backward: dp = dy f' and db = Σ dp. dz is dp where a window has its first maximum, else 0; dW = Σ dz patchᵀ, and dx
    is dz convolved with the kernel turned round, or, where windows step over entries, Wᵀ dz added to what they see.
    Beside y it keeps f' if y does not tell it, and the numbers of the first maxima; z and the patches are there for a
    few rows of outputs at a time.

    A function between convolution and pool is ReLU, which changes places with the maximum. Where that is 0, a window's
    first is its first entry, for ReLU made all of them alike.
    """

    images = True
    correlations: tuple[type[Correlation], ...] = Winograd, Gathered
    maxima = Pool
    dz: np.ndarray | None = None  # all of it, where a pool is before dx

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        layers = [part.layer for part in parts[:3]]
        if not layers or (before and before.bias) or not cls.does(site, layers[0]):
            return None
        return cls(site, before, parts[0], layers[1:]) if parts[0].axes == layers[0].axes + 2 else None

    @classmethod
    def does(cls, site: Site, layer: Any) -> bool:
        """Whether it does a layer."""
        return is_plain(layer)

    def __init__(self, site: Site, before: Stage | None, part: Part, following: Sequence[Layer]):
        super().__init__(site, before, f"{part.prefix}.weight", f"{part.prefix}.bias")
        self.layer, self.axes, self.turn = part.layer, part.axes, 1 - self.turn
        self.stride = pair(part.layer._stride, 1)
        self.f: Layer | None = None
        self.tiles: Any = None  # the pool
        self.f_before_pool = False
        for layer in following:
            if self.tiles is None and type(self.f) in (type(None), activations.ReLU) and tiles(layer, self.layer.axes):
                self.tiles, self.f_before_pool = layer, self.f is not None
            elif self.f is None and pointwise(layer):
                self.f = layer
            else:
                break
            self.layers += 1
        self.y_read_once = self.f is None

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """W as (O, C, KH, KW), b as a vector and as a column."""
        weight, bias = (vector.arrays[name] for name in self.names)
        return weight.reshape((*weight.shape[:2], *pair(self.layer._kernel, 1))), bias, bias[:, None]

    def bind(self, x: np.ndarray, before: Stage | None) -> None:
        _, o, *outputs = self.layer.output_shape(tuple(x.shape)[::-1])  # which refuses an x that does not fit
        if self.tiles:
            self.tiles.output_shape((o, *outputs))
        c, h, w, n = shape = as_images(x).shape
        self.own_x = before is None or x.strides[-1] != x.itemsize
        self.x = self.work("x", shape) if self.own_x else as_images(x)
        kernel, window = pair(self.layer._kernel, 1), pair(self.tiles._kernel if self.tiles else (), 1)
        padding = pair(self.layer._outputs(tuple(x.shape)[-3::-1])[1], 0)
        a, b = (size // t for size, t in zip(pair(outputs, 1), window, strict=True))
        p, q = a * window[0], b * window[1]  # the last outputs may fill no window: nobody needs them
        self.shape = o, a, b, n
        y = self.output(o * a * b, n).reshape(self.shape)
        self.given, self.rows = as_given(y, self.axes), y.transpose(1, 0, 2, 3)
        self.bind_rows(o, a * b * n, y=y.reshape((o, a * b * n)))
        self.forward_rows, self.backward_rows = (
            self.by_rows(Convolution.apply),
            self.by_rows(Convolution.slope_and_sums),
        )
        longer = LONGER if self.site.threads > 1 else 1
        if not self.lowest:  # first the largest of the arrays that stages share
            if self.stride == (1, 1):
                around = kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]
                back = self.correlation(kernel, (1, 1), o, (c, h, w))
                self.back = back(self.shared, (o, p, q, n), kernel, around, (c, h, w), h, longer=longer)
            else:
                self.spread = Spread(self.shared, shape, kernel, padding, (o, p, q), self.stride)
            self.dx = self.shared(f"dx{self.turn}", shape)
        ahead = self.correlation(kernel, self.stride, c, (o, p, q))
        most = longer * OUTPUTS // max(1, o * q * n) if self.tiles else p
        self.ahead = ahead(self.shared, shape, kernel, padding, (o, p, q), most, window[0], self.stride, longer)
        self.pool: Pool | None = None
        if self.tiles:
            self.pool = self.maxima(self.work, self.shared, window, self.rows)
            self.z = self.shared("z", (self.ahead.count, o, q, n))
            self.dz = None if self.lowest else self.shared("dz", (p, o, q, n))

    def correlation(self, *case: Any) -> type[Correlation]:
        """The first that does a case, see `Correlation.does`."""
        return next(kind for kind in self.correlations if kind.does(*case))

    def forward(self, x: np.ndarray, params: Any) -> np.ndarray:
        self.ahead.take(params[0])
        if self.own_x:
            np.copyto(self.x, as_images(x))
        for rows, seen in self.ahead.seen(self.x):
            z = self.z[: rows.stop - rows.start] if self.pool else self.rows[rows]
            self.ahead.multiply(seen, z)
            if self.pool:
                self.pool.forward(z, rows, params[1])
        self.forward_rows(self, params[2])
        if self.pool and self.f_before_pool:
            self.pool.first_of_zeros(self.y, self.slope)
        return self.given

    def backward(self, dy: np.ndarray, params: Any, grads: Any) -> Any:
        dp = as_images(dy).reshape(self.y.shape)
        self.backward_rows(self, dp, grads[1])
        dp = dp.reshape(self.shape).transpose(1, 0, 2, 3)  # (A, O, B, N)
        for rows, seen in self.ahead.seen(self.x):
            dz = dp[rows]
            if self.pool:
                dz = self.z[: rows.stop - rows.start] if self.dz is None else self.dz[rows]
                self.pool.backward(dp, rows, dz)
            self.ahead.add(rows, seen, dz)
        self.ahead.gradient(grads[0])
        if self.lowest:
            return None
        dz = dp if self.dz is None else self.dz
        if self.stride != (1, 1):
            self.spread(params[0], dz, self.dx)
            return as_given(self.dx, self.axes)
        self.back.take(params[0][:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
        dx = self.dx.transpose(1, 0, 2, 3)
        for rows, seen in self.back.seen(dz.transpose(1, 0, 2, 3)):
            self.back.multiply(seen, dx[rows])
        return as_given(self.dx, self.axes)

    def slope_and_sums(self, dy: np.ndarray, dbias: np.ndarray) -> None:
        """dy ← dy f' and its sums, of all rows or of a part."""
        self.times_slope(dy)
        self.sums(dy, self.ones, out=dbias)


class Flatten(Stage):
    """Images as rows of features, in the order in which they lie in memory."""

    in_place = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) is shape.Flatten and before and before.images and not before.bias
        return cls(site, before) if fits else None

    def bind(self, x: np.ndarray, before: Any) -> None:
        self.y_and_ones, self.axes = before.y_and_ones, x.ndim
        self.shape = as_images(x).shape
        self.y = self.y_and_ones[: math.prod(self.shape[:-1])]

    def forward(self, x: np.ndarray, params: Any) -> Array:
        return self.y

    def backward(self, dy: np.ndarray, params: Any, grads: Any) -> Any:
        return as_given(dy.reshape(self.shape), self.axes)


def is_plain(layer: Any) -> bool:
    """Whether it is a convolution that sees neighbours, and has padding below its kernel's size."""
    if type(layer) not in CONVOLUTIONS or not layer.trainable or layer.groups > 1:
        return False
    padding = layer._per_axis(0 if isinstance(layer.padding, str) else layer.padding)
    return {*layer._dilation} == {1} and all(p < k for p, k in zip(padding, layer._kernel, strict=True))


def tiles(layer: Any, axes: int) -> bool:
    """Whether it is a pool whose windows lie side by side."""
    if type(layer) not in POOLS or layer.axes != axes or math.prod(layer._kernel) > TAPS:
        return False
    none = layer.padding == "valid" or (layer.padding != "same" and not any(layer._per_axis(layer.padding)))
    return none and layer._kernel == layer._stride


def pair(sizes: Sequence[int], alone: int) -> Pair:
    """The sizes along both axes, `alone` along an axis that is not there."""
    first, second = (alone, alone, *sizes)[-2:]
    return first, second


def as_images(a: np.ndarray) -> np.ndarray:
    """(W, H, C, N) or (L, C, N) as (C, H, W, N): a view."""
    return a.transpose(2, 1, 0, 3) if a.ndim == 4 else a.transpose(1, 0, 2)[:, None]


def as_given(images: np.ndarray, axes: int) -> np.ndarray:
    """`as_images` undone, for so many axes."""
    return images.transpose(2, 1, 0, 3) if axes == 4 else images[:, 0].transpose(1, 0, 2)
