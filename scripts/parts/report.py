"""Reports at the end of scripts that train."""

import xpnet as xn


def time_taken(history: xn.History, seconds: float, backend: xn.Backend) -> str:
    """Return a line with the seconds and steps of a training."""
    steps = history.steps - history.resumed
    each = 1000 * history.seconds / max(history.steps, 1)
    if history.resumed and not steps:  # `progress` says that nothing was left to train
        return f"\n{history.steps:,} steps before, {each:.3f} ms/step"
    how = "interrupted after" if history.interrupted else "trained in"
    before = f" after {history.resumed:,} before" if history.resumed else ""
    return f"\n{how} {seconds:.1f} s: {steps:,} steps{before}, {each:.3f} ms/step on {backend.describe()}"


def picture(path, history, counts, images, predicted, true, title, names=None):
    """Draw the training curves and errors: images (n, height, width) with their predicted and true classes."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from xpnet import plots

    figure, axes = plt.subplots(2, 2, figsize=(11, 9), layout="constrained")
    figure.suptitle(title)
    plots.learning_curves(history, "loss", axes[0, 0])
    plots.learning_curves(history, "accuracy", axes[0, 1])
    plots.confusion_matrix(counts, axes[1, 0], names)
    plots.misclassified(images, predicted, true, ax=axes[1, 1])
    figure.savefig(path, dpi=110)
