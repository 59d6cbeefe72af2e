"""Optimizers: each is pure maths on one array w, in a training run the vector of all parameters.

    slots    = optimizer.init(w)                        # what it remembers: arrays like w, and the count of steps
    point    = optimizer.lookahead(w, slots)            # where it wants the gradient: w itself, but for Nesterov
    w, slots = optimizer.update(w, gradient, slots)     # gradient g of the loss at that point

In the formulas η is the learning rate of the step, t counts steps from 1, and all operations are elementwise. Before
them, every optimizer limits g: `clip_value` c to [-c, c] entry by entry, then `clip_norm` c by g · min(1, c / ‖g‖₂),
neither of which makes a number of what is not finite;
then `weight_decay` λ adds λ w, the gradient of λ‖w‖²/2, with w where g was taken (AdamW decays apart from g).
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypedDict, Unpack

from . import ops
from .backends import Array, floating, namespace
from .common.checks import flag, fraction, kind_of, non_negative, pair_from, positive
from .common.settings import Adjustable, defaults
from .schedules import Schedule, checked_rate

Slots = dict[str, Any]


# the settings that every optimizer takes by keyword, without those that it names among its own arguments


class Norm(TypedDict, total=False):
    """The one that none names."""

    clip_norm: float | None


class Decay(Norm, total=False):
    """Those of an optimizer that names `clip_value`."""

    weight_decay: float


class Common(Decay, total=False):
    """All of them: those of an optimizer that names none."""

    clip_value: float | None


class AdamCommon(Norm, total=False):
    """Those of an Adam that names `weight_decay`."""

    bias_correction: bool
    clip_value: float | None


class Optimizer(Adjustable, ABC):
    """The base: the learning rate or its schedule, clipping, weight decay, and the count of steps.

    By hand, for an array w with `slots = optimizer.init(w)`: `w, slots = optimizer.update(w, gradient, slots)`, the
    gradient taken at `optimizer.lookahead(w, slots)`. For one of your own derive from `Optimizer`, name the arrays that
    it keeps in `memory`, and write `rule(self, w, g, slots, rate)`, which returns the next w and those arrays by name.
    """

    memory: tuple[str, ...] = ()  # the names of the arrays it keeps, which start at zero and are to stay finite

    def __init__(
        self,
        learning_rate: float | Schedule,
        *,
        weight_decay: float = 0.0,
        clip_value: float | None = None,
        clip_norm: float | None = None,
        **unknown: Any,
    ):
        """`learning_rate`: η, a number above 0 or a function from the step, counted from 0, such as `CosineDecay`.

        The gradient g of all parameters is limited first: `clip_value` c clips each entry to [-c, c], then `clip_norm`
        c multiplies g by min(1, c / ‖g‖₂). Then `weight_decay` λ adds λ w to it (in AdamW it is apart from g).
        Raises ValueError for a number out of range, TypeError for an unknown setting.
        """
        if unknown:  # also those of a subclass, which passes on what it does not know
            raise TypeError(
                f"{type(self).__name__}: no setting {', '.join(map(repr, unknown))}; there are "
                f"{', '.join(defaults(type(self)))}"
            )
        self.learning_rate = checked_rate(self._named("learning_rate"), learning_rate)
        self.weight_decay = non_negative(self._named("weight_decay"), weight_decay)
        self.clip_value = None if clip_value is None else positive(self._named("clip_value"), clip_value)
        self.clip_norm = None if clip_norm is None else positive(self._named("clip_norm"), clip_norm)

    def init(self, w: Array) -> Slots:
        """The slots to start from, for an array w; of several arrays, such as `net.params`, each has its own."""
        if isinstance(w, Mapping):
            raise TypeError(f"{self!r}.init takes one array, got a dict: call it for each of its arrays")
        xp = floating(w, self)
        return {"step": 0} | {name: xp.zeros_like(w) for name in self.memory}

    def lookahead(self, w: Array, slots: Slots) -> Array:
        """Where the next gradient is to be taken."""
        return w

    def update(self, w: Array, gradient: Array, slots: Slots) -> tuple[Array, Slots]:
        """The next w and slots; neither w, gradient nor slots is changed.

        Raises TypeError or ValueError for slots that are not those of such a w, and a gradient of another shape.
        """
        self.check_slots(w, slots, "step", *self.memory)
        floating(gradient, self)
        if gradient.shape != w.shape:
            raise ValueError(f"{self!r}: gradient of shape {tuple(gradient.shape)}, expected w's {tuple(w.shape)}")
        step = slots["step"]
        w, memory = self.advance(w, self.limited(gradient), slots, self.coefficients(step))
        return w, {"step": step + 1} | memory

    def check_slots(self, w: Array, slots: Slots, *names: str) -> None:
        """Refuse slots of these names that `init` has not given for an array of w's shape."""
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
        """The numbers that `rule` takes at a step, counted from 0; the learning rate is the first."""
        return (self.rate(step),)

    def advance(self, w: Array, g: Array, slots: Slots, coefficients: tuple[Any, ...]) -> tuple[Array, Slots]:
        """Decay and rule, from a gradient that is limited already: elementwise, so any part of the vectors will do."""
        if self.weight_decay:
            g = self.decayed(w, g, slots)
        return pair_from(self, "rule", self.rule(w, g, slots, *coefficients))

    @abstractmethod
    def rule(self, w: Array, g: Array, slots: Slots, *coefficients: Any, **none: Any) -> tuple[Array, Slots]:
        """The formula in the class's docstring: the next w and the arrays in `memory`.

        The numbers are those that `coefficients` gives; unless that is overridden, the learning rate alone.
        """  # **none lets a subclass name them without a word from type checkers

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        if not callable(self.learning_rate):
            return self.learning_rate
        return non_negative(self._named(f"learning_rate's schedule at step {step}"), self.learning_rate(step))

    def limited(self, g: Array) -> Array:
        """The gradient g after `clip_value` and `clip_norm`; what is not finite is not made so."""
        if self.clip_value is not None:
            g = ops.clip(g, -self.clip_value, self.clip_value) + 0.0 * g  # NaN where g is infinite
        if self.clip_norm is not None:
            xp = namespace(g)
            largest = xp.max(xp.abs(g))
            unit = xp.where(largest > 0.0, largest, 1.0)
            scaled = g / unit  # neither its squares nor its norm can overflow
            norm = xp.maximum(xp.sqrt(xp.sum(scaled * scaled)), 1.0)  # below 1 only where g is zero
            g = xp.where(norm > self.clip_norm / unit, scaled * (self.clip_norm / norm), g)
        return g

    def decayed(self, w: Array, g: Array, slots: Slots) -> Array:
        """The gradient g with the weight decay in it, taken where g was."""
        return g + self.weight_decay * self.lookahead(w, slots)

    def _named(self, setting: str) -> str:
        return f"{type(self).__name__}: {setting}"


