"""Training, evaluating, predicting: what fit promises, also when it is interrupted, fails or runs in a thread."""

import contextlib
import copy
import io
import math
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import unittest.mock
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import xpnet as xn
from support import ROOT, cupy_on_host
from support.cases import EXTREMES, FEATURES, LAYERS, Scale, assert_extreme, ready, tutorial_network
from xpnet.kernels import CHOICES

CROSS, SQUARED = xn.SoftmaxCrossEntropy(), xn.MeanSquaredError()
STILL = xn.SGD(1e-30, momentum=0.0)  # steps too small to move a weight


def small(lib, *layers, dtype="float64", seed=0):
    layers = layers or (xn.Dense(4, 8), xn.BatchNorm(8), xn.Dropout(0.2), xn.Tanh(), xn.Dense(8, 3))
    return xn.Sequential(*layers).initialize(lib.backend, dtype, seed=seed)


def problem(rows=12, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, FEATURES))
    return x, (x @ rng.normal(size=(FEATURES, 3))).argmax(axis=1)


X, Y = problem()
T = np.eye(3)[Y]


def fit(net, x=X, y=Y, loss=CROSS, optimizer=None, batch_size=4, **options):
    return net.fit(x, y, loss=loss, optimizer=optimizer or xn.SGD(0.1), batch_size=batch_size, **options)


def bits(net, *names):
    arrays = net.params | net.state
    return {k: net.backend.to_numpy(a).tobytes() for k, a in arrays.items() if not names or k in names}


def all_finite(net):
    return all(np.isfinite(net.backend.to_numpy(a)).all() for a in (net.params | net.state).values())


class On(xn.Callback):
    """A callback from functions: On(step_end=lambda run: ...)."""

    def __init__(self, **hooks):
        vars(self).update(hooks)


class Recorder:
    """A loss with `value_and_grad` alone, that writes down which rows came in which batch."""

    def __init__(self):
        self.batches = []

    def value_and_grad(self, prediction, target):
        host = xn.backends.backend_of(target).to_numpy
        np.testing.assert_array_equal(host(prediction), host(target))  # x's row beside its own target
        self.batches.append([int(v) for v in host(target)[:, 0]])
        return SQUARED.value_and_grad(prediction, target)

    def orders(self, lib, **options):
        """The order of ten rows in each epoch of a fit, whose network returns its input."""
        net = small(lib, xn.Dense(1, 1))
        net.set_params({"0.weight": np.ones((1, 1)), "0.bias": np.zeros(1)})
        rows = np.arange(10.0)[:, None]
        for _ in range(2):
            fit(net, rows, rows, self, STILL, epochs=2, **options)
        assert [len(batch) for batch in self.batches] == [4, 4, 2] * 4
        order = [row for batch in self.batches for row in batch]
        return [order[i : i + 10] for i in range(0, 40, 10)]


def python(code, *args, **env):
    """What a fresh interpreter prints, with this xpnet, and with CuPy on the host if it is there here."""
    folders = Path(xn.__file__).parents[1], ROOT / "tests", os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(map(str, folders))
    if cupy_on_host.installed():
        code = f"from support import cupy_on_host\ncupy_on_host.install()\n{code}"
    run = [sys.executable, "-c", code, *args]
    done = subprocess.run(run, env=os.environ | {"PYTHONPATH": path} | env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --- history and losses -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "y", "options", "keys"),
    [
        (CROSS, Y, {}, ["loss"]),
        (CROSS, Y, {"validation_data": (X, Y)}, ["loss", "val_loss", "val_accuracy"]),
        (SQUARED, T, {"validation_data": (X, T)}, ["loss", "val_loss"]),
        (CROSS, Y, {"validation_data": (X, Y), "metrics": {}}, ["loss", "val_loss"]),
        (CROSS, Y, {"validation_data": (X, Y), "metrics": {"a": xn.accuracy, "b": xn.accuracy}},
         ["loss", "val_loss", "val_a", "val_b"]),
        (CROSS, Y, {"validation_data": (X, Y), "metrics": ["f1", xn.accuracy]},
         ["loss", "val_loss", "val_f1", "val_accuracy"]),
        (CROSS, Y, {"validation_data": (X, Y), "metrics": {"hits": "f1", "top2": partial(xn.top_k_accuracy, k=2)}},
         ["loss", "val_loss", "val_hits", "val_top2"]),
        (SQUARED, T, {"validation_data": (X, T), "metrics": ("r2", "mean_absolute_error", "mean_squared_error")},
         ["loss", "val_loss", "val_r2", "val_mean_absolute_error", "val_mean_squared_error"]),
    ],
)  # fmt: skip
def test_history_has_one_number_per_epoch_and_measure(lib, loss, y, options, keys):
    history = fit(small(lib), X, y, loss, epochs=3, **options)
    assert list(history) == keys
    assert all(len(values) == 3 and all(type(v) is float for v in values) for values in history.values())
    assert history.steps == 9
    with pytest.raises(KeyError, match=r"no 'accuracy' in the history, which has 'loss'.*validation_data brings"):
        history["accuracy"]
    assert list(history) == keys
    assert history.seconds > 0
    assert history.interrupted is False


@pytest.mark.numpy_only
@pytest.mark.parametrize("batch_size", [4, None])
def test_the_seconds_are_those_of_the_steps_alone(monkeypatch, batch_size):
    """By a clock that only the training's forwards move on by 2, and callbacks and metrics by 1000."""
    now = 0.0

    def pass_by(seconds):
        nonlocal now
        now += seconds

    class Slow(xn.Layer):
        def forward(self, x, training=False):
            pass_by(2.0 if training else 1000.0)
            return x, None

        def backward(self, dy, cache):
            return dy, {}

    monkeypatch.setattr("time.perf_counter", lambda: now)
    net = xn.Sequential(xn.Dense(4, 3), Slow()).initialize("numpy")
    pass_by(-now)
    shown = []
    hooks = {name: lambda run: pass_by(1000.0) for name in ("train_begin", "epoch_begin", "epoch_end", "train_end")}
    hooks["step_end"] = lambda run: (shown.append((run.history.steps, run.history.seconds)), pass_by(1000.0))
    history = fit(net, epochs=3, batch_size=batch_size, validation_data=(X, Y), callbacks=[On(**hooks)])
    assert shown == [(step, 2.0 * step) for step in range(1, history.steps + 1)]
    assert history.seconds == 2.0 * history.steps > 0


def test_fit_learns(lib):
    x, y = problem(120)
    net = small(lib, dtype="float32")
    history = fit(net, x, y, optimizer=xn.Adam(0.05), epochs=10, batch_size=30)
    assert history["loss"][-1] < 0.5 * history["loss"][0]
    assert net.evaluate(x, y, CROSS)["accuracy"] > 0.9


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("loss", "y"), [(xn.SoftmaxCrossEntropy, Y), (xn.MeanSquaredError, T)])
def test_an_epochs_loss_over_unequal_batches_is_that_of_all_rows(lib, loss, y, reduction):
    net = small(lib, xn.Dense(4, 3))
    loss = loss(reduction)
    expected = float(loss(net.predict(X), y))
    assert fit(net, X, y, loss, STILL, batch_size=5)["loss"] == pytest.approx([expected], rel=1e-12)
    assert net.evaluate(X, y, loss, batch_size=5)["loss"] == pytest.approx(expected, rel=1e-12)


class Quartic(xn.Loss):
    """A user's loss: the fourth power."""

    def terms(self, prediction, target):
        error = prediction - target
        return error**4, 4 * error**3


class BareSquares:
    """A user's loss that derives from nothing."""

    def value_and_grad(self, prediction, target):
        return SQUARED.value_and_grad(prediction, target)


def test_a_users_loss_trains_and_is_evaluated(lib):
    net = small(lib, xn.Dense(4, 3))
    history = fit(net, X, T, Quartic(), epochs=20, validation_data=(X, T))
    assert history["val_loss"][-1] < 0.5 * history["loss"][0]
    error = lib.to_numpy(net.predict(X)) - T
    assert net.evaluate(X, T, Quartic()) == {"loss": pytest.approx((error**4).mean(), rel=1e-12)}


def test_a_loss_with_value_and_grad_alone_trains_as_its_twin_does(lib):
    one, other = small(lib), small(lib)
    expected = fit(one, X, T, SQUARED, epochs=2, validation_data=(X, T))
    history = fit(other, X, T, BareSquares(), epochs=2, validation_data=(X, T))
    assert history == {
        name: pytest.approx(losses, rel=1e-12) for name, losses in expected.items()
    }  # if one is compiled
    lib.agrees(other.predict(X), lib.to_numpy(one.predict(X)))
    other.set_params({name: lib.to_numpy(a) for name, a in one.params.items()})
    other.set_state({name: lib.to_numpy(a) for name, a in one.state.items()})
    assert other.evaluate(X, T, BareSquares()) == one.evaluate(X, T, SQUARED)


def test_validation_is_evaluation_after_each_epoch_and_changes_nothing(lib):
    net, alone = small(lib), small(lib)
    held_out, seen = problem(7, seed=1), []
    mine = {"mine": lambda p, t: p.shape[0] + 0.5, "exact": xn.accuracy}
    watch = On(epoch_end=lambda run: seen.append(run.net.evaluate(*held_out, CROSS, mine)))
    history = fit(net, epochs=3, validation_data=held_out, metrics=mine, callbacks=[watch])
    fit(alone, epochs=3)
    assert [{k: history[f"val_{k}"][i] for k in ("loss", "mine", "exact")} for i in range(3)] == seen
    assert history["val_mine"] == [7.5] * 3
    assert bits(net) == bits(alone)


class Counting(xn.Layer):
    """Returns its input, and writes down how many rows it is given at a time outside of training."""

    def __init__(self):
        self.rows = []

    def forward(self, x, training=False):
        if not training:
            self.rows.append(x.shape[0])
        return x, ()

    def backward(self, dy, cache):
        return dy, {}


@pytest.mark.parametrize(("batch_size", "rows"), [(7, [1024, 1024, 452]), (1500, [1500, 1000])])
def test_validation_goes_in_batches_of_1024_or_of_the_batch_size_where_that_is_more(lib, batch_size, rows):
    counting, held_out = Counting(), problem(2500, seed=1)
    net = small(lib, xn.Dense(4, 3), counting)
    begin = On(train_begin=lambda run: counting.rows.clear())  # before that, the checks
    fit(net, batch_size=batch_size, epochs=2, validation_data=held_out, callbacks=[begin])
    assert counting.rows == rows * 2


# --- order and seeds --------------------------------------------------------------------------------------------------


def test_without_shuffle_the_rows_come_as_they_stand(lib):
    assert Recorder().orders(lib, shuffle=False) == [list(range(10))] * 4


def test_every_epoch_of_every_fit_shuffles_all_rows_anew_and_a_seed_repeats_it(lib):
    orders = Recorder().orders(lib)
    assert all(sorted(order) == list(range(10)) for order in orders)
    assert len({tuple(order) for order in [*orders, range(10)]}) == 5
    assert Recorder().orders(lib) == orders


def test_without_shuffle_the_seed_of_the_order_does_not_matter(lib):
    one, other = (small(lib, xn.Dense(4, 3), seed=seed) for seed in (0, 1))
    assert bits(one) != bits(other)
    start = {k: lib.to_numpy(a) for k, a in one.params.items()}
    for shuffle, alike in [(False, True), (True, False)]:
        for net in (one, other):
            net.set_params(start)
            fit(net, shuffle=shuffle)
        assert (bits(one) == bits(other)) is alike


