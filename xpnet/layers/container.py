"""Layers that hold layers by number: one after another, beside an identity, beside one another.

Names of their parameters and statistics: the layer's number, a dot, its own name: "0.weight", "1.gamma", "2.0.bias".
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

SHIFTS = {Dense: "bias", BatchNorm: "beta", Conv1d: "bias", Conv2d: "bias"}  # what these layers add to every row
# what is the same in every row and at every position of a channel stays so in them
KEEPING = {
    Dense, BatchNorm, Flatten, AveragePool1d, AveragePool2d, GlobalAveragePool, MaxPool1d, MaxPool2d,
}  # fmt: skip


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

    def _arguments(self) -> tuple[Layer, ...]:
        """The layers, whatever a subclass's constructor makes them from."""
        return self.layers


class Chain(Container):
    """Layers one after another.

    forward:   x₀ = x,  x_{i+1} = layer_i(x_i)          backward:  dx_i = backward_i(dx_{i+1}), the chain rule

    Raises ValueError for layers whose sizes do not chain.
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
        """The layer that refuses what comes of this shape, given to layer `first`, with its words; None where all fit,
        or where a length that is not known keeps one from telling.
        """
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
            idle = [name for name in self.idle_parameters(self._axes(caches)) if name in grads]
            grads |= {name: namespace(grads[name]).zeros_like(grads[name]) for name in idle}
        return dy, grads

    def next_state(self, cache: Any) -> dict[str, Array]:
        given = {
            str(i): mapping_from(layer, "next_state", layer.next_state(self.kept(cache)[0][i]))
            for i, layer in enumerate(self.layers)
            if layer.state
        }
        return self.prefixed(**given)

    def output_shape(self, input_shape: Shape) -> Shape:
        check_shape(self, input_shape)
        shortest = self.input_shape
        if shortest and len(input_shape) == len(shortest) and not isinstance(input_shape[0], str):  # without the batch
            return Chain.output_shape(self, ("N", *input_shape))[1:]
        for layer in self.layers:
            input_shape = layer.output_shape(input_shape)
        return input_shape

    @property
    def input_shape(self) -> Shape | None:  # type: ignore[override]
        """Without the batch; None where the layers take any."""
        return None if (first := self._first_with_shape()) is None else first.input_shape

    @property
    def further_axes(self) -> int | None:  # type: ignore[override]
        """Where an x of more axes has them, counted with the batch."""
        return None if (first := self._first_with_shape()) is None else first.further_axes

    def _first_with_shape(self) -> Layer | None:
        """The first layer that asks for a shape or makes another of it."""
        for _, layer in self._flat():
            if layer.input_shape is not None or type(layer).output_shape is not Layer.output_shape:
                return layer
        return None

    @property
    def takes(self) -> str:  # type: ignore[override]
        """The kind of numbers that x is made of: the first layer says it."""
        return self.layers[0].takes if self.layers else "floats"

    @property
    def vocabulary(self) -> int | None:  # type: ignore[override]
        """How many integers the first layer knows, where it takes them."""
        return self.layers[0].vocabulary if self.layers else None

    def _parts(self, prefix: str = "") -> list[tuple[str, Layer]]:
        """The layers as they follow one another; itself where a subclass has a forward or backward of its own."""
        return self._flat(prefix) if self._runs_as(Chain) else super()._parts(prefix)

    def _flat(self, prefix: str = "") -> list[tuple[str, Layer]]:
        """The `parts` of its layers."""
        return [part for i, layer in enumerate(self.layers) for part in layer._parts(f"{prefix}{i}.")]

    def _flat_caches(self, caches: Iterable[Any]) -> list[Any]:
        """The caches of `_flat`, from those of its layers."""
        found: list[Any] = []
        for layer, cache in zip(self.layers, caches, strict=True):
            if isinstance(layer, Chain) and all(part is not layer for _, part in layer._parts()):
                found += layer._flat_caches(layer.kept(cache)[0])
            else:
                found.append(cache)
        return found

    def _axes(self, caches: Iterable[Any]) -> list[int]:
        """What `idle_parameters` asks about, from the caches of the layers."""
        parts = zip(self._flat(), self._flat_caches(caches), strict=True)
        return [len(cache[1]) if type(layer) is Dense else 2 for (_, layer), cache in parts]

    def idle_parameters(self, axes: Sequence[int] | None = None) -> list[str]:
        """`idle_parameters` of its layers."""
        return idle_parameters(self._flat(), axes)


def idle_parameters(parts: Sequence[tuple[str, Layer]], axes: Sequence[int] | None = None) -> list[str]:
    """The names of the parameters that have no effect in training: they add the same to every row, at each position
    of a channel, and a BatchNorm behind them, or behind layers that keep it the same, subtracts the batch's mean.

    `axes` is how many axes the output of each part has; without it they are matrices. Dense adds along the last
    axis, and of an x of more axes BatchNorm subtracts along another.

    The gradient of such a bias or beta is 0, and `backward` returns exactly that. Its sum over the rows would be
    rounding, which Adam, dividing by the gradient's own size, turns into full steps that differ between backends.
    """
    names: list[str] = []
    subtracted = False  # whether what is added to every row alike is, further on
    for (prefix, layer), n in zip(reversed(parts), reversed(axes or [2] * len(parts)), strict=True):
        kind = type(layer)
        by_channel = kind is not Dense or n == 2
        if subtracted and by_channel and kind in SHIFTS:
            names.append(f"{prefix}.{SHIFTS[kind]}")
        subtracted = (kind is BatchNorm and layer.trainable) or (subtracted and by_channel and kind in KEEPING)
    return names


def shapes_of(layer: Layer) -> list[Shape]:
    """The shapes of x that a layer with an `input_shape` takes: the shortest, and with one and two further axes."""
    shape: Shape = ("N", *(layer.input_shape or ()))
    at = layer.further_axes
    return [shape] if at is None else [(*shape[:at], *[None] * n, *shape[at:]) for n in (0, 1, 2)]


def check_fit(container: Container) -> None:
    """Refuse a container whose `output_shape` takes none of the shapes that it seems to, for the first's reason."""
    if container.input_shape is None:
        return
    errors = []
    for shape in (container.input_shape, *shapes_of(container)[1:]):
        try:
            container.output_shape(shape)
            return
        except ValueError as error:
            errors.append(error)
        except TypeError:  # from a length that is not known
            if None not in shape:
                raise
            return
    raise errors[0]


def remedy(given: object) -> str:
    """What to do with something that stands where a layer is expected."""
    if isinstance(given, type):
        return f": call the class, {given.__name__}(...)"
    if isinstance(given, (list, tuple)):
        return "; the layers of a list are given one by one: Sequential(*layers)"
    return ""
