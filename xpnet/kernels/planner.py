"""The step in stages that write into arrays made once: no allocation, no joining and splitting, few calls.

Axes: N batch, D in, H out. Inside, arrays are (H, N): a feature's batch lies in one row of memory.
"""

import contextlib
import importlib.util
import itertools
import math
import sys
from typing import Any

from .. import ops
from ..backends import Array, Backend, namespace
from ..common.checks import mapping_from, pair_from
from ..common.warn import warn
from ..layers.base import Layer, Shape
from ..layers.dense import Dense
from ..layers.dropout import Dropout
from ..layers.normalization import BatchNorm
from ..layers.placed import Placed
from ..losses.losses import Loss, SoftmaxCrossEntropy
from ..optimizers import Optimizer, Slots
from ..training.batches import Batch
from .reference import Carry, Step, checked, is_within


def training_step(net: Placed, loss: Loss, optimizer: Optimizer, compiled: bool, shape: Shape) -> Step:
    """The step in stages, with compiled kernels where they are wanted and there."""
    if net.backend.name == "cupy" and not compiled:  # not all of CuPy's functions write into arrays that are there
        return Step(net, loss, optimizer)
    return BufferedStep(net, loss, optimizer, kernels_for(net.backend, compiled), shape)


def kernels_for(backend: Backend, compiled: bool) -> Any:
    """What does a stage's work on this backend."""
    if backend.name == "cupy":
        from .cuda.kernels import CuPyKernels

        return CuPyKernels(backend)
    if compiled and backend.name == "numpy" and importlib.util.find_spec("numba"):
        try:
            return whole_import("numba", "llvmlite").NumbaKernels(backend)
        except Exception as error:  # for another NumPy, switched off, no folder for its code: training needs none of it
            warn(
                f"Numba is installed and cannot be used ({type(error).__name__}: {error}): training goes on without "
                "it. Mend it, or set XPNET_KERNELS=generic",
                RuntimeWarning,
            )
    from .cpu.calls import Calls

    return Calls(backend)


def whole_import(library: str, *below: str) -> Any:
    """The module here that has the name of the library it imports, whole or not at all.

    Where that fails, or Ctrl-C ends it, what is half imported of the library and those below it is forgotten: Python
    would keep it, and the next import find no way through it.
    """
    own, before = f"{__package__}.cpu.{library}", set(sys.modules)
    try:
        return importlib.import_module(own)
    except BaseException:
        for name in set(sys.modules) - before:
            if name == own or name.partition(".")[0] in (library, *below):
                del sys.modules[name]
        raise


class Workspace:
    """Arrays by name, made when first asked for; a smaller shape is a part of the largest."""

    def __init__(self, xp: Any, dtype: Any, device: Any):
        self.xp, self.dtype, self.device = xp, dtype, device
        self.flat: dict[str, Array] = {}
        self.parts: dict[tuple[str, tuple[int, ...]], Array] = {}
        self.bound: dict[Any, Any] = {}  # what the kernels have found for a size of batch

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """An array of that shape, with whatever numbers are in it."""
        try:
            return self.parts[name, shape]
        except KeyError:
            size = math.prod(shape)
            if name not in self.flat or self.flat[name].shape[0] < size:
                self.flat[name] = self.xp.empty(size, dtype=dtype or self.dtype, device=self.device)
                self.parts = {key: a for key, a in self.parts.items() if key[0] != name}
                self.bound.clear()
            part = self.parts[name, shape] = self.flat[name][:size].reshape(shape)
            return part


