"""A stage: the forward and backward of a run of layers, in arrays that are made once for each shape of a batch.

Each operation has a class of stages in a file of its own, for each family of kernels; here are those that all families
share, and the base. Axes: N batch, D features in, H features out. Inside, arrays are (H, N): the batch of a feature is
one row of memory. Arrays of more axes are the layers' own, with all their axes the other way round.
"""

import copy
import functools
import math
from collections.abc import Callable, Generator, Sequence
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

# The way of a stretch of a batch through stages. Where it needs the other stretches, it yields a function, to be called
# once with what all of them yield beside theirs before it goes on; and None in the end, with what it comes to.
Meetings = Generator[tuple[Callable[[Sequence[Any]], None] | None, Any], None, Any]


class Part(NamedTuple):
    """A layer of the network, its name, the axes of the x that it is given, and the layers within it, each named."""

    prefix: str
    layer: Any
    axes: int
    leaves: Sequence[tuple[str, Layer]]


LINE = 64  # bytes of a cache line


class Workspace:
    """Memory by name, as much of each as the largest array asked for; smaller arrays are parts of it."""

    def __init__(self, xp: Any, dtype: Any, device: Any):
        self.xp, self.dtype, self.device = xp, dtype, device
        self.flat: dict[str, Array] = {}

    def __call__(self, name: str, shape: tuple[int, ...], dtype: Any = None) -> Array:
        """An array of that shape, with whatever numbers are in it."""
        size = math.prod(shape)
        if name not in self.flat or self.flat[name].shape[0] < size:
            self.flat[name] = self.empty(size, dtype or self.dtype)
        return self.flat[name][:size].reshape(shape)

    def empty(self, size: int, dtype: Any) -> Array:
        """Return a new array that begins at a cache line, as other libraries' do. A large array of NumPy begins 16
        bytes after one, so that each vector of 64 bytes would be in two lines.
        """
        a = self.xp.empty(size + LINE, dtype=dtype, device=self.device)
        start = -a.__array_interface__["data"][0] % LINE // a.itemsize if isinstance(a, np.ndarray) else 0
        return a[start : start + size]

    def filled(self, value: float, shape: tuple[int, ...] = ()) -> Array:
        """An array of one value, which nobody writes to.

        NumPy takes an array without axes in half the time of Python's number; a product with ones is a sum.
        """
        a = self(repr(value), shape)
        a[...] = value
        return a


class Site(NamedTuple):
    """The surroundings of stages: a family of kernels, memory, and where parameters stand in their vector."""

    family: Any
    workspace: Callable[[], Workspace]
    shared: Workspace  # for temporary arrays, which no stage needs later
    offsets: dict[str, int] = {}  # noqa: RUF012  # the first entry of each parameter, by name
    threads: int = 1  # the number of threads that run such stages at the same time


class Vector:
    """A vector of all parameters or of their gradients, with the views of it: by name, and those of each stage."""

    def __init__(self, flat: Array, arrays: dict[str, Array], stages: Sequence["Stage"]):
        self.flat, self.arrays = flat, arrays
        self.views = [stage.views(self) for stage in stages]


