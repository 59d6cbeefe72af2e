"""Checkpoints: a run that was stopped anywhere goes on to the same bits; what cannot go on is refused and told why."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest

import xpnet as xn
from support import cases
from xpnet.files.safetensors import read, write
from xpnet.training import checkpoints
from xpnet.training.identity import own_code

N, D, K = 23, 4, 3
LOSS = xn.SoftmaxCrossEntropy()
BATCHES = 5  # of 5 rows, the last of 3


class Best(xn.Callback):
    """Remembers things of every kind that a checkpoint holds."""

    memory = ("lowest", "name", "values", "weights", "vector")

    def train_begin(self, run):
        self.lowest, self.name, self.values, self.weights, self.vector = None, "none", [], {}, np.zeros(2)

    def epoch_end(self, run):
        loss = run.history["loss"][-1]
        self.values = [*self.values, loss]
        if self.lowest is None or loss < self.lowest:
            self.lowest, self.name = loss, f"epoch {run.epoch}"
            self.weights, self.vector = run.net.params, np.array([run.epoch, run.step])


class Slower(xn.Callback):
    def epoch_end(self, run):
        if not callable(run.optimizer.learning_rate):
            run.optimizer.learning_rate *= 0.7


class StopError(Exception):
    pass


class StopAt(xn.Callback):
    """What a power cut is to a run, but for the process: after a step, or as an epoch ends."""

    def __init__(self, step=0, epoch=0):
        self.step, self.epoch = step, epoch

    def step_end(self, run):
        if run.step == self.step:
            raise StopError

    def epoch_end(self, run):
        if run.epoch == self.epoch:
            raise StopError


@pytest.fixture
def data(rng):
    return rng.normal(size=(N, D)), rng.integers(K, size=N)


def network(lib, seed=1, dtype="float32"):
    return xn.Sequential(
        xn.Dense(D, 6), xn.BatchNorm(6), xn.ReLU(), xn.Dropout(0.3), xn.Dense(6, 6), xn.Tanh(), xn.Dense(6, K)
    ).initialize(lib.backend, dtype, seed=seed)


def fit(net, data, **options):
    x, y = data
    given = {"optimizer": xn.Adam(0.01), "loss": LOSS, "epochs": 4, "batch_size": 5, "validation_data": (x, y)}
    return net.fit(x, y, **(given | options))


def arrays_of(lib, net):
    return {k: np.array(lib.to_numpy(a)) for k, a in (net.params | net.state).items()}


def assert_same(lib, one, two):
    for name, a in arrays_of(lib, one).items():
        np.testing.assert_array_equal(arrays_of(lib, two)[name], a, err_msg=name)


@pytest.mark.parametrize("kernels", ["auto", "reference"])
@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
def test_a_run_cut_off_anywhere_ends_with_the_same_bits(lib, data, tmp_path, monkeypatch, kernels, optimizer):
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    make = cases.OPTIMIZERS[optimizer]
    weights = np.linspace(0.5, 2.0, N)

    def run(net, best, *callbacks, **options):
        callbacks = [best, Slower(), *callbacks]
        return fit(net, data, optimizer=make(), callbacks=callbacks, sample_weight=weights, l2=0.01, **options)

    whole, best = network(lib), Best()
    expected = run(whole, best)
    for cut in (3, 4, 8, 16, 20):  # the last checkpoint none, in an epoch, after it, at its end
        folder = tmp_path / str(cut)
        with pytest.raises(StopError):
            run(network(lib), Best(), StopAt(cut), checkpoint=xn.Checkpoint(folder, every=3))
        again, second = network(lib, seed=9), Best()  # nothing of the first network is left
        history = run(again, second, checkpoint=xn.Checkpoint(folder, every=3), resume=True)
        if cut == 3:  # no checkpoint yet: it began anew, from other weights
            assert history["loss"] != expected["loss"]
            continue
        assert history == expected
        assert (history.steps, history.slots["step"]) == (20, 20)
        assert_same(lib, whole, again)
        assert (second.lowest, second.name, second.values) == (best.lowest, best.name, best.values)
        np.testing.assert_array_equal(second.vector, best.vector)
        for name, a in best.weights.items():
            np.testing.assert_array_equal(lib.to_numpy(a), np.asarray(lib.to_numpy(second.weights[name])))
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
    assert fit(again, data, checkpoint=xn.Checkpoint(tmp_path, every), resume=True) == history
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


@pytest.mark.parametrize("every", ["epoch", 1, 3])
@pytest.mark.parametrize("hook", ["step_end", "epoch_end"])
@pytest.mark.parametrize("last", [7, 8, 10])
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


def test_a_checkpoint_is_a_model_file(lib, data, tmp_path):
    net = network(lib)
    fit(net, data, checkpoint=xn.Checkpoint(tmp_path), callbacks=[Best()])
    twin = xn.load(max(tmp_path.glob("step-*.safetensors")), backend=lib.backend)
    assert repr(twin) == repr(net)
    assert_same(lib, net, twin)
    with pytest.raises(OSError, match=re.escape(tmp_path.name)) as caught:
        xn.load(tmp_path)
    assert "the newest is the last step-*.safetensors" in caught.value.__notes__[0]


class Own(xn.Sequential):
    """A network that JSON cannot describe: its argument is not kept."""

    def __init__(self, *layers, taste=None):
        super().__init__(*layers)


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


@pytest.mark.numpy_only
def test_a_model_file_is_no_checkpoint(lib, data, tmp_path):
    network(lib).save(tmp_path / "step-000000000020.safetensors")
    with pytest.raises(xn.FormatError, match="it does not say that it is a checkpoint"):
        fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), resume=True)


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))


def test_a_damaged_newest_file_is_passed_over_with_a_warning(lib, data, tmp_path):
    whole = network(lib)
    expected = fit(whole, data)
    with pytest.raises(StopError):
        fit(network(lib), data, callbacks=[StopAt(13)], checkpoint=xn.Checkpoint(tmp_path, every=4))
    flip(tmp_path / "step-000000000012.safetensors")
    net = network(lib, seed=2)
    with pytest.warns(
        RuntimeWarning, match=r"step-000000000012\.safetensors .*SHA-256.*going on from the checkpoint before"
    ) as caught:
        history = fit(net, data, checkpoint=xn.Checkpoint(tmp_path, every=4), resume=True)
    assert caught[0].filename == __file__
    assert history == expected
    assert_same(lib, whole, net)


@pytest.mark.numpy_only
def test_damaged_files_that_were_passed_over_do_not_count_among_the_two_kept(lib, data, tmp_path):
    names = [f"step-{step:012d}.safetensors" for step in (4, 6, 8, 10, 12)]
    with pytest.raises(StopError):
        fit(network(lib), data, callbacks=[StopAt(13)], checkpoint=xn.Checkpoint(tmp_path, every=4))
    flip(tmp_path / names[4])
    with pytest.warns(RuntimeWarning), pytest.raises(StopError):
        fit(network(lib), data, callbacks=[StopAt(11)], checkpoint=xn.Checkpoint(tmp_path, every=2), resume=True)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == names[2:]
    flip(tmp_path / names[3])
    with pytest.warns(RuntimeWarning) as warned:
        history = fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path, every=2), resume=True)
    assert (len(warned), history.steps) == (2, 20)


@pytest.mark.numpy_only
def test_a_measure_may_have_any_name(lib, data, tmp_path):
    metrics = dict.fromkeys(["top/1", "a..b", "f1.macro", "50 %", "%2F", "größe\n", "back\\slash", ""], xn.accuracy)
    expected = fit(network(lib), data, metrics=metrics)
    with pytest.raises(StopError):
        fit(network(lib), data, metrics=metrics, callbacks=[StopAt(13)], checkpoint=xn.Checkpoint(tmp_path))
    history = fit(network(lib), data, metrics=metrics, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert history == expected
    assert {f"val_{name}" for name in metrics} < history.keys()


class Remembers(xn.Callback):
    memory = ("seen",)

    def __init__(self, thing):
        self.thing, self.seen = thing, []

    def epoch_end(self, run):
        self.seen = [*self.seen, self.thing]


@pytest.mark.numpy_only
def test_a_list_in_a_callbacks_memory_may_hold_numpys_numbers(lib, data, tmp_path):
    numbers = [np.float32(0.1), np.int64(3), np.bool_(True)]
    fit(network(lib), data, callbacks=[Remembers(numbers)], epochs=2, checkpoint=xn.Checkpoint(tmp_path))
    callback = Remembers(numbers)
    fit(network(lib), data, callbacks=[callback], epochs=3, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert callback.seen == 3 * [numbers]


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    "thing",
    [
        None, True, 3, 10**30, 0.1, -0.0, float("inf"), float("nan"), "text", [], (), {}, [[]], [1, 2],
        [1.5, float("nan")], [True, False], [None, 1, 2.0, True, 2**62, -0.0],
        [(1, 0.5), (2, 0.25)], ([1, 2], [3, 4]), [[1, 2], [3]],
        [[[1]], [[2]]], ["a", 1, float("-inf")], [10**30, 1], {"a/b": 1.0, "a": {"b": [1]}, "a.b": 2}, [{}],
        {"": [None]}, np.float32(0.1), np.int64(3), np.zeros(()), np.arange(6).reshape(2, 3),
        [np.ones(2), (np.zeros(3),)],
    ],
    ids=repr,
)  # fmt: skip
def test_what_a_callback_remembers_comes_back_as_it_was(lib, data, tmp_path, thing):
    class Keeps(xn.Callback):
        memory = ("kept",)
        kept = "nothing"

        def step_end(self, run):
            if run.step == 1:
                self.kept = thing

    fit(network(lib), data, callbacks=[Keeps()], epochs=1, checkpoint=xn.Checkpoint(tmp_path))
    callback = Keeps()
    fit(network(lib), data, callbacks=[callback], epochs=1, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert (type(callback.kept), repr(callback.kept)) == (type(thing), repr(thing))


@pytest.mark.numpy_only
def test_lists_of_numbers_may_grow_beyond_what_a_header_holds(lib, data, tmp_path):
    class Long(xn.Callback):
        memory = ("values", "pairs")

        def train_begin(self, run):
            self.values, self.pairs = [], []

        def step_end(self, run):
            self.values += [run.step / 3] * 60_000
            self.pairs += [(run.step, run.step / 3)] * 20_000

    whole, again = Long(), Long()
    fit(network(lib), data, callbacks=[whole], epochs=2)
    fit(network(lib), data, callbacks=[Long()], epochs=1, checkpoint=xn.Checkpoint(tmp_path))
    fit(network(lib), data, callbacks=[again], epochs=2, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert (again.values, again.pairs) == (whole.values, whole.pairs)
    assert len(again.values) == 600_000


@pytest.mark.numpy_only
def test_what_grows_beyond_a_header_is_named_early(lib, data, tmp_path):
    with pytest.raises(ValueError, match=r"^fit: a callback's memory, Remembers\.seen, takes \d+ letters beside"):
        fit(network(lib), data, callbacks=[Remembers("x" * 20_000)], checkpoint=xn.Checkpoint(tmp_path))
    assert [path.name for path in tmp_path.glob("step-*")] == ["step-000000000005.safetensors"]


@pytest.mark.numpy_only
def test_what_a_checkpoint_cannot_hold_is_named(lib, data, tmp_path):
    with pytest.raises(TypeError, match=r"^fit: a checkpoint cannot hold \{7\}, of type set, in a callback's memory"):
        fit(network(lib), data, callbacks=[Remembers({7})], checkpoint=xn.Checkpoint(tmp_path))


@pytest.mark.numpy_only
def test_with_no_sound_file_nothing_begins(lib, data, tmp_path):
    fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path))
    for path in tmp_path.glob("step-*"):
        flip(path)
    net = network(lib, seed=2)
    before = arrays_of(lib, net)
    with pytest.warns(RuntimeWarning), pytest.raises(xn.FormatError, match="step-000000000015") as caught:
        fit(net, data, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert caught.value.__notes__ == [f"fit: no checkpoint in {tmp_path} is sound; begin anew in another folder"]
    assert all(np.array_equal(a, before[k]) for k, a in arrays_of(lib, net).items())


def change(path, **changes):
    """A sound file that says other things of the training."""
    arrays, header = read(path)
    told = json.loads(header["training"])
    header["training"] = json.dumps({k: v for k, v in (told | changes).items() if v is not None})
    write(path, arrays, {k: v for k, v in (header | changes).items() if k in header})


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": "2"}, "format version '2', this xpnet reads '1'"),
        ({"format": "keras"}, "it does not say that it is a checkpoint"),
        ({"training": "[" * 100_000}, "account of the training is unsound"),
        ({"epoch": [1]}, "account of the training is unsound"),
        ({"epoch": float("inf")}, "account of the training is unsound"),
        ({"slots": {"m": {"array": True}, "step": {}}}, "account of the training is unsound"),
        ({"rng": {}}, "account of the training is unsound"),
        ({"callbacks": None}, "account of the training is unsound"),
    ],
)
def test_an_unsound_account_is_refused(lib, data, tmp_path, changes, message):
    fit(network(lib), data, epochs=1, checkpoint=xn.Checkpoint(tmp_path))
    (path,) = tmp_path.glob("step-*")
    change(path, **changes)
    with pytest.raises(xn.FormatError, match=message):
        fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), resume=True)


ZOO = [None, True, -5, 2**70, -1.0, 1e300, "\x1b[31m" * 999, [], [1], {}, {"value": 3}, {"float": "nan"}, {"same": "x"}]

MAY_BE = r"""(?x)  # what a run may have come to, and what nothing depends on
    callbacks\.\d\.(best(=\{'value':\ 3\}|\.value=(-?[\d.e+]+|None))|best_(params|state)\.dict=\{\}|sound\.value=True)
    |callbacks\.\d\.(best_epoch|wait|cooling)(=\{'value':\ 3\}|\.value=\d+)
    |history\.dict(=\{\}|\.\w+=left\ out)
    |optimizer\.(clip_norm|clip_value|learning_rate|weight_decay)(=\{'value':\ 3\}|\.value=([\d.e+]+|None))
    |rng\.state\.(state|inc)=\d+ |slots\.dict\.step=\{'value':\ 3\} |stopped=True |seconds=1e\+300 |xpnet=.*
    |threads=\{('value':\ 3)?\} |threads\.\w+=left\ out
