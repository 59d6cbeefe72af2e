"""The header of a safetensors file: composing it, and parsing it from untrusted files."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import numpy as np

HEADER_LIMIT = 2**20  # bytes
ARRAY_LIMIT = 2**14  # arrays in a file
AXES_LIMIT = 32  # axes of an array
NUMBER_LIMIT = 2**63  # bytes: an array has fewer

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
CODES = {name: code for code, name in DTYPES.items()}

TOKEN = (  # compiled on first use, since this takes a millisecond
    rb'[ \t\r\n]*+(?:(?P<string>"(?:[^"\\\x00-\x1f]++|\\.)*+")'
    rb"|(?P<number>(?:0|[1-9][0-9]{0,18}+)(?![0-9.eE]))|(?P<mark>[{}\[\]:,]))"
)
HALF = "[\ud800-\udfff]"  # a lone surrogate

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
    entries, metadata = _Parser(header).parse()
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


class _Parser:
    """A parser of headers only: it refuses any other JSON at the first byte that differs, before allocating memory."""

    def __init__(self, text: bytearray):
        self.text, self.at, self.token = text, 0, re.compile(TOKEN)

    def parse(self) -> tuple[dict[str, Entry], dict[str, str]]:
        entries: dict[str, Entry] = {}
        metadata: dict[str, str] = {}
        if not self.text.startswith(b"{"):
            raise UnsoundError("its header is not a JSON object")
        for name in self._members():
            if name == "__metadata__":
                metadata = {key: self._string() for key in self._members()}
            elif problem := _problem(name):
                raise UnsoundError(f"the name {name!r:.80} {problem}")
            elif len(entries) == ARRAY_LIMIT:
                raise UnsoundError(f"it holds more than {ARRAY_LIMIT} arrays")
            else:
                entries[name] = self._entry(name)
        if self.text[self.at :].strip(b" \t\r\n"):
            raise UnsoundError(f"its header goes on after its end, at byte {self.at}")
        return entries, metadata

    def _entry(self, name: str) -> Entry:
        dtype, shape, offsets = "", None, None
        for key in self._members():
            if key == "dtype":
                code = self._string()
                if code not in DTYPES:
                    raise UnsoundError(f"{name!r} has dtype {code!r:.80}; convert it to one of {', '.join(DTYPES)}")
                dtype = DTYPES[code]
            elif key == "shape":
                shape = self._numbers(AXES_LIMIT)
            elif key == "data_offsets":
                offsets = self._numbers(2)
            else:
                raise UnsoundError(f"{name!r} has the unknown entry {key!r:.80}")
        if not dtype or shape is None or offsets is None or len(offsets) != 2:
            raise UnsoundError(f"{name!r} lacks a dtype, a shape or two data_offsets")
        return dtype, shape, *offsets

    def _members(self) -> Iterator[str]:
        """Iterate over the keys of an object; the caller reads each value before it takes the next key."""
        keys = set()
        self._mark(b"{")
        if self._next_is(b"}"):
            return
        while True:
            key = self._string()
            if key in keys:
                raise UnsoundError(f"its header has {key!r:.80} twice")
            keys.add(key)
            self._mark(b":")
            yield key
            if self._next_is(b"}"):
                return
            self._mark(b",")

    def _numbers(self, most: int) -> tuple[int, ...]:
        numbers: list[int] = []
        self._mark(b"[")
        if self._next_is(b"]"):
            return ()
        while len(numbers) < most:
            numbers.append(int(self._take("number", "a whole number of 0 or above")))
            if self._next_is(b"]"):
                return tuple(numbers)
            self._mark(b",")
        raise UnsoundError(f"its header has a list of more than {most} numbers before byte {self.at}")

    def _string(self) -> str:
        import json

        try:
            value: str = json.loads(self._take("string", "a string").decode())
        except ValueError as error:
            raise UnsoundError(f"its header has an invalid string before byte {self.at}: {error}") from None
        if re.search(HALF, value):
            raise UnsoundError(f"its header has an invalid string before byte {self.at}: it has a lone surrogate")
        return value

    def _mark(self, mark: bytes) -> None:
        if not self._next_is(mark):
            self._fail(repr(mark.decode()))

    def _next_is(self, mark: bytes) -> bool:
        found = self.token.match(self.text, self.at)
        if found is None or found["mark"] != mark:
            return False
        self.at = found.end()
        return True

    def _take(self, kind: str, what: str) -> bytes:
        found = self.token.match(self.text, self.at)
        if found is None or found[kind] is None:
            self._fail(what)
        self.at = found.end()
        return bytes(found[kind])

    def _fail(self, expected: str) -> NoReturn:
        here = bytes(self.text[self.at : self.at + 20])
        raise UnsoundError(f"its header has {here!r} at byte {self.at}, expected {expected}")
