"""Layers of sequences: embeddings and attention. Axes: N batch, T positions, D features."""

import math
import re
import tracemalloc

import numpy as np
import pytest

import xpnet as xn
from support.cases import FEATURES, SEQUENCES, gpt, ready
from xpnet.layers import attention

NAMES = list(SEQUENCES)
LOSS = xn.SoftmaxCrossEntropy()


def made(name, lib=None, dtype="float64", shape=(3, 5)):
    """The layer of the table, ready, and an x for it on the same backend."""
    make, draw = SEQUENCES[name]
    x = draw(np.random.default_rng(1), *shape)
    x = x.astype(dtype) if x.dtype.kind == "f" else x
    return ready(make(), lib, dtype), lib.asarray(x) if lib else x


# --- every one of them ------------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
@pytest.mark.parametrize("shape", [(3, 5), (1, 1)], ids=["sequences", "one number"])
@pytest.mark.parametrize("name", NAMES)
def test_derivatives_are_those_of_the_forward(strict_lib, name, shape):
    layer, x = made(name, strict_lib, shape=shape)
    errors = xn.check_gradients(layer, x)
    assert {"x", *layer.params} >= errors.keys() >= {*layer.params}
    assert max(errors.values()) < 1e-6


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", NAMES)
def test_every_backend_computes_the_same(lib, name, dtype):
    (theirs, x), (ours, x_here) = made(name, lib, dtype), made(name, None, dtype)
    rtol = lib.rtol if dtype == "float64" else 2e-5
    y, cache = theirs.forward(x, training=True)
    y_here, cache_here = ours.forward(x_here, training=True)
    assert y.dtype == lib.backend.dtype(dtype)
    assert tuple(y.shape) == ours.output_shape(x_here.shape)
    lib.agrees(y, y_here, rtol)
    dy = np.random.default_rng(2).normal(size=y_here.shape).astype(dtype)
    dx, grads = theirs.backward(lib.asarray(dy), cache)
    dx_here, grads_here = ours.backward(dy, cache_here)
    assert (dx is None) == (dx_here is None) == (x_here.dtype.kind == "i")
    for a, expected in [(dx, dx_here)] * (dx is not None) + [(grads[k], grads_here[k]) for k in theirs.params]:
        assert a.dtype == lib.backend.dtype(dtype)
        lib.agrees(a, expected, rtol)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_layers_keep_their_weights_and_pass_the_gradient_on(lib, name):
    layer, x = made(name, lib)
    y, cache = layer.forward(x, training=True)
    dx, _ = layer.backward(y, cache)
    layer.trainable = False
    again, cache = layer.forward(x, training=True)
    lib.agrees(again, lib.to_numpy(y))
    if dx is not None:
        lib.agrees(layer.backward(y, cache)[0], lib.to_numpy(dx))
    k = y.shape[-1]
    net = xn.Sequential(layer, xn.Dense(k, 3)).initialize()
    before = {key: lib.to_numpy(a).copy() for key, a in net.params.items()}
    net.fit(x, np.zeros(y.shape[:-1], int), loss=LOSS, optimizer=xn.SGD(0.1), epochs=1)
    for key, a in before.items():
        assert (lib.to_numpy(net.params[key]) == a).all() == key.startswith("0.")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_gives_back_the_layer(lib, tmp_path, name):
    layer, x = made(name, lib)
    net = layer if isinstance(layer, xn.Sequential) else xn.Sequential(layer)
    net.assign_placed(lib.backend, "float64", net.params, net.state)
    net.save(tmp_path / "net.safetensors")
    loaded = xn.load(tmp_path / "net.safetensors", backend=lib.backend)
    assert repr(loaded) == repr(net)
    np.testing.assert_array_equal(lib.to_numpy(loaded.predict(x)), lib.to_numpy(net.predict(x)))


@pytest.mark.jax_only
@pytest.mark.parametrize("name", NAMES)
def test_jit_traces_forward_and_backward(lib, name):
    import jax

    layer, x = made(name, lib)
    y, cache = layer.forward(x, training=True)

    def both(x, dy):
        y, cache = layer.forward(x, training=True)
        return y, layer.backward(dy, cache)

    traced, (dx, grads) = jax.jit(both)(x, y)
    expected, slopes = layer.backward(y, cache)
    lib.agrees(traced, lib.to_numpy(y))
    for key, g in grads.items():
        lib.agrees(g, lib.to_numpy(slopes[key]))
    if expected is not None:
        lib.agrees(dx, lib.to_numpy(expected))


