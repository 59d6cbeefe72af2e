"""Tables of layers, losses, optimizers and callbacks, all run through the same tests. Axes: N batch, K outputs."""

import contextlib
import math
import types

import numpy as np
import pytest
from hypothesis import strategies as st

import xpnet as xn


class Scale(xn.Layer):
    """A user's layer in ten lines: y = a x²."""

    def __init__(self, features):
        self.features = features

    def initial_params(self, rng):
        return {"a": rng.normal(size=self.features)}

    def forward(self, x, training=False):
        return self.params["a"] * x * x, x

    def backward(self, dy, cache):
        return 2 * self.params["a"] * cache * dy, {"a": xn.ops.sum_over_batch(dy * cache * cache)}


class WrongScale(Scale):
    """The same with a factor of 2 forgotten."""

    def backward(self, dy, cache):
        return self.params["a"] * cache * dy, {"a": xn.ops.sum_over_batch(dy * cache * cache)}


class Foreign:
    """The minimum that passes for an array of another library."""

    def __init__(self, a):
        self.a = np.asarray(a)
        self.shape, self.ndim, self.dtype = self.a.shape, self.a.ndim, self.a.dtype

    def __len__(self):
        return len(self.a)

    def __array_namespace__(self, api_version=None):
        return types


FEATURES = 4


def of_images(shape, *layers):
    """A network of FEATURES that takes them as an image or signal of that shape."""
    return xn.Sequential(xn.Reshape(*shape), *layers, xn.Flatten())


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
    "silu": xn.SiLU,
    "softplus": xn.Softplus,
    "gelu": xn.GELU,
    "gelu, approximate": lambda: xn.GELU(approximate=True),
    "layer norm": lambda: xn.LayerNorm(FEATURES),
    "rms norm": lambda: xn.RMSNorm(FEATURES, eps=1e-3),
    "group norm": lambda: xn.GroupNorm(2, FEATURES),
    "softmax": xn.Softmax,
    "rescale": lambda: xn.Rescale(0.5, -0.25),
    "flatten": xn.Flatten,
    "conv 1d": lambda: of_images((2, 2), xn.Conv1d(2, 3, 2, padding=1, dilation=2)),
    "conv 2d": lambda: of_images((1, 2, 2), xn.Conv2d(1, 2, 2, padding="same"), xn.BatchNorm(2)),
    "conv 2d, strided": lambda: of_images((2, 2, 1), xn.Conv2d(2, 2, (3, 1), (2, 1), (1, 0), groups=2)),
    "max pool 1d": lambda: of_images((1, 4), xn.MaxPool1d(3, 2, padding=1)),
    "max pool 2d": lambda: of_images((2, 2), xn.Reshape(1, 2, -1), xn.MaxPool2d(2, 1, "same")),
    "average pool 1d": lambda: of_images((1, 4), xn.AveragePool1d(2)),
    "average pool 2d": lambda: of_images((1, 2, 2), xn.Transpose(2, 1, 3), xn.AveragePool2d((1, 2), 1, (0, 1))),
    "global average pool": lambda: of_images((2, 2, 1), xn.GlobalAveragePool()),
    "residual": lambda: xn.Residual(xn.Dense(FEATURES, FEATURES), xn.BatchNorm(FEATURES), xn.Tanh()),
    "branches, added": lambda: xn.Branches(xn.Dense(FEATURES, 3), xn.Sequential(xn.Dense(FEATURES, 3), xn.Sigmoid())),
    "branches, side by side": lambda: xn.Branches(xn.Dense(FEATURES, 2), xn.BatchNorm(FEATURES), merge="concat"),
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


def ids(rng, n, t):
    return rng.integers(7, size=(n, t))


def sequences(rng, n, t):
    return rng.normal(size=(n, t, FEATURES))


def gpt(vocabulary, length, features, heads, blocks=2):
    """A small GPT."""
    layers = [xn.Embedding(vocabulary, features), xn.PositionalEmbedding(length, features)]
    for _ in range(blocks):
        more = xn.Dense(features, 4 * features), xn.GELU(), xn.Dense(4 * features, features)
        layers.append(xn.Residual(xn.LayerNorm(features), xn.MultiHeadAttention(features, heads, causal=True)))
        layers.append(xn.Residual(xn.LayerNorm(features), *more))
    return xn.Sequential(*layers, xn.LayerNorm(features), xn.Dense(features, vocabulary))


