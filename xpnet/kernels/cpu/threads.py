"""Work that is shared between threads, and BLAS limited to one thread meanwhile."""

import contextlib
import contextvars
import functools
import os
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

LARGE = 2**22  # entries of an array from which threads are faster: BLAS's own keep the cores busy after a product
LARGE_WITH_ONE_BLAS_THREAD = 2**18  # the same while BLAS has only one
BLOCK = 2**18  # entries of each array in a block; in smaller ones, threads would wait for Python's lock
LIMIT = 8  # threads at most: more would wait for memory
# a batch is divided between threads if its layers of images and sequences output at least this many entries for it, and
# half as many more for each stage within which the threads have to meet
SPLIT_FROM = 2**20


def in_blocks(work: Callable[[slice], Any], size: int, block: int, shared: bool = True) -> list[Any]:
    """Return the results of `work` for every block of range(size), in order.

    If `shared`, several threads take the blocks; array libraries release Python's lock. The threads work in copies of
    the caller's context, where NumPy keeps its `errstate`, and have finished when this returns or raises.
    """
    count = -(-size // block)
    helpers = min(cores(), count) - 1 if shared else 0
    if helpers > 0:  # make the number of blocks a multiple of the number of threads
        count = min(size, -(-count // (helpers + 1)) * (helpers + 1))
        block = -(-size // count)
    parts = [slice(start, min(start + block, size)) for start in range(0, size, block)]
    if helpers < 1:
        return list(map(work, parts))
    blocks, results = enumerate(parts), [None] * len(parts)

    def run() -> None:
        for i, part in blocks:  # an enumeration gives each block to one thread only
            results[i] = work(part)

    queued, started = workers()
    tasks = [Task(functools.partial(contextvars.copy_context().run, run)) for _ in range(min(helpers, started))]
    for task in tasks:
        queued.put(task)
    try:
        run()
    finally:  # withdraw the tasks that have not begun, and wait for the others
        begun = [task for task in tasks if not task.claim()]
        for task in begun:
            task.running.acquire()
    for task in begun:
        if task.error is not None:
            raise task.error
    return results


class Task:
    """Work for a helper thread. Two locks wake the caller some 30 µs sooner than a Future does."""

    error: BaseException | None = None

    def __init__(self, work: Callable[[], None]):
        self.work = work
        self.claimed, self.running = threading.Lock(), threading.Lock()
        self.running.acquire()  # until the work is done

    def claim(self) -> bool:
        """Claim the task, to run or to withdraw it; return False if it is already claimed."""
        return self.claimed.acquire(blocking=False)


def cores() -> int:
    """Return the first number in OMP_NUM_THREADS, or the number of cores this process may use; at most LIMIT."""
    setting = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if setting.isdecimal() and int(setting):
        return min(LIMIT, int(setting))
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(LIMIT, usable)


@functools.cache
def workers() -> tuple[queue.SimpleQueue[Task], int]:
    """Start the helper threads; return the queue from which they take tasks, and their number.

    Unlike an executor's threads, they take work after the main thread has ended, from other threads and from `atexit`.
    If the system can start no more threads, there are fewer or none.
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
    """Run tasks as they come."""
    while True:
        task = tasks.get()
        if task.claim():
            try:
                task.work()
            except BaseException as error:  # the caller raises it
                task.error = error
            task.running.release()
        del task  # release its arrays before waiting for the next one


@functools.cache
def blas() -> list[Any]:
    """Return threadpoolctl's controllers of the loaded BLAS libraries; none if it is not installed."""
    try:
        from threadpoolctl import ThreadpoolController
    except ImportError:
        return []
    return [library for library in ThreadpoolController().lib_controllers if library.user_api == "blas"]


class OneThread:
    """The number of fits that currently limit BLAS to one thread, and the numbers of threads to restore after them."""

    lock = threading.Lock()
    users = 0
    counts: list[int] = []  # noqa: RUF012  # of the threads of each library


def multiplies_small() -> bool:
    """Whether BLAS has kernels that multiply small matrices without copying: OpenBLAS on processors with AVX-512."""
    with_avx512 = {"SkylakeX", "Cooperlake", "SapphireRapids"}
    return bool(blas()) and all(getattr(library, "architecture", "") in with_avx512 for library in blas())


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """A context in which BLAS runs only in the calling thread."""
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
    """Whether threads are faster for arrays of this size."""
    return size > (LARGE_WITH_ONE_BLAS_THREAD if OneThread.users else LARGE)


def blas_threads() -> int:
    """Return the number of BLAS's threads, at most LIMIT; 1 if it cannot be limited to one, without threadpoolctl."""
    with OneThread.lock:
        counts = OneThread.counts if OneThread.users else [library.num_threads for library in blas()]
    return min(LIMIT, max(counts, default=1))


def reset_after_fork() -> None:
    """Forget the parent's threads, which do not exist in a forked process."""
    workers.cache_clear()
    OneThread.lock, OneThread.users = threading.Lock(), 0


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has none
    os.register_at_fork(after_in_child=reset_after_fork)
