"""Train a small GPT on a text, character by character, and let it write.

Without a FILE it reads the English prose that comes with Python, the 465,000 characters of `pydoc_data.topics`. The
first nine tenths train, the rest validates; losses are in nats a character.
"""

import argparse
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from parts.command_line import a_file, a_picture, above_0, add_training, checkpoint_of, count, parsed
from parts.report import time_taken

import xpnet as xn

EVERY = 100  # steps from one validation to the next
WINDOWS = 200  # of the validation text, at most


def arguments() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="a text in UTF-8; default: Python's topics")
    parser.add_argument("--layers", type=count, default=4, help="blocks of attention and a GELU network; default: 4")
    parser.add_argument("--heads", type=count, default=4, help="of each attention; default: 4")
    parser.add_argument("--features", type=count, default=128, help="of each position; default: 128")
    parser.add_argument("--context", type=count, default=64, help="characters that it sees at once; default: 64")
    parser.add_argument("--dropout", type=float, default=0.0, help="the share dropped in each block; default: 0")
    parser.add_argument("--batch-size", type=count, default=12, help="pieces of text a step; default: 12")
    parser.add_argument("--steps", type=count, default=2000, help="with a validation every 100; default: 2,000")
    parser.add_argument("--learning-rate", type=above_0, default=2e-3, help="of AdamW at its height; default: 0.002")
    add_training(parser)
    parser.add_argument("--load", metavar="FILE", type=Path, help="do not train: take a network that --save wrote")
    parser.add_argument("--sample", type=count, default=0, metavar="N", help="write so many characters at the end")
    parser.add_argument("--prompt", metavar="TEXT", help="what they go on from; default: a new line")
    parser.add_argument("--temperature", type=above_0, default=0.8, help="below 1 it dares less; default: 0.8")
    parser.add_argument("--plot", metavar="FILE.png", type=a_picture, help="draw the losses")
    options = parsed(parser)
    if options.load and not options.sample:
        parser.error("--load needs --sample N, how many characters to write")
    if options.save:
        a_file(str(characters_file(options.save)))
    return options


# --- text -------------------------------------------------------------------------------------------------------------


def text_of(path: Path | None) -> str:
    """The text of a file, or Python's topics."""
    if path is None:
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is no text in UTF-8: byte {error.start} is {error.object[error.start]:#04x}; convert it, as with "
            "iconv -t UTF-8"
        ) from None


class Characters:
    """The characters of a text and the ids they stand for: their places in the sorted alphabet."""

    def __init__(self, alphabet: str):
        self.alphabet = alphabet
        self.ids = {character: i for i, character in enumerate(alphabet)}

    def encode(self, text: str) -> np.ndarray:
        """The ids of a text."""
        if strangers := sorted(set(text) - self.ids.keys()):
            raise ValueError(
                f"{''.join(strangers)!r:.60} is not among the {len(self.ids)} characters that it was trained on"
            )
        return np.array([self.ids[character] for character in text], np.int64)

    def decode(self, ids: np.ndarray) -> str:
        """The text of ids."""
        return "".join(self.alphabet[i] for i in ids)


class Windows:
    """Batches of pieces of a text at random places, each beside the characters that follow: an epoch is `steps`."""

    def __init__(self, ids: np.ndarray, context: int, batch_size: int, steps: int, seed: int):
        self.ids, self.context, self.batch_size, self.steps, self.seed = ids, context, batch_size, steps, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """The places are another epoch's: a run that resumes has those it would have had."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.steps

    def __iter__(self):
        rng = np.random.default_rng([self.seed, self.epoch])
        for _ in range(self.steps):
            starts = rng.integers(len(self.ids) - self.context, size=self.batch_size)
            yield pieces(self.ids, starts, self.context)


def pieces(ids: np.ndarray, starts: np.ndarray, context: int) -> tuple[np.ndarray, np.ndarray]:
    """Those that start there, and for each of their characters the next."""
    places = starts[:, None] + np.arange(context)
    return ids[places], ids[places + 1]


# --- network ----------------------------------------------------------------------------------------------------------


def network(vocabulary: int, layers: int, heads: int, features: int, context: int, dropout: float) -> xn.Sequential:
    """A GPT: blocks of causal attention and a GELU network, normalised before each, about a residual stream."""

    def block(*layers: xn.Layer) -> xn.Residual:
        return xn.Residual(xn.LayerNorm(features), *layers, *([xn.Dropout(dropout)] if dropout else []))

    blocks = [
        each
        for _ in range(layers)
        for each in (
            block(xn.MultiHeadAttention(features, heads, causal=True)),
            block(xn.Dense(features, 4 * features), xn.GELU(), xn.Dense(4 * features, features)),
        )
    ]
    return xn.Sequential(
        xn.Embedding(vocabulary, features),
        xn.PositionalEmbedding(context, features),
        *blocks,
        xn.LayerNorm(features),
        xn.Dense(features, vocabulary),
    )


def written(net: xn.Sequential, ids: np.ndarray, n: int, temperature: float, seed: int) -> np.ndarray:
    """The ids and n that follow them, each drawn by its probability p^(1 / temperature)."""
    context = next(layer for layer in net.layers if isinstance(layer, xn.PositionalEmbedding)).length
    rng = np.random.default_rng(seed)
    for _ in range(n):
        logits = net.backend.to_numpy(net.predict(ids[None, -context:]))[0, -1].astype(np.float64) / temperature
        share = np.exp(logits - logits.max())
        ids = np.append(ids, rng.choice(len(share), p=share / share.sum()))
    return ids


def start_of(characters: Characters, options: argparse.Namespace) -> np.ndarray:
    """The ids from which to write."""
    if options.prompt:
        return characters.encode(options.prompt)
    return characters.encode("\n" if "\n" in characters.ids else characters.alphabet[0])


def characters_file(path: Path) -> Path:
    """The file beside a network's that holds its alphabet."""
    return path.with_name(path.name + ".characters.json")


