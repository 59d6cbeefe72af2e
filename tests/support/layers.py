"""Users' layers that several tests share, and a check of any layer's derivatives."""

import copy

import numpy as np

import xpnet as xn
from support import cupy_on_host


def assert_derivatives(layer, lib, x, training=True, seed=0):
    """That a layer on `lib` has the derivatives of its forward at x, by central differences.

    Where the host stands in for a device, each of their calls takes it 20 µs and more: there it is the same code's
    results that are compared with NumPy's, whose session has the differences.
    """
    x_here = lib.asarray(x)
    if not cupy_on_host.installed():
        errors = xn.check_gradients(layer, x_here, training=training, seed=seed)
        assert errors.keys() == {"x", *layer.params}
        assert max(errors.values()) < 1e-6
        return
    twin = xn.Sequential(copy.deepcopy(layer)).initialize("numpy", "float64", fresh=True)
    twin.set_params({f"0.{name}": lib.to_numpy(a) for name, a in layer.params.items()})
    twin.set_state({f"0.{name}": lib.to_numpy(a) for name, a in layer.state.items()})
    (y, cache), (expected, its_own) = layer.forward(x_here, training), twin.layers[0].forward(x, training)
    lib.agrees(y, expected)
    dy = np.random.default_rng(seed).normal(size=expected.shape)
    found, expected = layer.backward(lib.asarray(dy), cache), twin.layers[0].backward(dy, its_own)
    found, expected = ({"x": dx, **grads} for dx, grads in (found, expected))
    assert found.keys() == expected.keys() == {"x", *layer.params}
    atol = lib.rtol * max(np.abs(g).max() for g in expected.values())  # some are 0 but for rounding
    for name, g in expected.items():
        np.testing.assert_allclose(lib.to_numpy(found[name]), g, rtol=0, atol=atol, err_msg=name)


class Linear(xn.Layer):
    """y = x W, whose gradient `twist` spoils."""

    def __init__(self, twist):
        self.twist = twist

    def initial_params(self, rng):
        return {"inner.w": rng.normal(size=(4, 4))}

    def forward(self, x, training=False):
        return x @ self.params["inner.w"], x

    def backward(self, dy, cache):
        return dy @ self.params["inner.w"].T, self.twist(xn.backends.namespace(dy), cache.T @ dy)


class SideBySide(xn.Sequential):
    """A user's Sequential with two layers side by side, (n, 4) to (n, 8), and a cache of its own."""

    def forward(self, x, training=False):
        (a, first), (b, second) = (layer.forward(x, training) for layer in self.layers)
        return xn.ops.namespace(x).concat([a, b], axis=1), (first, second)

    def backward(self, dy, cache):
        (dx, a), (more, b) = (
            layer.backward(dy[:, 4 * i : 4 * i + 4], own)
            for i, (layer, own) in enumerate(zip(self.layers, cache, strict=True))
        )
        return dx + more, {f"{i}.{name}": g for i, grads in enumerate((a, b)) for name, g in grads.items()}

    def backward_params(self, dy, cache):
        return self.backward(dy, cache)[1]

    def output_shape(self, input_shape):
        return (*input_shape[:-1], 8)


class Twice(xn.Sequential):
    """A user's Sequential: y = 2 inner(x)."""

    def forward(self, x, training=False):
        y, cache = super().forward(x, training)
        return 2.0 * y, cache

    def backward(self, dy, cache):
        return super().backward(2.0 * dy, cache)


class Linked(xn.Sigmoid):
    """A user's sigmoid; only its outputs show that they are probabilities."""


class Table(xn.Layer):
    """A user's layer from ids (N, ...) to rows of a table, (N, ..., K)."""

    takes = "integers"

    def __init__(self, ids, features):
        self.ids, self.features = ids, features

    def initial_params(self, rng):
        return {"weight": rng.normal(size=(self.ids, self.features))}

    def _hot(self, x):
        xp, weight = xn.backends.namespace(x), self.params["weight"]
        numbers = xp.arange(self.ids, dtype=x.dtype, device=xn.backends.device_of(x))
        return xp.astype(xp.reshape(x, (-1,))[:, None] == numbers, weight.dtype)

    def forward(self, x, training=False):
        assert xn.backends.namespace(x).isdtype(x.dtype, "integral")
        hot = self._hot(x)
        y = xn.backends.namespace(x).reshape(hot @ self.params["weight"], (*x.shape, self.features))
        return y, hot

    def backward(self, dy, cache):
        return None, {"weight": cache.T @ xn.ops.matrix(dy)}

    def output_shape(self, input_shape):
        return (*input_shape, self.features)
