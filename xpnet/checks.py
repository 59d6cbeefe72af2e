"""Checks on the numbers that a user sets. `name` begins the message: "Dense: in_features". Each returns the number."""

import math
from collections.abc import Callable
from numbers import Integral, Real


def whole(name: str, value: object) -> int:
    """A whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
    return int(value)


def positive(name: str, value: object) -> float:
    """A finite number above 0."""
    return _number(name, value, "above 0 and finite", lambda v: 0 < v < math.inf)


def non_negative(name: str, value: object) -> float:
    """A finite number, 0 or above."""
    return _number(name, value, "at least 0 and finite", lambda v: 0 <= v < math.inf)


def fraction(name: str, value: object) -> float:
    """A number in [0, 1)."""
    return _number(name, value, "at least 0 and below 1", lambda v: 0 <= v < 1)


def finite(name: str, value: object) -> float:
    """Any finite number."""
    return _number(name, value, "a finite number", lambda v: -math.inf < v < math.inf)


def _number(name: str, value: object, expected: str, holds: Callable[[float], bool]) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:  # an int beyond any float
        number = math.inf
    if not holds(number):
        array = hasattr(value, "__array__") and not isinstance(value, Real)
        raise ValueError(f"{name} must be {expected}, got {value!r}{': float(...) of it is a number' * array}")
    return number
