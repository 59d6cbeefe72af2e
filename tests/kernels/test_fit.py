"""What fit promises holds in every form of the step: stops, faults, whose arrays are whose; and which is chosen."""

import contextlib
import copy
import gc
import pickle
import signal
import sys
import threading
import weakref

import numpy as np
import pytest

import xpnet as xn
from support import HANG
from support.cases import Scale, tutorial_network
from support.layers import Twice
from support.training import On
from xpnet.kernels import CHOICES, training_step
from xpnet.kernels.cpu.calls import Calls
from xpnet.kernels.planner import BufferedStep
from xpnet.kernels.reference import Carry, Step
from xpnet.training import batches

pytestmark = [pytest.mark.numpy_only, pytest.mark.torch_only]

CROSS = xn.SoftmaxCrossEntropy()
X = np.random.default_rng(0).normal(size=(14, 4))
Y = np.arange(14) % 3


@pytest.fixture
def backend(request):
    return xn.get_backend(request.config.getoption("--backend"))


@pytest.fixture(params=CHOICES)
def choice(request, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", request.param)
    return request.param


def network(backend, dtype="float64"):
    layers = xn.Dense(4, 8), xn.BatchNorm(8), xn.ReLU(), xn.Dropout(0.2), Scale(8), xn.Dense(8, 3)
    return xn.Sequential(*layers).initialize(backend, dtype, seed=2)


def fit(net, x=X, y=Y, loss=CROSS, optimizer=None, **options):
    return net.fit(x, y, **{"loss": loss, "optimizer": optimizer or xn.SGD(0.1), "batch_size": 4} | options)


def host(net):
    return {name: np.array(net.backend.to_numpy(a)) for name, a in (net.params | net.state).items()}


def assert_alike(arrays, expected, rtol=1e-10):
    """In float64, of a few steps whose roundings are some thousands of eps."""
    assert arrays.keys() == expected.keys()
    for name, a in expected.items():
        scale = max(1.0, float(np.abs(a).max()))
        np.testing.assert_allclose(arrays[name], a, rtol=0, atol=rtol * scale, err_msg=name)


def both(monkeypatch, act):
    """What `act` gives in the chosen step, and in the plain one."""
    found = act()
    monkeypatch.setenv("XPNET_KERNELS", "reference")
    return found, act()


# --- stops and faults -------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": lambda rate: xn.SGD(rate),
    "nesterov": lambda rate: xn.Nesterov(rate, clip_value=None),
    "adam": lambda rate: xn.Adam(rate, eps=0.1),
}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_run_is_the_plain_steps(name, shuffle, choice, backend, monkeypatch):
    def act():
        net, seen = network(backend), []
        options = {"epochs": 3, "shuffle": shuffle, "validation_data": (X, Y)}
        history = fit(net, optimizer=OPTIMIZERS[name](0.05), callbacks=[On(step_end=seen.append)], **options)
        return dict(history), len(seen), host(net)

    (history, steps, arrays), (expected, expected_steps, expected_arrays) = both(monkeypatch, act)
    assert steps == expected_steps == 12
    for measure, values in expected.items():
        np.testing.assert_allclose(history[measure], values, rtol=1e-10)
    assert_alike(arrays, expected_arrays)


class Poison(xn.Layer):
    """The identity, until its seventh batch in training: then `forward` or `backward` makes NaN."""

    def __init__(self, where):
        self.where, self.calls = where, []

    def forward(self, x, training=False):
        self.calls += [1] * training
        bad = training and self.where == "output" and len(self.calls) >= 7
        return x * np.nan if bad else x, None

    def backward(self, dy, cache):
        return (dy * np.nan if self.where == "gradient" and len(self.calls) >= 7 else dy), {}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("where", ["output", "gradient"])
def test_a_fault_is_told_and_undone_as_in_the_plain_step(where, name, choice, backend, monkeypatch):
    def act():
        layers = xn.Dense(4, 8), xn.BatchNorm(8), xn.Tanh(), Poison(where), xn.Dense(8, 3)
        net = xn.Sequential(*layers).initialize(backend, "float64", seed=2)
        with pytest.raises(xn.DivergenceError) as caught:
            fit(net, optimizer=OPTIMIZERS[name](0.05), epochs=3)
        error = caught.value
        return (str(error), error.epoch, error.batch, len(error.history["loss"])), host(net)

    (told, arrays), (expected, expected_arrays) = both(monkeypatch, act)
    assert told == expected
    assert told[1:] == (2, 3, 1)
    assert_alike(arrays, expected_arrays)


