"""The share of a batch that is here: where several processes train together, each has some of the batch's rows.

A layer or loss that adds up over the batch takes its sums from `whole` and its counts of rows from `rows_of_batch`:
they are those of the whole batch then, so that how many processes there are changes nothing. Parameters' gradients stay
those of the rows here: the training step adds them up.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import numpy as np

from .. import ops
from ..backends import Array


class Share(Protocol):
    """Some of a batch's rows, which follow one another."""

    first: int  # the number of the first of them in the batch
    own: int  # how many there are
    rows: int  # and in the batch

    def sum(self, *arrays: Any) -> list[Array]:
        """The sums of arrays or numbers over all shares, each of which asks for the same ones in the same order."""


class Stretch:
    """A `Share` that a thread goes through by itself: what adds up over a batch does not take part."""

    def __init__(self, first: int, own: int, rows: int):
        self.first, self.own, self.rows = first, own, rows

    def sum(self, *arrays: Any) -> list[Array]:
        """There is none."""
        raise NotImplementedError


_here: ContextVar[Share | None] = ContextVar("share", default=None)  # None: the rows here are the batch


@contextmanager
def sharing(share: Share) -> Iterator[None]:
    """Within, the rows here are this share of a batch."""
    token = _here.set(share)
    try:
        yield
    finally:
        _here.reset(token)


def whole(*sums: Any) -> Any:
    """Sums or counts over the rows here, as they are over the whole batch: one for one, several for several."""
    share = _here.get()
    totals = sums if share is None else share.sum(*sums)
    return totals[0] if len(totals) == 1 else totals


def finite_in_all(*arrays: Array) -> bool:
    """Whether the entries of these arrays are finite, in all shares."""
    return not whole(0.0 if ops.all_finite(*arrays) else 1.0)


def tree_sum(parts: Sequence[Any]) -> Any:
    """The sum of two halves, each made likewise; there are 1, 2, 4, 8, ... parts."""
    half = len(parts) // 2
    return tree_sum(parts[:half]) + tree_sum(parts[half:]) if half else parts[0]


def rows_of_batch(n: int) -> int:
    """Of n rows here, or n places of which each row has as many, how many the whole batch has."""
    return span(n)[1]


def span(n: int) -> tuple[int, int]:
    """Of n rows or places here, the number of the first in the whole batch, and how many that has."""
    share = _here.get()
    if share is None:
        return 0, n
    each = n // share.own if share.own else 1
    return share.first * each, share.rows * each


# --- what carries the sums --------------------------------------------------------------------------------------------


class OverNCCL:
    """A communicator of mpi4py's, but that CuPy's arrays travel over NCCL, from GPU to GPU.

    `nccl` is a cupyx.distributed.NCCLBackend. Nothing waits for the device: a sum is queued in the current stream.
    """

    def __init__(self, nccl: Any, mpi: Any):
        self.nccl, self.mpi = nccl, mpi

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mpi, name)

    def Allreduce(self, a: Any, total: Any) -> None:  # noqa: N802  # as mpi4py has it
        """The sum; with None for `a` in the place of `total`."""
        if isinstance(total, np.ndarray):
            self.mpi.Allreduce(a, total)
        else:
            self.nccl.all_reduce(total if a is None else a, total)

    def Allgather(self, a: Any, parts: Any) -> None:  # noqa: N802
        """The array of each process, one after another."""
        if isinstance(parts, np.ndarray):
            self.mpi.Allgather(a, parts)
        else:
            self.nccl.all_gather(a, parts, a.size)
