"""Options and types of the scripts' command lines, for argparse; impossible values are refused before the work."""

import argparse
import importlib.util
import math
from pathlib import Path

import xpnet as xn


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
    """Return a whole number of at least 1."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text}: it must be at least 1")
    return value


def a_file(text: str) -> Path:
    """Return the path of a file that can be written."""
    path = Path(text)
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory, or in one that is not there")
    return path


def a_picture(text: str) -> Path:
    """Return the path of a file into which matplotlib can draw."""
    path = a_file(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text} must end in .png, .svg or .pdf")
    if not importlib.util.find_spec("matplotlib"):
        raise argparse.ArgumentTypeError("it needs matplotlib: pip install matplotlib")
    return path


def above_0(text: str) -> float:
    """Return a finite number above 0."""
    if not 0 < (value := float(text)) < math.inf:
        raise argparse.ArgumentTypeError(f"{text}: it must be above 0 and finite")
    return value


def add_training(
    parser: argparse.ArgumentParser, dtype: str | None = "float32", dtype_help: str = "default: float32"
) -> None:
    """Add the options common to scripts that train."""
    add_backend(parser)
    parser.add_argument("--dtype", choices=["float32", "float64"], default=dtype, help=dtype_help)
    parser.add_argument("--seed", type=int, default=0, help="of the weights and the order of the data; default: 0")
    parser.add_argument("--save", metavar="FILE", type=a_file, help="write the trained network, for xpnet.load")
    parser.add_argument("--checkpoint-dir", metavar="DIR", help="save the run's state there as it goes")
    parser.add_argument("--resume", action="store_true", help="go on from the newest state in DIR, if there is one")


def checkpoint_of(options: argparse.Namespace) -> xn.Checkpoint | None:
    """Return the checkpoint for the run, if any; its messages name the script's own option."""
    if not options.checkpoint_dir:
        return None
    checkpoint = xn.Checkpoint(options.checkpoint_dir)
    checkpoint.remedy = "--resume"
    return checkpoint


def parsed(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Return the parsed options, with those of `add_training` checked."""
    options = parser.parse_args()
    if options.resume and not options.checkpoint_dir:
        parser.error("--resume needs --checkpoint-dir DIR, the folder to go on from")
    return options
