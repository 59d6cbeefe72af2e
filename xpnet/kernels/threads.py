"""Work on long vectors, shared between threads."""

import contextvars
import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

LARGE = 2**22  # numbers of an array from which threads pay: those of the products before linger on the cores
BLOCK = 2**18  # numbers of each array to go through at a time: fewer, and threads wait for Python's lock
LIMIT = 8  # more threads than this add nothing: the work waits for memory


def in_blocks(work: Callable[[slice], Any], size: int, block: int, shared: bool = True) -> list[Any]:
    """What `work` gives for every block of range(size), if `shared` on several cores: array libraries let go of
    Python's lock.

    The threads work in the caller's context, where NumPy keeps its `errstate`. None is at work any more when this
    returns or raises.
    """
    parts = [slice(start, min(start + block, size)) for start in range(0, size, block)]
    if len(parts) == 1 or not shared:
        return list(map(work, parts))
    blocks, results = enumerate(parts), [None] * len(parts)

    def run() -> None:
        for i, part in blocks:  # an enumeration gives each block to one thread only
            results[i] = work(part)

    helpers = min(cores(), len(results)) - 1
    others = [workers().submit(contextvars.copy_context().run, run) for _ in range(helpers)]
    try:
        run()
    finally:  # no block is left: who has not begun need not
        begun = [other for other in others if not other.cancel()]
        wait(begun)
    for other in begun:
        other.result()
    return results


def cores() -> int:
    """The cores this process may use, up to LIMIT, or what OMP_NUM_THREADS says."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    if told.isdigit() and int(told):
        return int(told)
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(LIMIT, usable)


@functools.cache
def workers() -> ThreadPoolExecutor:
    """The threads beside the caller's, started when first needed."""
    return ThreadPoolExecutor(max(1, cores() - 1), thread_name_prefix="xpnet")


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has none
    os.register_at_fork(after_in_child=workers.cache_clear)  # threads do not survive a fork
