"""MLPClassifier."""

from typing import Any, ClassVar, Self

import numpy as np
from sklearn import config_context
from sklearn.base import ClassifierMixin, _fit_context
from sklearn.utils import column_or_1d
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import type_of_target, unique_labels

from .. import ops
from ..backends import Array, Backend, is_array, namespace, on_host
from ..losses.losses import BinaryCrossEntropyWithLogits, SoftmaxCrossEntropy
from .base import BaseMLP, keep_parameters, unchanged_on_error
from .labels import Labels


class MLPClassifier(ClassifierMixin, BaseMLP):
    """scikit-learn's `MLPClassifier` with what it lacks, on any library's arrays: change the import, keep the code.

    loss : "log_loss", any xpnet loss, or a custom one. A loss with `threshold` 0 takes logits; for any other the
        network ends in a softmax or, for two classes or several labels, in a sigmoid.
    class_weight : dict {class: weight}, "balanced" or None: factors of the rows' `sample_weight`. With it all weights
        are divided by their mean over the rows of `fit`, not over each batch as `sample_weight` alone is; in
        `partial_fit` they are used as they are.
    layers : see below; they must end in logits.

    Rows held out for early stopping are stratified, as scikit-learn documents but does for two classes only; where more
    classes, or `partial_fit`, have too few rows for that, they are drawn from all rows alike. With array API dispatch
    `classes_` is moved to X's device if the classes are numbers.

    >>> from xpnet.estimators import MLPClassifier
    >>> x, y = xn.data.load_digits()
    >>> model = MLPClassifier((32,), class_weight="balanced", early_stopping=True, n_iter_no_change=3, random_state=0)
    >>> model.fit(x, y).predict(x[:5]).shape
    (5,)
    """

    _parameter_constraints: ClassVar[dict[str, list[Any]]] = {
        **BaseMLP._parameter_constraints,
        "loss": [StrOptions({"log_loss"}), HasMethods(["value_and_grad"])],
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self, hidden_layer_sizes: Any = (100,), activation: Any = "relu", *,
        solver: str = "adam", alpha: float = 0.0001, batch_size: Any = "auto", learning_rate: Any = "constant",
        learning_rate_init: float = 0.001, power_t: float = 0.5, max_iter: int = 200, shuffle: bool = True,
        random_state: Any = None, tol: float = 1e-4, verbose: Any = False, warm_start: bool = False,
        momentum: float = 0.9, nesterovs_momentum: bool = True, early_stopping: bool = False,
        validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999, epsilon: float = 1e-8,
        n_iter_no_change: float = 10, max_fun: int = 15000, loss: Any = "log_loss", class_weight: Any = None,
        batch_norm: bool = False, dropout: float = 0.0,
        layers: Any = None, optimizer: Any = None, callbacks: Any = None, progress: bool = False,
    ):  # fmt: skip
        keep_parameters(self, locals())

    # --- targets --------------------------------------------------------------------------------------------------

    def _targets(self, y: Any, backend: Backend, incremental: bool, first: bool) -> np.ndarray:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if first and not (incremental and hasattr(self, "classes_")):
            self._labels = Labels(y)
        else:
            self._check_classes(self._labels.classes_in(y))
        classes = self._labels.classes
        self.classes_ = backend.asarray(classes) if classes.dtype.kind in "iuf" else classes
        return self._labels.numbers(y)

    def _check_classes(self, classes: np.ndarray) -> None:
        """Raise ValueError for classes that the network has no outputs for."""
        known = self._labels.classes
        if self.warm_start and set(classes) != set(known):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {known}, `y` has {classes}"
            )
        if len(np.setdiff1d(classes, known)):
            raise ValueError(f"`y` has classes not in `self.classes_`. `self.classes_` has {known}. 'y' has {classes}.")

    def _outputs(self, targets: Any) -> tuple[int, str]:
        kind, outputs = self._labels.kind, self._labels.outputs
        if getattr(self.loss, "matrix", False):  # a loss for which a row is one class of K
            if kind == "multilabel":
                raise ValueError(f"{self.loss!r} is for one class a row; several labels at once need another loss")
            return max(2, outputs), "softmax"
        if kind == "multiclass" and self.loss != "log_loss" and self._takes_logits:
            raise ValueError(
                f"{self.loss!r} is for several labels at once; for one of {outputs} classes, use another loss"
            )
        return outputs, "softmax" if kind == "multiclass" else "logistic"

    def _rows(self, targets: Any, backend: Backend, dtype: str) -> Array:
        return self._labels.rows(targets, self.n_outputs_, backend, dtype)

    def _stratify(self, targets: Any) -> np.ndarray | None:
        if self._labels.kind == "multilabel":
            return None
        names: np.ndarray = self._labels.classes[targets]  # rather than numbers, since errors name rare classes
        return names

    def _weights(
        self, weight: Array | None, targets: Any, incremental: bool, backend: Backend, dtype: str
    ) -> Array | None:
        if self.class_weight is None:
            return weight
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight 'balanced' is not supported for partial_fit, which gets a part of the data at a time: "
                "give the dict {class: weight} that compute_class_weight computes from all of it"
            )
        if self._labels.kind == "multilabel":
            if self.class_weight != "balanced":
                raise ValueError(
                    f"class_weight {self.class_weight!r} is for the classes of one label; for several labels at once "
                    "it must be 'balanced' or None. Weight the rows by sample_weight"
                )
            factors = compute_sample_weight(self.class_weight, targets)
        else:
            classes = self._labels.classes  # all of them: y may lack some
            factors = compute_class_weight(self.class_weight, classes=classes, y=classes[targets])[targets]
        of_classes = backend.asarray(factors, dtype)
        return of_classes if weight is None else of_classes * weight

    def _weighing_loss(self, incremental: bool) -> Any:
        """With `class_weight`, divide weights by their mean over all rows or, in `partial_fit`, not at all."""
        loss = super()._weighing_loss(incremental)
        if self.class_weight is not None:
            loss.weights_over = None if incremental else "fit"
        return loss

    # --- fitting --------------------------------------------------------------------------------------------------

    @property
    def _loss(self) -> Any:
        if not isinstance(self.loss, str):
            return self.loss
        return SoftmaxCrossEntropy() if self._labels.kind == "multiclass" else BinaryCrossEntropyWithLogits()

    @available_if(lambda model: model._check_solver())
    @_fit_context(prefer_skip_nested_validation=True)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Train for one more epoch on these arrays: of data larger than memory, call it for one part after another.

        The first call needs `classes`, all that will ever occur.
        """
        known = getattr(self, "classes_", None)
        if known is None and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        with unchanged_on_error(self):
            if classes is not None:
                with config_context(array_api_dispatch=False):  # with it, scikit-learn refuses lists before 1.9
                    all_classes = unique_labels(on_host(classes) if is_array(classes) else classes)
                if known is None:
                    rows = y if hasattr(y, "tocsr") else on_host(y)
                    several = type_of_target(rows if is_array(y) else y).endswith(("indicator", "multioutput"))
                    self._labels = Labels(rows if several else all_classes)
                    self.classes_ = self._labels.classes
                elif not np.array_equal(self._labels.classes, all_classes):
                    raise ValueError(
                        f"`classes={classes!r}` is not the same as on last call to partial_fit, was: {known!r}"
                    )
            return self._fit(X, y, sample_weight, incremental=True)

    def _validation_score(self, prediction: Array, target: Array, weight: Array | None) -> Any:
        choices = self._labels.choices(prediction, self._threshold)
        right = choices == self._labels.choices(target, 0.5)
        xp = namespace(prediction)
        if right.ndim == 2:
            right = xp.all(right, axis=1)
        right = xp.astype(right, prediction.dtype)
        return xp.mean(right) if weight is None else xp.sum(right * weight) / xp.sum(weight)

    # --- predictions ----------------------------------------------------------------------------------------------

    @property
    def _threshold(self) -> float:
        return 0.0 if self._of_logits else 0.5

    def predict(self, X: Any) -> Any:
        """Return the class of each row of X, (n,); for several labels, rows of 0 and 1, (n, n_labels)."""
        raw = self._raw(X, "predict")
        with self.net_.backend.scope():
            return self._labels.predicted(self._labels.choices(raw, self._threshold), self.classes_)

    def predict_proba(self, X: Any) -> Array:
        """Return the probability of each class, in the order of `classes_`: (n, n_classes)."""
        raw = self._raw(X, "predict_proba")
        with self.net_.backend.scope():
            if self._of_logits:
                raw = ops.softmax(raw) if self.out_activation_ == "softmax" else ops.sigmoid(raw)
            return namespace(raw).concat([1.0 - raw, raw], axis=1) if self._is_single else raw

    def predict_log_proba(self, X: Any) -> Array:
        """Return the logarithm of `predict_proba`, from the logits: finite even if a probability rounds to 0."""
        raw = self._raw(X, "predict_log_proba")
        xp = namespace(raw)
        with self.net_.backend.scope():
            if not self._of_logits:
                return xp.log(xp.concat([1.0 - raw, raw], axis=1) if self._is_single else raw)
            if self.out_activation_ == "softmax":
                shifted = raw - xp.max(raw, axis=1, keepdims=True)
                return shifted - xp.log(xp.sum(xp.exp(shifted), axis=1, keepdims=True))
            both = xp.concat([-raw, raw], axis=1) if self._is_single else raw
            return xp.minimum(both, 0.0) - xp.log1p(xp.exp(-xp.abs(both)))

    @property
    def _is_single(self) -> bool:
        """Whether there is a single output, for the second of two classes."""
        return bool(self.n_outputs_ == 1 and self._labels.kind != "multilabel")

    def input_gradient(self, X: Any) -> Array:
        """Return the derivative of the predicted class's log-probability with respect to X, (n, n_features).

        For several labels, that of the sum of their log-probabilities, each as predicted, present or absent.
        """

        def dy(y: Array) -> Array:
            xp = namespace(y)
            choice = self._labels.choices(y, self._threshold)
            if self.out_activation_ == "softmax":
                chosen = ops.one_hot(choice, y.shape[1], y.dtype)
                return chosen - ops.softmax(y) if self._of_logits else chosen / xp.max(y, axis=1, keepdims=True)
            chosen = xp.astype(xp.reshape(choice, y.shape), y.dtype)
            if self._of_logits:
                return chosen - ops.sigmoid(y)
            return (2.0 * chosen - 1.0) / (chosen * y + (1.0 - chosen) * (1.0 - y))

        return self._slope(X, dy)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
