"""The default backend, chosen by `use_backend` or XPNET_BACKEND."""

import contextvars
import os
import threading
import weakref
from collections.abc import Callable
from typing import Any

from .base import Backend, get_backend

Choice = tuple[str, Any]  # a backend's name and device

# the choices of the `with use_backend(...)` blocks around the caller, innermost last
_blocks: contextvars.ContextVar[tuple[Choice, ...]] = contextvars.ContextVar("blocks", default=())
# choices for the process, of which the last holds, each with a weak reference to the `use_backend` that made it
_process: list[tuple[Choice, Callable[[], object]]] = [
    ((os.environ.get("XPNET_BACKEND") or "numpy", None), lambda: None)
]
_changing = threading.Lock()


class use_backend:  # noqa: N801  # reads as the function it is used as
    """Set the default backend, which `initialize()` takes without an argument.

    `use_backend("cupy")` sets it for the process; `with use_backend("cupy"):` for a block, in its own thread or
    asynchronous task alone. The environment variable XPNET_BACKEND sets it at import; otherwise it starts as NumPy.
    Raises as `get_backend` does.

    `name` and `device` are those of `get_backend`, and so are the errors: ValueError, BackendUnavailableError.

    >>> with xn.use_backend("numpy") as backend:
    ...     print(xn.Sequential(xn.Dense(2, 1)).initialize().backend.name)
    numpy
    """

    def __init__(self, name: str, device: Any = None):
        self.backend = get_backend(name, device)
        self._choice = name, device
        with _changing:
            final = [i for i, (_, chosen_by) in enumerate(_process) if chosen_by() is None]  # can begin no block later
            del _process[: final[-1]]
            _process.append((self._choice, weakref.ref(self)))

    def __repr__(self) -> str:
        return f"use_backend({self.backend!r})"

    def __enter__(self) -> Backend:
        with _changing:  # the choice is for the block, not for the process
            _process[:] = [(choice, chosen_by) for choice, chosen_by in _process if chosen_by() is not self]
        _blocks.set((*_blocks.get(), self._choice))
        return self.backend

    def __exit__(self, *error: object) -> None:
        _blocks.set(_blocks.get()[:-1])


def default_backend() -> Backend:
    """Return the backend that `use_backend` or XPNET_BACKEND chose, else NumPy's."""
    return get_backend(*(_process[-1][0], *_blocks.get())[-1])


def resolve(backend: str | Backend | None, device: Any) -> Backend:
    """Return the backend for a name or a Backend; the default for None."""
    if isinstance(backend, Backend):
        if device is not None:
            raise ValueError(f"{backend!r} has its device; give device={device!r} with a name, or neither")
        return backend
    if backend is None:
        chosen = default_backend()
        return chosen if device is None else get_backend(chosen.name, device)
    return get_backend(backend, device)
