"""Mutations of valid model files: files that a damaged disk, another program or an attacker may give to `xpnet.load`.

A mutation is a function (rng, header, data, file) -> bytes. The header is the parsed JSON, in which "network" is parsed
as well. BROKEN lists damage after signing; FORGED and RARE, invalid contents with a valid signature; FUZZED, random
damage with a valid signature, which may by chance give another valid file.
"""

import hashlib
import io
import json
import pickle
import random
import zipfile
from collections.abc import Callable

Header = dict
Mutation = Callable[[random.Random, Header, bytes, bytes], bytes]

ZEROS = "0" * 64
AT = 8 + len('{"__metadata__":{"sha256":"')  # where the signature begins
DEEP = 200_000  # levels of brackets


# --- parsing and assembling files -------------------------------------------------------------------------------------


def parsed(file: bytes) -> tuple[Header, bytes]:
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    header["__metadata__"]["network"] = json.loads(header["__metadata__"]["network"])
    return header, file[8 + length :]


def signed(text: bytes, data: bytes) -> bytes:
    """Return a file with this header, with a correct SHA-256 if the header has a field for it."""
    text += b" " * (-len(text) % 8)
    file = len(text).to_bytes(8, "little") + text + data
    if file[AT : AT + 64] != ZEROS.encode():
        return file
    return file[:AT] + hashlib.sha256(file).hexdigest().encode() + file[AT + 64 :]


def text_of(header: Header) -> bytes:
    metadata = dict(header["__metadata__"])
    if "sha256" in metadata:
        metadata["sha256"] = ZEROS
    if isinstance(metadata.get("network"), dict):
        metadata["network"] = json.dumps(metadata["network"])
    return json.dumps(header | {"__metadata__": metadata}, separators=(",", ":")).encode()


def assembled(header: Header, data: bytes) -> bytes:
    return signed(text_of(header), data)


def some_array(rng: random.Random, header: Header) -> dict:
    return header[rng.choice([name for name in header if name != "__metadata__"])]


def some_layer(rng: random.Random, header: Header) -> dict:
    """Return a random layer that has settings, at any depth."""
    found, waiting = [], [header["__metadata__"]["network"]]
    while waiting:
        layer = waiting.pop()
        waiting += layer.get("layers", [])
        found += [layer] if "settings" in layer else []
    return rng.choice(found)


# --- damage after signing: each must be refused -----------------------------------------------------------------------


def flip(rng, header, data, file):
    changed = bytearray(file)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        at = rng.randrange(len(file))
        changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed) if changed != file else file[:-1]


def truncate(rng, header, data, file):
    return file[: rng.randrange(len(file))]


def append(rng, header, data, file):
    return file + rng.randbytes(rng.choice([1, 7, 8, 100]))


def overwrite(rng, header, data, file):
    at, length = rng.randrange(len(file)), rng.choice([1, 4, 8, 64])
    new = rng.choice([rng.randbytes(length), bytes(length), b"\xff" * length])
    changed = file[:at] + new + file[at + length :]
    return changed if changed != file else file[:-1]


def drop(rng, header, data, file):
    at, length = rng.randrange(len(file)), rng.choice([1, 4, 8])
    return file[:at] + file[at + length :]


def repeat(rng, header, data, file):
    at, length = rng.randrange(len(file)), rng.choice([1, 4, 8])
    return file[:at] + file[at : at + length] + file[at:]


def claim(rng, header, data, file):
    """Give another length of the header, such as a gigabyte, the whole file or 0."""
    length = rng.choice([10**9, 2**30, 2**62, 2**63, 2**64 - 1, len(file), len(file) - 7, 0, 1, rng.randrange(2**20)])
    changed = length.to_bytes(8, "little") + file[8:]
    return changed if changed != file else file[:-1]


