"""Layer norm and RMS norm, fused with the sum of a residual block before them, in CUDA."""

from collections.abc import Sequence
from typing import Any

from ...backends import Array
from ...layers import blocks, normalization
from ..blocks import Fork, Join, Turn
from ..stages import Part, Site, Stage, Vector, in_memory_order
from .embedding import Embedding
from .launching import launch, threads
from .positions import PositionsStage, as_sequences, in_positions, of_sequences

KINDS = normalization.LayerNorm, normalization.RMSNorm


class LayerNorm(PositionsStage):
    """y = γ x̂ + β, where x̂ normalizes s: x plus the bias of a product before it and the sum of a Residual, if any.

    The stage replaces the Join at the end of a Residual before it, whose sum is part of s, and the Fork and the Turn
    at the start of one that it begins, which adds s, so that ds has a part from there. After an Embedding, its kernel
    also looks up the vectors. s is kept, and backward computes x̂ again.
    """

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        join, fork = None, None
        if before and is_mark(parts, Join):
            join, parts = parts[0].layer[1], parts[1:]
        if is_mark(parts, Fork) and is_mark(parts[1:], Turn):
            fork, parts = parts[0].layer[1], parts[2:]
        fits = parts and type(parts[0].layer) in KINDS and not parts[0].frozen
        alone = parts and parts[0].axes == 2 and not (join or fork or (before and before.bias))
        return cls(site, before, parts[0], join, fork) if fits and (alone or of_sequences(before, parts)) else None

    def __init__(self, site: Site, before: Stage | None, part: Part, join: Any, fork: Any):
        layer, bias = part.layer, [before.bias] if before and before.bias else []
        super().__init__(site, before, *[f"{part.prefix}.{name}" for name in layer.param_shapes()], *bias)
        self.features, self.eps, self.axes, self.turn = layer.features, float(layer.eps), part.axes, 1 - self.turn
        self.join, self.fork, self.has_beta = join, fork, "beta" in layer.param_shapes()
        self.layers, self.keeps = 1 + (join is not None) + 2 * (fork is not None), True
        if fork:
            fork.fork = self

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """Return γ, β and the bias of the product before it; None for those that do not exist."""
        gamma, *rest = (vector.arrays[name] for name in self.names)
        beta = rest.pop(0) if self.has_beta else None
        return gamma, beta, rest[0] if rest else None

    def bind(self, x: Array, before: Stage | None) -> None:
        d, self.more = x.shape[0], None
        if self.join:
            (self.more,) = self.join.turns
            self.join.layer._merged(
                [self.more.cache.shape[::-1], x.shape[::-1]]
            )  # raises ValueError for shapes that do not fit
        if self.fork:
            self.fork.fork, self.fork.turns = self, [self]
            self.dy = in_memory_order(self.shared, f"dy0{self.fork.place}", tuple(x.shape), images=False)
        self.y = self.place_of_y(x, d)
        self.embedding: Any = before if isinstance(before, Embedding) else None
        self.sum: Any = None
        if self.embedding:
            self.sum, self.embedding.computes = self.embedding.y, False
        elif self.join or len(self.names) > 1 + self.has_beta:
            self.sum = self.work("sum", (self.m, d))
        self.centre = self.work("centre", (self.m, 3))
        self.block, self.grid = (threads(d),), (max(1, min(self.m, self.site.family.multiprocessors)),)
        self.partial = self.shared("partial", (self.grid[0] * 6 * d,))
        self.dx = self.place_of_dx(x)
        self.y_in_rows: Any = None
        if x.ndim == 2:  # other stages take a matrix as (H, N)
            self.y_in_rows, self.dx_in_rows = self.work("rows", (d, self.m)), self.shared("rows", (d, self.m))

    def forward(self, x: Array, params: Any) -> Array:
        gamma, beta, bias = params
        y = self.y
        if self.embedding:
            sources = self.embedding.sources
        else:
            x = in_positions(x, y.dtype)
            sources = x, in_positions(self.more.cache, y.dtype) if self.more else None, None, 0, 0
        arguments = *sources, bias, gamma, beta, self.eps, *y.shape, self.sum, self.centre, y
        launch("layer_norm", (max(1, min(self.m, 2**16)),), self.block, y.dtype, *arguments)
        self.cache = as_sequences(x if self.sum is None else self.sum, self.given.shape)
        return self.given if self.y_in_rows is None else copied(self.given, self.y_in_rows)

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        more, copy = (stage and in_positions(stage.dy, dy.dtype) for stage in (self if self.fork else None, self.more))
        found = in_positions(self.cache, dy.dtype), params[0], self.centre, *self.y.shape
        arguments = *found, self.dx, copy, *grads, self.partial, self.site.family.count
        d = in_positions(dy, dy.dtype)
        launch("layer_norm_backward", self.grid, self.block, d.dtype, d, more, *arguments)
        dx = as_sequences(self.dx, self.given.shape)
        return dx if self.y_in_rows is None else copied(dx, self.dx_in_rows)


def copied(a: Array, to: Array) -> Array:
    """Copy an array into `to`, and return it."""
    to[...] = a
    return to


def is_mark(parts: Sequence[Part], kind: Any) -> bool:
    """Whether the first of these parts is this mark of a Residual."""
    mark = parts[0].layer if parts else None
    return isinstance(mark, tuple) and mark[0] is kind and isinstance(mark[1].layer, blocks.Residual)
