"""Optimizers: pure functions of one array w, which in training is the vector of all parameters.

    slots    = optimizer.init(w)                        # its state: arrays like w, and the number of steps
    point    = optimizer.lookahead(w, slots)            # where to take the gradient: w itself, except for Nesterov
    w, slots = optimizer.update(w, gradient, slots)     # gradient g of the loss at that point

In the formulas η is the learning rate of the step, t counts steps from 1, and all operations are elementwise. The
gradient g is clipped first: `clip_value` c clips each entry to [-c, c], then `clip_norm` c multiplies g by
min(1, c / ‖g‖₂); NaN and infinity remain. Then `weight_decay` λ adds λ w, the gradient of λ‖w‖²/2, with the w at which
g was taken (AdamW decouples the decay from g).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from . import ops
from .backends import Array, floating, namespace
from .common.checks import choice, flag, fraction, kind_of, non_negative, pair_from, positive
from .common.settings import Adjustable, defaults
from .schedules import Schedule, checked_rate

__all__ = ["SGD", "Nesterov", "Adagrad", "RMSprop", "Adam", "AdamW"]  # noqa: RUF022  # the order in error messages

Slots = dict[str, Any]


# the keywords that optimizers pass on to `Optimizer`, without those that are arguments of their own
class _Norm(TypedDict, total=False):
    clip_norm: float | None


class _Decay(_Norm, total=False):
    weight_decay: float


class Common(_Decay, total=False):
    """The keywords that every optimizer takes."""

    clip_value: float | None


class AdamCommon(_Norm, total=False):
    """Adam's keywords without `weight_decay`."""

    bias_correction: bool
    clip_value: float | None


