"""Sources of rows and streams of batches train to the bits of the same arrays, and their faults are named."""

import itertools
import os
import threading
import time
import traceback
import tracemalloc
import weakref

import numpy as np
import pytest

import xpnet as xn
from support import ROOT, cases
from support.checkpoints import StopAt, StopError
from support.processes import python
from support.training import On, bits, interrupt
from xpnet.common.checks import kind_of
from xpnet.training import checkpoints, inputs, run, sources
from xpnet.training.sources import prefetched

N, D, K, SIZE = 23, 4, 3, 5
LOSS = xn.SoftmaxCrossEntropy()


def network(lib, dtype="float32"):
    layers = xn.Dense(D, 6), xn.BatchNorm(6), xn.ReLU(), xn.Dropout(0.3), xn.Dense(6, K)
    return xn.Sequential(*layers).initialize(lib.backend, dtype, seed=1)


@pytest.fixture
def data(rng):
    return rng.normal(size=(N, D)), rng.integers(K, size=N), rng.uniform(0.5, 2.0, size=N)


class Table:
    """A source of rows, as a user writes one."""

    def __init__(self, *parts):
        self.parts, self.asked = parts, []

    def __len__(self):
        return len(self.parts[0])

    def __getitem__(self, rows):
        self.asked.append(rows)
        return tuple(part[rows] for part in self.parts)


class Batches:
    """A stream that begins anew each time."""

    def __init__(self, *parts, size=SIZE):
        self.parts, self.slices = parts, xn.data.minibatches(len(parts[0]), size)

    def __iter__(self):
        for rows in self.slices:
            yield tuple(part[rows] for part in self.parts)


class Sized(Batches):
    def __len__(self):
        return len(self.slices)


def mapped(path, *parts):
    files = []
    for i, part in enumerate(parts):
        file = np.memmap(path / str(i), part.dtype, "w+", shape=part.shape)
        file[...] = part
        files.append(file)
    return xn.data.ArraySource(*files)


def files_of(path, *parts):
    names = []
    for i, rows in enumerate(xn.data.minibatches(N, 2 * SIZE)):
        names.append(path / f"{i}.npz")
        np.savez(names[-1], **dict(zip(("x", "y", "weight"), (part[rows] for part in parts), strict=False)))
    return names


ROWS = {
    "rows": lambda path, *parts: Table(*parts),
    "maps": mapped,
}
STREAMS = {
    "batches": lambda path, *parts: Batches(*parts),
    "sized": lambda path, *parts: Sized(*parts),
    "list": lambda path, *parts: list(Batches(*parts)),
    "files": files_of,
}


def trained(lib, *data, kernels="auto", optimizer=None, net=None, **options):
    net = net or network(lib)
    options = {"epochs": 3, "batch_size": SIZE} | options
    history = net.fit(*data, loss=LOSS, optimizer=optimizer or xn.Adam(0.01), **options)
    return bits(net), dict(history)


@pytest.mark.parametrize("weighted", [False, True], ids=["", "weighted"])
def test_a_source_trains_to_the_bits_of_the_arrays(lib, data, tmp_path, weighted):
    x, y, weight = data
    parts = (x, y, weight) if weighted else (x, y)
    expected = {
        shuffle: trained(lib, x, y, sample_weight=weight if weighted else None, shuffle=shuffle)
        for shuffle in (False, True)
    }
    for name, make in (ROWS | STREAMS).items():
        for shuffle in [True, False] if name in ROWS else [False]:
            source = make(tmp_path, *parts)
            assert trained(lib, source, shuffle=shuffle) == expected[shuffle], name


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_it_does_with_any_number_of_batches_ahead(strict_lib, data, prefetch):
    x, y, _ = data
    for source, shuffle in ((Table(x, y), True), (Batches(x, y), False)):
        expected = trained(strict_lib, x, y, shuffle=shuffle)
        assert trained(strict_lib, source, shuffle=shuffle, prefetch=prefetch) == expected


