"""What a notebook, a terminal and a log file show of networks, histories and training."""

import contextlib
import copy
import functools
import inspect
import io
import json
import math
import os
import pickle
import re
import signal
import sys
from html import escape
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn.exceptions import ConvergenceWarning
from tqdm.std import tqdm

import xpnet as xn
from support import training
from xpnet.estimators import MLPClassifier
from xpnet.training import progress
from xpnet.training.history import POINTS, brief_number

X, Y = np.random.default_rng(0).normal(size=(12, 4)), np.arange(12) % 3


class Cells(HTMLParser):
    """The rows of a table, as text, and every tag that was opened; closing tags must match."""

    def __init__(self, text):
        super().__init__()
        self.rows, self.tags, self.open = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


class Marked(xn.Layer):
    """A user's layer whose settings would be HTML."""

    def __init__(self, text="<script>alert(1)</script>&"):
        self.text = text

    def forward(self, x, training=False):
        return x, None

    def backward(self, dy, cache):
        return dy, {}


# --- notebooks --------------------------------------------------------------------------------------------------------


def test_a_network_is_shown_as_its_summary(lib):
    net = xn.Sequential(xn.Dense(4, 8, trainable=False), xn.Sequential(Marked("<b>"), xn.ReLU()), xn.Dense(8, 3))
    text = net._repr_html_()
    assert "not initialized" in text
    found = Cells(text)
    assert found.rows[0] == ["", "layer", "output shape", "parameters"]
    lines = [line.split("  ") for line in net.summary().splitlines()[2:-2]]
    assert found.rows[1:] == [[cell.strip() for cell in line if cell.strip()] for line in lines]
    assert set(found.tags) == {"table", "caption", "thead", "tbody", "tr", "td", "th"}
    net.initialize(lib.backend, "float64")
    caption = f"67 parameters, 40 of them frozen, float64 on {escape(lib.backend.describe())}</caption>"
    assert caption in net._repr_html_()


@pytest.mark.numpy_only
def test_what_a_user_names_is_escaped():
    assert "script" not in Cells(xn.Sequential(Marked())._repr_html_()).tags
    history = xn.History()
    history["<img src=x>"] = [1.0, 2.0]
    found = Cells(history._repr_html_())
    assert "img" not in found.tags
    assert found.rows[1][0] == "<img src=x>"


@pytest.mark.numpy_only
def test_a_history_is_shown_with_its_numbers_and_curves():
    history = xn.History()
    history.update(loss=[3.0, 0.5, 1.25], val_loss=[math.nan] * 3, once=[7.0])
    history.steps, history.seconds, history.interrupted = 1234, 5.67, True
    text = history._repr_html_()
    assert Cells(text).rows == [
        ["measure", "first", "lowest", "highest", "last", ""],
        ["loss", "3", "0.5", "3", "1.25", ""],
        ["val_loss", "nan", "nan", "nan", "nan", ""],
        ["once", "7", "7", "7", "7", ""],
    ]
    assert "3 epochs, 1,234 steps in 5.7 s, interrupted" in text
    assert text.count("<svg") == 1
    assert "currentColor" in text
    assert "0 epochs, 0 steps" in xn.History()._repr_html_()


@pytest.mark.numpy_only
def test_a_history_prints_as_a_line_and_stays_a_dict():
    numbers = {"loss": [3.0, 0.31234], "val_loss": [7.0, 2.0], "val_accuracy": [0.5, 0.9]}
    history = xn.History()
    assert repr(history) == "History(0 epochs)"
    history.update(numbers)
    assert repr(history) == str(history) == "History(2 epochs, loss 0.3123, val_loss 2, val_accuracy 0.9)"
    history.interrupted = True
    assert repr(history).startswith("History(2 epochs, interrupted, loss")
    assert history == numbers
    assert repr(dict(history)) == str(numbers)
    back = pickle.loads(pickle.dumps(history))
    assert back == history
    assert repr(back) == repr(history)
    assert repr(copy.deepcopy(history)) == repr(history)
    assert json.loads(json.dumps(history)) == numbers
    assert pd.DataFrame(history).shape == (2, 3)
    history.clear()
    history["own"] = 3.0  # a callback's slip: not a list
    assert repr(history) == "History(0 epochs, interrupted, own ?)"


@pytest.mark.numpy_only
def test_copies_and_pickles_of_a_history_leave_the_clock_out():
    one, two = xn.History(), xn.History()
    for history, seconds in ((one, 1.5), (two, 2.5)):
        history.record({"loss": 0.5})
        history.steps, history.seconds = 3, seconds
    assert pickle.dumps(one) == pickle.dumps(two)
    for twin in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert (twin, twin.steps, twin.seconds, twin.slots) == (one, 3, 0.0, None)


