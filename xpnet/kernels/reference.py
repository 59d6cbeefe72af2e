"""A training step as a pure function: forward, loss, backward, optimizer."""

import math
from collections.abc import Mapping
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from .. import ops
from ..backends import Array, backend_of, namespace
from ..common.checks import brief
from ..common.share import finite_in_all, whole
from ..layers.activations import Sigmoid, Softmax
from ..layers.base import ARRAYS
from ..layers.container import Chain
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..losses.objective import Objective
from ..optimizers import Optimizer, Slots
from ..training.batches import Batch


class Carry(NamedTuple):
    """The state passed from step to step: trained parameters as a vector, the optimizer's slots, running statistics."""

    weights: Array
    slots: Slots
    state: dict[str, Array]


class Step:
    """`step(carry, batch) -> value of the loss, next carry`, for one network, loss and optimizer.

    It works on a clone, so that the network does not change until a carry is published to it. All trained parameters
    are in one vector, of which the clone's layers hold views, so that the optimizer takes only a few array calls.

    This class calls the layers in sequence and is the reference for the faster ones in `kernels`. Those may overwrite
    the arrays of old carries, except for the carries that `on_rows` is told to keep.
    """

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer):
        self.backend = net.backend
        self.worker = net.clone()
        self.optimizer = optimizer
        self.objective = loss if isinstance(loss, Objective) else Objective(loss)
        self.checks_range = must_check_range(net, self.objective.loss)
        self.loss = self._within_range if self.checks_range else self.objective.reduced
        leaves = self.worker.leaves()
        for _, layer in leaves:  # plain dicts, into which the step writes; under jax.jit their arrays are tracers
            vars(layer).update({name: dict(a) for name in ARRAYS if (a := vars(layer).get(name))})
        self.trained = {f"{p}.{k}": (layer, k) for p, layer in leaves if layer.trainable for k in layer.params}
        if not self.trained:
            raise ValueError(
                "fit: the network has no parameters to train; add a layer with some, or set trainable=True"
            )
        self.names = list(self.trained)
        self.shapes = [tuple(layer.params[key].shape) for layer, key in self.trained.values()]
        # layers before this one need no gradient; the backward_params of a subclass may not take the argument
        self.lowest = [int(self.names[0].partition(".")[0])] if takes_lowest(net) else []
        self.stateful = [(layer, [(k, f"{p}.{k}") for k in layer.state]) for p, layer in leaves if layer.state]
        self.start = self._begin()
        if "spared" in getattr(optimizer, "memory", ()):
            self._remember(self.slots(self.start) | {"spared": self._spared()})

    def _begin(self) -> Carry:
        weights = ops.join([layer.params[key] for layer, key in self.trained.values()])
        return Carry(weights, self.optimizer.init(weights), dict(self.worker.state))

    def _spared(self) -> Array:
        """Return a vector with 1 for each parameter that `decays="weights"` excludes from weight decay, else 0."""
        leaves = [(layer.params[key], layer.decays) for layer, key in self.trained.values()]
        return ops.join([0.0 * a if decays and a.ndim > 1 else 0.0 * a + 1.0 for a, decays in leaves])

    def resume_with(self, slots: Slots) -> None:
        """Start from a copy of the optimizer's slots of an earlier run."""
        initial = self.slots(self.start)
        if not isinstance(slots, Mapping):
            raise TypeError(
                f"fit: slots must be an optimizer's memory by name, such as history.slots, got {brief(slots)}"
            )
        if slots.keys() != initial.keys():
            raise ValueError(
                f"fit: slots has {', '.join(slots) or 'nothing'}; {self.optimizer!r} keeps {', '.join(initial)}: give "
                "an earlier history's, slots=history.slots"
            )
        copies = dict(slots)
        for name, fresh in initial.items():
            if not hasattr(fresh, "shape"):  # the count of steps
                if type(fresh) is int and (isinstance(slots[name], bool) or not isinstance(slots[name], Integral)):
                    raise TypeError(f"fit: slots has {name} {slots[name]!r:.80}, expected a whole number")
                if type(fresh) is int and slots[name] < 0:
                    raise ValueError(f"fit: slots has {name} {slots[name]!r:.80}, expected at least 0")
                continue
            if tuple(np.shape(slots[name])) != tuple(fresh.shape):
                raise ValueError(
                    f"fit: slots has {name} of shape {tuple(np.shape(slots[name]))}, expected {tuple(fresh.shape)}: it "
                    "is of a network with other trained parameters"
                )
            copies[name] = self.backend.xp.astype(self.backend.adopt(f"fit: {name}", slots[name]), fresh.dtype)
            if not ops.all_finite(copies[name]):
                raise ValueError(f"fit: slots has NaN or infinite entries in {name}")
        self._remember(copies)

    def _remember(self, slots: Slots) -> None:
        """Start with these slots, in the form of `Optimizer.init`; the step may write to their arrays."""
        self.start = self.start._replace(slots=slots)

    def slots(self, carry: Carry) -> Slots:
        """Return the optimizer's slots in the form of `Optimizer.init`; later steps may write to their arrays."""
        return carry.slots

    def __call__(self, carry: Carry, batch: Batch) -> tuple[Array, Carry]:
        self._bind(carry)
        value, gradients, state = self.passes(batch)
        weights, slots = updated(self.optimizer, carry.weights, ops.join([*gradients.values()]), carry.slots)
        return value, Carry(weights, slots, state)

    def gradient(self, weights: Array, batch: Batch) -> tuple[Array, Array]:
        """Return the loss at a vector of parameters, and its derivative, which the next call may overwrite."""
        self._bind(self.start._replace(weights=weights))
        value, gradients, _ = self.passes(batch)
        return value, ops.join([*gradients.values()])

    def passes(self, batch: Batch) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """Run forward, loss and backward; return the loss, the gradients in the order of `names`, and the next running
        statistics.
        """
        value, gradients, state = self.data_passes(batch)
        return *self.penalized(value, gradients, batch), state

    def penalized(self, value: Array, gradients: dict[str, Array], batch: Batch) -> tuple[Array, dict[str, Array]]:
        """Return the loss and gradients plus those of the penalty."""
        if not self.objective.l2:
            return value, gradients
        params = {name: layer.params[key] for name, (layer, key) in self.trained.items()}
        return self.objective.penalized(value, gradients, params, batch.y, batch.weight)

    def data_passes(self, batch: Batch) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """As `passes`, without the penalty, which does not depend on the rows."""
        x, *targets = batch
        prediction, cache = self.worker.forward(x, training=True)
        value, dy = self.loss(prediction, *targets)
        grads = self.worker.backward_params(dy, cache, *self.lowest)
        dtype = self.start.weights.dtype
        gradients = {
            k: checked("backward", grads, k, shape, dtype) for k, shape in zip(self.names, self.shapes, strict=True)
        }
        before, after = self.worker.state, self.worker.next_state(cache)
        state = {k: checked("next_state", after, k, tuple(a.shape), a.dtype) for k, a in before.items()}
        return value, gradients, state

    def _within_range(self, prediction: Array, *targets: Array | None) -> tuple[Array, Array]:
        """Return the loss and its derivative, with NaN for the loss if a prediction is not a probability, so that the
        host need not wait for the device.
        """
        value, gradient = self.objective.reduced(prediction, *targets)
        if 0 in prediction.shape:  # a process's share of a batch may have no rows
            return value, gradient
        xp = namespace(prediction)
        furthest = xp.max(xp.abs(prediction - 0.5))
        return xp.where(furthest > 0.5 + ROUNDED, xp.nan, xp.zeros_like(furthest)) + value, gradient

    def on_rows(self, carry: Carry, batch: Batch, rows: slice, keep: tuple[Carry, ...]) -> tuple[Array, Carry]:
        """Take the step on these rows of a batch. It may overwrite all arrays of earlier steps, except those of the
        carries in `keep` and, until its own loss is known to be finite, those of the last two.
        """
        return self(carry, batch.rows(rows))

    def state(self, carry: Carry) -> dict[str, Array]:
        """Return the running statistics by name."""
        return carry.state

    def finite(self, carry: Carry) -> bool:
        """Whether the parameters and running statistics are finite. Waits for the device."""
        return ops.all_finite(carry.weights, *self._real_state(carry))

    def sound(self, carry: Carry) -> bool:
        """Whether all results of the step are finite, including the optimizer's slots. Waits for the device.

        This covers the gradient: if it is not finite, neither are the new parameters, see `updated`.
        """
        return ops.all_finite(carry.weights, *self._memory(carry), *self._real_state(carry))

    def _memory(self, carry: Carry) -> list[Array]:
        """Return the optimizer's arrays; a user's optimizer that does not derive from Optimizer need not name them."""
        return [carry.slots[name] for name in getattr(self.optimizer, "memory", ()) if name in carry.slots]

    def _real_state(self, carry: Carry) -> list[Array]:
        """Return the running statistics that are not integers."""
        return [a for a in carry.state.values() if a.dtype == carry.weights.dtype]

    def _bind(self, carry: Carry) -> None:
        """Assign to the clone the statistics, and the parameters at which the optimizer needs the gradient."""
        point, state = self.optimizer.lookahead(carry.weights, carry.slots), self.state(carry)
        for (layer, key), value in zip(self.trained.values(), ops.split(point, self.shapes), strict=True):
            layer.params[key] = value
        for layer, keys in self.stateful:
            vars(layer)["state"] = {key: state[name] for key, name in keys}

    def publish(self, carry: Carry, net: Placed, last: bool = False) -> None:
        """Assign a carry's parameters and statistics to the network, in arrays to which later steps do not write; no
        step follows the `last` one.
        """
        params = dict(zip(self.names, ops.split(carry.weights, self.shapes), strict=True))
        net.assign(params, self.state(carry))

    def misfit(self, carry: Carry, x: Array) -> str:
        """Return why the outputs for x do not suit the loss, "" if they do."""
        if not self.checks_range:
            return ""
        self._bind(carry)
        return out_of_range(self.objective.loss, self.worker.forward(x, training=True)[0])

    def fault(self, carry: Carry, batch: Batch) -> str:
        """Return the first part of a step that is not finite, in words; "" if its forward and backward are finite."""
        self._bind(carry)
        x, *targets = batch
        parts, caches = self.worker.parts(), []
        lowest = next(i for i, (prefix, _) in enumerate(parts) if is_within(self.names[0], prefix))
        layers = [(f"layer {name}, {layer!r}" if name else f"the network, {layer!r}", layer) for name, layer in parts]
        for name, layer in layers:
            x, cache = layer.forward(x, training=True)
            caches.append(cache)
            if not finite_in_all(x):
                return f"the output of {name}"
            if not all(finite_in_all(a) for a in layer.next_state(cache).values()):
                return f"the running statistics of {name}"
        value, dy = self.loss(x, *targets)
        if not (math.isfinite(float(whole(value))) and finite_in_all(dy)):
            return "the loss"
        for (name, layer), cache in reversed(list(zip(layers, caches, strict=True))[lowest:]):
            dy, grads = layer.backward(dy, cache)
            if not all(finite_in_all(g) for g in (dy, *grads.values()) if g is not None):
                return f"the gradient at {name}"
        return ""


