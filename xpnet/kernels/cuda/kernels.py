"""A stage's work in CUDA kernels of our own: the twins of `calls.Calls` on CuPy's arrays.

A method takes one launch; those of batch norm take several where `columns` lets several blocks share a row.

Axes: N batch, H features, K classes. Matrices are (H, N), a feature's batch in one row of memory; vectors are (H,).
The kernels stand in `cupy.cu`. Nothing here waits for the device, and a loss stays on it.
"""

import functools
import importlib
import math
from pathlib import Path
from typing import Any

import numpy as np

from ...backends import Array, Backend
from ...layers.base import Layer
from ...optimizers import Nesterov, Optimizer, Slots
from ..cpu.calls import Work
from ..formulas import cuda, names_in, times
from ..reference import updated
from ..table import POINTWISE, RULES, Lines, lines_of, numbers_in, numbers_of

C_TYPES = {"float32": "float", "float64": "double"}
THREADS = 512  # of a block, at most; cupy.cu counts on it
SHARED = 2**14  # numbers in a row from which on several blocks may share it


@functools.cache
def source() -> str:
    """The file beside this one with the formulas of table.py in it, and without the letters in its comments that CuPy
    could not write to a file in every locale's encoding.
    """
    text = Path(__file__).with_suffix(".cu").read_text(encoding="utf-8").encode("ascii", "ignore").decode()
    functions = [pointwise("Identity", "x", "1"), *(pointwise(f.__name__, *POINTWISE[f]) for f in POINTWISE)]
    text = text.replace("@pointwise", "\n".join(functions))
    rules = {rule_name(o, decays): (lines_of(o, decays), o.memory) for o in RULES for decays in (False, True)}
    return text.replace("@optimizers", "\n".join(optimizer(name, *rule) for name, rule in rules.items()))


def pointwise(name: str, value: str, slope: str) -> str:
    """A pointwise function of table.py as a struct of CUDA."""
    setting = ", ".join((names_in(value) | names_in(slope)) - {"x", "y"}) or "none"  # one at most
    return f"""struct {name} {{
    template <typename T> static __device__ T value(T x, T {setting}) {{ return {cuda(value)}; }}
    template <typename T> static __device__ T back(T dy, T x, T y, T {setting}) {{ return {cuda(times(slope))}; }}
}};"""


def optimizer(name: str, lines: Lines, slots: tuple[str, ...]) -> str:
    """An optimizer's lines as a kernel of CUDA. next_w may be the gradient's own vector."""
    numbers = numbers_in(lines, slots)
    before, after = ("".join(f"{kind} {prefix}_{slot}, " for slot in slots) for kind, prefix in SIDES)
    return f"""template <typename T>
__global__ void __launch_bounds__(512) {name}(
    const T* all_w, const T* gradient, {before}Int length, T clip, const T* norm, T clip_norm,
    {"".join(f"T {number}, " for number in numbers)}{after}T* next_w) {{
    for (Int i = first(); i < length; i += stride()) {{
        T g = limited(gradient[i], clip, norm, clip_norm), w = all_w[i];
        {" ".join(f"T {slot} = all_{slot}[i];" for slot in slots)}
        {" ".join(f"{target} = {cuda(formula)};" for target, formula in lines)}
        {" ".join(f"next_{slot}[i] = {slot};" for slot in slots)}
        next_w[i] = w;
    }}
}}"""


SIDES = ("const T*", "all"), ("T*", "next")


def rule_name(kind: type[Optimizer], decays: bool) -> str:
    """The kernel of an optimizer, with weight decay or without."""
    return kind.__name__ + "Decayed" * (decays and bool(RULES[kind].decay))


@functools.cache
def kernel(expression: str) -> Any:
    """The kernel of this name with its template's arguments, compiled when it is first asked for."""
    cupy = importlib.import_module("cupy")
    module = cupy.RawModule(code=source(), options=("-std=c++17",), name_expressions=(expression,))
    return module.get_function(expression)


def launch(expression: str, grid: tuple[int, ...], block: tuple[int, ...], dtype: Any, *arguments: Any) -> None:
    """Hand a kernel to the device: floats in the kernel's type, None as a null pointer."""
    arguments = tuple(
        np.uintp(0) if a is None else np.int64(a) if type(a) is int else dtype.type(a) if type(a) is float else a
        for a in arguments
    )
    kernel(expression)(grid, block, arguments)


