"""A file of named arrays and strings, in the safetensors layout, signed, and written whole or not at all.

The layout, which `safetensors` and whatever reads its files can read:

    8 bytes     the header's length, little endian, a multiple of 8
    header      JSON, padded with spaces: {"__metadata__": {name: string}, name: {"dtype", "shape", "data_offsets"}}
    data        the arrays in C order, little endian, one after the other without a gap, larger items first

The signature: a signed file's header begins with `{"__metadata__":{"sha256":"` and 64 lower-case hexadecimal digits.
They are the SHA-256 of the whole file, first byte to last, with those 64 digits replaced by 64 zeros. It tells a file
that was damaged; whoever changes a file on purpose can sign it anew, so nothing in a signed file is trusted either.
"""

import contextlib
import errno
import hashlib
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

import numpy as np

Path = str | os.PathLike[str]

HEADER_LIMIT = 4 * 2**20  # bytes of a header
ARRAY_LIMIT = 2**14  # arrays in a file
AXES_LIMIT = 32
NUMBER_LIMIT = 2**63  # no number in a file is as large, nor is what a shape multiplies to

DTYPES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BOOL": "bool",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8",
    "U64": "uint64", "U32": "uint32", "U16": "uint16", "U8": "uint8",
}  # fmt: skip
CODES = {name: code for code, name in DTYPES.items()}

SIGNATURE = b'{"__metadata__":{"sha256":"'
SIGNED_AT = 8 + len(SIGNATURE)
UNSIGNED = b"0" * 64

STRANGERS = {  # what other files begin with; as a header's length, each is beyond the limit
    b"\x80\x02": "a pickle, which can run any program and is not opened",
    b"\x80\x03": "a pickle, which can run any program and is not opened",
    b"\x80\x04": "a pickle, which can run any program and is not opened",
    b"\x80\x05": "a pickle, which can run any program and is not opened",
    b"PK": "a zip archive, such as torch.save, Keras and numpy.savez write",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a file of numpy.save",
    b"\x1f\x8b": "compressed with gzip",
}
BLOCK = 2**20  # bytes at a time: what was just read or written is hashed while it is in the processor's cache

TOKEN = re.compile(
    rb'[ \t\r\n]*+(?:(?P<string>"(?:[^"\\\x00-\x1f]++|\\.)*+")'
    rb"|(?P<number>(?:0|[1-9][0-9]{0,18}+)(?![0-9.eE]))|(?P<mark>[{}\[\]:,]))"
)


class FormatError(ValueError):
    """A file that is not a sound one of its kind: which file, and why."""

    def __init__(self, path: Path, reason: object):
        super().__init__(f"{os.fspath(path)} is not a sound file: {reason}")


# --- writing ----------------------------------------------------------------------------------------------------------


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write `arrays` and `metadata` to the file `path`, signed: whole, or not at all.

    A new file is written beside it, flushed to the disk and renamed; it is as readable as the file it replaces, or as
    a new one by the umask. A symbolic link stays, and the file it points to is replaced. Whatever happens, also a full
    disk or Ctrl-C, the file that was there is intact and no other is left; a process killed in the middle leaves
    `.NAME.*.tmp` behind, which nothing reads.

    Raises OSError naming `path` where the file system refuses, and where `path` is a folder, a device or a pipe;
    ValueError and TypeError for names and dtypes that no such file can hold, before any file is touched.
    """
    order = sorted(arrays, key=lambda name: -_itemsize(name, arrays[name]))  # keeps every array aligned
    header = _header({name: arrays[name] for name in order}, metadata)
    with _replacing(path) as file:
        file.write(len(header).to_bytes(8, "little") + header)
        digest = hashlib.sha256(len(header).to_bytes(8, "little") + header)
        for name in order:
            array = arrays[name]
            flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
            for start in range(0, flat.size, BLOCK):
                block = flat[start : start + BLOCK].data
                digest.update(block)
                file.write(block)
        file.seek(SIGNED_AT)
        file.write(digest.hexdigest().encode())


def _itemsize(name: str, array: np.ndarray) -> int:
    """The bytes of an entry, for an array that a file can hold."""
    if not isinstance(array, np.ndarray) or array.dtype.name not in CODES:
        kind = getattr(array, "dtype", type(array).__name__)
        raise TypeError(f"write: {name!r} is {kind}; expected a NumPy array of {', '.join(CODES)}")
    if array.ndim > AXES_LIMIT:
        raise ValueError(f"write: {name!r} has {array.ndim} axes; a file holds at most {AXES_LIMIT}")
    return array.dtype.itemsize


def _header(arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> bytes:
    import json

    if len(arrays) > ARRAY_LIMIT:
        raise ValueError(f"write: {len(arrays)} arrays; a file holds at most {ARRAY_LIMIT}")
    for name in arrays:
        if problem := _problem(name):
            raise ValueError(f"write: the name {name!r} {problem}")
    if "sha256" in metadata:
        raise ValueError("write: the metadata's 'sha256' is the file's signature; choose another name")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):
            raise TypeError(f"write: metadata are strings by name, got {key!r}: {value!r:.80}")

    entries: dict[str, Any] = {"__metadata__": {"sha256": UNSIGNED.decode(), **metadata}}
    end = 0
    for name, array in arrays.items():
        begin, end = end, end + array.nbytes
        entries[name] = {"dtype": CODES[array.dtype.name], "shape": array.shape, "data_offsets": (begin, end)}
    header = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    if len(header) > HEADER_LIMIT:
        raise ValueError(f"write: names and metadata take {len(header)} bytes; a file holds at most {HEADER_LIMIT}")
    return header


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the place of `path` when the block ends well; when it does not, nothing has happened."""
    path = os.fspath(path)
    temporary = ""
    try:
        target = os.path.realpath(path)  # through a symbolic link
        mode = _mode_to_keep(path)
        folder, name = os.path.split(target)
        temporary = os.path.join(folder, f".{name[:40]}.{os.urandom(8).hex()}.tmp")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        with open(os.open(temporary, flags, 0o666 if mode is None else mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, target)
        _flush_folder(folder)
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):  # it is not there, or the path is none
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror, path) from error
        raise


