"""The step for JAX, and inference, compiled as a whole by jax.jit from the layers' own code.

jax.jit traces the layers' forward and backward, the loss, and the optimizer's `limited` and `advance`. Everything that
changes between steps is an argument: the carry, frozen parameters, the rows of the batch, and the numbers of
`Optimizer.coefficients`, which are computed in Python, so that any function may be a schedule.

A compiled step is reused by every later fit in the process with the same key. For xpnet's own layers, losses and
optimizers, the key is their types and settings, without the learning rate, and the names and shapes of parameters.

A user's own layers, losses and optimizers may do things that a compiled step would not repeat: count calls, draw
numbers on the host, look at values. So they are traced twice, on copies. If both traces give the same program and leave
the settings unchanged, it is compiled, and its text is the key; otherwise the layers are called one by one, as in
`Step`. Effects that show in neither, such as printing, or global variables, stay as they were during tracing.
Inference is compiled for xpnet's own layers; with a user's, the layers are called one by one.
"""

import copy
import dataclasses
import functools
import hashlib
import importlib
import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import ops
from ..backends import Array
from ..layers.base import Layer, Shape, are_same, is_ours, mapped, settings_of, tree
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..losses.objective import Objective
from ..optimizers import Optimizer, Slots
from ..training.batches import Batch
from .reference import Carry, Step

jax: Any = importlib.import_module("jax")
jnp: Any = jax.numpy

Group = tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes of the parameters in one vector
Function = Callable[..., Any]
ALONE = 2**14  # entries: a parameter with at least so many is a vector of its own, since joining it would cost more
DONATE = 2**18  # entries: with at least so many in all parameters, a second program overwrites old ones
PROGRAMS = 64  # the number of compiled steps that are kept
SIZE = 7  # the number of the static argument of `Recipe.step`


def training_step(net: Placed, loss: Loss, optimizer: Optimizer, compiled: bool, shape: Shape) -> Step:
    """Return the compiled step, or a `Step` for an optimizer that overrides `update` or `init`."""
    for name in ("update", "init"):
        if getattr(getattr(optimizer, name, None), "__func__", None) is not getattr(Optimizer, name):
            return Step(net, loss, optimizer)
    return CompiledStep(net, loss, optimizer)


known: "weakref.WeakKeyDictionary[Placed, tuple[Any, Function | None]]" = weakref.WeakKeyDictionary()


def infer(net: Placed, x: Array, compiled: bool) -> Array:
    """Return the network's outputs for x by a compiled function or, with a user's layer, by the layers' own code."""
    now = settings_of(*tree(net))
    if net not in known or not are_same(known[net][0], now):
        key = key_of((), net)
        known[net] = now, None if key is None else outputs(Recipe(key, (), without_arrays(net)))
    _, function = known[net]
    y: Array = net._infer(x) if function is None else function(dict(net.params), dict(net.state), x)
    return y


