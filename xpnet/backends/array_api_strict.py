"""array_api_strict: only what the standard has, and a second device that refuses access from the host."""

from typing import Any

import numpy as np

from .arrays import Array
from .base import Backend


class Strict(Backend):
    """array_api_strict; its "device1" refuses host access, as a GPU would."""

    name, install = "array_api_strict", "pip install array-api-strict"
    scans = True

    def __init__(self, device: Any = None):
        super().__init__(device)
        try:
            self.device = device if isinstance(device, self.xp.Device) else self.xp.Device(device or "CPU_DEVICE")
        except ValueError as error:
            raise self._no_device(error, 'Use device=None or "device1".') from error

    def to_numpy(self, a: Array) -> np.ndarray:
        return np.asarray(self.xp.asarray(a, device=self.xp.Device("CPU_DEVICE")))
