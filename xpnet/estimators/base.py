"""The base class of the two estimators: parameters, checks, fitting, and the network's outputs for X."""

import contextlib
import copy
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from numbers import Real
from typing import Any, ClassVar, NoReturn, Self

import numpy as np
from sklearn import get_config, neural_network
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin, _fit_context, is_regressor
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..backends import Array, Backend, backend_of, get_backend, is_array, namespace
from ..layers.activations import Sigmoid, Softmax
from ..layers.base import Layer
from ..layers.dense import Dense
from ..network import Sequential
from ..training.history import History
from ..training.inputs import rows_of
from ..training.run import DivergenceError
from . import convert, lbfgs, stochastic
from .networks import ACTIVATIONS, custom_network, for_sparse, hidden_sizes, plain_network, start

NOT_FINITE = (
    "Solver produced non-finite parameter weights. The input data may contain large values and need to be preprocessed."
)


def keep_parameters(model: Any, arguments: dict[str, Any]) -> None:
    """Store a constructor's arguments, its `locals()`, as attributes of the same names."""
    vars(model).update({name: value for name, value in arguments.items() if name not in ("self", "__class__")})


@contextlib.contextmanager
def unchanged_on_error(model: Any) -> Iterator[None]:
    """Restore the estimator and its network if the block raises."""
    before = {k: list(v) if isinstance(v, list) and k.endswith("_") else v for k, v in vars(model).items()}
    net: Any = before.get("net_")
    saved = net and (net.params, net.state, net.rng)
    try:
        yield
    except Warning:  # from a warning filter, after training
        raise
    except BaseException:
        vars(model).clear()
        vars(model).update(before)
        if net:
            net.assign_params(saved[0])
            net.assign_state(saved[1])
            net.rng = saved[2]
        raise


class Implements(HasMethods):
    """A parameter constraint: an object, but not a layer, with these methods; `description` ends error messages."""

    def __init__(self, methods: list[str], description: str):
        super().__init__(methods)
        self.description = description

    def is_satisfied_by(self, val: Any) -> bool:
        return super().is_satisfied_by(val) and not isinstance(val, Layer)

    def __str__(self) -> str:
        return self.description


OPTIMIZER = Implements(
    ["init", "lookahead", "update"],
    "an object implementing 'init', 'lookahead' and 'update', such as xn.Adam(learning_rate=0.001) (the names of "
    "optimizers are values of the 'solver' parameter)",
)
LAYERS = Implements(
    ["__call__"],
    "a function (n_features, n_outputs) -> layers, such as lambda n, k: [xn.Dense(n, 32), xn.ReLU(), xn.Dense(32, k)],",
)


SHARED = """

Parameters, attributes and methods are scikit-learn's (1.7 or later) and mean what its documentation says. With the
same `random_state`, weights start, batches are drawn and training runs as there, to within rounding.

Parameters that scikit-learn lacks, or that take more here:

activation : also "leaky_relu", "elu", or a function that makes a layer: `lambda: xn.LeakyReLU(0.01)`.
solver : also "nesterov", "adagrad", "rmsprop" (with `learning_rate_init`, `momentum`, `epsilon`) and "adamw", with
    `alpha` as its weight decay, which is then not added to the loss.
learning_rate : also a function of the step, such as `xn.CosineDecay(0.01, 1000)`, in place of
    `learning_rate_init`. "invscaling" and "adaptive" apply to "sgd", "nesterov", "adagrad" and "rmsprop".
batch_norm : whether a BatchNorm follows each hidden Dense, with momentum 0.9 for its running statistics. Batches
    are made smaller if the last one would have a single row, which has no variance.
dropout : the fraction of each hidden layer's outputs dropped in training; must be 0 for "lbfgs".
layers : a function (n_features, n_outputs) -> list of layers or Sequential, in place of `hidden_layer_sizes`,
    `activation`, `batch_norm` and `dropout`. Each layer is initialized by its own rule.
optimizer : an xpnet optimizer, in place of `solver`, its settings and the learning rate's.
callbacks, progress : as in `Sequential.fit`, but not for "lbfgs". For sparse X, `run.net` takes row numbers, not X.

Attributes that scikit-learn lacks: `net_`, the network; `history_`, of the last fit; `validation_loss_curve_`,
beside `validation_scores_` (rows unweighted, without the penalty); `stopped_early_`, of `partial_fit` with early
stopping.

Everything follows X: float32 stays float32. With `sklearn.set_config(array_api_dispatch=True)` parameters and
predictions are arrays of X's library on X's device, where y and the weights are moved as well. Sparse X is NumPy's
and never made dense: the first layer multiplies each batch as it is.

Other differences from scikit-learn:

- `partial_fit` takes `early_stopping=True`: each call holds out its own `validation_fraction` (give an int
  `random_state` if calls repeat rows) and counts as an epoch. Once stopped, the best weights are restored,
  `stopped_early_` is True, and further calls change nothing.
- The derivative of ReLU at 0 is 1, there 0.
- `loss_` and `loss_curve_` are exact where a probability rounds to 0 or 1; there it is clipped to the dtype's
  epsilon.
- `coefs_` and `intercepts_` are the network's own arrays: write into them, or assign a list with one for each
  layer, which are copied.
- Parameters that stop being finite raise ValueError at once, with its message, not after the last epoch.
"""


