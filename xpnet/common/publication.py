"""Networks that one thread trains and others read: their arrays are those of one step, all of them or none."""

import threading
from collections.abc import Callable
from typing import Any, TypeVar

Y = TypeVar("Y")


class Publication:
    """Within `with published:` a network's arrays are assigned, within `with published.lock:` they are collected.

    Inference takes no lock. Where arrays have been assigned meanwhile, of any network, since networks share layers, it
    is repeated on a clone, whose arrays nobody assigns.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._depth = self._count = 0  # of blocks under way, and of those begun

    def __enter__(self) -> None:
        self.lock.acquire()
        self._depth += 1  # before the count: so who reads the count and then the depth misses neither
        self._count += 1

    def __exit__(self, *error: object) -> None:
        self._depth -= 1
        self.lock.release()

    def read(self, net: Any, infer: Callable[[Any], Y]) -> Y:
        """`infer(net)` of a network, with the arrays of one step."""
        count = self._count
        under_way = self._depth
        y = infer(net)
        return infer(net.clone()) if under_way or self._count != count else y


published = Publication()
