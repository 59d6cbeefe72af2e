"""Conversion to and from scikit-learn's own estimators, and to ONNX files. Axes: N rows, D in, H out."""

from typing import Any

import numpy as np
from sklearn import neural_network
from sklearn.preprocessing import LabelBinarizer
from sklearn.utils.validation import check_is_fitted

from ..backends import get_backend
from ..files.onnx import RAW, Ending, Node, export_onnx
from ..files.safetensors import Path
from ..layers.activations import ReLU, Sigmoid, Softmax, Tanh
from ..layers.base import Layer
from ..layers.dense import Dense
from ..layers.dropout import Dropout
from ..layers.normalization import BatchNorm
from .labels import Labels
from .networks import plain_network

NAMES: dict[type, str] = {Sigmoid: "logistic", Tanh: "tanh", ReLU: "relu"}
# fitted attributes that xpnet's and scikit-learn's estimators share
FITTED = (
    *("n_iter_", "t_", "loss_", "best_loss_", "loss_curve_", "validation_scores_", "best_validation_score_"),
    *("n_features_in_", "feature_names_in_", "n_outputs_", "out_activation_", "_no_improvement_count"),
)
INT64 = 7  # ONNX's code for int64
OWN = {  # parameters that scikit-learn lacks
    "loss", "class_weight", "batch_norm", "dropout", "layers", "optimizer", "callbacks", "progress",
}  # fmt: skip


def to_sklearn(model: Any) -> Any:
    """Return scikit-learn's estimator of the same name with these weights; predictions agree to 1e-12.

    Batch norm after a Dense is folded into its weights, dropout is left out. Raises TypeError for layers that
    scikit-learn does not have.
    """
    check_is_fitted(model)
    coefs, intercepts, activation = folded_weights(model)
    classifier = hasattr(model, "_labels")
    params = {k: v for k, v in model.get_params(deep=False).items() if k not in OWN}
    params |= {"activation": activation, "hidden_layer_sizes": tuple(w.shape[1] for w in coefs[:-1])}
    solver, learning_rate = params["solver"], params["learning_rate"]
    params["solver"] = solver if solver in ("sgd", "adam", "lbfgs") else "sgd"  # predictions do not depend on it
    params["learning_rate"] = "constant" if callable(learning_rate) else learning_rate
    if not classifier:
        params["loss"] = model.loss if isinstance(model.loss, str) else "squared_error"
    kind = neural_network.MLPClassifier if classifier else neural_network.MLPRegressor
    twin = kind(**params)
    if classifier:
        labels = model._labels
        if labels.kind == "binary" and coefs[-1].shape[1] == 2:  # softmax of two logits: sigmoid of their difference
            coefs[-1] = coefs[-1][:, 1:] - coefs[-1][:, :1]
            intercepts[-1] = intercepts[-1][1:] - intercepts[-1][:1]
        twin._label_binarizer = LabelBinarizer().fit(example(labels.classes, labels.kind == "multilabel"))
        twin.classes_ = labels.classes
    copy_fitted(model, twin)
    if classifier and coefs[-1].shape[1] == 1:
        twin.n_outputs_, twin.out_activation_ = 1, "logistic"
    twin.n_layers_ = len(coefs) + 1
    twin.coefs_, twin.intercepts_ = coefs, intercepts
    twin._best_coefs, twin._best_intercepts = [w.copy() for w in coefs], [b.copy() for b in intercepts]
    return twin


def example(classes: np.ndarray, multilabel: bool) -> np.ndarray:
    """Return a target with these classes."""
    return np.eye(len(classes), dtype=int) if multilabel else classes


def copy_fitted(source: Any, target: Any) -> None:
    """Copy the attributes in `FITTED` that `source` has."""
    for name in FITTED:
        if hasattr(source, name):
            value = getattr(source, name)
            setattr(target, name, list(value) if isinstance(value, list) else value)


def folded_weights(model: Any) -> tuple[list[np.ndarray], list[np.ndarray], str]:
    """Return the network's weights, biases and the name of the activation between them, with batch norms folded in.

    γ (x W + b - μ) / √(v + eps) + β = x (W s) + (b - μ) s + β with s = γ / √(v + eps).
    """
    net = model.net_
    host = net.backend.to_numpy
    leaves = net.leaves()
    if leaves and type(leaves[-1][1]) in (Softmax, Sigmoid) and not model._of_logits:
        leaves = leaves[:-1]  # scikit-learn's own output activation
    coefs: list[np.ndarray] = []
    intercepts: list[np.ndarray] = []
    between: list[str] = []  # the names of activations between Dense layers
    before: Layer | None = None
    for prefix, layer in leaves:
        kind = type(layer)
        if kind is Dense:
            if coefs:
                between.append(NAMES.get(type(before), "identity"))
            coefs.append(host(layer.params["weight"]).copy())  # scikit-learn trains in place
            intercepts.append(host(layer.params["bias"]).copy())
        elif kind is BatchNorm and type(before) is Dense:
            scale = host(layer.params["gamma"]) / np.sqrt(host(layer.state["var"]) + layer.eps)
            coefs[-1] = coefs[-1] * scale
            intercepts[-1] = (intercepts[-1] - host(layer.state["mean"])) * scale + host(layer.params["beta"])
        elif kind is Dropout:
            continue
        elif kind not in NAMES or type(before) not in (Dense, BatchNorm):
            raise TypeError(f"to_sklearn: scikit-learn has no equivalent of layer {prefix}, {layer!r}, at this place")
        before = layer
    if type(before) in NAMES:
        raise TypeError(f"to_sklearn: scikit-learn has no {before!r} after the last Dense")
    if len(set(between)) > 1:
        raise TypeError(f"to_sklearn: scikit-learn has one activation for all hidden layers, here are {between}")
    return coefs, intercepts, between[0] if between else "relu"


