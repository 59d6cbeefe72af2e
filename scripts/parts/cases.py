"""The networks that benchmark.py trains, and the matrix products in a step of each.

Axes: N batch, C channels, H and W an image's height and width, T positions of a text.
"""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from train_text import network as gpt

import xpnet as xn

EPS, MOMENTUM = 0.01, 0.99  # of batch norm
VOCABULARY = 65  # distinct characters of the texts
Shape = tuple[int, ...]
Product = tuple[int, int, int, int]  # count, m, k, n: so many products of (m, k) by (k, n)


@dataclass(frozen=True)
class Case:
    """A network, the number of rows that it trains on, the batch size, and the shape of a row."""

    layers: tuple[xn.Layer, ...]
    rows: int
    batch: int
    inputs: Shape
    digits: bool = False
    words: str = ""  # a description of the network; "" for dense layers, described by their widths

    @property
    def kind(self) -> str:
        """The kind of rows: features for dense layers, images, or texts as ids of their characters."""
        if isinstance(self.layers[0], xn.Embedding):
            return "texts"
        return "images" if len(self.inputs) == 3 else "features"

    @property
    def optimizer(self) -> str:
        """The class of the optimizer."""
        return "AdamW" if self.kind == "texts" else "Adam"

    @property
    def sizes(self) -> list[int]:
        """The widths of dense layers from input to output."""
        return [self.inputs[0], *(layer.out_features for layer in self.layers if isinstance(layer, xn.Dense))]

    @property
    def title(self) -> str:
        """The case in words."""
        sizes = list(map(str, self.sizes))
        if len(sizes) > 6:
            sizes = [*sizes[:2], f"({len(sizes) - 4} more)", *sizes[-2:]]
        norm = ", batch norm" if any(isinstance(layer, xn.BatchNorm) for layer in self.layers) else ""
        rows = "digits" if self.digits else self.kind.replace("features", "rows")
        return f"{self.rows:,} {rows} in batches of {self.batch:,}, {self.words or '-'.join(sizes)}{norm}"

    @property
    def batches(self) -> int:
        """The number of steps in an epoch; a single batch is not shuffled."""
        return self.rows // self.batch

    @property
    def outputs(self) -> Shape:
        """The shape of the network's output for a batch."""
        return functools.reduce(lambda shape, layer: layer.output_shape(shape), self.layers, (self.batch, *self.inputs))

    @functools.cached_property
    def products(self) -> list[tuple[Product, int]]:
        """Those of a step: of forward passes, each with the two that its derivatives take; nobody needs the first
        layer's dx.
        """
        found = [product for each in leaves(self.layers, (self.batch, *self.inputs)) for product in products_of(*each)]
        return [(product, 3 if i or self.kind == "texts" else 2) for i, product in enumerate(found)]

    @property
    def multiplications(self) -> int:
        """The number of multiplications in a step's matrix products."""
        return sum(times * math.prod(product) for product, times in self.products)

    @property
    def activations(self) -> int:
        """The number of entries of a batch and of all layers' outputs for it; ids and reshaped arrays do not count."""
        batch = 0 if self.kind == "texts" else self.batch * math.prod(self.inputs)
        return batch + sum(made(self.layers, (self.batch, *self.inputs)))

    def epochs(self, steps: int) -> int:
        """Return the number of epochs closest to so many steps."""
        return max(1, round(steps / self.batches))

    @property
    def slices(self) -> list[slice]:
        """The rows of each batch of an epoch."""
        return [slice(start, start + self.batch) for start in range(0, self.rows, self.batch)]

    def net(self, backend: str = "numpy", dtype: str = "float32", device: Any = None) -> xn.Sequential:
        """Return the network with its initial weights."""
        return xn.Sequential(*self.layers).clone().initialize(backend, dtype, seed=0, device=device)

    def data(self, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """Return x (rows, ...) and classes (rows,), for texts (rows, T): the digits, or random data."""
        if self.digits:
            x, y = xn.data.load_digits()
            return x[: self.rows].astype(dtype), y[: self.rows]
        rng, classes = np.random.default_rng(0), self.outputs[-1]
        if self.kind == "texts":
            return rng.integers(0, classes, (2, self.rows, *self.inputs))
        x = rng.standard_normal((self.rows, *self.inputs), dtype=dtype)
        return x, rng.integers(0, classes, self.rows)

    def shuffled(self, x: Any, y: Any, permutation: Callable[[int], Any]) -> Iterator[tuple[Any, Any]]:
        """Return an epoch's batches of arrays of any library, by one gather and then slices."""
        if self.batches > 1:
            order = permutation(self.rows)
            x, y = x[order], y[order]
        for rows in self.slices:
            yield x[rows], y[rows]


def leaves(layers: Sequence[xn.Layer], shape: Shape) -> Iterator[tuple[xn.Layer, Shape]]:
    """Return the layers, those of a Residual one by one, with the shapes of their inputs."""
    for layer in layers:
        if isinstance(layer, xn.Residual):
            yield from leaves(layer.layers, shape)
        else:
            yield layer, shape
        shape = layer.output_shape(shape)


def products_of(layer: xn.Layer, shape: Shape) -> Iterator[Product]:
    """Return the matrix products in a layer's forward pass."""
    if isinstance(layer, xn.Dense):
        yield 1, math.prod(shape[:-1]), layer.in_features, layer.out_features
    elif isinstance(layer, xn.Conv2d):
        n, channels, *positions = layer.output_shape(shape)
        yield 1, n * math.prod(positions), math.prod(layer.param_shapes()["weight"][1:]), channels
    elif isinstance(layer, xn.MultiHeadAttention):
        n, t, d = shape
        yield 1, n * t, d, 3 * d
        yield n * layer.heads, t, d // layer.heads, t
        yield n * layer.heads, t, t, d // layer.heads
        yield 1, n * t, d, d


def made(layers: Sequence[xn.Layer], shape: Shape) -> Iterator[int]:
    """How many numbers each of the layers makes: its outputs, of a Residual also its layers', of attention what it
    keeps.
    """
    for layer in layers:
        if isinstance(layer, xn.Residual):
            yield from made(layer.layers, shape)
        elif isinstance(layer, xn.MultiHeadAttention):
            n, t, d = shape
            yield n * t * 3 * d + n * layer.heads * t * t + n * t * d
        shape = layer.output_shape(shape)
        if not isinstance(layer, xn.Flatten):
            yield math.prod(shape)


# --- the cases --------------------------------------------------------------------------------------------------------


def mlp(sizes: Sequence[int], rows: int, batch: int, batch_norm: bool = False, digits: bool = False) -> Case:
    """Return dense layers with ReLU and, optionally, batch norm between them."""
    layers: list[xn.Layer] = []
    for n_in, n_out in itertools.pairwise(sizes[:-1]):
        norm = [xn.BatchNorm(n_out, MOMENTUM, EPS)] if batch_norm else []
        layers += [xn.Dense(n_in, n_out, initializer="he_normal"), *norm, xn.ReLU()]
    return Case((*layers, xn.Dense(*sizes[-2:])), rows, batch, tuple(sizes[:1]), digits)


def seed() -> Case:
    """The tutorial's network: batch norm after every Dense, the last one's giving the logits."""
    sizes, functions = (64, 32, 16, 10), ([xn.Sigmoid()], [xn.ReLU()], [])
    pairs = zip(itertools.pairwise(sizes), functions, strict=True)
    layers = [layer for (i, o), f in pairs for layer in (xn.Dense(i, o), xn.BatchNorm(o, MOMENTUM, EPS), *f)]
    return Case(tuple(layers), rows=1500, batch=1500, inputs=sizes[:1], digits=True)


def cnn(batch: int, size: int, first: int, second: int, batches: int = 16) -> Case:
    """Two convolutions of square images, each with ReLU and a pool, and a Dense."""
    layers: list[xn.Layer] = []
    for channels, filters in itertools.pairwise((1, first, second)):
        layers += [xn.Conv2d(channels, filters, 3, padding=1), xn.ReLU(), xn.MaxPool2d(2)]
    layers += [xn.Flatten(), xn.Dense(second * (size // 4) ** 2, 10)]
    words = f"{size} x {size}, conv {first}, pool, conv {second}, pool, dense"
    return Case(tuple(layers), batches * batch, batch, (1, size, size), words=words)


def transformer(batch: int, context: int, features: int, layers: int = 4, batches: int = 8) -> Case:
    """The GPT of train_text.py, for characters."""
    words = f"{context} characters of {VOCABULARY}, {layers} layers, 4 heads, {features} features"
    net = gpt(VOCABULARY, layers, 4, features, context, dropout=0.0)
    return Case(tuple(net.layers), batches * batch, batch, (context,), words=words)


FIXED = {
    "seed": seed(),
    "mini": mlp((64, 128, 64, 10), rows=1472, batch=32, batch_norm=True, digits=True),
    "wide": mlp((784, 1024, 1024, 10), rows=5120, batch=512),
    "cnn8": cnn(64, 8, 32, 64, batches=64),
    "cnn28": cnn(64, 28, 32, 64),
    "cnn28s": cnn(128, 28, 8, 16),
    "gpt": transformer(12, 64, 128),
    "large": mlp((4096, 8192, 8192, 10), rows=16384, batch=8192),
}
STUDIES: dict[str, tuple[list[int], Callable[[int], Case]]] = {  # sizes of each study, and the case of a size
    "batch": ([4**i for i in range(9)], lambda n: mlp((64, 32, 16, 10), n * min(64, max(4, 65536 // n)), n)),
    "width": ([2**i for i in range(3, 13)], lambda n: mlp((64, n, n, 10), 8 * 128, 128)),
    "depth": ([2**i for i in range(7)], lambda n: mlp((64, *[32] * n, 10), 64 * 32, 32)),
    "depth-at-batch-1": ([2**i for i in range(7)], lambda n: mlp((64, *[32] * n, 10), 64, 1)),
    "image": ([8, 12, 16, 24, 32, 48, 64], lambda n: cnn(32, n, 16, 32, batches=8)),
    "channels": ([2**i for i in range(2, 8)], lambda n: cnn(32, 16, n, n, batches=8)),
    "context": ([2**i for i in range(4, 10)], lambda n: transformer(4, n, 64, layers=2)),
    "features": ([2**i for i in range(4, 10)], lambda n: transformer(4, 64, n, layers=2)),
}


def case(name: str) -> Case:
    """Return the case of this name: a fixed one, or one of a study, such as "width:128"."""
    if name in FIXED:
        return FIXED[name]
    study, _, number = name.partition(":")
    size = int(number)
    if size < 1:
        raise ValueError(f"{size} is no size")
    return STUDIES[study][1](size)
