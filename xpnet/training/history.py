"""What a training run measured."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..common.checks import brief
from ..common.notebook import Markup, table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POINTS = 120  # of a sparkline: more than its pixels can show


class History(dict[str, list[float]]):
    """One list per measure, one number per finished epoch: `history["loss"]`, `history["val_accuracy"]`, ...

    Also `steps` (of training), `seconds` (in them, validation and callbacks left out; 0.0 in copies and pickles, so
    that those of two equal fits are equal), `interrupted` (by Ctrl-C or a TimeLimit), and `slots`, what the optimizer
    remembers at the end: `fit(..., slots=history.slots)` trains on with it. Printed it is one line, with each measure's
    last number; `dict(history)` shows all of them, a notebook a table with a small curve for each measure.
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
        """Append an epoch's number to each measure's list, which is begun if need be; TypeError for no dict."""
        if not isinstance(measures, Mapping):
            raise TypeError(f'History.record: expected numbers by name, such as {{"mine": 1.0}}, got {brief(measures)}')
        for name, value in measures.items():
            self.setdefault(name, []).append(value)

    def plot(self) -> "Figure":
        """Draw the loss, and beside it each other measure, training with validation; returns matplotlib's figure.

        `xpnet.plots.training` is the same. In a notebook, end the line with a semicolon, or it is shown twice.
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
    """A number of things, in words: "1 epoch", "2,000 steps"."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def last(values: Any) -> str:
    """The last of a measure's numbers, shortly; what a callback put there instead must not make `repr` fail."""
    try:
        return f"{values[-1]:.4g}"
    except (TypeError, ValueError, LookupError):
        return "?"


def sparkline(values: Sequence[float]) -> Markup:
    """A curve as wide as a word or two, in the text's colour; where a value is not finite it has a gap."""
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
