"""Training runs that are killed and resumed, for `torture.py`: they must end with the same bits as one that was not."""

import contextlib
import importlib.util
import json
import random
import shutil
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import xpnet as xn
from parts.promises import calls_of, must
from xpnet.kernels import training_step

BACKENDS = [name for name in ("numpy", "torch") if name == "numpy" or importlib.util.find_spec("torch")]
OPTIMIZERS = {
    "SGD": lambda: xn.SGD(0.05),
    "Nesterov": lambda: xn.Nesterov(0.05),
    "Adagrad": lambda: xn.Adagrad(0.05),
    "RMSprop": lambda: xn.RMSprop(xn.StepDecay(0.002, 0.5, 100)),
    "Adam": lambda: xn.Adam(xn.WarmUp(xn.CosineDecay(0.01, 400), 40)),
    "AdamW": lambda: xn.AdamW(xn.ExponentialDecay(0.01, 0.5, 100), clip_norm=1.0),
}
ROWS, EPOCHS, BATCH, EVERY = 325, 25, 20, 7  # 15 steps to an epoch, the last of 15 rows


def network(backend: str) -> xn.Sequential:
    """Return a network with every source of randomness and every kind of statistic."""
    return xn.Sequential(
        xn.Dense(10, 24), xn.BatchNorm(24), xn.ReLU(), xn.Dropout(0.2), xn.Dense(24, 16), xn.Tanh(), xn.Dense(16, 4)
    ).initialize(backend, seed=3)


def train(backend: str, optimizer: str, checkpoints: Path | None, result: Path) -> None:
    """Run from the beginning or the newest checkpoint to the end, and write the outcome to the file `result`."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(ROWS, 10)), rng.integers(4, size=ROWS)
    net = network(backend)
    best = xn.EarlyStopping("val_loss", patience=EPOCHS)
    with threadpool_limits(limits=1):  # small products are faster on one core than divided over several
        history = net.fit(
            x[30:],
            y[30:],
            loss=xn.SoftmaxCrossEntropy(),
            optimizer=OPTIMIZERS[optimizer](),
            epochs=EPOCHS,
            batch_size=BATCH,
            validation_data=(x[:30], y[:30]),
            callbacks=[best],
            checkpoint=None if checkpoints is None else xn.Checkpoint(checkpoints, every=EVERY),
            resume=checkpoints is not None,
        )
    net.save(result)
    result.with_suffix(".json").write_text(json.dumps([dict(history), best.best, best.best_epoch]))


def resume(folder: Path, count: int, seed: int) -> str:
    """Kill `count` runs at random moments, some of them repeatedly, and compare their outcomes."""
    rng = random.Random(seed)
    for backend in BACKENDS:  # import what training needs, so that kills in forked processes hit the training itself
        training_step(network(backend), xn.SoftmaxCrossEntropy(), xn.SGD())
    expected: dict[tuple[str, str], tuple[int, bytes, bytes]] = {}
    kills, within, checkpoints = 0, 0, folder / "checkpoints"
    cases = [(backend, optimizer) for optimizer in OPTIMIZERS for backend in BACKENDS]
    for trial in range(count):
        case = cases[trial % len(cases)]
        if case not in expected:
            calls = calls_of(lambda case=case: train(*case, None, folder / "whole"))
            expected[case] = calls, *read(folder / "whole")
        calls, weights, history = expected[case]
        shutil.rmtree(checkpoints, ignore_errors=True)
        limit = rng.uniform(0.1, 0.9) * calls  # the first kill hits the run, later ones may come too late
        while not calls_of(lambda case=case: train(*case, checkpoints, folder / "cut"), int(limit)):
            kills += 1
            limit = rng.uniform(0.1, 1.5) * calls
            within += any(int(path.name[5:17]) % 15 for path in checkpoints.glob("step-*"))
            must(kills < 20 * count, f"runs of {limit:.0f} calls made no progress")
        must(read(folder / "cut") == (weights, history), f"{', '.join(case)}: the resumed run ended with other bits")
    must(kills >= count // 2, f"only {kills} kills met a run in {count}")
    others = moved(folder / "cut")
    return (
        f"{count} of {count} runs ended with the same bits in weights and history, after {kills} kills ({within} with "
        f"a checkpoint within an epoch); {len(OPTIMIZERS)} optimizers, {' and '.join(BACKENDS)}; the weights load on "
        f"{', '.join(others)}"
    )


def read(result: Path) -> tuple[bytes, bytes]:
    """Return the outcome of a run: all weights and statistics, and the history."""
    return result.read_bytes(), result.with_suffix(".json").read_bytes()


def moved(result: Path) -> list[str]:
    """Return the installed backends, on each of which the weights must be the same."""
    expected = xn.load(result, backend="numpy").params
    done = []
    for name in ("numpy", "torch", "jax", "array_api_strict", "cupy"):
        with contextlib.suppress(xn.BackendUnavailableError):
            net = xn.load(result, backend=name)
            same = all(np.array_equal(net.backend.to_numpy(a), expected[k]) for k, a in net.params.items())
            must(same, f"{name}: other weights than in the file")
            done.append(name)
    return done
