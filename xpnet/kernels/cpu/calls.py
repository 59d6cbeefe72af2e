"""The kernels for NumPy and PyTorch, in calls of their functions that write into given arrays."""

import importlib
from collections.abc import Callable
from typing import Any

from ... import ops
from ...backends import Array, Backend
from ...optimizers import Optimizer
from ..stages import Product
from . import threads
from .attention import Attention
from .batch_norm import BatchNorm
from .convolution import Convolution, Flatten, Pool
from .dropout import Dropout
from .embedding import Embedding
from .images import Pooling, of_images
from .layer_norm import LayerNorm
from .optimizers import Update
from .pointwise import Pointwise
from .positions import Dense
from .products import in_stacks, product
from .softmax import SoftmaxCrossEntropy
from .winograd import Winograd

Sums = Callable[..., Array]


class Calls:
    """The family of kernels in a library's calls: its classes of stages in order of preference, and functions."""

    stages: tuple[Any, ...] = (
        *(BatchNorm, Pointwise, Product, LayerNorm, Dense, Attention),
        *(Convolution, Flatten, of_images(BatchNorm), of_images(Pointwise), Pooling, Embedding, Dropout),
    )
    loss: Any = SoftmaxCrossEntropy.of  # returns the stage of a loss, or None if it has none
    update: type[Update] = Update
    pool, winograd = Pool, Winograd  # of convolutions
    compiled = False
    bias_joins_from: float = 0  # size of a Dense's weight from which its product may add the bias
    product: Callable[..., Array]
    top: Callable[..., Array]  # the maximum over axis 0

    def __init__(self, backend: Backend):
        lib = self.lib = importlib.import_module(backend.name)
        self.xp = backend.xp
        self.integers = {4: self.xp.int32, 8: self.xp.int64}  # by the size in bytes of a float
        self.row_dot = getattr(lib, "vecdot", None) or lib.linalg.vecdot
        self.threaded = backend.name == "numpy"  # PyTorch's calls have threads of their own
        self.immediate = backend.immediate
        self.scalar: Callable[[Array], Any] = float if backend.immediate else lambda a: a  # `a` stays on the device
        if backend.name == "numpy":  # the same as below, with less overhead
            self.product, self.sums = product, lib.dot
            self.top = lambda z, out: lib.maximum.reduce(z, 0, None, out)
        else:
            self.product = self.sums = lambda a, b, out: lib.matmul(a, b, out=out)
            self.top = lambda z, out: lib.amax(z, 0, out=out)

    def over_batch(self, n: int) -> tuple[Sums, Sums]:
        """Return functions for an (H, N) matrix times a vector and for dot products of rows; long sums go in spans."""
        return (spanned(self.sums), spanned(self.row_dot)) if n > ops.LONG else (self.sums, self.row_dot)

    def product_in(self, count: int) -> Callable[..., Array]:
        """Return the function for matrix products in each of `count` threads."""
        alone = self.threaded and (count > 1 or threads.blas_threads() == 1)
        return in_stacks if alone and threads.multiplies_small() else self.product

    def averaged(self, old: Array, batch: Array, rates: Array) -> Array:
        """Return (1 - rates) old + rates batch; for a rate of 1 that is `batch`, bit for bit."""
        new = 1.0 - rates
        new *= old
        new += rates * batch
        return new

    def optimizer(self, optimizer: Optimizer) -> Update:
        """Return the update of an optimizer."""
        return self.update(self, optimizer)


def spanned(product: Sums) -> Sums:
    """Return this product, over the last axis, with long sums taken in spans by `ops.in_spans`."""

    def product_in_spans(a: Array, b: Array, out: Array) -> Array:
        out[...] = ops.in_spans(lambda span: product(a[:, span], b[..., span], out=None), a.shape[1])
        return out

    return product_in_spans
