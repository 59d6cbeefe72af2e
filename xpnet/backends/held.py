"""Arrays by name: a network's, to read, and a layer's, which others of their kind may replace."""

from collections.abc import Mapping
from typing import Any, NoReturn, Self

from .arrays import Array, device_of, dtype_name, is_array, is_compiled, library_of, namespace


class Guarded(dict[str, Array]):
    """A dict of arrays that cannot be written to, and says what to do instead. Copies of it are plain dicts."""

    remedy = ""  # what to do instead

    def _refuse(self, *given: Any, **named: Any) -> NoReturn:
        raise TypeError(self.remedy)

    def __setitem__(self, name: str, array: Array) -> None:
        self._refuse()

    __delitem__ = __ior__ = update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)


class Named(Guarded):
    """All parameters or all statistics of a network, `what` it calls them, by name."""

    def __init__(self, what: str, arrays: Mapping[str, Array]):
        super().__init__(arrays)
        self.remedy = (
            f"net.{what} is a dict to read, and writing to it would not change the network: set arrays with "
            f"net.set_{what}(net.{what} | {{name: array}}); dict(net.{what}) is a dict of your own"
        )

    def __setitem__(self, name: str, array: Array) -> None:
        if array is not self.get(name):  # as it is after net.params[name] *= 2, which NumPy does in place
            self._refuse()


class Held(Guarded):
    """A layer's arrays, as a network holds them. Others may be assigned in their place: of the same library, device,
    shape and dtype.
    """

    remedy = "a layer of a network has always the same arrays by name: none can be added or taken out"
    drawn = False  # by `initialize`, and not trained, loaded or set since

    def __setitem__(self, name: str, array: Array) -> None:
        self._check(name, array)
        super(Guarded, self).__setitem__(name, array)
        self.drawn = False

    def update(self, *given: Any, **named: Array) -> None:  # type: ignore[override]
        for name, array in self.replaced(self | dict(*given, **named)).items():
            self[name] = array

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc, override]
        self.update(other)
        return self

    def replaced(self, arrays: Any) -> "Held":
        """These arrays in place of all of its own."""
        if not isinstance(arrays, Mapping) or arrays.keys() != self.keys():
            came = (
                ", ".join(map(str, arrays)) or "none" if isinstance(arrays, Mapping) else f"a {type(arrays).__name__}"
            )
            raise TypeError(
                f"a layer of a network has the arrays {', '.join(self)}: expected a dict of them, got {came}"
            )
        for name, array in arrays.items():
            self._check(name, array)
        return Held(arrays)

    def _check(self, name: str, array: Any) -> None:
        if name not in self:
            raise TypeError(f"a layer of a network has the arrays {', '.join(self)}, and no {name!r} can be added")
        old = self[name]
        if array is old:
            return
        expected, came = kind_of(old), kind_of(array) if is_array(array) else f"a {type(array).__name__}"
        if came != expected:
            raise TypeError(
                f"{name} of a layer of a network is {expected}, got {came}; net.set_params and net.set_state convert "
                "what they are given, net.to(...) moves a network"
            )


def kind_of(a: Array) -> str:
    """Library, dtype, shape and device of an array, in words."""
    device = "" if is_compiled(namespace(a)) else f" on {device_of(a)}"  # JAX's tracers have none
    return f"an array of {library_of(a)}, {dtype_name(a.dtype)}, of shape {tuple(a.shape)}{device}"
