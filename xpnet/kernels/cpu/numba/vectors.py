"""Vector instructions for numbers that are adjacent in memory.

Numba vectorizes loops over a few arrays. With more of them, it cannot prove that they do not overlap and works on one
number at a time; for such loops the instructions are emitted here.
"""

from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

BYTES = 64  # size of a vector; where registers are smaller, the compiler uses several
FLOATS = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}
BYTE = ir.IntType(8)


def in_vectors(builder: Any, size: int, n: Any) -> Iterator[tuple[Any, int]]:
    """Emit a loop over n numbers of `size` bytes; yield the index of the next number, and how many to process at once.

    The code emitted inside is the loop's body: once for whole vectors, and once for the single numbers that remain.
    """
    lanes = BYTES // size
    whole = builder.mul(builder.udiv(n, n.type(lanes)), n.type(lanes))
    for start, stop, step in ((n.type(0), whole, lanes), (whole, n, 1)):
        with cgutils.for_range_slice(builder, start, stop, n.type(step), inc=True) as (index, _):
            yield index, step


def type_of(kind: Any, lanes: int) -> Any:
    """Return the type of a vector of `lanes` numbers, or of a number for 1."""
    return kind if lanes == 1 else ir.VectorType(kind, lanes)


def pointer(builder: Any, address: Any, index: Any, kind: Any, lanes: int) -> Any:
    """Return a pointer to `lanes` numbers, from number `index` of the array at `address`."""
    bytes_each = {"i8": 1, "float": 4, "double": 8}[str(kind)]
    start = builder.add(address, builder.mul(index, index.type(bytes_each)))
    return builder.inttoptr(start, type_of(kind, lanes).as_pointer())


def load(builder: Any, address: Any, index: Any, kind: Any, lanes: int) -> Any:
    """Load `lanes` numbers, from number `index` of the array at `address`."""
    return builder.load(pointer(builder, address, index, kind, lanes), align=1)


def store(builder: Any, value: Any, address: Any, index: Any, kind: Any, lanes: int) -> None:
    """Store `lanes` numbers as number `index` and following of the array at `address`."""
    builder.store(value, pointer(builder, address, index, kind, lanes), align=1)


def filled(builder: Any, value: Any, lanes: int) -> Any:
    """Return a vector with `value`, a number, in all lanes."""
    if lanes == 1:
        return value
    vector = ir.VectorType(value.type, lanes)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), value, ir.IntType(32)(0))
    return builder.shuffle_vector(first, first, ir.Constant(ir.VectorType(ir.IntType(32), lanes), [0] * lanes))


def constant(kind: Any, value: float, lanes: int) -> Any:
    """Return a vector with the same constant in all lanes."""
    return ir.Constant(type_of(kind, lanes), value if lanes == 1 else [value] * lanes)
