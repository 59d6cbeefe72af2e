"""The batches of a data set, in the order of an epoch."""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..backends import Array, Backend
from ..data import minibatches

GATHER = 2**17  # entries of x: so many are put into an epoch's order at once, and at least a batch
LARGE = 2**20  # entries of x from which on it is not copied as a whole

Gather = Callable[[Array, slice, int], Array]  # as `Backend.gatherer` gives it


class Uncast:
    """A large x where it was given, in memory or in a file: the rows taken from it are moved and cast.

    `x[rows, ...]` is an array of the network's backend and of the dtype that its first layer takes.
    """

    def __init__(self, backend: Backend, array: Array, dtype: Any):
        self.backend, self.array, self.dtype = backend, array, dtype
        self.shape, self.ndim = tuple(array.shape), array.ndim

    def __getitem__(self, rows: Any) -> Array:
        return self._cast(self.array[rows])

    def gathered(self, gather: Gather, order: np.ndarray, rows: slice) -> Array:
        """Those rows of an order."""
        if isinstance(self.array, np.ndarray):
            return self._cast(np.take(self.array, order[rows], axis=0))
        return self._cast(gather(self.array, rows, 0))

    def _cast(self, a: Array) -> Array:
        return self.backend.xp.astype(self.backend.brought(a), self.dtype, copy=False)


def blocks(shape: tuple[int, ...]) -> list[slice]:
    """The rows of an array in slices that are not large."""
    return minibatches(shape[0], max(1, LARGE // max(1, math.prod(shape[1:]))))


class Batch(NamedTuple):
    """Rows of a data set: x, their targets as the loss encodes them, and the weights as it takes them, if any."""

    x: Array  # that of all rows may be an `Uncast`
    y: Array
    weight: Array | None = None

    def rows(self, rows: slice) -> "Batch":
        """Those rows."""
        x, y, weight = self
        rest = rows, ...
        return Batch(x[rest], y[rest], None if weight is None else weight[rest])

    def gathered(self, gather: Gather, order: np.ndarray, rows: slice) -> "Batch":
        """Those rows of an order and its `gatherer`; y's with the batch contiguous, as the losses have it."""
        x, y, weight = self
        return Batch(
            x.gathered(gather, order, rows) if isinstance(x, Uncast) else gather(x, rows, 0),
            gather(y.T, rows, 1).T if y.ndim == 2 else gather(y, rows, 0),
            None if weight is None else gather(weight, rows, 0),
        )


def batches_of(
    backend: Backend, data: Batch, slices: Sequence[slice], order: np.ndarray | None
) -> Iterator[tuple[Batch, slice]]:
    """The batches of the data, slice by slice, in this order of the rows (None: as they lie): each as one batch of
    several and the rows of it.
    """
    if order is None and not isinstance(data.x, Uncast):
        for rows in slices:
            yield data, rows
        return
    gather = None if order is None else backend.gatherer(order)
    for first, last in chunks(slices, GATHER // max(1, math.prod(data.x.shape[1:]))):
        start = slices[first].start
        span = slice(start, slices[last - 1].stop)
        chunk = data.rows(span) if order is None or gather is None else data.gathered(gather, order, span)
        for rows in slices[first:last]:
            yield chunk, slice(rows.start - start, rows.stop - start) if start else rows
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
