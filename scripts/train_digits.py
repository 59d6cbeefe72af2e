"""Train a network on scikit-learn's handwritten digits, on NumPy, CuPy, PyTorch or JAX.

The first 1,500 images train, each also moved by half a pixel in eight directions; the other 297 validate.
With --source these copies are made batch by batch as they are needed, not kept in memory, and give the same network.
With --tutorial: the source tutorial's own job, step for step. `mpiexec -n 4 python scripts/train_digits.py --processes`
trains in four processes, which share every batch.
"""

import argparse
import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from parts.command_line import a_picture, above_0, add_training, checkpoint_of, count, parsed
from parts.report import picture, time_taken
from threadpoolctl import threadpool_limits

import xpnet as xn

TRAIN = 1500
OPTIMIZERS = {c.__name__.lower(): c for c in (xn.SGD, xn.Nesterov, xn.Adagrad, xn.RMSprop, xn.Adam, xn.AdamW)}
RATES = {"sgd": 0.1, "nesterov": 0.05, "adagrad": 0.03, "rmsprop": 0.003, "adam": 0.005, "adamw": 0.005}


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_training(parser, dtype=None, dtype_help="default: float32, the tutorial's float64")
    parser.add_argument("--model", choices=MODELS, help="dense layers, convolutions, or attention; default: mlp")
    parser.add_argument("--epochs", type=count, help="default: 10, cnn's 8, the tutorial's 5,000")
    parser.add_argument("--batch-size", type=count, help="default: 64, cnn's and attention's 128, the tutorial's 1,500")
    parser.add_argument("--optimizer", choices=OPTIMIZERS, default="adam", help="default: adam")
    parser.add_argument("--learning-rate", type=above_0, help="default: one that suits the optimizer")
    parser.add_argument(
        "--plot", metavar="FILE.png", type=a_picture, help="draw curves, confusion matrix and the digits it got wrong"
    )
    parser.add_argument("--source", action="store_true", help="make the moved copies as they are needed")
    parser.add_argument("--tutorial", action="store_true", help="the tutorial's network, loss, Adam and 5,000 steps")
    parser.add_argument("--processes", action="store_true", help="train in those that mpiexec started (mpi4py)")
    options = parsed(parser)
    if options.tutorial and options.model:
        parser.error("--tutorial has a model of its own: leave out --model")
    if options.tutorial and options.source:
        parser.error("--tutorial trains on the images alone, without copies to make: leave out --source")
    return options


def network() -> xn.Sequential:
    """Two hidden layers, batch norm, dropout."""
    return xn.Sequential(
        xn.Dense(64, 256, initializer="he_normal"),
        xn.BatchNorm(256, momentum=0.9),
        xn.ReLU(),
        xn.Dropout(0.4),
        xn.Dense(256, 128, initializer="he_normal"),
        xn.BatchNorm(128, momentum=0.9),
        xn.ReLU(),
        xn.Dropout(0.4),
        xn.Dense(128, 10),
    )


def cnn() -> xn.Sequential:
    """Three convolutions with batch norm, halving the image after the second and the third."""

    def convolution(channels: int, filters: int) -> tuple[xn.Layer, ...]:
        return (
            xn.Conv2d(channels, filters, 3, padding=1, initializer="he_normal"),
            xn.BatchNorm(filters, momentum=0.9, eps=1e-5),
            xn.ReLU(),
        )

    return xn.Sequential(
        xn.Reshape(1, 8, 8),
        *convolution(1, 24),
        *convolution(24, 48),
        xn.MaxPool2d(2),
        *convolution(48, 96),
        xn.MaxPool2d(2),
        xn.Flatten(),
        xn.Dropout(0.4),
        xn.Dense(384, 10),
    )


def attention() -> xn.Sequential:
    """Attention among the image's 16 patches of 2 x 2 pixels, in two blocks with a norm before each part."""
    features = 32

    def residual(*layers: xn.Layer) -> xn.Residual:
        return xn.Residual(xn.LayerNorm(features), *layers, xn.Dropout(0.1))

    blocks = [
        part
        for _ in range(2)
        for part in (
            residual(xn.MultiHeadAttention(features, heads=4)),
            residual(xn.Dense(features, 2 * features), xn.GELU(), xn.Dense(2 * features, features)),
        )
    ]
    return xn.Sequential(
        xn.Reshape(4, 2, 4, 2),  # rows and columns, each as 4 patches of 2
        xn.Transpose(1, 3, 2, 4),
        xn.Reshape(16, 4),
        xn.Dense(4, features),
        xn.PositionalEmbedding(16, features),
        *blocks,
        xn.LayerNorm(features),
        xn.Flatten(),
        xn.Dense(16 * features, 10),
    )


