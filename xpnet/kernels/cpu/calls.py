"""A stage's work in the calls of NumPy or PyTorch, whose functions write into arrays that are there.

Axes: N batch, H features, K classes. Matrices are (H, N), a feature's batch in one row of memory; vectors are (H,).
Every method of `Calls` has twins of the same name and arguments in `numba.py` and `cuda/kernels.py`.
"""

import copy
import functools
import importlib
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ... import ops
from ...backends import Array, Backend
from ...layers.base import Layer
from ...optimizers import Optimizer, Slots
from ..formulas import Program, names_in
from ..reference import updated
from ..table import POINTWISE, RULES, lines_of, numbers_in, numbers_of
from . import threads
from .products import product

Work = Any  # planner.Workspace: an array by name and shape, made once
SMALL = 2**16  # numbers of a matrix up to which one of zeros is worth its memory: a row of them takes more calls within


class Compiled(NamedTuple):
    """A program: the function, and the names of its arguments and the constants, in their order."""

    function: Callable[..., None]
    names: list[str]
    constants: list[float]


class Function:
    """A pointwise function in a library's calls: x, which stands in y's place, becomes y.

    A slope that is a formula of x is found in forward and kept, as a mask where it is 1 or 0. One of y alone is found
    in backward.
    """

    def __init__(self, lib: Any, kind: type[Layer]):
        value, slope = POINTWISE[kind]
        condition = re.fullmatch(r"where\((.*), 1, 0\)", slope)
        self.keeps, self.masks = "x" in names_in(slope), condition is not None
        self.settings = sorted((names_in(value) | names_in(slope)) - {"x", "y"})
        self.value = self._compiled(lib, "y", value)
        self.slope_of = self._compiled(lib, "slope", condition[1] if condition else slope)
        self.negated = None  # of -(x + shift), in one call less
        if len(re.findall(r"\bx\b", value)) == value.count("-x"):
            self.negated = self._compiled(lib, "y", value.replace("-x", "(minus_shift - x)"), "minus_shift")

    def _compiled(self, lib: Any, place: str, formula: str, *last: str) -> Compiled:
        program = Program([(place, formula)], {place: place}, {"x": "y"})
        names = list(dict.fromkeys(["y", place, *self.settings]))
        return Compiled(program.function(lib, *names, last=last), [*names, *program.spare], [*program.constants])

    @property
    def programs(self) -> list[Compiled]:
        """All of them."""
        return [self.value, self.slope_of, *([self.negated] if self.negated else [])]


@functools.cache
def function(lib: Any, kind: type[Layer]) -> Function:
    """It, compiled once."""
    return Function(lib, kind)


@functools.cache
def rule(lib: Any, kind: type[Optimizer], decays: bool) -> Compiled:
    """An optimizer's lines as a function of g, which becomes the next w, of w, the slots, the next ones, numbers.

    `names` are those of the numbers, then of spare arrays.
    """
    lines, slots = lines_of(kind, decays), kind.memory
    new = {name: f"new_{name}" for name in slots}
    program = Program(lines, {"g": "g", "w": "g", **new}, shared=[(place, name) for name, place in new.items()])
    arrays = ["g", "w", *slots, *new.values()]
    numbers = numbers_in(lines, slots)
    return Compiled(program.function(lib, *arrays, *numbers), [*numbers, *program.spare], [])