@pytest.mark.parametrize("optimizer", cases.OPTIMIZERS)
def test_every_optimizer_does(lib, data, optimizer):
    x, y, _ = data
    make = cases.OPTIMIZERS[optimizer]
    for source, shuffle in ((Table(x, y), True), (Batches(x, y), False)):
        expected = trained(lib, x, y, optimizer=make(), shuffle=shuffle)
        assert trained(lib, source, optimizer=make(), shuffle=shuffle) == expected


@pytest.mark.parametrize("name", [
    "rows", "batches",  # on the host one of each, since what the others do of their own is the same for all backends
    *(pytest.param(name, marks=pytest.mark.not_on_host) for name in ROWS | STREAMS if name not in ("rows", "batches")),
])  # fmt: skip
def test_a_run_that_is_cut_off_anywhere_resumes_to_the_same_bits(strict_lib, data, tmp_path, name, monkeypatch):
    for module in (run, checkpoints):
        monkeypatch.setattr(module, "RECENT", 3)  # fewer than an epoch's steps
    source = (ROWS | STREAMS)[name](tmp_path, *data)
    expected = trained(strict_lib, source, shuffle=name in ROWS)
    for step in (1, 4, 5, 6, 12):
        folder = tmp_path / f"run{step}"
        how = {"checkpoint": xn.Checkpoint(folder, every=1), "shuffle": name in ROWS}
        with pytest.raises(StopError):
            trained(strict_lib, source, callbacks=[StopAt(step)], **how)
        assert trained(strict_lib, source, resume=True, **how) == expected


KILLED = """
import json, os, pathlib, random, shutil, sys
import numpy as np
import xpnet as xn

os.fsync = lambda file: None  # waits for the disk, of which a kill takes nothing
sys.path[:0] = sys.argv[2:]
from parts.promises import calls_of
from training.test_sources import Batches, files_of, mapped

folder, rng, moments = pathlib.Path(sys.argv[1]), np.random.default_rng(0), random.Random(1)
data = rng.normal(size=(23, 4)), rng.integers(3, size=23), rng.uniform(0.5, 2.0, size=23)
kinds = [lambda: mapped(folder, *data), lambda: Batches(*data), lambda: files_of(folder, *data),
         lambda: xn.data.shuffled(Batches(*data), 9)]

def train(source, checkpoint=None):
    layers = xn.Dense(4, 6), xn.BatchNorm(6), xn.ReLU(), xn.Dropout(0.3), xn.Dense(6, 3)
    net = xn.Sequential(*layers).initialize("numpy", seed=1)
    history = net.fit(source, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(0.01), epochs=3, batch_size=5,
                      checkpoint=checkpoint, resume=checkpoint is not None)
    net.save(folder / "net")
    (folder / "history").write_text(json.dumps(history))

def end():
    return [(folder / name).read_bytes() for name in ("net", "history")]

kills, runs = 0, folder / "runs"
for kind in kinds:
    source = kind()
    work = lambda: train(source, xn.Checkpoint(runs, every=3))
    work()  # imports and compiles once for all that are forked from here
    train(source)
    shutil.rmtree(runs)
    expected, before, calls = end(), kills, calls_of(work)
    while kills < before + 5:
        shutil.rmtree(runs)
        while not calls_of(work, int(moments.uniform(0.1, 1.2) * calls)):
            kills += 1
            assert kills < 100
        assert end() == expected
    shutil.rmtree(runs)
print(kills)
"""


@pytest.mark.numpy_only
@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_runs_that_are_killed_at_20_random_moments_resume_to_the_same_bits(strict_lib, tmp_path):
    """By SIGKILL, at a call of some function: in a step, or in the middle of writing a checkpoint."""
    assert int(python(KILLED, str(tmp_path), str(ROOT / "scripts"), str(ROOT / "tests"))) >= 20


