"""Where arrays live: choosing a backend, its device and dtypes, and the way to and from the host.

The only file that imports array_api_compat, cupy, torch, jax or array_api_strict, each when it is first asked for.
"""

import contextlib
import contextvars
import functools
import importlib
import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from numbers import Real
from typing import Any, NoReturn, Self

import numpy as np

from .checks import came, told

if tuple(map(int, np.__version__.split(".")[:2])) < (2, 1):
    raise ImportError(f"xpnet needs NumPy 2.1 or later, found {np.__version__}: pip install -U numpy")

Array = Any  # an array of whichever backend: the array API standard defines no common base class
Namespace = Any  # the module that holds a backend's array functions

DTYPES = ("float32", "float64")
KINDS = re.compile("bool|(u?int|float|bfloat|complex)[0-9]+")  # the names of dtypes
BUFFER = 1024  # entries: where two rows of a matrix fit into its buffer, NumPy copies them before it adds a column


class BackendUnavailableError(RuntimeError):
    """A backend that cannot be had here: what is missing, and the command that mends it."""


# --- array -> namespace -----------------------------------------------------------------------------------------------

_namespaces: dict[type, Namespace] = {}
_floating: dict[tuple[type, Any], Namespace] = {}


def namespace(x: Array, who: object = "xpnet") -> Namespace:
    """The array API functions for array `x`: a dict look-up, once its type has been seen.

    Raises TypeError for what is no array; `who` begins the message.
    """
    try:
        return _namespaces[type(x)]
    except KeyError:
        if not is_array(x):
            raise TypeError(f"{who}: expected an array, got {came(x)}; backend.asarray makes one of a list") from None
        xp = _namespaces[type(x)] = importlib.import_module("array_api_compat").array_namespace(x)
        return xp


def floating(x: Array, who: object) -> Namespace:
    """`namespace` of an array of float32 or float64; TypeError for any other."""
    try:
        return _floating[type(x), x.dtype]
    except (AttributeError, KeyError, TypeError):  # no array, one not seen yet, a dtype without a hash
        xp = namespace(x, who)
    if backend_class(xp) is None or isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{who}: expected a plain array of {', '.join(_BACKENDS)}, got {came(x)}")
    if dtype_name(x.dtype) not in DTYPES:
        raise TypeError(f"{who}: expected an array of float32 or float64, got dtype {x.dtype}")
    _floating[type(x), x.dtype] = xp
    return xp


def is_array(x: object) -> bool:
    """Whether `x` is an array of any library here: no list, number or data frame."""
    return bool(importlib.import_module("array_api_compat").is_array_api_obj(x))


def is_compiled(xp: Namespace) -> bool:
    """Whether a compiler fuses many of these calls into one loop: there the plainest formula is the fastest."""
    return bool(xp.__name__ == _JAX.module)


@functools.cache
def is_plain(xp: Namespace) -> bool:
    """Whether the plainest formula is the fastest: a compiler fuses the calls (JAX), or each call is a kernel whose
    result lies in C order, whatever order its arguments have (CuPy).
    """
    kind = backend_class(xp)
    return kind is not None and kind.plain


@functools.cache
def scans(xp: Namespace) -> bool:
    """Whether `isfinite` and `all` take one quick pass each (NumPy), and no longer than finding the largest entry."""
    kind = backend_class(xp)
    return kind is not None and kind.scans


def device_of(x: Array) -> Any:
    """The device that array `x` lives on, as creation functions take it."""
    return importlib.import_module("array_api_compat").device(x)


def dtype_name(dtype: object) -> str:
    """The plain name of a dtype given as a name or as any library's dtype object: numpy.float32 -> "float32"."""
    try:
        return _dtype_name(dtype)
    except TypeError:  # a list, which has no hash
        return str(dtype)


@functools.lru_cache(typed=True)  # array_api_strict warns where its dtypes are compared with NumPy's
def _dtype_name(dtype: object) -> str:
    if dtype is None:  # NumPy's float64
        return "None"
    try:
        return np.dtype(dtype).name  # type: ignore[call-overload, no-any-return]
    except TypeError:
        return str(dtype).rpartition(".")[2]


# --- arrays by name ---------------------------------------------------------------------------------------------------


