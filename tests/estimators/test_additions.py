"""What the estimators add to scikit-learn's, each promise by itself; and the way there and back."""

import copy
import inspect
import pickle
import signal
import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy import sparse
from sklearn import neural_network as theirs
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight

import xpnet as xn
from xpnet.estimators import MLPClassifier, MLPRegressor
from xpnet.estimators.regressor import HalfPoissonDeviance

pytestmark = [
    pytest.mark.numpy_only,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


@pytest.fixture(scope="module")
def digits():
    x, y = load_digits(return_X_y=True)
    return x[:400] / 16, y[:400]


@pytest.fixture(scope="module")
def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    return ((x - x.mean(axis=0)) / x.std(axis=0))[:300], np.array(["ill", "well"])[y[:300]]


@pytest.fixture(scope="module")
def diabetes():
    x, y = load_diabetes(return_X_y=True)
    return (x / x.std(axis=0))[:200], ((y - y.mean()) / y.std())[:200]


def weights(model):
    return [w.copy() for w in (*model.coefs_, *model.intercepts_)]


def same(one, other, tolerance=0.0):
    for a, b in zip(one, other, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


# --- class weights ----------------------------------------------------------------------------------------------------


CLASS_WEIGHTS = ["balanced", {"ill": 3.0, "well": 0.5}]


def row_weights(class_weight, y):
    if class_weight == "balanced":
        share = compute_class_weight("balanced", classes=np.unique(y), y=y)
        class_weight = dict(zip(["ill", "well"], share, strict=True))
    return np.array([class_weight[label] for label in y])


@pytest.mark.parametrize("class_weight", CLASS_WEIGHTS)
@pytest.mark.parametrize("solver", ["lbfgs", "sgd", "adam"])
def test_of_all_rows_at_once_class_weights_are_sample_weights_of_mean_1(cancer, class_weight, solver):
    x, y = cancer
    given = np.random.default_rng(0).uniform(0.5, 2, len(x))
    settings = {"max_iter": 5, "random_state": 0, "solver": solver, "batch_size": len(x)}
    model, plain = MLPClassifier(6, class_weight=class_weight, **settings), MLPClassifier(6, **settings)
    for own in (None, given):
        row = row_weights(class_weight, y) * (1.0 if own is None else own)
        plain.fit(x, y, sample_weight=row / row.mean())
        same(weights(model.fit(x, y, own)), weights(plain), 1e-10)


@pytest.mark.parametrize("class_weight", CLASS_WEIGHTS)
def test_in_batches_class_weights_are_those_of_a_networks_fit(cancer, class_weight):
    x, y = cancer
    given = np.random.default_rng(0).uniform(0.5, 2, len(x))
    settings = {"random_state": 0, "solver": "sgd", "batch_size": 8, "shuffle": False, "nesterovs_momentum": False}
    model = MLPClassifier(6, class_weight=class_weight, max_iter=3, alpha=0.1, **settings)
    net = MLPClassifier(6, max_iter=1, learning_rate_init=1e-300, **settings).fit(x, y).net_
    history = net.fit(
        x,
        (y == "well")[:, None],
        loss=xn.BinaryCrossEntropyWithLogits(),
        optimizer=xn.SGD(0.001, momentum=0.9),
        epochs=3,
        batch_size=8,
        shuffle=False,
        sample_weight=row_weights(class_weight, y) * given,
        l2=0.1,
    )
    same(weights(model.fit(x, y, given)), [net.params[k] for k in ("0.weight", "2.weight", "0.bias", "2.bias")])
    assert model.loss_curve_ == history["loss"]


def test_class_weights_of_several_labels_are_balanced_or_none(cancer):
    x, y = cancer[0], np.stack([cancer[1] == "ill", cancer[0][:, 0] > 1], axis=1)
    row = compute_sample_weight("balanced", y)
    settings = {"max_iter": 5, "random_state": 0, "batch_size": len(x)}
    model = MLPClassifier(6, class_weight="balanced", **settings).fit(x, y)
    same(weights(model), weights(MLPClassifier(6, **settings).fit(x, y, sample_weight=row / row.mean())), 1e-12)
    with pytest.raises(ValueError, match="for several labels at once it must be 'balanced' or None"):
        model.set_params(class_weight={0: 1.0, 1: 2.0}).fit(x, y)


def test_class_weights_with_partial_fit_count_whatever_rows_a_part_has(cancer):
    x, y = cancer
    settings = {"random_state": 0, "alpha": 0.0, "solver": "sgd", "momentum": 0.0, "batch_size": 50}
    for label, weight in (("well", 1.0), ("ill", 5.0)):  # a part may lack a class that is named
        part = x[y == label][:50], y[y == label][:50]
        start = MLPClassifier(6, **settings, max_iter=1, learning_rate_init=1e-300).fit(x, y)
        model = MLPClassifier(6, **settings, class_weight={"ill": 5.0})
        plain = MLPClassifier(6, **settings)
        model.partial_fit(*part, classes=["ill", "well"])
        plain.partial_fit(*part, classes=["ill", "well"])
        for before, after, unweighted in zip(weights(start), weights(model), weights(plain), strict=True):
            np.testing.assert_allclose(after - before, weight * (unweighted - before), rtol=0, atol=1e-15)
    with pytest.raises(ValueError, match="class_weight 'balanced' is not supported for partial_fit"):
        MLPClassifier(class_weight="balanced").partial_fit(x, y, classes=["ill", "well"])


# --- networks ---------------------------------------------------------------------------------------------------------


def test_batch_norm_and_dropout_stand_where_they_are_said_to(digits):
    x, y = digits
    model = MLPClassifier((20, 10), batch_norm=True, dropout=0.2, max_iter=40, learning_rate_init=0.01, random_state=0)
    model.fit(x, y)
    names = [type(layer).__name__ for layer in model.net_.layers]
    assert names == ["Dense", "BatchNorm", "ReLU", "Dropout"] * 2 + ["Dense"]
    assert model.score(x, y) > 0.95
    assert model.n_layers_ == 4


def test_no_last_batch_of_one_row_under_batch_norm(cancer):
    x, y = cancer
    model = MLPClassifier(4, batch_norm=True, batch_size=20, max_iter=1, random_state=0).fit(x[:201], y[:201])
    assert model.history_.steps == 11  # of 19 rows, and the last of 11
    with pytest.raises(ValueError, match="n_samples = 1"):
        MLPClassifier(4, batch_norm=True).fit(x[:1], y[:1])


def test_batch_norm_with_lbfgs_ends_with_the_statistics_of_all_rows(diabetes):
    x, y = diabetes
    model = MLPRegressor(hidden_layer_sizes=5, batch_norm=True, solver="lbfgs", max_iter=30, random_state=0).fit(x, y)
    hidden = x @ model.coefs_[0] + model.intercepts_[0]
    np.testing.assert_allclose(model.net_.state["1.mean"], hidden.mean(axis=0), rtol=1e-10)
    np.testing.assert_allclose(model.net_.state["1.var"], hidden.var(axis=0), rtol=1e-10)
    training, _ = model.net_.forward(x, training=True)
    np.testing.assert_allclose(model.predict(x), training[:, 0], rtol=0, atol=1e-10)
    with pytest.raises(ValueError, match="dropout must be 0"):
        model.set_params(dropout=0.5).fit(x, y)
    with pytest.raises(ValueError, match="no epochs and steps to call callbacks after; use another solver"):
        model.set_params(dropout=0.0, callbacks=[xn.Doctor()]).fit(x, y)


@pytest.mark.parametrize("activation", ["leaky_relu", "elu", xn.Tanh, lambda: xn.LeakyReLU(0.05)])
def test_other_activations(digits, activation):
    x, y = digits
    model = MLPClassifier(16, activation, max_iter=60, learning_rate_init=0.02, random_state=0).fit(x, y)
    assert model.score(x, y) > 0.95
    assert len(model.net_.layers) == 3


@pytest.mark.parametrize("sizes", [(10.7,), np.array([8.0, 4.0]), ("8",), ((5, 5),)])
def test_sizes_that_are_no_integers_are_refused(digits, sizes):
    with pytest.raises(TypeError, match=r"hidden_layer_sizes must be integers, got \["):
        MLPClassifier(sizes).fit(*digits)


def test_layers_of_ones_own(digits):
    x, y = digits

    def build(features, outputs):
        return xn.Sequential(xn.BatchNorm(features), xn.Dense(features, 24), xn.ELU(), xn.Dense(24, outputs))

    model = MLPClassifier(layers=build, max_iter=60, learning_rate_init=0.01, random_state=1).fit(x, y)
    assert model.score(x, y) > 0.95
    assert [w.shape for w in model.coefs_] == [(64, 24), (24, 10)]
    assert model.transform(x).shape == (400, 24)
    np.testing.assert_array_equal(model.fit(x, y).coefs_[0], MLPClassifier(**model.get_params()).fit(x, y).coefs_[0])
    in_a_list = MLPRegressor(layers=lambda n, k: [xn.Dense(n, k)], max_iter=2).fit(x, y)
    assert in_a_list.predict(x).shape == (400,)
    with pytest.raises(ValueError, match=r"gives \(3,\) outputs, expected \(10,\)"):
        MLPClassifier(layers=lambda n, k: [xn.Dense(n, 3)]).fit(x, y)
    with pytest.raises(ValueError, match="has no Dense layer"):
        MLPClassifier(layers=lambda n, k: [xn.Tanh()]).fit(x, y)
    with pytest.raises(TypeError, match="must build a Sequential or a list of layers"):
        MLPClassifier(layers=lambda n, k: 3).fit(x, y)
    with pytest.raises(TypeError, match="sparse X needs a Dense as the first layer"):
        MLPClassifier(layers=build).fit(sparse.csr_array(x), y)


# --- losses -----------------------------------------------------------------------------------------------------------


class Focal(xn.Loss):
    """A user's own, of probabilities: -(1 - p)² log p of the true class."""

    mean_over = "rows"
    matrix = True  # a row is one distribution: of two classes, too

    def terms(self, prediction, target):
        p = prediction * target + (1 - target)  # 1 where it is not the true class: no loss
        slope = 2 * (1 - p) * np.log(p) - (1 - p) ** 2 / p
        return -((1 - p) ** 2) * np.log(p), slope * target


@pytest.mark.parametrize(
    "loss", [xn.CategoricalCrossEntropy(), xn.MeanSquaredError("sum"), Focal(), xn.SoftmaxCrossEntropy()]
)
def test_other_losses_of_classes(digits, cancer, loss):
    for x, y in (digits, cancer):
        model = MLPClassifier(16, loss=loss, max_iter=80, learning_rate_init=0.02, random_state=0).fit(x, y)
        assert model.score(x, y) > 0.95
        probabilities = model.predict_proba(x)
        np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-12)
        np.testing.assert_array_equal(model.classes_[probabilities.argmax(axis=1)], model.predict(x))
        np.testing.assert_allclose(model.predict_log_proba(x), np.log(probabilities), rtol=0, atol=1e-9)


def test_categorical_cross_entropy_is_log_loss(digits):
    x, y = digits
    plain = MLPClassifier(8, max_iter=10, random_state=0).fit(x, y)
    other = MLPClassifier(8, max_iter=10, random_state=0, loss=xn.CategoricalCrossEntropy()).fit(x, y)
    same(weights(plain), weights(other), 1e-10)
    np.testing.assert_allclose(plain.predict_proba(x), other.predict_proba(x), rtol=0, atol=1e-10)


def test_losses_that_do_not_fit_the_labels_are_refused(digits):
    x, y = digits
    with pytest.raises(ValueError, match="is for several labels at once"):
        MLPClassifier(loss=xn.BinaryCrossEntropyWithLogits()).fit(x, y)
    with pytest.raises(ValueError, match="is for one class a row"):
        MLPClassifier(loss=xn.SoftmaxCrossEntropy()).fit(x, np.eye(10)[y].astype(int) | 1)


@pytest.mark.parametrize("loss", [xn.MeanSquaredError(), xn.Huber(0.5), xn.MeanAbsoluteError()])
def test_other_losses_of_numbers(diabetes, loss):
    x, y = diabetes
    model = MLPRegressor(loss, 8, max_iter=100, learning_rate_init=0.02, random_state=0).fit(x, y)
    assert model.score(x, y) > 0.4


def test_sparse_numbers_are_refused(diabetes):
    x, y = diabetes
    with pytest.raises(TypeError, match=r"Sparse y was passed to MLPRegressor, .* Use y.toarray\(\)"):
        MLPRegressor().fit(x, sparse.csr_array(np.stack([y, -y], axis=1)))


def test_a_rate_is_positive_and_a_negative_count_is_refused(diabetes):
    x, y = diabetes
    model = MLPRegressor("poisson", 8, max_iter=50, random_state=0).fit(x, np.abs(y))
    assert model.predict(x).min() > 0
    with pytest.raises(ValueError, match="loss='poisson' needs y >= 0"):
        model.fit(x, y)


def test_poisson_deviance_is_nought_at_its_best_for_every_count():
    counts = np.array([[0.3], [1.0], [2.5]])
    value, gradient = HalfPoissonDeviance().value_and_grad(np.log(counts), counts)
    assert float(value) == pytest.approx(0, abs=1e-15)
    np.testing.assert_allclose(gradient, 0, atol=1e-15)
    assert float(HalfPoissonDeviance()(np.array([[-1.0]]), np.array([[0.0]]))) == pytest.approx(np.exp(-1.0))


def test_a_probability_of_one_half_is_not_yet_the_second_class_or_a_label(digits):
    x, y = digits
    for target in (y > 4, np.stack([y > 4, y % 2], axis=1).astype(int)):
        model = MLPClassifier((), max_iter=1).fit(x, target)
        model.coefs_, model.intercepts_ = [0 * model.coefs_[0]], [0 * model.intercepts_[0]]
        np.testing.assert_array_equal(model.predict_proba(x), 0.5)
        assert not model.predict(x).any()
        assert not model.to_sklearn().predict(x).any()


# --- optimizers, schedules, callbacks ---------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["nesterov", "adagrad", "rmsprop", "adamw"])
def test_other_solvers(digits, solver):
    x, y = digits
    model = MLPClassifier(16, solver=solver, learning_rate_init=0.02, max_iter=60, random_state=0).fit(x, y)
    assert model.score(x, y) > 0.9


def test_an_optimizer_of_xpnets_is_the_solver_by_another_name(digits):
    x, y = digits
    solver = MLPClassifier(8, solver="rmsprop", learning_rate_init=0.003, max_iter=8, random_state=0).fit(x, y)
    optimizer = xn.RMSprop(0.003)
    model = MLPClassifier(8, optimizer=optimizer, solver="lbfgs", max_iter=8, random_state=0).fit(x, y)
    same(weights(solver), weights(model))
    decay = MLPClassifier(8, solver="adamw", alpha=0.3, max_iter=8, random_state=0).fit(x, y)
    model = MLPClassifier(8, optimizer=xn.AdamW(0.001, weight_decay=0.3), alpha=0.0, max_iter=8, random_state=0).fit(
        x, y
    )
    same(weights(decay), weights(model))


def test_a_schedule_sets_the_rate_of_every_step(digits):
    x, y = digits
    rates = []

    class Look(xn.Callback):
        def step_end(self, run):
            rates.append(run.optimizer.rate(run.step - 1))

    schedule = xn.CosineDecay(0.1, 10)
    MLPClassifier(4, solver="sgd", learning_rate=schedule, max_iter=5, callbacks=[Look()], random_state=0).fit(x, y)
    np.testing.assert_allclose(rates, [schedule(i) for i in range(10)])
    constant = MLPClassifier(4, learning_rate=lambda step: 0.01, max_iter=5, random_state=0).fit(x, y)
    same(weights(constant), weights(MLPClassifier(4, learning_rate_init=0.01, max_iter=5, random_state=0).fit(x, y)))


def test_callbacks_see_the_run_and_may_stop_it(digits, capsys):
    x, y = digits
    epochs = []

    class Third(xn.Callback):
        def epoch_end(self, run):
            epochs.append((run.epoch, run.history["val_score"][-1]))
            run.stop = run.epoch == 3

    model = MLPClassifier(8, callbacks=[Third()], early_stopping=True, progress=True, random_state=0).fit(x, y)
    assert model.n_iter_ == 3
    assert [score for _, score in epochs] == model.validation_scores_
    assert "epoch 3" in capsys.readouterr().err
    assert model.history_["loss"] == model.loss_curve_


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_a_callback_that_watches_validation_says_how_an_estimator_comes_to_some(cancer, kind):
    x, y = cancer
    y = y == y[0]
    with pytest.raises(
        ValueError, match=r"no 'val_loss' in the history.* validation_data \(an estimator: early_stopping=True\)"
    ):
        kind(hidden_layer_sizes=4, callbacks=[xn.EarlyStopping()]).fit(x, y)
    stopping = xn.EarlyStopping()
    kind(hidden_layer_sizes=4, callbacks=[stopping], early_stopping=True, max_iter=2).fit(x, y)
    assert stopping.best_epoch > 0


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
@pytest.mark.parametrize(
    ("name", "wrong", "wanted"),
    [
        (
            "optimizer",
            "adam",
            r"'init', 'lookahead' and 'update', such as xn\.Adam\(learning_rate=0\.001\) \(.* the 'solver' param",
        ),
        ("layers", [xn.Dense(2, 1)], r"a function \(n_features, n_outputs\) -> layers, such as lambda n, k: \["),
        ("layers", (xn.Dense(2, 1),), r"a function \(n_features, n_outputs\) -> layers, such as lambda n, k: \["),
        (
            "layers",
            xn.Sequential(xn.Dense(2, 1)),
            r"a function \(n_features, n_outputs\) -> layers, such as lambda n, k: ",
        ),
    ],
)
def test_an_optimizer_or_layers_that_are_none_are_refused_with_an_example(kind, name, wrong, wanted):
    message = rf"^The '{name}' parameter of {kind.__name__} must be .*{wanted}.* or None\. Got .* instead\.$"
    with pytest.raises(ValueError, match=message):
        kind(**{name: wrong}).fit(np.zeros((4, 2)), [0, 1, 0, 1])


def test_partial_fit_with_early_stopping_stops_with_the_best_weights(cancer):
    x, y = cancer
    model = MLPClassifier(16, early_stopping=True, n_iter_no_change=3, learning_rate_init=0.02, random_state=0)
    best = {}
    while not getattr(model, "stopped_early_", False):
        model.partial_fit(x, y, classes=["ill", "well"])
        if model.validation_scores_[-1] == max(model.validation_scores_) and max(model.validation_scores_) not in best:
            best[max(model.validation_scores_)] = weights(model)
    calls = len(model.validation_scores_)
    assert calls > 4
    same(weights(model), best[model.best_validation_score_])
    before = weights(model)
    model.partial_fit(x, y)
    same(weights(model), before)
    assert len(model.loss_curve_) == calls


# --- looking inside ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("changes", [("lbfgs", "adam"), ("early", "late"), ("late", "early"), ("lbfgs", "early")])
def test_training_goes_on_with_another_solver_or_rule_for_when_to_stop(cancer, changes, incremental):
    settings = {
        "lbfgs": {"solver": "lbfgs", "early_stopping": False},
        "adam": {"solver": "adam", "early_stopping": False},
        "late": {"solver": "adam", "early_stopping": False},
        "early": {"solver": "adam", "early_stopping": True},
    }
    before, after = changes
    model = MLPClassifier(6, max_iter=3, random_state=0, warm_start=True, **settings[before]).fit(*cancer)
    epochs, before_that = model.__dict__.get("loss_curve_", []).copy(), weights(model)
    model.set_params(**settings[after])
    (model.partial_fit if incremental else model.fit)(*cancer)
    new = 1 if incremental else 3
    assert model.loss_curve_[: len(epochs)] == epochs
    assert len(model.loss_curve_) == len(epochs) + new
    assert np.abs(weights(model)[0] - before_that[0]).max() < 0.1  # from where it was
    if after == "early":
        assert len(model.validation_scores_) == len(model.validation_loss_curve_) == new
        assert model.best_validation_score_ == max(model.validation_scores_)
        assert model.best_loss_ is None
    else:
        assert model.best_loss_ == min(model.loss_curve_[len(epochs) :])
        assert model.validation_scores_ is model.validation_loss_curve_ is model.best_validation_score_ is None


def test_training_of_scikit_learns_goes_on(cancer):
    x, names = cancer
    y = names == "ill"  # scikit-learn 1.7 takes no words with early stopping
    for settings in ({"solver": "lbfgs"}, {"early_stopping": True}, {}):
        their = theirs.MLPClassifier(6, max_iter=3, random_state=0, warm_start=True, **settings).fit(x, y)
        model = MLPClassifier.from_sklearn(their).set_params(solver="adam").fit(x, y)
        assert len(model.loss_curve_) == (3 if "solver" in settings else 6)


def test_transform_gives_an_array_of_floats_without_a_hidden_layer_too(digits):
    x, y = digits
    model = MLPClassifier((), max_iter=2, random_state=0).fit(x, y)
    for given in (x.tolist(), x, np.round(x).astype(int)):
        got = model.transform(given)
        assert got.dtype == "float64"
        assert got is not given
        np.testing.assert_array_equal(got, given)


def test_another_loss_does_not_change_what_a_fitted_network_says(digits, diabetes):
    x, y = digits
    model = MLPClassifier(6, max_iter=3, random_state=0, warm_start=True).fit(x, y)
    before = model.predict_proba(x)
    model.set_params(loss=xn.CategoricalCrossEntropy())  # of probabilities, where the network gives logits
    np.testing.assert_array_equal(model.predict_proba(x), before)
    np.testing.assert_array_equal(model.to_sklearn().predict(x), model.predict(x))
    x, y = diabetes
    number = MLPRegressor(hidden_layer_sizes=6, max_iter=3, random_state=0, warm_start=True).fit(x, np.abs(y))
    number.set_params(loss="poisson")
    for go_on, data in [
        (model.fit, digits),
        (model.partial_fit, digits),
        (number.fit, (x, np.abs(y))),
        (number.partial_fit, (x, np.abs(y))),
    ]:
        with pytest.raises(ValueError, match="needs another output layer than the fitted network"):
            go_on(*data)
    model.set_params(loss=xn.SoftmaxCrossEntropy()).fit(*digits)  # of logits too
    number.set_params(warm_start=False).fit(x, np.abs(y))
    assert number.out_activation_ == "exp"


def test_labels_of_another_shape_than_the_first_are_refused(cancer):
    x, y = cancer
    rows = np.stack([y == "ill", y == "well"], axis=1)
    for first, later, words in [
        (y, rows, r"y has shape \(300, 2\), expected \(n,\) as in the first fit"),
        (rows, y == "ill", r"y has shape \(300,\), expected \(n, 2\) as in the first fit"),
    ]:
        model = MLPClassifier(6, max_iter=2, random_state=0, warm_start=True).fit(x, first)
        for go_on in (model.fit, model.partial_fit):
            with pytest.raises(ValueError, match=words):
                go_on(x, later)


def test_transform_gives_the_last_hidden_layer(digits):
    x, y = digits
    model = MLPClassifier((12, 5), "tanh", max_iter=3, random_state=0).fit(x, y)
    hidden = np.tanh(np.tanh(x @ model.coefs_[0] + model.intercepts_[0]) @ model.coefs_[1] + model.intercepts_[1])
    np.testing.assert_allclose(model.transform(x), hidden, rtol=0, atol=1e-12)
    frame = model.set_output(transform="pandas").transform(x)
    assert list(frame.columns) == [f"mlpclassifier{i}" for i in range(5)]
    plain = MLPClassifier((), max_iter=3, random_state=0).fit(x, y)
    np.testing.assert_array_equal(plain.transform(x), x)


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hidden_layer_sizes": (6, 5)}, r"hidden_layer_sizes changed from \[6\] to \[6, 5\]"),
        ({"activation": "tanh"}, "activation changed from 'relu' to 'tanh'"),
        ({"batch_norm": True}, "batch_norm changed from False to True"),
        ({"dropout": 0.5}, "dropout changed from 0.0 to 0.5"),
        ({"layers": lambda n, k: [xn.Dense(n, k)]}, "layers changed from None to <function"),
    ],
)
def test_training_does_not_go_on_with_a_network_of_other_settings(cancer, change, words, incremental):
    x, y = cancer
    model = MLPClassifier(6, max_iter=2, random_state=0, warm_start=True).fit(x, y)
    before = [a.copy() for a in weights(model)]
    model.set_params(**change)
    with pytest.raises(ValueError, match=words + ".* fit a new one, with warm_start=False"):
        (model.partial_fit if incremental else model.fit)(x, y)
    assert all(np.array_equal(a, b) for a, b in zip(weights(model), before, strict=True))
    model.set_params(warm_start=False).fit(x, y).set_params(warm_start=True).fit(x, y)


