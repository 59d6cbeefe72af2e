"""The kernels of PyTorch: those in calls, and others by functions of its own."""

from typing import Any

from ...stages import Product
from ..batch_norm import BatchNorm
from ..calls import Calls
from ..layer_norm import LayerNorm
from ..pointwise import Pointwise
from ..positions import Dense
from .attention import Attention
from .convolution import Convolution, Flatten


class TorchKernels(Calls):
    """`Calls` with PyTorch's own convolution and products of many matrices."""

    stages: tuple[Any, ...] = BatchNorm, Pointwise, Product, LayerNorm, Dense, Attention, Convolution, Flatten