@pytest.mark.parametrize("optimizer", [xn.Adam(0.003), xn.AdamW(0.003)], ids=repr)
def test_twenty_steps_of_a_small_gpt_are_numpys(lib, optimizer):
    """Which test_torch_reference holds to PyTorch's."""
    ends = []
    for backend in (lib.backend, xn.get_backend("numpy")):
        rng, net = np.random.default_rng(0), gpt(7, 6, 8, 2, blocks=1).initialize(backend, "float64", seed=4)
        net.set_params({k: rng.normal(0.0, 0.3, tuple(a.shape)) for k, a in net.params.items()})
        x, y = rng.integers(7, size=(20, 5)), rng.integers(7, size=(20, 5))
        history = net.fit(x, y, loss=LOSS, optimizer=optimizer, epochs=5, batch_size=5, shuffle=False)
        ends.append([np.array(history["loss"]), *map(backend.to_numpy, net.params.values())])
        assert history["loss"][-1] < history["loss"][0]
    for ours, numpys in zip(*ends, strict=True):
        np.testing.assert_allclose(ours, numpys, rtol=0, atol=1e-10)


# --- embeddings -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40,), (8, 5), (2, 4, 5)], ids=str)
def test_an_embedding_is_a_dense_layer_on_one_hot_rows(lib, rng, shape):
    layer, x = ready(xn.Embedding(5, 3), lib), rng.integers(5, size=shape)
    weight, hot = lib.to_numpy(layer.params["weight"]), np.eye(5)[x]
    y, cache = layer.forward(lib.asarray(x))
    np.testing.assert_array_equal(lib.to_numpy(y), weight[x])
    dy = rng.normal(size=y.shape)
    dx, grads = layer.backward(lib.asarray(dy), cache)
    assert dx is None
    lib.agrees(grads["weight"], np.tensordot(hot, dy, axes=(range(len(shape)), range(len(shape)))))


OUTSIDE = {
    "below": ([[0, 1], [2, -1]], "id -1 at [1, 1]"),
    "far below": ([[-(2**40), 1], [2, -1]], f"id {-(2**40)} at [0, 0]"),
    "above": ([[0, 5], [2, 9]], "id 5 at [0, 1]"),
    "far above": ([[0, 2], [2, 2**40]], f"id {2**40} at [1, 1]"),
}


@pytest.mark.parametrize("outside", OUTSIDE)
def test_an_id_outside_is_named_on_every_backend(lib, outside):
    x, words = OUTSIDE[outside]
    x, y = np.array(x), np.zeros((2, 2), int)
    net = xn.Sequential(xn.Embedding(5, 3), xn.Dense(3, 2)).initialize(lib.backend)
    before = {name: lib.to_numpy(a).copy() for name, a in net.params.items()}
    how = {"loss": LOSS, "optimizer": xn.SGD()}
    for who, call in {
        "predict: x": lambda: net.predict(x),
        "evaluate: x": lambda: net.evaluate(x, y, LOSS),
        "value_and_grad: x": lambda: net.value_and_grad(x, y, LOSS),
        "fit: x": lambda: net.fit(x, y, **how),
        "fit: validation data: x": lambda: net.fit(y, y, validation_data=(x, y), **how),
    }.items():
        message = f"{who}: {words} is outside of the vocabulary of 5, whose ids run from 0 to 4"
        with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
            call()
    for name, a in net.params.items():
        np.testing.assert_array_equal(lib.to_numpy(a), before[name])


def test_an_id_outside_is_named_by_forward_or_gives_nan_where_that_would_wait(lib, monkeypatch):
    layer, x = ready(xn.Embedding(5, 3), lib), lib.asarray(np.array([[0, -1], [5, 4]]))
    kind = type(lib.backend)
    if kind.at_hand(x):
        with pytest.raises(
            ValueError, match=r"^Embedding\(5, 3\): id -1 at \[0, 1\] is outside of the vocabulary of 5"
        ):
            layer.forward(x)
        monkeypatch.setattr(kind, "at_hand", staticmethod(lambda x: False))
    y, weight = lib.to_numpy(layer.forward(x)[0]), lib.to_numpy(layer.params["weight"])
    np.testing.assert_array_equal(y, [[weight[0], [math.nan] * 3], [[math.nan] * 3, weight[4]]])