@pytest.mark.parametrize("size", [5, 40_000])  # one block of parameters, and many
def test_an_explosion_ends_at_the_plain_steps_parameters_without_a_warning(size, choice, backend, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")

    def act():
        net = xn.Sequential(xn.Dense(size, 6), xn.Tanh(), xn.Dense(6, 3)).initialize(backend, "float64", seed=0)
        x, y = np.ones((8, size)), np.eye(8, 3)
        with pytest.raises(xn.DivergenceError) as caught:
            fit(net, x, y, xn.MeanSquaredError(), xn.SGD(1e150), epochs=5, batch_size=2)
        return (str(caught.value), caught.value.epoch, caught.value.batch), host(net)

    (told, arrays), (expected, expected_arrays) = both(monkeypatch, act)
    assert told == expected
    assert_alike(arrays, expected_arrays)


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_keeps_the_plain_steps_parameters(times, choice, backend, ctrl_c, monkeypatch):
    def act():
        net = network(backend)

        def step_end(run):
            if run.step == 6:
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)

        options = {"epochs": 5, "callbacks": [On(step_end=step_end)]}
        if times == 1:
            assert fit(net, **options).interrupted
        else:
            with pytest.raises(KeyboardInterrupt):
                fit(net, **options)
        return host(net)

    assert_alike(*both(monkeypatch, act))


class Interrupted(xn.Layer):
    """The identity, whose fifth backward pass raises, as a second Ctrl-C may at any time."""

    def __init__(self):
        self.calls = []

    def forward(self, x, training=False):
        return x, None

    def backward(self, dy, cache):
        self.calls.append(1)
        if len(self.calls) == 5:
            raise KeyboardInterrupt
        return dy, {}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_error_amid_a_step_keeps_the_plain_steps_parameters(name, choice, backend, monkeypatch):
    def act():
        layers = xn.Dense(4, 8), xn.BatchNorm(8), xn.Tanh(), Interrupted(), xn.Dense(8, 3)
        net = xn.Sequential(*layers).initialize(backend, "float64", seed=2)
        with pytest.raises(KeyboardInterrupt):
            fit(net, optimizer=OPTIMIZERS[name](0.05), epochs=3)
        return host(net)

    assert_alike(*both(monkeypatch, act))


@pytest.mark.parametrize("hook", ["train_begin", "epoch_begin", "step_end", "epoch_end", "train_end"])
def test_an_error_in_a_callback_keeps_the_plain_steps_parameters(hook, choice, backend, monkeypatch):
    def act():
        net = network(backend)

        def fail(run):
            if hook != "step_end" or run.step == 3:
                raise LookupError(hook)

        with pytest.raises(LookupError, match=hook):
            fit(net, epochs=3, callbacks=[On(**{hook: fail})])
        return host(net)

    assert_alike(*both(monkeypatch, act))


# --- whose arrays are whose -------------------------------------------------------------------------------------------


class Keeper(xn.Callback):
    """Keeps every array that it is y_kept, with its numbers as they were."""

    def __init__(self):
        self.kept = []

    def keep(self, arrays, to_numpy):
        self.kept += [(name, a, np.array(to_numpy(a))) for name, a in arrays.items()]

    def step_end(self, run):
        self.keep(run.net.params | run.net.state, run.net.backend.to_numpy)

    epoch_begin = train_begin = train_end = step_end

    def assert_unchanged(self, to_numpy):
        assert self.kept
        for name, a, numbers in self.kept:
            np.testing.assert_array_equal(to_numpy(a), numbers, err_msg=name)


