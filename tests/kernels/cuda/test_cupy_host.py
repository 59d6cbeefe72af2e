"""CuPy itself on the host: what a step launches, what waits for the device, and which device has what."""

import copy
import importlib
import math
import pickle

import joblib
import numpy as np
import pytest

import xpnet as xn
from support import ROOT, cupy_on_host
from support.cases import Scale
from xpnet.kernels import cuda, training_step
from xpnet.kernels import planner as buffered
from xpnet.training import loop as training
from xpnet.training.batches import Batch

pytestmark = [pytest.mark.cupy_only, pytest.mark.on_host_only]
log = cupy_on_host.log
SCRIPTS = ROOT / "scripts"


@pytest.fixture
def cupy(monkeypatch):
    """CuPy's backend, with its own kernels unless a test says otherwise."""
    monkeypatch.delenv("XPNET_KERNELS", raising=False)
    backend = xn.get_backend("cupy")
    with backend.scope():
        yield backend


def same(a, b):
    """Assert that the numbers are the same to the bit; of NaN, that both are."""
    np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(np.signbit(a) & ~np.isnan(a), np.signbit(b) & ~np.isnan(b))


# --- dropout ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [None, 1])
@pytest.mark.parametrize("rate", [0.0, 0.1, 0.4, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 2), (33, 5), (600, 4), (1025,), (2, 3, 5)])
def test_dropout_is_numpys_to_the_bit(shape, dtype, rate, blocks, cupy, monkeypatch):
    if blocks:
        monkeypatch.setattr(cuda.kernels, "blocks", lambda size, most: blocks)
    rng, own = np.random.default_rng(0), buffered.kernels_for(cupy, True)
    x, dy = rng.normal(size=(2, *shape)).astype(dtype)
    x.flat[:4] = [np.nan, np.inf, -0.0, -1e-30][: x.size]
    layer = xn.Sequential(xn.Dropout(rate)).initialize("numpy", seed=1).layers[0]
    key = cupy.asarray(layer.state["key"])
    y = cupy.xp.empty(shape[::-1], dtype=getattr(cupy.xp, dtype))
    dx = cupy.xp.empty_like(y)
    for _ in range(3):
        expected, cache = layer.forward(x, training=True)
        log.launches.clear()
        next_key = own.dropout(cupy.asarray(x.T.copy()), key, rate, y)
        own.dropout_backward(cupy.asarray(dy.T.copy()), key, rate, dx)
        assert len(log.launches) == 2
        same(cupy.to_numpy(y).T, expected)
        same(cupy.to_numpy(dx).T, layer.backward(dy, cache)[0])
        layer.state = layer.next_state(cache)
        key = next_key
        np.testing.assert_array_equal(cupy.to_numpy(key), layer.state["key"])


def test_the_count_in_dropouts_key_wraps_around(cupy):
    own, x = buffered.kernels_for(cupy, True), cupy.asarray(np.ones((2, 3)))
    key = own.dropout(x, cupy.asarray(np.array([-5, 2**31 - 1], np.int32)), 0.5, x)
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


# --- launches ---------------------------------------------------------------------------------------------------------