PROCESS = """
import hashlib
import numpy as np
import xpnet as xn
net = xn.Sequential(xn.Dense(4, 8), xn.BatchNorm(8), xn.Dropout(0.2), xn.Tanh(), xn.Dense(8, 3))
net.initialize("BACKEND", seed=7)
x = np.sin(np.arange(48.0)).reshape(12, 4)
net.fit(x, np.arange(12) % 3, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(), epochs=3, batch_size=5)
host = [net.backend.to_numpy(a).tobytes() for a in (net.params | net.state).values()]
print(hashlib.sha256(b"".join(host)).hexdigest())
"""


def test_a_seed_gives_the_same_weights_in_another_process(lib, capsys):
    code = PROCESS.replace("BACKEND", lib.name)
    exec(code, {})
    assert python(code) == capsys.readouterr().out.strip()


def test_a_seed_gives_the_same_weights_bit_for_bit_and_another_does_not(lib):
    nets = [small(lib, seed=seed) for seed in (7, 7, 8)]
    for net in nets:
        fit(net, epochs=2)
    assert bits(nets[0]) == bits(nets[1]) != bits(nets[2])


# --- predict and evaluate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [0, 2.5, True])
def test_a_batch_size_that_is_none_is_refused_by_the_name_of_who_was_asked(lib, batch_size):
    net = small(lib)
    for who, call in {
        "predict": lambda: net.predict(X, batch_size=batch_size),
        "evaluate": lambda: net.evaluate(X, Y, CROSS, batch_size=batch_size),
        "fit": lambda: fit(net, batch_size=batch_size),
    }.items():
        with pytest.raises(
            ValueError, match=f"^{who}: batch_size must be a whole number of at least 1, got {batch_size}$"
        ):
            call()


@pytest.mark.parametrize("batch_size", [1, 5, 6, 12, 100])
def test_predicting_in_batches_is_predicting_at_once(lib, batch_size):
    net = small(lib)
    fit(net)
    at_once = lib.to_numpy(net.predict(X))
    np.testing.assert_array_equal(lib.to_numpy(net(X)), at_once)
    np.testing.assert_array_equal(lib.to_numpy(net.forward(lib.asarray(X))[0]), at_once)
    lib.agrees(net.predict(X, batch_size=batch_size), at_once)
    expected = net.evaluate(X, Y, CROSS)
    assert net.evaluate(X, Y, CROSS, batch_size=batch_size) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_numpys_and_own_arrays_train_alike_and_results_stay_on_the_backend(lib, dtype):
    one, other = small(lib, dtype=dtype), small(lib, dtype=dtype)
    own = lib.asarray(X, dtype), lib.asarray(Y)
    assert fit(one, X.astype(dtype), Y, validation_data=(X, Y)) == fit(other, *own, validation_data=own)
    assert bits(one) == bits(other)
    value, grads = one.value_and_grad(*own, CROSS)
    assert grads.keys() == one.params.keys()
    for a in [one.predict(X), one(own[0]), value, *grads.values(), *one.params.values()]:
        assert lib.backend.owns(a)
        assert a.dtype == lib.backend.dtype(dtype)
        assert xn.backends.backend_of(a).device_name == lib.backend.device_name
    scores = one.evaluate(*own, CROSS)
    assert {k: type(v) for k, v in scores.items()} == {"loss": float, "accuracy": float}


def test_what_was_passed_in_is_not_written_to(lib):
    x, y = lib.asarray(X), lib.asarray(T)
    net = small(lib)
    fit(net, x, y, epochs=2, validation_data=(x, y), shuffle=False)
    net.value_and_grad(x, y, CROSS)
    net.predict(x)
    np.testing.assert_array_equal(lib.to_numpy(x), X)
    np.testing.assert_array_equal(lib.to_numpy(y), T)


def test_evaluating_between_a_forward_and_its_backward_changes_nothing(lib):
    net, twin = (xn.Sequential(ready(LAYERS["network"](), lib)) for _ in range(2))
    x, other = lib.asarray(X), lib.asarray(X[:5] + 1)
    y, cache = net.forward(x, training=True)
    net.forward(other)
    net.forward(other, training=True)
    dx, grads = net.backward(y, cache)
    y, cache = twin.forward(x, training=True)
    expected, expected_grads = twin.backward(y, cache)
    for a, b in [(dx, expected), *((grads[k], expected_grads[k]) for k in twin.params)]:
        np.testing.assert_array_equal(lib.to_numpy(a), lib.to_numpy(b))


def test_threads_may_predict_at_the_same_time(lib):
    net, inputs = small(lib), [np.full((200, 4), float(i)) for i in range(4)]
    expected = [lib.to_numpy(net.predict(x)) for x in inputs]
    results = [None] * 4

    def work(i):
        results[i] = [lib.to_numpy(net.predict(inputs[i])) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(results[i], [expected[i]] * 20)


# --- layers in training -----------------------------------------------------------------------------------------------


def test_a_frozen_layer_keeps_its_bits_while_those_around_it_learn(lib):
    net = small(lib, xn.Dense(4, 6), xn.Sequential(xn.Dense(6, 6, trainable=False), xn.Tanh()), xn.Dense(6, 3))
    before = bits(net)
    fit(net, optimizer=xn.AdamW(0.01))
    changed = {name for name, a in bits(net).items() if a != before[name]}
    assert changed == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert net.value_and_grad(X, Y, CROSS)[1].keys() == net.params.keys()


def test_a_frozen_layer_passes_the_gradient_on_as_if_it_were_not(lib):
    free, frozen = (small(lib, xn.Dense(4, 6), xn.Dense(6, 6, trainable=t), xn.Dense(6, 3)) for t in (True, False))
    fit(free, batch_size=None)
    fit(frozen, batch_size=None)
    assert bits(free, "0.weight", "0.bias", "2.weight") == bits(frozen, "0.weight", "0.bias", "2.weight")
    assert bits(free, "1.weight") != bits(frozen, "1.weight")


def test_frozen_batch_norm_uses_and_keeps_its_running_statistics(lib):
    net = small(lib, xn.Dense(4, 5), xn.BatchNorm(5, trainable=False), xn.Dense(5, 3))
    net.set_state({"1.mean": np.arange(5.0), "1.var": np.full(5, 4.0)})
    x = lib.asarray(X)
    np.testing.assert_array_equal(lib.to_numpy(net.forward(x, training=True)[0]), lib.to_numpy(net.forward(x)[0]))
    before = bits(net)
    fit(net)
    own = "1.gamma", "1.beta", "1.mean", "1.var"
    assert bits(net, *own) == {name: before[name] for name in own}
    assert all(bits(net)[name] != before[name] for name in ("0.weight", "2.weight"))


def test_running_averages_start_from_the_first_batch_and_follow_momentum_after(lib):
    net, seen = small(lib, xn.BatchNorm(4, momentum=0.9), xn.Dense(4, 3)), []
    watch = On(step_end=lambda run: seen.append({k: lib.to_numpy(a).copy() for k, a in run.net.state.items()}))
    fit(net, shuffle=False, callbacks=[watch])
    mean, var = X[:4].mean(axis=0), X[:4].var(axis=0)
    for i, state in enumerate(seen):
        if i:
            mean = 0.9 * mean + 0.1 * X[4 * i : 4 * i + 4].mean(axis=0)
            var = 0.9 * var + 0.1 * X[4 * i : 4 * i + 4].var(axis=0)
        lib.agrees(lib.asarray(state["0.mean"]), mean)
        lib.agrees(lib.asarray(state["0.var"]), var)
    assert len(seen) == 3


@pytest.mark.numpy_only
def test_a_layer_is_given_the_parameters_that_bear_its_name():
    class Gate(xn.ReLU):
        def initial_params(self, rng):
            return {"in.weight": np.ones(3), "0": np.ones(2)}

    net = xn.Sequential(Gate(), xn.Sequential(Gate(), xn.Sequential(Gate()))).initialize()
    names = [f"{layer}.{own}" for layer in ("0", "1.0", "1.1.0") for own in ("in.weight", "0")]
    assert list(net.params) == names
    given = {name: np.full(3, float(i)) for i, name in enumerate(names)}
    net.assign_params(dict(reversed(given.items())) | {"": 0, "0": 0, "2.weight": 0, "1.2.weight": 0, "weight": 0})
    assert net.params.keys() == given.keys()
    assert all(net.params[name] is a for name, a in given.items())


def test_a_nested_network_trains_as_the_flat_one(lib):
    flat = small(lib, xn.Dense(4, 8), xn.BatchNorm(8), xn.Dropout(0.2), xn.Tanh(), xn.Dense(8, 3))
    inner = xn.Sequential(xn.BatchNorm(8), xn.Sequential(xn.Dropout(0.2), xn.Tanh()))
    nested = small(lib, xn.Dense(4, 8), inner, xn.Dense(8, 3))
    assert list(nested.params) == ["0.weight", "0.bias", "1.0.gamma", "1.0.beta", "2.weight", "2.bias"]
    assert list(nested.state) == ["1.0.mean", "1.0.var", "1.1.0.key"]
    assert fit(nested, epochs=3) == fit(flat, epochs=3)
    assert list(bits(nested).values()) == list(bits(flat).values())


def test_dropouts_mask_is_a_function_of_its_key_alone(lib):
    layer, shape = ready(xn.Dropout(0.3), lib), (400, 250)
    ones = lib.asarray(np.ones(shape), "float64")
    mask, cache = layer.forward(ones, training=True)
    mask = lib.to_numpy(mask)
    assert layer.forward(ones)[0] is ones
    np.testing.assert_array_equal(lib.to_numpy(layer.forward(ones, training=True)[0]), mask)
    host, _ = ready(xn.Dropout(0.3)).forward(np.ones(shape), training=True)
    np.testing.assert_array_equal(mask, host)
    assert set(np.unique(mask)) == {0.0, 1 / 0.7}
    sigma = math.sqrt(0.3 * 0.7 / mask.size)
    assert abs((mask == 0).mean() - 0.3) < 5 * sigma
    layer.assign_state(layer.next_state(cache))
    after = lib.to_numpy(layer.forward(ones, training=True)[0])
    both = ((mask == 0) & (after == 0)).mean()  # independent masks share 0.3²
    assert abs(both - 0.09) < 5 * math.sqrt(0.09 * 0.91 / mask.size)


MASK = """
    1111011111
    0100010110
    0011111110
    1011000111
    1101001010
    1010111011
"""


def test_dropouts_mask_has_the_same_bits_in_every_version(lib):
    """A run that is resumed drops what it would have dropped: the hash, its key and its order are part of a file."""
    layer = ready(xn.Dropout(0.4), lib)
    layer.assign_state({"key": lib.asarray(np.array([123456789, 7], dtype=np.int32))})
    y, _ = layer.forward(lib.asarray(np.ones((6, 10))), training=True)
    kept = ["".join(map(str, row)) for row in (lib.to_numpy(y) > 0).astype(int)]
    assert kept == MASK.split()


# --- divergence -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_that_explodes_says_where_and_leaves_finite_parameters(lib, dtype):
    net = small(lib, xn.Dense(4, 3), dtype=dtype)
    with pytest.raises(xn.DivergenceError) as caught:
        fit(net, X, T, SQUARED, xn.SGD(1e30), epochs=20, batch_size=6)
    error = caught.value
    assert f"fit: not finite in epoch {error.epoch}, batch {error.batch}: the loss." in str(error)
    assert "learning rate" in str(error)
    assert (error.epoch, error.batch) == (1, 2) if dtype == "float32" else error.epoch > 1
    assert len(error.history.get("loss", [])) == error.epoch - 1
    assert all_finite(net)
    assert math.isfinite(net.evaluate(X, T, SQUARED)["loss"])
    net.initialize(lib.backend, dtype, fresh=True)
    assert len(fit(net, X, T, SQUARED)["loss"]) == 1  # nothing of it stays behind


class Faulty(xn.Layer):
    """The identity, but for rows with an entry above 100, of which `forward` or `backward` makes NaN."""

    def __init__(self, where):
        self.where = where

    def poisoned(self, a, x):
        xp = xn.backends.namespace(x)
        return xp.where(xp.max(x, axis=1, keepdims=True) > 100.0, math.nan, a)

    def forward(self, x, training=False):
        return (self.poisoned(x, x) if training and self.where == "output" else x), x

    def backward(self, dy, cache):
        return (self.poisoned(dy, cache) if self.where == "gradient" else dy), {}


@pytest.mark.parametrize("where", ["output", "gradient"])
def test_a_users_layer_that_returns_nan_in_the_third_batch_is_named(lib, where):
    x = X.copy()
    x[9, 2] = 1000.0
    net, twin = (small(lib, xn.Dense(4, 4), Faulty(where), xn.Dense(4, 3)) for _ in range(2))
    for n in (net, twin):
        values = list(n.params.values())
        n.set_params(dict(zip(n.params, [np.eye(4), *map(lib.to_numpy, values[1:])], strict=True)))
    with pytest.raises(
        xn.DivergenceError, match=rf"in epoch 1, batch 3: the {where} .*layer 1, Faulty\('{where}'\)\."
    ) as caught:
        fit(net, x, Y, optimizer=xn.SGD(1e-3), shuffle=False, epochs=2)
    assert (caught.value.epoch, caught.value.batch, caught.value.history) == (1, 3, {})
    assert caught.value.history.steps == 2
    good = 4 if where == "output" else 8  # the rows after which the loss was last finite
    fit(twin, x[:good], Y[:good], optimizer=xn.SGD(1e-3), shuffle=False)
    assert bits(net) == bits(twin)


class Flickering(xn.Layer):
    """The identity, but for its third batch in training: a fault that does not come again."""

    def __init__(self):
        self.calls = []

    def forward(self, x, training=False):
        self.calls += [1] * training
        return (x * math.nan if training and len(self.calls) == 3 else x), None

    def backward(self, dy, cache):
        return dy, {}


def test_a_fault_that_does_not_come_again_is_placed_where_it_came(lib):
    net = small(lib, Flickering(), xn.Dense(4, 3))
    with pytest.raises(xn.DivergenceError, match="epoch 1, batch 3") as caught:
        fit(net, shuffle=False, batch_size=2)
    assert caught.value.history.steps == 2
    assert "optimizer" not in str(caught.value)
    assert all_finite(net)


def test_statistics_that_overflow_do_not_pass_for_sound_ones(lib):
    net = small(lib, xn.BatchNorm(4), xn.Dense(4, 3), dtype="float32")
    with pytest.raises(xn.DivergenceError, match="layer 0, BatchNorm"):
        fit(net, X * 1e25)  # finite in float32, its variance not
    assert all_finite(net)


@pytest.mark.numpy_only
def test_a_divergence_error_survives_the_way_back_from_a_worker_process():
    error = xn.DivergenceError("why", 2, 3, xn.History())
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.epoch, twin.batch, twin.history) == ("why", 2, 3, {})


