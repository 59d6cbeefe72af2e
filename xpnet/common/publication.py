"""Consistent reads of a network that another thread trains: all arrays of one step, or none."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Y = TypeVar("Y")


class Publication:
    """A network's arrays are assigned within `with published:` and collected within `with published.lock:`.

    Inference takes no lock. If arrays of any network were assigned meanwhile (networks share layers), it is repeated
    on a clone, to whose arrays nobody assigns.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._depth = self._count = 0  # blocks under way, and blocks begun

    def __enter__(self) -> None:
        self.lock.acquire()
        self._depth += 1  # before the count: whoever reads the count and then the depth misses neither
        self._count += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        self.lock.release()

    def read(self, net: Any, infer: Callable[[Any], Y]) -> Y:
        """`infer(net)` with the arrays of one step."""
        count, under_way = self._count, self._depth
        y = infer(net)
        return infer(net.clone()) if under_way or self._count != count else y


published = Publication()
