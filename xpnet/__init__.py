"""Neural networks with every derivative written by hand, on NumPy, CuPy, PyTorch and JAX arrays."""

from . import callbacks, data, initializers, layers, losses, metrics, ops, optimizers, plots, schedules
from .backends import Backend, BackendUnavailableError, get_backend, use_backend
from .callbacks import *
from .common.versions import show_versions
from .files.load import load
from .files.safetensors import FormatError
from .gradcheck import GradientError, check_gradients, compare_backends
from .layers import *
from .layers.base import Layer
from .losses import *
from .losses.losses import Loss
from .metrics import (
    accuracy,
    confusion_matrix,
    f1,
    mean_absolute_error,
    mean_squared_error,
    r2,
    roc_auc,
    top_k_accuracy,
)
from .network import Sequential
from .optimizers import *
from .optimizers import Optimizer
from .schedules import Constant, CosineDecay, ExponentialDecay, StepDecay, WarmUp
from .training.callback import Callback
from .training.checkpoints import Checkpoint
from .training.history import History
from .training.run import DivergenceError
from .version import __version__ as __version__

__all__ = [
    "Backend", "BackendUnavailableError", "Callback", "Checkpoint", "Constant", "CosineDecay", "DivergenceError",
    "ExponentialDecay", "FormatError", "GradientError", "History", "Layer", "Loss", "Optimizer", "Sequential",
    "StepDecay", "WarmUp", "accuracy", "check_gradients", "compare_backends", "confusion_matrix", "data", "f1",
    "get_backend", "initializers", "load", "mean_absolute_error", "mean_squared_error", "metrics", "ops", "plots",
    "r2", "roc_auc", "schedules", "show_versions", "top_k_accuracy", "use_backend",
]  # fmt: skip
__all__ += layers.__all__ + losses.__all__ + optimizers.__all__ + callbacks.__all__
