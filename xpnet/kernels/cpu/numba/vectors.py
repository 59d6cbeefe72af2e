"""Instructions for vectors of numbers that lie next to each other.

Numba makes vectors of loops over a few rows of memory. Where there are more, it cannot tell them apart and works on one
number at a time; there the instructions are given.
"""

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

BYTES = 64  # of a vector; where registers are smaller, the compiler takes several
FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
BYTE = ir.IntType(8)


def in_vectors(builder: Any, size: int, n: Any) -> Iterator[tuple[Any, int]]:
    """A loop over n numbers of so many bytes: the index to go on from, and how many numbers to take together.

    What is written within is the loop's body, once for whole vectors and once for the single numbers behind them.
    """
    lanes = BYTES // size
    whole = builder.mul(builder.udiv(n, n.type(lanes)), n.type(lanes))
    for start, stop, together in ((n.type(0), whole, lanes), (whole, n, 1)):
        with cgutils.for_range_slice(builder, start, stop, n.type(together), inc=True) as (index, _):
            yield index, together


def of(kind: Any, lanes: int) -> Any:
    """The type of so many numbers."""
    return kind if lanes == 1 else ir.VectorType(kind, lanes)


def place(builder: Any, address: Any, index: Any, kind: Any, lanes: int) -> Any:
    """Where in memory they stand, in a row that begins at the address."""
    bytes_each = {"i8": 1, "float": 4, "double": 8}[str(kind)]
    start = builder.add(address, builder.mul(index, index.type(bytes_each)))
    return builder.inttoptr(start, of(kind, lanes).as_pointer())


def load(builder: Any, address: Any, index: Any, kind: Any, lanes: int) -> Any:
    """The numbers there."""
    return builder.load(place(builder, address, index, kind, lanes), align=1)


def store(builder: Any, value: Any, address: Any, index: Any, kind: Any, lanes: int) -> None:
    """Write them there."""
    builder.store(value, place(builder, address, index, kind, lanes), align=1)


def filled(builder: Any, value: Any, lanes: int) -> Any:
    """A number as a vector of it."""
    if lanes == 1:
        return value
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def constant(kind: Any, value: float, lanes: int) -> Any:
    """The same of a number known beforehand."""
    return ir.Constant(of(kind, lanes), value if lanes == 1 else [value] * lanes)
