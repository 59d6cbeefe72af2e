"""Stages of positions, in the calls of NumPy or PyTorch: arrays of more than two axes, (D, ..., N), that lie in memory
as the layers' own code has them. As a matrix, (M, D), they have a row for each of the M positions.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

from ...backends import Array
from ...layers import dense
from ...layers.base import Layer
from ..stages import Part, Site, Stage, reversed_axes
from ..table import pointwise
from .functions import Compiled, function

BLOCK = 2**17  # entries of each array to go through at a time, which stay in cache


class PositionsStage(Stage):
    """The base of them."""

    shape: tuple[int, ...]  # of x

    def __init__(self, site: Site, before: Stage | None, *names: str):
        super().__init__(site, before, *names)
        self.product = site.family.product_in(site.threads)

    def matrix(self, a: Array) -> Array:
        """(D, ..., N) as (M, D)."""
        return reversed_axes(a).reshape((-1, a.shape[0]))

    def positions(self, a: Array) -> Array:
        """(M, H) as (H, ..., N)."""
        return reversed_axes(a.reshape((*self.shape[:0:-1], a.shape[1])))


class Dense(PositionsStage):
    """A Dense and perhaps a pointwise function, y = f(x W + b): dz = dy f', db = Σ dz, dW = xᵀ dz, dx = dz Wᵀ.

    y and f' are made block by block.
    """

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) is dense.Dense and parts[0].layer.trainable and parts[0].axes > 2
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
        """The function of this matrix."""
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
    """y ← f(y + b) of a matrix (M, H) and a row b, and dy ← dy f', a few rows at a time."""

    def __init__(self, stage: Stage, f: Layer | None, y: Array):
        (m, h), self.shared, family = y.shape, stage.shared, stage.site.family
        self.multiply = family.lib.multiply
        step = max(1, -(-m // max(1, -(-m * h // BLOCK))))
        self.y, self.blocks = y, [slice(start, start + step) for start in range(0, m, step)]
        self.function = None if f is None else function(family.lib, str(pointwise(f)))
        if self.function is None:
            return
        programs = self.function.programs
        values: dict[Any, float] = {key: getattr(f, key) for key in self.function.settings}
        values |= {constant: constant for program in programs.values() for constant in program.constants}
        self.numbers = {key: self.shared.filled(value) for key, value in values.items()}
        if 0.0 in self.numbers:  # which NumPy compares with, and takes the maximum with, at several times the speed
            self.numbers[0.0] = self.shared.filled(0.0, (step, h))
        self.flags, self.whole = family.lib.bool, {"y": y}
        if self.function.keeps:
            self.slope = self.whole["slope"] = stage.work("slope", (m, h), self.flags if self.function.masks else None)
            self.integer = family.integers[y.itemsize] if self.function.masks else None
        self.values = [(y[block], self._bound(programs["value"], block)) for block in self.blocks]
        self.slopes_of = [self._bound(programs["slope_of"], block) for block in self.blocks * ("slope_of" in programs)]

    def _bound(self, program: Compiled, block: slice) -> Callable[[], None]:
        """A program of the rows in this block."""
        names = *program.names, *program.constants
        return functools.partial(program.function, *[self._at(name, block) for name in names])

    def _at(self, name: Any, block: slice) -> Any:
        """What stands for a name, of the rows in this block."""
        part = self.whole["y"][block]
        if name in self.whole:
            return self.whole[name][block]
        if name in self.numbers:
            return self.numbers[name][: len(part)] if self.numbers[name].ndim else self.numbers[name]
        return self.shared(name, part.shape, self.flags if name.startswith("mask") else None)

    def forward(self, bias: Array | None) -> None:
        """y ← f(y + b), f(y) without a bias"""
        if self.function is None:
            if bias is not None:
                self.y += bias
            return
        for part, value in self.values:
            if bias is not None:
                part += bias
            value()

    def backward(self, dy: Array) -> None:
        """dy ← dy f'"""
        if self.function is None:
            return
        if self.function.keeps:
            if self.integer is not None:  # dy or 0, even where dy is infinite: its bits by 1 or 0
                dy = dy.view(self.integer)
            self.multiply(dy, self.slope, out=dy)
            return
        for block, slope_of in zip(self.blocks, self.slopes_of, strict=True):
            slope_of()
            self.multiply(dy[block], self._at("slope", block), out=dy[block])
