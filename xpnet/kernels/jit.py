"""The step compiled as a whole by jax.jit, from the same layers' code: JAX.

What is traced are the layers' own forward and backward, the loss, and the optimizer's `limited` and `advance`. What
changes from step to step comes in as an argument: the carry, frozen parameters, the rows of the batch, and the numbers
of `Optimizer.coefficients`, which Python computes, so that any function may be a schedule.

A step compiled once serves every later fit in the process that has the same key. For this package's own layers, losses
and optimizers the key is their types and settings, without the learning rate, and the names and shapes of parameters.

A user's own layers, losses and optimizers may do what a compiled step would not do again: count calls, draw numbers on
the host, look at values. So they are traced twice, on copies. If both give the same program, and leave the settings as
they were, it is compiled, and its text is the key; if not, the layers are called one by one, as `Step` does. What shows
in neither, such as printing, or a global variable that changes later, is as it was when the step was traced.
"""

import copy
import functools
import hashlib
import importlib
import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import ops
from ..backends import Array
from ..layers.base import Layer, Shape, mapped, tree
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..losses.objective import Objective
from ..optimizers import Optimizer, Slots
from ..training.batches import Batch
from .reference import Carry, Step

jax: Any = importlib.import_module("jax")
jnp: Any = jax.numpy

Group = tuple[tuple[str, tuple[int, ...]], ...]  # names and shapes of the parameters that stand in one vector
Function = Callable[..., Any]
ALONE = 2**14  # entries from which a parameter is a vector of its own: joining it costs more than handing it over
DONATE = 2**18  # entries of all parameters from which old ones are written over: fewer are not worth compiling twice
PROGRAMS = 64  # compiled steps that are kept
SIZE = 7  # the argument of `Recipe.step` that a program is compiled for, the others being arrays and numbers


def training_step(net: Placed, loss: Loss, optimizer: Optimizer, compiled: bool, shape: Shape) -> Step:
    """The compiled step; `Step` for an optimizer with an `update` or `init` of its own, which may do anything."""
    for name in ("update", "init"):
        if getattr(getattr(optimizer, name, None), "__func__", None) is not getattr(Optimizer, name):
            return Step(net, loss, optimizer)
    return CompiledStep(net, loss, optimizer)


class CompiledStep(Step):
    """`Step` as one compiled function.

    The `weights` of its carries are a tuple of vectors, large parameters each alone and the small ones in one; their
    `slots` are the count of steps and, under "memory", what the optimizer keeps for each vector.
    """

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer):
        super().__init__(net, loss, optimizer)
        self.parts = self.worker, loss, optimizer
        self.handed, self.of_loss = handed(optimizer), [getattr(part, "__dict__", {}) for part in losses_in(loss)]
        self.compiles = True  # until a step turns out not to
        self.fixed = {name: a for name, a in self.worker.params.items() if name not in self.names}
        self.donates = sum(map(math.prod, self.shapes)) >= DONATE
        self._look()

    @functools.cached_property
    def by_layers(self) -> Step:
        """`Step` itself: for steps that do not compile, for the gradient alone, and to find a fault."""
        return Step(*self.parts)

    def _begin(self) -> Carry:
        pairs = tuple(zip(self.names, self.shapes, strict=True))
        apart = is_ours(self.optimizer)  # its formulas are elementwise: they need not see all parameters at once
        alone = [(p,) for p in pairs if apart and math.prod(p[1]) >= ALONE]
        rest = tuple(p for p in pairs if (p,) not in alone)
        self.groups: tuple[Group, ...] = (*alone, rest) if rest else tuple(alone)
        params = self.worker.params
        weights = tuple(ops.join([params[name] for name, _ in group]) for group in self.groups)
        memory = tuple({k: a for k, a in self.optimizer.init(w).items() if k != "step"} for w in weights)
        return Carry(weights, {"step": 0, "memory": memory}, dict(self.worker.state))

    def _look(self) -> None:
        """See what there is to compile."""
        self.seen = self._attributes()
        self.key = key_of(*self.parts, self.groups)
        self.functions: dict[tuple[Any, ...], Function] = {}

    def _attributes(self) -> list[Any]:
        """Of loss and optimizer, which a callback may change."""
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
        """The compiled step for such arguments; None where it cannot be compiled."""
        now = self._attributes()
        if len(now) != len(self.seen) or not all(map(operator.is_, now, self.seen)):  # a callback has changed them
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

    # --- what a carry holds ---

    def _flat(self, carry: Carry) -> Carry:
        """As `Step` has it."""
        if not isinstance(carry.weights, tuple):
            return carry
        slots = {k: self._joined([own[k] for own in carry.slots["memory"]]) for k in carry.slots["memory"][0]}
        return Carry(self._joined(carry.weights), {"step": carry.slots["step"]} | slots, carry.state)

    def _joined(self, vectors: Sequence[Array]) -> Array:
        arrays = named(vectors, self.groups)
        return ops.join([arrays[name] for name in self.names])

    def finite(self, carry: Carry) -> bool:
        """Whether the parameters and statistics are; those written over are not. Waits for the device."""
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
        params, state = unpacked(carry.weights, carry.state, self.groups)  # copies: a later step may write over these
        net.assign(params, state)
        return None

    def misfit(self, carry: Carry, x: Array) -> str:
        return self.by_layers.misfit(self._flat(carry), x)

    def fault(self, carry: Carry, batch: Batch) -> str:
        return self.by_layers.fault(self._flat(carry), batch)


