"""Attention in NumPy's calls. Axes: N batch, T positions, D features; h heads of d features each."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...backends import Array
from ...layers import attention
from ..stages import Part, Site, Stage
from .positions import PositionsStage

BLOCK = 2**17  # entries of P in a block, which stay in cache
LANES = 64  # queries, or keys, in a stretch


class Attention(PositionsStage):
    """The formulas of the layer with S and P transposed: Pᵀ (N, h, T, T) has a row for each key.

    The sums of softmax then run over long rows, and the factors of products are contiguous; Qᵀ and dOᵀ are copies.
    Causal attention leaves out the keys after all queries of a stretch.
    """

    y_read_once = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) is attention.MultiHeadAttention and not parts[0].frozen
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
        self.p, self.limit = work("p", (n, h, t, t)), None
        if self.layer.causal:  # of S: no limit for keys up to the query, -inf for those after it
            self.limit = room("limit", (LANES, LANES))
            self.limit[...] = np.where(np.tri(LANES, dtype=np.bool).T, np.inf, -np.inf)
        self.ones, self.ones_t, self.ones_d = (room.filled(1.0, (count,)) for count in (m, t, d // h))
        at_once = max(1, min(n, BLOCK // (h * t * t)))
        self.blocks = [Sequences(self, start, min(start + at_once, n)) for start in range(0, n, at_once)]
        self.y = self.positions(self.z)
        self.sums, _ = self.site.family.over_batch(m)
        self.dx = None if self.lowest else room(f"dx{self.turn}", (m, d))

    def forward(self, x: Array, params: Any) -> Array:
        weight, bias, out_weight, out_bias = params
        self.cache = self.matrix(x)
        self.product(self.cache, weight, out=self.qkv)
        self.qkv += bias
        for each in self.blocks:
            np.multiply(each.q_t, self.scale, out=each.turned)
            for part in each.seen:
                np.matmul(part.k, part.turned, out=part.p)
                self.softmax(each, part)
                np.matmul(part.p_t, part.v, out=part.o)
        self.product(self.o, out_weight, out=self.z)
        self.z += out_bias
        return self.y

    def softmax(self, each: "Sequences", part: "Stretch") -> None:
        """Overwrite Sᵀ with Pᵀ."""
        p, row = part.p, part.row
        if self.limit is not None:
            np.minimum(part.ends, part.limit, out=part.ends)
        p -= np.maximum.reduce(p, axis=2, out=row, keepdims=True)
        np.exp(p, out=p)
        np.matmul(part.ones, p, out=part.sums)
        p /= row

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        weight, _, out_weight, _ = params
        dweight, dbias, dout_weight, dout_bias = grads
        dz, d, product = self.matrix(dy), self.features, self.product
        product(self.o.T, dz, out=dout_weight)
        self.sums(dz.T, self.ones, out=dout_bias)
        product(dz, out_weight.T, out=self.do)
        for each in self.blocks:
            np.multiply(each.do_t, self.scale, out=each.turned)
            self.products(each)
            for part in each.seeing:
                np.matmul(part.p, part.do, out=part.dv)
                np.matmul(part.v, part.turned, out=part.ds)
                self.slope(each, part)
                np.matmul(part.ds, part.q, out=part.dk)
            for part in each.seen:
                np.matmul(part.ds_t, part.k, out=part.dq)
        product(self.cache.T, self.dqkv, out=dweight)
        self.sums(self.dqkv.T, self.ones, out=dbias)
        dbias[d : 2 * d] = 0.0
        return None if self.dx is None else self.positions(product(self.dqkv, weight.T, out=self.dx))

    def products(self, each: "Sequences") -> None:
        """r = Σ dO O / √d"""
        np.multiply(each.do, each.o, out=each.terms)
        r = np.dot(each.rows_of_terms, self.ones_d, out=each.r_of_rows)
        r *= self.scale

    def slope(self, each: "Sequences", part: "Stretch") -> None:
        """Overwrite dPᵀ / √d with dSᵀ / √d."""
        ds = part.ds
        ds -= part.r
        ds *= part.p


class Sequences:
    """Views of the arrays for n sequences: heads (n, h, T, d), Pᵀ and dSᵀ (n, h, T, T); and their stretches."""

    def __init__(self, stage: Attention, start: int, stop: int):
        (d, t, _), h, n, room, causal = stage.shape, stage.layer.heads, stop - start, stage.shared, stage.layer.causal
        size, rows = d // h, slice(start * t, stop * t)

        def heads(a: np.ndarray, parts: int) -> np.ndarray:
            """View (M, parts D) as (parts, n, h, T, d)."""
            return a[rows].reshape((n, t, parts, h, size)).transpose(2, 0, 3, 1, 4)

        self.q, self.k, self.v, self.dq, self.dk, self.dv = *heads(stage.qkv, 3), *heads(stage.dqkv, 3)
        self.o, self.do = *heads(stage.o, 1), *heads(stage.do, 1)
        self.p, self.ds = stage.p[start:stop], room("ds", (n, h, t, t))
        self.q_t, self.do_t = self.q.swapaxes(2, 3), self.do.swapaxes(2, 3)
        self.turned = room("turned", (n, h, size, t))  # Qᵀ / √d in forward, dOᵀ / √d in backward
        self.row = room("row", (n, h, 1, t))  # numbers of each query
        terms, self.r_of_rows = room("terms", (n, t, h, size)), room("r", (n * t * h,))
        self.terms, self.rows_of_terms = terms.transpose(0, 2, 1, 3), terms.reshape((n * t * h, size))
        self.r = self.r_of_rows.reshape((n, t, h)).transpose(0, 2, 1)[:, :, None]
        stretches = [slice(i, min(i + LANES, t)) for i in range(0, t, LANES)]
        self.seen = [Stretch(stage, self, slice(0, s.stop if causal else t), s) for s in stretches]
        self.seeing = [Stretch(stage, self, s, slice(s.start if causal else 0, t)) for s in stretches]


class Stretch:
    """Views for some queries and the keys that they see, or for some keys and the queries that see them."""

    def __init__(self, stage: Attention, each: Sequences, keys: slice, queries: slice):
        self.keys, self.queries = keys, queries
        self.k, self.v, self.dk, self.dv = (a[:, :, keys] for a in (each.k, each.v, each.dk, each.dv))
        self.q, self.o, self.do, self.dq = (a[:, :, queries] for a in (each.q, each.o, each.do, each.dq))
        self.turned, self.row, self.r = (a[..., queries] for a in (each.turned, each.row, each.r))
        self.p, self.ds = (a[:, :, keys, queries] for a in (each.p, each.ds))
        self.p_t, self.ds_t, self.ends = self.p.swapaxes(2, 3), self.ds.swapaxes(2, 3), self.p[:, :, queries]
        self.ones, self.sums = stage.ones_t[keys], self.row[:, :, 0]
        size = self.ends.shape[2]
        self.limit: Any = None if stage.limit is None else stage.limit[:size, :size]