class Block:
    """A Dense, a BatchNorm and an activation, those of the three that follow one another, as one stage.

    The bias of a Dense before a BatchNorm moves the mean and nothing else: it is left out of the sum, added to the
    running mean, and its gradient is 0, as `Sequential.idle_parameters` says.

    Another bias may be the product's work, where x is a block's y. That then comes as x̃ (D + 1, N), with a row of ones
    below it, and with W̃ = [W; b], as they lie in the vector of parameters, W̃ᵀ x̃ = Wᵀ x + b and [dW; db] = x̃ dzᵀ.
    """

    def __init__(self, kernels: Any, work: Workspace, shared: Workspace):
        self.kernels, self.work, self.shared = kernels, work, shared
        self.dense: Any = None  # name and layer
        self.norm: Any = None
        self.function: Any = None
        self.x_from = self.dy_from = ""  # who gives them, in words; "" is a stage of ours: they fit, dy is ours to use
        self.frees_y = True  # whether nobody but the stage after it, if any, knows y, and that one is done with it
        self.mean = self.var = None  # where BatchNorm's statistics of the batch go
        self.joint_at: int | None = None  # where W̃ begins in the vector of parameters, if x comes as x̃
        self.gives_ones = False  # whether y goes on with a row of ones
        self.ones_for = 0  # the size of batch for which that is there

    def take(self, prefix: str, layer: Layer) -> bool:
        """Take in the next layer of the network, if it fits behind those that are in."""
        kind = type(layer)
        if kind is Dense and layer.trainable and not (self.dense or self.norm or self.function):
            self.dense = prefix, layer
        elif kind is BatchNorm and layer.trainable and not (self.norm or self.function):
            self.norm = prefix, layer
        elif kind in self.kernels.functions and (self.dense or self.norm) and not self.function:
            self.function = layer
        else:
            return False
        return True

    @property
    def trains(self) -> bool:
        """Whether there are parameters in it."""
        return bool(self.dense or self.norm)

    def place(self, arrays: dict[str, Array], flat: Array) -> tuple[Array | None, ...]:
        """Of arrays by name, and end to end, this block's: W, joint, joint.T, b, gamma, beta.

        `joint` is W̃ and b None where x comes as x̃; else it is W.
        """
        weight = joint = bias = gamma = beta = None
        if self.dense:
            weight, bias = (arrays[f"{self.dense[0]}.{key}"] for key in ("weight", "bias"))
            joint = weight
            if self.joint_at is not None:
                d, h = weight.shape
                joint, bias = flat[self.joint_at : self.joint_at + (d + 1) * h].reshape((d + 1, h)), None
        if self.norm:
            gamma, beta = (arrays[f"{self.norm[0]}.{key}"] for key in ("gamma", "beta"))
        return weight, joint, None if joint is None else joint.T, bias, gamma, beta

    def forward(self, x: Array, params: tuple[Array, ...]) -> Array:
        """(D, N) -> (H, N), each with a row of ones below it where this block wants one, or the next."""
        _, _, transposed, bias, gamma, beta = params
        if self.x_from:
            rows = beta.shape[0] if transposed is None else transposed.shape[1]
            check_fit(self.x_from, x, (rows, x.shape[-1]), params)
        kernels, work, z, own = self.kernels, self.work, x, False
        h, n = (beta if transposed is None else transposed).shape[0], x.shape[1]
        extended = self._with_ones(h, n) if self.gives_ones else None  # before y, which becomes a part of it
        if transposed is not None:
            z, own = kernels.product(transposed, x, work("z", (h, n))), True
        if gamma is not None:
            eps = self.norm[1].eps
            y = kernels.batch_norm(self.function, z, gamma, beta, eps, self.mean, self.var, work, own, bias)
        elif self.function or bias is not None:
            y = kernels.activation(self.function, z, bias, work)
        else:
            y = z
        self.cache = x, z, y
        return y if extended is None else extended

    def _with_ones(self, h: int, n: int) -> Array:
        """The place of y and a row of ones below it, (H + 1, N)."""
        in_place = not self.norm and self.kernels.in_place(self.function)
        place: Array = self.work("z" if in_place else "y", (h + 1, n))
        if self.ones_for != n:  # another size's numbers may stand there
            place[h] = 1.0
            self.ones_for = n
        return place

    def backward(self, dy: Array, params: tuple[Array, ...], grads: tuple[Array, ...], side: int | None) -> Array:
        """(H, N) -> (D, N), or None where `side` is: nobody needs dx. It goes where y was, or to two places in turn."""
        weight, _, _, bias, gamma, beta = params
        _, djoint, _, dbias, dgamma, dbeta = grads
        x, z, y = self.cache
        if self.dy_from:
            check_fit(self.dy_from, dy, tuple(y.shape), params)
        kernels, work = self.kernels, self.work
        dz = self.shared("dz", tuple(dy.shape)) if self.dy_from else dy
        if gamma is not None:
            sums = dgamma, dbeta, dbias
            dz = kernels.batch_norm_backward(self.function, dy, z, y, gamma, beta, dz, *sums, work)
        elif self.function or dbias is not None:
            dz = kernels.activation_backward(self.function, dy, z, y, bias, dz, dbias, work)
        else:
            dz = dy
        if weight is None:
            return dz
        kernels.product(x, dz.T, djoint)
        if side is None:
            return None
        rows = weight.shape[0]
        fits = self.frees_y and rows <= y.shape[0]
        return kernels.product(weight, dz, y[:rows] if fits else self.shared(f"dx{side}", (rows, dz.shape[1])))


