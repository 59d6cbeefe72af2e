"""Exact serialization of numbers, strings, None, arrays, lists, tuples and dicts as JSON and named arrays.

Each value is an object with one key, its kind. Arrays are stored under the value's name.

    {"value": 3}                   None, True, 3, 0.5 or "text", as in JSON
    {"float": "inf"}               NaN or infinity
    {"array": "host"}              a NumPy array; "device": an array of the network's backend; "scalar": a NumPy scalar
    {"numbers": ["list", "int"]}   a list of numbers, stored as an array; ["list", "tuple", "float"]: a list of tuples
    {"list": [...]}, {"tuple": [...]}, {"dict": {"name": ...}}
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..backends import Backend
from ..files.header import AXES_LIMIT, CODES

KINDS = {type(None): "none", bool: "bool", int: "int", float: "float"}
DTYPES = {"bool": "bool", "int": "int64", "float": "float64"}
# numbers of "mixed" kinds are two rows of int64: indices into KINDS, and the values or the bits of floats
NESTS: dict[str, type] = {"list": list, "tuple": tuple}


def pack(name: str, value: Any, arrays: dict[str, np.ndarray], backend: Backend | None = None) -> dict[str, Any]:
    """Return the value as JSON; put arrays and lists of numbers into `arrays`, under `name` or names beginning with it.

    Raises TypeError, with the value as its argument, for a value of any other type.
    """
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        on_host = isinstance(value, np.ndarray | np.generic)
        array = np.asarray(value if on_host or backend is None else backend.to_numpy(value))
        if array.dtype.name not in CODES:
            raise TypeError(value)
        arrays[name] = array
        return {"array": "scalar" if isinstance(value, np.generic) else "host" if on_host else "device"}
    if isinstance(value, dict):
        if not all(isinstance(key, str) for key in value):
            raise TypeError(value)
        return {"dict": {key: pack(f"{name}.{as_name(key)}", each, arrays, backend) for key, each in value.items()}}
    if type(value) in (list, tuple):
        if layout := _numbers(name, value, arrays):
            return {"numbers": layout}
        return {type(value).__name__: [pack(f"{name}.{i}", each, arrays, backend) for i, each in enumerate(value)]}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": str(value)}
    if isinstance(value, bool | int | float | str | None):
        return {"value": value}
    raise TypeError(value)


def unpack(name: str, packed: Any, arrays: Mapping[str, np.ndarray], backend: Backend | None = None) -> Any:
    """Invert `pack`. Raises ValueError, TypeError or LookupError for anything that `pack` does not return."""
    ((kind, content),) = packed.items()
    if kind == "value":
        if not isinstance(content, bool | int | float | str | None):
            raise ValueError(f"a value is {content!r:.80}")
        return content
    if kind == "float" and content in ("nan", "inf", "-inf"):
        return float(content)
    if kind == "array":
        array = arrays[name]
        if content == "device" and backend is not None:
            return backend.asarray(array)
        return {"host": array, "scalar": array[()]}[content]
    if kind == "numbers":
        return _from_numbers(content, arrays[name])
    if kind == "dict":
        return {key: unpack(f"{name}.{as_name(key)}", each, arrays, backend) for key, each in content.items()}
    return NESTS[kind](unpack(f"{name}.{i}", each, arrays, backend) for i, each in enumerate(content))


def as_name(text: str) -> str:
    """Return any string as a part of an array's name: percent-encoded, dots included."""
    from urllib.parse import quote

    return quote(text, safe="", errors="surrogatepass").replace(".", "%2E")


def _numbers(name: str, values: Sequence[Any], arrays: dict[str, np.ndarray]) -> list[str]:
    """Put numbers, or nested sequences of equal lengths, into an array and return its layout; [] for anything else."""
    nests, shape, entries = [type(values)], [len(values)], list(values)
    while entries and len(found := {type(each) for each in entries}) == 1 and found <= set(NESTS.values()):
        lengths = {len(each) for each in entries}
        if len(lengths) > 1 or len(shape) == AXES_LIMIT - 1:
            return []
        nests += found
        shape += lengths
        entries = [x for each in entries for x in each]
    entries = [each.item() if isinstance(each, np.generic) else each for each in entries]
    kinds = {type(each) for each in entries}
    if not kinds or not kinds <= KINDS.keys() or any(type(e) is int and not -(2**63) <= e < 2**63 for e in entries):
        return []
    kind = KINDS[kinds.pop()] if len(kinds) == 1 else "mixed"
    if kind in DTYPES:
        arrays[name] = np.array(entries, DTYPES[kind]).reshape(shape)
    else:
        kind, order = "mixed", list(KINDS)
        bits = np.array([[order.index(type(each)) for each in entries], [0] * len(entries)])
        bits[1] = [each if type(each) in (bool, int) else 0 for each in entries]
        floats = bits[0] == order.index(float)
        bits[1, floats] = np.array([each for each in entries if type(each) is float], np.float64).view(np.int64)
        arrays[name] = bits.reshape(2, *shape)
    return [*(nest.__name__ for nest in nests), kind]


def _from_numbers(layout: Sequence[str], array: np.ndarray) -> Any:
    """Invert `_numbers`."""
    *nests, kind = layout
    if kind == "mixed":
        readings: list[Any] = [lambda bits: None, bool, int, lambda bits: float(np.int64(bits).view(np.float64))]
        if array.dtype != np.int64 or array.shape[0] != 2 or not ((array[0] >= 0) & (array[0] < len(KINDS))).all():
            raise ValueError("a list of mixed numbers is unsound")
        kinds, bits = (row.ravel().tolist() for row in array)
        entries, shape = [readings[k](b) for k, b in zip(kinds, bits, strict=True)], array.shape[1:]
    else:
        if array.dtype != DTYPES[kind]:
            raise ValueError(f"a list of {kind}s is {array.dtype}")
        entries, shape = array.ravel().tolist(), array.shape
    if len(nests) != len(shape) or not entries:
        raise ValueError(f"a list of numbers has shape {shape}")
    for nest, length in zip(reversed(nests), reversed(shape), strict=True):
        entries = [NESTS[nest](entries[i : i + length]) for i in range(0, len(entries), length)]
    return entries[0]
