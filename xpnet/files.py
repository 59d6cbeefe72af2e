"""Model files: architecture, parameters and running statistics in one signed safetensors file (`container`).

The metadata: `format` "xpnet", `version` "1", and `network`, JSON: {"dtype": ..., "layers": [...]}, a layer being
{"layer": "Dense", "settings": {...}, "trainable": true} or {"layer": "Sequential", "layers": [...]}, with settings as
well where it has some. A layer of the user's own that holds layers has "frozen", the names of those that are, in place
of "trainable". A network of the user's own class is described as such a layer. The arrays: "params.0.weight",
"state.1.mean", ... `order`, in the metadata, is the state of the generator of the order of rows; without it the order
is that of a new network with seed 0. Loading runs nothing that a file says: a layer's name is looked up in a table.
A checkpoint is such a file with a training run's state beside: `training` in the metadata, arrays "training....".

And PyTorch's: the state dict of a `torch.nn.Sequential` of the same layers, in a safetensors file.
"""

import os
from collections.abc import Iterable, Mapping, Set
from typing import Any

import numpy as np

from . import checks, container, plain_json
from .backend import DTYPES, Backend, resolve
from .container import FormatError, Path
from .layers.activations import ELU, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from .layers.base import Layer, mapped
from .layers.batchnorm import BatchNorm
from .layers.blocks import Branches, Residual
from .layers.container import Container
from .layers.dense import Dense
from .layers.dropout import Dropout
from .network import Sequential, check_least, check_network, streams
from .plain_json import only
from .publication import published
from .settings import defaults, takes_arguments

FORMAT = "xpnet"
VERSION = "1"
LAYERS: tuple[type[Layer], ...] = (
    Sequential, Residual, Branches, Dense, BatchNorm, Dropout, Sigmoid, Tanh, ReLU, LeakyReLU, ELU, Softmax,
)  # fmt: skip

# what building from an unsound description raises, constructors of a user's own layers included
UNSOUND = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError, MemoryError,
)  # fmt: skip


def save(net: Sequential, path: Path) -> None:
    """Write `net` to `path`, whole or not at all. OSError where the file system refuses."""
    path = checks.path("save: path", path)
    container.write(path, arrays_of(net), metadata_of(net, net.rng))


def arrays_of(net: Sequential) -> dict[str, np.ndarray]:
    """The arrays of a model file."""
    host = net.backend.to_numpy
    with published.lock:
        arrays = {f"params.{k}": a for k, a in net.params.items()} | {f"state.{k}": a for k, a in net.state.items()}
    return {name: host(a) for name, a in arrays.items()}


def metadata_of(net: Sequential, order: Any) -> dict[str, str]:
    """The metadata of a model file, `order` being the generator. TypeError for a network that JSON cannot describe."""
    try:
        described = describe(net)
        if type(net) is Sequential:
            described = {"layers": described["layers"]}
        network = plain_json.dumps({"dtype": net.dtype, **described})
    except (TypeError, ValueError, AttributeError) as error:
        raise TypeError(
            f"save: {net!r} cannot be described in JSON: {error}; keep each of the constructor's arguments, plain "
            "numbers and names, as an attribute of its name"
        ) from error
    return {"format": FORMAT, "version": VERSION, "network": network} | told_order(order)


def told_order(rng: Any) -> dict[str, str]:
    """The metadata on the generator of the order of rows: none where it stands as in a new network of seed 0, nor of
    an estimator's, whose order comes from scikit-learn's random state.
    """
    state = rng.bit_generator.state
    return {} if state in (None, streams(0)[1].bit_generator.state) else {"order": plain_json.dumps(state)}


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


