"""Data that is read as it is needed: sources of rows, and streams of batches.

A source of rows has a length, and `source[rows]` gives (x, y) or (x, y, weight) for a slice or for increasing row
numbers. A stream is an iterable of such batches; one that is no iterator begins anew in each epoch.
"""

import bisect
import contextlib
import itertools
import math
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np

from ..backends import Array, dtype_name, namespace, on_host
from ..common.checks import brief, kind_of, positive
from ..common.publication import published
from ..common.warn import warn
from ..data import NpzFiles, Shard, minibatches, shuffled
from ..layers.placed import Placed
from ..losses.losses import Loss
from . import inputs
from .arguments import check_smallest_batch
from .batches import GATHER, LARGE, Arrays, Batch, Feed, Group, chunks, parts_of
from .identity import fingerprint

SEEN = 64  # rows by which a batch is known
KEPT = 32  # batches of a stream that are kept until the host has looked at what a device made of them

PARTS = "x", "y", "weight"
AT_ONCE = 8  # batches that are read at a time, where they are not large: checks and copies then cost less


def is_source(x: object) -> bool:
    """Whether x is something other than an array, frame or list of numbers, from which batches can be read."""
    if isinstance(x, Shard):
        return True
    if any(hasattr(x, name) for name in ("dtype", "__array__", "__dlpack__")) or isinstance(
        x, (str, bytes, Mapping, Set, type)
    ):
        return False
    if isinstance(x, (list, tuple)):
        pairs = bool(x) and isinstance(x[0], (list, tuple)) and any(hasattr(part, "shape") for part in x[0])
        return pairs or are_paths(x)
    return hasattr(x, "__iter__") or has_rows(x)


def are_paths(x: object) -> bool:
    """Whether it is a list of files."""
    return isinstance(x, (list, tuple)) and bool(x) and all(isinstance(path, (str, os.PathLike)) for path in x)


def has_rows(source: object) -> bool:
    """Whether it is a source of rows."""
    return not isinstance(source, (list, tuple)) and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def shard_of(source: Any) -> tuple[Any, bool]:
    """A source, and whether it is a process's own part of the data."""
    if isinstance(source, Shard):
        if isinstance(source.source, Shard) or not is_source(source.source):
            raise TypeError(
                f"Shard: source is {kind_of(source.source)}, expected a source, such as xn.data.ArraySource(x, y)"
            )
        return source.source, True
    return source, getattr(getattr(source, "sampler", None), "num_replicas", 1) > 1  # PyTorch's DistributedSampler


def check_alone(who: str, source: object, **beside: object) -> None:
    """Refuse what a source has itself, given beside it."""
    if given := [name for name, value in beside.items() if value is not None]:
        raise ValueError(
            f"{who}: x is {kind_of(source)}, a source whose batches are (x, y) or (x, y, weight), and "
            f"{' and '.join(given)} is given too: leave it out, or give arrays"
        )


def check_target(who: str, x: object, y: object) -> None:
    """Refuse an x that is no source without its y."""
    if y is None:
        raise TypeError(
            f"{who}: y is None, expected an array, a list of rows or a pandas frame; x is {kind_of(x)}, and only a "
            "source of batches (x, y) goes without: a DataLoader, a list [(x, y), ...], xn.data.ArraySource(x, y)"
        )


def gives_once(source: Any) -> bool:
    """Whether it is a generator or another iterator, or draws from one."""
    while isinstance(source, shuffled):
        source = source.source
    return iter(source) is source


def rows_from(who: str, source: Any, rows: Any, name: str) -> Any:
    """Rows of a source; an exception of its own is told what was asked for."""
    try:
        return source[rows]
    except Exception as error:
        asked = "a slice" if isinstance(rows, slice) else "an array of row numbers"
        error.add_note(
            f"{who} asked {kind_of(source)}, whose len is {len(source)}, for {name}, by {asked}. A source that takes "
            "one row number alone goes into a PyTorch DataLoader, and that into fit"
        )
        raise


def numbered(who: str, source: object, batches: Iterator[Any]) -> Iterator[tuple[int, Any]]:
    """The batches of an iterable and their numbers; an exception of its own is told in place of which it came."""
    number = 0
    try:
        for number, given in enumerate(batches, 1):
            yield number, given
    except Exception as error:
        error.add_note(f"{who}: raised by {kind_of(source)}, in place of batch {number + 1}")
        raise


# --- batches as they come ---------------------------------------------------------------------------------------------