def threads(n: int) -> int:
    """How many a block has whose threads share n numbers: whole warps."""
    return min(THREADS, -(-n // 32) * 32)


def blocks(size: int, most: int) -> int:
    """How many share a vector, THREADS numbers each, or more where they would be more than `most`."""
    return min(-(-size // THREADS), most)


def columns(h: int, n: int, multiprocessors: int) -> int:
    """How many blocks share a row of (H, N): one, unless few long rows would leave most of the device idle.

    Several are enough to give each multiprocessor two blocks, each with four numbers for a thread at least. Batch norm
    then takes more launches, some 5 µs each, which pays where one block would take 20 µs for a row. These numbers are
    reckoned, not measured.
    """
    return 1 if n < SHARED else max(1, min(2 * multiprocessors // h, n // (4 * THREADS)))


class CuPyKernels:
    """The work of `buffered.Block`, one kernel after another."""

    functions = tuple(POINTWISE)
    joins_from = math.inf  # no GPU has told whether it pays
    drops = True

    def __init__(self, backend: Backend):
        self.cupy = importlib.import_module("cupy")
        runtime = self.cupy.cuda.runtime
        self.multiprocessors = runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, backend.device.id)
        with backend.scope():  # of the blocks that are done, see last_block: of all, or of each row that several share
            self.count = self.cupy.zeros(self.multiprocessors, dtype="uint32")

    def product(self, a: Array, b: Array, out: Array) -> Array:
        """a @ b"""
        return self.cupy.dot(a, b, out=out)

    def _rows(self, a: Array, like: Array) -> Array:
        """What another layer or loss made, (H, N) as the kernels take it: a copy where it lies otherwise."""
        return a if a.flags.c_contiguous and a.dtype == like.dtype else self.cupy.ascontiguousarray(a, like.dtype)

    def _over_rows(self, name: str, f: Layer | None, like: Array, blocks: int, *arguments: Any) -> None:
        """Launch a kernel whose template takes an activation, with so many blocks for each row of (H, N)."""
        function = "Identity" if f is None else type(f).__name__
        expression = f"{name}<{C_TYPES[like.dtype.name]}, {function}>"
        launch(expression, (like.shape[0], blocks), (threads(like.shape[1]),), like.dtype, *arguments)

    def _sharing(self, like: Array, work: Work) -> tuple[int, Array | None, Array]:
        """How many blocks share a row of (H, N), where they write two sums each, and the counts of those done."""
        h, n = like.shape
        blocks = columns(h, n, self.multiprocessors)
        return blocks, None if blocks == 1 else work("partial", (2 * h * blocks,)), self.count

    def _over_vector(self, name: str, like: Array, most: int, *arguments: Any) -> None:
        expression = f"{name}<{C_TYPES[like.dtype.name]}>"
        launch(expression, (blocks(like.size, most),), (THREADS,), like.dtype, *arguments)

    # --- activation ---

    def activation(self, f: Layer | None, z: Array, bias: Array, work: Work) -> Array:
        """y = f(z + bias). z stays: backward takes the derivative there."""
        h, n = z.shape
        y = work("y", (h, n))
        self._over_rows("activation", f, y, blocks(n, 65535), z, bias, setting(f), n, y)
        return y

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
        blocks, *sums = self._sharing(dz, work)
        arguments = self._rows(dy, y), z, y, bias, setting(f), y.shape[1], dz, dbias, *sums
        self._over_rows("activation_backward", f, dz, blocks, *arguments)
        return dz

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
        h, n = z.shape
        y, centre, scale = work("y", (h, n)), work("centre", (h,)), work("scale", (h,))
        blocks, *sums = self._sharing(y, work)
        arguments = self._rows(z, y), gamma, beta, bias, float(eps), setting(f), n, mean, var, centre, scale, y, *sums
        for part in (0,) if blocks == 1 else (1, 2, 3):
            self._over_rows("batch_norm", f, y, blocks, part, *arguments)
        return y

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

        `dbias`, of a Dense's bias before it, is 0.
        """
        h, n = y.shape
        dy, z, centre, scale = self._rows(dy, y), self._rows(z, y), work("centre", (h,)), work("scale", (h,))
        blocks, *sums = self._sharing(dz, work)
        arguments = dy, z, y, gamma, beta, centre, scale, setting(f), n, dz, dgamma, dbeta, dbias, *sums
        for part in (0,) if blocks == 1 else (1, 2):
            self._over_rows("batch_norm_backward", f, dz, blocks, part, *arguments)
        return dz

    def statistics(self, old: Array, batch: Array, rates: Array) -> Array:
        """(1 - rates) old + rates batch"""
        new = self.cupy.empty_like(old)
        self._over_vector("statistics", old, 2048, old, batch, rates, old.shape[0], new)
        return new

    # --- dropout ---

    def dropout(self, x: Array, key: Array, rate: float, y: Array) -> Array:
        """y = x m, as Dropout has it; returns the next key. The place of a number is that in the memory of x."""
        next_key = self.cupy.empty_like(key)
        self._mask(x, key, rate, y, next_key)
        return next_key

    def dropout_backward(self, dy: Array, key: Array, rate: float, dx: Array) -> None:
        """dx = dy m, the mask drawn from the key again. dx may be dy."""
        self._mask(dy, key, rate, dx, None)

    def _mask(self, x: Array, key: Array, rate: float, y: Array, next_key: Array | None) -> None:
        numbers = round(rate * 2**24), float(1.0 / (1.0 - rate)), y.size
        self._over_vector("dropout", y, 2048, self._rows(x, y), self._rows(key, key), *numbers, y, next_key)

    # --- loss ---

    def softmax_cross_entropy(self, z: Array, target: Array, scale: float, work: Work) -> tuple[Array, Array]:
        """-Σ_k t_k log softmax(z)_k, summed over the batch and times `scale`, and its derivative. z (K, N), t (K, N)"""
        k, n = z.shape
        dz, grid = work("dz", (k, n)), -(-n // 32)
        value, partial = self.cupy.empty((), dtype=dz.dtype), work("partial", (grid,))
        strides = [stride // target.itemsize for stride in target.strides]
        arguments = self._rows(z, dz), target, *strides, float(scale), k, n, dz, partial, self.count, value
        expression = f"softmax_cross_entropy<{C_TYPES[dz.dtype.name]}>"
        launch(expression, (grid,), (32, min(16, -(-k // 4))), dz.dtype, *arguments)
        return value, dz

    # --- optimizer ---

    def look_ahead(self, optimizer: Optimizer, w: Array, slots: Slots, point: Array) -> None:
        """The optimizer's point for the gradient, into `point`."""
        if type(optimizer) is not Nesterov:
            point[...] = optimizer.lookahead(w, slots)
            return
        self._over_vector("look_ahead", w, 2048, w, slots["velocity"], float(optimizer.momentum), w.shape[0], point)

    def update(self, optimizer: Optimizer, w: Array, slots: Slots, new: Array, new_slots: Slots) -> Slots:
        """The optimizer's step from w to `new`, which holds the gradient, its slots to `new_slots`, perhaps `slots`."""
        if type(optimizer) not in RULES:
            new[...], slots = updated(optimizer, w, self.cupy.asarray(new, copy=True), slots)  # which may keep it
            return slots
        size, step, memory, decays = w.shape[0], slots["step"], optimizer.memory, bool(optimizer.weight_decay)
        lines, numbers = lines_of(type(optimizer), decays), numbers_of(optimizer, step)
        clip = math.inf if optimizer.clip_value is None else optimizer.clip_value
        norm = None
        if optimizer.clip_norm is not None:
            norm, partial = self.cupy.empty(2, dtype=w.dtype), self.cupy.empty(2 * blocks(size, 256), dtype=w.dtype)
            self._over_vector("gradient_norm", w, 256, new, float(clip), size, partial, self.count, norm)
        limits = float(clip), norm, float(optimizer.clip_norm or 0.0)
        values = [float(numbers[name]) for name in numbers_in(lines, memory)]
        before, after = [slots[key] for key in memory], [new_slots[key] for key in memory]
        name = rule_name(type(optimizer), decays)
        self._over_vector(name, w, 2048, w, new, *before, size, *limits, *values, *after, new)
        return {"step": step + 1} | {key: new_slots[key] for key in memory}


def setting(f: Layer | None) -> float:
    """A pointwise function's setting, if it has one."""
    formulas = () if f is None else POINTWISE[type(f)]
    found = [getattr(f, name) for formula in formulas for name in names_in(formula) - {"x", "y"}]
    return float(found[0]) if found else 0.0
