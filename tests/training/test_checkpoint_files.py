"""Files of checkpoints: what they hold, and that damaged, forged and foreign ones are passed over or refused."""

import errno
import json
import re

import numpy as np
import pytest

import xpnet as xn
from support.checkpoints import (
    Best,
    StopAt,
    StopError,
    arrays_of,
    assert_same,
    fit,
    network,
)
from support.training import bits
from xpnet.files.safetensors import read, write
from xpnet.training import checkpoints


def test_a_checkpoint_is_a_model_file(lib, data, tmp_path):
    net = network(lib)
    fit(net, data, checkpoint=xn.Checkpoint(tmp_path), callbacks=[Best()])
    twin = xn.load(max(tmp_path.glob("step-*.safetensors")), backend=lib.backend)
    assert repr(twin) == repr(net)
    assert_same(lib, net, twin)
    with pytest.raises(OSError, match=re.escape(tmp_path.name)) as caught:
        xn.load(tmp_path)
    assert "the newest is the last step-*.safetensors" in caught.value.__notes__[0]


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
    assert caught[0].filename == fit.__code__.co_filename
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
def test_lists_of_numbers_may_grow_beyond_what_a_header_holds(strict_lib, data, tmp_path):
    class Long(xn.Callback):
        memory = ("values", "pairs")

        def train_begin(self, run):
            self.values, self.pairs = [], []

        def step_end(self, run):
            self.values += [run.step / 3] * 60_000
            self.pairs += [(run.step, run.step / 3)] * 20_000

    whole, again = Long(), Long()
    fit(network(strict_lib), data, callbacks=[whole], epochs=2)
    fit(network(strict_lib), data, callbacks=[Long()], epochs=1, checkpoint=xn.Checkpoint(tmp_path))
    fit(network(strict_lib), data, callbacks=[again], epochs=2, checkpoint=xn.Checkpoint(tmp_path), resume=True)
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
        ({"done": None}, "an earlier xpnet wrote it, with the loss of every step"),
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
    |history\.dict(=\{\}|\.\w+=left\ out) |loss=-?[\d.e+]+ |begins=.*
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
