"""What a layer is: parameters and running statistics, and three pure functions of them."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from ..backend import Array, Guarded, Held, Namespace, floating
from ..checks import came, flag, two
from ..settings import Configured

if TYPE_CHECKING:
    from numpy.random import Generator

Shape = tuple[int | str | None, ...]  # a batch axis may be None or a letter


class NotYet(Guarded):
    """The arrays of a layer that has none so far: empty, unchangeable, and clear about what is missing."""

    remedy = "assign the whole dict, as in layer.params = {name: array}: this one is shared by all layers"

    def __missing__(self, name: str) -> Array:
        raise RuntimeError(
            f"a layer has no {name} yet: call net.initialize(backend=...) first; a layer that another one holds as "
            "an attribute is not found by it: derive the other from xn.Sequential, with super().__init__(*layers)"
        )


ARRAYS = "params", "state"


class Layer(Configured, ABC):
    """The base of every layer. Your own needs `forward` and `backward`, and those of the rest that it has a use for.

    A layer holds `params` and `state` (dicts of arrays) and its settings, nothing else. A call never changes it: what
    backward needs travels in the cache, and only training assigns new parameters and statistics. Settings are kept
    under their constructor arguments' names; `repr`, saving and copying rely on it. `trainable = False` freezes it: its
    parameters stay as they are, and the gradient passes on.
    """

    params: dict[str, Array] = NotYet()
    state: dict[str, Array] = NotYet()
    least_state: ClassVar[Mapping[str, float]] = {}  # of a statistic's entries, such as 0 of a variance
    input_shape: Shape | None = None  # without the batch, where the layer takes one shape only
    smallest_batch: int = 1  # the rows it needs at least to be trained

    _trainable = True

    @property
    def trainable(self) -> bool:
        """Whether training changes the parameters."""
        return self._trainable

    @trainable.setter
    def trainable(self, value: bool) -> None:
        hint = ": an activation is a layer of its own, such as ReLU()"  # where Keras's layers take one by its name
        self._trainable = flag(f"{type(self).__name__}: trainable", value, hint)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ARRAYS and isinstance(held := vars(self).get(name), Held):
            value = held.replaced(value)
        super().__setattr__(name, value)

    def __getstate__(self) -> dict[str, Any]:
        """What copies and files of objects are made from: the arrays in plain dicts."""
        own = vars(self)
        held = {name: arrays for name in ARRAYS if isinstance(arrays := own.get(name), Held)}
        plain = {name: dict(arrays) for name, arrays in held.items()}
        return own | plain | {"_drawn": {name: arrays.drawn for name, arrays in held.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        own = dict(state)
        for name, drawn in own.pop("_drawn", {}).items():
            own[name] = Held(own[name])
            own[name].drawn = drawn
        vars(self).update(own)

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for shapes, arrays in (("param_shapes", "initial_params"), ("state_shapes", "initial_state")):
            if arrays in vars(cls) and shapes not in vars(cls):  # with other arrays go other shapes
                setattr(cls, shapes, vars(Layer)[shapes])

    def initial_params(self, rng: "Generator") -> dict[str, np.ndarray]:
        """The parameters to start from, NumPy arrays drawn from `rng`; {} if there are none."""
        return {}

    def initial_state(self, rng: "Generator") -> dict[str, np.ndarray]:
        """The running statistics to start from; {} if there are none."""
        return {}

    def param_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `initial_params`. Here they are drawn to see them; write your own for a large layer."""
        return {name: np.shape(a) for name, a in self.initial_params(np.random.default_rng(0)).items()}

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        """The shapes of `initial_state`."""
        return {name: np.shape(a) for name, a in self.initial_state(np.random.default_rng(0)).items()}

    @abstractmethod
    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        """The output y for input x, and the cache that `backward` takes; `training` is for layers that then differ."""

    @abstractmethod
    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        """From dy = dL/dy: dx = dL/dx, and the gradients dL/dp under the names and in the shapes of `params`."""

    def backward_params(self, dy: Array, cache: Any) -> dict[str, Array]:
        """The gradients alone, where nobody needs dx; worth overriding where dx costs much."""
        grads: dict[str, Array] = two(self, "backward", self.backward(dy, cache))[1]
        return grads

    def next_state(self, cache: Any) -> dict[str, Array]:
        """The running statistics after the call that made `cache`."""
        return self.state

    def output_shape(self, input_shape: Shape) -> Shape:
        """The shape of y for an x of this shape, with or without the batch axis; ValueError for an x it cannot take."""
        check_shape(self, input_shape)
        return input_shape

    def assign_params(self, params: Mapping[str, Array]) -> None:
        """Take these parameters as they are, in the order of those that are there: the vector of all keeps its own."""
        vars(self)["params"] = Held({name: params[name] for name in self.params if name in params} | dict(params))

    def assign_state(self, state: Mapping[str, Array]) -> None:
        """Take these running statistics as they are, in the order of those that are there."""
        vars(self)["state"] = Held({name: state[name] for name in self.state if name in state} | dict(state))

    @property
    def as_drawn(self) -> bool:
        """Whether its arrays are those that `initialize` drew: not trained, loaded or set."""
        return all(isinstance(arrays, Held) and arrays.drawn for arrays in (self.params, self.state) if arrays)

    @as_drawn.setter
    def as_drawn(self, value: bool) -> None:
        for arrays in (self.params, self.state):
            if isinstance(arrays, Held):
                arrays.drawn = value

    def clone(self) -> Self:
        """A layer with the same settings and, so far, the same arrays; assigning to one leaves the other alone."""
        twin = copy.copy(self)
        vars(twin).update({name: arrays.copy() for name in ARRAYS if type(arrays := vars(twin).get(name)) is dict})
        return twin

    # --- for the layers of this package ---

    def check_matrix(self, x: Array, features: int) -> Namespace:
        """The array API functions for x, if it is a floating array of shape (n, features)."""
        xp = floating(x, self)
        shape = x.shape
        if len(shape) != 2 or shape[1] != features:
            raise ValueError(f"{self!r}: expected input of shape (n, {features}), got {tuple(shape)}")
        return xp

    def check_features(self, shape: Shape, features: int) -> None:
        """Refuse a shape whose last axis is not `features` long."""
        check_shape(self, shape)
        if not shape or shape[-1] != features:
            raise ValueError(f"{self!r}: expected input of shape (n, {features}), got {tuple(shape)}")

    def kept(self, cache: Any) -> tuple[Any, ...]:
        """What forward kept in `cache` = (self, shape of y, *kept), which must be this layer's."""
        if not (isinstance(cache, tuple) and len(cache) >= 2 and cache[0] is self):
            given = "another's" if isinstance(cache, tuple) else came(cache)
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
        raise TypeError(f"{who!r}: expected a shape such as (32, 64), got {came(shape)}")
