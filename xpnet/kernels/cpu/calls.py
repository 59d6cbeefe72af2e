"""A stage's work in the calls of NumPy or PyTorch, whose functions write into arrays that are there.

Axes: N batch, H features, K classes. Matrices are (H, N), a feature's batch in one row of memory; vectors are (H,).
Every function here has twins of the same name and arguments in `numba.py` and `cupy.py`.
"""

import copy
import importlib
from collections.abc import Callable
from typing import Any

from ... import ops
from ...backends import Array, Backend
from ...layers.activations import ReLU, Sigmoid, Tanh
from ...layers.base import Layer
from ...optimizers import Optimizer, Slots
from ..reference import updated
from ..rules import RULES
from . import threads
from .products import product

Work = Any  # buffered.Workspace: an array by name and shape, made once
SMALL = 2**16  # numbers of a matrix up to which one of zeros is worth its memory: a row of them takes more calls within


class Bound:
    """What the calls of one block write into for one size of batch, found once: (H, N) arrays and (H,) vectors."""

    def __init__(self, calls: "Calls", f: Layer | None, z: Array, work: Work, own: bool, eps: float | None):
        h, n = shape = tuple(z.shape)
        shared = calls.shares and h * n > threads.LARGE
        self.rows = max(1, threads.BLOCK // n) if shared else h  # gone through at a time
        self.whole = self.rows == h
        self.sums, self.row_dot = calls.sums, calls.row_dot
        if n > ops.LONG:
            self.sums, self.row_dot = spanned(calls.sums), spanned(calls.row_dot)
        self.zero, self.one = calls.number(work, 0.0), calls.number(work, 1.0)
        self.ones = calls.filled(work, "ones", (n,), 1.0)
        self.y = z if eps is None else work("y", shape)
        if type(f) is ReLU:
            self.mask = work("mask", shape, calls.xp.bool)
            self.zeros = calls.filled(work, "zeros", (h if h * n <= SMALL else 1, n), 0.0)
        elif f is not None:
            self.slope = work("slope", shape)
        if eps is not None:
            self.average = calls.filled(work, f"1/{n}", (n,), 1.0 / n)
            self.share, self.eps = calls.number(work, 1.0 / n), calls.number(work, eps)
            self.centred = z if own else work("centred", shape)
            self.deviation, self.gain, self.small = (work(name, (h,)) for name in ("deviation", "gain", "small"))
            self._columns()
        self.parts: dict[int, Bound] = {}

    def _columns(self) -> None:
        self.gain_column, self.small_column = self.gain[:, None], self.small[:, None]

    def part(self, rows: slice) -> "Bound":
        """Those rows of all that has rows."""
        try:
            return self.parts[rows.start]
        except KeyError:
            part = self.parts[rows.start] = copy.copy(self)
            for name in ("y", "mask", "slope", "centred", "deviation", "gain", "small"):
                if hasattr(self, name):
                    setattr(part, name, getattr(self, name)[rows])
            if hasattr(self, "zeros"):
                part.zeros = self.zeros[: rows.stop - rows.start]
            if hasattr(self, "gain"):
                part._columns()
            return part


def spanned(product: Callable[..., Array]) -> Callable[..., Array]:
    """A product that sums over the last axis, as `ops.in_spans` sums."""

    def product_in_spans(a: Array, b: Array, out: Array) -> Array:
        out[...] = ops.in_spans(lambda span: product(a[:, span], b[..., span], out=None), a.shape[1])
        return out

    return product_in_spans


class Calls:
    """The work of `buffered.Block`, one library call after another."""

    functions: tuple[type[Layer], ...] = (Sigmoid, Tanh, ReLU)
    drops = False  # whether Dropout is a stage of its own: there is nothing to gain where calls cost little
    joins_from: float = 0  # from so many weights on, the bias of a Dense may be the product's work, and is None here
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

    # --- activation ---

    def activation(self, f: Layer | None, z: Array, bias: Array | None, work: Work) -> Array:
        """y = f(z + bias), in z's place; f(z) without a bias."""
        b = self.bound(f, z, work)
        self.by_rows(self._function, b, f, bias)
        return z

    def _function(self, b: Bound, f: Layer | None, shift: Array | None) -> None:
        """y ← f(y + shift), f(y) without a shift"""
        lib, y = self.lib, b.y
        if type(f) is Sigmoid:
            if shift is None:
                lib.negative(y, out=y)
            else:
                lib.subtract(-shift[:, None], y, out=y)  # -(y + shift), to the bit
            lib.exp(y, out=y)  # may be infinite, and y then 0
            y += b.one
            lib.divide(b.one, y, out=y)
            return
        if shift is not None:
            y += shift[:, None]
        if type(f) is ReLU:
            lib.greater_equal(y, b.zero, out=b.mask)
            lib.maximum(y, b.zeros, out=y)  # several times as fast as with a number
        elif type(f) is Tanh:
            lib.tanh(y, out=y)

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
        lib, y = self.lib, b.y
        if f is None:
            return dy
        if type(f) is ReLU:  # dy or 0, even where dy is infinite: its bits times 1 or 0; `where` takes 10 times as long
            bits = dy.view(self.integers[dy.itemsize])
            lib.multiply(bits, b.mask, out=bits if dz is dy else dz.view(bits.dtype))
            return dz
        slope = lib.multiply(y, y, out=b.slope)
        slope = lib.subtract(b.one if type(f) is Tanh else y, slope, out=slope)  # 1 - y², or y (1 - y)
        return lib.multiply(dy, slope, out=dz)

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

        The rules work in the gradient's place: no vector beside those that stay.
        """
        if type(optimizer) not in RULES:
            new[...], slots = updated(optimizer, w, self.xp.asarray(new, copy=True), slots)  # which may keep it
            return slots
        step, names, size = slots["step"], optimizer.memory, w.shape[0]
        name, *numbers = RULES[type(optimizer)](optimizer, *optimizer.coefficients(step))
        rule, g = getattr(self, f"_{name}"), optimizer.limited(new)
        if g is not new:
            new[...] = g
        arrays = [new, w, *[slots[key] for key in names], *[new_slots[key] for key in names]]
        length = threads.BLOCK if self.immediate else size  # blocks are for a processor's cache

        def advance(block: slice) -> Any:
            new_w, *others = [a[block] for a in arrays] if size > length else arrays
            rule(new_w, *others, *numbers)
            return self.scalar(self.lib.dot(new_w, others[-1]))  # slots that overflow leave w finite, no others do

        self.checked = new, sum(threads.in_blocks(advance, size, length, shared=size > threads.LARGE))
        return {"step": step + 1} | {key: new_slots[key] for key in names}

    # each takes the gradient from g, limited, and leaves the new parameters there

    def _sgd(
        self,
        g: Array,
        w: Array,
        v: Array,
        new_v: Array,
        decay: float,
        ahead: float,
        momentum: float,
        rate: float,
    ) -> None:
        lib = self.lib
        if decay:
            g += decay * (w - ahead * v)
        g *= rate
        lib.multiply(v, momentum, out=new_v)
        new_v += g
        lib.subtract(w, new_v, out=g)

    def _root_mean_square(
        self,
        g: Array,
        w: Array,
        s: Array,
        new_s: Array,
        decay: float,
        kept: float,
        added: float,
        rate: float,
        eps: float,
    ) -> None:
        lib = self.lib
        if decay:
            g += decay * w
        t = added * g
        t *= g
        lib.multiply(s, kept, out=new_s)
        new_s += t
        lib.add(new_s, eps, out=t)
        lib.sqrt(t, out=t)
        g /= t
        g *= rate
        lib.subtract(w, g, out=g)

    def _adam(
        self,
        g: Array,
        w: Array,
        m: Array,
        v: Array,
        new_m: Array,
        new_v: Array,
        decay: float,
        left: float,
        kept_m: float,
        added_m: float,
        kept_v: float,
        added_v: float,
        size: float,
        shift: float,
    ) -> None:
        lib = self.lib
        if decay:
            g += decay * w
        g *= added_m
        lib.multiply(m, kept_m, out=new_m)
        new_m += g
        g *= added_v**0.5 / added_m  # before the square, which overflows then where what is added does
        g *= g
        lib.multiply(v, kept_v, out=new_v)
        new_v += g
        root = lib.sqrt(new_v, out=g)
        root += shift
        update = lib.divide(new_m, root, out=g)
        update *= size
        lib.subtract(w if left == 1.0 else left * w, update, out=g)
