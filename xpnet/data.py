"""Data: scikit-learn's digits, train-test splits, minibatches, and sources that `fit` reads batch by batch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import on_host
from .common import checks
from .common.checks import brief, finite, integer, kind_of

__all__ = [
    "ArraySource", "NpzFiles", "Shard", "load_digits", "minibatches", "read_npz", "shuffled", "train_test_split",
]  # fmt: skip

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: images (1797, 64) float64 in [0, 1], and classes (1797,) int64.

    Alpaydin & Kaynak 1998, UCI. Nothing is downloaded; raises ImportError without scikit-learn, which has the images.

    >>> x, y = xn.data.load_digits()
    >>> x.shape, int(y.max())
    ((1797, 64), 9)
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError(
            "load_digits needs scikit-learn, where the images are: pip install scikit-learn threadpoolctl"
        ) from error
    digits = load()
    return digits.data / 16.0, digits.target


def train_test_split(
    x: Any, y: Any, test_size: float | int = 0.25, seed: int | None = 0, stratify: "ArrayLike | None" = None
) -> tuple[Any, Any, Any, Any]:
    """Split into x_train, x_test, y_train, y_test: shuffled by `seed`, or with `seed=None` the last rows as the test.

    `test_size` is a fraction of the rows or, as an int, their number. With `stratify`, labels (n,) such as y, each side
    has every label in proportion, to within a row. pandas objects and masked arrays keep their type, all else becomes
    NumPy arrays. Raises ValueError if one side would be empty, or a label could not be on both sides.

    `x` and `y` have a row for each other; `seed` is a whole number or None.

    >>> x, y = xn.data.load_digits()
    >>> x_train, x_test, y_train, y_test = xn.data.train_test_split(x, y, test_size=297)
    >>> x_train.shape, y_test.shape
    ((1500, 64), (297,))
    """
    finite("train_test_split: test_size", test_size)
    seed = checks.seed("train_test_split: seed", seed)
    x, y = _as_rows("train_test_split: x", x), _as_rows("train_test_split: y", y)
    if len(x) != len(y):
        raise ValueError(f"train_test_split: x has {len(x)} rows and y {len(y)}; they must match")
    rows = len(x)
    count = int(test_size) if isinstance(test_size, (int, np.integer)) else round(rows * test_size)
    if not 0 < count < rows:
        raise ValueError(f"train_test_split: test_size {test_size!r} of {rows} rows leaves one side empty")
    order = np.arange(rows) if seed is None else np.random.default_rng(seed).permutation(rows)
    held_out = order >= 0
    if stratify is None:
        held_out[: rows - count] = False
    else:
        labels = on_host(stratify, "train_test_split: stratify")
        if labels.shape != (rows,):
            raise ValueError(f"train_test_split: stratify has shape {labels.shape}, expected a label a row, ({rows},)")
        names, numbers, sizes = np.unique(labels, return_inverse=True, return_counts=True)
        if sizes.min() < 2 or len(sizes) > min(count, rows - count):
            raise ValueError(
                f"train_test_split: stratify has {len(sizes)} labels, {names[sizes.argmin()]!r} with {sizes.min()} "
                f"row(s), for {rows - count} and {count} rows; each needs two, and each side a row for every label"
            )
        shares, parts = np.divmod(count * sizes, rows)
        shares[np.argsort(-parts, kind="stable")[: count - shares.sum()]] += 1  # round up those with the largest rest
        for label, share in enumerate(shares):
            places = np.flatnonzero(numbers[order] == label)
            held_out[places[: len(places) - share]] = False
    train, test = order[~held_out], order[held_out]
    x, y = (a.iloc if hasattr(a, "iloc") else a for a in (x, y))
    return x[train], x[test], y[train], y[test]


def _as_rows(who: str, x: Any) -> Any:
    """Return x as an array with at least one axis; pandas objects and masked arrays unchanged."""
    rows = x if hasattr(x, "iloc") or isinstance(x, np.ma.MaskedArray) else on_host(x, who)
    if not rows.ndim:
        raise ValueError(f"{who} has no rows: it is {kind_of(x)}")
    return rows


def minibatches(rows: int, batch_size: int) -> list[slice]:
    """Slices of `batch_size` rows; the last is shorter if `batch_size` does not divide `rows`.

    Raises ValueError unless `batch_size` is a whole number of at least 1 and `rows` one of at least 0.

    >>> xn.data.minibatches(5, batch_size=2)
    [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    rows, batch_size = integer("minibatches: rows", rows, least=0), integer("minibatches: batch_size", batch_size)
    return [slice(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]


# --- sources ----------------------------------------------------------------------------------------------------------


class ArraySource:
    """Rows of x (n, ...), y (n, ...) and, if given, their weights (n,), each anything that is indexed by rows:
    `net.fit(xn.data.ArraySource(x, y), ...)`.

    Memory maps and arrays of zarr and h5py are read a few batches at a time and never as a whole. Rows are read as
    slices or in increasing order, as h5py requires, or in any order if all parts are NumPy arrays. In the first epoch,
    x is checked for NaN and infinity.

    Raises ValueError for parts of different lengths.

    `weight` are the rows' weights, as `fit`'s `sample_weight`.

    >>> import numpy as np
    >>> source = xn.data.ArraySource(np.ones((100, 2)), np.zeros((100, 1)))
    >>> len(source), source[10:15][0].shape
    (100, (5, 2))
    """

    repeats = True  # the rows are the same in each epoch

    def __init__(self, x: Any, y: Any, weight: Any = None):
        parts = {"x": x, "y": y} | ({} if weight is None else {"weight": weight})
        for name, part in parts.items():
            if not (hasattr(part, "shape") and hasattr(part, "__getitem__")):
                raise TypeError(f"ArraySource: {name} is {kind_of(part)}, expected something with a shape and rows")
        shapes = [tuple(part.shape) for part in parts.values()]
        if len({shape[:1] for shape in shapes}) > 1 or not shapes[0]:
            found = ", ".join(map(str, shapes))
            raise ValueError(f"ArraySource: x, y and weight must have as many rows each, got the shapes {found}")
        self.parts = [a.view(np.ndarray) if type(a) is np.memmap else a for a in parts.values()]  # faster
        self.any_order = all(type(part) is np.ndarray for part in self.parts)

    def __len__(self) -> int:
        return int(self.parts[0].shape[0])

    def __getitem__(self, rows: Any) -> tuple[Any, ...]:
        if self.any_order and isinstance(rows, np.ndarray):
            return tuple(np.take(part, rows, axis=0) for part in self.parts)
        return tuple(part[rows] for part in self.parts)


class Shard:
    """One process's part of the data, if each of several has a part: `net.fit(xn.data.Shard(source), comm=comm)`.

    The first batches of all processes together are the first batch of the whole, and so on. Each process takes its
    share of `fit`'s batch size, and draws the order of its own rows. The parts may have different lengths: if one has
    ended, the others go on. In a single process, it is the source itself. A DataLoader with PyTorch's
    DistributedSampler is taken as a part without this. Raises TypeError for anything but a source.

    >>> import numpy as np
    >>> part = xn.data.Shard(xn.data.ArraySource(np.ones((3, 2)), np.zeros((3, 1))))
    >>> len(part.source)
    3
    """

    def __init__(self, source: Any):
        if not (hasattr(source, "__iter__") or (hasattr(source, "__len__") and hasattr(source, "__getitem__"))):
            raise TypeError(f"Shard: source is {kind_of(source)}, expected a source of rows or an iterable of batches")
        self.source = source


class NpzFiles:
    """Batches from .npz files, one file after another; each holds x, y and optionally weight, of the same length.

    `net.fit(xn.data.NpzFiles(paths, batch_size=64), ...)`, or with `fit`'s own batch size `net.fit(paths, ...)`. One
    file is in memory at a time, and its last batch may be smaller. Raises ValueError for a file without x and y.

    >>> import numpy as np
    >>> np.savez("a.npz", x=np.ones((5, 2)), y=np.zeros(5))
    >>> [x.shape for x, y in xn.data.NpzFiles(["a.npz"], batch_size=3)]
    [(3, 2), (2, 2)]
    """

    def __init__(self, paths: Sequence[Any], batch_size: int = 32):
        if not isinstance(paths, (list, tuple)) or not paths:
            raise TypeError(f'NpzFiles: paths must be a list of at least one, such as ["a.npz"], got {brief(paths)}')
        self.paths = [checks.path("NpzFiles: a path", path) for path in paths]
        self.batch_size = integer("NpzFiles: batch_size", batch_size)

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        for path in self.paths:
            found = read_npz(path)
            if not {"x", "y"} <= found.keys():
                raise ValueError(f"{path} holds {', '.join(found) or 'nothing'}, expected x and y")
            parts = [found[name] for name in ("x", "y", "weight") if name in found]
            for rows in minibatches(len(parts[0]), self.batch_size):
                yield tuple(part[rows] for part in parts)


def read_npz(path: Any) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, by name.

    Raises ValueError for any other file, or one with arrays of Python objects. `path` is the file's.

    >>> import numpy as np
    >>> np.savez("data.npz", x=np.ones((3, 2)), y=np.zeros(3))
    >>> sorted(xn.data.read_npz("data.npz"))
    ['x', 'y']
    """
    import zipfile
    import zlib

    path = checks.path("read_npz: path", path)
    try:
        with open(path, "rb") as raw:
            if not zipfile.is_zipfile(raw):
                raise zipfile.BadZipFile("it is not a zip file")
            raw.seek(0)
            with np.load(raw, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
    except (ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"read_npz: {path!r} is not an .npz file of arrays of numbers or names ({error})") from None


class shuffled:  # noqa: N801  # called as a function
    """The batches of an iterable with their rows in random order, drawn from a buffer of `buffer` rows.

    The iterable is read in its own order. Batches have the size of its first one; the last may be smaller. The order
    differs between epochs and depends on `seed` and the epoch's number, so that a resumed run has the same one. `fit`
    sets the epoch by `set_epoch`; elsewhere each iteration is the next epoch.

    `source` gives batches (x, y) or (x, y, weight). The length is that of `source`, which is right if all batches but
    the last have one size; that of a list is computed. Raises ValueError for a `buffer` below 1, or a `seed` below 0.

    >>> import numpy as np
    >>> batches = [(np.arange(4)[:, None], np.arange(4)), (np.arange(4, 8)[:, None], np.arange(4, 8))]
    >>> rows = [int(y) for _, ys in xn.data.shuffled(batches) for y in ys]
    >>> sorted(rows) == list(range(8)), rows != list(range(8))
    (True, True)
    """

    def __init__(self, source: Iterable[Any], buffer: int = 10_000, seed: int = 0):
        if not hasattr(source, "__iter__"):
            hint = "; fit shuffles a source of rows by itself" if hasattr(source, "__getitem__") else ""
            raise TypeError(f"shuffled: source must be an iterable of batches, got {kind_of(source)}{hint}")
        self.source, self.buffer = source, integer("shuffled: buffer", buffer)
        self.seed, self.epoch = integer("shuffled: seed", seed, least=0), 0
        if hasattr(source, "mean_weight"):
            self.mean_weight = source.mean_weight

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose order the next iteration has."""
        self.epoch = integer("shuffled: epoch", epoch, least=0)
        if hasattr(self.source, "set_epoch"):
            self.source.set_epoch(epoch)

    def __len__(self) -> int:
        if isinstance(self.source, (list, tuple)) and self.source:
            sizes = [len(_parts_of(given, number)[0]) for number, given in enumerate(self.source, 1)]
            return -(-sum(sizes) // max(1, sizes[0]))
        return len(self.source)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        rng = np.random.default_rng([self.seed, self.epoch])
        self.epoch += 1
        waiting: list[np.ndarray] = []  # the buffer, an array for each part of a batch
        ready: list[list[np.ndarray]] = []  # rows that have left the buffer
        count = size = 0

        def batches(least: int) -> Iterator[tuple[Any, ...]]:
            """Yield batches of the rows in `ready`, as long as there are at least so many."""
            nonlocal ready
            rows = [np.concatenate(parts) for parts in zip(*ready, strict=True)]
            while rows and len(rows[0]) >= least:
                yield tuple(part[:size] for part in rows)
                rows = [part[size:] for part in rows]
            ready = [rows] if rows else []

        for number, given in enumerate(self.source, 1):
            parts = _parts_of(given, number)
            if waiting and [(a.dtype, a.shape[1:]) for a in parts] != [(a.dtype, a.shape[1:]) for a in waiting]:
                now, first = (" and ".join(f"{a.dtype} {a.shape[1:]}" for a in each) for each in (parts, waiting))
                raise ValueError(f"shuffled: the rows of batch {number} are {now}, of the first {first}")
            size = size or len(parts[0])
            if not waiting:
                waiting = [np.empty((self.buffer, *part.shape[1:]), part.dtype) for part in parts]
            for some in minibatches(len(parts[0]), self.buffer):
                new = [part[some] for part in parts]
                fresh = min(len(new[0]), self.buffer - count)
                out = rng.choice(count, len(new[0]) - fresh, replace=False)  # rows to be replaced by new ones
                if len(out):
                    ready.append([part[out] for part in waiting])
                for part, rows in zip(waiting, new, strict=True):
                    part[count : count + fresh] = rows[:fresh]
                    part[out] = rows[fresh:]
                count += fresh
            if sum(len(rows[0]) for rows in ready) >= size:
                yield from batches(size)
        order = rng.permutation(count)
        ready.append([part[:count][order] for part in waiting])
        yield from batches(1)


def _parts_of(given: Any, number: int) -> list[np.ndarray]:
    """Return the arrays of a batch to be shuffled. Raises ValueError unless they have the same number of rows."""
    if not isinstance(given, (tuple, list)):
        raise TypeError(f"shuffled: batch {number} is {kind_of(given)}, expected (x, y) or (x, y, weight)")
    parts = [on_host(part, f"shuffled: a part of batch {number}") for part in given]
    if len({a.shape[:1] or None for a in parts}) != 1 or not parts[0].ndim:
        shapes = ", ".join(str(a.shape) for a in parts)
        raise ValueError(f"shuffled: x, y and weight must have as many rows, got the shapes {shapes} in batch {number}")
    return parts


def __dir__() -> list[str]:
    return __all__
