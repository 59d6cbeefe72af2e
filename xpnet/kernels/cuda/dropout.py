"""Dropout, in CUDA."""

import importlib
from collections.abc import Sequence
from typing import Any

from ...backends import Array
from ...layers import dropout
from ..stages import Part, Site, Stage
from .launching import in_rows, over_vector


class Dropout(Stage):
    """y = x m, as the layer has it; the mask is drawn anew on the way back, and none is kept."""

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> "Stage | None":
        fits = parts and type(parts[0].layer) is dropout.Dropout and parts[0].axes == 2
        return cls(site, before, parts[0]) if fits and not (before and before.bias) else None

    def __init__(self, site: Site, before: Stage | None, part: Part):
        super().__init__(site, before)
        self.layer: Any = part.layer
        self.name, self.states = f"{part.prefix}.key", [part.layer]

    def set_state(self, state: dict[str, Array]) -> None:
        """Take the key."""
        vars(self.layer)["state"] = {"key": state[self.name]}

    def next_state(self) -> dict[str, Array]:
        """The next key."""
        return {self.name: self.next_key}

    def bind(self, x: Array, before: Any) -> None:
        self.output(*x.shape)

    def forward(self, x: Array, params: Any) -> Array:
        self.key = self.layer.state["key"]
        self.next_key = mask(x, self.key, self.layer.rate, self.y, counts=True)
        return self.y

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        mask(dy, self.key, self.layer.rate, dy)
        return dy


def mask(x: Array, key: Array, rate: float, y: Array, counts: bool = False) -> Any:
    """y = x m, in x's place perhaps; returns the next key if it `counts`. A number's place is that in x's memory."""
    next_key = importlib.import_module("cupy").empty_like(key) if counts else None
    numbers = round(rate * 2**24), float(1.0 / (1.0 - rate)), y.size
    over_vector("dropout", y, 2048, in_rows(x, y.dtype), in_rows(key, key.dtype), *numbers, y, next_key)
    return next_key
