"""Layers that hold layers by number: one after another, beside an identity, beside one another.

Names of their parameters and statistics: the layer's number, a dot, its own name: "0.weight", "1.gamma", "2.0.bias".
"""

from typing import Any

from ..backends import Array, namespace
from ..common.checks import brief, mapping_from, pair_from
from .base import Layer, Shape
from .dense import Dense
from .normalization import BatchNorm

SHIFTS = {Dense: "bias", BatchNorm: "beta"}  # what these layers add to every row; else they are linear


class Container(Layer):
    """The base of the layers that hold others by number: `layers` is the tuple of them.

    Raises TypeError for what is no layer, ValueError for one that stands in it twice and has arrays.
    """

    def __init__(self, *layers: Layer):
        who = type(self).__name__
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"{who}: layer {i} is {brief(layer)}, expected a Layer such as Dense(64, 32){remedy(layer)}"
                )
        self.layers = layers
        seen: set[int] = set()
        for name, leaf in self._leaves():
            if id(leaf) in seen and (leaf.param_shapes() or leaf.state_shapes()):
                raise ValueError(f"{who}: layer {name}, {leaf!r}, stands in it twice; its arrays cannot be shared")
            seen.add(id(leaf))

    def _children(self) -> dict[str, Layer]:
        return {str(i): layer for i, layer in enumerate(self.layers)}

    def _leaves(self, prefix: str = "") -> list[tuple[str, Layer]]:
        return [leaf for i, layer in enumerate(self.layers) for leaf in layer._leaves(f"{prefix}{i}.")]

    def __repr__(self) -> str:
        settings = super().__repr__().removeprefix(f"{type(self).__name__}(").removesuffix(")")
        return f"{type(self).__name__}({', '.join([*map(repr, self.layers), *filter(None, [settings])])})"


class Chain(Container):
    """Layers one after another.

    forward:   x₀ = x,  x_{i+1} = layer_i(x_i)          backward:  dx_i = backward_i(dx_{i+1}), the chain rule

    Raises ValueError for layers whose sizes do not chain.
    """

    def __init__(self, *layers: Layer):
        super().__init__(*layers)
        shape: Shape | None = None
        for i, layer in enumerate(layers):
            shape = layer.input_shape if shape is None else shape
            try:
                shape = shape if shape is None else layer.output_shape(shape)
            except ValueError as error:
                raise ValueError(f"{type(self).__name__}: layer {i} does not fit the one before it: {error}") from error

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        caches = []
        for layer in self.layers:
            x, cache = pair_from(layer, "forward", layer.forward(x, training))
            caches.append(cache)
        return x, (self, x.shape, caches, training)

    def _infer(self, x: Array) -> Array:
        """The output of `forward` in inference; each layer's cache is let go as soon as it is made."""
        if type(self).forward is not Chain.forward:
            return super()._infer(x)
        for layer in self.layers:
            x = layer._infer(x)
        return x

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        return self._backward(dy, cache, 0, needs_dx=True)

    def backward_params(self, dy: Array, cache: Any, lowest: int = 0) -> dict[str, Array]:
        """The gradients of layer `lowest` and those above it."""
        if type(self).backward is not Chain.backward:
            return super().backward_params(dy, cache)
        return self._backward(dy, cache, lowest, needs_dx=False)[1]

    def _backward(self, dy: Array, cache: Any, lowest: int, needs_dx: bool) -> tuple[Array, dict[str, Array]]:
        caches, training = self.saved(cache, dy)
        grads: dict[str, Array] = {}
        for i in reversed(range(lowest, len(self.layers))):
            if i == lowest and not needs_dx:
                own = mapping_from(self.layers[i], "backward_params", self.layers[i].backward_params(dy, caches[i]))
            else:
                dy, own = pair_from(self.layers[i], "backward", self.layers[i].backward(dy, caches[i]))
            grads = {f"{i}.{name}": gradient for name, gradient in own.items()} | grads
        if training:
            grads |= {name: namespace(dy).zeros_like(grads[name]) for name in self.idle_parameters() if name in grads}
        return dy, grads

    def next_state(self, cache: Any) -> dict[str, Array]:
        given = {
            str(i): mapping_from(layer, "next_state", layer.next_state(self.kept(cache)[0][i]))
            for i, layer in enumerate(self.layers)
            if layer.state
        }
        return self.prefixed(**given)

    def output_shape(self, input_shape: Shape) -> Shape:
        for layer in self.layers:
            input_shape = layer.output_shape(input_shape)
        return input_shape

    @property
    def input_shape(self) -> Shape | None:  # type: ignore[override]
        """Without the batch; None where the layers take any."""
        for _, layer in self._flat():
            if layer.input_shape is not None or type(layer).output_shape is not Layer.output_shape:
                return layer.input_shape
        return None

    def _parts(self, prefix: str = "") -> list[tuple[str, Layer]]:
        """The layers as they follow one another; itself where a subclass has a forward or backward of its own."""
        if any(getattr(type(self), name) is not getattr(Chain, name) for name in ("forward", "backward", "next_state")):
            return super()._parts(prefix)
        return self._flat(prefix)

    def _flat(self, prefix: str = "") -> list[tuple[str, Layer]]:
        """The `parts` of its layers."""
        return [part for i, layer in enumerate(self.layers) for part in layer._parts(f"{prefix}{i}.")]

    def idle_parameters(self) -> list[str]:
        """The names of the parameters that have no effect in training: they add the same to every row, and a BatchNorm
        behind them, or behind Dense layers that follow, subtracts the batch's mean.

        The gradient of such a bias or beta is 0, and `backward` returns exactly that. Its sum over the rows would be
        rounding, which Adam, dividing by the gradient's own size, turns into full steps that differ between backends.
        """
        names: list[str] = []
        subtracted = False  # whether what is added to every row alike is, further on
        for prefix, layer in reversed(self._flat()):
            kind = type(layer)
            if subtracted and kind in SHIFTS:
                names.append(f"{prefix}.{SHIFTS[kind]}")
            subtracted = kind in SHIFTS and (subtracted or (kind is BatchNorm and layer.trainable))
        return names


def remedy(given: object) -> str:
    """What to do with something that stands where a layer is expected."""
    if isinstance(given, type):
        return f": call the class, {given.__name__}(...)"
    if isinstance(given, (list, tuple)):
        return "; the layers of a list are given one by one: Sequential(*layers)"
    return ""
