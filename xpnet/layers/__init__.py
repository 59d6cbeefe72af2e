"""Layers, one idea per file. Each has its forward with its backward directly below, and both formulas above them.

`__all__` is the one list of them: the package exports them, and model files may name them.
"""

from .activations import ELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from .blocks import Branches, Residual
from .dense import Dense
from .dropout import Dropout
from .normalization import BatchNorm

__all__ = [
    "ELU", "BatchNorm", "Branches", "Dense", "Dropout", "LeakyReLU", "ReLU", "Residual", "SiLU", "Sigmoid", "Softmax",
    "Softplus", "Tanh",
]  # fmt: skip
