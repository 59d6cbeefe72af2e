"""CuPy itself without a GPU: its calls to the runtime, the driver and the libraries are answered by the host.

    device.h, engine.cpp   memory and threads, on the CPU; memory that was not written to is NaN
    tables.py              the runtime's and the driver's functions, which CuPy reaches through tables of C functions
    compiler.py            CuPy's kernels and ours compiled by the host's C++ compiler, and their launches
    libraries.py           cuBLAS's products and Thrust's sorts, by NumPy
    log.py                 launches, waits and transfers, counted; faults

Faults are what CUDA would not say a word about: a barrier that some threads miss, memory written to outside an array or
after it was freed, an array of another device, arguments of other types than a kernel's. A barrier that is missing and
memory that is read before it is written to, or outside an array, show in the results.

`install()` before CuPy is first used. The devices are two, so that one of them is not the current one. What it cannot
show: speed, cuBLAS's rounding, work that really runs at the same time, and CUB's reductions, which are switched off.
"""

import os
import sys

from .log import log

__all__ = ["install", "installed", "log"]


def install() -> None:
    """Answer CuPy's calls from here on. RuntimeError where CuPy has been used already or no compiler is there."""
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
    """Whether the host answers in this process."""
    return f"{__name__}.tables" in sys.modules
