"""Full-batch training by SciPy's L-BFGS on the vector of all trained parameters."""

import sys
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from .. import ops
from ..backends import Array
from ..common.terminal import tell
from ..common.warn import warn
from ..kernels import training_step
from ..layers.dropout import Dropout
from ..layers.normalization import BatchNorm
from ..losses.objective import Objective
from ..optimizers import SGD
from ..training.batches import Batch
from ..training.inputs import rows_of_pair, weights_for


def train(model: Any, net: Any, x: Any, y: Array, loss: Any, weight: Array | None) -> None:
    """Minimize the loss over `net`'s parameters, which SciPy holds as a vector on the host, in float64."""
    from scipy.optimize import minimize

    if any(isinstance(layer, Dropout) and layer.rate for _, layer in net.leaves()):
        raise ValueError("solver='lbfgs' needs the same loss at every call: dropout must be 0")
    if model.callbacks:
        raise ValueError("solver='lbfgs' has no epochs and steps to call callbacks after; use another solver")
    backend = net.backend
    x, y = rows_of_pair(net, "fit", x, y, loss, whole=True)
    batch = Batch(x, y, weights_for(net, "fit", loss, y, weight))
    step = training_step(net, Objective(loss, float(model.alpha)), SGD(momentum=0.0), x.shape)
    norms = [layer for _, layer in net.leaves() if isinstance(layer, BatchNorm) and layer.trainable]

    def loss_and_gradient(w: np.ndarray) -> tuple[float, np.ndarray]:
        with backend.scope():
            value, gradient = step.gradient(backend.asarray(w.astype(net.dtype)), batch)
            return float(value), backend.to_numpy(gradient).astype(np.float64)

    def report(intermediate_result: Any) -> None:
        model.n_iter_ += 1
        tell(f"Iteration {model.n_iter_}, loss = {intermediate_result.fun:.8f}", sys.stdout)

    model.n_iter_ = 0
    params = net.params
    first = np.concatenate([backend.to_numpy(params[name]).ravel() for name in step.names]).astype(np.float64)
    result = minimize(
        loss_and_gradient,
        first,
        method="L-BFGS-B",
        jac=True,
        callback=report if model.verbose else None,
        options={"maxfun": model.max_fun, "maxiter": model.max_iter, "gtol": model.tol},
    )
    with backend.scope():
        arrays = ops.split(backend.asarray(result.x.astype(net.dtype)), step.shapes)
    net.assign_params(dict(zip(step.names, arrays, strict=True)))
    model.loss_ = float(result.fun)
    model.n_iter_ = min(int(result.nit), int(model.max_iter))
    if norms:  # their statistics become those of all rows with the final parameters
        for layer in norms:
            state = layer.initial_state(np.random.default_rng(0))
            layer.assign_state({key: backend.asarray(a, net.dtype) for key, a in state.items()})
        with backend.scope():
            _, cache = net.forward(x, training=True)
            net.assign_state(net.next_state(cache))
    if result.status != 0:
        more = f"\nIncrease the number of iterations to improve the convergence (max_iter={model.max_iter})."
        warn(
            f"lbfgs failed to converge after {model.n_iter_} iteration(s) (status={result.status}):\n{result.message}\n"
            f"{more if model.n_iter_ == model.max_iter else ''}\nYou might also want to scale the data as shown in:\n"
            "    https://scikit-learn.org/stable/modules/preprocessing.html",
            ConvergenceWarning,
        )
