"""Embeddings of ids and of positions, in CUDA."""

from typing import Any

from ...backends import Array
from .. import stages
from ..stages import Stage
from .launching import launch, over_vector, threads
from .positions import PositionsStage, in_positions


class Embedding(stages.Embedding, PositionsStage):
    """The next stage may set `computes` to False, and compute y from the `sources` in its own kernel.

    Gradients are summed in the order of the positions, so their bits are the same each time.
    """

    def bind(self, x: Array, before: Stage | None) -> None:
        d = self.of_ids.features
        if self.of_places:
            self.of_places.output_shape((*x.shape[::-1], d))  # raises ValueError for sequences that are too long
        self.m, self.t = x.size, x.shape[0]
        self.y = self.work("y", (self.m, d))
        self.given, self.computes = self.y.reshape((*x.shape[::-1], d)).T, True

    def forward(self, x: Array, params: Any) -> Array:
        self.cache = in_positions(x[None], "int64")
        self.sources = *params, self.cache, self.of_ids.vocabulary, self.t
        if self.computes:
            over_vector("embedding", self.y, *self.sources, *self.y.shape, self.y)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> None:
        (m, d), vocabulary = self.y.shape, self.of_ids.vocabulary
        length = self.of_places.length if self.of_places else 0
        arguments = in_positions(dy, dy.dtype), vocabulary, length, m, self.t, d, *grads
        launch("embedding_backward", (vocabulary + length,), (threads(d),), dy.dtype, self.cache, *arguments)