def test_another_source_than_the_runs_is_refused(strict_lib, data, tmp_path):
    x, y, _ = data
    trained(strict_lib, Table(x, y), checkpoint=xn.Checkpoint(tmp_path))
    how = {"checkpoint": xn.Checkpoint(tmp_path), "resume": True}
    for other in (Table(x[:-1], y[:-1]), Table(x + 1.0, y), Batches(x, y), (x, y)):
        with pytest.raises(ValueError, match="from which this one differs in"):
            trained(strict_lib, *(other if isinstance(other, tuple) else [other]), **how)


def test_rows_are_asked_for_in_increasing_order_and_several_batches_at_a_time(strict_lib, data):
    x, y, _ = data
    source = Table(x, y)
    trained(strict_lib, source, epochs=1)
    _, *asked = source.asked
    assert [len(rows) for rows in asked] == [N]
    assert all((np.diff(rows) > 0).all() for rows in asked)


@pytest.mark.parametrize(("make", "times"), [(xn.data.ArraySource, 1), (Table, 3)])
def test_rows_that_are_the_same_in_each_epoch_are_found_finite_once(strict_lib, data, monkeypatch, make, times):
    looked, all_finite = [], inputs.ops.all_finite
    monkeypatch.setattr(inputs.ops, "all_finite", lambda *a: looked.extend(b.shape for b in a) or all_finite(*a))
    trained(strict_lib, make(*data[:2]), epochs=3)
    assert sum(rows for rows, *row in looked if row == [D]) == SIZE + times * N  # the first batch to begin with


def test_a_generator_is_one_epoch(strict_lib, data):
    x, y, _ = data
    expected = trained(strict_lib, x, y, epochs=1, shuffle=False)
    assert trained(strict_lib, iter(Batches(x, y)), epochs=1) == expected
    with pytest.raises(
        ValueError, match=r"a generator gives one epoch, and epochs is 2: give a class with an __iter__"
    ):
        trained(strict_lib, iter(Batches(x, y)), epochs=2)
    used = iter(Batches(x, y))
    trained(strict_lib, used, epochs=1)
    with pytest.raises(
        ValueError, match=r"a generator gave no batches; .*; one that was used before gives no more: make"
    ):
        trained(strict_lib, used, epochs=1)


@pytest.mark.torch_only
def test_batches_of_a_torch_data_loader(lib, data):
    import torch

    x, y, _ = data
    rows = torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))
    loader = torch.utils.data.DataLoader(rows, batch_size=SIZE)
    assert trained(lib, loader) == trained(lib, x, y, shuffle=False)


@pytest.mark.parametrize("name", ["rows", "sized", "list", "files"])
def test_a_source_is_evaluated_and_predicted_as_the_arrays_are(lib, data, tmp_path, name):
    x, y, _ = data
    source = (ROWS | STREAMS)[name](tmp_path, x, y)
    net = network(lib, "float64")
    expected = net.evaluate(x, y, LOSS, ["accuracy", "f1"], batch_size=SIZE)
    assert net.evaluate(source, loss=LOSS, metrics=["accuracy", "f1"], batch_size=SIZE) == pytest.approx(expected)
    host = net.backend.to_numpy
    np.testing.assert_allclose(host(net.predict(source)), host(net.predict(x)), rtol=1e-13)
    np.testing.assert_allclose(host(net.predict(part[0] for part in Batches(x))), host(net.predict(x)), rtol=1e-13)
    histories = [
        network(lib, "float64").fit(
            x, y, loss=LOSS, optimizer=xn.Adam(), validation_data=held_out, metrics=["accuracy"], shuffle=False
        )
        for held_out in ((x, y), source)
    ]
    assert histories[0].keys() == histories[1].keys()
    assert histories[0]["val_loss"] == pytest.approx(histories[1]["val_loss"])


# --- weights ----------------------------------------------------------------------------------------------------------


