"""Curves over the epochs."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checks import brief
from .canvas import BLUE, GREY, ORANGE, axes, panels, pyplot

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TITLES = {
    "acc": "Accuracy", "auc": "AUC", "mae": "MAE", "mse": "MSE", "r2": "R²", "rmse": "RMSE", "roc_auc": "ROC AUC",
}  # fmt: skip
LOSSES, RATES = "loss", "learning_rate"  # measures that are drawn on a log scale if all values are above 0
APART = 11  # points: the least distance between the numbers at the ends of the curves


def training(history: Mapping[str, Sequence[float]], figure: Any = None) -> "Figure":
    """Plot the loss and every other measure, training and validation, as `History.plot` does.

    `history` is what `fit` returned, or lists by name. `figure` is matplotlib's to draw into, None for a new one.
    Raises TypeError or ValueError for what cannot be drawn.

    >>> xn.plots.training({"loss": [1.0, 0.5], "val_accuracy": [0.5, 0.8]}).savefig("training.png")
    """
    check_history("plots.training", history)
    names = list(dict.fromkeys(name.removeprefix("val_") for name in history))
    if not names:
        raise ValueError("plots.training: the history is empty; it has numbers once an epoch is finished")
    names.sort(key=lambda name: (name != LOSSES, name == RATES))
    fig, all_axes = panels(figure, len(names), 3, (4.6, 3.4))
    for name, ax in zip(names, all_axes, strict=True):
        learning_curves(history, name, ax)
    return fig


def learning_curves(history: Mapping[str, Sequence[float]], measure: str = "loss", ax: Any = None) -> Any:
    """Plot a measure over the epochs, for training and validation if in the history; losses on a log scale.

    A dashed line marks the epoch that early stopping went back to.

    `ax` are matplotlib's axes to draw into, None for new ones. Raises TypeError or ValueError for what cannot be drawn.

    >>> curves = {"loss": [1.0, 0.5], "val_loss": [1.1, 0.8]}
    >>> xn.plots.learning_curves(curves, "loss").figure.savefig("loss.png")
    """
    check_history("learning_curves", history)
    if not isinstance(measure, str):
        raise TypeError(f'learning_curves: measure must be a name such as "loss", got {brief(measure)}')
    names = [(measure, "training", BLUE), (f"val_{measure}", "validation", ORANGE)]
    curves = [
        (np.asarray(history[name], float), label, colour) for name, label, colour in names if len(history.get(name, ()))
    ]
    if not curves:
        raise ValueError(f"learning_curves: no {measure!r} in the history, which has {', '.join(history) or 'nothing'}")
    pyplot()
    from matplotlib.ticker import MaxNLocator

    ax = axes(ax)
    for values, label, colour in curves:
        known = np.pad(np.isfinite(values), 1)
        alone = known[1:-1] & ~known[:-2] & ~known[2:]  # a point between gaps needs a marker
        epochs = np.arange(1, len(values) + 1)
        style: dict[str, Any] = {"drawstyle": "steps-post"} if measure == RATES else {"label": label}
        if alone.any():
            style |= {"marker": "o", "markevery": np.flatnonzero(alone).tolist(), "clip_on": False}
        ax.plot(epochs, np.where(np.isfinite(values), values, np.nan), color=colour, lw=1.6, **style)
    finite = np.concatenate([values[np.isfinite(values)] for values, *_ in curves])
    if measure in (LOSSES, RATES) and finite.size and 0 < 2 * finite.min() <= finite.max():
        _log_scale(ax, finite.min(), finite.max())
    scale = ", log scale" if ax.get_yscale() == "log" else ""
    if (best := getattr(history, "best_epoch", None)) is not None and measure != RATES:
        ax.axvline(best, color=GREY, lw=1.4, ls="--", label=f"back to epoch {best}")
    longest = max(len(values) for values, *_ in curves)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    title = TITLES.get(measure, measure.capitalize().replace("_", " "))
    ax.set(xlabel="epoch", ylabel=f"{measure}{scale}", title=title)
    ax.set_xlim((0.5, 1.5) if longest == 1 else (1 - 0.02 * (longest - 1), longest))
    if longest == 1:
        ax.set_xticks([1])
    if finite.size:
        _write_ends(ax, curves)
        ax.grid(alpha=0.25)
    else:
        ax.set_yticks([])
        ax.text(0.5, 0.5, "no finite value", transform=ax.transAxes, ha="center", va="center", color=GREY)
    if measure != RATES:
        ax.legend(frameon=False)
    return ax


def check_history(who: str, history: object) -> None:
    """Raise TypeError for anything but a mapping, such as the network itself."""
    if not isinstance(history, Mapping):
        raise TypeError(f"{who}: expected the history that fit returned, or a dict of lists, got {brief(history)}")


def _log_scale(ax: Any, low: float, high: float) -> None:
    """Set a log scale with plain numbers, also between the powers of ten."""
    from matplotlib.ticker import LogLocator, NullFormatter

    ax.set_yscale("log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5) if high > 5 * low else (2, 3, 5, 7)))
    ax.yaxis.set_minor_formatter("{x:g}" if high < 300 * low else NullFormatter())


def _write_ends(ax: Any, curves: list[tuple[np.ndarray, str, str]]) -> None:
    """Write each curve's last number at the right edge, without overlaps."""
    ends = []
    for values, _, colour in curves:
        finite = values[np.isfinite(values)]
        if finite.size:
            place = ax.transData.transform((1, finite[-1]))[1] * 72 / ax.figure.dpi
            ends.append((place, f"{values[-1]:.3g}", colour, finite[-1]))
    ends.sort(key=lambda end: end[0])
    gap = ends[1][0] - ends[0][0] if len(ends) == 2 else APART
    for sign, (_, text, colour, value) in zip((-1, 1), ends, strict=False):
        offset = (4, sign * max(0.0, APART - gap) / 2)
        ax.annotate(
            text, (1.0, value), offset, ax.get_yaxis_transform(), "offset points", color=colour, va="center", size=9
        )