@pytest.mark.parametrize("more", [{}, {"batch_norm": True, "dropout": 0.3}, {"loss": xn.CategoricalCrossEntropy()}])
@pytest.mark.parametrize("labels", ["ten", "two", "several"])
def test_input_gradient_is_that_of_the_predicted_classes_log_probability(digits, labels, more):
    x, y = digits
    y = {"ten": y, "two": y > 4, "several": np.stack([y > 4, y % 2], axis=1).astype(int)}[labels]
    if labels == "several" and "loss" in more:
        more = {"loss": xn.BinaryCrossEntropy()}
    model = MLPClassifier(10, "tanh", max_iter=20, random_state=0, **more).fit(x, y)
    rows = x[:7]
    slope = model.input_gradient(rows)
    assert slope.shape == rows.shape

    def log_probability(x):
        p = model.predict_proba(x)
        if labels == "several":
            return np.log(np.where(model.predict(rows) == 1, p, 1 - p)).sum(axis=1)
        return np.log(p[np.arange(len(x)), np.searchsorted(model.classes_, model.predict(rows))])

    for j in (10, 20, 43):
        step = 1e-5 * np.eye(64)[j]
        expected = (log_probability(rows + step) - log_probability(rows - step)) / 2e-5
        np.testing.assert_allclose(slope[:, j], expected, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(model.input_gradient(sparse.csr_array(rows)), slope, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("kind", "loss"), [("ten", xn.CategoricalCrossEntropy()), ("two", xn.BinaryCrossEntropy())], ids=["ten", "two"]
)
def test_input_gradient_is_finite_where_a_probability_rounds_to_0_or_1(digits, kind, loss):
    x, y = digits
    model = MLPClassifier(6, max_iter=5, random_state=0, loss=loss).fit(x, y if kind == "ten" else y > 4)
    far = x * 1e4
    probability = model.predict_proba(far)
    assert probability.min() == 0
    sure = probability.max(axis=1) == 1
    assert sure.sum() > 100
    most = np.finfo(float).eps * np.prod([np.linalg.norm(w) for w in model.coefs_])  # 1 - p is below eps there
    np.testing.assert_allclose(model.input_gradient(far)[sure], 0, atol=most)
    assert np.isfinite(model.input_gradient(far)).all()


@pytest.mark.parametrize("loss", ["squared_error", "poisson"])
def test_input_gradient_of_numbers(diabetes, loss):
    x, y = diabetes
    y = np.stack([np.abs(y), np.abs(x[:, 0])], axis=1)
    model = MLPRegressor(loss, 10, "tanh", max_iter=20, random_state=0).fit(x, y)
    one = MLPRegressor(loss, 10, "tanh", max_iter=20, random_state=0).fit(x, y[:, 0])
    rows = x[:5]
    assert model.input_gradient(rows).shape == (5, 2, 10)
    assert one.input_gradient(rows).shape == (5, 10)
    step = 1e-5 * np.eye(10)[3]
    expected = (model.predict(rows + step) - model.predict(rows - step)) / 2e-5
    np.testing.assert_allclose(model.input_gradient(rows)[:, :, 3], expected, rtol=1e-5, atol=1e-8)
    expected = (one.predict(rows + step) - one.predict(rows - step)) / 2e-5
    np.testing.assert_allclose(one.input_gradient(rows)[:, 3], expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_what_needs_a_fit_says_so(diabetes, kind):
    model = kind()
    for method in (model.input_gradient, model.transform, model.predict):
        with pytest.raises(NotFittedError, match=f"This {kind.__name__} instance is not fitted yet"):
            method(diabetes[0])
    with pytest.raises(NotFittedError, match=f"This {kind.__name__} instance is not fitted yet"):
        model.to_sklearn()
    for name in ("coefs_", "intercepts_"):
        assert not hasattr(model, name)
        with pytest.raises(NotFittedError, match=f"This {kind.__name__} instance is not fitted yet"):
            getattr(model, name)


def test_float32_stays_float32(digits, diabetes):
    x, y = digits
    for solver in ("adam", "sgd", "lbfgs"):
        model = MLPClassifier(8, solver=solver, max_iter=5, early_stopping=solver == "adam", random_state=0)
        model.fit(x.astype(np.float32), y)
        arrays = [*model.coefs_, *model.intercepts_, model.predict_proba(x.astype(np.float32)), model.transform(x)]
        assert {a.dtype.name for a in arrays} == {"float32"}
    regressor = MLPRegressor(max_iter=2).fit(diabetes[0].astype(np.float32), diabetes[1])
    assert regressor.predict(diabetes[0]).dtype == np.float32
    assert MLPRegressor(max_iter=2).fit(x.astype(int), y).coefs_[0].dtype == np.float64


# --- to and from scikit-learn -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["identity", "logistic", "tanh", "relu"])
@pytest.mark.parametrize("batch_norm", [False, True])
def test_to_scikit_learn_with_the_same_predictions(digits, cancer, diabetes, activation, batch_norm):
    several = digits[0], np.stack([digits[1] > 4, digits[1] % 2], axis=1).astype(int)
    for x, y in (digits, cancer, several):
        model = MLPClassifier((9, 6), activation, batch_norm=batch_norm, dropout=0.1, max_iter=5, random_state=0)
        twin = model.fit(x, y).to_sklearn()
        assert type(twin) is theirs.MLPClassifier
        np.testing.assert_allclose(twin.predict_proba(x), model.predict_proba(x), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(twin.predict(x), model.predict(x))
        assert twin.get_params()["hidden_layer_sizes"] == (9, 6)
        assert twin.partial_fit(x, y).n_iter_ == 1
    x, y = diabetes
    for loss in ("squared_error", "poisson"):
        model = MLPRegressor(loss, 7, activation, batch_norm=batch_norm, max_iter=5, random_state=0).fit(x, np.abs(y))
        twin = model.to_sklearn()
        assert twin.loss == loss
        np.testing.assert_allclose(twin.predict(x), model.predict(x), rtol=0, atol=1e-12)


def test_from_scikit_learn_and_back(digits, cancer, diabetes):
    several = digits[0], np.stack([digits[1] > 4, digits[1] % 2], axis=1).astype(int)
    for x, y in (digits, cancer, several):
        model = theirs.MLPClassifier((9, 6), max_iter=5, random_state=0, tol=1.0).fit(x, y)
        twin = MLPClassifier.from_sklearn(model)
        assert twin._no_improvement_count == model._no_improvement_count == 4
        np.testing.assert_allclose(twin.predict_proba(x), model.predict_proba(x), rtol=0, atol=1e-12)
        np.testing.assert_array_equal(twin.predict(x), model.predict(x))
        same(weights(twin.to_sklearn()), weights(model))
        assert twin.loss_curve_ == model.loss_curve_
        assert twin.partial_fit(x, y).n_iter_ == 1
    x, y = diabetes
    model = theirs.MLPRegressor("poisson", 7, max_iter=5, random_state=0).fit(x, np.abs(y))
    twin = MLPRegressor.from_sklearn(model)
    np.testing.assert_allclose(twin.predict(x), model.predict(x), rtol=0, atol=1e-12)
    assert twin.set_params(warm_start=True).fit(x, np.abs(y)).t_ == 2 * model.t_
    for wrong in ("MLPClassifier", theirs.MLPClassifier(max_iter=2).fit(*digits)):
        with pytest.raises(TypeError, match="from_sklearn: expected scikit-learn's MLPRegressor, got "):
            MLPRegressor.from_sklearn(wrong)
    with pytest.raises(NotFittedError):
        MLPRegressor.from_sklearn(theirs.MLPRegressor())


def test_scikit_learns_training_goes_on_by_itself(cancer):
    x, y = cancer
    for more in ({}, {"early_stopping": True}):
        model = MLPClassifier(9, max_iter=5, random_state=0, warm_start=True, **more).fit(x, y == "ill")
        before, epochs = weights(model), model.loss_curve_.copy()
        best = model.best_validation_score_
        their = model.to_sklearn().set_params(learning_rate_init=1e-9, early_stopping=bool(more)).fit(x, y == "ill")
        assert their.best_validation_score_ == best  # of weights that no step of 1e-9 has bettered
        same(weights(model), before)
        assert model.loss_curve_ == epochs
        assert len(their.loss_curve_) == 10


@pytest.mark.parametrize(
    ("ours", "expected"),
    [
        ({"solver": "lbfgs"}, ("lbfgs", "constant")),
        ({"solver": "adam"}, ("adam", "constant")),
        ({"solver": "sgd", "learning_rate": "invscaling"}, ("sgd", "invscaling")),
        ({"solver": "adagrad", "learning_rate": "adaptive"}, ("sgd", "adaptive")),
        ({"solver": "adam", "learning_rate": xn.CosineDecay(0.01, 10)}, ("adam", "constant")),
    ],
    ids=str,
)
def test_the_solver_and_rate_go_to_scikit_learn_where_it_has_them(diabetes, ours, expected):
    model = MLPRegressor(hidden_layer_sizes=3, max_iter=2, random_state=0, **ours).fit(*diabetes)
    params = model.to_sklearn().get_params()
    assert (params["solver"], params["learning_rate"]) == expected
    theirs.MLPRegressor(**params).fit(*diabetes)


def test_other_losses_go_to_scikit_learn_too(digits, cancer):
    for x, y in (digits, cancer):
        for loss in (xn.SoftmaxCrossEntropy(), xn.CategoricalCrossEntropy()):
            model = MLPClassifier(9, loss=loss, max_iter=5, random_state=0).fit(x, y)
            np.testing.assert_allclose(model.to_sklearn().predict_proba(x), model.predict_proba(x), rtol=0, atol=1e-12)


def test_what_scikit_learn_cannot_express_is_named(digits):
    x, y = digits
    cases = {
        "layer 1, LeakyReLU()": lambda n, k: [xn.Dense(n, 5), xn.LeakyReLU(), xn.Dense(5, k)],
        "BatchNorm(5)": lambda n, k: [xn.Dense(n, 5), xn.Tanh(), xn.BatchNorm(5), xn.Dense(5, k)],
        "BatchNorm(64)": lambda n, k: [xn.BatchNorm(n), xn.Dense(n, k)],
        "Tanh()": lambda n, k: [xn.Dense(n, 5), xn.Tanh(), xn.Tanh(), xn.Dense(5, k)],
        "one activation for all": lambda n, k: [xn.Dense(n, 5), xn.Tanh(), xn.Dense(5, 4), xn.ReLU(), xn.Dense(4, k)],
        "after the last Dense": lambda n, k: [xn.Dense(n, k), xn.Tanh()],
    }
    for named, layers in cases.items():
        model = MLPClassifier(layers=layers, max_iter=2, random_state=0).fit(x, y)
        with pytest.raises(TypeError, match="to_sklearn: ") as error:
            model.to_sklearn()
        assert named in str(error.value)


# --- what is refused, and what is said --------------------------------------------------------------------------------


def test_lbfgs_prints_its_iterations_where_asked(diabetes, capsys):
    model = MLPRegressor(hidden_layer_sizes=3, solver="lbfgs", max_iter=4, verbose=True, random_state=0).fit(*diabetes)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(", loss = ")[0] for line in lines] == [f"Iteration {i}" for i in range(1, 5)]
    assert float(lines[-1].partition(" = ")[2]) == pytest.approx(model.loss_, rel=1e-7)


def test_ctrl_c_ends_the_training_with_scikit_learns_warning(cancer):
    class Interrupt(xn.Callback):
        def epoch_end(self, run):
            if run.epoch == 2:
                signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.warns(UserWarning, match=r"^Training interrupted by user\.$"):
            model = MLPClassifier(4, callbacks=[Interrupt()], random_state=0).fit(*cancer)
    finally:
        signal.signal(signal.SIGINT, before)
    assert model.n_iter_ == 2


def interrupted_fit(x, y):
    class Interrupt(xn.Callback):
        def epoch_end(self, run):
            run.history.interrupted = True

    MLPClassifier(4, callbacks=[Interrupt()], random_state=0).fit(x, y)


WARNED = {
    "max_iter": lambda x, y: MLPClassifier(2, max_iter=1).fit(x, y),
    "a larger batch": lambda x, y: MLPClassifier(2, batch_size=1000).partial_fit(x, y, classes=["ill", "well"]),
    "lbfgs": lambda x, y: MLPClassifier(2, solver="lbfgs", max_iter=1).fit(x, y),
    "interrupted": interrupted_fit,
    "in a pipeline": lambda x, y: make_pipeline(MLPClassifier(2, max_iter=1)).fit(x, y),
    "in a search": lambda x, y: GridSearchCV(MLPClassifier(2, max_iter=1), {"alpha": [1.0]}, cv=2).fit(x, y),
}


@pytest.mark.parametrize("name", WARNED)
def test_warnings_point_at_the_users_line_and_are_filtered_as_the_packages(cancer, name):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        WARNED[name](*cancer)
    lines, first = inspect.getsourcelines(WARNED[name] if name != "interrupted" else interrupted_fit)
    assert told
    for warning in told:
        assert warning.filename == __file__
        assert warning.lineno in range(first, first + len(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="xpnet")
        WARNED[name](*cancer)


@pytest.mark.parametrize("solver", ["adam", "lbfgs"])
def test_an_estimator_whose_warning_is_raised_is_fitted_as_scikit_learns_is(cancer, solver):
    for kind in (MLPClassifier, theirs.MLPClassifier):
        model = kind(4, solver=solver, max_iter=2, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            with pytest.raises(ConvergenceWarning):
                model.fit(*cancer)
        assert model.score(*cancer) > 0.1


def test_a_fit_that_ends_finite_and_useless_points_to_the_doctor(diabetes):
    x, y = diabetes
    model = MLPRegressor(hidden_layer_sizes=8, max_iter=1, warm_start=True, solver="sgd", random_state=0).fit(x, y)
    model.intercepts_[0][...] = -1e6  # as a step that was much too large leaves them
    model.set_params(max_iter=30)
    with pytest.warns(RuntimeWarning, match=r"one output for all rows.*callbacks=\[xn\.Doctor\(\)\]") as told:
        model.fit(x, y)
    assert [w.filename for w in told if w.category is RuntimeWarning] == [__file__]
    model.set_params(callbacks=[xn.Doctor(log=None)]).fit(x, y)
    assert "dead units" in {finding.kind for finding in model.callbacks[0].findings}


def test_calls_of_partial_fit_agree_on_classes_and_outputs(cancer, diabetes):
    x, y = cancer
    model = MLPClassifier(4, random_state=0).partial_fit(x, y, classes=["ill", "well"])
    with pytest.raises(ValueError, match="is not the same as on last call to partial_fit, was: "):
        model.partial_fit(x, y, classes=["dead", "ill", "well"])
    x, y = diabetes
    model = MLPRegressor(hidden_layer_sizes=4, random_state=0).partial_fit(x, y)
    with pytest.raises(ValueError, match="y has 2 outputs, expected 1 as in the first fit"):
        model.partial_fit(x, np.stack([y, y], axis=1))


def test_several_labels_of_several_classes_are_refused(digits):
    x, y = digits
    with pytest.raises(ValueError, match="Multioutput target data is not supported with label binarization"):
        MLPClassifier(4).fit(x, np.stack([y, y], axis=1))


def test_transform_needs_the_last_dense_layer_by_itself(digits):
    model = MLPClassifier(layers=lambda n, k: [xn.Dense(n, 4), xn.Sequential(xn.ReLU(), xn.Dense(4, k))], max_iter=1)
    with pytest.raises(TypeError, match=r"transform: the last Dense layer must not be within another, Sequential\("):
        model.fit(*digits).transform(digits[0])


def test_without_scikit_learn_the_error_says_how_to_install_it():
    program = "import sys; sys.modules['sklearn'] = None; import xpnet.estimators"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == (
        "ImportError: xpnet.estimators needs scikit-learn: pip install scikit-learn threadpoolctl"
    )


@pytest.mark.parametrize("name", ["coefs_", "intercepts_"])
def test_a_coefficient_that_is_assigned_is_the_networks(diabetes, name):
    x, y = diabetes
    model = MLPRegressor(hidden_layer_sizes=(5,), solver="sgd", tol=1e9, n_iter_no_change=1).fit(x, y)
    arrays = getattr(model, name)
    assert isinstance(arrays, list)
    arrays[0] = given = arrays[0] + 1
    arrays[1] *= 0
    again = getattr(model, name)
    np.testing.assert_array_equal(again[0], given)
    np.testing.assert_array_equal(again[1], 0)
    assert all(a is b for a, b in zip(arrays, again, strict=True))
    before = model.predict(x)
    for wrong in (
        lambda: arrays.append(arrays[0]),
        lambda: arrays.extend([]),
        lambda: arrays.insert(0, arrays[0]),
        lambda: arrays.pop(),
        lambda: arrays.remove(arrays[0]),
        lambda: arrays.clear(),
        lambda: arrays.sort(),
        lambda: arrays.reverse(),
        lambda: arrays.__delitem__(0),
        lambda: arrays.__iadd__(arrays),
        lambda: arrays.__imul__(2),
    ):
        with pytest.raises(TypeError, match=rf"{name} has an array for each Dense .* model\.{name}\[i\] = array"):
            wrong()
    with pytest.raises(ValueError, match="has shape"):
        arrays[0] = arrays[0][:1]
    with pytest.raises(ValueError, match=f"{name}: 3 arrays"):
        arrays[:] = [*arrays, arrays[0]]
    np.testing.assert_array_equal(model.predict(x), before)
    assert type(pickle.loads(pickle.dumps(arrays))) is type(copy.deepcopy(arrays)) is type(arrays + arrays) is list


def test_coefficients_are_assigned_as_to_scikit_learns_or_not_at_all(diabetes):
    """As averaging the weights of several models does."""
    x, y = diabetes
    one, two = (MLPRegressor(hidden_layer_sizes=(8,), max_iter=3, random_state=seed).fit(x, y) for seed in (0, 1))
    kept = weights(one)
    for wrong, message in [
        (two.coefs_[:1], "coefs_: 1 arrays for 2 Dense layers"),
        (two.coefs_[::-1], r"0.weight has shape \(8, 1\), expected \(10, 8\)"),
        ([two.coefs_[0], two.coefs_[1] * np.nan], "2.weight has NaN"),
    ]:
        with pytest.raises(ValueError, match=message):
            one.coefs_ = wrong
        same(weights(one), kept)
    one.coefs_, one.intercepts_ = two.coefs_, two.intercepts_
    np.testing.assert_array_equal(one.predict(x), two.predict(x))
    one.coefs_[0][...] = 0.0
    assert np.ptp(one.predict(x)) == 0.0
    assert np.any(two.coefs_[0])
    with pytest.raises(NotFittedError, match="This MLPRegressor instance is not fitted yet"):
        MLPRegressor().coefs_ = kept[:2]
