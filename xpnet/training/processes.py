"""Several processes that train one network together, over an mpi4py communicator."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ..backends import Array, namespace
from ..common.checks import brief, integer, printable
from ..common.share import OverNCCL, tree_sum
from ..layers.placed import Placed
from ..losses.losses import Loss
from .arguments import own_hook
from .callback import Callback
from .checkpoints import settings_of
from .history import History
from .run import DivergenceError, Run

P = ParamSpec("P")
R = TypeVar("R")

NEEDED = "Get_rank", "Get_size", "Allreduce", "Allgather", "allgather", "gather", "bcast", "Dup", "Ibarrier", "Abort"
PATIENCE = 3.0  # seconds that a process waits for the others to fail as well
DELIVERY = 2.0  # seconds for mpiexec to pass on what was printed: when the job is aborted, the rest of it is lost
ENDED = -1  # in place of a number of rows


def communicator(comm: Any) -> Any:
    """The communicator that is given, or the one over NCCL for CuPy's NCCLBackend. Refuses what is neither."""
    if all(hasattr(comm, name) for name in NEEDED):
        return comm
    if not all(hasattr(comm, name) for name in ("rank", "all_reduce", "all_gather")):
        raise TypeError(
            "fit: comm must be a communicator of mpi4py, such as MPI.COMM_WORLD, over which arrays of a GPU travel by "
            f"way of the host, or CuPy's NCCLBackend; got {brief(comm)}"
        )
    try:
        from mpi4py import MPI
    except ImportError as error:
        remedy = "pip install mpi4py mpich, and start the processes by mpiexec"
        raise ImportError(f"fit: comm is an NCCLBackend, and all but arrays goes over MPI: {remedy}") from error
    world = MPI.COMM_WORLD
    here, there = (world.Get_rank(), world.Get_size()), (comm.rank, getattr(comm, "_n_devices", world.Get_size()))
    if here != there:
        raise ValueError(
            f"fit: comm is an NCCLBackend of process {there[0]} of {there[1]}, and MPI has {here[0]} of {here[1]}: "
            "make it NCCLBackend(MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank(), use_mpi=True)"
        )
    return OverNCCL(comm, world)


def check_rows_alone(loss: Any) -> None:
    """Refuse a loss that does not tell what each row's share of it is."""
    if getattr(type(loss), "reduced", None) is not Loss.reduced:
        raise TypeError(
            f"fit: several processes or shards need a loss with `terms`, one that derives from xn.Loss; got {loss!r}"
        )


def check_shards(shards: int | None, processes: int) -> None:
    """Refuse shards that no tree of pairs adds up, or that do not divide among the processes."""
    if shards is None:
        return
    integer("fit: shards", shards)
    if shards & (shards - 1) or shards % processes:
        among = f", that divides among {processes} processes" if processes > 1 else ""
        raise ValueError(f"fit: shards must be a power of 2, such as 8{among}; got {shards}")


def fails_together(fit: Callable[P, R]) -> Callable[P, R]:
    """`fit`, which among several processes ends in all of them if it fails in one.

    Where each raises within `PATIENCE`, as for a loss that is not finite, they go on from there as one process does.
    Where others do not, they may wait for this one's sums for ever: its traceback is printed and the job aborted.
    """

    @functools.wraps(fit)
    def guarded(*args: P.args, **options: P.kwargs) -> R:
        comm: Any = options.get("comm")
        if comm is None:
            return fit(*args, **options)
        options["comm"] = comm = communicator(comm)
        failures = comm.Dup()  # on which nothing else is said
        try:
            return fit(*args, **options)
        except BaseException:
            if not all_arrive(failures):
                import traceback

                head = f"fit: process {comm.Get_rank()} of {comm.Get_size()} failed alone, which ends all of them:\n"
                print(head + traceback.format_exc(), file=sys.stderr, flush=True)
                time.sleep(DELIVERY)
                comm.Abort(1)
            raise
        finally:
            failures.Free()

    return guarded


def all_arrive(comm: Any) -> bool:
    """Whether all processes come here within `PATIENCE`."""
    arrival, end = comm.Ibarrier(), time.monotonic() + PATIENCE
    while not (arrived := arrival.Test()) and time.monotonic() < end:
        time.sleep(0.01)
    return bool(arrived)


