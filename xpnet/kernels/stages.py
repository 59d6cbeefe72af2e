"""A stage: the forward and backward of a run of layers, in arrays that are made once for each shape of a batch.

In each family of kernels, an operation has a stage class in a file of its own. This file holds the base class, and the
classes that the families share. Axes: N batch, D features in, H features out. Stages work on (H, N) arrays, in which
the batch of a feature is contiguous. Arrays of more axes are those of the layers with the order of the axes reversed.
"""

import copy
import functools
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import numpy as np

from ..backends import Array, namespace
from ..common.checks import mapping_from, pair_from
from ..layers import dense, embedding, normalization
from ..layers.base import Layer
from ..losses import losses
from ..losses.losses import Loss
from .reference import checked
from .table import pointwise

# The pass of a stretch of a batch, some of its rows, through stages. Where it needs the other stretches, it yields a
# function and an object, and resumes after the function has been called once with the objects of all stretches. At the
# end it yields None and its result.
Meetings = Generator[tuple[Callable[[Sequence[Any]], None] | None, Any], None, Any]


class Part(NamedTuple):
    """A layer of the network: its name, the number of axes of its x, and the layers within it with their names."""

    prefix: str
    layer: Any
    axes: int
    leaves: Sequence[tuple[str, Layer]]
    frozen: bool = False  # whether training leaves its parameters as they are: it then runs its own code


LINE = 64  # bytes of a cache line


class Workspace:
    """Named buffers, each as large as the largest array requested under its name; smaller arrays are parts of it."""

    def __init__(self, xp: Any, dtype: Any, device: Any):
        self.xp, self.dtype, self.device = xp, dtype, device
        self.flat: dict[str, Array] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """Return an uninitialized array of this shape."""
        size = math.prod(shape)
        if name not in self.flat or self.flat[name].shape[0] < size:
            self.flat[name] = self.empty(size, dtype or self.dtype)
        return self.flat[name][:size].reshape(shape)

    def empty(self, size: int, dtype: Any) -> Array:
        """Return a new array that starts on a cache line, as other libraries' arrays do. A large array of NumPy starts
        16 bytes after one, so that each vector of 64 bytes would cross a cache line.
        """
        a = self.xp.empty(size + LINE, dtype=dtype, device=self.device)
        start = -a.__array_interface__["data"][0] % LINE // a.itemsize if isinstance(a, np.ndarray) else 0
        return a[start : start + size]

    def filled(self, value: float, shape: tuple[int, ...] = ()) -> Array:
        """Return a constant array, which nobody writes to.

        NumPy handles a 0-d array in half the time of a Python number; a product with a vector of ones is a sum.
        """
        a = self(repr(value), shape)
        a[...] = value
        return a


class Site(NamedTuple):
    """What stages share: the family of kernels, memory, and the place of each parameter in the flat vector."""

    family: Any
    workspace: Callable[[], Workspace]
    shared: Workspace  # for temporary arrays, which any stage may overwrite
    offsets: dict[str, int] = {}  # noqa: RUF012  # the first entry of each parameter, by name
    threads: int = 1  # the number of threads that run copies of these stages at the same time


class Vector:
    """A flat vector of all parameters or all gradients, with its views by name, and those of each stage."""

    def __init__(self, flat: Array, arrays: dict[str, Array], stages: Sequence["Stage"]):
        self.flat, self.arrays = flat, arrays
        self.views = [stage.views(self) for stage in stages]


