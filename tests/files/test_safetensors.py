"""The container: arrays in the safetensors layout, signed, whole or not at all, and read without trust."""

import contextlib
import copy
import gzip
import hashlib
import json
import os
import pickle
import re
import stat
import subprocess
import sys
import threading
import time
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from xpnet.files import safetensors as container
from xpnet.files import strict_json as plain_json
from xpnet.files.header import ARRAY_LIMIT, DTYPES, HEADER_LIMIT
from xpnet.files.safetensors import FormatError

pytestmark = pytest.mark.numpy_only

MIB = 2**20
unix = pytest.mark.skipif(sys.platform == "win32", reason="Windows has neither pipes in folders nor these modes")


def every_dtype():
    rng = np.random.default_rng(0)
    arrays = {name: rng.integers(0, 2, (3, 2)).astype(name) for name in DTYPES.values()}
    arrays |= {"float64": rng.normal(size=(2, 3, 4)), "float32": rng.normal(size=7).astype("f4")}
    return arrays | {"a number": np.full((), 2.5), "nothing": np.zeros((0, 3), "i4"), "ünïcode.0": np.arange(3)}


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and np.ascontiguousarray(a).tobytes() == b.tobytes()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "arrays.safetensors"


# --- there and back ---------------------------------------------------------------------------------------------------


def test_every_dtype_and_shape_comes_back(path):
    metadata = {"note": 'a "quote", a\nline, ünïcode 😀, \x7f\x00', "": "", "json": '{"a": [1]}'}
    container.write(path, every_dtype(), metadata)
    arrays, told = container.read(path)
    assert told == metadata
    assert arrays.keys() == every_dtype().keys()
    for name, a in every_dtype().items():
        assert same(a, arrays[name]), name
        assert arrays[name].flags.writeable
        assert arrays[name].flags.aligned


def test_the_safetensors_package_reads_what_is_written(path):
    container.write(path, every_dtype(), {"note": "😀"})
    theirs = load_file(path)
    assert theirs.keys() == every_dtype().keys()
    assert all(same(a, theirs[name]) for name, a in every_dtype().items())


def test_what_the_safetensors_package_writes_is_read(path):
    save_file({k: np.ascontiguousarray(a) for k, a in every_dtype().items() if a.ndim}, path, {"format": "np"})
    with pytest.raises(FormatError, match="it is not signed"):
        container.read(path)
    arrays, metadata = container.read(path, signed=False)
    assert metadata == {"format": "np"}
    assert all(same(every_dtype()[name], a) for name, a in arrays.items())
    assert len(arrays) == len(every_dtype()) - 1


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.T,
        lambda a: a[::-1, ::-2],
        lambda a: a[:, 1:3],
        lambda a: np.asfortranarray(a),
        lambda a: a.astype(">f8"),
        lambda a: np.broadcast_to(a[0], (5, 6)),
    ],
)
def test_arrays_of_any_memory_order_are_written_right(path, view):
    a = view(np.random.default_rng(0).normal(size=(5, 6)))
    container.write(path, {"a": a}, {})
    assert np.array_equal(container.read(path)[0]["a"], a)
    assert np.array_equal(load_file(path)["a"], a)


def test_the_signature_is_what_the_docstring_says(path):
    container.write(path, {"a": np.arange(5.0)}, {"note": "x"})
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    assert length % 8 == 0
    signature = json.loads(data[8 : 8 + length])["__metadata__"]["sha256"]
    assert data[8:].startswith(b'{"__metadata__":{"sha256":"' + signature.encode())
    assert hashlib.sha256(data.replace(signature.encode(), b"0" * 64)).hexdigest() == signature


def test_a_file_is_a_function_of_what_is_in_it(path):
    container.write(path, every_dtype(), {"a": "b"})
    first = path.read_bytes()
    container.write(path, every_dtype(), {"a": "b"})
    assert path.read_bytes() == first


def test_every_single_bit_flip_is_found(path):
    container.write(path, {"a": np.arange(3.0), "b": np.array([True, False])}, {"note": "é"})
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        with pytest.raises(FormatError):
            container.read(path)


