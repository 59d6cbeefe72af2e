"""The base class of layers: parameters and running statistics, and three pure functions of them."""

import copy
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np

from ..backends import Array, LayerArrays, Namespace, NetworkArrays, ReadOnlyDict, floating
from ..common.checks import flag, kind_of, mapping_from, pair_from
from ..common.publication import published
from ..common.settings import Configured

Shape = tuple[int | str | None, ...]  # a letter or None for the batch, None for an unknown size

ARRAYS = "params", "state"
FUNCTIONS = "forward", "backward", "next_state"


class NotYet(ReadOnlyDict):
    """The `params` and `state` of a layer without arrays: an empty dict whose errors say what is missing."""

    remedy = "assign the whole dict, as in layer.params = {name: array}: this one is shared by all layers"

    def __missing__(self, name: str) -> Array:
        raise RuntimeError(
            f"a layer has no {name} yet: call net.initialize(backend=...) first; a layer that another one calls must "
            "be an attribute of it, alone or in a list"
        )


NOT_YET = NotYet()


class Collected:
    """The `params` or `state` of a layer that holds layers, all of theirs by name; a layer's own dict hides it."""

    def __init__(self, kind: str):
        self.kind = kind

    def __get__(self, layer: "Layer | None", cls: type) -> dict[str, Array]:
        if layer is None or not layer._children():
            return NOT_YET
        with published.lock:
            return NetworkArrays(
                self.kind, {f"{p}.{k}": a for p, leaf in layer._leaves() for k, a in getattr(leaf, self.kind).items()}
            )