def updated(optimizer: Optimizer, w: Array, gradient: Array, slots: Slots) -> tuple[Array, Slots]:
    """As `optimizer.update`, with NaN in w if the gradient is not finite, since a user's rule may only use its sign."""
    w, slots = optimizer.update(w, gradient, slots)
    return w + 0.0 * gradient, slots


# --- the range of outputs ---------------------------------------------------------------------------------------------

ROUNDED = 1e-6  # how far outputs may exceed [0, 1] as rounded probabilities


def squashing(net: Placed) -> Softmax | Sigmoid | None:
    """Return the Softmax or Sigmoid that a network ends in, None for others."""
    last = net.parts()[-1][1] if net.layers else None
    if isinstance(last, (Softmax, Sigmoid)) and type(last) in (Softmax, Sigmoid):  # a subclass may give anything
        return last
    return None


def must_check_range(net: Placed, loss: Any) -> bool:
    """Whether the loss takes probabilities and the network does not end in a Softmax or Sigmoid."""
    return getattr(loss, "outputs", None) == "probabilities" and squashing(net) is None


def out_of_range(loss: Any, prediction: Array) -> str:
    """Return why a prediction is not the probabilities that a loss takes, with a remedy; "" if it is, or is NaN. Waits
    for the device.
    """
    xp = namespace(prediction)
    low, high = backend_of(prediction).stack([xp.min(prediction), xp.max(prediction)])
    if not (low < -ROUNDED or high > 1.0 + ROUNDED):
        return ""
    of_rows = getattr(loss, "matrix", False)
    layer, twin = ("Softmax()", "SoftmaxCrossEntropy()") if of_rows else ("Sigmoid()", "BinaryCrossEntropyWithLogits()")
    return (
        f"the outputs run from {low:.4g} to {high:.4g}, and {loss!r} takes probabilities, in [0, 1]: end the network "
        f"in {layer}, or take the loss of logits, {twin}"
    )