def test_the_mean_of_weights_does_not_depend_on_how_they_are_divided(rng, monkeypatch):
    monkeypatch.setattr(inputs, "SUMMED", 7)
    weights = rng.uniform(size=50) * 10.0 ** rng.integers(-300, 300, size=50)
    means = {inputs.mean_weight(np.split(weights, cuts)) for cuts in ([], [1], [20, 30], range(1, 50))}
    assert len(means) == 1
    assert means.pop() == pytest.approx(weights.mean())
    assert inputs.mean_weight([np.full(10, 1.5e308)]) == 1.5e308


def test_a_source_that_knows_the_mean_of_its_weights_is_not_gone_through_for_it(strict_lib, data):
    class Known(Batches):
        mean_weight, begun = data[2].mean(), 0

        def __iter__(self):
            self.begun += 1
            yield from super().__iter__()

    source = Known(*data)
    trained(strict_lib, source)
    assert source.begun == 3
    with pytest.raises(ValueError, match="weights are divided by their mean over all rows, which takes a pass"):
        trained(strict_lib, iter(Batches(*data)), epochs=1)


# --- faults -----------------------------------------------------------------------------------------------------------


def with_batch(number, change):
    """A stream whose batch of that number is changed."""

    class Changed(Batches):
        def __iter__(self):
            for i, batch in enumerate(super().__iter__(), 1):
                yield change(*batch) if i == number else batch

    return Changed


NAN = np.where(np.arange(D) == 2, np.nan, 0.0)
FAULTS = {
    "not finite": (lambda x, y: (x + NAN, y), ValueError, "fit, batch 3: x has 5 NaN or infinite entries"),
    "other columns": (lambda x, y: (x[:, :3], y), ValueError, r"fit, batch 3: its rows have x of float64 \(3,\)"),
    "other dtype": (lambda x, y: (x.astype("float32"), y), ValueError, r"fit, batch 3: its rows have x of float32"),
    "rows amiss": (lambda x, y: (x, y[:-1]), ValueError, "fit, batch 3: x has 5 rows and y 4"),
    "no pair": (lambda x, y: x, TypeError, r"fit: batch 3 of a Changed is an ndarray, expected \(x, y\) or"),
    "a dict": (lambda x, y: {"x": x}, TypeError, r"a Changed is a dict of 'x', expected .* whose __iter__ yields"),
    "a weight": (lambda x, y: (x, y, x[:, 0] ** 2), ValueError, "fit, batch 3: its rows have x .* and weight"),
    "a class outside": (lambda x, y: (x, y + K), ValueError, "class labels run from 3 to 5"),
    "one row": (lambda x, y: (x[:1], y[:1]), ValueError, "1 rows leave a batch of 1 for layer 1"),
}


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_batch_is_named_and_the_network_is_as_the_steps_before_left_it(strict_lib, data, fault, prefetch):
    x, y, _ = data
    change, error, words = FAULTS[fault]
    net, two = network(strict_lib), network(strict_lib)
    with pytest.raises(error, match=words) as raised:
        trained(strict_lib, with_batch(3, change)(x, y), net=net, prefetch=prefetch)
    trained(strict_lib, Batches(x[: 2 * SIZE], y[: 2 * SIZE]), net=two, epochs=1)
    assert bits(net) == bits(two)
    assert "batch 3" in str(raised.value) + "".join(getattr(raised.value, "__notes__", []))


def test_a_wrong_row_is_named_and_the_batches_before_it_are_trained_on(strict_lib, data):
    x, y, _ = data
    x = np.concatenate([x[:12], [[np.inf] * D], x[13:]])
    net, two = network(strict_lib), network(strict_lib)
    with pytest.raises(ValueError, match="fit, batch 3, rows 10 to 14: x has 4 NaN or infinite"):
        trained(strict_lib, Table(x, y), net=net, shuffle=False)
    trained(strict_lib, x[: 2 * SIZE], y[: 2 * SIZE], net=two, epochs=1, shuffle=False)
    assert bits(net) == bits(two)


