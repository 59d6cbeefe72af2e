"""Stages of positions in calls of NumPy or PyTorch.

Their arrays (D, ..., N) are in memory in the order of the layers, (N, ..., D). As a
matrix (M, D), they have a row for each of the M positions.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

from ...backends import Array
from ...layers import dense
from ...layers.base import Layer
from ..stages import Part, Site, Stage, reversed_axes
from ..table import pointwise
from .functions import first_rows, function

BLOCK = 2**17  # entries of each array in a block, which stay in cache


class PositionsStage(Stage):
    """The base class of these stages."""

    shape: tuple[int, ...]  # of x

    def __init__(self, site: Site, before: Stage | None, *names: str):
        super().__init__(site, before, *names)
        self.product = site.family.product_in(site.threads)

    def matrix(self, a: Array) -> Array:
        """View (D, ..., N) as (M, D)."""
        return reversed_axes(a).reshape((-1, a.shape[0]))

    def positions(self, a: Array) -> Array:
        """View (M, H) as (H, ..., N)."""
        return reversed_axes(a.reshape((*self.shape[:0:-1], a.shape[1])))


class Dense(PositionsStage):
    """A Dense and an optional pointwise function, y = f(x W + b): dz = dy f', db = Σ dz, dW = xᵀ dz, dx = dz Wᵀ.

    y and f' are computed in blocks of rows.
    """

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) is dense.Dense and not parts[0].frozen and parts[0].axes > 2
        if not fits:
            return None
        f = parts[1].layer if len(parts) > 1 and pointwise(parts[1].layer) else None
        return cls(site, before, parts[0], f)

    def __init__(self, site: Site, before: Stage | None, part: Part, f: Layer | None):
        super().__init__(site, before, f"{part.prefix}.weight", f"{part.prefix}.bias")
        self.features: int = part.layer.in_features
        self.outputs: int = part.layer.out_features
        self.axes, self.turn = part.axes, 1 - self.turn
        self.f, self.layers, self.y_read_once = f, 1 + (f is not None), f is None

    def bind(self, x: Array, before: Stage | None) -> None:
        self.shape, self.keeps = tuple(x.shape), before is None
        m, h = math.prod(self.shape[1:]), self.outputs
        self.z = self.work("y", (m, h))
        self.y = self.positions(self.z)
        self.function = self.applied(self.z)
        self.ones, (self.sums, _) = self.shared.filled(1.0, (m,)), self.site.family.over_batch(m)
        self.dx = None if self.lowest else self.shared(f"dx{self.turn}", (m, self.features))

    def applied(self, y: Array) -> Any:
        """Return f with the bias, for the matrix y."""
        return InBlocks(self, self.f, y)

    def forward(self, x: Array, params: Any) -> Array:
        self.cache = self.matrix(x)
        self.product(self.cache, params[0], out=self.z)
        self.function.forward(params[1])
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        dz = self.matrix(dy)
        self.function.backward(dz)
        self.product(self.cache.T, dz, out=grads[0])
        self.sums(dz.T, self.ones, out=grads[1])
        return None if self.dx is None else self.positions(self.product(dz, params[0].T, out=self.dx))


class InBlocks:
    """y ← f(y + b) for a matrix y (M, H) and a row b, and dy ← dy f', a few rows at a time."""

    def __init__(self, stage: Stage, f: Layer | None, y: Array):
        (m, h), self.shared, family = y.shape, stage.shared, stage.site.family
        self.multiply = family.lib.multiply
        step = max(1, -(-m // max(1, -(-m * h // BLOCK))))
        self.function = None if f is None else function(family.lib, str(pointwise(f)))
        self.y, self.slope, self.integer = y, None, None
        self.blocks: list[tuple[slice, Any, Any, dict[str, Callable[[], None]]]] = []
        if self.function is None:
            return
        spares, flags, masks = self.function.spares(), family.lib.bool, self.function.masks
        if self.function.keeps:
            self.slope = stage.work("slope", (m, h), flags if masks else None)
            self.integer = family.integers[y.itemsize] if masks else None
            spares.remove("slope")
        numbers = self.function.numbers(f, self.shared.filled, step, h)
        for start in range(0, m, step):
            rows, part = slice(start, start + step), y[start : start + step]
            arrays = {key: self.shared(key, part.shape, flags if key.startswith("mask") else None) for key in spares}
            if self.slope is not None:
                arrays["slope"] = self.slope[rows]
            programs = self.function.bound({"y": part} | arrays | first_rows(numbers, len(part)))
            self.blocks.append((rows, part, arrays["slope"], programs))

    def forward(self, bias: Array | None) -> None:
        """y ← f(y + b), f(y) without a bias"""
        if self.function is None:
            if bias is not None:
                self.y += bias
            return
        for _, part, _, programs in self.blocks:
            if bias is not None:
                part += bias
            programs["value"]()

    def backward(self, dy: Array) -> None:
        """dy ← dy f'"""
        if self.slope is not None:
            if self.integer is not None:  # dy or 0, even where dy is infinite: its bits by 1 or 0
                dy = dy.view(self.integer)
            self.multiply(dy, self.slope, out=dy)
            return
        for rows, _, slope, programs in self.blocks:
            programs["slope_of"]()
            self.multiply(dy[rows], slope, out=dy[rows])
