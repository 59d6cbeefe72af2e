"""Dropout on CuPy: two launches, the bits of NumPy, and in steps what the plain step gives."""

import numpy as np
import pytest

import xpnet as xn
from support.cases import Scale
from support.cupy_on_host import log
from xpnet.kernels.cuda import launching
from xpnet.kernels.cuda.dropout import mask

pytestmark = [pytest.mark.cupy_only, pytest.mark.on_host_only]


def same(a, b):
    """Assert that the numbers are the same to the bit; of NaN, that both are."""
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.signbit(a) & ~np.isnan(a), np.signbit(b) & ~np.isnan(b))


@pytest.mark.parametrize("blocks", [None, 1])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (33, 5), (600, 4), (1025,), (2, 3, 5)])
def test_dropout_is_numpys_to_the_bit(shape, dtype, rate, blocks, cupy, monkeypatch):
    if blocks:
        monkeypatch.setattr(launching, "blocks", lambda size, most: blocks)
    rng = np.random.default_rng(0)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    x.flat[:4] = [np.nan, np.inf, -0.0, -1e-30][: x.size]
    layer = xn.Sequential(xn.Dropout(rate)).initialize("numpy", seed=1).layers[0]
    key = cupy.asarray(layer.state["key"])
    y = cupy.xp.empty(shape[::-1], dtype=getattr(cupy.xp, dtype))
    dx = cupy.xp.empty_like(y)
    for _ in range(3):
        expected, cache = layer.forward(x, training=True)
        log.launches.clear()
        next_key = mask(cupy.asarray(x.T.copy()), key, rate, y, counts=True)
        mask(cupy.asarray(dy.T.copy()), key, rate, dx)
        assert len(log.launches) == 2
        same(cupy.to_numpy(y).T, expected)
        same(cupy.to_numpy(dx).T, layer.backward(dy, cache)[0])
        layer.state = layer.next_state(cache)
        key = next_key
        np.testing.assert_array_equal(cupy.to_numpy(key), layer.state["key"])


def test_the_count_in_dropouts_key_wraps_around(cupy):
    x = cupy.asarray(np.ones((2, 3)))
    key = mask(x, cupy.asarray(np.array([-5, 2**31 - 1], np.int32)), 0.5, x, counts=True)
    np.testing.assert_array_equal(cupy.to_numpy(key), [-5, -(2**31)])


class Twice(xn.Layer):
    """One's own, y = 2 x, which keeps what it is given until it tells its statistics."""

    def initial_state(self, rng):
        return {"sum": np.zeros(())}

    def forward(self, x, training=False):
        return 2.0 * x, x

    def backward(self, dy, cache):
        return (2.0 * dy), {}

    def next_state(self, cache):
        return {"sum": cache.sum()}


DROPPING = {
    "first": lambda: (xn.Dropout(0.2), xn.Dense(6, 5), xn.Tanh(), xn.Dense(5, 3)),
    "last": lambda: (xn.Dense(6, 5), xn.Sigmoid(), xn.Dense(5, 3), xn.Dropout(0.3)),
    "between blocks": lambda: (xn.Dense(6, 9), xn.BatchNorm(9), xn.Tanh(), xn.Dropout(), xn.Dense(9, 3)),
    "twice": lambda: (xn.Dense(6, 5), xn.ReLU(), xn.Dropout(0.1), xn.Dropout(0.2), xn.Dense(5, 3)),
    "beside other layers": lambda: (xn.Dense(6, 5), Scale(5), xn.Dropout(0.4), Twice(), xn.Dropout(), xn.Dense(5, 3)),
    "within another": lambda: (xn.Sequential(xn.Dense(6, 5), xn.Dropout(), xn.Sigmoid()), xn.Dense(5, 3)),
    "frozen": lambda: (xn.Dense(6, 5, trainable=False), xn.Dropout(0.4), xn.Dense(5, 3)),
}


@pytest.mark.parametrize("loss", [xn.SoftmaxCrossEntropy(), xn.MeanSquaredError()], ids=["softmax", "squares"])
@pytest.mark.parametrize("name", DROPPING)
def test_steps_with_dropout_are_the_plain_steps(name, loss, cupy, monkeypatch):
    rng, came = np.random.default_rng(0), []
    x, y = rng.normal(size=(30, 6)), np.eye(3)[rng.integers(3, size=30)]
    for choice in ("auto", "reference"):
        monkeypatch.setenv("XPNET_KERNELS", choice)
        net = xn.Sequential(*DROPPING[name]()).initialize(cupy, "float64", seed=0)
        history = net.fit(x, y, loss=loss, optimizer=xn.Nesterov(0.05), epochs=2, batch_size=8)
        came.append((history["loss"], {k: cupy.to_numpy(a) for k, a in (net.params | net.state).items()}))
    (losses, arrays), (expected, expected_arrays) = came
    np.testing.assert_allclose(losses, expected, rtol=1e-10)
    for key, a in expected_arrays.items():
        np.testing.assert_allclose(arrays[key], a, rtol=0, atol=0 if a.dtype.kind == "i" else 1e-10, err_msg=key)


def test_a_layer_after_dropout_that_gives_another_shape_is_refused(cupy):
    class Wrong(Twice):
        def backward(self, dy, cache):
            return dy[:, :1], {}

    net = xn.Sequential(xn.Dense(3, 4), xn.Dropout(), Wrong(), xn.Dense(4, 1)).initialize(cupy)
    with pytest.raises(ValueError, match=r"Wrong.*: backward gave an array of shape \(8, 1\), expected \(8, 4\)"):
        net.fit(np.ones((8, 3)), np.ones((8, 1)), loss=xn.MeanSquaredError(), optimizer=xn.SGD())


def test_a_resumed_run_drops_what_the_whole_one_drops(cupy, tmp_path):
    x, y = np.random.default_rng(0).normal(size=(32, 6)), np.arange(32) % 3

    def trained(epochs, **options):
        net = xn.Sequential(*DROPPING["between blocks"]()).initialize(cupy, seed=0)
        net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(), epochs=epochs, batch_size=8, **options)
        return {name: cupy.to_numpy(a) for name, a in (net.params | net.state).items()}

    whole = trained(4)
    trained(2, checkpoint=xn.Checkpoint(tmp_path))
    resumed = trained(4, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    for name, a in whole.items():
        np.testing.assert_array_equal(resumed[name], a)