@pytest.mark.parametrize("x", [np.array([[1.0, 1.5]]), np.array([[1.0, 2.0]]), np.array([[True]])], ids=repr)
def test_ids_are_integers(lib, x):
    net = xn.Sequential(xn.Embedding(5, 3), xn.Dense(3, 2)).initialize(lib.backend)
    with pytest.raises(TypeError, match=rf"^predict: x has dtype {x.dtype}, and Embedding\(5, 3\) takes integers"):
        net.predict(x)
    with pytest.raises(TypeError, match=r"^Embedding\(5, 3\): expected integers of the library of its weight, got a"):
        net.layers[0].forward(lib.asarray(x))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_ids_of_every_integer_dtype(lib, rng, dtype):
    net = xn.Sequential(xn.Embedding(5, 3), xn.Dense(3, 2)).initialize(lib.backend, "float64")
    x = rng.integers(5, size=(6, 2))
    for given in (x.astype(dtype), lib.asarray(x.astype(dtype))):
        np.testing.assert_array_equal(lib.to_numpy(net.predict(given)), lib.to_numpy(net.predict(x)))


def test_branches_take_the_ids_that_all_of_them_know(lib):
    net = xn.Sequential(xn.Branches(xn.Embedding(9, 3), xn.Embedding(5, 3)), xn.Dense(3, 2)).initialize(lib.backend)
    net.predict(np.full((1, 2), 4))
    with pytest.raises(ValueError, match=r"id 5 at \[0, 0\] is outside of the vocabulary of 5"):
        net.predict(np.full((1, 2), 5))


def test_a_position_gets_its_vector_and_a_longer_sequence_is_refused(lib, rng):
    layer = ready(xn.PositionalEmbedding(6, 4), lib)
    weight, x = lib.to_numpy(layer.params["weight"]), rng.normal(size=(3, 5, 4))
    y, cache = layer.forward(lib.asarray(x))
    lib.agrees(y, x + weight[:5])
    _, grads = layer.backward(lib.asarray(x), cache)
    lib.agrees(grads["weight"], np.concatenate([x.sum(axis=0), np.zeros((1, 4))]))
    words = r"a sequence of 7 positions is longer than 6, the length"
    net = xn.Sequential(xn.Embedding(5, 4), xn.PositionalEmbedding(6, 4)).initialize(lib.backend)
    for call in (
        lambda: layer.forward(lib.asarray(np.zeros((2, 7, 4)))),
        lambda: layer.output_shape((7, 4)),
        lambda: net.predict(np.zeros((2, 7), int)),
        lambda: xn.Sequential(*net.layers[1:]).predict(np.zeros((2, 7, 4))),
    ):
        with pytest.raises(ValueError, match=words):
            call()


# --- attention --------------------------------------------------------------------------------------------------------


def by_hand(params, x, heads, causal):
    """Attention, one sequence, head and position at a time."""
    (n, t, d), y = x.shape, np.empty_like(x)
    width = d // heads
    for row in range(n):
        q, k, v = np.split(x[row] @ params["qkv_weight"] + params["qkv_bias"], 3, axis=1)
        o = np.empty((t, d))
        for first in range(0, d, width):
            head = slice(first, first + width)
            for i in range(t):
                end = i + 1 if causal else t
                e = np.exp(k[:end, head] @ q[i, head] / math.sqrt(width))
                o[i, head] = e / e.sum() @ v[:end, head]
        y[row] = o @ params["out_weight"] + params["out_bias"]
    return y


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [1, 2, 3, 6])
def test_attention_is_that_of_each_head_and_position(lib, rng, heads, causal):
    layer, x = ready(xn.MultiHeadAttention(6, heads, causal), lib), rng.normal(size=(2, 5, 6))
    y, _ = layer.forward(lib.asarray(x))
    lib.agrees(y, by_hand({k: lib.to_numpy(a) for k, a in layer.params.items()}, x, heads, causal))
    lib.agrees(layer._infer(lib.asarray(x)), lib.to_numpy(y))


def test_causal_attention_sees_nothing_of_what_follows(lib, rng):
    layer, x = ready(xn.MultiHeadAttention(4, 2, causal=True), lib), rng.normal(size=(2, 6, 4))
    changed = np.concatenate([x[:, :3], rng.normal(size=(2, 3, 4))], axis=1)
    y, other = (lib.to_numpy(layer.forward(lib.asarray(a))[0]) for a in (x, changed))
    lib.agrees(lib.asarray(y[:, :3]), other[:, :3])
    assert (y[:, 3:] != other[:, 3:]).all()


