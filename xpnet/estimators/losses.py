"""The losses of scikit-learn's MLPRegressor. Axes: N batch, K outputs."""

from typing import Any

from ..backends import Array, namespace
from ..losses.losses import Loss


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