@pytest.mark.parametrize("name", EXTREMES)
def test_what_is_not_finite_ends_the_training_at_the_same_step_in_every_form_of_it(name, lib, monkeypatch):
    """Also where the optimizer would hide it, and in no form where the derivative is 0 whatever stands above it."""
    for kernels in {"numpy": CHOICES, "torch": ("auto", "reference"), "jax": ("auto",)}.get(lib.name, ("reference",)):
        monkeypatch.setenv("XPNET_KERNELS", kernels)
        assert_extreme(name, lib.backend)


# --- full batches, that nobody looks at one by one --------------------------------------------------------------------


def test_full_batches_train_alike_whether_they_are_looked_at_or_not(lib):
    one, other = small(lib), small(lib)
    assert fit(one, batch_size=None, epochs=70, callbacks=[xn.Callback()]) == fit(other, batch_size=None, epochs=70)
    assert bits(one) == bits(other)


@pytest.mark.parametrize("epoch", [1, 32, 33, 40])
def test_a_divergence_amid_full_batches_is_placed(lib, epoch):
    net, twin = small(lib, xn.Dense(4, 3)), small(lib, xn.Dense(4, 3))
    rate = lambda step: 1e300 if step == epoch - 1 else 1e-22  # noqa: E731  # the gradient is of 1e18
    with pytest.raises(xn.DivergenceError, match=f"epoch {epoch}, batch 1: the optimizer's update") as caught:
        fit(net, 1e9 * X, T, SQUARED, xn.SGD(rate), batch_size=None, epochs=70)
    assert (caught.value.epoch, caught.value.batch, caught.value.history.steps) == (epoch, 1, epoch - 1)
    how = {"batch_size": None, "epochs": epoch - 1}
    assert caught.value.history == (fit(twin, 1e9 * X, T, SQUARED, xn.SGD(rate), **how) if epoch > 1 else {})
    assert bits(net) == bits(twin)


