"""Attention, its softmax in loops. Axes as in `..attention`; B = N h, of a key row k and a query q."""

import numpy as np

from .. import attention
from .compiling import compiled, exp

LANES = 64  # queries that are gone through together, seen or not: fewer are no vector instructions


@compiled
def softmax(p, causal, top, sums):
    """Of each matrix of p (B, T, T), S with a row for each key, P likewise; if causal, 0 for a key behind its query."""
    t = p.shape[1]
    for b in range(p.shape[0]):
        s = p[b]
        for start in range(0, t, LANES):
            stop = min(start + LANES, t)
            high = top[start:stop]
            total = sums[start:stop]
            keys = stop if causal else t
            before = start if causal else t  # the keys that all of these queries see
            high[:] = s[0, start:stop]
            total[:] = p.dtype.type(0.0)
            for k in range(1, keys):
                higher(s[k, start:stop], k - before, high)
            for k in range(keys):
                raised(s[k, start:stop], k - before, high, total)
            for q in range(total.size):
                total[q] = p.dtype.type(1.0) / total[q]
            for k in range(keys):
                times(s[k, start:stop], total)
            s[keys:, start:stop] = p.dtype.type(0.0)


@compiled
def higher(s, first, top):
    """top ← max(top, s), from the first on"""
    for q in range(s.size):
        top[q] = s[q] if (q >= first) & (s[q] > top[q]) else top[q]


@compiled
def raised(s, first, top, sums):
    """s ← e^(s - top), 0 before the first; sums ← sums + it"""
    for q in range(s.size):
        e = exp(s[q] - top[q])
        s[q] = e if q >= first else s.dtype.type(0.0)
    for q in range(s.size):
        sums[q] += s[q]


@compiled
def times(s, over):
    """s ← s over"""
    for q in range(s.size):
        s[q] *= over[q]


@compiled
def slope(ds, p, do, o, scale, r):
    """dP becomes dS scale, with r = Σ dO O."""
    for i in range(ds.shape[0]):
        for j in range(ds.shape[1]):
            of_rows(do[i, j], o[i, j], r)
            back(ds[i, j], p[i, j], r, scale)


@compiled
def of_rows(do, o, r):
    """r = Σ do o, of each row"""
    for q in range(r.size):
        total = r.dtype.type(0.0)
        for c in range(do.shape[1]):
            total += do[q, c] * o[q, c]
        r[q] = total


@compiled
def back(ds, p, r, scale):
    """ds ← p (ds - r) scale, 0 where p is"""
    for k in range(ds.shape[0]):
        for q in range(ds.shape[1]):
            ds[k, q] = (ds[k, q] - r[q]) * (p[k, q] * scale)


class Attention(attention.Attention):
    """Of a causal one half of P is left out."""

    def softmax(self, each: attention.Sequences) -> None:
        n, h, t, _ = each.p.shape
        softmax(each.p.reshape((n * h, t, t)), self.layer.causal, self.row.ravel()[:t], self.r[:t])

    def slope(self, each: attention.Sequences, ds: np.ndarray) -> None:
        slope(ds, each.p, each.do, each.o, self.scale[()], self.r[: ds.shape[2]])