def loaded(path: Path, options: argparse.Namespace) -> tuple[xn.Sequential, Characters]:
    """A network that --save wrote, and its characters."""
    beside = characters_file(path)
    if not beside.is_file():
        raise ValueError(f"{path}: there is no {beside.name} beside it, which --save writes as well")
    net = xn.load(path, backend=options.backend, device=options.device)
    alphabet = json.loads(beside.read_text(encoding="utf-8"))
    if not isinstance(alphabet, str) or len(alphabet) != getattr(net.layers[0], "vocabulary", None):
        raise ValueError(f"{beside} is not the alphabet of {path}")
    return net, Characters(alphabet)


def picture(path: Path, history: xn.History, every: int, title: str) -> None:
    """Draw the losses."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    from xpnet import plots

    figure, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
    plots.learning_curves(history, "loss", ax)
    scale = ", log scale" if ax.get_yscale() == "log" else ""
    ax.set(title=title, xlabel=f"epoch of {every} steps", ylabel=f"nats a character{scale}")
    figure.savefig(path, dpi=110)


def trained(options: argparse.Namespace) -> tuple[xn.Sequential, Characters]:
    """Train, and report."""
    text = text_of(options.file)
    least = 10 * (options.context + 1)
    if len(text) < least:
        raise ValueError(
            f"{options.file} has {len(text)} characters, and a context of {options.context} needs at least {least}, "
            "a tenth of which validates: give a longer text, or a smaller --context"
        )
    characters = Characters("".join(sorted(set(text))))
    start_of(characters, options)  # refused before the work, not after it
    ids = characters.encode(text)
    cut = len(ids) * 9 // 10
    epochs = max(1, options.steps // EVERY)
    every = options.steps // epochs
    net = network(
        len(characters.ids), options.layers, options.heads, options.features, options.context, options.dropout
    ).initialize(xn.get_backend(options.backend, options.device), options.dtype, options.seed)
    warm = options.steps // 20 or 1
    schedule = xn.WarmUp(xn.CosineDecay(options.learning_rate, max(1, options.steps - warm)), warm)
    held_out = ids[cut:]
    starts = np.linspace(0, len(held_out) - options.context - 1, min(WINDOWS, len(held_out) // options.context)).astype(
        int
    )

    print(net.summary((options.context,)))
    print(f"\n{len(text):,} characters, {len(characters.ids)} of them different: {cut:,} train")
    print(f"{options.dtype} on {net.backend.describe()}\n", flush=True)
    began = time.perf_counter()
    history = net.fit(
        Windows(ids[:cut], options.context, options.batch_size, every, options.seed),
        loss=xn.SoftmaxCrossEntropy(),
        optimizer=xn.AdamW(schedule, weight_decay=0.01, beta2=0.99, clip_norm=1.0),
        epochs=epochs,
        validation_data=pieces(held_out, starts, options.context),
        metrics={},
        progress=True,
        checkpoint=checkpoint_of(options),
        resume=options.resume,
    )
    seconds = time.perf_counter() - began
    print(time_taken(history, seconds, net.backend))
    if history:
        loss = history["val_loss"][-1]
        print(f"validation loss {loss:.3f} nats a character, {loss / math.log(2):.3f} bits")
        if options.plot:
            picture(options.plot, history, every, f"{history.steps:,} steps on {net.backend.name}")
            print(f"picture in {options.plot}")
    if options.save:
        net.save(options.save)
        characters_file(options.save).write_text(json.dumps(characters.alphabet), encoding="utf-8")
        print(f"network in {options.save}, its alphabet in {characters_file(options.save).name}")
    return net, characters


def main() -> None:
    """Train or load, and write."""
    options = arguments()
    net, characters = loaded(options.load, options) if options.load else trained(options)
    if options.sample:
        start = start_of(characters, options)
        text = characters.decode(written(net, start, options.sample, options.temperature, options.seed))
        print(text if options.load else f"\n{text}")


if __name__ == "__main__":
    try:
        main()
    except (xn.BackendUnavailableError, xn.DivergenceError, xn.FormatError, ValueError, OSError, ImportError) as error:
        sys.exit(f"train_text: {error}")