# --- files that are none ----------------------------------------------------------------------------------------------


def file_of(text, data=b""):
    """A file with this header, soundly signed; "{..." goes on after the metadata."""
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    if text.startswith(b"{..."):
        text = container.SIGNATURE + container.UNSIGNED + b'"},' + text[4:]
    text += b" " * (-len(text) % 8)
    file = len(text).to_bytes(8, "little") + text + data
    if not text.startswith(container.SIGNATURE + container.UNSIGNED):
        return file
    at = container.SIGNED_AT
    return file[:at] + hashlib.sha256(file).hexdigest().encode() + file[at + 64 :]


def entry(dtype='"F32"', shape="[2]", offsets="[0,8]", name="a"):
    return f'{{..."{name}":{{"dtype":{dtype},"shape":{shape},"data_offsets":{offsets}}}}}'


TWO = '{{..."a":{{"dtype":"F32","shape":[1],"data_offsets":{}}},"b":{{"dtype":"F32","shape":[1],"data_offsets":{}}}}}'
EIGHT = bytes(8)
REFUSED = {
    "nothing": (b"", "it has 0 bytes, too few"),
    "seven bytes": (bytes(7), "it has 7 bytes, too few"),
    "no header": (bytes(8), "its header is not a JSON object"),
    "a gigabyte of header": ((2**30).to_bytes(8, "little") + bytes(99), "claim a header of 1073741824 bytes; at most"),
    "all of header": ((2**64 - 1).to_bytes(8, "little") + bytes(99), "claim a header of 18446744073709551615 bytes"),
    "a byte too much of header": ((100).to_bytes(8, "little") + bytes(99), "of 100 bytes; the whole file has 107"),
    "a pickle": (pickle.dumps({"weights": [1.0] * 9}), "it is a pickle, which can run any program"),
    "a zip": (b"PK\x03\x04" + bytes(99), "it is a zip archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(99), "it is an HDF5 file"),
    "npy": (b"\x93NUMPY\x01\x00" + bytes(99), "it is a file of numpy.save"),
    "gzip": (gzip.compress(bytes(99)), "it is compressed with gzip"),
    "not signed": (file_of('{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT), "it is not signed"),
    "signed elsewhere": (file_of('{"__metadata__":{"a":"b","sha256":"' + "0" * 64 + '"}}'), "it is not signed"),
    "signed too long": (file_of('{"__metadata__":{"sha256":"' + "0" * 65 + '"}}'), "it is not signed"),
    "a list": (file_of("[]"), "its header is not a JSON object"),
    "no end": (file_of('{..."a":{"dtype":"F32"'), "Expecting ',' delimiter"),
    "more after its end": (file_of(entry() + "{}", EIGHT), "Extra data"),
    "trailing bytes": (file_of(entry(), bytes(9)), "its arrays take 8 bytes, but 9 are there"),
    "fewer bytes": (file_of(entry(), bytes(7)), "its arrays take 8 bytes, but 7 are there"),
    "a gap": (file_of(TWO.format("[0,4]", "[8,12]"), bytes(12)), "a gap before the data of 'b'"),
    "a gap at the start": (file_of(entry(offsets="[8,16]"), bytes(16)), "a gap before the data of 'a'"),
    "an overlap": (file_of(TWO.format("[0,4]", "[0,4]"), EIGHT), "an overlap with the data of 'b'"),
    "ends before it begins": (file_of(entry(offsets="[8,0]"), EIGHT), "takes 8 bytes, not the -8"),
    "offsets beyond": (file_of(entry(offsets="[0,4611686018427387904]"), EIGHT), "takes 8 bytes, not the 46116"),
    "no entry": (file_of('{..."a":{}}'), "'a' has less; expected data_offsets, dtype, shape"),
    "one offset": (file_of(entry(offsets="[0]"), EIGHT), r"data_offsets \[0\], expected two"),
    "three offsets": (file_of(entry(offsets="[0,8,8]"), EIGHT), r"data_offsets \[0, 8, 8\], expected two"),
    "a vast shape": (file_of(entry(shape=f"[{2**62},4]"), EIGHT), "too large for any memory"),
    "a shape that comes round": (file_of(entry(shape=f"[{2**62},4,2]"), EIGHT), "too large for any memory"),
    "a vast shape of nothing": (
        file_of(entry(shape=f"[0,{2**62},{2**62}]", offsets="[0,0]")),
        "too large for any memory",
    ),
    "a number too long": (file_of(entry(shape="[" + "9" * 5000 + "]"), EIGHT), "4300 digits"),
    "33 axes": (file_of(entry(shape="[" + "1," * 33 + "2]"), EIGHT), "a list of up to 32 whole numbers"),
    "a negative length": (file_of(entry(shape="[-2]"), EIGHT), "a list of up to 32 whole numbers"),
    "a fraction": (file_of(entry(shape="[2.0]"), EIGHT), "a list of up to 32 whole numbers"),
    "an exponent": (file_of(entry(shape="[2e0]"), EIGHT), "a list of up to 32 whole numbers"),
    "true": (file_of(entry(shape="[true]"), EIGHT), "a list of up to 32 whole numbers"),
    "NaN": (file_of(entry(shape="[NaN]"), EIGHT), "NaN, which is no number"),
    "1e999": (file_of(entry(shape="[1e999]"), EIGHT), "1e999, beyond any float"),
    "a leading zero": (file_of(entry(shape="[02]"), EIGHT), "Expecting"),
    "a comma too many": (file_of(entry(shape="[2,]"), EIGHT), "Expecting value|Illegal trailing comma"),
    "an unknown dtype": (file_of(entry('"BF16"'), EIGHT), "'a' has dtype 'BF16'; convert it to one of F64, "),
    "a dtype that is none": (file_of(entry("3"), EIGHT), "'a' has dtype 3; convert it"),
    "an unknown key": (file_of(entry(shape='[2],"file":"x"'), EIGHT), "'a' has 'file'; expected data"),
    "a key twice": (file_of(entry(shape='[2],"shape":[2]'), EIGHT), "in its header, its JSON has 'shape' twice"),
    "a name twice": (file_of(TWO.format("[0,4]", "[4,8]").replace('"b"', '"a"'), EIGHT), "its JSON has 'a' twice"),
    "metadata twice": (file_of('{..."__metadata__":{}}'), "in its header, its JSON has '__metadata__' twice"),
    "nested": (file_of(entry(shape="[" * 200_000), EIGHT), "nested more than 64 deep"),
    "nested objects": (file_of('{..."a":' + '{"a":' * 100_000), "nested more than 64 deep"),
    "broken UTF-8": (file_of(entry().encode().replace(b'"a"', b'"\xff"'), EIGHT), "can't decode byte 0xff"),
    "half a character": (file_of(entry(name="\\ud800"), EIGHT), "must be printable"),
    "a raw half": (file_of(entry(name="\ud800"), EIGHT), "can't decode byte 0xed"),
    "an escape that is none": (file_of(entry(name="\\x41"), EIGHT), r"Invalid \\escape"),
    "a raw line break": (file_of(entry(name="a\nb"), EIGHT), "Invalid control character"),
    "dots": (file_of(entry(name="../a"), EIGHT), "the name '../a' must be printable, without"),
    "a slash": (file_of(entry(name="a/b"), EIGHT), "the name 'a/b' must be"),
    "a backslash": (file_of(entry(name="a\\\\b"), EIGHT), "must be printable, without"),
    "NUL": (file_of(entry(name="a\\u0000"), EIGHT), r"the name 'a\\x00' must be"),
    "text turned round": (file_of(entry(name="\u202ea"), EIGHT), "must be printable"),
    "no name": (file_of(entry(name=""), EIGHT), "the name '' is not a name for an array"),
    "metadata of numbers": (
        file_of(container.SIGNATURE + container.UNSIGNED + b'","a":3}}'),
        "its metadata are not strings by name",
    ),
    "half a character of metadata": (
        file_of(container.SIGNATURE + container.UNSIGNED + b'","a":"\\udfff"}}'),
        "surrogates not allowed",
    ),
    "metadata without names": (file_of('{"__metadata__":[]}'), "its metadata are not strings by name"),
    "a boolean of 2": (file_of(entry('"BOOL"', "[8]"), b"\0\1\2" + bytes(5)), "bytes other than 0 and 1"),
    "too many arrays": (
        file_of(
            "{..."
            + ",".join(f'"{i}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for i in range(ARRAY_LIMIT + 1))
            + "}"
        ),
        f"more than {ARRAY_LIMIT} arrays",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_file_that_is_none_is_refused_by_path_and_reason(path, kind):
    file, reason = REFUSED[kind]
    path.write_bytes(file)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match=rf"(?s)^{path} cannot be loaded: .*{reason}"):
            container.read(path)
        assert tracemalloc.get_traced_memory()[1] < 2 * len(file) + 16 * MIB
    finally:
        tracemalloc.stop()


def test_a_refusal_goes_from_process_to_process(path):
    path.write_bytes(b"PK")
    with pytest.raises(FormatError) as caught:
        container.read(path)
    for copied in (pickle.loads(pickle.dumps(caught.value)), copy.deepcopy(caught.value)):
        assert type(copied) is FormatError
        assert str(copied) == str(caught.value)


def test_what_is_refused_is_refused_for_that(path):
    """The helper's file, with nothing wrong in it, is sound."""
    path.write_bytes(file_of(entry(), np.array([1.5, 2.5], "f4").tobytes()))
    arrays, metadata = container.read(path)
    assert (arrays["a"].tolist(), metadata) == ([1.5, 2.5], {})
    path.write_bytes(file_of(entry().replace(":", " :\t").replace(",", "\n, "), EIGHT))
    assert container.read(path, signed=False)[0]["a"].tolist() == [0, 0]


@pytest.mark.parametrize(("change", "message"), [(-8, "it grew while"), (8, "it ended while")])
def test_a_file_that_changes_while_it_is_read_is_refused(path, monkeypatch, change, message):
    container.write(path, {"a": np.arange(4.0)}, {})
    data = path.read_bytes()
    path.write_bytes(data + bytes(8) if change < 0 else data[:-8])
    fstat = os.fstat

    def before(handle):
        found = list(fstat(handle))
        found[stat.ST_SIZE] += change
        return os.stat_result(found)

    monkeypatch.setattr(os, "fstat", before)
    with pytest.raises(FormatError, match=message):
        container.read(path)


@unix
@pytest.mark.parametrize("kind", ["folder", "device", "pipe", "missing"])
def test_what_is_no_file_is_an_os_error_at_once(path, kind):
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    if kind == "device":
        path.symlink_to(os.devnull)
    with pytest.raises(OSError, match=f"{path.name}"):
        container.read(path)


# --- memory -----------------------------------------------------------------------------------------------------------


def peak(call):
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        call()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def test_reading_takes_the_file_and_little_more(path):
    container.write(path, {f"{i}": np.ones(MIB) for i in range(4)}, {})
    assert peak(lambda: container.read(path)) < 33 * MIB
    arrays, _ = container.read(path)
    first, *others = (a.__array_interface__["data"][0] for a in arrays.values())
    assert [at - first for at in others] == [8 * MIB, 16 * MIB, 24 * MIB]


def test_writing_takes_one_array_at_most(path):
    arrays = {f"{i}": np.ones((1024, 1024)) for i in range(4)}
    assert peak(lambda: container.write(path, arrays, {})) < MIB
    transposed = {name: a.T for name, a in arrays.items()}
    assert peak(lambda: container.write(path, transposed, {})) < 9 * MIB + 8 * MIB


@pytest.mark.parametrize("character", ["x", "é", "😀", "\x01", "\x01😀"])
def test_the_largest_headers_take_no_more_than_they_may(path, character):
    text = "x" * (HEADER_LIMIT - 300) + character
    container.write(path, {}, {"note": text})
    assert peak(lambda: container.read(path)) < 2 * path.stat().st_size + 16 * MIB
    assert container.read(path)[1] == {"note": text}


def test_as_many_arrays_as_there_may_be_take_no_more_than_they_may(path):
    container.write(path, {f"{i}": np.zeros(1, "u1") for i in range(ARRAY_LIMIT)}, {})
    assert peak(lambda: container.read(path)) < 2 * path.stat().st_size + 16 * MIB


# --- what cannot be written -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arrays", "metadata", "error", "message"),
    [
        ({"a": [1.0]}, {}, TypeError, "'a' is list; expected a NumPy array of float64"),
        ({"a": np.ones(2, complex)}, {}, TypeError, "'a' is complex128"),
        ({"a": np.array(["x"])}, {}, TypeError, "'a' is <U1"),
        ({"a": np.array([object()])}, {}, TypeError, "'a' is object"),
        ({"a/b": np.ones(2)}, {}, ValueError, "the name 'a/b' must be printable"),
        ({"..": np.ones(2)}, {}, ValueError, "the name '..' must be printable"),
        ({"__metadata__": np.ones(2)}, {}, ValueError, "is not a name for an array"),
        ({3: np.ones(2)}, {}, ValueError, "the name 3 is not a name for an array"),
        ({"a": np.ones((1,) * 33)}, {}, ValueError, "'a' has 33 axes"),
        ({}, {"a": 3}, TypeError, "metadata are strings by name, got 'a': 3"),
        ({}, {"sha256": "x"}, ValueError, "'sha256' is the file's signature"),
        ({}, {"a": "\ud800"}, ValueError, "surrogates not allowed"),
        ({}, {"a": "x" * HEADER_LIMIT}, ValueError, "a file holds at most"),
        ({f"{i}": np.ones(0) for i in range(ARRAY_LIMIT + 1)}, {}, ValueError, "a file holds at most"),
    ],
)
def test_what_no_file_can_hold_touches_none(tmp_path, arrays, metadata, error, message):
    with pytest.raises(error, match=message):
        container.write(tmp_path / "a", arrays, metadata)
    assert os.listdir(tmp_path) == []


# --- where it is written ----------------------------------------------------------------------------------------------


@unix
@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("folder", IsADirectoryError),
        ("pipe", OSError),
        ("device", OSError),
        ("loop", OSError),
        ("kept", PermissionError),
    ],
)
def test_what_must_not_be_replaced_is_not(path, monkeypatch, kind, error):
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)
    if kind in ("device", "loop"):
        path.symlink_to({"device": os.devnull, "loop": path}[kind])
    if kind == "kept":
        container.write(path, {}, {})
        monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)  # tests may run as root, who always may

    def found():  # but for when it was read last, which following a link may change
        own = path.lstat()
        return own.st_ino, own.st_mode, own.st_nlink, own.st_size, own.st_mtime_ns

    before = found()
    with pytest.raises(error, match=re.escape(str(path))) as caught:
        container.write(path, {"a": np.ones(3)}, {})
    assert caught.value.filename == str(path)
    assert found() == before
    assert os.listdir(path.parent) == [path.name]


