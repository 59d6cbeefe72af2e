"""Inference in stages against the layers' own code, and training steps whose first layers are frozen."""

import gc
import threading
import weakref

import numpy as np
import pytest

import xpnet as xn
from support.cases import gpt
from support.layers import Twice
from xpnet.kernels import inference, passes
from xpnet.kernels.cpu import threads
from xpnet.kernels.planner import BufferedStep
from xpnet.kernels.reference import Step
from xpnet.training.batches import Batch

pytestmark = [pytest.mark.numpy_only, pytest.mark.torch_only, pytest.mark.usefixtures("small_blocks")]

IDS = 7


def images(n):
    return np.random.default_rng(n).normal(size=(n, 2, 8, 8)).astype("float32")


def ids(n):
    return np.random.default_rng(n).integers(0, IDS, (n, 5))


def cnn(*between):
    return xn.Sequential(
        *(xn.Conv2d(2, 4, 3, padding=1), xn.ReLU(), xn.MaxPool2d(2), *between),
        *(xn.Conv2d(4, 4, 3, stride=2), xn.GELU(), xn.Flatten(), xn.Dense(4, 8), xn.BatchNorm(8), xn.Dense(8, 3)),
    )


def resnet(*inside):
    return xn.Sequential(
        *(xn.Conv2d(2, 4, 3, padding=1), xn.BatchNorm(4), xn.Tanh(), xn.MaxPool2d(2), xn.BatchNorm(4)),
        *(xn.Residual(xn.Conv2d(4, 4, 3, padding=1), xn.BatchNorm(4), *inside), xn.Tanh()),
        xn.Branches(xn.Sequential(xn.Conv2d(4, 2, 1), xn.BatchNorm(2)), xn.MaxPool2d(1), merge="concat", axis=1),
        *(xn.GlobalAveragePool(), xn.Dense(6, 3), xn.Softmax()),
    )


def frozen():
    net = resnet(xn.Dropout(0.5))
    net.trainable = False
    return net


NETWORKS = {
    "convolutions, batch norm of rows": (lambda: cnn(xn.Dropout(0.5)), images),
    "residuals, branches, layers of own code": (lambda: resnet(xn.Dropout(0.5)), images),
    "frozen": (frozen, images),
    "images in, images out": (lambda: xn.Sequential(xn.Conv2d(2, 3, 3), xn.BatchNorm(3), xn.Sigmoid()), images),
    "rows that become images": (
        lambda: xn.Sequential(xn.Reshape(2, 8, 8), *cnn().layers),
        lambda n: images(n).reshape(n, 128),
    ),
    "ids": (lambda: xn.Sequential(gpt(IDS, 5, 4, 2), xn.Dropout(0.5)), ids),
}


@pytest.fixture
def compiled(kernels_of, kernels):
    kernels()  # imports Numba
    return kernels_of != "calls"


@pytest.fixture(autouse=True)
def always_in_stages(monkeypatch):
    """Stages take every x, in blocks of about seven rows, in three threads where the family has threads."""
    monkeypatch.setattr(inference, "STAGES_FROM", 1)
    monkeypatch.setattr(threads, "SPLIT_FROM", 1)
    monkeypatch.setattr(inference, "IN_BLOCKS", 2**13)
    monkeypatch.setattr(threads, "blas_threads", lambda: 3)
    monkeypatch.setattr(threads, "cores", lambda: 3)


@pytest.fixture
def ready(request):
    """Initializes a network on the backend under test, with arrays that are not zeros or ones."""
    backend = xn.get_backend(request.config.getoption("--backend"))

    def ready(net, dtype="float64"):
        net.initialize(backend, dtype, seed=1)
        rng = np.random.default_rng(2)
        net.set_params({name: backend.to_numpy(a) + 0.1 for name, a in net.params.items()})
        drawn = {name: rng.uniform(0.5, 2.0, a.shape) for name, a in net.state.items() if "key" not in name}
        net.set_state(net.state | drawn)
        return net

    return ready


def assert_as_own(net, x, compiled):
    """The outputs in stages are those of the layers' own code."""
    x = net.backend.asarray(x, dtype=None if x.dtype.kind == "i" else next(iter(net.params.values())).dtype)
    with net.backend.scope():
        y, expected = inference.infer(net, x, compiled), net._infer(x)
    assert y.dtype == expected.dtype
    rtol, atol = (1e-9, 1e-12) if "64" in str(y.dtype) else (1e-4, 1e-5)
    np.testing.assert_allclose(net.backend.to_numpy(y), net.backend.to_numpy(expected), rtol=rtol, atol=atol)
    return y


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_outputs_are_those_of_the_layers(name, dtype, compiled, ready):
    make_net, make = NETWORKS[name]
    net = ready(make_net(), dtype)
    for n in (1, 40, 41, 7, 40):  # fewer than one block, several, a last one with fewer rows; more and fewer again
        assert_as_own(net, make(n), compiled)
        assert inference.known[net].suits


