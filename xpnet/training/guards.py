"""One `fit` at a time on a layer, and a run that stops where a signal would end the program."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from ..layers.placed import Placed

TRAINED: set[int] = set()  # the layers, by their id, that a `fit` under way trains
CLAIMING = threading.Lock()  # held from the look at it to the entry in it


def check_not_trained(net: Placed) -> list[int]:
    """The ids of the layers to train. Refuse one that is being trained: one fit would write over another's work."""
    layers = [(prefix, layer) for prefix, layer in net.leaves() if layer.trainable and layer.params]
    for prefix, layer in layers:
        if id(layer) in TRAINED:
            raise RuntimeError(
                f"fit: layer {prefix}, {layer!r}, is being trained by a fit that has not ended, in a callback or "
                "another thread; train a copy, copy.deepcopy(net)"
            )
    return [id(layer) for _, layer in layers]


def claim_nothing() -> None:
    """In a process that was forked: the fits under way are its parent's."""
    global CLAIMING
    CLAIMING = threading.Lock()  # another thread of the parent's may hold the old one
    TRAINED.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has none
    os.register_at_fork(after_in_child=claim_nothing)


@contextlib.contextmanager
def claimed(net: Placed) -> Iterator[None]:
    """Within, no other `fit` trains any of the layers that this one does. RuntimeError where another has them."""
    own: list[int] = []
    try:
        with CLAIMING:
            own = check_not_trained(net)
            TRAINED.update(own)
        yield
    finally:
        TRAINED.difference_update(own)


@contextlib.contextmanager
def signals_stop(interrupt: Callable[[int], None], terminate: bool) -> Iterator[None]:
    """Ctrl-C, and where asked SIGTERM, calls `interrupt` with its number; a second one has its usual effect.

    Only where the signal would end the program: not in another thread, nor where the program handles it itself.
    """
    numbers = [signal.SIGINT, *([signal.SIGTERM] if terminate else [])]
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
    handlers = {n: signal.getsignal(n) for n in numbers if signal.getsignal(n) is usual[n]}
    if threading.current_thread() is not threading.main_thread():
        handlers = {}

    def stop(number: int, frame: object) -> None:
        signal.signal(number, handlers[signal.Signals(number)])
        interrupt(number)

    for number in handlers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
