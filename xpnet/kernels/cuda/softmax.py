"""Softmax and cross-entropy, in CUDA."""

import math
from typing import Any

from ...backends import Array
from ...losses.losses import Loss
from .. import stages
from ..stages import Site
from .launching import in_rows, launch
from .positions import as_sequences, in_positions


class SoftmaxCrossEntropy(stages.SoftmaxCrossEntropy):
    """The value stays on the device. z and dz are (K, N), or for sequences (M, K) with M positions."""

    @classmethod
    def of(cls, site: Site, loss: Loss, axes: int) -> stages.SoftmaxCrossEntropy | None:
        return super().of(site, loss, 2)

    def bind(self, x: Array, before: Any) -> None:
        k, n = x.shape[0], math.prod(x.shape[1:])
        self.blocks, self.scale = -(-n // 32), self.share(n)
        self.sequences, self.numbers = x.ndim > 2, (k, n)
        self.dz = self.work("dz", (n, k) if self.sequences else (k, n))
        self.partial = self.work("partial", (self.blocks,))
        self.given = as_sequences(self.dz, x.shape) if self.sequences else self.dz

    def forward(self, z: Array, target: Array) -> tuple[Any, Array]:
        dz, (k, n) = self.dz, self.numbers
        value = self.site.family.cupy.empty((), dtype=dz.dtype)
        z, strides = (in_positions(z, dz.dtype), (1, k)) if self.sequences else (in_rows(z, dz.dtype), (n, 1))
        if target.ndim > 2 and any(outer != inner * size for outer, inner, size in steps(target)):
            target = in_positions(target, dz.dtype).T
        of_target = [stride // target.itemsize for stride in target.strides[:2]]
        ends = dz, self.partial, self.site.family.count, value
        arguments = z, *strides, target, *of_target, float(self.scale), k, n, *ends
        launch("softmax_cross_entropy", (self.blocks,), (32, min(16, -(-k // 4))), dz.dtype, *arguments)
        return value, self.given


def steps(target: Array) -> Any:
    """Return the outer stride, inner stride and inner size of any two adjacent axes of the positions, (K, ..., N)."""
    return zip(target.strides[2:], target.strides[1:], target.shape[1:], strict=False)
