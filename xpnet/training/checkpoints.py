"""Checkpoints: the whole state of a training run in a file, from which it resumes as if never interrupted."""

import contextlib
import errno
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np

from ..backends import Array, Backend
from ..common import checks
from ..common.checks import integer, printable
from ..common.settings import Configured
from ..common.terminal import tell
from ..common.warn import warn
from ..files import strict_json as plain_json
from ..files.format import FORMAT, UNSOUND, VERSION, arrays_of, metadata_of, restored_order
from ..files.safetensors import FormatError, read, under, write
from ..files.safetensors import Path as AnyPath
from ..files.strict_json import only
from ..kernels.reference import Step
from ..layers.placed import Placed
from ..optimizers import Slots
from ..version import __version__
from .callback import Callback
from .history import History
from .identity import fingerprint, own_code
from .packing import as_name, pack, unpack
from .run import RECENT, Run

if TYPE_CHECKING:
    from pathlib import Path

KEPT = 2  # files: older ones are deleted
BUSY = {errno.EAGAIN, errno.EACCES, errno.EDEADLK}  # errors of locking if another process has the lock
NAME = re.compile(r"step-(\d{12})\.safetensors")
ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")  # in a repr: differs between processes
TEXT = 2**15  # characters of JSON for one attribute in a callback's memory: all of it must fit into a file's header
CODED = {"network", "loss", "optimizer", "metrics"}  # facts that may include the user's code
TYPES = {  # of the entries under "training" in a file's metadata
    "xpnet": str, "facts": dict, "epoch": int, "step": int, "done": int, "loss": float, "rows": int, "begins": str,
    "stopped": bool, "seconds": float, "threads": dict, "optimizer": dict, "rng": dict, "slots": dict, "history": dict,
    "callbacks": list,
}  # fmt: skip


