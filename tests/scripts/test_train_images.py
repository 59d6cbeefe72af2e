"""The script that trains on one's own images reads what it says, learns it, and says what is wrong with a file."""

import gzip
import struct
import sys

import numpy as np
import pytest

import xpnet as xn
from support import ROOT

pytestmark = pytest.mark.numpy_only


@pytest.fixture
def script(monkeypatch, tmp_path, capsys):
    """The script, called with arguments in an empty folder: what it printed."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import train_images

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_images.py", *map(str, arguments), "--backend=numpy"])
        train_images.main()
        return capsys.readouterr().out

    run.module = train_images
    return run


def bars(rng, n=120, side=8):
    """Images of an upright or a level bar, uint8, and which."""
    x, y = rng.integers(60, size=(n, side, side)).astype(np.uint8), rng.integers(2, size=n)
    for image, level, at in zip(x, y, rng.integers(1, side - 1, size=n), strict=True):
        image[(at, slice(None)) if level else (slice(None), at)] = 255
    return x, y


def idx(a, kind=8):
    return bytes([0, 0, kind, a.ndim]) + struct.pack(f">{a.ndim}I", *a.shape) + a.astype(np.uint8).tobytes()


def mnist(folder, rng, compressed=False):
    for part, n in (("train", 120), ("t10k", 40)):
        for name, a in zip(("images-idx3", "labels-idx1"), bars(rng, n), strict=True):
            path, content = folder / f"{part}-{name}-ubyte", idx(a)
            path.with_name(path.name + ".gz" * compressed).write_bytes(
                gzip.compress(content) if compressed else content
            )


def right(said):
    return float(said.partition("accuracy: ")[2].partition("%")[0])


@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gz"])
def test_it_learns_from_the_four_files_of_mnists_format(script, tmp_path, rng, compressed):
    mnist(tmp_path, rng, compressed)
    said = script(".", "--epochs", 3, "--batch-size", 16, "--save", "net.st", "--plot", "seen.png")
    assert "120 images (1, 8, 8) of 2 classes train, 40 test" in said
    assert right(said) > 90
    assert (tmp_path / "seen.png").stat().st_size > 10_000
    assert xn.load("net.st").predict(bars(rng)[0][:, None]).shape == (120, 2)


@pytest.mark.parametrize("model", ["cnn", "mlp"])
@pytest.mark.parametrize("layout", ["grey", "colours last", "colours first", "floats"])
def test_it_reads_an_npz_file_of_either_layout(script, tmp_path, rng, layout, model):
    x, y = bars(rng)
    if layout.startswith("colours"):
        x = np.stack([x, x // 2, 255 - x], axis=-1 if layout == "colours last" else 1)
    if layout == "floats":
        x = x / 1000.0
    np.savez("a.npz", x=x, y=np.array(["upright", "level"])[y])
    said = script("a.npz", "--epochs", 4, "--batch-size", 16, "--model", model, "--learning-rate", 0.01)
    assert f"108 images {(3 if 'colours' in layout else 1, 8, 8)} of 2 classes train, 12 test" in said
    assert right(said) > 70
    assert {line.split()[0] for line in said.splitlines()[-2:]} == {"level", "upright"}


def test_it_reads_kerass_files_with_their_own_test_images(script, rng):
    x, y = bars(rng)
    np.savez("k.npz", x_train=x, y_train=y[:, None], x_test=x[:30], y_test=y[:30, None])
    assert "120 images (1, 8, 8) of 2 classes train, 30 test" in script("k.npz", "--epochs", 1)


def test_it_maps_arrays_of_a_folder_and_trains_on_several_files_one_after_another(script, tmp_path, rng):
    x, y = bars(rng, 160)
    np.save(tmp_path / "x.npy", x)
    np.save(tmp_path / "y.npy", y)
    said = script(".", "--epochs", 3, "--batch-size", 16, "--plot", "seen.png")
    assert "144 images (1, 8, 8) of 2 classes train, 16 test" in said
    assert right(said) > 90
    for i in range(4):
        rows = slice(40 * i, 40 * (i + 1))
        np.savez(f"{i}.npz", x=x[rows], y=np.array(["upright", "level"])[y[rows]])
    said = script(*[f"{i}.npz" for i in range(4)], "--epochs", 3, "--batch-size", 16)
    assert "120 images (1, 8, 8) of 2 classes train, 40 test" in said
    assert right(said) > 90
    np.savez("y.npz", x=x)
    with pytest.raises(ValueError, match=r"y\.npz has no y; it has x"):
        script("y.npz", "0.npz")


def test_the_table_of_classes_names_the_worst_first_and_what_it_was_taken_for(script):
    true, predicted = np.array([0, 0, 0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 2, 1, 1, 2, 0])
    assert script.module.table(["a", "bb", "c"], true, predicted) == (
        " a   25.0% of 4  most often taken for bb\n c   50.0% of 2  most often taken for a\nbb  100.0% of 2"
    )


X, Y = np.zeros((20, 6, 6), np.uint8), np.arange(20) % 2
BAD = {
    "other names": ({"images": X, "y": Y}, "a.npz has no x; it has images, y: save images and classes as"),
    "one class": ({"x": X, "y": Y * 0}, r"all images are of one class, \[0\]; there is nothing to tell apart"),
    "flat": (
        {"x": X.reshape(20, 36), "y": Y},
        r"x is uint8 of shape \(20, 36\), expected numbers \(n, height, width\)",
    ),
    "many channels": ({"x": np.zeros((20, 6, 6, 9)), "y": Y}, "neither axis 1 nor axis 3 is of 1 to 4 channels"),
    "classes amiss": ({"x": X, "y": Y[1:]}, r"y is int64 of shape \(19,\), expected a class for each of the 20 images"),
    "scores": ({"x": X, "y": Y + 0.5}, "y is float64 of shape"),
    "sizes": ({"x_train": X, "y_train": Y, "x_test": X[:, :5], "y_test": Y}, r"\(1, 6, 6\), those to test \(1, 5, 6\)"),
    "objects": ({"x": X, "y": Y.astype(object)}, "a.npz' is not an .npz file of arrays of numbers or names"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_it_cannot_read_is_told(script, bad):
    arrays, words = BAD[bad]
    np.savez("a.npz", **arrays)
    with pytest.raises(ValueError, match=words):
        script("a.npz")


IDX = "train-images-idx3-ubyte"
DAMAGED = {
    "not there": (lambda path: path.unlink(), "has no train-images-idx3-ubyte, nor train-images-idx3-ubyte.gz"),
    "cut short": (lambda path: path.write_bytes(path.read_bytes()[:-9]), r"says \(120, 8, 8\) bytes follow, and 7,671"),
    "another kind": (lambda path: path.write_bytes(idx(X, 9)), "does not begin as an IDX file of images: 00 00 09 03"),
    "empty": (lambda path: path.write_bytes(b""), "does not begin as an IDX file of images"),
    "no gzip": (lambda path: path.rename(f"{path}.gz"), "train-images-idx3-ubyte.gz is damaged"),
}


@pytest.mark.parametrize("bad", DAMAGED)
def test_a_damaged_file_is_named(script, tmp_path, rng, bad):
    mnist(tmp_path, rng)
    damage, words = DAMAGED[bad]
    damage(tmp_path / IDX)
    with pytest.raises(ValueError, match=words):
        script(".")


def test_a_file_that_is_none_is_told(script, tmp_path):
    (tmp_path / "a.npz").write_bytes(b"PK\x03\x04 is not enough")
    with pytest.raises(ValueError, match=r"a\.npz' is not an \.npz file"):
        script("a.npz")
    with pytest.raises(FileNotFoundError):
        script("b.npz")