class Optimizer(Adjustable, ABC):
    """The base class of optimizers: learning rate or schedule, clipping, weight decay, and the number of steps.

    To use one without `fit`, take `slots = optimizer.init(w)` for an array w, and in each step the gradient at
    `optimizer.lookahead(w, slots)` and `w, slots = optimizer.update(w, gradient, slots)`. To write one, derive from
    `Optimizer`, name its arrays in `memory`, and define `rule(self, w, g, slots, rate)`, which returns the next w and
    the next arrays by name.

    >>> import numpy as np
    >>> class Plain(xn.Optimizer):
    ...     def rule(self, w, g, slots, rate):
    ...         return w - rate * g, {}
    >>> optimizer, w = Plain(0.5), np.asarray([1.0, 2.0])
    >>> w, slots = optimizer.update(w, np.asarray([1.0, 1.0]), optimizer.init(w))
    >>> w
    array([0.5, 1.5])
    """

    memory: tuple[str, ...] = ()  # names of its arrays, which start at zero and must stay finite

    def __init__(
        self, learning_rate: float | Schedule, *, weight_decay: float = 0.0,
        clip_value: float | None = None, clip_norm: float | None = None, **unknown: Any,
    ):  # fmt: skip
        """`learning_rate`: η, a number above 0 or a function of the step, counted from 0, such as `CosineDecay`.

        `clip_value` c clips each entry of the gradient g to [-c, c], then `clip_norm` c multiplies g, that of all
        parameters together, by min(1, c / ‖g‖₂), then `weight_decay` λ adds λ w (in AdamW it is decoupled from g).
        Raises ValueError for a number out of range, TypeError for an unknown setting.
        """
        if unknown:  # subclasses pass on any keywords
            raise TypeError(
                f"{type(self).__name__}: no setting {', '.join(map(repr, unknown))}; there are "
                f"{', '.join(defaults(type(self)))}"
            )
        self.learning_rate = checked_rate(self._named("learning_rate"), learning_rate)
        self.weight_decay = non_negative(self._named("weight_decay"), weight_decay)
        self.clip_value = None if clip_value is None else positive(self._named("clip_value"), clip_value)
        self.clip_norm = None if clip_norm is None else positive(self._named("clip_norm"), clip_norm)

    def init(self, w: Array) -> Slots:
        """Return the initial slots for an array w. Each of several arrays, such as `net.params`, needs its own."""
        if isinstance(w, Mapping):
            raise TypeError(f"{self!r}.init takes one array, got a dict: call it for each of its arrays")
        xp = floating(w, self)
        return {"step": 0} | {name: xp.zeros_like(w) for name in self.memory}

    def lookahead(self, w: Array, slots: Slots) -> Array:
        """Return the point at which to take the next gradient."""
        return w

    def update(self, w: Array, gradient: Array, slots: Slots) -> tuple[Array, Slots]:
        """Return the next w and slots; w, gradient and slots are not modified.

        Raises TypeError or ValueError for slots that do not fit w, and for a gradient of another shape.
        """
        self.check_slots(w, slots, "step", *self.memory)
        floating(gradient, self)
        if gradient.shape != w.shape:
            raise ValueError(f"{self!r}: gradient of shape {tuple(gradient.shape)}, expected w's {tuple(w.shape)}")
        step = slots["step"]
        w, memory = self.advance(w, self.limited(gradient), slots, self.coefficients(step))
        return w, {"step": step + 1} | memory

    def check_slots(self, w: Array, slots: Slots, *names: str) -> None:
        """Raise TypeError or ValueError unless slots has these names, with arrays of w's shape."""
        floating(w, self)
        if not isinstance(slots, dict):
            raise TypeError(f"{self!r}: slots must be what init(w) gave, got {kind_of(slots)}")
        for name in names:
            if name not in slots:
                raise ValueError(f"{self!r}: slots has no {name!r}, only {list(slots)}; init(w) gives what it takes")
            if name != "step" and slots[name].shape != w.shape:
                raise ValueError(
                    f"{self!r}: slots has {name!r} of shape {tuple(slots[name].shape)}, expected w's {tuple(w.shape)}"
                )

    def coefficients(self, step: int) -> tuple[float, ...]:
        """Return the numbers that `rule` takes at a step, counted from 0; the first is the learning rate."""
        return (self.rate(step),)

    def advance(self, w: Array, g: Array, slots: Slots, coefficients: tuple[Any, ...]) -> tuple[Array, Slots]:
        """Apply weight decay and `rule` for a clipped gradient, elementwise: vectors may be passed in slices."""
        if self.weight_decay:
            g = self.decayed(w, g, slots)
        return pair_from(self, "rule", self.rule(w, g, slots, *coefficients))

    @abstractmethod
    def rule(self, w: Array, g: Array, slots: Slots, *coefficients: Any, **none: Any) -> tuple[Array, Slots]:
        """Return the next w and arrays of `memory` by the class's formula, given the result of `coefficients`."""
        # with **none, type checkers let subclasses name the coefficients

    def rate(self, step: int) -> float:
        """Return the learning rate at a step, counted from 0."""
        if not callable(self.learning_rate):
            return self.learning_rate
        return non_negative(self._named(f"learning_rate's schedule at step {step}"), self.learning_rate(step))

    def limited(self, g: Array) -> Array:
        """Return the gradient g after `clip_value` and `clip_norm`; NaN and infinity do not become numbers."""
        if self.clip_value is not None:
            g = ops.clip(g, -self.clip_value, self.clip_value) + 0.0 * g  # adds NaN if g is infinite
        if self.clip_norm is not None:
            xp = namespace(g)
            largest = xp.max(xp.abs(g))
            unit = xp.where(largest > 0.0, largest, 1.0)
            scaled = g / unit  # so that its squares cannot overflow
            norm = xp.maximum(xp.sqrt(xp.sum(scaled * scaled)), 1.0)  # it is below 1 only if g is zero
            g = xp.where(norm > self.clip_norm / unit, scaled * (self.clip_norm / norm), g)
        return g

    def decayed(self, w: Array, g: Array, slots: Slots) -> Array:
        """Return the gradient g plus weight decay, at the point where g was taken."""
        return g + self.weight_decay * self.lookahead(w, slots)

    def _named(self, setting: str) -> str:
        return f"{type(self).__name__}: {setting}"


