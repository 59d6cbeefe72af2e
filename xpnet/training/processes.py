"""Processes that train one network together, over an mpi4py communicator."""

import contextlib
import functools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import numpy as np

from ..backends import Array, namespace
from ..common.checks import brief, integer
from ..common.share import OverNCCL, tree_sum
from ..layers.placed import Placed
from ..losses.losses import Loss
from .arguments import own_hook
from .batches import ENDED
from .callback import Callback
from .checkpoints import differences, settings_of
from .history import History
from .run import DivergenceError, Run

P = ParamSpec("P")
R = TypeVar("R")

NEEDED = "Get_rank", "Get_size", "Allreduce", "Allgather", "allgather", "gather", "bcast", "Dup", "Ibarrier", "Abort"
PATIENCE = 3.0  # seconds that a failed process waits for the others to fail as well
DELIVERY = 2.0  # seconds that mpiexec gets to pass on printed output before the job is aborted


def communicator(comm: Any) -> Any:
    """Return an mpi4py communicator as it is, and one over NCCL for CuPy's NCCLBackend; TypeError for anything else."""
    if all(hasattr(comm, name) for name in NEEDED):
        return comm
    if not all(hasattr(comm, name) for name in ("rank", "all_reduce", "all_gather")):
        raise TypeError(
            "fit: comm must be a communicator of mpi4py, such as MPI.COMM_WORLD, which sends arrays of a GPU by way of "
            f"the host, or CuPy's NCCLBackend; got {brief(comm)}"
        )
    try:
        from mpi4py import MPI
    except ImportError as error:
        remedy = "pip install mpi4py mpich, and start the processes by mpiexec"
        raise ImportError(f"fit: comm is an NCCLBackend, and everything but arrays is sent by MPI: {remedy}") from error
    world = MPI.COMM_WORLD
    here, there = (world.Get_rank(), world.Get_size()), (comm.rank, getattr(comm, "_n_devices", world.Get_size()))
    if here != there:
        raise ValueError(
            f"fit: comm is an NCCLBackend of process {there[0]} of {there[1]}, and MPI has {here[0]} of {here[1]}: "
            "make it NCCLBackend(MPI.COMM_WORLD.Get_size(), MPI.COMM_WORLD.Get_rank(), use_mpi=True)"
        )
    return OverNCCL(comm, world)


def check_loss_of_rows(loss: Any) -> None:
    """Raise TypeError for a loss that is not a sum of terms of single rows."""
    if getattr(type(loss), "reduced", None) is not Loss.reduced:
        raise TypeError(
            f"fit: several processes or shards need a loss with `terms`, one that derives from xn.Loss; got {loss!r}"
        )


def check_shards(shards: int | None, processes: int) -> None:
    """Raise ValueError unless the number of shards is a power of 2 and a multiple of the number of processes."""
    if shards is None:
        return
    integer("fit: shards", shards)
    if shards & (shards - 1) or shards % processes:
        among = f", that divides among {processes} processes" if processes > 1 else ""
        raise ValueError(f"fit: shards must be a power of 2, such as 8{among}; got {shards}")


def fails_together(fit: Callable[P, R]) -> Callable[P, R]:
    """Decorate `fit` so that if it fails in one of several processes, it ends in all of them.

    If all of them raise within `PATIENCE`, as for a loss that is not finite, each simply raises its exception.
    Otherwise the others would wait forever for this process: its traceback is printed and the job aborted.
    """

    @functools.wraps(fit)
    def guarded(*args: P.args, **options: P.kwargs) -> R:
        comm: Any = options.get("comm")
        if comm is None:
            return fit(*args, **options)
        options["comm"] = comm = communicator(comm)
        failures = comm.Dup()  # used for nothing else
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
    """Whether all processes call this within `PATIENCE`."""
    arrival, end = comm.Ibarrier(), time.monotonic() + PATIENCE
    while not (arrived := arrival.Test()) and time.monotonic() < end:
        time.sleep(0.01)
    return bool(arrived)


