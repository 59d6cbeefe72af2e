"""Early stopping, plateaus, the log, the time limit: each does what it says, on every backend, and nothing else."""

import csv
import errno
import math
import os
import re
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import xpnet as xn
from support.cases import CALLBACKS, FEATURES
from support.training import On, bits
from xpnet.callbacks import logs

CROSS = xn.SoftmaxCrossEntropy()
RNG = np.random.default_rng(0)
X = RNG.normal(size=(12, FEATURES))
Y = (X @ RNG.normal(size=(FEATURES, 3))).argmax(axis=1)
STEPS = 3  # an epoch


class Scripted(xn.Callback):
    """Records a measure whose values are given, epoch by epoch; None: not in that one."""

    def __init__(self, name, values):
        self.name, self.values = name, values

    def epoch_end(self, run):
        if self.values[run.epoch - 1] is not None:
            run.history.record({self.name: self.values[run.epoch - 1]})


class Snapshots(xn.Callback):
    """The bits of the network after each epoch."""

    def __init__(self):
        self.bits = {}

    def epoch_end(self, run):
        self.bits[run.epoch] = bits(run.net)


def network(lib, dtype="float64"):
    net = xn.Sequential(xn.Dense(FEATURES, 8), xn.BatchNorm(8), xn.Dropout(0.2), xn.Tanh(), xn.Dense(8, 3))
    return net.initialize(lib.backend, dtype, seed=0)


def fit(net, callbacks=(), epochs=1, x=X, y=Y, loss=CROSS, optimizer=None, **options):
    optimizer = optimizer or xn.SGD(0.1)
    return net.fit(x, y, loss=loss, optimizer=optimizer, batch_size=4, epochs=epochs, callbacks=callbacks, **options)


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_callback_with_nothing_to_do_leaves_the_training_as_it_is(lib, name, tmp_path):
    net, twin = network(lib), network(lib)
    expected = fit(twin, epochs=3)
    callback = CALLBACKS[name](tmp_path)
    for again in range(2):  # and serves one fit after another
        history = fit(net, [callback], epochs=3) if not again else fit(network(lib), [callback], epochs=3)
        assert {key: values for key, values in history.items() if key in expected} == expected
    assert bits(net) == bits(twin)


# --- early stopping ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "options", "best", "epochs"),
    [
        ("val_loss", [3, 1, 2, 2, 2, 0], {"patience": 3}, 2, 5),
        ("val_loss", [3, 1, 2, 0, 2, 2], {"patience": 3}, 4, 6),
        ("accuracy", [1, 3, 3, 2, 4], {"patience": 2}, 2, 4),  # a tie is no better
        ("mine", [1, 3, 2, 2], {"patience": 2, "mode": "max"}, 2, 4),
        ("mine", [3, 1, 2, 2], {"patience": 2, "mode": "min"}, 2, 4),
        ("val_loss", [9, 8, 7.9, 7.8, 1], {"patience": 2, "min_delta": 0.5}, 2, 4),
        ("val_loss", [math.nan, math.nan, 1], {"patience": 2}, 0, 2),
        ("val_loss", [2, math.nan, math.nan, 1], {"patience": 2}, 1, 3),
        ("val_loss", [math.inf, 5, 6, 4], {"patience": 1}, 2, 3),
    ],
)
def test_early_stopping_stops_and_goes_back_to_the_best_epoch(lib, name, values, options, best, epochs):
    net, seen, stopping = network(lib), Snapshots(), xn.EarlyStopping(name, **options)
    history = fit(net, [Scripted(name, values), stopping, seen], epochs=len(values))
    assert (len(history["loss"]), stopping.best_epoch) == (epochs, best)
    assert stopping.best == (values[best - 1] if best else None)
    assert bits(net) == seen.bits[best or epochs]
    assert len(set(map(str, seen.bits.values()))) == epochs  # each epoch's network is another
    assert history.interrupted is False


