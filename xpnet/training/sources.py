"""Data that is read as needed: sources of rows, and streams of batches.

A source of rows has a length, and `source[rows]` gives (x, y) or (x, y, weight) for a slice or for increasing row
numbers. A stream is an iterable of such batches; unless it is an iterator, it begins anew in each epoch.
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
from ..common.checks import brief, kind_of, positive, require
from ..common.publication import published
from ..common.warn import warn
from ..data import NpzFiles, Shard, minibatches, shuffled
from ..kernels import infer
from ..layers.placed import Placed
from ..losses import __all__ as known_losses
from ..losses.losses import Loss
from . import inputs
from .arguments import check_smallest_batch
from .batches import GATHER, LARGE, Arrays, Batch, Feed, Group, chunks, parts_of
from .identity import fingerprint

DIGESTED = 64  # rows of a stream's first batch from which its digest is computed
KEPT = 32  # batches of a stream between two checks on a device; they are kept, to be repeated if a check fails
READ = 8  # small batches of a source of rows that are read together, to save on checks and copies
PARTS = "x", "y", "weight"


def is_source(x: object) -> bool:
    """Whether x is a source of rows or batches, rather than an array, a frame or a list of numbers."""
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
    """Whether x is a list of paths."""
    return isinstance(x, (list, tuple)) and bool(x) and all(isinstance(path, (str, os.PathLike)) for path in x)


def has_rows(source: object) -> bool:
    """Whether `source` gives rows by their numbers; otherwise it is a stream."""
    return not isinstance(source, (list, tuple)) and hasattr(source, "__getitem__") and hasattr(source, "__len__")


def unwrapped(source: Any) -> tuple[Any, bool]:
    """Return the source within a Shard or else `source` itself, and whether it is one process's part of the data."""
    if isinstance(source, Shard):
        if isinstance(source.source, Shard) or not is_source(source.source):
            raise TypeError(
                f"Shard: source is {kind_of(source.source)}, expected a source, such as xn.data.ArraySource(x, y)"
            )
        return source.source, True
    return source, getattr(getattr(source, "sampler", None), "num_replicas", 1) > 1  # PyTorch's DistributedSampler


def check_alone(who: str, source: object, **beside: object) -> None:
    """Raise ValueError if anything that a source provides, such as y, is passed beside it."""
    if given := [name for name, value in beside.items() if value is not None]:
        raise ValueError(
            f"{who}: x is {kind_of(source)}, a source whose batches are (x, y) or (x, y, weight), and "
            f"{' and '.join(given)} is given too: leave it out, or give arrays"
        )


def check_target(who: str, x: object, y: object) -> None:
    """Raise TypeError if y is missing, where x is no source."""
    if y is None:
        raise TypeError(
            f"{who}: y is None, expected an array, a list of rows or a pandas frame; x is {kind_of(x)}, and only a "
            "source of batches (x, y) goes without: a DataLoader, a list [(x, y), ...], xn.data.ArraySource(x, y)"
        )


def is_one_pass(source: Any) -> bool:
    """Whether `source` is an iterator, such as a generator, or shuffles one, so that it gives a single epoch."""
    while isinstance(source, shuffled):
        source = source.source
    return iter(source) is source


def rows_from(who: str, source: Any, rows: Any, name: str) -> Any:
    """Return `source[rows]`; an exception raised there gets a note that says which rows were read."""
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
    """Number the batches from 1; an exception raised by the iterator gets a note with the number of the next batch."""
    number = 0
    try:
        for number, given in enumerate(batches, 1):
            yield number, given
    except Exception as error:
        error.add_note(f"{who}: raised by {kind_of(source)}, in place of batch {number + 1}")
        raise


# --- batches as they come ---------------------------------------------------------------------------------------------


