"""Windows of convolutions and pooling, which slide along the axes after batch and channels. Axes: N batch, C channels,
S any axes along which windows slide.

Along an axis, output o depends on the entries s o + d i - p of x, i = 0 ... k - 1: kernel size k, stride s, dilation d,
padding p. The functions take arrays with the batch last, (C, S..., N). The entries at one place of all windows, a tap,
are then a slice of x with step s, whose innermost axis is long and contiguous. Gradients go back to x in slices, too:
one for each phase r of s, the entries s q + r of x, to which output q + e adds through tap i if r + p - d i = s e.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from ..backends import Array, Namespace, class_of, device_of, floating, namespace
from ..common.checks import brief, integer
from .base import Layer, Shape, check_shape

PADDINGS = "same", "valid"
Sizes = Sequence[int]


class Windows(Layer):
    """The base class of layers with windows: their kernel size, stride, padding and dilation along each axis."""

    axes: ClassVar[int]  # the number of axes along which windows slide

    def _slide(self, kernel_size: Any, stride: Any, padding: Any, dilation: Any = 1) -> None:
        """Check and keep these settings, each a number or one for each axis; also keep them as one for each axis."""
        who = type(self).__name__
        self.kernel_size = self._each(f"{who}: kernel_size", kernel_size)
        self.stride = self._each(f"{who}: stride", stride)
        self._kernel, self._stride = self._per_axis(self.kernel_size), self._per_axis(self.stride)
        self._dilation = self._per_axis(self._each(f"{who}: dilation", dilation))
        if isinstance(padding, str) and padding not in PADDINGS:
            raise ValueError(
                f'{who}: padding must be "same", "valid" or whole numbers of at least 0, got {brief(padding)}'
            )
        self.padding = padding if isinstance(padding, str) else self._each(f"{who}: padding", padding, least=0)

    def _each(self, name: str, value: Any, least: int = 1) -> Any:
        """Return a whole number, or a tuple of one for each axis."""
        if not isinstance(value, (tuple, list)):
            return integer(name, value, least)
        if len(value) != self.axes:
            raise ValueError(f"{name} must be a whole number, or {self.axes} of them, got {brief(value)}")
        return tuple(integer(name, each, least) for each in value)

    def _per_axis(self, value: Any) -> tuple[int, ...]:
        return value if isinstance(value, tuple) else (value,) * self.axes

    def _outputs(self, sizes: Sequence[Any]) -> tuple[list[Any], list[int]]:
        """Return the number of outputs along each axis, None if unknown, and the padding before the first entry."""
        outputs: list[Any] = []
        before = []
        for i, (size, k, s, d) in enumerate(zip(sizes, self._kernel, self._stride, self._dilation, strict=True)):
            reach = d * (k - 1) + 1
            p = 0 if isinstance(self.padding, str) else self._per_axis(self.padding)[i]
            if not isinstance(size, int):
                outputs.append(None)
            elif self.padding == "same":
                outputs.append(-(-size // s))
                p = max((outputs[-1] - 1) * s + reach - size, 0) // 2
            elif size + 2 * p < reach:
                wide = f"of size {k} and dilation {d}, {reach} wide," if d > 1 else f"of size {k}"
                raise ValueError(
                    f"{self!r}: a kernel {wide} does not fit into {size} entries with {p} of padding on either side; "
                    'use a smaller kernel, or padding="same"'
                )
            else:
                outputs.append((size + 2 * p - reach) // s + 1)
            before.append(p)
        return outputs, before

    def _starts(self, before: Sizes) -> list[list[int]]:
        """Return along each axis the entry of x at each tap of the first window."""
        return [[d * i - p for i in range(k)] for k, d, p in zip(self._kernel, self._dilation, before, strict=True)]

    def _check(self, x: Array, channels: int | None = None) -> Namespace:
        """Return the functions for x. Raises TypeError or ValueError unless it is floating, (N, C, S...)."""
        xp = floating(x, self)
        if len(x.shape) != self.axes + 2 or x.shape[1] != (channels or x.shape[1]):
            raise self._misplaced(x.shape, channels)
        return xp

    def _misplaced(self, shape: Shape, channels: int | None) -> ValueError:
        """Return the error for a shape with other axes or channels, with a remedy for common mistakes."""
        names = ("length",) if self.axes == 1 else ("height", "width")
        hint = ""
        if len(shape) == self.axes + 2 and channels not in (None, shape[1]) and shape[-1] == channels:
            last = ", ".join(map(str, (self.axes + 1, *range(1, self.axes + 1))))
            hint = f": its channels are last, (n, {', '.join(names)}, {channels}); put Transpose({last}) before it"
        elif len(shape) == self.axes + 1 and channels in (None, 1):
            hint = ": for one channel give x[:, None]"
        elif len(shape) == 2:
            hint = f": put Reshape({channels or 'channels'}, {', '.join(names)}) before it"
        wanted = ", ".join(map(str, ("n", channels or "channels", *names)))
        return ValueError(f"{self!r}: expected input of shape ({wanted}), got {tuple(shape)}{hint}")

    def _shape_after(self, shape: Shape, channels: int | None, out_channels: Any = None) -> Shape:
        """Return `output_shape` for an x (N, C, S...), or without the batch."""
        check_shape(self, shape)
        start = len(shape) - self.axes - 1  # the axis of the channels
        if start not in (0, 1) or (channels is not None and shape[start] not in (channels, None)):
            raise self._misplaced(shape, channels)
        kept = out_channels or shape[start]
        return (*shape[:start], kept, *self._outputs(shape[start + 1 :])[0])


# --- memory order -----------------------------------------------------------------------------------------------------


def batch_last(x: Array) -> Array:
    """Return (N, ...) as (..., N), a view."""
    return x.T if x.ndim == 2 else namespace(x).permute_dims(x, (*range(1, x.ndim), 0))


def batch_first(x: Array) -> Array:
    """Return (..., N) as (N, ...), a view."""
    return x.T if x.ndim == 2 else namespace(x).permute_dims(x, (x.ndim - 1, *range(x.ndim - 1)))


def packed(x: Array) -> Array:
    """Return (N, ...) as (..., N), contiguous in memory: a view if possible, else a copy."""
    xp, x = namespace(x), batch_last(x)
    return xp.reshape(xp.reshape(x, (-1,)), x.shape)


def reshaped(x: Array, shape: Sizes) -> Array:
    """Return x with each row in this shape, its entries in C order of the logical shape. In memory the batch is
    innermost, as in `ops.linear`, unless the library is best in C order.
    """
    xp = namespace(x)
    if class_of(xp).plain:
        return xp.reshape(x, (x.shape[0], *shape))
    return batch_first(xp.reshape(batch_last(x), (*shape, x.shape[0])))


# --- slices -----------------------------------------------------------------------------------------------------------


def extended(x: Array, axis: int, start: int, stop: int, fill: float) -> Array:
    """Return x[start:stop] along an axis, with `fill` in place of entries outside of x."""
    xp, size = namespace(x), x.shape[axis]
    low, high = max(start, 0), min(stop, size)

    def filled(n: int) -> Array:
        shape = (*x.shape[:axis], n, *x.shape[axis + 1 :])
        return xp.full(shape, fill, dtype=x.dtype, device=device_of(x))

    if low >= high:
        return filled(stop - start)
    inside = x if (low, high) == (0, size) else x[(slice(None),) * axis + (slice(low, high), ...)]
    if (low, high) == (start, stop):
        return inside
    fills = {n: filled(n) for n in {low - start, stop - high} if n}  # usually one array for both sides
    parts = [*([fills[low - start]] if low > start else []), inside, *([fills[stop - high]] if stop > high else [])]
    return xp.concat(parts, axis=axis)


def slices(x: Array, starts: Sequence[Sizes], steps: Sizes, counts: Sizes, fill: float = 0.0) -> list[Array]:
    """Return, for each combination of starts along the axes S of x (..., S..., N), its entries start + step o, for
    o = 0 ... count - 1, with `fill` in place of entries outside of x.
    """
    first = x.ndim - 1 - len(starts)
    along = []
    for axis, (axis_starts, step, count) in enumerate(zip(starts, steps, counts, strict=True), first):
        low, reach = min(axis_starts), step * (count - 1) + 1
        x = extended(x, axis, low, max(axis_starts) + reach, fill)
        along.append([slice(start - low, start - low + reach, step) for start in axis_starts])
    return [x[(..., *each, slice(None))] for each in itertools.product(*along)]


def interleaved(phases: Sequence[Array], steps: Sizes, sizes: Sizes) -> Array:
    """Return the array (..., S..., N) with these sizes along S, whose entries q step + r are those of phase r."""
    xp, pieces = namespace(phases[0]), list(phases)
    for i in reversed(range(len(steps))):
        axis, step = pieces[0].ndim - 1 - len(steps) + i, steps[i]
        merged = []
        for start in range(0, len(pieces), step):
            whole = pieces[start]
            if step > 1:
                group = xp.stack(pieces[start : start + step], axis=axis + 1)
                whole = xp.reshape(group, (*whole.shape[:axis], step * whole.shape[axis], *whole.shape[axis + 1 :]))
            if whole.shape[axis] > sizes[i]:
                whole = whole[(slice(None),) * axis + (slice(sizes[i]), ...)]
            merged.append(whole)
        pieces = merged
    return pieces[0]


def spread(layer: Windows, part: Callable[[int], Array], shape: Sizes, before: Sizes) -> Array:
    """Return the array of this shape (..., S..., N) in which `part(i)` (..., outputs..., N) is added to the entries at
    tap i of all windows, for each tap in row-major order.
    """
    leading, sizes, total = shape[: -1 - layer.axes], shape[-1 - layer.axes : -1], []
    counts = [-(-size // s) for size, s in zip(sizes, layer._stride, strict=True)]
    once = (1,) * layer.axes
    phases = [  # along each axis, for each phase of x, the taps that contribute to it, each with its e
        [{i: (r + p - d * i) // s for i in range(k) if (r + p - d * i) % s == 0} for r in range(s)]
        for k, s, d, p in zip(layer._kernel, layer._stride, layer._dilation, before, strict=True)
    ]
    for each in itertools.product(*phases):
        piece: Any = None
        for taps in itertools.product(*(along.items() for along in each)):
            number = 0
            for (i, _), k in zip(taps, layer._kernel, strict=True):
                number = number * k + i
            (more,) = slices(part(number), [[e] for _, e in taps], once, counts)
            piece = more if piece is None else piece + more
        if piece is None:
            a = part(0)
            piece = namespace(a).zeros((*leading, *counts, shape[-1]), dtype=a.dtype, device=device_of(a))
        total.append(piece)
    return interleaved(total, layer._stride, sizes)