class Processes:
    """The processes of a communicator: a `Group` of `training.batches` and of `kernels.shared`.

    The first process calls the callbacks and writes the files.
    """

    def __init__(self, comm: Any, in_order: bool):
        self.in_order = in_order  # whether sums are computed in a fixed order, for the same bits
        self.takes_cupy = isinstance(comm, OverNCCL)
        self.comm, self.rank, self.size = comm, comm.Get_rank(), comm.Get_size()
        self.first = self.rank == 0
        self.received = 0  # the number of a signal that this process got
        self.signal = 0  # the number of a signal that any process got; set at the same step in all of them
        self.before = self.rows = 0  # rows of the current batch in the processes before this one, and in all

    def receive(self, number: int) -> None:
        """Note a signal that this process got, for all of them."""
        self.received = number

    def share(self, rows: slice) -> slice:
        n = rows.stop - rows.start
        first, last = (rows.start + n * i // self.size for i in (self.rank, self.rank + 1))
        return slice(first, last)

    def begin_step(self, local: int, rows: int) -> None:
        sizes = self.meet(local, rows)
        if len(set(sizes)) > 1:
            got = ", ".join("an end of the epoch" if n == ENDED else f"{n} rows" for n in sizes)
            raise RuntimeError(
                f"fit: the processes were given different batches, in their order: {got}. Each needs the same whole "
                "data: a source that shuffles must do so from the same seed in all of them"
            )

    def allgather(self, what: str, value: Any) -> list[Any]:
        gathered = self.comm.allgather((what, value))
        if any(each != what for each, _ in gathered):
            kinds = ", ".join(each for each, _ in gathered)
            raise ValueError(f"fit: the sources of the processes differ; they give, in the order of processes: {kinds}")
        return [each for _, each in gathered]

    def gather(self, value: Any) -> list[Any] | None:
        return self.comm.gather(value)  # type: ignore[no-any-return]

    def place(self, local: int) -> tuple[int, int]:
        return self.before, self.rows

    def meet(self, local: int, value: int) -> list[int]:
        received = np.empty((self.size, 3), np.int64)
        self.comm.Allgather(np.array([local, value, self.received], np.int64), received)
        rows, values, signals = received.T.tolist()
        self.signal, self.before, self.rows = max(signals), sum(rows[: self.rank]), sum(rows)
        return values  # type: ignore[no-any-return]

    def first_text(self, text: str) -> str:
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

    def check_same(self, facts: dict[str, str]) -> None:
        """Raise ValueError with a list of the differences unless the facts are the same in all processes."""
        first, *others = self.comm.allgather(facts)
        lines: list[str] = []
        for rank, other in enumerate(others, 1):
            lines += differences(other, f"in process {rank}", first, "in process 0")
        if lines:
            raise ValueError(
                f"fit: the processes differ in what they were given:{''.join(lines[:20])}\nGive all of them the same "
                "network, data and settings."
            )

    def from_first(self, make: Callable[[], Any]) -> Any:
        """Return, in all processes, the result of `make` in the first one; if it raises there, raise in all."""
        value, error = None, None
        if self.first:
            try:
                value = make()
            except Exception as raised:
                error = raised
        value, reason = self.comm.bcast((value, repr(error) if error else ""))
        if error:
            raise error
        if reason:
            raise RuntimeError(f"fit: process 0 failed: {reason}")
        return value

    @contextlib.contextmanager
    def same_end(self, net: Placed, history: History) -> Iterator[None]:
        """After the block, give all processes the network and history of the first one, also if the run has diverged.

        The first one's callbacks may have recorded more and gone back to other parameters.
        """
        diverged = None
        try:
            yield
        except DivergenceError as error:
            diverged = error
        measures = self.from_first(lambda: dict(history))
        history.clear()
        history.update(measures)
        self.share_network(net)
        if diverged:
            raise diverged

    def share_network(self, net: Placed) -> None:
        """Give all processes the first one's parameters, statistics and random generator."""
        params, state = ({k: net.backend.to_numpy(a) for k, a in each.items()} for each in (net.params, net.state))
        params, state, rng = self.from_first(lambda: (params, state, net.rng))
        if not self.first:
            net.set_params(params)
            net.set_state(state)
            net.rng = rng


class Following(Callback):
    """Makes the other processes follow the first one's callbacks, which may stop the run or set optimizer settings.

    It is called after them. A signal to any process interrupts all of them after the same step.
    """

    def __init__(self, group: Processes, callbacks: Sequence[Callback]):
        self.group = group
        self.step_by_step = any(own_hook(callback, "step_end") for callback in callbacks)

    def step_end(self, run: Run) -> None:
        if self.group.signal:
            run.interrupt(self.group.signal)
        if self.step_by_step:
            self.follow(run)

    def follow(self, run: Run) -> None:
        settings = settings_of(run.optimizer)
        numbers = {k: v for k, v in settings.items() if isinstance(v, bool | int | float | str | None)}
        decided = self.group.comm.bcast((run.stopped, run.history.interrupted, numbers))
        if not self.group.first:
            run.stopped, run.history.interrupted, numbers = decided
            for name, value in numbers.items():
                if getattr(run.optimizer, name) != value:
                    setattr(run.optimizer, name, value)

    train_begin = epoch_begin = epoch_end = follow
