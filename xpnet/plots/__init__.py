"""Plots of the training, of the errors in classification, and of a network's inside. Needs matplotlib.

Each function takes arrays of any backend, draws into the axes or figure that it is given or into a new one, and returns
it. matplotlib is imported with the first plot.
"""

from .classes import confusion_matrix, misclassified
from .curves import learning_curves, training
from .explanation import explanation
from .inside import activation_histograms, first_layer_weights, gradient_histograms

__all__ = [
    "activation_histograms", "confusion_matrix", "explanation", "first_layer_weights", "gradient_histograms",
    "learning_curves", "misclassified", "training",
]  # fmt: skip


def __dir__() -> list[str]:
    return __all__
