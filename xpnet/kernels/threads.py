"""Work on long vectors, shared between threads."""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

LIMIT = 8  # more threads than this add nothing: the work waits for memory


def in_blocks(work: Callable[[slice], Any], size: int, block: int) -> list[Any]:
    """What `work` gives for every block of range(size), on several cores; array libraries let go of Python's lock."""
    blocks = enumerate([slice(start, min(start + block, size)) for start in range(0, size, block)])
    results = [None] * -(-size // block)

    def run() -> None:
        for i, part in blocks:  # an enumeration gives each block to one thread only
            results[i] = work(part)

    others = [workers().submit(run) for _ in range(min(cores(), len(results)) - 1)]
    run()
    for other in others:
        other.result()
    return results


def cores() -> int:
    """The cores this process may use, up to LIMIT, or what OMP_NUM_THREADS says."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    return int(told) if told.isdigit() and int(told) else min(LIMIT, len(os.sched_getaffinity(0)))


@functools.cache
def workers() -> ThreadPoolExecutor:
    """The threads beside the caller's, started when first needed."""
    return ThreadPoolExecutor(max(1, cores() - 1), thread_name_prefix="xpnet")
