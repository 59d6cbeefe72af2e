"""A convolution with its bias, a pointwise function and a pool, by PyTorch's functions. Axes as in `..convolution`.

Images (N, C, H, W) are in memory with the channels last, (N, H, W, C), for which PyTorch is fastest.
"""

import math
from typing import Any

from ....backends import Array
from .. import convolution
from ..convolution import CONVOLUTIONS, pair


class Convolution(convolution.Convolution):
    """`..convolution.Convolution` for any stride, dilation, padding and groups.

    y = f(max z), where z is PyTorch's convolution with the bias: max z + b = max(z + b). Backward: dz is dy f' at the
    first maxima, else 0; `convolution_backward` computes dW and dx.
    """

    images = False
    x: Any

    @classmethod
    def does(cls, site: Any, layer: Any) -> bool:
        return type(layer) in CONVOLUTIONS and site.family.immediate

    def bind(self, x: Array, before: Any) -> None:
        self.torch = self.site.family.lib
        _, o, *outputs = self.layer.output_shape(tuple(x.shape)[::-1])  # raises ValueError for an x that does not fit
        if self.pool_layer:
            self.pool_layer.output_shape((o, *outputs))
        n, c, *sizes = as_batch(x).shape
        layer, positions = self.layer, pair(outputs, 1)
        kernel, stride, dilation = (pair(each, 1) for each in (layer._kernel, layer._stride, layer._dilation))
        first = pair(layer._outputs(tuple(x.shape)[-3::-1])[1], 0)
        spans = [s * (m - 1) + d * (k - 1) + 1 for s, m, d, k in zip(stride, positions, dilation, kernel, strict=True)]
        last = [max(0, span - size - p) for span, size, p in zip(spans, sizes, first, strict=True)]
        self.padded = any(b > a for a, b in zip(first, last, strict=True))  # more zeros at the end than PyTorch can pad
        self.copies_x = before is None or self.padded
        if self.copies_x:
            wide = [a + size + b if self.padded else size for a, size, b in zip(first, sizes, last, strict=True)]
            self.x = self.channels_inside(self.work, "x", (n, c, *wide))
            self.start = first if self.padded else (0, 0)
        else:
            self.x, self.start = as_batch(x), (0, 0)
        self.inside = (..., *(slice(start, start + size) for start, size in zip(self.start, sizes, strict=True)))
        self.how = stride, (0, 0) if self.padded else first, dilation, False, (0, 0), layer.groups
        self.window = pair(self.pool_layer._kernel if self.pool_layer else (), 1)
        a, b = (size // t for size, t in zip(positions, self.window, strict=True))
        self.batch_y = self.channels_inside(self.work, "y", (n, o, a, b))
        self.given = as_given(self.batch_y, self.axes)
        if self.pool_layer:
            self.places = self.channels_inside(self.work, "places", (n, o, a, b), self.torch.int64)
            self.dz_of_pool = self.channels_inside(self.shared, "dz", (n, o, *positions))
            rows, columns = (self.torch.arange(m) * t for m, t in zip((a, b), self.window, strict=True))
            self.firsts = rows[:, None] * positions[1] + columns
        self.bind_rows(n * a * b, o, y=as_rows(self.batch_y))

    def channels_inside(self, place: Any, name: str, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """Return an array (N, C, H, W) with the channels last in memory."""
        n, c, h, w = shape
        return place(name, (n, h, w, c), dtype).permute(0, 3, 1, 2)

    def fill(self) -> None:
        super().fill()
        if self.padded:
            self.x.zero_()

    def forward(self, x: Array, params: Any) -> Array:
        torch, (weight, bias, _) = self.torch, params
        if self.copies_x:
            self.x[self.inside].copy_(as_batch(x))
        z = torch.convolution(self.x, weight, bias, *self.how)
        if self.pool_layer:
            out = {"out": self.batch_y, "indices": self.places}
            torch.ops.aten.max_pool2d_with_indices.out(z, self.window, self.window, **out)
        else:
            self.batch_y.copy_(z)
        self.apply(None)
        if self.f_before_pool:  # as `drop_later_zeros` in `..convolution`
            late = torch.eq(self.batch_y, 0.0).logical_and_(torch.ne(self.places, self.firsts))
            torch.gt(self.slope, as_rows(late), out=self.slope)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        torch, aten = self.torch, self.torch.ops.aten
        dz = as_batch(dy).contiguous(memory_format=torch.channels_last)
        rows = as_rows(dz)
        self.times_slope(rows)
        torch.sum(rows, 0, out=grads[1])
        if self.pool_layer:
            dz = aten.max_unpool2d.out(dz, self.places, self.dz_of_pool.shape[2:], out=self.dz_of_pool)
        wanted = not self.lowest, True, False
        dx, dweight, _ = aten.convolution_backward(dz, self.x, params[0], None, *self.how, wanted)
        grads[0].copy_(dweight)
        return None if self.lowest else as_given(dx[self.inside], self.axes)


class Flatten(convolution.Flatten):
    """Flatten images to rows of features, in the layer's order: a copy."""

    in_place = False

    def bind(self, x: Array, before: Any) -> None:
        self.axes = x.ndim
        _, *shape = as_batch(x).shape
        self.inside = self.output(math.prod(shape), x.shape[-1]).reshape((*shape, x.shape[-1]))

    def forward(self, x: Array, params: Any) -> Array:
        self.inside.copy_(as_batch(x).permute(1, 2, 3, 0))
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        return as_given(dy.reshape(self.inside.shape).permute(3, 0, 1, 2), self.axes)


def as_batch(a: Array) -> Array:
    """View (W, H, C, N) or (L, C, N) as (N, C, H, W)."""
    return a.permute(3, 2, 1, 0) if a.ndim == 4 else a.permute(2, 1, 0)[:, :, None]


def as_given(batch: Array, axes: int) -> Array:
    """Invert `as_batch`, for an array of so many axes."""
    return batch.permute(3, 2, 1, 0) if axes == 4 else batch[:, :, 0].permute(2, 1, 0)


def as_rows(batch: Array) -> Array:
    """View (N, C, H, W) as (N H W, C)."""
    return batch.permute(0, 2, 3, 1).reshape((-1, batch.shape[1]))
