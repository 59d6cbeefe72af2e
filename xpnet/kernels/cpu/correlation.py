"""Correlations of images with a kernel, a few rows of outputs at a time, and their transposes.

Axes: N batch, C input channels, O output channels, (H, W) the images, (KH, KW) the kernel, (P, Q) the outputs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .products import products

BLOCK = 2**18  # entries of patches that are gathered at a time
Pair = tuple[int, int]


class Correlation:
    """z[o, p] = Σ_i W[o, i] x[s p + i - padding] and dW[o, i] = Σ_p dz[o, p] x[s p + i - padding], by matrix products.

    x is images of `shape` (C, H, W, N), z has `outputs` (O, P, Q), and s is `stride`. Outputs are computed in blocks of
    up to `max_rows` rows, rounded up to a multiple of `step`; a block of patches has up to `block_factor` times BLOCK
    entries.

    The patches of a row of outputs are a matrix (KH KW C, Q N). Entries are copied only KW times, not KH KW times: a
    gathered row is (KW, C, Q, N), and KH of these, adjacent in memory, are such a matrix.
    """

    count: int  # rows of outputs at a time
    blocks: list[Any]  # the rows of each block, and how its patches are made

    def __init__(
        self, workspace: Any, shape: Sequence[int], kernel: Pair, padding: Pair, outputs: Sequence[int], max_rows: int,
        step: int = 1, stride: Pair = (1, 1), block_factor: int = 1,
    ):  # fmt: skip
        (c, h, w, n), (kh, kw), (top, left), (o, rows, columns), (sh, sw) = shape, kernel, padding, outputs, stride
        max_rows = max(1, min(max_rows, (block_factor * BLOCK // max(1, kw * c * columns * n) - kh) // sh + 1))
        self.count = -(-rows // (-(-rows // max_rows) * step)) * step
        gathered: np.ndarray = workspace("patches", (sh * (self.count - 1) + kh, kw, c, columns, n))
        strides = sh * gathered.strides[0], columns * n * gathered.itemsize, gathered.itemsize
        self.blocks = []
        for first in range(0, rows, self.count):
            last = min(first + self.count, rows)
            start, stop = sh * first - top, sh * (last - 1) - top + kh  # the rows of the images in their windows
            low, high = max(start, 0), min(stop, h)
            inside = gathered[low - start : max(low, high) - start]
            empty = [gathered[: low - start], gathered[max(low, high) - start : stop - start]]
            copies = []
            for j, (within, image_columns) in enumerate(tap_slices(kw, left, columns, sw, w)):
                empty += [inside[:, j, :, : within.start], inside[:, j, :, within.stop :]]
                if inside.size and within.start < within.stop:
                    copies.append((inside[:, j, :, within], (slice(None), slice(low, high), image_columns)))
            matrices = np.lib.stride_tricks.as_strided(gathered, (last - first, kh * kw * c, columns * n), strides)
            self.blocks.append((slice(first, last), [a for a in empty if a.size], copies, matrices))
        self.weight: np.ndarray = workspace("weight", (o, kh, kw, c))
        self.total: np.ndarray = workspace("total", (kh * kw * c, o))
        self.terms: np.ndarray = workspace("terms", (self.count, *self.total.shape))

    def set_weight(self, weight: np.ndarray) -> None:
        """Set the weight (O, C, KH, KW) for `multiply`."""
        np.copyto(self.weight, weight.transpose(0, 2, 3, 1))

    def patches(self, images: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Iterate over blocks of rows of outputs and their patches, which are valid until the next block."""
        for rows, empty, copies, matrices in self.blocks:
            for place in empty:
                place.fill(0.0)
            for place, source in copies:
                np.copyto(place, images[source].transpose(1, 0, 2, 3))
            yield rows, matrices

    def multiply(self, patches: np.ndarray, z: np.ndarray) -> None:
        """Write z (P, O, Q, N) of the rows that these patches belong to."""
        products(self.weight.reshape((len(self.weight), -1)), patches, out=as_matrices(z))

    def add(self, rows: slice, patches: np.ndarray, dz: np.ndarray) -> None:
        """Add these rows of dz (P, O, Q, N) to the sum for dW, which the rows from 0 on start anew."""
        terms = products(patches, as_matrices(dz).transpose(0, 2, 1), out=self.terms[: len(patches)])
        if rows.start:
            self.total += np.add.reduce(terms)
        else:
            np.add.reduce(terms, out=self.total)

    def gradient(self, place: np.ndarray) -> None:
        """Write dW (O, C, KH, KW) to `place`."""
        o, c, *kernel = place.shape
        place[...] = self.total.reshape((*kernel, c, o)).transpose(3, 2, 0, 1)


def tap_slices(taps: int, padding: int, outputs: int, stride: int, size: int) -> list[tuple[slice, slice]]:
    """Return, for each tap along an axis, the outputs for which it lies inside the images, and the entries it meets."""
    pairs = []
    for i in range(taps):
        first = min(max(-(-(padding - i) // stride), 0), outputs)
        last = max(min((size - 1 + padding - i) // stride + 1, outputs), first)
        start = stride * first + i - padding
        entries = slice(start, max(start, stride * (last - 1) + i - padding + 1), stride)
        pairs.append((slice(first, last), entries))
    return pairs


class Spread:
    """The transpose of `Correlation` for strides other than 1: adds up patches where they lie in the images."""

    def __init__(
        self, workspace: Any, shape: Sequence[int], kernel: Pair, padding: Pair, outputs: Sequence[int], stride: Pair
    ):  # fmt: skip
        (c, h, w, n), (kh, kw), (o, rows, columns) = shape, kernel, outputs
        self.count = max(1, min(rows, BLOCK // max(1, kh * kw * c * columns * n)))
        parts: np.ndarray = workspace("patches", (self.count, kh, kw, c, columns, n))
        self.weight: np.ndarray = workspace("weight", (kh, kw, c, o))
        across = tap_slices(kw, padding[1], columns, stride[1], w)
        self.blocks = []
        for first in range(0, rows, self.count):
            last = min(first + self.count, rows)
            adds = []
            down = tap_slices(kh, padding[0] - stride[0] * first, last - first, stride[0], h)
            for i, (inner_rows, image_rows) in enumerate(down):
                for j, (inner, image_columns) in enumerate(across):
                    if inner_rows.start < inner_rows.stop and inner.start < inner.stop:
                        term = parts[inner_rows, i, j, :, inner].transpose(1, 0, 2, 3)
                        adds.append(((slice(None), image_rows, image_columns), term))
            matrices = parts[: last - first].reshape((last - first, kh * kw * c, columns * n))
            self.blocks.append((slice(first, last), matrices, adds))

    def __call__(self, weight: np.ndarray, dz: np.ndarray, images: np.ndarray) -> None:
        """Write Wᵀ dz, added up over windows, to `images` (C, H, W, N); weight (O, C, KH, KW), dz (P, O, Q, N)."""
        np.copyto(self.weight, weight.transpose(2, 3, 1, 0))
        images.fill(0.0)
        for rows, matrices, adds in self.blocks:
            products(self.weight.reshape((matrices.shape[1], -1)), as_matrices(dz[rows]), out=matrices)
            for place, term in adds:
                images[place] += term


def as_matrices(rows: np.ndarray) -> np.ndarray:
    """View (P, O, Q, N) as (P, O, Q N)."""
    p, o, q, n = rows.shape
    return rows.reshape((p, o, q * n), copy=False)
