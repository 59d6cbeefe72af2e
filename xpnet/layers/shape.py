"""Layers that change the shape, order or scale of x. Axes: N batch, and any others."""

import math
from numbers import Integral
from typing import Any

from ..backends import DTYPES, Array, dtype_name, floating, namespace
from ..common.checks import brief, finite, integer
from .base import Layer, Shape, check_shape
from .windows import reshaped


class Reshape(Layer):
    """Each row of x in another shape, without the batch: `Reshape(1, 8, 8)` makes (N, 64) an (N, 1, 8, 8).

    forward:   y  = x in the shape (N, *shape)
    backward:  dx = dy in the shape of x

    The entries keep their order, C order. One of the sizes may be -1: what the others leave. Raises ValueError for an
    x with another number of entries.

    >>> xn.Reshape(1, 8, 8).output_shape(("N", 64))
    ('N', 1, 8, 8)
    """

    formula = "y = x in the shape (N, *shape)", "dx = dy in the shape of x"

    def __init__(self, *shape: int):
        given: tuple[Any, ...] = shape
        sizes = [-1 if isinstance(n, Integral) and n == -1 else integer("Reshape: each size", n) for n in given]
        if not sizes or sizes.count(-1) > 1:
            raise ValueError(f"Reshape: expected sizes of at least 1, one of them perhaps -1, got {brief(shape)}")
        self.shape = tuple(sizes)
        self.input_shape = None if -1 in sizes else (math.prod(sizes),)

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        floating(x, self)
        y = reshaped(x, self._row_of(x.shape, x.shape[1:]))
        return y, (self, y.shape, x.shape)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        (shape,) = self.saved(cache, dy)
        return reshaped(dy, shape[1:]), {}

    def output_shape(self, input_shape: Shape) -> Shape:
        """As in `Layer`; a shape with one axis is taken to lack the batch."""
        check_shape(self, input_shape)
        batch, row = (input_shape[:1], input_shape[1:]) if len(input_shape) != 1 else ((), input_shape)
        return (*batch, *self._row_of(input_shape, row))

    def _row_of(self, shape: Shape, row: Shape) -> Any:
        """Return the shape of a row of y, given the shapes of x and of a row of it."""
        n = math.prod(row) if all(isinstance(size, int) for size in row) else None  # type: ignore[arg-type]
        known = math.prod(size for size in self.shape if size != -1)
        if not shape or (n is not None and (n % known or (-1 not in self.shape and n != known))):
            wanted = f"a multiple of {known}" if -1 in self.shape else f"{known}"
            raise ValueError(f"{self!r}: expected {wanted} entries a row, got an x of shape {tuple(shape)}")
        return tuple((None if n is None else n // known) if size == -1 else size for size in self.shape)


class Flatten(Reshape):
    """(N, ...) as (N, D), the entries of each row in C order of its shape: of (C, H, W) the last axis the fastest.

    forward:   y  = x in the shape (N, D)
    backward:  dx = dy in the shape of x

    >>> xn.Flatten().output_shape(("N", 3, 4, 4))
    ('N', 48)
    """

    formula = "y = x in the shape (N, D)", "dx = dy in the shape of x"

    def __init__(self) -> None:
        super().__init__(-1)


class Transpose(Layer):
    """The axes of x behind the batch in another order: `Transpose(3, 1, 2)` makes (N, H, W, C) an (N, C, H, W).

    forward:   y  = x with its axes in this order
    backward:  dx = dy with them back in theirs

    `axes` are numbers of x's axes, of which the batch's is 0: a permutation of 1, 2, ... They may be numbered without
    the batch, too, from 0: `Transpose(2, 0, 1)` is the same. Raises ValueError for an x with more or fewer axes.

    >>> xn.Transpose(3, 1, 2).output_shape(("N", 32, 30, 3))
    ('N', 3, 32, 30)
    """

    formula = "y = x with its axes in this order", "dx = dy with them back in theirs"

    def __init__(self, *axes: int):
        numbers = tuple(integer("Transpose: each axis", axis, 0) for axis in axes)
        if sorted(numbers) == list(range(len(axes))):
            numbers = tuple(axis + 1 for axis in numbers)
        if not axes or sorted(numbers) != list(range(1, len(axes) + 1)):
            raise ValueError(
                f"Transpose: expected each of the axes behind the batch once, as in Transpose(3, 1, 2), got "
                f"{brief(axes)}"
            )
        self.axes = numbers
        self.input_shape = (None,) * len(numbers)

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = floating(x, self)
        self._check(x.shape, len(x.shape) - 1)
        y = xp.permute_dims(x, (0, *self.axes))
        return y, (self, y.shape)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        self.saved(cache, dy)
        back = sorted(range(len(self.axes)), key=self.axes.__getitem__)
        return namespace(dy).permute_dims(dy, (0, *(i + 1 for i in back))), {}

    def output_shape(self, input_shape: Shape) -> Shape:
        """As in `Layer`; a shape with one axis fewer is taken to lack the batch."""
        check_shape(self, input_shape)
        batch = input_shape[: len(input_shape) - len(self.axes)]
        self._check(input_shape, len(input_shape) - (1 if batch else 0))
        return (*batch, *(input_shape[len(batch) + axis - 1] for axis in self.axes))

    def _check(self, shape: Shape, axes: int) -> None:
        if axes != len(self.axes):
            raise ValueError(f"{self!r}: expected {len(self.axes)} axes behind the batch, got {tuple(shape)}")


class Rescale(Layer):
    """forward: y = scale · x + offset        backward: dx = scale · dy

    `Rescale(1 / 255)` brings the entries of images to [0, 1]. Images of `uint8` go into `fit` and `predict` as they
    are, and the network casts them batch by batch. Given integers itself, the layer casts them to float32.

    `scale` and `offset` are finite numbers; raises ValueError for others.

    >>> import numpy as np
    >>> xn.Rescale(1 / 255).forward(np.asarray([[0, 255]], dtype="uint8"))[0]
    array([[0., 1.]], dtype=float32)
    """

    formula = "y = scale · x + offset", "dx = scale · dy"

    def __init__(self, scale: float, offset: float = 0.0):
        self.scale = finite("Rescale: scale", scale)
        self.offset = finite("Rescale: offset", offset)

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        xp = namespace(x, self)
        if dtype_name(x.dtype) not in DTYPES and xp.isdtype(x.dtype, "integral"):
            x = xp.astype(x, xp.float32)
        floating(x, self)
        y = x * self.scale
        y += self.offset
        return y, (self, y.shape)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        self.saved(cache, dy)
        return dy * self.scale, {}
