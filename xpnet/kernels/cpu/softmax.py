"""Softmax and cross-entropy, in calls."""

from typing import Any

from ... import ops
from ...backends import Array
from .. import stages


class SoftmaxCrossEntropy(stages.SoftmaxCrossEntropy):
    """e^s, then the derivative, in arrays of this stage."""

    def bind(self, x: Array, before: Any) -> None:
        (k, n), work, self.scale = x.shape, self.work, self.share(x.shape[1])
        self.top, self.sums, self.fits = work("top", (n,)), work("sums", (n,)), work("fits", (k,))
        self.s, self.e = work("s", (k, n)), work("e", (k, n))
        self.ones_k, self.ones_n = self.shared.filled(1.0, (k,)), self.shared.filled(1.0, (n,))
        self.scale_number = self.shared.filled(self.scale)
        _, self.row_dot = self.site.family.over_batch(n)
        self.long = n > ops.LONG

    def forward(self, z: Array, target: Array) -> tuple[Any, Array]:
        family, s, e, sums = self.site.family, self.s, self.e, self.sums
        lib = family.lib
        lib.subtract(z, family.top(z, out=self.top), out=s)
        lib.exp(s, out=e)
        family.sums(e.T, self.ones_k, out=sums)
        self.row_dot(s, target, out=self.fits)
        e /= sums
        e -= target
        if self.scale != 1.0:
            e *= self.scale_number
        lib.log(sums, out=sums)
        logs = family.scalar(lib.sum(sums) if self.long else lib.dot(sums, self.ones_n))
        fit = family.scalar(lib.dot(self.fits, self.ones_k))
        return (logs - fit) * self.scale, e  # logs are at least 0 and fit at most: no digit is lost
