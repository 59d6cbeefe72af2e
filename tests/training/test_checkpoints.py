"""Checkpoints: a run that was stopped anywhere goes on to the same bits; what cannot go on is refused and told why."""

import json
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import xpnet as xn
from support import HANG, cases
from support.checkpoints import BATCHES, Best, N, Own, Slower, StopAt, StopError, assert_same, fit, network
from xpnet.files.safetensors import read


@pytest.mark.parametrize(("kernels", "optimizer"), [
    ("auto", "nesterov"), ("auto", "adamw, warmed up"), ("reference", "sgd"),
    *(pytest.param("auto", each, marks=pytest.mark.not_on_host) for each in ("sgd", *list(cases.OPTIMIZERS)[2:-1])),
])  # fmt: skip
def test_a_run_cut_off_anywhere_ends_with_the_same_bits(strict_lib, data, tmp_path, monkeypatch, kernels, optimizer):
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    make = cases.OPTIMIZERS[optimizer]
    weights = np.linspace(0.5, 2.0, N)

    def run(net, best, *callbacks, **options):
        callbacks = [best, Slower(), *callbacks]
        return fit(net, data, optimizer=make(), callbacks=callbacks, sample_weight=weights, l2=0.01, **options)

    whole, best = network(strict_lib), Best()
    expected = run(whole, best)
    for cut in (3, 4, 8, 16, 20):  # the last checkpoint none, in an epoch, after it, at its end
        folder = tmp_path / str(cut)
        with pytest.raises(StopError):
            run(network(strict_lib), Best(), StopAt(cut), checkpoint=xn.Checkpoint(folder, every=3))
        again, second = network(strict_lib, seed=9), Best()  # nothing of the first network is left
        history = run(again, second, checkpoint=xn.Checkpoint(folder, every=3), resume=True)
        if cut == 3:  # no checkpoint yet: it began anew, from other weights
            assert history["loss"] != expected["loss"]
            continue
        assert history == expected
        assert (history.steps, history.slots["step"]) == (20, 20)
        assert_same(strict_lib, whole, again)
        assert (second.lowest, second.name, second.values) == (best.lowest, best.name, best.values)
        np.testing.assert_array_equal(second.vector, best.vector)
        for name, a in best.weights.items():
            np.testing.assert_array_equal(strict_lib.to_numpy(a), np.asarray(strict_lib.to_numpy(second.weights[name])))
        assert again.rng.bit_generator.state == whole.rng.bit_generator.state


def test_early_stopping_resumed_where_only_the_validation_of_an_epoch_is_left(lib, data, tmp_path):
    """Its best parameters, which it has on file, are not those that are validated."""

    def run(*callbacks, **options):
        net = network(lib)
        history = fit(net, data, epochs=6, callbacks=[xn.EarlyStopping("val_loss", mode="max"), *callbacks], **options)
        return net, history

    whole, expected = run()
    assert expected["val_loss"][0] == max(expected["val_loss"])  # the best is not the last
    folder = tmp_path / "run"
    with pytest.raises(StopError):  # after the last step of an epoch, and before its end
        run(StopAt(epoch=3), checkpoint=xn.Checkpoint(folder, every=BATCHES))
    again, history = run(checkpoint=xn.Checkpoint(folder, every=BATCHES), resume=True)
    assert history == expected
    assert_same(lib, again, whole)


@pytest.mark.parametrize("every", ["epoch", 2, 1000])
def test_a_finished_run_has_its_end_on_file_and_nothing_to_do(lib, data, tmp_path, every):
    net = network(lib)
    history = fit(net, data, checkpoint=xn.Checkpoint(tmp_path, every))
    files = sorted(path.name for path in tmp_path.iterdir())
    kept = (
        []
        if every == 1000
        else ["step-000000000015.safetensors" if every == "epoch" else "step-000000000018.safetensors"]
    )
    assert files == [".lock", *kept, "step-000000000020.safetensors"]
    loaded = xn.load(tmp_path / files[-1], lib.backend)
    assert loaded.rng.bit_generator.state == net.rng.bit_generator.state  # it trains on in the same order
    again = network(lib, seed=5)
    resumed = fit(again, data, checkpoint=xn.Checkpoint(tmp_path, every), resume=True)
    assert resumed == history
    assert (resumed.steps, resumed.resumed) == (20, 20)
    assert_same(lib, net, again)