class Stage:
    """The base class of stages. `take` decides which layers a class computes; the planner reads the other attributes.

    For each batch shape, the planner makes a copy and has it `bind` the arrays that forward and backward write into.
    `backward` may overwrite its dy. Whoever receives y may read it until this stage's own backward.
    """

    layers = 1  # the number of layers that it computes
    after: "Stage | None" = None  # the next stage
    rowwise = True  # whether each row of the batch is computed independently of its position and of the other rows
    numbers_rows = False  # whether rows are independent, but need their numbers, from `span`
    meets = False  # whether stretches of a batch have to meet within it: see `forward_of_stretch`
    infers = False  # whether inference is not the same as `forward`: see `infer`
    features: int | None = None  # of x, if known beforehand
    axes = 2  # of x
    foreign = False  # whether it runs a layer's own code, which may keep its arguments and returns new arrays
    bias = ""  # the name of a bias that the next stage must add to y
    y_read_once = False  # whether only the next stage reads y, which may overwrite it
    in_place = False  # whether y overwrites x
    has_ones = False  # whether a row of ones follows y
    images = False  # whether y holds images (W, H, C, N), stored in memory as (C, H, W, N)
    y_kept = False  # whether y must stay unchanged until the end of the step
    lowest = False  # whether no stage before it needs dx
    idle: tuple[str, ...] = ()  # names of parameters whose gradient is always 0
    averages: tuple[tuple[str, float], ...] = ()  # names of running averages, and the weight of a new batch
    batch: tuple[Array, ...] = ()  # buffers for the batch's statistics, in this order
    states: Sequence[Any] = ()  # the layers whose running statistics `next_state` returns
    y: Array
    y_and_ones: Any = None  # y, with the row of ones if there is one; None for more axes
    turn: int  # which of two shared buffers its dx takes, if it has none of its own; dy may be in the other
    cache: Any = None  # what backward needs beside the stage's own arrays; released after each step
    keeps = False  # whether forward sets `cache`

    def __init__(self, site: Site, before: "Stage | None", *names: str):
        self.site, self.before, self.names = site, before, names
        self.turn = before.turn if before else 0
        self.work, self.shared = site.workspace(), site.shared

    @classmethod
    def take(cls, site: Site, before: "Stage | None", parts: Sequence[Part]) -> "Stage | None":
        """Return a stage for the first `layers` of these parts, or None if it does not support them."""
        raise NotImplementedError

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """Return the views of a vector that forward and backward receive."""
        return tuple(vector.arrays[name] for name in self.names)

    def add_ones(self) -> None:
        """Store a row of ones after y."""
        if self.in_place and self.before:
            self.before.add_ones()
        self.has_ones = not self.in_place

    def keep_y(self) -> None:
        """Leave y unchanged until the end of the step."""
        if self.in_place and self.before:
            self.before.keep_y()
        self.y_kept = True

    def take_bias(self) -> bool:
        """Take over the bias that the next stage would add, if possible and faster; return whether it did."""
        return False

    def has_averages(self) -> bool:
        """Return whether the running averages have seen a batch; the first one sets them."""
        return False

    def bound(self, x: Array, before: "Stage | None") -> "Stage":
        """Return a copy bound to arrays like this x, the y of the stage `before`; x may come from elsewhere if None."""
        twin = copy.copy(self)
        twin.bind(x, before)
        return twin

    def bind(self, x: Array, before: "Stage | None") -> None:
        """Set the arrays for an x of this shape. x itself may be kept only if it is the y of the stage before."""

    def output(self, h: int, n: int) -> Array:
        """Return the array for y, (H, N)."""
        self.y_and_ones = self.work("y", (h + self.has_ones, n))
        self.y = self.y_and_ones[:h]
        return self.y

    def fill(self) -> None:
        """Restore constants that a batch of another shape, in the same memory, may have overwritten."""
        if self.has_ones:
            self.y_and_ones[-1] = 1.0

    def forward(self, x: Array, params: Any) -> Array:
        """(D, N) -> (H, N)"""
        raise NotImplementedError

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        """(H, N) -> (D, N), None for the lowest stage. Writes the gradients into `grads`."""
        raise NotImplementedError

    def infer(self, x: Array, params: Any, arrays: Mapping[str, Array]) -> Array:
        """`forward` in inference, for stages with `infers`; `arrays` are the network's parameters and statistics."""
        raise NotImplementedError

    def forward_of_stretch(self, x: Array, params: Any) -> Meetings:
        """`forward` for a stretch of a batch, which meets the others: see `Meetings`."""
        raise NotImplementedError

    def backward_of_stretch(self, dy: Array, params: Any, grads: Any) -> Meetings:
        """`backward` for a stretch; `grads` are its own."""
        raise NotImplementedError


