"""Shares of a batch: if several processes train together, each computes some of the batch's rows.

A layer or loss that sums over the batch passes its sums through `whole` and its counts of rows through `rows_of_batch`,
which return those of the whole batch, so that the result does not depend on the number of processes. Gradients of
parameters are those of the local rows; the training step adds them up.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np

from .. import ops
from ..backends import Array


class Share(Protocol):
    """Consecutive rows of a batch."""

    first: int  # the number of the share's first row in the batch
    own: int  # the number of rows in the share
    rows: int  # the number of rows in the batch

    def sum(self, *arrays: Any) -> list[Array]:
        """Return sums of arrays or numbers over all shares, which must all call this in the same order."""


class Stretch:
    """A `Share` for one thread by itself, in which nothing may be summed over the batch."""

    def __init__(self, first: int, own: int, rows: int):
        self.first, self.own, self.rows = first, own, rows

    def sum(self, *arrays: Any) -> list[Array]:
        """Raise NotImplementedError."""
        raise NotImplementedError


_current: ContextVar[Share | None] = ContextVar("share", default=None)  # None: the local rows are the whole batch


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """Within the block, treat the local rows as this share of a batch."""
    token = _current.set(share)
    try:
        yield
    finally:
        _current.reset(token)


def whole(*sums: Any) -> Any:
    """Return sums or counts over the whole batch, from those over the local rows; a single one is not put in a list."""
    share = _current.get()
    totals = sums if share is None else share.sum(*sums)
    return totals[0] if len(totals) == 1 else totals


def finite_in_all(*arrays: Array) -> bool:
    """Whether all entries of these arrays are finite in all shares."""
    return not whole(0.0 if ops.all_finite(*arrays) else 1.0)


def tree_sum(parts: Sequence[Any]) -> Any:
    """Return the sum of the parts, of which there are 1, 2, 4, 8, ..., by adding halves recursively."""
    half = len(parts) // 2
    return tree_sum(parts[:half]) + tree_sum(parts[half:]) if half else parts[0]


def rows_of_batch(n: int) -> int:
    """Return the number of rows in the whole batch for n local rows; or of positions, the same number in each row."""
    return span(n)[1]


def span(n: int) -> tuple[int, int]:
    """Return where n local rows or positions begin in the whole batch, and how many that has."""
    share = _current.get()
    if share is None:
        return 0, n
    each = n // share.own if share.own else 1
    return share.first * each, share.rows * each


# --- communication ----------------------------------------------------------------------------------------------------


class OverNCCL:
    """A communicator of mpi4py that sends CuPy's arrays over NCCL, from GPU to GPU.

    `nccl` is a cupyx.distributed.NCCLBackend. Nothing waits for the device: a sum is queued in the current stream.
    """

    def __init__(self, nccl: Any, mpi: Any):
        self.nccl, self.mpi = nccl, mpi

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mpi, name)

    def Allreduce(self, a: Any, total: Any) -> None:  # noqa: N802  # mpi4py's name
        """Put the sum of `a` over all processes into `total`; None for `a` stands for `total` itself."""
        if isinstance(total, np.ndarray):
            self.mpi.Allreduce(a, total)
        else:
            self.nccl.all_reduce(total if a is None else a, total)

    def Allgather(self, a: Any, parts: Any) -> None:  # noqa: N802
        """Put the arrays `a` of all processes into `parts`, in order."""
        if isinstance(parts, np.ndarray):
            self.mpi.Allgather(a, parts)
        else:
            self.nccl.all_gather(a, parts, a.size)