@pytest.mark.parametrize("step", [1, 32, 40])
def test_ctrl_c_ends_full_batches_after_the_step(lib, ctrl_c, step):
    def rate(number):
        if number == step - 1:
            signal.raise_signal(signal.SIGINT)
        return 0.1

    net, twin = small(lib), small(lib)
    history = fit(net, optimizer=xn.SGD(rate), batch_size=None, epochs=70)
    assert history.interrupted
    assert history.steps == step
    assert history == fit(twin, batch_size=None, epochs=step)
    assert bits(net) == bits(twin)


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ctrl_c():
    """Ctrl-C as an interactive Python has it, whatever started pytest."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def interrupt(step, times=1):
    def step_end(run):
        if run.step == step:
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)

    return On(step_end=step_end)


@pytest.mark.parametrize(("step", "epochs"), [(1, 0), (3, 1), (4, 1)])
def test_ctrl_c_ends_the_training_after_the_step(lib, ctrl_c, step, epochs):
    net, twin = small(lib), small(lib)
    history = fit(net, epochs=10, callbacks=[interrupt(step)])
    assert history.interrupted
    assert history.steps == step
    assert [len(values) for values in history.values()] == [epochs] * bool(epochs)
    assert signal.getsignal(signal.SIGINT) is ctrl_c

    def stop(run):
        if run.step == step:
            raise StopIteration

    with pytest.raises(StopIteration):
        fit(twin, epochs=10, callbacks=[On(step_end=stop)])
    assert bits(net) == bits(twin)
    assert fit(net).interrupted is False
    assert signal.getsignal(signal.SIGINT) is ctrl_c


def test_a_second_ctrl_c_raises_at_once(lib, ctrl_c):
    net, twin, steps = small(lib), small(lib), []
    with pytest.raises(KeyboardInterrupt):
        fit(net, epochs=10, callbacks=[interrupt(4, times=2), On(step_end=lambda run: steps.append(run.step))])
    assert steps == [1, 2, 3]
    assert signal.getsignal(signal.SIGINT) is ctrl_c
    fit(twin, epochs=10, callbacks=[interrupt(4)])  # whose fit ends after that step
    assert bits(net) == bits(twin)


@pytest.mark.parametrize("step", [0, 2, 3, 5])  # in the first epoch or the second, at its first step or the last
def test_an_interruption_within_a_step_keeps_the_parameters_of_the_last(lib, step):
    def rate(number):
        if number == step:
            raise KeyboardInterrupt
        return 0.1

    net, twin = small(lib), small(lib)
    with pytest.raises(KeyboardInterrupt):
        fit(net, optimizer=xn.SGD(rate), epochs=10)

    def stop(run):
        run.history.interrupted = run.step == step

    if step:
        fit(twin, epochs=10, callbacks=[On(step_end=stop)])
    assert bits(net) == bits(twin)


def test_a_programs_own_handler_of_ctrl_c_is_left_to_it(lib, ctrl_c):
    caught = []
    mine = lambda number, frame: caught.append(number)  # noqa: E731
    signal.signal(signal.SIGINT, mine)
    history = fit(small(lib), epochs=2, callbacks=[interrupt(2)])
    assert (caught, history.steps, history.interrupted) == ([signal.SIGINT], 6, False)
    assert signal.getsignal(signal.SIGINT) is mine


def test_fit_works_in_a_thread(lib, ctrl_c):
    net, twin = small(lib), small(lib)
    thread = threading.Thread(target=fit, args=(net,))
    thread.start()
    thread.join()
    fit(twin)
    assert bits(net) == bits(twin)


# --- callbacks --------------------------------------------------------------------------------------------------------

HOOKS = "train_begin", "epoch_begin", "step_end", "epoch_end", "train_end"


def test_hooks_come_in_order_each_to_every_callback_with_the_run(lib):
    net, events, weights = small(lib), [], [None]

    def hook(who, name):
        def called(run):
            events.append((who, name, run.epoch, run.step, len(run.history.get("loss", []))))
            assert run.net is net
            assert (run.epochs, run.steps_per_epoch) == (2, 3)
            changed = bits(run.net) != weights[0]
            assert changed is (weights[0] is None or (name, who) == ("step_end", "a"))
            weights[0] = bits(run.net)

        return called

    fit(net, epochs=2, callbacks=[On(**{name: hook(who, name) for name in HOOKS}) for who in "ab"])
    expected = [("train_begin", 0, 0, 0)]
    for e in range(2):
        expected += [("epoch_begin", e, 3 * e, e), *(("step_end", e, 3 * e + i, e) for i in (1, 2, 3))]
        expected += [("epoch_end", e + 1, 3 * e + 3, e + 1)]
    expected += [("train_end", 2, 6, 2)]
    assert events == [(who, *event) for event in expected for who in "ab"]


@pytest.mark.parametrize(("hook", "epochs"), [("train_begin", 0), ("step_end", 1), ("epoch_end", 1)])
def test_stop_ends_the_training_after_the_current_epoch(lib, hook, epochs):
    ended = []
    stop = On(**{hook: lambda run: setattr(run, "stop", True)}, train_end=ended.append)
    history = fit(small(lib), epochs=5, callbacks=[stop])
    assert (history.steps, len(history.get("loss", [])), len(ended)) == (3 * epochs, epochs, 1)
    assert history.interrupted is False


@pytest.mark.parametrize(("hook", "rows"), [("train_begin", 0), ("epoch_begin", 0), ("step_end", 4), ("epoch_end", 12)])
def test_an_exception_in_a_callback_propagates_and_leaves_what_was_learned(lib, hook, rows):
    net, twin, ended = small(lib), small(lib), []

    def fail(run):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(net, shuffle=False, callbacks=[On(**{hook: fail}, train_end=ended.append)])
    if rows:
        fit(twin, X[:rows], Y[:rows], shuffle=False)
    assert bits(net) == bits(twin)
    assert len(ended) == 1


def test_a_network_that_is_being_trained_is_not_trained_by_another(lib):
    refused = []

    def again(run):
        with pytest.raises(
            RuntimeError, match=r"layer 0, Dense\(4, .*\), is being trained by a fit that has not ended"
        ):
            fit(run.net, X[:, :1])  # refused before anything else is looked at, or a checkpoint restored
        with pytest.raises(RuntimeError, match=r"layer 0, BatchNorm\(8\), is being trained"):  # as a part of another
            fit(xn.Sequential(*net.layers[1:]), np.ones((12, 8)))
        refused.append(run.step)
        fit(copy.deepcopy(run.net))
        fit(small(lib))

    net, twin = small(lib), small(lib)
    fit(net, epochs=2, callbacks=[On(train_begin=again, step_end=again, epoch_end=again)])
    assert refused == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    fit(twin, epochs=2)
    assert bits(net) == bits(twin)
    fit(net, callbacks=[On(train_end=lambda run: fit(run.net))])
    assert bits(net) != bits(twin)
    with pytest.raises(ZeroDivisionError):
        fit(net, callbacks=[On(step_end=lambda run: 1 / 0)])
    fit(net)


def test_a_frozen_layer_may_be_in_two_networks_that_train(lib):
    net = small(lib, xn.Dense(4, 8, trainable=False), xn.Tanh(), xn.Dense(8, 3))
    other = xn.Sequential(net.layers[0], *copy.deepcopy(net).layers[1:])
    twin, before = copy.deepcopy(net), bits(other)
    fit(net, callbacks=[On(epoch_end=lambda run: fit(other))])
    fit(twin)
    assert bits(other) != before
    assert bits(net) == bits(twin)


WORKS = {}  # what is to be done meanwhile


class Meanwhile(xn.Dense):
    """A Dense in the middle of whose work another thread gets its turn."""

    def interrupted(self, name):
        if work := WORKS.pop(name, None):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(0.1 if name == "assigned" else None)  # who waits for the arrays is not waited for
            WORKS["thread"] = thread

    def forward(self, x, training=False):
        self.interrupted("predicted")
        return super().forward(x, training)

    def assign_params(self, params):
        super().assign_params(params)
        self.interrupted("assigned")


def meanwhile(lib):
    return small(lib, xn.Dense(4, 8), Meanwhile(8, 8), xn.BatchNorm(8), xn.Dense(8, 3))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_prediction_is_of_one_step_whatever_another_thread_trains(lib, batch_size):
    net = meanwhile(lib)
    before = lib.to_numpy(net.predict(X, batch_size))
    WORKS["predicted"] = lambda: fit(net)
    seen = lib.to_numpy(net.predict(X, batch_size))
    after = lib.to_numpy(net.predict(X, batch_size))
    assert "predicted" not in WORKS
    assert not np.array_equal(before, after)
    assert any(np.array_equal(seen, whole) for whole in (before, after))


READERS = {
    "params": lambda net: net.params,
    "save": xn.files.format.arrays_of,
    "copy": lambda net: both(copy.copy(net)),
    "deepcopy": lambda net: both(copy.deepcopy(net)),
    "pickle": lambda net: both(pickle.loads(pickle.dumps(net))),
    "clone": lambda net: both(net.clone()),
}


def both(net):
    return net.params | net.state


@pytest.mark.parametrize("reader", READERS)
def test_what_is_read_of_a_network_is_of_one_step_whatever_another_thread_trains(lib, reader):
    net, seen = meanwhile(lib), []
    before = hosts(net, READERS[reader](net))
    WORKS["assigned"] = lambda: seen.append(hosts(net, READERS[reader](net)))
    fit(net)
    WORKS.pop("thread").join()
    after = hosts(net, READERS[reader](net))
    assert before != after
    assert seen[0] in (before, after)


def hosts(net, arrays):
    return {
        k: np.asarray(a if isinstance(a, np.ndarray) else net.backend.to_numpy(a)).tolist() for k, a in arrays.items()
    }


class Claims(set):
    """`training.TRAINED` under watch: whether the look at it and the entry in it are under one lock."""

    looked = False

    def __contains__(self, layer):
        self.looked = xn.training.guards.CLAIMING.locked()
        return super().__contains__(layer)

    def update(self, layers):
        assert self.looked
        assert xn.training.guards.CLAIMING.locked()
        super().update(layers)


def test_of_two_threads_that_begin_to_train_a_network_one_is_refused(lib, monkeypatch):
    """The second passes the first look before the other begins, and reads the parameters only when it may train."""
    net, twin, usual = small(lib), small(lib), xn.training.loop.training_step
    weights_for, refused = xn.training.inputs.weights_for, []
    monkeypatch.setattr(xn.training.guards, "TRAINED", Claims())

    def begin_another(*given):
        monkeypatch.setattr(xn.training.inputs, "weights_for", weights_for)
        fit(net, callbacks=[On(train_begin=lambda run: refused.append(claimed_by_another()))])
        return weights_for(*given)

    def claimed_by_another():
        with pytest.raises(RuntimeError, match="is being trained"), xn.training.guards.claimed(net):
            pass
        return True

    def step(*given):
        assert xn.training.guards.TRAINED
        return usual(*given)

    monkeypatch.setattr(xn.training.inputs, "weights_for", begin_another)
    monkeypatch.setattr(xn.training.loop, "training_step", step)
    fit(net)
    fit(twin)
    fit(twin)
    assert refused == [True]
    assert bits(net) == bits(twin)  # the second has gone on from the other's work
    assert not xn.training.guards.TRAINED


@pytest.mark.parametrize("gap", ["training_step", "Run", "signals_stop"])
def test_a_network_whose_training_did_not_begin_can_be_trained(lib, monkeypatch, gap):
    net = small(lib)
    with monkeypatch.context() as patched:
        patched.setattr(xn.training.loop, gap, unittest.mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(net)
    fit(net)
    assert not xn.training.guards.TRAINED


def test_every_callback_comes_to_its_end_whatever_another_raises(lib):
    ended = []

    def end(name):
        def note(run):
            ended.append(name)
            raise RuntimeError(name)

        return note

    callbacks = [
        On(train_end=end("first")),
        On(train_end=end("second")),
        On(train_end=lambda run: ended.append("third")),
    ]
    with pytest.raises(RuntimeError):
        fit(small(lib), callbacks=callbacks)
    assert ended == ["first", "second", "third"]


def test_a_callback_that_never_began_has_no_end(lib):
    ended = []

    def fail(run):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(small(lib), callbacks=[On(train_begin=fail), On(train_end=ended.append)])
    assert ended == []


def test_progress_that_cannot_begin_says_why(lib, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="tqdm"):
        fit(small(lib), progress=True)


def test_a_run_that_diverged_has_no_slots_to_give(lib):
    seen = []

    def look(run):
        with pytest.raises(RuntimeError, match=r"run\.slots: the step that was not finite has moved"):
            run.slots  # noqa: B018
        seen.append(run)

    with pytest.raises(xn.DivergenceError):
        fit(
            small(lib),
            x=X * 1e200,
            loss=xn.MeanSquaredError(),
            y=np.full((12, 3), 1e200),
            callbacks=[On(train_end=look)],
        )
    assert len(seen) == 1


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self):
        return True


def test_the_progress_bar_shows_epoch_loss_and_metrics(lib, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    history = fit(small(lib), epochs=2, validation_data=(X, Y), progress=True)
    shown = sys.stderr.getvalue()
    assert "epoch 2/2" in shown
    assert "6/6" in shown
    for name in ("loss", "val_loss", "val_accuracy"):
        assert f"{name}={history[name][-1]:.4f}" in shown
    sys.stderr.truncate(0)
    fit(small(lib), epochs=2)
    assert sys.stderr.getvalue() == ""
    assert capsys.readouterr() == ("", "")


# --- a network as a thing ---------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
def test_the_summary_counts_the_tutorials_network():
    net = tutorial_network()
    net.layers[0].trainable = False
    lines = net.summary().splitlines()
    assert lines[0].split() == ["layer", "output", "shape", "parameters"]
    shapes = [(32, 2080), (32, 64), (32, 0), (16, 528), (16, 32), (16, 0), (10, 170), (10, 20)]
    for i, (line, layer, (width, count)) in enumerate(zip(lines[2:10], net.layers, shapes, strict=True)):
        frozen = r" \(frozen\)" if i == 0 else ""
        assert re.fullmatch(rf" *{i} +{re.escape(repr(layer))} +\(N, {width}\) +{count:,}{frozen}", line)
    assert lines[-1].strip() == "2,894 parameters, 2,080 of them frozen"
    assert tutorial_network().summary().endswith(" 2,894 parameters")
    assert "2,894 parameters, 2,080 of them frozen, not initialized" in net._repr_html_()
    assert len({len(line) for line in lines}) == 1
    assert net.parameter_count == 2894
    assert net.initialize("numpy").parameter_count == sum(a.size for a in net.params.values()) == 2894


@pytest.mark.numpy_only
def test_a_network_that_begins_with_one_of_activations_knows_its_inputs():
    net = xn.Sequential(xn.Sequential(xn.Tanh(), xn.Dropout(0.1)), xn.Dense(4, 3)).initialize("numpy")
    assert net.input_shape == (4,)
    assert "(N, 3)" in net.summary()
    with pytest.raises(ValueError, match=r"predict: x has shape \(4,\), expected \(n, 4\); for a single row give x"):
        net.predict(X[0])


def test_moving_a_network_there_and_back_keeps_every_bit(lib):
    net = small(lib, dtype="float32")
    fit(net)
    before, expected = bits(net), lib.to_numpy(net.predict(X))
    assert net.to("numpy", dtype="float64") is net
    assert (net.backend.name, net.dtype, net.predict(X).dtype) == ("numpy", "float64", np.float64)
    np.testing.assert_allclose(net.predict(X), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    fit(copy.deepcopy(net))
    net.to(lib.backend, dtype="float32")
    assert bits(net) == before
    np.testing.assert_array_equal(lib.to_numpy(net.predict(X)), expected)


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_a_copied_or_pickled_network_predicts_trains_and_stands_alone(lib, twin_of):
    net = small(lib)
    fit(net)
    twin, before = twin_of(net), bits(net)
    np.testing.assert_array_equal(lib.to_numpy(twin.predict(X)), lib.to_numpy(net.predict(X)))
    history = fit(twin, epochs=2)
    assert bits(net) == before != bits(twin)
    assert fit(net, epochs=2) == history  # the order of rows and the masks go on alike
    assert bits(net) == bits(twin)


def test_layers_that_have_their_arrays_are_a_network_at_once(lib):
    net = small(lib, dtype="float32")
    body = xn.Sequential(*net.layers[:-1])
    hidden = body.predict(X)
    lib.agrees(net.layers[-1].forward(hidden)[0], lib.to_numpy(net.predict(X)))
    assert (body.backend.name, body.dtype) == (lib.name, "float32")
    assert "float32 on" in body._repr_html_()
    head = small(lib, xn.Dense(8, 2), dtype="float32")
    other = xn.Sequential(body, *head.layers)
    before = bits(net)
    fit(other, y=Y % 2)
    assert bits(net, "4.weight", "4.bias") == {name: before[name] for name in ("4.weight", "4.bias")}
    assert bits(net) != before  # the body is the same one
    assert [float(n) for n in lib.to_numpy(body.predict(X))[0]] != [float(n) for n in lib.to_numpy(hidden)[0]]


@pytest.mark.numpy_only
def test_layers_of_which_one_has_no_arrays_or_others_are_no_network_yet():
    net = xn.Sequential(xn.Dense(4, 8), xn.Tanh()).initialize()
    head = xn.Sequential(xn.Dense(8, 3)).initialize(dtype="float64")
    for layers, message in [
        ((*net.layers, xn.Dense(8, 3)), r"^layer 2, Dense\(8, 3\), has no parameters yet: net\.initialize\(\) draws"),
        ((*net.layers, *head.layers), r"not all on one backend and of one dtype: move those that differ"),
        ((xn.Tanh(),), r"call net\.initialize"),
        ((), r"call net\.initialize"),
    ]:
        made = xn.Sequential(*layers)
        assert made.dtype == "float32"
        assert "not initialized" in made._repr_html_()
        with pytest.raises(RuntimeError, match=message):
            made.predict(X)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_new_head_is_drawn_and_the_trained_trunk_keeps_its_bits(lib, dtype):
    trunk = small(lib, xn.Dense(4, 8), xn.BatchNorm(8), xn.Dropout(0.1), dtype=dtype)
    fit(trunk, y=np.ones((12, 8)), loss=xn.MeanSquaredError())
    before = bits(trunk)
    net = xn.Sequential(*trunk.layers, xn.Sequential(xn.Tanh(), xn.Dense(8, 3)))
    with pytest.raises(RuntimeError, match=r"net\.initialize\(\) draws what is missing and keeps the others"):
        net.predict(X)
    assert net.initialize() is net
    assert (net.predict(X).shape, net.backend.name, net.dtype) == ((len(X), 3), lib.name, dtype)
    assert bits(trunk) == before
    assert all(a is net.params[name] for name, a in trunk.params.items())
    seed = xn.Sequential(xn.Dense(4, 8), xn.BatchNorm(8), xn.Dropout(0.1), xn.Tanh(), xn.Dense(8, 3))
    expected = seed.initialize(lib.backend, dtype).params["4.weight"]
    np.testing.assert_array_equal(lib.to_numpy(net.params["3.1.weight"]), lib.to_numpy(expected))  # one seed, one head
    fit(net)
    assert bits(trunk) != before


@pytest.mark.parametrize(
    "asked",
    [
        {"backend": "array_api_strict", "device": "device1"},
        {"device": "device1"},
        {"backend": xn.get_backend("array_api_strict", "device1")},
        {"dtype": "float32"},
        {"dtype": np.float32},
    ],
)
@pytest.mark.numpy_only
def test_a_new_head_is_not_drawn_elsewhere_than_the_trunk(asked):
    backend = "array_api_strict" if "dtype" not in asked else "numpy"
    trunk = xn.Sequential(xn.Dense(4, 8)).initialize(backend, "float64")
    net = xn.Sequential(*trunk.layers, xn.Dense(8, 3))
    with pytest.raises(ValueError, match=r"initialize: layers that have parameters have them .* net\.to\("):
        net.initialize(**asked)
    assert not net.layers[1].params
    net.initialize(backend, dtype=np.float64)
    assert net.backend.device == trunk.backend.device or backend == "numpy"


TOUCHED = {
    "fit": lambda net, path: fit(net),
    "set_params": lambda net, path: net.set_params(net.params),
    "set_state": lambda net, path: net.set_state(net.state),
    "a layer's array": lambda net, path: net.layers[0].params.update(bias=net.params["0.bias"] + 1),
    "a layer's dict": lambda net, path: setattr(net.layers[1], "params", dict(net.layers[1].params)),
    "a frozen layer": lambda net, path: (setattr(net.layers[0], "trainable", False), fit(net)),
    "load_torch": lambda net, path: (xn.files.save_torch(net, path), xn.files.load_torch(net, path)),
    "fit and to": lambda net, path: (fit(net), net.to(net.backend, dtype="float32")),
}
COPIED = {
    "itself": lambda net: net,
    "clone": lambda net: net.clone(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "of its layers": lambda net: xn.Sequential(*net.layers),
}


@pytest.mark.parametrize("copied", COPIED)
@pytest.mark.parametrize("touched", [*TOUCHED, "load"])
def test_what_was_trained_loaded_or_set_is_drawn_over_with_fresh_alone(lib, tmp_path, touched, copied):
    net, path = small(lib), tmp_path / "net.safetensors"
    if touched == "load":
        net.save(path)
        net = xn.load(path, lib.backend)
    else:
        TOUCHED[touched](net, path)
    net = COPIED[copied](net)
    before = bits(net)
    with pytest.raises(RuntimeError, match=r"net\.initialize\(fresh=True\) draws all anew"):
        net.initialize(lib.backend, "float64", seed=5)
    assert bits(net) == before
    net.clone().initialize(fresh=True)
    assert bits(net) == before
    net.initialize(lib.backend, "float64", seed=5, fresh=True)
    assert bits(net) == bits(small(lib, seed=5))


@pytest.mark.parametrize("copied", COPIED)
def test_what_is_as_drawn_is_drawn_again(lib, copied):
    net = COPIED[copied](small(lib))
    net.predict(X)
    net.evaluate(X, Y, CROSS)
    net.to("numpy", dtype="float32")
    for seed in (1, 2):
        assert bits(net.initialize(lib.backend, "float64", seed=seed)) == bits(small(lib, seed=seed))
    with pytest.raises(ValueError, match="fresh must be True or False"):
        net.initialize(fresh="yes")


# --- the default backend ----------------------------------------------------------------------------------------------


@pytest.fixture
def place(lib):
    """Name and device of the backend under test, which is not the default."""
    device = lib.device or ("cpu" if lib.name == "numpy" else None)
    yield lib.name, device
    xn.use_backend("numpy")


def default():
    return xn.Sequential(xn.Dense(2, 2)).initialize().backend


def test_use_backend_holds_within_its_block_or_for_the_process(place):
    wanted, numpy = xn.get_backend(*place), xn.get_backend("numpy")
    with xn.use_backend(*place) as entered:
        assert default() is entered is wanted is not numpy
        with xn.use_backend("numpy"):
            assert default() is numpy
        assert default() is wanted
    assert default() is numpy
    with contextlib.suppress(ZeroDivisionError), xn.use_backend(*place):
        _ = 1 / 0
    assert default() is numpy
    block = xn.use_backend("numpy")
    xn.use_backend(*place)
    with block:
        assert default() is numpy
    assert default() is wanted  # as was chosen for the process since


def test_a_block_of_use_backend_is_its_own_threads(place):
    """Blocks that end in the order they began in leave the default as it was."""
    wanted, numpy = xn.get_backend(*place), xn.get_backend("numpy")

    def other():
        before = default()
        with xn.use_backend("numpy"):
            begun.set()
            assert ended.wait(600)
            return before, default()

    begun, ended = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with xn.use_backend(*place):
            seen = pool.submit(other)
            assert begun.wait(600)
            assert default() is wanted
        ended.set()
        assert seen.result() == (numpy, numpy)
    assert default() is numpy


def test_blocks_of_threads_that_interleave_leave_the_process_its_default(place):
    numpy = xn.get_backend("numpy")
    first, second = xn.use_backend(*place), xn.use_backend("array_api_strict")  # as two threads may come upon them
    with first:
        with second:
            assert default().name == "array_api_strict"
        assert default() is xn.get_backend(*place)
    assert default() is numpy
    for _ in range(3):
        xn.use_backend(*place)
    assert default() is xn.get_backend(*place)
    assert len(xn.backends.choice._process) <= 2  # choices that are past are let go


def test_xpnet_backend_sets_the_default_at_import(lib):
    code = "import xpnet as xn; print(xn.Sequential(xn.Dense(2, 2)).initialize().backend.name)"
    assert python(code, XPNET_BACKEND=lib.name) == lib.name


@pytest.mark.numpy_only
def test_an_xpnet_backend_that_is_none_is_refused_by_name_and_an_empty_one_is_unset():
    code = "import xpnet as xn\ntry: print(xn.Sequential().initialize().backend.name)\nexcept ValueError as e: print(e)"
    assert "no backend 'abacus'" in python(code, XPNET_BACKEND="abacus")
    assert python(code, XPNET_BACKEND="") == "numpy"


@pytest.mark.numpy_only
@pytest.mark.parametrize("version", ["1.26.4", "2.0.2", "2.1.0", "2.10.0.dev0+git"])
def test_a_numpy_that_is_too_old_is_told_at_import(version):
    code = "import sys, numpy; numpy.__version__ = sys.argv[1]\ntry: import xpnet\nexcept ImportError as e: print(e)"
    told = f"xpnet needs NumPy 2.1 or later, found {version}: pip install -U numpy"
    assert python(code, version) == (told if version < "2.1" else "")


@pytest.mark.numpy_only
def test_importing_xpnet_imports_no_backend_and_no_extra():
    extras = (
        "cupy",
        "torch",
        "jax",
        "array_api_strict",
        "sklearn",
        "matplotlib",
        "scipy",
        "tqdm",
        "safetensors",
        "pandas",
    )
    assert python("import sys, xpnet; print(*sorted(set(sys.argv) & set(sys.modules)))", *extras) == ""
    assert python("import sys, xpnet; print('numpy' in sys.modules)") == "True"


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
def test_the_digits_are_scikit_learns_with_pixels_from_0_to_1():
    from sklearn.datasets import load_digits

    x, y, theirs = *xn.data.load_digits(), load_digits()
    assert (x.min(), x.max(), x.dtype, y.dtype) == (0.0, 1.0, np.float64, np.int64)
    np.testing.assert_array_equal(16.0 * x, theirs.data)
    np.testing.assert_array_equal(y, theirs.target)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("test_size", "count"), [(0.25, 3), (0.5, 6), (1, 1), (5, 5), (np.int64(5), 5), (np.float64(0.5), 6)]
)
def test_a_split_is_every_row_once_with_its_target(test_size, count):
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12)
    split = xn.data.train_test_split(x, y, test_size)
    x_train, x_test, y_train, y_test = split
    assert (len(x_train), len(x_test)) == (12 - count, count)
    assert sorted([*y_train, *y_test]) == list(range(12))
    assert [*y_train, *y_test] != list(range(12))
    np.testing.assert_array_equal(np.concatenate([x_train, x_test]), x[np.concatenate([y_train, y_test])])
    for a, b in zip(split, xn.data.train_test_split(x, y, test_size), strict=True):
        np.testing.assert_array_equal(a, b)
    assert list(xn.data.train_test_split(x, y, test_size, seed=1)[3]) != list(y_test)
    assert list(xn.data.train_test_split(x, y, test_size, seed=None)[3]) == list(range(12 - count, 12))


@pytest.mark.numpy_only
def test_a_split_holds_out_a_quarter_by_seed_0_unless_told_otherwise():
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12)
    for a, b in zip(xn.data.train_test_split(x, y), xn.data.train_test_split(x, y, 0.25, seed=0), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.numpy_only
@pytest.mark.parametrize(("rows", "size"), [(12, 0), (12, 12), (12, 1.0), (12, 0.01), (12, -3), (1, 0.5), (11, 0.5)])
def test_a_split_that_cannot_be_made_is_refused(rows, size):
    with pytest.raises(ValueError, match=r"train_test_split: .*(rows|empty)"):
        xn.data.train_test_split(np.zeros((12, 2))[:rows], np.zeros(12 if rows > 1 else 1), size)


@pytest.mark.numpy_only
@pytest.mark.parametrize("size", ["0.2", None, True, np.nan, np.ones(12)], ids=repr)
def test_a_test_size_that_is_no_number_is_refused_by_name(size):
    with pytest.raises(ValueError, match=r"^train_test_split: test_size must be a finite number, got "):
        xn.data.train_test_split(np.zeros((12, 2)), np.zeros(12), size)


@pytest.mark.numpy_only
def test_a_quarter_of_the_rows_is_held_out_unless_said_otherwise():
    x_train, x_test, y_train, y_test = xn.data.train_test_split(np.zeros((40, 2)), np.zeros(40))
    assert (len(x_train), len(x_test), len(y_train), len(y_test)) == (30, 10, 30, 10)


@pytest.mark.numpy_only
def test_a_split_of_frames_is_frames_with_their_own_index_and_of_masked_arrays_masked():
    pandas = pytest.importorskip("pandas")
    x, y = np.arange(24.0).reshape(12, 2), np.arange(12)
    expected = xn.data.train_test_split(x, y)
    frame, series = pandas.DataFrame(x, list("abcdefghijkl"), ["u", "v"]), pandas.Series(y, name="y", dtype="Int64")
    split = xn.data.train_test_split(frame, series)
    assert [type(part) for part in split] == [pandas.DataFrame] * 2 + [pandas.Series] * 2
    for part, plain in zip(split, expected, strict=True):
        np.testing.assert_array_equal(part, plain)
    assert list(split[0].columns) == ["u", "v"]
    assert list(split[0].index) == ["abcdefghijkl"[row] for row in expected[2]]
    masked = xn.data.train_test_split(np.ma.masked_equal(x, 6.0), np.ma.masked_equal(y, 7))
    assert sum(np.ma.getmaskarray(part).sum() for part in masked) == 2
    for part, plain in zip(masked, expected, strict=True):
        np.testing.assert_array_equal(part.data, plain)
    lists = xn.data.train_test_split(x.tolist(), y.tolist())
    for part, plain in zip(lists, expected, strict=True):
        assert type(part) is np.ndarray
        np.testing.assert_array_equal(part, plain)


@pytest.mark.numpy_only
@pytest.mark.parametrize("seed", [0, 3, None])
@pytest.mark.parametrize("test_size", [0.25, 10, 13])
def test_a_stratified_split_holds_each_label_in_proportion(seed, test_size):
    labels = np.repeat(["a", "b", "c"], [4, 12, 24])[np.random.default_rng(1).permutation(40)]
    rows, count = np.arange(40), 10 if test_size == 0.25 else test_size
    train, test, y_train, y_test = xn.data.train_test_split(rows, labels, test_size, seed, stratify=labels)
    assert sorted([*train, *test]) == list(rows)
    np.testing.assert_array_equal(labels[test], y_test)
    np.testing.assert_array_equal(labels[train], y_train)
    shares = {10: [1, 3, 6], 13: [1, 4, 8]}[count]  # 1, 3, 6; and of 1.3, 3.9, 7.8
    assert [list(y_test).count(name) for name in "abc"] == shares
    again = xn.data.train_test_split(rows, labels, test_size, seed, stratify=list(labels))
    np.testing.assert_array_equal(again[1], test)
    if seed is None:  # the last of each label, as they stand
        last = [row for name, share in zip("abc", shares, strict=True) for row in rows[labels == name][-share:]]
        assert list(test) == sorted(last)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("labels", "size", "message"),
    [
        (["a", *"bbbbbbbbbbb"], 3, r"stratify has 2 labels, '?.*a'?\)? with 1 row\(s\), for 9 and 3 rows"),
        (list("aabbccddeeff"), 3, r"stratify has 6 labels, .* each needs two, and each side a row for every label"),
        (list("aabb"), 3, r"stratify has shape \(4,\), expected a label a row, \(12,\)"),
        (np.eye(12), 3, r"stratify has shape \(12, 12\)"),
    ],
)
def test_labels_that_cannot_be_split_in_proportion_are_refused(labels, size, message):
    with pytest.raises(ValueError, match=f"^train_test_split: {message}"):
        xn.data.train_test_split(np.zeros((12, 2)), np.zeros(12), size, stratify=labels)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (None, "is None, expected an array"),
        (5.0, "has no rows: it is a float"),
        ("abc", "has no rows: it is a str"),
        ([[1, 2], [3, 4]], "has 2 rows and y 12; they must match"),
    ],
)
def test_what_has_no_rows_to_split_is_refused(rows, words):
    with pytest.raises((ValueError, TypeError), match=f"^train_test_split: x {words}"):
        xn.data.train_test_split(rows, np.zeros(12))


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("rows", "size", "name"),
    [(10, -3, "batch_size"), (10, 0, "batch_size"), (10, 2.5, "batch_size"), (10, None, "batch_size"),
     (-1, 3, "rows"), (2.5, 3, "rows"), ("10", 3, "rows")],
)  # fmt: skip
def test_minibatches_that_cannot_be_are_refused(rows, size, name):
    with pytest.raises(ValueError, match=rf"^minibatches: {name} must be a whole number of at least [01], got"):
        xn.data.minibatches(rows, size)
    assert xn.data.minibatches(0, 3) == []


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("rows", "size", "lengths"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 10, [3]), (2, 1, [1, 1])]
)
def test_minibatches_are_all_rows_in_order(rows, size, lengths):
    parts = [list(range(rows))[s] for s in xn.data.minibatches(rows, size)]
    assert [len(part) for part in parts] == lengths
    assert [row for part in parts for row in part] == list(range(rows))


# --- where a fault is placed ------------------------------------------------------------------------------------------


class SteepBack(xn.Layer):
    """The identity, whose gradient is infinite."""

    def forward(self, x, training=False):
        return x, None

    def backward(self, dy, cache):
        return dy * math.inf, {}


def test_a_gradient_that_is_not_finite_is_placed_at_its_layer(lib):
    net = small(lib, xn.Dense(4, 5), SteepBack(), xn.Dense(5, 3))
    before = bits(net)
    with pytest.raises(xn.DivergenceError, match=r"in epoch 1, batch 1: the gradient at layer 1, SteepBack\(\)\."):
        fit(net)
    assert bits(net) == before


def test_an_error_amid_a_diverging_epoch_leaves_finite_parameters(lib):
    net = small(lib, xn.Dense(4, 5), xn.Dense(5, 3))

    def fail(run):
        if run.step == 3:  # by then there is nothing finite, and where the device is ahead the check is yet to come
            raise ZeroDivisionError

    with pytest.raises(xn.DivergenceError if lib.backend.immediate else ZeroDivisionError):
        fit(net, loss=xn.MeanSquaredError(), y=T, optimizer=xn.SGD(1e300), batch_size=2, callbacks=[On(step_end=fail)])
    assert all_finite(net)


@pytest.mark.numpy_only
def test_a_network_is_trainable_while_any_of_its_layers_is():
    net = xn.Sequential(xn.Dense(4, 4), xn.Sequential(xn.Dense(4, 3)))
    net.trainable = False
    assert not any(layer.trainable for _, layer in net.leaves())
    assert not net.trainable
    net.layers[1].trainable = True
    assert net.trainable


def test_an_update_that_overflows_is_told_from_a_gradient_that_does(lib):
    net = small(lib, xn.Dense(4, 3))
    before = bits(net)
    with pytest.raises(xn.DivergenceError, match="in epoch 1, batch 1: the optimizer's update"):
        fit(net, optimizer=xn.SGD(1e308), x=100 * X)
    assert bits(net) == before


# --- layers of one's own that are not quite ---------------------------------------------------------------------------


class Linear(xn.Layer):
    """y = x W, whose gradient `twist` spoils."""

    def __init__(self, twist):
        self.twist = twist

    def initial_params(self, rng):
        return {"inner.w": rng.normal(size=(4, 4))}

    def forward(self, x, training=False):
        return x @ self.params["inner.w"], x

    def backward(self, dy, cache):
        return dy @ self.params["inner.w"].T, self.twist(xn.backends.namespace(dy), cache.T @ dy)


@pytest.mark.parametrize(
    ("twist", "message"),
    [
        (lambda xp, g: {}, r"backward gave no gradient for 0\.inner\.w; it gave none"),
        (
            lambda xp, g: {"inner.w": g[:, :1]},
            r"gave 0\.inner\.w a gradient of shape \(4, 1\) and .*, expected \(4, 4\)",
        ),
        (lambda xp, g: {"inner.w": xp.astype(g, xp.float32)}, r"float32, expected \(4, 4\) and .*float64"),
    ],
    ids=["missing", "shape", "dtype"],
)
def test_gradients_that_are_not_the_parameters_do_not_train(lib, twist, message):
    net = small(lib, Linear(twist))
    before = bits(net)
    with pytest.raises(ValueError, match=message):
        fit(net, y=X, loss=xn.MeanSquaredError())
    assert bits(net) == before


class Counts(Scale):
    """A layer with everything, of which `gives` has something else than it should."""

    def __init__(self, features, gives=None):
        super().__init__(features)
        self.gives = gives or {}

    def given(self, method, right):
        return self.gives[method](right) if method in self.gives else right

    def initial_params(self, rng):
        return self.given("initial_params", super().initial_params(rng))

    def initial_state(self, rng):
        return self.given("initial_state", {"n": np.zeros(2)})

    def forward(self, x, training=False):
        return self.given("forward", super().forward(x, training))

    def backward(self, dy, cache):
        return self.given("backward", super().backward(dy, cache))

    def next_state(self, cache):
        return self.given("next_state", {"n": self.state["n"] + 1.0})


def in_float32(a):
    xp = xn.backends.namespace(a)
    return xp.astype(a, xp.float32)


NOT_QUITE = {
    "y: list": (
        "forward",
        lambda pair: ([1.0], pair[1]),
        r"forward gave a list for y, expected the tuple \(y, cache\)",
    ),
    "y: nothing": ("forward", lambda pair: (None, pair[1]), "forward gave None for y"),
    "gradients: list": (
        "backward",
        lambda pair: (pair[0], [*pair[1].values()]),
        r"backward gave a tuple with a list in the second place, expected the tuple \(dx, {name: gradient}\)",
    ),
    "gradients: nothing": ("backward", lambda pair: (pair[0], None), "a tuple with None in the second place"),
    "gradient: number": (
        "backward",
        lambda pair: (pair[0], {"a": 0.0}),
        r"backward gave \d\.a a gradient that is a float, expected \(4,\) and .*float64",
    ),
    "state: nothing": ("next_state", lambda state: None, "next_state gave None, expected {name: array}"),
    "state: empty": ("next_state", lambda state: {}, r"next_state gave no statistic for \d\.n; it gave none"),
    "state: name": ("next_state", lambda state: {"m": state["n"]}, r"no statistic for \d\.n; it gave \d\.m"),
    "state: list": ("next_state", lambda state: {"n": [1.0, 1.0]}, r"gave \d\.n a statistic that is a list"),
    "state: shape": (
        "next_state",
        lambda state: {"n": state["n"][:1]},
        r"next_state gave \d\.n a statistic of shape \(1,\) and .*float64, expected \(2,\) and .*float64",
    ),
    "state: dtype": (
        "next_state",
        lambda state: {"n": in_float32(state["n"])},
        r"next_state gave \d\.n a statistic of shape \(2,\) and .*float32, expected \(2,\) and .*float64",
    ),
}


@pytest.mark.parametrize("at", [0, 1], ids=["first", "amid"])
@pytest.mark.parametrize("mistake", NOT_QUITE)
def test_a_layer_that_gives_something_else_than_it_should_is_told(lib, mistake, at):
    method, spoil, message = NOT_QUITE[mistake]
    layer = Counts(4)
    net = small(lib, *[xn.Dense(4, 4)] * at, layer, xn.Dense(4, 3))
    layer.gives = {method: spoil}
    before = bits(net)
    with pytest.raises((TypeError, ValueError), match=message):
        fit(net, y=T, loss=SQUARED)
    assert bits(net) == before


@pytest.mark.parametrize("method", ["initial_params", "initial_state"])
@pytest.mark.parametrize("given", [None, np.ones(4)], ids=["nothing", "array"])
def test_initial_arrays_without_names_are_refused(lib, method, given):
    net = xn.Sequential(xn.Dense(4, 4), Counts(4, {method: lambda right: given}))
    with pytest.raises(TypeError, match=rf"Counts\(4.*\): {method} gave [\w ]+, expected {{name: array}}"):
        net.initialize(lib.backend)


class Own(xn.Loss):
    """A loss whose `terms` is any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def terms(self, prediction, target):
        return self.function(prediction, target)


