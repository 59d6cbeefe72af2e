"""CuPy's training counted on the host: launches of a step, waits in an epoch, transfers in a fit."""

import importlib
import itertools
import math

import numpy as np
import pytest

import xpnet as xn
from support import ROOT
from support.cases import CALLBACKS, LOSSES, Scale, tutorial_network
from support.cupy_on_host import log
from support.layers import Linked
from xpnet.kernels import training_step
from xpnet.training import batches
from xpnet.training import loop as training
from xpnet.training.batches import Batch

pytestmark = [pytest.mark.cupy_only, pytest.mark.on_host_only]
README = ROOT / "xpnet" / "kernels" / "README.md"


def mlp(*sizes, norm):
    """Dense layers with ReLU, and perhaps batch norm, between them."""
    layers = []
    for d, h in itertools.pairwise(sizes[:-1]):
        layers += [xn.Dense(d, h), *([xn.BatchNorm(h)] if norm else []), xn.ReLU()]
    return xn.Sequential(*layers, xn.Dense(*sizes[-2:]))


def images():
    """Two convolutions, each with ReLU and a pool, of images of 28 x 28 pixels."""
    return xn.Sequential(
        *(xn.Conv2d(1, 32, 3, padding=1), xn.ReLU(), xn.MaxPool2d(2)),
        *(xn.Conv2d(32, 64, 3, padding=1), xn.ReLU(), xn.MaxPool2d(2)),
        *(xn.Flatten(), xn.Dense(64 * 7 * 7, 10)),
    )


def gpt(vocabulary=65, layers=4, heads=4, features=16, context=8, dropout=0.0):
    """That of the script, but for its 128 features and 64 positions."""
    return importlib.import_module("train_text").network(vocabulary, layers, heads, features, context, dropout)


# a network, its optimizer, and the launches of a step: in kernels of our own, and of the plain step. The batch is small
# here, and texts are narrow and short, since nothing depends on it.
STEPS = {
    "seed": (tutorial_network, xn.Adam, 17, 179),
    "mini": (lambda: mlp(64, 128, 64, 10, norm=True), xn.Adam, 17, 132),
    "cnn28": (images, xn.Adam, 25, 312),
    "wide": (lambda: mlp(784, 1024, 1024, 10, norm=False), xn.Adam, 16, 53),
    "gpt": (gpt, xn.AdamW, 90, 559),
    "seed, SGD": (tutorial_network, xn.SGD, 17, 171),
    "seed, Nesterov": (tutorial_network, xn.Nesterov, 18, 177),
    "seed, decays": (tutorial_network, lambda: xn.AdamW(decays="weights"), 17, 183),
    "seed, clip_norm": (tutorial_network, lambda: xn.AdamW(clip_norm=1.0), 18, 194),
}


def launches_of_a_step(cupy, net, optimizer):
    """In the third step, when every array is made and no statistics are the first any more."""
    net = net().initialize(cupy, seed=0)
    rng = np.random.default_rng(0)
    with cupy.scope():
        if net.takes == "integers":
            shape, rows = (8,), 2
            x, classes = rng.integers(65, size=(2, 4, 8))
        else:
            shape = [28 if size is None else size for size in net.input_shape]
            rows = 32 if len(shape) == 1 else 8
            x, classes = rng.normal(size=(40, *shape)).astype("float32"), rng.integers(10, size=40)
        outputs = net.output_shape(("N", *shape))[-1]
        x, y = cupy.asarray(x), xn.ops.one_hot(cupy.asarray(classes), outputs, cupy.dtype("float32"))
        step = training_step(net, xn.SoftmaxCrossEntropy(), optimizer(), ("N", *shape))
        carry = step.start
        for _ in range(3):
            log.launches.clear()
            _, carry = step.on_rows(carry, Batch(x, y), slice(0, rows), (carry,))
    return list(log.launches)