@pytest.mark.parametrize("every", ["epoch", 2])
def test_a_finished_run_that_is_resumed_is_the_one_on_file(lib, data, tmp_path, every):
    class Step(xn.Callback):
        def step_end(self, run):
            raise StopError

    fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path, every))
    file = tmp_path / "step-000000000020.safetensors"
    before = file.read_bytes()
    net = network(lib, seed=5)
    fit(net, data, callbacks=[Step()], checkpoint=xn.Checkpoint(tmp_path, every), resume=True)
    assert_same(lib, xn.load(file, backend=lib.backend), net)
    assert file.read_bytes() == before


@pytest.mark.parametrize("weighted", [False, True])
def test_a_checkpoint_tells_weights_apart_and_says_nothing_of_none(lib, data, tmp_path, weighted):
    """Files of runs without weights are those of versions that knew none apart from y."""
    weights = np.linspace(0.5, 1.5, len(data[0]))
    fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), **({"sample_weight": weights} if weighted else {}))
    told = json.loads(read(tmp_path / "step-000000000020.safetensors")[1]["training"])
    assert ("weight" in told["facts"]) == weighted
    if weighted:
        with pytest.raises(ValueError, match=r"this one differs in \n  weight: "):
            fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), resume=True, sample_weight=weights**2)


