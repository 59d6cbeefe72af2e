"""Neural networks with every derivative written by hand, on NumPy, CuPy, PyTorch and JAX arrays."""

from . import data, initializers, metrics, ops, plots, schedules
from .backend import Backend, BackendUnavailableError, get_backend, use_backend
from .callbacks import Callback, CSVLog, Doctor, EarlyStopping, History, ReduceOnPlateau, TimeLimit
from .checkpoints import Checkpoint
from .container import FormatError
from .files import load
from .gradcheck import GradientError, check_gradients, compare_backends
from .layers.activations import ELU, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from .layers.base import Layer
from .layers.batchnorm import BatchNorm
from .layers.blocks import Branches, Residual
from .layers.dense import Dense
from .layers.dropout import Dropout
from .losses import (
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
from .run import DivergenceError
from .schedules import Constant, CosineDecay, ExponentialDecay, StepDecay, WarmUp

__version__ = "0.1.0"

__all__ = [
    "ELU",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Backend",
    "BackendUnavailableError",
    "BatchNorm",
    "BinaryCrossEntropy",
    "BinaryCrossEntropyWithLogits",
    "Branches",
    "CSVLog",
    "Callback",
    "CategoricalCrossEntropy",
    "Checkpoint",
    "Constant",
    "CosineDecay",
    "Dense",
    "DivergenceError",
    "Doctor",
    "Dropout",
    "EarlyStopping",
    "ExponentialDecay",
    "FormatError",
    "GradientError",
    "History",
    "Huber",
    "Layer",
    "LeakyReLU",
    "Loss",
    "MeanAbsoluteError",
    "MeanSquaredError",
    "Nesterov",
    "Optimizer",
    "RMSprop",
    "ReLU",
    "ReduceOnPlateau",
    "Residual",
    "Sequential",
    "Sigmoid",
    "Softmax",
    "SoftmaxCrossEntropy",
    "StepDecay",
    "Tanh",
    "TimeLimit",
    "WarmUp",
    "accuracy",
    "check_gradients",
    "compare_backends",
    "confusion_matrix",
    "data",
    "f1",
    "get_backend",
    "initializers",
    "load",
    "mean_absolute_error",
    "mean_squared_error",
    "metrics",
    "ops",
    "plots",
    "r2",
    "roc_auc",
    "schedules",
    "top_k_accuracy",
    "use_backend",
]
