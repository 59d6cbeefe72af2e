"""Pictures of training: curves, confusion matrix, the images it got wrong. The only file that imports matplotlib.

Each function draws into the axes or figure it is given, or makes its own, and returns it.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#555555"


def learning_curves(history: Mapping[str, Sequence[float]], measure: str = "loss", ax: Any = None) -> Any:
    """A measure over the epochs, in training and validation where the history has them; losses on a log scale."""
    from matplotlib.ticker import LogLocator, MaxNLocator

    ax = _axes(ax)
    drawn = [(measure, "training", BLUE), (f"val_{measure}", "validation", ORANGE)]
    for name, label, colour in drawn:
        if name in history:
            values = history[name]
            epochs = np.arange(1, len(values) + 1)
            ax.plot(epochs, values, color=colour, label=label, lw=1.6, marker="o" if len(values) == 1 else None)
            last = (1.0, values[-1]), (4, 0)
            ax.annotate(
                f"{values[-1]:.3g}", *last, ax.get_yaxis_transform(), "offset points", color=colour, va="center", size=9
            )
    if measure == "loss" and min(min(history[name]) for name, *_ in drawn if name in history) > 0:
        ax.set_yscale("log")
        ax.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        ax.yaxis.set_minor_formatter("{x:g}")
        ax.yaxis.set_major_formatter("{x:g}")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set(xlabel="epoch", ylabel=measure, title=measure.capitalize())
    ax.margins(x=0)
    ax.grid(alpha=0.25)
    ax.legend(frameon=False)
    return ax


def confusion_matrix(counts: np.ndarray, ax: Any = None) -> Any:
    """How many of each class (row) were taken for each class (column); the diagonal is right, the colour the errors."""
    ax = _axes(ax)
    counts = np.asarray(counts)
    wrong = counts - np.diag(np.diag(counts))
    ax.imshow(wrong, cmap="Reds", vmin=0, vmax=max(2 * int(wrong.max()), 1))
    for (row, column), count in np.ndenumerate(counts):
        if count:
            right = row == column
            ax.text(column, row, str(count), ha="center", va="center", color=GREY if right else "black", fontsize=8)
    ticks = range(len(counts))
    ax.set(xlabel="predicted", ylabel="true", title="Confusion matrix", xticks=ticks, yticks=ticks)
    ax.spines[:].set_visible(False)
    return ax


def misclassified(
    images: np.ndarray, predicted: np.ndarray, true: np.ndarray, most: int = 24, columns: int = 6, ax: Any = None
) -> Any:
    """The images (n, height, width) whose predicted class is not the true one, each with both."""
    ax = _axes(ax)
    wrong = np.flatnonzero(np.asarray(predicted) != np.asarray(true))
    shown = wrong[:most]
    height, width = images.shape[1:]
    for place, i in enumerate(shown):
        row, column = divmod(place, columns)
        left, top = column * (width + 2), row * (height + 5)
        ax.imshow(images[i], cmap="gray_r", extent=(left, left + width, top + height, top), interpolation="nearest")
        ax.text(
            left + width / 2,
            top - 0.6,
            f"{true[i]} as {predicted[i]}",
            ha="center",
            va="bottom",
            fontsize=8,
            color=ORANGE,
        )
    rows = max(-(-len(shown) // columns), 1)
    ax.set(xlim=(-1, columns * (width + 2) - 1), ylim=(rows * (height + 5) - 4, -4))
    ax.set_aspect("equal")
    more = "" if len(shown) == len(wrong) else f", the first {len(shown)} shown"
    ax.set_title(f"{len(wrong)} of {len(images)} wrong{more}")
    ax.axis("off")
    return ax


def _axes(ax: Any) -> Any:
    if ax is None:
        import matplotlib.pyplot as plt

        _, ax = plt.subplots(layout="constrained")
    return ax
