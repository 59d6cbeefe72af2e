"""What fit promises: histories, losses, validation, the rows' order, seeds; and options it refuses."""

from functools import partial

import numpy as np
import pytest

import xpnet as xn
from support.processes import python
from support.training import CROSS, SQUARED, STILL, On, Recorder, T, X, Y, bits, fit, problem, small

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


def test_full_batches_train_alike_whether_they_are_looked_at_or_not(lib):
    one, other = small(lib), small(lib)
    assert fit(one, batch_size=None, epochs=70, callbacks=[xn.Callback()]) == fit(other, batch_size=None, epochs=70)
    assert bits(one) == bits(other)


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


# --- options ----------------------------------------------------------------------------------------------------------


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


class OtherHooks(xn.Callback):
    """With a hook of Keras's name."""

    def on_epoch_end(self, epoch, logs=None):
        raise AssertionError


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
        ({"callbacks": [OtherHooks()]}, "OtherHooks has none of a callback's hooks, so it would never be called"),
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