def test_early_stopping_that_is_not_to_restore_keeps_the_last_network(lib):
    net, seen = network(lib), Snapshots()
    stopping = xn.EarlyStopping("a_loss", mode="min", patience=1, restore_best=False)
    fit(net, [Scripted("a_loss", [1, 2]), stopping, seen], epochs=2)
    assert bits(net) == seen.bits[2] != seen.bits[1]
    assert (stopping.best_epoch, stopping.wait) == (1, 1)


def test_early_stopping_watches_validation_and_a_restored_network_scores_what_the_history_says(lib):
    net, stopping = network(lib), xn.EarlyStopping(patience=2)
    held_out = X[::-1] + 0.5, Y[::-1].copy()
    history = fit(net, [stopping], epochs=40, optimizer=xn.Adam(0.2), validation_data=held_out)
    assert 2 < len(history["loss"]) < 40
    assert min(history["val_loss"]) == stopping.best == history["val_loss"][stopping.best_epoch - 1]
    assert net.evaluate(*held_out, CROSS)["loss"] == pytest.approx(stopping.best, rel=1e-12)


def test_early_stopping_goes_back_after_ctrl_c_and_after_an_error(lib):
    def interrupt(run):
        if run.step == 2 * STEPS + 2:
            signal.raise_signal(signal.SIGINT)

    def fail(run):
        if run.step == 2 * STEPS + 2:
            raise RuntimeError("mine")

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        for values, best in [([1, 2], 1), ([2, 1], 2)]:
            net, seen = network(lib), Snapshots()
            stopping = xn.EarlyStopping("a_loss", mode="min")
            history = fit(net, [Scripted("a_loss", values), stopping, seen, On(step_end=interrupt)], epochs=5)
            assert history.interrupted
            assert bits(net) == seen.bits[best]
    finally:
        signal.signal(signal.SIGINT, before)
    net, seen = network(lib), Snapshots()
    with pytest.raises(RuntimeError, match="mine"):
        fit(
            net, [Scripted("a_loss", [1, 2]), xn.EarlyStopping("a_loss", mode="min"), seen, On(step_end=fail)], epochs=5
        )
    assert bits(net) == seen.bits[1]


@pytest.mark.parametrize("sound", [True, False])
def test_after_a_divergence_early_stopping_goes_back_only_to_what_had_a_finite_loss(lib, sound):
    """The second epoch's last step leaps to finite weights whose loss is not: with the best loss, yet unsound."""

    def leap(run):
        if run.step == 2 * STEPS - 1:
            run.optimizer.learning_rate = 1e300

    net = xn.Sequential(xn.Dense(FEATURES, 3)).initialize(lib.backend, "float64", seed=0)
    seen, targets = Snapshots(), np.eye(3)[Y]
    values = [1, 2] if sound else [2, 1]
    watch = [Scripted("a_loss", values), xn.EarlyStopping("a_loss", mode="min"), seen, On(step_end=leap)]
    with pytest.raises(xn.DivergenceError) as error:
        fit(net, watch, epochs=4, y=targets, loss=xn.MeanSquaredError(), optimizer=xn.SGD(0.1, momentum=0.0))
    assert error.value.epoch == 3
    assert math.isfinite(net.evaluate(X, targets, xn.MeanSquaredError())["loss"])
    assert (bits(net) == seen.bits[1]) is sound


def test_one_early_stopping_serves_one_fit_after_another(lib):
    stopping = xn.EarlyStopping("a_loss", mode="min", patience=1)
    for _ in range(2):
        net, seen = network(lib), Snapshots()
        history = fit(net, [Scripted("a_loss", [1, 2, 0]), stopping, seen], epochs=3)
        assert (len(history["loss"]), stopping.best) == (2, 1)
        assert bits(net) == seen.bits[1]
    # and one whose train_begin was not reached gives back nothing of the fit before
    untouched = network(lib)
    start = bits(untouched)
    with pytest.raises(TypeError, match="schedule"):
        fit(untouched, [xn.ReduceOnPlateau("a_loss", mode="min"), stopping], optimizer=xn.SGD(xn.Constant(0.1)))
    assert bits(untouched) == start


