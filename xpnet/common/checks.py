"""Checks on what a user sets and what a user's own class gives. `name` begins the message: "Dense: in_features"."""

import math
import os
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np

PAIRS = {  # what the methods of a user's own classes give
    "forward": "(y, cache)",
    "backward": "(dx, {name: gradient})",
    "terms": "(terms, gradient)",
    "value_and_grad": "(value, gradient)",
    "rule": "(w, {name: array})",
}


def integer(name: str, value: object, least: int = 1) -> int:
    """A whole number of at least 1, or another `least`, that an array's length can be."""
    number = -1 if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral) else int(value)
    if not least <= number <= sys.maxsize:
        most = f" and at most {sys.maxsize}" if number > sys.maxsize else ""
        raise ValueError(f"{name} must be a whole number of at least {least}{most}, got {brief(value)}")
    return number


def seed(name: str, value: Any) -> int | None:
    """What starts a generator: a whole number of at least 0, of any length, or None."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < 0:
        raise ValueError(f"{name} must be a whole number of at least 0, got {brief(value)}")
    return int(value)


def choice(name: str, value: object, options: Collection[str]) -> str:
    """One of the options, which are names."""
    if isinstance(value, str) and value in options:
        return value
    *most, last = (f'"{option}"' for option in options)
    raise ValueError(f"{name} must be {', '.join(most)} or {last}, got {brief(value)}")


def brief(value: object) -> str:
    """What came, in a message: as `repr` shows it, or where that is long, as a frame's, its type."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"  # Python refuses to write a very long one
    text = repr(value)
    return text if len(text) <= 120 and "\n" not in text else kind_of(value)


def kind_of(x: object) -> str:
    """What came where something else was expected, in words: "None", "a list", "the class ReLU"."""
    if x is None:
        return "None"
    if isinstance(x, type):
        return f"the class {x.__name__}"
    name = type(x).__name__
    return f"{'an' if name[0] in 'aeioAEIO' or name == 'ndarray' else 'a'} {name}"


def flag(name: str, value: object, of_a_word: str = "") -> bool:
    """True or False, not what counts as one of them, as the word "False" does; `of_a_word` ends the message on one."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {brief(value)}{of_a_word if isinstance(value, str) else ''}")


def positive(name: str, value: object) -> float:
    """A finite number above 0."""
    return _number(name, value, "above 0 and finite", lambda v: 0 < v < math.inf)


def non_negative(name: str, value: object) -> float:
    """A finite number, 0 or above."""
    return _number(name, value, "at least 0 and finite", lambda v: 0 <= v < math.inf)


def fraction(name: str, value: object) -> float:
    """A number in [0, 1)."""
    return _number(name, value, "at least 0 and below 1", lambda v: 0 <= v < 1)


def path(name: str, value: Any) -> str:
    """The path of a file or folder. A number is none, although `open` would take it for an open file."""
    try:
        return os.fsdecode(value)
    except TypeError:
        raise TypeError(f"{name} must be a path, as str, bytes or os.PathLike, got {brief(value)}") from None


def proportion(name: str, value: object) -> float:
    """A number in (0, 1)."""
    return _number(name, value, "above 0 and below 1", lambda v: 0 < v < 1)


def finite(name: str, value: object) -> float:
    """Any finite number."""
    return _number(name, value, "a finite number", lambda v: -math.inf < v < math.inf)


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
    """Refuse what is no loss or optimizer, such as a name or a class, and one that lacks a method."""
    lacking = [method for method in needed if not hasattr(given, method)]
    if isinstance(given, type) or lacking == list(needed) or hasattr(given, "output_shape"):  # a network
        hint = f"; there are {', '.join(there_are)}" if isinstance(given, str) and there_are else ""
        raise TypeError(f"{name} must be an object such as {example}, got {brief(given)}{hint}")
    if lacking:
        raise TypeError(f"{name} has no {' and no '.join(lacking)}, which {example} has: {brief(given)}")


def pair_from(thing: object, method: str, given: Any) -> tuple[Any, Any]:
    """What a layer's, loss's or optimizer's `method` gave, if it is a pair: an array of two rows would unpack, too."""
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
    """What a layer's `method` gave, if it is arrays by name."""
    if not isinstance(given, Mapping):
        raise TypeError(f"{thing!r}: {method} gave {kind_of(given)}, expected {{name: array}}")
    return given


def printable(text: object, most: int) -> str:
    """`text` in at most so many characters; what a terminal may obey rather than show is written as an escape."""
    text = str(text)
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text[:most])
    return shown if len(text) <= most and len(shown) <= most else f"{shown[: most - 3]}..."