class LayerStage(Stage):
    """Any layer, computed by its own forward and backward."""

    foreign = keeps = infers = True

    def __init__(self, site: Site, before: Stage | None, part: Part):
        self.prefix, self.layer = part.prefix, part.layer
        self.params = [(leaf, k, f"{p}.{k}") for p, leaf in part.leaves if leaf.trainable for k in leaf.params]
        self.states = [(leaf, {k: f"{p}.{k}" for k in leaf.state}) for p, leaf in part.leaves if leaf.state]
        super().__init__(site, before, *(name for *_, name in self.params))

    def __str__(self) -> str:
        return f"layer {self.prefix}, {self.layer!r}" if self.prefix else f"the network, {self.layer!r}"

    def named(self, method: str, given: Any) -> dict[str, Array]:
        """Return the arrays that a method of the layer returned, under their names in the network."""
        return {f"{self.prefix}.{key}".lstrip("."): a for key, a in mapping_from(self.layer, method, given).items()}

    def set_state(self, state: dict[str, Array]) -> None:
        """Set the running statistics."""
        for leaf, names in self.states:
            vars(leaf)["state"] = {key: state[name] for key, name in names.items()}

    def next_state(self) -> dict[str, Array]:
        """Return the running statistics after this step, by name."""
        given = self.layer.state, self.layer.next_state(self.cache)
        before, after = (self.named("next_state", arrays) for arrays in given)
        return {k: checked("next_state", after, k, tuple(a.shape), a.dtype) for k, a in before.items()}

    def forward(self, x: Array, params: Sequence[Array]) -> Array:
        for (leaf, key, _), value in zip(self.params, params, strict=True):
            leaf.params[key] = value
        y, self.cache = pair_from(self.layer, "forward", self.layer.forward(reversed_axes(x), training=True))
        return reversed_axes(y)

    def infer(self, x: Array, params: Any, arrays: Mapping[str, Array]) -> Array:
        return reversed_axes(self.layer._infer(reversed_axes(x)))

    def backward(self, dy: Array, params: Sequence[Array], grads: Sequence[Array]) -> Any:
        if self.lowest:
            dx, own = None, self.layer.backward_params(reversed_axes(dy), self.cache)
        else:
            dx, own = pair_from(self.layer, "backward", self.layer.backward(reversed_axes(dy), self.cache))
        named = self.named("backward_params", own)
        for name, place in zip(self.names, grads, strict=True):
            place[...] = checked("backward", named, name, tuple(place.shape), place.dtype)
        return None if dx is None else reversed_axes(dx)


class Entry(Stage):
    """Between a foreign stage and a kernel's: refuses a y of another shape or dtype, since kernels do not check."""

    foreign = True

    def __init__(self, site: Site, before: Stage, after: Stage):
        super().__init__(site, before)
        self.who, self.end = f"{before}: forward", after

    def bind(self, x: Array, before: Stage | None) -> None:
        end = self.end
        self.shape = (end.features or x.shape[0], *x.shape[1 - end.axes :]) if x.ndim else ()

    def forward(self, x: Array, params: Any) -> Array:
        check_fit(self.who, x, self.shape, self.work.dtype)
        return x

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        return dy


class Exit(Stage):
    """Between a stage and a foreign one or a loss: refuses a dy that does not fit, and copies it into a buffer."""

    def __init__(self, site: Site, before: Stage, who: str, place: str):
        super().__init__(site, before)
        self.who, self.place = who, place

    def bind(self, x: Array, before: Stage | None) -> None:
        self.shape = tuple(x.shape)
        self.dy: Any = None

    def forward(self, x: Array, params: Any) -> Array:
        return x

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        check_fit(self.who, dy, self.shape, self.work.dtype)
        if self.dy is None:  # made on demand: the dy of a fused loss does not pass here
            images = self.before is not None and self.before.images
            self.dy = in_memory_order(self.shared, self.place, self.shape, images)
        self.dy[...] = dy
        return self.dy


def check_fit(who: str, a: Array, shape: tuple[int, ...], dtype: Any) -> None:
    """Raise ValueError if an array from a user's layer or loss does not fit; the kernels do not check theirs."""
    if tuple(a.shape) != shape:
        got, expected = tuple(a.shape)[::-1], shape[::-1]
        raise ValueError(f"fit: {who} gave an array of shape {got}, expected {expected}")
    if a.dtype != dtype:
        raise ValueError(f"fit: {who} gave an array of {a.dtype}, expected {dtype}")


