"""Convolution with kernels of 3 x 3 in 16 multiplications for each 2 x 2 outputs, instead of 36.

Winograd's F(2 x 2, 3 x 3): Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, arXiv:1509.09308, section
4.1. Along one axis, two outputs z depend on a tile d of four entries, which overlaps the next tile by two:

    z = Aᵀ (G w ∘ Bᵀ d)    Aᵀ = [1  1  1  0]    G = [1   0  0]    Bᵀ = [1  0 -1  0]
                                [0  1 -1  1]        [½   ½  ½]         [0  1  1  0]
                                                    [½  -½  ½]         [0 -1  1  0]
                                                    [0   0  1]         [0 -1  0  1]

Along both axes, Z = Aᵀ (Σ_c U ∘ V) A with U = G W Gᵀ and V = Bᵀ D B. For each of the 16 entries, the sum over input
channels is one matrix product for all tiles, and so is the sum over tiles in dW = Gᵀ (Σ A dZ Aᵀ ∘ V) G.

Axes: N batch, C input channels, O output channels, (H, W) the images, (P, Q) the outputs, (R, S) the tiles of outputs.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .correlation import Correlation, Pair, tap_slices
from .products import products

BLOCK = 2**17  # entries of V and of the products, together, that are computed at a time
CHANNEL_PAIRS = 2**10  # input times output channels of one matrix product, for the speed of OpenBLAS's sums over tiles
MANY_CHANNELS = 64  # with more input channels than this, a product has this many output channels instead
G = ((1, 0, 0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0, 0, 1))


class Winograd(Correlation):
    """Correlation by matrix products with the transformed 4 x 4 inputs of each tile of 2 x 2 outputs."""

    # input times output channels from which this is faster, in one thread and in each of several, which wait for
    # Python's lock between the many calls; more if the last tiles are incomplete
    least = 2**12, 2**14

    @classmethod
    def does(cls, kernel: Pair, stride: Pair, inputs: int, outputs: Sequence[int], threads: int) -> bool:
        """Whether this is fast for such a kernel, so many input channels, outputs (O, P, Q), and threads."""
        (o, p, q), least = outputs, cls.least[threads > 1]
        tiles = -(-p // 2) * -(-q // 2)
        return kernel == (3, 3) and stride == (1, 1) and inputs * o * p * q >= least * 4 * tiles

    def __init__(
        self, workspace: Any, shape: Sequence[int], kernel: Pair, padding: Pair, outputs: Sequence[int], max_rows: int,
        step: int = 1, stride: Pair = (1, 1), block_factor: int = 1,
    ):  # fmt: skip
        (c, h, w, n), (o, rows, columns) = shape, outputs
        groups = -(-o // (CHANNEL_PAIRS // c if c <= MANY_CHANNELS else MANY_CHANNELS))
        self.groups = [slice(o * i // groups, o * (i + 1) // groups) for i in range(groups)]
        widest = -(-o // groups)
        self.channels, self.n, self.s = c, n, -(-columns // 2)
        max_rows = 2 * max(1, min(max_rows // 2, BLOCK // max(1, 16 * (c + widest) * self.s * n)))
        step = math.lcm(step, 2)
        self.count = -(-rows // (-(-rows // max_rows) * step)) * step
        self.blocks = [slice(first, min(first + self.count, rows)) for first in range(0, rows, self.count)]
        tiles = 16 * self.count // 2 * self.s * n
        self.inputs: np.ndarray = workspace("patches", (c * tiles,))
        self.products: np.ndarray = workspace("products", (widest * tiles,))
        self.weight: np.ndarray = workspace("weight", (16, o, c))
        self.taps: np.ndarray = workspace("taps", (9, o, c))
        self.total: np.ndarray = workspace("total", (16, o, c))
        self.terms: np.ndarray = workspace("terms", (16, widest, c))
        self.g = np.kron(G, G).astype(self.weight.dtype)  # G ⊗ G, (16, 9)
        self.bind(workspace, (h, w), padding)

    def bind(self, workspace: Any, sizes: Pair, padding: Pair) -> None:
        """Allocate the arrays for the transforms, and find the slices to copy."""
        c, r = self.channels, self.count // 2
        self.padded: np.ndarray = workspace("padded", (c, r + 1, 2, 2, self.s + 1, self.n))  # pairs of rows and columns
        self.half: np.ndarray = workspace("half", (4, c, r, 2, self.s + 1, self.n))
        self.copies = []
        across = tap_slices(2, padding[1], self.s + 1, 2, sizes[1])
        for rows in self.blocks:
            pairs = -(-(rows.stop - rows.start) // 2) + 1
            down = tap_slices(2, padding[0] - rows.start, pairs, 2, sizes[0])
            self.copies.append([
                (self.padded[:, r, i, j, s], (slice(None), image_rows, image_columns))
                for i, (r, image_rows) in enumerate(down) for j, (s, image_columns) in enumerate(across)
            ])  # fmt: skip

    def tiles(self, place: np.ndarray, channels: int, rows: int) -> np.ndarray:
        """Return a view of the memory `place` as the tiles of so many rows of outputs, (4, 4, channels, R, S, N)."""
        shape = 4, 4, channels, -(-rows // 2), self.s, self.n
        return place[: math.prod(shape)].reshape(shape)

    def set_weight(self, weight: np.ndarray) -> None:
        np.copyto(self.taps.reshape((3, 3, *self.taps.shape[1:])), weight.transpose(2, 3, 0, 1))
        np.matmul(self.g, self.taps.reshape((9, -1)), out=self.weight.reshape((16, -1)))  # G W Gᵀ

    def patches(self, images: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        for i, rows in enumerate(self.blocks):
            tiles = self.tiles(self.inputs, self.channels, rows.stop - rows.start)
            self.transform_images(images, i, tiles)
            yield rows, tiles

    def multiply(self, patches: np.ndarray, z: np.ndarray) -> None:
        for group in self.groups:
            part = z[:, group]
            tiles = self.tiles(self.products, part.shape[1], len(z))
            products(self.weight[:, group], as_matrices(patches), out=as_matrices(tiles))
            self.transform_products(tiles, part)

    def add(self, rows: slice, patches: np.ndarray, dz: np.ndarray) -> None:
        for group in self.groups:
            part = dz[:, group]
            tiles = self.tiles(self.products, part.shape[1], len(dz))
            self.transform_gradients(part, tiles)
            total = self.total[:, group]
            out = self.terms[:, : part.shape[1]] if rows.start else total
            products(as_matrices(tiles), as_matrices(patches).transpose(0, 2, 1), out=out)
            if rows.start:
                total += out

    def gradient(self, place: np.ndarray) -> None:
        taps = self.g.T @ self.total.reshape((16, -1))
        place[...] = taps.reshape((3, 3, *place.shape[:2])).transpose(2, 3, 0, 1)

    # --- the transforms ---

    def transform_images(self, images: np.ndarray, i: int, tiles: np.ndarray) -> None:
        """Write V = Bᵀ D B of the i-th block of rows to `tiles`."""
        r = tiles.shape[3]
        padded, half = self.padded[:, : r + 1], self.half[:, :, :r]
        padded.fill(0.0)
        for place, source in self.copies[i]:
            np.copyto(place, images[source])
        by_b(padded[:, :-1, 0], padded[:, :-1, 1], padded[:, 1:, 0], padded[:, 1:, 1], half)
        even, odd = half[:, :, :, 0], half[:, :, :, 1]
        by_b(even[..., :-1, :], odd[..., :-1, :], even[..., 1:, :], odd[..., 1:, :], tiles.swapaxes(0, 1))

    def transform_products(self, tiles: np.ndarray, z: np.ndarray) -> None:
        """Write Aᵀ tiles A to z (P, O, Q, N), and overwrite `tiles`."""
        tiles[0] += tiles[1]  # Aᵀ from the left, in place
        tiles[0] += tiles[2]
        tiles[1] -= tiles[2]
        tiles[1] += tiles[3]
        half = tiles[:2]
        half[:, 0] += half[:, 1]  # A from the right; the last sums go to z
        half[:, 1] -= half[:, 2]
        for i in (0, 1):
            for j in (0, 1):
                place = z[i::2, :, j::2]
                left, right = (half[i, k].transpose(1, 0, 2, 3)[: len(place), :, : place.shape[2]] for k in (j, j + 2))
                np.add(left, right, out=place)

    def transform_gradients(self, dz: np.ndarray, tiles: np.ndarray) -> None:
        """Write A dZ Aᵀ of dz (P, O, Q, N) to `tiles`."""
        for i in (0, 1):
            for j in (0, 1):
                place, part = tiles[3 * i, 3 * j].transpose(1, 0, 2, 3), dz[i::2, :, j::2]
                place[len(part) :] = 0.0  # the last tiles may be incomplete
                place[:, :, part.shape[2] :] = 0.0
                np.copyto(place[: len(part), :, : part.shape[2]], part)
        for a in (tiles[:, ::3], tiles.swapaxes(0, 1)):
            np.add(a[0], a[3], out=a[1])
            np.subtract(a[0], a[3], out=a[2])


def by_b(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray, out: np.ndarray) -> None:
    """Write Bᵀ (a, b, c, d) to `out`, one row after another."""
    np.subtract(a, c, out=out[0])
    np.add(b, c, out=out[1])
    np.subtract(c, b, out=out[2])
    np.subtract(d, b, out=out[3])


def as_matrices(tiles: np.ndarray) -> np.ndarray:
    """View (4, 4, C, R, S, N) as (16, C, R S N)."""
    return tiles.reshape((16, tiles.shape[2], -1), copy=False)
