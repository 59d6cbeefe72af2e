"""Layers, one idea per file. Each has its forward with its backward directly below, and both formulas above them.

`__all__` is the one list of them: the package exports them, and model files may name them.
"""

from .activations import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from .attention import MultiHeadAttention
from .blocks import Branches, Residual
from .dense import Dense
from .dropout import Dropout
from .embedding import Embedding, PositionalEmbedding
from .normalization import BatchNorm, LayerNorm, RMSNorm

__all__ = [
    "ELU", "GELU", "BatchNorm", "Branches", "Dense", "Dropout", "Embedding", "LayerNorm", "LeakyReLU",
    "MultiHeadAttention", "PositionalEmbedding", "RMSNorm", "ReLU", "Residual", "SiLU", "Sigmoid", "Softmax",
    "Softplus", "Tanh",
]  # fmt: skip