def test_outputs_are_the_callers(compiled, ready):
    net = ready(cnn())
    first = assert_as_own(net, images(9), compiled)
    kept = np.array(net.backend.to_numpy(first))
    assert_as_own(net, images(10)[1:], compiled)
    np.testing.assert_array_equal(net.backend.to_numpy(first), kept)


def test_changes_of_arrays_and_settings_count(compiled, ready):
    net = ready(resnet())
    assert_as_own(net, images(9), compiled)
    net.layers[0].params["bias"][...] = 5.0  # in place
    net.set_state({name: 1.5 + 0.0 * a if "key" not in name else a for name, a in net.state.items()})
    y = assert_as_own(net, images(9), compiled)
    net.layers[1].eps = 100.0
    net.layers[5].layers[1].eps = 10.0
    assert float(abs(assert_as_own(net, images(9), compiled) - y).max()) > 1e-3


def test_changes_of_layers_and_other_attributes_count(compiled, ready):
    net = ready(resnet())
    net.layers[0].note = np.arange(2)
    assert_as_own(net, images(9), compiled)
    net.layers[0].note = np.arange(2)  # arrays as attributes are not compared by their entries
    assert_as_own(net, images(9), compiled)
    *layers, dense, softmax = net.layers
    net.layers = *layers, xn.Sequential(dense), xn.Tanh()  # the parameters have other names
    assert_as_own(net, images(9), compiled)
    assert type(softmax) is xn.Softmax


def test_a_part_of_a_network_that_moves(compiled, ready):
    net = ready(cnn(), "float32")
    part = xn.Sequential(*net.layers[:-1])
    assert_as_own(part, images(9), compiled)
    net.to(net.backend, dtype="float64")
    assert_as_own(part, images(9), compiled)


