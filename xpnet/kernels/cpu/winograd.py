"""Convolution with kernels of 3 x 3 in 16 multiplications for each 2 x 2 outputs, where windows take 36.

Winograd's F(2 x 2, 3 x 3): Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308, section
4.1. Along one axis two outputs see a tile d of four entries, the next two one that overlaps it by two:

    z = Aᵀ (G w ∘ Bᵀ d)    Aᵀ = [1  1  1  0]    G = [1   0  0]    Bᵀ = [1  0 -1  0]
                                [0  1 -1  1]        [½   ½  ½]         [0  1  1  0]
                                                    [½  -½  ½]         [0 -1  1  0]
                                                    [0   0  1]         [0 -1  0  1]

Along both, Z = Aᵀ (Σ_c U ∘ V) A with U = G W Gᵀ and V = Bᵀ D B: for each of their 16 entries the sum is one matrix
product, of all tiles. So are the sums over tiles in dW = Gᵀ (Σ A dZ Aᵀ ∘ V) G.

Axes: N batch, C input channels, O output channels, (H, W) the images, (P, Q) the outputs, (R, S) the tiles.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .correlation import Correlation, Pair, seen_by_taps
from .products import products

BLOCK = 2**17  # entries of V and of the products at a time
TERMS = 2**10  # products of channels in and out at a time up to which OpenBLAS is quicker with sums over many tiles
WIDE = 64  # and channels that are as quick together where there are more of the others than this
G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))


class Winograd(Correlation):
    """With a copy of what each tile of 2 x 2 outputs sees, transformed."""

    least = 2**12  # channels in times channels out from which it pays, where tiles have all their outputs

    @classmethod
    def does(cls, kernel: Pair, stride: Pair, inputs: int, outputs: Sequence[int]) -> bool:
        o, p, q = outputs
        tiles = -(-p // 2) * -(-q // 2)
        return kernel == (3, 3) and stride == (1, 1) and inputs * o * p * q >= cls.least * 4 * tiles

    def __init__(
        self, room: Any, shape: Sequence[int], kernel: Pair, padding: Pair, outputs: Sequence[int], most: int,
        step: int = 1, stride: Pair = (1, 1), longer: int = 1,
    ):  # fmt: skip
        (c, h, w, n), (o, rows, columns) = shape, outputs
        groups = -(-o // (TERMS // c if c <= WIDE else WIDE))
        self.groups = [slice(o * i // groups, o * (i + 1) // groups) for i in range(groups)]
        widest = -(-o // groups)
        self.channels, self.n, self.s = c, n, -(-columns // 2)
        most = 2 * max(1, min(most // 2, BLOCK // max(1, 16 * (c + widest) * self.s * n)))
        step = math.lcm(step, 2)
        self.count = -(-rows // (-(-rows // most) * step)) * step
        self.stretches = [slice(first, min(first + self.count, rows)) for first in range(0, rows, self.count)]
        tiles = 16 * self.count // 2 * self.s * n
        self.patches: np.ndarray = room("patches", (c * tiles,))
        self.made: np.ndarray = room("made", (widest * tiles,))
        self.weight: np.ndarray = room("weight", (16, o, c))
        self.taps: np.ndarray = room("taps", (9, o, c))
        self.total: np.ndarray = room("total", (16, o, c))
        self.terms: np.ndarray = room("terms", (16, widest, c))
        self.of_taps = np.kron(G, G).astype(self.weight.dtype)  # (16, 9)
        self.bind(room, (h, w), padding)

    def bind(self, room: Any, sizes: Pair, padding: Pair) -> None:
        """Find the arrays of the transforms."""
        c, r = self.channels, self.count // 2
        self.padded: np.ndarray = room("padded", (c, r + 1, 2, 2, self.s + 1, self.n))  # pairs of rows and columns
        self.half: np.ndarray = room("half", (4, c, r, 2, self.s + 1, self.n))
        self.copies = []
        across = list(zip(*seen_by_taps(2, padding[1], self.s + 1, 2, sizes[1]), strict=True))
        for rows in self.stretches:
            pairs = -(-(rows.stop - rows.start) // 2) + 1
            down = zip(*seen_by_taps(2, padding[0] - rows.start, pairs, 2, sizes[0]), strict=True)
            self.copies.append([
                (self.padded[:, own, i, j, beside], (slice(None), seen, seen_beside))
                for i, (own, seen) in enumerate(down) for j, (beside, seen_beside) in enumerate(across)
            ])  # fmt: skip

    def tiles(self, place: np.ndarray, channels: int, rows: int) -> np.ndarray:
        """The tiles of so many rows of outputs, (4, 4, channels, R, S, N)."""
        shape = 4, 4, channels, -(-rows // 2), self.s, self.n
        return place[: math.prod(shape)].reshape(shape)

    def take(self, weight: np.ndarray) -> None:
        np.copyto(self.taps.reshape((3, 3, *self.taps.shape[1:])), weight.transpose(2, 3, 0, 1))
        np.matmul(self.of_taps, self.taps.reshape((9, -1)), out=self.weight.reshape((16, -1)))  # G W Gᵀ

    def seen(self, images: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        for i, rows in enumerate(self.stretches):
            tiles = self.tiles(self.patches, self.channels, rows.stop - rows.start)
            self.transform_images(images, i, tiles)
            yield rows, tiles

    def multiply(self, seen: np.ndarray, z: np.ndarray) -> None:
        for group in self.groups:
            part = z[:, group]
            made = self.tiles(self.made, part.shape[1], len(z))
            products(self.weight[:, group], as_matrices(seen), out=as_matrices(made))
            self.transform_products(made, part)

    def add(self, rows: slice, seen: np.ndarray, dz: np.ndarray) -> None:
        for group in self.groups:
            part = dz[:, group]
            slopes = self.tiles(self.made, part.shape[1], len(dz))
            self.transform_slopes(part, slopes)
            total = self.total[:, group]
            out = self.terms[:, : part.shape[1]] if rows.start else total
            products(as_matrices(slopes), as_matrices(seen).transpose(0, 2, 1), out=out)
            if rows.start:
                total += out

    def gradient(self, place: np.ndarray) -> None:
        taps = self.of_taps.T @ self.total.reshape((16, -1))
        place[...] = taps.reshape((3, 3, *place.shape[:2])).transpose(2, 3, 0, 1)

    # --- the transforms ---

    def transform_images(self, images: np.ndarray, i: int, tiles: np.ndarray) -> None:
        """tiles ← V = Bᵀ D B, those of the i-th rows"""
        r = tiles.shape[3]
        padded, half = self.padded[:, : r + 1], self.half[:, :, :r]
        padded.fill(0.0)
        for place, seen in self.copies[i]:
            np.copyto(place, images[seen])
        by_b(padded[:, :-1, 0], padded[:, :-1, 1], padded[:, 1:, 0], padded[:, 1:, 1], half)
        even, odd = half[:, :, :, 0], half[:, :, :, 1]
        by_b(even[..., :-1, :], odd[..., :-1, :], even[..., 1:, :], odd[..., 1:, :], tiles.swapaxes(0, 1))

    def transform_products(self, made: np.ndarray, z: np.ndarray) -> None:
        """z ← Aᵀ made A, (P, O, Q, N)"""
        made[0] += made[1]  # Aᵀ from the left, in place
        made[0] += made[2]
        made[1] -= made[2]
        made[1] += made[3]
        half = made[:2]
        half[:, 0] += half[:, 1]  # A from the right, whose last sums are z
        half[:, 1] -= half[:, 2]
        for i in (0, 1):
            for j in (0, 1):
                place = z[i::2, :, j::2]
                left, right = (half[i, k].transpose(1, 0, 2, 3)[: len(place), :, : place.shape[2]] for k in (j, j + 2))
                np.add(left, right, out=place)

    def transform_slopes(self, dz: np.ndarray, slopes: np.ndarray) -> None:
        """slopes ← A dZ Aᵀ, of dz (P, O, Q, N)"""
        for i in (0, 1):
            for j in (0, 1):
                place, part = slopes[3 * i, 3 * j].transpose(1, 0, 2, 3), dz[i::2, :, j::2]
                place[len(part) :] = 0.0  # the last tiles may have outputs that are not there
                place[:, :, part.shape[2] :] = 0.0
                np.copyto(place[: len(part), :, : part.shape[2]], part)
        for a in (slopes[:, ::3], slopes.swapaxes(0, 1)):
            np.add(a[0], a[3], out=a[1])
            np.subtract(a[0], a[3], out=a[2])


def by_b(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, out: np.ndarray) -> None:
    """out ← Bᵀ (a, b, c, d)"""
    np.subtract(a, c, out=out[0])
    np.add(b, c, out=out[1])
    np.subtract(c, b, out=out[2])
    np.subtract(d, b, out=out[3])


def as_matrices(tiles: np.ndarray) -> np.ndarray:
    """(4, 4, C, R, S, N) as (16, C, R S N): a view."""
    return tiles.reshape((16, tiles.shape[2], -1), copy=False)