@pytest.mark.parametrize("case", STEPS)
def test_launches_in_a_step(case, cupy, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    net, optimizer, fused, plain = STEPS[case]
    launches = launches_of_a_step(cupy, net, optimizer)
    assert len(launches) == fused, launches
    monkeypatch.setenv("XPNET_KERNELS", "generic")
    launches = launches_of_a_step(cupy, net, optimizer)
    assert len(launches) == plain, launches


def test_the_readme_has_these_launches():
    (seed, of_seed), (mini, of_mini), (wide, of_wide) = (STEPS[name][2:] for name in ("seed", "mini", "wide"))
    (cnn, of_cnn), (text, of_text) = (STEPS[name][2:] for name in ("cnn28", "gpt"))
    assert seed == mini
    counts = (
        f"takes {seed} kernel launches instead of {of_seed} and {of_mini}, `wide` {wide} instead of {of_wide}, "
        f"`cnn28` {cnn} instead of {of_cnn}, and `gpt` {text} instead of {of_text}; `clip_norm` adds one."
    )
    assert counts in " ".join(README.read_text(encoding="utf-8").split())


class Watch(xn.Callback):
    """The waits and launches of each epoch, from its beginning to its last step."""

    def __init__(self):
        self.waits, self.launches = [], []

    def epoch_begin(self, run):
        self.before = len(log.waits), len(log.launches)
        self.waits.append(None)
        self.launches.append(None)

    def step_end(self, run):
        self.waits[-1] = log.waits[self.before[0] :]
        self.launches[-1] = log.launches[self.before[1] :]


def every_layer():
    return xn.Sequential(
        xn.BatchNorm(6),
        *(xn.Dense(6, 6), xn.BatchNorm(6), xn.Sigmoid(), xn.Dropout(0.2)),
        *(xn.Dense(6, 6), xn.Tanh(), xn.Dense(6, 6, trainable=False), xn.LeakyReLU(), Scale(6)),
        *(xn.Dense(6, 6), xn.ELU(), xn.BatchNorm(6, trainable=False), xn.Sequential(xn.Dense(6, 6), xn.ReLU())),
        *(xn.Dense(6, 5), xn.Softmax(), xn.Dense(5, 5)),
    )


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("choice", ["auto", "reference"])
@pytest.mark.parametrize(("optimizer", "gather"), [
    (lambda: xn.Nesterov(clip_norm=1.0), 0),
    (lambda: xn.AdamW(xn.CosineDecay(0.01, 9)), 2**17),
])  # fmt: skip
def test_no_wait_in_an_epoch_and_one_transfer_of_the_data(optimizer, choice, shuffle, gather, cupy, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", choice)
    monkeypatch.setattr(batches, "GATHER", gather)
    rng = np.random.default_rng(0)
    x, y, watch = rng.normal(size=(30, 6)), rng.integers(5, size=30), Watch()
    net = every_layer().initialize(cupy, seed=0)
    log.transfers.clear()
    options = {"optimizer": optimizer(), "batch_size": 8, "shuffle": shuffle, "callbacks": [watch]}
    net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), epochs=3, **options)
    assert watch.waits == [[], [], []]
    data = [size for size in log.transfers if size >= y.nbytes]  # CuPy's tables of pointers are smaller
    assert data == [x.nbytes, y.nbytes, *[y.nbytes] * (3 * shuffle)]  # the order of each epoch, as long as y


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_wait_in_an_epoch_of_texts(shuffle, cupy, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    rng, watch = np.random.default_rng(0), Watch()
    net = gpt(11, 1, 2, 8, 7, 0.1).initialize(cupy, seed=0)
    x, y = rng.integers(11, size=(2, 10, 7))
    options = {"optimizer": xn.AdamW(clip_norm=1.0), "batch_size": 4, "shuffle": shuffle, "callbacks": [watch]}
    net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), epochs=2, **options)
    assert watch.waits == [[], []]


