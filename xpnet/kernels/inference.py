"""Inference in stages: the outputs for many images or sequences, a block of rows at a time in arrays that are kept.

The stages are those of a training step, of which only `forward` runs, or `infer` where inference differs. After the
first call only the outputs are allocated, and threads share the blocks. For a few rows the layers' own code is as fast.
"""

import contextlib
import math
import sys
import threading
import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backends import Array
from ..layers.base import ARRAYS, Layer, are_same, is_ours, settings_of, tree
from ..layers.dropout import Dropout
from ..layers.placed import Placed
from .cpu import threads
from .families import kernels_for
from .parts import parts_of
from .passes import Passes
from .stages import Exit, LayerStage, Site, Vector, Workspace, in_memory_order, reversed_axes

STAGES_FROM = 2**17  # entries that the layers output for all rows from which stages are faster
IN_BLOCKS = 2**23  # entries that they output for the blocks of rows of all threads
NUMBA = f"{__package__}.cpu.numba"


def infer(net: Placed, x: Array, compiled: bool) -> Array:
    """Return the network's outputs for x, in stages or by the layers' own code."""
    compiled = compiled and NUMBA in sys.modules  # if training has taken the seconds to import and to compile it
    own, place = known.get(net), (net.backend.name, net.backend.device, net.dtype)
    if own is None or (own.axes, own.compiled, own.place) != (x.ndim, compiled, place):
        own = known[net] = Inference(net, x, compiled, place)
    if not own.suits or own.outputs_for(x) < STAGES_FROM or not own.lock.acquire(blocking=False):
        return net._infer(x)  # also while another thread uses the stages
    try:
        if not are_same(own.settings, settings_of(net, *own.layers)):
            own.prepare(net)
        return own(net, x) if own.suits else net._infer(x)
    finally:
        own.lock.release()


class Inference:
    """The stages of a network for an x of so many axes, while its arrays are in one place: a library, device and dtype.
    One thread at a time may use them, within `lock`.

    They are made for the first large x, and anew after a layer's settings have changed.
    """

    settings: Sequence[Any] = ()  # of the network and all layers, for which the stages were made
    layers: tuple[Layer, ...] = ()  # all within the network, which itself is not kept from being collected

    def __init__(self, net: Placed, x: Array, compiled: bool, place: tuple[Any, ...]):
        self.lock, self.axes, self.compiled, self.place = threading.Lock(), x.ndim, compiled, place
        self.shape = tuple(x.shape)
        outputs_per_row = parts_of(net, self.shape)[-1]
        self.growth: float = outputs_per_row / math.prod(self.shape[1:])
        self.suits = bool(outputs_per_row and net.params and net.backend.immediate)

    def prepare(self, net: Placed) -> None:
        """Make the stages, and find out whether they suit the network."""
        layers = tuple(tree(net))
        settings, self.leaves, self.names = settings_of(*layers), net.leaves(), [*net.params]
        self.family = kernels_for(net.backend, self.compiled)
        self.passes: dict[int, list[Passes]] = {}  # by the number of threads, one for each
        own_code = [stage.layer for stage in self._passes(net, 1)[0].stages if isinstance(stage, LayerStage)]
        self.suits = all(is_ours(layer) for layer in own_code)
        if not self.suits:
            self.passes.clear()
        self.settings, self.layers = settings, layers[1:]  # last, as Ctrl-C may have interrupted the rest

    def outputs_for(self, x: Any) -> float:
        """Return about how many entries all layers output for x."""
        return self.growth * float(math.prod(x.shape))

    def _passes(self, net: Placed, count: int) -> list[Passes]:
        """Return the passes for so many threads, which share no memory."""
        if count not in self.passes:
            self.passes[count] = [self._new_passes(net, count) for _ in range(count)]
        return self.passes[count]

    def _new_passes(self, net: Placed, count: int) -> Passes:
        backend, dtype = net.backend, net.params[self.names[0]].dtype

        def workspace() -> Workspace:
            return Workspace(backend.xp, dtype, backend.device)

        parts = [part for part in parts_of(net, self.shape)[0] if type(part.layer) is not Dropout]
        apart = dict.fromkeys(self.names, 0)  # no bias stands behind its weight
        site = Site(self.family, workspace, workspace(), apart, count)
        return Passes(site, [part._replace(frozen=False) for part in parts], "")

    def __call__(self, net: Placed, x: Array) -> Array:
        """Return the outputs for x."""
        n, outputs, backend = x.shape[0], self.outputs_for(x), net.backend
        in_threads = self.family.threaded and outputs >= threads.SPLIT_FROM and threads.blas_threads() > 1
        passes = self._passes(net, threads.cores() if in_threads else 1)
        *_, last = (stage for stage in passes[0].stages if not isinstance(stage, Exit))
        kinds = [(prefix, vars(leaf)[kind]) for prefix, leaf in self.leaves for kind in ARRAYS if kind in vars(leaf)]
        arrays = {f"{prefix}.{name}": in_c_order(a) for prefix, by_name in kinds for name, a in by_name.items()}
        at, free = Vector(None, arrays, passes[0].stages), list(passes)
        dtype = arrays[self.names[0]].dtype

        def new(_: str, shape: tuple[int, ...]) -> Array:
            return backend.xp.empty(shape, dtype=dtype, device=backend.device)

        sizes: Any = net.output_shape(("N", *x.shape[1:]))[1:]
        y = in_memory_order(new, "", (*sizes[::-1], n), last.images)

        def run(rows: slice) -> None:
            one = free.pop()
            y[..., rows] = one.infer(reversed_axes(in_c_order(x[rows, ...])), at)
            free.append(one)

        with threads.one_blas_thread() if in_threads else contextlib.nullcontext():
            threads.in_blocks(run, n, max(1, int(IN_BLOCKS / len(passes) * n / outputs)), in_threads)
        return reversed_axes(y)


known: "weakref.WeakKeyDictionary[Placed, Inference]" = weakref.WeakKeyDictionary()


def in_c_order(a: Array) -> Array:
    """Return an array of NumPy in C order, as the kernels take it; others as they are."""
    return np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a