class Reader:
    """Checks what a source gives against its first batch, moves it to the network's backend, and encodes the targets.

    Without a `loss`, x alone is read. `mean` is that of all weights, by which they are divided.
    """

    def __init__(self, net: Placed, who: str, loss: Loss | None, source: object):
        self.net, self.who, self.loss, self.source = net, who, loss, kind_of(source)
        self.kinds: list[tuple[Any, ...]] = []  # of the first batch's parts: dtype and shape of a row
        self.mean: float | None = None if who == "fit" else 1.0  # elsewhere weights are not used
        self.known = False  # whether all rows have been found finite
        self.outputs: tuple[int, ...] | None = None  # of a row
        self.smallest = max(layer.smallest_batch for _, layer in net.leaves())
        self.group: Group | None = None  # of processes that have other parts of the data, with weights of their own

    def parts(self, given: Any, name: str) -> list[Array]:
        """The arrays of a batch, in whatever libraries they are; `name` says in errors which it is."""
        if self.loss is None and hasattr(given, "shape"):
            given = (given,)
        if not isinstance(given, (tuple, list)) or not (1 if self.loss is None else 2) <= len(given) <= 3:
            of = hint = ""
            if isinstance(given, (tuple, list)):
                of = f" of {len(given)}"
            elif isinstance(given, Mapping):
                of = f" of {', '.join(map(brief, list(given)[:6]))}"
                hint = (
                    "; say which are x and y in a class whose __getitem__ returns b['x'], b['y'] of such a batch b, or "
                    "whose __iter__ yields them"
                )
            raise TypeError(
                f"{self.who}: {name} of {self.source} is {kind_of(given)}{of}, expected (x, y) or (x, y, weight){hint}"
            )
        owns = self.net.backend.owns
        arrays = [
            a if owns(a) else on_host(a, f"{self.who}: {part} of {name}") for a, part in zip(given, PARTS, strict=False)
        ]
        return arrays[:1] if self.loss is None else arrays

    def __call__(self, given: Any, name: str) -> Batch:
        """The batch. ValueError or TypeError for one that differs in kind from the first, or that cannot be used."""
        arrays, net, who = self.parts(given, name), self.net, f"{self.who}, {name}"
        kinds = [(dtype_name(a.dtype), tuple(a.shape[1:])) for a in arrays]
        if not self.kinds:
            self.kinds = kinds
        if kinds != self.kinds:
            then, now = (" and ".join(f"{part} of {d} {s}" for part, (d, s) in zip(PARTS, k, strict=False))
                         for k in (self.kinds, kinds))  # fmt: skip
            raise ValueError(f"{who}: its rows have {now}, those of the first batch {then}; they must be alike")
        with net.backend.scope():
            try:
                if self.loss is None:
                    return Batch(inputs.inputs(net, f"{who}: x", arrays[0]), None)
                x, y = inputs.pair(net, who, arrays[0], arrays[1], self.loss, self.known, self.outputs)
                if self.outputs is None:
                    self.outputs = inputs.outputs_of(net, x)
                if self.who == "fit" and x.shape[0] < self.smallest:
                    check_smallest_batch(net, x.shape, x.shape[0])
                weight = None
                if len(arrays) == 3:
                    weight = inputs.weights_for(net, who, self.loss, y, arrays[2], self.mean)
                return Batch(x, y, weight)
            except (ValueError, TypeError) as error:
                error.add_note(f"in {name} of the source that {self.who} was given")
                raise

    def weights(self, given: Any, name: str) -> np.ndarray:
        """The weights of a batch, on the host, checked."""
        backend, parts = self.net.backend, self.parts(given, name)
        if len(parts) < 3:
            raise ValueError(f"{self.who}, {name}: it has no weight, and the first batch has; they must be alike")
        with backend.scope():
            weights = backend.to_numpy(backend.adopt(f"{self.who}: weight of {name}", parts[2]))
        inputs.check_weights(self.net, f"{self.who}, {name}", weights)
        return weights

    def set_mean(self, mean: Any) -> None:
        """Set the mean of all weights. ValueError unless it is above 0."""
        self.mean = positive(f"{self.who}: the mean of the weights of {self.source}", mean)

    def needs_mean(self, given: Any) -> bool:
        """Whether weights are divided by the mean of all of them, and the first batch has some."""
        loss: Any = self.loss
        weighted = isinstance(given, (tuple, list)) and len(given) == 3
        return weighted and getattr(loss, "reduction", "") == "mean" and getattr(loss, "weights_over", "") == "fit"