class Guarded(dict[str, Array]):
    """A dict of arrays that cannot be written to, and says what to do instead. Copies of it are plain dicts."""

    remedy = ""  # what to do instead

    def _refuse(self, *given: Any, **named: Any) -> NoReturn:
        raise TypeError(self.remedy)

    def __setitem__(self, name: str, array: Array) -> None:
        self._refuse()

    __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class Named(Guarded):
    """All parameters or all statistics of a network, `what` it calls them, by name."""

    def __init__(self, what: str, arrays: Mapping[str, Array]):
        super().__init__(arrays)
        self.remedy = (
            f"net.{what} is a dict to read, and writing to it would not change the network: set arrays with "
            f"net.set_{what}(net.{what} | {{name: array}}); dict(net.{what}) is a dict of your own"
        )

    def __setitem__(self, name: str, array: Array) -> None:
        if array is not self.get(name):  # as it is after net.params[name] *= 2, which NumPy does in place
            self._refuse()


class Held(Guarded):
    """A layer's arrays, as a network holds them. Others may be assigned in their place: of the same library, device,
    shape and dtype.
    """

    remedy = "a layer of a network has always the same arrays by name: none can be added or taken out"
    drawn = False  # by `initialize`, and not trained, loaded or set since

    def __setitem__(self, name: str, array: Array) -> None:
        self._check(name, array)
        super(Guarded, self).__setitem__(name, array)
        self.drawn = False

    def update(self, *given: Any, **named: Array) -> None:  # type: ignore[override]
        for name, array in self.replaced(self | dict(*given, **named)).items():
            self[name] = array

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc, override]
        self.update(other)
        return self

    def replaced(self, arrays: Any) -> "Held":
        """These arrays in place of all of its own."""
        if not isinstance(arrays, Mapping) or arrays.keys() != self.keys():
            came = (
                ", ".join(map(str, arrays)) or "none" if isinstance(arrays, Mapping) else f"a {type(arrays).__name__}"
            )
            raise TypeError(
                f"a layer of a network has the arrays {', '.join(self)}: expected a dict of them, got {came}"
            )
        for name, array in arrays.items():
            self._check(name, array)
        return Held(arrays)

    def _check(self, name: str, array: Any) -> None:
        if name not in self:
            raise TypeError(f"a layer of a network has the arrays {', '.join(self)}, and no {name!r} can be added")
        old = self[name]
        if array is old:
            return
        expected, came = kind_of(old), kind_of(array) if is_array(array) else f"a {type(array).__name__}"
        if came != expected:
            raise TypeError(
                f"{name} of a layer of a network is {expected}, got {came}; net.set_params and net.set_state convert "
                "what they are given, net.to(...) moves a network"
            )


def kind_of(a: Array) -> str:
    """Library, dtype, shape and device of an array, in words."""
    device = "" if is_compiled(namespace(a)) else f" on {device_of(a)}"  # JAX's tracers have none
    return f"an array of {library_of(a)}, {dtype_name(a.dtype)}, of shape {tuple(a.shape)}{device}"


# --- the backends -----------------------------------------------------------------------------------------------------


class Backend:
    """One array library on one device. Ask `get_backend` for it rather than building it."""

    name: str
    module: str  # that holds its array functions
    install: str
    device: Any
    plain: bool = False  # see `is_plain`
    scans: bool = False  # see `scans`
    immediate: bool = False  # whether a result is ready when the call returns, so that to look at it costs no waiting

    def __init__(self, device: Any = None):
        self.requested_device = device
        self.device = device
        try:
            importlib.import_module(self.name)
            self.xp = importlib.import_module(self.module)
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
            raise ValueError(f'{self!r}: no dtype {told(dtype)}; there are "float32", "float64", "int64", "bool", ...')
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
        wanted = "no usable device" if asked is None else f"device {told(asked)} cannot be used"
        return BackendUnavailableError(f"backend {self.name!r}: {wanted} ({reason}). {remedy}")


class _NumPy(Backend):
    name, module, install = "numpy", "array_api_compat.numpy", "pip install array-api-compat"
    immediate = scans = True

    def __init__(self, device: Any = None):
        super().__init__(device)
        if device is not None and not (isinstance(device, str) and device == "cpu"):
            raise self._no_device("NumPy computes on the CPU only", 'Use device=None, or backend="cupy" for a GPU.')