class SGD(Optimizer):
    """v ← momentum v + η g;  w ← w - v. Polyak 1964; the form of Sutskever et al. 2013, eqs. 1 and 2."""

    memory = ("velocity",)

    def __init__(self, learning_rate: float | Schedule = 0.01, momentum: float = 0.8, **common: Unpack[Common]):
        super().__init__(learning_rate, **common)
        self.momentum = fraction(self._named("momentum"), momentum)

    def rule(self, w: Array, g: Array, slots: Slots, rate: float) -> tuple[Array, Slots]:
        v = self.momentum * slots["velocity"]
        v += rate * g
        return w - v, {"velocity": v}


class Nesterov(SGD):
    """g at w - momentum v;  v ← momentum v + η g;  w ← w - v. Sutskever et al. 2013, eqs. 3 and 4."""

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        momentum: float = 0.4,
        clip_value: float | None = 1.0,
        **common: Unpack[Decay],
    ):
        super().__init__(learning_rate, momentum, clip_value=clip_value, **common)

    def lookahead(self, w: Array, slots: Slots) -> Array:
        self.check_slots(w, slots, *self.memory)
        return w - self.momentum * slots["velocity"]


class Adagrad(Optimizer):
    """s ← s + g²;  w ← w - η g / √(s + eps). Duchi et al. 2011, eq. 1 with a diagonal; epsilon inside the root."""

    memory = ("squares",)

    def __init__(self, learning_rate: float | Schedule = 0.01, eps: float = 1e-8, **common: Unpack[Common]):
        super().__init__(learning_rate, **common)
        self.eps = positive(self._named("eps"), eps)

    def rule(self, w: Array, g: Array, slots: Slots, rate: float) -> tuple[Array, Slots]:
        s = slots["squares"] + g * g
        return w - rate * g / namespace(w).sqrt(s + self.eps), {"squares": s}


class RMSprop(Optimizer):
    """s ← rho s + (1 - rho) g²;  w ← w - η g / √(s + eps). Tieleman & Hinton 2012, lecture 6.5; epsilon inside."""

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
    """m ← β₁ m + (1 - β₁) g;  v ← β₂ v + (1 - β₂) g²;  w ← w - η m̂ / (√v̂ + eps).

    m̂ = m / (1 - β₁ᵗ) and v̂ = v / (1 - β₂ᵗ), or m and v themselves with `bias_correction=False`.
    Kingma & Ba 2015, algorithm 1.
    """

    memory = ("m", "v")

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        bias_correction: bool = True,
        **common: Unpack[Common],
    ):
        super().__init__(learning_rate, **common)
        self.beta1 = fraction(self._named("beta1"), beta1)
        self.beta2 = fraction(self._named("beta2"), beta2)
        self.eps = positive(self._named("eps"), eps)
        self.bias_correction = flag(self._named("bias_correction"), bias_correction)

    def coefficients(self, step: int) -> tuple[float, ...]:
        """η, and η m̂ / (√v̂ + eps) as size · m / (√v + shift): the corrections gathered into two numbers."""
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
    """w ← w - η λ w, then Adam's update of it. Loshchilov & Hutter 2019, algorithm 2, in PyTorch's form."""

    def __init__(
        self,
        learning_rate: float | Schedule = 0.001,
        beta1: float = 0.9,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        **common: Unpack[AdamCommon],
    ):
        super().__init__(learning_rate, beta1, beta2, eps, weight_decay=weight_decay, **common)

    def decayed(self, w: Array, g: Array, slots: Slots) -> Array:
        return g

    def rule(self, w: Array, g: Array, slots: Slots, rate: float, size: float, shift: float) -> tuple[Array, Slots]:
        return super().rule(w * (1 - rate * self.weight_decay), g, slots, rate, size, shift)


OPTIMIZERS = [cls.__name__ for cls in (SGD, Nesterov, Adagrad, RMSprop, Adam, AdamW)]