def test_a_curve_has_gaps_where_nothing_is_finite_and_few_points_however_long():
    history = xn.History()
    history["loss"] = [1.0, 2.0, math.nan, 3.0, math.inf, 1.0, 1.0]
    lines = [part.split('"')[0].split() for part in history._repr_html_().split('points="')[1:]]
    assert [len(line) for line in lines] == [2, 2, 2]  # the lone one twice: a dot
    assert lines[1][0] == lines[1][1]
    heights = [[float(point.split(",")[1]) for point in line] for line in lines]
    assert heights == [[18, 10], [2, 2], [18, 18]]
    history["loss"] = list(np.linspace(1.0, 0.0, 5000))
    (points,) = [part.split('"')[0].split() for part in history._repr_html_().split('points="')[1:]]
    assert POINTS / 2 < len(points) <= POINTS + 1
    assert (points[0], points[-1]) == ("1.0,2.0", "99.0,18.0")


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("cls", "words"),
    [
        (xn.Adam, ["learning_rate", "weight_decay", "clip_value", "clip_norm"]),
        (xn.SoftmaxCrossEntropy, ["reduction"]),
        (xn.ReduceOnPlateau, ["monitor", "mode", "min_delta"]),
    ],
)
def test_help_describes_what_a_class_takes_from_its_base(cls, words):
    assert [word for word in words if f"`{word}`" not in inspect.getdoc(cls.__init__)] == []


# --- a file and a terminal --------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    """Standard error as a terminal."""

    def isatty(self):
        return True


def fit(lib, callbacks=(), epochs=4, **options):
    net = xn.Sequential(xn.Dense(4, 3)).initialize(lib.backend, seed=0)
    loss = xn.SoftmaxCrossEntropy()
    return net.fit(
        X, Y, loss=loss, optimizer=xn.SGD(), epochs=epochs, batch_size=4, callbacks=callbacks, progress=True, **options
    )


def test_a_file_gets_a_line_for_the_first_and_the_last_epoch(lib, capsys):
    history = fit(lib, validation_data=(X, Y))
    first, last = capsys.readouterr().err.splitlines()
    assert re.match(r"epoch 1/4, \d+\.\d s: ", first)
    assert re.match(r"epoch 4/4, \d+\.\d s: ", last)
    for name, values in history.items():
        assert f"{name}={values[0]:.4f}" in first
        assert f"{name}={values[-1]:.4f}" in last


def test_without_a_standard_error_nothing_goes_to_standard_output(lib, capsys, monkeypatch, tmp_path):
    class Terminate(xn.Callback):
        def step_end(self, run):
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(sys, "stderr", None)
    fit(lib)
    with pytest.raises(SystemExit):
        fit(lib, [Terminate()], checkpoint=xn.Checkpoint(tmp_path))
    assert capsys.readouterr().out == ""


class Gone(io.StringIO):
    """A stream that takes a few writes and then none, as a terminal that is closed or a pipe that is."""

    def __init__(self, terminal, error, after):
        super().__init__()
        self.terminal, self.error, self.left = terminal, error, after

    def isatty(self):
        if isinstance(self.error, ValueError) and not self.left:
            raise self.error
        return self.terminal

    def write(self, text):
        self.left -= 1
        if self.left < 0:
            raise self.error
        return super().write(text)

    def flush(self):
        if self.left < 0:
            raise self.error


@pytest.mark.parametrize("after", [0, 1, 2, 7])
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize(
    "error",
    [BrokenPipeError(32, "Broken pipe"), OSError(28, "No space left"), ValueError("I/O operation on closed file.")],
    ids=["pipe", "disk", "closed"],
)
def test_a_training_outlives_whoever_watches_it(lib, monkeypatch, tmp_path, terminal, error, after):
    class Terminate(xn.Callback):
        def step_end(self, run):
            if run.step == 11:
                signal.raise_signal(signal.SIGTERM)

    expected = fit(lib, validation_data=(X, Y))
    for name in ("stderr", "stdout"):
        monkeypatch.setattr(sys, name, Gone(terminal, error, after))
    assert fit(lib, [Tells()], validation_data=(X, Y)) == expected
    with pytest.raises(SystemExit) as left:
        fit(lib, [Terminate()], checkpoint=xn.Checkpoint(tmp_path))
    assert left.value.code == 143
    model = MLPClassifier(max_iter=2, verbose=True, early_stopping=True)
    with pytest.warns(ConvergenceWarning):
        model.fit(X, Y)


class Tells(xn.Doctor):
    """A doctor that has something to say each time."""

    def epoch_end(self, run):
        self._find(run, f"layer {run.epoch}", "units", "they are \N{INFINITY}", "Add some")


