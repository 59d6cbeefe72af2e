"""Arrays of any library: their functions, library, device and dtype."""

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
    """The module with a library's array functions, and what its calls are like."""

    module: str
    plain: bool = False  # see `is_plain`
    scans: bool = False  # see `scans`


LIBRARIES = {
    "numpy": Library("array_api_compat.numpy", scans=True),
    "cupy": Library("array_api_compat.cupy", plain=True),
    "torch": Library("array_api_compat.torch"),
    "jax": Library("jax.numpy", plain=True),
    "array_api_strict": Library("array_api_strict", scans=True),
}

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
            raise TypeError(
                f"{who}: expected an array, got {kind_of(x)}; backend.asarray makes one of a list"
            ) from None
        xp = _namespaces[type(x)] = importlib.import_module("array_api_compat").array_namespace(x)
        return xp


def floating(x: Array, who: object) -> Namespace:
    """`namespace` of an array of float32 or float64; TypeError for any other."""
    try:
        return _floating[type(x), x.dtype]
    except (AttributeError, KeyError, TypeError):  # no array, one not seen yet, a dtype without a hash
        xp = namespace(x, who)
    if library(xp) is None or isinstance(x, np.ma.MaskedArray):
        raise TypeError(f"{who}: expected a plain array of {', '.join(LIBRARIES)}, got {kind_of(x)}")
    if dtype_name(x.dtype) not in DTYPES:
        raise TypeError(f"{who}: expected an array of float32 or float64, got dtype {x.dtype}")
    _floating[type(x), x.dtype] = xp
    return xp


def is_array(x: object) -> bool:
    """Whether `x` is an array of any library here: no list, number or data frame."""
    return bool(importlib.import_module("array_api_compat").is_array_api_obj(x))


def library(xp: Namespace) -> str | None:
    """The name of the library whose functions these are, None for one that is not supported."""
    return next((name for name, library in LIBRARIES.items() if library.module == xp.__name__), None)


def library_of(x: Array, who: str = "xpnet") -> str:
    """The name of the library that array `x` belongs to; TypeError for one that is not supported."""
    name = library(namespace(x, who))
    if name is None:
        raise TypeError(f"{who}: expected an array of {', '.join(LIBRARIES)}, got {kind_of(x)}")
    return name


def is_compiled(xp: Namespace) -> bool:
    """Whether a compiler fuses many of these calls into one loop."""
    return bool(xp.__name__ == LIBRARIES["jax"].module)


@functools.cache
def is_plain(xp: Namespace) -> bool:
    """Whether the plainest formula is the fastest: a compiler fuses the calls (JAX), or each call is a kernel whose
    result lies in C order, whatever order its arguments have (CuPy).
    """
    name = library(xp)
    return name is not None and LIBRARIES[name].plain


@functools.cache
def scans(xp: Namespace) -> bool:
    """Whether `isfinite` and `all` take one quick pass each (NumPy), and no longer than finding the largest entry."""
    name = library(xp)
    return name is not None and LIBRARIES[name].scans


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
