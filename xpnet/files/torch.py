"""PyTorch's files: the state dict of a model of the same layers, in a safetensors file."""

from collections.abc import Mapping, Set
from typing import Any

import numpy as np

from ..common import checks
from ..common.checks import kind_of
from ..common.publication import published
from ..layers.attention import MultiHeadAttention
from ..layers.base import Layer
from ..layers.convolution import Conv1d, Conv2d
from ..layers.dense import Dense
from ..layers.dropout import Dropout
from ..layers.embedding import Embedding, PositionalEmbedding
from ..layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from ..layers.placed import check_least, check_network
from ..network import Sequential
from . import safetensors
from .format import arrays_of
from .load import least_of
from .safetensors import FormatError, Path

SAME = {"weight": "weight", "bias": "bias"}
NORM = {"gamma": "weight", "beta": "bias"}
TORCH: dict[type[Layer], dict[str, str]] = {
    Dense: SAME,
    Conv1d: SAME,
    Conv2d: SAME,
    BatchNorm: NORM | {"mean": "running_mean", "var": "running_var"},
    LayerNorm: NORM,
    GroupNorm: NORM,
    RMSNorm: {"gamma": "weight"},
    Embedding: {"weight": "weight"},
    PositionalEmbedding: {"weight": "weight"},
    MultiHeadAttention: {
        "qkv_weight": "in_proj_weight",
        "qkv_bias": "in_proj_bias",
        "out_weight": "out_proj.weight",
        "out_bias": "out_proj.bias",
    },
}
TRANSPOSED = {Dense, MultiHeadAttention}  # weights are (in, out) in xpnet, (out, in) in PyTorch
COUNTER = "num_batches_tracked"


def load_torch(net: Sequential, path: Path, names: Mapping[str, str] | None = None) -> Sequential:
    """Set the arrays of `net` from the state dict of a PyTorch model of the same layers; returns the network.

    `safetensors.torch.save_file(model.state_dict(), path)` writes such a file. Layers match by their names, in a
    `torch.nn.Sequential` their numbers: Linear matches Dense (its weight is transposed), Conv, BatchNorm, LayerNorm,
    GroupNorm, RMSNorm and Embedding the layers of their names, an Embedding of positions PositionalEmbedding,
    MultiheadAttention with self-attention MultiHeadAttention, a Sequential or a module of one's own around them a
    Sequential, Residual or other layer that holds layers, and an empty Sequential() any layer that only torch has.
    Where a model has other names, `names` gives them by ours: {"0": "wte", "2": "blocks.0"} for "wte.weight" and
    "blocks.0.1.in_proj_weight". A Dense after Flatten fits as it is: both flatten in the order (C, H, W).

    Numbers are converted to the network's dtype; `net` must be initialized, and an error leaves it unchanged.

    A state dict has no settings: eps, momentum, slopes and rates are the network's own. torch's defaults correspond to
    `BatchNorm(features, momentum=0.9, eps=1e-5)` (torch's momentum=0.1), `LeakyReLU(0.01)` and `ELU(1.0)`. Further
    training differs: torch's running variance divides by N - 1, ours by N, and it starts from ones, ours from the first
    batch.

    Raises FormatError for any other file, TypeError for a network with a layer that torch does not have, ValueError for
    `names` of layers that it has not.

    >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
    >>> xn.files.save_torch(net, "torch.safetensors")
    >>> twin = xn.files.load_torch(xn.Sequential(xn.Dense(2, 3)).initialize(seed=1), "torch.safetensors")
    >>> bool((twin.params["0.weight"] == net.params["0.weight"]).all())
    True
    """
    path = checks.path("load_torch: path", path)
    check_network("load_torch", net)
    theirs, ours = torch_names("load_torch", net, names), arrays_of(net)
    try:
        arrays, _ = safetensors.read(path, signed=False)
    except FormatError as error:
        error.add_note(
            "load_torch reads what safetensors.torch.save_file(model.state_dict(), path) writes; convert a file of "
            "torch.save by save_file(torch.load(path, weights_only=True), new_path)"
        )
        raise
    means = [other for other, _ in theirs.values() if other.endswith("running_mean")]
    counters = {f"{name.rpartition('.')[0]}.{COUNTER}" for name in means}
    check_torch_names(path, net, counters | {other for other, _ in theirs.values()}, arrays.keys())
    converted, least = {}, least_of(net)
    try:
        for counter in counters:
            if arrays[counter].shape != () or arrays[counter].dtype != np.int64:
                raise ValueError(
                    f"{counter} is {arrays[counter].dtype} of shape {arrays[counter].shape}, not an int64 of no axes"
                )
        for name, (other, transposed) in theirs.items():
            a = arrays[other]
            if a.dtype.kind != "f":
                raise ValueError(f"{other} has dtype {a.dtype.name}, expected floating point")
            if a.shape != (shape := ours[name].shape[:: -1 if transposed else 1]):
                raise ValueError(f"{other} has shape {a.shape}, expected {shape}")
            with np.errstate(over="ignore"):
                converted[name] = (a.T if transposed else a).astype(net.dtype)
            if not np.isfinite(converted[name]).all():
                raise ValueError(f"{other} has entries that are NaN or infinite in {net.dtype}")
            if name in least:
                check_least(other, converted[name], least[name])
    except ValueError as error:
        raise FormatError(path, error) from None
    with published:
        net.set_params(safetensors.under("params", ours | converted))
        net.set_state(safetensors.under("state", ours | converted))
    return net


