"""Callbacks that monitor a measure: stop, or lower the learning rate, when it stops improving."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from ..backends import Array
from ..common.checks import brief, choice, flag, fraction, integer, non_negative
from ..common.publication import published
from ..common.settings import Configured
from ..layers.placed import Placed
from ..training.callback import Callback
from ..training.run import Run

FALLING = "loss", "mean_squared_error", "mean_absolute_error"  # measures for which less is better
RISING = "accuracy", "top_k_accuracy", "top_k", "f1", "roc_auc", "r2", "score"  # those for which more is better


class Watching(Configured, Callback):
    """The base class of callbacks that compare a measure with its best value so far.

    `best`, `best_epoch` (from 1) and `wait`, the number of epochs since then, may be read at any time.
    """

    memory: tuple[str, ...] = ("best", "best_epoch", "wait")

    def __init__(self, monitor: str, patience: int, min_delta: float, mode: str):
        """`monitor` names a measure of the history; `mode` is "min" if less is better, "max" if more is.

        "auto" knows the measures of this library and scikit-learn's scorers, with or without "val_" before the name;
        any other raises ValueError. A measure improves if it changes by more than `min_delta`; NaN never improves.
        """
        who = type(self).__name__
        if not isinstance(monitor, str):
            raise TypeError(f'{who}: monitor must be the name of a measure, such as "val_loss", got {brief(monitor)}')
        self.monitor, self.mode = monitor, mode
        self.patience = integer(f"{who}: patience", patience)
        self.min_delta = non_negative(f"{who}: min_delta", min_delta)
        self.less_is_better = self._direction(who) == "min"
        self._reset()

    def _direction(self, who: str) -> str:
        if choice(f"{who}: mode", self.mode, ("min", "max", "auto")) != "auto":
            return self.mode
        name = self.monitor.removeprefix("val_")
        if name in FALLING:
            return "min"
        if name in RISING or is_scorer(name):
            return "max"
        raise ValueError(
            f"{who}: it is unknown whether less or more is better for {self.monitor!r}; say which, as in "
            f'xn.{who}({self.monitor!r}, mode="min"), or mode="max"'
        )

    def _reset(self) -> None:
        self.best: float | None = None
        self.best_epoch = self.wait = 0

    def check_memory(self, memory: Mapping[str, Any], net: Placed) -> None:
        best, counts = memory["best"], [memory[name] for name in ("best_epoch", "wait", "cooling") if name in memory]
        if best is not None and (isinstance(best, bool) or not isinstance(best, int | float) or math.isnan(best)):
            raise ValueError(f"{type(self).__name__}: best is {best!r:.80}, expected a number or None")
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError(f"{type(self).__name__}: its counts are {counts!r:.80}, expected whole numbers from 0 on")

    def train_begin(self, run: Run) -> None:
        self._reset()

    def improved(self, run: Run) -> bool:
        """Whether the finished epoch is the best so far; update `best`, `best_epoch` and `wait`."""
        if self.monitor not in run.history:
            raise self.missing(run.history)
        value = run.history[self.monitor][-1]
        gain = math.inf if self.best is None else (self.best - value if self.less_is_better else value - self.best)
        if math.isnan(value) or not gain > self.min_delta:
            self.wait += 1
            return False
        self.best, self.best_epoch, self.wait = value, run.epoch, 0
        return True

    def missing(self, measures: Iterable[str]) -> ValueError:
        """Return the error for a measure that is not recorded."""
        return ValueError(
            f"{type(self).__name__}: no {self.monitor!r} in the history, which has {', '.join(map(repr, measures))}. "
            "A measure that begins with val_ needs fit's validation_data (an estimator: early_stopping=True); a "
            "callback that records a measure must come before this one"
        )


def is_scorer(name: str) -> bool:
    """Whether scikit-learn has a scorer of this name; for all its scorers, more is better."""
    try:
        from sklearn.metrics import get_scorer_names
    except ImportError:
        return False
    return name in get_scorer_names()


class EarlyStopping(Watching):
    """Stops when `monitor` has not improved for `patience` epochs, and restores the best epoch's network.

    With `restore_best`, the parameters and running statistics of the best epoch are restored however training ended:
    after all epochs, by Ctrl-C or by an error. After a DivergenceError only if a loss with them was finite; otherwise
    the network is as `fit` leaves it. `history.best_epoch` then tells which epoch the network went back to.

    >>> xn.EarlyStopping("val_accuracy", patience=5)
    EarlyStopping(monitor='val_accuracy', patience=5)
    """

    memory = (*Watching.memory, "best_params", "best_state", "sound")

    def __init__(
        self, monitor: str = "val_loss", patience: int = 10, min_delta: float = 0.0, mode: str = "auto",
        restore_best: bool = True,
    ):  # fmt: skip
        super().__init__(monitor, patience, min_delta, mode)
        self.restore_best = flag("EarlyStopping: restore_best", restore_best)

    def _reset(self) -> None:
        super()._reset()
        self.best_params: dict[str, Array] = {}
        self.best_state: dict[str, Array] = {}
        self.sound = False  # whether the loss of these parameters is known to be finite

    def check_memory(self, memory: Mapping[str, Any], net: Placed) -> None:
        super().check_memory(memory, net)
        if not isinstance(memory["sound"], bool):
            raise ValueError(f"EarlyStopping: sound is {memory['sound']!r:.80}, expected True or False")
        if memory["best_params"] != {}:
            net.set_params(memory["best_params"])
        if memory["best_params"] != {} or memory["best_state"] != {}:
            net.set_state(memory["best_state"])

    def epoch_end(self, run: Run) -> None:
        if self.improved(run):
            self.sound = math.isfinite(run.history.get("val_loss", [math.nan])[-1])
            if self.restore_best:
                self.best_params, self.best_state = run.net.params, run.net.state  # later steps do not write to these
        elif self.wait >= self.patience:
            run.stop = True

    def train_end(self, run: Run) -> None:
        if self.best_params and (self.sound or run.epoch > self.best_epoch or run.history.interrupted):
            with published:
                run.net.set_params(self.best_params)
                run.net.set_state(self.best_state)
            if run.epoch > self.best_epoch or run.history.interrupted:
                run.history.best_epoch, run.history.monitor = self.best_epoch, self.monitor
        self.best_params, self.best_state = {}, {}


class ReduceOnPlateau(Watching):
    """Multiplies the learning rate by `factor` when `monitor` has not improved for `patience` epochs.

    The next `cooldown` epochs are not counted, and the rate never falls below `min_rate`. Each epoch's rate is recorded
    in the history as "learning_rate". The optimizer's learning rate must be a number, not a schedule.

    It equals PyTorch's ReduceLROnPlateau with patience - 1 and threshold_mode="abs", and Keras's with cooldown + 1.

    >>> xn.ReduceOnPlateau("val_loss", factor=0.5, patience=3)
    ReduceOnPlateau(factor=0.5, patience=3)
    """

    memory = (*Watching.memory, "cooling")

    def __init__(
        self, monitor: str = "val_loss", factor: float = 0.2, patience: int = 5, min_delta: float = 0.0,
        mode: str = "auto", cooldown: int = 0, min_rate: float = 0.0,
    ):  # fmt: skip
        super().__init__(monitor, patience, min_delta, mode)
        self.factor = fraction("ReduceOnPlateau: factor", factor)
        if not self.factor:
            raise ValueError("ReduceOnPlateau: factor must be above 0, got 0: the training would stand still")
        self.cooldown = integer("ReduceOnPlateau: cooldown", cooldown, least=0)
        self.min_rate = non_negative("ReduceOnPlateau: min_rate", min_rate)

    def _reset(self) -> None:
        super()._reset()
        self.cooling = 0

    def train_begin(self, run: Run) -> None:
        super().train_begin(run)
        rate: Any = getattr(run.optimizer, "learning_rate", None)
        if not isinstance(rate, (int, float)):
            raise TypeError(
                f"ReduceOnPlateau: the optimizer's learning_rate must be a number, got {rate!r}; leave out the "
                "schedule or this callback"
            )

    def epoch_end(self, run: Run) -> None:
        rate: Any = run.optimizer.learning_rate
        run.history.record({"learning_rate": rate})
        if self.improved(run) or self.cooling:
            self.wait, self.cooling = 0, max(self.cooling - 1, 0)
        elif self.wait >= self.patience:
            self.wait, self.cooling = 0, self.cooldown
            run.optimizer.learning_rate = min(rate, max(rate * self.factor, self.min_rate))
