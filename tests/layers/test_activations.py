"""Activations: their limits."""

import numpy as np
import pytest

from support.cases import LAYERS

B = 1e4


LIMITS = {  # y and dx / dy at -1e4, 0 and 1e4
    "sigmoid": ([0, 0.5, 1], [0, 0.25, 0]),
    "tanh": ([-1, 0, 1], [0, 1, 0]),
    "relu": ([0, 0, B], [0, 1, 1]),
    "leaky relu": ([-0.2 * B, 0, B], [0.2, 1, 1]),
    "elu": ([-0.1, 0, B], [0, 1, 1]),
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
