"""Attention in PyTorch's calls. Axes as in `..attention`."""

from typing import Any

from ....backends import Array
from .. import attention


class Attention(attention.Attention):
    """As the layer has it. Q, K and V of a head lie next to each other, as PyTorch's products of many matrices want."""

    def bind(self, x: Array, before: Any) -> None:
        d, t, n = self.shape = tuple(x.shape)
        m, h, room, work = n * t, self.layer.heads, self.shared, self.work
        self.torch, self.scale, self.keeps = self.site.family.lib, self.layer._scale, before is None
        self.qkv, self.o, self.z = room("qkv", (m, 3 * d)), work("o", (m, d)), work("y", (m, d))
        self.dqkv, self.do, self.of_heads = room("dqkv", (m, 3 * d)), room("do", (m, d)), room("of heads", (m, d))
        self.parts, self.dparts = work("parts", (3, n * h, t, d // h)), room("dparts", (3, n * h, t, d // h))
        self.one = room("one", (n * h, t, d // h))  # O, then dO
        self.p, self.ds = work("p", (n * h, t, t)), room("ds", (n * h, t, t))
        self.limit = None
        if self.layer.causal:  # of S, where the key is not behind its query and where it is
            self.limit = room("limit", (t, t)).fill_(-self.torch.inf).triu_(1)
            self.limit[self.limit == 0.0] = self.torch.inf
        self.y = self.positions(self.z)
        self.dx = None if self.lowest else room(f"dx{self.turn}", (m, d))

    def heads(self, a: Array, parts: int) -> Any:
        """(M, parts D) as (parts, N, h, T, d): a view."""
        (d, t, n), h = self.shape, self.layer.heads
        return a.reshape((n, t, parts, h, d // h)).permute(2, 0, 3, 1, 4)

    def forward(self, x: Array, params: Any) -> Array:
        torch, (weight, bias, out_weight, out_bias) = self.torch, params
        self.cache = self.matrix(x)
        torch.addmm(bias, self.cache, weight, out=self.qkv)
        qkv = self.heads(self.qkv, 3)
        self.parts.view(qkv.shape).copy_(qkv)
        q, k, v = self.parts
        torch.baddbmm(self.p, q, k.mT, beta=0, alpha=self.scale, out=self.p)
        if self.limit is not None:
            torch.minimum(self.p, self.limit, out=self.p)
        torch.softmax(self.p, -1, out=self.p)
        torch.bmm(self.p, v, out=self.one)
        (o,) = self.heads(self.o, 1)
        o.copy_(self.one.view(o.shape))
        torch.addmm(out_bias, self.o, out_weight, out=self.z)
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        torch, (weight, _, out_weight, _) = self.torch, params
        dweight, dbias, dout_weight, dout_bias = grads
        (d, t, _), dz, (q, k, v), (dq, dk, dv) = self.shape, self.matrix(dy), self.parts, self.dparts
        torch.mm(self.o.T, dz, out=dout_weight)
        torch.sum(dz, 0, out=dout_bias)
        torch.mm(dz, out_weight.T, out=self.do)
        (do,) = self.heads(self.do, 1)
        self.one.view(do.shape).copy_(do)
        torch.bmm(self.p.mT, self.one, out=dv)
        torch.bmm(self.one, v.mT, out=self.ds)
        (of_heads,) = self.heads(torch.mul(self.do, self.o, out=self.of_heads), 1)
        self.ds -= of_heads.sum(-1).reshape((-1, t, 1))  # Σ dO O
        self.ds *= self.p
        torch.baddbmm(dq, self.ds, k, beta=0, alpha=self.scale, out=dq)
        torch.baddbmm(dk, self.ds.mT, q, beta=0, alpha=self.scale, out=dk)
        dqkv = self.heads(self.dqkv, 3)
        dqkv.copy_(self.dparts.view(dqkv.shape))
        torch.mm(self.cache.T, self.dqkv, out=dweight)
        torch.sum(self.dqkv, 0, out=dbias)
        dbias[d : 2 * d] = 0.0
        return None if self.dx is None else self.positions(torch.mm(self.dqkv, weight.T, out=self.dx))