def test_a_source_that_gives_fewer_rows_than_its_len_says_is_refused(strict_lib, data):
    x, y, _ = data

    class Short(Table):
        def __len__(self):
            return N + 4

    with pytest.raises(ValueError, match="the source gave 3 rows for batch 5, rows 20 to 24, of the 27 it has"):
        trained(strict_lib, Short(x, y), shuffle=False)


def gone(rows):
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("give", "error", "words", "note"),
    [
        (
            lambda rows: data_of_five(rows),
            IndexError,
            "out of bounds",
            "len is 23, for batch 1, rows 0 to 4, by an array",
        ),
        (
            lambda rows: np.zeros(9)[int(rows)],
            TypeError,
            "slice",
            "by a slice. A source that takes one row number alone",
        ),
        (gone, OSError, "the disk is gone", "for batch 1, rows 0 to 4, by a slice"),
    ],
    ids=["fewer rows", "single rows", "its own error"],
)
def test_what_a_source_of_rows_was_asked_for_when_it_failed_is_told(strict_lib, give, error, words, note):
    class Source(Table):
        def __getitem__(self, rows):
            return give(rows)

    with pytest.raises(error, match=words) as raised:
        trained(strict_lib, Source(range(N)))
    assert note in "".join(raised.value.__notes__)


def data_of_five(rows):
    return np.ones((5, D))[rows], np.zeros(5, int)[rows]


def test_an_error_of_a_streams_own_is_told_in_place_of_which_batch_it_came(strict_lib, data):
    class Raises(Batches):
        def __iter__(self):
            yield from itertools.islice(super().__iter__(), 2)
            raise OSError("the disk is gone")

    net, two = network(strict_lib), network(strict_lib)
    with pytest.raises(OSError, match="the disk is gone") as raised:
        trained(strict_lib, Raises(*data[:2]), net=net)
    assert raised.value.__notes__ == ["fit: raised by a Raises, in place of batch 3"]
    trained(strict_lib, *(part[: 2 * SIZE] for part in data[:2]), net=two, epochs=1, shuffle=False)
    assert bits(net) == bits(two)


@pytest.mark.parametrize("make", [Batches, Table])
@pytest.mark.parametrize("weight", [np.nan, -1.0, np.inf])
def test_a_wrong_weight_is_named_before_the_first_step(strict_lib, data, make, weight):
    x, y, weights = data
    net = network(strict_lib)
    before = bits(net)
    with pytest.raises(
        ValueError, match=rf"batch \d.*: sample_weight must be finite and at least 0, got {weight} in row"
    ):
        trained(strict_lib, make(x, y, np.where(np.arange(N) == 12, weight, weights)), net=net)
    with pytest.raises(ValueError, match=r"the mean of the weights of a .* must be above 0 and finite, got 0.0"):
        trained(strict_lib, make(x, y, 0.0 * weights), net=net)
    assert bits(net) == before
    some = weights * (np.arange(N) >= SIZE)  # none in the first batch, which is no fault
    assert trained(strict_lib, make(x, y, some), shuffle=False) == trained(
        strict_lib, x, y, sample_weight=some, shuffle=False
    )


@pytest.mark.parametrize("x", [{"x": 1}, len, np.ones((5, D)), [], "data.npz"], ids=kind_of)
def test_what_is_no_source_needs_a_y(strict_lib, x):
    for call in ("fit", "evaluate"):
        options = {"optimizer": xn.SGD()} if call == "fit" else {}
        with pytest.raises(
            TypeError, match=rf"^{call}: y is None, .*; x is {kind_of(x)}, and only a source of batches"
        ):
            getattr(network(strict_lib), call)(x, loss=LOSS, **options)


