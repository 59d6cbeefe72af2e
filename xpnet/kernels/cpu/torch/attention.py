"""Attention in PyTorch's calls. Axes as in `..attention`."""

from typing import Any, NamedTuple

from ....backends import Array
from .. import attention


class Attention(attention.Attention):
    """The formulas of the layer. Q, K and V are copied so that each head is contiguous, for PyTorch's batched products.

    Each stretch of queries has its own P. Causal attention leaves out the keys after all of its queries.
    """

    def bind(self, x: Array, before: Any) -> None:
        d, t, n = self.shape = tuple(x.shape)
        m, h, room, work = n * t, self.layer.heads, self.shared, self.work
        size, b = d // h, n * h
        self.torch, self.scale, self.keeps = self.site.family.lib, self.layer._scale, before is None
        self.qkv, self.o, self.z = room("qkv", (m, 3 * d)), work("o", (m, d)), work("y", (m, d))
        self.dqkv, self.do, self.of_heads = room("dqkv", (m, 3 * d)), room("do", (m, d)), room("of heads", (m, d))
        self.parts, self.dparts = work("parts", (3, b, t, size)), room("dparts", (2, b, t, size))
        causal, lanes = self.layer.causal, attention.LANES // 2  # batched products are as fast with fewer queries
        self.stretches = []
        for start in range(0, t, lanes) if causal else (0,):
            queries = slice(start, min(start + lanes, t) if causal else t)
            keys, count = slice(0, queries.stop), queries.stop - start
            p, ds = work(f"p{start}", (b, count, keys.stop)), room("ds", (b, count, keys.stop))
            one, dq = (room(name, (b, count, size)) for name in ("one", "dq"))
            self.stretches.append(Stretch(queries, keys, p, ds, one, dq, room("term", (b, keys.stop, size))))
        self.limit = None
        if causal:  # of S: no limit for keys up to the query, -inf for those after it
            self.limit = room("limit", (lanes, lanes)).fill_(-self.torch.inf).triu_(1)
            self.limit[self.limit == 0.0] = self.torch.inf
        self.y = self.positions(self.z)
        self.dx = None if self.lowest else room(f"dx{self.turn}", (m, d))

    def heads(self, a: Array, parts: int) -> Any:
        """View (M, parts D) as (parts, N, h, T, d)."""
        (d, t, n), h = self.shape, self.layer.heads
        return a.reshape((n, t, parts, h, d // h)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Array, params: Any) -> Array:
        torch, (weight, bias, out_weight, out_bias) = self.torch, params
        self.cache = self.matrix(x)
        torch.addmm(bias, self.cache, weight, out=self.qkv)
        qkv, (o,) = self.heads(self.qkv, 3), self.heads(self.o, 1)
        self.parts.view(qkv.shape).copy_(qkv)
        q, k, v = self.parts
        for queries, keys, p, _, one, *_ in self.stretches:
            torch.baddbmm(p, q[:, queries], k[:, keys].mT, beta=0, alpha=self.scale, out=p)
            if self.limit is not None:
                ends, count = p[:, :, queries], p.shape[1]
                torch.minimum(ends, self.limit[:count, :count], out=ends)
            torch.softmax(p, -1, out=p)
            own = o[:, :, queries]
            own.copy_(torch.bmm(p, v[:, keys], out=one).view(own.shape))
        torch.addmm(out_bias, self.o, out_weight, out=self.z)
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        torch, (weight, _, out_weight, _) = self.torch, params
        dweight, dbias, dout_weight, dout_bias = grads
        (d, t, _), dz, (q, k, v), (dk, dv) = self.shape, self.matrix(dy), self.parts, self.dparts
        torch.mm(self.o.T, dz, out=dout_weight)
        torch.sum(dz, 0, out=dout_bias)
        torch.mm(dz, out_weight.T, out=self.do)
        (do,), dqkv = self.heads(self.do, 1), self.heads(self.dqkv, 3)
        (of_heads,) = self.heads(torch.mul(self.do, self.o, out=self.of_heads), 1)
        r = of_heads.sum(-1).reshape((-1, t, 1))  # Σ dO O
        for queries, keys, p, ds, one, dq, term in reversed(self.stretches):
            own = do[:, :, queries]
            one.view(own.shape).copy_(own)
            torch.bmm(one, v[:, keys].mT, out=ds)
            ds -= r[:, queries]
            ds *= p
            torch.baddbmm(dq, ds, k[:, keys], beta=0, alpha=self.scale, out=dq)
            dqkv[0][:, :, queries].copy_(dq.view(own.shape))
            if keys.stop == t:  # the first one here, to which the others add
                torch.bmm(p.mT, one, out=dv)
                torch.baddbmm(dk, ds.mT, q[:, queries], beta=0, alpha=self.scale, out=dk)
            else:
                dv[:, keys] += torch.bmm(p.mT, one, out=term)
                dk[:, keys] += torch.baddbmm(term, ds.mT, q[:, queries], beta=0, alpha=self.scale, out=term)
        dqkv[1:].copy_(self.dparts.view(dqkv[1:].shape))
        torch.mm(self.cache.T, self.dqkv, out=dweight)
        torch.sum(self.dqkv, 0, out=dbias)
        dbias[d : 2 * d] = 0.0
        return None if self.dx is None else self.positions(torch.mm(self.dqkv, weight.T, out=self.dx))


class Stretch(NamedTuple):
    """Some queries of all sequences, the keys that they see, their P, and buffers."""

    queries: slice
    keys: slice
    p: Array
    ds: Array
    one: Array  # O, then dO
    dq: Array
    term: Array
