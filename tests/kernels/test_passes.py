"""The passes in threads, each of which takes a stretch of a batch's rows, against the plain step."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from threadpoolctl import ThreadpoolController

import xpnet as xn
from support.cases import gpt
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


def resnet():
    """Batch norm of images and of rows, among them in branches."""
    return xn.Sequential(
        *(xn.Conv2d(2, 4, 3, padding=1), xn.BatchNorm(4), xn.Tanh(), xn.MaxPool2d(2), xn.BatchNorm(4)),
        *(xn.Residual(xn.Conv2d(4, 4, 3, padding=1), xn.BatchNorm(4)), xn.Tanh()),
        xn.Branches(xn.Sequential(xn.Conv2d(4, 2, 1), xn.BatchNorm(2)), xn.MaxPool2d(1), merge="concat", axis=1),
        *(xn.Flatten(), xn.Dense(96, 8), xn.BatchNorm(8), xn.Tanh(), xn.Dense(8, CLASSES), xn.BatchNorm(CLASSES)),
    )


def images(rng, n):
    return rng.normal(size=(n, 2, 8, 8)).astype("float32")


def texts(rng, n):
    return rng.integers(0, CLASSES, (n, 5))


NETWORKS = {
    "images": (cnn, images),
    "images in tiles": (cnn, images),
    "images, dropout": (lambda: cnn(xn.Dropout(0.4)), images),
    "images, batch norm": (resnet, images),
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
    monkeypatch.setattr(threads, "SPLIT_FROM", 1)
    monkeypatch.setattr(threads, "blas_threads", lambda: 3)


def steps_of(net, kernels, optimizer, x):
    return Step(net, CROSS, optimizer), BufferedStep(net, CROSS, optimizer, kernels(), x.shape)


def batch_of(rng, make, n, weighted=False, dtype="float32"):
    x = make(rng, n)
    x = x if x.dtype.kind == "i" else x.astype(dtype)
    labels = rng.integers(0, CLASSES, x.shape if x.dtype.kind == "i" else n)
    weight = rng.uniform(0.5, 2.0, n).astype(dtype) if weighted else None
    return Batch(x, np.eye(CLASSES, dtype=dtype)[labels], weight)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("weighted", [False, True], ids=["alike", "weighted"])
def test_stretches_take_the_step_of_the_whole_batch(name, weighted, kernels, monkeypatch):
    """Of batches alike, larger, of fewer rows than threads, and again."""
    if "tiles" in name:
        monkeypatch.setattr(kernels().winograd, "least", (1, 1))
    make_net, make = NETWORKS[name]
    dtype, rtol, atol = ("float64", 1e-9, 1e-10) if make_net is resnet else ("float32", 1e-4, 2e-6)
    net = make_net().initialize("numpy", dtype, seed=1)
    net.set_params({name: a + 0.1 for name, a in net.params.items()})  # biases, too
    rng = np.random.default_rng(2)
    plain, fast = steps_of(net, kernels, xn.Nesterov(0.05), make(rng, 1))
    carry, expected = fast.start, plain.start
    for n in (7, 7, 9, 8, 2, 9, 7):
        batch = batch_of(rng, make, n, weighted, dtype)
        value, carry = fast(carry, batch)
        plain_value, expected = plain(expected, batch)
        assert value == pytest.approx(float(plain_value), rel=rtol / 10)
        np.testing.assert_allclose(carry.weights, expected.weights, rtol=rtol, atol=atol)
        state, plain_state = fast.state(carry), plain.state(expected)
        for key, a in plain_state.items():
            np.testing.assert_allclose(state[key], a, rtol=rtol if a.dtype == dtype else 0)  # a key is the same
    assert len(fast.in_threads.stretches) == 3


def test_each_thread_has_a_stretch_and_memory_of_its_own(kernels):
    net = cnn().initialize("numpy", "float32", seed=1)
    batch = batch_of(np.random.default_rng(0), images, 9)
    _, fast = steps_of(net, kernels, xn.SGD(0.1), batch.x)
    seen = []
    for passes in fast.in_threads.passes:
        forward = passes.forward_of_stretch
        passes.forward_of_stretch = lambda *given, forward=forward: seen.append(given) or forward(*given)
    fast.gradient(fast.start.weights, batch)
    assert fast.in_threads.stretches == [slice(0, 3), slice(3, 6), slice(6, 9)]
    assert len(seen) == 3
    places = [stage.y for passes in fast.in_threads.passes for stage in passes.plan.stages if "y" in vars(stage)]
    apart = [places[i :: len(places) // 3] for i in range(len(places) // 3)]
    assert all(not np.shares_memory(first, other) for first, *others in apart for other in others)


@pytest.mark.parametrize(
    "net",
    [
        cnn(xn.BatchNorm(4, trainable=False)),
        cnn(xn.Conv2d(4, 4, 3, dilation=2, padding=2)),
        xn.Sequential(xn.Flatten(), xn.Dense(128, CLASSES)),
    ],
    ids=["frozen batch norm", "a layer's own code", "dense layers"],
)
def test_what_needs_the_whole_batch_is_not_split(net, kernels):
    net.initialize("numpy", "float32", seed=1)
    batch = batch_of(np.random.default_rng(0), images, 7)
    plain, fast = steps_of(net, kernels, xn.SGD(0.1), batch.x)
    assert fast._passes_for(7) is fast.serial
    assert fast(fast.start, batch)[0] == pytest.approx(float(plain(plain.start, batch)[0]), rel=1e-5)


def test_threads_begin_later_where_stretches_meet(kernels, monkeypatch):
    net = cnn(xn.BatchNorm(4), xn.BatchNorm(4)).initialize("numpy", "float32", seed=1)
    _, fast = steps_of(net, kernels, xn.SGD(0.1), images(np.random.default_rng(0), 1))
    monkeypatch.setattr(threads, "SPLIT_FROM", 4 * fast.outputs_per_row)
    _, fast = steps_of(net, kernels, xn.SGD(0.1), images(np.random.default_rng(0), 1))
    assert [fast._passes_for(n) is fast.in_threads for n in (7, 8)] == [False, True]


def test_same_batches_same_bits(kernels):
    def trained():
        net = cnn(xn.BatchNorm(4), xn.Dropout(0.4)).initialize("numpy", "float32", seed=1)
        rng = np.random.default_rng(0)
        net.fit(
            images(rng, 40), rng.integers(0, CLASSES, 40), batch_size=16, epochs=2, loss=CROSS, optimizer=xn.Adam(0.01)
        )
        return net.params | net.state

    first, second = trained(), trained()
    with ThreadPoolExecutor(2) as fits:  # they share the helping threads
        at_once = fits.submit(trained), fits.submit(trained)
    for other in (second, *[fit.result() for fit in at_once]):
        assert all(np.array_equal(first[name], other[name]) for name in first)


def test_batch_norm_of_stretches_is_as_exact_as_of_the_batch(kernels):
    """Of large numbers far apart, where the mean of squares less the mean's square is but rounding; of constants."""
    net = cnn(xn.BatchNorm(4)).initialize("numpy", "float32", seed=1)
    weight, bias = (np.array(net.params[name]) for name in ("0.weight", "0.bias"))
    weight[0], bias[0] = 0.0, 2000.1
    net.set_params(net.params | {"0.weight": weight, "0.bias": bias})
    batch = batch_of(np.random.default_rng(0), images, 7)
    batch.x[...] += 2000.0 + 3.0 * np.arange(7, dtype="float32")[:, None, None, None]
    plain, fast = steps_of(net, kernels, xn.SGD(0.1), batch.x)
    state, expected = (step.state(step(step.start, batch)[1]) for step in (fast, plain))
    for name, a in expected.items():
        np.testing.assert_allclose(state[name], a, rtol=2e-6, atol=1e-12)


@pytest.mark.parametrize(("stage", "method"), [(2, "forward"), (1, "end_backward")])
def test_an_error_after_stretches_have_met_leaves_all_as_it_was(stage, method, kernels, monkeypatch):
    net = cnn(xn.BatchNorm(4)).initialize("numpy", "float32", seed=1)
    batch = batch_of(np.random.default_rng(0), images, 9)
    _, fast = steps_of(net, kernels, xn.SGD(0.1), batch.x)
    value, carry = fast(fast.start, batch)
    arrays = fast.start.weights, carry.weights, *fast.start.state.values(), *carry.state.values()
    before = [np.array(a) for a in arrays]

    def interrupted(*_):
        raise KeyboardInterrupt

    stages = fast.in_threads.passes[2].plan.stages
    with monkeypatch.context() as patched:
        patched.setattr(stages[stage], method, interrupted)
        with pytest.raises(KeyboardInterrupt):
            fast(carry, batch)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, before, strict=True))
    again, new = fast(fast.start, batch)
    assert (again, *new.weights) == (value, *carry.weights)


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
