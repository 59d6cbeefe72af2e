"""Attention in NumPy's calls. Axes: N batch, T positions, D features; h heads of d features each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...backends import Array
from ...layers import attention
from ..stages import Part, Site, Stage
from .positions import PositionsStage


class Attention(PositionsStage):
    """As the layer has it, but that S and P are kept with a row for each key: Pᵀ (N h, T, T), of its queries.

    The sums of softmax are then over rows, which are long, and products find their factors next to each other: those of
    Qᵀ and dOᵀ are copies.
    """

    y_read_once = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) is attention.MultiHeadAttention and parts[0].layer.trainable
        return cls(site, before, parts[0]) if fits and parts[0].axes == 3 else None

    def __init__(self, site: Site, before: Stage | None, part: Part):
        names = (f"{part.prefix}.{name}" for name in ("qkv_weight", "qkv_bias", "out_weight", "out_bias"))
        super().__init__(site, before, *names)
        self.layer: Any = part.layer
        self.features: int = part.layer.features
        self.axes, self.turn = part.axes, 1 - self.turn

    def bind(self, x: Array, before: Stage | None) -> None:
        d, t, n = self.shape = tuple(x.shape)
        m, h, room, work = n * t, self.layer.heads, self.shared, self.work
        self.keeps, self.scale = before is None, room.filled(self.layer._scale)
        self.qkv, self.o, self.z = work("qkv", (m, 3 * d)), work("o", (m, d)), work("y", (m, d))
        self.dqkv, self.do, self.of_heads = room("dqkv", (m, 3 * d)), room("do", (m, d)), room("of heads", (m, d))
        (self.q, self.k, self.v), (self.dq, self.dk, self.dv) = self.heads(self.qkv, 3), self.heads(self.dqkv, 3)
        (self.o_heads,), (self.do_heads,) = self.heads(self.o, 1), self.heads(self.do, 1)
        self.turned = room("turned", (n, h, d // h, t))  # Qᵀ / √d, then dOᵀ
        self.p, self.ds = work("p", (n, h, t, t)), room("ds", (n, h, t, t))
        self.row, self.r = room("row", (n, h, 1, t)), room("r", (m * h,))  # numbers of each query
        self.limit = None
        if self.layer.causal:  # of S, where the key is not behind its query and where it is
            self.limit = room("limit", (t, t))
            self.limit[...] = np.where(np.tri(t, dtype=np.bool).T, np.inf, -np.inf)
        self.y = self.positions(self.z)
        self.ones, self.ones_t, self.ones_d = (room.filled(1.0, (count,)) for count in (m, t, d // h))
        self.sums, _ = self.site.family.over_batch(m)
        self.dx = None if self.lowest else room(f"dx{self.turn}", (m, d))

    def heads(self, a: np.ndarray, parts: int) -> np.ndarray:
        """(M, parts D) as (parts, N, h, T, d): a view."""
        (d, t, n), h = self.shape, self.layer.heads
        return a.reshape((n, t, parts, h, d // h)).transpose(2, 0, 3, 1, 4)

    def forward(self, x: Array, params: Any) -> Array:
        weight, bias, out_weight, out_bias = params
        product = self.site.family.product
        self.cache = self.matrix(x)
        product(self.cache, weight, out=self.qkv)
        self.qkv += bias
        np.multiply(self.q.swapaxes(2, 3), self.scale, out=self.turned)
        np.matmul(self.k, self.turned, out=self.p)
        self.softmax()
        np.matmul(self.p.swapaxes(2, 3), self.v, out=self.o_heads)
        product(self.o, out_weight, out=self.z)
        self.z += out_bias
        return self.y

    def softmax(self) -> None:
        """Sᵀ becomes Pᵀ."""
        p, row = self.p, self.row
        if self.limit is not None:
            np.minimum(p, self.limit, out=p)
        p -= np.maximum.reduce(p, 2, None, row, True)
        np.exp(p, out=p)
        p /= np.matmul(self.ones_t, p, out=row[:, :, 0])[:, :, None]

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        weight, _, out_weight, _ = params
        dweight, dbias, dout_weight, dout_bias = grads
        dz, d, product = self.matrix(dy), self.features, self.site.family.product
        product(self.o.T, dz, out=dout_weight)
        self.sums(dz.T, self.ones, out=dout_bias)
        product(dz, out_weight.T, out=self.do)
        np.matmul(self.p, self.do_heads, out=self.dv)
        np.copyto(self.turned, self.do_heads.swapaxes(2, 3))
        np.matmul(self.v, self.turned, out=self.ds)
        self.slope()
        np.matmul(self.ds.swapaxes(2, 3), self.k, out=self.dq)
        np.matmul(self.ds, self.q, out=self.dk)
        product(self.cache.T, self.dqkv, out=dweight)
        self.sums(self.dqkv.T, self.ones, out=dbias)
        dbias[d : 2 * d] = 0.0
        return None if self.dx is None else self.positions(product(self.dqkv, weight.T, out=self.dx))

    def slope(self) -> None:
        """dPᵀ becomes dSᵀ / √d, with r = Σ dO O"""
        n, h, t, _ = self.ds.shape
        np.multiply(self.do, self.o, out=self.of_heads)
        np.dot(self.of_heads.reshape((n * t * h, self.features // h)), self.ones_d, out=self.r)
        self.ds -= self.r.reshape((n, t, h)).transpose(0, 2, 1)[:, :, None]
        self.ds *= self.p
        self.ds *= self.scale
