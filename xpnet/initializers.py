"""Initial weights, drawn on the host by a NumPy Generator: the same on every backend.

Each initializer takes a Generator and the weight's shape and returns a float64 NumPy array. A shape of two axes is
(in_features, out_features), as of `Dense`; one of more axes is a convolution's, (out_channels, in_channels / groups,
*kernel_size). In the formulas, `in` is the number of weights of an output: in_features, or in_channels / groups times
the kernel's size. `out` is out_features, or out_channels times the kernel's size.
"""

import math
from collections.abc import Callable

import numpy as np

from .common.checks import brief, integer

__all__ = ["fan_in_uniform", "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "normal", "orthogonal"]

Initializer = Callable[["np.random.Generator", tuple[int, ...]], np.ndarray]


def _fans(who: str, rng: object, shape: object) -> tuple[int, int]:
    """Return `in` and `out` of a shape. Raises TypeError unless it has two axes or more and `rng` is a Generator."""
    if not isinstance(rng, np.random.Generator):
        raise TypeError(f"{who}: rng must be a Generator, such as np.random.default_rng(0), got {brief(rng)}")
    if not isinstance(shape, (tuple, list)) or len(shape) < 2:
        raise TypeError(f"{who}: shape must be (in_features, out_features), got {brief(shape)}")
    first, second, *kernel = (integer(f"{who}: each size of shape", size) for size in shape)
    if not kernel:
        return first, second
    return second * math.prod(kernel), first * math.prod(kernel)


def fan_in_uniform(rng: "np.random.Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Uniform within ±1/sqrt(in), as torch.nn.Linear and torch.nn.Conv2d draw them.

    `rng` is a NumPy Generator, `shape` (in, out) or (out, in / groups, *kernel); TypeError or ValueError for others.

    >>> import numpy as np
    >>> w = xn.initializers.fan_in_uniform(np.random.default_rng(0), (4, 2))
    >>> w.shape, bool((abs(w) <= 0.5).all())
    ((4, 2), True)
    """
    fan_in, _ = _fans("fan_in_uniform", rng, shape)
    limit = fan_in**-0.5
    return rng.uniform(-limit, limit, shape)


def glorot_uniform(rng: "np.random.Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Uniform within ±sqrt(6 / (in + out)), for tanh and sigmoid. Glorot & Bengio 2010, eq. 16.

    `rng` is a NumPy Generator, `shape` (in, out) or (out, in / groups, *kernel); TypeError or ValueError for others.

    >>> import numpy as np
    >>> w = xn.initializers.glorot_uniform(np.random.default_rng(0), (4, 2))
    >>> w.shape, bool((abs(w) <= 1).all())
    ((4, 2), True)
    """
    limit = (6 / sum(_fans("glorot_uniform", rng, shape))) ** 0.5
    return rng.uniform(-limit, limit, shape)


def glorot_normal(rng: "np.random.Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Normal with variance 2 / (in + out), for tanh and sigmoid. Glorot & Bengio 2010, eq. 12.

    `rng` is a NumPy Generator, `shape` (in, out) or (out, in / groups, *kernel); TypeError or ValueError for others.

    >>> import numpy as np
    >>> w = xn.initializers.glorot_normal(np.random.default_rng(0), (4, 2))
    >>> w.shape, bool((abs(w) < 2).all())
    ((4, 2), True)
    """
    deviation = (2 / sum(_fans("glorot_normal", rng, shape))) ** 0.5
    return rng.normal(0.0, deviation, shape)


def he_uniform(rng: "np.random.Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Uniform within ±sqrt(6 / in), for ReLU: the variance is that of `he_normal`.

    `rng` is a NumPy Generator, `shape` (in, out) or (out, in / groups, *kernel); TypeError or ValueError for others.

    >>> import numpy as np
    >>> w = xn.initializers.he_uniform(np.random.default_rng(0), (4, 2))
    >>> w.shape, bool((abs(w) < 1.23).all())
    ((4, 2), True)
    """
    fan_in, _ = _fans("he_uniform", rng, shape)
    limit = (6 / fan_in) ** 0.5
    return rng.uniform(-limit, limit, shape)


def he_normal(rng: "np.random.Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Normal with variance 2 / in, for ReLU. He et al. 2015, eq. 10.

    `rng` is a NumPy Generator, `shape` (in, out) or (out, in / groups, *kernel); TypeError or ValueError for others.

    >>> import numpy as np
    >>> w = xn.initializers.he_normal(np.random.default_rng(0), (4, 2))
    >>> w.shape, bool((abs(w) < 4).all())
    ((4, 2), True)
    """
    fan_in, _ = _fans("he_normal", rng, shape)
    return rng.normal(0.0, (2 / fan_in) ** 0.5, shape)


def normal(rng: "np.random.Generator", shape: tuple[int, ...]) -> np.ndarray:
    """Normal with standard deviation 0.02, for transformers. Radford et al. 2018, section 4.1.

    `rng` is a NumPy Generator, `shape` (in, out) or (out, in / groups, *kernel); TypeError or ValueError for others.

    >>> import numpy as np
    >>> w = xn.initializers.normal(np.random.default_rng(0), (4, 2))
    >>> w.shape, bool((abs(w) < 0.1).all())
    ((4, 2), True)
    """
    _fans("normal", rng, shape)
    return rng.normal(0.0, 0.02, shape)


def orthogonal(rng: "np.random.Generator", shape: tuple[int, ...]) -> np.ndarray:
    """A matrix with orthonormal rows, or columns if these are fewer; a convolution's weight as (out, in).

    It is the Q of a normal matrix's QR decomposition, with a positive diagonal of R so that each is as likely.
    Saxe, McClelland & Ganguli 2014, section 3.

    `rng` is a NumPy Generator, `shape` (in, out) or (out, in / groups, *kernel); TypeError or ValueError for others.

    >>> import numpy as np
    >>> w = xn.initializers.orthogonal(np.random.default_rng(0), (4, 2))
    >>> w.shape, bool((abs(w) <= 1).all())
    ((4, 2), True)
    """
    _fans("orthogonal", rng, shape)
    rows, columns = shape[0], math.prod(shape[1:])
    q, r = np.linalg.qr(rng.normal(size=(max(rows, columns), min(rows, columns))))
    q *= np.where(np.diag(r) < 0.0, -1.0, 1.0)
    return np.ascontiguousarray(q if rows >= columns else q.T).reshape(shape)


INITIALIZERS: dict[str, Initializer] = {
    f.__name__: f for f in (fan_in_uniform, glorot_normal, glorot_uniform, he_normal, he_uniform, normal, orthogonal)
}


def __dir__() -> list[str]:
    return __all__