def from_sklearn(cls: Any, theirs: Any) -> Any:
    """Return an estimator with the parameters and weights of scikit-learn's fitted estimator of the same name."""
    if not isinstance(theirs, getattr(neural_network, cls.__name__)):
        raise TypeError(f"from_sklearn: expected scikit-learn's {cls.__name__}, got {theirs!r}")
    check_is_fitted(theirs)
    model = cls(**theirs.get_params(deep=False))
    if hasattr(theirs, "classes_"):
        model.classes_ = np.asarray(theirs.classes_)
        model._labels = Labels(example(model.classes_, theirs._label_binarizer.y_type_ == "multilabel-indicator"))
    copy_fitted(theirs, model)
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
    model._best, model.stopped_early_ = (dict(net.params), dict(net.state)), False
    model.validation_loss_curve_ = [] if model.early_stopping else None
    if not hasattr(model, "_no_improvement_count"):
        model._no_improvement_count = 0
    return model


# --- ONNX -------------------------------------------------------------------------------------------------------------


def to_onnx(model: Any, path: Path) -> None:
    """Write the predictions to an ONNX file; needs the extra `onnx`.

    The input is "X" (N, n_features), in the dtype that was fitted. The outputs are named as in skl2onnx's files: a
    classifier's "label" (N,), integers or strings, or (N, n_labels), and "probabilities" (N, n_classes); a regressor's
    "variable" (N, n_outputs). To export a pipeline by skl2onnx, put `to_sklearn()` in the estimator's place. Raises
    TypeError for a custom layer and for classes that are neither numbers nor strings, OSError if the file cannot be
    written.
    """
    check_is_fitted(model)
    net = model.net_
    if hasattr(model, "_labels"):
        ending = ending_of_classes(model)
    else:
        operator = "Exp" if model.out_activation_ == "exp" else "Identity"
        variable = net.dtype, ["N", model.n_outputs_]
        ending = Ending([(operator, [RAW], "variable", {})], {}, {"variable": variable})
    export_onnx(net, path, "to_onnx", "X", ending)


def ending_of_classes(model: Any) -> Ending:
    """Return the nodes from the output to "label", as `predict` gives it, and "probabilities"."""
    labels, dtype, outputs = model._labels, model.net_.dtype, model.n_outputs_
    squash = ("Softmax" if model.out_activation_ == "softmax" else "Sigmoid") if model._of_logits else "Identity"
    constants = {"threshold": np.array(model._threshold, dtype)}
    if labels.kind == "multilabel":
        return Ending(
            [
                (squash, [RAW], "probabilities", {}),
                ("Greater", [RAW, "threshold"], "above", {}),
                ("Cast", ["above"], "label", {"to": INT64}),
            ],
            constants,
            {"label": (np.int64, ["N", outputs]), "probabilities": (dtype, ["N", outputs])},
        )
    if outputs == 1:
        constants |= {"one": np.array(1, dtype), "axes": np.array([1])}
        nodes: list[Node] = [
            (squash, [RAW], "upper", {}),
            ("Sub", ["one", "upper"], "lower", {}),
            ("Concat", ["lower", "upper"], "probabilities", {"axis": 1}),
            ("Greater", [RAW, "threshold"], "above", {}),
            ("Squeeze", ["above", "axes"], "row", {}),
            ("Cast", ["row"], "choice", {"to": INT64}),
        ]
    else:
        nodes = [(squash, [RAW], "probabilities", {}), ("ArgMax", [RAW], "choice", {"axis": 1, "keepdims": 0})]
    classes = labels.classes
    if classes.dtype.kind in "biuf":
        classes = classes.astype(np.int64)
    elif all(isinstance(c, str) for c in classes):
        classes = classes.astype(object)
    else:
        raise TypeError(f"to_onnx: classes must be numbers or strings, got {classes!r}")
    constants["classes"] = np.resize(classes, max(2, len(classes)))  # a single class is repeated
    nodes.append(("Gather", ["classes", "choice"], "label", {}))
    return Ending(nodes, constants, {"label": (classes.dtype, ["N"]), "probabilities": (dtype, ["N", max(2, outputs)])})
