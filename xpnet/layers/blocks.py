"""Residual and parallel layers."""

from numbers import Integral
from typing import Any

from ..backends import Array, namespace
from ..common.checks import brief, choice, pair_from
from .base import Layer, Shape, check_shape
from .container import Chain, Container, check_fit


class Residual(Chain):
    """The layers' output added to their input: y = x + f(x), f the layers one after another. He et al. 2016.

    forward:   y = x + f(x)
    backward:  dx = dy + f'(x)ᵀ dy,  the layers' gradients from dy

    Raises ValueError if f changes the shape.

    >>> block = xn.Residual(xn.LayerNorm(16), xn.Dense(16, 64), xn.GELU(), xn.Dense(64, 16))
    >>> block.output_shape(("N", 10, 16))
    ('N', 10, 16)
    """

    formula = "y = x + f(x)", "dx = dy + f'(x)ᵀ dy"
    merge = "add"

    def __init__(self, *layers: Layer):
        super().__init__(*layers)
        check_fit(self)

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        y, cache = super().forward(x, training)
        self._merged([x.shape, y.shape])
        return x + y, cache

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        dx, grads = super().backward(dy, cache)
        return dy + dx, grads

    def backward_params(self, dy: Array, cache: Any, lowest: int = 0) -> dict[str, Array]:
        return self._backward(dy, cache, lowest, needs_dx=False)[1]

    def _branches(self, prefix: str = "") -> list[list[tuple[str, Layer]]]:
        return [[], self._flat(prefix)] if self._runs_as(Residual) else []

    def output_shape(self, input_shape: Shape) -> Shape:
        return self._merged([input_shape, super().output_shape(input_shape)])

    def _merged(self, shapes: list[Shape]) -> Shape:
        """Return the shape of y, given those of x and f(x). Raises ValueError if they differ."""
        before, after = map(tuple, shapes)
        if before != after:
            raise ValueError(f"{self!r}: its layers turn {before} into {after}; x + f(x) needs the same shape")
        return shapes[0]


class Branches(Container):
    """Layers side by side: each is given x, and their outputs are merged. Use a Sequential for a branch of several.

    merge="add":     y = Σ_i f_i(x)                     dx = Σ_i f_i'(x)ᵀ dy
    merge="concat":  y = [f_0(x), f_1(x), ...]          dx = Σ_i f_i'(x)ᵀ dy_i, dy_i the part of dy that f_i gave

    "concat" joins the outputs along `axis`. Raises ValueError for any other `merge`, without layers, for outputs whose
    shapes do not fit, and for an axis that they do not have.

    >>> xn.Branches(xn.Dense(4, 3), xn.Dense(4, 5), merge="concat").output_shape(("N", 4))
    ('N', 8)
    """

    def __init__(self, *layers: Layer, merge: str = "add", axis: int = -1):
        super().__init__(*layers)
        if not layers:
            raise ValueError("Branches: expected at least one layer, such as Branches(Dense(8, 4), Dense(8, 4))")
        self.merge = choice("Branches: merge", merge, ("add", "concat"))
        self.axis = along("Branches: axis", axis)
        check_fit(self)

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        outputs, caches = zip(
            *(pair_from(layer, "forward", layer.forward(x, training)) for layer in self.layers), strict=True
        )
        shape = self._merged([tuple(y.shape) for y in outputs])
        if self.merge == "concat":
            y = namespace(x).concat(outputs, axis=self.axis)
        else:
            y = outputs[0]
            for more in outputs[1:]:
                y = y + more
        return y, (self, shape, caches, [y.shape[self.axis] for y in outputs] if self.merge == "concat" else None)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        caches, lengths = self.saved(cache, dy)
        grads: dict[str, Array] = {}
        dx = None
        for i, (layer, inner, part) in enumerate(zip(self.layers, caches, self._split(dy, lengths), strict=True)):
            more, inner_grads = pair_from(layer, "backward", layer.backward(part, inner))
            dx = more if dx is None or more is None else dx + more
            grads |= {f"{i}.{name}": gradient for name, gradient in inner_grads.items()}
        return dx, grads

    def _branches(self, prefix: str = "") -> list[list[tuple[str, Layer]]]:
        return [layer._parts(f"{prefix}{i}.") for i, layer in enumerate(self.layers)] * self._runs_as(Branches)

    @property
    def formula(self) -> tuple[str, str]:  # type: ignore[override]
        """The formulas of forward and backward."""
        if self.merge == "add":
            return "y = Σ_i f_i(x)", "dx = Σ_i f_i'(x)ᵀ dy"
        return "y = [f_0(x), f_1(x), ...]", "dx = Σ_i f_i'(x)ᵀ dy_i"

    def _split(self, dy: Array, lengths: list[int] | None) -> list[Array]:
        """Return each branch's dy."""
        if lengths is None:
            return [dy] * len(self.layers)
        parts, start, axis = [], 0, self.axis % dy.ndim
        for length in lengths:
            parts.append(dy[(slice(None),) * axis + (slice(start, start + length), ...)])
            start += length
        return parts

    def output_shape(self, input_shape: Shape) -> Shape:
        check_shape(self, input_shape)
        batch = bool(input_shape) and not isinstance(input_shape[0], int)
        return self._merged([tuple(layer.output_shape(input_shape)) for layer in self.layers], batch)

    def _merged(self, shapes: list[Shape], batch: bool = True) -> Shape:
        """Return the shape of y, given those of the outputs, which have a `batch` axis or not."""
        first, fit = shapes[0], len(set(shapes)) == 1
        if self.merge == "concat":
            axis = self.axis if self.axis < 0 or batch else self.axis - 1
            if not -len(first) <= axis < len(first):
                raise ValueError(f"{self!r}: outputs of shape {first} have no axis {self.axis}")
            at = axis % len(first)
            fit = len({(len(shape), shape[:at], shape[at + 1 :]) for shape in shapes}) == 1
            lengths = [shape[at] for shape in shapes]
            length: Any = sum(lengths) if fit and None not in lengths else None
            first = (*first[:at], length, *first[at + 1 :])
        if not fit:
            how = "be added" if self.merge == "add" else f"be joined along axis {self.axis}"
            raise ValueError(f"{self!r}: its layers give {', '.join(map(str, shapes))}, and these cannot {how}")
        return first

    @property
    def vocabulary(self) -> int | None:  # type: ignore[override]
        """The number of ids that all of the layers know, if they take integers."""
        return min((layer.vocabulary for layer in self.layers if layer.vocabulary is not None), default=None)


def along(name: str, axis: object) -> int:
    """Return the number of an axis other than the batch's."""
    if isinstance(axis, bool) or not isinstance(axis, Integral) or axis == 0:
        raise ValueError(f"{name} must be a whole number other than 0, the batch's axis, got {brief(axis)}")
    return int(axis)