def test_a_word_that_a_terminal_cannot_show_is_written_as_ascii(lib, monkeypatch):
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    fit(lib, [Tells()], epochs=1)
    sys.stdout.flush()
    assert b"layer 1: they are \\u221e. Add some." in raw.getvalue()


def test_a_file_gets_a_line_now_and_then_and_the_last_finished_epoch(lib, capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(xn.Callback):
        def step_end(self, run):
            clock.now += 1.5  # 4.5 an epoch
            if run.step == 3 * 9 + 1:
                run.stop = run.history.interrupted = True

    fit(lib, [Slow()], epochs=50)
    shown = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["epoch 1/50, 4.5 s", "epoch 4/50, 18.0 s", "epoch 7/50, 31.5 s", "epoch 9/50, 40.5 s"]


def test_a_file_gets_a_line_every_ten_seconds_within_a_long_epoch_too(lib, capsys, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))

    class Slow(xn.Callback):
        def step_end(self, run):
            clock.now += 6.0  # the line comes with the next step

    fit(lib, [Slow()], epochs=2)
    shown = [line.partition(":")[0] for line in capsys.readouterr().err.splitlines()]
    assert shown == ["epoch 1/2, step 3/6, 12.0 s", "epoch 2/2, step 6/6, 30.0 s", "epoch 2/2, 36.0 s"]