def test_a_stream_of_another_length_than_it_says_is_told(strict_lib, data):
    x, y, _ = data

    class Wrong(Batches):
        def __len__(self):
            return 7

    with pytest.warns(RuntimeWarning, match="a .*Wrong gave 5 batches in epoch 1, and its len says 7"):
        assert trained(strict_lib, Wrong(x, y)) == trained(strict_lib, x, y, shuffle=False)


def test_a_stream_that_does_not_begin_anew_is_refused_where_it_ends(strict_lib, data):
    class Once:
        def __init__(self, batches):
            self.batches = iter(batches)

        def __iter__(self):
            yield from self.batches

    net = network(strict_lib)
    with pytest.raises(ValueError, match=r"an Once gave no batches in epoch 2: its __iter__ must begin anew"):
        trained(strict_lib, Once(Batches(*data[:2])), net=net)
    assert bits(net) == trained(strict_lib, *data[:2], epochs=1, shuffle=False)[0]


def test_an_empty_stream_and_arguments_beside_a_source_are_refused(strict_lib, data):
    x, y, weight = data
    for empty in (iter([]), Table(x[:0], y[:0])):
        with pytest.raises(ValueError, match="gave no batches"):
            trained(strict_lib, empty, epochs=1)
    with pytest.raises(
        ValueError, match=r"a .*Batches, a source whose batches are .*, and y and sample_weight is given"
    ):
        trained(strict_lib, Batches(x, y), y, sample_weight=weight)
    with pytest.raises(ValueError, match="prefetch must be a whole number of at least 0"):
        trained(strict_lib, Batches(x, y), prefetch=-1)
    with pytest.raises(ValueError, match="validation_data is a generator"):
        trained(strict_lib, x, y, validation_data=iter(Batches(x, y)))


def test_an_endless_stream_ends_where_a_callback_stops_it(strict_lib, data):
    class Endless(Batches):
        def __iter__(self):
            return itertools.islice(itertools.cycle(super().__iter__()), 10_000)  # endless, but for a test that fails

    def stop(run):
        run.stop = run.step == 8

    net = network(strict_lib)
    _, history = trained(strict_lib, Endless(*data[:2]), net=net, callbacks=[On(step_end=stop)])
    assert len(history["loss"]) == 1

    def give_up(run):
        run.history.interrupted = run.step == 8

    _, history = trained(strict_lib, Endless(*data[:2]), net=net, callbacks=[On(step_end=give_up)])
    assert history == {}


@pytest.mark.parametrize("number", [7, 40, 70])
def test_a_step_that_is_not_finite_is_found_in_a_stream(lib, rng, number):
    x, y = rng.normal(size=(5 * 80, D)), rng.integers(K, size=5 * 80)
    x[5 * (number - 1)] = 1e30  # which overflows in the layers
    net = network(lib)
    with pytest.raises(xn.DivergenceError, match=f"not finite in epoch 1, batch {number}:"):
        net.fit(Batches(x, y), loss=LOSS, optimizer=xn.SGD(1e-3))
    two = network(lib)
    with pytest.raises(xn.DivergenceError, match=f"not finite in epoch 1, batch {number}:"):
        two.fit(x, y, loss=LOSS, optimizer=xn.SGD(1e-3), batch_size=SIZE, shuffle=False)
    assert bits(net) == bits(two)


def test_a_file_that_holds_no_batches_is_named(strict_lib, data, tmp_path):
    files = files_of(tmp_path, *data[:2])
    net, two = network(strict_lib), network(strict_lib)
    for damage, words in (
        (lambda path: np.savez(path, a=data[0]), r"1\.npz holds a, expected x and y"),
        (lambda path: path.write_bytes(b"PK not a zip"), r"1\.npz' is not an \.npz file"),
    ):
        damage(files[1])
        with pytest.raises(ValueError, match=words):
            trained(strict_lib, files, net=net, epochs=1)
    for _ in range(2):
        trained(strict_lib, *(part[: 2 * SIZE] for part in data[:2]), net=two, epochs=1, shuffle=False)
    assert bits(net) == bits(two)


