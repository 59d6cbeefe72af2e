"""Files of named arrays and strings in the safetensors layout, signed, and written atomically.

The layout, which the `safetensors` library reads as well:

    8 bytes     the header's length, little endian, a multiple of 8
    header      JSON, padded with spaces: {"__metadata__": {name: string}, name: {"dtype", "shape", "data_offsets"}}
    data        the arrays in C order, little endian, one after the other without a gap, larger items first

The signature: a signed file's header begins with `{"__metadata__":{"sha256":"` and 64 lower-case hexadecimal digits.
They are the SHA-256 of the whole file with those 64 digits replaced by zeros. The signature detects damage, not
malice: anyone can sign a changed file again, so the contents of a signed file are not trusted either.
"""

import contextlib
import errno
import os
import re
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NoReturn

import numpy as np

from ..common.checks import printable
from .header import HEADER_LIMIT, UnsoundError, compose, parse

Path = str | bytes | os.PathLike[str] | os.PathLike[bytes]

SIGNATURE = b'{"__metadata__":{"sha256":"'
SIGNED_AT = 8 + len(SIGNATURE)
UNSIGNED = b"0" * 64

STRANGERS = {  # first bytes of other formats; as the length of a header, each is beyond the limit
    **{bytes([0x80, protocol]): "a pickle, which can run any program and is not opened" for protocol in (2, 3, 4, 5)},
    b"PK": "a zip archive, such as torch.save, Keras and numpy.savez write",
    b"\x89HDF": "an HDF5 file",
    b"\x93NUMPY": "a file of numpy.save",
    b"\x1f\x8b": "compressed with gzip",
}
TEMPORARY = re.compile("[0-9a-f]{16}\\.tmp")  # after the prefix
STALE = 86_400  # seconds after which a temporary file is taken to be abandoned
BLOCK = 2**20  # bytes read and hashed at a time, to stay in the cache; larger arrays are hashed while they are written


class FormatError(ValueError):
    """A file that cannot be loaded; the message names the file and the reason in one printable line.

    >>> with open("no.safetensors", "w") as file:
    ...     length = file.write("this is no model file")
    >>> try:
    ...     xn.load("no.safetensors")
    ... except xn.FormatError as error:
    ...     print("no.safetensors" in str(error))
    True
    """

    def __init__(self, path: Path, reason: object):
        super().__init__(os.fsdecode(path), printable(reason, 300))  # so that it can be pickled

    def __str__(self) -> str:
        path, reason = self.args
        return f"{printable(path, 1000)} cannot be loaded: {reason}"


# --- writing ----------------------------------------------------------------------------------------------------------


def write(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write `arrays` and `metadata` to the file `path`, signed and atomically.

    A new file is written beside it, flushed to the disk and renamed, with the permissions of the file it replaces, or
    those of the umask. Through a symbolic link the file it points to is replaced. On any error, such as a full disk or
    Ctrl-C, the old file is intact and no new one is left. A killed process leaves `.NAME.*.tmp` behind, which a later
    write of the same name removes once it is a day old.

    Raises OSError naming `path` if the file system refuses, and if `path` is a folder, a device or a pipe; ValueError
    and TypeError for names and dtypes that the layout does not have, before any file is touched.
    """
    import hashlib

    if "sha256" in metadata:
        raise ValueError("write: the metadata's 'sha256' is the file's signature; choose another name")
    header, order = compose(arrays, {"sha256": UNSIGNED.decode(), **metadata})
    start = len(header).to_bytes(8, "little") + header
    with replacing(path) as file:
        file.write(start)
        digest = hashlib.sha256(start)
        for name in order:
            array = arrays[name]
            flat = np.ascontiguousarray(array, array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
            hashed = _beside(digest.update, flat.data)
            file.write(flat.data)
            hashed()
        file.seek(SIGNED_AT)
        file.write(digest.hexdigest().encode())


def _beside(work: Callable[[memoryview], None], data: memoryview) -> Callable[[], None]:
    """Start `work(data)` in a thread if the data is large; return a function that waits for it, or else does it."""
    if data.nbytes > BLOCK:
        thread = threading.Thread(target=work, args=(data,))
        with contextlib.suppress(RuntimeError):  # no thread can be started, as at the interpreter's exit
            thread.start()
            return thread.join
    return lambda: work(data)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that replaces `path` at the end of the block; on an error, `path` is unchanged."""
    path = os.fsdecode(path)
    temporary = ""
    try:
        target = os.path.realpath(path)  # through a symbolic link
        mode = mode_to_keep(path)
        folder, name = os.path.split(target)
        beginning = f".{name[:40]}."
        temporary = os.path.join(folder, f"{beginning}{os.urandom(8).hex()}.tmp")
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_BINARY", 0)
        with open(os.open(temporary, flags, 0o666 if mode is None else mode), "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            now = os.fstat(file.fileno()).st_mtime  # by the clock of the file system
        if mode is not None:
            os.chmod(temporary, mode)
        os.replace(temporary, target)
        _flush_folder(folder)
        _clear(folder, beginning, now - STALE)
    except BaseException as error:
        with contextlib.suppress(OSError, ValueError):  # not created, or not a path
            os.unlink(temporary)
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), path) from error
        raise


