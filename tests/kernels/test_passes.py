"""The passes in threads, each of which takes a stretch of a batch's rows, against the plain step."""

import os
import signal
import threading

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import xpnet as xn
from support.cases import gpt
from xpnet.kernels import planner
from xpnet.kernels.cpu import threads
from xpnet.kernels.planner import BufferedStep
from xpnet.kernels.reference import Step
from xpnet.training.batches import Batch

pytestmark = [pytest.mark.numpy_only, pytest.mark.usefixtures("small_blocks")]

CROSS = xn.SoftmaxCrossEntropy()
CLASSES = 3


def cnn(*between):
    first = xn.Conv2d(2, 4, 3, padding=1), xn.ReLU(), xn.MaxPool2d(2), *between
    return xn.Sequential(*first, xn.Conv2d(4, 4, 3, stride=2), xn.GELU(), xn.Flatten(), xn.Dense(4, CLASSES))


def images(rng, n):
    return rng.normal(size=(n, 2, 8, 8)).astype("float32")


def texts(rng, n):
    return rng.integers(0, CLASSES, (n, 5))


NETWORKS = {
    "images": (cnn, images),
    "images, dropout": (lambda: cnn(xn.Dropout(0.4)), images),
    "texts": (lambda: xn.Sequential(gpt(CLASSES, 5, 4, 2), xn.Dropout(0.5)), texts),
    "branches of sequences": (
        lambda: xn.Sequential(
            xn.Branches(xn.Conv1d(2, 4, 3, padding=1), xn.Conv1d(2, 4, 1), axis=1, merge="concat"),
            *(xn.Flatten(), xn.Dense(64, 8), xn.Tanh(), xn.Dense(8, CLASSES)),
        ),
        lambda rng, n: images(rng, n)[:, :, 0],
    ),
}


@pytest.fixture(autouse=True)
def three_threads(monkeypatch):
    """Every batch is split, as where BLAS has three threads."""
    monkeypatch.setattr(planner, "PAYS", 1)
    monkeypatch.setattr(threads, "blas_threads", lambda: 3)


def steps_of(net, kernels, optimizer, x):
    return Step(net, CROSS, optimizer), BufferedStep(net, CROSS, optimizer, kernels(), x.shape)


def batch_of(rng, make, n, weighted=False):
    x = make(rng, n)
    labels = rng.integers(0, CLASSES, x.shape if x.dtype.kind == "i" else n)
    weight = rng.uniform(0.5, 2.0, n).astype("float32") if weighted else None
    return Batch(x, np.eye(CLASSES, dtype="float32")[labels], weight)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_stretches_take_the_step_of_the_whole_batch(name, weighted, kernels):
    """Of batches alike, larger, of fewer rows than threads, and again."""
    make_net, make = NETWORKS[name]
    net = make_net().initialize("numpy", "float32", seed=1)
    rng = np.random.default_rng(2)
    plain, fast = steps_of(net, kernels, xn.Nesterov(0.05), make(rng, 1))
    carry, expected = fast.start, plain.start
    for n in (7, 7, 9, 8, 2, 9, 7):
        batch = batch_of(rng, make, n, weighted)
        value, carry = fast(carry, batch)
        plain_value, expected = plain(expected, batch)
        assert value == pytest.approx(float(plain_value), rel=1e-5)
        np.testing.assert_allclose(carry.weights, expected.weights, rtol=1e-4, atol=2e-6)
        state, plain_state = fast.state(carry), plain.state(expected)
        assert all(np.array_equal(state[key], plain_state[key]) for key in plain_state)
    assert len(fast.in_threads.stretches) == 3


