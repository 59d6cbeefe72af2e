"""Loading model files. Nothing named in a file is imported or run: classes of layers are looked up in a table."""

import os
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from .. import layers as ours
from ..backends import DTYPES, Backend, resolve
from ..common import checks
from ..common.settings import arguments_name, defaults, takes_arguments
from ..layers.base import Layer
from ..layers.placed import check_least, streams
from ..network import Sequential
from . import safetensors, strict_json
from .format import FORMAT, UNSOUND, VERSION, of_layers, restored_order
from .safetensors import FormatError, Path
from .strict_json import only


def load(
    path: Path, backend: str | Backend | None = None, device: Any = None,
    custom_layers: Iterable[type[Layer]] | None = None,
) -> Sequential:  # fmt: skip
    """Load the network in the file at `path`, which `save` or a `Checkpoint` wrote, onto `backend` and `device`.

    Layers are those of this package and the classes in `custom_layers`; nothing that a file names is imported. Shapes
    of arrays are checked against the layers' settings before memory is allocated. A custom class is constructed with
    the settings or layers in the file and, unless it defines `param_shapes`, draws its initial parameters once. If
    files come from strangers, it should check its settings.

    Raises FormatError for anything but a sound model file, OSError if it cannot be read, and what `get_backend` raises.

    >>> xn.Sequential(xn.Dense(2, 3), xn.ReLU()).initialize(seed=0).save("net.safetensors")
    >>> xn.load("net.safetensors")
    Sequential(Dense(2, 3), ReLU())
    """
    path = checks.path("load: path", path)
    place = resolve(backend, device)
    table = known(custom_layers)
    try:
        arrays, metadata = safetensors.read(path)
    except OSError as error:
        if os.path.isdir(path):
            error.add_note("load reads one file: in a Checkpoint's folder, the newest is the last step-*.safetensors")
        raise
    if metadata.pop("training", None) is not None:
        arrays = {name: a for name, a in arrays.items() if not name.startswith("training.")}
        if "network" not in metadata:
            raise FormatError(
                path,
                "it is a checkpoint of a network that no file can describe, such as a subclass of Sequential: build "
                "that network and go on with net.fit(..., checkpoint=xn.Checkpoint(folder), resume=True)",
            )
    order = metadata.pop("order", None)
    try:
        net, dtype = restored(metadata, table)
        net.rng = streams(0)[1] if order is None else restored_order(strict_json.loads(order))
        check(net, dtype, arrays)
    except UNSOUND as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise FormatError(path, f"{kind}{error}") from None  # a chained error could print names from the file

    params = {k: place.asarray(a, dtype) for k, a in safetensors.under("params", arrays).items()}
    # copied, since views would keep the whole buffer of the file in memory
    state = {k: place.asarray(a.copy(), a.dtype) for k, a in safetensors.under("state", arrays).items()}
    net.assign_placed(
        place, dtype, {k: params[k] for k in net.param_shapes()}, {k: state[k] for k in net.state_shapes()}
    )
    return net


def known(custom_layers: Iterable[type[Layer]] | None) -> dict[str, type[Layer]]:
    """Return the classes that a file may use, by name. Raises ValueError if two have the same name."""
    table: dict[str, type[Layer]] = {name: getattr(ours, name) for name in ours.__all__}
    table["Sequential"] = Sequential
    classes = () if custom_layers is None else custom_layers
    if isinstance(classes, type):
        raise TypeError(f"load: custom_layers is a list of classes: give [{classes.__name__}]")
    if isinstance(classes, (str, bytes, Mapping)) or hasattr(classes, "shape") or not isinstance(classes, Iterable):
        raise TypeError(f"load: custom_layers must be a list of classes of layers, got {checks.brief(classes)}")
    for cls in classes:
        if not isinstance(cls, type) or not issubclass(cls, Layer):
            raise TypeError(f"load: custom_layers are classes of layers, got {cls!r}")
        if table.setdefault(cls.__name__, cls) is not cls:
            raise ValueError(f"load: custom_layers has a {cls.__name__} besides xpnet's or an earlier one of that name")
    return table


