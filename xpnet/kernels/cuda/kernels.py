"""The family of CuPy's kernels, in CUDA."""

import importlib
import math
from typing import Any

from ...backends import Array, Backend
from ...optimizers import Optimizer
from ..cpu.convolution import Flatten
from ..stages import Product
from .attention import Attention
from .batch_norm import BatchNorm
from .convolution import Convolution
from .dropout import Dropout
from .embedding import Embedding
from .launching import over_vector
from .layer_norm import LayerNorm
from .optimizers import Update
from .pointwise import Pointwise
from .pooling import Pool
from .products import ProductOfPositions
from .softmax import SoftmaxCrossEntropy


class CuPyKernels:
    """The family: its classes of stages, in order of preference, and the functions that they share."""

    stages: tuple[Any, ...] = (
        *(BatchNorm, LayerNorm, Pointwise, Product, ProductOfPositions, Dropout, Convolution, Pool, Flatten),
        *(Attention, Embedding),
    )
    loss = SoftmaxCrossEntropy.of  # returns the stage of a loss, or None if it has none
    threaded = False
    bias_joins_from = math.inf  # no GPU has told whether it pays

    def __init__(self, backend: Backend):
        self.cupy = importlib.import_module("cupy")
        runtime = self.cupy.cuda.runtime
        self.multiprocessors = runtime.deviceGetAttribute(runtime.cudaDevAttrMultiProcessorCount, backend.device.id)
        self.xp = backend.xp
        with backend.scope():  # of the blocks that are done, see last_block: of all, or of each row that several share
            self.count = self.cupy.zeros(self.multiprocessors, dtype="uint32")

    def product(self, a: Array, b: Array, out: Array) -> Array:
        """a @ b"""
        return self.cupy.dot(a, b, out=out)

    def averaged(self, old: Array, batch: Array, rates: Array) -> Array:
        """(1 - rates) old + rates batch"""
        new = self.cupy.empty_like(old)
        over_vector("averaged", old, old, batch, rates, old.shape[0], new)
        return new

    def optimizer(self, optimizer: Optimizer) -> Update:
        """Return the update of an optimizer."""
        return Update(self, optimizer)
