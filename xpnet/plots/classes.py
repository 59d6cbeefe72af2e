"""What it took for what: the confusion matrix, and the images it got wrong."""

import math
from typing import Any

import numpy as np

from ..backend import on_host
from .canvas import GREY, ORANGE, axes

WRITTEN = 25  # classes, up to which each count has room to be written


def confusion_matrix(counts: Any, ax: Any = None, names: Any = None) -> Any:
    """How many of each class (row) were taken for each class (column); the diagonal is right, the colour the errors.

    `counts` (K, K) are those of `xn.confusion_matrix(prediction, y)`. With many classes they are left to the colours.
    `names` are the classes', in their order.
    """
    counts = on_host(counts)
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(
            f"confusion_matrix: counts of shape {counts.shape}, expected (K, K), a row and a column for each class; "
            "give xn.confusion_matrix(prediction, y)"
        )
    k = len(counts)
    side = min(max(4.8, 0.32 * k + 1.5), 10.0)
    ax = axes(ax, (side + 0.6, side))
    wrong = counts - np.diag(np.diag(counts))
    image = ax.imshow(wrong, cmap="Reds", vmin=0, vmax=max(2 * int(wrong.max()), 1) if k <= WRITTEN else None)
    if k <= WRITTEN:
        for (row, column), count in np.ndenumerate(counts):
            if count:
                colour = GREY if row == column else "black"
                ax.text(column, row, str(count), ha="center", va="center", color=colour, fontsize=8)
        ax.set(xticks=range(k), yticks=range(k))
    else:
        ax.figure.colorbar(image, ax=ax, label="errors", shrink=0.8, aspect=25)
    if names is not None:
        size = 8 if k <= WRITTEN else 6
        labels = [str(name) for name in names]
        ax.set_xticks(range(k), labels, rotation=90 if k * max(map(len, labels)) > 40 else 0, fontsize=size)
        ax.set_yticks(range(k), labels, fontsize=size)
    ax.set(xlabel="predicted", ylabel="true", title="Confusion matrix")
    ax.spines[:].set_visible(False)
    return ax


def misclassified(images: Any, predicted: Any, true: Any, most: int = 24, columns: int = 6, ax: Any = None) -> Any:
    """The images whose predicted class is not the true one, each with both.

    `images` (n, height, width), or square ones as rows (n, height · width); `predicted` and `true` are classes (n,).
    The first `most` are drawn, `columns` in a row.
    """
    images, predicted, true = _as_images(on_host(images)), on_host(predicted), on_host(true)
    for name, classes in [("predicted", predicted), ("true", true)]:
        if classes.shape != images.shape[:1]:
            raise ValueError(
                f"misclassified: {name} of shape {classes.shape}, expected {images.shape[:1]}, a class for each image; "
                "of scores for each class, such as logits, give argmax(axis=1)"
            )
    wrong = np.flatnonzero(predicted != true)
    shown = wrong[:most]
    height, width = images.shape[1:]
    gap, head = max(2, round(width / 4)), max(3, round(3 * height / 8))  # beside an image, and above it for its text
    rows = max(-(-len(shown) // columns), 1)
    ax = axes(ax, (columns * 1.05, 0.5 + rows * 1.05 * (height + head) / (width + gap)))
    for place, i in enumerate(shown):
        row, column = divmod(place, columns)
        left, top = column * (width + gap), row * (height + head)
        ax.imshow(images[i], cmap="gray_r", extent=(left, left + width, top + height, top), interpolation="nearest")
        label = f"{true[i]} as {predicted[i]}"
        ax.text(left + width / 2, top - head / 5, label, ha="center", va="bottom", fontsize=8, color=ORANGE)
    ax.set(xlim=(-1, columns * (width + gap) - 1), ylim=(rows * (height + head) - head + 1, -head - 1))
    ax.set_aspect("equal")
    more = "" if len(shown) == len(wrong) else f", the first {len(shown)} shown"
    ax.set_title(f"{len(wrong)} of {len(images)} wrong{more}")
    ax.axis("off")
    return ax


def _as_images(images: np.ndarray) -> np.ndarray:
    """(n, height, width), also of flat square ones."""
    shape = images.shape
    if len(shape) == 2 and shape[1] and math.isqrt(shape[1]) ** 2 == shape[1]:
        return images.reshape(shape[0], math.isqrt(shape[1]), -1)
    if len(shape) != 3:
        raise ValueError(
            f"misclassified: images of shape {shape}, expected (n, height, width), or (n, height · width) of square "
            "ones; give images.reshape(n, height, width)"
        )
    return images