class Single:
    """Any other layer as a stage, by its own forward and backward."""

    def __init__(self, prefix: str, layer: Layer, leaves: list[tuple[str, Layer]]):
        self.prefix, self.layer = prefix, layer
        self.params = [(leaf, key, f"{p}.{key}") for p, leaf in leaves if leaf.trainable for key in leaf.params]
        self.states = [(leaf, {key: f"{p}.{key}" for key in leaf.state}) for p, leaf in leaves if leaf.state]

    def __str__(self) -> str:
        return f"layer {self.prefix}, {self.layer!r}" if self.prefix else f"the network, {self.layer!r}"

    def named(self, method: str, given: Any) -> dict[str, Array]:
        """What a method of the layer gave, under the network's names."""
        return {f"{self.prefix}.{key}".lstrip("."): a for key, a in mapping_from(self.layer, method, given).items()}

    @property
    def trains(self) -> bool:
        """Whether there are parameters in it."""
        return bool(self.params)

    def place(self, arrays: dict[str, Array], flat: Array) -> list[Array]:
        """Of arrays by name, those of this layer's parameters."""
        return [arrays[name] for _, _, name in self.params]

    def set_state(self, state: dict[str, Array]) -> None:
        """Take the running statistics."""
        for leaf, names in self.states:
            vars(leaf)["state"] = {key: state[name] for key, name in names.items()}

    def next_state(self) -> dict[str, Array]:
        """The running statistics after this step, by name."""
        given = self.layer.state, self.layer.next_state(self.cache)
        before, after = (self.named("next_state", arrays) for arrays in given)
        return {k: checked("next_state", after, k, tuple(a.shape), a.dtype) for k, a in before.items()}

    def forward(self, x: Array, params: list[Array]) -> Array:
        """(D, N) -> (H, N)"""
        for (leaf, key, _), value in zip(self.params, params, strict=True):
            leaf.params[key] = value
        y, self.cache = pair_from(self.layer, "forward", self.layer.forward(turned(x), training=True))
        return turned(y)

    def backward(self, dy: Array, params: list[Array], grads: list[Array], side: int | None) -> Array:
        """(H, N) -> (D, N)"""
        if side is None:
            dx, own = None, self.layer.backward_params(turned(dy), self.cache)
        else:
            dx, own = pair_from(self.layer, "backward", self.layer.backward(turned(dy), self.cache))
        named = self.named("backward_params", own)
        for (_, _, name), place in zip(self.params, grads, strict=True):
            place[...] = checked("backward", named, name, tuple(place.shape), place.dtype)
        return None if dx is None else turned(dx)


class Masked(Single):
    """A Dropout as a stage of ours: its kernels draw the mask anew on the way back, and none is kept."""

    x_from = dy_from = ""  # as those of a Block
    frees_y = True

    def __init__(self, kernels: Any, work: Workspace, prefix: str, layer: Dropout):
        super().__init__(prefix, layer, [(prefix, layer)])
        self.kernels, self.work, self.rate = kernels, work, layer.rate

    def forward(self, x: Array, params: list[Array]) -> Array:
        """(D, N) -> (D, N)"""
        y = self.work("y", tuple(x.shape))
        if self.x_from:
            check_fit(self.x_from, x, y.shape, (y,))
        self.cache = self.layer.state["key"], y
        self.next_key = self.kernels.dropout(x, self.layer.state["key"], self.rate, y)
        return y

    def backward(self, dy: Array, params: list[Array], grads: list[Array], side: int | None) -> Array:
        """(D, N) -> (D, N), in y's place where that is free."""
        key, y = self.cache
        if self.dy_from:
            check_fit(self.dy_from, dy, y.shape, (y,))
        dx = y if self.frees_y else self.work("dx", y.shape)
        self.kernels.dropout_backward(dy, key, self.rate, dx)
        return dx

    def next_state(self) -> dict[str, Array]:
        return {f"{self.prefix}.key": self.next_key}


