"""What a backend is, and where arrays come from: one library on one device, found by name or by an array of its own."""

import contextlib
import importlib
import re
from collections.abc import Iterator, Sequence
from numbers import Real
from typing import Any

import numpy as np

from ..common.checks import brief, kind_of
from .arrays import DTYPES, LIBRARIES, Array, device_of, dtype_name, is_array, library_of, namespace

KINDS = re.compile("bool|(u?int|float|bfloat|complex)[0-9]+")  # the names of dtypes
BUFFER = 1024  # entries: where two rows of a matrix fit into its buffer, NumPy copies them before it adds a column


class BackendUnavailableError(RuntimeError):
    """A backend that cannot be had here: what is missing, and the command that mends it."""


class Backend:
    """One array library on one device. Ask `get_backend` for it rather than building it."""

    name: str
    install: str
    device: Any
    immediate: bool = False  # whether a result is ready when the call returns, so that to look at it costs no waiting

    def __init__(self, device: Any = None):
        self.requested_device = device
        self.device = device
        try:
            importlib.import_module(self.name)
            self.xp = importlib.import_module(LIBRARIES[self.name].module)
        except (ImportError, OSError, RuntimeError) as error:  # not there, or its own libraries are not
            raise BackendUnavailableError(
                f"backend {self.name!r}: the library cannot be imported ({error}). To install it: {self.install}"
            ) from error

    def asarray(self, x: Any, dtype: object = None) -> Array:
        """`x` (NumPy array, list, number or an array of this backend) here; memory is shared where it can be."""
        return self.xp.asarray(x, dtype=self.dtype(dtype), device=self.device)

    def dtype(self, dtype: object) -> Any:
        """This library's dtype object for a name such as "float32"; None stays None."""
        if dtype is None:
            return None
        name = dtype_name(dtype)
        if not KINDS.fullmatch(name) or not hasattr(self.xp, name):
            raise ValueError(f'{self!r}: no dtype {brief(dtype)}; there are "float32", "float64", "int64", "bool", ...')
        return getattr(self.xp, name)

    def adopt(self, who: str, x: Any, remedy: str = "convert it first") -> Array:
        """A user's `x` as an array of real numbers here: from NumPy, a list, or this library's own array.

        Raises TypeError for what is no array, another library's array and dtypes that are not bool, integer, float32 or
        float64, ValueError for masked entries and rows of different lengths; `who` begins the message, `remedy` ends it
        where numbers are missing.
        """
        if not isinstance(x, np.ndarray) and is_array(x):
            if namespace(x) is not self.xp:
                raise TypeError(
                    f"{who} is a {type(x).__module__}.{type(x).__name__}, but the {self.name} backend takes its own "
                    "arrays and NumPy's: convert it, or move the network with net.to(...)"
                )
            kind = dtype_name(x.dtype)
            real = kind in DTYPES or self.xp.isdtype(x.dtype, ("bool", "integral"))
        else:
            x = on_host(x, who)
            kind = dtype_name(x.dtype)
            real = kind in DTYPES or x.dtype.kind in "biu"
            if not x.dtype.isnative:  # as in files of other machines, or FITS
                x = x.astype(x.dtype.newbyteorder("="))
        if not real:
            if kind.startswith(("str", "bytes")):
                kind = kind.rstrip("0123456789")  # not str672, an array of words
            if kind == "object":
                strangers = (f"{entry!r:.60}" for entry in x.flat if not isinstance(entry, Real))
                kind += f", with {next(strangers, 'nothing but numbers')} in it"
            raise TypeError(f"{who} has dtype {kind}; expected float32, float64, integers or booleans: {remedy}")
        return self.asarray(x)

    def owns(self, x: object) -> bool:
        """Whether `x` is an array of this library."""
        return is_array(x) and namespace(x) is self.xp

    def to_numpy(self, a: Array) -> np.ndarray:
        """The values of `a` as a NumPy array on the host."""
        return np.asarray(a)

    def stack(self, values: Sequence[Any]) -> np.ndarray:
        """Numbers and 0-d arrays of this library as float64 on the host, in one transfer."""
        if self.immediate:
            return np.array([float(value) for value in values])
        return self.to_numpy(self.xp.stack([self.asarray(value) for value in values])).astype(np.float64)

    def synchronize(self) -> None:
        """Wait until all work handed to the device is done."""

    @contextlib.contextmanager
    def scope(self, autograd: bool = False) -> Iterator[None]:
        """What must hold while a network runs here: the current device, the network's own dtype, and no warnings where
        numbers overflow. The library's autograd records nothing, unless it is to go through what is computed.

        Only NumPy warns; whoever enters the scope looks for what is not finite, and raises.
        """
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # the buffer's old size comes back, too
            np.setbufsize(BUFFER)
            yield

    @property
    def device_name(self) -> str:
        """The device, in words."""
        return "cpu" if self.device is None else str(self.device)

    def describe(self) -> str:
        """Library, version and device, in words: "numpy 2.4.6 on cpu"."""
        return f"{self.name} {importlib.import_module(self.name).__version__} on {self.device_name}"

    def __repr__(self) -> str:
        return f"Backend({self.name!r}, device={self.device_name!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Backend":  # the default device may be another one by now
        return self

    def __reduce__(self) -> tuple[Any, ...]:  # modules cannot be pickled: find the backend again
        return get_backend, (self.name, self.__getstate__()["device"])

    def __getstate__(self) -> dict[str, Any]:  # for skops, which calls no function of a file's choice
        return {"device": None if self.requested_device is None else self.portable_device}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(vars(get_backend(self.name, state["device"])))

    @property
    def portable_device(self) -> Any:
        """The device as another process understands it."""
        return self.requested_device

    def _no_device(self, reason: object, remedy: str) -> BackendUnavailableError:
        asked = self.requested_device
        wanted = "no usable device" if asked is None else f"device {brief(asked)} cannot be used"
        return BackendUnavailableError(f"backend {self.name!r}: {wanted} ({reason}). {remedy}")


