"""The contestants of benchmark.py, which take the same training steps.

A contestant is built from a case and a dtype. `first_losses()` returns the losses of five steps on the first batch,
which show that all do the same work; `turn(steps)` trains for whole epochs and returns when the device is done;
`predict(steps)` computes the outputs of their batches instead, one call each; `device` is the device's name.
"""

import functools
import importlib
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

import xpnet as xn
from parts.cases import EPS, MOMENTUM, Case

RATE, DECAY = 0.001, 0.01  # the learning rate; AdamW's weight decay

# --- xpnet ------------------------------------------------------------------------------------------------------------


class XpNet:
    """One call of `fit` a turn, start-up included; the data is on the backend already, as for the peers."""

    def __init__(self, case: Case, dtype: str, backend: str = "numpy", device: Any = None):
        self.case = case
        self.net = case.net(backend, dtype, device)
        self.x, self.y = map(self.net.backend.asarray, case.data(dtype))
        self.device = self.net.backend.device_name

    def fit(self, x: Any, y: Any, epochs: int, batch_size: int | None) -> xn.History:
        loss, optimizer = xn.SoftmaxCrossEntropy(), getattr(xn, self.case.optimizer)(learning_rate=RATE)
        return self.net.fit(x, y, loss=loss, optimizer=optimizer, epochs=epochs, batch_size=batch_size)

    def first_losses(self) -> list[float]:
        n = self.case.batch
        return self.fit(self.x[:n], self.y[:n], 5, None)["loss"]

    def turn(self, steps: int) -> None:
        self.fit(self.x, self.y, self.case.epochs(steps), self.case.batch)
        self.net.backend.synchronize()

    def predict(self, steps: int) -> None:
        for rows in self.case.slices * self.case.epochs(steps):
            self.net.predict(self.x[rows, ...])
        self.net.backend.synchronize()


class XpNetFast(XpNet):
    """The same with the NumPy backend's compiled kernels."""

    def __init__(self, case: Case, dtype: str):
        import numba  # noqa: F401  # without it there are none

        super().__init__(case, dtype)


# --- products, plain NumPy --------------------------------------------------------------------------------------------


PART = 2**18  # entries of x in a part of the batch, which stays in cache


