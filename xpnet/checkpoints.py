"""Checkpoints: a training run's whole state in a file, from which it goes on as if it had never stopped."""

import contextlib
import errno
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from . import checks
from .backend import Array, Backend
from .callbacks import Callback, History
from .checks import whole
from .container import FormatError, read, under, write
from .container import Path as AnyPath
from .optimizers import Slots
from .settings import Configured
from .warn import warn

if TYPE_CHECKING:
    from pathlib import Path

    from .network import Sequential
    from .run import Run

KEPT = 2
HELD = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}  # what locking fails with where another process has the lock
NAME = re.compile(r"step-(\d{12})\.safetensors")
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in a repr: of this process only


class Checkpoint(Configured, Callback):
    """Saves a run to files in `folder` as it goes: `fit(..., checkpoint=xn.Checkpoint("runs/a"), resume=True)`.

    `every` is "epoch", or a number of steps, which may end in the middle of an epoch. A file holds all that the rest of
    the run depends on: parameters, statistics (Dropout's counter among them), the optimizer's slots and learning rate,
    the epoch, the losses so far in it, the generator of the order of rows, the history, and what the callbacks name in
    their `memory`, such as the best weights so far. On the same backend a run that was killed at any moment and resumed
    ends with the same bits as one that was not. Another backend may go on too, to within its rounding.

    With `resume=True`, `fit` goes on from the newest file, or begins where there is none, so the same command starts a
    run and restarts it. A file that turns out damaged is passed over for the one before, with a warning; the last two
    are kept. `epochs` may differ from before; other data or settings are refused with the list of what differs, as is
    a folder with files in it without `resume=True`, and one that another run is using.

    SIGTERM and Ctrl-C write a file after the step under way and leave by SystemExit, with 143 and 130.

    Every file is a model file too, written beside and renamed: `xn.load(path)` is the network as it was. Raises
    ValueError for a wrong `every`; `fit` raises OSError where the folder cannot be written to, FormatError where no
    file in it is sound, ValueError for what differs.
    """

    def __init__(self, folder: AnyPath, every: int | str = "epoch"):
        from pathlib import Path

        self.folder = Path(checks.path("Checkpoint: folder", folder))
        self.every = every if every == "epoch" else whole('Checkpoint: every, if not "epoch",', every)
        self._facts: dict[str, str] = {}
        self._callbacks: Sequence[Callback] = ()
        self._saved = -1, -1  # epoch and step

    # --- before the run ---

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """The folder, made if need be, is this run's alone until the block ends, or the process, however it does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "a+b") as file:
            try:
                lock(file)
            except OSError as error:
                if error.errno not in HELD:
                    raise OSError(
                        error.errno,
                        "files cannot be locked here, so two runs might use the folder at once; choose one on another "
                        f"file system ({error.strerror})",
                        str(self.folder),
                    ) from error
                raise BlockingIOError(
                    error.errno,
                    "another run writes its checkpoints here; wait for it or choose another folder",
                    str(self.folder),
                ) from error
            for stale in self.folder.glob(".step-*.tmp"):  # of a run that was killed as it wrote
                stale.unlink()
            yield

    def open(
        self,
        net: "Sequential",
        arrays: Mapping[str, Array],
        settings: Mapping[str, Any],
        callbacks: Sequence[Callback],
        resume: bool,
    ) -> "Saved | None":
        """What to go on from, None to begin with; remembers what the run depends on."""
        self._callbacks = [c for c in callbacks if c.memory]
        told = {"network": net, "dtype": net.dtype, **settings}
        told["callbacks with a memory"] = self._callbacks
        self._facts = {name: ADDRESS.sub("", repr(value)) for name, value in told.items()}
        self._facts |= {name: fingerprint(net.backend.to_numpy(a)) for name, a in arrays.items()}
        self._saved = -1, -1
        files = self._files()
        if not resume and files:
            raise ValueError(
                f"fit: {self.folder} has the checkpoints of a run, the newest {files[-1].name}: go on from it with "
                "resume=True, or choose another folder"
            )
        for i, path in enumerate(reversed(files)):
            try:
                saved = Saved(path, net.backend)
            except FormatError as error:
                if i == len(files) - 1:
                    error.add_note(f"fit: no checkpoint in {self.folder} is sound; begin anew in another folder")
                    raise
                warn(f"fit: {error}: going on from the checkpoint before it", RuntimeWarning)
                continue
            saved.check_facts(self._facts)
            return saved
        return None

    def _files(self) -> "list[Path]":
        """The checkpoints in the folder, the newest last."""
        return sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))

    # --- during the run ---

    def step_end(self, run: "Run") -> None:
        if self.every != "epoch" and run.step % self.every == 0:  # type: ignore[operator]
            self.save(run)

    def epoch_end(self, run: "Run") -> None:
        if self.every == "epoch":
            self.save(run)

    def save(self, run: "Run") -> None:
        """Write the state that the run is in, unless it is written already or not finite: then `fit` will say so."""
        if self._saved == (run.epoch, run.step) or not run.finite:
            return
        import json

        from . import __version__
        from .files import FORMAT, VERSION, arrays_of, metadata_of

        net, history = run.net, run.history
        arrays, metadata = arrays_of(net), {"format": FORMAT, "version": VERSION}
        with contextlib.suppress(TypeError):  # a user's own network that JSON cannot describe is resumed all the same
            metadata = metadata_of(net, run.rng)
        for name, values in history.items():
            arrays[f"training.history.{as_name(name)}"] = np.array(values, dtype=np.float64)
        arrays["training.losses"] = run.losses
        rate = run.optimizer.learning_rate
        training = {
            "xpnet": __version__,
            "facts": self._facts,
            "epoch": run.epoch,
            "step": run.step,
            "stopped": run.stopped,
            "steps": history.steps,
            "seconds": history.seconds,
            "learning_rate": None if callable(rate) else rate,
            "rng": run.rng_before or run.rng.bit_generator.state,
            "slots": packed("training.slots", run.slots, arrays, net.backend),
            "callbacks": [
                packed(f"training.callbacks.{i}", {name: getattr(c, name) for name in c.memory}, arrays, net.backend)
                for i, c in enumerate(self._callbacks)
            ],
        }
        path = self.folder / f"step-{run.step:012d}.safetensors"
        write(path, arrays, metadata | {"training": json.dumps(training, default=as_plain)})
        self._saved = run.epoch, run.step
        for old in [file for file in self._files() if file.name <= path.name][:-KEPT]:  # later ones were passed over
            old.unlink()

    def leave(self, run: "Run") -> NoReturn:
        """After a signal has stopped the run: say where it stands, and exit as the shell expects."""
        if sys.stderr is not None:  # print would take None for standard output
            print(
                f"fit: stopped at step {run.step}; {self.folder} has its state, resume=True goes on from it",
                file=sys.stderr,
            )
        raise SystemExit(128 + run.signal)


class Saved:
    """A checkpoint that was read. FormatError for a file that is not a sound one."""

    def __init__(self, path: "Path", backend: Backend):
        import json
        from urllib.parse import unquote

        from .files import FORMAT, VERSION

        self.path = path
        arrays, metadata = read(path)
        if metadata.get("format") != FORMAT or "training" not in metadata:
            raise FormatError(path, "it does not say that it is a checkpoint")
        if metadata.get("version") != VERSION:
            raise FormatError(path, f"format version {metadata.get('version')!r:.80}, this xpnet reads {VERSION!r}")
        try:
            told = json.loads(metadata["training"])
            self.facts = dict(told["facts"])
            self.epoch, self.step, self.stopped = int(told["epoch"]), int(told["step"]), bool(told["stopped"])
            self.learning_rate, self.rng_state = told["learning_rate"], told["rng"]
            np.random.default_rng().bit_generator.state = self.rng_state  # which says whether it is one
            self.losses = arrays["training.losses"]
            self.slots: Slots = unpacked("training.slots", told["slots"], arrays, backend)
            self.callbacks = [
                unpacked(f"training.callbacks.{i}", c, arrays, backend) for i, c in enumerate(told["callbacks"])
            ]
            self.history = History()
            self.history.update({unquote(k): a.tolist() for k, a in under("training.history", arrays).items()})
            self.history.steps, self.history.seconds = int(told["steps"]), float(told["seconds"])
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError, OverflowError) as error:
            raise FormatError(path, f"its account of the training is unsound: {error!r:.200}") from error
        self.params, self.state = under("params", arrays), under("state", arrays)

    def check_facts(self, now: dict[str, str]) -> None:
        """Refuse a run that depends on other things, with the list of them."""
        names = [name for name in self.facts | now if self.facts.get(name) != now.get(name)]
        if names:
            lines = [f"\n  {k}: {self.facts.get(k, 'nothing')} then, {now.get(k, 'nothing')} now" for k in names]
            raise ValueError(
                f"fit: {self.path} is of another run, from which this one differs in {''.join(lines)}\n"
                "Give what it was given, or begin anew in another folder."
            )

    def restore(self, run: "Run") -> None:
        """Put the run where this one was; the network and the slots are there already."""
        run.go_on(self.epoch, self.step, self.history, self.rng_state, self.losses)
        run.stop = self.stopped

    def restore_callbacks(self, run: "Run", callbacks: Sequence[Callback]) -> None:
        """Give back what `train_begin` reads and sets as at any beginning: learning rate and callbacks' memory."""
        if self.learning_rate is not None:
            run.optimizer.learning_rate = self.learning_rate
        for callback, memory in zip([c for c in callbacks if c.memory], self.callbacks, strict=True):
            for name, value in memory.items():
                setattr(callback, name, value)


