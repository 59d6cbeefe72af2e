"""Checks of the data for `fit`, `evaluate` and `predict`, and its way to the network's backend."""

import math
import mmap
from collections.abc import Iterable
from typing import Any

import numpy as np

from .. import ops
from ..backends import DTYPES, Array, dtype_name, shape_of
from ..common.checks import require
from ..layers.base import Shape, tree
from ..layers.embedding import check_ids
from ..layers.placed import Placed
from ..losses import __all__ as known_losses
from ..losses.losses import Loss
from .batches import LARGE, Group, Uncast, blocks

SUMMED = 2**16  # weights that are summed in one call


def rows_of(net: Placed, who: str, x: Any, known: bool = False, whole: bool = False) -> Array | Uncast:
    """Return a user's x as an array on the network's backend, in the dtype that its first layer takes. Unless it is
    needed `whole`, a large x that is memory-mapped or of integers is returned as an `Uncast`.

    Raises ValueError unless it has at least one row, a shape that fits and, if this is not `known`, only finite
    entries. The caller must be within the backend's `scope`.
    """
    backend, xp = net.backend, net.backend.xp
    x = backend.checked(who, x)
    shape, host = tuple(x.shape), isinstance(x, np.ndarray)
    wanted = net.input_shape
    if wanted is not None and shape[1:] != wanted:
        check_row(net, who, shape)
    if not shape or not shape[0]:
        raise ValueError(f"{who} has shape {shape}: no rows; expected at least one")
    dtype, integers = backend.dtype(net.dtype), net.takes == "integers"
    if integers:
        if x.dtype.kind not in "iu" if host else not xp.isdtype(x.dtype, "integral"):
            raise TypeError(f"{who} has dtype {dtype_name(x.dtype)}, and {net.parts()[0][1]!r} takes integers")
        dtype = xp.asarray(0, device=backend.device).dtype
        check_vocabulary(net, who, x, dtype)
    if math.prod(shape) >= LARGE and not whole:
        real = dtype_name(x.dtype) in DTYPES
        if is_mapped(x) if real else dtype_name(x.dtype) != dtype_name(dtype):
            kept = Uncast(backend, x, dtype)
            if real and not known:
                check_finite(net, who, kept)
            return kept
    x = xp.astype(backend.brought(x), dtype, copy=False)
    if not integers and not known and not ops.all_finite(x):
        check_finite(net, who, x)
    return x


def check_vocabulary(net: Placed, who: str, x: Array, dtype: Any) -> None:
    """Raise ValueError for ids outside the first layer's vocabulary, checked block by block. Waits for the device.

    NumPy arrays are checked without a cast, in which large ids would wrap around. Others are cast first, since PyTorch
    has no minimum of unsigned integers.
    """
    if net.vocabulary is not None:
        for rows in blocks(x.shape):
            block = x[rows, ...]
            ids = block if isinstance(block, np.ndarray) else net.backend.xp.astype(block, dtype, copy=False)
            check_ids(who, ids, net.vocabulary, rows.start)


def is_mapped(x: Array) -> bool:
    """Whether an array's memory is a memory-mapped file."""
    while isinstance(x, np.ndarray):
        if isinstance(x, np.memmap):
            return True
        x = x.base
    return isinstance(x, mmap.mmap)


def check_finite(net: Placed, who: str, x: Array | Uncast) -> None:
    """Raise ValueError for entries that are NaN or infinite, checked block by block."""
    count = 0
    for rows in blocks(x.shape):
        block = x[rows, ...]
        if not ops.all_finite(block):
            bad = np.argwhere(~np.isfinite(net.backend.to_numpy(block).reshape(rows.stop - rows.start, -1)))
            if not count:
                first = f"row {rows.start + bad[0][0]}, column {bad[0][1]}"
            count += len(bad)
    if count:
        raise ValueError(
            f"{who} has {count} NaN or infinite entries in {net.dtype}, the first in {first}; drop, fill or rescale "
            "them"
        )


def check_row(net: Placed, who: str, shape: tuple[int, ...]) -> None:
    """Raise ValueError for an x of this shape, unless the network takes it although it differs from `input_shape`."""
    row: Shape = ("N", *shape[1:])
    try:
        net.output_shape(row)
        return
    except ValueError as error:
        misfit = error
    wanted: Shape = net.input_shape or ()
    if None in wanted:  # as for images: the layer's own message says more
        raise ValueError(f"{who} has shape {shape}: {misfit}") from misfit
    hint = ""
    if shape == wanted:
        hint = "; for a single row give x[None, :]"
    elif shape[1:] == () and wanted == (1,):
        hint = "; for a single feature give x[:, None]"
    elif shape[1:] and (math.prod(shape[1:]),) == wanted:
        hint = "; give x.reshape(len(x), -1)"
    if len(shape) <= len(wanted) + 1 or hint:
        raise ValueError(f"{who} has shape {shape}, expected (n, {', '.join(map(str, wanted))}){hint}")
    raise ValueError(f"{who} has shape {shape}: {misfit}") from misfit


