"""The history of a training run: its loss and metrics, epoch by epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..common.checks import brief
from ..common.notebook import Markup, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 120  # about the most points of a sparkline, which is 100 pixels wide


class History(dict[str, list[float]]):
    """A list for each measure, with a number for each finished epoch: `history["loss"]`, `history["val_accuracy"]`, ...

    Attributes: `steps`, the number of training steps; `seconds`, the time they took, without validation and callbacks
    (0.0 in copies and pickles, so that those of equal fits are equal); `interrupted`, whether Ctrl-C or a TimeLimit
    ended it; `best_epoch`, the epoch whose parameters `EarlyStopping` restored, if it did, and `monitor`, the measure
    that was best there; `resumed`, how many of the steps came from a checkpoint (0 in copies and pickles);
    `slots`, the optimizer's state, with which `fit(..., slots=history.slots)` continues. `print` shows the last number
    of each measure, `dict(history)` all numbers, and a notebook a table with small curves.

    >>> history = xn.History()
    >>> history.record({"loss": 0.5, "val_loss": 0.6})
    >>> history
    History(1 epoch, loss 0.5, val_loss 0.6)
    """

    best_epoch: int | None = None  # on the class, for pickles of earlier versions
    monitor = ""
    resumed = 0

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.seconds = 0.0
        self.interrupted = False
        self.slots: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "resumed"} | {"seconds": 0.0}

    def __missing__(self, name: str) -> list[float]:
        raise KeyError(
            f"no {name!r} in the history, which has {', '.join(map(repr, self)) or 'nothing'}; validation_data brings "
            "'val_loss' and the metrics, 'val_accuracy' among them"
        )

    def __repr__(self) -> str:
        shown = [counted(self._epochs, "epoch"), *["interrupted"] * self.interrupted, *self.back()]
        return f"History({', '.join([*shown, *(f'{name} {last(values)}' for name, values in self.items())])})"

    @property
    def _epochs(self) -> int:
        return max((len(values) for values in self.values() if hasattr(values, "__len__")), default=0)

    def back(self) -> list[str]:
        """Return a description of the epoch that the network went back to, in a list; [] if it did not."""
        if self.best_epoch is None:
            return []
        value = self.get(self.monitor, [])[self.best_epoch - 1 : self.best_epoch]
        return [f"back to epoch {self.best_epoch} ({' '.join([self.monitor, *map(brief_number, value)])})"]

    def record(self, measures: dict[str, float]) -> None:
        """Append a value to the list of each measure, creating new ones. Raises TypeError unless given a dict."""
        if not isinstance(measures, Mapping):
            raise TypeError(f'History.record: expected numbers by name, such as {{"mine": 1.0}}, got {brief(measures)}')
        for name, value in measures.items():
            self.setdefault(name, []).append(value)

    def plot(self) -> "Figure":
        """Plot every measure, training and validation, as `xpnet.plots.training` does; returns matplotlib's figure."""
        from .. import plots

        return plots.training(self)

    def _repr_html_(self) -> str:
        head = "measure", "first", "lowest", "highest", "last", ""
        rows = []
        for name, values in self.items():
            real = [v for v in values if math.isfinite(v)] or [math.nan]
            numbers = (values[0], min(real), max(real), values[-1]) if values else (math.nan,) * 4
            rows.append((name, *(f"{v:.4g}" for v in numbers), sparkline(values)))
        taken = f"{counted(self.steps, 'step')} in {self.seconds:.1f} s"
        caption = [counted(self._epochs, "epoch"), taken, *["interrupted"] * self.interrupted, *self.back()]
        return table(head, rows, ", ".join(caption))


def counted(number: int, what: str) -> str:
    """Return a count with its noun: "1 epoch", "2,000 steps"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def brief_number(value: float) -> str:
    """Format a measure in about the same few characters in each epoch."""
    return f"{value:.4f}" if value == 0 or 1e-3 <= abs(value) < 1e4 else f"{value:.2e}"


def last(values: Any) -> str:
    """Format the last value of a measure; "?" if a callback recorded anything unsuitable: `repr` must not fail."""
    try:
        return f"{values[-1]:.4g}"
    except (TypeError, ValueError, LookupError):
        return "?"


def sparkline(values: Sequence[float]) -> Markup:
    """Return a small curve as SVG, in the text's colour, with a gap where a value is not finite."""
    real = [v for v in values if math.isfinite(v)]
    if len(real) < 2:
        return Markup("")
    low, high = min(real), max(real)
    unit = (high - low) or 1.0
    stride = max(1, math.ceil((len(values) - 1) / POINTS))
    places = [*range(0, len(values) - 1, stride), len(values) - 1]
    runs: list[list[str]] = [[]]
    for i in places:
        if math.isfinite(values[i]):
            y = 18 - 16 * (values[i] - low) / unit if high > low else 10
            runs[-1].append(f"{1 + 98 * i / (len(values) - 1):.1f},{y:.1f}")
        else:
            runs.append([])
    lines = "".join(f'<polyline points="{" ".join(run if run[1:] else run * 2)}"/>' for run in runs if run)
    return Markup(
        '<svg width="100" height="20" viewBox="0 0 100 20" fill="none" stroke="currentColor" stroke-width="1.4" '
        f'stroke-linecap="round" style="vertical-align: middle">{lines}</svg>'
    )
