"""The default backend: what `use_backend` and XPNET_BACKEND choose."""

import contextvars
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from .base import Backend, get_backend

Choice = tuple[str, Any]  # a backend's name and device

_blocks: contextvars.ContextVar[tuple[Choice, ...]] = contextvars.ContextVar("blocks", default=())  # around the caller
# the process's default is the last of these; each comes with a reference to the `use_backend` that chose it
_process: list[tuple[Choice, Callable[[], object]]] = [
    ((os.environ.get("XPNET_BACKEND") or "numpy", None), lambda: None)
]
_changing = threading.Lock()


class use_backend:  # noqa: N801  # reads as the function it is used as
    """Set the backend that `initialize()` takes when it is given none.

    `use_backend("cupy")` holds for the process; `with use_backend("cupy"):` until the block ends, in its thread or
    asynchronous task, and the process's default stays as it was. The environment variable XPNET_BACKEND sets it at
    import; with neither it is NumPy. Raises as `get_backend` does.
    """

    def __init__(self, name: str, device: Any = None):
        self.backend = get_backend(name, device)
        self._choice = name, device
        with _changing:
            final = [i for i, (_, chosen_by) in enumerate(_process) if chosen_by() is None]  # no block can begin now
            del _process[: final[-1]]
            _process.append((self._choice, weakref.ref(self)))

    def __repr__(self) -> str:
        return f"use_backend({self.backend!r})"

    def __enter__(self) -> Backend:
        with _changing:  # the choice is the block's, not the process's
            _process[:] = [(choice, chosen_by) for choice, chosen_by in _process if chosen_by() is not self]
        _blocks.set((*_blocks.get(), self._choice))
        return self.backend

    def __exit__(self, *error: object) -> None:
        _blocks.set(_blocks.get()[:-1])


def default_backend() -> Backend:
    """The backend that `use_backend` or XPNET_BACKEND chose, else NumPy's."""
    return get_backend(*(_process[-1][0], *_blocks.get())[-1])


def resolve(backend: str | Backend | None, device: Any) -> Backend:
    """The backend that a user means by a name, a Backend, or None: the default."""
    if isinstance(backend, Backend):
        if device is not None:
            raise ValueError(f"{backend!r} has its device; give device={device!r} with a name, or neither")
        return backend
    if backend is None:
        chosen = default_backend()
        return chosen if device is None else get_backend(chosen.name, device)
    return get_backend(backend, device)
