"""Batch norm in training and in inference; norms over the features."""

import numpy as np
import pytest

import xpnet as xn
from support.cases import ready
from support.training import On, X, bits, fit, small


def test_frozen_batch_norm_uses_and_keeps_its_running_statistics(lib):
    net = small(lib, xn.Dense(4, 5), xn.BatchNorm(5, trainable=False), xn.Dense(5, 3))
    net.set_state({"1.mean": np.arange(5.0), "1.var": np.full(5, 4.0)})
    x = lib.asarray(X)
    np.testing.assert_array_equal(lib.to_numpy(net.forward(x, training=True)[0]), lib.to_numpy(net.forward(x)[0]))
    before = bits(net)
    fit(net)
    own = "1.gamma", "1.beta", "1.mean", "1.var"
    assert bits(net, *own) == {name: before[name] for name in own}
    assert all(bits(net)[name] != before[name] for name in ("0.weight", "2.weight"))


def test_running_averages_start_from_the_first_batch_and_follow_momentum_after(lib):
    net, seen = small(lib, xn.BatchNorm(4, momentum=0.9), xn.Dense(4, 3)), []
    watch = On(step_end=lambda run: seen.append({k: lib.to_numpy(a).copy() for k, a in run.net.state.items()}))
    fit(net, shuffle=False, callbacks=[watch])
    mean, var = X[:4].mean(axis=0), X[:4].var(axis=0)
    for i, state in enumerate(seen):
        if i:
            mean = 0.9 * mean + 0.1 * X[4 * i : 4 * i + 4].mean(axis=0)
            var = 0.9 * var + 0.1 * X[4 * i : 4 * i + 4].var(axis=0)
        lib.agrees(lib.asarray(state["0.mean"]), mean)
        lib.agrees(lib.asarray(state["0.var"]), var)
    assert len(seen) == 3


def test_layer_norm_of_values_around_2000_is_right_in_float32(lib, rng):
    x = (2000.0 + rng.normal(size=(40, 256))).astype(np.float32)
    layer = xn.LayerNorm(256)
    xn.Sequential(layer).initialize(lib.backend, "float32")
    y, exact = lib.to_numpy(layer.forward(lib.asarray(x))[0]), x.astype(np.float64)
    np.testing.assert_allclose(y.std(axis=1), 1.0, rtol=1e-3)
    centred = exact - exact.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(y, centred / exact.std(axis=1, keepdims=True), rtol=0, atol=1e-4)


@pytest.mark.parametrize("make", [xn.LayerNorm, xn.RMSNorm])
def test_norms_over_the_features_are_those_of_each_position(lib, rng, make):
    layer, x = ready(make(4), lib), rng.normal(size=(3, 5, 2, 4))
    y, cache = layer.forward(lib.asarray(x), training=True)
    rows, of_rows = layer.forward(lib.asarray(x.reshape(-1, 4)))
    lib.agrees(y, lib.to_numpy(rows).reshape(x.shape))
    dy = rng.normal(size=x.shape)
    dx, grads = layer.backward(lib.asarray(dy), cache)
    dx_rows, grads_rows = layer.backward(lib.asarray(dy.reshape(-1, 4)), of_rows)
    lib.agrees(dx, lib.to_numpy(dx_rows).reshape(x.shape))
    for name, g in grads.items():
        lib.agrees(g, lib.to_numpy(grads_rows[name]))


@pytest.mark.numpy_only
@pytest.mark.parametrize("make", [xn.LayerNorm, xn.RMSNorm])
def test_norms_over_the_features_refuse_others(make):
    layer = ready(make(4))
    for shape in [(3,), (5, 3), (2, 4, 3)]:
        with pytest.raises(ValueError, match=rf"{make.__name__}\(4\): expected input of shape \(n, .*4\), got"):
            layer.forward(np.ones(shape))
        with pytest.raises(ValueError, match=rf"{make.__name__}\(4\): expected input of shape \(n, .*4\), got"):
            layer.output_shape(shape)
    for bad in [{"features": 0}, {"features": 2.5}, {"features": 4, "eps": 0.0}, {"features": 4, "eps": -1e-5}]:
        with pytest.raises((ValueError, TypeError), match=f"{make.__name__}: {list(bad)[-1]}"):
            make(**bad)