class _CuPy(Backend):
    name, module = "cupy", "array_api_compat.cupy"
    plain = True
    install = "pip install 'cupy-cuda13x[ctk]' (or cupy-cuda12x: nvidia-smi names your driver's CUDA)"

    def __init__(self, device: Any = None):
        super().__init__(device)
        cupy = importlib.import_module("cupy")
        remedy = "Check that nvidia-smi lists a GPU and that CuPy fits its CUDA: pip install 'cupy-cuda13x[ctk]'."
        try:
            if device is not None and not hasattr(device, "id"):
                device = int(str(device).removeprefix("cuda").removeprefix(":") or 0)
            self.device = cupy.cuda.Device(getattr(device, "id", device))  # of None, the current one
            works = self._computes(self.device.id)
        except Exception as error:  # whatever CuPy, the driver or the compiler raise, it is theirs to explain
            raise self._no_device(f"{type(error).__name__}: {error}", remedy) from error
        if not works:
            raise self._no_device("a sum of three numbers came out wrong", remedy)

    @staticmethod
    @functools.cache
    def _computes(number: int) -> bool:
        """Whether this device does, found out once: a driver may be there, and its compiler or the card not."""
        cupy = importlib.import_module("cupy")
        with cupy.cuda.Device(number):
            return int(cupy.arange(3).sum()) == 3

    def asarray(self, x: Any, dtype: object = None) -> Array:
        with self.device:
            return self.xp.asarray(x, dtype=self.dtype(dtype))

    def to_numpy(self, a: Array) -> np.ndarray:
        return np.asarray(a.get())

    def synchronize(self) -> None:
        self.device.synchronize()

    @property
    def portable_device(self) -> Any:
        return self.device.id

    @contextlib.contextmanager
    def scope(self, autograd: bool = False) -> Iterator[None]:
        with self.device, super().scope():
            yield

    @property
    def device_name(self) -> str:
        properties = importlib.import_module("cupy").cuda.runtime.getDeviceProperties(self.device.id)
        return f"cuda:{self.device.id} {properties['name'].decode()}"


class _Torch(Backend):
    name, module, install = "torch", "array_api_compat.torch", "pip install torch"

    def __init__(self, device: Any = None):
        super().__init__(device)
        self._torch = importlib.import_module("torch")
        try:
            self.device = self._torch.device(self._torch.get_default_device() if device is None else device)
            self._has_numbers(self.device)
            self.immediate = self.device.type == "cpu"
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise self._no_device(error, 'Use device="cpu", or a PyTorch build for your hardware.') from error

    @staticmethod
    @functools.cache
    def _has_numbers(device: Any) -> float:
        """Fail on a device without, such as "meta"; looked at once."""
        return float(importlib.import_module("torch").zeros(1, device=device))

    def asarray(self, x: Any, dtype: object = None) -> Array:
        if isinstance(x, self._torch.Tensor):
            x = x.detach()  # the gradients are written out here, autograd has nothing to record
        else:
            x = np.require(x, requirements=["C", "W"])  # torch shares neither read-only nor negatively strided memory
        return self.xp.asarray(x, dtype=self.dtype(dtype), device=self.device)

    def adopt(self, who: str, x: Any, remedy: str = "convert it first") -> Array:
        if isinstance(x, self._torch.Tensor) and x.layout is not self._torch.strided:
            raise TypeError(f"{who} has the layout {x.layout}; expected a dense tensor: .to_dense() gives one")
        if isinstance(x, self._torch.Tensor) and x.is_meta:
            raise TypeError(f'{who} is a tensor on the device "meta", which has no numbers; make it on "cpu"')
        return super().adopt(who, x, remedy)

    def to_numpy(self, a: Array) -> np.ndarray:
        return np.asarray(a.detach().cpu())

    @contextlib.contextmanager
    def scope(self, autograd: bool = False) -> Iterator[None]:
        torch, kind = self._torch, self.device.type
        casts = torch.is_autocast_enabled(kind)
        plain = torch.autocast(kind, enabled=False) if casts else contextlib.nullcontext()
        with super().scope(), plain, torch.set_grad_enabled(autograd and torch.is_grad_enabled()):
            yield

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            self._torch.cuda.synchronize(self.device)  # pragma: no cover  # needs a GPU