def reversed_axes(a: Array) -> Array:
    """Return an array with the order of its axes reversed, such as (N, H) as (H, N).

    NumPy's `T` and PyTorch's `permute` take a fifth and half the time of the standard's function.
    """
    if a.ndim == 2 or isinstance(a, np.ndarray):
        return a.T
    axes = range(a.ndim)[::-1]
    return a.permute(*axes) if hasattr(a, "permute") else namespace(a).permute_dims(a, tuple(axes))


def reversed_images(a: Array) -> Array:
    """Return an array with the order of all axes but the last reversed, such as (C, H, W, N) as (W, H, C, N)."""
    return namespace(a).permute_dims(a, (*range(a.ndim - 1)[::-1], a.ndim - 1))


def in_memory_order(
    room: Callable[[str, tuple[int, ...]], Array], name: str, shape: tuple[int, ...], images: bool
) -> Array:
    """Return an array from `room`: images in the memory order of their stages, other arrays in that of the layers."""
    if images:
        return reversed_images(room(name, (*shape[-2::-1], shape[-1])))
    return room(name, shape) if len(shape) == 2 else reversed_axes(room(name, shape[::-1]))


# --- for all families -------------------------------------------------------------------------------------------------


class Product(Stage):
    """The matrix product of a Dense, z = Wᵀ x, with dW = x dzᵀ and dx = W dz.

    The next stage adds the bias. Where x is the y of another stage, the product may add it instead: it then takes
    x̃ = [x; 1], (D + 1, N), and W̃ = [W; b], adjacent in the vector of parameters. W̃ᵀ x̃ = Wᵀ x + b and
    [dW; db] = x̃ dzᵀ.
    """

    y_read_once = True
    adds_bias = False

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> "Stage | None":
        fits = parts and type(parts[0].layer) is dense.Dense and not parts[0].frozen and parts[0].axes == 2
        return cls(site, before, parts[0]) if fits else None

    def __init__(self, site: Site, before: Stage | None, part: Part):
        super().__init__(site, before, f"{part.prefix}.weight")
        self.bias = f"{part.prefix}.bias"
        self.shape = self.features, _ = part.layer.in_features, part.layer.out_features
        self.product, self.turn = site.family.product, 1 - self.turn

    def take_bias(self) -> bool:
        offsets, size, before = self.site.offsets, math.prod(self.shape), self.before
        if before is None or before.foreign or size < self.site.family.bias_joins_from:
            return False
        if offsets[self.bias] != offsets[self.names[0]] + size:  # the parameters may have been set in another order
            return False
        self.adds_bias, self.bias = True, ""
        before.add_ones()
        return True

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """Return W, W̃ and the transpose of W̃, which is W if the product does not add the bias."""
        weight = joint = vector.arrays[self.names[0]]
        if self.adds_bias:
            start, (d, h) = self.site.offsets[self.names[0]], self.shape
            joint = vector.flat[start : start + (d + 1) * h].reshape((d + 1, h))
        return weight, joint, joint.T

    def bind(self, x: Array, before: Stage | None) -> None:
        (rows, outputs), n = self.shape, x.shape[1]
        y = self.output(outputs, n)
        self.keeps = before is None
        self.cache = before and before.y_and_ones if self.adds_bias else None if self.keeps else x
        fits = rows <= outputs and not self.y_kept
        self.dx = None if self.lowest else y[:rows] if fits else self.shared(f"dx{self.turn}", (rows, n))

    def forward(self, x: Array, params: Any) -> Array:
        if self.keeps:
            self.cache = x
        return self.product(params[2], self.cache, self.y)

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        self.product(self.cache, dy.T, grads[1])
        return None if self.dx is None else self.product(params[0], dy, self.dx)


def function_in(parts: Sequence[Part]) -> Layer | None:
    """Return the first of these layers if it is a pointwise function of the table and takes matrices."""
    return parts[0].layer if parts and parts[0].axes == 2 and pointwise(parts[0].layer) else None


