"""Guards of `fit`: only one trains a layer at a time, and signals stop it after the current step."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator

from ..layers.placed import Placed

TRAINED: set[int] = set()  # ids of the layers that are being trained
CLAIMING = threading.Lock()  # held while `TRAINED` is checked and updated


def check_not_trained(net: Placed) -> list[int]:
    """Return the ids of the layers to train. Raises RuntimeError if another `fit` is training any of them."""
    layers = [(prefix, layer) for prefix, layer in net.leaves() if layer.trainable and layer.params]
    for prefix, layer in layers:
        if id(layer) in TRAINED:
            raise RuntimeError(
                f"fit: layer {prefix}, {layer!r}, is being trained by a fit that has not ended, in a callback or "
                "another thread; train a copy, copy.deepcopy(net)"
            )
    return [id(layer) for _, layer in layers]


def forget_claims() -> None:
    """In a forked process, forget the layers that its parent is training."""
    global CLAIMING
    CLAIMING = threading.Lock()  # a thread of the parent may have held the old one
    TRAINED.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch  # Windows has none
    os.register_at_fork(after_in_child=forget_claims)


@contextlib.contextmanager
def claimed(net: Placed) -> Iterator[None]:
    """Keep other calls of `fit` from training the network's layers within the block.

    Raises RuntimeError if another `fit` is training any of them.
    """
    ids: list[int] = []
    try:
        with CLAIMING:
            ids = check_not_trained(net)
            TRAINED.update(ids)
        yield
    finally:
        TRAINED.difference_update(ids)


@contextlib.contextmanager
def signals_stop(interrupt: Callable[[int], None], terminate: bool) -> Iterator[None]:
    """Within the block, Ctrl-C and, with `terminate`, SIGTERM call `interrupt` with the signal's number.

    A second signal has its usual effect. Signals that the program handles itself are left alone, as are all of them
    outside the main thread.
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
