"""The choice of a family of kernels for a network."""

import importlib
import importlib.util
import sys
from typing import Any

from ..backends import Backend
from ..common.warn import warn
from ..layers.placed import Placed


def kernels_of(net: Placed, compiled: bool) -> Any:
    """Return the family of kernels for a network, or None if there is none."""
    if net.backend.name == "cupy" and not compiled:  # not all of CuPy's functions can write into a given array
        return None
    return kernels_for(net.backend, compiled)


def kernels_for(backend: Backend, compiled: bool) -> Any:
    """Return the family of kernels for this backend."""
    if backend.name == "cupy":
        from .cuda.kernels import CuPyKernels

        return CuPyKernels(backend)
    if compiled and backend.name == "numpy" and importlib.util.find_spec("numba"):
        try:
            return import_whole("numba", "llvmlite").NumbaKernels(backend)
        except Exception as error:  # for another NumPy, JIT disabled, no folder for its cache: training works without
            warn(
                f"Numba is installed and cannot be used ({type(error).__name__}: {error}): training goes on without "
                "it. Mend it, or set XPNET_KERNELS=generic",
                RuntimeWarning,
            )
    if backend.name == "torch":
        from .cpu.torch import TorchKernels

        return TorchKernels(backend)
    from .cpu.calls import Calls

    return Calls(backend)


def import_whole(library: str, *below: str) -> Any:
    """Import and return `.cpu.<library>`, the kernels that use this library, completely or not at all.

    If the import fails or Ctrl-C interrupts it, the new modules of the library and of those `below` it are removed from
    `sys.modules`: half imported as they are, they would make the next import fail.
    """
    module, before = f"{__package__}.cpu.{library}", set(sys.modules)
    try:
        return importlib.import_module(module)
    except BaseException:
        for name in set(sys.modules) - before:
            if name == module or name.startswith(f"{module}.") or name.partition(".")[0] in (library, *below):
                del sys.modules[name]
        raise