@pytest.mark.numpy_only
def test_whether_less_or_more_is_better_is_known_of_every_measure_recorded_here():
    falls = {name: xn.EarlyStopping(f"val_{name}").less_is_better for name in ["loss", "score", *xn.metrics.BY_NAME]}
    assert {name for name in falls if falls[name]} == {"loss", "mean_squared_error", "mean_absolute_error"}
    assert all(xn.EarlyStopping(name).less_is_better is falls[name] for name in falls)


@pytest.mark.numpy_only
def test_more_is_better_of_every_scorer_of_scikit_learns():
    from sklearn.metrics import get_scorer_names

    assert not any(
        xn.EarlyStopping(prefix + name).less_is_better for name in get_scorer_names() for prefix in ("", "val_")
    )


@pytest.mark.numpy_only
def test_without_scikit_learn_its_scorers_are_not_known(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.metrics", None)
    assert not xn.EarlyStopping("val_accuracy").less_is_better
    with pytest.raises(ValueError, match="it is unknown whether less or more is better for 'val_f1_macro'"):
        xn.EarlyStopping("val_f1_macro")


@pytest.mark.numpy_only
@pytest.mark.parametrize("kind", [xn.EarlyStopping, xn.ReduceOnPlateau])
@pytest.mark.parametrize(
    "name", ["mine", "val_accuracy_loss", "val_error", "neg_mine", "hinge_loss_score", "learning_rate", "VAL_LOSS", ""]
)
def test_of_another_measure_the_mode_must_be_said(kind, name):
    with pytest.raises(
        ValueError, match=rf"^{kind.__name__}: it is unknown whether less or more is better for '{name}'"
    ) as caught:
        kind(name)
    remedy = re.search(r"xn\.\w+\(.*?\)", str(caught.value)).group()
    assert eval(remedy, {"xn": xn}).less_is_better
    assert not kind(name, mode="max").less_is_better


def test_a_measure_that_is_not_there_is_refused_with_those_that_are(lib):
    with pytest.raises(ValueError, match=r"EarlyStopping: no 'val_loss' in the history, which has 'loss'\. .*val_"):
        fit(network(lib), [xn.EarlyStopping()], epochs=2)


# --- plateaus ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "options", "rates"),
    [
        ([1, 2, 2, 2, 2, 2], {"patience": 2}, [0.1, 0.1, 0.1, 0.05, 0.05, 0.025]),
        ([3, 2, 2, 1, 1, 1], {"patience": 2}, [0.1] * 6),
        ([1, 2, 2, 2, 2, 2, 2, 2], {"patience": 1, "cooldown": 2}, [0.1, 0.1, 0.05, 0.05, 0.05, 0.025, 0.025, 0.025]),
        ([1, 2, 2, 2, 2], {"patience": 1, "min_rate": 0.04}, [0.1, 0.1, 0.05, 0.04, 0.04]),
        ([1, 2, 2], {"patience": 1, "min_rate": 5.0}, [0.1, 0.1, 0.1]),  # never raised
        ([math.nan] * 3, {"patience": 1}, [0.1, 0.05, 0.025]),
    ],
)
@pytest.mark.parametrize("make", [xn.SGD, xn.Adam, xn.Nesterov])
def test_a_plateau_lowers_the_rate_of_the_steps_that_follow(lib, make, values, options, rates):
    net, twin, optimizer = network(lib), network(lib), make(0.1)
    reduce = xn.ReduceOnPlateau("a_loss", mode="min", factor=0.5, **options)
    history = fit(net, [Scripted("a_loss", values), reduce], epochs=len(values), optimizer=optimizer)
    assert history["learning_rate"] == pytest.approx(rates, rel=1e-15)
    assert optimizer.learning_rate == 0.1  # the user's own
    fit(twin, epochs=len(values), optimizer=make(lambda step: history["learning_rate"][step // STEPS]))
    assert bits(net) == bits(twin)


def test_a_plateau_needs_a_number_for_a_rate(lib):
    net = network(lib)
    start = bits(net)
    with pytest.raises(TypeError, match=r"learning_rate must be a number, got CosineDecay\(.*leave out the schedule"):
        fit(net, [xn.ReduceOnPlateau("loss")], optimizer=xn.SGD(xn.CosineDecay(0.1, 10)))
    assert bits(net) == start


# --- the log ----------------------------------------------------------------------------------------------------------


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_log_has_a_row_for_each_epoch_in_full_precision(lib, tmp_path):
    path = tmp_path / "log.csv"
    history = fit(network(lib), [xn.CSVLog(path)], epochs=3, validation_data=(X, Y))
    written = rows(path)
    assert list(written[0]) == ["epoch", "loss", "val_loss", "val_accuracy"]
    assert [row["epoch"] for row in written] == ["1", "2", "3"]
    for name, values in history.items():
        assert [float(row[name]) for row in written] == values
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_a_crash_loses_no_finished_epoch(lib, tmp_path):
    path = tmp_path / "log.csv"

    def fail(run):
        if run.epoch == 2:
            assert [row["epoch"] for row in rows(path)] == ["1", "2"]  # whatever comes now, they are there
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fit(network(lib), [xn.CSVLog(path), On(epoch_begin=fail)], epochs=5)
    assert [row["epoch"] for row in rows(path)] == ["1", "2"]


@pytest.mark.parametrize("mine", [[None] * 4, [None, None, 1.5, None]])
def test_a_log_that_is_removed_amid_the_training_begins_again_with_its_columns(lib, tmp_path, mine):
    path = tmp_path / "log.csv"

    def remove(run):
        if run.epoch == 2:
            path.unlink()

    fit(network(lib), [Scripted("mine", mine), xn.CSVLog(path), On(epoch_end=remove)], epochs=4)
    assert [row["epoch"] for row in rows(path)] == ["3", "4"]
    assert all(row["loss"] for row in rows(path))


def test_a_measure_that_comes_later_or_now_and_then_has_its_column(lib, tmp_path):
    path = tmp_path / "log.csv"
    fit(network(lib), [Scripted("mine", [None, 1.5, None, math.nan]), xn.CSVLog(path)], epochs=4)
    assert [row["mine"] for row in rows(path)] == ["", "1.5", "", "nan"]
    assert all(row["loss"] for row in rows(path))


def test_the_log_begins_anew_or_goes_on(lib, tmp_path):
    path = tmp_path / "log.csv"
    fit(network(lib), [xn.CSVLog(path)], epochs=3)
    fit(network(lib), [xn.CSVLog(str(path), append=True)], epochs=2, validation_data=(X, Y))
    assert [row["epoch"] for row in rows(path)] == ["1", "2", "3", "1", "2"]
    assert [bool(row["val_loss"]) for row in rows(path)] == [False] * 3 + [True] * 2
    fit(network(lib), [xn.CSVLog(path)], epochs=1)
    assert [row["epoch"] for row in rows(path)] == ["1"]


def test_a_file_that_cannot_be_a_log_is_found_before_the_first_step(lib, tmp_path):
    net = network(lib)
    start = bits(net)
    other = tmp_path / "other.csv"
    other.write_text("name,age\nAda,36\n")
    with pytest.raises(ValueError, match=r"CSVLog: .*other\.csv is not a log of epochs: it has the columns name, age"):
        fit(net, [xn.CSVLog(other, append=True)])
    assert other.read_text() == "name,age\nAda,36\n"
    with pytest.raises(FileNotFoundError):
        fit(net, [xn.CSVLog(tmp_path / "no" / "log.csv")])
    assert bits(net) == start


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pipes in folders")
@pytest.mark.parametrize("append", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused_before_the_first_step(lib, tmp_path, kind, append):
    path = Path(os.devnull) if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "folder":
        path.mkdir()
    net = network(lib)
    start = bits(net)
    with pytest.raises(OSError, match=re.escape(str(path))):
        fit(net, [xn.CSVLog(path, append=append)])
    assert bits(net) == start


def test_a_folder_that_takes_no_new_file_is_found_before_the_first_step(lib, tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", path)

    path = tmp_path / "log.csv"
    path.write_text("epoch,loss\n1,0.5\n")
    monkeypatch.setattr(logs, "replacing", refuse)
    net = network(lib)
    start = bits(net)
    with pytest.raises(PermissionError, match=r"log\.csv"):
        fit(net, [xn.CSVLog(path)])
    assert (bits(net), path.read_text()) == (start, "epoch,loss\n1,0.5\n")


# --- the time limit ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "validation", "steps", "epochs", "interrupted"),
    [(3.5, 0, 4, 1, True), (1, 0, 1, 0, True), (100, 0, 15, 5, False), (4.5, 2, 3, 1, True), (15, 0, 15, 5, False)],
)
def test_a_time_limit_ends_the_training_after_the_step_in_which_it_is_over(
    lib, monkeypatch, seconds, validation, steps, epochs, interrupted
):
    """A clock that a step moves on by 1, and validation by what it says."""
    clock = SimpleNamespace(now=50.0)
    monkeypatch.setattr(logs, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def tick(by):
        return lambda run: setattr(clock, "now", clock.now + by)

    net, ended = network(lib), []
    hooks = [On(step_end=tick(1), epoch_end=tick(validation)), xn.TimeLimit(seconds), On(train_end=ended.append)]
    history = fit(net, hooks, epochs=5)
    assert (history.steps, len(history.get("loss", []))) == (steps, epochs)
    assert (history.interrupted, len(ended)) == (interrupted, 1)


# --- all of them ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: xn.EarlyStopping(patience=0), "EarlyStopping: patience must be a whole number of at least 1, got 0"),
        (lambda: xn.EarlyStopping(min_delta=-1), "EarlyStopping: min_delta must be at least 0"),
        (lambda: xn.EarlyStopping(mode="up"), 'EarlyStopping: mode must be "min", "max" or "auto", got \'up\''),
        (lambda: xn.EarlyStopping(3), "EarlyStopping: monitor must be the name of a measure"),
        (lambda: xn.ReduceOnPlateau(factor=1), "ReduceOnPlateau: factor must be at least 0 and below 1, got 1"),
        (lambda: xn.ReduceOnPlateau(factor=0), "ReduceOnPlateau: factor must be above 0"),
        (lambda: xn.ReduceOnPlateau(cooldown=1.5), "ReduceOnPlateau: cooldown must be a whole number"),
        (lambda: xn.ReduceOnPlateau(min_rate=math.nan), "ReduceOnPlateau: min_rate must be at least 0"),
        (lambda: xn.TimeLimit(0), "TimeLimit: seconds must be above 0"),
        (lambda: xn.TimeLimit("60"), "TimeLimit: seconds must be above 0"),
        (lambda: xn.CSVLog(3), "CSVLog: path must be a path, as str, bytes or os.PathLike, got 3"),
        (lambda: xn.Doctor(every=0), "Doctor: every must be a whole number"),
        (lambda: xn.Doctor(log="print"), "Doctor: log must be a function"),
    ],
)
@pytest.mark.numpy_only
def test_settings_that_make_no_sense_are_refused_by_name(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_callbacks_given_by_an_iterator_are_called(lib):
    history = fit(network(lib), iter([xn.ReduceOnPlateau("loss")]), epochs=2)
    assert history["learning_rate"] == [0.1, 0.1]


@pytest.mark.numpy_only
def test_callbacks_read_as_one_writes_them():
    assert repr(xn.EarlyStopping(patience=3)) == "EarlyStopping(patience=3)"
    assert repr(xn.ReduceOnPlateau("loss", 0.5)) == "ReduceOnPlateau(monitor='loss', factor=0.5)"
    assert repr(xn.TimeLimit(60)) == "TimeLimit(60.0)"
    assert repr(xn.CSVLog("a.csv")) == "CSVLog('a.csv')"
    assert repr([xn.Doctor(), xn.Doctor(every=2)]) == "[Doctor(), Doctor(every=2)]"
    assert repr(xn.Checkpoint("a", every=500)) == f"Checkpoint({Path('a')!r}, every=500)"


@pytest.mark.numpy_only
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither these links nor these modes")
def test_a_log_stays_a_link_and_as_readable_as_it_was_and_overwrites_no_neighbour(lib, tmp_path):
    (tmp_path / "far").mkdir()
    file, link, neighbour = tmp_path / "far" / "file", tmp_path / "log.csv", tmp_path / "log.csv.new"
    file.touch(0o600)
    link.symlink_to(file)
    neighbour.write_text("mine")
    fit(network(lib), [xn.CSVLog(link)], epochs=3)
    assert link.is_symlink()
    assert len(rows(file)) == 3
    assert file.stat().st_mode & 0o777 == 0o600
    assert neighbour.read_text() == "mine"


@pytest.mark.parametrize("every", [2, 3])
def test_a_log_has_the_first_epochs_row_once_though_the_epoch_comes_again(lib, tmp_path, every):
    def crash(run):
        if run.step == STEPS + 1:
            raise RuntimeError("mine")

    def train(*more, **options):
        callbacks = [xn.CSVLog(tmp_path / "log.csv"), *more]
        return fit(network(lib), callbacks, epochs=3, checkpoint=xn.Checkpoint(tmp_path / "a", every), **options)

    with pytest.raises(RuntimeError, match="mine"):
        train(On(step_end=crash))
    train(resume=True)
    assert [row["epoch"] for row in rows(tmp_path / "log.csv")] == ["1", "2", "3"]


@pytest.mark.parametrize("at", [4, 8, 13])
def test_a_run_that_crashed_and_was_resumed_ends_as_one_that_was_not(lib, tmp_path, at):
    """Best weights, waiting, rests and rates go through a checkpoint; the log replaces the rows that come again."""
    values = [3.0, 2.0, 2.5, 1.0, 1.5, 1.6, 1.7, 1.8]

    def hooks(folder, *more):
        stopping = xn.EarlyStopping("a_loss", mode="min", patience=4)
        reduce = xn.ReduceOnPlateau("a_loss", mode="min", patience=1, factor=0.5, cooldown=3)
        return [Scripted("a_loss", values), stopping, reduce, xn.CSVLog(tmp_path / f"{folder}.csv"), *more]

    def crash(run):
        if run.step == at:
            raise RuntimeError("mine")

    whole, broken = network(lib), network(lib)
    expected = fit(whole, hooks("whole"), epochs=8, checkpoint=xn.Checkpoint(tmp_path / "a"))
    with pytest.raises(RuntimeError, match="mine"):
        fit(broken, hooks("broken", On(step_end=crash)), epochs=8, checkpoint=xn.Checkpoint(tmp_path / "b"))
    broken = network(lib)
    after = hooks("broken")
    history = fit(broken, after, epochs=8, checkpoint=xn.Checkpoint(tmp_path / "b"), resume=True)
    assert after[1].best_epoch == 4
    assert history == expected
    assert bits(broken) == bits(whole)
    assert (tmp_path / "broken.csv").read_text() == (tmp_path / "whole.csv").read_text()
