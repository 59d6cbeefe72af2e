"""Batch norm and a pointwise function, in CUDA."""

from collections.abc import Sequence
from typing import Any

from ...backends import Array
from ...layers import normalization
from .. import stages
from ..stages import Part, Site, Stage
from ..table import pointwise
from .launching import RowsStage, in_rows, laid_out
from .windows import takes_images


class BatchNorm(stages.BatchNorm, RowsStage):
    """If several blocks share a row, each part of a kernel is a separate launch."""

    @classmethod
    def take(cls, site: Site, before: Stage | None, parts: Sequence[Part]) -> Stage | None:
        fits = parts and type(parts[0].layer) is normalization.BatchNorm and not parts[0].frozen
        if not fits or not (parts[0].axes == 2 or takes_images(before)):
            return None
        return cls(site, before, parts[0], parts[1].layer if parts[1:] and pointwise(parts[1].layer) else None)

    def __init__(self, site: Site, before: Stage | None, part: Part, f: Any):
        super().__init__(site, before, part, f)
        self.axes, self.images = part.axes, part.axes > 2
        self.features = None if self.images else self.features  # of the first axis

    def bind(self, x: Array, before: Any) -> None:
        self.keeps, h = before is None, x.shape[-2]
        self.layer.output_shape(tuple(x.shape)[::-1])  # which refuses an x of other features
        self.centre, self.scale = self.work("centre", (h,)), self.work("scale", (h,))
        self.bind_rows(x)

    def forward(self, x: Array, params: Any) -> Array:
        gamma, beta, _, bias = params
        self.cache = x = in_rows(x, self.dtype)
        kept = *self.batch, self.centre, self.scale
        arguments = x, gamma, beta, bias, float(self.eps), self.setting, self.n, *kept, self.y, *self.sums
        for part in (0,) if self.columns == 1 else (1, 2, 3):
            self.over_rows("batch_norm", part, *arguments)
        return self.given

    def backward(self, dy: Array, params: Any, grads: Any) -> Array:
        (gamma, beta, *_), (dgamma, dbeta, _, dbias) = params, grads
        d = in_rows(dy, self.dtype)
        found = self.cache, self.y, gamma, beta, self.centre, self.scale, self.setting, self.n
        arguments = d, *found, d, dgamma, dbeta, dbias, *self.sums
        for part in (0,) if self.columns == 1 else (1, 2):
            self.over_rows("batch_norm_backward", part, *arguments)
        return laid_out(d, dy.shape)
