"""A stage's work in the calls of NumPy or PyTorch, whose functions write into arrays that are there.

Axes: N batch, H features, K classes. Matrices are (H, N), a feature's batch in one row of memory; vectors are (H,).
Every function here has twins of the same name and arguments in `numba.py` and `cupy.py`.
"""

import importlib
from collections.abc import Callable

from .. import optimizers
from ..backend import Array, Backend
from ..layers.activations import ReLU, Sigmoid, Tanh
from ..layers.base import Layer
from ..optimizers import Optimizer, Slots
from .threads import in_blocks

Work = Callable[..., Array]  # buffered.Workspace: an array by name and shape, made once
BLOCK = 2**15  # entries of a vector that an optimizer's step takes at a time: they and its temporaries stay in cache
ELEMENTWISE = {getattr(optimizers, name) for name in ("SGD", "Nesterov", "Adagrad", "RMSprop", "Adam", "AdamW")}


class Calls:
    """The work of `buffered.Block`, one library call after another."""

    functions: tuple[type[Layer], ...] = (Sigmoid, Tanh, ReLU)

    def __init__(self, backend: Backend):
        lib = self.lib = importlib.import_module(backend.name)
        self.xp, self.device = backend.xp, backend.device
        self.row_dot = getattr(lib, "vecdot", None) or lib.linalg.vecdot
        self.matmul = lib.dot if backend.name == "numpy" else lib.matmul  # NumPy's dot is called half a µs faster

    def product(self, a: Array, b: Array, out: Array) -> Array:
        """A @ b"""
        return self.matmul(a, b, out=out)

    def ones(self, work: Work, n: int, value: float = 1.0) -> Array:
        """(N,), all of this value: a product with it is a sum over the batch."""
        name = f"ones {value}"
        try:
            return work.parts[name, (n,)]
        except KeyError:
            a = work(name, (n,))
            a[...] = value
            return a

    # --- activation ---

    def activation(self, f: Layer | None, z: Array, bias: Array | None, work: Work, own: bool) -> Array:
        """y = f(z + bias). Where z is its `own`, it may be written over."""
        lib, y = self.lib, z if own else work("y", tuple(z.shape))
        if bias is not None:
            z = lib.add(z, bias[:, None], out=y)
        return self._function(f, z, y, work)

    def _function(self, f: Layer | None, u: Array, y: Array, work: Work) -> Array:
        lib, shape = self.lib, tuple(u.shape)
        if f is None:
            return u
        if type(f) is ReLU:
            lib.greater_equal(u, 0.0, out=work("mask", shape, self.xp.bool))
            return lib.maximum(u, self._zeros(work, shape), out=y)  # several times as fast as with a number
        if type(f) is Tanh:
            return lib.tanh(u, out=y)
        limit = 709.0 if u.dtype == self.xp.float64 else 88.0  # as ops.sigmoid
        lib.clip(u, -limit, None, out=y)
        lib.negative(y, out=y)
        lib.exp(y, out=y)
        y += 1.0
        return lib.reciprocal(y, out=y)

    def _zeros(self, work: Work, shape: tuple[int, ...]) -> Array:
        try:
            return work.parts["zeros", shape]
        except KeyError:
            a = work("zeros", shape)
            a[...] = 0.0
            return a

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
        dz = self._slope(f, dy, y, dz, work)
        if dbias is not None:
            self.matmul(dz, self.ones(work, dz.shape[1]), out=dbias)
        return dz

    def _slope(self, f: Layer | None, dy: Array, y: Array, dz: Array, work: Work) -> Array:
        lib = self.lib
        if f is None:
            return dy
        if type(f) is ReLU:
            return lib.multiply(dy, work("mask", tuple(dy.shape)), out=dz)
        slope = lib.multiply(y, y, out=work("slope", tuple(y.shape)))
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
        lib, (h, n) = self.lib, z.shape
        average = self.ones(work, n, 1.0 / n)
        self.matmul(z, average, out=mean)
        centred = lib.subtract(z, mean[:, None], out=z if own else work("centred", (h, n)))
        self.row_dot(centred, centred, out=var)
        var *= 1.0 / n
        scale = lib.add(var, eps, out=work("scale", (h,)))
        lib.sqrt(scale, out=scale)
        lib.reciprocal(scale, out=scale)
        slope = lib.multiply(scale, gamma, out=work("norm slope", (h,)))
        y = lib.multiply(centred, slope[:, None], out=work("y", (h, n)))
        y += beta[:, None]
        return self._function(f, y, y, work)

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
        lib, (h, n) = self.lib, dy.shape
        centred = work.parts.get(("centred", (h, n)), z)
        du = self._slope(f, dy, y, dz, work)
        scale, slope, small = work("scale", (h,)), work("norm slope", (h,)), work("small", (h,))
        self.matmul(du, self.ones(work, n), out=dbeta)
        self.row_dot(du, centred, out=dgamma)
        dgamma *= scale
        lib.multiply(dgamma, scale, out=small)
        small *= -1.0 / n
        centred *= small[:, None]
        dz = lib.add(du, centred, out=dz)
        lib.multiply(dbeta, 1.0 / n, out=small)
        dz -= small[:, None]
        dz *= slope[:, None]
        return dz

    # --- loss ---

    def softmax_cross_entropy(self, z: Array, target: Array, scale: float, work: Work) -> tuple[float, Array]:
        """-Σ_k t_k log softmax(z)_k, summed over the batch and times `scale`, and its derivative. z (K, N), t (K, N)"""
        lib, (k, n) = self.lib, z.shape
        top = lib.amax(z, 0, out=work("top", (n,)))
        s = lib.subtract(z, top, out=work("s", (k, n)))
        e = lib.exp(s, out=work("e", (k, n)))
        sums = self.matmul(e.T, self.ones(work, k), out=work("sums", (n,)))
        s *= target
        each = self.matmul(s.T, self.ones(work, k), out=top)
        e /= sums
        e -= target
        if scale != 1.0:
            e *= scale
        lib.log(sums, out=sums)
        sums -= each
        return float(self.matmul(sums, self.ones(work, n))) * scale, e

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

        def advance(block: slice) -> None:
            old = {name: slots[name][block] for name in optimizer.memory}
            new_w[block], memory = optimizer.advance(w[block], g[block], old, coefficients)
            for name, a in memory.items():
                new_slots[name][block] = a

        in_blocks(advance, w.shape[0], BLOCK)
        return {"step": step + 1} | {name: new_slots[name] for name in optimizer.memory}
