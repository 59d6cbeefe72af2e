"""The steps of processes that train together, each of which has some of a batch's rows; and of shards."""

import threading
from collections.abc import Callable
from typing import Any, Protocol

from .. import ops
from ..backends import Array, Backend
from ..common.share import sharing, tree_sum, whole
from ..layers.base import Shape
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..optimizers import Optimizer
from ..training.batches import Batch
from . import step_for
from .planner import BufferedStep, kernels_of
from .reference import Carry, Step


class Group(Protocol):
    """The processes that train together, as one of them sees it."""

    rank: int  # its own number
    size: int  # how many there are
    takes_cupy: bool  # whether arrays may be CuPy's; else they are the host's

    def place(self, own: int) -> tuple[int, int]:
        """Of a batch that has so many rows here, the number of the first in the whole batch, and how many that has."""

    def sum(self, a: Any) -> Any:
        """The sum of the arrays that each of them gives, the same bits for all."""

    def add_up(self, a: Any) -> None:
        """Put the sum in the array's place."""

    def first_told(self, text: str) -> str:
        """The first text, in their order, that is not empty."""


class Alone:
    """The group of one process."""

    rank, size, takes_cupy = 0, 1, True

    def place(self, own: int) -> tuple[int, int]:
        return 0, own

    def sum(self, a: Any) -> Any:
        return a

    def add_up(self, a: Any) -> None: ...

    def first_told(self, text: str) -> str:
        return text


class Meeting:
    """Where the shards of a process, each in a thread, add up: a fixed tree, and then over the processes."""

    def __init__(self, group: Group, shards: int):
        self.group = group
        self.given: list[Any] = [None] * shards
        self.barrier = threading.Barrier(shards, self._add)  # by the last that comes, before any of them goes on

    def _add(self) -> None:
        self.total = self.group.sum(tree_sum(self.given))

    def sum(self, shard: int, a: Any) -> Any:
        """The sum of the arrays that all shards give."""
        self.given[shard] = a
        self.barrier.wait()
        return self.total


Add = Callable[[Any], Any]


class Rows:
    """The `Share` of some of a batch's rows, whose arrays `add` adds up with those of the others.

    `brought` gives an array as `add` takes it.
    """

    def __init__(self, backend: Backend, dtype: Any, brought: Add, add: Add, first: int, own: int, rows: int):
        self.backend, self.dtype, self.brought, self.add = backend, dtype, brought, add
        self.first, self.own, self.rows = first, own, rows

    def sum(self, *arrays: Any) -> list[Array]:
        xp, device = self.backend.xp, self.backend.device
        here = [xp.astype(xp.asarray(a, device=device), self.dtype, copy=False) for a in arrays]
        total = self.add(self.brought(ops.join(here)))
        return ops.split(self.backend.asarray(total), [tuple(a.shape) for a in here])


class Together(Step):
    """What the steps of one of several processes have in common."""

    group: Group

    def brought(self, a: Array) -> Any:
        """An array as the group takes it, the same or a copy."""
        return a if self.group.takes_cupy and self.backend.name == "cupy" else self.backend.to_numpy(a)

    def share(self, batch: Batch) -> Rows:
        """The share of a batch that its rows here are."""
        own = batch.x.shape[0]
        first, rows = self.group.place(own)
        return Rows(self.backend, self.start.weights.dtype, self.brought, self.group.sum, first, own, rows)

    def misfit(self, carry: Carry, x: Array) -> str:
        with sharing(self.share(Batch(x, None))):
            return self.group.first_told(super().misfit(carry, x))

    def fault(self, carry: Carry, batch: Batch) -> str:
        with sharing(self.share(batch)):
            return super().fault(carry, batch)


class SharedStep(Together):
    """`Step` for one of several processes, which are given the rows of one batch and end with the same parameters.

    Each calls its layers on its own rows. The sums of a layer over the batch are those of all processes, as are the
    loss and the gradient, which go in one message: see `common.share`. The rest of the step all of them do alike.

    With `shards` the rows are cut into so many blocks, however many processes there are: each has as many of them, in
    threads that go from sum to sum together. So what is added, and in which order, stays the same, and so do the bits.
    """

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer, group: Group, shards: int | None = None):
        super().__init__(net, loss, optimizer)
        self.group, self.shards = group, shards or group.size
        self.here = self.shards // group.size

    def passes(self, batch: Batch) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        here = self.share(batch)
        if self.here == 1:
            return self._passes_of(here, batch)
        from concurrent.futures import ThreadPoolExecutor

        meeting = Meeting(self.group, self.here)

        def part(shard: int) -> Any:
            number = self.group.rank * self.here + shard
            first, last = (here.rows * i // self.shards - here.first for i in (number, number + 1))
            share = Rows(here.backend, here.dtype, here.brought, lambda a: meeting.sum(shard, a),
                         here.first + first, last - first, here.rows)  # fmt: skip
            try:
                return self._passes_of(share, batch.rows(slice(first, last)))
            except BaseException:
                meeting.barrier.abort()
                raise

        with ThreadPoolExecutor(self.here) as threads:
            waiting = [threads.submit(part, shard) for shard in range(self.here)]
        errors = [error for each in waiting if (error := each.exception())]
        if errors:  # of one of them, for which the others waited
            raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
        result: tuple[Array, dict[str, Array], dict[str, Array]] = waiting[0].result()
        return result

    def _passes_of(self, share: Rows, batch: Batch) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """`passes` for a share of the batch, with what all shares come to."""
        with self.backend.scope(), sharing(share):
            value, gradients, state = self.data_passes(batch)
            value, *sums = share.sum(value, *gradients.values())
            return *self.penalized(value, dict(zip(gradients, sums, strict=True)), batch), state


class SharedBuffers(Together, BufferedStep):
    """`SharedStep` in stages. The gradient goes in the vector where it is made; the loss goes before it, for it says
    whether there is to be one. Layers that sum over the batch, and the loss, run their own code.
    """

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer, kernels: Any, shape: Shape, group: Group):
        kernels.stages = tuple(kind for kind in kernels.stages if kind.rowwise)
        super().__init__(net, loss, optimizer, kernels, shape)
        self.group, self.fused_loss = group, None

    def _advance(self, carry: Carry, batch: Batch, keep: tuple[Carry, ...]) -> tuple[Array, Carry]:
        with sharing(self.share(batch)):
            return super()._advance(carry, batch, keep)

    def _forward(self, *given: Any) -> Any:
        value, dy = super()._forward(*given)
        return whole(value), dy

    def _add_up(self, gradient: Array) -> None:
        here = self.brought(gradient)
        self.group.add_up(here)
        if here is not gradient:
            gradient[...] = self.backend.asarray(here)


def shared_step(
    net: Placed, loss: Loss, optimizer: Optimizer, shape: Shape, group: Group, shards: int | None = None
) -> Step:
    """The fastest step there is for one of several processes, or for shards."""
    module, compiled = step_for(net)
    if shards is None and module == "planner" and (kernels := kernels_of(net, optimizer, compiled)):
        return SharedBuffers(net, loss, optimizer, kernels, shape, group)
    return SharedStep(net, loss, optimizer, group, shards)