# --- results of layers ------------------------------------------------------------------------------------------------


def takes_lowest(net: Placed) -> bool:
    """Whether a network's `backward_params` takes the number of the lowest layer."""
    return type(net).backward_params is Chain.backward_params


def is_within(name: str, prefix: str) -> bool:
    """Whether an array of this name belongs to the layer named `prefix`, or "" for the network."""
    return not prefix or name.startswith(f"{prefix}.")


GIVES = {"backward": "gradient", "next_state": "statistic"}


def checked(method: str, given: Mapping[str, Array], name: str, shape: tuple[int, ...], dtype: Any) -> Array:
    """Return the gradient or statistic of this name from a layer's `method`. Raises ValueError for another shape or
    dtype, which might broadcast silently.
    """
    kind = GIVES[method]
    if name not in given:
        raise ValueError(f"fit: {method} gave no {kind} for {name}; it gave {', '.join(given) or 'none'}")
    a = given[name]
    if not hasattr(a, "dtype") or tuple(a.shape) != shape or a.dtype != dtype:
        came = f"of shape {tuple(a.shape)} and {a.dtype}" if hasattr(a, "dtype") else f"that is a {type(a).__name__}"
        hint = "; xn.check_gradients finds such layers" * (method == "backward")
        raise ValueError(f"fit: {method} gave {name} a {kind} {came}, expected {shape} and {dtype}{hint}")
    return a
