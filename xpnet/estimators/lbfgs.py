"""The whole batch at once, by SciPy's L-BFGS on the vector of all trained parameters."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from .. import ops
from ..backend import Array
from ..layers.batchnorm import BatchNorm
from ..layers.dropout import Dropout

if TYPE_CHECKING:
    from .base import BaseMLP


def train(model: "BaseMLP", net: Any, x: Any, y: Array, weight: Array | None) -> None:
    """Minimise the loss over `net`'s parameters; SciPy keeps its vector on the host, in float64."""
    from scipy.optimize import minimize

    if any(isinstance(layer, Dropout) and layer.rate for _, layer in net.leaves()):
        raise ValueError("solver='lbfgs' needs the same loss at every call: dropout must be 0")
    backend, alpha = net.backend, float(model.alpha)
    trained = [(f"{prefix}.{key}") for prefix, layer in net.leaves() if layer.trainable for key in layer.params]
    shapes = [tuple(net.params[name].shape) for name in trained]
    norms = [layer for _, layer in net.leaves() if isinstance(layer, BatchNorm) and layer.trainable]

    def assign(w: np.ndarray) -> None:
        with backend.scope():
            arrays = ops.split(backend.asarray(w.astype(net.dtype)), shapes)
        net.assign_params(net.params | dict(zip(trained, arrays, strict=True)))

    def loss_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        assign(w)
        value, grads = net.value_and_grad(x, y, model._loss, sample_weight=weight, l2=alpha)
        with backend.scope():
            gradient = backend.to_numpy(ops.join([grads[name] for name in trained]))
        return float(value), gradient.astype(np.float64)

    def report(intermediate_result: Any) -> None:
        model.n_iter_ += 1
        print(f"Iteration {model.n_iter_}, loss = {intermediate_result.fun:.8f}")

    model.n_iter_ = 0
    result = minimize(
        loss_and_gradient,
        np.concatenate([backend.to_numpy(net.params[name]).ravel() for name in trained]).astype(np.float64),
        method="L-BFGS-B",
        jac=True,
        callback=report if model.verbose else None,
        options={"maxfun": model.max_fun, "maxiter": model.max_iter, "gtol": model.tol},
    )
    assign(result.x)
    model.loss_ = float(result.fun)
    model.n_iter_ = min(int(result.nit), int(model.max_iter))
    if norms:
        settle_statistics(net, x, norms)
    if result.status != 0:
        warnings.warn(
            f"lbfgs failed to converge after {result.nit} iteration(s) (status={result.status}):\n{result.message}\n\n"
            "Increase the number of iterations to improve the convergence, or scale the data.",
            ConvergenceWarning,
            stacklevel=5,
        )


def settle_statistics(net: Any, x: Any, norms: list[BatchNorm]) -> None:
    """Give every batch norm the statistics of all rows, as the last parameters have them: those of a first batch."""
    rng = np.random.default_rng(0)
    for layer in norms:
        state = {key: net.backend.asarray(a, net.dtype) for key, a in layer.initial_state(rng).items()}
        layer.assign_state(state)
    with net.backend.scope():
        _, cache = net.forward(net.check_input("fit: x", x), training=True)
        net.assign_state(net.next_state(cache))