def _mode_to_keep(path: str) -> int | None:
    """The permissions of the file to be replaced, None for a new one. OSError for what must not be replaced."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", path)
    if not os.access(path, os.W_OK):  # a rename would not ask
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return stat.S_IMODE(found.st_mode) & 0o777


def _flush_folder(folder: str) -> None:
    """Have the rename itself on the disk."""
    if os.name == "nt":
        return  # pragma: no cover  # Windows opens no folders
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path, signed: bool = True) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays and the metadata, without the signature, of a file.

    With `signed=False`, of a file that another program wrote, whose signature, if any, is not looked at. The arrays
    are writable views of one buffer, in the order of the data, which lives as long as any of them does.

    Raises FormatError for a file that is not sound in every byte; it takes no more memory than the file is long, and
    less than 16 MiB for the header. OSError where `path` cannot be read or is no regular file.
    """
    with open(path, "rb", buffering=0, opener=_open) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", os.fspath(path))
        try:
            return _read(file, found.st_size, signed)
        except _UnsoundError as error:
            raise FormatError(path, error) from None


class _UnsoundError(Exception):
    """Why a file is refused."""


def _open(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # or opening a pipe would wait for its writer


def _read(file: Any, size: int, signed: bool) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, HEADER_LIMIT):
        _refuse_start(start, length, size)
    header = bytearray(length)
    _fill(file, memoryview(header))
    if signed and not header.startswith(SIGNATURE):
        raise _UnsoundError("it is not signed where it should be: its header does not begin with a SHA-256")

    entries, metadata = _Header(header).parse()
    layout = _layout(entries, size - 8 - length)
    data = np.empty(size - 8 - length, np.uint8)
    memory = data.data
    if signed:
        at = len(SIGNATURE)
        signature = bytes(header[at : at + 64])
        header[at : at + 64] = UNSIGNED
        digest = hashlib.sha256(start + header)
    for begin in range(0, data.size, BLOCK):
        block = memory[begin : begin + BLOCK]
        _fill(file, block)
        if signed:
            digest.update(block)
    if file.read(1):
        raise _UnsoundError("it grew while it was read")
    if signed:
        if digest.hexdigest().encode() != signature:
            raise _UnsoundError("its SHA-256 is not the one it says: it is damaged")
        del metadata["sha256"]

    arrays = {}
    for name, (dtype, shape, begin, end) in layout:
        flat = data[begin:end]
        if dtype == "bool" and flat.max(initial=0) > 1:
            raise _UnsoundError(f"{name!r} is said to hold booleans and holds other bytes than 0 and 1")
        arrays[name] = flat.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)
    return arrays, metadata


def _refuse_start(start: bytes, length: int, size: int) -> NoReturn:
    for magic, what in STRANGERS.items():
        if start.startswith(magic):
            raise _UnsoundError(f"it is {what}")
    if size < 8:
        raise _UnsoundError(f"it is {size} bytes long, too short for any")
    limit = f"at most {HEADER_LIMIT} are read" if length > HEADER_LIMIT else f"the whole file has {size}"
    raise _UnsoundError(f"its first 8 bytes claim a header of {length} bytes; {limit}")


def _fill(file: Any, memory: memoryview) -> None:
    """Read as many bytes as `memory` has."""
    while memory:
        count = file.readinto(memory)
        if not count:
            raise _UnsoundError("it ended while it was read")
        memory = memory[count:]


