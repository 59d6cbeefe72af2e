"""Backends: each is an array library on a device, found by name or by an array."""

import contextlib
import functools
import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np

from ..common.checks import brief, kind_of
from .arrays import DTYPES, LIBRARIES, Array, Namespace, device_of, dtype_name, is_array, library, library_of, namespace

KINDS = "bool|(u?int|float|bfloat|complex)[0-9]+"  # names of dtypes; compiled on first use, which takes a while
BUFFER = 1024  # entries: if two rows of a matrix fit into its buffer, NumPy copies them before it adds a column


class BackendUnavailableError(RuntimeError):
    """A backend that is not available: what is missing, and the command that installs it.

    >>> try:
    ...     xn.get_backend("numpy", "cuda:0")
    ... except xn.BackendUnavailableError as error:
    ...     print("NumPy computes on the CPU only" in str(error))
    True
    """


class Backend:
    """One array library on one device; `get_backend` returns it.

    `device` is the library's own name for one, None its default. Raises BackendUnavailableError for one that is not
    there.

    >>> xn.get_backend("numpy").describe()
    'numpy ... on cpu'
    """

    name: str
    install: str
    device: Any
    immediate: bool = False  # whether calls are synchronous, so that reading a result does not wait
    plain: bool = False  # whether the simplest formula is the fastest: calls are fused, or each returns C order
    scans: bool = False  # whether `all(isfinite(x))` is as fast as `max(abs(x))`

    def __init__(self, device: Any = None):
        self.requested_device = device
        self.device = device
        try:
            importlib.import_module(self.name)
            self.xp = importlib.import_module(LIBRARIES[self.name].module)
        except (ImportError, OSError, RuntimeError) as error:  # it or a library that it needs is not installed
            raise BackendUnavailableError(
                f"backend {self.name!r}: the library cannot be imported ({error}). To install it: {self.install}"
            ) from error

    def asarray(self, x: Any, dtype: object = None) -> Array:
        """Return `x`, an array of NumPy or this library, a list or a number, on this device; it may share memory."""
        return self.xp.asarray(x, dtype=self.dtype(dtype), device=self.device)

    def dtype(self, dtype: object) -> Any:
        """Return this library's dtype object for a name such as "float32"; None stays None."""
        if dtype is None:
            return None
        name = dtype_name(dtype)
        if not re.fullmatch(KINDS, name) or not hasattr(self.xp, name):
            raise ValueError(f'{self!r}: no dtype {brief(dtype)}; there are "float32", "float64", "int64", "bool", ...')
        return getattr(self.xp, name)

    def adopt(self, who: str, x: Any, remedy: str = "convert it first") -> Array:
        """Return a user's `x` as an array of real numbers on this device: first `checked`, then `brought`."""
        return self.brought(self.checked(who, x, remedy))

    def brought(self, x: Array) -> Array:
        """Return an array of NumPy or of this library as an array on this device."""
        if isinstance(x, np.ndarray) and not x.dtype.isnative:  # as in FITS files
            x = x.astype(x.dtype.newbyteorder("="))
        return self.asarray(x)

    def checked(self, who: str, x: Any, remedy: str = "convert it first") -> Array:
        """Return a user's `x` as an array of real numbers of NumPy or of this library, without moving it.

        Raises TypeError for an array of another library and for dtypes other than bool, integers, float32 and float64,
        ValueError for masked entries and rows of different lengths. `who` begins the message; `remedy` ends that for a
        wrong dtype.
        """
        if isinstance(x, np.ndarray) or not is_array(x):
            x = on_host(x, who)
        elif namespace(x) is not self.xp:
            raise TypeError(
                f"{who} is a {type(x).__module__}.{type(x).__name__}, but the {self.name} backend takes its own "
                "arrays and NumPy's: convert it, or move the network with net.to(...)"
            )
        kind = dtype_name(x.dtype)
        if kind not in DTYPES and not kind.startswith(("bool", "int", "uint")):
            if kind.startswith(("str", "bytes")):
                kind = kind.rstrip("0123456789")  # "str", not "str672"
            if kind == "object":
                strangers = (f"{entry!r:.60}" for entry in x.flat if not isinstance(entry, Real))
                stranger = next(strangers, None)
                kind += f", with {stranger or 'nothing but numbers'} in it"
                if remedy == "convert it first":
                    remedy += (
                        ', as by np.asarray(x, dtype="float32")'
                        if stranger is None
                        else "; names become columns of 0 and 1 by pandas.get_dummies(x, dtype=float)"
                    )
            raise TypeError(f"{who} has dtype {kind}; expected float32, float64, integers or booleans: {remedy}")
        return x

    def owns(self, x: object) -> bool:
        """Whether `x` is an array of this library."""
        return is_array(x) and namespace(x) is self.xp

    def to_numpy(self, a: Array) -> np.ndarray:
        """Return `a` as a NumPy array."""
        return np.asarray(a)

    def stack(self, values: Sequence[Any]) -> np.ndarray:
        """Return numbers and 0-d arrays of this library as a float64 NumPy array, in one transfer."""
        if self.immediate:
            return np.array([float(value) for value in values])
        return self.to_numpy(self.xp.stack([self.asarray(value) for value in values])).astype(np.float64)

    def gatherer(self, order: np.ndarray) -> Callable[[Array, slice, int], Array]:
        """Return a function of (array, rows, axis) that takes the entries `order[rows]` along an axis."""
        index = self.asarray(order)  # moved at once, since the host may have to wait for the device
        return lambda a, rows, axis: self.xp.take(a, index[rows], axis=axis)

    @staticmethod
    def erf(x: Array) -> Array | None:
        """Return 2/√π ∫₀ˣ exp(-t²) dt by the library's own function, None if it has none. Use `ops.erf` instead."""
        return None

    @staticmethod
    def rows_added(rows: Array, ids: Array, n: int) -> Array | None:
        """Return what `ops.rows_added` does by the library's own function, None if it has none; use that instead."""
        return None

    @staticmethod
    def at_hand(x: Array) -> bool:
        """Whether the host can read the entries of x without waiting for a device."""
        return True

    def synchronize(self) -> None:
        """Wait until the device has finished all queued work."""

    @contextlib.contextmanager
    def scope(self, autograd: bool = False) -> Iterator[None]:
        """Return the context in which a network runs: on this device, in its own dtype, without warnings of overflow,
        which only NumPy gives; the caller checks for NaN and infinity. Autograd records only with `autograd`.
        """
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # at the end also restores the buffer size
            np.setbufsize(BUFFER)
            yield

    @property
    def device_name(self) -> str:
        """The device, in words."""
        return "cpu" if self.device is None else str(self.device)

    def describe(self) -> str:
        """Return library, version and device in words: "numpy 2.4.6 on cpu"."""
        return f"{self.name} {importlib.import_module(self.name).__version__} on {self.device_name}"

    def __repr__(self) -> str:
        return f"Backend({self.name!r}, device={self.device_name!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Backend":  # a new one could get another default device
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # modules cannot be pickled
        return get_backend, (self.name, self.__getstate__()["device"])

    def __getstate__(self) -> dict[str, Any]:  # for skops, which does not call `__reduce__`
        return {"device": None if self.requested_device is None else self.portable_device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(get_backend(self.name, state["device"])))

    @property
    def portable_device(self) -> Any:
        """The device in a form for other processes."""
        return self.requested_device

    def _no_device(self, reason: object, remedy: str) -> BackendUnavailableError:
        requested = self.requested_device
        fault = "no usable device" if requested is None else f"device {brief(requested)} cannot be used"
        return BackendUnavailableError(f"backend {self.name!r}: {fault} ({reason}). {remedy}")