"""


def places(told, at=()):
    """Where anything stands in an account."""
    yield at
    if isinstance(told, dict | list):
        for key in told if isinstance(told, dict) else range(len(told)):
            yield from places(told[key], (*at, key))


def forged(text, at, value):
    """The account with another value in one place, or without it."""
    told = spot = json.loads(text)
    for key in at[:-1]:
        spot = spot[key]
    if not at:
        return json.dumps(value)
    if value == "left out":
        del spot[at[-1]]
    else:
        spot[at[-1]] = value
    return json.dumps(told)


@pytest.mark.numpy_only
def test_a_forged_account_is_refused(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    data = rng.normal(size=(8, 2)), rng.integers(2, size=8)

    def run(net, *callbacks, epochs=2, **options):
        made = [xn.EarlyStopping(), xn.ReduceOnPlateau(), *callbacks]
        made = {"batch_size": 4, "optimizer": xn.SGD(), "callbacks": made, "epochs": epochs}
        return fit(net, data, checkpoint=xn.Checkpoint(tmp_path, every=1), **(made | options))

    def small():
        return xn.Sequential(xn.Dense(2, 2)).initialize(seed=1)

    with pytest.raises(StopError):
        run(small(), StopAt(4))
    arrays, header = read(max(tmp_path.glob("step-*")))
    min(tmp_path.glob("step-*")).unlink()
    net, before, accepted = small(), bits(small()), set()
    monkeypatch.setattr(checkpoints, "write", lambda *file: None)
    for at in places(json.loads(header["training"])):
        for value in [*ZOO, "left out"]:
            account = header | {"training": forged(header["training"], at, value)}
            monkeypatch.setattr(checkpoints, "read", lambda path, account=account: (arrays, account))
            try:
                run(net, resume=True, epochs=1)
            except ValueError as error:
                text, fact = str(error), type(error) is not xn.FormatError
                sound = fact or len(text) < 500, text.replace("\n", "").isprintable(), fact or text.isprintable()
                known = not fact or "facts" in at or "a checkpoint keeps numbers alone" in text
                assert (*sound, known, bits(net) == before) == (True,) * 5, (at, value)
            else:
                accepted.add(f"{'.'.join(map(str, at))}={str(value)[:20]}")
                net = small()
    assert [each for each in sorted(accepted) if not re.fullmatch(MAY_BE, each)] == []
    assert len(accepted) > 40


def bits(net):
    return {name: a.tobytes() for name, a in (net.params | net.state).items()}


@pytest.mark.numpy_only
def test_what_differs_is_listed_and_refused(lib, data, tmp_path):
    x, y = data
    fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), epochs=1, optimizer=xn.Adam(lambda step: 0.01))
    files = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    net = network(lib, dtype="float64")
    before = arrays_of(lib, net)
    with pytest.raises(ValueError, match="is of another run, from which this one differs in") as error:
        fit(
            net,
            (x + 1e-9, y),
            checkpoint=xn.Checkpoint(tmp_path),
            resume=True,
            optimizer=xn.SGD(),
            batch_size=6,
            callbacks=[Best()],
            l2=0.5,
        )
    text = str(error.value)
    for name in (
        "dtype: 'float32' then, 'float64' now",
        "batch_size: 5 then, 6 now",
        "l2: 0.0 then, 0.5 now",
        "x: float32",
    ):
        assert name in text
    assert "optimizer: Adam(learning_rate=<function" in text
    assert f"callbacks with a memory: [] then, [<{Best.__module__}.Best object>] now" in text
    for same in ("shuffle", "network", "loss:"):
        assert f"\n  {same}" not in text
    assert " at 0x" not in text
    assert all(np.array_equal(a, before[k]) for k, a in arrays_of(lib, net).items())
    assert files == {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), resume=True, optimizer=xn.Adam(lambda step: 0.01))


@pytest.mark.numpy_only
def test_a_folder_with_another_runs_files_is_not_written_over(lib, data, tmp_path):
    fit(network(lib), data, epochs=1, checkpoint=xn.Checkpoint(tmp_path))
    with pytest.raises(ValueError, match=r"has the checkpoints of a run, the newest step-000000000005.*resume=True"):
        fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path))


@pytest.mark.numpy_only
def test_two_runs_do_not_share_a_folder(lib, data, tmp_path):
    class Second(xn.Callback):
        def train_begin(self, run):
            with pytest.raises(BlockingIOError, match="another run writes its checkpoints here") as error:
                fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), resume=True)
            assert error.value.filename == str(tmp_path)

    fit(network(lib), data, callbacks=[Second()], checkpoint=xn.Checkpoint(tmp_path))


CODE = """
    import functools
    import xpnet as xn
    BASE, TABLE = {base}, [0.1, {base}]

    def helper(step):
        return BASE

    def reads_a_global(step):
        return 0.01 * TABLE[1]

    def calls_another(step):
        return helper(step)

    def has_a_default(step, rate={base}):
        return rate

    def holds(rate):
        def held(step):
            return rate
        return held

    def by_keyword(step, *, rate):
        return rate

    class Called:
        def __init__(self, rate):
            self.rate = rate

        def __call__(self, step):
            return self.rate

    class Overrides:
        def __call__(self, step):
            return {base}

    class Inherits(Overrides):
        scale = property(lambda self: {base})

    class Loss(xn.MeanSquaredError):
        def terms(self, prediction, target):
            terms, gradient = super().terms(prediction, target)
            return {base} * terms, {base} * gradient

    class Layer(xn.Layer):
        def forward(self, x, training=False):
            return {base} * x, None

        def backward(self, dy, cache):
            return {base} * dy, {{}}

    things = [
        reads_a_global, calls_another, has_a_default, holds({base}), functools.partial(by_keyword, rate={base}),
        Called({base}), Called({base}).__call__, Overrides(), Inherits, xn.WarmUp(lambda step: {base}, 3), Loss(),
        xn.Sequential(xn.Dense(3, 2), xn.Sequential(Layer())), {{"mine": lambda p, t: {base} in ("a", {base})}},
        xn.Adam(helper), lambda step: [{base} for _ in range(step)],
    ]