# --- the thread -------------------------------------------------------------------------------------------------------


def reading():
    return [thread for thread in threading.enumerate() if thread.name == "xpnet-prefetch"]


def broken():
    yield 1
    raise LookupError("row 7 is gone")


def test_items_come_in_order_and_an_exception_in_its_place_with_its_traceback():
    assert list(prefetched(iter(range(100)), 3)) == [*range(100)]
    items = prefetched(broken(), 2)
    assert next(items) == 1
    with pytest.raises(LookupError, match="row 7 is gone") as raised:
        next(items)
    assert "broken" in [frame.name for frame in traceback.extract_tb(raised.value.__traceback__)]
    assert not reading()


def test_no_more_are_made_than_asked_for_and_the_thread_ends_with_its_reader():
    made, closed = [], []

    def items():
        try:
            for i in range(100):
                made.append(i)
                yield i
        finally:
            closed.append(True)

    ahead = prefetched(items(), 3)
    assert next(ahead) == 0
    while len(made) < 5:  # one taken, three that wait, one in hand
        time.sleep(0.001)
    ahead.close()
    assert (len(made), closed, reading()) == (5, [True], [])


def test_a_thread_that_has_died_is_told(monkeypatch):
    class Dead(threading.Thread):
        def start(self):
            pass

        def join(self, timeout=None):
            pass

    monkeypatch.setattr(sources.threading, "Thread", Dead)
    with pytest.raises(RuntimeError, match="the thread that reads the source has died"):
        next(prefetched(iter([1]), 2))


@pytest.mark.parametrize("how", ["error", "Ctrl-C", "callback"])
def test_the_thread_ends_however_fit_ends(strict_lib, data, how):
    source = Batches(*data[:2])
    if how == "error":
        with pytest.raises(ValueError, match="batch 3"):
            trained(strict_lib, with_batch(3, FAULTS["not finite"][0])(*data[:2]))
    elif how == "Ctrl-C":
        trained(strict_lib, source, callbacks=[interrupt(2)])
    else:
        with pytest.raises(StopError):
            trained(strict_lib, source, callbacks=[StopAt(2)])
    assert not reading()


# --- shuffled ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [1, 4, 7, 10, 23, 100])
def test_shuffled_gives_every_row_once_in_another_order_each_epoch(buffer):
    x = np.arange(N)
    source = xn.data.shuffled(Sized(x[:, None], x), buffer=buffer, seed=3)
    epochs = [list(source) for _ in range(2)]
    for batches in epochs:
        assert [len(y) for _, y in batches] == [5, 5, 5, 5, 3]
        assert sorted(np.concatenate([y for _, y in batches])) == [*x]
        assert all((rows[:, 0] == y).all() for rows, y in batches)
    orders = [np.concatenate([y for _, y in batches]) for batches in epochs]
    assert (orders[0] != orders[1]).any() == (buffer > 1)
    source.set_epoch(0)
    np.testing.assert_array_equal(np.concatenate([y for _, y in source]), orders[0])
    position = {row: place for place, row in enumerate(orders[0])}
    assert all(place >= row - buffer for row, place in position.items())  # no row comes before it has been read