@pytest.mark.parametrize("optimizer", [xn.SGD(0.1), xn.Nesterov(0.1), xn.Adam(0.1)], ids=repr)
@pytest.mark.parametrize(
    "make", [network, lambda backend: xn.Sequential(Scale(4)).initialize(backend, "float64")], ids=["many", "one"]
)
def test_arrays_shown_or_held_never_change_later(make, optimizer, choice, backend):
    net, keeper = make(backend), Keeper()
    keeper.keep(net.params | net.state, backend.to_numpy)
    loss, y = (CROSS, Y) if make is network else (xn.MeanSquaredError(), X)
    fit(net, y=y, loss=loss, optimizer=optimizer, epochs=2, callbacks=[keeper])
    keeper.keep(net.params | net.state, backend.to_numpy)
    fit(net, y=y, loss=loss, optimizer=optimizer, epochs=2, callbacks=[keeper])
    fit(net, y=y, loss=loss, optimizer=optimizer, epochs=1)
    keeper.assert_unchanged(backend.to_numpy)


def test_data_and_the_gradient_of_a_loss_are_not_written_to(choice, backend):
    class Squares:
        """A user's loss that hands out one and the same array of gradients for a size of batch."""

        def __init__(self):
            self.kept = {}

        def value_and_grad(self, prediction, target):
            value, g = xn.MeanSquaredError().value_and_grad(prediction, target)
            place, numbers = self.kept.setdefault(g.shape[0], (0.0 * g, []))
            if numbers:
                np.testing.assert_array_equal(backend.to_numpy(place), numbers[-1])
            place[...] = g
            numbers.append(np.array(backend.to_numpy(place)))
            return value, place

    x, t = X.copy(), np.eye(3)[Y]
    layers = xn.BatchNorm(4), xn.Dense(4, 3), xn.BatchNorm(3), xn.ReLU()
    fit(xn.Sequential(*layers).initialize(backend, "float64"), x, t, Squares(), epochs=3)
    np.testing.assert_array_equal(x, X)
    np.testing.assert_array_equal(t, np.eye(3)[Y])


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_a_trained_network_is_copied_and_trains_on_alone(twin_of, choice, backend):
    net = network(backend)
    fit(net, epochs=2)
    arrays = host(net)
    twin = twin_of(net)
    assert_alike(host(twin), arrays, 0)
    fit(twin, epochs=2)
    assert_alike(host(net), arrays, 0)
    fit(net, epochs=2)
    assert_alike(host(net), host(twin), 0)


def wide(backend, seed=0):
    """A fit whose vector of parameters and whose matrices are long enough for threads."""
    rng = np.random.default_rng(seed)
    net = xn.Sequential(xn.Dense(300, 500), xn.BatchNorm(500), xn.ReLU(), xn.Dense(500, 10))
    net.initialize(backend, "float32", seed=seed)
    x, y = rng.normal(size=(700, 300)), rng.integers(10, size=700)
    net.fit(x, y, loss=CROSS, optimizer=xn.Adam(0.001), epochs=2, batch_size=400)
    return host(net)


