"""A convolution with its bias, a pointwise function and a pool: the pool in loops. Axes as in `..convolution`.

Arrays of the pool's outputs are whole, (O, A, B, N), with the first of the rows of windows that are meant: numbers next
to each other in memory become vector instructions.
"""

import numpy as np

from .. import convolution
from ..correlation import Gathered
from .compiling import compiled
from .winograd import Winograd


@compiled
def forward(z, height, width, first, y, number):
    """y = the maxima of z's windows, and the number of the entry that each is first."""
    for a in range(z.shape[0] // height):
        for o in range(z.shape[1]):
            for b in range(y.shape[2]):
                own = y[o, first + a, b]
                own[:] = z[a * height, o, b * width]
                number[o, first + a, b, :] = 0
                for i in range(1, height * width):
                    tap = z[a * height + i // width, o, b * width + i % width]
                    larger(tap, np.uint8(i), own, number[o, first + a, b])


@compiled
def larger(tap, i, y, number):
    """y ← max(y, tap), NaN if one of them is; i becomes the number where it is tap."""
    for n in range(y.size):
        taken = (tap[n] > y[n]) | (tap[n] != tap[n])
        y[n] = tap[n] if taken else y[n]
        number[n] = i if taken else number[n]


@compiled
def backward(number, dy, first, height, width, dz):
    """dz = dy at the first maxima, else 0"""
    for a in range(dz.shape[0] // height):
        for i in range(height):
            for o in range(dz.shape[1]):
                for b in range(dy.shape[2]):
                    for j in range(width):
                        tap = dz[a * height + i, o, b * width + j]
                        pass_on(number[o, first + a, b], np.uint8(i * width + j), dy[o, first + a, b], tap)


@compiled
def pass_on(number, i, dy, dz):
    """dz = dy where the number is i, else 0"""
    zero = dy.dtype.type(0.0)
    for n in range(dz.size):
        dz[n] = dy[n] if number[n] == i else zero


class Pool(convolution.Pool):
    """Each window's maximum in one go."""

    def forward(self, z: np.ndarray, rows: slice) -> None:
        forward(z, *self.window, self.windows(rows).start, self.y.transpose(1, 0, 2, 3), self.numbers)

    def backward(self, dy: np.ndarray, rows: slice, dz: np.ndarray) -> None:
        backward(self.numbers, dy.transpose(1, 0, 2, 3), self.windows(rows).start, *self.window, dz)


class Convolution(convolution.Convolution):
    """Its pool and the transforms of tiles in loops."""

    correlations = Winograd, Gathered
    maxima = Pool
