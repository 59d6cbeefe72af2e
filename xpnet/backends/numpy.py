"""NumPy, on the CPU."""

from typing import Any

from .base import Backend


class NumPy(Backend):
    """NumPy."""

    name, install = "numpy", "pip install array-api-compat"
    immediate = True

    def __init__(self, device: Any = None):
        super().__init__(device)
        if device is not None and not (isinstance(device, str) and device == "cpu"):
            raise self._no_device("NumPy computes on the CPU only", 'Use device=None, or backend="cupy" for a GPU.')