class Stage:
    """The base of every stage. `take` says what a class does; the planner asks the rest of these attributes.

    For each shape of a batch the planner has a copy `bind` the arrays that it needs; forward and backward then write
    into them. `backward` may write over its dy. Whoever is given y may read it until this stage's own backward.
    """

    layers = 1  # the number of layers that it computes
    after: "Stage | None" = None  # the next stage
    rowwise = True  # whether each row of the batch is computed independently of its position and of the other rows
    numbers_rows = False  # whether it is rowwise except that it asks `span` for the numbers of the rows
    meets = False  # whether a batch may be divided into stretches that meet within it: see `forward_of_stretch`
    features: int | None = None  # of x, if known beforehand
    axes = 2  # of x
    foreign = False  # whether it runs a layer's own code, which may keep its arguments and returns arrays of its own
    bias = ""  # the name of a bias that the next stage must add to y
    y_read_once = False  # whether only the next stage reads y, and may overwrite it
    in_place = False  # whether y overwrites x
    has_ones = False  # whether a row of ones is below y
    images = False  # whether y is images (W, H, C, N), in memory as (C, H, W, N)
    y_kept = False  # whether y goes to a foreign stage, which may keep it
    lowest = False  # whether no stage needs dx
    idle: tuple[str, ...] = ()  # parameters whose gradient is always 0
    averages: tuple[tuple[str, float], ...] = ()  # names of running averages, each with the weight of a new batch
    batch: tuple[Array, ...] = ()  # buffers for the batch's statistics, in this order
    states: Sequence[Any] = ()  # the layers whose running statistics `next_state` returns
    y: Array
    y_and_ones: Any = None  # y, with the row of ones below it if it has one; None of more axes
    turn: int  # which of two places its dx takes where it has none of its own: dy may stand in the other
    cache: Any = None  # what forward leaves for backward that is not the stage's own; let go after each step
    keeps = False  # whether it does

    def __init__(self, site: Site, before: "Stage | None", *names: str):
        self.site, self.before, self.names = site, before, names
        self.turn = before.turn if before else 0
        self.work, self.shared = site.workspace(), site.shared

    @classmethod
    def take(cls, site: Site, before: "Stage | None", parts: Sequence[Part]) -> "Stage | None":
        """A stage for the first `layers` of these parts; None where it does not do them."""
        raise NotImplementedError

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """The views of a vector that forward and backward are given."""
        return tuple(vector.arrays[name] for name in self.names)

    def add_ones(self) -> None:
        """Have a row of ones stand below y."""
        if self.in_place and self.before:
            self.before.add_ones()
        self.has_ones = not self.in_place

    def keep_y(self) -> None:
        """Keep y as it is until the step has ended."""
        if self.in_place and self.before:
            self.before.keep_y()
        self.y_kept = True

    def take_bias(self) -> bool:
        """Add the bias that is the next stage's to add, if that is possible and pays."""
        return False

    def has_averages(self) -> bool:
        """Whether the running averages are of a batch already: the first one sets them."""
        return False

    def bound(self, x: Array, before: "Stage | None") -> "Stage":
        """A copy for arrays like this x, which is the y of the stage `before`, or anybody's where that is None."""
        twin = copy.copy(self)
        twin.bind(x, before)
        return twin

    def bind(self, x: Array, before: "Stage | None") -> None:
        """Find the arrays for an x of this shape; x itself is to be kept only as the y of the stage before."""

    def output(self, h: int, n: int) -> Array:
        """The place of y, (H, N)."""
        self.y_and_ones = self.work("y", (h + self.has_ones, n))
        self.y = self.y_and_ones[:h]
        return self.y

    def fill(self) -> None:
        """Write what the arrays of another shape, in the same memory, may have written over."""
        if self.has_ones:
            self.y_and_ones[-1] = 1.0

    def forward(self, x: Array, params: Any) -> Array:
        """(D, N) -> (H, N)"""
        raise NotImplementedError

    def backward(self, dy: Array, params: Any, grads: Any) -> Any:
        """(H, N) -> (D, N), None where it is the lowest. The gradients go to `grads`."""
        raise NotImplementedError

    def forward_of_stretch(self, x: Array, params: Any) -> Meetings:
        """`forward` of a stretch of a batch, which meets the others."""
        raise NotImplementedError

    def backward_of_stretch(self, dy: Array, params: Any, grads: Any) -> Meetings:
        """`backward` of a stretch; the gradients are its own."""
        raise NotImplementedError


class LayerStage(Stage):
    """Any layer, by its own forward and backward."""

    foreign = keeps = True

    def __init__(self, site: Site, before: Stage | None, part: Part):
        self.prefix, self.layer = part.prefix, part.layer
        self.params = [(leaf, k, f"{p}.{k}") for p, leaf in part.leaves if leaf.trainable for k in leaf.params]
        self.states = [(leaf, {k: f"{p}.{k}" for k in leaf.state}) for p, leaf in part.leaves if leaf.state]
        super().__init__(site, before, *(name for *_, name in self.params))

    def __str__(self) -> str:
        return f"layer {self.prefix}, {self.layer!r}" if self.prefix else f"the network, {self.layer!r}"

    def named(self, method: str, given: Any) -> dict[str, Array]:
        """The arrays that a method of the layer gave, under the network's names."""
        return {f"{self.prefix}.{key}".lstrip("."): a for key, a in mapping_from(self.layer, method, given).items()}

    def set_state(self, state: dict[str, Array]) -> None:
        """Take the running statistics."""
        for leaf, names in self.states:
            vars(leaf)["state"] = {key: state[name] for key, name in names.items()}

    def next_state(self) -> dict[str, Array]:
        """The running statistics after this step, by name."""
        given = self.layer.state, self.layer.next_state(self.cache)
        before, after = (self.named("next_state", arrays) for arrays in given)
        return {k: checked("next_state", after, k, tuple(a.shape), a.dtype) for k, a in before.items()}

    def forward(self, x: Array, params: Sequence[Array]) -> Array:
        for (leaf, key, _), value in zip(self.params, params, strict=True):
            leaf.params[key] = value
        y, self.cache = pair_from(self.layer, "forward", self.layer.forward(reversed_axes(x), training=True))
        return reversed_axes(y)

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
    """Between a foreign stage and one that trusts what it is given: refuses a y that does not fit."""

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
    """Between a stage and a foreign one, or a loss: refuses a dy that does not fit, and copies it, to be written to."""

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
        if self.dy is None:  # made when it is needed: a loss of the family's own gives an array that may be written to
            images = self.before is not None and self.before.images
            self.dy = in_memory_order(self.shared, self.place, self.shape, images)
        self.dy[...] = dy
        return self.dy


