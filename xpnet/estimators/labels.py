"""Encoding of class labels as rows of 0 and 1, and decoding. Axes: N rows, K outputs."""

from typing import Any

import numpy as np
from scipy import sparse
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels

from .. import ops
from ..backends import Array, Backend, namespace, on_host


class Labels:
    """The classes of a target: "binary" (N, 1), "multiclass" (N, K) with a single 1 in a row, or "multilabel" (N, K).

    `classes` is a sorted NumPy array. As in scikit-learn, a single class counts as binary.
    """

    def __init__(self, y: Any):
        check_classification_targets(y)
        kind = type_of_target(y)
        if kind == "multiclass-multioutput":
            raise ValueError("Multioutput target data is not supported with label binarization")
        self.sparse = type(y).__name__ if hasattr(y, "tocsr") else None
        if kind == "multilabel-indicator":
            self.kind, self.classes = "multilabel", np.arange(y.shape[1])
        else:
            self.classes = unique_labels(on_host(y))
            self.kind = "binary" if len(self.classes) <= 2 else "multiclass"

    @property
    def outputs(self) -> int:
        """The number of outputs, K."""
        return 1 if self.kind == "binary" else len(self.classes)

    def classes_in(self, y: Any) -> np.ndarray:
        """Return the classes in another target. Raises ValueError for one of another kind."""
        if self.kind != "multilabel":
            check_classification_targets(y)
            if y.ndim != 1:
                raise ValueError(f"y has shape {y.shape}, expected (n,) as in the first fit")
            classes: np.ndarray = unique_labels(on_host(y))
            return classes
        if y.ndim != 2 or y.shape[1] != len(self.classes):
            raise ValueError(f"y has shape {y.shape}, expected (n, {len(self.classes)}) as in the first fit")
        return self.classes

    def numbers(self, y: Any) -> np.ndarray:
        """Return each row's class as its index in `classes`; for multilabel, the rows themselves."""
        host = np.asarray(y.toarray()) if hasattr(y, "toarray") else on_host(y)
        return host if self.kind == "multilabel" else np.searchsorted(self.classes, host)

    def rows(self, numbers: np.ndarray, outputs: int, backend: Backend, dtype: str) -> Array:
        """Return `numbers` as rows of 0 and 1 on the backend, with the batch axis contiguous in memory."""
        if self.kind == "multilabel":
            return backend.asarray(np.asfortranarray(numbers != 0, dtype=dtype))
        if outputs == 1:
            return backend.asarray((numbers == 1)[:, None], dtype)
        with backend.scope():
            return ops.one_hot(backend.asarray(numbers.astype(np.int32)), outputs, backend.dtype(dtype))

    def choices(self, score: Array, threshold: float) -> Array:
        """Return the class index of each row, or 0 or 1 for each label, from the network's outputs, as integers."""
        xp = namespace(score)
        if self.kind != "multilabel" and score.shape[1] > 1:
            return xp.argmax(score, axis=1)
        above = score > threshold
        return xp.astype(above if self.kind == "multilabel" else above[:, 0], xp.asarray(0).dtype)

    def predicted(self, choices: Array, classes: Array) -> Any:
        """Return the labels of `choices`; numbers stay on the backend, and rows are sparse if the target was."""
        if self.kind == "multilabel":
            return choices if self.sparse is None else getattr(sparse, self.sparse)(choices)
        if isinstance(classes, np.ndarray):
            choices = on_host(choices)
            return classes[np.minimum(choices, len(classes) - 1)]  # a single class has index 0 only
        xp = namespace(classes)
        return xp.take(classes, xp.minimum(choices, classes.shape[0] - 1), axis=0)
