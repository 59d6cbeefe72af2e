"""Training by minibatches: optimizers by solver name, and scikit-learn's stopping rules."""

import math
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import train_test_split

from ..backends import Array
from ..common.terminal import tell
from ..common.warn import warn
from ..layers.normalization import BatchNorm
from ..optimizers import SGD, Adagrad, Adam, AdamW, Nesterov, Optimizer, RMSprop, Slots
from ..schedules import BaseSchedule, rate_at
from ..training.callback import Callback
from ..training.run import Run
from .networks import RowOrder

# --- optimizers -------------------------------------------------------------------------------------------------------


class CorrectedRate(BaseSchedule):
    """Adam's rate with both bias corrections, η √(1 - β₂ᵗ) / (1 - β₁ᵗ), since scikit-learn adds epsilon to √v itself.

    Kingma & Ba 2015, the end of section 2.
    """

    def __init__(self, rate: Any, beta1: float, beta2: float):
        self.rate, self.beta1, self.beta2 = rate, beta1, beta2

    def at(self, step: int) -> float:
        return rate_at(self.rate, step) * math.sqrt(1 - self.beta2 ** (step + 1)) / (1 - self.beta1 ** (step + 1))


class NesterovMomentum(SGD):
    """v ← momentum v + η g;  w ← w - (momentum v + η g), with g at w.

    The same iteration as `Nesterov`, written for its lookahead points. Sutskever et al. 2013, appendix A.1.
    """

    def rule(self, w: Array, g: Array, slots: Slots, rate: float) -> tuple[Array, Slots]:
        step = rate * g
        v = self.momentum * slots["velocity"]
        v += step
        step += self.momentum * v
        return w - step, {"velocity": v}


def sgd(model: Any, rate: Any) -> Optimizer:
    """Return scikit-learn's SGD, whose momentum may be 1."""
    kind = NesterovMomentum if model.nesterovs_momentum and model.momentum > 0 else SGD
    optimizer = kind(rate, momentum=0.0)
    optimizer.momentum = float(model.momentum)
    return optimizer


def adam(model: Any, rate: Any) -> Optimizer:
    """Return scikit-learn's Adam."""
    corrected = CorrectedRate(rate, model.beta_1, model.beta_2)
    return Adam(corrected, model.beta_1, model.beta_2, model.epsilon, bias_correction=False)


OPTIMIZERS: dict[str, Callable[[Any, Any], Optimizer]] = {
    "sgd": sgd,
    "adam": adam,
    "nesterov": lambda m, rate: Nesterov(rate, m.momentum, clip_value=None),
    "adagrad": lambda m, rate: Adagrad(rate, m.epsilon),
    "rmsprop": lambda m, rate: RMSprop(rate, eps=m.epsilon),
    "adamw": lambda m, rate: AdamW(rate, m.beta_1, m.beta_2, m.epsilon, weight_decay=m.alpha),
}
SCHEDULED = ("sgd", "nesterov", "adagrad", "rmsprop")  # solvers to which "invscaling" and "adaptive" apply


# --- when to stop -----------------------------------------------------------------------------------------------------


class StoppingRules(Callback):
    """Updates the estimator's attributes after each epoch; without progress, stops or lowers the learning rate."""

    def __init__(self, model: Any, rows: int):
        self.model, self.rows = model, rows
        self.stopped = False
        self.schedule = model.learning_rate if model.optimizer is None and model.solver in SCHEDULED else "constant"

    def epoch_begin(self, run: Run) -> None:
        if self.model.shuffle and run.steps_per_epoch == 1:
            run.rng.permutation(self.rows)  # unused by a single batch, but scikit-learn draws it

    def epoch_end(self, run: Run) -> None:
        model = self.model
        model.n_iter_ += 1
        model.t_ += self.rows
        model.loss_ = run.history["loss"][-1]
        model.loss_curve_.append(model.loss_)
        if model.verbose:
            tell(f"Iteration {model.n_iter_}, loss = {model.loss_:.8f}", sys.stdout)
        if model.early_stopping:
            self._follow_score(run)
        else:
            self._follow_loss()
        if self.schedule == "invscaling":
            run.optimizer.learning_rate = float(model.learning_rate_init) / (model.t_ + 1) ** model.power_t
        if model._no_improvement_count > model.n_iter_no_change:
            self._give_up(run)

    def train_end(self, run: Run) -> None:
        self.model._optimizer = run.optimizer  # for `partial_fit`, with its current rate

    def _follow_score(self, run: Run) -> None:
        model, score = self.model, run.history["val_score"][-1]
        model.validation_scores_.append(score)
        model.validation_loss_curve_.append(run.history["val_loss"][-1])
        if model.verbose:
            tell(f"Validation score: {score:f}", sys.stdout)
        worse = score < model.best_validation_score_ + model.tol
        model._no_improvement_count = model._no_improvement_count + 1 if worse else 0
        if score > model.best_validation_score_:
            model.best_validation_score_ = score
            model._best = dict(run.net.params), dict(run.net.state)  # later steps do not write to these

    def _follow_loss(self) -> None:
        model = self.model
        worse = model.loss_ > model.best_loss_ - model.tol
        model._no_improvement_count = model._no_improvement_count + 1 if worse else 0
        model.best_loss_ = min(model.best_loss_, model.loss_)

    def _give_up(self, run: Run) -> None:
        model = self.model
        what = "Validation score" if model.early_stopping else "Training loss"
        message = f"{what} did not improve more than tol={model.tol:f} for {model.n_iter_no_change} consecutive epochs."
        if self.schedule != "adaptive":
            message += " Stopping."
            run.stop = self.stopped = True
        elif (rate := run.optimizer.rate(0)) <= 1e-6:
            message += " Learning rate too small. Stopping."
            run.stop = self.stopped = True
        else:
            run.optimizer.learning_rate = rate / 5.0
            model._no_improvement_count = 0
            message += f" Setting learning rate to {rate / 5.0:f}"
        if model.verbose:
            tell(message, sys.stdout)


