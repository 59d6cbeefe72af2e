"""Layers that hold numbered layers, and the chain of layers in sequence.

Their parameters and statistics are named by the layer's number, a dot and its own name: "0.weight", "2.0.bias".
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ..backends import Array, namespace
from ..common.checks import brief, mapping_from, pair_from
from .base import Layer, Shape, check_shape
from .convolution import Conv1d, Conv2d
from .dense import Dense
from .normalization import BatchNorm
from .pooling import AveragePool1d, AveragePool2d, GlobalAveragePool, MaxPool1d, MaxPool2d
from .shape import Flatten

SHIFTS = {Dense: "bias", BatchNorm: "beta", Conv1d: "bias", Conv2d: "bias"}  # parameters that are added to every row
# layers whose outputs shift by a constant in each channel if their inputs do
KEEPING = {
    Dense, BatchNorm, Flatten, AveragePool1d, AveragePool2d, GlobalAveragePool, MaxPool1d, MaxPool2d,
}  # fmt: skip


class Container(Layer):
    """The base class of layers that hold others by number; `layers` is a tuple of these.

    Raises TypeError for anything but a layer, ValueError for a layer with arrays that occurs twice.
    """

    def __init__(self, *layers: Layer):
        who = type(self).__name__
        for i, layer in enumerate(layers):
            if not isinstance(layer, Layer):
                raise TypeError(
                    f"{who}: layer {i} is {brief(layer)}, expected a Layer such as Dense(64, 32){remedy(layer)}"
                )
        self.layers = layers
        ids: set[int] = set()
        for name, leaf in self._leaves():
            if id(leaf) in ids and (leaf.param_shapes() or leaf.state_shapes()):
                raise ValueError(f"{who}: layer {name}, {leaf!r}, occurs twice; its arrays cannot be shared")
            ids.add(id(leaf))

    def _children(self) -> dict[str, Layer]:
        return {str(i): layer for i, layer in enumerate(self.layers)}

    def _leaves(self, prefix: str = "") -> list[tuple[str, Layer]]:
        return [leaf for i, layer in enumerate(self.layers) for leaf in layer._leaves(f"{prefix}{i}.")]

    def _arguments(self) -> tuple[Layer, ...]:
        """Return the layers, also if a subclass's constructor takes other arguments."""
        return self.layers

    def _first_with_shape(self) -> Layer | None:
        """Return the layer that determines `input_shape`: the first that has one."""
        return next((layer for layer in self.layers if layer.input_shape is not None), None)

    @property
    def input_shape(self) -> Shape | None:  # type: ignore[override]
        """The shape of a row of x; None if it takes any."""
        return None if (first := self._first_with_shape()) is None else first.input_shape

    @property
    def further_axes(self) -> int | None:  # type: ignore[override]
        """The `further_axes` of the layer that determines `input_shape`."""
        return None if (first := self._first_with_shape()) is None else first.further_axes

    @property
    def takes(self) -> str:  # type: ignore[override]
        """The kind of x that the first layer takes."""
        return self.layers[0].takes if self.layers else "floats"

    def next_state(self, cache: Any) -> dict[str, Array]:
        states = {
            str(i): mapping_from(layer, "next_state", layer.next_state(self.kept(cache)[0][i]))
            for i, layer in enumerate(self.layers)
            if layer.state  # else the cache may be that of a subclass's own forward
        }
        return self.prefixed(**states)