def test_dropout_is_a_launch_each_way(cupy, monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    net = importlib.import_module("train_digits").network().initialize(cupy, seed=0)
    x = cupy.asarray(np.random.default_rng(0).normal(size=(40, 64)), "float32")
    y = xn.ops.one_hot(cupy.asarray(np.arange(40) % 10), 10, x.dtype)
    step = training_step(net, xn.SoftmaxCrossEntropy(), xn.Adam())
    carry = step.start
    for _ in range(3):
        log.clear()
        _, carry = step.on_rows(carry, Batch(x, y), slice(0, 32), (carry,))
    assert log.launches.count("dropout<float>") == 4
    assert len(log.launches) == 21, log.launches
    assert log.waits == log.transfers == []


MATRIX = np.random.default_rng(0).normal(size=(50, 4))
CALLS = {  # what is launched
    "linear": (lambda x: xn.ops.linear(x, x.T), ["gemm"]),
    "sum_over_batch": (xn.ops.sum_over_batch, ["cupy_sum"]),
    "dot_over_batch": (lambda x: xn.ops.dot_over_batch(x, x), ["cupy_multiply__float64_float64_float64", "cupy_sum"]),
    "sum_of_squares": (xn.ops.sum_of_squares, ["_tensordot_core_mul_sum"]),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operation_on_the_batch_is_a_launch_or_two(name, cupy):
    operation, launches = CALLS[name]
    x = cupy.asarray(MATRIX)
    expected = operation(MATRIX)
    log.clear()
    result = operation(x)
    assert log.launches == launches
    assert log.waits == log.transfers == []
    np.testing.assert_allclose(cupy.to_numpy(result), expected, rtol=1e-12, atol=1e-12)


def test_a_long_sum_takes_no_launch_for_a_span(cupy):
    x = cupy.xp.ones((3 * xn.ops.LONG, 2), dtype=cupy.xp.float32)
    for operation in (xn.ops.sum_over_batch, lambda x: xn.ops.dot_over_batch(x, x)):
        log.clear()
        np.testing.assert_array_equal(cupy.to_numpy(operation(x)), 3 * xn.ops.LONG)
        assert len(log.launches) <= 3


@pytest.mark.parametrize("layer", [xn.Dense(4, 3), xn.BatchNorm(4), xn.Dropout(), xn.ELU(), xn.Softmax()], ids=repr)
def test_layers_keep_to_the_order_that_cupys_functions_give(layer, cupy):
    """A function that is given both orders reads one of them across memory."""
    (layer,) = xn.Sequential(layer).initialize(cupy, "float64").layers
    y, cache = layer.forward(cupy.asarray(MATRIX), training=True)
    dx, _ = layer.backward(y, cache)
    assert y.flags.c_contiguous
    assert dx.flags.c_contiguous


# --- waits ------------------------------------------------------------------------------------------------------------

TARGETS = {  # what may be given for 3 classes, and the waits that it costs
    "integers": (np.arange(50) % 3, 1),
    "a column of floats": ((np.arange(50.0) % 3)[:, None], 1),
    "one-hot rows": (np.eye(3)[np.arange(50) % 3], 2),  # for whether they are finite, and for their sums
}


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_is_looked_at_once(name, cupy):
    (target, waits), prediction = TARGETS[name], cupy.xp.zeros((50, 3))
    target = cupy.asarray(target)
    log.clear()
    xn.SoftmaxCrossEntropy().encode(target, prediction)
    assert len(log.waits) == waits


@pytest.mark.parametrize("shape", [(0,), (3, 0), (5,), (2, 3)])
def test_whether_all_is_finite_is_one_wait(shape, cupy):
    arrays = [cupy.xp.ones(shape), cupy.xp.ones((7, 2), dtype="float32"), cupy.xp.arange(3)]
    log.clear()
    assert xn.ops.all_finite(*arrays)
    assert len(log.waits) == 1
    for bad in (np.nan, -np.inf, np.inf):
        poisoned = np.ones((7, 2))
        poisoned[6, 1] = bad
        assert not xn.ops.all_finite(arrays[0], cupy.asarray(poisoned), arrays[2])


def test_labels_are_looked_up_without_a_wait(cupy):
    labels = importlib.import_module("xpnet.estimators.labels").Labels.known(np.arange(3), "multiclass")
    choices, classes = cupy.asarray(np.array([0, 5, 1])), cupy.asarray(np.array([3.0, 4.0, 7.0]))
    log.clear()
    predicted = labels.predicted(choices, classes)
    assert log.waits == []
    np.testing.assert_array_equal(cupy.to_numpy(predicted), [3, 7, 4])


class Steps(xn.Callback):
    """The counts of epochs and steps at each step's end."""

    def __init__(self, stop=None):
        self.seen, self.stop = [], stop

    def step_end(self, run):
        self.seen.append((run.epoch, run.step))
        run.stop = run.step == self.stop


class Epochs(Steps):
    """The same, with a hook for each epoch."""

    def epoch_end(self, run):
        assert len(run.history["loss"]) == run.epoch == run.step


CALLBACKS = None, xn.TimeLimit(1e6), xn.Callback(), Steps(), Epochs()


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("callback", CALLBACKS, ids=lambda c: type(c).__name__)
def test_full_batches_are_waited_for_only_where_each_epoch_is_looked_at(callback, progress, cupy, monkeypatch):
    monkeypatch.setattr(training, "PACE", math.inf)  # 1, 2, 4, ... 32 epochs at a time
    x, y, waits = np.ones((8, 3)), np.zeros(8, int), []
    for epochs in (1, 31, 63):
        net = xn.Sequential(xn.Dense(3, 2)).initialize(cupy, seed=0)
        log.clear()
        how = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.SGD(), "batch_size": None}
        history = net.fit(x, y, epochs=epochs, callbacks=[callback] if callback else [], progress=progress, **how)
        assert len(history["loss"]) == history.steps == epochs
        waits.append(len(log.waits))
    once = waits[0] - 2  # an epoch's losses, and whether the parameters are finite
    looks = [31, 63] if type(callback) is Epochs else [5, 6]
    assert [wait - once for wait in waits[1:]] == [2 * count for count in looks]


def test_a_callback_stops_full_batches_after_the_epoch_and_sees_the_counts(cupy):
    steps, net = Steps(stop=20), xn.Sequential(xn.Dense(3, 2)).initialize(cupy, seed=0)
    how = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.SGD(), "batch_size": None}
    history = net.fit(np.ones((8, 3)), np.zeros(8, int), epochs=63, callbacks=[steps], **how)
    assert steps.seen == [(step - 1, step) for step in range(1, 21)]
    assert len(history["loss"]) == history.steps == 20


def test_a_device_computes_once_to_show_that_it_does(cupy):
    xn.get_backend("cupy", 1)
    log.clear()
    assert xn.get_backend("cupy") is cupy
    assert xn.get_backend("cupy", 1).device.id == 1
    assert log.launches == log.waits == []


# --- devices ----------------------------------------------------------------------------------------------------------


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
