"""The batches of a data set, in the order of an epoch."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ..backends import Array, Backend

GATHER = 2**17  # entries of x: so many are put into an epoch's order at once, and at least a batch


class Batch(NamedTuple):
    """Rows of a data set: x, their targets as the loss encodes them, and the weights as it takes them, if any."""

    x: Array
    y: Array
    weight: Array | None = None

    def rows(self, rows: slice) -> "Batch":
        """Those rows."""
        x, y, weight = self
        return Batch(x[rows, ...], y[rows, ...], None if weight is None else weight[rows, ...])

    def gathered(self, gather: Callable[[Array, slice, int], Array], rows: slice) -> "Batch":
        """Those rows of an order that a backend's `gatherer` gathers; y's with the batch contiguous, as the losses have
        it.
        """
        x, y, weight = self
        return Batch(
            gather(x, rows, 0),
            gather(y.T, rows, 1).T if y.ndim == 2 else gather(y, rows, 0),
            None if weight is None else gather(weight, rows, 0),
        )


def batches_of(
    backend: Backend, data: Batch, slices: Sequence[slice], order: np.ndarray | None
) -> Iterator[tuple[Batch, slice]]:
    """The batches of the data, slice by slice, in this order of the rows (None: as they lie): each as one batch of
    several and the rows of it.
    """
    if order is None:
        yield from ((data, rows) for rows in slices)
        return
    gather = backend.gatherer(order)
    for first, last in chunks(slices, GATHER // max(1, math.prod(data.x.shape[1:]))):
        start = slices[first].start
        chunk = data.gathered(gather, slice(start, slices[last - 1].stop))
        yield from ((chunk, slice(rows.start - start, rows.stop - start)) for rows in slices[first:last])
        del chunk  # before the next one comes


def chunks(slices: Sequence[slice], rows: int) -> Iterator[tuple[int, int]]:
    """The slices in groups of up to so many rows, each of them at least one slice: the first's number and the end's."""
    first = 0
    for i, each in enumerate(slices):
        if each.stop - slices[first].start > rows and i > first:
            yield first, i
            first = i
    if slices:
        yield first, len(slices)