class Side:
    """One vector of parameters, with the views of it: by name, and each stage's."""

    def __init__(self, step: "BufferedStep", flat: Array):
        self.flat = flat
        self.arrays = dict(zip(step.names, ops.split(flat, step.shapes), strict=True))
        self.views = [stage.place(self.arrays, flat) for stage in step.stages]


class BufferedStep(Step):
    """`Step` in stages. Parameters change sides at each step: the loss of the new ones may turn out not finite."""

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer, kernels: Any, shape: Shape = ("N", "D")):
        super().__init__(net, loss, optimizer)
        self.axes = axes_of(self.worker, shape)
        self.kernels = kernels
        weights, xp, device = self.start.weights, self.backend.xp, self.backend.device
        plain = self.objective.loss
        rows_of_1 = type(plain) is SoftmaxCrossEntropy and plain.ignore is None
        self.softmax: Any = plain if rows_of_1 and self.axes[-1] == 2 else None
        self.looks_ahead = type(optimizer).lookahead is not Optimizer.lookahead
        self.stages = self._stages(lambda: Workspace(xp, weights.dtype, device))
        fused = {f"{b.dense[0]}.bias" for b in self.stages if isinstance(b, Block) and b.dense and b.norm}
        idle = (name for name in self.worker.idle_parameters() if name in self.trained and self._of_matrix(name))
        self.idle = [name for name in idle if name not in fused]  # of whose gradient the block makes 0 itself
        self.first = next(i for i, stage in enumerate(self.stages) if stage.trains)
        blocks = itertools.accumulate(isinstance(stage, Block) for stage in self.stages)
        # whose place dx takes, block by block: a layer between two may hand on dy itself; nobody needs the first's
        self.turns = [None if i == self.first else count % 2 for i, count in enumerate(blocks)]
        self.sides = [Side(self, weights)]
        self.point = Side(self, xp.zeros_like(weights)) if self.looks_ahead else None
        self.slots_made = [self.start.slots]
        self._norms()

    def _stages(self, workspace: Any) -> list[Any]:
        stages: list[Any] = []
        shared = workspace()
        self.work = workspace()
        leaves = self.worker.leaves()
        for (prefix, layer), axes in zip(self.worker.parts(), self.axes, strict=False):
            own = [(name, leaf) for name, leaf in leaves if is_within(f"{name}.", prefix)]
            if axes != 2:  # the kernels are of matrices
                stages.append(Single(prefix, layer, own))
                continue
            if stages and isinstance(stages[-1], Block) and stages[-1].take(prefix, layer):
                continue
            if self.kernels.drops and type(layer) is Dropout:
                stages.append(Masked(self.kernels, workspace(), prefix, layer))
                continue
            block = Block(self.kernels, workspace(), shared)
            stages.append(block if block.take(prefix, layer) else Single(prefix, layer, own))
        ours = Block, Masked
        for stage, after in itertools.pairwise(stages):
            if isinstance(stage, ours) and not isinstance(after, ours):
                stage.dy_from, stage.frees_y = f"{after}: backward", False
            elif isinstance(after, ours) and not isinstance(stage, ours):
                after.x_from = f"{stage}: forward"
            elif isinstance(stage, Block) and isinstance(after, Block):
                after.joint_at = self._joint_at(after)
                stage.gives_ones = after.joint_at is not None
        if isinstance(stages[-1], ours) and self.softmax is None:
            stages[-1].dy_from = f"the loss, {self.objective.loss!r},"
        return stages

    def _of_matrix(self, name: str) -> bool:
        """Whether a parameter is of a layer that is given a matrix."""
        parts = zip(self.worker.parts(), self.axes, strict=False)
        return next(axes for (prefix, _), axes in parts if is_within(name, prefix)) == 2

    def _joint_at(self, block: Block) -> int | None:
        """Where W̃ of a block behind another begins in the vector of parameters, if its bias is to be the product's."""
        if not block.dense or block.norm:
            return None
        weight, bias = (f"{block.dense[0]}.{key}" for key in ("weight", "bias"))
        i = self.names.index(weight)
        if self.names[i + 1 : i + 2] != [bias]:  # a network may have been given them in another order
            return None
        if math.prod(self.shapes[i]) < self.kernels.joins_from:
            return None
        return sum(map(math.prod, self.shapes[:i]))

    def _norms(self) -> None:
        """All BatchNorms' statistics as one vector: every mean, every variance, in the order of the stages."""
        xp, state = self.backend.xp, self.start.state
        norms = [stage for stage in self.stages if isinstance(stage, Block) and stage.norm]
        self.norm_names = [f"{stage.norm[0]}.{key}" for stage in norms for key in ("mean", "var")]
        self.norm_shapes = [tuple(state[name].shape) for name in self.norm_names]
        self.singles = [stage for stage in self.stages if isinstance(stage, Single) and stage.states]
        others = {name: a for name, a in state.items() if name not in self.norm_names}
        if not norms:
            self.batch = None
            return
        old = ops.join([state[name] for name in self.norm_names])
        self.batch, rates, first = xp.zeros_like(old), [], []
        parts = ops.split(self.batch, self.norm_shapes)
        for i, stage in enumerate(norms):
            stage.mean, stage.var = parts[2 * i : 2 * i + 2]
            layer = stage.norm[1]
            rates += [xp.full_like(a, 1.0 - layer.momentum) for a in parts[2 * i : 2 * i + 2]]
            mean, var = layer.state["mean"], layer.state["var"]
            seen = not bool(xp.all((mean == 0.0) & (var == 1.0)))
            first += rates[-2:] if seen else [xp.ones_like(a) for a in rates[-2:]]
        self.rates, self.first_rates = ops.join(rates), ops.join(first)
        self.start = self.start._replace(state={NORMS: old} | others)

    def state(self, carry: Carry) -> dict[str, Array]:
        if NORMS not in carry.state:
            return carry.state
        named = dict(zip(self.norm_names, ops.split(carry.state[NORMS], self.norm_shapes), strict=True))
        return named | {name: a for name, a in carry.state.items() if name != NORMS}

    def sound(self, carry: Carry) -> bool:
        if self.backend.immediate:  # sums are quicker; they may overflow where nothing is wrong
            dot, (checked, total), rest = self.kernels.lib.dot, self.kernels.checked, self._real_state(carry)
            if checked is not carry.weights:
                total, rest = 0.0, [carry.weights, *self._memory(carry), *rest]
            for a in rest:
                total = total + dot(a, a) if a.ndim == 1 else math.nan
            if math.isfinite(total):
                return True
        return super().sound(carry)

    def __call__(self, carry: Carry, batch: Batch) -> tuple[Array, Carry]:
        return self._take(carry, batch, (self.start, carry))

    def on_rows(self, carry: Carry, batch: Batch, rows: slice, keep: tuple[Carry, ...]) -> tuple[Array, Carry]:
        return self._take(carry, batch.rows(rows), keep)

    def _take(self, carry: Carry, batch: Batch, keep: tuple[Carry, ...]) -> tuple[Array, Carry]:
        at = self._side_of(carry)
        value, da = self._forward(at, carry.state, batch)
        if self.backend.immediate and not math.isfinite(value):
            return value, carry
        side = self._free_side(carry, keep)  # the gradient first, then what it makes of the parameters
        value = self._backward(at, side, value, da, batch)
        slots = self.kernels.update(
            self.optimizer, carry.weights, carry.slots, side.flat, self._free_slots(carry, keep)
        )
        state = self._next_state(carry)
        for stage in self.stages:  # the batch goes before the next one comes
            stage.cache = None
        return value, Carry(side.flat, slots, state)

    def gradient(self, weights: Array, batch: Batch) -> tuple[Array, Array]:
        at = self._side_of(self.start)
        at.flat[...] = weights
        value, da = self._forward(at, self.start.state, batch)
        side = self._free_side(self.start, ())
        return self._backward(at, side, value, da, batch), side.flat

    def _forward(self, at: Side, state: dict[str, Array], batch: Batch) -> tuple[Array, Array]:
        """The loss, and its derivative with respect to the outputs, (K, N)."""
        for stage in self.singles:
            stage.set_state(state)
        x, y, weight = batch
        a = turned(x)
        for stage, own in zip(self.stages, at.views, strict=True):
            a = stage.forward(a, own)
        if self.softmax is not None and weight is None:
            found: tuple[Array, Array] = self.kernels.softmax_cross_entropy(a, y.T, self._scale(a), self.work)
            return found
        value, dy = self.loss(turned(a), y, weight)
        if self.softmax is None:
            return value, turned(dy)
        own = self.work("dy", tuple(a.shape))  # the last stage takes it to be in order and ours, as the kernel's is
        own[...] = turned(dy)
        return value, own

    def _backward(self, at: Side, gradient: Side, value: Array, da: Array, batch: Batch) -> Array:
        """The gradient, and the loss with the penalty in it."""
        for i in range(len(self.stages) - 1, self.first - 1, -1):
            da = self.stages[i].backward(da, at.views[i], gradient.views[i], self.turns[i])
        for name in self.idle:
            gradient.arrays[name][...] = 0.0
        if self.objective.l2:
            more, slopes = self.objective.penalty(at.arrays, batch.y, batch.weight)
            value = value + (float(more) if self.backend.immediate else more)
            for name, slope in slopes.items():
                gradient.arrays[name] += slope
        return value

    def _scale(self, a: Array) -> float:
        return 1.0 if self.softmax.reduction == "sum" else 1.0 / a.shape[1]

    def _next_state(self, carry: Carry) -> dict[str, Array]:
        state: dict[str, Array] = {}
        if self.batch is not None:
            old = carry.state[NORMS]
            rates = self.first_rates if old is self.start.state[NORMS] else self.rates
            state[NORMS] = self.kernels.statistics(old, self.batch, rates)
        for stage in self.singles:
            state |= stage.next_state()
        return state

    # --- whose arrays are whose ---

    def _remember(self, slots: Slots) -> None:
        super()._remember(slots)
        self.slots_made = [slots]

    def _side_of(self, carry: Carry) -> Side:
        """The side that a carry's parameters stand on, or the point ahead of them."""
        if self.point is not None:
            self.kernels.look_ahead(self.optimizer, carry.weights, carry.slots, self.point.flat)
            return self.point
        for side in self.sides:  # pragma: no branch  # it is one of them
            if side.flat is carry.weights:
                break
        return side

    def _free_side(self, carry: Carry, keep: tuple[Carry, ...]) -> Side:
        for side in self.sides:
            if side.flat is not carry.weights and not any(side.flat is kept.weights for kept in keep):
                return side
        self.sides.append(Side(self, self.backend.xp.zeros_like(carry.weights)))
        return self.sides[-1]

    def _free_slots(self, carry: Carry, keep: tuple[Carry, ...]) -> Slots:
        """Slots to write the next ones into: the carry's own, unless they are wanted still."""
        if not (keep or self.looks_ahead):
            return carry.slots
        names = getattr(self.optimizer, "memory", ())  # a user's own optimizer need not derive from ours
        taken = [kept.slots for kept in keep] + [carry.slots] * self.looks_ahead
        for slots in (carry.slots, *self.slots_made):
            if all(slots[name] is not other[name] for name in names for other in taken):
                return slots
        self.slots_made.append({name: self.backend.xp.zeros_like(carry.weights) for name in names})
        return self.slots_made[-1]

    def publish(self, carry: Carry, net: Placed, last: bool = False) -> None:
        weights = carry.weights if last else self.backend.xp.asarray(carry.weights, copy=True)
        super().publish(carry._replace(weights=weights), net)


