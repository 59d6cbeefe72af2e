"""Neural networks with every derivative written by hand, on NumPy, CuPy, PyTorch and JAX arrays."""

import importlib
import sys
from typing import TYPE_CHECKING, Any

from . import data, initializers, layers, losses, metrics, ops, optimizers, schedules
from .backends import Backend, BackendUnavailableError, get_backend, use_backend
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
from .optimizers import *
from .optimizers import Optimizer
from .schedules import Constant, CosineDecay, ExponentialDecay, StepDecay, WarmUp
from .version import __version__ as __version__

if TYPE_CHECKING:  # at run time each is imported when it is first asked for
    from . import callbacks as callbacks
    from . import estimators as estimators
    from . import files as files
    from . import plots
    from .callbacks import CSVLog, Doctor, EarlyStopping, ReduceOnPlateau, TimeLimit
    from .common.versions import show_versions
    from .files.load import load
    from .files.safetensors import FormatError
    from .gradcheck import GradientError, check_gradients, compare_backends
    from .network import Sequential
    from .training.callback import Callback
    from .training.checkpoints import Checkpoint
    from .training.history import History
    from .training.run import DivergenceError

LATER = {  # the module that has it; a folder's own module has no other
    "callbacks": "callbacks", "estimators": "estimators", "files": "files", "plots": "plots",
    "CSVLog": "callbacks", "Doctor": "callbacks", "EarlyStopping": "callbacks", "ReduceOnPlateau": "callbacks",
    "TimeLimit": "callbacks", "Callback": "training.callback", "Checkpoint": "training.checkpoints",
    "DivergenceError": "training.run", "FormatError": "files.safetensors", "GradientError": "gradcheck",
    "History": "training.history", "Sequential": "network", "check_gradients": "gradcheck",
    "compare_backends": "gradcheck", "load": "files.load", "show_versions": "common.versions",
}  # fmt: skip
__all__ = [
    "Backend", "BackendUnavailableError", "CSVLog", "Callback", "Checkpoint", "Constant", "CosineDecay",
    "DivergenceError", "Doctor", "EarlyStopping", "ExponentialDecay", "FormatError", "GradientError", "History",
    "Layer", "Loss", "Optimizer", "ReduceOnPlateau", "Sequential", "StepDecay", "TimeLimit", "WarmUp", "accuracy",
    "check_gradients", "compare_backends", "confusion_matrix", "data", "f1", "get_backend", "initializers", "load",
    "mean_absolute_error", "mean_squared_error", "metrics", "ops", "plots", "r2", "roc_auc", "schedules",
    "show_versions", "top_k_accuracy", "use_backend",
]  # fmt: skip
__all__ += layers.__all__ + losses.__all__ + optimizers.__all__


ELSEWHERE = {  # names of PyTorch's and Keras's, and what is the same here
    "AdaptiveAvgPool2d": "GlobalAveragePool", "AvgPool1d": "AveragePool1d", "AvgPool2d": "AveragePool2d",
    "BCELoss": "BinaryCrossEntropy", "BCEWithLogitsLoss": "BinaryCrossEntropyWithLogits", "BatchNorm1d": "BatchNorm",
    "BatchNorm2d": "BatchNorm", "BatchNormalization": "BatchNorm", "Conv1D": "Conv1d", "Conv2D": "Conv2d",
    "CrossEntropyLoss": "SoftmaxCrossEntropy", "HuberLoss": "Huber", "L1Loss": "MeanAbsoluteError", "Linear": "Dense",
    "MSELoss": "MeanSquaredError", "MaxPooling2D": "MaxPool2d", "ModelCheckpoint": "Checkpoint", "Module": "Layer",
    "ReduceLROnPlateau": "ReduceOnPlateau", "SparseCategoricalCrossentropy": "SoftmaxCrossEntropy",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in LATER:
        hint = f"; what is {name} elsewhere is xpnet.{ELSEWHERE[name]}" if name in ELSEWHERE else ""
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}{hint}", name=name, obj=sys.modules[__name__]
        )
    module = importlib.import_module(f".{LATER[name]}", __name__)
    value = globals()[name] = module if name == LATER[name] else getattr(module, name)
    return value


def __dir__() -> list[str]:
    return [*__all__, "__version__", "layers", "losses", "optimizers", *(name for name in LATER if name not in __all__)]
