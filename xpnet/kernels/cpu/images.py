"""Batch norm, pointwise functions and max pools of images, in NumPy's calls. Axes as in `.convolution`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...backends import Array
from ..stages import Meetings, Part, Site, Stage
from .convolution import as_given, as_images, is_tiling, pair


class OfImages:
    """A mixin that turns the stage for matrices (H, N) behind it into one for images, as matrices (C, H W N)."""

    images = True
    y: Any
    y_and_ones: Any
    has_ones: bool
    in_place: bool

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Any:
        """Return a stage for the first parts if the stage before outputs images, else None."""
        if not parts or parts[0].axes == 2 or not before or not before.images or before.bias:
            return None
        return super().take(site, before, [part._replace(axes=2) for part in parts[:2]])  # type: ignore[misc]

    def bind(self, x: np.ndarray, before: Any) -> None:
        self.shape, self.axes = as_images(x).shape, x.ndim
        super().bind(self.rows(x), before)  # type: ignore[misc]
        if not self.in_place:
            features, n = math.prod(self.shape[:-1]) + self.has_ones, self.shape[-1]
            self.y_and_ones = self.y_and_ones.reshape(-1)[: features * n].reshape((features, n))
        self.given = self.of_rows(self.y)

    def rows(self, a: np.ndarray) -> np.ndarray:
        """View images as a matrix (C, H W N)."""
        return as_images(a).reshape((self.shape[0], math.prod(self.shape[1:])), copy=False)

    def of_rows(self, a: np.ndarray) -> np.ndarray:
        """Invert `rows`."""
        return as_given(a.reshape(self.shape), self.axes)

    def forward(self, x: np.ndarray, params: Any) -> Array:
        super().forward(self.rows(x), params)  # type: ignore[misc]
        return self.given

    def backward(self, dy: np.ndarray, params: Any, grads: Any) -> Any:
        return self.of_rows(super().backward(self.rows(dy), params, grads))  # type: ignore[misc]

    def infer(self, x: np.ndarray, params: Any, arrays: Mapping[str, Array]) -> Array:
        super().infer(self.rows(x), params, arrays)  # type: ignore[misc]
        return self.given

    def forward_of_stretch(self, x: np.ndarray, params: Any) -> Meetings:
        yield from super().forward_of_stretch(self.rows(x), params)  # type: ignore[misc]
        return self.given

    def backward_of_stretch(self, dy: np.ndarray, params: Any, grads: Any) -> Meetings:
        return self.of_rows((yield from super().backward_of_stretch(self.rows(dy), params, grads)))  # type: ignore[misc]


def of_images(stage: type[Stage]) -> Any:
    """Return the class of stages for images, given that for matrices."""
    return type(f"{stage.__name__}OfImages", (OfImages, stage), {})


class Pooling(Stage):
    """The maxima over windows that lie side by side; dx is dy at the first maximum of each window, else 0.

    The images of all channels, one below the other, are treated as one tall image.
    """

    images = y_read_once = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        if not parts or not before or not before.images or before.bias:
            return None
        return cls(site, before, parts[0]) if is_tiling(parts[0].layer, parts[0].axes - 2) else None

    def __init__(self, site: Site, before: Stage, part: Part):
        super().__init__(site, before)
        self.layer, self.axes, self.turn = part.layer, part.axes, 1 - self.turn

    def bind(self, x: np.ndarray, before: Any) -> None:
        self.layer.output_shape(tuple(x.shape)[::-1])  # raises ValueError for an x that does not fit
        c, h, w, n = self.shape = as_images(x).shape
        th, tw = window = pair(self.layer._kernel, 1)
        a, b = h // th, w // tw
        self.inside = slice(None), slice(a * th), slice(b * tw)  # without trailing entries that fill no window
        self.y = self.output(c * a * b, n).reshape((c, a, b, n))
        self.given = as_given(self.y, self.axes)
        self.dx = self.shared(f"dx{self.turn}", self.shape)
        self.cropped = None if (a * th, b * tw) == (h, w) else self.shared("cropped", (c, a * th, b * tw, n))
        self.pool = self.site.family.pool(self.work, self.shared, window, self.tall(self.y))

    def tall(self, images: np.ndarray) -> np.ndarray:
        """View images (C, H, W, N) as a single one, (C H, 1, W, N)."""
        c, h, w, n = images.shape
        return images.reshape((c * h, 1, w, n), copy=False)

    def forward(self, x: np.ndarray, params: Any) -> Array:
        images = as_images(x)
        if self.cropped is not None:
            images = self.cropped
            np.copyto(images, as_images(x)[self.inside])
        tall = self.tall(images)
        self.pool.forward(tall, slice(0, len(tall)))
        return self.given

    def backward(self, dy: np.ndarray, params: Any, grads: Any) -> Any:
        tall = self.tall(self.dx if self.cropped is None else self.cropped)
        self.pool.backward(self.tall(as_images(dy)), slice(0, len(tall)), tall)
        if self.cropped is not None:
            self.dx.fill(0.0)
            self.dx[self.inside] = self.cropped
        return as_given(self.dx, self.axes)