class InEpochBegin(xn.Callback):
    """Counts, and slows the optimizer, at the beginning of each epoch."""

    memory = ("count",)

    def __init__(self, seen):
        self.seen = seen  # of both processes

    def train_begin(self, run):
        self.count = 0

    def epoch_begin(self, run):
        self.count += 1
        self.seen.append(run.epoch)
        run.optimizer.learning_rate *= 0.5
        run.optimizer.momentum *= 0.9
        run.optimizer.clip_norm = 10.0 / (1 + run.epoch)

    def epoch_end(self, run):
        run.history.record({"count": self.count, "momentum": run.optimizer.momentum})


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("every", [1, 3, "epoch"])
def test_an_epoch_that_had_begun_is_not_begun_again(lib, data, tmp_path, monkeypatch, kernels, every):
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    seen, cut = [], []

    def run(net, seen, *callbacks, **options):
        return fit(
            net, data, optimizer=xn.SGD(0.1, momentum=0.9), callbacks=[InEpochBegin(seen), *callbacks], **options
        )

    whole = network(lib)
    expected = run(whole, seen)
    for limit in (7, 13, 16):  # resumed, and killed again
        with pytest.raises(StopError):
            run(network(lib), cut, StopAt(limit), checkpoint=xn.Checkpoint(tmp_path, every), resume=True)
        stride = BATCHES if every == "epoch" else every
        del cut[-(-((limit - 1) // stride * stride) // BATCHES) :]  # what was begun after the checkpoint comes again
    again = network(lib, seed=3)
    assert run(again, cut, checkpoint=xn.Checkpoint(tmp_path, every), resume=True) == expected
    assert cut == seen == [0, 1, 2, 3]
    assert expected["count"] == [1, 2, 3, 4]
    assert_same(lib, whole, again)


@pytest.mark.numpy_only
def test_a_log_and_a_bar_go_on_in_the_middle_of_an_epoch(lib, data, tmp_path, capsys):
    class Mine(xn.Callback):
        def step_end(self, run):
            if run.step % 5 == 1:
                run.history.record({"mine": run.step})

    def run(*callbacks, **options):
        made = [Mine(), xn.CSVLog(tmp_path / "log.csv"), xn.Doctor(log=None), *callbacks]
        return fit(network(lib), data, callbacks=made, progress=True, **options)

    expected = run()
    text = (tmp_path / "log.csv").read_text()
    with pytest.raises(StopError):
        run(StopAt(13), checkpoint=xn.Checkpoint(tmp_path / "runs", every=4))
    assert run(checkpoint=xn.Checkpoint(tmp_path / "runs", every=4), resume=True) == expected
    assert (tmp_path / "log.csv").read_text() == text


@pytest.mark.numpy_only
def test_a_schedule_that_a_callback_set_must_be_set_again(lib, data, tmp_path):
    class Schedule(xn.Callback):
        def __init__(self, at):
            setattr(self, at, self.set)

        def set(self, run):
            run.optimizer.learning_rate = xn.CosineDecay(0.01, 20)

        def epoch_end(self, run):
            pass

    whole, again = network(lib), network(lib)
    expected = fit(whole, data, callbacks=[Schedule("train_begin")])
    for at in ("train_begin", "epoch_end"):
        with pytest.raises(StopError):
            fit(network(lib), data, callbacks=[Schedule(at), StopAt(13)], checkpoint=xn.Checkpoint(tmp_path / at))
    checkpoint = xn.Checkpoint(tmp_path / "train_begin")
    assert fit(again, data, callbacks=[Schedule("train_begin")], checkpoint=checkpoint, resume=True) == expected
    assert_same(lib, whole, again)
    with pytest.raises(
        ValueError, match=r"learning_rate was CosineDecay\(0\.01, 20\).* and is 0\.01 now; .*train_begin"
    ):
        fit(
            again,
            data,
            callbacks=[Schedule("epoch_end")],
            checkpoint=xn.Checkpoint(tmp_path / "epoch_end"),
            resume=True,
        )


@pytest.mark.parametrize("every", ["epoch", 1])
def test_a_run_that_a_callback_ended_stays_ended(lib, data, tmp_path, every):
    """Also where it was killed just after the checkpoint of its last epoch."""

    class Enough(xn.Callback):
        def epoch_end(self, run):
            run.stop = run.epoch == 2

    net = network(lib)
    history = fit(net, data, callbacks=[Enough()], checkpoint=xn.Checkpoint(tmp_path, every))
    assert len(history["loss"]) == 2
    again = network(lib, seed=5)
    assert fit(again, data, callbacks=[Enough()], checkpoint=xn.Checkpoint(tmp_path, every), resume=True) == history
    assert_same(lib, net, again)


@pytest.mark.parametrize(("last", "hook", "every"), [
    (7, "step_end", 1), (7, "epoch_end", 3), (7, "step_end", "epoch"),
    (8, "epoch_end", 1), (8, "step_end", 3), (8, "epoch_end", "epoch"),
    (10, "step_end", 1), (10, "epoch_end", 3), (10, "epoch_end", "epoch"),
])  # fmt: skip
def test_a_stop_counts_though_the_run_is_interrupted_in_its_epoch(lib, data, tmp_path, hook, last, every):
    """An unfinished epoch is finished first, as it would have been, and none follows."""

    class Enough(xn.Callback):
        def stop(self, run):
            if run.step == (7 if hook == "step_end" else 10):
                run.stop = True

    class Interrupt(xn.Callback):  # as a signal does
        def step_end(self, run):
            if run.step == last:
                run.history.interrupted = True

    setattr(Enough, hook, Enough.stop)
    whole, net = network(lib), network(lib)
    expected = fit(whole, data, callbacks=[Enough()])
    assert expected.steps == 10
    history = fit(net, data, callbacks=[Enough(), Interrupt()], checkpoint=xn.Checkpoint(tmp_path, every))
    assert (history.steps, history.interrupted) == (last, True)
    again = network(lib, seed=5)
    history = fit(again, data, callbacks=[Enough()], checkpoint=xn.Checkpoint(tmp_path, every), resume=True)
    assert (history, history.steps) == (expected, 10)
    assert_same(lib, whole, again)


@pytest.mark.parametrize("every", [1, 3])
def test_a_run_killed_between_a_stop_and_the_end_of_its_epoch_finishes_the_epoch(lib, data, tmp_path, every):
    class Enough(xn.Callback):
        def step_end(self, run):
            run.stop = run.step == 6 or run.stop

    whole, again = network(lib), network(lib)
    expected = fit(whole, data, callbacks=[Enough()])
    with pytest.raises(StopError):
        fit(network(lib), data, callbacks=[Enough(), StopAt(8)], checkpoint=xn.Checkpoint(tmp_path, every))
    assert fit(again, data, callbacks=[Enough()], checkpoint=xn.Checkpoint(tmp_path, every), resume=True) == expected
    assert_same(lib, whole, again)


@pytest.mark.parametrize("kind", ["sets", "reads"])
def test_a_rate_that_train_begin_sets_or_reads_is_no_obstacle(lib, data, tmp_path, kind):
    class Halve(xn.Callback):
        def train_begin(self, run):
            self.first = 0.02 if kind == "sets" else run.optimizer.learning_rate
            run.optimizer.learning_rate = self.first

        def epoch_end(self, run):
            run.optimizer.learning_rate = self.first * 0.5**run.epoch

    whole, again = network(lib), network(lib)
    expected = fit(whole, data, callbacks=[Halve()])
    with pytest.raises(StopError):
        fit(network(lib), data, callbacks=[Halve(), StopAt(13)], checkpoint=xn.Checkpoint(tmp_path, every=4))
    assert fit(again, data, callbacks=[Halve()], checkpoint=xn.Checkpoint(tmp_path, every=4), resume=True) == expected
    assert_same(lib, whole, again)


def test_a_run_that_a_time_limit_ended_goes_on(lib, data, tmp_path):
    class Limit(xn.TimeLimit):
        def train_begin(self, run):
            self.end = 0.0 if run.step == 0 else float("inf")

    whole, net = network(lib), network(lib)
    expected = fit(whole, data)
    history = fit(net, data, callbacks=[Limit(1)], checkpoint=xn.Checkpoint(tmp_path))
    assert (history.steps, history.interrupted) == (1, True)
    assert fit(net, data, callbacks=[Limit(1)], checkpoint=xn.Checkpoint(tmp_path), resume=True) == expected
    assert_same(lib, whole, net)


def test_more_epochs_go_on_where_fewer_ended(lib, data, tmp_path):
    whole = network(lib)
    expected = fit(whole, data, epochs=5)
    fit(network(lib), data, epochs=2, checkpoint=xn.Checkpoint(tmp_path))
    net = network(lib, seed=7)
    assert fit(net, data, epochs=5, checkpoint=xn.Checkpoint(tmp_path), resume=True) == expected
    assert_same(lib, whole, net)


def test_another_backend_goes_on_to_the_same_numbers(lib, data, tmp_path):
    numpy = xn.Sequential(*network(lib).layers).initialize("numpy", "float64", seed=1)
    whole = network(lib, dtype="float64")
    expected = fit(whole, data)
    fit(numpy, data, epochs=2, checkpoint=xn.Checkpoint(tmp_path))
    net = network(lib, seed=3, dtype="float64")
    history = fit(net, data, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-9)
    for name, a in whole.params.items():
        if name != "0.bias":  # before a BatchNorm: rounding, which Adam makes steps of
            lib.agrees(net.params[name], lib.to_numpy(a), rtol=1e-8)


def test_a_network_that_no_file_can_describe_is_resumed_all_the_same(lib, data, tmp_path):
    def own(seed):
        return Own(*network(lib).layers).initialize(lib.backend, seed=seed)

    whole = own(1)
    expected = fit(whole, data)
    with pytest.raises(StopError):
        fit(own(1), data, callbacks=[StopAt(12)], checkpoint=xn.Checkpoint(tmp_path))
    with pytest.raises(xn.FormatError, match=r"checkpoint of a network that no file can describe, .*, resume=True\)"):
        xn.load(max(tmp_path.glob("step-*.safetensors")))
    net = own(2)
    assert fit(net, data, checkpoint=xn.Checkpoint(tmp_path), resume=True) == expected
    assert_same(lib, whole, net)


def test_a_run_that_diverges_leaves_the_last_sound_checkpoint(lib, data, tmp_path):
    class Explode(xn.Callback):
        def epoch_end(self, run):
            if run.epoch == 2:
                run.optimizer.learning_rate = 1e300

    for every in ("epoch", 1):
        folder = tmp_path / str(every)
        with pytest.raises(xn.DivergenceError):
            fit(
                network(lib),
                data,
                callbacks=[Explode()],
                optimizer=xn.SGD(0.01),
                checkpoint=xn.Checkpoint(folder, every),
            )
        arrays, _ = read(max(folder.glob("step-*")))
        assert all(np.isfinite(a).all() for a in arrays.values())


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"resume": True}, ValueError, r"resume=True needs checkpoint=xn\.Checkpoint\(folder\)"),
        ({"checkpoint": "runs"}, TypeError, r"checkpoint must be an xn\.Checkpoint\(folder\), got 'runs'"),
        ({"callbacks": [xn.Checkpoint("runs")]}, TypeError, "give the Checkpoint as checkpoint=..., by itself"),
    ],
)
def test_wrong_arguments_are_refused(lib, data, options, error, message):
    with pytest.raises(error, match=message):
        fit(network(lib), data, **options)