class Products:
    """Only the matrix products of a step, written into preallocated arrays: a lower bound for code on this library.

    On CuPy they are cuBLAS's. A convolution's products are those with the patches of its windows.
    """

    def __init__(self, case: Case, dtype: str, backend: str = "numpy"):
        self.case, self.backend = case, xn.get_backend(backend)
        self.lib, self.device = importlib.import_module(backend), self.backend.device_name
        rng = np.random.default_rng(0)

        def array(*shape: int) -> Any:
            return self.backend.asarray(rng.standard_normal(shape, dtype=dtype))

        rows, columns, divided = [], [], []  # (a, b, out) with contiguous rows, a contiguous batch, and parts of that
        for (count, m, k, n), times in case.products:
            many = (count,) * (count > 1)
            x, y, dw = array(*many, m, k), array(*many, m, n), array(*many, k, n)
            # orthonormal: x W Wᵀ, which becomes the next x, neither grows nor vanishes
            w = self.backend.asarray(np.broadcast_to(np.eye(k, n, dtype=dtype) - 2 / max(k, n), (*many, k, n)).copy())
            contiguous = rows or case.kind == "texts"  # the data itself has contiguous rows
            xt = array(*many, k, m) if contiguous else transposed(x)
            yt = array(*many, n, m)
            rows += [(x, w, y), (transposed(x), y, dw), (y, transposed(w), x)][:times]
            columns += [(transposed(w), xt, yt), (xt, transposed(yt), dw), (w, yt, xt)][:times]
            parts = 1 if many else max(1, m * k // PART)
            xs, ys = (xt, yt) if parts == 1 else (array(k, m // parts), array(n, m // parts))
            divided += [(transposed(w), xs, ys), (xs, transposed(ys), dw), (w, ys, xs)][:times] * parts
        self.products = min(rows, columns, divided, key=self.seconds)

    def seconds(self, products: list[tuple[np.ndarray, ...]]) -> float:
        """Return the median time of a step with these products."""
        self.products, times = products, []
        for _ in range(5):
            began = time.perf_counter()
            self.step()
            self.backend.synchronize()
            times.append(time.perf_counter() - began)
        return sorted(times)[2]

    def step(self) -> None:
        for a, b, out in self.products:
            (self.lib.matmul if a.ndim == 3 else self.lib.dot)(a, b, out=out)

    def first_losses(self) -> None:
        return None

    def turn(self, steps: int) -> None:
        for _ in range(self.case.epochs(steps) * self.case.batches):
            self.step()
        self.backend.synchronize()


def transposed(a: Any) -> Any:
    """Return a matrix or a stack of matrices transposed."""
    return a.swapaxes(-1, -2)


class Plain:
    """The step as a tutorial would write it in NumPy."""

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
    """A compiled step that donates its carry, and slices the batch from the shuffled data."""

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
        kept = 1 - RATE * DECAY if case.optimizer == "AdamW" else 1.0

        def loss(params, statistics, x, y):
            new = {}
            x = jax_outputs(case.layers, "", params, statistics, new, x)
            return -jnp.mean(jnp.take_along_axis(nn.log_softmax(x), y[..., None], axis=-1)), new

        def step(carry, x, y, i):
            params, statistics, m, v, t = carry
            x, y = (lax.dynamic_slice_in_dim(a, i * case.batch, case.batch) for a in (x, y))
            (value, statistics), g = jax.value_and_grad(loss, has_aux=True)(params, statistics, x, y)
            t = t + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
            first, second = 1 - 0.9**t, 1 - 0.999**t
            params = jax.tree.map(
                lambda p, m, v: kept * p - RATE * (m / first) / (jnp.sqrt(v / second) + 1e-8), params, m, v
            )
            return (params, statistics, m, v, t), value

        def shuffle(key, x, y):
            order = jax.random.permutation(key, case.rows)
            return x[order], y[order]

        def scan(carry, x, y):
            return lax.scan(lambda carry, i: step(carry, x, y, i), carry, jnp.arange(case.batches))[0]

        self.step, self.scan = (jax.jit(f, donate_argnums=0) for f in (step, scan))
        self.shuffle = jax.jit(shuffle)
        self.outputs = jax.jit(lambda params, statistics, x: jax_outputs(case.layers, "", params, statistics, None, x))

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

    def predict(self, steps: int) -> None:
        params, statistics, *_ = self.carry
        y = None
        for rows in self.case.slices * self.case.epochs(steps):
            y = self.outputs(params, statistics, self.x[rows])
        self.jax.block_until_ready(y)


def jax_outputs(layers: Sequence[xn.Layer], prefix: str, params: Any, statistics: Any, new: Any, x: Any) -> Any:
    """Return the layers' output for x by JAX's own functions, and write the next statistics into `new`; if that is
    None, return the output in inference.
    """
    from jax import lax, nn
    from jax import numpy as jnp
    from jax.scipy.special import erf

    def dense(x: Any, name: str) -> Any:
        return x @ p[f"{name}weight"] + p[f"{name}bias"]

    for i, layer in enumerate(layers):
        name = f"{prefix}{i}."
        p = {key.removeprefix(name): a for key, a in params.items() if key.startswith(name)}
        if isinstance(layer, xn.Dense):
            x = dense(x, "")
        elif isinstance(layer, xn.BatchNorm):
            if new is None:
                mean, var = statistics[f"{name}mean"], statistics[f"{name}var"]
            else:
                mean, var = x.mean(axis=0), x.var(axis=0)
                for key, batch in ("mean", mean), ("var", var):
                    new[name + key] = MOMENTUM * statistics[name + key] + (1 - MOMENTUM) * batch
            x = p["gamma"] * (x - mean) / jnp.sqrt(var + EPS) + p["beta"]
        elif isinstance(layer, xn.Conv2d):
            around = [(layer.padding, layer.padding)] * 2
            x = lax.conv_general_dilated(x, p["weight"], (1, 1), around) + p["bias"][:, None, None]
        elif isinstance(layer, xn.MaxPool2d):
            x = lax.reduce_window(x, -jnp.inf, lax.max, (1, 1, 2, 2), (1, 1, 2, 2), "VALID")
        elif isinstance(layer, xn.Flatten):
            x = x.reshape(x.shape[0], -1)
        elif isinstance(layer, xn.Embedding):
            x = p["weight"][x]
        elif isinstance(layer, xn.PositionalEmbedding):
            x = x + p["weight"][: x.shape[1]]
        elif isinstance(layer, xn.LayerNorm):
            centred = x - x.mean(axis=-1, keepdims=True)
            x = p["gamma"] * centred * lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + layer.eps) + p["beta"]
        elif isinstance(layer, xn.MultiHeadAttention):
            n, t, d = x.shape
            q, k, v = dense(x, "qkv_").reshape(n, t, 3, layer.heads, -1).transpose(2, 0, 3, 1, 4)
            scores = q @ k.mT / (d / layer.heads) ** 0.5
            scores = jnp.where(jnp.tril(jnp.ones((t, t), bool)), scores, -jnp.inf)
            x = dense((nn.softmax(scores) @ v).transpose(0, 2, 1, 3).reshape(n, t, d), "out_")
        elif isinstance(layer, xn.Residual):
            x = x + jax_outputs(layer.layers, name, params, statistics, new, x)
        elif isinstance(layer, xn.GELU):
            x = x * 0.5 * (1 + erf(x / 2**0.5))
        else:
            x = nn.sigmoid(x) if isinstance(layer, xn.Sigmoid) else nn.relu(x)
    return x


class JaxScan(Jax):
    """The same with a whole epoch compiled as one loop, without host work between its steps."""

    def epoch(self, x: Any, y: Any) -> None:
        self.carry = self.scan(self.carry, x, y)


# --- PyTorch ----------------------------------------------------------------------------------------------------------


class Torch:
    """PyTorch with its own layers, loss and optimizer: eager or with a compiled model, on the CPU or a GPU, and with
    images in its default memory format or with the channels last.
    """

    def __init__(
        self, case: Case, dtype: str, device: str = "cpu", compiled: bool = False, channels_last: bool = False
    ):
        import torch

        if device == "cuda" and not torch.cuda.is_available():
            raise xn.BackendUnavailableError("PyTorch finds no CUDA device; pytorch.org has its builds for CUDA")
        if compiled and device == "cuda":
            import triton  # noqa: F401  # torch.compile needs it on a GPU
        if compiled and device == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
            raise xn.BackendUnavailableError("torch.compile needs a C++ compiler: g++, or the one that CXX names")

        self.case, self.torch = case, torch
        self.device = torch.cuda.get_device_name() if device == "cuda" else "cpu"
        self.permutation = functools.partial(torch.randperm, device=device)
        params = case.net(dtype=dtype).params
        layout = torch.channels_last if channels_last else torch.preserve_format
        self.model = torch_module(case.layers, params).to(device, getattr(torch, dtype), memory_format=layout)
        self.call = torch.compile(self.model) if compiled else self.model
        decay = DECAY if case.optimizer == "AdamW" else 0
        self.optimizer = getattr(torch.optim, case.optimizer)(self.model.parameters(), lr=RATE, weight_decay=decay)
        self.x, self.y = (torch.tensor(a, device=device) for a in case.data(dtype))
        self.x = self.x.to(memory_format=layout)

    def step(self, x: Any, y: Any) -> Any:
        self.optimizer.zero_grad()
        logits = self.call(x)
        loss = self.torch.nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten())
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

    def predict(self, steps: int) -> None:
        self.model.eval()
        with self.torch.inference_mode():
            for rows in self.case.slices * self.case.epochs(steps):
                self.call(self.x[rows])
        if self.x.is_cuda:
            self.torch.cuda.synchronize()


def torch_module(layers: Sequence[xn.Layer], params: dict[str, Any], prefix: str = "") -> Any:
    """Return PyTorch's modules for these layers, with xpnet's parameters."""
    import torch
    from torch import nn

    class Residual(nn.Module):
        def __init__(self, f: nn.Module):
            super().__init__()
            self.f = f

        def forward(self, x: Any) -> Any:
            return x + self.f(x)

    class Positions(nn.Embedding):
        def forward(self, x: Any) -> Any:
            return x + self.weight[: x.shape[1]]

    class Attention(nn.Module):
        def __init__(self, features: int, heads: int):
            super().__init__()
            self.heads, self.qkv, self.out = heads, nn.Linear(features, 3 * features), nn.Linear(features, features)

        def forward(self, x: Any) -> Any:
            n, t, d = x.shape
            q, k, v = self.qkv(x).reshape(n, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            return self.out(y.transpose(1, 2).reshape(n, t, d))

    def module(name: str, layer: xn.Layer) -> nn.Module:
        own = {key.removeprefix(name): torch.tensor(np.asarray(a)) for key, a in params.items() if key.startswith(name)}

        def filled(module: nn.Module, weight: str = "weight", bias: str = "bias") -> nn.Module:
            is_linear = isinstance(module, nn.Linear)
            module.weight.data = own[weight].T.contiguous() if is_linear else own[weight]
            if bias in own:
                module.bias.data = own[bias]
            return module

        if isinstance(layer, xn.Dense):
            return filled(nn.Linear(layer.in_features, layer.out_features))
        if isinstance(layer, xn.BatchNorm):
            return nn.BatchNorm1d(layer.features, eps=EPS, momentum=1 - MOMENTUM)
        if isinstance(layer, xn.Conv2d):
            return filled(nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, padding=layer.padding))
        if isinstance(layer, xn.MaxPool2d):
            return nn.MaxPool2d(layer.kernel_size)
        if isinstance(layer, xn.Embedding):
            return filled(nn.Embedding(layer.vocabulary, layer.features))
        if isinstance(layer, xn.PositionalEmbedding):
            return filled(Positions(layer.length, layer.features))
        if isinstance(layer, xn.LayerNorm):
            return nn.LayerNorm(layer.features, eps=layer.eps)
        if isinstance(layer, xn.MultiHeadAttention):
            attention = Attention(layer.features, layer.heads)
            filled(attention.qkv, "qkv_weight", "qkv_bias")
            filled(attention.out, "out_weight", "out_bias")
            return attention
        if isinstance(layer, xn.Residual):
            return Residual(torch_module(layer.layers, params, name))
        return {xn.Flatten: nn.Flatten, xn.GELU: nn.GELU, xn.Sigmoid: nn.Sigmoid, xn.ReLU: nn.ReLU}[type(layer)]()

    return nn.Sequential(*(module(f"{prefix}{i}.", layer) for i, layer in enumerate(layers)))


# --- scikit-learn -----------------------------------------------------------------------------------------------------


class Sklearn:
    """MLPClassifier.fit, which has only ReLU and no batch norm: in some cases less work than the others do."""

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
            warnings.simplefilter("ignore", self.unfinished)  # it is to stop after these epochs
            model.fit(self.x, self.y)


class Peer(NamedTuple):
    """How to build a contestant, the library that it needs besides NumPy, and how to install that."""

    build: Callable[[Case, str], Any]
    library: str | None = None
    install: str | None = None  # None if the library's error message says so itself
    kinds: tuple[str, ...] = ("features", "images", "texts")  # the kinds of cases that it can run


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
    "torch-channels-last": Peer(functools.partial(Torch, channels_last=True), "torch", TORCH, ("images",)),
    "torch-compile": Peer(functools.partial(Torch, compiled=True), "torch", TORCH),
    "torch-cuda": Peer(functools.partial(Torch, device="cuda"), "torch", TORCH),
    "torch-compile-cuda": Peer(functools.partial(Torch, device="cuda", compiled=True), "torch", TORCH),
    "sklearn": Peer(Sklearn, "sklearn", "pip install scikit-learn threadpoolctl", kinds=("features",)),
    "plain": Peer(Plain, kinds=("features",)),
}
