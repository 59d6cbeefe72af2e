"""What benchmark.py measures: its cases, and the contestants that take the same training steps.

A contestant is built from a case and a dtype. `first_losses()` are those of five steps on the first batch, to see
that all do the same work; `turn(steps)` trains through whole epochs and returns when the device is done; `device`
names it.
Axes: N batch, D in, H out.
"""

import functools
import importlib
import itertools
import os
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

import xpnet as xn

RATE, EPS, MOMENTUM = 0.001, 0.01, 0.99  # Adam's learning rate; batch norm's

# --- the cases --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A network, how many rows it trains on in batches of how many."""

    layers: tuple[xn.Layer, ...]
    rows: int
    batch: int
    digits: bool = False

    @property
    def sizes(self) -> list[int]:
        """The widths from input to output."""
        dense = [layer for layer in self.layers if isinstance(layer, xn.Dense)]
        return [dense[0].in_features, *(layer.out_features for layer in dense)]

    @property
    def title(self) -> str:
        """The case in words."""
        sizes = list(map(str, self.sizes))
        if len(sizes) > 6:
            sizes = [*sizes[:2], f"({len(sizes) - 4} more)", *sizes[-2:]]
        norm = ", batch norm" if any(isinstance(layer, xn.BatchNorm) for layer in self.layers) else ""
        kind = "digits" if self.digits else "rows"
        return f"{self.rows:,} {kind} in batches of {self.batch:,}, {'-'.join(sizes)}{norm}"

    @property
    def batches(self) -> int:
        """How many make an epoch; a single one is not shuffled."""
        return self.rows // self.batch

    @property
    def multiplications(self) -> int:
        """Those of a step's matrix products; nobody needs the first layer's dx."""
        pairs = [d * h for d, h in itertools.pairwise(self.sizes)]
        return self.batch * (3 * sum(pairs) - pairs[0])

    def epochs(self, steps: int) -> int:
        """The whole epochs nearest to so many steps."""
        return max(1, round(steps / self.batches))

    def net(self, backend: str = "numpy", dtype: str = "float32", device: Any = None) -> xn.Sequential:
        """The network with its initial weights."""
        return xn.Sequential(*self.layers).clone().initialize(backend, dtype, seed=0, device=device)

    def data(self, dtype: str) -> tuple[np.ndarray, np.ndarray]:
        """x (rows, D) and the classes (rows,): the digits, or normal numbers and random classes."""
        if self.digits:
            x, y = xn.data.load_digits()
            return x[: self.rows].astype(dtype), y[: self.rows]
        rng = np.random.default_rng(0)
        x = rng.standard_normal((self.rows, self.sizes[0]), dtype=dtype)
        return x, rng.integers(0, self.sizes[-1], self.rows)

    def shuffled(self, x: Any, y: Any, permutation: Callable[[int], Any]) -> Iterator[tuple[Any, Any]]:
        """An epoch's batches of arrays of any library, one gather and then slices."""
        if self.batches > 1:
            order = permutation(self.rows)
            x, y = x[order], y[order]
        for start in range(0, self.rows, self.batch):
            yield x[start : start + self.batch], y[start : start + self.batch]


def mlp(*sizes: int, batch_norm: bool = False) -> tuple[xn.Layer, ...]:
    """Dense layers with ReLU, and perhaps batch norm, between them."""
    layers: list[xn.Layer] = []
    for n_in, n_out in itertools.pairwise(sizes[:-1]):
        norm = [xn.BatchNorm(n_out, MOMENTUM, EPS)] if batch_norm else []
        layers += [xn.Dense(n_in, n_out, initializer="he_normal"), *norm, xn.ReLU()]
    return (*layers, xn.Dense(*sizes[-2:]))


def seed_layers() -> tuple[xn.Layer, ...]:
    """The tutorial's network: batch norm after every Dense, the last one's giving the logits."""
    sizes, functions = (64, 32, 16, 10), ([xn.Sigmoid()], [xn.ReLU()], [])
    pairs = zip(itertools.pairwise(sizes), functions, strict=True)
    return tuple(layer for (i, o), f in pairs for layer in (xn.Dense(i, o), xn.BatchNorm(o, MOMENTUM, EPS), *f))


