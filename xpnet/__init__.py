"""Neural networks with every derivative written by hand, on NumPy, CuPy, PyTorch and JAX arrays."""

from . import data, initializers, metrics, ops, plots, schedules
from .backends import Backend, BackendUnavailableError, get_backend, use_backend
from .callbacks import Callback, CSVLog, Doctor, EarlyStopping, History, ReduceOnPlateau, TimeLimit
from .files.load import load
from .files.safetensors import FormatError
from .gradcheck import GradientError, check_gradients, compare_backends
from .layers.activations import ELU, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from .layers.base import Layer
from .layers.blocks import Branches, Residual
from .layers.dense import Dense
from .layers.dropout import Dropout
from .layers.normalization import BatchNorm
from .losses.losses import (
    BinaryCrossEntropy,
    BinaryCrossEntropyWithLogits,
    CategoricalCrossEntropy,
    Huber,
    Loss,
    MeanAbsoluteError,
    MeanSquaredError,
    SoftmaxCrossEntropy,
)
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
from .optimizers import SGD, Adagrad, Adam, AdamW, Nesterov, Optimizer, RMSprop
from .schedules import Constant, CosineDecay, ExponentialDecay, StepDecay, WarmUp
from .training.checkpoints import Checkpoint
from .training.run import DivergenceError
from .version import __version__ as __version__

__all__ = [
    "ELU", "SGD", "Adagrad", "Adam", "AdamW", "Backend", "BackendUnavailableError", "BatchNorm", "BinaryCrossEntropy",
    "BinaryCrossEntropyWithLogits", "Branches", "CSVLog", "Callback", "CategoricalCrossEntropy", "Checkpoint",
    "Constant", "CosineDecay", "Dense", "DivergenceError", "Doctor", "Dropout", "EarlyStopping", "ExponentialDecay",
    "FormatError", "GradientError", "History", "Huber", "Layer", "LeakyReLU", "Loss", "MeanAbsoluteError",
    "MeanSquaredError", "Nesterov", "Optimizer", "RMSprop", "ReLU", "ReduceOnPlateau", "Residual", "Sequential",
    "Sigmoid", "Softmax", "SoftmaxCrossEntropy", "StepDecay", "Tanh", "TimeLimit", "WarmUp", "accuracy",
    "check_gradients", "compare_backends", "confusion_matrix", "data", "f1", "get_backend", "initializers", "load",
    "mean_absolute_error", "mean_squared_error", "metrics", "ops", "plots", "r2", "roc_auc", "schedules",
    "top_k_accuracy", "use_backend",
]  # fmt: skip
