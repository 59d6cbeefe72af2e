"""Helpers of the plots: colours, axes and figures, sizes and titles that fit."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checks import brief, integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#3182bd", "#d6604d", "#7a7a7a"  # readable on light and dark backgrounds
BINS = 60  # the most bins in a histogram


def axes(ax: Any, size: tuple[float, float] | None = None) -> Any:
    """Return the given axes, or those of a new figure."""
    check_axes(ax)
    return new_figure(size).subplots() if ax is None else ax


def check_axes(ax: Any) -> None:
    """Raise TypeError unless `ax` is None or matplotlib's axes."""
    if not (ax is None or isinstance(ax, pyplot().Axes)):
        raise TypeError(f"xpnet.plots: ax must be matplotlib's axes, such as plt.subplots()[1], got {brief(ax)}")


def panels(figure: Any, count: int, columns: int, size: tuple[float, float]) -> tuple["Figure", list[Any]]:
    """Return the given or a new figure, and `count` axes in rows of `columns`; in a new one, each has `size` inches."""
    plt = pyplot()
    if not (figure is None or isinstance(figure, plt.Figure)):
        raise TypeError(f"xpnet.plots: figure must be matplotlib's, such as plt.figure(), got {brief(figure)}")
    columns = min(integer("xpnet.plots: columns", columns), count)
    rows = -(-count // columns)
    if figure is None:
        figure = new_figure((columns * size[0], rows * size[1]))
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def inches(height: int, width: int, side: float) -> tuple[float, float]:
    """Return height and width of an image of about the area of a square of this side, at most 1.5 times as long."""
    scale = min(side / math.sqrt(height * width), 1.5 * side / max(height, width))
    return height * scale, width * scale


def set_title(ax: Any, text: str, size: int) -> None:
    """Set a title of `size` points, wrapped to the width that the axes have in the figure."""
    place = ax.get_subplotspec()
    share = ax.figure.bbox.width / ax.figure.dpi / (place.get_gridspec().ncols if place else 1)
    ax.set_title(textwrap.fill(text, max(12, int(0.85 * 72 * share / (0.6 * size)))), fontsize=size)


def new_figure(size: tuple[float, float] | None) -> Any:
    """Return a figure of pyplot that a notebook shows once."""
    plt = pyplot()
    from .shown import ShownOnce

    return plt.figure(figsize=size, layout="constrained", FigureClass=ShownOnce)


def pyplot() -> Any:
    """Return matplotlib.pyplot. Raises ImportError, with the remedy, if it is not installed."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("xpnet.plots needs matplotlib: pip install matplotlib") from error
    return plt


# --- panels -----------------------------------------------------------------------------------------------------------


def signed(values: np.ndarray) -> dict[str, Any]:
    """Return arguments of `imshow` for these values: red above 0, blue below, white at 0."""
    top = float(np.abs(values[np.isfinite(values)]).max(initial=0.0)) or 1.0
    return {"cmap": "RdBu_r", "vmin": -top, "vmax": top, "interpolation": "nearest"}


def sheet(images: np.ndarray, columns: int) -> np.ndarray:
    """Return images (n, height, width) as one array, in rows of `columns`, with gaps of NaN between them."""
    n, height, width = images.shape
    gap = max(1, round(0.1 * width))
    whole = np.full((-(-n // columns) * (height + gap) - gap, columns * (width + gap) - gap), np.nan)
    for place, image in enumerate(images):
        row, column = place // columns * (height + gap), place % columns * (width + gap)
        whole[row : row + height, column : column + width] = image
    return whole


def zeros(values: np.ndarray) -> str:
    """Return the share of values that are exactly 0, in words; "" if there are none."""
    share = float((values == 0).mean())
    return f", {share:.0%} exactly 0" if share else ""


def histogram(
    ax: Any, values: np.ndarray, title: str, label: str, colour: str, span: tuple[float, float] | None = None
) -> None:
    """Draw a panel with a histogram of the finite values, and the number of others in the label."""
    finite = values[np.isfinite(values)].astype(np.float64)
    if finite.size < values.size:
        label += f", {values.size - finite.size:,} not finite"
    if finite.size:
        low, high = span or (float(finite.min()), float(finite.max()))
        if high - low <= 1e-9 * max(abs(low), abs(high)):
            low, high = low - 0.5, high + 0.5
        ax.hist(finite, bins=min(BINS, max(10, round(2 * math.sqrt(finite.size)))), range=(low, high), color=colour)
        ax.set_xlim(low - 0.02 * (high - low), high + 0.02 * (high - low))
        ax.locator_params("x", nbins=5)
    else:
        ax.set_xticks([])
    set_title(ax, title, 9)
    ax.set_xlabel(label, fontsize=8)
    ax.set_yticks([])
    ax.tick_params(labelsize=8)
    ax.spines[["left", "right", "top"]].set_visible(False)