class CompiledStep(Step):
    """A `Step` as one compiled function.

    The `weights` of its carries are a tuple of vectors, one for each large parameter and one for all small ones; their
    `slots` are the number of steps and, under "memory", the optimizer's arrays for each vector.
    """

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer):
        super().__init__(net, loss, optimizer)
        self.parts = self.worker, loss, optimizer
        self.handed, self.of_loss = handed(optimizer), [getattr(part, "__dict__", {}) for part in losses_in(loss)]
        self.compiles = True  # False once a step could not be compiled
        self.fixed = {name: a for name, a in self.worker.params.items() if name not in self.names}
        self.donates = sum(map(math.prod, self.shapes)) >= DONATE
        self._look()

    @functools.cached_property
    def by_layers(self) -> Step:
        """The plain `Step`, for steps that do not compile, for the gradient alone, and to find a fault."""
        return Step(*self.parts)

    def _begin(self) -> Carry:
        pairs = tuple(zip(self.names, self.shapes, strict=True))
        apart = is_ours(self.optimizer)  # xpnet's rules are elementwise, so that parameters may be in several vectors
        alone = [(p,) for p in pairs if apart and math.prod(p[1]) >= ALONE]
        rest = tuple(p for p in pairs if (p,) not in alone)
        self.groups: tuple[Group, ...] = (*alone, rest) if rest else tuple(alone)
        params = self.worker.params
        weights = tuple(ops.join([params[name] for name, _ in group]) for group in self.groups)
        memory = tuple({k: a for k, a in self.optimizer.init(w).items() if k != "step"} for w in weights)
        return Carry(weights, {"step": 0, "memory": memory}, dict(self.worker.state))

    def _look(self) -> None:
        """Note the attributes and the key of the step to compile."""
        self.seen = self._attributes()
        net, loss, optimizer = self.parts
        self.key = key_of(self.groups, net, *losses_in(loss), optimizer)
        self.functions: dict[tuple[Any, ...], Function] = {}

    def _attributes(self) -> list[Any]:
        """Return the attributes of loss and optimizer, which a callback may change."""
        own = [a for name, a in vars(self.optimizer).items() if name not in self.handed]
        return own + [a for attributes in self.of_loss for a in attributes.values()]

    def __call__(self, carry: Carry, batch: Batch) -> tuple[Array, Carry]:
        return self.on_rows(carry, batch, slice(0, batch.x.shape[0]), (self.start, carry))

    def on_rows(self, carry: Carry, batch: Batch, rows: slice, keep: tuple[Carry, ...]) -> tuple[Array, Carry]:
        if self.compiles:
            step, memory = carry.slots["step"], carry.slots["memory"]
            numbers = self.optimizer.coefficients(step)
            size = rows.stop - rows.start
            args = carry.weights, memory, carry.state, self.fixed, numbers, batch, rows.start, size
            function = self._function(self.donates and all(kept is not carry for kept in keep), args)
            if function is not None:
                value, weights, memory, state = function(*args)
                return value, Carry(weights, {"step": step + 1, "memory": memory}, state)
            self.compiles = False
        return self.by_layers(self._flat(carry), batch.rows(rows))

    def _function(self, donate: bool, args: tuple[Any, ...]) -> Function | None:
        """Return the compiled step for such arguments, None if it cannot be compiled."""
        now = self._attributes()
        if not are_same(self.seen, now):  # a callback has changed them
            if self.key is None:
                return None
            self._look()
        *_, (x, y, weight), _, size = args
        signature = donate, x.shape, y.shape, weight is None, size
        if signature not in self.functions:
            recipe = recipe_of(self.key, *self.parts, self.groups, args)
            if recipe is None:
                return None
            self.functions[signature] = program(recipe, donate)
        return self.functions[signature]

    # --- carries ---

    def _flat(self, carry: Carry) -> Carry:
        """Return the carry in the form of `Step`, with one vector."""
        if not isinstance(carry.weights, tuple):
            return carry
        slots = {k: self._joined([own[k] for own in carry.slots["memory"]]) for k in carry.slots["memory"][0]}
        return Carry(self._joined(carry.weights), {"step": carry.slots["step"]} | slots, carry.state)

    def _joined(self, vectors: Sequence[Array]) -> Array:
        arrays = named(vectors, self.groups)
        return ops.join([arrays[name] for name in self.names])

    def finite(self, carry: Carry) -> bool:
        """Whether the parameters and statistics are finite, and not overwritten. Waits for the device."""
        return are_finite(carry.weights, carry.state)

    def sound(self, carry: Carry) -> bool:
        return are_finite(carry.weights, carry.state, carry.slots)

    def gradient(self, weights: Array, batch: Batch) -> tuple[Array, Array]:
        return self.by_layers.gradient(weights, batch)

    def _remember(self, slots: Slots) -> None:
        names = [k for k in slots if k != "step"]
        arrays = [dict(zip(self.names, ops.split(slots[k], self.shapes), strict=True)) for k in names]
        memory = tuple(
            {k: ops.join([own[name] for name, _ in group]) for k, own in zip(names, arrays, strict=True)}
            for group in self.groups
        )
        super()._remember({"step": slots["step"], "memory": memory})

    def slots(self, carry: Carry) -> Slots:
        return self._flat(carry).slots

    def publish(self, carry: Carry, net: Placed, last: bool = False) -> None:
        if not isinstance(carry.weights, tuple):
            return super().publish(carry, net, last)
        params, state = unpacked(carry.weights, carry.state, self.groups)  # copies, since a later step may overwrite it
        net.assign(params, state)
        return None

    def misfit(self, carry: Carry, x: Array) -> str:
        return self.by_layers.misfit(self._flat(carry), x)

    def fault(self, carry: Carry, batch: Batch) -> str:
        return self.by_layers.fault(self._flat(carry), batch)


