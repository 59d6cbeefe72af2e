"""Model files: architecture, parameters and running statistics in one safetensors file. Loading runs nothing in it."""

import contextlib
import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from .backend import Backend
from .container import FormatError
from .layers.activations import ELU, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from .layers.base import Layer
from .layers.batchnorm import BatchNorm
from .layers.dense import Dense
from .layers.dropout import Dropout
from .network import Sequential, resolve

FORMAT = "xpnet"
VERSION = "1"
Path = str | os.PathLike[str]
LAYERS: tuple[type[Layer], ...] = (Dense, BatchNorm, Dropout, Sigmoid, Tanh, ReLU, LeakyReLU, ELU, Softmax)


# what building from an unsound description raises
UNSOUND = ValueError, TypeError, KeyError, AttributeError, RecursionError, MemoryError, OverflowError


def save(net: Sequential, path: Path) -> None:
    """Write `net` to `path`, whole or not at all. OSError where the file system refuses."""
    import json
    import tempfile

    from safetensors.numpy import save as to_bytes

    host = net.backend.to_numpy
    arrays = {f"params.{k}": a for k, a in net.params.items()} | {f"state.{k}": a for k, a in net.state.items()}
    try:
        network = json.dumps({"dtype": net.dtype, "layers": describe(net)})
    except (TypeError, AttributeError) as error:
        raise TypeError(
            f"save: {net!r} cannot be described in JSON: {error}; keep each of the constructor's arguments, plain "
            "numbers and names, as an attribute of its name"
        ) from error
    header = {"format": FORMAT, "version": VERSION, "network": network}
    data = to_bytes({k: np.array(host(a), order="C") for k, a in arrays.items()}, metadata=header)
    folder, name = os.path.split(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(dir=folder, prefix=f".{name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)  # mkstemp's files are for the owner alone
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def load(
    path: Path,
    backend: str | Backend | None = None,
    device: Any = None,
    custom_layers: Sequence[type[Layer]] = (),
) -> Sequential:
    """The network in a file that `save` wrote, on `backend`.

    Layers come from this package and from `custom_layers`, classes of your own; nothing that a file names is imported.
    Raises FormatError for anything that is not such a file, OSError where it cannot be read.
    """
    import json

    from safetensors import SafetensorError
    from safetensors.numpy import load as from_bytes

    with open(path, "rb") as file:
        data = file.read()
    place = resolve(backend, device)
    try:
        arrays = from_bytes(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
        if header.get("format") != FORMAT:
            raise ValueError("it does not say that it holds an xpnet network")
        if header.get("version") != VERSION:
            raise ValueError(f"format version {header.get('version')!r}, this xpnet reads {VERSION!r}")
        network = json.loads(header["network"])
        net = Sequential(*build(network["layers"], {c.__name__: c for c in (*LAYERS, *custom_layers)}))
        net.initialize(place, network["dtype"])
        if strangers := [name for name in arrays if not name.startswith(("params.", "state."))]:
            raise ValueError(f"it holds {', '.join(sorted(strangers))}, which is neither params nor state")
        net.set_params({k.removeprefix("params."): a for k, a in arrays.items() if k.startswith("params.")})
        net.set_state({k.removeprefix("state."): a for k, a in arrays.items() if k.startswith("state.")})
    except (SafetensorError, *UNSOUND) as error:
        raise FormatError(path, error) from error
    return net


def describe(net: Sequential) -> list[dict[str, Any]]:
    """The layers as JSON: names of classes and their settings."""
    if type(net) is not Sequential:
        raise TypeError(f"{type(net).__name__} is a Sequential of its own, and its layers alone would be saved")
    return [
        {"layer": "Sequential", "layers": describe(layer)}
        if isinstance(layer, Sequential)
        else {"layer": type(layer).__name__, "settings": layer.settings(), "trainable": layer.trainable}
        for layer in net.layers
    ]


def build(described: Sequence[dict[str, Any]], table: dict[str, type[Layer]]) -> list[Layer]:
    """`describe` undone, with the classes in `table`."""
    layers: list[Layer] = []
    for item in described:
        name = item["layer"]
        if name == "Sequential":
            layers.append(Sequential(*build(item["layers"], table)))
        elif name in table:
            layers.append(table[name](**item["settings"]))
            layers[-1].trainable = bool(item.get("trainable", True))
        else:
            raise ValueError(f"layer {name!r} is unknown; if it is yours, pass its class in custom_layers=[...]")
    return layers
