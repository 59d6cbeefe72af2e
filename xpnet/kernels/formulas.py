"""Translation of the formulas in `table.py` for each family of kernels.

A formula is an expression in Python's syntax: names, numbers, arithmetic, functions such as `exp`, and
`where(x >= 0, a, b)`. `normal(x)` is Φ(x), the normal distribution's probability of a value below x, and `density(x)`
its derivative φ(x). `Program` translates lines of formulas to array calls, `python` a formula to an expression that
Numba compiles, `cuda` to one of CUDA.
"""

import ast
import functools
import math
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from .. import ops

NAMES: dict[type[ast.AST], str] = {
    ast.Add: "add", ast.Sub: "subtract", ast.Mult: "multiply", ast.Div: "divide", ast.USub: "negative",
    ast.GtE: "greater_equal", ast.Lt: "less",
}  # fmt: skip
COMPARISONS = {"greater_equal", "less"}
Operand = str | float | int  # a name, a number, or the index of the operation that computes it


def parsed(formula: str) -> Any:
    """Return the formula's syntax tree."""
    return ast.parse(formula, mode="eval").body


@functools.cache
def names_in(formula: str) -> frozenset[str]:
    """Return the names of the variables in a formula."""
    tree = parsed(formula)
    functions = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    return frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in functions)


@functools.cache
def functions_in(formula: str) -> frozenset[str]:
    """Return the names of the functions in a formula."""
    return frozenset(n.func.id for n in ast.walk(parsed(formula)) if isinstance(n, ast.Call))  # type: ignore[attr-defined]


# --- array calls ------------------------------------------------------------------------------------------------------


def operations(formula: str) -> list[tuple[str, list[Operand]]]:
    """Return a formula as a sequence of operations. The larger operand is computed first, to keep few results at a
    time.
    """
    found: list[tuple[str, list[Operand]]] = []
    known: dict[str, int] = {}  # the operation that computes a subexpression, which may occur twice

    def visit(node: Any) -> Operand:
        if isinstance(node, ast.Name):
            return node.id
        if (text := ast.unparse(node)) in known:
            return known[text]
        if isinstance(node, ast.Constant):
            return float(node.value)  # type: ignore[arg-type]
        if isinstance(node, ast.Call):
            function, operands = node.func.id, node.args  # type: ignore[attr-defined]
        elif isinstance(node, ast.Compare):
            function, operands = NAMES[type(node.ops[0])], [node.left, *node.comparators]
        elif isinstance(node, ast.UnaryOp):
            function, operands = NAMES[type(node.op)], [node.operand]
        else:
            function, operands = NAMES[type(node.op)], [node.left, node.right]
        refs: list[Any] = [None] * len(operands)
        for i in sorted(range(len(operands)), key=lambda i: -sum(1 for _ in ast.walk(operands[i]))):
            refs[i] = visit(operands[i])
        found.append((function, refs))
        known[text] = len(found) - 1
        return known[text]

    visit(parsed(formula))
    return found


class Program:
    """Lines of formulas as the source of a function of array calls that write into given arrays.

    `places` maps the names on the left of the lines to the arguments in which their values are written, `holds` maps
    other names to the arguments that hold them, and `shared` are pairs of a place and an argument that may be the same
    array. Intermediate results are written to the line's place as soon as its old content is not needed any more, else
    to `spare` arrays. These and the `constants` are further arguments.
    """

    def __init__(
        self,
        lines: Iterable[tuple[str, str]],
        places: Mapping[str, str],
        holds: Mapping[str, str] = MappingProxyType({}),
        shared: Iterable[tuple[str, str]] = (),
    ):
        self.source: list[str] = []
        self.spare: list[str] = []
        self.constants: dict[float, str] = {}
        self.holds, self.shared = dict(holds), set(shared)
        for name, formula in lines:
            self._add(formula, places[name])
            self.holds[name] = places[name]

    def function(self, lib: Any, *names: str, last: Iterable[str] = ()) -> Callable[..., None]:
        """Return a function of these arguments, the spare arrays, the constants, and the `last` ones, in this order."""
        calls = {line.partition("(")[0] for line in self.source}
        scope = {call: FUNCTIONS.get((lib.__name__, call)) or getattr(lib, call) for call in calls}
        arguments = ", ".join([*names, *self.spare, *self.constants.values(), *last])
        exec(f"def program({arguments}):\n    " + "\n    ".join(self.source), scope)
        program: Callable[..., None] = scope["program"]
        return program

    def _add(self, formula: str, out: str) -> None:
        steps = operations(formula)
        last = {ref: i for i, (_, refs) in enumerate(steps) for ref in refs if not isinstance(ref, float)}
        there = {name for name in names_in(formula) for at in [self._at(name)] if at == out or (out, at) in self.shared}
        wanted = max((last[name] for name in there), default=-1)  # the last operation that reads the old `out`
        held: dict[int, str] = {}
        for i, (function, refs) in enumerate(steps):
            operands = [self._operand(ref, held) for ref in refs]
            live = {held[j] for j in held if last[j] > i}
            kind = "mask" if function in COMPARISONS else "spare"
            if i == len(steps) - 1 or (kind == "spare" and wanted <= i and out not in live):
                held[i] = out
            else:
                held[i] = next(place for k in range(len(steps)) if (place := f"{kind}{k}") not in live)
                if held[i] not in self.spare:
                    self.spare.append(held[i])
            self.source.append(f"{function}({', '.join(operands)}, out={held[i]})")

    def _operand(self, ref: Operand, held: Mapping[int, str]) -> str:
        if isinstance(ref, int):
            return held[ref]
        if isinstance(ref, float):
            return self.constants.setdefault(ref, f"constant{len(self.constants)}")
        return self._at(ref)

    def _at(self, name: str) -> str:
        return self.holds.get(name, name)


