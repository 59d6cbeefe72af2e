"""CuPy's training counted on the host: launches of a step, waits in an epoch, transfers in a fit."""

import itertools

import numpy as np
import pytest

import xpnet as xn
from support import ROOT
from support.cases import LOSSES, Scale, tutorial_network
from support.cupy_on_host import log
from xpnet.kernels import training_step
from xpnet.training import batches
from xpnet.training.batches import Batch

pytestmark = [pytest.mark.cupy_only, pytest.mark.on_host_only]
README = ROOT / "README.md"


@pytest.fixture
def cupy(monkeypatch):
    monkeypatch.delenv("XPNET_KERNELS", raising=False)  # the launches of a choice are those of that choice
    return xn.get_backend("cupy")


def mlp(*sizes, norm):
    """Dense layers with ReLU, and perhaps batch norm, between them."""
    layers = []
    for d, h in itertools.pairwise(sizes[:-1]):
        layers += [xn.Dense(d, h), *([xn.BatchNorm(h)] if norm else []), xn.ReLU()]
    return xn.Sequential(*layers, xn.Dense(*sizes[-2:]))


# a network, its optimizer, and the launches of a step: in kernels of our own, and of the plain step. The batch is small
# here, since nothing depends on it.
STEPS = {
    "seed": (tutorial_network, xn.Adam, 17, 179),
    "mini": (lambda: mlp(64, 128, 64, 10, norm=True), xn.Adam, 17, 132),
    "wide": (lambda: mlp(784, 1024, 1024, 10, norm=False), xn.Adam, 16, 53),
    "seed, SGD": (tutorial_network, xn.SGD, 17, 171),
    "seed, Nesterov": (tutorial_network, xn.Nesterov, 18, 177),
    "seed, clip_norm": (tutorial_network, lambda: xn.AdamW(clip_norm=1.0), 18, 194),
}


def launches_of_a_step(cupy, net, optimizer):
    """In the third step, when every array is made and no statistics are the first any more."""
    net = net().initialize(cupy, seed=0)
    rng = np.random.default_rng(0)
    with cupy.scope():
        x = cupy.asarray(rng.normal(size=(40, net.layers[0].in_features)).astype("float32"))
        y = xn.ops.one_hot(cupy.asarray(rng.integers(10, size=40)), 10, x.dtype)
        step = training_step(net, xn.SoftmaxCrossEntropy(), optimizer())
        carry = step.start
        for _ in range(3):
            log.launches.clear()
            _, carry = step.on_rows(carry, Batch(x, y), slice(0, 32), (carry,))
    return list(log.launches)


@pytest.mark.parametrize("case", STEPS)
def test_launches_in_a_step(case, cupy, monkeypatch):
    net, optimizer, fused, plain = STEPS[case]
    launches = launches_of_a_step(cupy, net, optimizer)
    assert len(launches) == fused, launches
    monkeypatch.setenv("XPNET_KERNELS", "generic")
    launches = launches_of_a_step(cupy, net, optimizer)
    assert len(launches) == plain, launches


def test_the_readme_has_these_launches():
    (seed, of_seed), (mini, of_mini), (wide, of_wide) = (STEPS[name][2:] for name in ("seed", "mini", "wide"))
    assert seed == mini
    counts = f"takes {seed} kernel launches instead of {of_seed} and {of_mini}, `wide` {wide} instead of {of_wide};"
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


class Linked(xn.Sigmoid):
    """One's own, whose outputs a loss of probabilities must look at."""


@pytest.mark.parametrize("gather", [0, 2**17])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("choice", ["auto", "reference"])
@pytest.mark.parametrize("optimizer", [lambda: xn.Nesterov(clip_norm=1.0), lambda: xn.AdamW(xn.CosineDecay(0.01, 9))])
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


@pytest.mark.parametrize("choice", ["auto", "reference"])
def test_no_callback_waits_in_an_epoch(choice, cupy, monkeypatch, tmp_path):
    monkeypatch.setenv("XPNET_KERNELS", choice)
    rng, watch, doctor = np.random.default_rng(0), Watch(), xn.Doctor(log=None)
    watchers = [xn.EarlyStopping("loss"), xn.ReduceOnPlateau("loss"), xn.CSVLog(tmp_path / "log.csv")]
    net = every_layer().initialize(cupy, seed=0)
    hooks = [*watchers, xn.TimeLimit(1e6), doctor, watch]
    net.fit(rng.normal(size=(30, 6)), rng.integers(5, size=30), loss=xn.SoftmaxCrossEntropy(), optimizer=xn.SGD(),
            epochs=3, batch_size=8, callbacks=hooks)  # fmt: skip
    assert watch.waits == [[], [], []]
    assert any(vital.ratio for vital in doctor.vitals)


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
