"""Data: scikit-learn's digits, train-test splits, minibatches."""

from typing import TYPE_CHECKING, Any

import numpy as np

from .backends import on_host
from .common import checks
from .common.checks import finite, integer, kind_of

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: images (1797, 64) float64 in [0, 1], and classes (1797,) int64.

    Alpaydin & Kaynak 1998, UCI. Nothing is downloaded; raises ImportError without scikit-learn, which has the images.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        remedy = "pip install scikit-learn threadpoolctl"
        raise ImportError(f"load_digits needs scikit-learn, where the images are: {remedy}") from error
    digits = load()
    return digits.data / 16.0, digits.target


def train_test_split(
    x: Any, y: Any, test_size: float | int = 0.25, seed: int | None = 0, stratify: "ArrayLike | None" = None
) -> tuple[Any, Any, Any, Any]:
    """Split into x_train, x_test, y_train, y_test: shuffled by `seed`, or with `seed=None` the last rows as the test.

    `test_size` is a fraction of the rows or, as an int, their number. With `stratify`, labels (n,) such as y, each side
    has every label in proportion, to within a row. pandas objects and masked arrays keep their type, all else becomes
    NumPy arrays. Raises ValueError if one side would be empty, or a label could not be on both sides.
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
        shares[np.argsort(-parts, kind="stable")[: count - shares.sum()]] += 1  # the largest parts of a row become one
        for label, share in enumerate(shares):
            own = np.flatnonzero(numbers[order] == label)
            held_out[own[: len(own) - share]] = False
    train, test = order[~held_out], order[held_out]
    x, y = (a.iloc if hasattr(a, "iloc") else a for a in (x, y))
    return x[train], x[test], y[train], y[test]


def _as_rows(who: str, x: Any) -> Any:
    """x as an array of one axis or more; pandas objects and masked arrays as they are."""
    rows = x if hasattr(x, "iloc") or isinstance(x, np.ma.MaskedArray) else on_host(x, who)
    if not rows.ndim:
        raise ValueError(f"{who} has no rows: it is {kind_of(x)}")
    return rows


def minibatches(rows: int, batch_size: int) -> list[slice]:
    """Slices of `batch_size` rows; the last is shorter if `batch_size` does not divide `rows`.

    Raises ValueError unless `batch_size` is a whole number of at least 1 and `rows` one of at least 0.
    """
    rows, batch_size = integer("minibatches: rows", rows, least=0), integer("minibatches: batch_size", batch_size)
    return [slice(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]