def check_fit(who: str, a: Array, shape: tuple[int, ...], dtype: Any) -> None:
    """Refuse an array of a user's layer or loss that does not fit: the kernels trust what they are given."""
    if tuple(a.shape) != shape:
        got, expected = tuple(a.shape)[::-1], shape[::-1]
        raise ValueError(f"fit: {who} gave an array of shape {got}, expected {expected}")
    if a.dtype != dtype:
        raise ValueError(f"fit: {who} gave an array of {a.dtype}, expected {dtype}")


def reversed_axes(a: Array) -> Array:
    """(N, H) as (H, N) and back; of more axes, all the other way round: by NumPy's `T`, or PyTorch's `permute`, at a
    fifth or half of the cost of the standard's function.
    """
    if a.ndim == 2 or isinstance(a, np.ndarray):
        return a.T
    axes = range(a.ndim)[::-1]
    return a.permute(*axes) if hasattr(a, "permute") else namespace(a).permute_dims(a, tuple(axes))


def reversed_images(a: Array) -> Array:
    """(C, ..., N) as (..., C, N), with the other axes the other way round, and back."""
    return namespace(a).permute_dims(a, (*range(a.ndim - 1)[::-1], a.ndim - 1))


def in_memory_order(
    room: Callable[[str, tuple[int, ...]], Array], name: str, shape: tuple[int, ...], images: bool
) -> Array:
    """An array of that shape: a matrix as it is, images as their stages have them, others as the layers' own code."""
    if images:
        return reversed_images(room(name, (*shape[-2::-1], shape[-1])))
    return room(name, shape) if len(shape) == 2 else reversed_axes(room(name, shape[::-1]))


# --- for all families -------------------------------------------------------------------------------------------------


class Product(Stage):
    """The matrix product of a Dense, z = Wᵀ x, with dW = x dzᵀ and dx = W dz.

    The next stage adds the bias; or the product does, where x is another stage's y: it then takes x̃ (D + 1, N), with a
    row of ones below it, and W̃ = [W; b], as they stand in the vector of parameters. W̃ᵀ x̃ = Wᵀ x + b and
    [dW; db] = x̃ dzᵀ.
    """

    y_read_once = True
    adds_bias = False

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> "Stage | None":
        fits = parts and type(parts[0].layer) is dense.Dense and parts[0].layer.trainable and parts[0].axes == 2
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
        if offsets[self.bias] != offsets[self.names[0]] + size:  # a network may have been given them in another order
            return False
        self.adds_bias, self.bias = True, ""
        before.add_ones()
        return True

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """W, W̃ and its transpose; W̃ is W where the bias is not in it."""
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
    """The first of these layers, if it is a pointwise function of the table, of a matrix."""
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
        """The bias and it as a column; None where it is the product's."""
        if not self.names:
            return None, None
        bias = vector.arrays[self.names[0]]
        return bias, bias[:, None]