class UntraceableError(Exception):
    """A user's own layer, loss or optimizer changes while it is traced."""


@dataclasses.dataclass(eq=False)
class Recipe:
    """The network, loss and optimizer to compile a function of, without arrays; recipes with the same key are equal."""

    key: Any
    groups: tuple[Group, ...]
    net: Placed
    loss: Loss = None  # type: ignore[assignment]  # of inference there are no loss and no optimizer
    optimizer: Optimizer = None  # type: ignore[assignment]
    before: Any = None  # settings that tracing must not change; None for xpnet's own classes

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Recipe) and self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def step(
        self,
        weights: tuple[Array, ...],
        memory: tuple[Slots, ...],
        state: dict[str, Array],
        fixed: dict[str, Array],
        numbers: tuple[Any, ...],
        batch: Batch,
        first: Array,
        size: int,
    ) -> tuple[Array, tuple[Array, ...], tuple[Slots, ...], dict[str, Array]]:
        """The step to trace, on `size` rows of the batch from `first` on.

        Returns the loss and the next weights, memory and state.
        """
        own = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), batch)
        net, optimizer, groups = self.net.clone(), self.optimizer, self.groups
        points = list(map(optimizer.lookahead, weights, memory))
        net.assign_params(fixed | named(points, groups))
        net.assign_state(state)
        step = Step(net, self.loss, optimizer)
        value, gradients, state = step.passes(own)
        if self.before is not None and settings(step.worker, *losses_in(self.loss), optimizer) != self.before:
            raise UntraceableError("tracing has changed a user's own part")
        vectors = [ops.join([gradients[name] for name, _ in group]) for group in groups]
        if optimizer.clip_norm is None or len(vectors) == 1:
            limited = list(map(optimizer.limited, vectors))
        else:  # the norm is over all vectors
            limited = ops.split(optimizer.limited(ops.join(vectors)), [g.shape for g in vectors])
        moved = [optimizer.advance(*each, numbers) for each in zip(weights, limited, memory, strict=True)]
        news = tuple(w + 0.0 * g for (w, _), g in zip(moved, vectors, strict=True))  # as `step.updated`
        return value, news, tuple(m for _, m in moved), state

    def infer(self, params: dict[str, Array], state: dict[str, Array], x: Array) -> Array:
        """The inference to trace."""
        net = self.net.clone()
        net.assign_params(params)
        net.assign_state(state)
        return net._infer(x)


@functools.lru_cache(maxsize=PROGRAMS)
def outputs(recipe: Recipe) -> Function:
    """Return the compiled function for inference of a recipe."""
    function: Function = jax.jit(recipe.infer)
    return function


@functools.lru_cache(maxsize=PROGRAMS)
def program(recipe: Recipe, donate: bool) -> Function:
    """Return the compiled function of a recipe; with `donate`, it overwrites the carry that it is given."""
    function: Function = jax.jit(recipe.step, static_argnums=SIZE, donate_argnums=(0, 1, 2) if donate else ())
    return function