class Checkpoint(Configured, Callback):
    """Saves a run to files in `folder`: `fit(..., checkpoint=xn.Checkpoint("runs/a"), resume=True)`.

    `every` is "epoch" or a number of steps, which need not divide an epoch. A file holds everything that the rest of
    the run depends on: parameters, statistics (Dropout's counter included), the optimizer's slots and settings, the
    epoch and its losses so far, the generator of the order of rows, the history, and the attributes that callbacks name
    in `memory`, such as the best weights. On the same machine and backend, a run that is killed at any moment and
    resumed ends with the same bits as one that is not; elsewhere it resumes to within rounding.

    The same bits need the same number of BLAS threads. A resumed run sets the number from the file if threadpoolctl is
    installed; otherwise it warns if the numbers differ.

    With `resume=True`, `fit` resumes from the newest file or, if there is none, starts: the same command does both. A
    damaged file is skipped, with a warning, for the one before; the last two are kept. `epochs` may change; other data
    or settings are refused with a list of the differences, as are a folder that has files, without `resume=True`, and
    one that another run is using.

    Settings are the network, loss, optimizer and metrics, including the code of custom classes and functions with its
    defaults, closures and globals. Python versions differ in byte code, so a run with such code must be resumed by the
    version that started it. Callbacks with a `memory` are compared by their repr alone: their code may change.

    SIGTERM and Ctrl-C write a file after the current step and raise SystemExit, with 143 and 130.

    Every file is a model file as well, written under a temporary name and renamed: `xn.load(path)` loads the network.
    Raises ValueError for a wrong `every`; `fit` raises OSError if the folder cannot be written to, FormatError if no
    file in it is sound, ValueError for differences.

    >>> net = xn.Sequential(xn.Dense(2, 1)).initialize()
    >>> how = {"loss": xn.MeanSquaredError(), "optimizer": xn.SGD(), "checkpoint": xn.Checkpoint("runs/a")}
    >>> history = net.fit([[1, 2]], [[3]], epochs=2, **how)
    >>> net = xn.Sequential(xn.Dense(2, 1)).initialize()
    >>> net.fit([[1, 2]], [[3]], epochs=3, **how, resume=True).resumed
    2
    """

    remedy = "resume=True"  # how the user resumes: a program with options of its own may name them

    def __init__(self, folder: AnyPath, every: int | str = "epoch"):
        from pathlib import Path  # most runs have no checkpoint, and it is slow to import

        self.folder = Path(checks.path("Checkpoint: folder", folder))
        by_epoch = isinstance(every, str) and every == "epoch"
        self.every = "epoch" if by_epoch else integer('Checkpoint: every, if not "epoch",', every)

    # --- before the run ---

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create the folder if needed, and lock it until the block or the process ends."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with open(self.folder / ".lock", "a+b") as file:
            try:
                lock(file)
            except OSError as error:
                reason = "another run writes its checkpoints here; wait for it or choose another folder"
                if error.errno not in BUSY:
                    reason = (
                        "files cannot be locked here, so two runs might use the folder at once; choose one on another "
                        f"file system ({error.strerror})"
                    )
                kind = BlockingIOError if error.errno in BUSY else OSError
                raise kind(error.errno, reason, str(self.folder)) from error
            LOCKED.add(file)
            try:
                for stale in self.folder.glob(".step-*.tmp"):  # of a run killed while writing
                    stale.unlink()
                yield
            finally:
                LOCKED.discard(file)

    def open(
        self, net: Placed, facts: dict[str, str], optimizer: Any, callbacks: Sequence[Callback],
        steps_per_epoch: int | None, resume: bool,
    ) -> "Saved | None":  # fmt: skip
        """Return the checkpoint to resume from, or None; `facts` is what the run depends on, from `facts_of`.

        `callbacks` are those with a `memory`.
        """
        self._callbacks, self._facts = callbacks, facts
        self._saved = -1, -1  # epoch and step
        files = self._files()
        if not resume and files:
            raise ValueError(
                f"fit: {self.folder} has the checkpoints of a run, the newest {files[-1].name}: go on from it with "
                f"{self.remedy}, or choose another folder"
            )
        for i, path in enumerate(reversed(files)):
            try:
                saved = Saved(path, net.backend)
                saved.check(facts, optimizer, callbacks, steps_per_epoch)
                return saved
            except FormatError as error:
                if i == len(files) - 1:
                    error.add_note(f"fit: no checkpoint in {self.folder} is sound; begin anew in another folder")
                    raise
                warn(f"fit: {error}: going on from the checkpoint before it", RuntimeWarning)
        return None

    def _files(self) -> "list[Path]":
        """Return the checkpoints in the folder, newest last."""
        return sorted(path for path in self.folder.iterdir() if NAME.fullmatch(path.name))

    # --- during the run ---

    def step_end(self, run: Run) -> None:
        if self.every != "epoch" and run.step % self.every == 0:  # type: ignore[operator]
            self.save(run)

    def epoch_end(self, run: Run) -> None:
        if self.every == "epoch":
            self.save(run)

    def save(self, run: Run) -> None:
        """Write the run's state, unless it has been written or is not finite, which `fit` reports."""
        if self._saved == (run.epoch, run.step) or not run.finite:
            return

        net, history = run.net, run.history
        arrays, metadata = arrays_of(net), {"format": FORMAT, "version": VERSION}
        with contextlib.suppress(TypeError):  # a network that JSON cannot describe can be resumed, not loaded
            metadata = metadata_of(net, run.rng)
        arrays["training.losses"] = run.losses
        done, loss, rows, begins = run.under_way
        measures = {k: [v if isinstance(v, int | float) else float(v) for v in values] for k, values in history.items()}
        training = {
            "xpnet": __version__, "facts": self._facts, "epoch": run.epoch, "step": run.step,
            "done": done, "loss": loss, "rows": rows, "begins": begins, "stopped": run.stopped,
            "seconds": history.seconds, "threads": threads(),
            "optimizer": {k: self.setting(v) for k, v in settings_of(run.optimizer).items()},
            "rng": run.rng_before or run.rng.bit_generator.state,
            "slots": pack("training.slots", run.slots, arrays, net.backend),
            "history": pack("training.history", measures, arrays, net.backend),
            "callbacks": [self._remembered(i, c, arrays, net.backend) for i, c in enumerate(self._callbacks)],
        }  # fmt: skip
        path = self.folder / f"step-{run.step:012d}.safetensors"
        write(path, arrays, metadata | {"training": plain_json.dumps(training)})
        self._saved = run.epoch, run.step
        for old in [file for file in self._files() if file.name <= path.name][:-KEPT]:  # any later ones are damaged
            old.unlink()

    @staticmethod
    def setting(value: Any) -> dict[str, Any]:
        """Return an optimizer's setting as JSON: a number as it is, a schedule as its repr and a digest of its code."""
        if isinstance(value, bool | int | float | str | None):
            return pack("", value, {})
        return {"same": shortened(f"{ADDRESS.sub('', repr(value))} {own_code(value)}")}

    def _remembered(
        self, i: int, callback: Callback, arrays: dict[str, np.ndarray], backend: Backend
    ) -> dict[str, dict[str, Any]]:
        """Return the attributes in a callback's `memory` as JSON, and put their arrays into `arrays`."""
        memory = {}
        for name in callback.memory:
            who = f"a callback's memory, {type(callback).__name__}.{name}"
            try:
                memory[name] = pack(f"training.callbacks.{i}.{as_name(name)}", getattr(callback, name), arrays, backend)
            except TypeError as error:
                (value,) = error.args
                raise TypeError(
                    f"fit: a checkpoint cannot hold {value!r:.200}, of type {type(value).__name__}, in {who}; it holds "
                    "numbers, strings, None, arrays, and lists, tuples and dicts by name of these"
                ) from None
            if (size := len(plain_json.dumps(memory[name]))) > TEXT:
                raise ValueError(
                    f"fit: {who}, takes {size} letters beside its arrays, and a checkpoint holds at most {TEXT}; lists "
                    "of numbers are stored as arrays, so keep numbers apart from text, or keep it in a file of your own"
                )
        return memory

    def leave(self, run: Run, tells: bool = True) -> NoReturn:
        """Print where a signal stopped the run, and exit with the code that shells expect."""
        if tells:
            at = f"fit: stopped at step {run.step}"
            tell(f"{at}; {self.folder} has its state, {self.remedy} goes on from it", sys.stderr)
        raise SystemExit(128 + run.signal)


