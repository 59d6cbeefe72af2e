"""A stage's work in the calls of NumPy or PyTorch, whose functions write into arrays that are there.

Axes: N batch, H features, K classes. Matrices are (H, N), a feature's batch in one row of memory; vectors are (H,).
Every function here has twins of the same name and arguments in `numba.py` and `cupy.py`.
"""

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import optimizers
from ..backend import Array, Backend
from ..layers.activations import ReLU, Sigmoid, Tanh
from ..layers.base import Layer
from ..optimizers import Optimizer, Slots
from .threads import in_blocks

Work = Any  # buffered.Workspace: an array by name and shape, made once
BLOCK = 2**15  # entries of a vector that an optimizer's step takes at a time: they and its temporaries stay in cache
ELEMENTWISE = {getattr(optimizers, name) for name in ("SGD", "Nesterov", "Adagrad", "RMSprop", "Adam", "AdamW")}


SMALL, MOST = 10**6, 2**22  # multiplications


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> np.ndarray:
    """A @ b in NumPy, one of middling size as several small ones along its longest axis, in this thread.

    OpenBLAS multiplies up to SMALL without copying the matrices into blocks first, at nearly twice the speed; and other
    threads would take the results into their own caches.
    """
    if b.ndim == 1 or not SMALL < a.size * b.shape[1] <= MOST:
        return np.dot(a, b, out=out)
    (m, k), n = a.shape, b.shape[1]
    parts = -(-m * k * n // SMALL)
    stretch = -(-max(m, k, n) // parts)
    if k > max(m, n):
        np.dot(a[:, :stretch], b[:stretch], out=out)
        for i in range(stretch, k, stretch):
            out += np.dot(a[:, i : i + stretch], b[i : i + stretch])
    elif m > n:
        for i in range(0, m, stretch):
            np.dot(a[i : i + stretch], b, out=out[i : i + stretch])
    else:
        for i in range(0, n, stretch):
            np.matmul(a, b[:, i : i + stretch], out=out[:, i : i + stretch])
    return out


class Bound:
    """What the calls of one block write into for one size of batch, found once: (H, N) arrays and (H,) vectors."""

    def __init__(self, calls: "Calls", f: Layer | None, z: Array, work: Work, own: bool, norm: bool):
        h, n = shape = tuple(z.shape)
        self.ones = calls.filled(work, "ones", (n,), 1.0)
        self.y = work("y", shape) if norm or not own else z
        if type(f) is ReLU:
            self.mask = work("mask", shape, calls.xp.bool)
            self.zeros = calls.filled(work, "zeros", shape, 0.0)
        elif f is not None:
            self.slope = work("slope", shape)
        if norm:
            self.average = calls.filled(work, f"1/{n}", (n,), 1.0 / n)
            self.centred = z if own else work("centred", shape)
            self.scale, self.gain, self.small = (work(name, (h,)) for name in ("scale", "gain", "small"))
            self.gain_column, self.small_column = self.gain[:, None], self.small[:, None]


class Calls:
    """The work of `buffered.Block`, one library call after another."""

    functions: tuple[type[Layer], ...] = (Sigmoid, Tanh, ReLU)
    product: Callable[..., Array]
    top: Callable[..., Array]
    reciprocal: Callable[..., Array]

    def __init__(self, backend: Backend):
        lib = self.lib = importlib.import_module(backend.name)
        self.xp, self.device = backend.xp, backend.device
        self.checked: tuple[Any, float] = (None, 0.0)  # a vector of parameters, and a sum that is finite if it is
        self.row_dot = getattr(lib, "vecdot", None) or lib.linalg.vecdot
        if backend.name == "numpy":  # the same as below, in calls that cost less
            self.product = product
            self.top = lambda z, out: lib.maximum.reduce(z, 0, None, out)
            self.reciprocal = lambda x, out: lib.divide(1.0, x, out=out)
        else:
            self.product = lambda a, b, out: lib.matmul(a, b, out=out)
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

    # --- activation ---

    def activation(self, f: Layer | None, z: Array, bias: Array | None, work: Work, own: bool) -> Array:
        """y = f(z + bias). Where z is its `own`, it may be written over."""
        b = self.bound(f, z, work, own, norm=False)
        if bias is not None:
            z = self.lib.add(z, bias[:, None], out=b.y)
        return self._function(f, z, b)

    def _function(self, f: Layer | None, u: Array, b: Bound) -> Array:
        lib, y = self.lib, b.y
        if f is None:
            return u
        if type(f) is ReLU:
            lib.greater_equal(u, 0.0, out=b.mask)
            return lib.maximum(u, b.zeros, out=y)  # several times as fast as with a number
        if type(f) is Tanh:
            return lib.tanh(u, out=y)
        lib.negative(u, out=y)
        lib.exp(y, out=y)  # may be infinite, and y then 0
        y += 1.0
        return self.reciprocal(y, out=y)

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
        """dz = dy f', dbias = Σ_n dz. dz may be dy."""
        b = work.bound[dy.shape[1]]
        dz = self._slope(f, dy, y, dz, b)
        if dbias is not None:
            self.product(dz, b.ones, out=dbias)
        return dz

    def _slope(self, f: Layer | None, dy: Array, y: Array, dz: Array, b: Bound) -> Array:
        lib = self.lib
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
    ) -> Array:
        """y = f(γ (z - μ) / √(v + eps) + β), μ and v the batch's, written to `mean` and `var`."""
        lib, b = self.lib, self.bound(f, z, work, own, norm=True)
        self.product(z, b.average, out=mean)
        centred = lib.subtract(z, mean[:, None], out=b.centred)
        self.row_dot(centred, centred, out=var)
        var *= 1.0 / z.shape[1]
        scale = lib.add(var, eps, out=b.scale)
        lib.sqrt(scale, out=scale)
        self.reciprocal(scale, out=scale)
        lib.multiply(scale, gamma, out=b.gain)
        y = lib.multiply(centred, b.gain_column, out=b.y)
        y += beta[:, None]
        return self._function(f, y, b)

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
        work: Work,
    ) -> Array:
        """With du = dy f': dβ = Σ_n du, dγ = Σ_n du x̂, dz = γ / √(v + eps) (du - dβ / N - x̂ dγ / N). dz may be dy."""
        lib, n = self.lib, dy.shape[1]
        b = work.bound[n]
        du, centred, small = self._slope(f, dy, y, dz, b), b.centred, b.small
        self.product(du, b.ones, out=dbeta)
        self.row_dot(du, centred, out=dgamma)
        dgamma *= b.scale
        lib.multiply(dgamma, b.scale, out=small)
        small *= -1.0 / n
        centred *= b.small_column
        dz = lib.add(du, centred, out=dz)
        lib.multiply(dbeta, 1.0 / n, out=small)
        dz -= b.small_column
        dz *= b.gain_column
        return dz

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
        self.product(e.T, ones_k, out=sums)
        s *= target
        each = self.product(s.T, ones_k, out=top)
        e /= sums
        e -= target
        if scale != 1.0:
            e *= scale
        lib.log(sums, out=sums)
        sums -= each
        return float(lib.dot(sums, ones_n)) * scale, e

    # --- optimizer ---

    def update(self, optimizer: Optimizer, w: Array, g: Array, slots: Slots, new_w: Array, new_slots: Slots) -> Slots:
        """The optimizer's step from w to `new_w`, block by block; the slots after it may stand in `new_slots`."""
        if type(optimizer) not in ELEMENTWISE:
            new_w[...], slots = optimizer.update(w, g, slots)
            return slots
        step = slots["step"]
        coefficients, g = optimizer.coefficients(step), optimizer.limited(g)
        if w.shape[0] <= BLOCK:
            new_w[...], memory = optimizer.advance(w, g, slots, coefficients)
            return {"step": step + 1} | memory

        def advance(block: slice) -> float:
            old, new = {name: slots[name][block] for name in optimizer.memory}, new_w[block]
            new[...], memory = optimizer.advance(w[block], g[block], old, coefficients)
            for name, a in memory.items():
                new_slots[name][block] = a
            return float(self.lib.dot(new, new))

        self.checked = new_w, sum(in_blocks(advance, w.shape[0], BLOCK))
        return {"step": step + 1} | {name: new_slots[name] for name in optimizer.memory}
