"""Attention, with its softmax in loops. Axes as in `..attention`; B = N h, k a key and q a query."""

from .. import attention
from .compiling import compiled, exp


@compiled
def softmax(p, start, stop, keys, before, top, sums):
    """Overwrite Sᵀ, p (B, T, T), with Pᵀ: the columns start:stop, which are queries, and the rows up to `keys`.

    All of these queries see the first `before` keys; of the keys after those, each query sees one more than the last.
    """
    high = top[: stop - start]
    total = sums[: stop - start]
    for b in range(p.shape[0]):
        s = p[b]
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


@compiled
def higher(s, first, top):
    """top ← max(top, s), from entry `first` on"""
    for q in range(s.size):
        top[q] = s[q] if (q >= first) & (s[q] > top[q]) else top[q]


@compiled
def raised(s, first, top, sums):
    """s ← e^(s - top), 0 before entry `first`; sums ← sums + s"""
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
def products(do, o, scale, r):
    """r = scale Σ do o, for each row"""
    for i in range(r.shape[0]):
        for j in range(r.shape[1]):
            for q in range(r.shape[2]):
                total = r.dtype.type(0.0)
                for c in range(do.shape[3]):
                    total += do[i, j, q, c] * o[i, j, q, c]
                r[i, j, q] = total * scale


@compiled
def slope(ds, p, r, start, stop, first):
    """ds ← p (ds - r), for the keys start:stop and the queries from `first` on"""
    for i in range(ds.shape[0]):
        for j in range(ds.shape[1]):
            own = r[i, j, first:]
            for k in range(start, stop):
                row, shares = ds[i, j, k, first:], p[i, j, k, first:]
                for q in range(own.size):
                    row[q] = (row[q] - own[q]) * shares[q]


class Attention(attention.Attention):
    """`..attention.Attention` with these loops."""

    def softmax(self, each: attention.Sequences, part: attention.Stretch) -> None:
        n, h, t, _ = each.p.shape
        queries = part.queries
        before = queries.start if self.layer.causal else t
        places = each.row.reshape(-1)[:t], each.r_of_rows[:t]
        softmax(each.p.reshape((n * h, t, t)), queries.start, queries.stop, part.keys.stop, before, *places)

    def products(self, each: attention.Sequences) -> None:
        products(each.do, each.o, self.scale[()], each.r_of_rows.reshape(each.p.shape[:3]))

    def slope(self, each: attention.Sequences, part: attention.Stretch) -> None:
        r = each.r_of_rows.reshape(each.p.shape[:3])
        slope(each.ds, each.p, r, part.keys.start, part.keys.stop, part.queries.start)