def load(
    path: Path,
    backend: str | Backend | None = None,
    device: Any = None,
    custom_layers: Iterable[type[Layer]] | None = None,
) -> Sequential:
    """The network in a file that `save` or a `Checkpoint` wrote, on `backend`.

    Layers come from this package and from `custom_layers`, classes of your own; nothing that a file names is imported.
    Arrays are held against the shapes that the layers' settings say before anything is made of them. A class of your
    own gets its settings from the file, or where it derives from `Sequential` its layers, and unless it has a
    `param_shapes`, makes its initial parameters once: have it check its settings, if your files come from strangers.

    Raises FormatError for anything that is not such a file, OSError where it cannot be read.
    """
    path = checks.path("load: path", path)
    place = resolve(backend, device)
    table = known(custom_layers)
    try:
        arrays, metadata = container.read(path)
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
        net.rng = streams(0)[1] if order is None else restored_order(plain_json.loads(order))
        check(net, dtype, arrays)
    except UNSOUND as error:
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise FormatError(path, f"{kind}{error}") from None  # what the file names would reach the terminal in a chain

    params = {k: place.asarray(a, dtype) for k, a in container.under("params", arrays).items()}
    # copied: alone, they would keep the whole file's buffer once the parameters are trained
    state = {k: place.asarray(a.copy(), a.dtype) for k, a in container.under("state", arrays).items()}
    net.hold(place, dtype, {k: params[k] for k in net.param_shapes()}, {k: state[k] for k in net.state_shapes()})
    return net


def known(custom_layers: Iterable[type[Layer]] | None) -> dict[str, type[Layer]]:
    """The classes that a file may name. ValueError where two have one name."""
    table = {cls.__name__: cls for cls in LAYERS}
    given = () if custom_layers is None else custom_layers
    if isinstance(given, type):
        raise TypeError(f"load: custom_layers is a list of classes: give [{given.__name__}]")
    if isinstance(given, (str, bytes, Mapping)) or hasattr(given, "shape") or not isinstance(given, Iterable):
        raise TypeError(f"load: custom_layers must be a list of classes of layers, got {checks.told(given)}")
    for cls in given:
        if not isinstance(cls, type) or not issubclass(cls, Layer):
            raise TypeError(f"load: custom_layers are classes of layers, got {cls!r}")
        if table.setdefault(cls.__name__, cls) is not cls:
            raise ValueError(f"load: custom_layers has another {cls.__name__} than xpnet's or the one before")
    return table


def restored(metadata: Mapping[str, str], table: Mapping[str, type[Layer]]) -> tuple[Sequential, str]:
    """The network that the metadata describe, as yet without arrays, and its dtype."""
    if metadata.get("format") != FORMAT:
        raise ValueError("it does not say that it holds an xpnet network")
    if metadata.get("version") != VERSION:
        raise ValueError(f"format version {metadata.get('version')!r:.80}, this xpnet reads {VERSION!r}")
    only("its metadata", metadata, {"format", "version", "network"})
    network = plain_json.loads(metadata["network"])
    if not isinstance(network, dict) or "layer" not in network:
        network = only("its network", network, {"dtype", "layers"}) | {"layer": "Sequential"}
    dtype = network.pop("dtype", None)
    if dtype not in DTYPES:
        raise ValueError(f"its network has dtype {dtype!r:.80}; there are {', '.join(DTYPES)}")
    net = build(network, table)
    if not isinstance(net, Sequential):
        raise ValueError(f"its network is a {type(net).__name__}, and no Sequential")
    return net, dtype


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


def build(described: object, table: Mapping[str, type[Layer]]) -> Layer:
    """`describe` undone, with the classes in `table`."""
    name = described.get("layer") if isinstance(described, dict) else None
    if not isinstance(described, dict) or not isinstance(name, str):
        raise ValueError(f"{described!r:.200} is no layer: it has no name under 'layer'")
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
    layer = cls(*(build(one, table) for one in layers), **{k: built(v, table) for k, v in settings.items()})
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
    """A setting, with layers in place of their descriptions."""
    if isinstance(value, list):
        return [built(each, table) for each in value]
    if isinstance(value, dict) and "layer" in value:
        return build(value, table)
    return value


