"""Pictures: of the training, of the classes it got wrong, of what is inside the network. Only here is matplotlib used.

Each function takes what it draws from any backend, draws into the axes or figure it is given, or makes its own, and
returns it. matplotlib is imported when the first picture is drawn.
"""

from .classes import confusion_matrix, misclassified
from .curves import learning_curves, training
from .inside import activation_histograms, first_layer_weights, gradient_histograms

__all__ = [
    "activation_histograms", "confusion_matrix", "first_layer_weights", "gradient_histograms", "learning_curves",
    "misclassified", "training",
]  # fmt: skip
