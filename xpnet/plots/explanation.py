"""A network's forward and backward pass on some rows: every layer's output beside its gradient."""

import math
from numbers import Integral
from typing import TYPE_CHECKING, Any

import numpy as np

from ..common.checks import brief, integer
from ..layers.container import Container
from .canvas import BLUE, ORANGE, histogram, panels, set_title, sheet, signed, zeros

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST = 16  # the most feature maps or heads in a panel


def explanation(explained: Any, row: Any = 0, columns: int = 4, figure: Any = None) -> "Figure":
    """Draw what `net.explain(x, y, loss)` returns: of each layer its output y, and beside it dL/dy; first x and dL/dx.

    Of images, (N, C, H, W), the first 16 feature maps of one `row` of the batch are drawn, red above 0; of attention,
    or any layer that has `attention_maps(cache)`, a map (T, T) for each head, a line for each position that attends.
    Other arrays are drawn as histograms over all rows, zeros left out and counted. `columns` panels stand in a row, an
    even number.

    `explained` is what it returned. `figure` is matplotlib's to draw into, None for a new one. Raises TypeError or
    ValueError for what cannot be drawn.

    >>> x, y = xn.data.load_digits()
    >>> net = xn.Sequential(xn.Dense(64, 10)).initialize()
    >>> explained = net.explain(x[:3], y[:3], xn.SoftmaxCrossEntropy())
    >>> xn.plots.explanation(explained).savefig("explanation.png")
    """
    if not hasattr(explained, "dprediction"):
        raise TypeError(f"explanation: expected what net.explain(x, y, loss) returns, got {brief(explained)}")
    rows = explained.x.shape[0]
    columns = integer("explanation: columns", columns)
    if isinstance(row, bool) or not isinstance(row, Integral) or not -rows <= row < rows:
        raise ValueError(f"explanation: row {brief(row)} of a batch of {rows}; give a number from 0 to {rows - 1}")
    host = explained.net.backend.to_numpy
    drawn: list[tuple[str, str, Any, str]] = [("input", "x", explained.x, BLUE), ("", "dL/dx", explained.dx, ORANGE)]
    for name, trace in explained.items():
        if not isinstance(trace.layer, Container):  # the layers of a container follow
            maps = getattr(trace.layer, "attention_maps", None)
            y = ("attention", maps(trace.cache)) if maps else ("y", trace.y)
            drawn += [(f"{name}  {trace.layer!r}", *y, BLUE), ("", "dL/dy", trace.dy, ORANGE)]
    fig, all_axes = panels(figure, len(drawn), max(2, columns - columns % 2), (3.6, 2.3))
    for (title, label, a, colour), ax in zip(drawn, all_axes, strict=True):
        if a is None:
            ax.axis("off")
            continue
        values = host(a)
        if values.ndim == 4:
            _maps(ax, values[row], title, label)
        else:
            histogram(ax, values[values != 0], title, f"{label}{zeros(values)}", colour)
    return fig


def _maps(ax: Any, maps: np.ndarray, title: str, label: str) -> None:
    """Draw a panel with the first feature maps of (C, H, W)."""
    shown = maps[:MOST]
    _, height, width = maps.shape
    columns = min(len(shown), max(1, round(math.sqrt(len(shown) * 2.2 * height / width))))
    drawn = sheet(shown, columns)
    ax.imshow(drawn, **signed(shown))
    ax.set_xlim(-0.04 * drawn.shape[1] - 0.5, 1.04 * drawn.shape[1] - 0.5)  # some distance to the next panel
    set_title(ax, title, 9)
    more = "" if len(shown) == len(maps) else f", the first {len(shown)} of {len(maps)}"
    ax.set_xlabel(f"{label}{more}{zeros(maps)}", fontsize=8)
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
