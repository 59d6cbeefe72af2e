"""MLPRegressor and its losses. Axes: N batch, K outputs."""

from typing import Any, ClassVar

import numpy as np
from sklearn.base import RegressorMixin
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.validation import check_is_fitted

from ..backends import Array, Backend, namespace, on_host
from ..losses.losses import Loss
from ..metrics import weighted_r2
from .base import BaseMLP, keep_parameters


class HalfSquaredError(Loss):
    """Σ_k (p_k - t_k)² / 2, averaged over the batch; derivative p - t."""

    mean_over = "rows"

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        error = prediction - target
        return 0.5 * error * error, error


class HalfPoissonDeviance(Loss):
    """For the rate e^z: L = Σ_k [e^{z_k} - t_k z_k + t_k log t_k - t_k], at least 0; derivative e^z - t."""

    mean_over = "rows"

    def encode(self, target: Any, prediction: Array) -> Array:
        rows = super().encode(target, prediction)
        if bool(namespace(rows).any(rows < 0.0)):
            raise ValueError("loss='poisson' needs y >= 0, got a negative entry")
        return rows

    def terms(self, prediction: Array, target: Array) -> tuple[Array, Array]:
        xp = namespace(prediction)
        rate = xp.exp(prediction)
        logs = xp.log(xp.where(target > 0.0, target, 1.0))  # t log t is 0 at 0
        return rate - target * prediction + target * logs - target, rate - target


class MLPRegressor(RegressorMixin, BaseMLP):
    """scikit-learn's `MLPRegressor` with what it lacks, on any library's arrays: change the import, keep the code.

    loss : "squared_error", "poisson" (of the rate eᶻ, y >= 0), any xpnet loss, or a custom one, of the network's
        outputs.
    layers : see below; they must end in the outputs, for "poisson" in the logarithm of the rate.

    With several outputs `loss_` is the sum of their squared errors / 2, of which the gradient is the derivative;
    scikit-learn reports their mean but differentiates the sum. The steps are the same, but the loss, to which `tol`
    applies, is n_outputs times scikit-learn's.

    >>> from xpnet.estimators import MLPRegressor
    >>> model = MLPRegressor(hidden_layer_sizes=(8,), solver="lbfgs", random_state=0)
    >>> model.fit([[0.0], [1.0], [2.0]], [0.0, 1.0, 2.0]).predict([[1.0]]).shape
    (1,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMLP._parameter_constraints,
        "loss": [StrOptions({"squared_error", "poisson"}), HasMethods(["value_and_grad"])],
    }

    def __init__(
        self, loss: Any = "squared_error", hidden_layer_sizes: Any = (100,), activation: Any = "relu", *,
        solver: str = "adam", alpha: float = 0.0001, batch_size: Any = "auto", learning_rate: Any = "constant",
        learning_rate_init: float = 0.001, power_t: float = 0.5, max_iter: int = 200, shuffle: bool = True,
        random_state: Any = None, tol: float = 1e-4, verbose: Any = False, warm_start: bool = False,
        momentum: float = 0.9, nesterovs_momentum: bool = True, early_stopping: bool = False,
        validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8,
        n_iter_no_change: float = 10, max_fun: int = 15000, batch_norm: bool = False, dropout: float = 0.0,
        layers: Any = None, optimizer: Any = None, callbacks: Any = None, progress: bool = False,
    ):  # fmt: skip
        keep_parameters(self, locals())

    # --- targets --------------------------------------------------------------------------------------------------

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

    def _validation_score(self, prediction: Array, target: Array, weight: Array | None) -> Any:
        return weighted_r2(self._mean(prediction), target, weight)

    # --- predictions ----------------------------------------------------------------------------------------------

    def _mean(self, raw: Array) -> Array:
        return namespace(raw).exp(raw) if self.out_activation_ == "exp" else raw

    def predict(self, X: Any) -> Array:
        """Return the prediction for each row of X, (n,) or (n, n_outputs)."""
        raw = self._raw(X, "predict")
        with self.net_.backend.scope():
            y = self._mean(raw)
        return y[:, 0] if self.n_outputs_ == 1 else y

    def input_gradient(self, X: Any) -> Array:
        """Return the derivative of the prediction with respect to X, (n, n_features) or (n, n_outputs, n_features)."""

        def slope(output: int) -> Array:
            def dy(y: Array) -> Array:
                xp = namespace(y)
                one_hot = xp.astype(xp.arange(y.shape[1], device=self.net_.backend.device) == output, y.dtype)
                return one_hot * (self._mean(y) if self.out_activation_ == "exp" else xp.ones_like(y))

            return self._slope(X, dy)

        check_is_fitted(self)
        slopes = [slope(k) for k in range(self.n_outputs_)]
        return slopes[0] if self.n_outputs_ == 1 else self.net_.backend.xp.stack(slopes, axis=1)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