class Saved:
    """A checkpoint read from a file. Raises FormatError if it is not sound."""

    def __init__(self, path: "Path", backend: Backend):
        self.path = path
        arrays, metadata = read(path)
        if metadata.get("format") != FORMAT or "training" not in metadata:
            raise FormatError(path, "it does not say that it is a checkpoint")
        if metadata.get("version") != VERSION:
            raise FormatError(path, f"format version {metadata.get('version')!r:.80}, this xpnet reads {VERSION!r}")
        try:
            saved = plain_json.loads(metadata["training"])
            if isinstance(saved, dict) and "done" not in saved:
                raise FormatError(path, "an earlier xpnet wrote it, with the loss of every step: resume it with that")
            self._read(only("it", saved, set(TYPES)), arrays, backend)
        except UNSOUND as error:
            raise self._unsound(error) from None
        self.params, self.state = under("params", arrays), under("state", arrays)

    def _read(self, saved: dict[str, Any], arrays: dict[str, np.ndarray], backend: Backend) -> None:
        """Read the training's state; raises one of `UNSOUND` if it is not sound."""
        for name, kind in TYPES.items():
            if type(saved[name]) is not kind:
                raise ValueError(f"its {name} is {saved[name]!r:.80}, expected a {kind.__name__}")
        self.facts, self.rng_state, self.stopped = saved["facts"], saved["rng"], saved["stopped"]
        if not all(isinstance(fact, str) for fact in self.facts.values()):
            raise ValueError(f"its facts are {self.facts!r:.80}")
        if saved["seconds"] < 0:
            raise ValueError(f"its seconds are {saved['seconds']}")
        self.epoch, self.step, self.done, rows = (count(k, saved[k]) for k in ("epoch", "step", "done", "rows"))
        self.threads = {str(api): count("threads", n, 1, 1024) for api, n in saved["threads"].items()}
        restored_order(self.rng_state)
        self.under_way = self.done, saved["loss"], rows, saved["begins"]
        self.losses = arrays["training.losses"]
        shape = (min(self.done, RECENT),)
        if self.losses.dtype != np.float64 or self.losses.shape != shape or not np.isfinite(self.losses).all():
            raise ValueError(f"its losses are not {shape[0]} finite numbers")
        self.slots: Slots = unpack("training.slots", saved["slots"], arrays, backend)
        for name, value in self.slots.items():
            if isinstance(value, int):
                count(name, value)
        self.history = History()
        self.history.update(unpack("training.history", saved["history"], arrays, backend))
        if not all(type(v) is list and {type(n) for n in v} <= {bool, int, float} for v in self.history.values()):
            raise ValueError("its history is not a dict of lists of numbers")
        self.history.seconds = saved["seconds"]
        self.settings = {k: v if "same" in v else unpack("", v, {}) for k, v in saved["optimizer"].items()}
        self.callbacks: list[dict[str, Any]] = []
        for i, memory in enumerate(saved["callbacks"]):
            names = {name: f"training.callbacks.{i}.{as_name(name)}" for name in memory}
            self.callbacks.append({k: unpack(name, memory[k], arrays, backend) for k, name in names.items()})

    def _unsound(self, error: object) -> FormatError:
        return FormatError(self.path, f"its account of the training is unsound: {error!r}")

    def check(
        self, facts: dict[str, str], optimizer: Any, callbacks: Sequence[Callback], steps_per_epoch: int | None
    ) -> None:
        """Raise ValueError, with a list of the differences, if the run depends on other `facts`, and FormatError if the
        state does not fit the other arguments; `steps_per_epoch` may be unknown, None.
        """
        if lines := differences(self.facts, "then", facts, "now"):
            raise ValueError(
                f"fit: {self.path} is of another run, from which this one differs in {''.join(lines[:20])}\n"
                "Give what it was given, or begin anew in another folder."
            )
        done, steps, current = self.done, steps_per_epoch, settings_of(optimizer)
        if steps is not None and (done > steps or self.step != self.epoch * steps + done):
            raise self._unsound(f"step {self.step} is not the step after {done} of {steps} in its epoch")
        if self.settings.keys() != current.keys():
            raise self._unsound(f"its optimizer has the settings {', '.join(self.settings)}")
        for name, value in self.settings.items():
            if fault := fault_in(optimizer, name, value, current[name]):
                raise self._unsound(f"its optimizer's {name} is {value!r:.80}: {fault}")
        if [set(memory) for memory in self.callbacks] != [set(c.memory) for c in callbacks]:
            raise self._unsound("its callbacks remember other things")

    def begin(self, net: Placed, callbacks: Sequence[Callback], begin: Callable[[Placed], Step]) -> Step:
        """Restore the network and return the training step to continue with. A FormatError changes nothing."""
        twin = net.clone()
        try:
            twin.set_params(self.params)
            twin.set_state(self.state)
            step = begin(twin)
            step.resume_with(self.slots)
            for callback, memory in zip(callbacks, self.callbacks, strict=True):
                callback.check_memory(memory, twin.clone())
        except (ValueError, TypeError) as error:
            raise self._unsound(error) from None
        self._before = net.params, net.state
        net.assign(twin.params, twin.state)
        return step

    def restore(self, run: Run) -> None:
        """Restore the run's position and history; network and slots are restored by `begin`."""
        run.resume_from(self.epoch, self.step, self.history, self.rng_state, self.under_way, self.losses)
        run.stop = self.stopped

    def restore_callbacks(self, run: Run, callbacks: Sequence[Callback]) -> None:
        """Restore the optimizer's settings and the callbacks' memory, after `train_begin`, which resets them.

        Raises ValueError if a schedule has changed; the network is then as before `begin`.
        """
        for name, value in self.settings.items():
            now = getattr(run.optimizer, name)
            if not isinstance(value, dict):
                if type(now) is not type(value) or now != value:
                    setattr(run.optimizer, name, value)
            elif (description := Checkpoint.setting(now)) != value:
                run.net.assign(*self._before)
                raise ValueError(
                    f"fit: the optimizer's {name} was {printable(value['same'], 200)} in {self.path} and is "
                    f"{description.get('same', now)} now; a checkpoint keeps numbers alone: have train_begin set it"
                )
        for callback, memory in zip(callbacks, self.callbacks, strict=True):
            for name, value in memory.items():
                setattr(callback, name, value)


