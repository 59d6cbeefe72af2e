"""Embeddings of ids, and of their places in a sequence, in NumPy's calls."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ... import ops
from ...backends import Array
from ...layers import embedding
from ..stages import Part, Site, Stage, Vector
from .positions import PositionsStage


class Embedding(PositionsStage):
    """An Embedding, and perhaps the PositionalEmbedding behind it, as the first layers of a network."""

    keeps = True

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        kinds = embedding.Embedding, embedding.PositionalEmbedding
        taken = [part for part, kind in zip(parts, kinds, strict=False) if type(part.layer) is kind]
        fits = before is None and taken and taken[0] is parts[0] and parts[0].axes > 1 and site.family.lib is np
        if not fits or not all(part.layer.trainable for part in taken):
            return None
        return cls(site, taken[: 2 if parts[0].axes == 2 else 1])

    def __init__(self, site: Site, parts: Sequence[Part]):
        super().__init__(site, None, *[f"{part.prefix}.weight" for part in parts])
        self.layers, self.axes = len(parts), parts[0].axes
        self.of_ids, *rest = (part.layer for part in parts)
        self.of_places = rest[0] if rest else None

    def views(self, vector: Vector) -> tuple[Any, ...]:
        """The weights; None for that of a layer that is not there."""
        weight, *places = (vector.arrays[name] for name in self.names)
        return weight, places[0] if places else None

    def bind(self, x: Array, before: Stage | None) -> None:
        d = self.of_ids.features
        self.shape, self.t = (d, *x.shape), x.shape[0]
        if self.of_places:
            self.of_places.output_shape(self.shape[::-1])  # which refuses sequences that are too long
        self.rows = self.work("y", (math.prod(x.shape), d))
        self.y = self.positions(self.rows)
        self.ones = self.shared.filled(1.0, (x.shape[-1],))
        self.sums, _ = self.site.family.over_batch(x.shape[-1])

    def forward(self, x: Array, params: Any) -> Array:
        weight, places = params
        embedding.check_ids(repr(self.of_ids), x.T, self.of_ids.vocabulary)
        self.cache = np.reshape(x.T, (-1,))
        np.take(weight, self.cache, axis=0, out=self.rows, mode="clip")  # "raise" would make a copy of it first
        if places is not None:
            sequences = self.sequences(self.rows)
            sequences += places[: self.t].reshape((-1,))
        return self.y

    def sequences(self, rows: np.ndarray) -> np.ndarray:
        """(M, D) as (N, T D)."""
        return rows.reshape((self.shape[-1], self.t * rows.shape[1]))

    def backward(self, dy: Array, params: Any, grads: Any) -> None:
        rows, (dweight, dplaces) = self.matrix(dy), grads
        self.add_rows(rows, dweight)
        if dplaces is not None:
            self.sums(self.sequences(rows).T, self.ones, out=dplaces[: self.t].reshape((-1,)))
            dplaces[self.t :] = 0.0

    def add_rows(self, rows: np.ndarray, sums: np.ndarray) -> None:
        """The sums of the rows with the same id."""
        sums[...] = ops.rows_added(rows, self.cache, self.of_ids.vocabulary)