def restored(metadata: Mapping[str, str], table: Mapping[str, type[Layer]]) -> tuple[Sequential, str]:
    """Return the network that the metadata describes, without arrays, and its dtype."""
    if metadata.get("format") != FORMAT:
        raise ValueError("it does not say that it holds an xpnet network")
    if metadata.get("version") != VERSION:
        raise ValueError(f"format version {metadata.get('version')!r:.80}, this xpnet reads {VERSION!r}")
    only("its metadata", metadata, {"format", "version", "network"})
    network = strict_json.loads(metadata["network"])
    if not isinstance(network, dict) or "layer" not in network:
        network = only("its network", network, {"dtype", "layers"}) | {"layer": "Sequential"}
    dtype = network.pop("dtype", None)
    if dtype not in DTYPES:
        raise ValueError(f"its network has dtype {dtype!r:.80}; there are {', '.join(DTYPES)}")
    net = build(network, table)
    if not isinstance(net, Sequential):
        raise ValueError(f"its network is a {type(net).__name__}, expected a Sequential")
    return net, dtype


def build(described: object, table: Mapping[str, type[Layer]]) -> Layer:
    """Return the layer that `describe` described, with its class from `table`."""
    name = described.get("layer") if isinstance(described, dict) else None
    if not isinstance(described, dict) or not isinstance(name, str):
        raise ValueError(f"{described!r:.200} is not a layer: it has no name under 'layer'")
    if name not in table:
        raise ValueError(f"layer {name!r:.80} is unknown; if it is yours, pass its class in custom_layers=[...]")
    cls = table[name]
    layers, settings = described.get("layers", []), described.get("settings", {})
    if of_layers(cls):
        only(name, described, {"layer", "layers", *({"settings"} if defaults(cls) else ())})
        if not isinstance(layers, list):
            raise ValueError(f"layers are {layers!r:.80}, expected a list")
    else:
        only(name, described, {"layer", "settings", "frozen" if "frozen" in described else "trainable"})
    if not isinstance(settings, dict):
        raise ValueError(f"{name}: settings are {settings!r:.80}, expected an object")
    arguments = [build(each, table) for each in layers]
    settings = {name: built(value, table) for name, value in settings.items()}
    if takes_arguments(cls) and not of_layers(cls):
        arguments = settings.pop(arguments_name(cls), [])
    layer = cls(*arguments, **settings)
    if "frozen" in described:
        leaves = dict(layer._leaves())
        if not isinstance(described["frozen"], list) or not leaves.keys() >= set(described["frozen"]):
            raise ValueError(f"{name}: frozen are {described['frozen']!r:.80}, expected names of {', '.join(leaves)}")
        for key, leaf in leaves.items():
            leaf.trainable = key not in described["frozen"]
    elif not of_layers(cls):
        trainable = described["trainable"]
        if not isinstance(trainable, bool) or settings.get("trainable", trainable) != trainable:
            raise ValueError(f"{name}: trainable is {trainable!r:.80}, expected true or false, as in its settings")
        layer.trainable = trainable
    return layer


def built(value: Any, table: Mapping[str, type[Layer]]) -> Any:
    """Return a setting, with layers in place of their descriptions."""
    if isinstance(value, list):
        return [built(each, table) for each in value]
    if isinstance(value, dict) and "layer" in value:
        return build(value, table)
    return value


def check(net: Sequential, dtype: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Raise ValueError unless the arrays have the names, shapes and dtypes of the network's, and are finite."""
    shapes = {f"params.{k}": shape for k, shape in net.param_shapes().items()}
    shapes |= {f"state.{k}": shape for k, shape in net.state_shapes().items()}
    if missing := shapes.keys() - arrays.keys():
        raise ValueError(f"{', '.join(sorted(missing)):.200} missing")
    if strangers := arrays.keys() - shapes.keys():
        raise ValueError(f"it holds {', '.join(sorted(strangers)):.200}, which its network does not have")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")
    least = least_of(net)
    start = net.initial_state(np.random.default_rng(0))  # no larger than the arrays in the file, as just checked
    integers = {f"state.{k}": a.dtype.name for k, a in start.items() if a.dtype.kind != "f"}
    for name, a in arrays.items():
        if a.dtype.name != (expected := integers.get(name, dtype)):
            raise ValueError(f"{name} has dtype {a.dtype.name}, expected {expected}")
        if a.size and not (np.isfinite(a.min()) and np.isfinite(a.max())):  # both are NaN if any entry is
            raise ValueError(f"{name} has NaN or infinite entries")
        if name in least:
            check_least(name, a, least[name])


def least_of(net: Sequential) -> dict[str, float]:
    """Return lower bounds of arrays' entries, by the names in a model file."""
    return {f"state.{name}": least for name, least in net.least_entries().items()}
