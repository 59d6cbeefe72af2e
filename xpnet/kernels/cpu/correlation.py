"""Sums of products over windows of images, a few rows of outputs at a time, and their transposes.

Axes: N batch, C input channels, O output channels, (H, W) what a window sees, (KH, KW) the kernel, (P, Q) the outputs.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .products import products

BLOCK = 2**18  # entries of the patches gathered at a time
Pair = tuple[int, int]


class Correlation:
    """z[o, p] = Σ_i W[o, i] x[p + i - padding], and dW[o, i] = Σ_p dz[o, p] x[p + i - padding]: the base of its forms.

    Of images (C, H, W, N) to `outputs` (O, P, Q), of whose rows at most so many at a time, a multiple of `step` except
    for the last ones; `longer` times as many as BLOCK allows.
    """

    count: int  # rows at a time

    @classmethod
    def does(cls, kernel: Pair, stride: Pair, inputs: int, outputs: Sequence[int]) -> bool:
        """Whether this form is quick for such a kernel, so many input channels, and outputs (O, P, Q)."""
        raise NotImplementedError

    def __init__(
        self, room: Any, shape: Sequence[int], kernel: Pair, padding: Pair, outputs: Sequence[int], most: int,
        step: int = 1, stride: Pair = (1, 1), longer: int = 1,
    ):  # fmt: skip
        raise NotImplementedError

    def take(self, weight: np.ndarray) -> None:
        """Take the weight (O, C, KH, KW) to multiply by."""
        raise NotImplementedError

    def seen(self, images: np.ndarray) -> Iterator[tuple[slice, Any]]:
        """The rows of outputs, and what they see of the images, until the next ones."""
        raise NotImplementedError

    def multiply(self, seen: Any, z: np.ndarray) -> None:
        """z ← these rows, (P, O, Q, N)"""
        raise NotImplementedError

    def add(self, rows: slice, seen: Any, dz: np.ndarray) -> None:
        """Add to dW what these rows of dz, (P, O, Q, N), make of it; the first ones begin it."""
        raise NotImplementedError

    def gradient(self, place: np.ndarray) -> None:
        """place ← dW (O, C, KH, KW)"""
        raise NotImplementedError


class Gathered(Correlation):
    """With a copy of what each output sees.

    The patches of a row of outputs are a matrix (KH KW C, Q N), the factor of one product. Only the taps along W are
    copies: rows (KW, C, Q, N) are gathered, and KH of them, one behind the other in memory, are such a matrix.
    """

    @classmethod
    def does(cls, kernel: Pair, stride: Pair, inputs: int, outputs: Sequence[int]) -> bool:
        return True

    def __init__(
        self, room: Any, shape: Sequence[int], kernel: Pair, padding: Pair, outputs: Sequence[int], most: int,
        step: int = 1, stride: Pair = (1, 1), longer: int = 1,
    ):  # fmt: skip
        (c, h, w, n), (kh, kw), (top, left), (o, rows, columns), (sh, sw) = shape, kernel, padding, outputs, stride
        most = max(1, min(most, (longer * BLOCK // max(1, kw * c * columns * n) - kh) // sh + 1))
        self.count = -(-rows // (-(-rows // most) * step)) * step
        gathered: np.ndarray = room("patches", (sh * (self.count - 1) + kh, kw, c, columns, n))
        strides = sh * gathered.strides[0], columns * n * gathered.itemsize, gathered.itemsize
        self.blocks = []
        for first in range(0, rows, self.count):
            last = min(first + self.count, rows)
            start, stop = sh * first - top, sh * (last - 1) - top + kh  # the rows of the images that they see
            low, high = max(start, 0), min(stop, h)
            inside = gathered[low - start : max(low, high) - start]
            empty = [gathered[: low - start], gathered[max(low, high) - start : stop - start]]
            copies = []
            for j, (within, columns_seen) in enumerate(zip(*seen_by_taps(kw, left, columns, sw, w), strict=True)):
                empty += [inside[:, j, :, : within.start], inside[:, j, :, within.stop :]]
                if inside.size and within.start < within.stop:
                    copies.append((inside[:, j, :, within], (slice(None), slice(low, high), columns_seen)))
            matrices = np.lib.stride_tricks.as_strided(gathered, (last - first, kh * kw * c, columns * n), strides)
            self.blocks.append((slice(first, last), [a for a in empty if a.size], copies, matrices))
        self.weight: np.ndarray = room("weight", (o, kh, kw, c))
        self.total: np.ndarray = room("total", (kh * kw * c, o))
        self.terms: np.ndarray = room("terms", (self.count, *self.total.shape))

    def take(self, weight: np.ndarray) -> None:
        np.copyto(self.weight, weight.transpose(0, 2, 3, 1))

    def seen(self, images: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        for rows, empty, copies, matrices in self.blocks:
            for place in empty:
                place.fill(0.0)
            for place, source in copies:
                np.copyto(place, images[source].transpose(1, 0, 2, 3))
            yield rows, matrices

    def multiply(self, seen: np.ndarray, z: np.ndarray) -> None:
        products(self.weight.reshape((len(self.weight), -1)), seen, out=as_matrices(z))

    def add(self, rows: slice, seen: np.ndarray, dz: np.ndarray) -> None:
        terms = products(seen, as_matrices(dz).transpose(0, 2, 1), out=self.terms[: len(seen)])
        if rows.start:
            self.total += np.add.reduce(terms)
        else:
            np.add.reduce(terms, out=self.total)

    def gradient(self, place: np.ndarray) -> None:
        o, c, *kernel = place.shape
        place[...] = self.total.reshape((*kernel, c, o)).transpose(3, 2, 0, 1)


def seen_by_taps(taps: int, padding: int, outputs: int, stride: int, size: int) -> tuple[list[slice], list[slice]]:
    """For each tap along an axis, the outputs whose windows have it inside, and what it is of."""
    positions, seen = [], []
    for i in range(taps):
        first = min(max(-(-(padding - i) // stride), 0), outputs)
        last = max(min((size - 1 + padding - i) // stride + 1, outputs), first)
        positions.append(slice(first, last))
        seen.append(
            slice(start := stride * first + i - padding, max(start, stride * (last - 1) + i - padding + 1), stride)
        )
    return positions, seen


class Spread:
    """The transpose of `Gathered` where windows step over entries: adds what patches are given to the images."""

    def __init__(
        self, room: Any, shape: Sequence[int], kernel: Pair, padding: Pair, outputs: Sequence[int], stride: Pair
    ):  # fmt: skip
        (c, h, w, n), (kh, kw), (o, rows, columns) = shape, kernel, outputs
        self.count = max(1, min(rows, BLOCK // max(1, kh * kw * c * columns * n)))
        parts: np.ndarray = room("patches", (self.count, kh, kw, c, columns, n))
        self.weight: np.ndarray = room("weight", (kh, kw, c, o))
        along = seen_by_taps(kw, padding[1], columns, stride[1], w)
        self.blocks = []
        for first in range(0, rows, self.count):
            last = min(first + self.count, rows)
            adds = []
            ups = seen_by_taps(kh, padding[0] - stride[0] * first, last - first, stride[0], h)
            for i, (own_rows, rows_seen) in enumerate(zip(*ups, strict=True)):
                for j, (own, columns_seen) in enumerate(zip(*along, strict=True)):
                    if own_rows.start < own_rows.stop and own.start < own.stop:
                        term = parts[own_rows, i, j, :, own].transpose(1, 0, 2, 3)
                        adds.append(((slice(None), rows_seen, columns_seen), term))
            matrices = parts[: last - first].reshape((last - first, kh * kw * c, columns * n))
            self.blocks.append((slice(first, last), matrices, adds))

    def __call__(self, weight: np.ndarray, dz: np.ndarray, images: np.ndarray) -> None:
        """images = Σ weight dz, with weight (O, C, KH, KW) and dz (P, O, Q, N)"""
        np.copyto(self.weight, weight.transpose(2, 3, 1, 0))
        images.fill(0.0)
        for rows, matrices, adds in self.blocks:
            products(self.weight.reshape((matrices.shape[1], -1)), as_matrices(dz[rows]), out=matrices)
            for place, term in adds:
                images[place] += term


def as_matrices(rows: np.ndarray) -> np.ndarray:
    """(P, O, Q, N) as (P, O, Q N): a view."""
    p, o, q, n = rows.shape
    return rows.reshape((p, o, q * n), copy=False)