class Bound:
    """What the calls of one block write into for one size of batch, found once: (H, N) arrays and (H,) vectors."""

    value: Callable[[], None]
    slope_of: Callable[[], None]
    y: Array
    slope: Array
    centred: Array
    deviation: Array
    gain: Array
    small: Array

    def __init__(self, calls: "Calls", f: Layer | None, z: Array, work: Work, own: bool, eps: float | None):
        h, n = shape = tuple(z.shape)
        shared = calls.shares and h * n > threads.LARGE
        self.rows = max(1, threads.BLOCK // n) if shared else h  # gone through at a time
        self.whole = self.rows == h
        self.sums, self.row_dot = calls.sums, calls.row_dot
        if n > ops.LONG:
            self.sums, self.row_dot = spanned(calls.sums), spanned(calls.row_dot)
        self.ones = calls.filled(work, "ones", (n,), 1.0)
        self.arrays = {"y": z if eps is None else work("y", shape)}  # those with rows, by name
        self.numbers: dict[Any, Array] = {}
        self.f = None if f is None else function(calls.lib, type(f))
        self.negated: Callable[..., None] | None = None
        if self.f is not None:
            names = {name for program in self.f.programs for name in program.names}
            self.numbers |= {name: calls.number(work, getattr(f, name)) for name in self.f.settings}
            for name in names - self.numbers.keys() - {"y"}:
                flags = name.startswith("mask") or (name == "slope" and self.f.masks)
                self.arrays[name] = work(
                    "mask" if name == "slope" and flags else name, shape, calls.xp.bool if flags else None
                )
            for constant in {constant for program in self.f.programs for constant in program.constants}:
                self.numbers[constant] = calls.number(work, constant)
            if 0.0 in self.numbers:  # which NumPy compares with, and takes the maximum with, at several times the speed
                self.numbers[0.0] = calls.filled(work, "zeros", (h if h * n <= SMALL else 1, n), 0.0)
        if eps is not None:
            self.average = calls.filled(work, f"1/{n}", (n,), 1.0 / n)
            self.share, self.eps = calls.number(work, 1.0 / n), calls.number(work, eps)
            self.arrays["centred"] = z if own else work("centred", shape)
            self.arrays |= {name: work(name, (h,)) for name in ("deviation", "gain", "small")}
        self.parts: dict[int, Bound] = {}
        self._bind()

    def _bind(self) -> None:
        vars(self).update(self.arrays)
        if "gain" in self.arrays:
            self.gain_column, self.small_column = self.arrays["gain"][:, None], self.arrays["small"][:, None]
        if self.f is not None:
            there = self.arrays | self.numbers
            for name in ("value", "slope_of", "negated"):
                if program := getattr(self.f, name):
                    arguments = [there[key] for key in (*program.names, *program.constants)]
                    setattr(self, name, functools.partial(program.function, *arguments))

    def part(self, rows: slice) -> "Bound":
        """Those rows of all that has rows."""
        try:
            return self.parts[rows.start]
        except KeyError:
            part = self.parts[rows.start] = copy.copy(self)
            part.arrays = {name: a[rows] for name, a in self.arrays.items()}
            part.numbers = self.numbers | {k: a[: rows.stop - rows.start] for k, a in self.numbers.items() if a.ndim}
            part._bind()
            return part


def spanned(product: Callable[..., Array]) -> Callable[..., Array]:
    """A product that sums over the last axis, as `ops.in_spans` sums."""

    def product_in_spans(a: Array, b: Array, out: Array) -> Array:
        out[...] = ops.in_spans(lambda span: product(a[:, span], b[..., span], out=None), a.shape[1])
        return out

    return product_in_spans


class Calls:
    """The work of `planner.Block`, one library call after another."""

    functions = tuple(POINTWISE)
    joins_from: float = 0  # from so many weights on, the bias of a Dense may be the product's work, and is None here
    drops = False
    product: Callable[..., Array]
    top: Callable[..., Array]

    def __init__(self, backend: Backend):
        lib = self.lib = importlib.import_module(backend.name)
        self.xp = backend.xp
        self.integers = {4: self.xp.int32, 8: self.xp.int64}  # as wide as a number of so many bytes
        self.checked: tuple[Any, float] = (None, 0.0)  # parameters, and a sum that is finite only if they and slots are
        self.row_dot = getattr(lib, "vecdot", None) or lib.linalg.vecdot
        self.shares = backend.name == "numpy"  # PyTorch's calls have threads of their own
        self.immediate = backend.immediate
        self.scalar: Callable[[Array], Any] = float if backend.immediate else lambda a: a  # else it stays on the device
        if backend.name == "numpy":  # the same as below, in calls that cost less
            self.product, self.sums = product, lib.dot
            self.top = lambda z, out: lib.maximum.reduce(z, 0, None, out)
        else:
            self.product = self.sums = lambda a, b, out: lib.matmul(a, b, out=out)
            self.top = lambda z, out: lib.amax(z, 0, out=out)

    def filled(self, work: Work, name: str, shape: tuple[int, ...], value: float) -> Array:
        """An array of `work`, all of this value; a product with ones is a sum over the batch."""
        a = work(name, shape)
        a[...] = value
        return a

    def number(self, work: Work, value: float) -> Array:
        """A number as an array without axes, which NumPy takes in half the time of Python's."""
        return self.filled(work, repr(value), (), value)

    def bound(self, f: Layer | None, z: Array, work: Work, own: bool = True, eps: float | None = None) -> Bound:
        """The arrays for a batch of z's size, which may be written over if it is our `own`; `eps` of a batch norm."""
        n = z.shape[1]
        try:
            found: Bound = work.bound[n]
        except KeyError:
            found = work.bound[n] = Bound(self, f, z, work, own, eps)
        return found

    def by_rows(self, work: Callable[..., None], b: Bound, f: Layer | None, *arrays: Array | None) -> None:
        """Do the work, of much data block by block, which stay in cache, on several cores."""
        if b.whole:
            work(b, f, *arrays)
        else:
            threads.in_blocks(
                lambda rows: work(b.part(rows), f, *[a if a is None else a[rows] for a in arrays]),
                b.y.shape[0],
                b.rows,
            )

    def in_place(self, f: Layer | None) -> bool:
        """Whether `activation` writes y where z was."""
        return True

    # --- activation ---

    def activation(self, f: Layer | None, z: Array, bias: Array | None, work: Work) -> Array:
        """y = f(z + bias), in z's place; f(z) without a bias."""
        b = self.bound(f, z, work)
        self.by_rows(self._function, b, f, bias)
        return z

    def _function(self, b: Bound, f: Layer | None, shift: Array | None) -> None:
        """y ← f(y + shift), f(y) without a shift"""
        if shift is not None:
            if b.negated is not None:
                b.negated(-shift[:, None])
                return
            y = b.y
            y += shift[:, None]
        if b.f is not None:
            if b.f.keeps:
                b.slope_of()
            b.value()

    def activation_backward(
        self,
        f: Layer | None,
        dy: Array,
        z: Array,
        y: Array,
        bias: Array | None,
        dz: Array,
        dbias: Array | None,
        work: Work,
    ) -> Array:
        """dz = dy f', dbias = Σ_n dz unless it is None. dz may be dy."""
        b = work.bound[dy.shape[1]]
        if f is None:
            b.sums(dy, b.ones, out=dbias)
            return dy
        self.by_rows(self._activation_backward, b, f, dy, dz, dbias)
        return dz

    def _activation_backward(self, b: Bound, f: Layer | None, dy: Array, dz: Array, dbias: Array | None) -> None:
        dz = self._slope(b, f, dy, dz)
        if dbias is not None:
            b.sums(dz, b.ones, out=dbias)

    def _slope(self, b: Bound, f: Layer | None, dy: Array, dz: Array) -> Array:
        """dz = dy f'; dy itself without an f."""
        if b.f is None:
            return dy
        if b.f.masks:  # dy or 0, even where dy is infinite: its bits times 1 or 0; `where` takes 10 times as long
            bits = dy.view(self.integers[dy.itemsize])
            self.lib.multiply(bits, b.slope, out=bits if dz is dy else dz.view(bits.dtype))
            return dz
        if not b.f.keeps:
            b.slope_of()
        return self.lib.multiply(dy, b.slope, out=dz)

    # --- batch norm ---

    def batch_norm(
        self,
        f: Layer | None,
        z: Array,
        gamma: Array,
        beta: Array,
        eps: float,
        mean: Array,
        var: Array,
        work: Work,
        own: bool,
        bias: Array | None = None,
    ) -> Array:
        """y = f(γ (z - μ) / √(v + eps) + β), μ and v the batch's; μ + bias goes to `mean`, v to `var`."""
        b = self.bound(f, z, work, own, eps)
        self.by_rows(self._batch_norm, b, f, z, gamma, beta, mean, var)
        if bias is not None:
            mean += bias
        return b.y

    def _batch_norm(
        self, b: Bound, f: Layer | None, z: Array, gamma: Array, beta: Array, mean: Array, var: Array
    ) -> None:
        lib = self.lib
        b.sums(z, b.average, out=mean)
        centred = lib.subtract(z, mean[:, None], out=b.centred)
        mean += b.sums(centred, b.average, out=b.small)  # what a sum of large numbers loses of its mean
        centred -= b.small_column
        b.row_dot(centred, centred, out=var)
        var *= b.share
        deviation = lib.add(var, b.eps, out=b.deviation)
        lib.sqrt(deviation, out=deviation)
        lib.divide(gamma, deviation, out=b.gain)
        lib.multiply(centred, b.gain_column, out=b.y)
        self._function(b, f, beta)

    def batch_norm_backward(
        self,
        f: Layer | None,
        dy: Array,
        z: Array,
        y: Array,
        gamma: Array,
        beta: Array,
        dz: Array,
        dgamma: Array,
        dbeta: Array,
        dbias: Array | None,
        work: Work,
    ) -> Array:
        """With du = dy f': dβ = Σ_n du, dγ = Σ_n du x̂, dz = γ / √(v + eps) (du - dβ / N - x̂ dγ / N). dz may be dy.

        `dbias`, of a Dense's bias before it, is 0: the mean takes the bias out again.
        """
        if dbias is not None:
            dbias[...] = 0.0
        self.by_rows(self._batch_norm_backward, work.bound[dy.shape[1]], f, dy, dz, dgamma, dbeta)
        return dz

    def _batch_norm_backward(
        self, b: Bound, f: Layer | None, dy: Array, dz: Array, dgamma: Array, dbeta: Array
    ) -> None:
        lib, du, centred, small = self.lib, self._slope(b, f, dy, dz), b.centred, b.small
        b.sums(du, b.ones, out=dbeta)
        b.row_dot(du, centred, out=dgamma)
        dgamma /= b.deviation
        lib.divide(dgamma, b.deviation, out=small)
        small *= b.share
        centred *= b.small_column
        dz = lib.subtract(du, centred, out=dz)
        lib.multiply(dbeta, b.share, out=small)
        dz -= b.small_column
        dz *= b.gain_column

    def statistics(self, old: Array, batch: Array, rates: Array) -> Array:
        """(1 - rates) old + rates batch: at a rate of 1 the batch's, to the bit"""
        new = 1.0 - rates
        new *= old
        new += rates * batch
        return new

    # --- loss ---

    def softmax_cross_entropy(self, z: Array, target: Array, scale: float, work: Work) -> tuple[float, Array]:
        """-Σ_k t_k log softmax(z)_k, summed over the batch and times `scale`, and its derivative. z (K, N), t (K, N)"""
        lib, (k, n) = self.lib, z.shape
        try:
            top, s, e, sums, fits, ones_k, ones_n, factor = work.bound[n, scale]
        except KeyError:
            shapes = {"top": (n,), "s": (k, n), "e": (k, n), "sums": (n,), "fits": (k,)}
            constants = *[self.filled(work, f"ones {i}", (i,), 1.0) for i in (k, n)], self.number(work, scale)
            made = *[work(name, shape) for name, shape in shapes.items()], *constants
            top, s, e, sums, fits, ones_k, ones_n, factor = work.bound[n, scale] = made
        self.top(z, out=top)
        lib.subtract(z, top, out=s)
        lib.exp(s, out=e)
        self.sums(e.T, ones_k, out=sums)
        (self.row_dot if n <= ops.LONG else spanned(self.row_dot))(s, target, out=fits)
        e /= sums
        e -= target
        if scale != 1.0:
            e *= factor
        lib.log(sums, out=sums)
        logs = self.scalar(lib.dot(sums, ones_n) if n <= ops.LONG else lib.sum(sums))
        fit = self.scalar(lib.dot(fits, ones_k))
        return (logs - fit) * scale, e  # logs are at least 0 and fit at most: no digit is lost

    # --- optimizer ---

    def look_ahead(self, optimizer: Optimizer, w: Array, slots: Slots, point: Array) -> None:
        """The optimizer's point for the gradient, into `point`."""
        point[...] = optimizer.lookahead(w, slots)

    def update(self, optimizer: Optimizer, w: Array, slots: Slots, new: Array, new_slots: Slots) -> Slots:
        """The optimizer's step from w to `new`, which holds the gradient, its slots to `new_slots`, perhaps `slots`.

        The rules work in the gradient's place: hardly a vector beside those that stay.
        """
        if type(optimizer) not in RULES:
            new[...], slots = updated(optimizer, w, self.xp.asarray(new, copy=True), slots)  # which may keep it
            return slots
        step, memory, size = slots["step"], optimizer.memory, w.shape[0]
        numbers = numbers_of(optimizer, step)
        program, names, _ = rule(self.lib, type(optimizer), optimizer.weight_decay != 0.0)
        values, spare = [numbers[name] for name in names if name in numbers], [n for n in names if n not in numbers]
        g = optimizer.limited(new)
        if g is not new:
            new[...] = g
        arrays = [new, w, *[slots[key] for key in memory], *[new_slots[key] for key in memory]]
        length = threads.BLOCK if self.immediate else size  # blocks are for a processor's cache

        def advance(block: slice) -> Any:
            parts = [a[block] for a in arrays] if size > length else arrays
            program(*parts, *values, *[self.lib.empty_like(parts[0]) for _ in spare])
            return self.scalar(self.lib.dot(parts[0], parts[-1]))  # slots that overflow leave w finite, no others do

        self.checked = new, sum(threads.in_blocks(advance, size, length, shared=size > threads.LARGE))
        return {"step": step + 1} | {key: new_slots[key] for key in memory}