class BatchNorm(Stage):
    """A BatchNorm and perhaps a pointwise function, y = f(γ (z - μ) / √(v + eps) + β), with μ and v the batch's.

    With du = dy f': dβ = Σ_n du, dγ = Σ_n du x̂, dz = γ / √(v + eps) (du - dβ / N - x̂ dγ / N).

    The bias of a Dense before it moves the mean and nothing else: it is left out of the sum, added to the running mean,
    and its gradient is 0, as `Sequential.idle_parameters` says.
    """

    rowwise = False

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> "Stage | None":
        fits = parts and type(parts[0].layer) is normalization.BatchNorm and parts[0].layer.trainable
        fits = fits and parts[0].axes == 2
        return cls(site, before, parts[0], function_in(parts[1:])) if fits else None

    def __init__(self, site: Site, before: Stage | None, part: Part, f: Layer | None):
        self.idle = (before.bias,) if before and before.bias else ()
        super().__init__(site, before, f"{part.prefix}.gamma", f"{part.prefix}.beta", *self.idle)
        self.layer = layer = part.layer
        self.f, self.layers, self.features, self.eps = f, 1 + (f is not None), layer.features, layer.eps
        self.averages = tuple((f"{part.prefix}.{key}", 1.0 - layer.momentum) for key in ("mean", "var"))

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """γ, β as a vector and a column, and the bias before it or None."""
        gamma, beta, *bias = (vector.arrays[name] for name in self.names)
        return gamma, beta, beta[:, None], bias[0] if bias else None

    def has_averages(self) -> bool:
        mean, var = (self.layer.state[key] for key in ("mean", "var"))
        return not bool(self.work.xp.all((mean == 0.0) & (var == 1.0)))

    # --- a stretch of a batch, for the families that have threads ---

    n: int  # entries of a feature
    mean: Array  # μ and v, the stretch's until it meets the others, and the batch's from there on
    var: Array
    shift: Array  # the stretch's μ less the batch's
    totals: tuple[Array, Array]  # dγ and dβ, the stretch's, and then the batch's times the stretch's share of the rows
    begin_forward: Callable[[Array, Any], None]  # finds μ and v
    end_forward: Callable[[Array, Any], Array]  # finds y, with the batch's
    begin_backward: Callable[[Array, Any, Any], None]  # makes du of dy, and the gradients
    end_backward: Callable[[Array, Any, Any], Array]  # makes dz of du, with `totals` in the gradients' place

    def own_statistics(self, h: int) -> tuple[Array, ...]:
        """The places for μ and v."""
        return self.batch if self.site.threads == 1 else (self.work("mean", (h,)), self.work("var", (h,)))

    def forward_of_stretch(self, x: Array, params: Any) -> Meetings:
        self.begin_forward(x, params)
        yield functools.partial(self.meet_forward, params[-1]), self
        return self.end_forward(x, params)

    def meet_forward(self, bias: Array | None, stretches: Sequence[Self]) -> None:
        """With r_i the share that stretch i has of the rows, μ = Σ_i r_i μ_i and v = Σ_i r_i (v_i + (μ_i - μ)²).

        Source: Chan, Golub & LeVeque 1983, there for two parts.
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
        """r_i Σ_i dγ_i and r_i Σ_i dβ_i, which over the stretch's entries are dγ / N and dβ / N."""
        dgamma, dbeta = map(sum, zip(*[each.totals for each in stretches], strict=True))
        for r, each in zip(shares_of(stretches), stretches, strict=True):
            each.totals = r * dgamma, r * dbeta


def shares_of(stretches: Sequence[BatchNorm]) -> list[float]:
    """What each has of their rows."""
    rows = sum(each.n for each in stretches)
    return [each.n / rows for each in stretches]


class Dropout(Stage):
    """As the layer has it, y = x m and dx = dy m."""

    rowwise, numbers_rows = False, True
    next_key: Array

    def __init__(self, site: Site, before: Stage | None, part: Part):
        super().__init__(site, before)
        self.layer: Any = part.layer
        self.axes, self.images = part.axes, before is not None and before.images
        self.name, self.states = f"{part.prefix}.key", [part.layer]

    def set_state(self, state: dict[str, Array]) -> None:
        """Take the key."""
        vars(self.layer)["state"] = {"key": state[self.name]}

    def next_state(self) -> dict[str, Array]:
        """The next key."""
        return {self.name: self.next_key}


class Embedding(Stage):
    """An Embedding, and perhaps the PositionalEmbedding behind it, as the first layers of a network."""

    keeps = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        kinds = embedding.Embedding, embedding.PositionalEmbedding
        taken = [part for part, kind in zip(parts, kinds, strict=False) if type(part.layer) is kind]
        fits = before is None and taken and taken[0] is parts[0] and parts[0].axes > 1
        if not fits or not all(part.layer.trainable for part in taken):
            return None
        return cls(site, taken[: 2 if parts[0].axes == 2 else 1])

    def __init__(self, site: Site, parts: Sequence[Part]):
        super().__init__(site, None, *[f"{part.prefix}.weight" for part in parts])
        self.layers, self.axes = len(parts), parts[0].axes
        self.of_ids, *rest = (part.layer for part in parts)
        self.of_places = rest[0] if rest else None

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """The weights; None for that of a layer that is not there."""
        weight, *places = (vector.arrays[name] for name in self.names)
        return weight, places[0] if places else None


class SoftmaxCrossEntropy(Stage):
    """The loss from logits, for rows of t that add up to 1: with s = z - max z, Σ_n [log Σ_k e^s - Σ_k t s] and
    dz = softmax(z) - t, or their means.

    z and t are (K, N). `forward` gives both at once.
    """

    @classmethod
    def of(cls, site: Site, loss: Loss, axes: int) -> "SoftmaxCrossEntropy | None":
        """The stage of this loss, of outputs with so many axes; None where it does not do it."""
        fits = type(loss) is losses.SoftmaxCrossEntropy and loss.ignore is None and axes == 2
        return cls(site, loss) if fits else None

    def __init__(self, site: Site, loss: Any):
        super().__init__(site, None)
        self.reduction = loss.reduction

    def share(self, n: int) -> float:
        """The factor of the sum, by the reduction."""
        return 1.0 if self.reduction == "sum" else 1.0 / n