class Processes:
    """The processes of a communicator, of which the first calls the callbacks and has the files."""

    def __init__(self, comm: Any, in_order: bool):
        self.in_order = in_order  # whether sums are taken in a fixed tree, to the bit
        self.takes_cupy = isinstance(comm, OverNCCL)
        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()
        self.first = self.rank == 0
        self.received = 0  # the number of a signal that came to this process
        self.signal = 0  # of one that came to any of them, from the same step on for all
        self.before = self.rows = 0  # of the step's batch, the rows of the processes before this one, and of all

    def receive(self, number: int) -> None:
        """A signal came to this process, of which all are to know."""
        self.received = number

    def own(self, rows: slice) -> slice:
        n = rows.stop - rows.start
        first, last = (rows.start + n * i // self.size for i in (self.rank, self.rank + 1))
        return slice(first, last)

    def begin_step(self, own: int, rows: int) -> None:
        self._check_alike(self._meet(own, rows))

    def begin_shards_step(self, own: int, over: bool) -> bool:
        return all(self._meet(own, over))

    def tell(self, what: str, value: Any) -> list[Any]:
        told = self.comm.allgather((what, value))
        if any(matter != what for matter, _ in told):
            matters = ", ".join(matter for matter, _ in told)
            raise ValueError(f"fit: the processes differ in what their sources give, in their order: {matters}")
        return [each for _, each in told]

    def gathered(self, value: Any) -> list[Any] | None:
        found: list[Any] | None = self.comm.gather(value)
        return found

    def end_epoch(self) -> None:
        self._check_alike(self._meet(0, ENDED))

    def place(self, own: int) -> tuple[int, int]:
        return self.before, self.rows

    def _meet(self, own: int, told: int) -> list[int]:
        """See what all of them tell, and how many rows each of them has of the batch that is theirs together."""
        met = np.empty((self.size, 3), np.int64)
        self.comm.Allgather(np.array([own, told, self.received], np.int64), met)
        columns: list[list[int]] = met.T.tolist()
        owns, all_told, signals = columns
        self.signal, self.before, self.rows = max(signals), sum(owns[: self.rank]), sum(owns)
        return all_told

    def _check_alike(self, sizes: list[int]) -> None:
        if len(set(sizes)) > 1:
            had = ", ".join("an end of the epoch" if n == ENDED else f"{n} rows" for n in sizes)
            raise RuntimeError(
                f"fit: the processes were given different batches, in their order: {had}. Each needs the same whole "
                "data: a source that shuffles must do so from the same seed in all of them"
            )

    def first_told(self, text: str) -> str:
        return next(filter(None, self.comm.allgather(text)), "")

    def add_up(self, a: Array) -> None:
        self.comm.Allreduce(None, a)  # which mpi4py takes as MPI.IN_PLACE

    def sum(self, a: Array) -> Array:
        xp = namespace(a)
        if self.in_order:
            parts = xp.empty((self.size, *a.shape), dtype=a.dtype)
            self.comm.Allgather(a, parts)
            return tree_sum([*parts])
        total = xp.empty_like(a)
        self.comm.Allreduce(a, total)
        return total

    def check_same(self, facts: Mapping[str, str]) -> None:
        """Refuse to train together with processes that were given something else, with a list of the differences."""
        given = self.comm.allgather(dict(facts))
        ours, lines = given[0], []
        for rank, theirs in enumerate(given):
            for name in [name for name in ours | theirs if ours.get(name) != theirs.get(name)]:
                then, now = (printable(each.get(name, "nothing"), 600) for each in (ours, theirs))
                lines.append(f"\n  {printable(name, 80)}: {now} in process {rank}, {then} in process 0")
        if lines:
            raise ValueError(
                f"fit: the processes differ in what they were given:{''.join(lines[:20])}\nGive all of them the same "
                "network, data and settings."
            )

    def of_first(self, make: Callable[[], Any]) -> Any:
        """Give all of them the value that the first process makes; if it raises an exception, all do."""
        made, error = None, None
        if self.first:
            try:
                made = make()
            except Exception as raised:
                error = raised
        made, reason = self.comm.bcast((made, repr(error) if error else ""))
        if error:
            raise error
        if reason:
            raise RuntimeError(f"fit: process 0 failed: {reason}")
        return made

    @contextlib.contextmanager
    def left_alike(self, net: Placed, history: History) -> Iterator[None]:
        """After it network and history are the first process's, whose callbacks may have recorded more and gone back to
        other parameters; also where the run has diverged, as it does in all.
        """
        try:
            yield
        except DivergenceError:
            self._leave(net, history)
            raise
        self._leave(net, history)

    def _leave(self, net: Placed, history: History) -> None:
        measures = self.of_first(lambda: dict(history))
        history.clear()
        history.update(measures)
        self.share_network(net)

    def share_network(self, net: Placed) -> None:
        """Give the network the parameters, statistics and generator of the first process's."""

        def held() -> tuple[Any, ...]:
            to_numpy = net.backend.to_numpy
            return *({k: to_numpy(a) for k, a in own.items()} for own in (net.params, net.state)), net.rng

        params, state, rng = self.of_first(held)
        if not self.first:
            net.set_params(params)
            net.set_state(state)
            net.rng = rng


class Following(Callback):
    """Has the other processes do as the first one's callbacks decide: stop, or change the optimizer's numbers.

    It comes after them. A signal that any process was sent interrupts all of them after the same step.
    """

    def __init__(self, group: Processes, callbacks: Sequence[Callback]):
        self.group = group
        self.step_by_step = any(own_hook(callback, "step_end") for callback in callbacks)

    def train_begin(self, run: Run) -> None:
        self._follow(run)

    def step_end(self, run: Run) -> None:
        if self.group.signal:
            run.interrupt(self.group.signal)
        if self.step_by_step:
            self._follow(run)

    def epoch_begin(self, run: Run) -> None:
        self._follow(run)

    def epoch_end(self, run: Run) -> None:
        self._follow(run)

    def _follow(self, run: Run) -> None:
        settings = settings_of(run.optimizer)
        numbers = {k: v for k, v in settings.items() if isinstance(v, bool | int | float | str | None)}
        decided = self.group.comm.bcast((run.stopped, run.history.interrupted, numbers))
        if not self.group.first:
            run.stopped, run.history.interrupted, numbers = decided
            for name, value in numbers.items():
                if getattr(run.optimizer, name) != value:
                    setattr(run.optimizer, name, value)
