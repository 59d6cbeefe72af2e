"""Take three handwritten digits through the tutorial's network, step by step, with every formula and its numbers.

The images are numbers 13 to 15 of scikit-learn's digits, counted from 0: a 3, a 4 and a 5, pixels from 0 to 16. The
network is the source tutorial's, 64-32-16-10 with batch norm, sigmoid and ReLU, in float64, in training mode: its
batch norms take the mean and the variance of these three. On the way forward each layer's output is shown, then the
loss, and on the way back each gradient: shape, mean, standard deviation, smallest, largest, and share of zeros.
"""

import argparse
import sys

import numpy as np
from parts.command_line import a_picture, add_backend, count
from train_digits import TRAIN, tutorial_adam, tutorial_network

import xpnet as xn

IMAGES = slice(13, 16)
SHADES = " .:-=+*#@"  # of pixels from 0 to 16


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_backend(parser)
    parser.add_argument("--seed", type=int, default=0, help="of the initial weights; default: 0")
    parser.add_argument(
        "--steps", type=count, metavar="N", help="first train for N of the tutorial's steps, on 1,500 images with Adam"
    )
    parser.add_argument(
        "--plot", metavar="FILE.png", type=a_picture, help="draw histograms of each layer's outputs and gradients"
    )
    return parser.parse_args()


def pictures(x: np.ndarray) -> str:
    """Images (n, 64) side by side, in letters."""
    letters = np.array(list(SHADES))[np.rint(x / 2).astype(int)].reshape(-1, 8, 8)
    return "\n".join("    ".join("".join(image[row]) for image in letters).rstrip() for row in range(8))


def probabilities(p: np.ndarray, y: np.ndarray) -> str:
    """A table of the probabilities (n, 10), with the true class and -log of its own."""
    lines = ["image  class" + "".join(f"{k:>7}" for k in range(10)) + f"{'-log p':>9}"]
    for i, (row, k) in enumerate(zip(p, y, strict=True)):
        lines.append(f"{IMAGES.start + i:>5}  {k:>5}" + "".join(f"{v:>7.3f}" for v in row) + f"{-np.log(row[k]):>9.3f}")
    return "\n".join(lines)


def main() -> None:
    """Print the walk, and draw it if asked for."""
    options = arguments()
    x, y = xn.data.load_digits()
    x = x * 16.0  # the tutorial's pixels run from 0 to 16
    net = tutorial_network().initialize(xn.get_backend(options.backend, options.device), "float64", options.seed)
    loss = xn.SoftmaxCrossEntropy(reduction="sum")
    if options.steps:
        how = {"loss": loss, "optimizer": tutorial_adam(0.001), "batch_size": None, "shuffle": False}
        net.fit(x[:TRAIN], y[:TRAIN], epochs=options.steps, **how)
    print(pictures(x[IMAGES]), end="\n\n")
    explanation = net.explain(x[IMAGES], y[IMAGES], loss)
    print(explanation, end="\n\n")
    print("Probabilities of the classes, p = softmax(z), and the loss of each image, -log p of its class")
    print(probabilities(net.backend.to_numpy(xn.ops.softmax(explanation.prediction)), y[IMAGES]))
    if options.plot:
        import matplotlib

        matplotlib.use("Agg")
        explanation.plot().savefig(options.plot, dpi=110)
        print(f"\npicture in {options.plot}")


if __name__ == "__main__":
    try:
        main()
    except (xn.BackendUnavailableError, ValueError, OSError, ImportError) as error:
        sys.exit(f"walkthrough: {error}")
