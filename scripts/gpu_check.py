"""The parts of gpu_check.sh that are written in Python, each on a GPU.

device      what there is: libraries, versions, the GPU
waits       a thousand steps in which CuPy raises where the host waits for the device
bandwidth   how fast each kernel's numbers go through memory, beside a copy of the device's
fit         a few steps with every kernel, in memory without a pool: for compute-sanitizer
"""

import argparse
import contextlib
import platform
import sys
import time
import warnings
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
from parts.command_line import count

import xpnet as xn
from xpnet.kernels.cuda.attention import Attention
from xpnet.kernels.cuda.batch_norm import BatchNorm
from xpnet.kernels.cuda.convolution import Convolution
from xpnet.kernels.cuda.dropout import mask
from xpnet.kernels.cuda.embedding import Embedding
from xpnet.kernels.cuda.kernels import CuPyKernels
from xpnet.kernels.cuda.layer_norm import LayerNorm
from xpnet.kernels.cuda.pointwise import Pointwise
from xpnet.kernels.cuda.pooling import Pool
from xpnet.kernels.cuda.products import ProductOfPositions
from xpnet.kernels.cuda.source import KINDS
from xpnet.kernels.stages import Part, Product, Site, Vector, Workspace


def optimizer_of(kind: Any, decays: bool, spares: bool, **options: Any) -> xn.optimizers.Optimizer:
    """One that takes this rule."""
    weights = {"decays": "weights"} if spares else {}
    return kind(weight_decay=0.01 * decays, **weights, **options)


def network(features: int = 64) -> xn.Sequential:
    """One with a layer for each kernel."""
    return xn.Sequential(
        *(xn.Dense(features, 64), xn.BatchNorm(64), xn.ReLU(), xn.Dropout(0.2)),
        *(xn.Dense(64, 32), xn.Sigmoid(), xn.Dense(32, 32), xn.Tanh(), xn.Dense(32, 32), xn.ELU()),
        *(xn.Dense(32, 32), xn.LeakyReLU(), xn.Dense(32, 32), xn.SiLU(), xn.Dense(32, 32), xn.Softplus()),
        *(xn.Dense(32, 32), xn.GELU(), xn.Dense(32, 32), xn.GELU(approximate=True)),
        *(xn.Dense(32, 10), xn.BatchNorm(10)),
    )


def rows(n: int, features: int = 64) -> tuple[np.ndarray, np.ndarray]:
    """Random ones, of ten classes."""
    rng = np.random.default_rng(0)
    return rng.normal(size=(n, features)).astype("float32"), rng.integers(10, size=n)


def of_images() -> tuple[xn.Sequential, np.ndarray, np.ndarray]:
    """A network of images, and some."""
    net = xn.Sequential(
        *(xn.Conv2d(1, 4, 3, padding=1), xn.ReLU(), xn.MaxPool2d(2), xn.Conv2d(4, 6, 2), xn.GELU()),
        *(xn.AveragePool2d(2, 1), xn.Flatten(), xn.Dense(24, 10)),
    )
    x, y = rows(20)
    return net, x.reshape(-1, 1, 8, 8), y


def of_texts() -> tuple[xn.Sequential, np.ndarray, np.ndarray]:
    """A network of ids, and some."""
    net = xn.Sequential(
        *(xn.Embedding(10, 40), xn.PositionalEmbedding(9, 40)),
        xn.Residual(xn.LayerNorm(40), xn.MultiHeadAttention(40, 2, causal=True)),
        xn.Residual(xn.LayerNorm(40), xn.Dense(40, 60), xn.GELU(), xn.Dense(60, 40)),
        *(xn.RMSNorm(40), xn.Dense(40, 10)),
    )
    ids = np.random.default_rng(0).integers(10, size=(20, 10))
    return net, ids[:, :-1], ids[:, 1:]


# --- device -----------------------------------------------------------------------------------------------------------


def device(options: argparse.Namespace) -> None:
    """Print what there is."""
    import cupy

    print(f"xpnet {xn.__version__}, Python {platform.python_version()}, {platform.platform()}")
    print(xn.get_backend("numpy").describe())
    print(xn.get_backend("cupy").describe())
    cupy.show_config()
    names = "cupy", "nvidia", "numpy", "array-api", "torch"
    for each in metadata.distributions():
        if each.name.startswith(names):
            print(f"{each.name} {each.version}")


# --- waits ------------------------------------------------------------------------------------------------------------