# --- finding one ------------------------------------------------------------------------------------------------------

_made: dict[tuple[str, str], Backend] = {}


def get_backend(name: str, device: Any = None) -> Backend:
    """The backend called `name`, on `device` (that library's own name for one; None: its default).

    The default is what the library takes by itself: CuPy's current device, `torch.get_default_device()`, JAX's
    `jax_default_device`. Names: "numpy", "cupy", "torch", "jax", "array_api_strict", and "auto": CuPy where a CUDA
    device really answers, else NumPy. Raises ValueError for another name, BackendUnavailableError for one that cannot
    be had here.
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
    kind: type[Backend] = importlib.import_module(f".{name}", __package__).KIND
    default = kind() if device is None else None  # where it is now: it may change
    key = name, f"default {default.device!r}" if default else repr(device)
    if key not in _made:
        _made[key] = default or kind(device)
    return _made[key]


def backend_of(x: Array, who: str = "xpnet") -> Backend:
    """The backend that array `x` belongs to, on its device; TypeError for another library's array."""
    return get_backend(library_of(x, who), device_of(x))


def on_host(a: Any, who: str = "xpnet: an argument") -> np.ndarray:
    """Any library's array, or a list or data frame, as a NumPy array.

    Raises TypeError for what is no array, ValueError for rows of different lengths and masked entries.
    """
    if type(a) is np.ndarray:  # as nearly always
        return a
    if isinstance(a, np.ndarray):
        if np.ma.is_masked(a):
            raise ValueError(f"{who} has masked entries, whose numbers mean nothing: fill them or drop those rows")
        return np.asarray(a)
    if is_array(a):
        return backend_of(a, who).to_numpy(a)
    try:
        array = np.asarray(a)
    except ValueError as error:  # a list of lists that are not of one length
        raise ValueError(f"{who} is no array: {error}") from error
    if array.ndim == 0 and array.dtype == object:  # of a generator, a dict, None
        raise TypeError(f"{who} is {kind_of(a)}, expected an array, a list of rows or a pandas frame")
    return array


def shape_of(x: Any, who: str) -> tuple[int, ...]:
    """The shape of an array, frame or list; raises as `on_host`."""
    return tuple(x.shape) if hasattr(x, "shape") else on_host(x, who).shape
