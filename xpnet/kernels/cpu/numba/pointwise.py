"""A bias and a pointwise function, in loops."""

from typing import Any

from ....backends import Array
from ... import stages
from .functions import Loops, LoopStage, reads_x


def loops(value: Any, back: Any, made_of: Any) -> Loops:
    """Return the loops, given a pointwise function as `value`, and dy times its slope as `back`."""

    @made_of
    def forward(z, bias, s, y):
        """y = f(z + bias), or f(z) if the bias is None; y overwrites z if it is None"""
        for i in range(z.shape[0]):
            b = z.dtype.type(0.0) if bias is None else bias[i]
            for j in range(z.shape[1]):
                if y is None:
                    z[i, j] = value(z[i, j] + b, s)
                else:
                    y[i, j] = value(z[i, j] + b, s)

    @made_of
    def backward(z, bias, s, y, d, dbias, wide):
        """d ← d f', dbias = Σ_n d unless it is None"""
        none = d.dtype.type(0.0) if wide is None else wide
        for i in range(d.shape[0]):
            b = d.dtype.type(0.0) if bias is None else bias[i]
            total = none
            for j in range(d.shape[1]):
                d[i, j] = back(d[i, j], z[i, j] + b, y[i, j], s)
                total += d[i, j]
            if dbias is not None:
                dbias[i] = total

    return {"forward": forward, "backward": backward}


class Pointwise(stages.Pointwise, LoopStage):
    """y overwrites the product, unless the slope depends on that."""

    loops = staticmethod(loops)

    def __init__(self, site: Any, before: Any, f: Any):
        super().__init__(site, before, f)
        self.in_place = not reads_x(f)

    def bind(self, x: Array, before: Any) -> None:
        if self.in_place:
            self.y_and_ones = before.y_and_ones
        self.z, self.place = x, None if self.in_place else self.output(*x.shape)
        self.bind_rows(x if self.in_place else self.y)

    def forward(self, x: Array, params: Any) -> Array:
        self.forward_rows(x, params[0], self.settings, self.place)
        if self.finish:
            self.finish()
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        self.backward_rows(self.z, params[0], self.settings, self.y, dy, grads[0], self.wide)
        return dy
