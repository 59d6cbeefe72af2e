"""The batches of a data set, in the order of an epoch."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..backends import Array, Backend
from ..kernels.reference import Step

Batch = tuple[Array, Array, Any]  # x, y, and which rows of them: a slice, or their numbers for a step that gathers
GATHER = 2**17  # entries of x: an epoch of up to so many is put into its order at once, a longer one batch by batch


def batches_of(step: Step, x: Array, y: Array, slices: Sequence[slice], order: np.ndarray | None) -> Iterator[Batch]:
    """The batches of x and y, slice by slice, in this order of the rows; None: as they lie."""
    backend = step.backend
    if order is None:
        yield from ((x, y, rows) for rows in slices)
        return
    if step.gathers:
        yield from ((x, y, order[rows]) for rows in slices)
        return
    index = backend.asarray(order)  # to the device in one piece: the host may have to wait for it
    if math.prod(x.shape) <= GATHER:
        x, y = take_rows(backend, index, x, y)
        yield from ((x, y, rows) for rows in slices)
    else:
        for rows in slices:
            yield *take_rows(backend, index[rows], x, y), slice(0, rows.stop - rows.start)


def take_rows(backend: Backend, index: Array, x: Array, y: Array) -> tuple[Array, Array]:
    """The rows of x and y in this order, y's with the batch contiguous as the losses have it."""
    xp = backend.xp
    return xp.take(x, index, axis=0), xp.take(y.T, index, axis=1).T if y.ndim == 2 else xp.take(y, index, axis=0)