"""


def things(base):
    space = {"__name__": "__main__"}
    exec(textwrap.dedent(CODE.format(base=base)), space)
    return space["things"]


@pytest.mark.numpy_only
def test_functions_and_classes_are_told_apart_by_their_code_and_constants():
    for one, twin, other in zip(things(0.5), things(0.5), things(0.25), strict=True):
        assert own_code(one) == own_code(twin), one
        assert own_code(one) != own_code(other), one
    assert own_code([xn.Adam(xn.CosineDecay(0.1, 3)), network_of_ours(), xn.accuracy, np.exp, np.linalg.norm]) == ""


def network_of_ours():
    return xn.Sequential(xn.Dense(3, 2), xn.Sequential(xn.ReLU()))


@pytest.mark.numpy_only
def test_code_is_told_the_same_in_every_process():
    program = textwrap.dedent(CODE.format(base="{'a', 'b', 'c', 0.5}")) + textwrap.dedent(
        """
        from xpnet.training.identity import own_code
        print(*map(own_code, things))
        """
    )
    told = {
        subprocess.check_output([sys.executable, "-c", program], env={**os.environ, "PYTHONHASHSEED": seed})
        for seed in ("1", "2")
    }
    assert len(told) == 1


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("optimizer", lambda base: {"optimizer": xn.Adam(things(base)[3])}),
        ("loss", lambda base: {"loss": things(base)[10]}),
        ("metrics", lambda base: {"metrics": {"mine": lambda p, t: base}}),
    ],
)
def test_other_code_of_the_same_name_is_refused(lib, data, tmp_path, name, options):
    x, y = data
    data = x, np.eye(K)[y]
    fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path), **options(0.5))
    again = {"checkpoint": xn.Checkpoint(tmp_path), "resume": True}
    with pytest.raises(ValueError, match=rf"\n  code of {name}: \w+, Python 3\.\d+ then, \w+, Python 3\.\d+ now\n"):
        fit(network(lib), data, **again, **options(0.25))
    fit(network(lib), data, **again, **options(0.5))


@pytest.mark.numpy_only
def test_a_resumed_run_takes_as_many_threads_as_before(lib, data, tmp_path):
    limits = pytest.importorskip("threadpoolctl").threadpool_limits
    seen = []

    class Threads(xn.Callback):
        def step_end(self, run):
            seen.append(checkpoints.threads().get("blas"))

    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(600, 400)), rng.integers(K, size=600)

    def wide():
        return xn.Sequential(xn.Dense(400, 300), xn.Tanh(), xn.Dense(300, K)).initialize(lib.backend, seed=1)

    def run(net, *callbacks, **options):
        made = [Threads(), *callbacks]
        return fit(net, (x, y), batch_size=200, epochs=3, validation_data=None, callbacks=made, **options)

    whole, again = wide(), wide()
    with limits(1):
        run(whole)
        with pytest.raises(StopError):
            run(wide(), StopAt(5), checkpoint=xn.Checkpoint(tmp_path, every=2))
        seen.clear()
    with limits(2):
        now = checkpoints.threads()
        run(again, checkpoint=xn.Checkpoint(tmp_path, every=2), resume=True)
        assert checkpoints.threads() == now
    assert seen == 5 * [1]
    assert_same(lib, whole, again)


@pytest.mark.numpy_only
@pytest.mark.parametrize("told", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_where_threads_cannot_be_set_other_numbers_of_them_bring_a_warning(lib, data, tmp_path, monkeypatch, told):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    for name in ("OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(told, "3")
    fit(network(lib), data, epochs=1, checkpoint=xn.Checkpoint(tmp_path))
    fit(network(lib), data, epochs=2, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    monkeypatch.setenv(told, "5")
    with pytest.warns(RuntimeWarning, match=r"\(blas 3; now blas 5\): the last bits may differ; pip") as caught:
        fit(network(lib), data, epochs=3, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert [each.filename for each in caught] == [__file__]
    monkeypatch.delenv(told)
    assert checkpoints.threads()["blas"] >= 1


@pytest.mark.numpy_only
def test_a_file_system_without_locks_is_not_taken_for_another_run(lib, data, tmp_path, monkeypatch):
    def refuse(file):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(checkpoints, "lock", refuse)
    with pytest.raises(OSError, match=r"files cannot be locked here.*\(No locks available\)") as error:
        fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path))
    assert (type(error.value), error.value.filename) == (OSError, str(tmp_path))


@pytest.mark.numpy_only
def test_what_a_killed_run_left_is_cleared_away(lib, data, tmp_path):
    stale, other = tmp_path / ".step-000000000003.safetensors.0123456789abcdef.tmp", tmp_path / "notes.tmp"
    stale.touch()
    other.touch()
    fit(network(lib), data, epochs=1, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert not stale.exists()
    assert other.exists()


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


@pytest.mark.numpy_only
@pytest.mark.parametrize("every", [0, 2.5, "step", None])
def test_every_is_an_epoch_or_a_number_of_steps(every):
    with pytest.raises(ValueError, match='every, if not "epoch", must be a whole number of at least 1'):
        xn.Checkpoint("runs", every)


@pytest.mark.numpy_only
def test_a_folder_that_cannot_be_is_an_oserror_naming_it(lib, data, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        fit(network(lib), data, checkpoint=xn.Checkpoint(tmp_path / "file" / "runs"))


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
    out, err = process.communicate(timeout=600)
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
