"""Figures that notebooks show once. This imports matplotlib, so it is imported with the first plot."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


class ShownOnce(Figure):
    """A figure that a notebook shows once, even if a cell ends with it.

    A notebook draws the value of a cell's last line, and then all open figures; so this figure closes when it is drawn.
    """

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        if "inline" in plt.get_backend():
            plt.close(self)
        return {}  # the notebook's own formatters draw it