def test_each_thread_has_a_stretch_and_memory_of_its_own(kernels):
    net = cnn().initialize("numpy", "float32", seed=1)
    batch = batch_of(np.random.default_rng(0), images, 9)
    _, fast = steps_of(net, kernels, xn.SGD(0.1), batch.x)
    seen = []
    for passes in fast.in_threads.passes:
        forward = passes.forward
        passes.forward = lambda *given, forward=forward: seen.append(threading.current_thread()) or forward(*given)
    fast.gradient(fast.start.weights, batch)
    assert fast.in_threads.stretches == [slice(0, 3), slice(3, 6), slice(6, 9)]
    assert len(seen) == 3
    places = [stage.y for passes in fast.in_threads.passes for stage in passes.plan.stages if "y" in vars(stage)]
    apart = [places[i :: len(places) // 3] for i in range(len(places) // 3)]
    assert all(not np.shares_memory(first, other) for first, *others in apart for other in others)


@pytest.mark.parametrize(
    "net",
    [
        cnn(xn.BatchNorm(4)),
        cnn(xn.Conv2d(4, 4, 3, dilation=2, padding=2)),
        xn.Sequential(xn.Flatten(), xn.Dense(128, CLASSES)),
    ],
    ids=["batch norm", "a layer's own code", "dense layers"],
)
def test_what_needs_the_whole_batch_is_not_split(net, kernels):
    net.initialize("numpy", "float32", seed=1)
    batch = batch_of(np.random.default_rng(0), images, 7)
    plain, fast = steps_of(net, kernels, xn.SGD(0.1), batch.x)
    assert fast._passes_for(7) is fast.at_once
    assert fast(fast.start, batch)[0] == pytest.approx(float(plain(plain.start, batch)[0]), rel=1e-5)


def test_same_batches_same_bits(kernels):
    def trained():
        net = cnn(xn.Dropout(0.4)).initialize("numpy", "float32", seed=1)
        rng = np.random.default_rng(0)
        net.fit(
            images(rng, 40), rng.integers(0, CLASSES, 40), batch_size=16, epochs=2, loss=CROSS, optimizer=xn.Adam(0.01)
        )
        return net.params

    first, second = trained(), trained()
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_an_error_in_a_thread_is_raised_and_blas_has_its_threads_again(kernels, monkeypatch):
    class Library:
        num_threads, told = 5, []

        def set_num_threads(self, count):
            self.num_threads = count
            self.told.append(count)

    library = Library()
    monkeypatch.setattr(threads, "blas", lambda: [library])
    net = gpt(CLASSES, 5, 4, 2).initialize("numpy", "float32", seed=1)
    batch = batch_of(np.random.default_rng(0), texts, 6)
    _, fast = steps_of(net, kernels, xn.SGD(0.1), batch.x)
    before = np.array(fast.start.weights)
    batch.x[5, 1] = CLASSES  # of the last stretch
    with pytest.raises(ValueError, match=r"Embedding\(3, 4\)"):
        fast(fast.start, batch)
    assert library.told == [1, 5]
    np.testing.assert_array_equal(fast.start.weights, before)


def test_fits_at_the_same_time_leave_blas_its_threads(monkeypatch):
    class Library:
        num_threads = 4

        def set_num_threads(self, count):
            self.num_threads = count

    monkeypatch.undo()
    library = Library()
    monkeypatch.setattr(threads, "blas", lambda: [library])
    with threads.one_blas_thread():
        with threads.one_blas_thread():
            assert (library.num_threads, threads.blas_threads()) == (1, 4)
        assert (library.num_threads, threads.blas_threads()) == (1, 4)
    assert (library.num_threads, threads.blas_threads()) == (4, 4)
    library.num_threads = 64
    assert threads.blas_threads() == threads.LIMIT


def test_blas_does_as_it_is_told():
    libraries = threads.blas()
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        with threads.one_blas_thread():
            assert {library.num_threads for library in libraries} == {1}
        assert {library.num_threads for library in libraries} == {2}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of threads and forks
def test_a_process_forked_amid_a_step_has_a_lock_of_its_own():
    with threads.one_blas_thread(), threads.OneThread.lock:
        child = os.fork()
        if not child:
            signal.alarm(20)  # where it would wait for ever
            with threads.one_blas_thread():
                os._exit(threads.OneThread.users)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
