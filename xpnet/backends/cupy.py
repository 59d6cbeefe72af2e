"""CuPy, on an NVIDIA GPU."""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .arrays import Array
from .base import Backend

ONE_HOT = 2**24  # entries of one-hot ids up to which rows are added by a product: unlike `add.at`, it is deterministic


class CuPy(Backend):
    """CuPy, on a CUDA device."""

    name = "cupy"
    install = "pip install 'cupy-cuda13x[ctk]' (or cupy-cuda12x: nvidia-smi names your driver's CUDA)"
    plain = True

    def __init__(self, device: Any = None):
        super().__init__(device)
        cupy = importlib.import_module("cupy")
        remedy = "Check that nvidia-smi lists a GPU and that CuPy fits its CUDA: pip install 'cupy-cuda13x[ctk]'."
        try:
            if device is not None and not hasattr(device, "id"):
                device = int(str(device).removeprefix("cuda").removeprefix(":") or 0)
            self.device = cupy.cuda.Device(getattr(device, "id", device))  # None: the current device
            works = self._computes(self.device.id)
        except Exception as error:  # anything that CuPy, the driver or the compiler raises
            raise self._no_device(f"{type(error).__name__}: {error}", remedy) from error
        if not works:
            raise self._no_device("a sum of three numbers came out wrong", remedy)

    @staticmethod
    @functools.cache
    def _computes(number: int) -> bool:
        """Whether this device computes; a driver may be installed without a compiler or a working GPU."""
        cupy = importlib.import_module("cupy")
        with cupy.cuda.Device(number):
            return int(cupy.arange(3).sum()) == 3

    def asarray(self, x: Any, dtype: object = None) -> Array:
        with self.device:
            return self.xp.asarray(x, dtype=self.dtype(dtype))

    def to_numpy(self, a: Array) -> np.ndarray:
        return np.asarray(a.get())

    @staticmethod
    def erf(x: Array) -> Array:
        return importlib.import_module("cupyx.scipy.special").erf(x)

    @staticmethod
    def rows_added(rows: Array, ids: Array, n: int) -> Array | None:
        if n * rows.shape[0] <= ONE_HOT:
            return None
        cupy = importlib.import_module("cupy")
        sums = cupy.zeros((n, rows.shape[1]), rows.dtype)
        cupy.add.at(sums, ids, rows)
        return sums

    @staticmethod
    def at_hand(x: Array) -> bool:
        return False

    def synchronize(self) -> None:
        self.device.synchronize()

    @property
    def portable_device(self) -> Any:
        return self.device.id

    @contextlib.contextmanager
    def scope(self, autograd: bool = False) -> Iterator[None]:
        with self.device, super().scope():
            yield

    @property
    def device_name(self) -> str:
        properties = importlib.import_module("cupy").cuda.runtime.getDeviceProperties(self.device.id)
        return f"cuda:{self.device.id} {properties['name'].decode()}"