@pytest.mark.parametrize("shuffle", [True, False])
def test_no_wait_in_an_epoch_of_images(shuffle, cupy):
    rng, watch = np.random.default_rng(0), Watch()
    net = xn.Sequential(
        *(xn.Conv2d(1, 3, 3), xn.BatchNorm(3), xn.ReLU(), xn.MaxPool2d(2), xn.Dropout(0.1)),
        *(xn.Conv2d(3, 4, 2), xn.Tanh(), xn.AveragePool2d(2), xn.GlobalAveragePool(), xn.Dense(4, 5)),
    ).initialize(cupy, seed=0)
    options = {"optimizer": xn.Adam(), "batch_size": 8, "shuffle": shuffle, "callbacks": [watch]}
    net.fit(rng.normal(size=(30, 1, 9, 9)), np.arange(30) % 5, loss=xn.SoftmaxCrossEntropy(), epochs=2, **options)
    assert watch.waits == [[], []]


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_no_callback_waits_in_an_epoch(choice, cupy, monkeypatch, tmp_path):
    monkeypatch.setenv("XPNET_KERNELS", choice)
    rng, watch = np.random.default_rng(0), Watch()
    callbacks = {name: make(tmp_path) for name, make in CALLBACKS.items()}
    net = every_layer().initialize(cupy, seed=0)
    hooks = [*callbacks.values(), watch]
    net.fit(rng.normal(size=(30, 6)), rng.integers(5, size=30), loss=xn.SoftmaxCrossEntropy(), optimizer=xn.SGD(),
            epochs=3, batch_size=8, callbacks=hooks)  # fmt: skip
    assert watch.waits == [[], [], []]
    assert any(vital.ratio for vital in callbacks["doctor"].vitals)


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_waits(name, cupy):
    loss, _, target = LOSSES[name]
    rng, watch = np.random.default_rng(0), Watch()
    net = xn.Sequential(xn.Dense(6, 5), Linked()).initialize(cupy, seed=0)
    x, y = rng.normal(size=(30, 6)), target(rng, 30, 5)
    net.fit(x, y, loss=loss(), optimizer=xn.SGD(), epochs=2, batch_size=8, callbacks=[watch])
    assert watch.waits == [[], []]


def test_an_epoch_ends_with_two_waits(cupy):
    """For its losses, and for whether the parameters are finite."""
    x, y, net = np.ones((30, 6)), np.zeros(30, int), xn.Sequential(xn.Dense(6, 5)).initialize(cupy)

    def waits(epochs):
        before = len(log.waits)
        net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.SGD(), epochs=epochs, batch_size=8)
        return len(log.waits) - before

    waits(1)  # the first time there is more to ask
    assert waits(5) - waits(4) == 2


@pytest.mark.parametrize(("gather", "takes"), [(2**17, 2), (0, 8)])
def test_shuffling_takes_two_launches_an_epoch_or_where_x_is_large_a_batch(gather, takes, cupy, monkeypatch):
    monkeypatch.setattr(batches, "GATHER", gather)
    rng, counts = np.random.default_rng(0), []
    x, y = rng.normal(size=(32, 6)), rng.integers(5, size=32)
    for shuffle in (False, True):
        watch, net = Watch(), xn.Sequential(xn.Dense(6, 5)).initialize(cupy, seed=0)
        options = {"optimizer": xn.SGD(), "batch_size": 8, "shuffle": shuffle, "callbacks": [watch]}
        net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), epochs=2, **options)
        counts.append(len(watch.launches[1]))
    assert counts[1] - counts[0] == takes


def test_all_work_on_a_network_is_done_on_its_device(cupy):
    """Which is not the current one: an array of one device in a kernel on another is refused or a fault."""
    second = xn.get_backend("cupy", 1)
    x, y = np.random.default_rng(0).normal(size=(30, 6)), np.arange(30) % 5
    net = every_layer().initialize(second, seed=0)
    net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.SGD(), batch_size=8, validation_data=(x, y))
    net.value_and_grad(x, y, xn.SoftmaxCrossEntropy(), sample_weight=np.ones(30), l2=0.1)
    net.evaluate(x, y, xn.SoftmaxCrossEntropy(), batch_size=8)
    prediction = net.predict(x)
    net.set_params(net.params)
    net.set_state(net.state)
    net.clone().to("cupy", dtype="float64")
    for measure in (*xn.metrics.OF_CLASSES, xn.confusion_matrix):
        measure(prediction, y, loss=xn.SoftmaxCrossEntropy())
    xn.f1(prediction, np.eye(5)[y], threshold=0.0)
    xn.confusion_matrix(second.asarray(y), y)
    for measure in xn.metrics.OF_NUMBERS:
        measure(prediction, np.eye(5)[y])


def test_dropout_is_a_launch_each_way(cupy, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
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
    labels = importlib.import_module("xpnet.estimators.labels").Labels(np.arange(3))
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


WATCHERS = None, xn.TimeLimit(1e6), xn.Callback(), Steps(), Epochs()


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("callback", WATCHERS, ids=lambda c: type(c).__name__)
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
