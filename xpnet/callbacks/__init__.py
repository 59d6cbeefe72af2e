"""Callbacks for training, one subject a file. `__all__` is the one list of them."""

from .doctor import Doctor
from .logs import CSVLog, TimeLimit
from .watching import EarlyStopping, ReduceOnPlateau

__all__ = ["CSVLog", "Doctor", "EarlyStopping", "ReduceOnPlateau", "TimeLimit"]


def __dir__() -> list[str]:
    return __all__
