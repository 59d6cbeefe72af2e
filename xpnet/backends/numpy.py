"""NumPy, on the CPU."""

from typing import Any

import numpy as np

from .arrays import Array
from .base import Backend


class NumPy(Backend):
    """NumPy."""

    name, install = "numpy", "pip install array-api-compat"
    immediate = scans = True

    def __init__(self, device: Any = None):
        super().__init__(device)
        if device is not None and not (isinstance(device, str) and device == "cpu"):
            raise self._no_device("NumPy computes on the CPU only", 'Use device=None, or backend="cupy" for a GPU.')

    @staticmethod
    def rows_added(rows: Array, ids: Array, n: int) -> Array:
        d = rows.shape[1]
        sums = np.zeros(n * d, rows.dtype)
        np.add.at(sums, (ids[:, None] * d + np.arange(d)).ravel(), rows.ravel())  # six times as fast as on whole rows
        return sums.reshape(n, d)
