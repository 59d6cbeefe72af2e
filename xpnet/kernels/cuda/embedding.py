"""Embeddings of ids, and of their places in a sequence, in CUDA."""

from collections.abc import Sequence
from typing import Any

from ...backends import Array
from ...layers import embedding
from ..stages import Part, Site, Stage, Vector
from .launching import C_TYPES, launch, over_vector, threads
from .positions import PositionsStage, in_positions


class Embedding(PositionsStage):
    """An Embedding, and perhaps the PositionalEmbedding behind it, as the first layers of a network.

    It leaves y to the stage behind it that has taken `computes` from it, and gives it the `sources`.
    The vectors' gradients are sums in the order of the positions: the same bits each time.
    """

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        kinds = embedding.Embedding, embedding.PositionalEmbedding
        taken = [part for part, kind in zip(parts, kinds, strict=False) if type(part.layer) is kind]
        fits = before is None and taken and type(parts[0].layer) is kinds[0] and parts[0].axes > 1
        if not fits or not all(part.layer.trainable for part in taken):
            return None
        return cls(site, taken[: 2 if parts[0].axes == 2 else 1])

    def __init__(self, site: Site, parts: Sequence[Part]):
        super().__init__(site, None, *[f"{part.prefix}.weight" for part in parts])
        self.layers, self.axes, self.keeps = len(parts), parts[0].axes, True
        self.of_ids, *rest = (part.layer for part in parts)
        self.of_places = rest[0] if rest else None

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """The weights; None for that of a layer that is not there."""
        weight, *places = (vector.arrays[name] for name in self.names)
        return weight, places[0] if places else None

    def bind(self, x: Array, before: Stage | None) -> None:
        d = self.of_ids.features
        if self.of_places:
            self.of_places.output_shape((*x.shape[::-1], d))  # which refuses sequences that are too long
        self.m, self.t = x.size, x.shape[0]
        self.y = self.work("y", (self.m, d))
        self.given, self.computes = self.y.reshape((*x.shape[::-1], d)).T, True

    def forward(self, x: Array, params: Any) -> Array:
        self.cache = in_positions(x[None], "int64")
        self.sources = *params, self.cache, self.of_ids.vocabulary, self.t
        if self.computes:
            over_vector("embedding", self.y, 2048, *self.sources, *self.y.shape, self.y)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> None:
        (m, d), vocabulary = self.y.shape, self.of_ids.vocabulary
        length = self.of_places.length if self.of_places else 0
        arguments = in_positions(dy, dy.dtype), vocabulary, length, m, self.t, d, *grads
        name, grid = f"embedding_backward<{C_TYPES[dy.dtype.name]}>", (vocabulary + length,)
        launch(name, grid, (threads(d),), dy.dtype, self.cache, *arguments)