class Reader:
    """Turns what a source gives into a `Batch`: checked against the first one, moved to the backend, targets encoded.

    Without a `loss`, only x is read. Weights are divided by `mean`, the mean of all rows' weights.
    """

    def __init__(self, net: Placed, who: str, loss: Loss | None, source: object):
        self.net, self.who, self.loss, self.source = net, who, loss, kind_of(source)
        self.kinds: list[tuple[Any, ...]] = []  # dtype and shape of a row, for each part of the first batch
        self.mean: float | None = None if who == "fit" else 1.0  # only `fit` uses weights
        self.known = False  # whether all rows are known to be finite
        self.outputs: tuple[int, ...] | None = None  # the shape of the network's output for a row
        self.smallest = max(layer.smallest_batch for _, layer in net.leaves())
        self.group: Group | None = None  # the processes that have the other shards of the data

    def parts(self, given: Any, name: str) -> list[Array]:
        """Return the arrays of a batch, on the network's backend or in NumPy; `name` is the batch's name in errors."""
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
        """Return the batch. Raises ValueError or TypeError if its dtypes or shapes differ from the first one's, or if
        it is unsuitable otherwise.
        """
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
                    return Batch(inputs.rows_of(net, f"{who}: x", arrays[0], whole=True), None)
                x, y = inputs.rows_of_pair(net, who, arrays[0], arrays[1], self.loss, self.known, True, self.outputs)
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
        """Return the weights of a batch as a NumPy array, checked."""
        backend, parts = self.net.backend, self.parts(given, name)
        if len(parts) < 3:
            raise ValueError(f"{self.who}, {name}: it has no weight, and the first batch has; they must be alike")
        with backend.scope():
            weights = backend.to_numpy(backend.adopt(f"{self.who}: weight of {name}", parts[2]))
        inputs.check_weights(self.net, f"{self.who}, {name}", weights)
        return weights

    def set_mean(self, source: Any, given: Any, weights: Iterable[np.ndarray]) -> None:
        """Set the mean of all `weights`, if batches such as the `given` one have weights, and the loss wants them
        divided by it. They are read unless the source has a `mean_weight`.

        Raises ValueError unless the mean is positive.
        """
        wants = [getattr(self.loss, name, "") for name in ("reduction", "weights_over")]
        if isinstance(given, (tuple, list)) and len(given) == 3 and wants == ["mean", "fit"]:
            mean = getattr(source, "mean_weight", None)
            mean = inputs.mean_weight(weights, self.group) if mean is None else mean
            self.mean = positive(f"{self.who}: the mean of the weights of {self.source}", mean)


def raw_batches(who: str, source: Any, batch_size: int | None) -> Iterator[tuple[str, Any]]:
    """Yield the name and content of each batch as the source gives it; rows are read `batch_size` at a time."""
    if are_paths(source):
        source = NpzFiles(source, batch_size or 1024)
    if has_rows(source):
        for i, rows in enumerate(minibatches(len(source), batch_size or 1024)):
            yield (name := name_of(i + 1, rows)), rows_from(who, source, rows, name)
    else:
        for number, given in numbered(who, source, iter(source)):
            yield f"batch {number}", given


def name_of(number: int, rows: slice) -> str:
    """Return a batch's name for error messages."""
    return f"batch {number}, rows {rows.start} to {rows.stop - 1}"


def first_of(net: Placed, who: str, source: Any, loss: Loss, batch_size: int | None) -> tuple[Batch, Array]:
    """Return the first batch, and its targets as the source gives them."""
    (source, _), reader = unwrapped(source), Reader(net, who, loss, source)
    for name, given in raw_batches(who, source, batch_size):
        return reader(given, name), reader.parts(given, name)[1]
    raise no_batches(who, source)


def no_batches(who: str, source: object) -> ValueError:
    """Return the error for an empty source."""
    used_up = hasattr(source, "__iter__") and is_one_pass(source)
    hint = "; one that was used before gives no more: make a new one" if used_up else ""
    return ValueError(f"{who}: {kind_of(source)} gave no batches; expected some, each (x, y) or (x, y, weight){hint}")


