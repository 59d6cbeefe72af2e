"""The kernels for PyTorch: those in calls, and some by PyTorch's own functions."""

from typing import Any

from ...stages import Product
from ..batch_norm import BatchNorm
from ..calls import Calls
from ..layer_norm import LayerNorm
from ..pointwise import Pointwise
from .attention import Attention
from .convolution import Convolution, Flatten
from .positions import Dense


class TorchKernels(Calls):
    """`Calls` with PyTorch's own convolution, GELU and products of many matrices."""

    stages: tuple[Any, ...] = BatchNorm, Pointwise, Product, LayerNorm, Dense, Attention, Convolution, Flatten