class Model(NamedTuple):
    """A network to train, and what suits it where the command line does not say."""

    network: Callable[[], xn.Sequential]
    epochs: int
    batch_size: int = 64
    label_smoothing: float = 0.0


MODELS = {
    "mlp": Model(network, epochs=10),
    "cnn": Model(cnn, epochs=8, batch_size=128, label_smoothing=0.1),
    "attention": Model(attention, epochs=10, batch_size=128, label_smoothing=0.1),
}


def tutorial_network() -> xn.Sequential:
    """The tutorial's, its last batch norm giving the logits."""
    return xn.Sequential(
        xn.Dense(64, 32),
        xn.BatchNorm(32, momentum=0.99, eps=0.01),
        xn.Sigmoid(),
        xn.Dense(32, 16),
        xn.BatchNorm(16, momentum=0.99, eps=0.01),
        xn.ReLU(),
        xn.Dense(16, 10),
        xn.BatchNorm(10, momentum=0.99, eps=0.01),
    )


def tutorial_adam(learning_rate: float, beta1: float = 0.9, beta2: float = 0.999, eps: float = 1e-8) -> xn.Adam:
    """The tutorial's Adam, which divides by 1 - beta1 and 1 - beta2 at every step."""
    root = math.sqrt(1 - beta2)
    return xn.Adam(learning_rate * root / (1 - beta1), beta1, beta2, eps * root, bias_correction=False)