def outputs_of(net: Placed, x: Array) -> tuple[int, ...]:
    """Return the shape of the network's output for a row of x; computed from a row if a layer has no `output_shape`."""
    if all(layer._tells_shape() for layer in tree(net)):
        shape = net.output_shape(("N", *x.shape[1:]))[1:]
        if all(isinstance(n, int) for n in shape):
            return shape  # type: ignore[return-value]
    return tuple(net.forward(x[:1, ...])[0].shape[1:])


def rows_of_pair(
    net: Placed, who: str, x: Any, y: Any, loss: Loss, known: bool = False, whole: bool = False,
    outputs: tuple[int, ...] | None = None,
) -> tuple[Array | Uncast, Array]:  # fmt: skip
    """Return x, as `rows_of` does, and y, checked, moved to the network's backend and encoded by the loss.

    `outputs` is the shape of the network's output for a row, if it is known.
    """
    require(f"{who.partition(':')[0]}: loss", loss, ("value_and_grad",), "xn.SoftmaxCrossEntropy()", known_losses)
    with net.backend.scope():
        x = rows_of(net, f"{who}: x", x, known, whole)
        shape = shape_of(y, f"{who}: y")
        if shape[:1] != (x.shape[0],):
            rows = f"{shape[0]} rows" if shape else "no rows"
            raise ValueError(f"{who}: x has {x.shape[0]} rows and y {rows}; each row of x needs its target")
        if not hasattr(loss, "encode"):
            return x, net.backend.adopt(f"{who}: y", y)
        return x, loss.encode(y, zeros_for(net, x, outputs))


def zeros_for(net: Placed, x: Array, outputs: tuple[int, ...] | None = None) -> Array:
    """Return zeros of the shape and dtype of the network's outputs for x."""
    shape = x.shape[0], *(outputs_of(net, x) if outputs is None else outputs)
    return net.backend.xp.zeros(shape, dtype=net.backend.dtype(net.dtype), device=net.backend.device)


def weights_for(
    net: Placed, who: str, loss: Loss, y: Array, sample_weight: Any, mean: float | None = None
) -> Array | None:
    """Return the rows' weights as the objective takes them: divided by their mean, or as given if the loss is a sum.

    `mean` is the mean of all weights, if these are only a batch's. None stays None.
    """
    if sample_weight is None:
        return None
    if not isinstance(loss, Loss):
        raise TypeError(f"{who}: sample_weight needs a loss that derives from xn.Loss, got {loss!r}")
    backend = net.backend
    weights = backend.to_numpy(backend.adopt(f"{who}: sample_weight", sample_weight)).astype(np.float64)
    shape, positions = weights.shape, tuple(y.shape[:-1]) or tuple(y.shape)
    if not shape or shape != positions[: len(shape)]:
        wanted = f"one number for each row, {positions[:1]}"
        wanted += f", or for each position, {positions}" if len(positions) > 1 else ""
        raise ValueError(f"{who}: sample_weight has shape {shape}, expected {wanted}")
    check_weights(net, who, weights)
    if mean is None and not weights.any():
        raise ValueError(f"{who}: sample_weight is 0 everywhere, and some row must count")
    if loss.reduction == "mean" and loss.weights_over == "fit":
        weights /= mean_weight([weights]) if mean is None else mean
    return backend.asarray(weights, net.dtype)


def check_weights(net: Placed, who: str, weights: np.ndarray) -> None:
    """Raise ValueError for weights that are negative, or not finite in the network's dtype."""
    sound = (weights >= 0.0) & (weights <= float(net.backend.xp.finfo(net.backend.dtype(net.dtype)).max))
    if not sound.all():
        at = np.unravel_index(int(sound.argmin()), weights.shape)
        raise ValueError(f"{who}: sample_weight must be finite and at least 0, got {weights[at]} in row {at[0]}")


def mean_weight(parts: Iterable[np.ndarray], group: Group | None = None) -> float:
    """Return the mean of all weights in `parts` and, with a group, in those of all processes.

    They are summed 65,536 at a time, and these sums are added exactly, so that the result does not depend on how the
    weights are divided into parts.
    """
    from fractions import Fraction

    total, count, waiting = Fraction(0), 0, np.empty(0)

    def add(weights: np.ndarray) -> None:
        nonlocal total, count
        scale = 2.0**-40 if weights.max() > 2.0**900 else 1.0  # else the sum might overflow
        total += Fraction(float((weights * scale).sum())) / Fraction(scale)
        count += len(weights)

    for part in parts:
        waiting = np.concatenate([waiting, np.asarray(part, np.float64).reshape(-1)])
        while len(waiting) >= SUMMED:
            add(waiting[:SUMMED])
            waiting = waiting[SUMMED:]
    if len(waiting):
        add(waiting)
    if group is not None:
        totals, counts = zip(*group.allgather("weights", (total, count)), strict=True)
        total, count = sum(totals, Fraction(0)), sum(counts)
    return float(total / count) if count else 0.0