class Pointwise(Stage):
    """A pointwise function of a product with its bias, y = f(z + bias): dz = dy f', dbias = Σ_n dz."""

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> "Stage | None":
        f = function_in(parts)
        if before is None or not before.y_read_once or not (before.bias or f):
            return None
        if before.bias and before.take_bias() and not f:
            return None
        return cls(site, before, f)

    def __init__(self, site: Site, before: Stage, f: Layer | None):
        super().__init__(site, before, *[before.bias] * bool(before.bias))
        self.f, self.layers = f, int(f is not None)
        self.y_read_once = f is None

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """Return the bias as a vector and a column; None if the product adds it."""
        if not self.names:
            return None, None
        bias = vector.arrays[self.names[0]]
        return bias, bias[:, None]


class BatchNorm(Stage):
    """A BatchNorm and an optional pointwise function, y = f(γ (z - μ) / √(v + eps) + β), μ and v those of the batch.

    With du = dy f': dβ = Σ_n du, dγ = Σ_n du x̂, dz = γ / √(v + eps) (du - dβ / N - x̂ dγ / N).

    The bias of a Dense before it shifts only the mean. So it is left out of z and added to the running mean, and its
    gradient is 0: see `idle_parameters`.
    """

    rowwise, infers = False, True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> "Stage | None":
        fits = parts and type(parts[0].layer) is normalization.BatchNorm and not parts[0].frozen
        fits = fits and parts[0].axes == 2
        return cls(site, before, parts[0], function_in(parts[1:])) if fits else None

    def __init__(self, site: Site, before: Stage | None, part: Part, f: Layer | None):
        self.idle = (before.bias,) if before and before.bias else ()
        super().__init__(site, before, f"{part.prefix}.gamma", f"{part.prefix}.beta", *self.idle)
        self.layer = layer = part.layer
        self.f, self.layers, self.features, self.eps = f, 1 + (f is not None), layer.features, layer.eps
        self.averages = tuple((f"{part.prefix}.{key}", 1.0 - layer.momentum) for key in ("mean", "var"))

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """Return γ, β as a vector and a column, and the bias of the Dense before it or None."""
        gamma, beta, *bias = (vector.arrays[name] for name in self.names)
        return gamma, beta, beta[:, None], bias[0] if bias else None

    def has_averages(self) -> bool:
        mean, var = (self.layer.state[key] for key in ("mean", "var"))
        return not bool(self.work.xp.all((mean == 0.0) & (var == 1.0)))

    # --- stretches of a batch, for the families that use threads ---

    n: int  # entries of each feature
    mean: Array  # μ and v of the stretch; after the meeting, of the batch
    var: Array
    shift: Array  # μ of the stretch minus μ of the batch
    totals: tuple[Array, Array]  # dγ and dβ of the stretch; after the meeting, the batch's times its share of the rows
    begin_forward: Callable[[Array, Any], None]  # computes μ and v
    end_forward: Callable[[Array, Any], Array]  # computes y from those of the batch
    begin_backward: Callable[[Array, Any, Any], None]  # computes du and the gradients
    end_backward: Callable[[Array, Any, Any], Array]  # computes dz, given `totals` as the gradients

    def own_statistics(self, h: int) -> tuple[Array, ...]:
        """Return the arrays for μ and v of the stretch."""
        alone = self.batch and self.site.threads == 1
        return self.batch if alone else (self.work("mean", (h,)), self.work("var", (h,)))

    def take_averages(self, bias: Array | None, arrays: Mapping[str, Array]) -> None:
        """Set μ and v to the running averages; μ without the bias of a Dense before it, which x does not have."""
        mean, var = (arrays[name] for name, _ in self.averages)
        self.mean[...], self.var[...] = mean if bias is None else mean - bias, var

    def forward_of_stretch(self, x: Array, params: Any) -> Meetings:
        self.begin_forward(x, params)
        yield functools.partial(self.meet_forward, params[-1]), self
        return self.end_forward(x, params)

    def meet_forward(self, bias: Array | None, stretches: Sequence[Self]) -> None:
        """μ = Σ_i r_i μ_i and v = Σ_i r_i (v_i + (μ_i - μ)²), with r_i the share of stretch i of the rows.

        Source: Chan, Golub & LeVeque 1983, for two parts.
        """
        shares, first = shares_of(stretches), self.mean
        mean = first + sum(r * (each.mean - first) for r, each in zip(shares, stretches, strict=True))
        for each in stretches:
            each.shift = each.mean - mean
        var = sum(r * (each.var + each.shift * each.shift) for r, each in zip(shares, stretches, strict=True))
        for each in stretches:
            each.mean[...], each.var[...] = mean, var
        self.batch[0][...], self.batch[1][...] = mean if bias is None else mean + bias, var

    def backward_of_stretch(self, dy: Array, params: Any, grads: Any) -> Meetings:
        self.begin_backward(dy, params, grads)
        self.totals = grads[:2]
        yield self.meet_backward, self
        return self.end_backward(dy, params, self.totals)

    def meet_backward(self, stretches: Sequence[Self]) -> None:
        """r_i Σ_i dγ_i and r_i Σ_i dβ_i: divided by the entries of the stretch, they are dγ / N and dβ / N."""
        dgamma, dbeta = map(sum, zip(*[each.totals for each in stretches], strict=True))
        for r, each in zip(shares_of(stretches), stretches, strict=True):
            each.totals = r * dgamma, r * dbeta


