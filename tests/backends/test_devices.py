"""Networks on a CuPy device that is not the current one."""

import copy
import pickle

import joblib
import numpy as np
import pytest

import xpnet as xn
from support.cupy_on_host import log

pytestmark = [pytest.mark.cupy_only, pytest.mark.on_host_only]


def test_a_device_computes_once_to_show_that_it_does(cupy):
    xn.get_backend("cupy", 1)
    log.clear()
    assert xn.get_backend("cupy") is cupy
    assert xn.get_backend("cupy", 1).device.id == 1
    assert log.launches == log.waits == []


def on_device_1():
    backend = xn.get_backend("cupy", 1)
    layers = xn.Dense(6, 5), xn.Sequential(xn.BatchNorm(5), xn.Tanh(), xn.Dropout()), xn.Dense(5, 3)
    return xn.Sequential(*layers).initialize(backend, seed=0)


def by_joblib(net, path):
    joblib.dump(net, path)
    return joblib.load(path)


WAYS = {
    "pickle": lambda net, path: pickle.loads(pickle.dumps(net)),
    "joblib": by_joblib,
    "deepcopy": lambda net, path: copy.deepcopy(net),
    "clone": lambda net, path: net.clone(),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_network_comes_back_on_the_device_of_its_backend(way, cupy, tmp_path):
    net = on_device_1()
    again = WAYS[way](net, tmp_path / "network")
    assert again.backend is net.backend
    assert {a.device.id for a in (*again.params.values(), *again.state.values())} == {1}
    for name, a in (net.params | net.state).items():
        np.testing.assert_array_equal(cupy.to_numpy((again.params | again.state)[name]), cupy.to_numpy(a))
    assert all(layer.as_drawn for _, layer in again.leaves())
    with again.backend.scope():
        again.layers[2].params["bias"] = again.layers[2].params["bias"] + 1.0  # the dict is still the network's own
    assert again.layers[2].as_drawn is False


def test_a_run_on_another_device_is_resumed_there(cupy, tmp_path):
    x, y, net = np.random.default_rng(0).normal(size=(32, 6)), np.arange(32) % 3, on_device_1()
    options = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.Adam(), "batch_size": 8}
    net.fit(x, y, epochs=1, checkpoint=xn.Checkpoint(tmp_path), **options)
    twin = on_device_1()
    history = twin.fit(x, y, epochs=2, checkpoint=xn.Checkpoint(tmp_path), resume=True, **options)
    again = twin.fit(x, y, slots=pickle.loads(pickle.dumps(history)).slots, **options)
    arrays = [*twin.params.values(), *twin.state.values(), *history.slots.values(), *again.slots.values()]
    assert {a.device.id for a in arrays if hasattr(a, "device")} == {1}
