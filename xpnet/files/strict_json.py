"""JSON from untrusted files: no repeated keys, no NaN or infinity, limited depth and size."""

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

DEPTH_LIMIT = 64  # nested brackets
PARTS_LIMIT = 50_000  # opening brackets, colons and commas; the header of a file is limited by its size instead

MARKS = r'(?s)"(?:[^"\\]++|\\.)*+"|[\[{]|[\]}]|[:,]'  # compiled on first use, since this takes a millisecond


def loads(text: str, parts: int = PARTS_LIMIT) -> Any:
    """Return the value of `text`. Raises ValueError if it is not strict JSON, or exceeds the limits."""
    import json

    _measure(text, parts)
    return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite)


def dumps(value: Any) -> str:
    """Return `value` as JSON that `loads` reads. Raises TypeError or ValueError for values that JSON lacks, as NaN."""
    import json

    text = json.dumps(value, allow_nan=False)
    _measure(text, PARTS_LIMIT)
    return text


def only(who: str, given: object, names: set[str]) -> Any:
    """Return `given` if it is a dict with exactly these names; raise ValueError otherwise."""
    if not isinstance(given, Mapping):
        raise ValueError(f"{who} is {given!r:.80}, expected {', '.join(sorted(names))}")
    if given.keys() != names:
        unknown = ", ".join(f"{name!r:.80}" for name in sorted(given.keys() - names)) or "less"
        raise ValueError(f"{who} has {unknown}; expected {', '.join(sorted(names))}")
    return given


def _measure(text: str, most: int) -> None:
    """Raise ValueError for text beyond the limits, before it is parsed."""
    depth = parts = 0
    for match in re.finditer(MARKS, text):
        mark = text[match.start()]
        depth += (mark in "[{") - (mark in "]}")
        parts += mark in "[{:,"
        if depth > DEPTH_LIMIT:
            raise ValueError(f"its JSON is nested more than {DEPTH_LIMIT} deep")
        if parts > most:
            raise ValueError(f"its JSON has more than {most} parts")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the object with these members. Raises ValueError if a name is repeated."""
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise ValueError(f"its JSON has {name!r:.80} twice")
        members[name] = value
    return members


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"its JSON has {name}, which is no number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"its JSON has {digits:.80}, beyond any float")
    return number