SEQUENCES = {  # layers that take other inputs than those in LAYERS, each with a function that draws its inputs
    "embedding": (lambda: xn.Embedding(7, 3), ids),
    "embedding, of one number a row": (lambda: xn.Embedding(7, 3), lambda rng, n, t: ids(rng, n, t)[:, 0]),
    "positional embedding": (lambda: xn.PositionalEmbedding(6, FEATURES), sequences),
    "attention": (lambda: xn.MultiHeadAttention(FEATURES, 2), sequences),
    "attention, causal": (lambda: xn.MultiHeadAttention(FEATURES, 2, causal=True), sequences),
    "attention, one head": (lambda: xn.MultiHeadAttention(FEATURES, 1), sequences),
    "gpt": (lambda: gpt(7, 5, 4, 2, blocks=1), ids),
}


seeds = st.integers(0, 2**32 - 1)


def some_inputs(rng, n):
    """Return rows of random scale, with some exact zeros, where ReLU has its corner."""
    x = rng.normal(size=(n, FEATURES)) * 10.0 ** rng.uniform(-1, 1)
    x[rng.random(x.shape) < 0.05] = 0.0
    x[0, 0] = 1.0  # passes ReLU, since derivatives that are all 0 prove nothing
    return x


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


LOSSES = {  # each with functions that draw a prediction and a target
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
    "adamw, of weights": lambda: xn.AdamW(0.002, weight_decay=0.3, decays="weights"),
    "adamw, warmed up": lambda: xn.AdamW(xn.WarmUp(xn.CosineDecay(0.002, 20), 5), clip_norm=1.0),
}

CALLBACKS = {  # functions of a folder; none of these callbacks acts within a few epochs
    "csv log": lambda folder: xn.CSVLog(folder / "log.csv"),
    "doctor": lambda folder: xn.Doctor(log=None),
    "early stopping": lambda folder: xn.EarlyStopping("loss", patience=100, restore_best=False),
    "reduce on plateau": lambda folder: xn.ReduceOnPlateau("loss", patience=100),
    "time limit": lambda folder: xn.TimeLimit(1e6),
}


class Given(xn.Loss):
    """A loss of 0, or of `value`, whose derivative is the target itself."""

    def __init__(self, value=0.0):
        super().__init__("sum")
        self.value = value

    def terms(self, prediction, target):
        xp = xn.backends.namespace(prediction)
        return xp.where(target > 100.0, self.value, 0.0 * prediction), target + 0.0 * prediction


class Steep(xn.Layer):
    """The identity, except that a derivative above 100 in column 0 is replaced by `dy`."""

    def __init__(self, dy):
        self.dy = dy

    def forward(self, x, training=False):
        return x, None

    def backward(self, dy, cache):
        xp, first = xn.backends.namespace(dy), dy[:, :1]
        return xp.concat([xp.where(first > 100.0, self.dy, first), dy[:, 1:]], axis=1), {}


class Signs(xn.Optimizer):
    """A user's optimizer, which takes a finite step for any gradient."""

    def rule(self, w, g, slots, rate):
        xp = xn.backends.namespace(w)
        return xp.where(g > 0.0, w - rate, w + rate), {}


class Squares(xn.SGD):
    """A user's optimizer with an array in its memory on which no step depends."""

    memory = ("velocity", "squares")

    def rule(self, w, g, slots, rate):
        w, own = super().rule(w, g, slots, rate)
        return w, own | {"squares": slots["squares"] + g * g}


def bent(function, dy, norm=False):
    """Return layers in which column 0 gets this dy at an activation's input of -200, or through a batch norm."""
    return xn.Dense(1, 2), *([xn.BatchNorm(2)] if norm else []), function(), Steep(dy), xn.Dense(2, 1)


def flat(*more):
    return *more, xn.Dense(1, 1)


