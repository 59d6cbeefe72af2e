"""The division of a network into parts, from which stages are made."""

import collections
import itertools
import math
from collections.abc import Iterator

from ..layers.base import Layer, Shape, is_ours, tree
from ..layers.container import idle_parameters
from ..layers.dropout import Dropout
from ..layers.placed import Placed
from .blocks import Block, Fork, Join, Turn
from .reference import is_within
from .stages import Part


def parts_of(net: Placed, shape: Shape, first: int = 0) -> tuple[list[Part], int, list[str], int]:
    """Return the parts of a network for an x of this shape, the number of axes of its outputs, the names of parameters
    without effect, and the number of entries that layers of images and sequences output for each row.

    The parts are the layers in the order of their calls; marks separate the layers of branches. The `first` layers of
    `net.parts()` are left out.
    """
    outputs_per_row = 0
    found: list[Part] = []
    idle: list[str] = []
    leaves = net.leaves()
    turns: dict[int, Iterator[str]] = collections.defaultdict(lambda: itertools.cycle("ab"))

    def follow(parts: list[tuple[str, Layer]], shape: Shape, depth: int) -> int:
        nonlocal outputs_per_row
        axes = [len(shape)]
        for prefix, layer in parts:
            branches = layer._branches(f"{prefix}.") if layer.takes == "floats" else []
            if len(branches) > 1:
                block, n = Block(layer, f"{depth}{next(turns[depth])}"), len(shape)
                for kind, branch in zip(itertools.chain([Fork], itertools.repeat(Turn)), branches, strict=False):
                    found.append(Part(prefix, (kind, block), n, ()))
                    n = follow(branch, shape, depth + 1)
                found.append(Part(prefix, (Join, block), n, ()))
            else:
                within = [leaf for leaf in leaves if is_within(f"{leaf[0]}.", prefix)]
                found.append(Part(prefix, layer, len(shape), within, not layer.trainable))
            shape = shape_after(layer, shape)
            if len(sizes := [size for size in shape[1:] if isinstance(size, int)]) > 1:
                outputs_per_row += math.prod(sizes)
            axes.append(len(shape))
        idle.extend(idle_parameters(parts, axes[1:]))
        return axes[-1]

    shape = "N", *shape[1:]
    for _, layer in net.parts()[:first]:
        shape = shape_after(layer, shape)
    axes = follow(net.parts()[first:], shape, 0)
    return found, axes, idle, outputs_per_row


def frozen_first(net: Placed) -> int:
    """Return how many of the first layers do the same in training as in inference: the frozen ones, as far as no other
    layer trains before them, and those without parameters that follow them. 0 if none of them has parameters.
    """

    def is_fixed(layer: Layer) -> bool:
        trains = any(leaf.trainable and leaf.params for _, leaf in layer._leaves())
        return not trains and all(is_ours(each) and type(each) is not Dropout for each in tree(layer))

    fixed = list(itertools.takewhile(is_fixed, (layer for _, layer in net.parts())))
    return len(fixed) if any(layer.params for layer in fixed) else 0


def shape_after(layer: Layer, shape: Shape) -> Shape:
    """Return the shape of a layer's output; (), which no stage takes, if it is unknown.

    A user's layer without an `output_shape` is assumed to turn matrices into matrices; for more axes nothing is known.
    """
    if not shape or (len(shape) > 2 and not layer._tells_shape()):
        return ()
    try:
        return layer.output_shape(shape)
    except ValueError:  # sizes that are unknown or do not fit: assume that the shape stays
        return shape