Entry = tuple[str, tuple[int, ...], int, int]  # dtype, shape, where the data begin and end


def _layout(entries: dict[str, Entry], size: int) -> list[tuple[str, Entry]]:
    """The entries in the order of their data, which must fill all `size` bytes without gap or overlap."""
    layout = sorted(entries.items(), key=lambda item: item[1][2:])
    at = 0
    for name, (dtype, shape, begin, end) in layout:
        product = math.prod(n or 1 for n in shape) * np.dtype(dtype).itemsize
        if product >= NUMBER_LIMIT:
            raise _UnsoundError(f"{name!r} has shape {shape}, too large for any memory")
        length = 0 if 0 in shape else product
        if end - begin != length:
            raise _UnsoundError(
                f"{name!r}, {dtype} of shape {shape}, takes {length} bytes, not the {end - begin} it is given"
            )
        if begin != at:
            fault = "a gap before" if begin > at else "an overlap with"
            raise _UnsoundError(f"{fault} the data of {name!r}: they begin at {begin}, expected at {at}")
        at = end
    if at != size:
        raise _UnsoundError(f"its arrays take {at} bytes, but {size} are there")
    return layout


def _problem(name: str) -> str:
    """What is wrong with the name of an array, if anything."""
    if not isinstance(name, str) or not name or name == "__metadata__":
        return "is none for an array"
    if not name.isprintable() or ".." in name or "/" in name or "\\" in name:
        return "must be printable, without '..', '/' and '\\'"
    return ""


class _Header:
    """A parser of headers and nothing else: it builds what a sound header can hold, and refuses the rest at sight."""

    def __init__(self, text: bytearray):
        self.text, self.at = text, 0

    def parse(self) -> tuple[dict[str, Entry], dict[str, str]]:
        entries: dict[str, Entry] = {}
        metadata: dict[str, str] = {}
        if not self.text.startswith(b"{"):
            raise _UnsoundError("its header is not a JSON object")
        for name in self._members():
            if name == "__metadata__":
                metadata = {key: self._string() for key in self._members()}
            elif problem := _problem(name):
                raise _UnsoundError(f"the name {name!r:.80} {problem}")
            elif len(entries) == ARRAY_LIMIT:
                raise _UnsoundError(f"it holds more than {ARRAY_LIMIT} arrays")
            else:
                entries[name] = self._entry(name)
        if self.text[self.at :].strip(b" \t\r\n"):
            raise _UnsoundError(f"its header goes on after its end, at byte {self.at}")
        return entries, metadata

    def _entry(self, name: str) -> Entry:
        dtype, shape, offsets = "", None, None
        for key in self._members():
            if key == "dtype":
                code = self._string()
                if code not in DTYPES:
                    raise _UnsoundError(f"{name!r} has dtype {code!r:.80}; there are {', '.join(DTYPES)}")
                dtype = DTYPES[code]
            elif key == "shape":
                shape = self._numbers(AXES_LIMIT)
            elif key == "data_offsets":
                offsets = self._numbers(2)
            else:
                raise _UnsoundError(f"{name!r} has {key!r:.80}, which is no part of an array")
        if not dtype or shape is None or offsets is None or len(offsets) != 2:
            raise _UnsoundError(f"{name!r} lacks a dtype, a shape or two data_offsets")
        return dtype, shape, *offsets

    def _members(self) -> Iterator[str]:
        """The keys of an object; whoever asks for the next one has read the value."""
        seen = set()
        self._mark(b"{")
        if self._next_is(b"}"):
            return
        while True:
            key = self._string()
            if key in seen:
                raise _UnsoundError(f"its header has {key!r:.80} twice")
            seen.add(key)
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
        raise _UnsoundError(f"its header has a list of more than {most} numbers before byte {self.at}")

    def _string(self) -> str:
        import json

        token = self._take("string", "a string")
        try:
            value: str = json.loads(token)
            value.encode()  # half of a surrogate pair is no text
        except ValueError as error:
            raise _UnsoundError(f"its header has a string before byte {self.at} that is none: {error}") from None
        return value

    def _mark(self, mark: bytes) -> None:
        if not self._next_is(mark):
            self._fail(repr(mark.decode()))

    def _next_is(self, mark: bytes) -> bool:
        found = TOKEN.match(self.text, self.at)
        if found is None or found["mark"] != mark:
            return False
        self.at = found.end()
        return True

    def _take(self, kind: str, what: str) -> bytes:
        found = TOKEN.match(self.text, self.at)
        if found is None or found[kind] is None:
            self._fail(what)
        self.at = found.end()
        return bytes(found[kind])

    def _fail(self, expected: str) -> NoReturn:
        here = bytes(self.text[self.at : self.at + 20])
        raise _UnsoundError(f"its header has {here!r} at byte {self.at}, expected {expected}")
