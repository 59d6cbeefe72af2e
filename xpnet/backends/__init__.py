"""Backends: array libraries and their devices, one library a file, imported on first use."""

from .arrays import (
    DTYPES,
    Array,
    Namespace,
    device_of,
    dtype_name,
    floating,
    is_array,
    is_compiled,
    library_of,
    namespace,
)
from .base import Backend, BackendUnavailableError, backend_of, class_of, get_backend, on_host, shape_of
from .choice import default_backend, resolve, use_backend
from .dicts import LayerArrays, NetworkArrays, ReadOnlyDict

__all__ = [
    "DTYPES", "Array", "Backend", "BackendUnavailableError", "LayerArrays", "Namespace", "NetworkArrays",
    "ReadOnlyDict", "backend_of", "class_of", "default_backend", "device_of", "dtype_name", "floating", "get_backend",
    "is_array", "is_compiled", "library_of", "namespace", "on_host", "resolve", "shape_of", "use_backend",
]  # fmt: skip