def select(condition: Any, a: Any, b: Any, out: Any) -> None:
    """As NumPy's `where`, with an `out` that may be a or b."""
    if out is not a:
        if out is not b:
            np.copyto(out, b)
        np.copyto(out, a, where=condition)
    else:
        np.copyto(out, b, where=~condition)


HALF = 0.5**0.5
DENSITY = HALF * math.pi**-0.5  # φ(0)
# of Φ(x) = (1 + tanh(x Q(x²))) / 2, `ops.single_erf` of x / √2: arrays without axes, as `Workspace.filled` has them
SINGLE = [np.array(c * HALF * 0.5**i, np.float32) for i, c in zip(range(6, -1, -1), ops.SINGLE, strict=True)]
MINUS_HALF, PLUS_HALF, SINGLE_DENSITY = (np.array(c, np.float32) for c in (-0.5, 0.5, DENSITY))


def normal(x: Any, out: Any) -> None:
    """Φ(x) = (1 + erf(x / √2)) / 2; `out` is not x."""
    if x.dtype != np.float32:
        np.multiply(ops.erf(x * HALF), 0.5, out=out)
        out += 0.5
        return
    square, (highest, *others, last) = np.square(x), SINGLE
    np.multiply(square, highest, out=out)
    for c in others:
        out += c
        out *= square
    out += last
    out *= x
    np.tanh(out, out=out)
    out *= PLUS_HALF
    out += PLUS_HALF


def density(x: Any, out: Any) -> None:
    """φ(x) = e^{-x²/2} / √(2π)"""
    single = x.dtype == np.float32
    np.square(x, out=out)
    out *= MINUS_HALF if single else -0.5
    np.exp(out, out=out)
    out *= SINGLE_DENSITY if single else DENSITY


def normal_of_tensors(x: Any, out: Any) -> None:
    """As `normal`, of a PyTorch tensor."""
    out.copy_(x).mul_(HALF).erf_().add_(1.0).mul_(0.5)


def density_of_tensors(x: Any, out: Any) -> None:
    """As `density`, of a PyTorch tensor; PyTorch computes powers of 2 three times as fast as powers of e."""
    out.copy_(x).square_().mul_(-0.5 / math.log(2.0)).exp2_().mul_(DENSITY)


# functions that a library lacks
FUNCTIONS: dict[tuple[str, str], Callable[..., Any]] = {
    ("numpy", "where"): select,
    **{("numpy", f.__name__): f for f in (normal, density)},
    **{("torch", name): f for name, f in (("normal", normal_of_tensors), ("density", density_of_tensors))},
}


# --- source code of functions of single numbers -----------------------------------------------------------------------


def times(formula: str) -> str:
    """Return a slope's formula times dy. If the slope is 1 or 0, it is dy or 0, even if dy is infinite."""

    def multiplied(node: Any) -> Any:
        if isinstance(node, ast.Call) and node.func.id == "where":  # type: ignore[attr-defined]
            return ast.Call(node.func, [node.args[0], *map(multiplied, node.args[1:])], [])
        if isinstance(node, ast.Constant) and node.value in (0, 1):
            return ast.Name("dy") if node.value else node
        return ast.BinOp(ast.Name("dy"), ast.Mult(), node)

    return ast.unparse(multiplied(parsed(formula)))


class Typed(ast.NodeTransformer):
    """Converts the constants of a formula to the type T."""

    def visit_Constant(self, node: ast.Constant) -> Any:  # ast's name for it
        return parsed(f"T({float(node.value)})")  # type: ignore[arg-type]


class Conditional(Typed):
    """Converts `where` to Python's conditional expression, too."""

    def visit_Call(self, node: ast.Call) -> Any:
        self.generic_visit(node)
        return ast.IfExp(*node.args) if node.func.id == "where" else node  # type: ignore[attr-defined]


def python(formula: str) -> str:
    """Return a formula as a Python expression of single numbers, with constants of the type T."""
    return ast.unparse(Conditional().visit(parsed(formula)))


def cuda(formula: str) -> str:
    """Return a formula as a CUDA expression, with constants of the type T; `where` is a function of common.cu."""
    return ast.unparse(Typed().visit(parsed(formula)))
