"""Outputs and gradients of every layer for some rows, without changing the network."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any

from ..backends import Array
from ..common.checks import pair_from
from ..layers.base import Layer, named_tree
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..losses.objective import on_encoded
from ..ops import all_finite


class Trace:
    """One call of a layer: `x` and `y` of its forward, `dy`, `dx` and `gradients` of its backward, None before it.

    dy is dL/dy, dx is dL/dx (None where x is of integers), and `gradients` are those of its parameters, by their names
    in `layer.params`. `name` is the layer's name in the network, such as "0" or "1.attention"; `layer` is a copy of it,
    `cache` the one that its forward returned; `inner` are the calls that it made of the layers within it, and `depth`
    is the number of layers that it is within.
    """

    def __init__(self, name: str, layer: Layer, x: Array, depth: int):
        self.name, self.layer, self.x, self.depth = name, layer, x, depth
        self.y: Array = None
        self.cache: Any = None
        self.dy: Array = None
        self.dx: Array = None
        self.gradients: dict[str, Array] = {}
        self.inner: list[Trace] = []

    def __repr__(self) -> str:
        return f"layer {self.name}, {self.layer!r}" if self.name else f"the network, {self.layer!r}"


class Probe:
    """A forward and a backward pass through a network, a copy made for it, in which every layer's call is recorded.

    `traces` are the calls in the order in which they began: that of the network itself, then those of its layers, each
    followed by those of the layers within it.
    """

    def __init__(self, net: Placed):
        self.net = net
        self.traces: list[Trace] = []
        self.finished: list[Trace] = []  # in the order in which their forward ended
        self.open: list[Trace] = []  # the calls under way, each within the one before it

    def forward(self, x: Array, training: bool) -> Array:
        """The network's output."""
        with self._recording():
            return self.net.forward(x, training)[0]

    def backward(self, loss: Loss, target: Array, *weight: Array | None) -> tuple[Array, Array]:
        """The loss for an encoded target and its derivative by the output, which goes back through all layers.

        A loss that is an `Objective` also takes the rows' `weight`.
        """
        whole = self.traces[0]
        value, dy = on_encoded(loss, whole.y, target, *weight)
        with self._recording():
            self.net.backward(dy, whole.cache)
        for trace in self.traces:  # a chain makes 0 of gradients that are rounding alone
            prefix = f"{trace.name}." if trace.name else ""
            trace.gradients = {name: whole.gradients.get(prefix + name, g) for name, g in trace.gradients.items()}
        return value, dy

    def parts(self) -> list[Trace]:
        """The calls of the network's `parts`, which follow one another."""
        names = [name for name, _ in self.net.parts()]
        return [trace for trace in self.traces if trace.name in names]

    def first_fault(self, value: Array | None = None) -> tuple[Trace | None, str] | None:
        """The first output, loss or gradient that is not finite, in the order of the two passes: its layer, None for
        the loss, and a description.
        """
        for trace in self.finished:
            if not all_finite(trace.y):
                return trace, "its output is not finite"
        if value is not None and not math.isfinite(float(value)):
            return None, "it is not finite"
        for trace in reversed(self.finished):
            if not all(all_finite(g) for g in (*trace.gradients.values(), trace.dx) if g is not None):
                return trace, "its gradient is not finite"
        return None

    @contextlib.contextmanager
    def _recording(self) -> Iterator[None]:
        """Within, each layer has a forward and a backward that record their calls."""
        watched = list(named_tree(self.net))
        try:
            for name, layer in watched:
                vars(layer).update(
                    forward=self._forward_of(name, layer),
                    backward=self._backward_of(layer, layer.backward),
                    backward_params=self._backward_params_of(layer, layer.backward_params),
                )
            yield
        finally:
            self.open.clear()
            for _, layer in watched:
                for method in ("forward", "backward", "backward_params"):
                    vars(layer).pop(method, None)

    def _forward_of(self, name: str, layer: Layer) -> Callable[..., tuple[Array, Any]]:
        forward = layer.forward

        def recorded(x: Array, *arguments: Any, **keywords: Any) -> tuple[Array, Any]:
            trace = Trace(name, layer, x, len(self.open))
            self.traces.append(trace)
            if self.open:
                self.open[-1].inner.append(trace)
            self.open.append(trace)
            trace.y, trace.cache = pair_from(layer, "forward", forward(x, *arguments, **keywords))
            self.finished.append(self.open.pop())
            return trace.y, trace.cache

        return recorded

    def _backward_of(self, layer: Layer, backward: Callable[..., Any]) -> Callable[..., tuple[Array, dict[str, Array]]]:
        def recorded(dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
            trace = self._call_of(layer, cache)
            dx, gradients = pair_from(layer, "backward", backward(dy, cache))
            if trace is not None:
                trace.dy, trace.dx, trace.gradients = dy, dx, gradients
            return dx, gradients

        return recorded

    def _backward_params_of(self, layer: Layer, backward_params: Callable[..., Any]) -> Callable[..., dict[str, Array]]:
        def recorded(dy: Array, cache: Any) -> dict[str, Array]:
            trace = self._call_of(layer, cache)
            gradients: dict[str, Array] = backward_params(dy, cache)
            if trace is not None:
                trace.dy, trace.gradients = dy, gradients
            return gradients

        return recorded

    def _call_of(self, layer: Layer, cache: Any) -> Trace | None:
        """The latest call of this layer that made this cache, and that no backward was seen of."""
        return next((t for t in reversed(self.traces) if t.layer is layer and t.cache is cache and t.dy is None), None)
