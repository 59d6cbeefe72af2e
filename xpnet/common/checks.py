"""Checks of settings and of return values of custom classes. `name` begins error messages: "Dense: in_features"."""

import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

PAIRS = {  # the pairs that methods of custom classes must return
    "forward": "(y, cache)",
    "backward": "(dx, {name: gradient})",
    "terms": "(terms, gradient)",
    "value_and_grad": "(value, gradient)",
    "rule": "(w, {name: array})",
}


def integer(name: str, value: object, least: int = 1, most: float = sys.maxsize) -> int:
    """Return an int from `least` to `most`, by default the largest length of an array; ValueError for others."""
    number = least - 1 if isinstance(value, bool) or not isinstance(value, Integral) else int(value)
    if not least <= number <= most:
        limit = f" and at most {most}" if number > most else ""
        raise ValueError(f"{name} must be a whole number of at least {least}{limit}, got {brief(value)}")
    return number


def seed(name: str, value: object) -> int | None:
    """Return the seed of a random generator: an int of at least 0, of any size, or None."""
    return None if value is None else integer(name, value, 0, math.inf)


def choice(name: str, value: object, options: Collection[str]) -> str:
    """Return `value` if it is one of the options."""
    if isinstance(value, str) and value in options:
        return value
    *most, last = (f'"{option}"' for option in options)
    raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {brief(value)}")


def brief(value: object) -> str:
    """Return `repr(value)` for a message, or the type in words if the repr is long or has several lines."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to write a very long one
    text = repr(value)
    return text if len(text) <= 120 and "\n" not in text else kind_of(value)


def kind_of(x: object) -> str:
    """Return the type of `x` in words: "None", "a list", "the class ReLU"."""
    if x is None:
        return "None"
    if isinstance(x, type):
        return f"the class {x.__name__}"
    name = type(x).__name__
    return f"{'an' if name[0] in 'aeioAEIO' or name == 'ndarray' else 'a'} {name}"


def flag(name: str, value: object, of_a_word: str = "") -> bool:
    """Return a bool. Raises ValueError for values that are only truthy; `of_a_word` ends the message for a str."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {brief(value)}{of_a_word if isinstance(value, str) else ''}")


def positive(name: str, value: object) -> float:
    """Return `value` as a finite float above 0."""
    return _number(name, value, "above 0 and finite", lambda v: 0 < v < math.inf)


def non_negative(name: str, value: object) -> float:
    """Return `value` as a finite float of at least 0."""
    return _number(name, value, "at least 0 and finite", lambda v: 0 <= v < math.inf)


def fraction(name: str, value: object) -> float:
    """Return `value` as a float in [0, 1)."""
    return _number(name, value, "at least 0 and below 1", lambda v: 0 <= v < 1)


def proportion(name: str, value: object) -> float:
    """Return `value` as a float in (0, 1)."""
    return _number(name, value, "above 0 and below 1", lambda v: 0 < v < 1)


def finite(name: str, value: object) -> float:
    """Return `value` as a finite float."""
    return _number(name, value, "a finite number", lambda v: -math.inf < v < math.inf)


def path(name: str, value: Any) -> str:
    """Return a path as str. Raises TypeError for anything else, such as an int, which `open` takes as a descriptor."""
    try:
        return os.fsdecode(value)
    except TypeError:
        raise TypeError(f"{name} must be a path, as str, bytes or os.PathLike, got {brief(value)}") from None


def _number(name: str, value: object, expected: str, holds: Callable[[float], bool]) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:  # an int beyond any float
        number = math.inf
    if not holds(number):
        array = getattr(value, "shape", None) == () and not isinstance(value, Real)
        raise ValueError(f"{name} must be {expected}, got {brief(value)}{': float(...) of it is a number' * array}")
    return number


def require(name: str, given: object, needed: Sequence[str], example: str, there_are: Collection[str] = ()) -> None:
    """Raise TypeError unless `given` is an object with the `needed` methods, rather than a name, class or network."""
    lacking = [method for method in needed if not hasattr(given, method)]
    if isinstance(given, type) or lacking == list(needed) or hasattr(given, "output_shape"):  # a network
        hint = f"; there are {', '.join(there_are)}" if isinstance(given, str) and there_are else ""
        raise TypeError(f"{name} must be an object such as {example}, got {brief(given)}{hint}")
    if lacking:
        raise TypeError(f"{name} has no {' and no '.join(lacking)}, which {example} has: {brief(given)}")


def pair_from(thing: object, method: str, given: Any) -> tuple[Any, Any]:
    """Return what `thing.method` gave if it is the tuple in `PAIRS`; an array of two rows would unpack as well."""
    if isinstance(given, tuple) and len(given) == 2:
        first, second = given
        if method == "forward":
            if hasattr(first, "shape"):
                return given
            gave = f"{kind_of(first)} for y"
        elif "{" not in PAIRS[method] or isinstance(second, Mapping):
            return given
        else:
            gave = f"a tuple with {kind_of(second)} in the second place"
    else:
        gave = f"a tuple of {len(given)}" if isinstance(given, tuple) else kind_of(given)
    raise TypeError(f"{thing!r}: {method} gave {gave}, expected the tuple {PAIRS[method]}")


def mapping_from(thing: object, method: str, given: Any) -> Mapping[str, Any]:
    """Return what `thing.method` gave if it is a mapping of arrays by name."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{thing!r}: {method} gave {kind_of(given)}, expected {{name: array}}")
    return given


def printable(text: object, most: int) -> str:
    """Return `text` in at most `most` characters, with control characters, which a terminal would execute, escaped."""
    text = str(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text[:most])
    return shown if len(text) <= most and len(shown) <= most else f"{shown[: most - 3]}..."