def other_file(rng, header, data, file):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(rng.choice(["../../evil.py", "data.pkl", "config.json"]), file[:100])
    kind = rng.choice(["pickle", "zip", "hdf5", "npy", "text", "random", "empty"])
    if kind == "pickle":
        return pickle.dumps(["a", {"weights": [1.0] * 50}], protocol=rng.randrange(6))
    if kind == "zip":
        return packed.getvalue()
    random_bytes = rng.randbytes(rng.randrange(2000))
    begin = {"hdf5": b"\x89HDF\r\n\x1a\n", "npy": b"\x93NUMPY\x01\x00", "text": b"weights: none\n" * 9}
    return b"" if kind == "empty" else begin.get(kind, b"") + random_bytes


def unsigned(rng, header, data, file):
    """Remove the signature, or replace it by another file's; the rest is valid."""
    if rng.random() < 0.5:
        del header["__metadata__"]["sha256"]
        return assembled(header, data)
    return file[:AT] + rng.randbytes(32).hex().encode() + file[AT + 64 :]


BROKEN = [flip, flip, flip, truncate, append, overwrite, drop, repeat, claim, other_file, unsigned]


# --- invalid contents with a valid signature: each must be refused ----------------------------------------------------

BAD_SHAPES = [2**62, 2**63, 2**64, 10**30, -1, 1.5, 1e3, True, "3", None, [3]]
BAD_NAMES = ["params/0", "../../etc/passwd", "..", "a\\b", "a\x00b", "line\nbreak", "\x1b[31m", "", "\u202etxt"]
BAD_CLASSES = [
    "Lambda",
    "os.system",
    "builtins.eval",
    "__import__",
    "load",
    "Layer",
    "type",
    "xpnet.Dense",
    "",
    "dense",
]
EVIL = {
    "module": "os",
    "class_name": "Lambda",
    "config": {"function": "__import__('os').system('id')"},
    "registered_name": "builtins>eval",
    "function": ["4wEAAAAAAAAA", None, None],
    "fn": {"class_name": "function", "config": "system"},
    "safe_mode": False,
    "__reduce__": ["os.system", ["id"]],
    "build_config": {},
}


def wrong_shape(rng, header, data, file):
    array = some_array(rng, header)
    shape = array["shape"]
    kind = rng.randrange(4)
    if kind == 0:
        array["shape"] = [rng.choice(BAD_SHAPES)] * rng.choice([1, 2, 3, 33])
    elif kind == 1:
        array["shape"] = [*shape, rng.choice([0, 2, 2**62])]
    elif kind == 2:
        array["shape"] = rng.choice([{}, "3", 7, None, [[]], [1] * 33, [0, 2**63 - 1, 2**63 - 1, 2**63 - 1]])
    else:
        array["shape"] = [n + rng.choice([1, 2**40]) for n in shape]
    return assembled(header, data)


def wrong_offsets(rng, header, data, file):
    array = some_array(rng, header)
    begin, end = array["data_offsets"]
    shift = rng.choice([1, 4, 8, -4, 2**62])
    array["data_offsets"] = rng.choice(
        [
            [begin + shift, end + shift],  # a gap and an overlap
            [begin, end + 4],
            [begin + 4, end],
            [end, begin - 4],
            [begin],
            [begin, end, end],
            [float(begin), end],
            [-1, end],
            [True, end],
            "0:4",
            None,
            [begin, 2**63],
            [len(data), len(data) + end - begin],
        ]
    )
    return assembled(header, data)


def wrong_dtype(rng, header, data, file):
    array = some_array(rng, header)
    others = ["F16", "BF16", "F8_E4M3", "I64", "U8", "BOOL", "f32", "float32", "O", "V8", "", 4, None, ["F32"]]
    array["dtype"] = rng.choice(others)
    return assembled(header, data)


def wrong_entry(rng, header, data, file):
    array = some_array(rng, header)
    if rng.random() < 0.5:
        del array[rng.choice(["dtype", "shape", "data_offsets"])]
    else:
        array[rng.choice(["file", "module", "compression", "external_data"])] = rng.choice(["../../etc/passwd", 1, {}])
    return assembled(header, data)


