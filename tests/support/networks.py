"""A small network, and calls of it that must fail and change nothing."""

import contextlib
import math

import numpy as np
import pytest

import xpnet as xn
from support.cases import FEATURES


def snapshot(net):
    """Return everything that a failed call must not change."""
    arrays = net.params | net.state
    host = {name: net.backend.to_numpy(a) for name, a in arrays.items()}
    order = net.rng.bit_generator.state["state"]
    return {name: (a.dtype.name, a.shape, a.tobytes()) for name, a in host.items()}, order, net.backend, net.dtype


ROWS, OUTPUTS = 10, 3


NAN, INF = math.nan, math.inf


def network(backend, dtype="float32"):
    return xn.Sequential(xn.Dense(4, 5), xn.BatchNorm(5), xn.Tanh(), xn.Dense(5, 3)).initialize(backend, dtype)


def good(rows=ROWS):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, FEATURES)), np.arange(rows) % OUTPUTS


@contextlib.contextmanager
def refused(net, error, *words):
    """Assert exactly this error, with all of these words in its message, and an unchanged network, bit for bit."""
    before = snapshot(net)
    with pytest.raises(error) as caught:
        yield
    assert caught.type is error
    assert [word for word in words if word not in str(caught.value)] == []
    assert snapshot(net) == before


def fit(net, x, y, loss=None, optimizer=None, **options):
    return net.fit(x, y, loss=loss or xn.SoftmaxCrossEntropy(), optimizer=optimizer or xn.SGD(), **options)


HOT = np.eye(OUTPUTS)[good()[1]]


CALLS = {
    "fit: ": fit,
    "fit: validation data: ": lambda net, x, y, loss=None: fit(net, good()[0], HOT, loss, validation_data=(x, y)),
    "evaluate: ": lambda net, x, y, loss=None: net.evaluate(x, y, loss or xn.SoftmaxCrossEntropy()),
    "value_and_grad: ": lambda net, x, y, loss=None: net.value_and_grad(x, y, loss or xn.SoftmaxCrossEntropy()),
    "explain: ": lambda net, x, y, loss=None: net.explain(x, y, loss or xn.SoftmaxCrossEntropy()),
    "predict: ": lambda net, x, y, loss=None: net.predict(x),
}


WITH_TARGET = [call for call in CALLS if call != "predict: "]


def with_entry(value, a=None):
    a = good()[0] if a is None else np.array(a, float)
    a[2, 1] = value
    return a
