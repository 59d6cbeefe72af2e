"""The network for an estimator's parameters: its layers, where it starts, its first layer for sparse X."""

import itertools
from collections.abc import Callable, Iterable
from numbers import Integral
from typing import Any

import numpy as np

from ..backends import Array, Backend
from ..layers.activations import ELU, LeakyReLU, ReLU, Sigmoid, Tanh
from ..layers.base import Layer, Shape
from ..layers.dense import Dense
from ..layers.dropout import Dropout
from ..layers.normalization import BatchNorm
from ..network import Sequential

ACTIVATIONS: dict[str, Callable[[], Layer] | None] = {
    "identity": None,
    "logistic": Sigmoid,
    "tanh": Tanh,
    "relu": ReLU,
    "leaky_relu": LeakyReLU,
    "elu": ELU,
}
STATISTICS_MOMENTUM = 0.9  # of the running ones: small data gives few steps to follow


def hidden_sizes(given: Any) -> list[int]:
    """`hidden_layer_sizes` as a list."""
    sizes = list(given) if hasattr(given, "__iter__") else [given]
    if not all(isinstance(size, Integral) for size in sizes):
        raise TypeError(f"hidden_layer_sizes must be integers, got {sizes}.")
    if np.any(np.array(sizes) <= 0):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return [int(size) for size in sizes]


def plain_network(
    units: list[int], activation: Any, batch_norm: bool, dropout: float, last: Layer | None
) -> Sequential:
    """Dense layers from size to size; between them, batch norm, activation and dropout."""
    make = ACTIVATIONS[activation] if isinstance(activation, str) else activation
    layers: list[Layer] = []
    for fan_in, fan_out in itertools.pairwise(units[:-1]):
        layers.append(Dense(fan_in, fan_out))
        if batch_norm:
            layers.append(BatchNorm(fan_out, momentum=STATISTICS_MOMENTUM))
        if make is not None:
            layers.append(make())
        if dropout:
            layers.append(Dropout(dropout))
    layers.append(Dense(units[-2], units[-1]))
    return Sequential(*layers, *([] if last is None else [last]))


def custom_network(layers: Callable[[int, int], Any], features: int, outputs: int, last: Layer | None) -> Sequential:
    """What the user's `layers` builds, which must take n_features and give n_outputs."""
    built = layers(features, outputs)
    given = built.layers if type(built) is Sequential else [built] if isinstance(built, Layer) else built
    if not isinstance(given, Iterable):
        raise TypeError(f"layers must build a Sequential or a list of layers, got {built!r}")
    net = Sequential(*given).clone()  # what is fitted is not the user's own
    dense = [layer for _, layer in net.leaves() if isinstance(layer, Dense)]
    if not dense:
        raise ValueError(f"layers built {net!r}, which has no Dense layer; the last must give the {outputs} outputs")
    shape = net.output_shape((features,))
    if shape != (outputs,):
        raise ValueError(f"layers built a network that gives {shape} outputs, expected ({outputs},): {net!r}")
    return net if last is None else Sequential(*net.layers, last)


def start(net: Sequential, random_state: Any, backend: Backend, dtype: str, logistic: bool, own: bool) -> None:
    """Place the network with its first parameters, those that scikit-learn draws: uniform within
    ±sqrt(6 / (in + out)), or 2 for 6 with `logistic` units, biases too. Glorot & Bengio 2010.

    With `own` layers each layer's own law is taken, from a seed drawn from `random_state`.
    """
    if own:
        net.initialize(backend, dtype, seed=seed_from(random_state), fresh=True)
        return
    params: dict[str, np.ndarray] = {}
    for prefix, layer in net.leaves():
        if isinstance(layer, Dense):
            fan_in, fan_out = layer.in_features, layer.out_features
            bound = np.sqrt((2.0 if logistic else 6.0) / (fan_in + fan_out))
            params[f"{prefix}.weight"] = random_state.uniform(-bound, bound, (fan_in, fan_out))
            params[f"{prefix}.bias"] = random_state.uniform(-bound, bound, fan_out)
        else:
            params |= {f"{prefix}.{key}": a for key, a in layer.initial_params(np.random.default_rng(0)).items()}
    needs_seed = any(isinstance(layer, Dropout) for _, layer in net.leaves())
    rng = np.random.default_rng(seed_from(random_state) if needs_seed else 0)
    net.place(backend, dtype, params, net.initial_state(rng))


def seed_from(random_state: Any) -> int:
    """A seed for NumPy's Generator."""
    return int(random_state.randint(np.iinfo(np.int32).max))


class Order:
    """scikit-learn's order of the rows, epoch after epoch, from its kind of random state: what `net.rng` is asked for.

    Each order shuffles the one before. A copy is the same object: a RandomState that a user hands in moves on.
    """

    def __init__(self, random_state: Any):
        self.random_state = random_state
        self.order: np.ndarray | None = None

    def permutation(self, rows: int) -> np.ndarray:
        """The rows' numbers in their next order."""
        shuffled = np.arange(rows)
        self.random_state.shuffle(shuffled)
        self.order = shuffled if self.order is None else self.order[shuffled]
        return self.order

    @property
    def bit_generator(self) -> "Order":
        """Where a run finds the state, for checkpoints; an estimator's run has none."""
        return self

    state = None

    def __deepcopy__(self, memo: Any) -> "Order":
        return self


# --- sparse X ---------------------------------------------------------------------------------------------------------

HALF = 2**20  # a row's number is given as two, which float32 holds exactly


class SparseDense(Dense):
    """A Dense on the rows of a sparse matrix, whose numbers are its input (N, 2): number = first · 2²⁰ + second.

    forward:   y  = A W + b             A the batch's rows, sparse
    backward:  dW = Aᵀ dy, db = Σ_n dy
    """

    def __init__(self, matrix: Any, dense: Dense):
        super().__init__(dense.in_features, dense.out_features, dense.trainable, dense.initializer)
        self.matrix, self.dense = matrix, dense
        self.input_shape = (2,)

    def _children(self) -> dict[str, Layer]:
        return {}  # its arrays are its own

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        numbers = (x[:, 0] * float(HALF)).astype(np.int64) + x[:, 1].astype(np.int64)
        rows = self.matrix[numbers]
        y = rows @ self.params["weight"]
        y += self.params["bias"]
        return y, (self, y.shape, rows)

    def backward(self, dy: Array, cache: Any) -> tuple[Array, dict[str, Array]]:
        raise RuntimeError("SparseDense: the numbers of rows have no gradient")

    def backward_params(self, dy: Array, cache: Any) -> dict[str, Array]:
        (rows,) = self.saved(cache, dy)
        return {"weight": rows.T @ dy, "bias": dy.sum(axis=0)}

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape[:-1], self.out_features)


def for_sparse(net: Sequential, matrix: Any) -> tuple[Sequential, np.ndarray]:
    """A network that reads the rows of a sparse matrix, and their numbers; all but its first layer are `net`'s own."""
    first = net.layers[0]
    if type(first) is not Dense:
        raise TypeError(f"sparse X needs a Dense as the first layer, got {first!r}; pass X.toarray()")
    sparse = SparseDense(matrix.tocsr(), first)
    sparse.assign_params(first.params)
    twin = Sequential(sparse, *net.layers[1:])
    twin._belong(net.backend, net.dtype)
    numbers = np.arange(matrix.shape[0])
    return twin, np.stack([numbers // HALF, numbers % HALF], axis=1).astype(net.dtype)
