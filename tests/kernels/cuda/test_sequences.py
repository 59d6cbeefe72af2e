"""Layers of sequences in CUDA against the layers' own code: attention, norms, embeddings, products, functions."""

import importlib
import itertools

import numpy as np
import pytest

import xpnet as xn
from support import ROOT
from support.kernels import through_a_stage
from xpnet.kernels import training_step
from xpnet.kernels.cuda import pointwise
from xpnet.kernels.families import kernels_for
from xpnet.kernels.stages import LayerStage
from xpnet.training.batches import Batch

pytestmark = pytest.mark.cupy_only

EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}


def gpt(vocabulary=11, layers=2, heads=2, features=12, context=9, dropout=0.0):
    """That of the script."""
    return importlib.import_module("train_text").network(vocabulary, layers, heads, features, context, dropout)


def block(*layers):
    return xn.Residual(xn.LayerNorm(8), *layers)


D, A = xn.Dense, xn.MultiHeadAttention
OF_IDS = {
    "gpt": gpt,
    "gpt, dropout": lambda: gpt(dropout=0.2),
    "ids alone": lambda: xn.Sequential(xn.Embedding(11, 8), D(8, 4)),
    "places": lambda: xn.Sequential(xn.Embedding(11, 8), xn.PositionalEmbedding(12, 8), xn.Tanh(), D(8, 4)),
    "frozen": lambda: xn.Sequential(xn.Embedding(11, 8, trainable=False), xn.PositionalEmbedding(9, 8), D(8, 4)),
    "frozen places": lambda: xn.Sequential(xn.Embedding(11, 8), xn.PositionalEmbedding(9, 8, trainable=False), D(8, 4)),
    "norm of ids": lambda: xn.Sequential(xn.Embedding(11, 8), xn.LayerNorm(8), D(8, 4)),
    "wide": lambda: xn.Sequential(xn.Embedding(11, 600), xn.RMSNorm(600), D(600, 4)),
}
OF_NUMBERS = {
    "attention": lambda: (A(8, 2), D(8, 4)),
    "attention, causal": lambda: (D(8, 8), xn.SiLU(), A(8, 4, causal=True), xn.Tanh(), D(8, 4)),
    "one head": lambda: (A(8, 1, causal=True), A(8, 8), D(8, 4)),
    "functions": lambda: (D(8, 33), xn.GELU(), D(33, 40), xn.ReLU(), xn.LeakyReLU(0.3), D(40, 4), xn.ELU()),
    "norms": lambda: (xn.LayerNorm(8), D(8, 40), xn.RMSNorm(40), xn.Sigmoid(), D(40, 5), xn.LayerNorm(5), D(5, 4)),
    "residuals": lambda: (block(D(8, 8)), block(A(8, 2), xn.Dropout(0.1)), xn.RMSNorm(8), D(8, 4)),
    "residual without a norm": lambda: (xn.Residual(D(8, 8), xn.ReLU()), block(D(8, 8)), D(8, 4)),
    "residual within": lambda: (xn.Residual(xn.RMSNorm(8), block(D(8, 8)), D(8, 8)), xn.LayerNorm(8), D(8, 4)),
    "residual of norms": lambda: (
        xn.Residual(xn.LayerNorm(8)),
        xn.LayerNorm(8),
        xn.Residual(block(xn.Tanh())),
        D(8, 4),
    ),
    "residual behind a bias": lambda: (D(8, 8), block(D(8, 8)), block(D(8, 8)), xn.Softmax(), D(8, 4)),
    "branches": lambda: (D(8, 8), xn.Branches(xn.LayerNorm(8), D(8, 8)), xn.LayerNorm(8), D(8, 4)),
    "branches side by side": lambda: (xn.Branches(A(8, 2), D(8, 8), merge="concat"), xn.LayerNorm(16), D(16, 4)),
    "convolution": lambda: (
        *(D(8, 6), xn.Transpose(2, 1), xn.Conv1d(6, 4, 3, padding=1), xn.ReLU(), xn.MaxPool1d(3, 1, 1)),
        *(xn.Transpose(2, 1), xn.LayerNorm(4), D(4, 4)),
    ),
    "ends in images": lambda: (xn.Transpose(2, 1), xn.Conv1d(8, 4, 3, padding=1), xn.BatchNorm(4), xn.Tanh()),
    "pooled": lambda: (D(8, 6), xn.Transpose(2, 1), xn.GlobalAveragePool(), xn.LayerNorm(6), xn.ReLU(), D(6, 4)),
    "matrices": lambda: (xn.Flatten(), D(72, 9), xn.LayerNorm(9), xn.Tanh(), xn.RMSNorm(9), xn.LayerNorm(9), D(9, 4)),
}
OWN_CODE = {  # of some layers
    "frozen", "frozen places", "residual behind a bias", "convolution", "ends in images", "pooled", "matrices",
}  # fmt: skip
NETWORKS = OF_IDS | {name: lambda make=make: xn.Sequential(*make()) for name, make in OF_NUMBERS.items()}


