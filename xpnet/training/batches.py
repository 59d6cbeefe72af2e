"""The batches of a data set, in the order of an epoch."""

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

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
        x = self.x.gathered(gather, order, rows) if isinstance(self.x, Uncast) else gather(self.x, rows, 0)
        return self.with_targets(x, gather, rows)

    def with_targets(self, x: Array, gather: Gather, rows: slice) -> "Batch":
        """Those rows of y and of the weights in an order, with this x."""
        y, weight = self.y, self.weight
        y = gather(y.T, rows, 1).T if y.ndim == 2 else gather(y, rows, 0)
        return Batch(x, y, None if weight is None else gather(weight, rows, 0))


class Group(Protocol):
    """The processes that divide each batch among them, as one of them sees it."""

    rank: int  # its own number
    size: int  # how many there are
    first: bool  # whether it is the first
    rows: int  # how many rows the batch of this step has, of all of them

    def own(self, rows: slice) -> slice:
        """Those of a batch's rows that are this process's."""

    def begin_step(self, own: int, rows: int) -> None:
        """See that all of them begin a step on a batch of so many rows, of which so many are this process's."""

    def begin_shards_step(self, own: int, over: bool) -> bool:
        """Begin a step on a batch of which so many rows are here; whether it is the last for all that they are told."""

    def end_epoch(self) -> None:
        """See that all of them have come to an epoch's end."""

    def tell(self, what: str, value: Any) -> list[Any]:
        """What each of them tells of the same matter."""

    def gathered(self, value: Any) -> list[Any] | None:
        """What each of them gives, for the first; None for the others."""


class Feed(ABC):
    """The data of a training run as the batches of its epochs.

    `sample` is the data itself, or of data that is read as it is needed its first batch: what callbacks look at.
    `steps` is how many batches an epoch has and `rows` how many rows, None where that is not known. With a `group` of
    processes each has its rows of every batch.
    """

    group: Group | None = None
    sample: Batch
    steps: int | None
    rows: int | None = None
    epoch = 0  # that of the run which `batches` begins with
    begins = ""  # a digest of the epoch's first batch, of a stream
    begun = ""  # that of an epoch which was begun before the run was resumed
    last = 0  # the number, of the batches in the epochs under way, of the next after which the host waits for a device

    def batches(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[Batch, slice]]:
        """The batches of so many epochs from number `done` on, in this order of the rows (None: as they lie).

        Each comes as one batch of several, and the rows of it. `last` is set before.
        """
        read = self.read(order, done, epochs)
        return read if self.group is None else self._in_step(self.group, read, done)

    def _in_step(
        self, group: Group, batches: Iterator[tuple[Batch, slice]], done: int
    ) -> Iterator[tuple[Batch, slice]]:
        for number, (batch, rows) in enumerate(batches, done + 1):
            group.begin_step(rows.stop - rows.start, self.size(number))
            yield batch, rows
        group.end_epoch()

    @abstractmethod
    def read(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[Batch, slice]]:
        """`batches`, whatever the other processes do."""

    @abstractmethod
    def size(self, number: int) -> int:
        """How many rows batch `number` of an epoch has, the one given last, those of all processes."""

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """The rows in random order."""
        return rng.permutation(self.rows or 0)

    @abstractmethod
    def again(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[int, Batch, slice]]:
        """The batches since the host has last waited for a device once more, each with its number."""

    @abstractmethod
    def ends_epoch(self, number: int) -> bool:
        """Whether batch `number`, the one given last, is the last of an epoch."""

    @abstractmethod
    def facts(self) -> dict[str, Any]:
        """The arrays on which a run depends, by name, and whatever else identifies the data, in words."""


class Arrays(Feed):
    """Batches of arrays, in memory or memory-mapped."""

    def __init__(self, backend: Backend, data: Batch, slices: list[slice]):
        self.backend, self.sample, self.slices = backend, data, slices
        self.steps: int = len(slices)
        self.rows: int = slices[-1].stop

    def read(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[Batch, slice]]:
        self.last = epochs * self.steps
        slices = (self.slices * epochs)[done:]
        if self.group is not None:
            slices = [self.group.own(rows) for rows in slices]
            if order is not None and slices:
                order, slices = order_of(slices, order)
        return self._read(slices, order)

    def size(self, number: int) -> int:
        rows = self.slices[(number - 1) % self.steps]
        return int(rows.stop - rows.start)

    def again(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[int, Batch, slice]]:
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

        def taken(rows: slice) -> Batch:
            return data.rows(rows) if order is None or gather is None else data.gathered(gather, order, rows)

        apart = order is None and self.group is not None  # with the other processes' rows between them
        for group in chunks(slices, 0 if apart else GATHER // max(1, math.prod(data.x.shape[1:]))):
            batch, parts = parts_of(taken, group)
            for rows in parts:
                yield batch, rows
            del batch  # before the next one comes


def order_of(slices: Sequence[slice], order: np.ndarray) -> tuple[np.ndarray, list[slice]]:
    """These parts of an order one after another, and where each of them stands then."""
    ends = [0, *itertools.accumulate(rows.stop - rows.start for rows in slices)]
    return np.concatenate([order[rows] for rows in slices]), list(map(slice, ends, ends[1:]))


def parts_of(take: Callable[[slice], Batch], slices: Sequence[slice]) -> tuple[Batch, list[slice]]:
    """Slices that follow one another, taken as one batch: it, and the rows of each in it."""
    start = slices[0].start
    batch = take(slice(start, slices[-1].stop))
    return batch, [slice(rows.start - start, rows.stop - start) for rows in slices]


def chunks(slices: Sequence[slice], rows: int) -> Iterator[Sequence[slice]]:
    """The slices in groups of up to so many rows, each of them at least one slice."""
    first = 0
    for i, each in enumerate(slices):
        if each.stop - slices[first].start > rows and i > first:
            yield slices[first:i]
            first = i
    if slices:
        yield slices[first:]
