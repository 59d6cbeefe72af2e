"""Convolutions and pools of images in CUDA against the layers' own code, with settings drawn at random."""

import math

import numpy as np
import pytest

import xpnet as xn
from support.kernels import through_a_stage
from xpnet.kernels.cuda import convolution, launching

pytestmark = pytest.mark.cupy_only

CONVOLUTIONS = {1: xn.Conv1d, 2: xn.Conv2d}
POOLS = {1: (xn.MaxPool1d, xn.AveragePool1d), 2: (xn.MaxPool2d, xn.AveragePool2d)}


def each(rng, axes, least, most):
    """A number in this range for each axis."""
    return tuple(int(number) for number in rng.integers(least, most + 1, size=axes))


def a_convolution(rng):
    """A layer with settings at random, and an x that it fits."""
    axes, groups = int(rng.integers(1, 3)), int(rng.integers(1, 3))
    channels = groups * int(rng.integers(1, 4))
    kernel, dilation = each(rng, axes, 1, 4), each(rng, axes, 1, 3)
    padding = rng.choice(["same", "valid"]) if rng.random() < 0.4 else each(rng, axes, 0, 4)
    layer = CONVOLUTIONS[axes](
        channels, groups * int(rng.integers(1, 4)), kernel, each(rng, axes, 1, 3), padding, dilation, groups
    )
    sizes = [d * (k - 1) + more for d, k, more in zip(dilation, kernel, each(rng, axes, 1, 7), strict=True)]
    return layer, (int(rng.integers(1, 9)), channels, *sizes)


def a_pool(rng):
    axes = int(rng.integers(1, 3))
    shape = int(rng.integers(1, 9)), int(rng.integers(1, 4))
    if rng.random() < 0.2:
        return xn.GlobalAveragePool(), (*shape, *each(rng, axes, 1, 7))
    kernel = each(rng, axes, 1, 4)
    padding = "same" if rng.random() < 0.3 else tuple(int(rng.integers(k)) for k in kernel)
    layer = rng.choice(POOLS[axes])(kernel, each(rng, axes, 1, 3), padding)
    return layer, (*shape, *[k + more for k, more in zip(kernel, each(rng, axes, 0, 7), strict=True)])


def integers(rng, shape, dtype):
    """Of which float32 adds up a million products without a rounding."""
    return rng.integers(-3, 4, size=shape).astype(dtype)


@pytest.mark.parametrize("block", [2**26, 200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("make", [a_convolution, a_pool])
def test_layers_with_windows_are_their_own_code(make, dtype, block, cupy, monkeypatch):
    """Integers, whose sums are exact whatever their order; of means, within a rounding of the largest of them."""
    monkeypatch.setattr(convolution, "BLOCK", block)
    if block == 200:  # a thread goes on to further numbers, too
        monkeypatch.setattr(launching, "blocks", lambda size, most: 1)
    rng = np.random.default_rng(block)
    for _ in range(25):
        layer, shape = make(rng)
        net = xn.Sequential(layer).initialize("numpy", dtype)
        params = {name: integers(rng, a.shape, dtype) for name, a in layer.params.items()}
        net.set_params({f"0.{name}": a for name, a in params.items()})
        layer = net.layers[0]
        x = integers(rng, shape, dtype)
        y, cache = layer.forward(x, training=True)
        if params:  # which the next stage adds
            y -= params["bias"].reshape((-1, *[1] * (y.ndim - 2)))
        dy = integers(rng, y.shape, dtype)
        dx, grads = layer.backward(dy, cache)
        expected = {"y": y, "x": dx} | grads
        found = through_a_stage(cupy, layer, x, dy, params)
        mean = isinstance(layer, (*[pools[1] for pools in POOLS.values()], xn.GlobalAveragePool))
        assert found.keys() == {"y", "x", *(name for name in params if name == "weight")}
        for name, a in found.items():
            error = np.abs(a - expected[name]).max(initial=0.0)
            limit = 16 * np.finfo(dtype).eps * np.abs(expected[name]).max(initial=0.0) if mean else 0.0
            assert error <= limit, (layer, shape, name, error)


def test_images_have_the_same_bits_each_time(cupy):
    """Whichever thread comes first: the host takes them in another order each time."""
    rng, bits = np.random.default_rng(0), []
    x = rng.normal(size=(6, 2, 9, 8)).astype("float32")
    layers = (
        *(xn.Conv2d(2, 5, 3, padding=1), xn.BatchNorm(5), xn.GELU(), xn.MaxPool2d(3, 2), xn.Conv2d(5, 4, 2), xn.ELU()),
        *(xn.AveragePool2d(2, 1), xn.Dropout(0.1), xn.GlobalAveragePool(), xn.Dense(4, 3)),
    )
    for _ in range(3):
        net = xn.Sequential(*layers).initialize(cupy, seed=0, fresh=True)
        options = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.Adam(0.01), "epochs": 2, "batch_size": 4}
        net.fit(x, np.arange(6) % 3, **options)
        bits.append({name: cupy.to_numpy(a).tobytes() for name, a in (net.params | net.state).items()})
    assert bits[0] == bits[1] == bits[2]


def test_maxima_of_what_is_not_finite(cupy):
    """NaN stays NaN; a window of nothing but -∞ passes its dy on to its first entry."""
    x = np.full((1, 1, 2, 4), -np.inf)
    x[0, 0, 1, 3] = np.nan
    found = through_a_stage(cupy, xn.MaxPool2d(2), x, np.ones((1, 1, 1, 2)), {})
    np.testing.assert_array_equal(found["y"], [[[[-math.inf, math.nan]]]])
    np.testing.assert_array_equal(found["x"], [[[[1, 0, 0, 0], [0, 0, 0, 1]]]])
