"""Learning-rate schedules: functions from the step, counted from 0, to the rate. Any `step -> float` will do."""

import math
from collections.abc import Callable
from dataclasses import dataclass

Schedule = Callable[[int], float]


@dataclass(frozen=True)
class Constant:
    """rate"""

    rate: float

    def __call__(self, step: int) -> float:
        return self.rate


@dataclass(frozen=True)
class StepDecay:
    """rate · factor^⌊step / every⌋"""

    rate: float
    factor: float = 0.1
    every: int = 1000

    def __call__(self, step: int) -> float:
        return self.rate * math.pow(self.factor, step // self.every)


@dataclass(frozen=True)
class ExponentialDecay:
    """rate · factor^(step / every)"""

    rate: float
    factor: float = 0.96
    every: int = 1000

    def __call__(self, step: int) -> float:
        return self.rate * math.pow(self.factor, step / self.every)


@dataclass(frozen=True)
class CosineDecay:
    """final + (rate - final) (1 + cos(π min(step / steps, 1))) / 2. Loshchilov & Hutter 2017, eq. 5, no restarts."""

    rate: float
    steps: int
    final: float = 0.0

    def __call__(self, step: int) -> float:
        return self.final + (self.rate - self.final) * (1 + math.cos(math.pi * min(step / self.steps, 1.0))) / 2


@dataclass(frozen=True)
class WarmUp:
    """then(0) · (step + 1) / steps for the first `steps` steps, after them then(step - steps).

    `then` is a rate or another schedule. Goyal et al. 2017, section 2.2.
    """

    then: float | Schedule
    steps: int

    def __call__(self, step: int) -> float:
        then = Constant(self.then) if isinstance(self.then, (int, float)) else self.then
        return then(0) * (step + 1) / self.steps if step < self.steps else then(step - self.steps)
