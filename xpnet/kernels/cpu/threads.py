"""Work shared between threads, and BLAS kept to one thread meanwhile."""

import contextlib
import contextvars
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

LARGE = 2**22  # numbers of an array from which threads pay: those of the products before linger on the cores
FREE = 2**18  # and where there are none of these
BLOCK = 2**18  # numbers of each array to go through at a time: fewer, and threads wait for Python's lock
LIMIT = 8  # more threads than this add nothing: the work waits for memory


def in_blocks(work: Callable[[slice], Any], size: int, block: int, shared: bool = True) -> list[Any]:
    """The results of `work` for every block of range(size), if `shared` on several cores: array libraries release
    Python's lock.

    The threads work in the caller's context, where NumPy keeps its `errstate`. None is at work any more when this
    returns or raises.
    """
    count = -(-size // block)
    helpers = min(cores(), count) - 1 if shared else 0
    if helpers > 0:  # as many blocks for each of the threads
        count = min(size, -(-count // (helpers + 1)) * (helpers + 1))
        block = -(-size // count)
    parts = [slice(start, min(start + block, size)) for start in range(0, size, block)]
    if helpers < 1:
        return list(map(work, parts))
    blocks, results = enumerate(parts), [None] * len(parts)

    def run() -> None:
        for i, part in blocks:  # an enumeration gives each block to one thread only
            results[i] = work(part)

    tasks, there = workers()
    others = [Task(functools.partial(contextvars.copy_context().run, run)) for _ in range(min(helpers, there))]
    for other in others:
        tasks.put(other)
    try:
        run()
    finally:  # no block is left: who has not begun need not
        begun = [other for other in others if not other.take()]
        for other in begun:
            other.end.acquire()
    for other in begun:
        if other.error is not None:
            raise other.error
    return results


class Task:
    """Work for a helping thread. With two locks its caller goes on some 30 µs sooner than with a Future."""

    error: BaseException | None = None

    def __init__(self, work: Callable[[], None]):
        self.work = work
        self.begin, self.end = threading.Lock(), threading.Lock()
        self.end.acquire()

    def take(self) -> bool:
        """Take it to do, or back; False where it is taken already."""
        return self.begin.acquire(blocking=False)


def cores() -> int:
    """The cores this process may use, or as many as OMP_NUM_THREADS says, the first number of a list; up to LIMIT."""
    told = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if told.isdecimal() and int(told):
        return min(LIMIT, int(told))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(LIMIT, usable)


@functools.cache
def workers() -> tuple[queue.SimpleQueue[Task], int]:
    """The queue that the threads beside the caller's take their work from, and how many they are, started when needed.

    An executor's threads take no work once the main thread has ended, from other threads and what `atexit` runs. These
    do; where no more of them can be started, there are fewer, or none.
    """
    tasks = queue.SimpleQueue[Task]()
    for i in range(cores() - 1):
        thread = threading.Thread(target=serve, args=(tasks,), name=f"xpnet-{i}", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the interpreter is about to end, or the system has no more
            return tasks, i
    return tasks, cores() - 1


def serve(tasks: queue.SimpleQueue[Task]) -> None:
    """Do what comes, one after another."""
    while True:
        task = tasks.get()
        if task.take():
            try:
                task.work()
            except BaseException as error:  # which the caller raises
                task.error = error
            task.end.release()
        del task  # before the next one comes


@functools.cache
def blas() -> list[Any]:
    """threadpoolctl's controllers of the BLAS libraries that are loaded; none where it is not installed."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]


class OneThread:
    """The fits that keep BLAS to one thread at the moment, and the threads it had before the first of them."""

    lock = threading.Lock()
    users = 0
    counts: list[int] = []  # noqa: RUF012  # of each library


def multiplies_small() -> bool:
    """Whether BLAS has kernels that multiply small matrices as they lie: OpenBLAS, for processors with AVX-512."""
    kinds = {"SkylakeX", "Cooperlake", "SapphireRapids"}
    return bool(blas()) and all(getattr(library, "architecture", "") in kinds for library in blas())


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Within, BLAS works in the thread that calls it."""
    with OneThread.lock:
        OneThread.users += 1
        if OneThread.users == 1:
            OneThread.counts = [library.num_threads for library in blas()]
            for library in blas():
                library.set_num_threads(1)
    try:
        yield
    finally:
        with OneThread.lock:
            OneThread.users -= 1
            if not OneThread.users:
                for library, count in zip(blas(), OneThread.counts, strict=True):
                    library.set_num_threads(count)


def pays(size: int) -> bool:
    """Whether threads pay for arrays of this size."""
    return size > (FREE if OneThread.users else LARGE)


def blas_threads() -> int:
    """The threads that BLAS works in, up to LIMIT; 1 where nobody can tell it to use fewer."""
    with OneThread.lock:
        counts = OneThread.counts if OneThread.users else [library.num_threads for library in blas()]
    return min(LIMIT, max(counts, default=1))


def begin_anew() -> None:
    """Forget what the threads of a forked process's parent did: they do not survive the fork."""
    workers.cache_clear()
    OneThread.lock, OneThread.users = threading.Lock(), 0


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has none
    os.register_at_fork(after_in_child=begin_anew)
