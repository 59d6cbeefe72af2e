"""Softmax and cross-entropy, in CUDA."""

import importlib
from typing import Any

from ...backends import Array
from .. import stages
from .launching import C_TYPES, in_rows, launch


class SoftmaxCrossEntropy(stages.SoftmaxCrossEntropy):
    """The value stays on the device."""

    def bind(self, x: Array, before: Any) -> None:
        (k, n), self.blocks = x.shape, -(-x.shape[1] // 32)
        self.scale, self.dz, self.partial = self.share(n), self.work("dz", (k, n)), self.work("partial", (self.blocks,))

    def forward(self, z: Array, target: Array) -> tuple[Any, Array]:
        dz, (k, n) = self.dz, self.dz.shape
        value = importlib.import_module("cupy").empty((), dtype=dz.dtype)
        strides = [stride // target.itemsize for stride in target.strides]
        ends = dz, self.partial, self.site.family.count, value
        arguments = in_rows(z, dz.dtype), target, *strides, float(self.scale), k, n, *ends
        expression = f"softmax_cross_entropy<{C_TYPES[dz.dtype.name]}>"
        launch(expression, (self.blocks,), (32, min(16, -(-k // 4))), dz.dtype, *arguments)
        return value, dz