def check(net: Sequential, dtype: str, arrays: Mapping[str, np.ndarray]) -> None:
    """Refuse arrays that are not exactly those that the network has by its settings, finite. Makes none of its own."""
    shapes = {f"params.{k}": shape for k, shape in net.param_shapes().items()}
    shapes |= {f"state.{k}": shape for k, shape in net.state_shapes().items()}
    if missing := shapes.keys() - arrays.keys():
        raise ValueError(f"{', '.join(sorted(missing)):.200} missing")
    if strangers := arrays.keys() - shapes.keys():
        raise ValueError(f"it holds {', '.join(sorted(strangers)):.200}, which its network has not")
    for name, shape in shapes.items():
        if arrays[name].shape != shape:
            raise ValueError(f"{name} has shape {arrays[name].shape}, expected {shape}")
    least = least_of(net)
    start = net.initial_state(np.random.default_rng(0))  # no larger than what the file has, as is known by now
    whole = {f"state.{k}": a.dtype.name for k, a in start.items() if a.dtype.kind != "f"}
    for name, a in arrays.items():
        if a.dtype.name != (expected := whole.get(name, dtype)):
            raise ValueError(f"{name} has dtype {a.dtype.name}, expected {expected}")
        if a.size and not (np.isfinite(a.min()) and np.isfinite(a.max())):  # both are NaN where any entry is
            raise ValueError(f"{name} has NaN or infinite entries")
        if name in least:
            check_least(name, a, least[name])


def least_of(net: Sequential) -> dict[str, float]:
    """The least that entries may be, by the names in a model file."""
    return {f"state.{name}": least for name, least in net.least_entries().items()}


# --- PyTorch's state dicts --------------------------------------------------------------------------------------------