def recipe_of(
    key: Any, net: Placed, loss: Loss, optimizer: Optimizer, groups: tuple[Group, ...], args: tuple[Any, ...]
) -> Recipe | None:
    """Return the recipe to compile, None if a user's own classes cannot be compiled."""
    if key is not None:
        return Recipe(key, groups, without_arrays(net), copy.copy(loss), copy.copy(optimizer))
    try:
        before = copy.deepcopy(settings(net, *losses_in(loss), optimizer))
        recipe = Recipe(None, groups, *copy.deepcopy((without_arrays(net), loss, optimizer)), before)
        texts = [jax.jit(lambda *a: recipe.step(*a), static_argnums=SIZE).lower(*args).as_text() for _ in range(2)]
    except (UntraceableError, TypeError, AttributeError, LookupError, NotImplementedError):
        return None  # it reads values of tracers, or cannot be copied; a real error is raised again by `Step`
    if texts[0] != texts[1]:
        return None
    recipe.key = hashlib.sha256(texts[0].encode()).digest(), groups, jax.tree.structure(args)
    return recipe


# --- settings ---------------------------------------------------------------------------------------------------------


def is_plain(value: object) -> bool:
    """Whether a value is immutable, and shown in full by its repr."""
    if type(value) is tuple:
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def losses_in(loss: Loss) -> list[Loss]:
    """Return the loss, and the one within it if it is an Objective."""
    return [loss, loss.loss] if isinstance(loss, Objective) else [loss]


def handed(part: object) -> set[str]:
    """Return the names of attributes that a step gets as arguments, or on which it does not depend."""
    if isinstance(part, Layer):
        return {"params", "state", "rng", "_placement"}
    return {"learning_rate"} if isinstance(part, Optimizer) and is_ours(part) else set()  # in its `coefficients`


def settings(net: Placed, *others: Any) -> list[dict[str, Any]]:
    """Return the attributes, except those `handed`, of all layers and of `others`, losses and an optimizer."""
    found = []
    for part in (*tree(net), *others):
        own, rest = getattr(part, "__dict__", {}), handed(part)
        own = {name: mapped(a, lambda layer: type(layer).__name__) for name, a in own.items() if name not in rest}
        if part is net:
            own["dtype"] = net.dtype
        if isinstance(part, Objective):
            del own["loss"]  # it follows by itself
        found.append({name: np.asarray(a).tobytes() if hasattr(a, "__array__") else a for name, a in own.items()})
    return found


def key_of(groups: tuple[Group, ...], net: Placed, *others: Any) -> Any:
    """Return all that a compiled function depends on; None for a user's classes, of which settings do not say all."""
    parts, own = [*tree(net), *others], settings(net, *others)
    if not all(map(is_ours, parts)) or not all(is_plain(value) for each in own for value in each.values()):
        return None
    return tuple(map(type, parts)), repr(own), groups


def without_arrays(net: Placed) -> Placed:
    """Return a clone of the network without arrays."""
    twin = net.clone()
    for layer in tree(twin):
        for name in ("params", "state"):
            vars(layer).pop(name, None)
    return twin


# --- arrays -----------------------------------------------------------------------------------------------------------


def named(vectors: Sequence[Array], groups: tuple[Group, ...]) -> dict[str, Array]:
    """Return the parameters in these vectors, by name."""
    return {
        name: a
        for vector, group in zip(vectors, groups, strict=True)
        for (name, _), a in zip(group, ops.split(vector, [shape for _, shape in group]), strict=True)
    }


@functools.partial(jax.jit, static_argnums=2)
def unpacked(weights: tuple[Array, ...], state: dict[str, Array], groups: tuple[Group, ...]) -> Any:
    """Return copies of the parameters and the state, by name."""
    return jax.tree.map(jnp.copy, (named(weights, groups), state))


def are_finite(*trees: Any) -> bool:
    """Whether no array in these trees is overwritten, and all entries are finite. Waits for the device."""
    arrays = [a for a in jax.tree.leaves(trees) if isinstance(a, jax.Array)]
    return not any(a.is_deleted() for a in arrays) and bool(np.asarray(all_finite(arrays)))


all_finite = jax.jit(lambda arrays: jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in arrays])))
