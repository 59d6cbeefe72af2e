"""Model files: architecture, parameters and running statistics in one signed safetensors file (`container`).

The metadata: `format` "xpnet", `version` "1", and `network`, JSON: {"dtype": ..., "layers": [...]}, a layer being
{"layer": "Dense", "settings": {...}, "trainable": true} or {"layer": Placed, "layers": [...]}, with settings as
well where it has some. A layer of the user's own that holds layers has "frozen", the names of those that are, in place
of "trainable". A network of the user's own class is described as such a layer. The arrays: "params.0.weight",
"state.1.mean", ... `order`, in the metadata, is the state of the generator of the order of rows; without it the order
is that of a new network with seed 0. Loading runs nothing that a file says: a layer's name is looked up in a table.
A checkpoint is such a file with a training run's state beside: `training` in the metadata, arrays "training....".
"""

from typing import Any

import numpy as np

from ..common.publication import published
from ..common.settings import takes_arguments
from ..layers.base import Layer, mapped
from ..layers.container import Container
from ..layers.placed import Placed, streams
from . import strict_json
from .strict_json import only

FORMAT = "xpnet"
VERSION = "1"

# what building from an unsound description raises, constructors of a user's own layers included
UNSOUND = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError, MemoryError,
)  # fmt: skip


# --- a network described ----------------------------------------------------------------------------------------------


def arrays_of(net: Placed) -> dict[str, np.ndarray]:
    """The arrays of a model file."""
    host = net.backend.to_numpy
    with published.lock:
        arrays = {f"params.{k}": a for k, a in net.params.items()} | {f"state.{k}": a for k, a in net.state.items()}
    return {name: host(a) for name, a in arrays.items()}


def metadata_of(net: Placed, order: Any) -> dict[str, str]:
    """The metadata of a model file, `order` being the generator. TypeError for a network that JSON cannot describe."""
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
    return {"format": FORMAT, "version": VERSION, "network": network} | told_order(order)


def describe(layer: Layer) -> dict[str, Any]:
    """A layer as JSON: the name of its class, its settings, the layers it was made of, and what is frozen."""
    described: dict[str, Any] = {"layer": type(layer).__name__}
    children = layer._children()
    if of_layers(type(layer)):
        described["layers"] = [describe(child) for child in children.values()]
    settings = {name: mapped(value, describe) for name, value in layer.settings().items()}
    if settings or not of_layers(type(layer)):
        described["settings"] = settings
    if not children and not of_layers(type(layer)):
        described["trainable"] = bool(layer.trainable)
    elif not of_layers(type(layer)):
        described["frozen"] = [name for name, leaf in layer._leaves() if not leaf.trainable]
    return described


def of_layers(cls: type) -> bool:
    """Whether a class's constructor takes `*layers`, as `Container`'s does."""
    return issubclass(cls, Container) and takes_arguments(cls)


# --- the order of rows ------------------------------------------------------------------------------------------------


def told_order(rng: Any) -> dict[str, str]:
    """The metadata on the generator of the order of rows: none where it stands as in a new network of seed 0, nor of
    an estimator's, whose order comes from scikit-learn's random state.
    """
    state = rng.bit_generator.state
    return {} if state in (None, streams(0)[1].bit_generator.state) else {"order": strict_json.dumps(state)}


def restored_order(state: object) -> "np.random.Generator":
    """The generator in this state, as `told_order` has it. ValueError for anything that is not one."""
    told = only("its order", state, {"bit_generator", "state", "has_uint32", "uinteger"})
    numbers = told | only("its order's state", told["state"], {"state", "inc"})
    limits = {"state": 2**128, "inc": 2**128, "has_uint32": 2, "uinteger": 2**32}
    sound = all(type(numbers[name]) is int and 0 <= numbers[name] < limit for name, limit in limits.items())
    if told["bit_generator"] != "PCG64" or not sound:
        raise ValueError(f"its order is {told!r:.200}, no state of NumPy's PCG64")
    rng = np.random.default_rng(0)
    rng.bit_generator.state = told
    return rng
