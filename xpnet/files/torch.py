"""PyTorch's files: the state dict of a `torch.nn.Sequential` of the same layers, in a safetensors file."""

from collections.abc import Set

import numpy as np

from ..common import checks
from ..common.publication import published
from ..layers.base import Layer
from ..layers.container import Container
from ..layers.dense import Dense
from ..layers.dropout import Dropout
from ..layers.normalization import BatchNorm
from ..layers.placed import check_least, check_network
from ..network import Sequential
from . import safetensors
from .format import arrays_of
from .load import least_of
from .safetensors import FormatError, Path

TORCH: dict[type[Layer], dict[str, str]] = {
    Dense: {"weight": "weight", "bias": "bias"},
    BatchNorm: {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"},
}
COUNTER = "num_batches_tracked"


def load_torch(net: Sequential, path: Path) -> Sequential:
    """Set the arrays of `net` from the state dict of the matching `torch.nn.Sequential`; returns the network.

    `safetensors.torch.save_file(model.state_dict(), path)` writes such a file. Layer i of the model must match layer i
    of the network: Linear matches Dense (its weight is transposed), BatchNorm1d matches BatchNorm, any layer without
    arrays an activation or Dropout, Sequential a Sequential, and an empty Sequential() any layer that only torch has,
    such as Flatten. Numbers are converted to the network's dtype; `net` must be initialized, and an error leaves it
    unchanged.

    A state dict has no settings: eps, momentum, slopes and rates are the network's own. torch's defaults correspond to
    `BatchNorm(features, momentum=0.9, eps=1e-5)` (torch's momentum=0.1), `LeakyReLU(0.01)` and `ELU(1.0)`. Further
    training differs: torch's running variance divides by N - 1, ours by N, and it starts from ones, ours from the first
    batch.

    Raises FormatError for any other file, TypeError for a network with a layer that torch does not have.
    """
    path = checks.path("load_torch: path", path)
    check_network("load_torch", net)
    theirs, own = torch_names(net), arrays_of(net)
    try:
        arrays, _ = safetensors.read(path, signed=False)
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
        net.set_params(safetensors.under("params", own | found))
        net.set_state(safetensors.under("state", own | found))
    return net


def check_torch_names(net: Sequential, expected: set[str], names: Set[str]) -> None:
    """Raise ValueError for a state dict with other names than expected, with a note on the remedy."""
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
    """Write the state dict of the `torch.nn.Sequential` that matches `net`, as described in `load_torch`.

    `model.load_state_dict(safetensors.torch.load_file(path))` loads it. torch's count of batches, which it uses with
    momentum=None only, is 0 for initial statistics, else 1. Raises TypeError for a network with a layer that torch does
    not have, OSError if the file system refuses.
    """
    path = checks.path("save_torch: path", path)
    check_network("save_torch", net)
    own = arrays_of(net)
    arrays = {other: own[name].T for name, other in torch_names(net).items()}
    for name in [name for name in arrays if name.endswith("running_mean")]:
        prefix = name.removesuffix("running_mean")
        fresh = (arrays[name] == 0).all() and (arrays[f"{prefix}running_var"] == 1).all()
        arrays[f"{prefix}{COUNTER}"] = np.array(0 if fresh else 1)
    safetensors.write(path, arrays, {"format": "pt"})


def torch_names(net: Sequential) -> dict[str, str]:
    """torch's names by those in a model file, such as "params.0.weight". Dropout's key has none and needs none."""
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