STEEP, SLOTS, UPDATE = "the gradient at layer", "the optimizer's slots", "the optimizer's update"
EXTREMES = {  # steps on a derivative of `size` in float32: layers, size, optimizer, loss, and the expected fault
    **{
        f"{f.__name__}, dy {dy}{', norm' * norm}": (lambda a=(f, dy, norm): bent(*a), 1e3, xn.SGD(1e-4), Given(), fault)
        for dy in (math.inf, math.nan)
        for f, norm, fault in ((xn.ReLU, False, ""), (xn.ReLU, True, ""), (xn.LeakyReLU, False, STEEP),
                               (xn.ELU, False, STEEP), (xn.Sigmoid, True, STEEP), (xn.Tanh, False, STEEP))
    },
    **{
        f"{o!r}, {size:g}": (flat, size, o, Given(), "" if size < most else SLOTS)
        for size in (2e19, 2e20, 1e25)
        for o, most in ((xn.SGD(), 1e30), (xn.Adagrad(), 1.8e19), (xn.RMSprop(), 5.8e19), (xn.Adam(), 5.8e20),
                        (xn.AdamW(), 5.8e20), (xn.Adam(clip_value=1.0), 1e30), (xn.RMSprop(clip_norm=1.0), 1e30),
                        (xn.Nesterov(), 1e30), (Squares(), 1.8e19))
    },
    **{
        f"{o!r}, dy {dy}": (lambda dy=dy: (xn.Dense(1, 2), Steep(dy), xn.Dense(2, 1)), 1e3, o, Given(), STEEP)
        for dy in (-math.inf, math.nan)
        for o in (xn.SGD(), xn.Nesterov(), xn.SGD(clip_value=1.0), xn.SGD(clip_norm=1.0), xn.Adagrad(clip_value=1.0),
                  xn.RMSprop(clip_value=1.0, clip_norm=1.0), xn.Adam(clip_value=1.0), xn.AdamW(clip_norm=1.0),
                  Signs(1e-3))
    },
    "weight decay": (flat, 1e3, xn.SGD(1e-20, weight_decay=1e30), Given(), UPDATE),
    "learning rate": (flat, 1e3, xn.SGD(lambda step: 3e36 if step == 1 else 1e-3), Given(), UPDATE),
    "loss": (flat, 1e3, xn.SGD(), Given(math.inf), "the loss"),
}  # fmt: skip


def as_extreme(layers, backend):
    """Return a float32 network whose parameters are 2, except those that put column 0 of `bent` far below zero."""
    net = xn.Sequential(*layers()).initialize(backend, "float32")
    far = {"0.weight": [[-200.0, 200.0]], "1.gamma": [0.01, 0.01], "1.beta": [-200.0, 200.0]}
    params = {name: np.full(tuple(a.shape), 2.0) for name, a in net.params.items()}
    net.set_params(params | {name: a for name, a in far.items() if name in params and len(params) > 2})
    return net


def assert_extreme(name, backend):
    """Assert that a fit to three batches, of which the second is extreme, ends as in EXTREMES."""
    layers, size, optimizer, loss, fault = EXTREMES[name]
    net, twin = as_extreme(layers, backend), as_extreme(layers, backend)
    x, y = np.array([[1.0], [1.5]] * 3), np.array([[1.0]] * 2 + [[size]] * 2 + [[1.0]] * 2)
    how = {"loss": loss, "optimizer": optimizer, "batch_size": 2, "shuffle": False}
    ends = pytest.raises(xn.DivergenceError, match=f"in epoch 1, batch 2: {fault}")
    with ends if fault else contextlib.nullcontext():
        net.fit(x, y, **how, epochs=1 + bool(fault))
    if fault and fault != "the loss":  # else the parameters that gave the loss are discarded as well
        twin.fit(x[:2], y[:2], **how)
    for name, a in (net.params | net.state).items():
        assert np.isfinite(backend.to_numpy(a)).all()
        if fault:
            np.testing.assert_array_equal(backend.to_numpy(a), backend.to_numpy((twin.params | twin.state)[name]))


def tutorial_network():
    """Return the network of the tutorial."""
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
    """Return the layer on `lib` or NumPy, with random parameters and statistics, since ones and zeros hide errors."""
    backend = lib.backend if lib else xn.get_backend("numpy")
    net = xn.Sequential(layer).initialize(backend, dtype, seed=seed)
    rng = np.random.default_rng(seed)
    params, state = ({name: backend.to_numpy(a) for name, a in arrays.items()} for arrays in (net.params, net.state))
    net.set_params({name: a + rng.normal(0.0, 0.3, a.shape) for name, a in params.items()})
    net.set_state({name: rng.uniform(0.5, 2.0, a.shape) if a.dtype.kind == "f" else a for name, a in state.items()})
    return layer