class Layer(Configured, ABC):
    """The base class of layers. Your own defines `forward` and `backward`, and other methods as needed.

    A layer holds `params` and `state` (dicts of arrays), its settings, and the layers within it. A call never changes
    it: the cache carries what backward needs, and only training assigns new parameters and statistics. Keep settings
    under the names of the constructor's arguments; `repr`, saving and copying rely on it. `trainable = False` freezes
    the layer: its parameters stay as they are, and the gradient still flows through it.

    A layer may hold other layers instead of arrays, as attributes, alone or in a list, tuple or dict. Its `params` and
    `state` are then those of these layers, named after the attributes: "attention.weight", "blocks.0.gamma". Its
    forward and backward call theirs, and `prefixed` names their gradients or, in `next_state`, their statistics:

        def backward(self, dy, cache):
            dx, grads = self.dense.backward(dy, cache)
            return dx + dy, self.prefixed(dense=grads)

    A first layer that takes ids, such as those of words, sets `takes = "integers"`: its x has the library's default
    integer dtype instead of the network's dtype, and its backward returns None for dx. If it sets `vocabulary`, the
    number of ids counted from 0, other ids are refused.

    >>> class Square(xn.Layer):
    ...     def forward(self, x, training=False):
    ...         return x**2, x
    ...     def backward(self, dy, x):
    ...         return 2 * x * dy, {}
    >>> sorted(xn.check_gradients(Square(), [[1.0, 2.0]]))
    ['x']
    """

    params: dict[str, Array] = Collected("params")  # type: ignore[assignment]  # a layer's own dict hides it
    state: dict[str, Array] = Collected("state")  # type: ignore[assignment]
    least_state: ClassVar[Mapping[str, float]] = {}  # lower bounds of statistics by name, such as 0 for a variance
    input_shape: Shape | None = None  # the shortest shape of a row of x, without the batch; None if any will do
    further_axes: int | None = None  # the axis at which x may have more axes, the batch being 0; None if it may not
    takes: str = "floats"  # or "integers": x then has the library's default integer dtype, not the network's dtype
    vocabulary: int | None = None  # the number of ids, counted from 0, of a layer of integers; None: no check
    decays: bool = True  # whether weight decay applies to its parameters with two axes or more
    smallest_batch: int = 1  # rows: with fewer, its forward may raise in training
    formula: tuple[str, str] | None = None  # of forward and backward, as text for `net.explain`

    _trainable = True

    @property
    def trainable(self) -> bool:
        """Whether training changes the parameters; of a layer that holds others, whether it changes any of theirs.

        Setting it freezes or unfreezes all of them.
        """
        return any(leaf._trainable for _, leaf in self._leaves())

    @trainable.setter
    def trainable(self, value: bool) -> None:
        hint = ": an activation is a layer of its own, such as ReLU()"  # Keras's layers take it by name here
        for child in self._children().values():
            child.trainable = value
        self._trainable = flag(f"{type(self).__name__}: trainable", value, hint)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ARRAYS:
            if self._children():
                raise AttributeError(
                    f"the {name} of a layer that holds layers are those of the layers: set them there, or all with "
                    f"set_{name}"
                )
            if isinstance(arrays := vars(self).get(name), LayerArrays):
                value = arrays.replaced(value)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """Return the attributes for copies and pickles, with arrays in plain dicts and clones of the layers within."""
        with published.lock:
            attributes = {name: mapped(value, Layer.clone) for name, value in vars(self).items()}
        arrays = {name: value for name, value in attributes.items() if isinstance(value, LayerArrays)}
        plain = {name: dict(by_name) for name, by_name in arrays.items()}
        return attributes | plain | {"_drawn": {name: by_name.drawn for name, by_name in arrays.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        attributes = dict(state)
        for name, drawn in attributes.pop("_drawn", {}).items():
            attributes[name] = LayerArrays(attributes[name])
            attributes[name].drawn = drawn
        vars(self).update(attributes)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for shapes, arrays in (("param_shapes", "initial_params"), ("state_shapes", "initial_state")):
            if arrays in vars(cls) and shapes not in vars(cls):  # inherited shapes would not fit the class's arrays
                setattr(cls, shapes, vars(Layer)[shapes])

    # --- the layers within it ---

    def _children(self) -> dict[str, "Layer"]:
        """Return the layers that this layer holds, by name."""
        return dict(layers_in(vars(self)))

    def _leaves(self, prefix: str = "") -> list[tuple[str, "Layer"]]:
        """Return the layers at any depth that hold no others, or this one if it holds none, each with its name."""
        children = self._children()
        if not children:
            return [(prefix.rstrip("."), self)]
        return [leaf for name, child in children.items() for leaf in child._leaves(f"{prefix}{name}.")]

    def _parts(self, prefix: str = "") -> list[tuple[str, "Layer"]]:
        """Return layers that, called in sequence, compute the same as this one, each with its name."""
        return [(prefix.rstrip("."), self)]

    def _branches(self, prefix: str = "") -> list[list[tuple[str, "Layer"]]]:
        """Return sequences of layers, all applied to x, whose outputs this layer merges by `merge`; [] for others."""
        return []

    def _runs_as(self, kind: type["Layer"]) -> bool:
        """Whether a training step may call the layers within as class `kind` does: no method is overridden."""
        return all(getattr(type(self), name, None) is getattr(kind, name) for name in FUNCTIONS)

    def prefixed(self, **arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Return gradients or statistics of the layers within under their full names: `prefixed(dense={"weight": dw})`
        gives {"dense.weight": dw}. For layers in a list: `prefixed(**{"blocks.0": ...})`.
        """
        checked = {child: mapping_from(self, "prefixed", by_name) for child, by_name in arrays.items()}
        return {f"{child}.{name}": a for child, by_name in checked.items() for name, a in by_name.items()}

    def _of_children(self, method: str, *arguments: Any) -> dict[str, Any]:
        """Call a method of each of the layers within; return all results under their full names."""
        results = {n: mapping_from(c, method, getattr(c, method)(*arguments)) for n, c in self._children().items()}
        return self.prefixed(**results)

    # --- initial arrays ---

    def initial_params(self, rng: "np.random.Generator") -> dict[str, np.ndarray]:
        """Return the initial parameters, NumPy arrays drawn from `rng`; by default those of the layers within."""
        return self._of_children("initial_params", rng)

    def initial_state(self, rng: "np.random.Generator") -> dict[str, np.ndarray]:
        """Return the initial running statistics; by default those of the layers within."""
        return self._of_children("initial_state", rng)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `initial_params`. By default, a class with its own `initial_params` draws them for this;
        override it for a large layer.
        """
        if type(self).initial_params is Layer.initial_params:
            return self._of_children("param_shapes")
        return {name: np.shape(a) for name, a in self.initial_params(np.random.default_rng(0)).items()}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shapes of `initial_state`."""
        if type(self).initial_state is Layer.initial_state:
            return self._of_children("state_shapes")
        return {name: np.shape(a) for name, a in self.initial_state(np.random.default_rng(0)).items()}

    # --- the three functions ---

    @abstractmethod
    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        """Return y for input x, and the cache for `backward`; some layers compute another y in `training`."""

    @abstractmethod
    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        """Return, for dy = dL/dy, dx = dL/dx and the gradients dL/dp under the names and in the shapes of `params`."""

    def backward_params(self, dy: Array, cache: Any) -> dict[str, Array]:
        """Return the gradients alone; worth overriding if dx takes long to compute."""
        grads: dict[str, Array] = pair_from(self, "backward", self.backward(dy, cache))[1]
        return grads

    def _infer(self, x: Array) -> Array:
        """Return the output of `forward` in inference."""
        y: Array = pair_from(self, "forward", self.forward(x))[0]
        return y

    def next_state(self, cache: Any) -> dict[str, Array]:
        """Return the running statistics after the call of forward that returned `cache`."""
        state = self.state
        if state and (holder := next(iter(self._children()), None)):
            raise TypeError(
                f"{self!r} holds layers with running statistics and has no next_state, so they would never change: "
                f"write one, as in return self.prefixed({holder}=self.{holder}.next_state(its_cache))"
            )
        return state

    @classmethod
    def _tells_shape(cls) -> bool:
        """Whether `output_shape` fits `forward`: not if a user's class overrides `forward` alone."""
        if is_ours(cls):
            return True
        return cls._describes("output_shape", "forward")

    def output_shape(self, input_shape: Shape) -> Shape:
        """Return y's shape for an x of this shape, with or without the batch. Raises ValueError for a misfit."""
        check_shape(self, input_shape)
        return input_shape

    # --- the arrays ---

    def assign_params(self, params: Mapping[str, Array]) -> None:
        """Assign these parameters without copying. Present ones keep their order, on which the flat vector depends."""
        with published:
            for leaf, by_name in self._shares(params):
                leaf._take("params", by_name) if leaf is self else leaf.assign_params(by_name)

    def assign_state(self, state: Mapping[str, Array]) -> None:
        """Assign these running statistics without copying. Present ones keep their order."""
        with published:
            for leaf, by_name in self._shares(state):
                leaf._take("state", by_name) if leaf is self else leaf.assign_state(by_name)

    def _take(self, kind: str, arrays: dict[str, Array]) -> None:
        present = vars(self).get(kind, NOT_YET)
        vars(self)[kind] = LayerArrays({name: arrays[name] for name in present if name in arrays} | arrays)

    def _shares(self, arrays: Mapping[str, Array]) -> list[tuple["Layer", dict[str, Array]]]:
        """Return each leaf that has any of these arrays, with its arrays by their names in the leaf."""
        leaves = dict(self._leaves())
        shares: dict[str, dict[str, Array]] = {prefix: {} for prefix in leaves}
        for name, a in arrays.items():
            prefix, rest = "", name
            while prefix not in shares and rest:
                more, _, rest = rest.partition(".")
                prefix = f"{prefix}.{more}" if prefix else more
            if rest:
                shares[prefix][rest] = a
        return [(leaves[prefix], share) for prefix, share in shares.items() if share]

    @property
    def as_drawn(self) -> bool:
        """Whether all arrays are as `initialize` drew them: not trained, loaded or set."""
        return all(arrays.drawn for arrays in self._layer_arrays())

    @as_drawn.setter
    def as_drawn(self, value: bool) -> None:
        for arrays in self._layer_arrays():
            arrays.drawn = value

    def _layer_arrays(self) -> list[LayerArrays]:
        dicts = [vars(leaf).get(kind) for _, leaf in self._leaves() for kind in ARRAYS]
        return [arrays for arrays in dicts if isinstance(arrays, LayerArrays)]

    def _check_drawn(self, arrays: Mapping[str, Any]) -> None:
        """Raise TypeError for initial arrays of a layer that holds layers, unless they belong to these layers."""
        theirs = sum(len(share) for _, share in self._shares(arrays))
        if theirs < len(arrays):
            raise TypeError(
                f"{self!r} holds layers, and draws arrays that are none of theirs, among {', '.join(arrays)}. A layer "
                "has arrays or layers, not both: put its arrays into a layer of their own, and hold that"
            )

    def clone(self) -> Self:
        """Return a copy with the same settings and arrays; assigning arrays to one does not affect the other."""
        twin = copy.copy(self)
        vars(twin).update({name: arrays.copy() for name in ARRAYS if type(arrays := vars(twin).get(name)) is dict})
        return twin

    # --- for the layers of this package ---

    def check_input(self, x: Array, features: int, axis: int = -1) -> Namespace:
        """Return the functions for x. Raises TypeError or ValueError unless it is floating, with these features."""
        xp = floating(x, self)
        shape = x.shape
        if len(shape) < 2 or shape[axis] != features:
            raise self._misfit_of(shape, features, axis)
        return xp

    def check_features(self, shape: Shape, features: int) -> None:
        """Raise ValueError for a shape whose last axis does not have `features` entries."""
        check_shape(self, shape)
        if not shape or shape[-1] not in (features, None):
            raise self._misfit_of(shape, features)

    def _misfit_of(self, shape: Shape, features: int, axis: int = -1) -> ValueError:
        """Return the error for a shape without so many features along the axis."""
        wanted = [str(features)] if len(shape) < 3 else [str(features), "..."] if axis == 1 else ["...", str(features)]
        hint = ""
        if axis == 1 and len(shape) > 2 and shape[-1] == features:
            order = ", ".join(map(str, (len(shape) - 1, *range(1, len(shape) - 1))))
            hint = f": its channels are last, (n, ..., {features}); put Transpose({order}) before it"
        return ValueError(f"{self!r}: expected input of shape (n, {', '.join(wanted)}), got {tuple(shape)}{hint}")

    def kept(self, cache: Any) -> tuple[Any, ...]:
        """Return what forward kept in `cache` = (self, shape of y, *kept). Raises ValueError for another's cache."""
        if not (isinstance(cache, tuple) and len(cache) >= 2 and cache[0] is self):
            got = "another's" if isinstance(cache, tuple) else kind_of(cache)
            raise ValueError(f"{self!r}: expected the cache that this layer's forward gave, got {got}")
        return cache[2:]

    def saved(self, cache: Any, dy: Array) -> tuple[Any, ...]:
        """As `kept`, but also raise ValueError if dy does not have the shape of y."""
        kept = self.kept(cache)
        floating(dy, self)
        if tuple(dy.shape) != tuple(cache[1]):
            raise ValueError(f"{self!r}: backward expected dy of shape {tuple(cache[1])}, got {tuple(dy.shape)}")
        return kept


def check_shape(who: object, shape: object) -> None:
    """Raise TypeError unless `shape` is a tuple or list, such as for an array in place of its shape."""
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"{who!r}: expected a shape such as (32, 64), got {kind_of(shape)}")


# --- layers among attributes ------------------------------------------------------------------------------------------


def is_ours(part: object) -> bool:
    """Whether a class, or the class of an object, is one of this package."""
    cls = part if isinstance(part, type) else type(part)
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def settings_of(*layers: Layer) -> list[Any]:
    """Return the attributes of layers except for their arrays, by which `are_same` tells whether one has changed."""
    return [value for layer in layers for name, value in vars(layer).items() if name not in ARRAYS]


def are_same(before: Sequence[Any], now: Sequence[Any]) -> bool:
    """Whether these are the same objects. They are not compared by their values, since some may be arrays."""
    return len(before) == len(now) and all(map(operator.is_, before, now))


def tree(layer: Layer) -> Iterator[Layer]:
    """Iterate over the layer and all layers within it, at any depth."""
    return (each for _, each in named_tree(layer))


def named_tree(layer: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """Iterate over the layer and all layers within it, at any depth, each with its name."""
    yield prefix.rstrip("."), layer
    for name, child in layer._children().items():
        yield from named_tree(child, f"{prefix}{name}.")


def layers_in(values: Mapping[str, Any]) -> Iterator[tuple[str, Layer]]:
    """Iterate over the layers among these values and in lists, tuples and dicts of them, each with its name."""
    for name, value in values.items():
        if isinstance(value, Layer):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from layers_in({f"{name}.{i}": each for i, each in enumerate(value)})
        elif isinstance(value, dict):
            yield from layers_in({f"{name}.{key}": each for key, each in value.items()})


def mapped(value: Any, function: Callable[[Layer], Any]) -> Any:
    """Return a value with each layer in it replaced by `function(layer)`; the value itself if it has no layers."""
    if isinstance(value, Layer):
        return function(value)
    if not any(True for _ in layers_in({"": value})):
        return value
    if isinstance(value, dict):
        return {key: mapped(each, function) for key, each in value.items()}
    each = (mapped(each, function) for each in value)
    return tuple(each) if isinstance(value, tuple) else list(each)
