"""Plots of training, of errors in classification, and of a network's inside. They need matplotlib.

Each function takes arrays of any backend, draws into given or new axes (or a figure), and returns these. matplotlib is
imported with the first plot.
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
