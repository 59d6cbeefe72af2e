"""Attention in NumPy's calls. Axes: N batch, T positions, D features; h heads of d features each."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...backends import Array
from ...layers import attention
from ..stages import Part, Site, Stage
from .positions import PositionsStage

BLOCK = 2**16  # entries of P that are worked on at a time, and stay in cache
LANES = 64  # queries that are gone through together


class Attention(PositionsStage):
    """As the layer has it, but that S and P are kept with a row for each key: Pᵀ (N h, T, T), of its queries.

    The sums of softmax are then over rows, which are long, and products find their factors next to each other: those of
    Qᵀ and dOᵀ are copies. Of a causal one the keys behind all queries of a stretch of LANES are left out.
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
        self.dqkv, self.do = room("dqkv", (m, 3 * d)), room("do", (m, d))
        p = work("p", (n, h, t, t))
        at_once = max(1, min(n, BLOCK // (h * t * t)))
        self.turned = room("turned", (at_once, h, d // h, t))  # Qᵀ / √d, then dOᵀ
        self.row, self.r = room("row", (at_once, h, 1, t)), room("r", (at_once * t * h,))  # numbers of each query
        self.ds, self.terms = room("ds", (at_once, h, t, t)), room("terms", (at_once, t, d))
        causal, stretches = self.layer.causal, [slice(i, min(i + LANES, t)) for i in range(0, t, LANES)]
        self.seen = [(queries, slice(0, queries.stop if causal else t)) for queries in stretches]  # queries, their keys
        self.seeing = [(keys, slice(keys.start if causal else 0, t)) for keys in stretches]  # keys, their queries
        whole = *self.heads(self.qkv, 3), *self.heads(self.o, 1), p, *self.heads(self.dqkv, 3), *self.heads(self.do, 1)
        blocks = (slice(start, min(start + at_once, n)) for start in range(0, n, at_once))
        self.blocks = [Sequences(*(a[rows] for a in whole)) for rows in blocks]
        self.limit = None
        if causal:  # of S, where the key is not behind its query and where it is
            self.limit = room("limit", (LANES, LANES))
            self.limit[...] = np.where(np.tri(LANES, dtype=np.bool).T, np.inf, -np.inf)
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
        for each in self.blocks:
            turned = np.multiply(each.q.swapaxes(2, 3), self.scale, out=self.turned[: len(each.q)])
            for queries, keys in self.seen:
                p = np.matmul(each.k[:, :, keys], turned[..., queries], out=each.p[:, :, keys, queries])
                self.softmax(each, queries, keys)
                np.matmul(p.swapaxes(2, 3), each.v[:, :, keys], out=each.o[:, :, queries])
        product(self.o, out_weight, out=self.z)
        self.z += out_bias
        return self.y

    def softmax(self, each: "Sequences", queries: slice, keys: slice) -> None:
        """Sᵀ becomes Pᵀ, of these queries and keys."""
        p, row = each.p[:, :, keys, queries], self.row[: len(each.p), ..., queries]
        if self.limit is not None:
            ends = p[:, :, queries]
            np.minimum(ends, self.limit[: ends.shape[2], : ends.shape[2]], out=ends)
        p -= np.maximum.reduce(p, axis=2, out=row, keepdims=True)
        np.exp(p, out=p)
        p /= np.matmul(self.ones_t[keys], p, out=row[:, :, 0])[:, :, None]

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        weight, _, out_weight, _ = params
        dweight, dbias, dout_weight, dout_bias = grads
        dz, d, product = self.matrix(dy), self.features, self.site.family.product
        product(self.o.T, dz, out=dout_weight)
        self.sums(dz.T, self.ones, out=dout_bias)
        product(dz, out_weight.T, out=self.do)
        for each in self.blocks:
            turned, ds = self.turned[: len(each.q)], self.ds[: len(each.q)]
            np.multiply(each.do.swapaxes(2, 3), self.scale, out=turned)
            r = self.products(each)
            for keys, queries in self.seeing:
                np.matmul(each.p[:, :, keys, queries], each.do[:, :, queries], out=each.dv[:, :, keys])
                part = np.matmul(each.v[:, :, keys], turned[..., queries], out=ds[:, :, keys, queries])
                self.slope(each, ds, r, keys, queries)
                np.matmul(part, each.q[:, :, queries], out=each.dk[:, :, keys])
            for queries, keys in self.seen:
                np.matmul(ds[:, :, keys, queries].swapaxes(2, 3), each.k[:, :, keys], out=each.dq[:, :, queries])
        product(self.cache.T, self.dqkv, out=dweight)
        self.sums(self.dqkv.T, self.ones, out=dbias)
        dbias[d : 2 * d] = 0.0
        return None if self.dx is None else self.positions(product(self.dqkv, weight.T, out=self.dx))

    def products(self, each: "Sequences") -> Array:
        """r = Σ dO O / √d, (n, h, T)"""
        n, h, t, d = each.o.shape
        terms = np.multiply(each.do, each.o, out=self.terms[:n].reshape((n, t, h, d)).transpose(0, 2, 1, 3))
        r = np.dot(terms.transpose(0, 2, 1, 3).reshape((n * t * h, d)), self.ones_d, out=self.r[: n * t * h])
        r *= self.scale
        return r.reshape((n, t, h)).transpose(0, 2, 1)

    def slope(self, each: "Sequences", ds: np.ndarray, r: np.ndarray, keys: slice, queries: slice) -> None:
        """dPᵀ / √d becomes dSᵀ / √d, of these keys and queries."""
        part = ds[:, :, keys, queries]
        part -= r[:, :, None, queries]
        part *= each.p[:, :, keys, queries]


class Sequences(NamedTuple):
    """Arrays of some sequences, (n, h, T, d), and Pᵀ (n, h, T, T)."""

    q: np.ndarray
    k: np.ndarray
    v: np.ndarray
    o: np.ndarray
    p: np.ndarray
    dq: np.ndarray
    dk: np.ndarray
    dv: np.ndarray
    do: np.ndarray