# --- by name and by array ---------------------------------------------------------------------------------------------

_backends: dict[tuple[str, str], Backend] = {}  # by name and device


def get_backend(name: str, device: Any = None) -> Backend:
    """Return the backend `name` on `device`, as the library names it; None is the library's default device.

    The default is CuPy's current device, `torch.get_default_device()`, JAX's `jax_default_device`. Names: "numpy",
    "cupy", "torch", "jax", "array_api_strict", and "auto": CuPy if a CUDA device computes, else NumPy. Raises
    ValueError for any other name, BackendUnavailableError if the library or device is not available.

    >>> backend = xn.get_backend("numpy")
    >>> backend.asarray([1, 2], "float32")
    array([1., 2.], dtype=float32)
    """
    if isinstance(name, str) and name == "auto":
        try:
            return get_backend("cupy", device)
        except BackendUnavailableError:
            return get_backend("numpy", device)
    if not isinstance(name, str) or name not in LIBRARIES:
        known = f"there are {', '.join(map(repr, LIBRARIES))} and 'auto'"
        device = str(name).partition(":")[0] in ("cuda", "gpu", "cpu", "mps")
        hint = f"; that is a device, as in backend='torch', device={name!r}" if device else ""
        raise ValueError(f"get_backend: no backend {brief(name)}; {known}{hint}")
    kind = _class_named(name)
    default = kind() if device is None else None  # resolved now: the default may change
    key = name, f"default {default.device!r}" if default else repr(device)
    if key not in _backends:
        _backends[key] = default or kind(device)
    return _backends[key]


@functools.cache
def _class_named(name: str) -> type[Backend]:
    kind: type[Backend] = getattr(importlib.import_module(f".{name}", __package__), LIBRARIES[name].backend)
    return kind


@functools.cache
def class_of(xp: Namespace) -> type[Backend]:
    """Return the Backend class of the library with these functions; Backend itself for an unsupported library."""
    name = library(xp)
    return Backend if name is None else _class_named(name)


def backend_of(x: Array, who: str = "xpnet") -> Backend:
    """Return the backend of array `x`, on its device. Raises TypeError if its library is not supported."""
    return get_backend(library_of(x, who), device_of(x))


def on_host(a: Any, who: str = "xpnet: an argument") -> np.ndarray:
    """Return an array of any library, a list or a data frame as a NumPy array.

    Raises TypeError for anything else, ValueError for rows of different lengths and masked entries.
    """
    if type(a) is np.ndarray:  # the usual case
        return a
    if isinstance(a, np.ndarray):
        if np.ma.is_masked(a):
            raise ValueError(f"{who} has masked entries, which have no valid numbers: fill them or drop those rows")
        return np.asarray(a)
    if is_array(a):
        return backend_of(a, who).to_numpy(a)
    try:
        array = np.asarray(a)
    except ValueError as error:  # rows of different lengths
        raise ValueError(f"{who} is not an array: {error}") from error
    if array.ndim == 0 and array.dtype == object:  # a generator, a dict, None
        hint = "; of a sparse matrix give a.toarray()" if hasattr(a, "toarray") else ""
        raise TypeError(f"{who} is {kind_of(a)}, expected an array, a list of rows or a pandas frame{hint}")
    return array


def shape_of(x: Any, who: str) -> tuple[int, ...]:
    """Return the shape of an array, frame or list. Raises as `on_host` does."""
    return tuple(x.shape) if hasattr(x, "shape") else on_host(x, who).shape
