"""Initial weights, drawn on the host by a NumPy Generator, so that every backend starts from the same numbers.

Each takes a Generator and the shape (in_features, out_features) and returns a float64 NumPy array.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.random import Generator

Initializer = Callable[["Generator", tuple[int, ...]], np.ndarray]


def fan_in_uniform(rng: "Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Uniform within ±1/sqrt(in): the tutorial's, and torch.nn.Linear's."""
    limit = shape[0] ** -0.5
    return rng.uniform(-limit, limit, shape)


def glorot_uniform(rng: "Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Uniform within ±sqrt(6 / (in + out)), for tanh and sigmoid. Glorot & Bengio 2010, eq. 16."""
    limit = (6 / (shape[0] + shape[1])) ** 0.5
    return rng.uniform(-limit, limit, shape)


def he_normal(rng: "Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Normal with variance 2 / in, for ReLU. He et al. 2015, eq. 10."""
    return rng.normal(0.0, (2 / shape[0]) ** 0.5, shape)


INITIALIZERS: dict[str, Initializer] = {f.__name__: f for f in (fan_in_uniform, glorot_uniform, he_normal)}
