"""The header of a safetensors file: composing it, and parsing it from untrusted files."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from . import strict_json

HEADER_LIMIT = 2**20  # bytes
ARRAY_LIMIT = 2**14  # arrays in a file
AXES_LIMIT = 32  # axes of an array
NUMBER_LIMIT = 2**63  # sizes and bytes of an array are less

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
CODES = {name: code for code, name in DTYPES.items()}

Entry = tuple[str, tuple[int, ...], int, int]  # dtype, shape, begin and end of the data


class UnsoundError(Exception):
    """The reason why a file is refused."""


# --- composing --------------------------------------------------------------------------------------------------------


def compose(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> tuple[bytes, list[str]]:
    """Return the header, and the names in the order of the data: larger items first, so that every array is aligned.

    Raises ValueError or TypeError for arrays and metadata that no file can hold.
    """
    import json

    if len(arrays) > ARRAY_LIMIT:
        raise ValueError(f"write: {len(arrays)} arrays; a file holds at most {ARRAY_LIMIT}")
    for name, array in arrays.items():
        if problem := _problem(name):
            raise ValueError(f"write: the name {name!r} {problem}")
        if not isinstance(array, np.ndarray) or array.dtype.name not in CODES:
            kind = getattr(array, "dtype", type(array).__name__)
            raise TypeError(f"write: {name!r} is {kind}; expected a NumPy array of {', '.join(CODES)}")
        if array.ndim > AXES_LIMIT:
            raise ValueError(f"write: {name!r} has {array.ndim} axes; a file holds at most {AXES_LIMIT}")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"write: metadata are strings by name, got {key!r}: {value!r:.80}")

    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    entries: dict[str, Any] = {"__metadata__": dict(metadata)}
    end = 0
    for name in order:
        begin, end = end, end + arrays[name].nbytes
        code = CODES[arrays[name].dtype.name]
        entries[name] = {"dtype": code, "shape": arrays[name].shape, "data_offsets": (begin, end)}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > HEADER_LIMIT:
        raise ValueError(f"write: names and metadata take {len(header)} bytes; a file holds at most {HEADER_LIMIT}")
    return header, order


def _problem(name: str) -> str:
    """Return what is wrong with the name of an array, "" if nothing is."""
    if not isinstance(name, str) or not name or name == "__metadata__":
        return "is not a name for an array"
    if not name.isprintable() or ".." in name or "/" in name or "\\" in name:
        return "must be printable, without '..', '/' and '\\'"
    return ""


# --- parsing ----------------------------------------------------------------------------------------------------------


def parse(header: bytearray, size: int) -> tuple[list[tuple[str, Entry]], dict[str, str]]:
    """Return the arrays in the order of their data, and the metadata.

    Raises UnsoundError unless the header is sound and the data fill `size` bytes without gaps or overlaps.
    """
    entries, metadata = _described(header)
    layout = sorted(entries.items(), key=lambda item: item[1][2:])
    at = 0
    for name, (dtype, shape, begin, end) in layout:
        product = math.prod(n or 1 for n in shape) * np.dtype(dtype).itemsize
        if product >= NUMBER_LIMIT:
            raise UnsoundError(f"{name!r} has shape {shape}, too large for any memory")
        length = 0 if 0 in shape else product
        if end - begin != length:
            raise UnsoundError(
                f"{name!r}, {dtype} of shape {shape}, takes {length} bytes, not the {end - begin} it is given"
            )
        if begin != at:
            fault = "a gap before" if begin > at else "an overlap with"
            raise UnsoundError(f"{fault} the data of {name!r}: they begin at {begin}, expected at {at}")
        at = end
    if at != size:
        raise UnsoundError(f"its arrays take {at} bytes, but {size} are there")
    return layout, metadata


def _described(header: bytearray) -> tuple[dict[str, Entry], dict[str, str]]:
    """Return the arrays and the metadata that a header describes."""
    if not header.startswith(b"{"):
        raise UnsoundError("its header is not a JSON object")
    try:
        members = strict_json.loads(header.decode(), parts=HEADER_LIMIT)
        metadata = members.pop("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
            raise ValueError("its metadata are not strings by name")
        "".join(itertools.chain.from_iterable(metadata.items())).encode()  # raises for half a surrogate pair
    except ValueError as error:
        raise UnsoundError(f"in its header, {error}") from None
    if len(members) > ARRAY_LIMIT:
        raise UnsoundError(f"it holds more than {ARRAY_LIMIT} arrays")
    return {name: _entry(name, described) for name, described in members.items()}, metadata


def _entry(name: str, described: Any) -> Entry:
    """Return what a header says of an array."""
    if problem := _problem(name):
        raise UnsoundError(f"the name {name!r:.80} {problem}")
    try:
        strict_json.only(f"{name!r:.80}", described, {"dtype", "shape", "data_offsets"})
    except ValueError as error:
        raise UnsoundError(error) from None
    code, shape, offsets = described["dtype"], described["shape"], described["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise UnsoundError(f"{name!r:.80} has dtype {code!r:.80}; convert it to one of {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > AXES_LIMIT:
        raise UnsoundError(f"{name!r:.80} has shape {shape!r:.80}, expected a list of up to {AXES_LIMIT} whole numbers")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise UnsoundError(f"{name!r:.80} has data_offsets {offsets!r:.80}, expected two whole numbers")
    return DTYPES[code], tuple(shape), *offsets


def _are_sizes(value: object) -> bool:
    """Whether `value` is a list of whole numbers of at least 0."""
    return isinstance(value, list) and all(type(n) is int and 0 <= n < NUMBER_LIMIT for n in value)
