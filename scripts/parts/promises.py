"""Failures of `torture.py` and its parts, and how they kill a process."""

import os
import signal
import sys
from collections.abc import Callable


class BrokenPromise(Exception):  # noqa: N818
    """A promise did not hold."""


def must(holds: bool, what: str) -> None:
    """Raise BrokenPromise with a message unless a condition holds."""
    if not holds:
        raise BrokenPromise(what)


def calls_of(work: Callable[[], object], limit: int = 0) -> int:
    """Do `work` in a forked process, which is killed at function call or return number `limit`, if it gets there.

    Returns the number of calls and returns until the end of the work, 0 if it was killed. Since calls are counted
    rather than seconds, the load of the machine does not matter, and the same seed gives the same moments again.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        calls, code = 0, 99

        def count(frame: object, event: str, argument: object) -> None:
            nonlocal calls
            calls += 1
            if calls == limit:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            sys.setprofile(count)
            work()
            sys.setprofile(None)
            os.write(writing, str(calls).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with open(reading, "rb") as told:
        calls = int(told.read() or 0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the process ended with {code}")
    return calls