def test_a_folder_that_is_not_there_is_not_taken_for_a_file(tmp_path):
    with pytest.raises(FileNotFoundError) as caught:
        container.write(f"{tmp_path}/models/", {}, {})
    assert caught.value.filename == f"{tmp_path}/models/"
    assert os.listdir(tmp_path) == []


@unix
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o664])
def test_a_replaced_file_stays_as_readable_as_it_was(path, mode):
    container.write(path, {}, {})
    path.chmod(mode)
    container.write(path, {"a": np.ones(3)}, {})
    assert stat.S_IMODE(path.stat().st_mode) == mode


@unix
def test_a_link_stays_and_its_file_is_replaced(tmp_path):
    (tmp_path / "far").mkdir()
    file, link = tmp_path / "far" / "file", tmp_path / "link"
    link.symlink_to("far/file")  # which is not there yet
    container.write(link, {"a": np.ones(3)}, {})
    container.write(link, {"a": np.zeros(3)}, {})
    assert link.is_symlink()
    assert container.read(file)[0]["a"].tolist() == [0, 0, 0]
    assert (os.listdir(tmp_path / "far"), sorted(os.listdir(tmp_path))) == (["file"], ["far", "link"])


@unix
def test_the_file_is_on_the_disk_before_its_name_and_the_name_before_it_is_said(path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def flush(handle):
        calls.append("folder" if stat.S_ISDIR(os.fstat(handle).st_mode) else "file")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", lambda *names: (calls.append("rename"), replace(*names)))
    container.write(path, {"a": np.ones(3)}, {})
    assert calls == ["file", "rename", "folder"]


def test_what_killed_writes_left_is_removed_after_a_day(path):
    names = {
        ".arrays.safetensors.0123456789abcdef.tmp": 2.0,
        ".arrays.safetensors.fedcba9876543210.tmp": 0.9,  # days; this may be under way
        ".other.safetensors.0123456789abcdef.tmp": 2.0,
        ".arrays.safetensors.0123456789abcdef.tmp.mine": 2.0,
        ".arrays.safetensors.notes.tmp": 2.0,
        "arrays.safetensors.0123456789abcdef.tmp": 2.0,
    }
    for name, days in names.items():
        (path.parent / name).touch()
        os.utime(path.parent / name, (time.time() - days * 86_400,) * 2)
    (path.parent / ".arrays.safetensors.00000000000000ff.tmp").mkdir()
    os.utime(path.parent / ".arrays.safetensors.00000000000000ff.tmp", (0, 0))
    container.write(path, {}, {})
    left = {path.name, ".arrays.safetensors.00000000000000ff.tmp", *list(names)[1:]}
    assert set(os.listdir(path.parent)) == left


def test_without_another_thread_the_file_is_the_same(path, monkeypatch):
    arrays = {"a": np.random.default_rng(0).normal(size=500_000), "b": np.ones(3)}
    container.write(path, arrays, {})
    expected = path.read_bytes()

    def refuse(*arguments):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    container.write(path, arrays, {})
    assert path.read_bytes() == expected


def test_a_file_can_be_written_as_the_interpreter_ends(path):
    program = (
        "import atexit, sys, numpy as np; from xpnet.files import safetensors as container;"
        "atexit.register(lambda: container.write(sys.argv[1], {'a': np.ones(10**6)}, {}))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert container.read(path)[0]["a"].sum() == 10**6


# --- JSON without trust -----------------------------------------------------------------------------------------------

VALUES = [None, True, -3, 1.5, 10**30, "ünï\n\"'\\[{", [], {}, {"a": [1, {"b": None}], "": [[]]}]


@pytest.mark.parametrize("value", VALUES)
def test_json_comes_back(value):
    assert plain_json.loads(plain_json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"a": 1, "b": 2, "a": 1}', "has 'a' twice"),
        ("[NaN]", "has NaN, which is no number"),
        ("-Infinity", "has -Infinity, which is no number"),
        ("1e999", "has 1e999, beyond any float"),
        ("[" * 200_000, "nested more than 64 deep"),
        ('{"a":' * 65 + "1" + "}" * 65, "nested more than 64 deep"),
        ("[" + "0," * 60_000 + "0]", "more than 50000 parts"),
        ("9" * 5000, "4300 digits"),
        ("[1] 2", "Extra data"),
        ("", "Expecting value"),
        ('"abc', "Unterminated string"),
        ("'a'", "Expecting value"),
    ],
)
def test_json_that_is_not_strict_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        plain_json.loads(text)


def test_brackets_in_strings_are_no_depth():
    text = json.dumps({"[" * 100: "{" * 100 + '\\"['})
    assert plain_json.loads(text) == json.loads(text)
    assert plain_json.loads("[" * 64 + "]" * 64)


def test_what_is_no_json_is_not_written():
    for value in (float("nan"), {1, 2}, np.float32(1), [0] * 60_000, json.loads("[" * 65 + "]" * 65)):
        with pytest.raises((TypeError, ValueError)):
            plain_json.dumps(value)


@pytest.mark.parametrize(
    "text", ["[" + "[]," * 24_000 + "0]", "{" + ",".join(f'"{i}":0' for i in range(24_000)) + "}", '"' + "x" * 2**21]
)
def test_json_takes_less_than_sixteen_mib(text):
    def call():
        with contextlib.suppress(ValueError):
            plain_json.loads(text)

    assert peak(call) < 16 * MIB
