"""Writing model files."""

from ..common import checks
from ..layers.placed import Placed
from . import safetensors
from .format import arrays_of, metadata_of
from .safetensors import Path


def save(net: Placed, path: Path) -> None:
    """Write `net` to `path` atomically; OSError if the file system refuses."""
    path = checks.path("save: path", path)
    safetensors.write(path, arrays_of(net), metadata_of(net, net.rng))