# --- the run ----------------------------------------------------------------------------------------------------------


def train(
    model: Any, net: Any, x: Any, y: Array, loss: Any, weight: Array | None, stratify: Any, incremental: bool
) -> None:
    """Train `net` for `max_iter` epochs, or for one if `incremental`."""
    if model.early_stopping and incremental and model.stopped_early_:
        return
    if not hasattr(model, "loss_curve_"):  # fitted by "lbfgs" before
        model.loss_curve_ = []
    if not hasattr(model, "best_loss_") or model.early_stopping == (model.best_loss_ is not None):
        model._begin_measure()  # early stopping was switched on or off
    held_out: Any = None
    if model.early_stopping:
        if stratify is not None and not divisible(stratify, model.validation_fraction, strict=not incremental):
            stratify = None
        held_out, (x, y, weight) = split(model, net, (x, y, weight), stratify)
    rows = x.shape[0]
    if not incremental or model._optimizer is None:
        rate = model.learning_rate if callable(model.learning_rate) else float(model.learning_rate_init)
        model._optimizer = OPTIMIZERS[model.solver](model, rate) if model.optimizer is None else model.optimizer
        model._slots = None

    def score(prediction: Array, target: Array) -> float:
        return float(model._validation_score(prediction, target, held_out[2]))

    order = net.rng = RowOrder(model._random_state)
    rules = StoppingRules(model, rows)
    model.n_iter_ = 0
    history = net.fit(
        x,
        y,
        loss=loss,
        optimizer=model._optimizer,
        epochs=1 if incremental else int(model.max_iter),
        batch_size=batch_size(model, net, rows),
        shuffle=model.shuffle,
        sample_weight=weight,
        l2=0.0 if model.solver == "adamw" and model.optimizer is None else float(model.alpha),
        slots=model._slots,
        validation_data=None if held_out is None else held_out[:2],
        metrics=None if held_out is None else {"score": score},
        callbacks=[rules, *(model.callbacks or ())],
        progress=model.progress,
    )
    order.order = None  # an array as long as the data, which the model should not keep
    model.history_, model._slots = history, history.slots
    if model.early_stopping:
        model.stopped_early_ = rules.stopped
        if not incremental or rules.stopped:
            params, state = model._best
            net.assign(params, state)
    if history.interrupted:
        warn("Training interrupted by user.", UserWarning)
    elif not incremental and not rules.stopped and model.n_iter_ == model.max_iter:
        warn(
            f"Stochastic Optimizer: Maximum iterations ({model.max_iter}) reached and the optimization hasn't "
            "converged yet.",
            ConvergenceWarning,
        )


def divisible(classes: np.ndarray, fraction: float, strict: bool) -> bool:
    """Whether a stratified split is possible, with a row of each class on both sides.

    With `strict`, always true for two classes, so that scikit-learn raises its own error if one is too small.
    """
    counts = np.unique(classes, return_counts=True)[1]
    held_out = math.ceil(fraction * len(classes))
    enough = counts.min() >= 2 and len(counts) <= min(held_out, len(classes) - held_out)
    return bool(enough or (strict and len(counts) == 2))


def split(
    model: Any, net: Any, arrays: tuple[Any, ...], stratify: np.ndarray | None
) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """Return the held-out rows of the arrays, drawn as by scikit-learn, and the other rows."""
    rows = np.arange(arrays[0].shape[0])
    train_rows, held_out = train_test_split(
        rows, test_size=model.validation_fraction, random_state=model._random_state, stratify=stratify
    )
    if len(held_out) < 2:
        raise ValueError("The validation set is too small. Increase 'validation_fraction' or the size of your dataset.")
    return tuple(take(net, a, held_out) for a in arrays), tuple(take(net, a, train_rows) for a in arrays)


def take(net: Any, a: Any, rows: np.ndarray) -> Any:
    """Return rows of an array of NumPy or of the network's backend; None stays None."""
    if a is None or isinstance(a, np.ndarray):
        return None if a is None else a[rows]
    with net.backend.scope():
        return net.backend.xp.take(a, net.backend.asarray(rows), axis=0)


def batch_size(model: Any, net: Any, rows: int) -> int:
    """Return the batch size. With batch norm, it is reduced until the last batch has more than one row."""
    norms = any(isinstance(layer, BatchNorm) and layer.trainable for _, layer in net.leaves())
    if norms and rows == 1:
        raise ValueError("batch norm needs the variance of a batch, and there is none with n_samples = 1 to train on")
    if model.batch_size == "auto":
        size = min(200, rows)
    else:
        if model.batch_size > rows:
            warn("Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", UserWarning)
        size = min(int(model.batch_size), rows)
    while norms and size > 2 and rows % size == 1:
        size -= 1
    return size
