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
    """One call of a layer: `x` and `y` of its forward, `dy`, `dx` and `gradients` of its backward (None before it).

    `dy` is dL/dy, `dx` is dL/dx (None if x is of integers), and `gradients` are those of the parameters, by their names
    in `layer.params`. `name` is the layer's name in the network, such as "0" or "1.attention"; `layer` is the layer in
    the probe's copy of the network; `cache` is what its forward returned for backward; `inner` lists the calls of
    layers within it, and `depth` is the number of layers around it.
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
    """A forward and a backward pass through a network, copied for this, with a record of every layer's call.

    `traces` are the calls in the order in which they began: first the network's, then those of its layers, each
    followed by those of the layers within it.
    """

    def __init__(self, net: Placed):
        self.net = net
        self.traces: list[Trace] = []
        self.finished: list[Trace] = []  # in the order in which their forward passes ended
        self.open: list[Trace] = []  # calls of forward in progress, each within the one before

    def forward(self, x: Array, training: bool) -> Array:
        """Run the forward pass and return the network's output."""
        with self._recording():
            return self.net.forward(x, training)[0]

    def backward(self, loss: Loss, target: Array, *weight: Array | None) -> tuple[Array, Array]:
        """Run the backward pass; return the loss for an encoded target, and its derivative by the output.

        If the loss is an `Objective`, it also takes the rows' `weight`.
        """
        whole = self.traces[0]
        value, dy = on_encoded(loss, whole.y, target, *weight)
        with self._recording():
            self.net.backward(dy, whole.cache)
        for trace in self.traces:  # the whole network's gradients, in which those that are only rounding are set to 0
            prefix = f"{trace.name}." if trace.name else ""
            trace.gradients = {name: whole.gradients.get(prefix + name, g) for name, g in trace.gradients.items()}
        return value, dy

    def parts(self) -> list[Trace]:
        """Return the calls of the network's `parts`, in order."""
        names = [name for name, _ in self.net.parts()]
        return [trace for trace in self.traces if trace.name in names]

    def first_fault(self, value: Array | None = None) -> tuple[Trace | None, str] | None:
        """Return the layer (None for the loss) with the first output, loss or gradient that is not finite, in the order
        of the two passes, and a description; None if everything is finite.
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
        """Within the block, replace the forward and backward methods of each layer by ones that record their calls."""
        layers = list(named_tree(self.net))
        try:
            for name, layer in layers:
                vars(layer).update(
                    forward=self._forward_of(name, layer),
                    backward=self._backward_of(layer, "backward"),
                    backward_params=self._backward_of(layer, "backward_params"),
                )
            yield
        finally:
            self.open.clear()
            for _, layer in layers:
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

    def _backward_of(self, layer: Layer, method: str) -> Callable[[Array, Any], Any]:
        backward = getattr(layer, method)

        def recorded(dy: Array, cache: Any) -> Any:
            # the latest call of this layer that returned this cache and has had no backward yet
            calls = (t for t in reversed(self.traces) if t.layer is layer and t.cache is cache and t.dy is None)
            trace = next(calls, None)
            given = backward(dy, cache)
            if trace is not None:
                trace.dy, trace.gradients = dy, given
                if method == "backward":
                    trace.dx, trace.gradients = pair_from(layer, method, given)
            return given

        return recorded
