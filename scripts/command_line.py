"""What the scripts' command lines take, for argparse: what cannot be is refused before the work, not after it."""

import argparse
import importlib.util
from pathlib import Path


def add_backend(parser: argparse.ArgumentParser) -> None:
    """Add the options --backend and --device."""
    parser.add_argument(
        "--backend",
        choices=["numpy", "cupy", "torch", "jax", "auto"],
        default="auto",
        help="default: auto, CuPy where a GPU answers, else NumPy",
    )
    parser.add_argument("--device", help="that library's name for one: cuda:0, cpu, ...")


def count(text: str) -> int:
    """A whole number of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it must be at least 1")
    return value


def a_file(text: str) -> Path:
    """A file that can be written."""
    path = Path(text)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory, or in one that is not there")
    return path


def a_picture(text: str) -> Path:
    """A file that matplotlib can draw into."""
    path = a_file(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text} must end in .png, .svg or .pdf")
    if not importlib.util.find_spec("matplotlib"):
        raise argparse.ArgumentTypeError("it needs matplotlib: pip install matplotlib")
    return path