def shares_of(stretches: Sequence[BatchNorm]) -> list[float]:
    """Return the share of each stretch of the rows."""
    rows = sum(each.n for each in stretches)
    return [each.n / rows for each in stretches]


class Dropout(Stage):
    """y = x m and dx = dy m, with the mask m of the layer."""

    rowwise, numbers_rows = False, True
    next_key: Array

    def __init__(self, site: Site, before: Stage | None, part: Part):
        super().__init__(site, before)
        self.layer: Any = part.layer
        self.axes, self.images = part.axes, before is not None and before.images
        self.name, self.states = f"{part.prefix}.key", [part.layer]

    def set_state(self, state: dict[str, Array]) -> None:
        """Set the key."""
        vars(self.layer)["state"] = {"key": state[self.name]}

    def next_state(self) -> dict[str, Array]:
        """Return the next key, by name."""
        return {self.name: self.next_key}


class Embedding(Stage):
    """An Embedding as the first layer of a network, with the PositionalEmbedding after it, if any."""

    keeps = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        kinds = embedding.Embedding, embedding.PositionalEmbedding
        taken = [part for part, kind in zip(parts, kinds, strict=False) if type(part.layer) is kind]
        fits = before is None and taken and taken[0] is parts[0] and parts[0].axes > 1
        if not fits or any(part.frozen for part in taken):
            return None
        return cls(site, taken[: 2 if parts[0].axes == 2 else 1])

    def __init__(self, site: Site, parts: Sequence[Part]):
        super().__init__(site, None, *[f"{part.prefix}.weight" for part in parts])
        self.layers, self.axes = len(parts), parts[0].axes
        self.of_ids, *rest = (part.layer for part in parts)
        self.of_places = rest[0] if rest else None

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """Return the weights of the two layers, None for one that is not there."""
        weight, *places = (vector.arrays[name] for name in self.names)
        return weight, places[0] if places else None


class SoftmaxCrossEntropy(Stage):
    """The cross-entropy of logits z and targets t that sum to 1, both (K, N): Σ_n [log Σ_k e^s - Σ_k t s] with
    s = z - max_k z, and dz = softmax(z) - t; for "mean", both divided by N. `forward` returns both.
    """

    @classmethod
    def of(cls, site: Site, loss: Loss, axes: int) -> "SoftmaxCrossEntropy | None":
        """Return the stage for this loss and outputs of so many axes, or None if it does not support them."""
        fits = type(loss) is losses.SoftmaxCrossEntropy and loss.ignore is None and axes == 2
        return cls(site, loss) if fits else None

    def __init__(self, site: Site, loss: Any):
        super().__init__(site, None)
        self.reduction = loss.reduction

    def share(self, n: int) -> float:
        """Return the factor of the sum: 1, or 1 / N for "mean"."""
        return 1.0 if self.reduction == "sum" else 1.0 / n