class UntraceableError(Exception):
    """A user's own part that does more than compute."""


class Recipe:
    """The parts of a step that is compiled, without arrays; two with the same key are the same."""

    def __init__(
        self,
        key: Any,
        groups: tuple[Group, ...],
        net: Placed,
        loss: Loss,
        optimizer: Optimizer,
        before: Any = None,
    ):
        self.key, self.groups, self.net, self.loss, self.optimizer = key, groups, net, loss, optimizer
        self.before = before  # the settings that tracing must not change, where it might

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
        """The step that is traced, on `size` rows of the batch from `first` on.

        Gives the loss and the next weights, memory and state.
        """
        own = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, first, size), batch)
        net, optimizer, groups = self.net.clone(), self.optimizer, self.groups
        points = list(map(optimizer.lookahead, weights, memory))
        net.assign_params(fixed | named(points, groups))
        net.assign_state(state)
        step = Step(net, self.loss, optimizer)
        value, gradients, state = step.passes(own)
        if self.before is not None and settings(step.worker, self.loss, optimizer) != self.before:
            raise UntraceableError("tracing has changed a user's own part")
        vectors = [ops.join([gradients[name] for name, _ in group]) for group in groups]
        if optimizer.clip_norm is None or len(vectors) == 1:
            limited = list(map(optimizer.limited, vectors))
        else:  # the norm is that of all of them
            limited = ops.split(optimizer.limited(ops.join(vectors)), [g.shape for g in vectors])
        moved = [optimizer.advance(*each, numbers) for each in zip(weights, limited, memory, strict=True)]
        news = tuple(w + 0.0 * g for (w, _), g in zip(moved, vectors, strict=True))  # as `step.updated`
        return value, news, tuple(m for _, m in moved), state


@functools.lru_cache(maxsize=PROGRAMS)
def program(recipe: Recipe, donate: bool) -> Function:
    """The compiled function of a recipe; where it may `donate`, it writes over the carry it is given."""
    function: Function = jax.jit(recipe.step, static_argnums=SIZE, donate_argnums=(0, 1, 2) if donate else ())
    return function


