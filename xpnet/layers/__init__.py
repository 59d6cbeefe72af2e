"""Layers, one idea per file: in each class both formulas, then forward, then backward directly below it.

`__all__` is the one list of them: the package exports these classes, and model files may name them.
"""

from .activations import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from .attention import MultiHeadAttention
from .blocks import Branches, Residual
from .convolution import Conv1d, Conv2d
from .dense import Dense
from .dropout import Dropout
from .embedding import Embedding, PositionalEmbedding
from .normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from .pooling import AveragePool1d, AveragePool2d, GlobalAveragePool, MaxPool1d, MaxPool2d
from .shape import Flatten, Rescale, Reshape, Transpose

__all__ = [
    "ELU", "GELU", "AveragePool1d", "AveragePool2d", "BatchNorm", "Branches", "Conv1d", "Conv2d", "Dense", "Dropout",
    "Embedding", "Flatten", "GlobalAveragePool", "GroupNorm", "LayerNorm", "LeakyReLU", "MaxPool1d", "MaxPool2d",
    "MultiHeadAttention", "PositionalEmbedding", "RMSNorm", "ReLU", "Rescale", "Reshape", "Residual", "SiLU", "Sigmoid",
    "Softmax", "Softplus", "Tanh", "Transpose",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