def wrong_name(rng, header, data, file):
    name = rng.choice([name for name in header if name != "__metadata__"])
    moved = header.pop(name)
    header[rng.choice([*BAD_NAMES, name + "..", "optimizer." + name, name.swapcase()])] = moved
    return assembled(header, data)


def other_arrays(rng, header, data, file):
    """Remove the last array, or add one: the file is valid, but its network is not."""
    if rng.random() < 0.5:
        name, last = max(header.items(), key=lambda item: item[1].get("data_offsets", [0, 0])[1])
        del header[name]
        return assembled(header, data[: last["data_offsets"][0]])
    header["params.99.weight"] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
    return assembled(header, data + bytes(4))


def trailing(rng, header, data, file):
    extra = rng.choice([b"\0", b"PK\x03\x04", bytes(64)])
    if rng.random() < 0.5:
        return assembled(header, data + extra)
    return signed(text_of(header) + rng.choice([b"{}", b"]", b"\0", b"x", b","]), data)


def repeated_key(rng, header, data, file):
    text = text_of(header)
    which = rng.randrange(4)
    if which == 0:  # the same array twice
        name = rng.choice([name for name in header if name != "__metadata__"])
        return signed(text[:-1] + f",{json.dumps(name)}:{json.dumps(header[name])}}}".encode(), data)
    if which == 1:
        return signed(text[:-1] + b',"__metadata__":{"format":"xpnet"}}', data)
    if which == 2:
        return signed(text.replace(b'"dtype":', b'"dtype":"F32","dtype":', 1), data)
    network = json.dumps(header["__metadata__"]["network"])
    header["__metadata__"]["network"] = network[:-1] + rng.choice([', "dtype": "float64"}', ', "layers": []}'])
    return assembled(header, data)


def nested(rng, header, data, file):
    opening, closing = rng.choice([("[", "]"), ('{"a":', "}"), ('{"layers":[', "]}")])
    deep = opening * DEEP + (closing * DEEP if rng.random() < 0.5 else "")
    if rng.random() < 0.5:
        header["__metadata__"]["network"] = rng.choice(['{"dtype": "float32", "layers": ' + deep + "}", deep])
        return assembled(header, data)
    some_array(rng, header)["shape"] = "@"
    return signed(text_of(header).replace(b'"@"', deep.encode(), 1), data)


def invalid_number(rng, header, data, file):
    word = rng.choice(["NaN", "Infinity", "-Infinity", "1e999", "-1e999", "1" * 5000, "01", "+1", "0x10", ".5", "1."])
    if rng.random() < 0.5:
        settings = some_layer(rng, header)["settings"]
        settings[rng.choice([*settings, "alpha"])] = "@"
        network = json.dumps(header["__metadata__"]["network"]).replace('"@"', word)
        header["__metadata__"]["network"] = network
        return assembled(header, data)
    some_array(rng, header)["shape"] = ["@"]
    return signed(text_of(header).replace(b'"@"', word.encode(), 1), data)


def invalid_text(rng, header, data, file):
    """Write invalid strings: broken UTF-8, lone surrogates, raw control characters."""
    raw = rng.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\\ud800", b"\n", b"\0", b"\\x41", b"\\"])
    header["__metadata__"]["@"] = "x"
    return signed(text_of(header).replace(b"@", raw, 1), data)


def wrong_metadata(rng, header, data, file):
    metadata = header["__metadata__"]
    which = rng.randrange(4)
    if which == 0:
        metadata[rng.choice(["format", "version", "network"])] = rng.choice([1, None, ["x"], {}, True, 1.5])
        metadata["network"] = metadata["network"] if not isinstance(metadata["network"], dict) else "{}"
    elif which == 1:
        del metadata[rng.choice(["format", "version", "network"])]
    elif which == 2:
        metadata[rng.choice(["module", "class_name", "pickle", "custom_objects", "safe_mode"])] = "os"
    else:
        metadata["version"] = rng.choice(["2", "1.1", "10", "01", " 1", "", "latest", "١"])
    return assembled(header, data)


