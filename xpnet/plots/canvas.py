"""Shared by the plots: colours, axes and figures to draw into, sizes and titles that fit."""

import math
import textwrap
from typing import TYPE_CHECKING, Any

from ..common.checks import brief, integer

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BLUE, ORANGE, GREY = "#2166ac", "#d6604d", "#555555"


def axes(ax: Any, size: tuple[float, float] | None = None) -> Any:
    """The axes given, or those of a new figure."""
    check_axes(ax)
    return pyplot().subplots(figsize=size, layout="constrained")[1] if ax is None else ax


def check_axes(ax: Any) -> None:
    """Raise TypeError unless `ax` is None or matplotlib's axes."""
    if not (ax is None or isinstance(ax, pyplot().Axes)):
        raise TypeError(f"xpnet.plots: ax must be matplotlib's axes, such as plt.subplots()[1], got {brief(ax)}")


def panels(figure: Any, count: int, columns: int, size: tuple[float, float]) -> tuple["Figure", list[Any]]:
    """The given or a new figure, with `count` axes in rows of `columns`, of `size` inches each in a new figure."""
    plt = pyplot()
    if not (figure is None or isinstance(figure, plt.Figure)):
        raise TypeError(f"xpnet.plots: figure must be matplotlib's, such as plt.figure(), got {brief(figure)}")
    columns = min(integer("xpnet.plots: columns", columns), count)
    rows = -(-count // columns)
    if figure is None:
        figure = plt.figure(figsize=(columns * size[0], rows * size[1]), layout="constrained")
    return figure, [figure.add_subplot(rows, columns, i + 1) for i in range(count)]


def inches(height: int, width: int, side: float) -> tuple[float, float]:
    """Height and width of an image with about the area of a square of this side, and neither far longer."""
    scale = min(side / math.sqrt(height * width), 1.5 * side / max(height, width))
    return height * scale, width * scale


def set_title(ax: Any, text: str, size: int) -> None:
    """Set a title of `size` points, wrapped to the axes' share of the figure's width."""
    place = ax.get_subplotspec()
    share = ax.figure.bbox.width / ax.figure.dpi / (place.get_gridspec().ncols if place else 1)
    ax.set_title(textwrap.fill(text, max(12, int(0.85 * 72 * share / (0.6 * size)))), fontsize=size)


def pyplot() -> Any:
    """matplotlib.pyplot; ImportError with the remedy if it is not installed."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("xpnet.plots needs matplotlib: pip install matplotlib") from error
    return plt