class _JAX(Backend):
    name, module, install = "jax", "jax.numpy", "pip install jax"
    plain = True

    def __init__(self, device: Any = None):
        super().__init__(device)
        self._jax = importlib.import_module("jax")
        _register(self._jax.tree_util)
        if device is None:
            device = self.device = self._jax.config.jax_default_device
        if isinstance(device, str | int | None):  # "cuda", "cuda:1", 1
            platform, _, number = (f":{device}" if isinstance(device, int) else device or "").partition(":")
            try:
                self.device = self._jax.devices(platform or None)[int(number or 0)]
            except (RuntimeError, IndexError, ValueError) as error:
                raise self._no_device(error, "jax.devices() lists what there is.") from error

    def dtype(self, dtype: object) -> Any:
        """As everywhere; JAX has a float64 only with `jax_enable_x64` set, so asking for float64 here sets it."""
        if dtype is not None and dtype_name(dtype) == "float64" and not self._jax.config.jax_enable_x64:
            self._jax.config.update("jax_enable_x64", True)
        return super().dtype(dtype)

    def asarray(self, x: Any, dtype: object = None) -> Array:
        """As everywhere; integers of 64 bits that JAX would wrap around, without `jax_enable_x64`, become floats."""
        if isinstance(x, np.ndarray) and x.dtype in (np.int64, np.uint64) and not self._jax.config.jax_enable_x64:
            x = x if (x == x.astype(f"{x.dtype.kind}4")).all() else x.astype(np.float64)
        if isinstance(x, self._jax.Array):  # JAX's own asarray refuses one that lies on another device, or on several
            one = self._jax.sharding.SingleDeviceSharding  # a device alone would leave the mesh in the array's type
            x = self._jax.device_put(x, one(self.device) if isinstance(self.device, self._jax.Device) else self.device)
        with np.errstate(over="ignore"):  # JAX casts to float32 unasked; who takes it looks for infinite ones
            return super().asarray(x, dtype)

    @property
    def portable_device(self) -> Any:
        return f"{self.device.platform}:{self.device.id}"

    def stack(self, values: Sequence[Any]) -> np.ndarray:
        """As everywhere, but one by one: jnp.stack takes 5 µs for each, and half a second when their number is new."""
        if getattr(self.device, "platform", "cpu") != "cpu":
            values = self._jax.device_get(values)  # pragma: no cover  # needs a GPU: all transfers at a time
        return np.array([np.asarray(value) for value in values], dtype=np.float64)

    def synchronize(self) -> None:
        self._jax.block_until_ready(self._jax.device_put(0.0, self.device) + 0.0)  # a device works in order


@functools.cache
def _register(tree_util: Any) -> None:
    """Have JAX look into dicts of ours as into any dict."""
    for cls in (Named, Held):
        tree_util.register_pytree_with_keys(
            cls,
            lambda arrays: (
                tuple((tree_util.DictKey(name), arrays[name]) for name in sorted(arrays)),
                tuple(sorted(arrays)),
            ),
            lambda names, arrays: dict(zip(names, arrays, strict=True)),
        )


class _Strict(Backend):
    """array_api_strict: nothing but the standard; its "device1" refuses host access, as a GPU would."""

    name, module, install = "array_api_strict", "array_api_strict", "pip install array-api-strict"
    scans = True

    def __init__(self, device: Any = None):
        super().__init__(device)
        try:
            self.device = device if isinstance(device, self.xp.Device) else self.xp.Device(device or "CPU_DEVICE")
        except ValueError as error:
            raise self._no_device(error, 'Use device=None or "device1".') from error

    def to_numpy(self, a: Array) -> np.ndarray:
        return np.asarray(self.xp.asarray(a, device=self.xp.Device("CPU_DEVICE")))


_BACKENDS: dict[str, type[Backend]] = {b.name: b for b in (_NumPy, _CuPy, _Torch, _JAX, _Strict)}
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
    if not isinstance(name, str) or name not in _BACKENDS:
        known = f"there are {', '.join(map(repr, _BACKENDS))} and 'auto'"
        device = str(name).partition(":")[0] in ("cuda", "gpu", "cpu", "mps")
        hint = f"; that is a device, as in backend='torch', device={name!r}" if device else ""
        raise ValueError(f"get_backend: no backend {told(name)}; {known}{hint}")
    default = _BACKENDS[name]() if device is None else None  # where it is now: it may change
    key = name, f"default {default.device!r}" if default else repr(device)
    if key not in _made:
        _made[key] = default or _BACKENDS[name](device)
    return _made[key]


def backend_of(x: Array, who: str = "xpnet") -> Backend:
    """The backend that array `x` belongs to, on its device; TypeError for another library's array."""
    return get_backend(library_of(x, who), device_of(x))


def library_of(x: Array, who: str = "xpnet") -> str:
    """The name of the backend that array `x` belongs to."""
    kind = backend_class(namespace(x, who))
    if kind is None:
        raise TypeError(f"{who}: expected an array of {', '.join(_BACKENDS)}, got {came(x)}")
    return kind.name


def backend_class(xp: Namespace) -> type[Backend] | None:
    """The backend whose functions these are."""
    return next((kind for kind in _BACKENDS.values() if kind.module == xp.__name__), None)


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
        raise TypeError(f"{who} is {came(a)}, expected an array, a list of rows or a pandas frame")
    return array


def shape_of(x: Any, who: str) -> tuple[int, ...]:
    """The shape of an array, frame or list; raises as `on_host`."""
    return tuple(x.shape) if hasattr(x, "shape") else on_host(x, who).shape


# --- the default ------------------------------------------------------------------------------------------------------

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
