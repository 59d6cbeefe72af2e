"""Batches of a data set, in the order of an epoch."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from ..backends import Array, Backend
from ..data import minibatches

GATHER = 2**17  # entries of x that are shuffled at a time, but at least one batch
ENDED = -1  # stands for the end of an epoch, in place of a batch's number of rows
LARGE = 2**20  # entries: an x of this size or more may stay where it is, and is then cast batch by batch

Gather = Callable[[Array, slice, int], Array]  # as `Backend.gatherer` gives it


class Uncast:
    """A large x, left in the memory or file where the user has it; only the rows taken from it are moved and cast.

    `x[rows, ...]` is an array on the network's backend, in the dtype that its first layer takes.
    """

    def __init__(self, backend: Backend, array: Array, dtype: Any):
        self.backend, self.array, self.dtype = backend, array, dtype
        self.shape, self.ndim = tuple(array.shape), array.ndim

    def __getitem__(self, rows: Any) -> Array:
        return self._cast(self.array[rows])

    def gathered(self, gather: Gather, order: np.ndarray, rows: slice) -> Array:
        """Return `x[order[rows]]`; `gather` is the backend's gatherer for `order`."""
        if isinstance(self.array, np.ndarray):
            return self._cast(np.take(self.array, order[rows], axis=0))
        return self._cast(gather(self.array, rows, 0))

    def _cast(self, a: Array) -> Array:
        return self.backend.xp.astype(self.backend.brought(a), self.dtype, copy=False)


