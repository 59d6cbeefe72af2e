"""Losses: each returns a value and the exact derivative of that value. `__all__` is the one list of them."""

from .losses import (
    BinaryCrossEntropy,
    BinaryCrossEntropyWithLogits,
    CategoricalCrossEntropy,
    Huber,
    MeanAbsoluteError,
    MeanSquaredError,
    SoftmaxCrossEntropy,
)

__all__ = [  # noqa: RUF022  # the order in error messages
    "SoftmaxCrossEntropy", "CategoricalCrossEntropy", "BinaryCrossEntropyWithLogits", "BinaryCrossEntropy",
    "MeanSquaredError", "MeanAbsoluteError", "Huber",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