class Chain(Container):
    """Layers in sequence.

    forward:   x₀ = x,  x_{i+1} = layer_i(x_i)          backward:  dx_i = backward_i(dx_{i+1}), the chain rule

    Raises ValueError for a layer that cannot take the output of the one before.
    """

    formula = "x₀ = x, x_{i+1} = layer_i(x_i)", "dx_i = backward_i(dx_{i+1})"

    def __init__(self, *layers: Layer):
        super().__init__(*layers)
        for first, layer in enumerate(layers):
            if layer.input_shape is not None:
                misfits = [self._misfit(shape, first) for shape in shapes_of(layer)]
                if all(misfits) and misfits[0]:
                    i, error = misfits[0]
                    raise ValueError(
                        f"{type(self).__name__}: layer {i} does not fit the one before it: {error}, "
                        f"from layer {i - 1}, {layers[i - 1]!r}"
                    ) from error
                return

    def _misfit(self, shape: Any, first: int = 0) -> tuple[int, ValueError] | None:
        """Return the number and error of the layer that refuses its input if `first` is given this shape, or None."""
        for i, layer in enumerate(self.layers[first:], first):
            try:
                shape = layer.output_shape(shape)
            except ValueError as error:
                return i, error
            except TypeError:
                if None not in shape:
                    raise
                return None
        return None

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        caches = []
        for layer in self.layers:
            x, cache = pair_from(layer, "forward", layer.forward(x, training))
            caches.append(cache)
        return x, (self, x.shape, caches, training)

    def _infer(self, x: Array) -> Array:
        """Return the output of `forward` in inference, without keeping the layers' caches."""
        if type(self).forward is not Chain.forward:
            return super()._infer(x)
        for layer in self.layers:
            x = layer._infer(x)
        return x

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        return self._backward(dy, cache, 0, needs_dx=True)

    def backward_params(self, dy: Array, cache: Any, lowest: int = 0) -> dict[str, Array]:
        """Return the gradients of layer `lowest` and all later ones."""
        if type(self).backward is not Chain.backward:
            return super().backward_params(dy, cache)
        return self._backward(dy, cache, lowest, needs_dx=False)[1]

    def _backward(self, dy: Array, cache: Any, lowest: int, needs_dx: bool) -> tuple[Array, dict[str, Array]]:
        caches, training = self.saved(cache, dy)
        grads: dict[str, Array] = {}
        for i in reversed(range(lowest, len(self.layers))):
            if i == lowest and not needs_dx:
                inner = mapping_from(self.layers[i], "backward_params", self.layers[i].backward_params(dy, caches[i]))
            else:
                dy, inner = pair_from(self.layers[i], "backward", self.layers[i].backward(dy, caches[i]))
            grads = {f"{i}.{name}": gradient for name, gradient in inner.items()} | grads
        if training:
            idle = [name for name in self.idle_parameters(self._axes(caches)) if name in grads]
            grads |= {name: namespace(grads[name]).zeros_like(grads[name]) for name in idle}
        return dy, grads

    def output_shape(self, input_shape: Shape) -> Shape:
        check_shape(self, input_shape)
        shortest = self.input_shape
        if shortest and len(input_shape) == len(shortest) and not isinstance(input_shape[0], str):  # without the batch
            return Chain.output_shape(self, ("N", *input_shape))[1:]
        for layer in self.layers:
            input_shape = layer.output_shape(input_shape)
        return input_shape

    def _first_with_shape(self) -> Layer | None:
        """Return the first layer that has an `input_shape` or changes the shape."""
        for _, layer in self._flat():
            if layer.input_shape is not None or type(layer).output_shape is not Layer.output_shape:
                return layer
        return None

    @property
    def vocabulary(self) -> int | None:  # type: ignore[override]
        """The number of ids that the first layer knows, if it takes integers."""
        return self.layers[0].vocabulary if self.layers else None

    def _parts(self, prefix: str = "") -> list[tuple[str, Layer]]:
        """Return the layers in sequence; this layer alone if a subclass overrides forward or backward."""
        return self._flat(prefix) if self._runs_as(Chain) else super()._parts(prefix)

    def _flat(self, prefix: str = "") -> list[tuple[str, Layer]]:
        """Return the `_parts` of all layers, in sequence."""
        return [part for i, layer in enumerate(self.layers) for part in layer._parts(f"{prefix}{i}.")]

    def _axes(self, caches: Iterable[Any]) -> list[int]:
        """Return the `axes` for `idle_parameters`, from the layers' caches."""
        axes: list[int] = []
        for layer, cache in zip(self.layers, caches, strict=True):
            if isinstance(layer, Chain) and all(part is not layer for _, part in layer._parts()):
                axes += layer._axes(layer.kept(cache)[0])
            else:
                axes.append(len(cache[1]) if type(layer) is Dense else 2)
        return axes

    def idle_parameters(self, axes: Sequence[int] | None = None) -> list[str]:
        """Return the `idle_parameters` of the layers in sequence."""
        return idle_parameters(self._flat(), axes)


def idle_parameters(parts: Sequence[tuple[str, Layer]], axes: Sequence[int] | None = None) -> list[str]:
    """Return the names of the parameters that have no effect in training: they add a constant to a channel in every
    row, and a later BatchNorm subtracts it with the batch's mean.

    `axes` is the number of axes of each part's output, by default 2. With more, Dense adds along the last axis but
    BatchNorm subtracts along axis 1, so that a bias of Dense has an effect.

    The gradient of such a bias or beta is 0, and `backward` returns exactly that. A sum over the rows would give a
    rounding error, which Adam, dividing by the gradient's size, turns into full steps that differ between backends.
    """
    names: list[str] = []
    subtracted = False  # whether a later layer subtracts a constant that is added to every row
    for (prefix, layer), n in zip(reversed(parts), reversed(axes or [2] * len(parts)), strict=True):
        kind = type(layer)
        by_channel = kind is not Dense or n == 2
        if subtracted and by_channel and kind in SHIFTS:
            names.append(f"{prefix}.{SHIFTS[kind]}")
        subtracted = (kind is BatchNorm and layer.trainable) or (subtracted and by_channel and kind in KEEPING)
    return names


def shapes_of(layer: Layer) -> list[Shape]:
    """Return shapes of x for a layer with an `input_shape`: the shortest, and those with one and two further axes."""
    shape: Shape = ("N", *(layer.input_shape or ()))
    at = layer.further_axes
    return [shape] if at is None else [(*shape[:at], *[None] * n, *shape[at:]) for n in (0, 1, 2)]


def check_fit(container: Container) -> None:
    """Raise ValueError if `output_shape` refuses every x that `input_shape` allows, for the first one's reason."""
    if container.input_shape is None:
        return
    errors = []
    for shape in (container.input_shape, *shapes_of(container)[1:]):
        try:
            container.output_shape(shape)
            return
        except ValueError as error:
            errors.append(error)
        except TypeError:  # because of an unknown size
            if None not in shape:
                raise
            return
    raise errors[0]


def remedy(given: object) -> str:
    """Return a hint for something given in place of a layer."""
    if isinstance(given, type):
        return f": call the class, {given.__name__}(...)"
    if isinstance(given, (list, tuple)):
        return "; unpack a list of layers: Sequential(*layers)"
    return ""
