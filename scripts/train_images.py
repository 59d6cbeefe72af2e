"""Train a convolutional network on your own images.

DATA is an .npz file or a folder. The file holds x, images (n, height, width), with colours (n, height, width, 3) or
(n, 3, height, width), and y, a class for each, numbers or names; also Keras's x_train, y_train, x_test and y_test. The
folder holds the four files of MNIST, Fashion-MNIST and their like, train-images-idx3-ubyte and so on, with .gz or
without. Where there are no test images, a tenth of all is held out.
"""

import argparse
import gzip
import math
import sys
import time
import zlib
from pathlib import Path

import numpy as np
from parts.command_line import a_picture, above_0, add_training, checkpoint_of, count, parsed
from parts.report import picture, time_taken

import xpnet as xn

SMALLEST = 8  # pixels: pooling goes on until an image's shorter side is no longer
IDX = {"train": "train", "test": "t10k"}
BYTES = 0x08  # the code of unsigned bytes in an IDX file


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA", help="an .npz file, or a folder with the four IDX files")
    parser.add_argument("--model", choices=["cnn", "mlp"], default="cnn", help="default: cnn")
    parser.add_argument("--epochs", type=count, default=5, help="default: 5")
    parser.add_argument("--batch-size", type=count, default=64, help="default: 64")
    parser.add_argument("--learning-rate", type=above_0, default=2e-3, help="of Adam at the start; default: 0.002")
    parser.add_argument(
        "--plot", metavar="FILE.png", type=a_picture, help="draw curves, confusion matrix and the images it got wrong"
    )
    add_training(parser)
    return parsed(parser)


# --- data -------------------------------------------------------------------------------------------------------------