class SGD(Optimizer):
    """Gradient descent with momentum μ.

    update:  v ← μ v + η g;  w ← w - v

    Source: Polyak 1964; the form of Sutskever et al. 2013, eqs. 1 and 2.

    >>> import numpy as np
    >>> optimizer, w = xn.SGD(0.5), np.asarray([1.0])
    >>> w, slots = optimizer.update(w, np.asarray([1.0]), optimizer.init(w))
    >>> w.round(3)
    array([0.5])
    """

    memory = ("velocity",)

    def __init__(self, learning_rate: float | Schedule = 0.01, momentum: float = 0.8, **common: Unpack[Common]):
        super().__init__(learning_rate, **common)
        self.momentum = fraction(self._named("momentum"), momentum)

    def rule(self, w: Array, g: Array, slots: Slots, rate: float) -> tuple[Array, Slots]:
        v = self.momentum * slots["velocity"]
        v += rate * g
        return w - v, {"velocity": v}


class Nesterov(SGD):
    """Gradient descent with Nesterov's momentum μ: the gradient g is taken at w - μ v.

    update:  v ← μ v + η g;  w ← w - v

    Source: Sutskever et al. 2013, eqs. 3 and 4.

    >>> import numpy as np
    >>> optimizer, w = xn.Nesterov(0.5), np.asarray([1.0])
    >>> w, slots = optimizer.update(w, np.asarray([1.0]), optimizer.init(w))
    >>> w.round(3)
    array([0.5])
    """

    def __init__(
        self, learning_rate: float | Schedule = 0.001, momentum: float = 0.4,
        clip_value: float | None = 1.0, **common: Unpack[_Decay],
    ):  # fmt: skip
        super().__init__(learning_rate, momentum, clip_value=clip_value, **common)

    def lookahead(self, w: Array, slots: Slots) -> Array:
        self.check_slots(w, slots, *self.memory)
        return w - self.momentum * slots["velocity"]


class Adagrad(Optimizer):
    """Steps that shrink with the sum of an entry's squared gradients.

    update:  s ← s + g²;  w ← w - η g / √(s + eps)

    Source: Duchi et al. 2011, eq. 1 with a diagonal; here epsilon is inside the root.

    >>> import numpy as np
    >>> optimizer, w = xn.Adagrad(0.5), np.asarray([1.0])
    >>> w, slots = optimizer.update(w, np.asarray([1.0]), optimizer.init(w))
    >>> w.round(3)
    array([0.5])
    """

    memory = ("squares",)

    def __init__(self, learning_rate: float | Schedule = 0.01, eps: float = 1e-8, **common: Unpack[Common]):
        super().__init__(learning_rate, **common)
        self.eps = positive(self._named("eps"), eps)

    def rule(self, w: Array, g: Array, slots: Slots, rate: float) -> tuple[Array, Slots]:
        s = slots["squares"] + g * g
        return w - rate * g / namespace(w).sqrt(s + self.eps), {"squares": s}


class RMSprop(Optimizer):
    """Steps divided by a running root mean square of an entry's gradients.

    update:  s ← ρ s + (1 - ρ) g²;  w ← w - η g / √(s + eps)

    `rho` is ρ. Source: Tieleman & Hinton 2012, lecture 6.5; here epsilon is inside the root.

    >>> import numpy as np
    >>> optimizer, w = xn.RMSprop(0.5), np.asarray([1.0])
    >>> w, slots = optimizer.update(w, np.asarray([1.0]), optimizer.init(w))
    >>> w.round(3)
    array([-0.581])
    """

    memory = ("squares",)

    def __init__(
        self, learning_rate: float | Schedule = 0.01, rho: float = 0.9, eps: float = 1e-8, **common: Unpack[Common]
    ):
        super().__init__(learning_rate, **common)
        self.rho = fraction(self._named("rho"), rho)
        self.eps = positive(self._named("eps"), eps)

    def rule(self, w: Array, g: Array, slots: Slots, rate: float) -> tuple[Array, Slots]:
        s = self.rho * slots["squares"]
        s += (1 - self.rho) * g * g
        return w - rate * g / namespace(w).sqrt(s + self.eps), {"squares": s}