def test_two_fits_in_two_threads_are_those_of_one_after_another(choice, backend, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    expected, found = [wide(backend, seed) for seed in (0, 1)], [None, None]

    def work(seed):
        found[seed] = wide(backend, seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=HANG)
        assert not thread.is_alive()
    for arrays, others in zip(found, expected, strict=True):
        assert_alike(arrays, others, 1e-3)  # sums may be split otherwise; what is mixed up would be of another size


# --- which form -------------------------------------------------------------------------------------------------------


CALLS = {"numpy": "Calls", "torch": "TorchKernels"}  # the kernels of a backend where nothing is compiled


def chosen(backend, net=None):
    step = training_step((net or tutorial_network()).initialize(backend), CROSS, xn.Adam())
    return type(step), type(getattr(step, "kernels", None)).__name__


def test_generic_is_the_calls_and_reference_the_plain_step(backend, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", "generic")
    assert chosen(backend) == (BufferedStep, CALLS[backend.name])
    monkeypatch.setenv("XPNET_KERNELS", "reference")
    assert chosen(backend) == (Step, "NoneType")


@pytest.mark.parametrize("unset", [True, False])
def test_auto_is_the_default_and_does_without_numba_where_there_is_none(unset, backend, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", "" if unset else "auto")
    monkeypatch.setitem(sys.modules, "numba", None)
    assert chosen(backend) == (BufferedStep, CALLS[backend.name])


@pytest.mark.numba_only
def test_auto_takes_numbas_loops_where_numba_is_there(backend, monkeypatch):
    monkeypatch.delenv("XPNET_KERNELS", raising=False)
    assert chosen(backend) == (BufferedStep, "NumbaKernels")


@pytest.mark.parametrize("error", [ImportError, RuntimeError])
def test_auto_says_so_and_does_without_a_numba_that_cannot_be_imported(error, backend, monkeypatch):
    """As one that wants another NumPy, or finds no folder to keep compiled code in."""

    class Broken:
        def find_spec(self, name, path=None, target=None):
            if name == "xpnet.kernels.cpu.numba":
                raise error("Numba needs NumPy 2.3 or less")

    monkeypatch.setenv("XPNET_KERNELS", "auto")
    monkeypatch.delitem(sys.modules, "xpnet.kernels.cpu.numba", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: name)
    monkeypatch.setattr(sys, "meta_path", [Broken(), *sys.meta_path])
    told = pytest.warns(RuntimeWarning, match="Numba needs NumPy 2.3 or less.*XPNET_KERNELS=generic")
    with told if backend.name == "numpy" else contextlib.nullcontext() as warned:
        assert chosen(backend) == (BufferedStep, CALLS[backend.name])
    assert warned is None or {w.filename for w in warned} == {__file__}


@pytest.mark.numba_only
def test_auto_says_so_and_does_without_a_numba_that_compiles_nothing(backend, monkeypatch):
    """As coverage and debuggers have it, with NUMBA_DISABLE_JIT=1: the loops' intrinsics are no code for Python."""
    monkeypatch.setenv("XPNET_KERNELS", "auto")
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    for name in [name for name in sys.modules if name.startswith("xpnet.kernels.cpu.numba")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.warns(
        RuntimeWarning, match=r"\(ImportError: NUMBA_DISABLE_JIT is set, so it compiles nothing\): training goes on"
    ):
        assert chosen(backend) == (BufferedStep, CALLS[backend.name])


def test_another_choice_is_refused_by_name_before_the_first_step(backend, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", "fast")
    net = network(backend)
    before = host(net)
    with pytest.raises(ValueError, match="XPNET_KERNELS is 'fast', expected one of auto, generic, reference"):
        fit(net)
    assert_alike(host(net), before, 0)


def test_a_network_of_ones_own_kind_takes_the_same_step(choice, backend):
    class Mine(xn.Sequential):
        pass

    expected = chosen(backend, xn.Sequential(xn.Dense(4, 3)))
    assert chosen(backend, Mine(xn.Dense(4, 3))) == chosen(backend, Twice(xn.Dense(4, 3))) == expected


def test_every_choice_is_told_of_in_the_packages_own_words():
    assert all(f'"{choice}"' in xn.kernels.__doc__ for choice in CHOICES)
    assert issubclass(BufferedStep, Step)
    assert callable(Calls.optimizer)


@pytest.mark.parametrize("gather", [0, 2**17], ids=["batch by batch", "an epoch at once"])
@pytest.mark.parametrize("first", [xn.Dense(4, 8), xn.BatchNorm(4), xn.Dropout(0.2), Scale(4)])
def test_what_was_gathered_is_let_go_before_the_next(backend, choice, gather, first, monkeypatch):
    layers = [first, *([] if isinstance(first, xn.Dense) else [xn.Dense(4, 8)]), xn.Tanh(), xn.Dense(8, 3)]
    net = xn.Sequential(*layers).initialize(backend, "float64", seed=2)
    monkeypatch.setattr(batches, "GATHER", gather)
    gathered, taken = batches.Batch.gathered, []

    def watched(*arguments):
        assert [a() for a in taken] == [None] * len(taken)
        batch = gathered(*arguments)
        taken.append(weakref.ref(batch.x))
        return batch

    monkeypatch.setattr(batches.Batch, "gathered", watched)
    net.fit(X, Y, loss=CROSS, optimizer=xn.SGD(0.01), epochs=3, batch_size=7)
    assert len(taken) == (6 if gather == 0 else 3)


def test_nothing_of_a_fit_waits_for_the_garbage_collector(backend, choice):
    def alive():
        return sum(issubclass(type(o), (Step, Carry)) for o in gc.get_objects())

    net = network(backend)
    gc.collect()
    before = alive()
    gc.disable()
    try:
        net.fit(X, Y, loss=CROSS, optimizer=xn.Adam(), epochs=2, batch_size=7)
        assert alive() == before
    finally:
        gc.enable()


def test_whole_numbers_among_the_statistics_do_not_slow_the_look_at_what_is_finite(backend, monkeypatch):
    def slow(step, carry):
        raise AssertionError

    monkeypatch.setattr(Step, "sound", slow)
    net = network(backend)
    assert any("int" in str(a.dtype) for a in net.state.values())  # Dropout's key
    net.fit(X, Y, loss=CROSS, optimizer=xn.Adam(), epochs=2, batch_size=7)


def test_a_statistic_of_two_axes_that_is_not_finite_is_found(backend, choice):
    class Table(xn.Layer):
        """The identity, whose statistics are a matrix that the second batch spoils."""

        def initial_state(self, rng):
            return {"seen": np.zeros((2, 3))}

        def forward(self, x, training=False):
            return x, self.state["seen"]

        def backward(self, dy, cache):
            return dy, {}

        def next_state(self, cache):
            return {"seen": (cache + 1.0) / (1.0 - cache)}  # 1, then infinite

    net = xn.Sequential(xn.Dense(4, 3), Table()).initialize(backend, "float64", seed=0)
    with pytest.raises(xn.DivergenceError, match="in epoch 1, batch 2: the running statistics of layer 1"):
        net.fit(X, Y, loss=CROSS, optimizer=xn.SGD(1e-3), batch_size=7)


@pytest.mark.parametrize("rows", [64, 100_000, 1_000_000])
def test_batch_norm_of_many_rows_far_from_zero(backend, choice, rows):
    x = (np.random.default_rng(0).normal(size=(rows, 2)) + 1000).astype("float32")
    net = xn.Sequential(xn.BatchNorm(2), xn.Dense(2, 3)).initialize(backend, "float32", seed=0)
    net.fit(x, np.arange(rows) % 3, loss=CROSS, optimizer=xn.SGD(1e-3), batch_size=None)
    exact = x.astype("float64")
    mean, var = (backend.to_numpy(net.state[f"0.{name}"]) for name in ("mean", "var"))
    np.testing.assert_allclose(mean, exact.mean(axis=0), rtol=0, atol=1e-4)  # float32 near 1000 has steps of 6e-5
    np.testing.assert_allclose(var, exact.var(axis=0), rtol=3e-3)  # a million squares, added in float32


def test_the_first_batch_sets_a_small_variance_to_all_its_digits(backend, choice):
    x = X.astype("float32") * np.float32(1e-4)
    net = xn.Sequential(xn.BatchNorm(4, eps=1e-12), xn.Dense(4, 3)).initialize(backend, "float32", seed=0)
    net.fit(x, Y, loss=CROSS, optimizer=xn.SGD(1e-3), batch_size=None)
    var = backend.to_numpy(net.state["0.var"])
    np.testing.assert_allclose(var, x.astype("float64").var(axis=0), rtol=1e-5)


@pytest.mark.parametrize("size", [1e36, 1e18, 1e-15])
@pytest.mark.parametrize("beta1", [0.0, 0.9, 0.9999])
def test_adam_takes_gradients_of_any_size(backend, choice, beta1, size):
    net = xn.Sequential(xn.Dense(1, 1)).initialize(backend, "float32", seed=0)
    before = float(backend.to_numpy(net.params["0.weight"])[0, 0])

    class Slope(xn.MeanSquaredError):
        """size · Σ p: its gradient is the same everywhere."""

        def terms(self, prediction, target):
            return prediction * size, prediction * 0 + size

    how = {"loss": Slope(), "optimizer": xn.Adam(1e-3, beta1=beta1, eps=1e-30), "epochs": 400}
    if size > 1e19:  # its square overflows, and would hold the weight still
        with pytest.raises(xn.DivergenceError, match="in epoch 1, batch 1: the optimizer's slots"):
            net.fit([[1.0]], [[0.0]], **how)
        return
    net.fit([[1.0]], [[0.0]], **how)
    moved = before - float(backend.to_numpy(net.params["0.weight"])[0, 0])
    assert moved == pytest.approx(0.4, rel=1e-3)
