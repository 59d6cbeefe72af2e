"""Initial weights, drawn on the host by a NumPy Generator: the same on every backend.

Each initializer takes a Generator and the shape (in_features, out_features) and returns a float64 NumPy array.
"""

from collections.abc import Callable

import numpy as np

from .common.checks import brief, integer

Initializer = Callable[["np.random.Generator", tuple[int, ...]], np.ndarray]


def _check(who: str, rng: object, shape: object) -> None:
    """Raise TypeError unless these are a Generator, not a seed, and a shape of two axes or more."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"{who}: rng must be a Generator, such as np.random.default_rng(0), got {brief(rng)}")
    if not isinstance(shape, (tuple, list)) or len(shape) < 2:
        raise TypeError(f"{who}: shape must be (in_features, out_features), got {brief(shape)}")
    for size in shape:
        integer(f"{who}: each size of shape", size)


def fan_in_uniform(rng: "np.random.Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Uniform within ±1/sqrt(in), as torch.nn.Linear draws them."""
    _check("fan_in_uniform", rng, shape)
    limit = shape[0] ** -0.5
    return rng.uniform(-limit, limit, shape)


def glorot_uniform(rng: "np.random.Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Uniform within ±sqrt(6 / (in + out)), for tanh and sigmoid. Glorot & Bengio 2010, eq. 16."""
    _check("glorot_uniform", rng, shape)
    limit = (6 / (shape[0] + shape[1])) ** 0.5
    return rng.uniform(-limit, limit, shape)


def he_normal(rng: "np.random.Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Normal with variance 2 / in, for ReLU. He et al. 2015, eq. 10."""
    _check("he_normal", rng, shape)
    return rng.normal(0.0, (2 / shape[0]) ** 0.5, shape)


INITIALIZERS: dict[str, Initializer] = {f.__name__: f for f in (fan_in_uniform, glorot_uniform, he_normal)}