TORCH: dict[type[Layer], dict[str, str]] = {
    Dense: {"weight": "weight", "bias": "bias"},
    BatchNorm: {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"},
}
COUNTER = "num_batches_tracked"


def load_torch(net: Sequential, path: Path) -> Sequential:
    """Set the arrays of `net` from the state dict of the matching `torch.nn.Sequential`; returns the network.

    `safetensors.torch.save_file(model.state_dict(), path)` writes such a file. Matching is a model whose layer i is
    torch's twin of layer i: Linear of Dense, its weight transposed, BatchNorm1d of BatchNorm, any without arrays of an
    activation or Dropout, and Sequential of Sequential, an empty one of what only torch has, such as Flatten. Numbers
    are converted to the network's dtype; `net` must be initialized, and is unchanged where anything fails.

    A state dict has no settings: eps, momentum, slopes and rates are the network's own. For the predictions of torch's
    defaults say `BatchNorm(features, momentum=0.9, eps=1e-5)`, `LeakyReLU(0.01)` and `ELU(1.0)`; torch's momentum=0.1
    is 0.9 here. Trained on, they differ: torch's running variance has N - 1 where ours has N below the sum, and starts
    from ones where ours starts from the first batch.

    Raises FormatError for a file that is not exactly that, TypeError for a network with a layer that torch has not.
    """
    path = checks.path("load_torch: path", path)
    check_network("load_torch", net)
    theirs, own = torch_names(net), arrays_of(net)
    try:
        arrays, _ = container.read(path, signed=False)
    except FormatError as error:
        error.add_note(
            "load_torch reads what safetensors.torch.save_file(model.state_dict(), path) writes; where torch.save has "
            "written the file, give that torch.load(path, weights_only=True)"
        )
        raise
    counters = {name.rpartition(".")[0] + f".{COUNTER}" for name in theirs.values() if name.endswith("running_mean")}
    found, least = {}, least_of(net)
    try:
        check_torch_names(net, counters | set(theirs.values()), arrays.keys())
        for counter in counters:
            if arrays[counter].shape != () or arrays[counter].dtype != np.int64:
                raise ValueError(
                    f"{counter} is {arrays[counter].dtype} of shape {arrays[counter].shape}, not an int64 of no axes"
                )
        for name, other in theirs.items():
            a = arrays[other]
            if a.dtype.kind != "f":
                raise ValueError(f"{other} has dtype {a.dtype.name}, expected floating point")
            if a.shape != (shape := own[name].shape[::-1]):
                raise ValueError(f"{other} has shape {a.shape}, expected {shape}")
            with np.errstate(over="ignore"):
                found[name] = a.T.astype(net.dtype)
            if not np.isfinite(found[name]).all():
                raise ValueError(f"{other} has entries that are NaN or infinite in {net.dtype}")
            if name in least:
                check_least(other, found[name], least[name])
    except ValueError as error:
        unsound = FormatError(path, error)
        for note in getattr(error, "__notes__", ()):
            unsound.add_note(note)
        raise unsound from None
    with published:
        net.set_params(container.under("params", own | found))
        net.set_state(container.under("state", own | found))
    return net


def check_torch_names(net: Sequential, expected: set[str], names: Set[str]) -> None:
    """Refuse a state dict with other names than these; a note says what would do."""
    missing, strangers = (", ".join(sorted(some)) for some in (expected - names, names - expected))
    if not (missing or strangers):
        return
    found = [f"{missing:.80} missing"] * bool(missing) + [f"it holds {strangers:.80}"] * bool(strangers)
    error = ValueError(f"{'; '.join(found)}; expected the state dict that matches {net!r:.80}")
    if missing and strangers:
        error.add_note(
            "The names begin with the layers' numbers, from 0: for a layer that only torch has, such as Flatten, put "
            "an empty Sequential() into the network, and save the state dict of the torch.nn.Sequential alone"
        )
    elif missing:
        error.add_note(
            "Put what does the same into it: for bias=False zeros, for affine=False a weight of ones and a bias of "
            "zeros; a BatchNorm1d with track_running_stats=False has no match"
        )
    raise error


def save_torch(net: Sequential, path: Path) -> None:
    """Write the state dict of the `torch.nn.Sequential` that matches `net`, as `load_torch` says.

    `model.load_state_dict(safetensors.torch.load_file(path))` takes it. torch's count of batches, which it looks at
    only where its momentum is None, is 0 for statistics as they start and else 1. Raises TypeError for a network with
    a layer that torch has not, OSError where the file system refuses.
    """
    path = checks.path("save_torch: path", path)
    check_network("save_torch", net)
    own = arrays_of(net)
    arrays = {other: own[name].T for name, other in torch_names(net).items()}
    for name in [name for name in arrays if name.endswith("running_mean")]:
        prefix = name.removesuffix("running_mean")
        fresh = (arrays[name] == 0).all() and (arrays[f"{prefix}running_var"] == 1).all()
        arrays[f"{prefix}{COUNTER}"] = np.array(0 if fresh else 1)
    container.write(path, arrays, {"format": "pt"})


def torch_names(net: Sequential) -> dict[str, str]:
    """From the names in a model file, "params.0.weight", to torch's. Dropout's key has none, and needs none."""
    for prefix, layer in net.parts():
        if isinstance(layer, Container):
            who = f"layer {prefix}, {layer!r:.80}," if prefix else f"the network, {type(layer).__name__},"
            raise TypeError(f"{who} has a forward of its own, which torch.nn.Sequential would do without")
    names = {}
    for prefix, layer in net.leaves():
        if type(layer) not in TORCH and type(layer) is not Dropout and (layer.params or layer.state):
            raise TypeError(f"layer {prefix}, {layer!r}, has arrays for which PyTorch has no names")
        for key, other in TORCH.get(type(layer), {}).items():
            names[f"{'params' if key in layer.params else 'state'}.{prefix}.{key}"] = f"{prefix}.{other}"
    return names