def outputs_for(
    net: Placed, who: str, source: Any, loss: Loss | None, batch_size: int | None, group: Group | None = None
) -> tuple[Array, Array, Any]:
    """Return the network's outputs for all batches of a source, the targets as the loss encodes them, and the targets
    as given. Without a `loss`, the targets are None.

    With a `group`, the processes divide the batches, or each has its own shard; the first returns the results of all,
    the others None three times.
    """
    with published.lock:  # so that all arrays are of the same step
        net = net.clone()
    source, shard = unwrapped(source)
    reader, columns = Reader(net, who, loss, source), []
    rank, size = (0, 1) if group is None or shard else (group.rank, group.size)
    for number, (name, given) in enumerate(raw_batches(who, source, batch_size)):
        if number % size != rank and rank:
            continue
        batch = reader(given, name)
        prediction = infer(net, batch.x) if number % size == rank else None
        columns.append((prediction, *([batch.y, reader.parts(given, name)[1]] if loss else [])))
    if group is not None:
        to_numpy, asarray = net.backend.to_numpy, net.backend.asarray
        local = [tuple(to_numpy(a) if net.backend.owns(a) else a for a in column[: 3 if shard else 1])
                 for column in columns if column[0] is not None]  # fmt: skip
        if (gathered := group.gather(local)) is None:
            return None, None, None
        if shard:
            columns = [tuple(map(asarray, column[:2])) + column[2:] for each in gathered for column in each]
        else:
            columns = [(asarray(gathered[i % size][i // size][0]), *column[1:]) for i, column in enumerate(columns)]
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
    """Return the feed of a source; with a `group`, the part of this process."""
    require("fit: loss", loss, ("value_and_grad",), "xn.SoftmaxCrossEntropy()", known_losses)
    source, shard = unwrapped(source)
    reader = Reader(net, "fit", loss, source)
    if shard and group is not None:
        reader.group, reader.smallest = group, 1
        if batch_size is not None:
            share = group.share(slice(0, batch_size))
            if batch_size < group.size:
                raise ValueError(f"fit: batch_size is {batch_size}, fewer rows than there are processes, {group.size}")
            batch_size = share.stop - share.start
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
    """Batches of a source of rows, with the same bits as batches of arrays. Small ones are read several at a time."""

    def __init__(self, reader: Reader, source: Any, slices: list[slice], prefetch: int):
        self.reader, self.source, self.prefetch = reader, source, prefetch
        self.any_order = getattr(source, "any_order", False)  # whether row numbers need not increase
        self.starts = [rows.start for rows in slices]  # first rows of the batches being read, to name them in errors
        self.done = 0  # the number of batches before those
        given, name = self._read_rows(slices[0], slices[0]), self._name(slices[0])
        entries = max(1, math.prod(reader.parts(given, name)[0].shape[1:]))
        self.rows_at_once = max(GATHER // entries, min(LARGE // entries, READ * slices[0].stop))
        groups = (slice(group[0].start, group[-1].stop) for group in chunks(slices, self.rows_at_once))
        weights = (reader.weights(self._read_rows(rows, rows), self._name(rows)) for rows in groups)
        reader.set_mean(source, given, weights)
        super().__init__(reader.net.backend, self._batch_of(given, slices[0]), slices)

    def facts(self) -> dict[str, Any]:
        return super().facts() | {"source": f"{self.rows} rows in {kind_of(self.source)}; arrays are the first batch's"}

    def _name(self, rows: slice) -> str:
        return name_of(self.done + bisect.bisect(self.starts, rows.start), rows)

    def _read_rows(self, numbers: Any, rows: slice) -> Any:
        """Return the source's rows of these numbers; `rows`, their place in the epoch's order, names them in errors."""
        return rows_from(self.reader.who, self.source, numbers, self._name(rows))

    def _take(self, rows: slice, order: np.ndarray | None = None) -> Batch:
        """Return the rows `order[rows]` as a batch, laid out in memory as by `Batch.gathered`."""
        if order is None:
            return self._batch_of(self._read_rows(rows, rows), rows)
        numbers = order[rows]
        back = np.arange(count := len(numbers))
        if self.any_order:
            batch = self._batch_of(self._read_rows(numbers, rows), rows)
            return batch.with_targets(batch.x, self.backend.gatherer(back), slice(0, count))
        sorts = np.argsort(numbers)
        batch = self._batch_of(self._read_rows(numbers[sorts], rows), rows)
        back[sorts] = np.arange(count)
        return batch.gathered(self.backend.gatherer(back), back, slice(0, count))

    def _batch_of(self, given: Any, rows: slice) -> Batch:
        """Return what the source gave for `rows` as a batch. Raises ValueError unless it has that many rows."""
        name = self._name(rows)
        if (got := len(self.reader.parts(given, name)[0])) != rows.stop - rows.start:
            whole = len(self.source)
            raise ValueError(f"{self.reader.who}: the source gave {got} rows for {name}, of the {whole} it has")
        return self.reader(given, name)

    def _read(self, slices: Sequence[slice], order: np.ndarray | None) -> Iterator[tuple[Batch, slice]]:
        self.starts, self.done = [rows.start for rows in slices], self.steps - len(slices)
        for batch, parts in prefetched(self._chunks(slices, order), self.prefetch):
            for rows in parts:
                yield batch, rows
            del batch  # before the next one comes
        if self.done == 0 and self.group is None:  # all rows have been read
            self.reader.known = getattr(self.source, "repeats", False)

    def _chunks(self, slices: Sequence[slice], order: np.ndarray | None) -> Iterator[tuple[Batch, list[slice]]]:
        """Yield several batches as one, with the rows of each in it."""

        def take(rows: slice) -> Batch:
            return self._take(rows, order) if rows.start < rows.stop else self.sample.rows(slice(0, 0))

        apart = order is None and self.group is not None  # the rows of other processes lie between the slices
        for group in chunks(slices, 0 if apart else self.rows_at_once):
            try:
                yield parts_of(take, group)
            except Exception:  # read one by one, to train on those before the faulty one first
                for rows in group:
                    yield parts_of(take, [rows])


class Passing(Feed):
    """Batches that are not read again: those since the host last waited for the device are kept, to be repeated."""

    shards: Group | None = None  # the processes, if each has a source of its own

    def begin(self) -> None:
        """Begin an epoch."""
        self.kept: list[tuple[int, Batch, slice]] = []
        self.over = False  # whether the latest batch is the last of the epoch
        self.wait_after = 0

    def keep(self, number: int, batch: Batch, rows: slice) -> tuple[Batch, slice]:
        """Keep a batch and return it; the host waits after it if it is the last one, or if no more are to be kept."""
        if len(self.kept) == KEPT:
            self.kept.clear()
        self.kept.append((number, batch, rows))
        if self.over or len(self.kept) == KEPT:
            self.wait_after = number
        return batch, rows

    def replay(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[int, Batch, slice]]:
        group = self.group or self.shards
        for number, batch, rows in self.kept:
            if group is not None:
                group.meet(rows.stop - rows.start, 0)
            yield number, batch, rows

    def ends_epoch(self, number: int) -> bool:
        return self.over


class Stream(Passing):
    """Batches of an iterable, in its own sizes and order."""

    def __init__(self, reader: Reader, source: Iterable[Any], epochs: int, prefetch: int):
        self.reader, self.source, self.prefetch = reader, source, prefetch
        self.steps: int | None = None
        self.one_pass = is_one_pass(source)
        who = reader.who
        if self.one_pass and epochs > 1:
            raise ValueError(
                f"{who}: a generator gives one epoch, and epochs is {epochs}: give a class with an __iter__ that "
                "begins anew each time, a list, or a DataLoader"
            )
        self.counted = False  # whether `steps` is from a whole epoch rather than from the source's length
        started = self._begin(0)
        _, first = next(numbered(who, source, started), (0, None))
        if first is None:
            raise no_batches(who, source)
        reader.set_mean(source, first, self._weights())
        self.sample = reader(first, "batch 1")
        self.waiting: Iterator[Any] | None = itertools.chain([first], started)
        with contextlib.suppress(TypeError):
            self.steps = len(source)  # type: ignore[arg-type]

    def _begin(self, epoch: int) -> Iterator[Any]:
        """Return an iterator over an epoch's batches. A `set_epoch` of the source or its sampler is called before."""
        shuffles: tuple[Any, ...] = self.source, getattr(self.source, "sampler", None)
        for each in shuffles:
            if hasattr(each, "set_epoch"):
                each.set_epoch(epoch)
        return iter(self.source)

    def _weights(self) -> Iterator[np.ndarray]:
        """Yield the weights of all batches, which takes a pass over the source."""
        if self.one_pass:
            raise ValueError(
                f"{self.reader.who}: weights are divided by their mean over all rows, which takes a pass of its own, "
                "and a generator gives one: give a class with an __iter__ and, to spare the pass, a mean_weight"
            )
        for number, given in numbered(self.reader.who, self.source, self._begin(0)):
            yield self.reader.weights(given, f"batch {number}")

    def read(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[Batch, slice]]:
        raw = self.waiting if self.waiting is not None and self.epoch == 0 else self._begin(self.epoch)
        self.waiting = None
        self.begin()
        reader, count = self.reader, 0

        def read() -> Iterator[Batch]:
            nonlocal count
            for count, batch in numbered(reader.who, self.source, raw):
                if count == 1:
                    parts = reader.parts(batch, "batch 1")
                    self.first_digest = ", ".join(fingerprint(on_host(part)[:DIGESTED]) for part in parts)
                if count > done:
                    yield reader(batch, f"batch {count}")

        number, items = done, prefetched(read(), self.prefetch)
        batch, fault = next(items, None), None
        if done and self.expected_digest not in ("", self.first_digest):
            warn(
                f"{reader.who}: {kind_of(self.source)} gives other batches than it did before the run was cut off in "
                f"epoch {self.epoch + 1}, whose rest may repeat some rows and miss others. To go on as if it had not "
                "been, give the same batches in each epoch, or have a set_epoch, as xn.data.shuffled(batches) has",
                RuntimeWarning,
            )
        self.expected_digest = ""
        while batch is not None:
            following = None
            try:
                following = next(items, None)
            except Exception as error:  # raised again after the step on `batch`
                fault = error
            number, self.over = number + 1, following is None and fault is None
            rows = slice(0, batch.x.shape[0])
            yield self.keep(number, batch, rows if self.group is None else self.group.share(rows))
            if fault is not None:
                raise fault
            batch = following
        self._count(count)

    def size(self, number: int) -> int:
        return int(self.kept[-1][1].x.shape[0])

    def _count(self, number: int) -> None:
        """Set `steps` to the number of batches of a finished epoch; warn if it was another before."""
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

    def facts(self) -> dict[str, Any]:
        return {"source": f"batches of {kinds_in_words(self.reader.kinds)} from {type(self.source).__name__}"}


class Shards(Passing):
    """Batches whose rows come from a separate source in each process."""

    shards: Group

    def __init__(self, feed: Rows | Stream, group: Group):
        self.feed, self.shards, self.sample = feed, group, feed.sample  # not `self.group`: it divides common batches
        counts = group.allgather("batches and rows", (feed.steps, feed.rows))
        steps, rows = ([n for n in each if n is not None] for each in zip(*counts, strict=True))
        self.steps = max(steps) if len(steps) == group.size else None
        self.rows = sum(rows) if len(rows) == group.size else None

    def order(self, rng: np.random.Generator) -> np.ndarray:
        seed = int(rng.integers(2**63))  # the same in all processes, as is the state of `rng` afterwards
        return self.feed.order(np.random.default_rng([seed, self.shards.rank]))

    def read(self, order: np.ndarray | None, done: int, epochs: int = 1) -> Iterator[tuple[Batch, slice]]:
        self.begin()
        self.feed.epoch, number, ended = self.epoch, done, False
        batches = self.feed.read(order, done, epochs)
        while not self.over:
            number += 1
            if ended or (local := next(batches, None)) is None:
                ended, local = True, (self.sample.rows(slice(0, 0)), slice(0, 0))
            elif self.feed.ends_epoch(number):
                ended = True
                next(batches, None)  # run the rest of the generator: it counts the epoch's batches
            batch, rows = local
            self.over = all(self.shards.meet(rows.stop - rows.start, ended))
            yield self.keep(number, batch, rows)
        self.steps = number

    def size(self, number: int) -> int:
        return self.shards.rows

    def facts(self) -> dict[str, Any]:
        kinds = kinds_in_words(self.feed.reader.kinds)
        return {"source": f"a shard in each of {self.shards.size} processes, rows of {kinds}"}


def kinds_in_words(kinds: Sequence[tuple[Any, ...]]) -> str:
    """Return the parts of a batch with their dtypes and the shapes of their rows, in words."""
    return ", ".join(f"{part} {d} {s}" for part, (d, s) in zip(PARTS, kinds, strict=False))


END = object()


def prefetched(items: Iterator[Any], count: int) -> Iterator[Any]:
    """Yield the items in order, up to `count` of them computed ahead in a thread, which ends with this generator.

    An exception raised by the iterator is raised here in its place in the order, with its traceback.
    """
    if not count:
        yield from items
        return
    ready: deque[tuple[Any, BaseException | None]] = deque()  # the last is END, with the exception that came, if any
    changed = threading.Condition()
    wanted = True

    def fill() -> None:
        error: BaseException | None = None
        try:
            for item in items:
                with changed:
                    changed.wait_for(lambda: len(ready) < count or not wanted)
                    if not wanted:
                        return
                    ready.append((item, None))
                    changed.notify_all()
                del item
        except BaseException as raised:  # raised again in the thread that takes the items
            error = raised
        finally:
            if hasattr(items, "close"):
                items.close()
            with changed:
                ready.append((END, error))
                changed.notify_all()

    thread = threading.Thread(target=fill, name="xpnet-prefetch", daemon=True)
    thread.start()
    try:
        while True:
            with changed:
                while not ready:
                    if not changed.wait(timeout=1.0) and not ready and not thread.is_alive():
                        raise RuntimeError("fit: the thread that reads the source has died")
                item, error = ready.popleft()
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
