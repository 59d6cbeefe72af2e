"""Weights to and from scikit-learn's own estimators. Axes: D in, H out."""

from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn import neural_network
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import check_is_fitted

from ..backend import get_backend
from ..layers.activations import ReLU, Sigmoid, Softmax, Tanh
from ..layers.base import Layer
from ..layers.batchnorm import BatchNorm
from ..layers.dense import Dense
from ..layers.dropout import Dropout
from .networks import plain_network

if TYPE_CHECKING:
    from .base import BaseMLP

NAMES: dict[type[Layer], str] = {Sigmoid: "logistic", Tanh: "tanh", ReLU: "relu"}
# the books of a training, where there are any
BOOKS = (
    *("n_iter_", "t_", "loss_", "best_loss_", "loss_curve_", "validation_scores_", "best_validation_score_"),
    *("n_features_in_", "feature_names_in_", "n_outputs_", "out_activation_", "_no_improvement_count"),
)
OWN = {"loss", "class_weight", "batch_norm", "dropout", "layers", "optimizer", "callbacks", "progress"}


def to_sklearn(model: "BaseMLP") -> Any:
    """scikit-learn's estimator with the weights of ours. TypeError names what it cannot express."""
    check_is_fitted(model)
    coefs, intercepts, activation = folded(model)
    classifier = hasattr(model, "_labels")
    params = {k: v for k, v in model.get_params(deep=False).items() if k not in OWN}
    params |= {"activation": activation, "hidden_layer_sizes": tuple(w.shape[1] for w in coefs[:-1])}
    solver, learning_rate = params["solver"], params["learning_rate"]
    params["solver"] = solver if solver in ("sgd", "adam", "lbfgs") else "sgd"  # of no account to predictions
    params["learning_rate"] = "constant" if callable(learning_rate) else learning_rate
    if not classifier:
        params["loss"] = model.loss if isinstance(model.loss, str) else "squared_error"
    kind = neural_network.MLPClassifier if classifier else neural_network.MLPRegressor
    twin = kind(**params)
    if classifier:
        labels = model._labels
        if labels.kind == "binary" and coefs[-1].shape[1] == 2:  # softmax of two is the sigmoid of their difference
            coefs[-1] = coefs[-1][:, 1:] - coefs[-1][:, :1]
            intercepts[-1] = intercepts[-1][1:] - intercepts[-1][:1]
        shown = np.eye(len(labels.classes), dtype=int) if labels.kind == "multilabel" else labels.classes
        twin._label_binarizer = LabelBinarizer().fit(shown)
        twin.classes_ = labels.classes
    for name in BOOKS:
        if hasattr(model, name):
            value = getattr(model, name)
            setattr(twin, name, list(value) if isinstance(value, list) else value)
    if classifier and coefs[-1].shape[1] == 1:
        twin.n_outputs_, twin.out_activation_ = 1, "logistic"
    twin.n_layers_ = len(coefs) + 1
    twin.coefs_, twin.intercepts_ = coefs, intercepts
    twin._best_coefs, twin._best_intercepts = [w.copy() for w in coefs], [b.copy() for b in intercepts]
    return twin


def folded(model: "BaseMLP") -> tuple[list[np.ndarray], list[np.ndarray], str]:
    """The network as weights, biases and the name of the activation between them, batch norms gone into the weights.

    γ (x W + b - μ) / √(v + eps) + β = x (W s) + (b - μ) s + β with s = γ / √(v + eps).
    """
    net = model.net_
    host = net.backend.to_numpy
    leaves = net.leaves()
    if leaves and type(leaves[-1][1]) in (Softmax, Sigmoid) and not model._of_logits:
        leaves = leaves[:-1]  # scikit-learn's own output activation
    coefs: list[np.ndarray] = []
    intercepts: list[np.ndarray] = []
    between: list[str] = []  # activations, "identity" until one comes
    before: Layer | None = None
    for prefix, layer in leaves:
        kind = type(layer)
        if kind is Dense:
            if coefs:
                between.append(between_name(before))
            coefs.append(host(layer.params["weight"]).copy())  # scikit-learn trains in place
            intercepts.append(host(layer.params["bias"]).copy())
        elif kind is BatchNorm and type(before) is Dense:
            eps = layer.eps  # type: ignore[attr-defined]
            scale = host(layer.params["gamma"]) / np.sqrt(host(layer.state["var"]) + eps)
            coefs[-1] = coefs[-1] * scale
            intercepts[-1] = (intercepts[-1] - host(layer.state["mean"])) * scale + host(layer.params["beta"])
        elif kind is Dropout:
            continue
        elif kind not in NAMES or type(before) not in (Dense, BatchNorm):
            raise TypeError(f"to_sklearn: scikit-learn has nothing like layer {prefix}, {layer!r}, where it stands")
        before = layer
    if type(before) in NAMES:
        raise TypeError(f"to_sklearn: scikit-learn has no {before!r} behind the last Dense")
    if len(set(between)) > 1:
        raise TypeError(f"to_sklearn: scikit-learn has one activation for all hidden layers, here are {between}")
    return coefs, intercepts, between[0] if between else "relu"


def between_name(before: Layer | None) -> str:
    """The name of what stands before a Dense."""
    return NAMES.get(type(before), "identity")  # type: ignore[arg-type]


def unfitted(cls: Any, theirs: Any) -> Any:
    """Our estimator with the parameters of scikit-learn's of that name."""
    if not isinstance(theirs, getattr(neural_network, cls.__name__)):
        raise TypeError(f"from_sklearn: expected scikit-learn's {cls.__name__}, got {theirs!r}")
    check_is_fitted(theirs)
    return cls(**theirs.get_params(deep=False))


def take_over(model: "BaseMLP", theirs: Any) -> None:
    """Give our estimator, new, the weights and the books of scikit-learn's, fitted."""
    for name in BOOKS:
        if hasattr(theirs, name):
            value = getattr(theirs, name)
            setattr(model, name, list(value) if isinstance(value, list) else value)
    units = [theirs.coefs_[0].shape[0], *(w.shape[1] for w in theirs.coefs_)]
    net = plain_network(units, theirs.activation, False, 0.0, None)
    dense = [prefix for prefix, layer in net.leaves() if isinstance(layer, Dense)]
    params: dict[str, np.ndarray] = {}
    for prefix, weight, bias in zip(dense, theirs.coefs_, theirs.intercepts_, strict=True):
        params |= {f"{prefix}.weight": weight, f"{prefix}.bias": bias}
    dtype = theirs.coefs_[0].dtype.name
    net.place(get_backend("numpy", "cpu"), dtype, params, {})
    model.net_, model._made_from, model._of_logits = net, model._architecture, True
    model.n_layers_ = len(dense) + 1
    model._optimizer = model._slots = None
    model._best, model.stopped_early_ = (net.params, net.state), False
    model.validation_loss_curve_ = [] if model.early_stopping else None
    if not hasattr(model, "_no_improvement_count"):
        model._no_improvement_count = 0
