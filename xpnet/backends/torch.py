"""PyTorch, on any of its devices."""

import contextlib
import functools
import importlib
from collections.abc import Iterator
from typing import Any

import numpy as np

from .arrays import Array
from .base import Backend


class Torch(Backend):
    """PyTorch, on one of its devices."""

    name, install = "torch", "pip install torch"

    def __init__(self, device: Any = None):
        super().__init__(device)
        self._torch = importlib.import_module("torch")
        try:
            self.device = self._torch.device(self._torch.get_default_device() if device is None else device)
            self._has_numbers(self.device)
            self.immediate = self.device.type == "cpu"
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            raise self._no_device(error, 'Use device="cpu", or a PyTorch build for your hardware.') from error

    @staticmethod
    @functools.cache
    def _has_numbers(device: Any) -> float:
        """Raise on a device without data, such as "meta"; tried once."""
        return float(importlib.import_module("torch").zeros(1, device=device))

    def asarray(self, x: Any, dtype: object = None) -> Array:
        if isinstance(x, self._torch.Tensor):
            x = x.detach()  # xpnet computes gradients without autograd
        else:
            x = np.require(x, requirements=["C", "W"])  # torch takes no read-only memory and no negative strides
        return self.xp.asarray(x, dtype=self.dtype(dtype), device=self.device)

    def checked(self, who: str, x: Any, remedy: str = "convert it first") -> Array:
        if isinstance(x, self._torch.Tensor) and x.layout is not self._torch.strided:
            raise TypeError(f"{who} has the layout {x.layout}; expected a dense tensor: .to_dense() gives one")
        if isinstance(x, self._torch.Tensor) and x.is_meta:
            raise TypeError(f'{who} is a tensor on the device "meta", which has no data; create it on "cpu"')
        return super().checked(who, x, remedy)

    def to_numpy(self, a: Array) -> np.ndarray:
        return np.asarray(a.detach().cpu())

    @contextlib.contextmanager
    def scope(self, autograd: bool = False) -> Iterator[None]:
        torch, kind = self._torch, self.device.type
        grads, nothing = autograd and torch.is_grad_enabled(), contextlib.nullcontext()
        plain = torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else nothing
        # tensors of PyTorch's inference mode could not be written to outside of it
        normal = torch.inference_mode(False) if torch.is_inference_mode_enabled() else nothing
        with super().scope(), plain, normal, torch.set_grad_enabled(grads):
            yield

    @staticmethod
    def erf(x: Array) -> Array:
        return importlib.import_module("torch").special.erf(x)

    @staticmethod
    def rows_added(rows: Array, ids: Array, n: int) -> Array:
        zeros = rows.new_zeros((n, rows.shape[1]))
        if rows.device.type == "cpu":
            return zeros.index_add(0, ids, rows)
        return zeros.index_put((ids,), rows, accumulate=True)  # on a GPU, index_add is not deterministic

    @staticmethod
    def at_hand(x: Array) -> bool:
        return bool(x.device.type == "cpu")

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            self._torch.cuda.synchronize(self.device)  # pragma: no cover  # needs a GPU
