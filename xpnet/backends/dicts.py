"""Dicts of arrays by name: read-only ones for networks, and ones for layers that take arrays of the same kind."""

from collections.abc import Mapping
from typing import Any, NoReturn, Self

from ..common.checks import kind_of
from .arrays import Array, device_of, dtype_name, is_array, is_compiled, library_of, namespace


class ReadOnlyDict(dict[str, Array]):
    """A dict of arrays that raises TypeError, with a remedy, when written to. Its copies are plain dicts."""

    remedy = ""

    def _refuse(self, *given: Any, **named: Any) -> NoReturn:
        raise TypeError(self.remedy)

    def __setitem__(self, name: str, array: Array) -> None:
        self._refuse()

    __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class NetworkArrays(ReadOnlyDict):
    """All parameters or all statistics of a network; `what` is the network's attribute, "params" or "state"."""

    def __init__(self, what: str, arrays: Mapping[str, Array]):
        super().__init__(arrays)
        self.remedy = (
            f"net.{what} is read-only, since writing to it would not change the network: set arrays with "
            f"net.set_{what}(net.{what} | {{name: array}}); dict(net.{what}) is a copy of your own"
        )

    def __setitem__(self, name: str, array: Array) -> None:
        if array is not self.get(name):  # the same array after net.params[name] *= 2, which NumPy does in place
            self._refuse()


class LayerArrays(ReadOnlyDict):
    """The arrays of a layer in a network. Arrays of the same library, device, shape and dtype may replace them."""

    remedy = "the arrays of a layer in a network have fixed names: none can be added or removed"
    drawn = False  # whether the arrays are still those that `initialize` drew

    def __setitem__(self, name: str, array: Array) -> None:
        self._check(name, array)
        super(ReadOnlyDict, self).__setitem__(name, array)
        self.drawn = False

    def update(self, *given: Any, **named: Array) -> None:  # type: ignore[override]
        for name, array in self.replaced(self | dict(*given, **named)).items():
            self[name] = array

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc, override]
        self.update(other)
        return self

    def replaced(self, arrays: Any) -> "LayerArrays":
        """Return a copy with these arrays in place of all present ones."""
        if not isinstance(arrays, Mapping) or arrays.keys() != self.keys():
            given = ", ".join(map(str, arrays)) or "none" if isinstance(arrays, Mapping) else kind_of(arrays)
            expected = f"a layer of a network has the arrays {', '.join(self)}: expected a dict of them"
            raise TypeError(f"{expected}, got {given}")
        for name, array in arrays.items():
            self._check(name, array)
        return LayerArrays(arrays)

    def _check(self, name: str, array: Any) -> None:
        if name not in self:
            raise TypeError(f"a layer of a network has the arrays {', '.join(self)}, and no {name!r} can be added")
        old = self[name]
        if array is old:
            return
        expected, given = described(old), described(array) if is_array(array) else kind_of(array)
        if given != expected:
            raise TypeError(
                f"{name} of a layer of a network is {expected}, got {given}; net.set_params and net.set_state convert "
                "what they are given, net.to(...) moves a network"
            )


def described(a: Array) -> str:
    """Return the library, dtype, shape and device of an array in words."""
    device = "" if is_compiled(namespace(a)) else f" on {device_of(a)}"  # JAX's tracers have none
    return f"an array of {library_of(a)}, {dtype_name(a.dtype)}, of shape {tuple(a.shape)}{device}"