def check_torch_names(path: Path, net: Sequential, expected: set[str], names: Set[str]) -> None:
    """Raise FormatError for a state dict with other names than expected, with a note on the remedy."""
    missing, strangers = (", ".join(sorted(some)) for some in (expected - names, names - expected))
    if not (missing or strangers):
        return
    faults = [f"{missing:.80} missing"] * bool(missing) + [f"it holds {strangers:.80}"] * bool(strangers)
    error = FormatError(path, f"{'; '.join(faults)}; expected the state dict that matches {net!r:.80}")
    if missing and strangers:
        error.add_note(
            "The names begin with the layers' numbers, from 0: for a layer that only torch has, such as Flatten, put "
            "an empty Sequential() into the network, and save the state dict of the torch.nn.Sequential alone"
        )
    elif missing:
        error.add_note(
            "Add equivalent arrays: zeros for bias=False, a weight of ones and a bias of zeros for affine=False; a "
            "BatchNorm1d with track_running_stats=False has no equivalent"
        )
    raise error


def save_torch(net: Sequential, path: Path, names: Mapping[str, str] | None = None) -> None:
    """Write the state dict of the PyTorch model that matches `net`, as described in `load_torch`.

    `model.load_state_dict(safetensors.torch.load_file(path))` loads it. torch's count of batches, which it uses with
    momentum=None only, is 0 for initial statistics, else 1. Raises TypeError for a network with a layer that torch does
    not have, ValueError for `names` of layers that it has not, OSError if the file system refuses.

    >>> xn.files.save_torch(xn.Sequential(xn.Dense(2, 3)).initialize(seed=0), "torch.safetensors")
    """
    path = checks.path("save_torch: path", path)
    check_network("save_torch", net)
    ours = arrays_of(net)
    theirs = torch_names("save_torch", net, names)
    arrays = {other: ours[name].T if transposed else ours[name] for name, (other, transposed) in theirs.items()}
    for name in [name for name in arrays if name.endswith("running_mean")]:
        prefix = name.removesuffix("running_mean")
        fresh = (arrays[name] == 0).all() and (arrays[f"{prefix}running_var"] == 1).all()
        arrays[f"{prefix}{COUNTER}"] = np.array(0 if fresh else 1)
    safetensors.write(path, arrays, {"format": "pt"})


def torch_names(who: str, net: Sequential, names: Mapping[str, str] | None) -> dict[str, tuple[str, bool]]:
    """Return PyTorch's name of each array, and whether it is transposed there, by the name in a model file."""
    renamed = checked_names(who, net, names)
    theirs = {}
    for prefix, layer in net.leaves():
        if type(layer) not in TORCH and type(layer) is not Dropout and (layer.params or layer.state):
            raise TypeError(f"layer {prefix}, {layer!r}, has arrays for which PyTorch has no names")
        beginnings = [name for name in renamed if f"{prefix}.".startswith(f"{name}.")]
        longest = max(beginnings, key=len, default="")
        their_prefix = f"{renamed[longest]}{prefix[len(longest) :]}" if longest else prefix
        for key, other in TORCH.get(type(layer), {}).items():
            kind = "params" if key in layer.params else "state"
            transposed = type(layer) in TRANSPOSED and key.endswith("weight")
            theirs[f"{kind}.{prefix}.{key}"] = f"{their_prefix}.{other}", transposed
    if len({other for other, _ in theirs.values()}) < len(theirs):
        raise ValueError(f"{who}: names gives two layers one name: {renamed}")
    return theirs


def checked_names(who: str, net: Sequential, names: Any) -> dict[str, str]:
    """Return `names` as a dict. Raises ValueError unless each key is a layer of the network or a layer around some."""
    if names is None:
        return {}
    if not isinstance(names, Mapping) or not all(isinstance(name, str) for pair in names.items() for name in pair):
        raise TypeError(
            f'{who}: names must be a dict of our names to torch\'s, such as {{"0": "wte"}}, got {kind_of(names)}'
        )
    leaves = [prefix for prefix, _ in net.leaves()]
    for name in names:
        if not any(f"{prefix}.".startswith(f"{name}.") for prefix in leaves):
            raise ValueError(
                f"{who}: names has {name!r}, but the network has no layer of that name; it has {', '.join(leaves)}"
            )
    return dict(names)