def raw_batches(who: str, source: Any, batch_size: int | None) -> Iterator[tuple[str, Any]]:
    """A source's batches as it gives them, and each one's name; rows in batches of this size."""
    if are_paths(source):
        source = NpzFiles(source, batch_size or 1024)
    if has_rows(source):
        for i, rows in enumerate(minibatches(len(source), batch_size or 1024)):
            yield (name := name_of(i + 1, rows)), rows_from(who, source, rows, name)
    else:
        for number, given in numbered(who, source, iter(source)):
            yield f"batch {number}", given


def name_of(number: int, rows: slice) -> str:
    """A batch of rows in words."""
    return f"batch {number}, rows {rows.start} to {rows.stop - 1}"


def first_of(net: Placed, who: str, source: Any, loss: Loss, batch_size: int | None) -> tuple[Batch, Array]:
    """The first batch, and its targets as they were given."""
    (source, _), reader = shard_of(source), Reader(net, who, loss, source)
    for name, given in raw_batches(who, source, batch_size):
        return reader(given, name), reader.parts(given, name)[1]
    raise no_batches(who, source)


def no_batches(who: str, source: object) -> ValueError:
    """The error for an empty source."""
    used_up = hasattr(source, "__iter__") and gives_once(source)
    hint = "; one that was used before gives no more: make a new one" if used_up else ""
    return ValueError(f"{who}: {kind_of(source)} gave no batches; expected some, each (x, y) or (x, y, weight){hint}")