class BaseMLP(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator, ABC):
    """The base class of MLPClassifier and MLPRegressor; `SHARED` is appended to their docstrings.

    scikit-learn validates parameters and weights, with its own messages. Since it has no public API for this, its
    private `_parameter_constraints`, `_param_validation`, `_fit_context` and `_check_sample_weight` are used.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if cls.__doc__ and BaseMLP in cls.__bases__:
            cls.__doc__ = inspect.cleandoc(cls.__doc__) + SHARED

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **neural_network.MLPClassifier._parameter_constraints,
        "activation": [StrOptions(set(ACTIVATIONS)), callable],
        "solver": [StrOptions({"lbfgs", *stochastic.OPTIMIZERS})],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"}), callable],
        "batch_norm": ["boolean"],
        "dropout": [Interval(Real, 0, 1, closed="left")],
        "layers": [LAYERS, None],
        "optimizer": [OPTIMIZER, None],
        "callbacks": [list, tuple, None],
        "progress": ["boolean"],
    }

    # fitted attributes
    net_: Sequential
    history_: History
    n_iter_: int
    t_: int
    loss_: float
    loss_curve_: list[float]
    best_loss_: Any  # None with early stopping; the three below are None without it
    best_validation_score_: Any
    validation_scores_: Any
    validation_loss_curve_: Any
    _made_from: dict[str, Any]  # the parameters from which the network was built
    _of_logits: bool  # whether the network's outputs are logits, as the loss of the first fit takes them
    _optimizer: Any  # the optimizer as the last run left it, and its slots; None before the first
    _slots: Any
    _best: tuple[dict[str, Array], dict[str, Array]]  # parameters and statistics with the best validation score

    # --- for subclasses -------------------------------------------------------------------------------------------

    @abstractmethod
    def _targets(self, y: Any, backend: Backend, incremental: bool, first: bool) -> Any:
        """Check y, store its classes, and return it in the form that `_rows` takes it."""

    @abstractmethod
    def _rows(self, targets: Any, backend: Backend, dtype: str) -> Array:
        """Return the targets as the loss takes them, (n, n_outputs_)."""

    @abstractmethod
    def _outputs(self, targets: Any) -> tuple[int, str]:
        """Return the number of outputs and the name of their activation."""

    @property
    @abstractmethod
    def _loss(self) -> Any:
        """The loss as an object."""

    @abstractmethod
    def _validation_score(self, prediction: Array, target: Array, weight: Array | None) -> Any:
        """Return the score of the network's outputs for targets from `_rows`."""

    def _weights(
        self, weight: Array | None, targets: Any, incremental: bool, backend: Backend, dtype: str
    ) -> Array | None:
        """Return the weights of the rows times those of their classes."""
        return weight

    def _weighing_loss(self, incremental: bool) -> Any:
        """Return the loss with "mean" over the weights of each batch, as in scikit-learn."""
        loss = copy.copy(self._loss)
        loss.weights_over = "batch"
        return loss

    def _stratify(self, targets: Any) -> np.ndarray | None:
        """Return labels by which to stratify the validation rows, or None."""
        return None

    # --- fitting --------------------------------------------------------------------------------------------------

    @property
    def _architecture(self) -> dict[str, Any]:
        """The parameters from which the network is built."""
        hidden = hidden_sizes(self.hidden_layer_sizes)
        if self.layers is not None:
            return {"layers": self.layers}
        others = ("activation", "batch_norm", "dropout", "layers")
        return {"hidden_layer_sizes": hidden} | {name: getattr(self, name) for name in others}

    def _check_architecture(self, now: dict[str, Any]) -> None:
        """Raise ValueError if the network was built from other parameters."""
        for name, before in self._made_from.items():
            if now.get(name, before) != before:
                raise ValueError(
                    f"{name} changed from {before!r} to {now[name]!r} since the network was built, and training would "
                    "continue with that network: set it back, or fit a new one, with warm_start=False"
                )

    def _fit(self, X: Any, y: Any, sample_weight: Any, incremental: bool) -> Self:
        architecture = self._architecture
        first = not hasattr(self, "net_") or not (self.warm_start or incremental)
        X, y, sample_weight = as_array(X), as_array(y), as_array(sample_weight)
        if not first:
            self._check_architecture(architecture)
            self._check_namespace(X, "partial_fit" if incremental else "fit")
        X, y = validate_data(
            self, X, y, accept_sparse=["csr", "csc"], multi_output=True, y_numeric=is_regressor(self),
            dtype=float_dtypes(X), reset=first,
        )  # fmt: skip
        backend = backend_of(X) if is_array(X) else get_backend("numpy", "cpu")
        dtype = "float32" if "float32" in str(X.dtype) else "float64"
        weight = sample_weight
        if weight is not None:
            weight = _check_sample_weight(weight, X, dtype=X.dtype, ensure_non_negative=True)
        targets = self._targets(y, backend, incremental, first)
        weight = self._weights(weight, targets, incremental, backend, dtype)
        self._random_state = check_random_state(self.random_state)
        if first:
            self._begin(X.shape[1], architecture, targets, backend, dtype)
        elif (self._takes_logits, self._outputs(targets)[1]) != (self._of_logits, self.out_activation_):
            raise ValueError(
                f"loss={self.loss!r} needs another output layer than the fitted network has: fit a new one, with "
                "warm_start=False"
            )
        rows = self._rows(targets, backend, self.net_.dtype)
        loss = self._loss if weight is None else self._weighing_loss(incremental)
        net, x = for_sparse(self.net_, X) if not is_array(X) else (self.net_, X)
        try:
            if self.solver == "lbfgs" and self.optimizer is None:
                lbfgs.train(self, net, x, rows, loss, weight)
            else:
                stratify = self._stratify(targets) if self.early_stopping else None
                stochastic.train(self, net, x, rows, loss, weight, stratify, incremental)
        except DivergenceError as error:
            raise ValueError(NOT_FINITE) from error
        finally:
            if net is not self.net_:
                self.net_.layers[0].assign_params(net.layers[0].params)
        return self

    def _begin(self, features: int, architecture: dict[str, Any], targets: Any, backend: Backend, dtype: str) -> None:
        """Build a new network and reset the fitted attributes."""
        self.n_iter_ = self.t_ = 0
        self.n_outputs_, self.out_activation_ = self._outputs(targets)
        self._of_logits = self._takes_logits
        last: Layer | None = None
        if not self._of_logits:
            last = Softmax() if self.out_activation_ == "softmax" else Sigmoid()
        if self.layers is not None:
            net = custom_network(self.layers, features, self.n_outputs_, last)
        else:
            units = [features, *architecture["hidden_layer_sizes"], self.n_outputs_]
            net = plain_network(units, self.activation, self.batch_norm, self.dropout, last)
        start(net, self._random_state, backend, dtype, self.activation == "logistic", own=self.layers is not None)
        self.net_, self._made_from = net, architecture
        self.n_layers_ = len(self._dense) + 1
        self._optimizer = self._slots = None
        self._no_improvement_count = 0
        self._best = dict(net.params), dict(net.state)
        self.stopped_early_ = False
        if self.solver != "lbfgs" or self.optimizer is not None:
            self.loss_curve_ = []
            self._begin_measure()

    def _begin_measure(self) -> None:
        """Reset the best loss or, with early stopping, the best score."""
        early = self.early_stopping
        self.best_loss_ = None if early else np.inf
        self.validation_scores_ = [] if early else None
        self.validation_loss_curve_ = [] if early else None
        self.best_validation_score_ = -np.inf if early else None
        self._no_improvement_count = 0

    @property
    def _takes_logits(self) -> bool:
        """Whether the loss takes logits; otherwise it takes probabilities."""
        return getattr(self._loss, "threshold", None) == 0.0

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to X (n, n_features), which may be sparse, and y.

        y is labels (n,), or (n, n_labels) of 0 and 1; for MLPRegressor numbers (n,) or (n, n_outputs).
        """
        with unchanged_on_error(self):
            return self._fit(X, y, sample_weight, incremental=False)

    @available_if(lambda model: model._check_solver())
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one more epoch on these arrays: of data larger than memory, call it for one part after another."""
        with unchanged_on_error(self):
            return self._fit(X, y, sample_weight, incremental=True)

    def _check_solver(self) -> bool:
        if self.solver == "lbfgs" and self.optimizer is None:
            raise AttributeError("partial_fit is only available for stochastic optimizers. lbfgs is not stochastic.")
        return True

    # --- the network ----------------------------------------------------------------------------------------------

    @property
    def _dense(self) -> list[tuple[str, Dense]]:
        check_is_fitted(self)
        return [(prefix, layer) for prefix, layer in self.net_.leaves() if isinstance(layer, Dense)]

    @property
    def coefs_(self) -> list[Array]:
        """The weights (in, out) of each Dense layer: the network's own arrays. Assigned arrays are copied."""
        return OfLayers(self, "coefs_", "weight")

    @coefs_.setter
    def coefs_(self, arrays: Sequence[Any]) -> None:
        self.coefs_[:] = arrays

    @property
    def intercepts_(self) -> list[Array]:
        """The biases of each Dense layer: the network's own arrays. Assigned arrays are copied."""
        return OfLayers(self, "intercepts_", "bias")

    @intercepts_.setter
    def intercepts_(self, arrays: Sequence[Any]) -> None:
        self.intercepts_[:] = arrays

    def _raw(self, X: Any, method: str, layers: slice = slice(None)) -> Array:
        """Return the outputs of the network, or of some of its layers, for X."""
        X = self._checked(X, method)
        net = self.net_
        if not is_array(X):
            net, X = for_sparse(net, X)
        if layers != slice(None):
            part = Sequential(*net.layers[layers])
            part._set_placement(net.backend, net.dtype)
            net = part
        y: Array = net.predict(X)
        return y

    def _checked(self, X: Any, method: str) -> Any:
        """Return X, checked, as an array of floats or a sparse matrix for a method of the fitted estimator."""
        check_is_fitted(self)
        X = as_array(X)
        self._check_namespace(X, method)
        return validate_data(self, X, accept_sparse=["csr", "csc"], dtype=float_dtypes(X), reset=False)

    def _check_namespace(self, X: Any, method: str) -> None:
        """With array API dispatch, raise ValueError unless X has the library and device of the parameters."""
        if not get_config()["array_api_dispatch"]:
            return
        fitted = self.net_.backend
        got = backend_of(X) if is_array(X) else get_backend("numpy", "cpu")
        if got.name != fitted.name or (fitted.name != "numpy" and got.device != fitted.device):
            raise ValueError(
                f"Inputs passed to {type(self).__name__}.{method}() must use the same namespace and the same device as "
                f"those passed to fit(). It was fitted on {fitted!r} and given arrays of {got!r}; convert X, or, from "
                "scikit-learn 1.9 on, move the estimator with sklearn.utils._array_api.move_estimator_to"
            )

    def __getstate__(self) -> dict[str, Any]:
        """Return the state for copies and files, with the history as plain dicts, since skops drops its attributes."""
        state: dict[str, Any] = super().__getstate__()
        if "history_" in state:
            state = state | {"history_": {"measures": dict(self.history_), "attributes": self.history_.__getstate__()}}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "history_" in state:
            history = History()
            history.update(state["history_"]["measures"])
            vars(history).update(state["history_"]["attributes"])
            state = state | {"history_": history}
        super().__setstate__(state)

    def __sklearn_array_api_convert__(self, convert: Callable[[Any], Any]) -> Self:
        """Return a copy whose arrays, including those of the network, are moved by `convert`."""
        twin: Self = type(self)(**self.get_params(deep=False))
        for name, value in vars(self).items():
            if is_array(value) and not (isinstance(value, np.ndarray) and value.dtype.kind not in "biuf"):
                value = convert(value)
            setattr(twin, name, value)
        if hasattr(self, "net_"):
            weight = convert(self.coefs_[0])
            twin.net_ = self.net_.clone().to(backend_of(weight))
            twin._optimizer = twin._slots = None
            twin._best = dict(twin.net_.params), dict(twin.net_.state)
        return twin

    # --- beyond predictions ---------------------------------------------------------------------------------------

    def transform(self, X: Any) -> Array:
        """Return the last hidden layer's activations, (n, n_hidden), which the last Dense layer takes."""
        number, _, inner = self._dense[-1][0].partition(".")
        if inner:
            outer = self.net_.layers[int(number)]
            raise TypeError(f"transform: the last Dense layer must not be within another, {outer!r}")
        if number == "0":
            X = self._checked(X, "transform")
            return namespace(X).asarray(X, copy=True) if is_array(X) else X
        return self._raw(X, "transform", slice(0, int(number)))

    @property
    def _n_features_out(self) -> int:
        return self._dense[-1][1].in_features

    def _slope(self, X: Any, dy: Callable[[Array], Array]) -> Array:
        """Return the derivative with respect to X; `dy` returns that with respect to the network's outputs."""
        X = self._checked(X, "input_gradient")
        net = self.net_
        with net.backend.scope():
            x = rows_of(net, "input_gradient: X", X if is_array(X) else X.toarray(), whole=True)
            y, cache = net.forward(x)
            gradient: Array = net.backward(dy(y), cache)[0]
        return gradient

    to_sklearn, to_onnx = convert.to_sklearn, convert.to_onnx  # with their docstrings
    from_sklearn = classmethod(convert.from_sklearn)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.array_api_support = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


