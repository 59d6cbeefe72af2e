"""Data: scikit-learn's digits, splitting, minibatches."""

from typing import TYPE_CHECKING

import numpy as np

from .checks import finite

if TYPE_CHECKING:
    from numpy.typing import ArrayLike


def load_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's handwritten digits: images (1797, 64) float64 in [0, 1], row by row, and classes (1797,) int64.

    Alpaydin & Kaynak 1998, UCI. Nothing is downloaded: the images come with scikit-learn, whose absence raises
    ImportError.
    """
    try:
        from sklearn.datasets import load_digits as bunch
    except ImportError as error:
        raise ImportError(
            "load_digits needs scikit-learn, where the images are: pip install 'xpnet[sklearn]'"
        ) from error
    digits = bunch()
    return digits.data / 16.0, digits.target


def train_test_split(
    x: "ArrayLike", y: "ArrayLike", test_size: float | int = 0.25, seed: int | None = 0
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """x_train, x_test, y_train, y_test: shuffled by `seed`, or the last rows as they stand with `seed=None`.

    `test_size` is a share of the rows or, as an int, their number. Raises ValueError for another, and where one side
    would be empty.
    """
    finite("train_test_split: test_size", test_size)
    x, y = np.asarray(x), np.asarray(y)
    if len(x) != len(y):
        raise ValueError(f"train_test_split: x has {len(x)} rows and y {len(y)}; they must match")
    rows = len(x)
    count = int(test_size) if isinstance(test_size, (int, np.integer)) else round(rows * test_size)
    if not 0 < count < rows:
        raise ValueError(f"train_test_split: test_size {test_size!r} of {rows} rows leaves one side empty")
    order = np.arange(rows) if seed is None else np.random.default_rng(seed).permutation(rows)
    train, test = order[: rows - count], order[rows - count :]
    return x[train], x[test], y[train], y[test]


def minibatches(rows: int, batch_size: int) -> list[slice]:
    """Slices of `batch_size` rows, the last one shorter where they do not divide."""
    return [slice(start, min(start + batch_size, rows)) for start in range(0, rows, batch_size)]