def count(name: str, value: object, low: int = 0, high: int = 2**53) -> int:
    """Return `value`, from a file, if it is an integer within these limits; raise ValueError otherwise."""
    if type(value) is not int or not low <= value <= high:
        raise ValueError(f"its {name} is {value!r:.80}, expected a whole number from {low} to {high}")
    return value


def fault_in(optimizer: Any, name: str, value: Any, current: Any) -> str | None:
    """Return why an optimizer's setting from a file is wrong, or None if it is right or a callback may have set it."""
    if isinstance(value, dict):  # a schedule's description
        sound = [*map(type, value.values())] == [str] and (callable(current) or name == "learning_rate")
    elif isinstance(current, bool):
        sound = type(value) is bool
    else:
        sound = not isinstance(value, float) or math.isfinite(value)
    if not sound:
        return f"expected one like {current!r:.80}"
    may_be_set = isinstance(value, dict) or value == current or (name == "learning_rate" and value == 0.0)
    if may_be_set or not isinstance(optimizer, Configured):
        return None
    try:
        type(optimizer)(**(settings_of(optimizer) | {name: value}))
    except (ValueError, TypeError, AttributeError, ArithmeticError) as error:
        return str(error)
    return None


# --- what a run depends on --------------------------------------------------------------------------------------------