class NoWaits(xn.Callback):
    """Has CuPy raise where it waits, from the second epoch's beginning to its last step."""

    def __init__(self, steps: int):
        self.steps, self.until = steps, contextlib.ExitStack()

    def epoch_begin(self, run):
        import cupyx

        if run.step == self.steps:
            with warnings.catch_warnings(action="ignore"):  # it may miss some, it says
                self.until.enter_context(cupyx.allow_synchronize(False))

    def step_end(self, run):
        if run.step == 2 * self.steps:
            self.until.close()


def waits(options: argparse.Namespace) -> None:
    """Train with and without the kernels of our own; CuPy's DeviceSynchronized ends it at the first wait."""
    import cupy
    import cupyx

    with warnings.catch_warnings(action="ignore"), cupyx.allow_synchronize(False):
        try:
            float(cupy.ones(1)[0])
        except cupyx.DeviceSynchronized:
            pass
        else:
            sys.exit("gpu_check: CuPy does not notice that a number is read: nothing is y_kept")
    net, (x, y) = network().initialize("cupy", seed=0), rows(16 * options.steps)
    callback = NoWaits(options.steps)
    with callback.until:
        net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(), epochs=2, batch_size=16, callbacks=[callback])
    print(f"no wait in {options.steps:,} steps")


# --- bandwidth --------------------------------------------------------------------------------------------------------