class Alone:
    """A loss with nothing but its `value_and_grad`."""

    def __init__(self, function):
        self.value_and_grad = function

    def __repr__(self):
        return "Alone()"


class Rule(xn.Optimizer):
    def rule(self, w, g, slots, rate):
        return w - rate * g


def squares(prediction, target):
    return (prediction - target) ** 2


def total(a):
    return xn.backends.namespace(a).sum(a)


OWN_PARTS = {
    "terms: one": (
        {"loss": Own(squares)},
        TypeError,
        r"Own.*: terms gave [\w ]+, expected the tuple \(terms, gradient",
    ),
    "terms: added up": (
        {"loss": Own(lambda p, t: (total(squares(p, t)), p - t))},
        ValueError,
        r"Own.*: terms gave a loss of shape \(\) for a prediction of shape \(4, 3\); expected that of each element or",
    ),
    "alone: one": (
        {"loss": Alone(lambda p, t: total(squares(p, t)))},
        TypeError,
        r"Alone\(\): value_and_grad gave [\w ]+, expected the tuple \(value, gradient\)",
    ),
    "alone: elements": (
        {"loss": Alone(lambda p, t: (squares(p, t), 2 * (p - t)))},
        ValueError,
        r"Alone\(\): value_and_grad gave a value of shape \(4, 3\), expected one number",
    ),
    "rule: one": (
        {"optimizer": Rule(0.1)},
        TypeError,
        r"Rule\(0.1\): rule gave [\w ]+, expected the tuple \(w, {name: array}\)",
    ),
}