# --- what JSON holds, and what it does not ----------------------------------------------------------------------------


def packed(prefix: str, values: Mapping[str, Any], arrays: dict[str, np.ndarray], backend: Backend) -> dict[str, Any]:
    """The values for JSON; arrays, and dicts of arrays, go to `arrays` under the prefix."""
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if hasattr(value, "shape") and hasattr(value, "dtype"):
            on_host = isinstance(value, np.ndarray | np.generic)
            arrays[f"{prefix}.{name}"] = np.asarray(value if on_host else backend.to_numpy(value))
            plain[name] = {"array": "host" if on_host else "device"}
        elif isinstance(value, dict):
            plain[name] = {"dict": packed(f"{prefix}.{name}", value, arrays, backend)}
        else:
            plain[name] = {"value": value}
    return plain


def as_plain(value: object) -> object:
    """A NumPy number as Python's: a list in a callback's memory may hold some."""
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(
        f"fit: a checkpoint cannot hold {value!r}, of type {type(value).__name__}, in a callback's memory; it holds "
        "numbers, strings, None, lists of these, arrays, and dicts of arrays by name"
    )


def unpacked(
    prefix: str, plain: Mapping[str, Any], arrays: Mapping[str, np.ndarray], backend: Backend
) -> dict[str, Any]:
    """`packed` undone."""
    values: dict[str, Any] = {}
    for name, each in plain.items():
        if "array" in each:
            array = arrays[f"{prefix}.{name}"]
            values[name] = array if each["array"] == "host" else backend.asarray(array)
        elif "dict" in each:
            values[name] = unpacked(f"{prefix}.{name}", each["dict"], arrays, backend)
        else:
            values[name] = each["value"]
    return values


def as_name(measure: str) -> str:
    """A measure's name, which may be any string, as a file holds it: what an array's cannot have is written %2F."""
    from urllib.parse import quote

    return quote(measure, safe="").replace("..", "%2E%2E")


def fingerprint(a: np.ndarray) -> str:
    """What tells an array from others: shape, dtype and SHA-256."""
    import hashlib

    return f"{a.dtype} {a.shape} {hashlib.sha256(np.ascontiguousarray(a).data).hexdigest()[:16]}"


def lock(file: Any) -> None:
    """Lock an open file for as long as it is open. OSError where another process has."""
    if sys.platform == "win32":  # pragma: no cover
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
