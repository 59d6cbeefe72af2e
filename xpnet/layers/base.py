"""What a layer is: parameters and running statistics, and three pure functions of them."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..backends import Array, LayerArrays, Namespace, NetworkArrays, ReadOnlyDict, floating
from ..common.checks import flag, kind_of, mapping_from, pair_from
from ..common.publication import published
from ..common.settings import Configured

if TYPE_CHECKING:
    from numpy.random import Generator

Shape = tuple[int | str | None, ...]  # a letter or None for the batch, None for a length not known


ARRAYS = "params", "state"
FUNCTIONS = "forward", "backward", "next_state"


class NotYet(ReadOnlyDict):
    """The arrays of a layer that has none so far: empty, unchangeable, and clear about what is missing."""

    remedy = "assign the whole dict, as in layer.params = {name: array}: this one is shared by all layers"

    def __missing__(self, name: str) -> Array:
        raise RuntimeError(
            f"a layer has no {name} yet: call net.initialize(backend=...) first; a layer that another one calls is to "
            "be an attribute of it, alone or in a list"
        )


NOT_YET = NotYet()


class Collected:
    """`params` or `state` of a layer that holds layers: theirs, by name. One that holds none has its own dict instead,
    among its attributes, where Python looks first.
    """

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
    """The base of every layer. Your own defines `forward` and `backward`, and of the other methods those it needs.

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

    params: dict[str, Array] = Collected("params")  # type: ignore[assignment]  # assigned ones hide it
    state: dict[str, Array] = Collected("state")  # type: ignore[assignment]
    least_state: ClassVar[Mapping[str, float]] = {}  # of a statistic's entries, such as 0 of a variance
    input_shape: Shape | None = None  # without the batch, where the layer has one: the shortest that it takes
    further_axes: int | None = None  # where an x of more axes has them, counted with the batch: 1, behind the batch
    takes: str = "floats"  # what x is made of: of the network's dtype, or "integers" of the library's default one
    vocabulary: int | None = None  # of a layer that takes integers, how many it knows, from 0; None leaves them alone
    decays: bool = True  # whether its weights, of two axes or more, do where a decay is of weights alone
    smallest_batch: int = 1  # rows; of fewer it may refuse to be trained, in its forward
    formula: tuple[str, str] | None = None  # of forward and of backward, in plain text, for `net.explain`

    _trainable = True

    @property
    def trainable(self) -> bool:
        """Whether training changes the parameters; of a layer that holds others, whether any of them is trained.

        Setting it freezes or thaws all of them.
        """
        return any(leaf._trainable for _, leaf in self._leaves())

    @trainable.setter
    def trainable(self, value: bool) -> None:
        hint = ": an activation is a layer of its own, such as ReLU()"  # where Keras's layers take one by its name
        for child in self._children().values():
            child.trainable = value
        self._trainable = flag(f"{type(self).__name__}: trainable", value, hint)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ARRAYS:
            if self._children():
                raise AttributeError(
                    f"{name} of a layer that holds layers are theirs: set it there, or all with set_{name}"
                )
            if isinstance(held := vars(self).get(name), LayerArrays):
                value = held.replaced(value)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files of objects are made from: the arrays in plain dicts, copies of the layers within."""
        with published.lock:
            own = {name: mapped(value, Layer.clone) for name, value in vars(self).items()}
        held = {name: value for name, value in own.items() if isinstance(value, LayerArrays)}
        plain = {name: dict(arrays) for name, arrays in held.items()}
        return own | plain | {"_drawn": {name: arrays.drawn for name, arrays in held.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        for name, drawn in own.pop("_drawn", {}).items():
            own[name] = LayerArrays(own[name])
            own[name].drawn = drawn
        vars(self).update(own)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for shapes, arrays in (("param_shapes", "initial_params"), ("state_shapes", "initial_state")):
            if arrays in vars(cls) and shapes not in vars(cls):  # with other arrays go other shapes
                setattr(cls, shapes, vars(Layer)[shapes])

    # --- the layers within it ---

    def _children(self) -> dict[str, "Layer"]:
        """The layers that it holds, by name."""
        return dict(layers_in(vars(self)))

    def _leaves(self, prefix: str = "") -> list[tuple[str, "Layer"]]:
        """Of the tree of layers from here on those that hold no others, each with its name."""
        children = self._children()
        if not children:
            return [(prefix.rstrip("."), self)]
        return [leaf for name, child in children.items() for leaf in child._leaves(f"{prefix}{name}.")]

    def _parts(self, prefix: str = "") -> list[tuple[str, "Layer"]]:
        """The layers that, called one after another, do what this one does, each with its name."""
        return [(prefix.rstrip("."), self)]

    def _branches(self, prefix: str = "") -> list[list[tuple[str, "Layer"]]]:
        """Chains of such layers, each of which is given x, if this one merges their outputs as its `merge` says."""
        return []

    def _runs_as(self, kind: type["Layer"]) -> bool:
        """Whether a training step may call the layers within as that class does: its methods are not overridden."""
        return all(getattr(type(self), name, None) is getattr(kind, name) for name in FUNCTIONS)

    def prefixed(self, **arrays: Mapping[str, Any]) -> dict[str, Any]:
        """Gradients or statistics of the layers within, as its own: `prefixed(dense={"weight": dw})` gives
        {"dense.weight": dw}. Of layers in a list: `prefixed(**{"blocks.0": ...})`.
        """
        named = {child: mapping_from(self, "prefixed", own) for child, own in arrays.items()}
        return {f"{child}.{name}": a for child, own in named.items() for name, a in own.items()}

    def _of_children(self, method: str, *arguments: Any) -> dict[str, Any]:
        """What a method gives for each of the layers within, by name."""
        given = {n: mapping_from(c, method, getattr(c, method)(*arguments)) for n, c in self._children().items()}
        return self.prefixed(**given)

    # --- the arrays to start from ---

    def initial_params(self, rng: "Generator") -> dict[str, np.ndarray]:
        """The parameters to start from, NumPy arrays drawn from `rng`: here those of the layers within, if any."""
        return self._of_children("initial_params", rng)

    def initial_state(self, rng: "Generator") -> dict[str, np.ndarray]:
        """The running statistics to start from: here those of the layers within, if any."""
        return self._of_children("initial_state", rng)

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `initial_params`. Where a class has its own, they are drawn to see them; write your own for a
        large layer.
        """
        if type(self).initial_params is Layer.initial_params:
            return self._of_children("param_shapes")
        return {name: np.shape(a) for name, a in self.initial_params(np.random.default_rng(0)).items()}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `initial_state`."""
        if type(self).initial_state is Layer.initial_state:
            return self._of_children("state_shapes")
        return {name: np.shape(a) for name, a in self.initial_state(np.random.default_rng(0)).items()}

    # --- the three functions ---

    @abstractmethod
    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        """The output y for input x, and the cache that `backward` takes; `training` is for layers that then differ."""

    @abstractmethod
    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        """From dy = dL/dy: dx = dL/dx, and the gradients dL/dp under the names and in the shapes of `params`."""

    def backward_params(self, dy: Array, cache: Any) -> dict[str, Array]:
        """The gradients alone, where nobody needs dx; worth overriding where dx costs much."""
        grads: dict[str, Array] = pair_from(self, "backward", self.backward(dy, cache))[1]
        return grads

    def _infer(self, x: Array) -> Array:
        """The output of `forward` in inference."""
        y: Array = pair_from(self, "forward", self.forward(x))[0]
        return y

    def next_state(self, cache: Any) -> dict[str, Array]:
        """The running statistics after the call that made `cache`."""
        state = self.state
        if state and (holder := next(iter(self._children()), None)):
            raise TypeError(
                f"{self!r} holds layers with running statistics and has no next_state, so they would never change: "
                f"write one, as in return self.prefixed({holder}=self.{holder}.next_state(its_cache))"
            )
        return state

    @classmethod
    def _tells_shape(cls) -> bool:
        """Whether `output_shape` belongs to its `forward`: not where a class of the user's has only that of its own."""
        if cls.__module__.partition(".")[0] == __name__.partition(".")[0]:
            return True
        return cls._describes("output_shape", "forward")

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of y for an x of this shape, with or without the batch axis; ValueError for an x it cannot take."""
        check_shape(self, input_shape)
        return input_shape

    # --- the arrays ---

    def assign_params(self, params: Mapping[str, Array]) -> None:
        """Take these parameters as they are, in the order of those that are there: the vector of all keeps its own."""
        with published:
            for leaf, own in self._shares(params):
                leaf._take("params", own) if leaf is self else leaf.assign_params(own)

    def assign_state(self, state: Mapping[str, Array]) -> None:
        """Take these running statistics as they are, in the order of those that are there."""
        with published:
            for leaf, own in self._shares(state):
                leaf._take("state", own) if leaf is self else leaf.assign_state(own)

    def _take(self, kind: str, arrays: dict[str, Array]) -> None:
        held = vars(self).get(kind, NOT_YET)
        vars(self)[kind] = LayerArrays({name: arrays[name] for name in held if name in arrays} | arrays)

    def _shares(self, arrays: Mapping[str, Array]) -> list[tuple["Layer", dict[str, Array]]]:
        """Each leaf with its share of these arrays, under its own names; leaves without one left out."""
        leaves = dict(self._leaves())
        shares: dict[str, dict[str, Array]] = {prefix: {} for prefix in leaves}
        for name, a in arrays.items():
            prefix, own = "", name
            while prefix not in shares and own:
                more, _, own = own.partition(".")
                prefix = f"{prefix}.{more}" if prefix else more
            if own:
                shares[prefix][own] = a
        return [(leaves[prefix], own) for prefix, own in shares.items() if own]

    @property
    def as_drawn(self) -> bool:
        """Whether its arrays are those that `initialize` drew: not trained, loaded or set."""
        return all(held.drawn for held in self._held())

    @as_drawn.setter
    def as_drawn(self, value: bool) -> None:
        for held in self._held():
            held.drawn = value

    def _held(self) -> list[LayerArrays]:
        found = [vars(leaf).get(kind) for _, leaf in self._leaves() for kind in ARRAYS]
        return [arrays for arrays in found if isinstance(arrays, LayerArrays)]

    def _check_drawn(self, arrays: Mapping[str, Any]) -> None:
        """Refuse initial arrays of a layer that holds layers, if they are none of theirs."""
        theirs = sum(len(own) for _, own in self._shares(arrays))
        if theirs < len(arrays):
            raise TypeError(
                f"{self!r} holds layers, and draws arrays that are none of theirs, among {', '.join(arrays)}. A layer "
                "has arrays or layers, not both: put its arrays into a layer of their own, and hold that"
            )

    def clone(self) -> Self:
        """A layer with the same settings and, so far, the same arrays; assigning to one leaves the other alone."""
        twin = copy.copy(self)
        vars(twin).update({name: arrays.copy() for name in ARRAYS if type(arrays := vars(twin).get(name)) is dict})
        return twin

    # --- for the layers of this package ---

    def check_input(self, x: Array, features: int, axis: int = -1) -> Namespace:
        """The array API functions for x, if it is a floating array (n, ...) with so many features along the axis."""
        xp = floating(x, self)
        shape = x.shape
        if len(shape) < 2 or shape[axis] != features:
            raise self._misfit_of(shape, features, axis)
        return xp

    def check_features(self, shape: Shape, features: int) -> None:
        """Refuse a shape whose last axis is not `features` long."""
        check_shape(self, shape)
        if not shape or shape[-1] not in (features, None):
            raise self._misfit_of(shape, features)

    def _misfit_of(self, shape: Shape, features: int, axis: int = -1) -> ValueError:
        """The error for a shape without so many features along the axis."""
        wanted = [str(features)] if len(shape) < 3 else [str(features), "..."] if axis == 1 else ["...", str(features)]
        hint = ""
        if axis == 1 and len(shape) > 2 and shape[-1] == features:
            order = ", ".join(map(str, (len(shape) - 1, *range(1, len(shape) - 1))))
            hint = f": its channels are last, (n, ..., {features}); put Transpose({order}) before it"
        return ValueError(f"{self!r}: expected input of shape (n, {', '.join(wanted)}), got {tuple(shape)}{hint}")

    def kept(self, cache: Any) -> tuple[Any, ...]:
        """What forward kept in `cache` = (self, shape of y, *kept), which must be this layer's."""
        if not (isinstance(cache, tuple) and len(cache) >= 2 and cache[0] is self):
            given = "another's" if isinstance(cache, tuple) else kind_of(cache)
            raise ValueError(f"{self!r}: expected the cache that this layer's forward gave, got {given}")
        return cache[2:]

    def saved(self, cache: Any, dy: Array) -> tuple[Any, ...]:
        """`kept` of the cache of the forward that dy belongs to."""
        kept = self.kept(cache)
        floating(dy, self)
        if tuple(dy.shape) != tuple(cache[1]):
            raise ValueError(f"{self!r}: backward expected dy of shape {tuple(cache[1])}, got {tuple(dy.shape)}")
        return kept


