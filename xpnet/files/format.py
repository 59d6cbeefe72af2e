"""Model files: architecture, parameters and running statistics in one signed file (`safetensors`).

The metadata are `format` "xpnet", `version` "1", and `network` in JSON: {"dtype": ..., "layers": [...]}. A layer is
{"layer": "Dense", "settings": {...}, "trainable": true} or {"layer": "Residual", "layers": [...]}, with settings if it
has any. A custom layer that contains layers has "frozen", the names of the frozen ones, in place of "trainable"; a
network of a custom class is described as such a layer. Arrays are named "params.0.weight", "state.1.mean", ...
`order` in the metadata is the state of the generator that shuffles rows, by default that of a new network with seed 0.
Loading runs no code from a file: a layer's name is looked up in a table. A checkpoint is such a file with the state of
a training run: `training` in the metadata, and arrays named "training....".
"""

from typing import Any

import numpy as np

from ..common import checks
from ..common.publication import published
from ..common.settings import arguments_name, takes_arguments
from ..layers.base import Layer, mapped
from ..layers.container import Container
from ..layers.placed import Placed, streams
from . import safetensors, strict_json
from .safetensors import Path
from .strict_json import only

FORMAT = "xpnet"
VERSION = "1"

# what building a network from an unsound description may raise, custom constructors included
UNSOUND = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError, MemoryError,
)  # fmt: skip


def save(net: Placed, path: Path) -> None:
    """Write `net` to `path` atomically; OSError if the file system refuses."""
    path = checks.path("save: path", path)
    safetensors.write(path, arrays_of(net), metadata_of(net, net.rng))


# --- description of a network -----------------------------------------------------------------------------------------


def arrays_of(net: Placed) -> dict[str, np.ndarray]:
    """Return the arrays of a model file, by name."""
    host = net.backend.to_numpy
    with published.lock:
        arrays = {f"params.{k}": a for k, a in net.params.items()} | {f"state.{k}": a for k, a in net.state.items()}
    return {name: host(a) for name, a in arrays.items()}


def metadata_of(net: Placed, order: Any) -> dict[str, str]:
    """Return the metadata of a model file; `order` is the generator that shuffles rows.

    Raises TypeError for a network that JSON cannot describe.
    """
    try:
        described = describe(net)
        if described["layer"] == "Sequential":
            described = {"layers": described["layers"]}
        network = strict_json.dumps({"dtype": net.dtype, **described})
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(
            f"save: {net!r} cannot be described in JSON: {error}; keep each of the constructor's arguments, plain "
            "numbers and names, as an attribute of its name"
        ) from error
    return {"format": FORMAT, "version": VERSION, "network": network} | order_metadata(order)


def describe(layer: Layer) -> dict[str, Any]:
    """Return a layer as JSON: its class name, its settings, the layers in it, and which of them are frozen."""
    described: dict[str, Any] = {"layer": type(layer).__name__}
    children, takes_layers = layer._children(), of_layers(type(layer))
    if takes_layers:
        described["layers"] = [describe(child) for child in children.values()]
    settings = {name: mapped(value, describe) for name, value in layer.settings().items()}
    if takes_arguments(type(layer)) and not takes_layers:
        settings[arguments_name(type(layer))] = mapped(layer._arguments(), describe)
    if settings or not takes_layers:
        described["settings"] = settings
    if not children and not takes_layers:
        described["trainable"] = bool(layer.trainable)
    elif not takes_layers:
        described["frozen"] = [name for name, leaf in layer._leaves() if not leaf.trainable]
    return described


def of_layers(cls: type) -> bool:
    """Whether the class is a container whose constructor takes `*layers`."""
    return issubclass(cls, Container) and takes_arguments(cls)


# --- the order of rows ------------------------------------------------------------------------------------------------


def order_metadata(rng: Any) -> dict[str, str]:
    """Return the generator that shuffles rows as metadata; {} for that of seed 0, and for an estimator's."""
    state = rng.bit_generator.state
    return {} if state in (None, streams(0)[1].bit_generator.state) else {"order": strict_json.dumps(state)}


def restored_order(state: object) -> "np.random.Generator":
    """Return the generator with a state from `order_metadata`. Raises ValueError for anything else."""
    fields = only("its order", state, {"bit_generator", "state", "has_uint32", "uinteger"})
    numbers = fields | only("its order's state", fields["state"], {"state", "inc"})
    limits = {"state": 2**128, "inc": 2**128, "has_uint32": 2, "uinteger": 2**32}
    sound = all(type(numbers[name]) is int and 0 <= numbers[name] < limit for name, limit in limits.items())
    if fields["bit_generator"] != "PCG64" or not sound:
        raise ValueError(f"its order is {fields!r:.200}, not a state of NumPy's PCG64")
    rng = np.random.default_rng(0)
    rng.bit_generator.state = fields
    return rng