def test_an_interrupt_while_the_stages_are_made(compiled, ready, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    net = ready(resnet())
    for eps in 1.0, 100.0:
        net.layers[1].eps = eps
        with monkeypatch.context() as patched:
            patched.setattr(inference, "kernels_for", interrupted)
            with pytest.raises(KeyboardInterrupt):
                assert_as_own(net, images(9), compiled)
        assert_as_own(net, images(9), compiled)


def test_plans_are_kept_for_some_shapes(compiled, ready, monkeypatch):
    monkeypatch.setattr(passes, "PLANS", 3)
    net = ready(cnn())
    for n in (6, 5, 4, 3, 2, 6, 5):
        assert_as_own(net, images(n), compiled)
        assert all(len(one.plans) <= 3 for each in inference.known[net].passes.values() for one in each)


def test_arrays_in_any_order_of_memory(compiled, ready):
    net = ready(cnn())
    for layer in net.layers:
        for name, a in layer.params.items():
            axes = range(a.ndim)[::-1]
            turned = net.backend.xp.permute_dims(a, tuple(axes))
            layer.params[name] = net.backend.xp.permute_dims(net.backend.xp.asarray(turned, copy=True), tuple(axes))
    x = np.asfortranarray(images(27))[::3]
    assert_as_own(net, x, compiled)


def test_layers_of_users_run_by_themselves(compiled, ready):
    class Own(xn.Sequential):
        def forward(self, x, training=False):
            return super().forward(2.0 * x, training)

    for net in ready(cnn(Twice())), ready(Own(*cnn().layers)):
        assert_as_own(net, images(9), compiled)
        assert not inference.known[net].suits


def test_a_network_that_another_thread_uses(compiled, ready, monkeypatch):
    """Its stages are in use, so the layers' own code runs."""
    net, x = ready(cnn()), images(9).astype("float64")
    x = net.backend.asarray(x)
    expected = inference.infer(net, x, compiled)
    outputs = []
    call = inference.Inference.__call__

    def meanwhile(own, net, x):
        other = threading.Thread(target=lambda: outputs.append(inference.infer(net, x, compiled)))
        other.start()
        other.join()
        return call(own, net, x)

    monkeypatch.setattr(inference.Inference, "__call__", meanwhile)
    outputs.append(inference.infer(net, x, compiled))
    assert len(outputs) == 2
    for y in outputs:
        np.testing.assert_allclose(net.backend.to_numpy(y), net.backend.to_numpy(expected), rtol=1e-9)


def test_errors_leave_the_stages_as_they_were(compiled, ready, monkeypatch):
    net = ready(cnn())
    x = net.backend.asarray(images(20).astype("float64"))
    expected = net.backend.to_numpy(inference.infer(net, x, compiled))

    def interrupted(*_):
        raise KeyboardInterrupt

    stage = inference.known[net].passes[3 if net.backend.name == "numpy" else 1][0].stages[2]
    with monkeypatch.context() as patched:
        patched.setattr(type(stage), "forward", interrupted)
        with pytest.raises(KeyboardInterrupt):
            inference.infer(net, x, compiled)
    np.testing.assert_array_equal(net.backend.to_numpy(inference.infer(net, x, compiled)), expected)


def test_the_memory_ends_with_the_network(compiled, ready):
    net = ready(resnet())
    assert_as_own(net, images(9), compiled)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


def test_predict_and_evaluate_take_the_stages(ready, monkeypatch):
    net, seen = ready(cnn()), []
    call = inference.Inference.__call__
    monkeypatch.setattr(inference.Inference, "__call__", lambda own, net, x: seen.append(len(x)) or call(own, net, x))
    x, y = images(40), np.arange(40) % 3
    net.predict(x)
    net.evaluate(x, y, xn.SoftmaxCrossEntropy(), batch_size=30)
    net.predict([(x[:5], y[:5])])
    assert seen == [40, 30, 10, 5]
    monkeypatch.setattr(inference, "STAGES_FROM", 2**40)
    net.predict(x)
    monkeypatch.setenv("XPNET_KERNELS", "reference")
    monkeypatch.setattr(inference, "STAGES_FROM", 1)
    net.predict(x)
    assert len(seen) == 4


def transfer(layers, frozen, *after):
    for layer in layers[:frozen]:
        layer.trainable = False
    return xn.Sequential(*layers, *after)


FROZEN = {
    "convolutions": (lambda: transfer(cnn().layers, 7), images, 7),  # and what follows them without parameters
    "dropout": (lambda: transfer(cnn(xn.Dropout(0.5)).layers, 8), images, 3),  # differs in training
    "a user's": (lambda: transfer(cnn(Twice()).layers, 7), images, 3),  # may differ
    "dropout in a residual": (lambda: transfer(resnet(xn.Dropout(0.5)).layers[:-1], 7), images, 5),
    "residuals": (lambda: transfer(resnet().layers[:-1], 7), images, 7),
    "a network": (lambda: transfer((xn.Sequential(*resnet().layers[:-2]), xn.Dense(6, 4)), 1), images, 9),
    "ids": (lambda: transfer(gpt(IDS, 5, 4, 2).layers, 3), ids, 3),
    "none": (lambda: transfer(cnn().layers, 0), images, 0),
    "no parameters": (lambda: transfer((xn.Flatten(), xn.Dense(128, 3)), 0), images, 0),
}


@pytest.mark.parametrize("name", FROZEN)
def test_a_step_with_frozen_first_layers(name, compiled, kernels, ready):
    """It takes their outputs in inference, and is the plain step."""
    make_net, make, first = FROZEN[name]
    net = ready(make_net())
    backend, cross, rng = net.backend, xn.SoftmaxCrossEntropy(), np.random.default_rng(0)
    plain = Step(net, cross, xn.Adam(0.05))
    fast = BufferedStep(net, cross, xn.Adam(0.05), kernels(), make(1).shape)
    assert (len(fast.base.layers) if fast.base else 0) == first
    carry, expected = fast.start, plain.start
    for n in (7, 9, 7):
        x, outputs = make(n), np.shape(net.predict(make(2)))[-1]
        y = np.eye(outputs)[rng.integers(0, outputs, x.shape if x.dtype.kind == "i" else n)]
        batch = Batch(backend.asarray(x, dtype=None if x.dtype.kind == "i" else "float64"), backend.asarray(y))
        with backend.scope():
            value, carry = fast(carry, batch)
            plain_value, expected = plain(expected, batch)
        assert float(value) == pytest.approx(float(plain_value), rel=1e-9)
        np.testing.assert_allclose(backend.to_numpy(carry.weights), backend.to_numpy(expected.weights), rtol=1e-7)
        state, plain_state = fast.state(carry), plain.state(expected)
        assert state.keys() == plain_state.keys()
        for key, a in plain_state.items():
            np.testing.assert_allclose(backend.to_numpy(state[key]), backend.to_numpy(a), rtol=1e-9)