class Adam(Optimizer):
    """Steps by running means of an entry's gradients and of their squares.

    update:  m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²
             m̂ = m / (1 - β₁ᵗ);  v̂ = v / (1 - β₂ᵗ)
             w ← w - η m̂ / (√v̂ + eps)

    t counts the steps from 1. With `bias_correction=False`, m̂ and v̂ are m and v themselves.
    Source: Kingma & Ba 2015, algorithm 1.

    `beta1` is β₁, `beta2` β₂, both in [0, 1).

    >>> import numpy as np
    >>> optimizer, w = xn.Adam(0.5), np.asarray([1.0])
    >>> w, slots = optimizer.update(w, np.asarray([1.0]), optimizer.init(w))
    >>> w.round(3)
    array([0.5])
    """

    memory: tuple[str, ...] = ("m", "v")

    def __init__(
        self, learning_rate: float | Schedule = 0.001, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
        bias_correction: bool = True, **common: Unpack[Common],
    ):  # fmt: skip
        super().__init__(learning_rate, **common)
        self.beta1 = fraction(self._named("beta1"), beta1)
        self.beta2 = fraction(self._named("beta2"), beta2)
        self.eps = positive(self._named("eps"), eps)
        self.bias_correction = flag(self._named("bias_correction"), bias_correction)

    def coefficients(self, step: int) -> tuple[float, ...]:
        """Return η, size and shift, with η m̂ / (√v̂ + eps) = size · m / (√v + shift)."""
        rate, t = self.rate(step), step + 1
        first, second = (1 - self.beta1**t, 1 - self.beta2**t) if self.bias_correction else (1.0, 1.0)
        root = second**0.5
        return rate, rate * root / first, self.eps * root

    def rule(self, w: Array, g: Array, slots: Slots, rate: float, size: float, shift: float) -> tuple[Array, Slots]:
        m = self.beta1 * slots["m"]
        m += (1 - self.beta1) * g
        v = self.beta2 * slots["v"]
        v += (1 - self.beta2) * g * g
        root = namespace(w).sqrt(v)
        root += shift
        return w - size * m / root, {"m": m, "v": v}


class AdamW(Adam):
    """Adam with decoupled weight decay λ, which is `weight_decay`.

    update:  w ← w - η λ w;  then that of Adam

    Source: Loshchilov & Hutter 2019, algorithm 2, in PyTorch's form.

    `decays="weights"` excludes a network's biases, gammas and betas, which have one axis, and its embeddings, as GPTs
    are trained. The slots then have `spared`, 1 for an entry that does not decay, which `fit` sets; `init` has zeros.

    `beta1`, `beta2`, `eps` and `bias_correction` are those of `Adam`.

    >>> import numpy as np
    >>> optimizer, w = xn.AdamW(0.5), np.asarray([1.0])
    >>> w, slots = optimizer.update(w, np.asarray([1.0]), optimizer.init(w))
    >>> w.round(3)
    array([0.495])
    """

    def __init__(
        self, learning_rate: float | Schedule = 0.001, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8,
        weight_decay: float = 0.01, decays: str = "all", **common: Unpack[AdamCommon],
    ):  # fmt: skip
        super().__init__(learning_rate, beta1, beta2, eps, weight_decay=weight_decay, **common)
        self.decays = choice(self._named("decays"), decays, ("all", "weights"))
        self.memory = ("m", "v") if decays == "all" else ("m", "v", "spared")

    def decayed(self, w: Array, g: Array, slots: Slots) -> Array:
        return g

    def rule(self, w: Array, g: Array, slots: Slots, rate: float, size: float, shift: float) -> tuple[Array, Slots]:
        if self.decays == "all":
            return super().rule(w * (1 - rate * self.weight_decay), g, slots, rate, size, shift)
        spared = slots["spared"]
        w, memory = super().rule(w - rate * self.weight_decay * (1.0 - spared) * w, g, slots, rate, size, shift)
        return w, memory | {"spared": spared}


def __dir__() -> list[str]:
    return __all__