def test_a_resumed_run_says_from_where_and_one_that_has_ended_says_so(lib, capsys, tmp_path):
    fit(lib, epochs=2, checkpoint=xn.Checkpoint(tmp_path))
    capsys.readouterr()
    history = fit(lib, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert capsys.readouterr().err.splitlines()[0] == "resumed after 6 steps and 2 epochs of 4"
    assert (history.steps, history.resumed) == (12, 6)
    history = fit(lib, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert "this run has ended, after 12 steps and 4 epochs of 4: nothing is left to train" in capsys.readouterr().err
    assert (history.steps, history.resumed) == (12, 12)
    assert copy.deepcopy(history).resumed == 0


def test_early_stopping_says_what_the_network_went_back_to(lib, capsys):
    class Records(xn.Callback):
        def epoch_end(self, run):
            run.history.record({"val_score": [1.0, 3.0, 2.0, 1.0][run.epoch - 1]})

    def told(patience, values=None):
        history = fit(lib, [Records(), xn.EarlyStopping("val_score", patience, mode="max")])
        return history, capsys.readouterr().err.splitlines()[-1]

    history, last = told(2)
    assert last == "stopped after 4 epochs, back to epoch 2 (val_score 3.0000)"
    assert (history.best_epoch, history.monitor) == (2, "val_score")
    assert repr(history).startswith("History(4 epochs, back to epoch 2 (val_score 3.0000), loss ")
    assert ", back to epoch 2 (val_score 3.0000)</caption>" in history._repr_html_()
    assert told(3)[1] == "after 4 epochs, back to epoch 2 (val_score 3.0000)"
    assert fit(lib, [Records(), xn.EarlyStopping("val_score", 3, mode="min")], epochs=1).best_epoch is None


@pytest.mark.parametrize("columns", [0, 80])
def test_a_terminal_that_has_no_width_gets_lines(lib, monkeypatch, columns):
    termios = pytest.importorskip("termios")  # Windows has none
    reader, writer = os.openpty()
    termios.tcsetwinsize(writer, (24, columns))
    with open(writer, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        fit(lib)
    shown = b""
    with contextlib.suppress(OSError):  # at its end, on Linux
        while part := os.read(reader, 4096):
            shown += part
    os.close(reader)
    assert (b"epoch 1/4, " in shown, b"epoch 4/4 |" in shown) == ((True, False) if columns == 0 else (False, True))


@pytest.mark.parametrize("columns", [40, 80, 200])
def test_a_bar_shows_what_there_is_room_for_the_measures_first(lib, monkeypatch, columns):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (columns, 20))
    history = fit(lib, validation_data=(X, Y))
    shown = sys.stderr.getvalue().replace("\n", "\r").split("\r")
    assert max(map(len, shown)) <= columns
    last = [line for line in shown if line][-1]
    assert last.startswith("epoch 4/4 |")
    measures = ", ".join(f"{name}={values[-1]:.4f}" for name, values in history.items())
    assert (measures in last) is (columns >= 80)
    assert ("12/12" in last, "step/s" in last) == ((columns == 200,) * 2)


@pytest.mark.parametrize(
    ("columns", "count", "bar"), [(24, 0, False), (57, 2, False), (60, 2, True), (80, 3, True), (120, 4, True)]
)
def test_a_narrow_terminal_gets_fewer_measures_and_none_that_is_cut(lib, monkeypatch, columns, count, bar):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (columns, 20))
    fixed = {"mine": lambda p, t: 3202.2866, "other": lambda p, t: 0.5}
    history = fit(lib, validation_data=(X, Y), metrics=fixed, epochs=12)
    assert list(history) == ["loss", "val_loss", "val_mine", "val_other"]
    shown = [line for line in sys.stderr.getvalue().replace("\n", "\r").split("\r") if line]
    assert max(map(len, shown)) <= columns
    measures = [f"{name}={values[-1]:.4f}" for name, values in history.items()]
    start, end = re.split(r"\d\d:\d\d<00:00", shown[-1].rstrip())
    assert re.fullmatch(r"epoch 12/12 \|.+\| " if bar else "epoch 12/12 ", start)
    assert re.fullmatch("".join(f", {m}" for m in measures[:count]) + r"(, 36/36(, *[\d.]+step/s)?)?", end)


def test_where_a_run_takes_hours_its_times_have_the_room_they_need(lib, monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr("tqdm.std.time", lambda: clock.now)
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (53, 20))

    class Slow(xn.Callback):
        def step_end(self, run):
            clock.now += 3600.0

    history = fit(lib, [Slow()], validation_data=(X, Y))
    shown = [line for line in sys.stderr.getvalue().replace("\n", "\r").split("\r") if line]
    for line in shown:
        for name, value in re.findall(r"(\w+)=([^,\s]*)", line):
            assert value in [f"{v:.4f}" for v in history[name]]
    assert "12:00:00<00:00, loss=" in shown[-1]


def test_a_bar_that_is_switched_off_shows_nothing(lib, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setattr("tqdm.std.tqdm.__init__", functools.partialmethod(tqdm.__init__, disable=True))
    fit(lib, validation_data=(X, Y))
    assert sys.stderr.getvalue() == ""


def test_a_bar_that_a_callback_ended_is_full_and_an_interrupted_one_is_not(lib, monkeypatch):
    class Stop(xn.Callback):
        def step_end(self, run):
            if run.step == 4:
                run.stop, run.history.interrupted = True, self.interrupt

    for interrupt, expected in [(False, "6/6"), (True, "4/12")]:
        monkeypatch.setattr(sys, "stderr", Terminal())
        stop = Stop()
        stop.interrupt = interrupt
        fit(lib, [stop])
        assert expected in sys.stderr.getvalue().replace("\n", "\r").rstrip("\r").rpartition("\r")[2]


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("value", "shown"),
    [(0.0, "0.0000"), (0.98765, "0.9877"), (12.5, "12.5000"), (2e-5, "2.00e-05"), (-3e6, "-3.00e+06"),
     (math.nan, "nan"), (math.inf, "inf")],
)  # fmt: skip
def test_a_measure_is_short_whatever_its_size(value, shown):
    assert brief_number(value) == shown


def test_the_bar_of_a_resumed_run_shows_the_last_epoch_before_it_ends_another(lib, monkeypatch, tmp_path):
    monkeypatch.setattr("tqdm.std._screen_shape_wrapper", lambda: lambda file: (80, 20))
    fit(lib, checkpoint=xn.Checkpoint(tmp_path))
    monkeypatch.setattr(sys, "stderr", Terminal())
    history = fit(lib, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    (shown,) = sys.stderr.getvalue().replace("\r", "\n").splitlines()[-1:]
    assert shown.startswith("epoch 4/4 |")
    assert f", loss={history['loss'][-1]:.4f}" in shown


def test_a_notebook_has_a_bar_though_its_standard_error_is_no_terminal(lib, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    fit(lib)
    shown, red = capsys.readouterr()
    assert "epoch 4/4 |" in shown
    assert "12/12" in shown
    assert red == ""  # without ipywidgets the bar is text, and standard error is red


def test_progress_that_cannot_begin_says_why(lib, monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm", None)
    monkeypatch.setattr(sys, "stderr", Terminal())
    with pytest.raises(ImportError, match="tqdm"):
        training.fit(training.small(lib), progress=True)


def test_the_progress_bar_shows_epoch_loss_and_metrics(lib, capsys, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("LINES", "30")
    history = training.fit(training.small(lib), epochs=2, validation_data=(training.X, training.Y), progress=True)
    shown = sys.stderr.getvalue()
    assert "epoch 2/2" in shown
    assert "6/6" in shown
    for name in ("loss", "val_loss", "val_accuracy"):
        assert f"{name}={history[name][-1]:.4f}" in shown
    sys.stderr.truncate(0)
    training.fit(training.small(lib), epochs=2)
    assert sys.stderr.getvalue() == ""
    assert capsys.readouterr() == ("", "")
