"""MLPRegressor."""

from typing import Any, ClassVar, Self

import numpy as np
from sklearn.base import RegressorMixin, _fit_context
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from ..backends import Array, Backend, namespace, on_host
from ..files.safetensors import Path
from ..metrics import weighted_r2
from . import convert
from .base import BaseMLP, keep_parameters
from .losses import HalfPoissonDeviance, HalfSquaredError


class MLPRegressor(RegressorMixin, BaseMLP):
    """scikit-learn's `MLPRegressor`, with what it lacks, on any array: change the import, and code that uses it works.

    Parameters, attributes and methods are scikit-learn's (1.7 or later), and mean what its documentation says; with the
    same `random_state` weights start, batches are drawn and training goes as there, to rounding.

    Parameters that scikit-learn's lacks, or that take more here:

    activation : also "leaky_relu", "elu", or what makes a layer: `lambda: xn.LeakyReLU(0.01)`.
    solver : also "nesterov", "adagrad", "rmsprop" (with `learning_rate_init`, `momentum`, `epsilon`) and "adamw", whose
        weight decay is `alpha`, which is then not added to the loss.
    learning_rate : also a function of the step, such as `xn.CosineDecay(0.01, 1000)`, which replaces
        `learning_rate_init`. "invscaling" and "adaptive" are for "sgd", "nesterov", "adagrad" and "rmsprop".
    loss : "squared_error", "poisson" (of the rate eᶻ, y >= 0), or any xpnet loss or your own, of the network's outputs.
    batch_norm : a BatchNorm behind each hidden Dense, its running statistics with momentum 0.9. Where the last batch
        would be of one row, which has no variance, batches get smaller.
    dropout : the share of each hidden layer's outputs dropped in training. "lbfgs" cannot have it.
    layers : a function (n_features, n_outputs) -> the layers of the network, a list or a Sequential, in place of
        `hidden_layer_sizes`, `activation`, `batch_norm` and `dropout`. They end in the outputs themselves (for
        "poisson" in the rate's logarithm). Each layer starts as its own law has it.
    optimizer : an xpnet optimizer, in place of `solver`, its settings and the learning rate's.
    callbacks, progress : as in `Sequential.fit`; "lbfgs" has neither. For sparse X `run.net` reads the numbers of rows,
        not X.

    Attributes that scikit-learn's lacks: `net_`, the network; `history_`, of the last fit; `validation_loss_curve_`,
    beside `validation_scores_` (rows unweighted, without the penalty); `stopped_early_`, of `partial_fit` with early
    stopping.

    Everything follows X: float32 stays float32; with `sklearn.set_config(array_api_dispatch=True)` parameters and
    predictions are arrays of X's library on X's device, so are y and the weights moved there, and so is `classes_`
    where classes are numbers. Sparse X is NumPy's, and never made dense: the first layer multiplies each batch as it
    is.

    Where this parts from scikit-learn's:

    - With several outputs, `loss_` adds up their squared errors / 2, of which the gradient is the derivative;
      scikit-learn's takes their mean and derives the sum. The steps are the same; the loss, which `tol` is held
      against, is n_outputs times its.
    - `partial_fit` takes `early_stopping=True`: each call holds out its own `validation_fraction` (give an int
      `random_state` if calls bring the same rows again) and counts as an epoch. When they have stopped, the best
      weights are back, `stopped_early_` is True, and further calls change nothing.
    - The derivative of ReLU at 0 is 1, there 0.
    - `loss_` and `loss_curve_` are exact where a probability rounds to 0 or 1; there it is clipped to the dtype's
      epsilon.
    - `coefs_` and `intercepts_` are the network's own arrays: write into them, or assign a list with one for each
      layer, which are copied.
    - Parameters that stop being finite raise ValueError at once, in its words, not after the last epoch.
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMLP._parameter_constraints,
        "loss": [StrOptions({"squared_error", "poisson"}), HasMethods(["value_and_grad"])],
    }

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: str = "adam",
        alpha: float = 0.0001,
        batch_size: Any = "auto",
        learning_rate: Any = "constant",
        learning_rate_init: float = 0.001,
        power_t: float = 0.5,
        max_iter: int = 200,
        shuffle: bool = True,
        random_state: Any = None,
        tol: float = 1e-4,
        verbose: Any = False,
        warm_start: bool = False,
        momentum: float = 0.9,
        nesterovs_momentum: bool = True,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-8,
        n_iter_no_change: float = 10,
        max_fun: int = 15000,
        batch_norm: bool = False,
        dropout: float = 0.0,
        layers: Any = None,
        optimizer: Any = None,
        callbacks: Any = None,
        progress: bool = False,
    ):
        keep_parameters(self, locals())

    # --- targets --------------------------------------------------------------------------------------------------

    def _validated(self, X: Any, y: Any, reset: bool, **options: Any) -> tuple[Any, Any]:
        return super()._validated(X, y, reset, y_numeric=True, **options)

    def _targets(self, y: Any, backend: Backend, incremental: bool, first: bool) -> Array:
        if hasattr(y, "tocsr"):
            raise TypeError("Sparse y was passed to MLPRegressor, but dense numbers are required. Use y.toarray().")
        if isinstance(y, np.ndarray) and y.dtype.kind not in "biuf":
            raise TypeError(f"MLPRegressor needs numbers as y, got the dtype {y.dtype}. Use y.astype(float).")
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not backend.owns(y):
            y = backend.asarray(on_host(y))
        y = backend.xp.reshape(y, (y.shape[0], -1))
        if not first and y.shape[1] != self.n_outputs_:
            raise ValueError(f"y has {y.shape[1]} outputs, expected {self.n_outputs_} as in the first fit")
        return y

    def _outputs(self, targets: Any) -> tuple[int, str]:
        return targets.shape[1], "exp" if self.loss == "poisson" else "identity"

    def _rows(self, targets: Any, backend: Backend, dtype: str) -> Array:
        return backend.xp.astype(targets, backend.dtype(dtype), copy=False)

    @property
    def _takes_logits(self) -> bool:
        return True

    # --- fitting --------------------------------------------------------------------------------------------------

    @property
    def _loss(self) -> Any:
        if not isinstance(self.loss, str):
            return self.loss
        return HalfPoissonDeviance() if self.loss == "poisson" else HalfSquaredError()

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to X (n, n_features), sparse welcome, and numbers y (n,) or (n, n_outputs)."""
        return self._fit(X, y, sample_weight, incremental=False)

    @available_if(lambda model: model._check_solver())
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """One epoch more."""
        return self._fit(X, y, sample_weight, incremental=True)

    def _validation_score(self, prediction: Array, target: Array, weight: Array | None) -> Any:
        return weighted_r2(self._mean(prediction), target, weight)

    # --- predictions ----------------------------------------------------------------------------------------------

    def _mean(self, raw: Array) -> Array:
        return namespace(raw).exp(raw) if self.out_activation_ == "exp" else raw

    def predict(self, X: Any) -> Array:
        """The numbers predicted for X's rows, (n,) or (n, n_outputs)."""
        raw = self._raw(X, "predict")
        with self.net_.backend.scope():
            y = self._mean(raw)
        return y[:, 0] if self.n_outputs_ == 1 else y

    def input_gradient(self, X: Any) -> Array:
        """The prediction's derivative with respect to X, (n, n_features); of several, (n, n_outputs, n_features)."""

        def of(output: int) -> Array:
            def dy(y: Array) -> Array:
                xp = namespace(y)
                own = xp.astype(xp.arange(y.shape[1], device=self.net_.backend.device) == output, y.dtype)
                return own * (self._mean(y) if self.out_activation_ == "exp" else xp.ones_like(y))

            return self._slope(X, dy)

        check_is_fitted(self)
        slopes = [of(k) for k in range(self.n_outputs_)]
        return slopes[0] if self.n_outputs_ == 1 else self.net_.backend.xp.stack(slopes, axis=1)

    # --- scikit-learn's own ---------------------------------------------------------------------------------------

    def to_sklearn(self) -> Any:
        """scikit-learn's MLPRegressor with these weights; predictions agree to 1e-12.

        Batch norm behind a Dense goes into its weights, dropout falls away. Raises TypeError for what it cannot be.
        """
        return convert.to_sklearn(self)

    def to_onnx(self, path: Path) -> None:
        """Write `predict` to an ONNX file; needs the extra `onnx`.

        From "X" (N, n_features), in the dtype that was fitted, to "variable" (N, n_outputs), as skl2onnx's files have
        them. Of a whole pipeline skl2onnx makes a file where `to_sklearn()` stands in the estimator's place. Raises
        TypeError for a layer of your own, OSError where the file cannot be written.
        """
        convert.to_onnx(self, path)

    @classmethod
    def from_sklearn(cls, model: Any) -> Self:
        """An estimator with the parameters and weights of scikit-learn's fitted MLPRegressor."""
        twin: Self = convert.unfitted(cls, model)
        convert.take_over(twin, model)
        return twin

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