NORMS = ""  # the name of the vector of all BatchNorms' statistics


def axes_of(net: Placed, shape: Shape) -> list[int]:
    """How many axes what each layer is given has, and what the last one gives, for an x of this shape."""
    axes, shape = [len(shape)], ("N", *shape[1:])
    for _, layer in net.parts():
        with contextlib.suppress(ValueError):  # of a layer that has not said what it gives: it is as it was
            shape = layer.output_shape(shape)
        axes.append(len(shape))
    return axes


def check_fit(who: str, a: Array, shape: tuple[int, ...], params: tuple[Array | None, ...]) -> None:
    """Refuse what a layer or loss of another's gave, if it does not fit: the kernels trust what they are given."""
    if tuple(a.shape) != shape:
        got, expected = tuple(a.shape)[::-1], shape[::-1]
        raise ValueError(f"fit: {who} gave an array of shape {got}, expected {expected}")
    dtype = next(p.dtype for p in params if p is not None)
    if a.dtype != dtype:
        raise ValueError(f"fit: {who} gave an array of {a.dtype}, expected {dtype}")


def turned(a: Array) -> Array:
    """(N, H) as (H, N) and back; of more axes, all the other way round."""
    return a.T if a.ndim == 2 else namespace(a).permute_dims(a, tuple(range(a.ndim))[::-1])
