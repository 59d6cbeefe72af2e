"""A convolution with its bias, a pointwise function and a pool, in NumPy's calls.

Axes: N batch, C input channels, O output channels, (H, W) the images, (KH, KW) the kernel; (P, Q) the convolution's
outputs, (A, B) the pool's, (TH, TW) its window. A sequence is an image of one row.
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
from .correlation import Correlation, Pair, Spread
from .functions import RowsStage
from .winograd import Winograd

OUTPUTS = 3 * 2**15  # entries of z that are computed at a time if a pool follows
BLOCK_FACTOR = 4  # of OUTPUTS and of a block of patches, in threads: fewer calls wait less for Python's lock
LARGEST_WINDOW = 255  # entries of a pool's window: argmax is stored in bytes, and 255 is free for Numba's pool
CONVOLUTIONS, POOLS = (convolution.Conv1d, convolution.Conv2d), (pooling.MaxPool1d, pooling.MaxPool2d)


class Pool:
    """The maxima over windows that lie side by side, and for each the number of its first entry in the window."""

    def __init__(self, work: Any, shared: Any, window: Pair, y: np.ndarray):
        """y is the array for the maxima, (A, O, B, N)."""
        self.window, self.y = window, y
        a, o, b, n = y.shape
        self.argmax = work("argmax", (o, a, b, n), np.uint8)
        self.argmax_rows = self.argmax.transpose(1, 0, 2, 3)  # (A, O, B, N)
        self.flags = shared("flags", y.shape, np.uint8)

    def windows(self, rows: slice) -> slice:
        """Return the rows of windows in these rows of z."""
        return slice(rows.start // self.window[0], rows.stop // self.window[0])

    def taps(self, z: np.ndarray) -> list[np.ndarray]:
        """Return views of z (P, O, Q, N), one for each entry of the window, each (A, O, B, N)."""
        (th, tw), (p, o, q, n) = self.window, z.shape
        z = z.reshape((p // th, th, o, q // tw, tw, n))
        return [z[:, i, :, :, j] for i in range(th) for j in range(tw)]

    def forward(self, z: np.ndarray, rows: slice, bias: np.ndarray | None = None) -> None:
        """Write y and argmax for the windows in these rows of z. `bias` is for subclasses, which add it."""
        y, argmax_rows = self.y[self.windows(rows)], self.argmax_rows[self.windows(rows)]
        flags = self.flags[: y.shape[0]]
        first, *rest = self.taps(z)
        if not rest:
            np.copyto(y, first)
            argmax_rows.fill(0)
        for i, tap in enumerate(rest, 1):
            before = y if i > 1 else first
            if i == 1:
                np.greater(tap, before, out=argmax_rows.view(np.bool))
            else:
                np.greater(tap, before, out=flags.view(np.bool))
                np.multiply(flags, np.uint8(i), out=flags)
                np.maximum(argmax_rows, flags, out=argmax_rows)
            np.maximum(before, tap, out=y)

    def backward(self, dy: np.ndarray, rows: slice, dz: np.ndarray) -> None:
        """Write these rows of dz, dy or 0. Multiplying dy's bits by 1 or 0 gives 0 even where dy is infinite."""
        integer = np.int32 if dy.itemsize == 4 else np.int64
        argmax_rows, dy = self.argmax_rows[self.windows(rows)], dy[self.windows(rows)].view(integer)
        flags = self.flags[: dy.shape[0]].view(np.bool)
        for i, tap in enumerate(self.taps(dz)):
            np.equal(argmax_rows, np.uint8(i), out=flags)
            np.multiply(dy, flags, out=tap.view(integer))

    def drop_later_zeros(self, y: np.ndarray, slope: np.ndarray) -> None:
        """Set the slope to 0 where ReLU gave 0 and the maximum is not the first entry of its window.

        With ReLU before the pool, all entries of such a window are 0; dy is then the first's, where ReLU's slope is 0.
        """
        later = self.flags.reshape(y.shape).view(np.bool)
        np.equal(y, 0.0, out=later)
        later &= self.argmax.reshape(y.shape).view(np.bool)
        np.greater(slope, later, out=slope)