def images_of(path: Path, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """x_train, y_train, x_test, y_test, the images (n, C, H, W) and classes from 0, and the classes' names."""
    if path.is_dir():
        parts = {f"{x}_{part}": idx(path, name, x) for part, name in IDX.items() for x in ("x", "y")}
    else:
        parts = xn.data.read_npz(path)
    train_only = "x_train" not in parts
    names = ["x", "y"] if train_only else ["x_train", "y_train", "x_test", "y_test"]
    if missing := [name for name in names if name not in parts]:
        raise ValueError(
            f"{path} has no {', '.join(missing)}; it has {', '.join(parts) or 'nothing'}: save images and classes as "
            "np.savez(path, x=..., y=...)"
        )
    x, y = (parts[name] for name in names[:2])
    arrays = [x, y] if train_only else [x, y, parts["x_test"], parts["y_test"]]
    for i in range(0, len(arrays), 2):
        arrays[i] = channels_first(path, names[i], arrays[i])
        classes = arrays[i + 1] = np.squeeze(arrays[i + 1], axis=1) if arrays[i + 1].ndim == 2 else arrays[i + 1]
        if classes.shape != arrays[i].shape[:1] or classes.dtype.kind not in "iubUS":
            raise ValueError(
                f"{path}: {names[i + 1]} is {classes.dtype} of shape {classes.shape}, expected a class for each of the "
                f"{len(arrays[i])} images of {names[i]}, whole numbers or names"
            )
    labels = np.unique(np.concatenate(arrays[1::2]))
    if len(labels) < 2:
        raise ValueError(f"{path}: all images are of one class, {labels[:1].tolist()}; there is nothing to tell apart")
    arrays[1::2] = [np.searchsorted(labels, y) for y in arrays[1::2]]
    if train_only:
        x_train, x_test, y_train, y_test = xn.data.train_test_split(*arrays, test_size=0.1, seed=seed)
        arrays = [x_train, y_train, x_test, y_test]
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise ValueError(f"{path}: images to train on are {arrays[0].shape[1:]}, those to test {arrays[2].shape[1:]}")
    names = [label.decode() if isinstance(label, bytes) else str(label) for label in labels.tolist()]
    return (*arrays, names)


def channels_first(path: Path, name: str, x: np.ndarray) -> np.ndarray:
    """Images as (n, C, H, W)."""
    if x.dtype.kind not in "uif" or x.ndim not in (3, 4) or 0 in x.shape:
        raise ValueError(
            f"{path}: {name} is {x.dtype} of shape {x.shape}, expected numbers (n, height, width), (n, height, width, "
            "channels) or (n, channels, height, width)"
        )
    if x.ndim == 3:
        return x[:, None]
    if x.shape[3] <= 4 < x.shape[1]:
        return np.moveaxis(x, 3, 1)
    if x.shape[1] > 4:
        raise ValueError(f"{path}: {name} has shape {x.shape}, neither axis 1 nor axis 3 is of 1 to 4 channels")
    return x


def idx(folder: Path, part: str, what: str) -> np.ndarray:
    """The images ("x") or classes ("y") of a part, "train" or "t10k", from a file of the IDX format."""
    axes, kind = (3, "images") if what == "x" else (1, "labels")
    stem = f"{part}-{kind}-idx{axes}-ubyte"
    found = [path for name in (stem, f"{stem}.gz") if (path := folder / name).is_file()]
    if not found:
        raise ValueError(f"{folder} has no {stem}, nor {stem}.gz: the four files of MNIST's format are wanted, or .npz")
    path = found[0]
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    head = 4 + 4 * axes
    if content[:4] != bytes([0, 0, BYTES, axes]) or len(content) < head:
        raise ValueError(f"{path} does not begin as an IDX file of {kind}: {content[:4].hex(' ')}")
    shape = tuple(np.frombuffer(content, ">u4", axes, 4).tolist())
    if len(content) - head != math.prod(shape):
        raise ValueError(f"{path} says {shape} bytes follow, and {len(content) - head:,} do: it is damaged")
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


# --- network ----------------------------------------------------------------------------------------------------------


def network(model: str, shape: tuple[int, ...], classes: int, scale: float) -> xn.Sequential:
    """For images (C, H, W): blocks of convolution, batch norm, ReLU and pooling until they are small; or an mlp."""
    channels, height, width = shape
    if model == "mlp":
        size = math.prod(shape)
        hidden = [
            layer for a, b in ((size, 128), (128, 64)) for layer in (xn.Dense(a, b), xn.BatchNorm(b, 0.9), xn.ReLU())
        ]
        return xn.Sequential(xn.Rescale(scale), xn.Flatten(), *hidden, xn.Dropout(0.2), xn.Dense(64, classes))
    layers: list[xn.Layer] = [xn.Rescale(scale)]
    blocks = max(2, math.ceil(math.log2(min(height, width) / SMALLEST)))
    for filters in (32, *[64] * (blocks - 1)):
        layers += [xn.Conv2d(channels, filters, 3, padding="same"), xn.BatchNorm(filters, 0.9), xn.ReLU()]
        channels = filters
        if min(height, width) > 1:
            layers.append(xn.MaxPool2d(2))
            height, width = height // 2, width // 2
    return xn.Sequential(*layers, xn.Flatten(), xn.Dropout(0.3), xn.Dense(channels * height * width, classes))


def table(names: list[str], true: np.ndarray, predicted: np.ndarray) -> str:
    """The accuracy of each class, the worst first."""
    rows = []
    for i, name in enumerate(names):
        own = predicted[true == i]
        if len(own):
            wrong = np.bincount(own[own != i], minlength=len(names))
            taken = f"most often taken for {names[wrong.argmax()]}" if wrong.any() else ""
            rows.append(((own == i).mean(), name, len(own), taken))
    width = max(map(len, names))
    lines = [f"{name:>{width}}  {share:6.1%} of {n:,}  {taken}".rstrip() for share, name, n, taken in sorted(rows)]
    return "\n".join(lines)


def main() -> None:
    """Train, report, and draw and save what was asked for."""
    options = arguments()
    x_train, y_train, x_test, y_test, names = images_of(options.data, options.seed)
    shape = x_train.shape[1:]
    largest = 255.0 if x_train.dtype == np.uint8 else float(np.abs(x_train).max())
    net = network(options.model, shape, len(names), 1.0 / (largest or 1.0))
    net.initialize(xn.get_backend(options.backend, options.device), options.dtype, options.seed)
    loss = xn.SoftmaxCrossEntropy()
    steps = options.epochs * math.ceil(len(x_train) / options.batch_size)

    print(net.summary(shape))
    print(f"\n{len(x_train):,} images {shape} of {len(names)} classes train, {len(x_test):,} test")
    print(f"{options.dtype} on {net.backend.describe()}\n", flush=True)
    began = time.perf_counter()
    history = net.fit(
        x_train,
        y_train,
        loss=loss,
        optimizer=xn.Adam(xn.CosineDecay(options.learning_rate, steps)),
        epochs=options.epochs,
        batch_size=options.batch_size,
        validation_data=(x_test, y_test),
        progress=True,
        checkpoint=checkpoint_of(options),
        resume=options.resume,
    )
    seconds = time.perf_counter() - began

    logits = net.predict(x_test, batch_size=1024)
    predicted = np.argmax(net.backend.to_numpy(logits), axis=1)
    right = int((predicted == y_test).sum())
    print(time_taken(history, seconds, net.backend))
    print(f"accuracy: {right / len(y_test):.2%} ({right:,} of {len(y_test):,} right)\n")
    print(table(names, y_test, predicted))
    if options.plot and history:
        counts = net.backend.to_numpy(xn.confusion_matrix(logits, y_test))
        title = f"{options.data.name}: {right / len(y_test):.2%} of {len(y_test):,} right"
        labels = np.array(names)
        grey = x_test.mean(axis=1)
        picture(options.plot, history, counts, grey, labels[predicted], labels[y_test], title, names)
        print(f"picture in {options.plot}")
    if options.save:
        net.save(options.save)
        print(f"network in {options.save}; its outputs are the classes {', '.join(names[:20])}")


if __name__ == "__main__":
    try:
        main()
    except (xn.BackendUnavailableError, xn.DivergenceError, ValueError, OSError, ImportError) as error:
        sys.exit(f"train_images: {error}")