def wrong_layer(rng, header, data, file):
    layer = some_layer(rng, header)
    which = rng.randrange(6)
    if which == 0:
        layer["layer"] = rng.choice([*BAD_CLASSES, 3, None, ["Dense"], {"module": "os", "name": "system"}])
    elif which == 1:  # an entry of Keras's format
        name = rng.choice([*EVIL])
        layer[name] = EVIL[name]
    elif which == 2:
        layer.clear()
        layer.update(EVIL)
    elif which == 3:
        name = rng.choice([*EVIL])
        layer["settings"][name] = EVIL[name]
    elif which == 4:
        layer[rng.choice(["settings", "trainable"])] = rng.choice([None, 3, "yes", [], [1], 2.5])
    else:
        del layer[rng.choice([*layer])]
    return assembled(header, data)


def wrong_setting(rng, header, data, file):
    settings = some_layer(rng, header)["settings"]
    name = rng.choice([*settings] or ["alpha"])
    settings[name] = rng.choice([2**40, 2**62, 10**300, -1, [], {}, None, "os.system", EVIL, [[1]], "9" * 100])
    if name in ("alpha", "eps", "rate", "momentum") and isinstance(settings[name], int):
        settings[name] = [settings[name]]  # a list instead of a number, since other numbers may be valid
    return assembled(header, data)


def wrong_network(rng, header, data, file):
    network = header["__metadata__"]["network"]
    which = rng.randrange(4)
    if which == 0:
        header["__metadata__"]["network"] = rng.choice(
            ["", "[", "null", "3", '"x"', "[]", "{}", "\ufeff{}", "{'a': 1}"]
        )
    elif which == 1:
        network["dtype"] = rng.choice(["int8", "object", None, 3, ["float32"], "float16", "float128"])
    elif which == 2:
        network["layers"] = rng.choice([None, 3, {}, "Dense", network["layers"][1:], [*network["layers"], None]])
    else:
        network[rng.choice([*EVIL])] = 1
    return assembled(header, data)


def non_finite_weights(rng, header, data, file):
    """Put NaN or infinity into one of the floating-point arrays."""
    names = [name for name in header if header[name].get("dtype") in ("F32", "F64")]
    array = header[rng.choice(names)]
    size = 4 if array["dtype"] == "F32" else 8
    at = array["data_offsets"][0] + size * rng.randrange((array["data_offsets"][1] - array["data_offsets"][0]) // size)
    bad = rng.choice([b"\xff" * size, b"\0" * (size - 2) + (b"\x80\x7f" if size == 4 else b"\xf0\x7f")])
    return assembled(header, data[:at] + bad + data[at + size :])


FORGED = [
    wrong_shape, wrong_offsets, wrong_dtype, wrong_entry, wrong_name, other_arrays, trailing, repeated_key,
    invalid_number, invalid_text, wrong_metadata, wrong_layer, wrong_layer, wrong_setting, wrong_network,
    non_finite_weights,
]  # fmt: skip
RARE = [nested]  # large and slow


# --- random damage with a valid signature: refused, or another valid file ---------------------------------------------


def fuzz_header(rng, header, data, file):
    text = bytearray(text_of(header))
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(AT - 8 + 64, len(text))
        new = rng.choice([rng.randbytes(1), rng.choice([b'"', b"{", b"}", b"[", b"]", b",", b":", b"0", b"-", b"\\"])])
        text[at : at + rng.randrange(2)] = new
    return signed(bytes(text), data)


def fuzz_data(rng, header, data, file):
    changed = bytearray(data)
    changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return assembled(header, bytes(changed))


FUZZED = [fuzz_header, fuzz_header, fuzz_header, fuzz_data]
