"""The history of a training run: its measures, epoch by epoch."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..common.checks import brief
from ..common.notebook import Markup, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 120  # at most in a sparkline, which has fewer pixels


class History(dict[str, list[float]]):
    """A list for each measure, with a number for each finished epoch: `history["loss"]`, `history["val_accuracy"]`, ...

    Attributes: `steps`, the number of training steps; `seconds`, the time they took, without validation and callbacks
    (0.0 in copies and pickles, so that those of equal fits are equal); `interrupted`, by Ctrl-C or a TimeLimit;
    `slots`, the optimizer's state, with which `fit(..., slots=history.slots)` continues. `print` shows the last number
    of each measure, `dict(history)` all numbers, and a notebook a table with small curves.
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps = 0
        self.seconds = 0.0
        self.interrupted = False
        self.slots: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"seconds": 0.0}

    def __missing__(self, name: str) -> list[float]:
        raise KeyError(
            f"no {name!r} in the history, which has {', '.join(map(repr, self)) or 'nothing'}; validation_data brings "
            "'val_loss' and the metrics, 'val_accuracy' among them"
        )

    def __repr__(self) -> str:
        shown = [counted(self._epochs, "epoch"), *["interrupted"] * self.interrupted]
        return f"History({', '.join([*shown, *(f'{name} {last(values)}' for name, values in self.items())])})"

    @property
    def _epochs(self) -> int:
        return max((len(values) for values in self.values() if hasattr(values, "__len__")), default=0)

    def record(self, measures: dict[str, float]) -> None:
        """Append an epoch's number to each measure's list; a new measure gets a list. TypeError unless a dict."""
        if not isinstance(measures, Mapping):
            raise TypeError(f'History.record: expected numbers by name, such as {{"mine": 1.0}}, got {brief(measures)}')
        for name, value in measures.items():
            self.setdefault(name, []).append(value)

    def plot(self) -> "Figure":
        """Plot every measure, training and validation, as `xpnet.plots.training` does; returns matplotlib's figure.

        In a notebook, end the line with a semicolon, or the figure is shown twice.
        """
        from .. import plots

        return plots.training(self)

    def _repr_html_(self) -> str:
        head = "measure", "first", "lowest", "highest", "last", ""
        rows = []
        for name, values in self.items():
            real = [v for v in values if math.isfinite(v)] or [math.nan]
            numbers = (values[0], min(real), max(real), values[-1]) if values else (math.nan,) * 4
            rows.append((name, *(f"{v:.4g}" for v in numbers), sparkline(values)))
        ended = ", interrupted" if self.interrupted else ""
        caption = f"{counted(self._epochs, 'epoch')}, {counted(self.steps, 'step')} in {self.seconds:.1f} s{ended}"
        return table(head, rows, caption)


def counted(number: int, what: str) -> str:
    """A count in words: "1 epoch", "2,000 steps"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def last(values: Any) -> str:
    """The last of a measure's numbers, or "?": a callback may have put anything there, and `repr` must not fail."""
    try:
        return f"{values[-1]:.4g}"
    except (TypeError, ValueError, LookupError):
        return "?"


def sparkline(values: Sequence[float]) -> Markup:
    """A curve as wide as a word or two, in the text's colour, with a gap where a value is not finite."""
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
