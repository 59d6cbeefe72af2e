"""Outputs and gradients of every layer for some rows, without changing the network."""

from typing import Any

from ..backends import Array, namespace
from ..layers.base import Layer
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..losses.objective import on_encoded


class Trace:
    """A layer with its output, its cache and, after `backward`, the gradients of its parameters."""

    def __init__(self, name: str, layer: Layer, output: Array, cache: Any):
        self.name, self.layer, self.output, self.cache = name, layer, output, cache
        self.grads: dict[str, Array] | None = None

    def __str__(self) -> str:
        return f"layer {self.name}, {self.layer!r}" if self.name else f"the network, {self.layer!r}"


def forward(net: Placed, x: Array, training: bool) -> list[Trace]:
    """The layers in order; a network with a custom forward counts as one layer."""
    traces = []
    for name, layer in net.parts():
        x, cache = layer.forward(x, training)
        traces.append(Trace(name, layer, x, cache))
    return traces


def backward(net: Placed, traces: list[Trace], loss: Loss, y: Array, *weight: Array | None) -> Array:
    """Fill in the gradients for encoded targets, as the training step takes them; returns the loss.

    A loss that is an `Objective` also takes the rows' `weight`.
    """
    value, dy = on_encoded(loss, traces[-1].output, y, *weight)
    chained = traces[0].name != ""  # else it is one layer, whose backward sees to them
    idle = set(net.idle_parameters([trace.cache for trace in traces])) if chained else set()
    for trace in reversed(traces):
        dy, grads = trace.layer.backward(dy, trace.cache)
        zeros = {k: namespace(g).zeros_like(g) for k, g in grads.items() if f"{trace.name}.{k}" in idle}
        trace.grads = grads | zeros
    return value
