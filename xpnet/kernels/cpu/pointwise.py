"""A bias and a pointwise function, in calls."""

from typing import Any

from ...backends import Array
from .. import stages
from .functions import RowsStage


class Pointwise(stages.Pointwise, RowsStage):
    """y overwrites the product."""

    in_place = True

    def bind(self, x: Array, before: Any) -> None:
        self.y_and_ones = before.y_and_ones
        self.bind_rows(*x.shape, y=x)
        self.forward_rows, self.backward_rows = self.by_rows(Pointwise.apply), self.by_rows(Pointwise.back)

    def forward(self, x: Array, params: Any) -> Array:
        self.forward_rows(self, params[1])
        return x

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        self.backward_rows(self, dy, grads[0])
        return dy

    def back(self, dy: Array, dbias: Array | None) -> None:
        """The backward pass of all rows or of a part."""
        self.times_slope(dy)
        if dbias is not None:
            self.sums(dy, self.ones, out=dbias)
