"""Callbacks: what runs beside the training, one subject a file."""

from ..training.callback import Callback
from ..training.history import History
from ..training.progress import Progress
from .doctor import Doctor
from .logs import CSVLog, TimeLimit
from .watching import EarlyStopping, ReduceOnPlateau

__all__ = ["CSVLog", "Callback", "Doctor", "EarlyStopping", "History", "Progress", "ReduceOnPlateau", "TimeLimit"]
