"""The kernels of NumPy in loops that Numba compiles."""

from typing import Any

import numpy as np

from ....backends import Array, Backend
from ...stages import Product
from ..calls import Calls
from ..convolution import Flatten
from ..dropout import Dropout
from ..images import Pooling, of_images
from .attention import Attention
from .batch_norm import BatchNorm, averaged
from .convolution import Convolution, Pool
from .embedding import Embedding
from .layer_norm import LayerNorm
from .optimizers import Update
from .pointwise import Pointwise
from .positions import Dense
from .softmax import SoftmaxCrossEntropy, higher
from .winograd import Winograd


class NumbaKernels(Calls):
    """`Calls` with the stages' work in compiled loops."""

    stages: tuple[Any, ...] = (
        *(BatchNorm, Pointwise, Product, LayerNorm, Dense, Attention),
        *(Convolution, Flatten, of_images(BatchNorm), of_images(Pointwise), Pooling, Embedding, Dropout),
    )
    loss, update = SoftmaxCrossEntropy.of, Update
    pool, winograd = Pool, Winograd
    compiled = True
    bias_joins_from = 2**16  # the loop adds a bias on its way, and a small product takes longer with one row more

    def __init__(self, backend: Backend):
        super().__init__(backend)
        higher(np.zeros(1), np.zeros(1))  # where Numba compiles nothing, that shows before there is a step to fail

    def averaged(self, old: Array, batch: Array, rates: Array) -> Array:
        averaged(old, batch, rates, new := np.empty_like(old))
        return new
