"""Properties of an array of any library: its functions, library, device and dtype."""

import functools
import importlib
from typing import Any, NamedTuple

import numpy as np

from ..common.checks import kind_of

if tuple(map(int, np.__version__.split(".")[:2])) < (2, 1):
    raise ImportError(f"xpnet needs NumPy 2.1 or later, found {np.__version__}: pip install -U numpy")

Array = Any  # an array of whichever library: the array API standard defines no common base class
Namespace = Any  # the module that holds a library's array functions

DTYPES = ("float32", "float64")


class Library(NamedTuple):
    """The module of a library's array functions, and the name of its Backend class."""

    module: str
    backend: str


LIBRARIES = {
    "numpy": Library("array_api_compat.numpy", "NumPy"),
    "cupy": Library("array_api_compat.cupy", "CuPy"),
    "torch": Library("array_api_compat.torch", "Torch"),
    "jax": Library("jax.numpy", "JAX"),
    "array_api_strict": Library("array_api_strict", "Strict"),
}

_namespaces: dict[type, Namespace] = {}
_floating: dict[tuple[type, Any], Namespace] = {}


def namespace(x: Array, who: object = "xpnet") -> Namespace:
    """Return the array API functions for array `x`, cached by type. Raises TypeError, with `who`, if it is no array.

    >>> import numpy as np
    >>> float(xn.ops.namespace(np.ones(3)).exp(np.zeros(1))[0])
    1.0
    """
    try:
        return _namespaces[type(x)]
    except KeyError:
        if not is_array(x):
            raise TypeError(
                f"{who}: expected an array, got {kind_of(x)}; backend.asarray makes one of a list"
            ) from None
        xp = _namespaces[type(x)] = compat().array_namespace(x)
        return xp


def floating(x: Array, who: object) -> Namespace:
    """As `namespace`, but raise TypeError for anything but an array of float32 or float64."""
    try:
        return _floating[type(x), x.dtype]
    except (AttributeError, KeyError, TypeError):  # not cached, not an array, or an unhashable dtype
        xp = namespace(x, who)
    if library(xp) is None or isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{who}: expected a plain array of {', '.join(LIBRARIES)}, got {kind_of(x)}")
    if dtype_name(x.dtype) not in DTYPES:
        raise TypeError(f"{who}: expected an array of float32 or float64, got dtype {x.dtype}")
    _floating[type(x), x.dtype] = xp
    return xp


def is_array(x: object) -> bool:
    """Whether `x` is an array of any library that array-api-compat knows."""
    return bool(compat().is_array_api_obj(x))


def library(xp: Namespace) -> str | None:
    """Return the name of the library with these functions, None if it is not supported."""
    return next((name for name, library in LIBRARIES.items() if library.module == xp.__name__), None)


def library_of(x: Array, who: str = "xpnet") -> str:
    """Return the name of the library of array `x`. Raises TypeError if it is not supported."""
    name = library(namespace(x, who))
    if name is None:
        raise TypeError(f"{who}: expected an array of {', '.join(LIBRARIES)}, got {kind_of(x)}")
    return name


def is_compiled(xp: Namespace) -> bool:
    """Whether a compiler fuses calls of these functions (JAX)."""
    return bool(xp.__name__ == LIBRARIES["jax"].module)


@functools.cache
def compat() -> Any:
    """Return the array-api-compat package, imported on first use."""
    return importlib.import_module("array_api_compat")


def device_of(x: Array) -> Any:
    """Return the device of array `x`, as creation functions take it."""
    return compat().device(x)


def dtype_name(dtype: object) -> str:
    """Return the name of a dtype, given as a name or as any library's dtype object: numpy.float32 -> "float32"."""
    try:
        return _dtype_name(dtype)
    except TypeError:  # not hashable, such as a list
        return str(dtype)


@functools.lru_cache(typed=True)  # typed: array_api_strict warns if its dtypes are compared with NumPy's
def _dtype_name(dtype: object) -> str:
    if dtype is None:  # np.dtype(None) is float64
        return "None"
    try:
        return np.dtype(dtype).name  # type: ignore[call-overload, no-any-return]
    except TypeError:
        return str(dtype).rpartition(".")[2]