def mode_to_keep(path: str) -> int | None:
    """Return the permissions of the file to be replaced, None for a new one. Raises OSError if it must be kept."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        if path.endswith(tuple(filter(None, (os.sep, os.altsep)))):  # the path of a folder
            raise
        return None
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "Not a regular file", path)
    if not os.access(path, os.W_OK):  # renaming does not check this
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
    return stat.S_IMODE(status.st_mode) & 0o777


def _clear(folder: str, beginning: str, before: float) -> None:
    """Remove temporary files of killed writes that were last modified before the time `before`, if possible."""
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(beginning) and TEMPORARY.fullmatch(entry.name, len(beginning)):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode) and status.st_mtime < before:
                    os.unlink(entry.path)


def _flush_folder(folder: str) -> None:
    """Flush the rename to the disk."""
    if os.name == "nt":
        return  # pragma: no cover  # Windows cannot open folders
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


# --- reading ----------------------------------------------------------------------------------------------------------


def read(path: Path, signed: bool = True) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return the arrays of a file, and its metadata without the signature.

    `signed=False` reads a file of another program, without checking a signature. The arrays are writable views of one
    buffer, in the order of the data; the buffer lives as long as any of them.

    Raises FormatError unless every byte is sound, OSError if `path` cannot be read or is not a regular file. Takes no
    more memory than the size of the file and 32 MiB.
    """
    flags = getattr(os, "O_NONBLOCK", 0)  # else opening a pipe blocks until it has a writer
    with open(path, "rb", buffering=0, opener=lambda path, others: os.open(path, flags | others)) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", os.fsdecode(path))
        try:
            return _read(file, status.st_size, signed)
        except UnsoundError as error:
            raise FormatError(path, error) from None


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the arrays whose names begin with "prefix.", by the rest of their names."""
    return {k.removeprefix(f"{prefix}."): a for k, a in arrays.items() if k.startswith(f"{prefix}.")}


def _read(file: Any, size: int, signed: bool) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    import hashlib

    start = file.read(8)
    length = int.from_bytes(start, "little")
    if len(start) < 8 or length > min(size - 8, HEADER_LIMIT):
        _refuse_start(start, length, size)
    header = bytearray(length)
    _fill(file, memoryview(header))
    layout, metadata = parse(header, size - 8 - length)
    signature = ""
    if signed:
        signature = metadata.pop("sha256", "")
        if len(signature) != 64 or not header.startswith(SIGNATURE + signature.encode() + b'"'):
            raise UnsoundError(
                "it is not signed: its header does not begin with a SHA-256; files.load_torch reads state dicts"
            )
        header[len(SIGNATURE) : len(SIGNATURE) + 64] = UNSIGNED
        digest = hashlib.sha256(start + header)
    try:
        data = np.empty(size - 8 - length, np.uint8)
    except MemoryError:
        raise UnsoundError(f"its arrays take {size - 8 - length} bytes, more than there is memory for") from None
    memory = data.data
    for begin in range(0, data.size, BLOCK):
        block = memory[begin : begin + BLOCK]
        _fill(file, block)
        if signed:
            digest.update(block)
    if file.read(1):
        raise UnsoundError("it grew while it was read")
    if signed and digest.hexdigest() != signature:
        raise UnsoundError("its SHA-256 differs from its signature: it is damaged")

    arrays = {}
    for name, (dtype, shape, begin, end) in layout:
        flat = data[begin:end]
        if dtype == "bool" and flat.max(initial=0) > 1:
            raise UnsoundError(f"{name!r} has dtype bool but bytes other than 0 and 1")
        arrays[name] = flat.view(np.dtype(dtype).newbyteorder("<")).reshape(shape)
    return arrays, metadata


def _refuse_start(start: bytes, length: int, size: int) -> NoReturn:
    for magic, what in STRANGERS.items():
        if start.startswith(magic):
            raise UnsoundError(f"it is {what}")
    if size < 8:
        raise UnsoundError(f"it has {size} bytes, too few for a header")
    limit = f"at most {HEADER_LIMIT} are read" if length > HEADER_LIMIT else f"the whole file has {size}"
    raise UnsoundError(f"its first 8 bytes claim a header of {length} bytes; {limit}")


def _fill(file: Any, memory: memoryview) -> None:
    """Fill `memory` with bytes from the file."""
    while memory:
        count = file.readinto(memory)
        if not count:
            raise UnsoundError("it ended while it was read")
        memory = memory[count:]