FIXED = {
    "seed": Case(seed_layers(), rows=1500, batch=1500, digits=True),
    "mini": Case(mlp(64, 128, 64, 10, batch_norm=True), rows=1472, batch=32, digits=True),
    "wide": Case(mlp(784, 1024, 1024, 10), rows=5120, batch=512),
    "large": Case(mlp(4096, 8192, 8192, 10), rows=16384, batch=8192),
}
STUDIES = {  # sizes of each scaling study
    "batch": [4**i for i in range(9)],
    "width": [2**i for i in range(3, 13)],
    "depth": [2**i for i in range(7)],
    "depth-at-batch-1": [2**i for i in range(7)],
}


def case(name: str) -> Case:
    """The case of this name: a fixed one, or one of a study's, such as "width:128"."""
    if name in FIXED:
        return FIXED[name]
    study, _, number = name.partition(":")
    size = int(number)
    if size < 1:
        raise ValueError(f"{size} is no size")
    if study == "batch":
        return Case(mlp(64, 32, 16, 10), rows=size * min(64, max(4, 65536 // size)), batch=size)
    if study == "width":
        return Case(mlp(64, size, size, 10), rows=8 * 128, batch=128)
    batch = {"depth": 32, "depth-at-batch-1": 1}[study]
    return Case(mlp(64, *[32] * size, 10), rows=64 * batch, batch=batch)


# --- xpnet ------------------------------------------------------------------------------------------------------------


class XpNet:
    """One call of `fit` a turn, its start-up counted; the data lies on the backend, as the peers' does."""

    def __init__(self, case: Case, dtype: str, backend: str = "numpy", device: Any = None):
        self.case = case
        self.net = case.net(backend, dtype, device)
        self.x, self.y = map(self.net.backend.asarray, case.data(dtype))
        self.device = self.net.backend.device_name

    def fit(self, x: Any, y: Any, epochs: int, batch_size: int | None) -> xn.History:
        loss, optimizer = xn.SoftmaxCrossEntropy(), xn.Adam(learning_rate=RATE)
        return self.net.fit(x, y, loss=loss, optimizer=optimizer, epochs=epochs, batch_size=batch_size)

    def first_losses(self) -> list[float]:
        n = self.case.batch
        return self.fit(self.x[:n], self.y[:n], 5, None)["loss"]

    def turn(self, steps: int) -> None:
        self.fit(self.x, self.y, self.case.epochs(steps), self.case.batch)
        self.net.backend.synchronize()


class XpNetFast(XpNet):
    """The same with the NumPy backend's compiled kernels."""

    def __init__(self, case: Case, dtype: str):
        import numba  # noqa: F401  # without it there are none

        super().__init__(case, dtype)


# --- products, plain NumPy --------------------------------------------------------------------------------------------


class Products:
    """Nothing but a step's matrix products, into arrays that are there: what no code on this library can be faster
    than. On CuPy they are cuBLAS's.
    """

    def __init__(self, case: Case, dtype: str, backend: str = "numpy"):
        self.case, self.backend = case, xn.get_backend(backend)
        self.dot, self.device = importlib.import_module(backend).dot, self.backend.device_name
        rng = np.random.default_rng(0)

        def array(*shape: int) -> Any:
            return self.backend.asarray(rng.standard_normal(shape, dtype=dtype))

        n, sizes = case.batch, case.sizes
        rows, columns = [], []  # the products' (a, b, out) with rows contiguous, or the batch
        for i, (d, h) in enumerate(itertools.pairwise(sizes)):
            x, y, dw = array(n, d), array(n, h), array(d, h)
            # orthonormal: x W Wᵀ, fed back as x, neither grows nor fades
            w = self.backend.asarray(np.eye(d, h, dtype=dtype) - 2 / max(d, h))
            xt, yt = (array(d, n) if i else x.T), array(h, n)  # the data itself has its rows contiguous
            rows += [(x, w, y), (x.T, y, dw)]
            columns += [(w.T, xt, yt), (xt, yt.T, dw)]
            if i:
                rows.append((y, w.T, x))
                columns.append((w, yt, xt))
        self.products = min(rows, columns, key=self.seconds)

    def seconds(self, products: list[tuple[np.ndarray, ...]]) -> float:
        """The median time of a step with these products."""
        self.products, times = products, []
        for _ in range(5):
            began = time.perf_counter()
            self.step()
            self.backend.synchronize()
            times.append(time.perf_counter() - began)
        return sorted(times)[2]

    def step(self) -> None:
        for a, b, out in self.products:
            self.dot(a, b, out=out)

    def first_losses(self) -> None:
        return None

    def turn(self, steps: int) -> None:
        for _ in range(self.case.epochs(steps) * self.case.batches):
            self.step()
        self.backend.synchronize()


class Plain:
    """The step as a tutorial would write it in NumPy, one line after the other."""

    device = "cpu"

    def __init__(self, case: Case, dtype: str):
        self.case = case
        self.x, y = case.data(dtype)
        self.y = np.eye(case.sizes[-1], dtype=dtype)[y]
        self.p = {name: np.array(a) for name, a in case.net(dtype=dtype).params.items()}
        self.m = {name: np.zeros_like(a) for name, a in self.p.items()}
        self.v = {name: np.zeros_like(a) for name, a in self.p.items()}
        self.mean, self.var, self.t = {}, {}, 0
        self.rng = np.random.default_rng(0)

    def batch_norm(self, i, x):
        mean = np.mean(x, axis=0)
        var = np.var(x, axis=0)
        self.mean[i] = MOMENTUM * self.mean.get(i, mean) + (1 - MOMENTUM) * mean
        self.var[i] = MOMENTUM * self.var.get(i, var) + (1 - MOMENTUM) * var
        centred = x - mean
        scale = 1 / np.sqrt(var + EPS)
        normed = centred * scale
        return self.p[f"{i}.gamma"] * normed + self.p[f"{i}.beta"], (centred, scale, normed)

    def batch_norm_backward(self, i, dy, cache, g):
        centred, scale, normed = cache
        n = dy.shape[0]
        g[f"{i}.gamma"] = np.sum(dy * normed, axis=0)
        g[f"{i}.beta"] = np.sum(dy, axis=0)
        inner = n * dy - np.sum(dy, axis=0) - centred * scale**2 * np.sum(dy * centred, axis=0)
        return (1 / n) * self.p[f"{i}.gamma"] * scale * inner

    def forward(self, i, layer, x):
        if isinstance(layer, xn.Dense):
            return x @ self.p[f"{i}.weight"] + self.p[f"{i}.bias"], x
        if isinstance(layer, xn.BatchNorm):
            return self.batch_norm(i, x)
        y = 1 / (1 + np.exp(-x)) if isinstance(layer, xn.Sigmoid) else np.where(x >= 0, x, 0)
        return y, y if isinstance(layer, xn.Sigmoid) else x

    def backward(self, i, layer, dy, cache, g):
        if isinstance(layer, xn.Dense):
            g[f"{i}.weight"] = cache.T @ dy
            g[f"{i}.bias"] = np.sum(dy, axis=0)
            return dy @ self.p[f"{i}.weight"].T if i else None
        if isinstance(layer, xn.BatchNorm):
            return self.batch_norm_backward(i, dy, cache, g)
        return dy * cache * (1 - cache) if isinstance(layer, xn.Sigmoid) else dy * (cache >= 0)

    def step(self, x, y):
        layers, caches, g = list(enumerate(self.case.layers)), [], {}
        for i, layer in layers:
            x, cache = self.forward(i, layer, x)
            caches.append(cache)
        e = np.exp(x - np.max(x, axis=-1, keepdims=True))
        prob = e / np.sum(e, axis=-1, keepdims=True)
        loss = -np.sum(y * np.log(np.clip(prob, 1e-15, 1))) / len(y)

        dy = (prob - y) / len(y)
        for i, layer in reversed(layers):
            dy = self.backward(i, layer, dy, caches[i], g)

        self.t += 1
        for name in self.p:
            self.m[name] = 0.9 * self.m[name] + (1 - 0.9) * g[name]
            self.v[name] = 0.999 * self.v[name] + (1 - 0.999) * np.power(g[name], 2)
            m_hat = self.m[name] / (1 - 0.9**self.t)
            v_hat = self.v[name] / (1 - 0.999**self.t)
            self.p[name] = self.p[name] - RATE * m_hat / (np.sqrt(v_hat) + 1e-8)
        return loss

    def first_losses(self) -> list[float]:
        n = self.case.batch
        return [float(self.step(self.x[:n], self.y[:n])) for _ in range(5)]

    def turn(self, steps: int) -> None:
        for _ in range(self.case.epochs(steps)):
            for x, y in self.case.shuffled(self.x, self.y, self.rng.permutation):
                self.step(x, y)


# --- JAX --------------------------------------------------------------------------------------------------------------


class Jax:
    """A step compiled as a whole, its carry donated; the batch is sliced inside it from the shuffled data."""

    def __init__(self, case: Case, dtype: str):
        import jax
        from jax import lax, nn
        from jax import numpy as jnp

        jax.config.update("jax_enable_x64", dtype == "float64")
        self.case, self.jax, self.device = case, jax, jax.devices()[0].device_kind
        net = case.net(dtype=dtype)
        params, statistics = ({k: jnp.array(a) for k, a in arrays.items()} for arrays in (net.params, net.state))
        zeros = jax.tree.map(jnp.zeros_like, params)
        self.carry = params, statistics, zeros, jax.tree.map(jnp.copy, zeros), jnp.array(0)
        self.x, self.y = map(jnp.asarray, case.data(dtype))
        self.key = jax.random.key(0)

        def loss(params, statistics, x, y):
            new = {}
            for i, layer in enumerate(case.layers):
                if isinstance(layer, xn.Dense):
                    x = x @ params[f"{i}.weight"] + params[f"{i}.bias"]
                elif isinstance(layer, xn.BatchNorm):
                    for name, batch in (f"{i}.mean", x.mean(axis=0)), (f"{i}.var", x.var(axis=0)):
                        new[name] = MOMENTUM * statistics[name] + (1 - MOMENTUM) * batch
                    x = (x - x.mean(axis=0)) / jnp.sqrt(x.var(axis=0) + EPS)
                    x = params[f"{i}.gamma"] * x + params[f"{i}.beta"]
                else:
                    x = nn.sigmoid(x) if isinstance(layer, xn.Sigmoid) else nn.relu(x)
            return -jnp.mean(jnp.take_along_axis(nn.log_softmax(x), y[:, None], axis=1)), new

        def step(carry, x, y, i):
            params, statistics, m, v, t = carry
            x, y = (lax.dynamic_slice_in_dim(a, i * case.batch, case.batch) for a in (x, y))
            (value, statistics), g = jax.value_and_grad(loss, has_aux=True)(params, statistics, x, y)
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
            first, second = 1 - 0.9**t, 1 - 0.999**t
            params = jax.tree.map(lambda p, m, v: p - RATE * (m / first) / (jnp.sqrt(v / second) + 1e-8), params, m, v)
            return (params, statistics, m, v, t), value

        def shuffle(key, x, y):
            order = jax.random.permutation(key, case.rows)
            return x[order], y[order]

        def scan(carry, x, y):
            return lax.scan(lambda carry, i: step(carry, x, y, i), carry, jnp.arange(case.batches))[0]

        self.step, self.scan = (jax.jit(f, donate_argnums=0) for f in (step, scan))
        self.shuffle = jax.jit(shuffle)

    def first_losses(self) -> list[float]:
        losses = []
        for _ in range(5):
            self.carry, loss = self.step(self.carry, self.x, self.y, 0)
            losses.append(float(loss))
        return losses

    def epoch(self, x: Any, y: Any) -> None:
        for i in range(self.case.batches):
            self.carry, _ = self.step(self.carry, x, y, i)

    def turn(self, steps: int) -> None:
        x, y = self.x, self.y
        for _ in range(self.case.epochs(steps)):
            if self.case.batches > 1:
                self.key, key = self.jax.random.split(self.key)
                x, y = self.shuffle(key, self.x, self.y)
            self.epoch(x, y)
        self.jax.block_until_ready(self.carry)


class JaxScan(Jax):
    """The same with a whole epoch compiled as one loop: nothing of the host's is left between its steps."""

    def epoch(self, x: Any, y: Any) -> None:
        self.carry = self.scan(self.carry, x, y)


# --- PyTorch ----------------------------------------------------------------------------------------------------------


class Torch:
    """Eager PyTorch with its own layers, loss and optimizer; or the model compiled; on the CPU or a GPU."""

    def __init__(self, case: Case, dtype: str, device: str = "cpu", compiled: bool = False):
        import torch
        from torch import nn

        if device == "cuda" and not torch.cuda.is_available():
            raise xn.BackendUnavailableError("PyTorch sees no CUDA device; pytorch.org names its builds for CUDA")
        if compiled and device == "cuda":
            import triton  # noqa: F401  # which torch.compile compiles with there
        if compiled and device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise xn.BackendUnavailableError("torch.compile needs a C++ compiler: g++, or the one that CXX names")

        def module(i: int, layer: xn.Layer) -> nn.Module:
            if isinstance(layer, xn.BatchNorm):
                return nn.BatchNorm1d(layer.features, eps=EPS, momentum=1 - MOMENTUM)
            if not isinstance(layer, xn.Dense):
                return nn.Sigmoid() if isinstance(layer, xn.Sigmoid) else nn.ReLU()
            linear = nn.Linear(layer.in_features, layer.out_features)
            linear.weight.data = torch.tensor(params[f"{i}.weight"].T).contiguous()
            linear.bias.data = torch.tensor(params[f"{i}.bias"])
            return linear

        self.case, self.torch = case, torch
        self.device = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.permutation = functools.partial(torch.randperm, device=device)
        params = case.net(dtype=dtype).params
        modules = [module(i, layer) for i, layer in enumerate(case.layers)]
        self.model = nn.Sequential(*modules).to(device, getattr(torch, dtype))
        self.call = torch.compile(self.model) if compiled else self.model
        self.loss = nn.CrossEntropyLoss()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=RATE)
        self.x, self.y = (torch.tensor(a, device=device) for a in case.data(dtype))

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        loss = self.loss(self.call(x), y)
        loss.backward()
        self.optimizer.step()
        return loss

    def first_losses(self) -> list[float]:
        n = self.case.batch
        return [self.step(self.x[:n], self.y[:n]).item() for _ in range(5)]

    def turn(self, steps: int) -> None:
        for _ in range(self.case.epochs(steps)):
            for x, y in self.case.shuffled(self.x, self.y, self.permutation):
                self.step(x, y)
        if self.x.is_cuda:
            self.torch.cuda.synchronize()


# --- scikit-learn -----------------------------------------------------------------------------------------------------


class Sklearn:
    """MLPClassifier.fit, which has ReLU throughout and no batch norm: less work than the others' in some cases."""

    device = "cpu"

    def __init__(self, case: Case, dtype: str):
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.neural_network import MLPClassifier

        self.case, self.unfinished, self.classifier = case, ConvergenceWarning, MLPClassifier
        self.x, self.y = case.data(dtype)

    def first_losses(self) -> None:
        return None

    def turn(self, steps: int) -> None:
        epochs = self.case.epochs(steps)
        model = self.classifier(
            self.case.sizes[1:-1],
            alpha=0.0,
            batch_size=self.case.batch,
            learning_rate_init=RATE,
            max_iter=epochs,
            shuffle=self.case.batches > 1,
            random_state=0,
            tol=0.0,
            n_iter_no_change=epochs + 1,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self.unfinished)  # all the epochs asked for is what is wanted
            model.fit(self.x, self.y)


class Peer(NamedTuple):
    """How a contestant is built, the library it rests on beside NumPy, and how to come by that."""

    build: Callable[[Case, str], Any]
    library: str | None = None
    install: str | None = None  # None: its error says it


FAST, JAX, TORCH = (f"pip install {package}" for package in ("numba", "jax", "torch"))
PEERS = {
    "xpnet": Peer(XpNet),
    "xpnet-fast": Peer(XpNetFast, "numba", FAST),
    "xpnet-torch": Peer(functools.partial(XpNet, backend="torch"), "torch"),
    "xpnet-torch-cuda": Peer(functools.partial(XpNet, backend="torch", device="cuda"), "torch"),
    "xpnet-jax": Peer(functools.partial(XpNet, backend="jax"), "jax"),
    "xpnet-cupy": Peer(functools.partial(XpNet, backend="cupy"), "cupy"),
    "products": Peer(Products),
    "products-cupy": Peer(functools.partial(Products, backend="cupy"), "cupy"),
    "jax": Peer(Jax, "jax", JAX),
    "jax-scan": Peer(JaxScan, "jax", JAX),
    "torch": Peer(Torch, "torch", TORCH),
    "torch-compile": Peer(functools.partial(Torch, compiled=True), "torch", TORCH),
    "torch-cuda": Peer(functools.partial(Torch, device="cuda"), "torch", TORCH),
    "torch-compile-cuda": Peer(functools.partial(Torch, device="cuda", compiled=True), "torch", TORCH),
    "sklearn": Peer(Sklearn, "sklearn", "pip install scikit-learn threadpoolctl"),
    "plain": Peer(Plain),
}