def recipe_of(
    key: Any, net: Placed, loss: Loss, optimizer: Optimizer, groups: tuple[Group, ...], args: tuple[Any, ...]
) -> Recipe | None:
    """The recipe to compile; None where a user's own parts are not to be compiled."""
    if key is not None:
        return Recipe(key, groups, without_arrays(net), copy.copy(loss), copy.copy(optimizer))
    try:
        before = copy.deepcopy(settings(net, loss, optimizer))
        recipe = Recipe(None, groups, *copy.deepcopy((without_arrays(net), loss, optimizer)), before)
        texts = [jax.jit(lambda *a: recipe.step(*a), static_argnums=SIZE).lower(*args).as_text() for _ in range(2)]
    except (UntraceableError, TypeError, AttributeError, LookupError, NotImplementedError):
        return None  # what asks a tracer for its numbers, or cannot be copied; a fault comes again from `Step`
    if texts[0] != texts[1]:
        return None
    recipe.key = hashlib.sha256(texts[0].encode()).digest(), groups, jax.tree.structure(args)
    return recipe


# --- settings ---------------------------------------------------------------------------------------------------------


def is_ours(part: object) -> bool:
    """Whether it is of a class of this package."""
    return type(part).__module__.partition(".")[0] == __name__.partition(".")[0]


def is_plain(value: object) -> bool:
    """Whether it is what `repr` shows, and cannot change."""
    if type(value) is tuple:
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float, str)


def losses_in(loss: Loss) -> list[Loss]:
    """The loss, and the one within it."""
    return [loss, loss.loss] if isinstance(loss, Objective) else [loss]


def handed(part: object) -> set[str]:
    """The attributes of a part that a step is handed at each call, or does not depend on."""
    if isinstance(part, Layer):
        return {"params", "state", "rng", "_placement"}
    return {"learning_rate"} if isinstance(part, Optimizer) and is_ours(part) else set()  # in its `coefficients`


def settings(net: Placed, loss: Loss, optimizer: Optimizer) -> list[dict[str, Any]]:
    """The other attributes of every part."""
    found = []
    for part in (*tree(net), *losses_in(loss), optimizer):
        own, rest = getattr(part, "__dict__", {}), handed(part)
        own = {name: mapped(a, lambda layer: type(layer).__name__) for name, a in own.items() if name not in rest}
        if part is net:
            own["dtype"] = net.dtype
        if isinstance(part, Objective):
            del own["loss"]  # which follows
        found.append({name: np.asarray(a).tobytes() if hasattr(a, "__array__") else a for name, a in own.items()})
    return found


def key_of(net: Placed, loss: Loss, optimizer: Optimizer, groups: tuple[Group, ...]) -> Any:
    """All that the compiled step depends on; None where types and settings do not tell, for a user's own parts."""
    parts, own = [*tree(net), *losses_in(loss), optimizer], settings(net, loss, optimizer)
    if not all(map(is_ours, parts)) or not all(is_plain(value) for each in own for value in each.values()):
        return None
    return tuple(map(type, parts)), repr(own), groups


def without_arrays(net: Placed) -> Placed:
    """Its layers and settings alone."""
    twin = net.clone()
    for layer in tree(twin):
        for name in ("params", "state"):
            vars(layer).pop(name, None)
    return twin


# --- arrays -----------------------------------------------------------------------------------------------------------


def named(vectors: Sequence[Array], groups: tuple[Group, ...]) -> dict[str, Array]:
    """The parameters that stand in these vectors."""
    return {
        name: a
        for vector, group in zip(vectors, groups, strict=True)
        for (name, _), a in zip(group, ops.split(vector, [shape for _, shape in group]), strict=True)
    }


def _unpacked(
    weights: tuple[Array, ...], state: dict[str, Array], groups: tuple[Group, ...]
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Copies of the parameters and of the state, by name."""
    copies: tuple[dict[str, Array], dict[str, Array]] = jax.tree.map(jnp.copy, (named(weights, groups), state))
    return copies


def are_finite(*trees: Any) -> bool:
    """Whether no array in them has been written over, and all their entries are finite. Waits for the device."""
    arrays = [a for a in jax.tree.leaves(trees) if isinstance(a, jax.Array)]
    return not any(a.is_deleted() for a in arrays) and bool(np.asarray(all_finite(arrays)))


def _all_finite(arrays: list[Array]) -> Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(a)) for a in arrays]))


unpacked = jax.jit(_unpacked, static_argnums=2)
all_finite = jax.jit(_all_finite)
