"""What goes on beside the training, one idea per file."""

from .base import Callback
from .doctor import Doctor
from .history import History
from .logs import CSVLog, TimeLimit
from .progress import Progress
from .watching import EarlyStopping, ReduceOnPlateau

__all__ = ["CSVLog", "Callback", "Doctor", "EarlyStopping", "History", "Progress", "ReduceOnPlateau", "TimeLimit"]
