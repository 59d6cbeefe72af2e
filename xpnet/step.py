"""One training step as a pure function: forward, loss, backward, optimizer."""

import math
from typing import TYPE_CHECKING, NamedTuple

from . import ops
from .backend import Array
from .losses import Loss, reduced
from .optimizers import Optimizer, Slots

if TYPE_CHECKING:
    from .network import Sequential


class Carry(NamedTuple):
    """What a step takes and gives: the vector of trained parameters, the optimizer's memory, running statistics."""

    weights: Array
    slots: Slots
    state: dict[str, Array]


def check_part(name: str, part: object, needed: str, example: str) -> None:
    """Refuse a loss or an optimizer that is none, such as a name or a class."""
    if isinstance(part, type) or not hasattr(part, needed):
        raise TypeError(f"{name} must be an object such as {example}, got {part!r}")


class Step:
    """`step(carry, x, y) -> value of the loss, next carry`, for one network, loss and optimizer.

    It works on a clone, so the network is as it was until a carry is published to it. All trained parameters stand in
    one vector, of which the clone's layers hold views: the optimizer's work is then a handful of array calls.
    """

    def __init__(self, net: "Sequential", loss: Loss, optimizer: Optimizer):
        self.worker = net.clone()
        self.optimizer = optimizer
        self.loss = reduced(loss)
        self.trained = [(p, layer, k) for p, layer in self.worker.leaves() if layer.trainable for k in layer.params]
        if not self.trained:
            raise ValueError(
                "fit: the network has no parameters to train; add a layer with some, or set trainable=True"
            )
        self.names = [f"{prefix}.{key}" for prefix, _, key in self.trained]
        self.shapes = [tuple(layer.params[key].shape) for _, layer, key in self.trained]
        self.lowest = int(self.names[0].partition(".")[0])  # the layers below need no gradient
        self.stateful = [
            (layer, [(k, f"{p}.{k}") for k in layer.state]) for p, layer in self.worker.leaves() if layer.state
        ]
        weights = ops.join([layer.params[key] for _, layer, key in self.trained])
        self.start = Carry(weights, optimizer.init(weights), self.worker.state)

    def __call__(self, carry: Carry, x: Array, y: Array) -> tuple[Array, Carry]:
        self._bind(carry)
        prediction, cache = self.worker.forward(x, training=True)
        value, dy = self.loss(prediction, y)
        grads = self.worker.backward_params(dy, cache, self.lowest)
        self._check(grads, carry.weights)
        gradient = ops.join([grads[name] for name in self.names])
        weights, slots = self.optimizer.update(carry.weights, gradient, carry.slots)
        return value, Carry(weights, slots, self.worker.next_state(cache))

    def _check(self, grads: dict[str, Array], weights: Array) -> None:
        """Refuse gradients not of the parameters' names, shapes or dtype: joined, they would train all the same."""
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in grads:
                raise ValueError(f"fit: backward gave no gradient for {name}; it gave {', '.join(grads) or 'none'}")
            g = grads[name]
            if tuple(g.shape) != shape or g.dtype != weights.dtype:
                raise ValueError(
                    f"fit: backward gave {name} a gradient of shape {tuple(g.shape)} and {g.dtype}, expected {shape} "
                    f"and {weights.dtype}; xn.check_gradients finds such layers"
                )

    def finite(self, carry: Carry) -> bool:
        """Whether the parameters and statistics are. Waits for the device."""
        real = [a for a in carry.state.values() if a.dtype == carry.weights.dtype]
        return ops.all_finite(ops.join([carry.weights, *real]))

    def _bind(self, carry: Carry) -> None:
        """Give the clone the statistics, and the parameters at which the optimizer wants the gradient."""
        point = self.optimizer.lookahead(carry.weights, carry.slots)
        for (_, layer, key), value in zip(self.trained, ops.split(point, self.shapes), strict=True):
            layer.params[key] = value
        for layer, keys in self.stateful:
            layer.state = {key: carry.state[name] for key, name in keys}

    def publish(self, carry: Carry, net: "Sequential") -> None:
        """Give the network what a carry has learned."""
        net.assign_params(net.params | dict(zip(self.names, ops.split(carry.weights, self.shapes), strict=True)))
        net.assign_state(carry.state)

    def fault(self, carry: Carry, x: Array, y: Array) -> str:
        """In a step that does not stay finite: where it first is not, in words."""
        self._bind(carry)
        layers, caches = self.worker.layers, []
        for i, layer in enumerate(layers):
            x, cache = layer.forward(x, training=True)
            caches.append(cache)
            if not ops.all_finite(x):
                return f"the output of layer {i}, {layer!r}"
            if not all(ops.all_finite(a) for a in layer.next_state(cache).values()):
                return f"the running statistics of layer {i}, {layer!r}"
        value, dy = self.loss(x, y)
        if not (math.isfinite(float(value)) and ops.all_finite(dy)):
            return "the loss"
        for i in reversed(range(self.lowest, len(layers))):
            dy, grads = layers[i].backward(dy, caches[i])
            if not all(ops.all_finite(g) for g in (dy, *grads.values())):
                return f"the gradient at layer {i}, {layers[i]!r}"
        return "the optimizer's update"
