"""Embeddings of ids and of positions, in NumPy's calls."""

import math
from typing import Any

import numpy as np

from ... import ops
from ...backends import Array
from ...layers import embedding
from .. import stages
from ..stages import Stage
from .positions import PositionsStage


class Embedding(stages.Embedding, PositionsStage):
    """y has a row of the weight for each id; the rows of positions are added to all sequences."""

    def bind(self, x: Array, before: Stage | None) -> None:
        d = self.of_ids.features
        self.shape, self.t = (d, *x.shape), x.shape[0]
        if self.of_places:
            self.of_places.output_shape(self.shape[::-1])  # raises ValueError for sequences that are too long
        self.rows = self.work("y", (math.prod(x.shape), d))
        self.y = self.positions(self.rows)
        self.ones = self.shared.filled(1.0, (x.shape[-1],))
        self.sums, _ = self.site.family.over_batch(x.shape[-1])

    def forward(self, x: Array, params: Any) -> Array:
        weight, places = params
        embedding.check_ids(repr(self.of_ids), x.T, self.of_ids.vocabulary)
        self.cache = np.reshape(x.T, (-1,))
        np.take(weight, self.cache, axis=0, out=self.rows, mode="clip")  # "raise" would copy `rows` first
        if places is not None:
            sequences = self.sequences(self.rows)
            sequences += places[: self.t].reshape((-1,))
        return self.y

    def sequences(self, rows: np.ndarray) -> np.ndarray:
        """View rows (M, D) as (N, T D)."""
        return rows.reshape((self.shape[-1], self.t * rows.shape[1]))

    def backward(self, dy: Array, params: Any, grads: Any) -> None:
        rows, (dweight, dplaces) = self.matrix(dy), grads
        self.add_rows(rows, dweight)
        if dplaces is not None:
            self.sums(self.sequences(rows).T, self.ones, out=dplaces[: self.t].reshape((-1,)))
            dplaces[self.t :] = 0.0

    def add_rows(self, rows: np.ndarray, sums: np.ndarray) -> None:
        """Write the sums of the rows with the same id."""
        sums[...] = ops.rows_added(rows, self.cache, self.of_ids.vocabulary)
