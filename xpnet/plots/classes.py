"""Errors in classification: the confusion matrix, and misclassified images."""

import math
from typing import Any

import numpy as np

from ..backends import on_host
from ..common.checks import integer
from .canvas import ORANGE, axes, check_axes, inches

WRITTEN = 25  # the most classes for which counts are written into the cells
NAMED = 100  # the most classes whose names are all written; of more, only every second or third is
DIGIT = 0.08  # inches: the width of a digit of 8 points, with some space
SHORT = 14  # characters that fit in one line above an image


def confusion_matrix(counts: Any, ax: Any = None, names: Any = None) -> Any:
    """Draw how many of each class (row) were predicted as each class (column): the right ones in blue, errors in red.

    `counts` (K, K) are those of `xn.confusion_matrix(prediction, y)`, or fractions of them; with many classes they are
    shown by colour alone. `names` are the names of the classes in order.

    `ax` are matplotlib's axes to draw into, None for new ones. Raises TypeError or ValueError for what cannot be drawn.

    >>> counts = [[5, 1], [0, 7]]
    >>> xn.plots.confusion_matrix(counts, names=["no", "yes"]).figure.savefig("errors.png")
    """
    counts = on_host(counts, "confusion_matrix: counts")
    if counts.ndim != 2 or counts.shape[0] != counts.shape[1]:
        raise ValueError(
            f"confusion_matrix: counts of shape {counts.shape}, expected (K, K), a row and a column for each class; "
            "give xn.confusion_matrix(prediction, y)"
        )
    k = len(counts)
    labels = None if names is None else [str(name) for name in on_host(names, "confusion_matrix: names").ravel()]
    if labels is not None and len(labels) != k:
        raise ValueError(f"confusion_matrix: {len(labels)} names for {k} classes; give one for each, in their order")
    form = (lambda n: f"{round(float(n), 2):g}") if counts.dtype.kind == "f" else str
    texts = {place: form(n) for place, n in np.ndenumerate(counts)}
    cell = max(0.32, DIGIT * max(map(len, texts.values())))
    written = k <= WRITTEN and cell * k <= 8.5
    side = min(max(4.8, cell * k + 1.5), 10.0)
    size = 8 if written else 6
    longest = max(map(len, labels)) if labels else 0
    upright = k * longest > 40
    beside = DIGIT * longest * size / 8
    ax = axes(ax, (side + 0.6 + beside, side + beside * upright))
    wrong = counts - np.diag(np.diag(counts))
    image = ax.imshow(wrong, cmap="Reds", vmin=0, vmax=(1 + written) * float(np.nanmax(wrong, initial=0)) or 1)
    with np.errstate(invalid="ignore", divide="ignore"):
        right = np.where(np.eye(k), counts / counts.sum(axis=1, keepdims=True), np.nan)  # the share of each class
    ax.imshow(right, cmap="Blues", vmin=0, vmax=3)  # pale, so that counts can be read
    if written:
        for (row, column), text in texts.items():
            if counts[row, column]:
                ax.text(column, row, text, ha="center", va="center", color="black", fontsize=8)
        ax.set(xticks=range(k), yticks=range(k))
    else:
        ax.figure.colorbar(image, ax=ax, label="errors", shrink=0.8, aspect=25)
    if labels is not None:
        every = slice(None, None, -(-k // NAMED))
        ax.set_xticks(range(k)[every], labels[every], rotation=90 if upright else 0, fontsize=size)
        ax.set_yticks(range(k)[every], labels[every], fontsize=size)
    ax.set(xlabel="predicted\nblue: right, red: wrong", ylabel="true", title="Confusion matrix")
    ax.spines[:].set_visible(False)
    return ax


def misclassified(images: Any, predicted: Any, true: Any, most: int = 24, columns: int = 6, ax: Any = None) -> Any:
    """The images whose predicted class is not the true one, each with both.

    `images` (n, height, width), or square ones as rows (n, height · width); `predicted` and `true` are classes (n,).
    The first `most` are drawn, `columns` in a row.

    `ax` are matplotlib's axes to draw into, None for new ones. Raises TypeError or ValueError for what cannot be drawn.

    >>> x, y = xn.data.load_digits()
    >>> xn.plots.misclassified(x[:9], [0] * 9, y[:9]).figure.savefig("wrong.png")
    """
    check_axes(ax)
    most, columns = integer("misclassified: most", most), integer("misclassified: columns", columns)
    images = _as_images(on_host(images, "misclassified: images"))
    predicted, true = on_host(predicted, "misclassified: predicted"), on_host(true, "misclassified: true")
    for name, classes in [("predicted", predicted), ("true", true)]:
        if classes.shape != images.shape[:1]:
            raise ValueError(
                f"misclassified: {name} of shape {classes.shape}, expected {images.shape[:1]}, a class for each image; "
                "of scores for each class, such as logits, give argmax(axis=1)"
            )
    wrong = np.flatnonzero(predicted != true)
    shown = wrong[:most]
    labels = [(str(true[i]), f"as {predicted[i]}") for i in shown]
    short = all(len(" ".join(label)) <= SHORT for label in labels)
    texts = [(" " if short else "\n").join(label) for label in labels]
    longest = max((len(line) for text in texts for line in text.splitlines()), default=0)
    height, width = inches(images.shape[1], images.shape[2], 0.85)  # these sizes are those in a new figure
    cell, head = max(width + 0.2, DIGIT * longest), 0.22 if short else 0.36
    columns = max(min(columns, len(shown)), 1)
    rows = max(-(-len(shown) // columns), 1)
    size = 8.0
    if ax is not None:
        room = ax.get_window_extent()
        fits = min(room.width / (columns * cell), room.height / (rows * (height + head))) / ax.figure.dpi
        size *= min(max(1.25 * fits, 0.5), 1.0)
    ax = axes(ax, (max(columns * cell, 4.0), 0.5 + rows * (height + head)))
    for place, (i, text) in enumerate(zip(shown, texts, strict=True)):
        row, column = divmod(place, columns)
        middle, top = (column + 0.5) * cell, row * (height + head) + head
        box = middle - width / 2, middle + width / 2, top + height, top
        ax.imshow(images[i], cmap="gray_r", extent=box, interpolation="nearest")
        ax.text(middle, top - 0.04, text, ha="center", va="bottom", fontsize=size, color=ORANGE)
    ax.set(xlim=(0, columns * cell), ylim=(rows * (height + head), 0))
    ax.set_aspect("equal")
    more = "" if len(shown) == len(wrong) else f", the first {len(shown)} shown"
    ax.set_title(f"{len(wrong)} of {len(images)} wrong{more}")
    ax.axis("off")
    return ax


def _as_images(images: np.ndarray) -> np.ndarray:
    """Return images as (n, height, width), also those given as flat square ones."""
    shape = images.shape
    if images.dtype.kind not in "biuf":
        raise TypeError(f"misclassified: images of dtype {images.dtype}, expected real numbers")
    if len(shape) == 2 and shape[1] and math.isqrt(shape[1]) ** 2 == shape[1]:
        side = math.isqrt(shape[1])
        return images.reshape(shape[0], side, side)
    if len(shape) != 3 or 0 in shape[1:]:
        raise ValueError(
            f"misclassified: images of shape {shape}, expected (n, height, width), or (n, height · width) of square "
            "ones; give images.reshape(n, height, width), and of colours images.mean(axis=-1)"
        )
    return images
