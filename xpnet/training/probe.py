"""A look inside a network: what each layer gives, and the gradients there, for some rows. Nothing is changed by it."""

from typing import Any

from ..backends import Array, namespace
from ..layers.base import Layer
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..losses.objective import on_encoded


class Look:
    """One layer: its output, what its backward needs, and after `backward` the gradients of its parameters."""

    def __init__(self, name: str, layer: Layer, output: Array, cache: Any):
        self.name, self.layer, self.output, self.cache = name, layer, output, cache
        self.grads: dict[str, Array] | None = None

    def __str__(self) -> str:
        return f"layer {self.name}, {self.layer!r}" if self.name else f"the network, {self.layer!r}"


def forward(net: Placed, x: Array, training: bool) -> list[Look]:
    """Each layer's output, one after another; a network with a forward of its own is one layer."""
    looks = []
    for name, layer in net.parts():
        x, cache = layer.forward(x, training)
        looks.append(Look(name, layer, x, cache))
    return looks


def backward(net: Placed, looks: list[Look], y: Array, loss: Loss) -> Array:
    """Fill in the gradients of the loss, as the training step has them, for these encoded targets; returns the loss."""
    value, dy = on_encoded(loss, looks[-1].output, y)
    idle = set(net.idle_parameters())
    for look in reversed(looks):
        dy, grads = look.layer.backward(dy, look.cache)
        zeros = {k: namespace(g).zeros_like(g) for k, g in grads.items() if f"{look.name}.{k}" in idle}
        look.grads = grads | zeros
    return value