PROGRAM = """
    import signal, sys, time, numpy as np, xpnet as xn
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs begin with it ignored
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 4)), rng.integers(3, size=40)
    class Tell(xn.Callback):
        def step_end(self, run):
            if run.step == 7 and "--slow" in sys.argv:
                print("ready", flush=True)
                while not run.stop:
                    time.sleep(0.01)
    net = xn.Sequential(xn.Dense(4, 8), xn.ReLU(), xn.Dropout(0.2), xn.Dense(8, 3)).initialize(seed=0)
    history = net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(0.01), epochs=3, batch_size=8,
                      callbacks=[Tell()], checkpoint=xn.Checkpoint(sys.argv[1]), resume=True)
    print(history.interrupted, history["loss"], float(abs(net.params["3.weight"]).sum()))
"""


@pytest.mark.numpy_only
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_writes_the_state_and_leaves(tmp_path, number, code):
    run = [sys.executable, "-c", textwrap.dedent(PROGRAM)]
    expected = subprocess.run([*run, tmp_path / "whole"], capture_output=True, text=True, check=True).stdout
    process = subprocess.Popen([*run, tmp_path / "cut", "--slow"], stdout=-1, stderr=-1, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=HANG)
    assert (process.returncode, out) == (code, "")
    assert err == f"fit: stopped at step 7; {tmp_path / 'cut'} has its state, resume=True goes on from it\n"
    again = subprocess.run([*run, tmp_path / "cut"], capture_output=True, text=True, check=True)
    assert again.stdout == expected


def test_a_divergence_after_a_resume_is_placed_in_its_batch(lib, data, tmp_path):
    def rate(step):
        return 1e300 if step == 8 else 0.01  # the fourth step of the second epoch

    def run(net, *callbacks, **options):
        return fit(net, data, optimizer=xn.SGD(rate), callbacks=callbacks, **options)

    with pytest.raises(StopError):
        run(network(lib), StopAt(8), checkpoint=xn.Checkpoint(tmp_path, every=7))
    net = network(lib, seed=3)
    with pytest.raises(xn.DivergenceError) as caught:
        run(net, checkpoint=xn.Checkpoint(tmp_path, every=7), resume=True)
    with pytest.raises(xn.DivergenceError) as whole:
        run(network(lib))
    assert (caught.value.epoch, caught.value.batch) == (whole.value.epoch, whole.value.batch) == (2, 4)
    assert caught.value.history.steps == whole.value.history.steps == 8
    assert str(caught.value) == str(whole.value)