@pytest.mark.parametrize("part", OWN_PARTS)
def test_a_loss_or_an_optimizer_that_gives_too_little_is_told_what_is_missing(lib, part):
    options, error, message = OWN_PARTS[part]
    net = small(lib, xn.Dense(4, 3))
    before = bits(net)
    with pytest.raises(error, match=message):
        fit(net, y=T, **{"loss": SQUARED} | options)
    assert bits(net) == before


def test_a_parameters_own_name_may_have_dots(lib):
    net = small(lib, Linear(lambda xp, g: {"inner.w": g}))
    assert net.params.keys() == {"0.inner.w"}
    before = bits(net)
    fit(net, y=X, loss=xn.MeanSquaredError())
    assert bits(net) != before


class Twice(xn.Sequential):
    """A Sequential of one's own: y = 2 inner(x)."""

    def forward(self, x, training=False):
        y, cache = super().forward(x, training)
        return 2.0 * y, cache

    def backward(self, dy, cache):
        return super().backward(2.0 * dy, cache)


class Forest(Scale):
    """A layer whose settings have the names of what a Sequential has."""

    def __init__(self, features, leaves=2, parts=3, layers=4, is_plain=True):
        super().__init__(features)
        self.leaves, self.parts, self.layers, self.is_plain = leaves, parts, layers, is_plain


