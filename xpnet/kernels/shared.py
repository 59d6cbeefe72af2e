"""Training steps of processes, or of shards within them, each of which has some of a batch's rows."""

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
from .families import kernels_of
from .planner import BufferedStep
from .reference import Carry, Step


class Group(Protocol):
    """The group of processes that train together, as one of them sees it."""

    rank: int  # the number of this process
    size: int  # the number of processes
    takes_cupy: bool  # whether it takes arrays of CuPy; else only those of NumPy

    def place(self, local: int) -> tuple[int, int]:
        """Return where the `local` rows of this process begin in the whole batch, and the number of rows of that."""

    def sum(self, a: Any) -> Any:
        """Return the sum of the arrays of all processes, with the same bits in each of them."""

    def add_up(self, a: Any) -> None:
        """Overwrite the array with the sum over all processes."""

    def first_text(self, text: str) -> str:
        """Return the text of the first process whose text is not empty, or ""."""


class Alone:
    """The group of a single process."""

    rank, size, takes_cupy = 0, 1, True

    def place(self, local: int) -> tuple[int, int]:
        return 0, local

    def sum(self, a: Any) -> Any:
        return a

    def add_up(self, a: Any) -> None: ...

    def first_text(self, text: str) -> str:
        return text


class Meeting:
    """Adds up arrays of a process's shards, each in a thread of its own, in a fixed tree, then over the processes."""

    def __init__(self, group: Group, shards: int):
        self.group = group
        self.arrays: list[Any] = [None] * shards
        self.barrier = threading.Barrier(shards, self._add)  # the last thread calls `_add` before any is released

    def _add(self) -> None:
        self.total = self.group.sum(tree_sum(self.arrays))

    def sum(self, shard: int, a: Any) -> Any:
        """Return the sum of the arrays of all shards; `a` is that of this shard."""
        self.arrays[shard] = a
        self.barrier.wait()
        return self.total


Add = Callable[[Any], Any]


class Rows:
    """A `Share` of a batch: `own` of its `rows`, from row `first` on.

    `add` returns the sum of an array over all shares; `brought` converts an array to what `add` takes.
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
    """The base class of training steps of one of several processes."""

    group: Group

    def brought(self, a: Array) -> Any:
        """Return an array as the group takes it, which may be a copy."""
        return a if self.group.takes_cupy and self.backend.name == "cupy" else self.backend.to_numpy(a)

    def share(self, batch: Batch) -> Rows:
        """Return the share of the whole batch that the rows of this process are."""
        local = batch.x.shape[0]
        first, rows = self.group.place(local)
        return Rows(self.backend, self.start.weights.dtype, self.brought, self.group.sum, first, local, rows)

    def misfit(self, carry: Carry, x: Array) -> str:
        with sharing(self.share(Batch(x, None))):
            return self.group.first_text(super().misfit(carry, x))

    def fault(self, carry: Carry, batch: Batch) -> str:
        with sharing(self.share(batch)):
            return super().fault(carry, batch)


class SharedStep(Together):
    """A `Step` of one of several processes, which divide the rows of a batch and end with the same parameters.

    Each process calls the layers on its own rows. Sums of a layer over the batch are taken over all processes, as are
    those of the loss and the gradient, which are sent in one message: see `common.share`. The rest of the step is the
    same in all of them.

    With `shards`, the rows are cut into that many blocks for any number of processes. Each process has the same number
    of blocks, in threads that meet at each sum. Since the order of additions is always the same, so are the bits.
    """

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer, group: Group, shards: int | None = None):
        super().__init__(net, loss, optimizer)
        self.group, self.shards = group, shards or group.size
        self.local_shards = self.shards // group.size

    def passes(self, batch: Batch) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        local = self.share(batch)
        if self.local_shards == 1:
            return self._passes_of(local, batch)
        from concurrent.futures import ThreadPoolExecutor

        meeting = Meeting(self.group, self.local_shards)

        def part(shard: int) -> Any:
            number = self.group.rank * self.local_shards + shard
            first, last = (local.rows * i // self.shards - local.first for i in (number, number + 1))
            share = Rows(local.backend, local.dtype, local.brought, lambda a: meeting.sum(shard, a),
                         local.first + first, last - first, local.rows)  # fmt: skip
            try:
                return self._passes_of(share, batch.rows(slice(first, last)))
            except BaseException:
                meeting.barrier.abort()
                raise

        with ThreadPoolExecutor(self.local_shards) as threads:
            futures = [threads.submit(part, shard) for shard in range(self.local_shards)]
        errors = [error for future in futures if (error := future.exception())]
        if errors:  # that of the shard that failed; the others have a BrokenBarrierError
            raise min(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))
        result: tuple[Array, dict[str, Array], dict[str, Array]] = futures[0].result()
        return result

    def _passes_of(self, share: Rows, batch: Batch) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        """Run the passes on a share of the batch; return the value and gradients summed over all shares."""
        with self.backend.scope(), sharing(share):
            value, gradients, state = self.data_passes(batch)
            value, *sums = share.sum(value, *gradients.values())
            return *self.penalized(value, dict(zip(gradients, sums, strict=True)), batch), state


class SharedBuffers(Together, BufferedStep):
    """A `SharedStep` in stages with kernels. The gradient is sent in the flat vector in which it is computed; the loss
    is sent before, since there is no backward pass if it is not finite. The loss, and layers that sum over the batch,
    run their own code.
    """

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer, kernels: Any, shape: Shape, group: Group):
        kernels.stages = tuple(kind for kind in kernels.stages if kind.rowwise)
        super().__init__(net, loss, optimizer, kernels, shape)
        self.group, self.fused_loss = group, None

    def _advance(self, carry: Carry, batch: Batch, keep: tuple[Carry, ...]) -> tuple[Array, Carry]:
        with sharing(self.share(batch)):
            return super()._advance(carry, batch, keep)

    def _forward(self, *args: Any) -> Any:
        value, dy = super()._forward(*args)
        return whole(value), dy

    def _add_up(self, gradient: Array) -> None:
        array = self.brought(gradient)
        self.group.add_up(array)
        if array is not gradient:
            gradient[...] = self.backend.asarray(array)


def shared_step(
    net: Placed, loss: Loss, optimizer: Optimizer, shape: Shape, group: Group, shards: int | None = None
) -> Step:
    """Return the fastest step for one of several processes, or for shards."""
    module, compiled = step_for(net)
    if shards is None and module == "planner" and (kernels := kernels_of(net, compiled)):
        return SharedBuffers(net, loss, optimizer, kernels, shape, group)
    return SharedStep(net, loss, optimizer, group, shards)
