"""Consistent reads of a network that another thread trains: all arrays of one step, or none."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Y = TypeVar("Y")


class Publication:
    """A network's arrays are assigned within `with published:` and collected within `with published.lock:`.

    Inference takes no lock. If arrays of any network (networks may share layers) were assigned meanwhile, it is
    repeated on a clone, whose arrays no thread assigns.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._depth = self._count = 0  # open `with published:` blocks, and all blocks so far

    def __enter__(self) -> None:
        self.lock.acquire()
        self._depth += 1  # before the count, since `read` reads the count first
        self._count += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        self.lock.release()

    def read(self, net: Any, infer: Callable[[Any], Y]) -> Y:
        """Return `infer(net)`, computed with all arrays from the same step."""
        count, under_way = self._count, self._depth
        y = infer(net)
        return infer(net.clone()) if under_way or self._count != count else y


published = Publication()
