"""Layers of one's own that several tests share."""

import xpnet as xn


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
    """A Sequential of one's own: its two layers stand side by side, (n, 4) to (n, 8), and its cache is its own."""

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
    """A Sequential of one's own: y = 2 inner(x)."""

    def forward(self, x, training=False):
        y, cache = super().forward(x, training)
        return 2.0 * y, cache

    def backward(self, dy, cache):
        return super().backward(2.0 * dy, cache)


class Linked(xn.Sigmoid):
    """A sigmoid of one's own: nothing but its outputs tells that they are probabilities."""


class Table(xn.Layer):
    """A user's layer: ids (N, ...) to their rows of a table, (N, ..., K)."""

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