class OfLayers(list[Array]):
    """A list of an array of each Dense layer, of fixed length. Assigned arrays are copied, all or none."""

    def __init__(self, model: BaseMLP, who: str, key: str):
        self.model, self.who, self.key = model, who, key
        super().__init__(self._current())

    def _current(self) -> list[Array]:
        return [layer.params[self.key] for _, layer in self.model._dense]

    def __setitem__(self, index: Any, value: Any) -> None:
        arrays, dense, net = list(self), self.model._dense, self.model.net_
        arrays[index] = value
        if len(arrays) != len(dense):
            raise ValueError(f"{self.who}: {len(arrays)} arrays for {len(dense)} Dense layers; give one for each")
        new = {f"{prefix}.{self.key}": a for (prefix, _), a in zip(dense, arrays, strict=True)}
        net.set_params(net.params | new)
        super().__setitem__(slice(None), self._current())

    def refuse(self, *given: Any, **named: Any) -> NoReturn:
        """Raise TypeError with the remedy."""
        raise TypeError(
            f"{self.who} has an array for each Dense layer of the network: assign one, model.{self.who}[i] = array, or "
            f"all, model.{self.who} = [...]; list(model.{self.who}) is a copy of your own"
        )

    append = extend = insert = pop = remove = clear = sort = reverse = refuse
    __delitem__ = __iadd__ = __imul__ = refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


def float_dtypes(X: Any) -> Any:
    """Return the dtypes that are kept; any other is converted to the first."""
    if get_config()["array_api_dispatch"] and is_array(X):
        xp = namespace(X)
        return xp.float64, xp.float32
    return np.float64, np.float32


def as_array(x: Any) -> Any:
    """Return `x`, as a NumPy array if it has only `__array__`, which array API dispatch refuses."""
    return np.asarray(x) if hasattr(x, "__array__") and not hasattr(x, "shape") else x