class WithMovedCopies:
    """The images (n, 64), and each moved by half a pixel in eight directions, with their classes: a source of rows,
    which are made as they are asked for.
    """

    def __init__(self, x: np.ndarray, y: np.ndarray):
        self.images, self.y = x.reshape(-1, 8, 8), y

    def __len__(self) -> int:
        return 9 * len(self.y)

    def __getitem__(self, rows: slice | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        moves, rows = np.divmod(np.arange(len(self))[rows], len(self.y))
        images = self.images[rows]
        for axis, ways in ((2, moves // 3), (1, moves % 3)):
            for way, by in ((1, -1), (2, 1)):
                images[ways == way] = self.moved(images[ways == way], axis, by)
        return images.reshape(-1, 64), self.y[rows]

    @staticmethod
    def moved(images: np.ndarray, axis: int, by: int) -> np.ndarray:
        """The images moved by half a pixel along an axis."""
        return (images + np.roll(np.pad(images, ((0, 0), (1, 1), (1, 1))), by, axis)[:, 1:-1, 1:-1]) / 2


class TutorialTable(xn.Callback):
    """Print what the tutorial prints: every 500 steps, the summed binary cross-entropy of the training batch."""

    def __init__(self, x, y, every=500):
        self.x, self.y, self.every = x, y, every
        self.loss = xn.BinaryCrossEntropy(reduction="sum")

    def train_begin(self, run):
        print(f"{'step':>6}  {'loss':>8}")
        self.step_end(run)

    def step_end(self, run):
        if run.step % self.every == 0 and run.step < run.steps:
            backend = run.net.backend
            logits, _ = run.net.forward(backend.asarray(self.x, run.net.dtype), training=True)
            print(f"{run.step:>6}  {float(self.loss(xn.ops.softmax(logits), self.y)):>8.1f}", flush=True)


class TrainingAccuracy(xn.Callback):
    """Record the accuracy on the training images after each epoch, for the picture's sake."""

    def __init__(self, x, y, loss):
        self.x, self.y, self.loss = x, y, loss

    def epoch_end(self, run):
        run.history.record({"accuracy": run.net.evaluate(self.x, self.y, self.loss)["accuracy"]})


def mean_losses(history: xn.History, rows: int, val_rows: int) -> dict[str, list[float]]:
    """The history with its summed losses divided by the rows they are of, to be drawn on one axis."""
    means = {"loss": rows, "val_loss": val_rows}
    return {name: [value / means.get(name, 1) for value in values] for name, values in history.items()}


def main() -> None:
    """Train, in several processes where that is asked for, of which the first reports."""
    options = arguments()
    if not options.processes:
        run(options)
        return
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise ImportError(f"--processes needs mpi4py ({error}): pip install mpi4py mpich") from None

    with contextlib.ExitStack() as quiet:
        if MPI.COMM_WORLD.Get_rank() > 0:
            options.plot = options.save = None
            quiet.enter_context(contextlib.redirect_stdout(quiet.enter_context(open(os.devnull, "w"))))
        run(options, MPI.COMM_WORLD)


def run(options: argparse.Namespace, comm: Any = None) -> None:
    """Train, report, and draw and save what was asked for."""
    tutorial, model = options.tutorial, MODELS[options.model or "mlp"]
    suits = ("float32", model.epochs, model.batch_size, RATES[options.optimizer])
    defaults = ("float64", 5000, TRAIN, 0.001) if tutorial else suits
    given = (options.dtype, options.epochs, options.batch_size, options.learning_rate)
    dtype, epochs, batch_size, learning_rate = (d if g is None else g for g, d in zip(given, defaults, strict=True))

    x, y = xn.data.load_digits()
    if tutorial:
        x = x * 16.0  # the tutorial's pixels run from 0 to 16
    x_val, y_val = x[TRAIN:], y[TRAIN:]
    copies = WithMovedCopies(x[:TRAIN], y[:TRAIN])
    train: tuple[Any, ...] = (copies,) if options.source else (x[:TRAIN], y[:TRAIN]) if tutorial else copies[:]
    rows = len(train[0])
    net = tutorial_network() if tutorial else model.network()
    net.initialize(xn.get_backend(options.backend, options.device), dtype, options.seed)
    backend = net.backend
    if tutorial and options.optimizer == "adam":
        optimizer = tutorial_adam(learning_rate)
    else:
        steps = epochs * math.ceil(rows / batch_size)
        optimizer = OPTIMIZERS[options.optimizer](learning_rate if tutorial else xn.CosineDecay(learning_rate, steps))
    if tutorial:
        loss = xn.SoftmaxCrossEntropy(reduction="sum")
    else:
        loss = xn.SoftmaxCrossEntropy(label_smoothing=model.label_smoothing)

    print(net.summary())
    print(f"\n{optimizer}")
    print(f"{rows:,} images train in batches of {batch_size:,}, {len(x_val)} validate")
    print(f"{dtype} on {backend.describe()}")
    before = net.evaluate(x_val, y_val, loss)["accuracy"]
    print(f"accuracy before: {before:.1%}", flush=True)

    callbacks: list[xn.Callback] = [TutorialTable(*train)] if tutorial else []
    if options.plot:
        callbacks.append(TrainingAccuracy(x[:TRAIN], y[:TRAIN], loss))
    how = {"loss": loss, "optimizer": optimizer, "batch_size": batch_size, "shuffle": not tutorial, "comm": comm}
    began = time.perf_counter()
    net.clone().fit(*train, **how)
    print(f"an epoch on a copy, with the compiling of all it needs: {time.perf_counter() - began:.1f} s\n", flush=True)
    began = time.perf_counter()
    history = net.fit(
        *train,
        **how,
        epochs=epochs,
        validation_data=None if tutorial and not options.plot else (x_val, y_val),
        callbacks=callbacks,
        progress=not tutorial,
        checkpoint=checkpoint_of(options),
        resume=options.resume,
    )
    seconds = time.perf_counter() - began

    logits = net.predict(x_val)
    predicted = np.argmax(backend.to_numpy(logits), axis=1)
    right = int((predicted == y_val).sum())
    print(time_taken(history, seconds, backend))
    print(f"accuracy after: {right / len(y_val):.1%} ({right} of {len(y_val)} right)")

    if options.plot and history:
        counts = backend.to_numpy(xn.confusion_matrix(logits, y_val))
        done = f"after {len(history['loss']):,} epochs on {backend.name}"
        title = f"Digits: {right / len(y_val):.1%} of {len(y_val)} right, {done}"
        means = mean_losses(history, TRAIN, len(x_val)) if tutorial else history
        picture(options.plot, means, counts, x_val.reshape(-1, 8, 8), predicted, y_val, title)
        print(f"picture in {options.plot}")
    if options.save:
        net.save(options.save)
        print(f"network in {options.save}")


if __name__ == "__main__":
    try:
        with threadpool_limits(limits=1):  # products this small take longer shared out over cores than on one
            main()
    except (xn.BackendUnavailableError, xn.DivergenceError, ValueError, OSError, ImportError) as error:
        sys.exit(f"train_digits: {error}")
