"""Neural networks with every derivative written by hand, on NumPy, CuPy, PyTorch and JAX arrays."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .backends import Backend as Backend
from .backends import BackendUnavailableError as BackendUnavailableError
from .backends import get_backend as get_backend
from .backends import use_backend as use_backend
from .version import __version__ as __version__

if TYPE_CHECKING:  # at run time, each is imported on first use
    from . import callbacks as callbacks
    from . import data as data
    from . import estimators as estimators
    from . import files as files
    from . import initializers as initializers
    from . import layers as layers
    from . import losses as losses
    from . import metrics as metrics
    from . import ops as ops
    from . import optimizers as optimizers
    from . import plots as plots
    from . import schedules as schedules
    from .callbacks import *
    from .common.versions import show_versions as show_versions
    from .files.load import load as load
    from .files.safetensors import FormatError as FormatError
    from .gradcheck import GradientError as GradientError
    from .gradcheck import check_gradients as check_gradients
    from .gradcheck import compare_backends as compare_backends
    from .layers import *
    from .layers.base import Layer as Layer
    from .losses import *
    from .losses.losses import Loss as Loss
    from .metrics import *
    from .network import Sequential as Sequential
    from .optimizers import *
    from .optimizers import Optimizer as Optimizer
    from .schedules import *
    from .training.callback import Callback as Callback
    from .training.checkpoints import Checkpoint as Checkpoint
    from .training.history import History as History
    from .training.run import DivergenceError as DivergenceError

MODULES = (
    "callbacks", "data", "estimators", "files", "initializers", "layers", "losses", "metrics", "ops", "optimizers",
    "plots", "schedules",
)  # fmt: skip
LISTS = "layers", "losses", "optimizers", "callbacks", "metrics", "schedules"  # modules whose `__all__` is exported
OTHERS = {  # further exported names, with their modules
    "Sequential": "network", "load": "files.load", "History": "training.history", "Layer": "layers.base",
    "Loss": "losses.losses", "Optimizer": "optimizers", "Callback": "training.callback",
    "Checkpoint": "training.checkpoints", "check_gradients": "gradcheck", "compare_backends": "gradcheck",
    "DivergenceError": "training.run", "FormatError": "files.safetensors", "GradientError": "gradcheck",
    "show_versions": "common.versions",
}  # fmt: skip
ELSEWHERE = {  # names in PyTorch or Keras, with the equivalents in xpnet
    "AdaptiveAvgPool2d": "GlobalAveragePool", "AvgPool1d": "AveragePool1d", "AvgPool2d": "AveragePool2d",
    "BCELoss": "BinaryCrossEntropy", "BCEWithLogitsLoss": "BinaryCrossEntropyWithLogits", "BatchNorm1d": "BatchNorm",
    "BatchNorm2d": "BatchNorm", "BatchNormalization": "BatchNorm", "Conv1D": "Conv1d", "Conv2D": "Conv2d",
    "CrossEntropyLoss": "SoftmaxCrossEntropy", "HuberLoss": "Huber", "L1Loss": "MeanAbsoluteError", "Linear": "Dense",
    "MSELoss": "MeanSquaredError", "MaxPooling2D": "MaxPool2d", "ModelCheckpoint": "Checkpoint", "Module": "Layer",
    "ReduceLROnPlateau": "ReduceOnPlateau", "SparseCategoricalCrossentropy": "SoftmaxCrossEntropy",
}  # fmt: skip


def _module(name: str) -> ModuleType:
    return importlib.import_module(f".{name}", __name__)


def __getattr__(name: str) -> Any:
    value: Any
    if name in MODULES:
        return _module(name)
    if name == "__all__":
        eager = ["Backend", "BackendUnavailableError", "get_backend", "use_backend"]
        modules = ["data", "initializers", "metrics", "ops", "plots", "schedules"]
        value = [*OTHERS, *(each for module in LISTS for each in _module(module).__all__), *eager, *modules]
    elif name in OTHERS:
        value = getattr(_module(OTHERS[name]), name)
    elif not name.startswith("_") and (home := next((m for m in map(_module, LISTS) if name in m.__all__), None)):
        globals().update({each: getattr(home, each) for each in home.__all__})
        return globals()[name]
    else:
        hint = f"; its name here is xpnet.{ELSEWHERE[name]}" if name in ELSEWHERE else ""
        raise AttributeError(
            f"module {__name__!r} has no attribute {name!r}{hint}", name=name, obj=sys.modules[__name__]
        )
    globals()[name] = value  # so that Python does not call this function for it again
    return value


def __dir__() -> list[str]:
    return [*{*__getattr__("__all__"), *MODULES, "__version__"}]