def sizes_for(name):
    """Two batches of 5 sequences of 9, and one of 3 of them, of 6 where that changes no shape of the network."""
    return (5, 9), (5, 9), (3, 9 if name == "matrices" else 6)


def batches(name, net, dtype, cupy, sizes):
    """Batches of so many sequences of so many positions."""
    rng = np.random.default_rng(0)
    for n, t in sizes:
        x = rng.integers(11, size=(n, t)) if name in OF_IDS else rng.normal(size=(n, t, 8)).astype(dtype)
        outputs = net.output_shape(("N", *x.shape[1:]))[1:]
        y = np.eye(outputs[-1], dtype=dtype)[rng.integers(outputs[-1], size=(n, *outputs[:-1]))]
        yield Batch(cupy.asarray(x), cupy.asarray(y))


def assert_plain_steps(name, dtype, cupy, monkeypatch, sizes):
    """To roundings of the largest numbers that are added up."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    seen = []
    for choice in ("reference", "auto"):
        monkeypatch.setenv("XPNET_KERNELS", choice)
        net = NETWORKS[name]().initialize(cupy, dtype, seed=1)
        all_batches = list(batches(name, net, dtype, cupy, sizes))
        step = training_step(net, xn.SoftmaxCrossEntropy(), xn.SGD(0.1), ("N", *all_batches[0].x.shape[1:]))
        carry = step.start
        for batch in all_batches:
            value, carry = step.on_rows(carry, batch, slice(0, batch.x.shape[0]), (carry,))
        seen.append((float(value), cupy.to_numpy(carry.weights)))
    assert any(type(stage) is LayerStage for stage in step.stages) == (name in OWN_CODE)
    (expected, weights), (value, found) = seen
    assert value == pytest.approx(expected, rel=100 * EPS[dtype])
    np.testing.assert_allclose(found, weights, rtol=0, atol=300 * EPS[dtype] * np.abs(weights).max())


@pytest.mark.parametrize(("name", "dtype"), list(zip(NETWORKS, itertools.cycle(EPS), strict=False)))
def test_steps_are_the_plain_steps(name, dtype, cupy, monkeypatch):
    assert_plain_steps(name, dtype, cupy, monkeypatch, sizes_for(name))


@pytest.mark.parametrize("name", ["functions", "gpt"])
def test_positions_that_several_blocks_share(name, cupy, monkeypatch):
    """Where each adds up a stretch of the columns, and a thread goes on to further numbers."""
    monkeypatch.setattr(pointwise, "blocks", lambda size, most: 1)
    assert_plain_steps(name, "float64", cupy, monkeypatch, [(30, 9), (23, 9)])


def agrees(found, expected, dtype, roundings):
    """Each array, to so many roundings of the largest number in it."""
    assert found.keys() == expected.keys()
    for name, a in found.items():
        limit = roundings * EPS[dtype] * np.abs(expected[name]).max()
        np.testing.assert_allclose(a, expected[name], rtol=0, atol=limit, err_msg=name)


def own_code(layer, x, dy, dtype, rng):
    """A layer with parameters drawn at random on NumPy: those, and what its own code gives, the last bias being 0."""
    layer = xn.Sequential(layer).initialize("numpy", dtype).layers[0]
    params = {name: rng.normal(size=a.shape).astype(dtype) for name, a in layer.params.items()}
    if "out_bias" in params:
        params["out_bias"] *= 0
    layer.params = params
    y, cache = layer.forward(x, training=True)
    dx, grads = layer.backward(dy, cache)
    return params, {"y": y, "x": dx} | {name: g for name, g in grads.items() if name != "out_bias"}


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("causal", [True, False])
def test_attention_of_any_size(causal, dtype, cupy):
    """Fewer and more positions than a tile has, heads narrower than a warp and wider."""
    rng = np.random.default_rng(0)
    for n, t, heads, d in ((1, 1, 1, 1), (2, 7, 3, 5), (1, 33, 2, 32), (2, 41, 1, 40), (1, 70, 2, 3), (1, 9, 1, 100)):
        if dtype == "float64" and d > 64:
            continue
        x, dy = rng.normal(size=(2, n, t, heads * d)).astype(dtype)
        x /= heads * d  # for slopes that are not all 0
        layer = A(heads * d, heads, causal=causal)
        params, expected = own_code(layer, x, dy, dtype, rng)
        agrees(through_a_stage(cupy, layer, x, dy, params), expected, dtype, 200)


@pytest.mark.parametrize("dtype", EPS)
@pytest.mark.parametrize("kind", [xn.LayerNorm, xn.RMSNorm])
def test_norms_of_any_size(kind, dtype, cupy):
    """Of more positions than blocks, and of more features than a block has threads; about a mean that is large."""
    rng = np.random.default_rng(0)
    for n, t, d in ((1, 1, 3), (3, 70, 5), (2, 3, 700)):
        x, dy = rng.normal(size=(2, n, t, d)).astype(dtype)
        x += 100 * (kind is xn.LayerNorm)
        params, expected = own_code(kind(d), x, dy, dtype, rng)
        agrees(through_a_stage(cupy, kind(d), x, dy, params), expected, dtype, 2000)


def test_a_layer_norm_loses_no_digit_of_a_large_mean(cupy):
    rng = np.random.default_rng(0)
    x = (2000 + rng.normal(size=(4, 5, 300))).astype("float32")
    params = {"gamma": np.ones(300, "float32"), "beta": np.zeros(300, "float32")}
    y = through_a_stage(cupy, xn.LayerNorm(300), x, x, params)["y"]
    wide = x.astype("float64")
    mean, var = (of(wide, axis=-1, keepdims=True) for of in (np.mean, np.var))
    np.testing.assert_allclose(y, (wide - mean) / np.sqrt(var + 1e-5), atol=2e-6)


def test_sums_over_many_positions_lose_no_digits(cupy, monkeypatch):
    """Of one block, whose roundings all go one way: without care by hundreds of eps."""
    family = kernels_for(cupy, True)
    family.multiprocessors = 1
    monkeypatch.setattr("support.kernels.kernels_for", lambda *which: family)
    n, params = 3000, {"gamma": np.ones(2, "float32"), "beta": np.zeros(2, "float32")}
    x, dy = np.zeros((1, n, 2), "float32"), np.full((1, n, 2), np.float32(0.1))
    x[..., 1] = 1.0
    found = through_a_stage(cupy, xn.LayerNorm(2), x, dy, params)
    exact = n * float(np.float32(0.1))
    np.testing.assert_allclose(found["beta"], exact, rtol=3 * EPS["float32"])
    np.testing.assert_allclose(np.abs(found["gamma"]), exact / np.sqrt(1 + 4e-5), rtol=8 * EPS["float32"])


def test_an_id_outside_is_nan_and_takes_no_gradient(cupy):
    x = np.array([[0, 2, -1], [3, 2, 2**40]])
    weight, dy = np.arange(6.0).reshape(3, 2), np.ones((2, 3, 2))
    found = through_a_stage(cupy, xn.Embedding(3, 2), x, dy, {"weight": weight})
    known = (x >= 0) & (x < 3)
    np.testing.assert_array_equal(found["y"][known], weight[x[known]])
    assert np.isnan(found["y"][~known]).all()
    np.testing.assert_array_equal(found["weight"], [[1, 1], [0, 0], [2, 2]])


@pytest.mark.parametrize("name", ["gpt, dropout", "residuals", "wide"])
def test_sequences_have_the_same_bits_each_time(name, cupy, monkeypatch):
    """Whichever thread comes first: the host takes them in another order each time."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    bits = []
    for _ in range(2):
        net = NETWORKS[name]().initialize(cupy, seed=0)
        all_batches = list(batches(name, net, "float32", cupy, sizes_for(name)))
        step = training_step(net, xn.SoftmaxCrossEntropy(), xn.Adam(), ("N", *all_batches[0].x.shape[1:]))
        carry = step.start
        for batch in all_batches:
            _, carry = step.on_rows(carry, batch, slice(0, batch.x.shape[0]), (carry,))
        bits.append(cupy.to_numpy(carry.weights).tobytes())
    assert bits[0] == bits[1]
