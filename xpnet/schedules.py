"""Learning-rate schedules: functions from the step, counted from 0, to the rate. Any `step -> float` will do."""

import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping

from .common.checks import integer, kind_of, non_negative, positive
from .common.settings import Adjustable

__all__ = ["Constant", "CosineDecay", "ExponentialDecay", "StepDecay", "WarmUp"]

Schedule = Callable[[int], float]


def checked_rate(name: str, given: float | Schedule) -> float | Schedule:
    """Return a rate, which must be above 0, or a schedule unchanged."""
    if isinstance(given, type):
        raise TypeError(f"{name} must be a number or a schedule such as CosineDecay(0.01, 1000), got {given!r}")
    if isinstance(given, Mapping):  # as PyTorch's optimizers are made
        raise TypeError(f"{name} must be a number or a schedule, got {kind_of(given)}: the parameters are given by fit")
    return given if callable(given) else positive(name, given)


def rate_at(rate: float | Schedule, step: int) -> float:
    """Return the rate at a step, of a schedule or a constant."""
    return rate(step) if callable(rate) else rate


def decayed(rate: float, factor: float, times: float) -> float:
    """Return rate · factor^times, at most the largest float."""
    try:
        return min(rate * math.pow(factor, times), sys.float_info.max)
    except OverflowError:
        return sys.float_info.max


class BaseSchedule(Adjustable, ABC):
    """The base class of xpnet's schedules. Schedules with the same settings are equal."""

    def __call__(self, step: int) -> float:
        """Return the rate at a step, counted from 0. Raises ValueError unless it is a whole number of at least 0."""
        if type(step) is not int or not 0 <= step <= sys.maxsize:  # skip the slow check for the usual int
            step = integer(f"{type(self).__name__}: step", step, least=0)
        return self.at(step)

    @abstractmethod
    def at(self, step: int) -> float:
        """Return the rate at a step by the formula in the class's docstring."""

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and vars(self) == vars(other)

    def __hash__(self) -> int:
        return hash((type(self), *vars(self).values()))


class Constant(BaseSchedule):
    """The same rate at every step.

    `rate` is a number above 0. Raises ValueError for another.

    >>> xn.Constant(0.1)(1000)
    0.1
    """

    def __init__(self, rate: float):
        self.rate = positive("Constant: rate", rate)

    def at(self, step: int) -> float:
        return self.rate


class StepDecay(BaseSchedule):
    """A rate multiplied by a factor every so many steps.

    rate:  η = rate · factor^{⌊step/every⌋}

    `rate` is a learning rate, `factor` a number above 0, `every` a number of steps. Raises ValueError for others.

    >>> [xn.StepDecay(1.0, factor=0.5, every=10)(step) for step in (0, 9, 10, 20)]
    [1.0, 1.0, 0.5, 0.25]
    """

    def __init__(self, rate: float, factor: float = 0.1, every: int = 1000):
        self.rate = positive("StepDecay: rate", rate)
        self.factor = positive("StepDecay: factor", factor)
        self.every = integer("StepDecay: every", every)

    def at(self, step: int) -> float:
        return decayed(self.rate, self.factor, step // self.every)


class ExponentialDecay(BaseSchedule):
    """A rate that decays exponentially.

    rate:  η = rate · factor^{step/every}

    `rate` is a learning rate, `factor` a number above 0, `every` a number of steps. Raises ValueError for others.

    >>> [round(xn.ExponentialDecay(0.1, factor=0.5, every=10)(step), 3) for step in (0, 5, 10)]
    [0.1, 0.071, 0.05]
    """

    def __init__(self, rate: float, factor: float = 0.96, every: int = 1000):
        self.rate = positive("ExponentialDecay: rate", rate)
        self.factor = positive("ExponentialDecay: factor", factor)
        self.every = integer("ExponentialDecay: every", every)

    def at(self, step: int) -> float:
        return decayed(self.rate, self.factor, step / self.every)


class CosineDecay(BaseSchedule):
    """A rate that falls to its final value along half a cosine.

    rate:  η = final + (rate - final) (1 + cos(π s)) / 2,  s = min(step / steps, 1)

    Source: Loshchilov & Hutter 2017, eq. 5, without restarts.

    `rate` is above 0, `final` at least 0, and `steps` at least 1. Raises ValueError for others.

    >>> [round(xn.CosineDecay(0.1, steps=100)(step), 3) for step in (0, 50, 100)]
    [0.1, 0.05, 0.0]
    """

    def __init__(self, rate: float, steps: int, final: float = 0.0):
        self.rate = positive("CosineDecay: rate", rate)
        self.steps = integer("CosineDecay: steps", steps)
        self.final = non_negative("CosineDecay: final", final)

    def at(self, step: int) -> float:
        return self.final + (self.rate - self.final) * ((1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2)


class WarmUp(BaseSchedule):
    """A rate that rises in equal steps, and then follows a schedule.

    rate:  η = then(0) · (step + 1) / steps  for the first `steps` steps
           η = then(step - steps)  after them

    `then` is a rate or another schedule. Source: Goyal et al. 2017, section 2.2.

    Raises ValueError for a rate that is not above 0 and for fewer `steps` than 1.

    >>> [round(xn.WarmUp(0.1, steps=4)(step), 3) for step in (0, 1, 4, 9)]
    [0.025, 0.05, 0.1, 0.1]
    """

    def __init__(self, then: float | Schedule, steps: int):
        self.then = checked_rate("WarmUp: then", then)
        self.steps = integer("WarmUp: steps", steps)

    def at(self, step: int) -> float:
        if step < self.steps:
            return rate_at(self.then, 0) * ((step + 1) / self.steps)
        return rate_at(self.then, step - self.steps)


def __dir__() -> list[str]:
    return __all__
