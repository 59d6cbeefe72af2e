"""Self-attention, in CUDA. Axes as in attention.cu."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...backends import Array
from ...layers import attention
from ..stages import Part, Site, Stage
from .launching import launch
from .positions import PositionsStage, as_sequences, in_positions, of_sequences

WIDEST = {4: 128, 8: 64}  # the most channels of a head, by bytes per number: larger tiles exceed shared memory


class Attention(PositionsStage):
    """Products with Wᵢ and Wₒ, and between them a kernel for forward and one for backward, which add bᵢ. P is not kept:
    backward recomputes it, a part at a time. The next stage adds bₒ.
    """

    y_read_once = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        layer: Any = parts[0].layer if parts else None
        fits = type(layer) is attention.MultiHeadAttention and not parts[0].frozen and not (before and before.bias)
        if not fits or not of_sequences(before, parts):
            return None
        widest = WIDEST[np.dtype(site.shared.dtype).itemsize]
        return cls(site, before, parts[0]) if layer.features // layer.heads <= widest else None

    def __init__(self, site: Site, before: Stage | None, part: Part):
        names = [f"{part.prefix}.{name}" for name in ("qkv_weight", "qkv_bias", "out_weight", "out_bias")]
        super().__init__(site, before, *names[:3])
        self.bias, self.axes, self.turn, self.product = names[3], part.axes, 1 - self.turn, site.family.product
        self.layer, self.features = part.layer, part.layer.features

    def bind(self, x: Array, before: Stage | None) -> None:
        layer, (e, t, n) = self.layer, x.shape
        d = e // layer.heads
        self.keeps, self.y = before is None, self.place_of_y(x, e)
        self.qkv, self.o = self.work("qkv", (self.m, 3 * e)), self.work("o", (self.m, e))
        self.logs = self.work("logs", (n * layer.heads * t,))
        self.do, self.dqkv = self.shared("do", (self.m, e)), self.shared("dqkv", (self.m, 3 * e))
        tiles = -(-t // 8)
        self.partial = self.shared("partial", (n * tiles * 2 * e,))
        self.blocks, self.n = n * layer.heads * tiles, n
        self.template = str(max(32, 1 << (d - 1).bit_length()))  # the width of tiles
        self.numbers = float(layer._scale), t, layer.heads, d, int(layer.causal)
        self.dx = None if self.lowest else self.place_of_dx(x)

    def forward(self, x: Array, params: Any) -> Array:
        self.cache = in_positions(x, self.y.dtype)
        self.product(self.cache, params[0], self.qkv)
        arguments = self.qkv, params[1], *self.numbers, self.o, self.logs
        if self.blocks:
            launch("attention", (self.blocks,), (32, 8), self.y.dtype, *arguments, template=self.template)
        self.product(self.o, params[2], self.y)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        d = in_positions(dy, dy.dtype)
        self.product(self.o.T, d, grads[2])
        self.product(d, params[2].T, self.do)
        found = self.qkv, params[1], self.o, self.do, self.logs, *self.numbers, self.n
        arguments = *found, self.dqkv, grads[1], self.partial, self.site.family.count
        if self.blocks:
            launch("attention_backward", (self.blocks, 2), (32, 8), d.dtype, *arguments, template=self.template)
        else:
            grads[1][...] = 0.0
        self.product(self.cache.T, self.dqkv, grads[0])
        if self.dx is None:
            return None
        return as_sequences(self.product(self.dqkv, params[0].T, self.dx), self.given.shape)
