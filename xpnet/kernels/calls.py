"""A stage's work in the calls of NumPy or PyTorch, whose functions write into arrays that are there.

Axes: N batch, H features, K classes. Matrices are (H, N), a feature's batch in one row of memory; vectors are (H,).
Every function here has twins of the same name and arguments in `numba.py` and `cupy.py`.
"""

import copy
import functools
import importlib
from collections.abc import Callable
from typing import Any

from ..backend import Array, Backend
from ..layers.activations import ReLU, Sigmoid, Tanh
from ..layers.base import Layer
from ..optimizers import Optimizer, Slots
from .products import product
from .rules import RULES
from .threads import in_blocks

Work = Any  # buffered.Workspace: an array by name and shape, made once
BLOCK = 2**18  # numbers of each array that a thread goes through at a time: fewer, and they wait for Python's lock
SMALL = 2**16  # numbers of a matrix up to which one of zeros is worth its memory: a row of them takes more calls within
LARGE = 2**22  # numbers of a matrix from which threads pay: those of the products before linger on the cores


class Bound:
    """What the calls of one block write into for one size of batch, found once: (H, N) arrays and (H,) vectors."""

    def __init__(self, calls: "Calls", f: Layer | None, z: Array, work: Work, own: bool, norm: bool):
        h, n = shape = tuple(z.shape)
        self.rows = max(1, BLOCK // n) if calls.shares and h * n > LARGE else h  # gone through at a time
        self.ones = calls.filled(work, "ones", (n,), 1.0)
        self.y = work("y", shape) if norm else z
        if type(f) is ReLU:
            self.mask = work("mask", shape, calls.xp.bool)
            self.zeros = calls.filled(work, "zeros", (h if h * n <= SMALL else 1, n), 0.0)
        elif f is not None:
            self.slope = work("slope", shape)
        if norm:
            self.average = calls.filled(work, f"1/{n}", (n,), 1.0 / n)
            self.centred = z if own else work("centred", shape)
            self.scale, self.gain, self.small = (work(name, (h,)) for name in ("scale", "gain", "small"))
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
            for name in ("y", "mask", "slope", "centred", "scale", "gain", "small"):
                if hasattr(self, name):
                    setattr(part, name, getattr(self, name)[rows])
            if hasattr(self, "zeros"):
                part.zeros = self.zeros[: rows.stop - rows.start]
            if hasattr(self, "gain"):
                part._columns()
            return part


class Calls:
    """The work of `buffered.Block`, one library call after another."""

    functions: tuple[type[Layer], ...] = (Sigmoid, Tanh, ReLU)
    product: Callable[..., Array]
    top: Callable[..., Array]
    reciprocal: Callable[..., Array]

    def __init__(self, backend: Backend):
        lib = self.lib = importlib.import_module(backend.name)
        self.xp = backend.xp
        self.checked: tuple[Any, float] = (None, 0.0)  # a vector of parameters, and a sum that is finite if it is
        self.row_dot = getattr(lib, "vecdot", None) or lib.linalg.vecdot
        self.shares = backend.name == "numpy"  # PyTorch's calls have threads of their own
        if backend.name == "numpy":  # the same as below, in calls that cost less
            self.product, self.sums = product, lib.dot
            self.top = lambda z, out: lib.maximum.reduce(z, 0, None, out)
            self.reciprocal = lambda x, out: lib.divide(1.0, x, out=out)
        else:
            self.product = self.sums = lambda a, b, out: lib.matmul(a, b, out=out)
            self.top = lambda z, out: lib.amax(z, 0, out=out)
            self.reciprocal = lib.reciprocal

    def filled(self, work: Work, name: str, shape: tuple[int, ...], value: float) -> Array:
        """An array of `work`, all of this value; a product with ones is a sum over the batch."""
        a = work(name, shape)
        a[...] = value
        return a

    def bound(self, f: Layer | None, z: Array, work: Work, own: bool, norm: bool) -> Bound:
        """The arrays for a batch of z's size."""
        n = z.shape[1]
        try:
            found: Bound = work.bound[n]
        except KeyError:
            found = work.bound[n] = Bound(self, f, z, work, own, norm)
        return found

    def by_rows(self, work: Callable[..., None], b: Bound, f: Layer | None, *arrays: Array) -> None:
        """Do the work, of much data block by block, which stay in cache, on several cores."""
        h = arrays[0].shape[0]
        if b.rows == h:
            work(b, f, *arrays)
        else:
            in_blocks(lambda rows: work(b.part(rows), f, *[a[rows] for a in arrays]), h, b.rows)

    # --- activation ---

    def activation(self, f: Layer | None, z: Array, bias: Array, work: Work, own: bool) -> Array:
        """y = f(z + bias), in z's place."""
        b = self.bound(f, z, work, own, norm=False)
        self.by_rows(self._function, b, f, bias)
        return z

    def _function(self, b: Bound, f: Layer | None, shift: Array) -> None:
        """y ← f(y + shift)"""
        lib, y = self.lib, b.y
        if type(f) is Sigmoid:
            lib.subtract(-shift[:, None], y, out=y)  # -(y + shift), to the bit
            lib.exp(y, out=y)  # may be infinite, and y then 0
            y += 1.0
            self.reciprocal(y, out=y)
            return
        y += shift[:, None]
        if type(f) is ReLU:
            lib.greater_equal(y, 0.0, out=b.mask)
            lib.maximum(y, b.zeros, out=y)  # several times as fast as with a number
        elif type(f) is Tanh:
            lib.tanh(y, out=y)

    def activation_backward(
        self,
        f: Layer | None,
        dy: Array,
        z: Array,
        y: Array,
        bias: Array,
        dz: Array,
        dbias: Array,
        work: Work,
    ) -> Array:
        """dz = dy f', dbias = Σ_n dz. dz may be dy."""
        b = work.bound[dy.shape[1]]
        if f is None:
            self.sums(dy, b.ones, out=dbias)
            return dy
        self.by_rows(self._activation_backward, b, f, dy, dz, dbias)
        return dz

    def _activation_backward(self, b: Bound, f: Layer | None, dy: Array, dz: Array, dbias: Array) -> None:
        self.sums(self._slope(b, f, dy, dz), b.ones, out=dbias)

    def _slope(self, b: Bound, f: Layer | None, dy: Array, dz: Array) -> Array:
        """Dy f'"""
        lib, y = self.lib, b.y
        if f is None:
            return dy
        if type(f) is ReLU:
            return lib.multiply(dy, b.mask, out=dz)
        slope = lib.multiply(y, y, out=b.slope)
        slope = lib.subtract(1.0 if type(f) is Tanh else y, slope, out=slope)  # 1 - y², or y (1 - y)
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
        b = self.bound(f, z, work, own, norm=True)
        self.by_rows(functools.partial(self._batch_norm, eps), b, f, z, gamma, beta, mean, var)
        if bias is not None:
            mean += bias
        return b.y

    def _batch_norm(
        self, eps: float, b: Bound, f: Layer | None, z: Array, gamma: Array, beta: Array, mean: Array, var: Array
    ) -> None:
        lib = self.lib
        self.sums(z, b.average, out=mean)
        centred = lib.subtract(z, mean[:, None], out=b.centred)
        self.row_dot(centred, centred, out=var)
        var *= 1.0 / z.shape[1]
        scale = lib.add(var, eps, out=b.scale)
        lib.sqrt(scale, out=scale)
        self.reciprocal(scale, out=scale)
        lib.multiply(scale, gamma, out=b.gain)
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
        lib, n = self.lib, dy.shape[1]
        du, centred, small = self._slope(b, f, dy, dz), b.centred, b.small
        self.sums(du, b.ones, out=dbeta)
        self.row_dot(du, centred, out=dgamma)
        dgamma *= b.scale
        lib.multiply(dgamma, b.scale, out=small)
        small *= -1.0 / n
        centred *= b.small_column
        dz = lib.add(du, centred, out=dz)
        lib.multiply(dbeta, 1.0 / n, out=small)
        dz -= b.small_column
        dz *= b.gain_column

    def statistics(self, old: Array, batch: Array, rates: Array) -> Array:
        """Old + rates (batch - old)"""
        new = batch - old
        new *= rates
        new += old
        return new

    # --- loss ---

    def softmax_cross_entropy(self, z: Array, target: Array, scale: float, work: Work) -> tuple[float, Array]:
        """-Σ_k t_k log softmax(z)_k, summed over the batch and times `scale`, and its derivative. z (K, N), t (K, N)"""
        lib, (k, n) = self.lib, z.shape
        try:
            top, s, e, sums, ones_k, ones_n = work.bound[n]
        except KeyError:
            vectors, matrices = [work(name, (n,)) for name in ("top", "sums")], [work(name, (k, n)) for name in "se"]
            ones = [self.filled(work, f"ones {i}", (i,), 1.0) for i in (k, n)]
            top, s, e, sums, ones_k, ones_n = work.bound[n] = (vectors[0], *matrices, vectors[1], *ones)
        self.top(z, out=top)
        lib.subtract(z, top, out=s)
        lib.exp(s, out=e)
        self.sums(e.T, ones_k, out=sums)
        s *= target
        each = self.sums(s.T, ones_k, out=top)
        e /= sums
        e -= target
        if scale != 1.0:
            e *= scale
        lib.log(sums, out=sums)
        sums -= each
        return float(lib.dot(sums, ones_n)) * scale, e

    # --- optimizer ---

    def look_ahead(self, optimizer: Optimizer, w: Array, slots: Slots, point: Array) -> None:
        """The optimizer's point for the gradient, into `point`."""
        point[...] = optimizer.lookahead(w, slots)

    def update(self, optimizer: Optimizer, w: Array, slots: Slots, new: Array, new_slots: Slots) -> Slots:
        """The optimizer's step from w to `new`, which holds the gradient, its slots to `new_slots`, perhaps `slots`.

        The gradient is read for the last time where the new parameter is written: one vector less to hold and to go
        through.
        """
        if type(optimizer) not in RULES:
            new[...], slots = optimizer.update(w, self.xp.asarray(new, copy=True), slots)  # which may keep it
            return slots
        step, names = slots["step"], optimizer.memory
        name, decay, *numbers = RULES[type(optimizer)](optimizer, *optimizer.coefficients(step))
        rule, g = getattr(self, f"_{name}"), optimizer.limited(new)
        arrays = [new, w, g, *[slots[key] for key in names], *[new_slots[key] for key in names]]

        def advance(block: slice | None = None) -> float:
            new_w, *parts = arrays if block is None else [a[block] for a in arrays]
            rule(new_w, *parts, self.lib.empty_like(new_w), decay, *numbers)
            return float(self.lib.dot(new_w, new_w))

        self.checked = new, advance() if w.shape[0] <= BLOCK else sum(in_blocks(advance, w.shape[0], BLOCK))
        return {"step": step + 1} | {key: new_slots[key] for key in names}

    def _sgd(
        self,
        new_w: Array,
        w: Array,
        g: Array,
        v: Array,
        new_v: Array,
        t: Array,
        decay: float,
        ahead: float,
        momentum: float,
        rate: float,
    ) -> None:
        lib = self.lib
        if decay:
            g = g + decay * (w - ahead * v)
        lib.multiply(g, rate, out=t)
        lib.multiply(v, momentum, out=new_v)
        new_v += t
        lib.subtract(w, new_v, out=new_w)

    def _root_mean_square(
        self,
        new_w: Array,
        w: Array,
        g: Array,
        s: Array,
        new_s: Array,
        t: Array,
        decay: float,
        kept: float,
        added: float,
        rate: float,
        eps: float,
    ) -> None:
        lib = self.lib
        if decay:
            g = g + decay * w
        lib.multiply(g, g, out=t)
        t *= added
        lib.multiply(s, kept, out=new_s)
        new_s += t
        lib.add(new_s, eps, out=t)
        lib.sqrt(t, out=t)
        lib.divide(g, t, out=t)
        t *= rate
        lib.subtract(w, t, out=new_w)

    def _adam(
        self,
        new_w: Array,
        w: Array,
        g: Array,
        m: Array,
        v: Array,
        new_m: Array,
        new_v: Array,
        t: Array,
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
            g = g + decay * w
        lib.multiply(g, added_m, out=t)
        lib.multiply(m, kept_m, out=new_m)
        new_m += t
        lib.multiply(g, g, out=t)
        t *= added_v
        lib.multiply(v, kept_v, out=new_v)
        new_v += t
        lib.sqrt(new_v, out=t)
        t += shift
        lib.divide(new_m, t, out=t)
        t *= size
        if left != 1.0:
            w = left * w
        lib.subtract(w, t, out=new_w)
