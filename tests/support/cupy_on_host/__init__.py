"""CuPy itself without a GPU: the host answers its calls of the runtime, the driver and the libraries.

    device.h, engine.cpp   memory and threads on the CPU; uninitialized memory is NaN
    tables.py              functions of the runtime and the driver, which CuPy calls through tables of C functions
    compiler.py            compilation of CuPy's and xpnet's kernels by the host's C++ compiler, and their launches
    libraries.py           cuBLAS's products and Thrust's sorts, by NumPy
    log.py                 counts of launches, waits and transfers; faults

Faults are errors that CUDA does not report: a barrier that some threads miss, writes outside an array or after it was
freed, an array of another device, arguments of types other than the kernel's. A missing barrier, and reads of memory
that is uninitialized or outside an array, show in the results.

Call `install()` before CuPy is imported. There are two devices, so that one of them is not the current one. It cannot
show speed, cuBLAS's rounding, really concurrent work, or CUB's reductions, which are switched off.
"""

import os
import sys

from .log import log

__all__ = ["install", "installed", "log"]


def install() -> None:
    """Answer CuPy's calls from now on. Raises RuntimeError if CuPy is already imported or there is no compiler."""
    if "cupy" in sys.modules:
        raise RuntimeError("cupy_on_host: install() comes before CuPy is imported")
    os.environ["CUPY_ACCELERATORS"] = ""  # CUB's reductions are written for the device's own warps
    from . import compiler, libraries, tables

    compiler.compiler()  # now, rather than in a kernel that is not kept yet
    compiler.build_engine()
    tables.install()
    libraries.install_cublas()
    import cupy

    libraries.install_thrust()
    libraries.use_small_blocks()
    compiler.install()
    cupy.cuda.set_allocator(None)  # no pool: each array's memory is fresh, and is freed with it
    cupy.cuda.set_pinned_memory_allocator(None)


def installed() -> bool:
    """Whether the host answers CuPy's calls in this process."""
    return f"{__name__}.tables" in sys.modules
