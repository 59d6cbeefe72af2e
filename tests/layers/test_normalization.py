"""Batch norm in training and in inference."""

import numpy as np

import xpnet as xn
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
