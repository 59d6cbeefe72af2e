"""Activations: their limits, and the functions that they are made of."""

import math

import numpy as np
import pytest

import xpnet as xn
from support.cases import LAYERS

B = 1e4


LIMITS = {  # y and dx / dy at -1e4, 0 and 1e4
    "sigmoid": ([0, 0.5, 1], [0, 0.25, 0]),
    "tanh": ([-1, 0, 1], [0, 1, 0]),
    "relu": ([0, 0, B], [0, 1, 1]),
    "leaky relu": ([-0.2 * B, 0, B], [0.2, 1, 1]),
    "elu": ([-0.1, 0, B], [0, 1, 1]),
    "gelu": ([0, 0, B], [0, 0.5, 1]),
    "gelu, approximate": ([0, 0, B], [0, 0.5, 1]),
    "softmax": ([0, 0, 1], [0, 0, 0]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LIMITS)
def test_activations_take_their_limits_far_out_without_a_warning(lib, name, dtype):
    layer = LAYERS[name]()
    x = np.array([[-B, 0, B]])
    y, cache = layer.forward(lib.asarray(x, dtype), training=True)
    dy = np.array([[0.3, -2.0, 0.7]])
    dx, _ = layer.backward(lib.asarray(dy, dtype), cache)
    for actual, expected in [(y, LIMITS[name][0]), (dx, dy[0] * LIMITS[name][1])]:
        assert actual.dtype == lib.backend.dtype(dtype)
        np.testing.assert_allclose(lib.to_numpy(actual)[0], expected, rtol=1e-6, atol=np.finfo(dtype).tiny)


@pytest.mark.numpy_only
def test_single_erf_is_right_to_four_units_over_all_of_float32():
    x = np.arange(0, 0x7F800000, 20011, dtype=np.int32).view(np.float32)
    x = np.concatenate([x, -x])
    with np.errstate(over="ignore", under="ignore"):
        y = xn.ops.single_erf(x)
    near = np.abs(x) < 4.0
    expected = np.sign(x.astype("float64"))
    expected[near] = [math.erf(v) for v in x[near].tolist()]
    assert (np.abs(y - expected) / np.spacing(np.abs(expected).astype(np.float32))).max() < 4.0


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_erf_is_right_to_the_rounding_of_its_dtype(lib, dtype):
    x = np.concatenate([np.linspace(-7.0, 7.0, 1400), 10.0 ** np.arange(-30.0, 4.0), [0.0, math.inf, -math.inf]])
    x = x.astype(dtype)
    expected = np.array([math.erf(v) for v in x])
    for erf in (xn.ops.erf, xn.ops.rational_erf):
        y = erf(lib.asarray(x))
        assert y.dtype == lib.backend.dtype(dtype)
        np.testing.assert_allclose(lib.to_numpy(y), expected, rtol=2 * np.finfo(dtype).eps, atol=0)
        assert math.isnan(erf(lib.asarray([math.nan], dtype))[0])
