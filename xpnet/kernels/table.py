"""Pointwise functions and optimizers' rules as formulas, which each family of kernels compiles for itself.

A function has a formula for y from x, and one for its slope dy/dx from x, y or both; other names are the layer's
settings. The lines of a rule compute the next slots and the next w from the clipped gradient g and the slots, in an
order that needs few temporary arrays.
"""

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from ..layers.activations import CUBIC, ELU, GELU, ROOT, LeakyReLU, ReLU, Sigmoid, SiLU, Softplus, Tanh
from ..layers.base import Layer
from ..optimizers import SGD, Adagrad, Adam, AdamW, Nesterov, Optimizer, RMSprop
from .formulas import names_in


class Pointwise(NamedTuple):
    """A function of single numbers and its derivative, and the layer that computes it."""

    layer: Any
    value: str
    slope: str
    of: tuple[tuple[str, object], ...] = ()  # settings that the layer must have
    common: str = ""  # a subexpression of both formulas, where it is called `common`

    @property
    def settings(self) -> list[str]:
        """The names of the layer's settings in the formulas."""
        return sorted(names_in(f"{self.value} + {self.slope} + {self.common or 0}") - {"x", "y", "common"})

    @property
    def formulas(self) -> tuple[str, str]:
        """The formulas of value and slope, with `common` replaced by its expression."""
        value, slope = (re.sub(r"\bcommon\b", f"({self.common})", formula) for formula in (self.value, self.slope))
        return value, slope


LINEAR, CUBED = 2.0 * ROOT, 2.0 * ROOT * CUBIC  # coefficients of 2 u in GELU; (1 + tanh u) / 2 = 1 / (1 + e⁻²ᵘ)

POINTWISE = {
    "Identity": Pointwise(None, "x", "1"),
    "Sigmoid": Pointwise(Sigmoid, "1 / (1 + exp(-x))", "y * (1 - y)"),
    "Tanh": Pointwise(Tanh, "tanh(x)", "1 - y * y"),
    "ReLU": Pointwise(ReLU, "maximum(x, 0)", "where(x >= 0, 1, 0)"),
    "LeakyReLU": Pointwise(LeakyReLU, "where(x >= 0, x, alpha * x)", "where(x >= 0, 1, alpha)"),
    "ELU": Pointwise(ELU, "where(x >= 0, x, alpha * expm1(x))", "where(x >= 0, 1, alpha * exp(x))"),
    "SiLU": Pointwise(SiLU, "x / (1 + exp(-x))", "(1 + x - x / (1 + exp(-x))) / (1 + exp(-x))"),
    "GELU": Pointwise(
        GELU, "x * common", "common + x * density(x)", (("approximate", False),), "normal(x)",
    ),
    "GELUTanh": Pointwise(  # the slope is set to 1 or 0 for large |x|, whose powers could overflow
        GELU, "x / (1 + common)",
        "where(x >= 10, 1, where(x + 9 < 0, 0, (1 + x * (common / (1 + common)) * "
        f"({LINEAR} + {3.0 * CUBED} * (x * x))) / (1 + common)))",
        (("approximate", True),), f"exp(-x * ({LINEAR} + {CUBED} * (x * x)))",
    ),
    "Softplus": Pointwise(Softplus, "maximum(x, 0) + log1p(exp(-absolute(x)))", "1 / (1 + exp(-x))"),
}  # fmt: skip


def pointwise(layer: Layer | None) -> str | None:
    """Return the name of a layer's function in the table, None if it has none; "Identity" for no layer."""
    kind = None if layer is None else type(layer)
    rows = ((name, row) for name, row in POINTWISE.items() if row.layer is kind)
    return next((name for name, row in rows if all(getattr(layer, key) == value for key, value in row.of)), None)


Lines = tuple[tuple[str, str], ...]  # names and the formulas of their next values


class Rule(NamedTuple):
    """An optimizer's step on each number: its lines, and a function that returns the coefficients in them."""

    lines: Lines
    numbers: Callable[..., dict[str, float]]
    decay: str = "g + decay * w"  # the gradient with weight decay; "" if the lines include it


MOMENTUM: Lines = (("g", "rate * g"), ("velocity", "momentum * velocity + g"), ("w", "w - velocity"))
SQUARES: Lines = (("squares", "kept * squares + added * g * g"), ("w", "w - rate * (g / sqrt(squares + eps))"))
MOMENTS: Lines = (
    *(("g", "added_m * g"), ("m", "kept_m * m + g")),
    *(
        ("g", "root * g"),
        ("g", "g * g"),
        ("v", "kept_v * v + g"),
    ),  # root first: the square overflows where v's share does
)


def of_adam(o: Adam, rate: float, size: float, shift: float) -> dict[str, float]:
    """Return Adam's coefficients; the square of √(1 - β₂) / (1 - β₁) · (1 - β₁) g is what is added to v."""
    added = 1 - o.beta1
    root = (1 - o.beta2) ** 0.5 / added
    return {"kept_m": o.beta1, "added_m": added, "root": root, "kept_v": o.beta2, "size": size, "shift": shift}


RULES: dict[type[Optimizer], Rule] = {
    SGD: Rule(MOMENTUM, lambda o, rate: {"momentum": o.momentum, "rate": rate}),
    Nesterov: Rule(
        MOMENTUM, lambda o, rate: {"momentum": o.momentum, "rate": rate}, "g + decay * (w - momentum * velocity)"
    ),
    Adagrad: Rule(SQUARES, lambda o, rate: {"kept": 1.0, "added": 1.0, "rate": rate, "eps": o.eps}),
    RMSprop: Rule(SQUARES, lambda o, rate: {"kept": o.rho, "added": 1 - o.rho, "rate": rate, "eps": o.eps}),
    Adam: Rule((*MOMENTS, ("w", "w - m / (sqrt(v) + shift) * size")), of_adam),
    AdamW: Rule(
        (*MOMENTS, ("w", "left * w - m / (sqrt(v) + shift) * size")),
        lambda o, rate, *step: (
            of_adam(o, rate, *step) | {"left": 1 - rate * o.weight_decay, "lost": rate * o.weight_decay}
        ),
        "",
    ),
}


# AdamW for decays="weights": numbers whose `spared` is 1 do not decay
SPARING: Lines = (*MOMENTS, ("w", "w - (lost - lost * spared) * w - m / (sqrt(v) + shift) * size"))
SPARED = "spared"  # the name of that vector among the optimizer's slots, which steps do not change


def lines_of(kind: type[Optimizer], decays: bool, spares: bool = False) -> Lines:
    """Return the lines of an optimizer's rule, after a line for weight decay if it `decays`; with `spares`, those of
    AdamW for decays="weights".
    """
    if spares:
        return SPARING
    rule = RULES[kind]
    return (("g", rule.decay), *rule.lines) if decays and rule.decay else rule.lines


def numbers_in(lines: Lines, slots: tuple[str, ...]) -> list[str]:
    """Return the names of the coefficients in the lines."""
    return sorted({name for _, formula in lines for name in names_in(formula)} - {"g", "w", SPARED, *slots})


def numbers_of(optimizer: Optimizer, step: int) -> dict[str, float]:
    """Return the coefficients at a step, by name."""
    numbers: dict[str, Any] = RULES[type(optimizer)].numbers(optimizer, *optimizer.coefficients(step))
    numbers["decay"] = optimizer.weight_decay
    return numbers
