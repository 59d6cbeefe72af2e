"""JAX, on any of its devices."""

import functools
import importlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .arrays import Array, dtype_name
from .base import Backend
from .dicts import LayerArrays, NetworkArrays


class JAX(Backend):
    """JAX, on one of its devices."""

    name, install = "jax", "pip install jax"
    plain = True

    def __init__(self, device: Any = None):
        super().__init__(device)
        self._jax = importlib.import_module("jax")
        _register(self._jax.tree_util)
        if device is None:
            device = self.device = self._jax.config.jax_default_device
        if isinstance(device, str | int | None):  # "cuda", "cuda:1", 1
            platform, _, number = (f":{device}" if isinstance(device, int) else device or "").partition(":")
            try:
                self.device = self._jax.devices(platform or None)[int(number or 0)]
            except (RuntimeError, IndexError, ValueError) as error:
                raise self._no_device(error, "jax.devices() lists the devices.") from error

    def dtype(self, dtype: object) -> Any:
        """As in `Backend`; float64 sets `jax_enable_x64`, which it requires."""
        if dtype is not None and dtype_name(dtype) == "float64" and not self._jax.config.jax_enable_x64:
            self._jax.config.update("jax_enable_x64", True)
        return super().dtype(dtype)

    def asarray(self, x: Any, dtype: object = None) -> Array:
        """As in `Backend`; 64-bit integers that would wrap around without `jax_enable_x64` become floats."""
        if isinstance(x, np.ndarray) and x.dtype in (np.int64, np.uint64) and not self._jax.config.jax_enable_x64:
            x = x if (x == x.astype(f"{x.dtype.kind}4")).all() else x.astype(np.float64)
        if isinstance(x, self._jax.Array):  # jnp.asarray refuses arrays of another device, or of several
            one = self._jax.sharding.SingleDeviceSharding  # with a device alone, the array's type would keep its mesh
            x = self._jax.device_put(x, one(self.device) if isinstance(self.device, self._jax.Device) else self.device)
        with np.errstate(over="ignore"):  # in a cast to float32; callers check for infinities
            return super().asarray(x, dtype)

    @property
    def portable_device(self) -> Any:
        return f"{self.device.platform}:{self.device.id}"

    def stack(self, values: Sequence[Any]) -> np.ndarray:
        """As in `Backend`, but one by one: jnp.stack takes 5 µs for each value, and compiles for each new count."""
        if getattr(self.device, "platform", "cpu") != "cpu":
            values = self._jax.device_get(values)  # pragma: no cover  # from a GPU in one transfer
        return np.array([np.asarray(value) for value in values], dtype=np.float64)

    def gatherer(self, order: np.ndarray) -> Callable[[Array, slice, int], Array]:
        """As in `Backend`, but compiled: jnp.take itself takes several times as long."""
        take, index = _compiled_take(self._jax), order.astype(np.int32)
        return lambda a, rows, axis: take(a, index[rows], axis)

    @staticmethod
    def erf(x: Array) -> Array:
        return importlib.import_module("jax.scipy.special").erf(x)

    @staticmethod
    def rows_added(rows: Array, ids: Array, n: int) -> Array:
        zeros = importlib.import_module("jax.numpy").zeros((n, rows.shape[1]), rows.dtype)
        return zeros.at[ids].add(rows)

    @staticmethod
    def at_hand(x: Array) -> bool:
        return not isinstance(x, importlib.import_module("jax").core.Tracer)

    def synchronize(self) -> None:
        self._jax.block_until_ready(self._jax.device_put(0.0, self.device) + 0.0)  # a device computes in order


@functools.cache
def _compiled_take(jax: Any) -> Callable[[Array, Array, int], Array]:
    """Return a compiled function that takes entries along an axis, without checking their indices."""

    def take(a: Array, index: Array, axis: int) -> Array:
        return a.at[(slice(None),) * axis + (index,)].get(mode="promise_in_bounds")

    compiled: Callable[[Array, Array, int], Array] = jax.jit(take, static_argnums=2)
    return compiled


@functools.cache
def _register(tree_util: Any) -> None:
    """Register xpnet's dicts of arrays as pytrees."""
    for cls in (NetworkArrays, LayerArrays):
        tree_util.register_pytree_with_keys(
            cls,
            lambda arrays: (
                tuple((tree_util.DictKey(name), arrays[name]) for name in sorted(arrays)),
                tuple(sorted(arrays)),
            ),
            lambda names, arrays: dict(zip(names, arrays, strict=True)),
        )
