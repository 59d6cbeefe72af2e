"""Figures as notebooks show them. Imports matplotlib: imported with the first plot."""

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


class ShownOnce(Figure):
    """A figure that is shown once, though pyplot knows it and a notebook's cell ends with it.

    A notebook draws what a cell ends with, and then all figures that are open: this one closes when it is drawn.
    """

    def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
        if "inline" in plt.get_backend():
            plt.close(self)
        return {}  # the notebook's own formatters draw it
