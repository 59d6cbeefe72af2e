"""Checkpoints: a run that was stopped anywhere goes on to the same bits; what cannot go on is refused and told why."""

import errno
import json
import re
import signal
import subprocess
import sys
import textwrap

import cases
import numpy as np
import pytest

import xpnet as xn
from xpnet import checkpoints
from xpnet.container import read, write

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
    """What a power cut is to a run, but for the process."""

    def __init__(self, step):
        self.step = step

    def step_end(self, run):
        if run.step == self.step:
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
    """A network that JSON cannot describe."""


def test_a_network_that_no_file_can_describe_is_resumed_all_the_same(lib, data, tmp_path):
    def own(seed):
        return Own(*network(lib).layers).initialize(lib.backend, seed=seed)

    whole = own(1)
    expected = fit(whole, data)
    with pytest.raises(StopError):
        fit(own(1), data, callbacks=[StopAt(12)], checkpoint=xn.Checkpoint(tmp_path))
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
    assert "callbacks with a memory: [] then, [<test_checkpoints.Best object>] now" in text
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
    out, err = process.communicate(timeout=30)
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