def check_shape(who: object, shape: object) -> None:
    """Refuse what is no tuple or list, such as an array in place of its shape."""
    if not isinstance(shape, (tuple, list)):
        raise TypeError(f"{who!r}: expected a shape such as (32, 64), got {kind_of(shape)}")


# --- layers among attributes ------------------------------------------------------------------------------------------


def tree(layer: Layer) -> Iterator[Layer]:
    """The layer and all those within it, at any depth."""
    return (each for _, each in named_tree(layer))


def named_tree(layer: Layer, prefix: str = "") -> Iterator[tuple[str, Layer]]:
    """The layer and all those within it, at any depth, each with its name."""
    yield prefix.rstrip("."), layer
    for name, child in layer._children().items():
        yield from named_tree(child, f"{prefix}{name}.")


def layers_in(values: Mapping[str, Any]) -> Iterator[tuple[str, Layer]]:
    """The layers among these values and in their lists, tuples and dicts, each with its name."""
    for name, value in values.items():
        if isinstance(value, Layer):
            yield name, value
        elif isinstance(value, (list, tuple)):
            yield from layers_in({f"{name}.{i}": each for i, each in enumerate(value)})
        elif isinstance(value, dict):
            yield from layers_in({f"{name}.{key}": each for key, each in value.items()})


def mapped(value: Any, function: Callable[[Layer], Any]) -> Any:
    """A value with `function` of the layers in it in their place; the value itself where there are none."""
    if isinstance(value, Layer):
        return function(value)
    if not any(True for _ in layers_in({"": value})):
        return value
    if isinstance(value, dict):
        return {key: mapped(each, function) for key, each in value.items()}
    each = (mapped(each, function) for each in value)
    return tuple(each) if isinstance(value, tuple) else list(each)