def test_a_layer_may_call_its_settings_as_it_likes(lib):
    net, twin = (small(lib, xn.Dense(4, 3), layer(3), xn.Tanh()) for layer in (Forest, Scale))
    assert fit(net, loss=xn.MeanSquaredError(), y=T) == fit(twin, loss=xn.MeanSquaredError(), y=T)
    assert bits(net) == bits(twin)


def test_a_sequential_of_ones_own_trains_by_its_own_backward(lib, tmp_path):
    net = small(lib, Twice(xn.Dense(4, 3)))
    plain = xn.Sequential(Twice(xn.Dense(4, 3)), xn.LeakyReLU(1.0)).initialize(
        lib.backend, "float64"
    )  # not the lowest alone
    _, grads = net.value_and_grad(X, T, xn.MeanSquaredError())
    cache = net.layers[0].forward(lib.asarray(X), True)[1]
    dy = xn.MeanSquaredError().value_and_grad(net(X), T)[1]
    for name, gradient in plain.layers[0].backward(dy, plain.layers[0].forward(lib.asarray(X), True)[1])[1].items():
        lib.agrees(grads[f"0.{name}"], lib.to_numpy(gradient))
    assert cache[0] is net.layers[0]
    lib.agrees(net(X), 2.0 * lib.to_numpy(net.layers[0].layers[0].forward(lib.asarray(X))[0]))
    for exchange in (xn.files.save_torch, xn.files.load_torch):
        with pytest.raises(TypeError, match=r"layer 0, Twice\(.*\), has a forward of its own"):
            exchange(net, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []
    net.save(tmp_path / "net.safetensors")
    lib.agrees(xn.load(tmp_path / "net.safetensors", lib.backend, custom_layers=[Twice])(X), lib.to_numpy(net(X)))


@pytest.mark.numpy_only
def test_the_summary_names_a_sequential_of_ones_own():
    block = Twice(xn.Dense(4, 3, trainable=False), xn.Sequential(xn.ReLU()))
    rows = [re.split("  +", line.strip()) for line in xn.Sequential(block, xn.Dense(3, 2)).summary().splitlines()[2:-2]]
    assert rows == [
        ["0", "Twice", "(N, 3)"],
        ["0.0", "Dense(4, 3, trainable=False)", "(N, 3)", "15 (frozen)"],
        ["0.1.0", "ReLU()", "(N, 3)", "0"],
        ["1", "Dense(3, 2)", "(N, 2)", "8"],
    ]
    assert block.summary().splitlines()[2].split() == ["Twice", "(N,", "3)"]
    assert ">Twice</td>" in block._repr_html_()


class OtherHooks(xn.Callback):
    """With a hook of Keras's name."""

    def on_epoch_end(self, epoch, logs=None):
        raise AssertionError


@pytest.mark.parametrize("metric", [lambda p: 0.0, lambda p, t: 1 / 0], ids=["one", "0"])
def test_an_error_in_a_metric_names_it_and_what_it_was_given(lib, metric):
    net = small(lib)
    with pytest.raises((TypeError, ValueError, RuntimeError, ZeroDivisionError)) as caught:  # each library has its own
        net.evaluate(X, Y, CROSS, {"mine": metric})
    assert caught.value.__notes__ == [
        "in the metric 'mine', which evaluate calls with the prediction, of shape (12, 3), and the target as the loss "
        "has it, of shape (12, 3), for one number"
    ]


@pytest.mark.parametrize("shape", [(1,), (12, 3), (0,)], ids=str)
def test_a_metric_that_gives_an_array_is_named(lib, shape):
    with pytest.raises(
        TypeError, match=rf"^evaluate: the metric 'mine' gave an array of shape {re.escape(str(shape))}, "
    ):
        small(lib).evaluate(X, Y, CROSS, {"mine": lambda p, t: lib.xp.zeros(shape)})


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("value", "came"), [(None, "None"), ("0.5", "'0.5'"), ([0.5], r"\[0\.5\]"), (1j, "1j"), ("long" * 50, "a str")]
)
def test_a_metric_that_gives_no_number_is_named(value, came):
    net = xn.Sequential(xn.Dense(4, 3)).initialize()
    with pytest.raises(TypeError, match=f"^evaluate: the metric 'mine' gave {came}, expected one number$"):
        net.evaluate(X, Y, CROSS, {"mine": lambda p, t: value})


@pytest.mark.numpy_only
def test_a_data_frame_for_a_loss_or_a_metric_is_told_by_its_type():
    pandas = pytest.importorskip("pandas")
    frame, net = pandas.DataFrame(X), xn.Sequential(xn.Dense(4, 3)).initialize()
    with pytest.raises(
        TypeError, match=r"^fit: loss must be an object such as xn.SoftmaxCrossEntropy\(\), got a DataFrame$"
    ):
        fit(net, loss=frame)
    for metrics, expected in ((frame, "metrics must be a list such as"), ([frame], "a metric must be a name such as")):
        with pytest.raises(TypeError, match=rf"^evaluate: {expected} .*, got a DataFrame$"):
            net.evaluate(X, Y, CROSS, metrics)


# --- a loss that takes what the network gives -------------------------------------------------------------------------


class Linked(xn.Sigmoid):
    """A sigmoid of one's own, of which nobody knows what it gives."""


@pytest.fixture(params=["immediate", "waited for"])
def home(request, lib, monkeypatch):
    """The backend under test; and as one whose results come later, for which the host does not wait."""
    monkeypatch.setattr(lib.backend, "immediate", lib.backend.immediate and request.param == "immediate")
    return lib


PROBABLE = {
    "categorical": (
        xn.CategoricalCrossEntropy(),
        Y,
        r"Softmax\(\), or take the loss of logits, SoftmaxCrossEntropy\(\)",
    ),
    "binary": (
        xn.BinaryCrossEntropy(),
        T,
        r"Sigmoid\(\), or take the loss of logits, BinaryCrossEntropyWithLogits\(\)",
    ),
}


@pytest.mark.parametrize("name", PROBABLE)
@pytest.mark.parametrize(("batch_size", "epoch", "batch"), [(6, 1, 2), (None, 2, 1), (4, 1, 2)])
def test_a_loss_of_probabilities_refuses_the_first_batch_of_others(home, name, batch_size, epoch, batch):
    """The first step's outputs are all 1/2; the second's are not probabilities any more."""
    loss, y, remedy = PROBABLE[name]
    nets = [small(home, xn.Dense(4, 3)) for _ in range(2)]
    for net in nets:
        net.set_params({"0.weight": np.zeros((4, 3)), "0.bias": np.full(3, 0.5)})
    message = (
        rf"^fit: in epoch {epoch}, batch {batch}, the outputs run from -?\d.* to .*, and .*\(\) takes probabilities"
    )
    options = {"loss": loss, "optimizer": xn.SGD(50.0), "shuffle": False}
    with pytest.raises(ValueError, match=f"{message}.*: end the network in {remedy}$"):
        fit(nets[0], X, y, batch_size=batch_size, epochs=5, **options)
    first = slice(batch_size)
    fit(nets[1], X[first], y[first], batch_size=batch_size, epochs=1, **options)
    assert bits(nets[0]) == bits(nets[1])


@pytest.mark.parametrize("name", PROBABLE)
def test_outputs_that_are_no_probabilities_are_refused_wherever_the_loss_takes_them(lib, name):
    loss, y, remedy = PROBABLE[name]
    net = small(lib, xn.Dense(4, 3))
    before = bits(net)
    for who, call in {
        "evaluate": lambda: net.evaluate(X, y, loss),
        "value_and_grad": lambda: net.value_and_grad(X, y, loss),
        "fit: in epoch 1, batch 1,": lambda: fit(net, X, y, loss),
    }.items():
        with pytest.raises(ValueError, match=rf"^{who}:? the outputs run from .* takes probabilities.* {remedy}$"):
            call()
    assert bits(net) == before


def test_a_layer_of_ones_own_that_gives_probabilities_trains_as_the_known_one(home):
    """The outputs are looked at, and nothing else is different."""
    found = []
    for last in (xn.Sigmoid(), Linked()):
        net = small(home, xn.Dense(4, 3), last)
        history = fit(net, X, T, xn.BinaryCrossEntropy(), epochs=3, validation_data=(X, T))
        found.append([*history["loss"], *history["val_loss"], *home.to_numpy(net.predict(X)).ravel()])
    np.testing.assert_allclose(*found, rtol=1e-10)
    edge = small(home, xn.Dense(4, 3), Linked())
    edge.set_params({"0.weight": np.zeros((4, 3)), "0.bias": np.full(3, 1e4)})  # exactly 1
    fit(edge, X, np.ones((12, 3)), xn.BinaryCrossEntropy())


@pytest.mark.parametrize(("output", "sound"), [(1 + 5e-7, True), (1 + 2e-6, False), (-5e-7, True), (-2e-6, False)])
def test_a_probability_that_was_rounded_beyond_0_or_1_is_one(home, output, sound):
    net = small(home, xn.Dense(4, 3))
    net.set_params({"0.weight": np.zeros((4, 3)), "0.bias": np.full(3, output)})
    for call in (
        lambda: fit(net, X, T, xn.BinaryCrossEntropy(), STILL),
        lambda: net.evaluate(X, T, xn.BinaryCrossEntropy()),
    ):
        with contextlib.nullcontext() if sound else pytest.raises(ValueError, match="takes probabilities"):
            call()


@pytest.mark.numpy_only
def test_outputs_are_looked_at_only_where_nothing_else_tells_that_they_are_probabilities():
    from xpnet.kernels.reference import must_check_range

    dense, binary = xn.Dense(4, 3), xn.BinaryCrossEntropy()
    for last in (xn.Softmax(), xn.Sigmoid(), xn.Sequential(xn.Dense(3, 3), xn.Sequential(xn.Softmax()))):
        assert not must_check_range(xn.Sequential(dense, last), binary)
    for last in (xn.ReLU(), Linked(), Beside(xn.Dense(3, 4), xn.Sigmoid())):
        assert must_check_range(xn.Sequential(dense, last), binary)
        assert not must_check_range(xn.Sequential(dense, last), SQUARED)
    assert must_check_range(xn.Sequential(), binary)
    assert not must_check_range(xn.Sequential(dense), Recorder())