class Convolution(RowsStage):
    """y = f(m + b), with m the maxima over a pool's windows of z[p] = Σ_i W_i x[s p + i - padding], or z itself.

    Backward: dm = dy f' and db = Σ dm; dz is dm at the first maximum of each window, else 0; dW = Σ dz patchᵀ. With
    stride s = 1, dx is dz convolved with the kernel turned round; otherwise Wᵀ dz is added up where the patches lie.
    Beside y, the stage keeps argmax, and f' unless y determines it; z and the patches are computed for a few rows of
    outputs at a time.

    A function between convolution and pool must be ReLU; it is then applied after the maximum, which is the same. Only
    for windows whose maximum is 0 does the argmax differ: ReLU makes their entries equal, and the first counts.
    """

    images = True
    dz: np.ndarray | None = None  # all rows of dz, if there are a pool and a dx

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        layers = [part.layer for part in parts[:3]]
        if not layers or parts[0].frozen or (before and before.bias) or not cls.does(site, layers[0]):
            return None
        return cls(site, before, parts[0], layers[1:]) if parts[0].axes == layers[0].axes + 2 else None

    @classmethod
    def does(cls, site: Site, layer: Any) -> bool:
        """Whether the class can compute this layer."""
        return is_plain(layer)

    def __init__(self, site: Site, before: Stage | None, part: Part, following: Sequence[Layer]):
        super().__init__(site, before, f"{part.prefix}.weight", f"{part.prefix}.bias")
        self.layer, self.axes, self.turn = part.layer, part.axes, 1 - self.turn
        self.stride = pair(part.layer._stride, 1)
        self.f: Layer | None = None
        self.pool_layer: Any = None
        self.f_before_pool = False
        for layer in following:
            may_pool = self.pool_layer is None and type(self.f) in (type(None), activations.ReLU)
            if may_pool and is_tiling(layer, self.layer.axes):
                self.pool_layer, self.f_before_pool = layer, self.f is not None
            elif self.f is None and pointwise(layer):
                self.f = layer
            else:
                break
            self.layers += 1
        self.y_read_once = self.f is None

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """Return W as (O, C, KH, KW), and b as a vector and as a column."""
        weight, bias = (vector.arrays[name] for name in self.names)
        return weight.reshape((*weight.shape[:2], *pair(self.layer._kernel, 1))), bias, bias[:, None]

    def bind(self, x: np.ndarray, before: Stage | None) -> None:
        _, o, *outputs = self.layer.output_shape(tuple(x.shape)[::-1])  # raises ValueError for an x that does not fit
        if self.pool_layer:
            self.pool_layer.output_shape((o, *outputs))
        c, h, w, n = shape = as_images(x).shape
        self.copies_x = before is None or x.strides[-1] != x.itemsize
        self.x = self.work("x", shape) if self.copies_x else as_images(x)
        kernel, window = pair(self.layer._kernel, 1), pair(self.pool_layer._kernel if self.pool_layer else (), 1)
        padding = pair(self.layer._outputs(tuple(x.shape)[-3::-1])[1], 0)
        a, b = (size // t for size, t in zip(pair(outputs, 1), window, strict=True))
        p, q = a * window[0], b * window[1]  # without trailing outputs that fill no window
        self.shape = o, a, b, n
        y = self.output(o * a * b, n).reshape(self.shape)
        self.given, self.rows = as_given(y, self.axes), y.transpose(1, 0, 2, 3)
        self.bind_rows(o, a * b * n, y=y.reshape((o, a * b * n)))
        self.forward_rows, self.backward_rows = (
            self.by_rows(Convolution.apply),
            self.by_rows(Convolution.times_slope_and_sums),
        )
        factor = BLOCK_FACTOR if self.site.threads > 1 else 1
        if not self.lowest:  # first, as these are the largest of the arrays that stages share
            if self.stride == (1, 1):
                full = kernel[0] - 1 - padding[0], kernel[1] - 1 - padding[1]  # the padding of dz
                back = self.correlation(kernel, (1, 1), o, (c, h, w))
                self.back = back(self.shared, (o, p, q, n), kernel, full, (c, h, w), h, block_factor=factor)
            else:
                self.spread = Spread(self.shared, shape, kernel, padding, (o, p, q), self.stride)
            self.dx = self.shared(f"dx{self.turn}", shape)
        ahead = self.correlation(kernel, self.stride, c, (o, p, q))
        max_rows = factor * OUTPUTS // max(1, o * q * n) if self.pool_layer else p
        self.ahead = ahead(self.shared, shape, kernel, padding, (o, p, q), max_rows, window[0], self.stride, factor)
        self.pool: Pool | None = None
        if self.pool_layer:
            self.pool = self.site.family.pool(self.work, self.shared, window, self.rows)
            self.z = self.shared("z", (self.ahead.count, o, q, n))
            self.dz = None if self.lowest else self.shared("dz", (p, o, q, n))

    def correlation(self, kernel: Pair, stride: Pair, inputs: int, outputs: tuple[int, int, int]) -> type[Correlation]:
        """Return the fastest form of a correlation: see `Winograd.does`."""
        winograd: type[Winograd] = self.site.family.winograd
        return winograd if winograd.does(kernel, stride, inputs, outputs, self.site.threads) else Correlation

    def forward(self, x: np.ndarray, params: Any) -> np.ndarray:
        self.ahead.set_weight(params[0])
        if self.copies_x:
            np.copyto(self.x, as_images(x))
        for rows, patches in self.ahead.patches(self.x):
            z = self.z[: rows.stop - rows.start] if self.pool else self.rows[rows]
            self.ahead.multiply(patches, z)
            if self.pool:
                self.pool.forward(z, rows, params[1])
        self.forward_rows(self, params[2])
        if self.pool and self.f_before_pool:
            self.pool.drop_later_zeros(self.y, self.slope)
        return self.given

    def backward(self, dy: np.ndarray, params: Any, grads: Any) -> Any:
        dm = as_images(dy).reshape(self.y.shape)
        self.backward_rows(self, dm, grads[1])
        dm = dm.reshape(self.shape).transpose(1, 0, 2, 3)  # (A, O, B, N)
        for rows, patches in self.ahead.patches(self.x):
            dz = dm[rows]
            if self.pool:
                dz = self.z[: rows.stop - rows.start] if self.dz is None else self.dz[rows]
                self.pool.backward(dm, rows, dz)
            self.ahead.add(rows, patches, dz)
        self.ahead.gradient(grads[0])
        if self.lowest:
            return None
        dz = dm if self.dz is None else self.dz
        if self.stride != (1, 1):
            self.spread(params[0], dz, self.dx)
            return as_given(self.dx, self.axes)
        self.back.set_weight(params[0][:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
        dx = self.dx.transpose(1, 0, 2, 3)
        for rows, patches in self.back.patches(dz.transpose(1, 0, 2, 3)):
            self.back.multiply(patches, dx[rows])
        return as_given(self.dx, self.axes)

    def times_slope_and_sums(self, dy: np.ndarray, dbias: np.ndarray) -> None:
        """Multiply dy by f' in place, and write its sums into `dbias`; for all rows or a block of them."""
        self.times_slope(dy)
        self.sums(dy, self.ones, out=dbias)


class Flatten(Stage):
    """Flatten without copying: the images' memory, (C H W, N), is the matrix of features."""

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
    """Whether the layer is a convolution without groups and dilation, with padding smaller than its kernel."""
    if type(layer) not in CONVOLUTIONS or layer.groups > 1:
        return False
    padding = layer._per_axis(0 if isinstance(layer.padding, str) else layer.padding)
    return {*layer._dilation} == {1} and all(p < k for p, k in zip(padding, layer._kernel, strict=True))


def is_tiling(layer: Any, axes: int) -> bool:
    """Whether the layer is a max pool without padding whose windows lie side by side."""
    if type(layer) not in POOLS or layer.axes != axes or math.prod(layer._kernel) > LARGEST_WINDOW:
        return False
    unpadded = layer.padding == "valid" or (layer.padding != "same" and not any(layer._per_axis(layer.padding)))
    return unpadded and layer._kernel == layer._stride


def pair(sizes: Sequence[int], alone: int) -> Pair:
    """Return the sizes along both axes, with `alone` for those that are missing."""
    first, second = (alone, alone, *sizes)[-2:]
    return first, second


def as_images(a: np.ndarray) -> np.ndarray:
    """View (W, H, C, N) or (L, C, N) as (C, H, W, N)."""
    return a.transpose(2, 1, 0, 3) if a.ndim == 4 else a.transpose(1, 0, 2)[:, None]


def as_given(images: np.ndarray, axes: int) -> np.ndarray:
    """Invert `as_images`, for an array of so many axes."""
    return images.transpose(2, 1, 0, 3) if axes == 4 else images[:, 0].transpose(1, 0, 2)
