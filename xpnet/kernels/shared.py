"""The step of processes that train together, each of which takes its share of a batch's rows; and of shards."""

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from .. import ops
from ..backends import Array
from ..common.share import sharing
from ..layers.placed import Placed
from ..losses.losses import Loss
from ..optimizers import Optimizer
from ..training.batches import Batch
from .reference import Step


class Group(Protocol):
    """The processes that train together, as one of them sees it."""

    rank: int  # its own number
    size: int  # how many there are

    def begin_step(self, rows: int) -> None:
        """See that all of them begin a step on a batch of so many rows."""

    def sum(self, a: np.ndarray) -> np.ndarray:
        """The sum of the arrays that each of them gives, the same bits for all."""


class Alone:
    """The group of one process."""

    rank, size = 0, 1

    def begin_step(self, rows: int) -> None: ...

    def sum(self, a: np.ndarray) -> np.ndarray:
        return a


class Meeting:
    """Where the shards of a process, each in a thread, add up: a fixed tree, and then over the processes."""

    def __init__(self, group: Group, shards: int):
        self.group = group
        self.given: list[Any] = [None] * shards
        self.barrier = threading.Barrier(shards, self._add)  # by the last that comes, before any of them goes on

    def _add(self) -> None:
        self.total = self.group.sum(tree_sum(self.given))

    def sum(self, shard: int, a: np.ndarray) -> np.ndarray:
        """The sum of the arrays that all shards give."""
        self.given[shard] = a
        self.barrier.wait()
        return self.total


def tree_sum(parts: Sequence[np.ndarray]) -> np.ndarray:
    """The sum of two halves, each made likewise; there are 1, 2, 4, 8, ... parts."""
    half = len(parts) // 2
    return tree_sum(parts[:half]) + tree_sum(parts[half:]) if half else parts[0]


class Part:
    """The `Share` of one of so many shards in a batch of so many rows: as many as others have, or one more."""

    def __init__(self, step: "SharedStep", meeting: Meeting, shard: int, rows: int):
        self.backend, self.dtype = step.backend, step.start.weights.dtype
        self.meeting, self.shard, self.rows = meeting, shard, rows
        number = step.group.rank * step.here + shard
        self.first = rows * number // step.shards
        self.own = rows * (number + 1) // step.shards - self.first

    def sum(self, *arrays: Any) -> list[Array]:
        xp, device = self.backend.xp, self.backend.device
        here = [xp.astype(xp.asarray(a, device=device), self.dtype, copy=False) for a in arrays]
        total = self.meeting.sum(self.shard, self.backend.to_numpy(ops.join(here)))
        return ops.split(self.backend.asarray(total), [tuple(a.shape) for a in here])


class SharedStep(Step):
    """`Step` for one of several processes, which are given the same batches and end with the same parameters.

    Each calls its layers on its own rows. The sums of a layer over the batch are those of all processes, as are the
    loss and the gradient, which go in one message: see `common.share`. The rest of the step all of them do alike.

    With `shards` the rows are cut into so many blocks, however many processes there are: each has as many of them, in
    threads that go from sum to sum together. So what is added, and in which order, stays the same, and so do the bits.
    """

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer, group: Group, shards: int | None = None):
        super().__init__(net, loss, optimizer)
        self.group, self.shards = group, shards or group.size
        self.here = self.shards // group.size

    def data_passes(self, batch: Batch) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        rows = batch.x.shape[0]
        self.group.begin_step(rows)
        meeting = Meeting(self.group, self.here)
        parts = [Part(self, meeting, shard, rows) for shard in range(self.here)]
        if self.here == 1:
            return self._passes_of(parts[0], batch)
        from concurrent.futures import ThreadPoolExecutor

        with ThreadPoolExecutor(self.here) as threads:
            waiting = [threads.submit(self._passes_of, part, batch) for part in parts]
        errors = [error for each in waiting if (error := each.exception())]
        if errors:  # of one of them, for which the others waited
            raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
        return waiting[0].result()

    def _passes_of(self, part: Part, batch: Batch) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """`data_passes` for a part of the batch, and what all parts come to."""
        try:
            with self.backend.scope(), sharing(part):
                value, gradients, state = super().data_passes(batch.rows(slice(part.first, part.first + part.own)))
                value, *sums = part.sum(value, *gradients.values())
            return value, dict(zip(gradients, sums, strict=True)), state
        except BaseException:
            part.meeting.barrier.abort()
            raise
