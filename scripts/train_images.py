"""Train a convolutional network on your own images.

DATA is an .npz file, several of them, or a folder. A file holds x, images (n, height, width), with colours (n, height,
width, 3) or (n, 3, height, width), and y, a class for each, numbers or names; also Keras's x_train, y_train, x_test and
y_test. A folder holds these as x.npy and so on, or the four files of MNIST, Fashion-MNIST and their like,
train-images-idx3-ubyte and so on, with .gz or without. Where there are no test images, a tenth of all is held out.

Data may be larger than memory as .npy files, which are mapped, or as several .npz files of x and y, of which one is in
memory at a time: they train in a random order of 10,000 images at a time, and the last file tests.
"""

import argparse
import gzip
import math
import sys
import time
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from parts.command_line import a_picture, above_0, add_training, checkpoint_of, count, parsed
from parts.report import picture, time_taken

import xpnet as xn

SMALLEST = 8  # pixels: pooling goes on until an image's shorter side is no longer
IDX = {"train": "train", "test": "t10k"}
HELD = 10_000  # images that are in memory at a time, where all of them may not be
BYTES = 0x08  # the code of unsigned bytes in an IDX file


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "data", type=Path, nargs="+", metavar="DATA", help=".npz files, or a folder with .npy or the four IDX files"
    )
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


class Data(NamedTuple):
    """Images (n, C, H, W) and classes from 0."""

    train: tuple[Any, ...]  # x and y, or a source of both, as `fit` takes them
    rows: int  # how many train
    x_test: np.ndarray
    y_test: np.ndarray
    names: list[str]  # of the classes


class Some:
    """Those of the images that train, read as they are needed."""

    def __init__(self, x: np.ndarray, y: np.ndarray, rows: np.ndarray):
        self.x, self.y, self.rows = x, y, rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: Any) -> tuple[np.ndarray, np.ndarray]:
        rows = self.rows[rows]
        return self.x[rows], self.y[rows]


class Files:
    """The batches of several .npz files."""

    def __init__(self, paths: Sequence[Path], labels: np.ndarray, batch_size: int):
        self.paths, self.labels, self.batch_size = paths, labels, batch_size

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for path in self.paths:
            for x, y in xn.data.NpzFiles([path], self.batch_size):
                yield channels_first(path, "x", x), np.searchsorted(self.labels, y)


def data_of(paths: list[Path], batch_size: int, seed: int) -> Data:
    """The data of the command line."""
    if len(paths) == 1:
        return images_of(paths[0], seed)
    classes = []
    for path in paths:  # one is in memory at a time
        parts = xn.data.read_npz(path)
        check_names(path, parts, ["x", "y"])
        x_test = channels_first(path, "x", parts["x"])
        classes.append(classes_of(path, "y", parts["y"], len(x_test)))
    labels = labels_of(path, classes)
    train = xn.data.shuffled(Files(paths[:-1], labels, batch_size), HELD, seed)
    rows = sum(map(len, classes[:-1]))
    return Data((train,), rows, x_test, np.searchsorted(labels, classes[-1]), in_words(labels))


def images_of(path: Path, seed: int) -> Data:
    """The data of one file or folder."""
    mapped = path.is_dir() and any(path.glob("*.npy"))
    if mapped:
        parts = {file.stem: np.load(file, mmap_mode="r") for file in sorted(path.glob("*.npy"))}
    elif path.is_dir():
        parts = {f"{x}_{part}": idx(path, name, x) for part, name in IDX.items() for x in ("x", "y")}
    else:
        parts = xn.data.read_npz(path)
    train_only = "x_train" not in parts
    names = ["x", "y"] if train_only else ["x_train", "y_train", "x_test", "y_test"]
    check_names(path, parts, names)
    x, y = (parts[name] for name in names[:2])
    arrays = [x, y] if train_only else [x, y, parts["x_test"], parts["y_test"]]
    for i in range(0, len(arrays), 2):
        arrays[i] = channels_first(path, names[i], arrays[i])
        arrays[i + 1] = classes_of(path, names[i + 1], arrays[i + 1], len(arrays[i]))
    labels = labels_of(path, arrays[1::2])
    arrays[1::2] = [np.searchsorted(labels, y) for y in arrays[1::2]]
    if train_only and mapped:
        x, y = arrays
        order = np.random.default_rng(seed).permutation(len(x))
        count = min(max(1, len(x) // 10), HELD)
        held_out, rows = np.sort(order[:count]), np.sort(order[count:])
        return Data((Some(x, y, rows),), len(rows), x[held_out], y[held_out], in_words(labels))
    if train_only:
        x_train, x_test, y_train, y_test = xn.data.train_test_split(*arrays, test_size=0.1, seed=seed)
        arrays = [x_train, y_train, x_test, y_test]
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise ValueError(f"{path}: images to train on are {arrays[0].shape[1:]}, those to test {arrays[2].shape[1:]}")
    return Data(tuple(arrays[:2]), len(arrays[0]), *arrays[2:], in_words(labels))


def check_names(path: Path, parts: dict[str, np.ndarray], names: list[str]) -> None:
    """Refuse a file without arrays of these names."""
    if missing := [name for name in names if name not in parts]:
        raise ValueError(
            f"{path} has no {', '.join(missing)}; it has {', '.join(parts) or 'nothing'}: save images and classes as "
            "np.savez(path, x=..., y=...)"
        )


def classes_of(path: Path, name: str, y: np.ndarray, images: int) -> np.ndarray:
    """The classes of so many images, numbers or names."""
    y = np.squeeze(y, axis=1) if y.ndim == 2 else y
    if y.shape != (images,) or y.dtype.kind not in "iubUS":
        raise ValueError(
            f"{path}: {name} is {y.dtype} of shape {y.shape}, expected a class for each of the {images} images of "
            f"{name.replace('y', 'x')}, whole numbers or names"
        )
    return y


def labels_of(path: Path, classes: Sequence[np.ndarray]) -> np.ndarray:
    """The classes that there are."""
    labels = np.unique(np.concatenate(classes))
    if len(labels) < 2:
        raise ValueError(f"{path}: all images are of one class, {labels[:1].tolist()}; there is nothing to tell apart")
    return labels


def in_words(labels: np.ndarray) -> list[str]:
    """The classes' names."""
    return [label.decode() if isinstance(label, bytes) else str(label) for label in labels.tolist()]


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
    train, rows, x_test, y_test, names = data_of(options.data, options.batch_size, options.seed)
    shape, x = x_test.shape[1:], train[0] if hasattr(train[0], "shape") else x_test
    largest = 255.0 if x.dtype == np.uint8 else float(np.abs(x).max())
    net = network(options.model, shape, len(names), 1.0 / (largest or 1.0))
    net.initialize(xn.get_backend(options.backend, options.device), options.dtype, options.seed)
    loss = xn.SoftmaxCrossEntropy()
    steps = options.epochs * math.ceil(rows / options.batch_size)

    print(net.summary(shape))
    print(f"\n{rows:,} images {shape} of {len(names)} classes train, {len(x_test):,} test")
    print(f"{options.dtype} on {net.backend.describe()}\n", flush=True)
    began = time.perf_counter()
    history = net.fit(
        *train,
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
        title = f"{options.data[0].name}: {right / len(y_test):.2%} of {len(y_test):,} right"
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
