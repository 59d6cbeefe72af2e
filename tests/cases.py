"""The table of layers and losses that the same tests run through. Axes: N batch, D features, K outputs."""

import numpy as np

import xpnet as xn


class Scale(xn.Layer):
    """A user's layer, in ten lines: y = a x²."""

    def __init__(self, features):
        self.features = features

    def initial_params(self, rng):
        return {"a": rng.normal(size=self.features)}

    def forward(self, x, training=False):
        return self.params["a"] * x * x, x

    def backward(self, dy, cache):
        return 2 * self.params["a"] * cache * dy, {"a": xn.ops.sum_over_batch(dy * cache * cache)}


class WrongScale(Scale):
    """The same with a 2 forgotten."""

    def backward(self, dy, cache):
        return self.params["a"] * cache * dy, {"a": xn.ops.sum_over_batch(dy * cache * cache)}


FEATURES = 4

LAYERS = {
    "dense": lambda: xn.Dense(FEATURES, 3),
    "dense to one": lambda: xn.Dense(FEATURES, 1),
    "batch norm": lambda: xn.BatchNorm(FEATURES),
    "batch norm, small eps": lambda: xn.BatchNorm(FEATURES, momentum=0.5, eps=1e-5),
    "batch norm, frozen": lambda: xn.BatchNorm(FEATURES, trainable=False),
    "dropout": lambda: xn.Dropout(0.3),
    "sigmoid": xn.Sigmoid,
    "tanh": xn.Tanh,
    "relu": xn.ReLU,
    "leaky relu": xn.LeakyReLU,
    "leaky relu, steep": lambda: xn.LeakyReLU(alpha=1.5),
    "elu": xn.ELU,
    "elu, alpha 1": lambda: xn.ELU(alpha=1.0),
    "softmax": xn.Softmax,
    "a user's": lambda: Scale(FEATURES),
    "network": lambda: xn.Sequential(
        xn.Dense(FEATURES, 5, initializer="glorot_uniform"),
        xn.Sequential(xn.BatchNorm(5), xn.Sigmoid(), xn.Dropout(0.2)),
        xn.Dense(5, 3, initializer="he_normal"),
        xn.BatchNorm(3),
        xn.ELU(),
        xn.Softmax(),
    ),
}


def classes(rng, n, k):
    return rng.integers(k, size=n)


def one_hot(rng, n, k):
    return np.eye(k)[rng.integers(k, size=n)]


def soft(rng, n, k):
    t = rng.random((n, k)) + 0.1
    return t / t.sum(axis=1, keepdims=True)


def several(rng, n, k):
    return rng.integers(2, size=(n, k))


def values(rng, n, k):
    return rng.normal(size=(n, k))


def logits(rng, n, k):
    return 3 * rng.normal(size=(n, k))


def probabilities(rng, n, k):
    return rng.uniform(0.05, 0.95, size=(n, k))


LOSSES = {  # the loss, a prediction and a target for it
    "softmax cross-entropy, classes": (xn.SoftmaxCrossEntropy, logits, classes),
    "softmax cross-entropy, soft targets": (xn.SoftmaxCrossEntropy, logits, soft),
    "categorical cross-entropy": (xn.CategoricalCrossEntropy, probabilities, one_hot),
    "binary cross-entropy": (xn.BinaryCrossEntropy, probabilities, several),
    "binary cross-entropy, soft targets": (xn.BinaryCrossEntropy, probabilities, soft),
    "binary cross-entropy with logits": (xn.BinaryCrossEntropyWithLogits, logits, several),
    "mean squared error": (xn.MeanSquaredError, values, values),
    "mean absolute error": (xn.MeanAbsoluteError, values, values),
    "huber": (lambda reduction="mean": xn.Huber(0.7, reduction), values, values),
}

OPTIMIZERS = {
    "sgd": lambda: xn.SGD(0.05),
    "nesterov": lambda: xn.Nesterov(0.05),
    "adagrad": xn.Adagrad,
    "rmsprop": lambda: xn.RMSprop(0.001),
    "adam": xn.Adam,
    "adamw, warmed up": lambda: xn.AdamW(xn.WarmUp(xn.CosineDecay(0.002, 20), 5), clip_norm=1.0),
}


def tutorial_network():
    """The source tutorial's network."""
    return xn.Sequential(
        xn.Dense(64, 32),
        xn.BatchNorm(32),
        xn.Sigmoid(),
        xn.Dense(32, 16),
        xn.BatchNorm(16),
        xn.ReLU(),
        xn.Dense(16, 10),
        xn.BatchNorm(10),
    )


def ready(layer, lib=None, dtype="float64", seed=0):
    """The layer, on `lib` or NumPy, with parameters and statistics off the ones and zeros that would hide errors."""
    backend = lib.backend if lib else xn.get_backend("numpy")
    net = xn.Sequential(layer).initialize(backend, dtype, seed=seed)
    rng = np.random.default_rng(seed)
    params, state = ({name: backend.to_numpy(a) for name, a in arrays.items()} for arrays in (net.params, net.state))
    net.set_params({name: a + rng.normal(0.0, 0.3, a.shape) for name, a in params.items()})
    net.set_state({name: rng.uniform(0.5, 2.0, a.shape) if a.dtype.kind == "f" else a for name, a in state.items()})
    return layer
