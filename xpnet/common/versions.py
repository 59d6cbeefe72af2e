"""Versions of xpnet and the packages it uses, for bug reports."""

import os
import sys

from ..version import __version__

PACKAGES = (
    "numpy", "array-api-compat", "tqdm", "cupy", "cupy-cuda12x", "cupy-cuda13x", "torch", "jax", "array-api-strict",
    "numba", "scikit-learn", "threadpoolctl", "matplotlib", "onnx",
)  # fmt: skip


def versions() -> dict[str, str]:
    """Return the versions of xpnet, Python, the system and packages, not imported, and the XPNET_ variables."""
    import platform
    from importlib import metadata

    found = {"xpnet": __version__, "python": sys.version.split()[0], "system": platform.platform()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found | {name: value for name, value in sorted(os.environ.items()) if name.startswith("XPNET_")}


def show_versions() -> None:
    """Print the versions of xpnet, Python, the system and the packages that xpnet may use, for a bug report.

    If threadpoolctl is installed, they include BLAS and the processor that its code is for.

    >>> xn.show_versions()
    xpnet ...
    """
    found = versions()
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        pools = []
    else:
        pools = [pool for pool in threadpool_info() if pool["user_api"] == "blas"]
    for pool in pools:
        details = pool["internal_api"], pool.get("version"), pool.get("architecture"), f"{pool['num_threads']} threads"
        found["BLAS"] = ", ".join(str(each) for each in details if each)
    width = max(map(len, found))
    print("\n".join(f"{name:<{width}}  {value}" for name, value in found.items()))
