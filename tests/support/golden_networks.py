"""The networks whose files are stored in `tests/files/golden/`: a saved file must load with every later version.

`PYTHONPATH=tests python -m support.golden_networks NAME` writes a new one for a new version of the format; those of
earlier versions are kept unchanged.
"""

import sys

import numpy as np

import xpnet as xn
from support import ROOT

FOLDER = ROOT / "tests" / "files" / "golden"


def filled(net, dtype):
    """Return the network with numbers from a formula that both dtypes hold exactly."""
    net.initialize("numpy", dtype)
    net.set_params({name: numbers(i, a.shape) for i, (name, a) in enumerate(net.params.items())})
    state = {name: numbers(i, a.shape) ** 2 + 0.5 for i, (name, a) in enumerate(net.state.items())}
    net.set_state(state | {name: np.array([20261124, 7], "int32") for name in state if name.endswith("key")})
    return net


def numbers(i, shape):
    return (np.arange(np.prod(shape)).reshape(shape) % 11 - 5) / 8 + i / 4


GOLDEN = {
    "1-every-layer": lambda: filled(
        xn.Sequential(
            xn.Dense(4, 3, initializer="he_normal"),
            xn.Sequential(xn.BatchNorm(3, momentum=0.5, eps=0.25), xn.Sigmoid(), xn.Dropout(0.25)),
            xn.Dense(3, 5, trainable=False),
            xn.Tanh(),
            xn.ReLU(),
            xn.LeakyReLU(0.125),
            xn.ELU(0.75),
            xn.Softmax(),
        ),
        "float32",
    ),
    "1-float64": lambda: filled(xn.Sequential(xn.BatchNorm(3, trainable=False), xn.Dense(3, 2)), "float64"),
}

if __name__ == "__main__":
    for name in sys.argv[1:]:
        GOLDEN[name]().save(FOLDER / f"{name}.safetensors")