def calls(backend: xn.Backend, h: int, n: int) -> dict[str, tuple[int, Callable[[], Any]]]:
    """A call of each kernel, and how many matrices (h, n) it has to read and write, each counted once."""
    kernels, dtype, rng = CuPyKernels(backend), backend.dtype("float32"), np.random.default_rng(0)
    cupy, work = kernels.cupy, Workspace(backend.xp, dtype, backend.device)
    site = Site(kernels, lambda: work, work, {"0.weight": 0, "0.bias": h})
    z, dy, dz = (backend.asarray(rng.random((h, n), "float32")) for _ in range(3))
    names = "0.weight", "0.bias", "0.gamma", "0.beta"
    vector = Vector(None, {name: backend.asarray(rng.random(h, "float32")) for name in names}, [])
    w, g, point = (a.reshape(-1) for a in (z, dz, dy))
    key = backend.asarray(np.array([1, 0], np.int32))

    def bound(kind: Any, before: Any, x: Any, *layers: xn.Layer) -> Any:
        """The stage of these layers."""
        found = kind.take(site, before, [Part("0", layer, x.ndim, ()) for layer in layers])
        found.batch = vector.arrays["0.weight"], vector.arrays["0.bias"]
        return found.bound(x, None)

    def passes(stage: Any, x: Any, dy: Any, views: Any = None) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """Its forward and its backward pass."""
        views = views or stage.views(vector)
        return lambda: stage.forward(x, views), lambda: stage.backward(dy, views, views)

    def stage(kind: Any, before: Any, *layers: xn.Layer) -> tuple[Callable[[], Any], Callable[[], Any]]:
        """The forward and the backward pass of these layers."""
        return passes(bound(kind, before, z, *layers), z, dy)

    def update(optimizer: xn.Optimizer) -> Callable[[], Any]:
        slots, step = optimizer.init(w), kernels.optimizer(optimizer)
        return lambda: step(w, slots, g, slots)

    dense = Product(site, None, Part("0", xn.Dense(1, h), 2, ()))
    (pointwise, pointwise_backward), (batch_norm, batch_norm_backward) = (
        stage(kernel, before, *layers, xn.Sigmoid())
        for kernel, before, layers in ((Pointwise, dense, ()), (BatchNorm, None, (xn.BatchNorm(h),)))
    )
    texts, of_texts = (a.reshape((1, n, h)).T for a in (z, dy))  # one of n positions
    of_dense = ProductOfPositions(site, None, Part("0", xn.Dense(1, h), 3, ()))
    columns, columns_backward = passes(bound(Pointwise, of_dense, texts, xn.Sigmoid()), texts, of_texts)
    layer_norm, layer_norm_backward = passes(bound(LayerNorm, None, texts, xn.LayerNorm(h)), texts, of_texts)
    ids = cupy.asarray(rng.integers(64, size=(n, 1)))
    table = cupy.ones((64, h), dtype)
    embedded = passes(bound(Embedding, None, ids, xn.Embedding(64, h)), ids, of_texts, (table, None))
    t, heads = min(n, 64), max(1, h // 64)
    words, of_words = (a[:, : n // t * t].reshape((n // t, t, h)).T for a in (z, dy))
    attention = bound(Attention, None, words, xn.MultiHeadAttention(h, heads))
    attention.product = lambda a, b, out: out  # the kernels alone
    attended = passes(attention, words, of_words, (table, cupy.ones(3 * h, dtype), table))
    images = z.reshape((1, n, h)).swapaxes(0, 1)  # (L, 1, N)
    convolution = bound(Convolution, None, images, xn.Conv1d(1, 1, 3, padding=1))
    pool = bound(Pool, None, images, xn.MaxPool1d(2, 1, padding=1))
    pooled = passes(pool, images, cupy.ones((n + 1, 1, h), dtype), ())
    loss = kernels.loss(site, xn.SoftmaxCrossEntropy("sum"), 2).bound(z, None)
    nesterov = xn.Nesterov()
    velocity, ahead = nesterov.init(w), kernels.optimizer(nesterov)
    return {
        "copy": (2, lambda: cupy.copyto(dz, z)),
        "pointwise": (2, pointwise),
        "pointwise_backward": (3, pointwise_backward),
        "batch_norm": (2, batch_norm),
        "batch_norm_backward": (4, batch_norm_backward),
        "pointwise_columns": (2, columns),
        "pointwise_columns_backward": (3, columns_backward),
        "layer_norm": (2, layer_norm),
        "layer_norm_backward": (3, layer_norm_backward),
        "embedding": (1, embedded[0]),
        "embedding_backward": (1, embedded[1]),
        "attention": (4, attended[0]),
        "attention_backward": (8, attended[1]),
        "gather": (4, lambda: list(convolution.blocks(images))),
        "pool": (3, pooled[0]),
        "spread, of maxima": (3, pooled[1]),
        "averaged": (4, lambda: kernels.averaged(w, g, point)),
        "dropout": (2, lambda: mask(z, key, 0.4, dz)),
        "softmax_cross_entropy": (3, lambda: loss.forward(z, dy)),
        "look_ahead": (3, lambda: ahead.look_ahead(w, velocity, point)),
        "gradient_norm, SGD": (6, update(xn.SGD(clip_norm=1.0))),
    } | {name: (3 + 2 * len(rule[0].memory) + rule[2], update(optimizer_of(*rule))) for name, rule in KINDS.items()}


def bandwidth(options: argparse.Namespace) -> None:
    """Print each kernel's gigabytes a second, and as parts of those of a copy."""
    backend, shapes = xn.get_backend("cupy"), [tuple(map(int, text.split("x"))) for text in options.shapes]
    speeds: dict[str, list[float]] = {}
    with backend.scope():
        for h, n in shapes:
            for name, (matrices, call) in calls(backend, h, n).items():
                call()  # which compiles
                backend.synchronize()
                began = time.perf_counter()
                for _ in range(options.repeats):
                    call()
                backend.synchronize()
                each = (time.perf_counter() - began) / options.repeats
                speeds.setdefault(name, []).append(matrices * 4 * h * n / each / 1e9)
    print("GB/s, each matrix counted once" + "".join(f"{f'({h:,}, {n:,})':>24}" for h, n in shapes))
    for name, found in speeds.items():
        parts = [f"{one:,.0f} ({one / copy:.0%})" for one, copy in zip(found, speeds["copy"], strict=True)]
        print(f"{name:<30}" + "".join(f"{part:>24}" for part in parts))


# --- fit --------------------------------------------------------------------------------------------------------------


def fit(options: argparse.Namespace) -> None:
    """Train a little with every kernel; each array has memory of its own, so that going beyond it is noticed."""
    import cupy

    x, y = rows(90)
    with cupy.cuda.using_allocator(None):
        for dtype in ("float32", "float64"):
            for optimizer in (optimizer_of(*rule, clip_norm=1.0) for rule in KINDS.values()):
                net = network().initialize("cupy", dtype, seed=0)
                history = net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=optimizer, epochs=2, batch_size=33)
                print(f"{optimizer}, {dtype}: the loss went from {history['loss'][0]:.3f} to {history['loss'][1]:.3f}")
            for net, inputs, classes in (of_images(), of_texts()):
                net.initialize("cupy", dtype, seed=0)
                net.fit(inputs, classes, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(), epochs=2, batch_size=8)


PARTS = {part.__name__: part for part in (device, waits, bandwidth, fit)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--steps", type=count, default=1000, help="of waits; default: 1000")
    parser.add_argument("--repeats", type=count, default=20, help="of a call, in bandwidth; default: 20")
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=["4096x8192", "32x1048576"],
        metavar="HxN",
        help="of bandwidth's matrices; default: of many rows and of few, 134 MB each, more than a GPU's cache holds",
    )
    options = parser.parse_args()
    try:
        PARTS[options.part](options)
    except xn.BackendUnavailableError as error:
        sys.exit(f"gpu_check: {error}")