def facts_of(
    net: Placed, data: Mapping[str, Array | str], settings: Mapping[str, Any], callbacks: list[Callback]
) -> dict[str, str]:
    """Return what a run depends on, by name: the network, data and settings, each as its repr or a digest."""
    depends = {"network": net, "dtype": net.dtype, **settings, "callbacks with a memory": callbacks}
    facts = {}
    for name, value in depends.items():
        facts[name] = shortened(ADDRESS.sub("", repr(list(value) if isinstance(value, dict) else value)))
        if name in CODED and (code := own_code(value)):
            facts[f"code of {name}"] = code
    for name, value in data.items():
        facts[name] = value if isinstance(value, str) else fingerprint(value, net.backend.to_numpy)
    return facts


def differences(some: dict[str, str], where: str, others: dict[str, str], there: str) -> list[str]:
    """Return a line for each fact that is not the same in `some` and in `others`."""
    lines = []
    for name in some | others:
        if some.get(name) != others.get(name):
            one, other = (printable(facts.get(name, "nothing"), 600) for facts in (some, others))
            lines.append(f"\n  {printable(name, 80)}: {one} {where}, {other} {there}")
    return lines


def shortened(text: str) -> str:
    """Return the text, or its first 500 characters and a hash if it has more than 600."""
    import hashlib

    return text if len(text) <= 600 else f"{text[:500]}... ({hashlib.sha256(text.encode()).hexdigest()[:16]})"


def settings_of(optimizer: Any) -> dict[str, Any]:
    """Return the optimizer's current settings: the constructor's arguments, or all attributes of a user's optimizer."""
    return dict(optimizer.settings() if isinstance(optimizer, Configured) else vars(optimizer))


def threads() -> dict[str, int]:
    """Return the numbers of threads of BLAS and OpenMP, as far as known; rounding depends on them."""
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        names = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "OMP_NUM_THREADS"
        counts = [os.environ[name] for name in names if os.environ.get(name, "").isdigit()]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return {"blas": int(counts[0]) if counts else cores}
    found: dict[str, int] = {}
    for pool in threadpool_info():
        found[pool["user_api"]] = max(pool["num_threads"], found.get(pool["user_api"], 1))
    return found


def with_threads(wanted: Mapping[str, int]) -> contextlib.AbstractContextManager[object]:
    """Return a context that sets these numbers of threads; without threadpoolctl, only warn if they differ."""
    other = {api: n for api, n in threads().items() if wanted.get(api, n) != n}
    if not other:
        return contextlib.nullcontext()
    counts = {api: wanted[api] for api in other}
    try:
        from threadpoolctl import threadpool_limits

        context: contextlib.AbstractContextManager[object] = threadpool_limits(limits=counts)
        other = {api: n for api, n in threads().items() if counts.get(api, n) != n}
    except ImportError:
        context = contextlib.nullcontext()
    if other:
        then = ", ".join(f"{api} {wanted[api]}" for api in other)
        now = ", ".join(f"{api} {n}" for api, n in other.items())
        warn(
            f"fit: the run that wrote the checkpoint had other numbers of threads ({then}; now {now}): the last bits "
            "may differ; pip install threadpoolctl, or set OPENBLAS_NUM_THREADS before Python starts",
            RuntimeWarning,
        )
    return context


LOCKED: set[Any] = set()  # lock files of fits in progress


def leave_locked() -> None:
    """In a forked process, close the inherited lock files: else the parent's locks would last as long as the child."""
    while LOCKED:
        LOCKED.pop().close()


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has none
    os.register_at_fork(after_in_child=leave_locked)


def lock(file: Any) -> None:
    """Lock an open file until it is closed. Raises OSError if another process has locked it."""
    if sys.platform == "win32":  # pragma: no cover
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