@pytest.mark.parametrize("causal", [False, True])
def test_some_sequences_at_a_time_give_what_all_at_once_give(lib, rng, monkeypatch, causal):
    layer, x = ready(xn.MultiHeadAttention(4, 2, causal), lib), lib.asarray(rng.normal(size=(5, 3, 4)))
    y, cache = layer.forward(x)
    dx, grads = layer.backward(y, cache)
    for most in (1, 2 * 2 * 9):
        for name in ("BLOCK", "BLOCK_OF_DEVICES"):
            monkeypatch.setattr(attention, name, most)
        again, cache = layer.forward(x)
        lib.agrees(again, lib.to_numpy(y))
        dx_again, grads_again = layer.backward(y, cache)
        lib.agrees(dx_again, lib.to_numpy(dx))
        for key, g in grads.items():
            lib.agrees(grads_again[key], lib.to_numpy(g))


@pytest.mark.numpy_only
def test_attention_holds_one_array_for_all_pairs_of_positions(monkeypatch):
    """Allocations are counted, so it is the same on every machine and at any load."""
    n, heads, t = 32, 2, 64
    monkeypatch.setattr(attention, "BLOCK", heads * t * t)  # a sequence
    layer, x = ready(xn.MultiHeadAttention(4, heads)), np.ones((n, t, 4))
    pairs, sequence = n * heads * t * t * 8, heads * t * t * 8
    small = 20 * x.nbytes

    def peak_of(call):
        tracemalloc.start()
        try:
            given = call()
            return given, tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    (y, cache), forward = peak_of(lambda: layer.forward(x, training=True))
    _, backward = peak_of(lambda: layer.backward(y, cache))
    _, inference = peak_of(lambda: layer._infer(x))
    assert pairs < forward < pairs + 4 * sequence + small
    assert backward < 4 * sequence + small
    assert inference < 4 * sequence + small


def test_a_bias_of_the_keys_has_no_effect_and_gradient_0(lib, rng):
    layer, x = ready(xn.MultiHeadAttention(4, 2), lib), lib.asarray(rng.normal(size=(3, 5, 4)))
    y, cache = layer.forward(x)
    _, grads = layer.backward(y, cache)
    assert (lib.to_numpy(grads["qkv_bias"])[4:8] == 0.0).all()
    moved = lib.to_numpy(layer.params["qkv_bias"]) + np.repeat([0.0, 3.0, 0.0], 4)
    layer.params = layer.params | {"qkv_bias": lib.asarray(moved)}
    lib.agrees(layer.forward(x)[0], lib.to_numpy(y))


@pytest.mark.numpy_only
def test_what_does_not_fit_attention_is_refused():
    with pytest.raises(ValueError, match=r"^MultiHeadAttention: 10 features do not divide by 3 heads"):
        xn.MultiHeadAttention(10, 3)
    for bad in [{"features": 0, "heads": 1}, {"features": 4, "heads": 0}, {"features": 4, "heads": 2, "causal": 1}]:
        with pytest.raises((ValueError, TypeError), match=r"^MultiHeadAttention: (features|heads|causal) "):
            xn.MultiHeadAttention(**bad)
    for layer in (ready(xn.MultiHeadAttention(FEATURES, 2)), ready(xn.PositionalEmbedding(5, FEATURES))):
        for shape in [(3, 4), (2, 3, 5), (2, 2, 3, 4)]:
            with pytest.raises(ValueError, match=r"expected sequences of shape \(n, positions, 4\), got"):
                layer.forward(np.ones(shape))
        assert layer.output_shape(("N", None, 4)) == ("N", None, 4)
        assert layer.output_shape((3, 4)) == (3, 4)
        for shape in [("N", 4), (2, 3, 5), (4,), ()]:
            with pytest.raises(ValueError, match=r"expected sequences of shape \(n, positions, 4\), got"):
                layer.output_shape(shape)
    with pytest.raises(ValueError, match="layer 1 does not fit the one before it"):
        xn.Sequential(xn.Embedding(7, 5), xn.MultiHeadAttention(4, 2))
    with pytest.raises(ValueError, match="expected sequences of shape"):
        xn.Residual(xn.LayerNorm(6), xn.MultiHeadAttention(4, 2))
