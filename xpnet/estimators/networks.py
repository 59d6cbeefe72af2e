"""The network for an estimator's parameters: layers, initial weights, and a first layer for sparse X."""

import itertools
from collections.abc import Callable, Iterable
from numbers import Integral
from types import SimpleNamespace
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
STATISTICS_MOMENTUM = 0.9  # of running statistics: below BatchNorm's default, since small data has few steps


def hidden_sizes(parameter: Any) -> list[int]:
    """Return the `hidden_layer_sizes` parameter as a list."""
    sizes = list(parameter) if hasattr(parameter, "__iter__") else [parameter]
    if not all(isinstance(size, Integral) for size in sizes):
        raise TypeError(f"hidden_layer_sizes must be integers, got {sizes}.")
    if np.any(np.array(sizes) <= 0):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return [int(size) for size in sizes]


def plain_network(
    units: list[int], activation: Any, batch_norm: bool, dropout: float, last: Layer | None
) -> Sequential:
    """Return a network of Dense layers of these sizes, with batch norm, activation and dropout between them."""
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
    """Return the network of the `layers` parameter, which must take n_features and return n_outputs."""
    built = layers(features, outputs)
    sequence = built.layers if type(built) is Sequential else [built] if isinstance(built, Layer) else built
    if not isinstance(sequence, Iterable):
        raise TypeError(f"layers must build a Sequential or a list of layers, got {built!r}")
    net = Sequential(*sequence).clone()  # training does not change the user's layers
    dense = [layer for _, layer in net.leaves() if isinstance(layer, Dense)]
    if not dense:
        raise ValueError(f"layers built {net!r}, which has no Dense layer; the last must give the {outputs} outputs")
    shape = net.output_shape((features,))
    if shape != (outputs,):
        raise ValueError(f"layers built a network that gives {shape} outputs, expected ({outputs},): {net!r}")
    return net if last is None else Sequential(*net.layers, last)


def start(net: Sequential, random_state: Any, backend: Backend, dtype: str, logistic: bool, own: bool) -> None:
    """Initialize the network as scikit-learn does: weights and biases uniform within ±sqrt(6 / (in + out)), or
    ±sqrt(2 / (in + out)) for `logistic` units. Glorot & Bengio 2010.

    `own` layers are initialized by their own rules, with a seed drawn from `random_state`.
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
    """Draw a seed for NumPy's Generator."""
    return int(random_state.randint(np.iinfo(np.int32).max))


class RowOrder:
    """Shuffles rows as scikit-learn does, from a RandomState, in place of `net.rng`.

    Each order shuffles the one before. A copy is the same object, so that the user's RandomState advances.
    """

    bit_generator = SimpleNamespace(state=None)  # the state that checkpoints save: estimators have none

    def __init__(self, random_state: Any):
        self.random_state = random_state
        self.order: np.ndarray | None = None

    def permutation(self, rows: int) -> np.ndarray:
        """Return the row numbers in the next order."""
        shuffled = np.arange(rows)
        self.random_state.shuffle(shuffled)
        self.order = shuffled if self.order is None else self.order[shuffled]
        return self.order

    def __deepcopy__(self, memo: Any) -> "RowOrder":
        return self


# --- sparse X ---------------------------------------------------------------------------------------------------------


class SparseDense(Dense):
    """A Dense on rows of a sparse matrix. Its input (N,) is the row numbers.

    forward:   y  = A W + b             A the batch's rows, sparse
    backward:  dW = Aᵀ dy, db = Σ_n dy
    """

    takes = "integers"

    def __init__(self, matrix: Any, out_features: int, trainable: bool = True):
        super().__init__(matrix.shape[1], out_features, trainable)
        self.matrix = matrix
        self.input_shape = ()

    def forward(self, x: Array, training: bool = False) -> tuple[Array, Any]:
        rows = self.matrix[x]
        y = rows @ self.params["weight"]
        y += self.params["bias"]
        return y, (self, y.shape, rows)

    def backward(self, dy: Array, cache: Any) -> tuple[None, dict[str, Array]]:
        return None, self.backward_params(dy, cache)

    def backward_params(self, dy: Array, cache: Any) -> dict[str, Array]:
        (rows,) = self.saved(cache, dy)
        return {"weight": rows.T @ dy, "bias": dy.sum(axis=0)}

    def output_shape(self, input_shape: Shape) -> Shape:
        return (*input_shape, self.out_features)


def for_sparse(net: Sequential, matrix: Any) -> tuple[Sequential, np.ndarray]:
    """Return a network that takes a sparse matrix's row numbers, and these; its layers but the first are `net`'s."""
    first = net.layers[0]
    if type(first) is not Dense:
        raise TypeError(f"sparse X needs a Dense as the first layer, got {first!r}; pass X.toarray()")
    sparse = SparseDense(matrix.tocsr(), first.out_features, first.trainable)
    sparse.assign_params(first.params)
    twin = Sequential(sparse, *net.layers[1:])
    twin._set_placement(net.backend, net.dtype)
    return twin, np.arange(matrix.shape[0])