def outputs_for(
    net: Placed, who: str, source: Any, loss: Loss | None, batch_size: int | None, group: Group | None = None
) -> tuple[Array, Array, Any]:
    """A network's outputs for all batches of a source; without a `loss` for x alone, else the targets as it encodes
    them, and as they were given.

    A `group` of processes divides the batches, or each has its own, and the first gives all; the others None of each.
    """
    with published.lock:  # the arrays of one step
        net = net.clone()
    source, shard = shard_of(source)
    reader, columns = Reader(net, who, loss, source), []
    rank, size = (0, 1) if group is None or shard else (group.rank, group.size)
    for number, (name, given) in enumerate(raw_batches(who, source, batch_size)):
        if number % size != rank and rank:
            continue
        batch = reader(given, name)
        prediction = net._infer(batch.x) if number % size == rank else None
        columns.append((prediction, *([batch.y, reader.parts(given, name)[1]] if loss else [])))
    if group is not None:
        to_numpy, asarray = net.backend.to_numpy, net.backend.asarray
        here = [tuple(to_numpy(a) if net.backend.owns(a) else a for a in column[: 3 if shard else 1])
                for column in columns if column[0] is not None]  # fmt: skip
        if (there := group.gathered(here)) is None:
            return None, None, None
        if shard:
            columns = [tuple(map(asarray, column[:2])) + column[2:] for each in there for column in each]
        else:
            columns = [(asarray(there[i % size][i // size][0]), *column[1:]) for i, column in enumerate(columns)]
    if not columns:
        raise no_batches(who, source)
    predictions, *targets = zip(*columns, strict=True)
    xp = net.backend.xp
    if not targets:
        return xp.concat(predictions, axis=0), None, None
    encoded, given = targets
    return xp.concat(predictions, axis=0), xp.concat(encoded, axis=0), namespace(given[0]).concat(given, axis=0)


# --- sources ----------------------------------------------------------------------------------------------------------


def feed_of(
    net: Placed, source: Any, loss: Loss, batch_size: int | None, epochs: int, prefetch: int, group: Group | None
) -> Feed:
    """The batches of a source, for one of a group of processes."""
    source, shard = shard_of(source)
    reader = Reader(net, "fit", loss, source)
    if shard and group is not None:
        reader.group, reader.smallest = group, 1
        if batch_size is not None:
            own = group.own(slice(0, batch_size))
            if batch_size < group.size:
                raise ValueError(f"fit: batch_size is {batch_size}, fewer rows than there are processes, {group.size}")
            batch_size = own.stop - own.start
    if are_paths(source):
        source = NpzFiles(source, batch_size or 1024)
    feed: Rows | Stream
    if not has_rows(source):
        feed = Stream(reader, source, epochs, prefetch)
    elif not (rows := len(source)):
        raise no_batches("fit", source)
    else:
        slices = minibatches(rows, batch_size or rows)
        feed = Rows(reader, source, slices, prefetch)
        least = slices[-1].stop - slices[-1].start
        if reader.group is None:
            check_smallest_batch(net, (rows, *feed.sample.x.shape[1:]), least)
    if reader.group is not None:
        return Shards(feed, reader.group)
    feed.group = group
    return feed


class Rows(Arrays):
    """Batches of a source of rows, several read at a time where they are small. The bits are those of arrays."""

    def __init__(self, reader: Reader, source: Any, slices: list[slice], prefetch: int):
        self.reader, self.source, self.prefetch = reader, source, prefetch
        self.any_order = getattr(source, "any_order", False)  # in which rows may be asked for
        self.starts = [rows.start for rows in slices]  # of the batches that are being read
        self.done = 0  # how many come before them
        given = self._asked(slices[0], slices[0])
        if weighted := reader.needs_mean(given):
            reader.mean = 1.0  # until it is known
        super().__init__(reader.net.backend, self._checked(given, slices[0]), slices)
        entries = max(1, math.prod(self.sample.x.shape[1:]))
        self.at_once = max(GATHER // entries, min(LARGE // entries, AT_ONCE * slices[0].stop))
        if weighted:
            mean = getattr(source, "mean_weight", None)
            read = (reader.weights(self._asked(rows, rows), self._name(rows)) for group in chunks(slices, self.at_once)
                    for rows in [slice(group[0].start, group[-1].stop)])  # fmt: skip
            reader.set_mean(inputs.mean_weight(read, reader.group) if mean is None else mean)
            self.sample = self._checked(given, slices[0])

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"source": f"{self.rows} rows in {kind_of(self.source)}; arrays are the first batch's"}

    def _name(self, rows: slice) -> str:
        return name_of(self.done + bisect.bisect(self.starts, rows.start), rows)

    def _asked(self, numbers: Any, rows: slice) -> Any:
        """What the source gives for these numbers, which are those rows of an order."""
        return rows_from(self.reader.who, self.source, numbers, self._name(rows))

    def _taken(self, rows: slice, order: np.ndarray | None = None) -> Batch:
        """Those rows, of an order in memory as `Batch.gathered` has them."""
        if order is None:
            return self._checked(self._asked(rows, rows), rows)
        numbers = order[rows]
        back = np.arange(count := len(numbers))
        if self.any_order:
            batch = self._checked(self._asked(numbers, rows), rows)
            return batch.with_targets(batch.x, self.backend.gatherer(back), slice(0, count))
        sorts = np.argsort(numbers)
        batch = self._checked(self._asked(numbers[sorts], rows), rows)
        back[sorts] = np.arange(count)
        return batch.gathered(self.backend.gatherer(back), back, slice(0, count))

    def _checked(self, given: Any, rows: slice) -> Batch:
        """These rows as the source gives them, checked."""
        name = self._name(rows)
        if (got := len(self.reader.parts(given, name)[0])) != rows.stop - rows.start:
            raise ValueError(f"{self.reader.who}: the source gave {got} rows for {name}, of {len(self.source)} it has")
        return self.reader(given, name)

    def _read(self, slices: Sequence[slice], order: np.ndarray | None) -> Iterator[tuple[Batch, slice]]:
        self.starts, self.done = [rows.start for rows in slices], self.steps - len(slices)
        for batch, parts in prefetched(self._chunks(slices, order), self.prefetch):
            for rows in parts:
                yield batch, rows
            del batch  # before the next one comes
        if self.done == 0 and self.group is None:  # else these are not all rows
            self.reader.known = getattr(self.source, "repeats", False)

    def _chunks(self, slices: Sequence[slice], order: np.ndarray | None) -> Iterator[tuple[Batch, list[slice]]]:
        """Several batches as one, and the rows of each in it."""

        def taken(rows: slice) -> Batch:
            return self._taken(rows, order) if rows.start < rows.stop else self.sample.rows(slice(0, 0))

        apart = order is None and self.group is not None  # with the other processes' rows between them
        for group in chunks(slices, 0 if apart else self.at_once):
            try:
                yield parts_of(taken, group)
            except Exception:  # of one of them: those before it are to be trained on first
                for rows in group:
                    yield parts_of(taken, [rows])


class Stream(Feed):
    """Batches of an iterable, as it gives them."""

    def __init__(self, reader: Reader, source: Iterable[Any], epochs: int, prefetch: int):
        self.reader, self.source, self.prefetch = reader, source, prefetch
        self.steps: int | None = None
        self.once = gives_once(source)
        who = reader.who
        if self.once and epochs > 1:
            raise ValueError(
                f"{who}: a generator gives one epoch, and epochs is {epochs}: give a class with an __iter__ that "
                "begins anew each time, a list, or a DataLoader"
            )
        self.count = 0  # of the rows of the batch given last
        self.kept: deque[tuple[int, Batch]] = deque(maxlen=KEPT)
        self.over = self.counted = False  # whether the epoch is over, and whether one has been counted
        started = self._begin(0)
        _, first = next(numbered(reader.who, source, started), (0, None))
        if first is None:
            raise no_batches(who, source)
        if reader.needs_mean(first):
            reader.set_mean(self._mean())
        self.sample = reader(first, "batch 1")
        self.waiting: Iterator[Any] | None = itertools.chain([first], started)
        with contextlib.suppress(TypeError):
            self.steps = len(source)  # type: ignore[arg-type]

    def _begin(self, epoch: int) -> Iterator[Any]:
        told: tuple[Any, ...] = self.source, getattr(self.source, "sampler", None)  # a DataLoader's, for one
        for each in told:
            if hasattr(each, "set_epoch"):
                each.set_epoch(epoch)
        return iter(self.source)

    def _mean(self) -> Any:
        mean = getattr(self.source, "mean_weight", None)
        if mean is not None:
            return mean
        if self.once:
            raise ValueError(
                f"{self.reader.who}: weights are divided by their mean over all rows, which takes a pass of its own, "
                "and a generator gives one: give a class with an __iter__ and, to spare the pass, a mean_weight"
            )
        batches = numbered(self.reader.who, self.source, self._begin(0))
        weights = (self.reader.weights(given, f"batch {number}") for number, given in batches)
        return inputs.mean_weight(weights, self.reader.group)

    def read(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[Batch, slice]]:
        raw = self.waiting if self.waiting is not None and self.epoch == 0 else self._begin(self.epoch)
        self.waiting = None
        self.over, self.last = False, 0
        self.kept.clear()
        reader, given = self.reader, 0  # as many batches

        def read() -> Iterator[Batch]:
            nonlocal given
            for given, batch in numbered(reader.who, self.source, raw):
                if given == 1:
                    parts = reader.parts(batch, "batch 1")
                    self.begins = ", ".join(fingerprint(on_host(part)[:SEEN]) for part in parts)
                if given > done:
                    yield reader(batch, f"batch {given}")

        number, items = done, prefetched(read(), self.prefetch)
        batch, fault = next(items, None), None
        if done and self.begun not in ("", self.begins):
            warn(
                f"{reader.who}: {kind_of(self.source)} gives other batches than it did before the run was cut off in "
                f"epoch {self.epoch + 1}, whose rest may repeat some rows and miss others. To go on as if it had not "
                "been, give the same batches in each epoch, or have a set_epoch, as xn.data.shuffled(batches) has",
                RuntimeWarning,
            )
        self.begun = ""
        while batch is not None:
            following = None
            try:
                following = next(items, None)
            except Exception as error:  # raised again, when this batch has been trained on
                fault = error
            number, self.over = number + 1, following is None and fault is None
            yield self._step(number, batch)
            if fault is not None:
                raise fault
            batch = following
        self._count(given)

    def _step(self, number: int, batch: Batch) -> tuple[Batch, slice]:
        self.count = batch.x.shape[0]
        if len(self.kept) == KEPT:
            self.kept.clear()
        self.kept.append((number, batch))
        self.last = number if self.over or len(self.kept) == KEPT else 0
        return batch, self._own(batch)

    def _own(self, batch: Batch) -> slice:
        rows = slice(0, batch.x.shape[0])
        return rows if self.group is None else self.group.own(rows)

    def size(self, number: int) -> int:
        return self.count

    def _count(self, number: int) -> None:
        """At an epoch's end: how many batches it had is known now."""
        if number == 0:
            raise ValueError(
                f"{self.reader.who}: {kind_of(self.source)} gave no batches in epoch {self.epoch + 1}: its __iter__ "
                "must begin anew each time"
            )
        if self.steps is not None and number != self.steps:
            warn(
                f"{self.reader.who}: {kind_of(self.source)} gave {number} batches in epoch {self.epoch + 1}, and "
                f"{'had' if self.counted else 'its len says'} {self.steps}{' before' * self.counted}",
                RuntimeWarning,
            )
        self.steps, self.counted = number, True

    def again(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[int, Batch, slice]]:
        for number, batch in list(self.kept):
            rows = self._own(batch)
            if self.group is not None:
                self.group.begin_step(rows.stop - rows.start, batch.x.shape[0])
            yield number, batch, rows

    def ends_epoch(self, number: int) -> bool:
        return self.over

    def facts(self) -> dict[str, Any]:
        return {"source": f"batches of {kinds_in_words(self.reader.kinds)} from {type(self.source).__name__}"}


class Shards(Feed):
    """Batches of which each process has a part, from a source of its own."""

    def __init__(self, feed: Rows | Stream, shards: Group):
        self.feed, self.shards, self.sample = feed, shards, feed.sample
        told = shards.tell("batches and rows", (feed.steps, feed.rows))
        steps, rows = ([n for n in each if n is not None] for each in zip(*told, strict=True))
        self.steps = max(steps) if len(steps) == shards.size else None
        self.rows = sum(rows) if len(rows) == shards.size else None
        self.kept: deque[tuple[int, Batch, slice, bool]] = deque(maxlen=KEPT)
        self.over = False

    def order(self, rng: np.random.Generator) -> np.ndarray:
        own = np.random.default_rng([int(rng.integers(2**63)), self.shards.rank])  # rng goes on alike in all
        return self.feed.order(own)

    def read(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[Batch, slice]]:
        self.feed.epoch, self.over, self.last, number = self.epoch, False, 0, done
        self.kept.clear()
        own = self.feed.read(order, done, epochs)
        ended = False
        while not self.over:
            number += 1
            if ended or (given := next(own, None)) is None:
                ended, given = True, (self.sample.rows(slice(0, 0)), slice(0, 0))
            elif self.feed.ends_epoch(number):
                ended = True
                next(own, None)  # what it has to say at its end
            yield self._step(number, *given, ended)
        self.steps = number

    def _step(self, number: int, batch: Batch, rows: slice, ended: bool) -> tuple[Batch, slice]:
        self.over = self.shards.begin_shards_step(rows.stop - rows.start, ended)
        if len(self.kept) == KEPT:
            self.kept.clear()
        self.kept.append((number, batch, rows, ended))
        self.last = number if self.over or len(self.kept) == KEPT else 0
        return batch, rows

    def again(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[int, Batch, slice]]:
        for number, batch, rows, ended in list(self.kept):
            self.shards.begin_shards_step(rows.stop - rows.start, ended)
            yield number, batch, rows

    def size(self, number: int) -> int:
        return self.shards.rows

    def ends_epoch(self, number: int) -> bool:
        return self.over

    def facts(self) -> dict[str, Any]:
        kinds = kinds_in_words(self.feed.reader.kinds)
        return {"source": f"a shard in each of {self.shards.size} processes, rows of {kinds}"}


def kinds_in_words(kinds: Sequence[tuple[Any, ...]]) -> str:
    """The parts of a batch, their dtypes and the shapes of their rows."""
    return ", ".join(f"{part} {d} {s}" for part, (d, s) in zip(PARTS, kinds, strict=False))


END = object()


def prefetched(items: Iterator[Any], count: int) -> Iterator[Any]:
    """The items in their order, up to `count` of them made ahead in a thread, which ends with this iterator.

    An exception in the making comes here, in its place in the order, with its traceback.
    """
    if not count:
        yield from items
        return
    made: deque[tuple[Any, BaseException | None]] = deque()  # the last is END, with what ended it, if anything did
    changed = threading.Condition()
    wanted = True

    def make() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                with changed:
                    changed.wait_for(lambda: len(made) < count or not wanted)
                    if not wanted:
                        return
                    made.append((item, None))
                    changed.notify_all()
                del item
        except BaseException as raised:  # whatever it is, it belongs to whoever takes the items
            error = raised
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()
            with changed:
                made.append((END, error))
                changed.notify_all()

    thread = threading.Thread(target=make, name="xpnet-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                while not made:
                    if not changed.wait(timeout=1.0) and not made and not thread.is_alive():
                        raise RuntimeError("fit: the thread that reads the source has died")
                item, error = made.popleft()
                changed.notify_all()
            if error is not None:
                raise error
            if item is END:
                return
            yield item
            del item
    finally:
        with changed:
            wanted = False
            changed.notify_all()
        thread.join(timeout=5.0)