def blocks(shape: tuple[int, ...]) -> list[slice]:
    """Return slices of the rows of an array of this shape, each of about `LARGE` entries at most."""
    return minibatches(shape[0], max(1, LARGE // max(1, math.prod(shape[1:]))))


class Batch(NamedTuple):
    """Rows of a data set: x, the targets y as the loss encodes them, and the rows' weights, if any."""

    x: Array  # of a whole data set, it may be an `Uncast`
    y: Array
    weight: Array | None = None

    def rows(self, rows: slice) -> "Batch":
        """Return these rows of the batch."""
        x, y, weight = self
        rest = rows, ...
        return Batch(x[rest], y[rest], None if weight is None else weight[rest])

    def gathered(self, gather: Gather, order: np.ndarray, rows: slice) -> "Batch":
        """Return the rows `order[rows]`; `gather` is the backend's gatherer for `order`.

        A matrix y is laid out with the batch axis contiguous, as the losses prefer.
        """
        x = self.x.gathered(gather, order, rows) if isinstance(self.x, Uncast) else gather(self.x, rows, 0)
        return self.with_targets(x, gather, rows)

    def with_targets(self, x: Array, gather: Gather, rows: slice) -> "Batch":
        """Return `x` with y and weights gathered in the order of `gather`."""
        y, weight = self.y, self.weight
        y = gather(y.T, rows, 1).T if y.ndim == 2 else gather(y, rows, 0)
        return Batch(x, y, None if weight is None else gather(weight, rows, 0))


class Group(Protocol):
    """The group of processes that divide each batch among them, as one of them sees it."""

    rank: int  # the number of this process
    size: int  # the number of processes
    first: bool  # whether this process has rank 0
    rows: int  # the number of rows of the current batch, over all processes

    def share(self, rows: slice) -> slice:
        """Return the part of a batch's rows that this process works on."""

    def meet(self, local: int, value: int) -> list[int]:
        """Begin a step on `local` rows of a batch; return the values of all processes."""

    def begin_step(self, local: int, rows: int) -> None:
        """Begin a step on `local` of a batch's `rows`, or end an epoch (0 of `ENDED`). Raises RuntimeError if `rows`
        differs between processes.
        """

    def allgather(self, what: str, value: Any) -> list[Any]:
        """Return the values of all processes; raise ValueError unless all of them name the same `what`."""

    def gather(self, value: Any) -> list[Any] | None:
        """Return the values of all processes in the first process, None in the others."""


class Feed(ABC):
    """The data of a training run as the batches of its epochs.

    `sample` is what callbacks see: all of the data, or the first batch of data that is read as needed. `steps` is the
    number of batches and `rows` the number of rows of an epoch, None if unknown. With a `group` of processes, each
    process gets its own rows of every batch.
    """

    group: Group | None = None
    sample: Batch
    steps: int | None
    rows: int | None = None
    epoch = 0  # the run's epoch that the next call of `batches` begins with
    first_digest = ""  # of a stream: a digest of the first batch of the epoch
    expected_digest = ""  # the same digest, from the checkpoint of a run resumed within an epoch
    wait_after = 0  # the number of the batch after which the host next waits for the device

    def batches(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[Batch, slice]]:
        """Iterate over the batches of so many epochs after the first `done`, in this order of rows (None: unshuffled).

        Each is a `Batch`, which may hold several batches, and the slice of rows in it that is this one.
        `wait_after` is set before each.
        """
        read = self.read(order, done, epochs)
        return read if self.group is None else self._in_step(self.group, read, done)

    def _in_step(
        self, group: Group, batches: Iterator[tuple[Batch, slice]], done: int
    ) -> Iterator[tuple[Batch, slice]]:
        for number, (batch, rows) in enumerate(batches, done + 1):
            group.begin_step(rows.stop - rows.start, self.size(number))
            yield batch, rows
        group.begin_step(0, ENDED)

    @abstractmethod
    def read(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[Batch, slice]]:
        """As `batches`, without synchronizing with other processes."""

    @abstractmethod
    def size(self, number: int) -> int:
        """Return the number of rows of batch `number`, the latest one, over all processes."""

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return the row numbers in random order."""
        return rng.permutation(self.rows or 0)

    @abstractmethod
    def replay(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[int, Batch, slice]]:
        """Repeat the batches since the host last waited for the device, each with its number."""

    @abstractmethod
    def ends_epoch(self, number: int) -> bool:
        """Whether batch `number`, the latest one, is the last of an epoch."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """Return the arrays that identify the data, by name, and further descriptions of it as strings."""


class Arrays(Feed):
    """Batches of arrays, in memory or memory-mapped."""

    def __init__(self, backend: Backend, data: Batch, slices: list[slice]):
        self.backend, self.sample, self.slices = backend, data, slices
        self.steps: int = len(slices)
        self.rows: int = slices[-1].stop

    def read(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[Batch, slice]]:
        self.wait_after = epochs * self.steps
        slices = (self.slices * epochs)[done:]
        if self.group is not None:
            slices = [self.group.share(rows) for rows in slices]
            if order is not None and slices:  # concatenate these parts of the order
                order = np.concatenate([order[rows] for rows in slices])
                ends = [0, *itertools.accumulate(rows.stop - rows.start for rows in slices)]
                slices = list(map(slice, ends, ends[1:]))
        return self._read(slices, order)

    def size(self, number: int) -> int:
        rows = self.slices[(number - 1) % self.steps]
        return int(rows.stop - rows.start)

    def replay(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[int, Batch, slice]]:
        for number, (batch, rows) in enumerate(self.batches(order, done, epochs), done + 1):
            yield number, batch, rows

    def ends_epoch(self, number: int) -> bool:
        return number % self.steps == 0

    def facts(self) -> dict[str, Any]:
        return {name: a for name, a in self.sample._asdict().items() if a is not None}

    def _read(self, slices: Sequence[slice], order: np.ndarray | None) -> Iterator[tuple[Batch, slice]]:
        data = self.sample
        if order is None and not isinstance(data.x, Uncast):
            for rows in slices:
                yield data, rows
            return
        gather = None if order is None else self.backend.gatherer(order)

        def take(rows: slice) -> Batch:
            return data.rows(rows) if order is None or gather is None else data.gathered(gather, order, rows)

        apart = order is None and self.group is not None  # the rows of other processes lie between the slices
        for group in chunks(slices, 0 if apart else GATHER // max(1, math.prod(data.x.shape[1:]))):
            batch, parts = parts_of(take, group)
            for rows in parts:
                yield batch, rows
            del batch  # before the next one comes


def parts_of(take: Callable[[slice], Batch], slices: Sequence[slice]) -> tuple[Batch, list[slice]]:
    """Take consecutive slices as one batch; return it, and the rows of each slice in it."""
    start = slices[0].start
    batch = take(slice(start, slices[-1].stop))
    return batch, [slice(rows.start - start, rows.stop - start) for rows in slices]


def chunks(slices: Sequence[slice], rows: int) -> Iterator[Sequence[slice]]:
    """Yield consecutive slices in groups of up to so many rows, at least one slice in each."""
    first = 0
    for i, each in enumerate(slices):
        if each.stop - slices[first].start > rows and i > first:
            yield slices[first:i]
            first = i
    if slices:
        yield slices[first:]