def test_the_length_of_what_is_shuffled_is_counted_where_it_can_be():
    uneven = [(np.ones((n, D)), np.ones(n)) for n in (4, 1, 1, 3)]
    assert len(xn.data.shuffled(uneven)) == len(list(xn.data.shuffled(uneven))) == 3
    assert len(xn.data.shuffled(Sized(np.ones((N, D)), np.ones(N)))) == 5
    with pytest.raises(TypeError, match="has no len"):
        len(xn.data.shuffled(Batches(np.ones((N, D)), np.ones(N))))


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        (
            (np.ones((5, D - 1)), np.ones(5)),
            ValueError,
            r"the rows of batch 2 are float64 \(3,\) and float64 \(\), of the first",
        ),
        (
            (np.ones((5, D)), np.ones(5, int)),
            ValueError,
            r"are float64 \(4,\) and int64 \(\), of the first float64 \(4,\) and fl",
        ),
        ((np.ones((5, D)), np.ones(4)), ValueError, r"as many rows, got the shapes \(5, 4\), \(4,\) in batch 2"),
        ((1.0, 2.0), ValueError, r"got the shapes \(\), \(\) in batch 2"),
        ({"x": 1}, TypeError, r"batch 2 is a dict, expected \(x, y\) or"),
    ],
    ids=["columns", "dtype", "rows", "numbers", "dict"],
)
def test_batches_that_cannot_be_shuffled_are_named(batch, error, words):
    with pytest.raises(error, match=f"^shuffled: .*{words}"):
        list(xn.data.shuffled([(np.ones((5, D)), np.ones(5)), batch]))


def test_what_is_shuffled_already_or_gives_one_epoch_is_told(strict_lib, data):
    with pytest.raises(TypeError, match="got a Rows; fit shuffles a source of rows by itself"):
        xn.data.shuffled(type("Rows", (), {"__getitem__": None})())
    with pytest.raises(ValueError, match="a generator gives one epoch, and epochs is 3"):
        trained(strict_lib, xn.data.shuffled(iter(Batches(*data))))


def test_a_resumed_run_has_the_order_of_its_epoch(strict_lib, data, tmp_path):
    def source():
        return xn.data.shuffled(Batches(*data), buffer=9, seed=1)

    expected = trained(strict_lib, source())
    how = {"checkpoint": xn.Checkpoint(tmp_path, every=1)}
    with pytest.raises(StopError):
        trained(strict_lib, source(), callbacks=[StopAt(13)], **how)  # in the third epoch
    assert trained(strict_lib, source(), resume=True, **how) == expected


def test_a_run_that_goes_on_in_an_epoch_of_another_order_is_warned_of(strict_lib, data, tmp_path):
    class Shuffles(Batches):
        def __iter__(self):
            batches = list(super().__iter__())
            yield from batches[self.first :] + batches[: self.first]

    source, how = Shuffles(*data[:2]), {"checkpoint": xn.Checkpoint(tmp_path, every=1)}
    source.first = 0
    with pytest.raises(StopError):
        trained(strict_lib, source, callbacks=[StopAt(7)], **how)
    source.first = 1
    with pytest.warns(RuntimeWarning, match="a Shuffles gives other batches than it did before .* in epoch 2, whose"):
        trained(strict_lib, source, resume=True, **how)


@pytest.mark.numpy_only
def test_a_stream_holds_few_of_its_batches(strict_lib):
    made, alive = [], []

    def batches():
        for _ in range(200):
            x = np.ones((2, D), np.float32)
            made.append(weakref.ref(x))
            yield x, np.zeros(2, int)

    class Counting(xn.Callback):
        def step_end(self, run):
            alive.append(sum(ref() is not None for ref in made))

    xn.Sequential(xn.Dense(D, K)).initialize(strict_lib.backend).fit(
        batches(), loss=LOSS, optimizer=xn.SGD(0.01), callbacks=[Counting()]
    )
    assert max(alive) <= sources.KEPT + 6


@pytest.mark.numpy_only
def test_a_stream_takes_no_more_memory_for_more_batches(strict_lib, monkeypatch):
    monkeypatch.setattr(run, "RECENT", 10)
    batch = {n: (np.ones((n, D), np.float32), np.zeros(n, int)) for n in (1, 2)}
    net = xn.Sequential(xn.Dense(D, K)).initialize(strict_lib.backend)

    def most(batches):
        stream = (batch[1 + i % 2] for i in range(batches))
        tracemalloc.start()
        try:
            net.fit(stream, loss=LOSS, optimizer=xn.SGD(0.01), prefetch=0)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    most(10)
    assert most(1500) - most(500) < 4000  # bytes: a number kept of each would take 8,000
