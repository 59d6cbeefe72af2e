"""The step of processes that train together, each of which takes its share of a batch's rows."""

from typing import Any, Protocol

import numpy as np

from .. import ops
from ..backends import Array, Backend
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


class Part:
    """The `Share` of one of a group's processes in a batch of so many rows: as many as others have, or one more."""

    def __init__(self, group: Group, backend: Backend, dtype: Any, rows: int):
        self.group, self.backend, self.dtype, self.rows = group, backend, dtype, rows
        self.first = rows * group.rank // group.size
        self.own = rows * (group.rank + 1) // group.size - self.first

    def sum(self, *arrays: Any) -> list[Array]:
        xp, device = self.backend.xp, self.backend.device
        here = [xp.astype(xp.asarray(a, device=device), self.dtype, copy=False) for a in arrays]
        total = self.group.sum(self.backend.to_numpy(ops.join(here)))
        return ops.split(self.backend.asarray(total), [tuple(a.shape) for a in here])


class SharedStep(Step):
    """`Step` for one of several processes, which are given the same batches and end with the same parameters.

    Each calls its layers on its own rows. The sums of a layer over the batch are those of all processes, as are the
    loss and the gradient, which go in one message: see `common.share`. The rest of the step all of them do alike.
    """

    def __init__(self, net: Placed, loss: Loss, optimizer: Optimizer, group: Group):
        super().__init__(net, loss, optimizer)
        self.group = group

    def data_passes(self, batch: Batch) -> tuple[Array, dict[str, Array], dict[str, Array]]:
        rows = batch.x.shape[0]
        self.group.begin_step(rows)
        part = Part(self.group, self.backend, self.start.weights.dtype, rows)
        with sharing(part):
            value, gradients, state = super().data_passes(batch.rows(slice(part.first, part.first + part.own)))
        value, *sums = part.sum(value, *gradients.values())
        return value, dict(zip(gradients, sums, strict=True)), state