@pytest.mark.parametrize(
    ("last", "loss", "y", "twin"),
    [
        (xn.Softmax(), CROSS, Y, "CategoricalCrossEntropy"),
        (xn.Sequential(xn.Sigmoid()), CROSS, Y, "CategoricalCrossEntropy"),
        (xn.Sigmoid(), xn.BinaryCrossEntropyWithLogits(), T, "BinaryCrossEntropy"),
    ],
)
def test_a_loss_of_logits_on_probabilities_is_warned_of_once(lib, last, loss, y, twin):
    net = small(lib, xn.Dense(4, 3), last)
    for who, call in {
        "fit": lambda: fit(net, X, y, loss, epochs=3, validation_data=(X, y)),
        "evaluate": lambda: net.evaluate(X, y, loss),
    }.items():
        message = (
            rf"^{who}: the network ends in S\w+\(\), and .* takes logits, .*: leave that layer out, or take {twin}\(\)$"
        )
        with pytest.warns(UserWarning, match=message) as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("given", "came"), [(0.2, "a float"), (X, "an ndarray"), ((X, Y, Y), "a tuple of 3"), ([X], "a list of 1")]
)
def test_validation_data_that_is_no_pair_is_told_what_came(given, came):
    net = xn.Sequential(xn.Dense(4, 3)).initialize()
    with pytest.raises(ValueError, match=rf"validation_data must be a pair \(x, y\), got {came}; xn.data.train_test_"):
        fit(net, validation_data=given)


@pytest.mark.numpy_only
def test_of_two_targets_the_one_at_fault_is_told():
    net = xn.Sequential(xn.Dense(4, 3)).initialize()
    with pytest.raises(ValueError, match="class labels run from 1 to 3") as caught:
        fit(net, validation_data=(X, Y % 3 + 1))
    assert caught.value.__notes__ == ["in fit's validation_data"]
    with pytest.raises(ValueError, match="class labels run from 1 to 3") as caught:
        fit(net, y=Y % 3 + 1)
    assert not hasattr(caught.value, "__notes__")


class Beside(xn.Sequential):
    """A Sequential of one's own: its two layers stand side by side, (n, 4) to (n, 8), and its cache is its own."""

    def forward(self, x, training=False):
        (a, first), (b, second) = (layer.forward(x, training) for layer in self.layers)
        return xn.ops.namespace(x).concat([a, b], axis=1), (first, second)

    def backward(self, dy, cache):
        (dx, a), (more, b) = (
            layer.backward(dy[:, 4 * i : 4 * i + 4], own)
            for i, (layer, own) in enumerate(zip(self.layers, cache, strict=True))
        )
        return dx + more, {f"{i}.{name}": g for i, grads in enumerate((a, b)) for name, g in grads.items()}

    def backward_params(self, dy, cache):
        return self.backward(dy, cache)[1]

    def output_shape(self, input_shape):
        return (*input_shape[:-1], 8)


def test_a_sequential_of_ones_own_that_diverges_is_looked_at_by_its_own_forward(lib):
    net = Beside(xn.Dense(4, 4), xn.Dense(4, 4)).initialize(lib.backend)
    problem = {"y": np.ones((12, 8)), "loss": xn.MeanSquaredError()}
    fit(net, **problem)
    before = bits(net)
    with pytest.raises(xn.DivergenceError, match="in epoch 1, batch 1: the loss"):
        fit(net, X * 1e25, **problem)  # finite in float32, its square not
    assert bits(net) == before


def test_a_move_that_fails_moves_nothing(lib):
    class Full(type(lib.backend)):
        def asarray(self, x, dtype=None):
            raise MemoryError("no room on the device")

    net = small(lib, dtype="float32")
    before, backend = bits(net), net.backend
    with pytest.raises(MemoryError):
        net.to(Full(lib.device), dtype="float64")
    assert net.backend is backend
    assert net.dtype == "float32"
    assert bits(net) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"metrics": "accuracy"},
            r'^fit: metrics must be a list such as \["accuracy"\], or a dict .*, got \'accuracy\'',
        ),
        ({"metrics": xn.accuracy}, "metrics must be a list"),
        (
            {"metrics": [["accuracy"]]},
            r"^fit: a metric must be a name such as \"accuracy\", or a .*, got \['accuracy'\]",
        ),
        ({"metrics": {"f1": ["f1"]}}, r"^fit: a metric must be a name"),
        (
            {"metrics": [xn.MeanSquaredError]},
            r"a metric must be a name .* got <class 'xpnet.losses.losses.MeanSquaredError'>",
        ),
        ({"metrics": [xn.MeanSquaredError()]}, r"^fit: a metric needs a name, as in .*, got MeanSquaredError\(\)"),
        ({"metrics": {"a": 5.0}}, r"^fit: a metric must be a name .* got 5\.0"),
        ({"metrics": [lambda p, t: 0.0]}, r'^fit: a metric needs a name, as in metrics={"mine": \.\.\.}, got'),
        ({"metrics": {1: "f1"}}, r"^fit: a metric needs a name, .* got 1"),
        ({"slots": 5}, "slots must be an optimizer's memory by name, such as history.slots, got 5"),
        ({"callbacks": xn.Callback()}, "callbacks must be a list of xn.Callback objects"),
        ({"callbacks": ["progress"]}, "callbacks must be a list of xn.Callback objects"),
        ({"callbacks": [OtherHooks()]}, "OtherHooks has none of a callback's hooks, so nothing of it would be called"),
        ({"callbacks": 5}, "callbacks must be a list of xn.Callback objects"),
    ],
)
def test_options_of_the_wrong_kind_are_found_before_the_first_step(lib, options, message):
    net = small(lib)
    before = bits(net)
    with pytest.raises(TypeError, match=message):
        fit(net, validation_data=(X, Y), **options)
    assert bits(net) == before
    fit(net, callbacks=None)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["accurracy"], r"^fit: no metric 'accurracy' here; there are accuracy, top_k_accuracy, f1, roc_auc, mean_sq"),
        (["f1", xn.f1], r"^fit: two metrics are named 'f1'; give them names"),
        (["top_k"], r"^top_k_accuracy: k must lie between 1 and the 3 outputs, got 5"),
        ([partial(xn.top_k_accuracy, k=2)], "a metric needs a name"),
        ({"loss": "f1"}, r"^fit: a metric cannot be named 'loss'"),
    ],
)
def test_metrics_that_cannot_be_taken_are_found_before_the_first_step(lib, metrics, message):
    net = small(lib)
    before = bits(net)
    with pytest.raises((ValueError, TypeError), match=message):
        fit(net, metrics=metrics, validation_data=(X, Y), callbacks=[On(step_end=lambda run: pytest.fail("a step"))])
    assert bits(net) == before


def test_metrics_of_numbers_for_classes_are_found_before_the_first_step(lib):
    with pytest.raises(ValueError, match=r"^accuracy: a target's entries must lie in \[0, 1\]") as caught:
        fit(small(lib), y=X[:, :3], loss=SQUARED, metrics=["accuracy"], validation_data=(X, 5 * X[:, :3]), epochs=1)
    assert caught.value.__notes__[-1].startswith("in the metric 'accuracy', which fit calls")


YES = (X @ np.array([1.0, -2.0, 0.5, 1.0]) > 0).astype(int)


@pytest.mark.parametrize(
    ("last", "loss", "y"),
    [
        ((xn.Dense(4, 1),), xn.BinaryCrossEntropyWithLogits(), YES),
        ((xn.Dense(4, 1), xn.Sigmoid()), xn.BinaryCrossEntropy(), YES[:, None]),
        ((xn.Dense(4, 1),), xn.MeanSquaredError(), YES),
        ((xn.Dense(4, 3),), CROSS, Y),
        ((xn.Dense(4, 3), xn.Softmax()), xn.CategoricalCrossEntropy(), T),
        ((xn.Dense(4, 3),), xn.BinaryCrossEntropyWithLogits(), T),  # labels, of which each row happens to hold one
        ((xn.Dense(4, 3),), xn.BinaryCrossEntropyWithLogits(), Y),  # classes, each output for itself
    ],
)
def test_metrics_know_the_loss_they_are_taken_with(lib, last, loss, y):
    """By name, as a function, in a dict: as scikit-learn has it of what the outputs say."""
    net = small(lib, *(layer.clone() for layer in last))
    z = lib.to_numpy(net.predict(X))
    of_classes = y is Y or getattr(loss, "matrix", False)
    taken = z.argmax(axis=1) if of_classes else z > {"logits": 0.0}.get(loss.outputs, 0.5)
    truth = Y if of_classes else np.reshape(y, z.shape) == 1
    named = net.evaluate(X, y, loss, ["accuracy", "f1", "roc_auc"])
    assert named["accuracy"] == pytest.approx((taken == truth).mean())
    given = {"accuracy": xn.accuracy, "f1": "f1", "roc_auc": xn.roc_auc}
    assert net.evaluate(X, y, loss, list(given.values())) == net.evaluate(X, y, loss, given) == named
    for name in ("accuracy", "f1", "roc_auc"):
        assert float(getattr(xn, name)(net.predict(X), y, loss=loss)) == named[name]
    default = net.evaluate(X, y, loss)
    assert default == (
        {k: named[k] for k in ("loss", "accuracy")} if loss.threshold is not None else {"loss": named["loss"]}
    )
    history = fit(net, X, y, loss, STILL, metrics=["accuracy", "f1", "roc_auc"], validation_data=(X, y))
    assert {name: history[f"val_{name}"][0] for name in named} == pytest.approx(named)


@pytest.mark.numpy_only
def test_targets_of_any_form_serve_a_metric(lib):
    pandas = pytest.importorskip("pandas")
    net = small(lib)
    expected = net.evaluate(X, Y, CROSS, ["accuracy", "f1"])
    for y in (pandas.Series(Y), Y.tolist(), Y[:, None], pandas.DataFrame(T), Y.astype("uint8")):
        assert net.evaluate(X, y, CROSS, ["accuracy", "f1"]) == expected


@pytest.mark.numpy_only
def test_a_metric_does_not_take_the_losss_name():
    with pytest.raises(ValueError, match=r"^evaluate: a metric cannot be named 'loss'"):
        xn.Sequential(xn.Dense(4, 3)).initialize().evaluate(X, Y, CROSS, metrics={"loss": xn.accuracy})


def test_metrics_without_validation_data_are_refused_rather_than_never_taken(lib):
    net = small(lib)
    before = bits(net)
    with pytest.raises(ValueError, match=r"^fit: metrics are taken on validation_data alone, and there is none"):
        fit(net, metrics={"accuracy": xn.accuracy})
    assert bits(net) == before
    fit(net, metrics={})


@pytest.mark.numpy_only
def test_repr_never_fails_and_knows_arguments_by_name_only():
    class Odd(Linear):
        def __init__(self, scale, *, n, start=1.0):
            self.scale, self.n, self.other = scale, n, start

    assert repr(Odd(np.ones(2), n=3)) == "Odd(array([1., 1.]), 3, start='?')"
    assert "start='?'" in xn.Sequential(Odd(1, n=2)).summary()


@pytest.mark.numpy_only
def test_a_number_beyond_any_float_is_refused_like_any_other():
    with pytest.raises(ValueError, match="SGD: learning_rate must be above 0 and finite, got an integer of 1329 bits"):
        xn.SGD(10**400)


def test_arrays_keep_their_order_in_whichever_they_are_assigned(lib):
    """jax.jit gives them in that of their names; optimizers' memories lie in the order of the first assignment."""
    net = xn.Sequential(xn.Dense(3, 4), xn.BatchNorm(4), xn.Dense(4, 2)).initialize(lib.backend)
    params, state = list(net.params), list(net.state)
    net.assign(dict(sorted(net.params.items())), dict(sorted(net.state.items(), reverse=True)))
    assert (list(net.params), list(net.state)) == (params, state)
