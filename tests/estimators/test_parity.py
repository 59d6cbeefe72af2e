"""The estimators beside scikit-learn's own: from one random_state the same weights, losses, stops, prints, errors."""

import copy
import pickle
import re
import warnings

import numpy as np
import pytest
import sklearn
from scipy import sparse
from sklearn import clone
from sklearn import neural_network as theirs
from sklearn.datasets import load_breast_cancer, load_diabetes, make_multilabel_classification
from sklearn.exceptions import ConvergenceWarning

from xpnet import estimators as ours

pytestmark = [
    pytest.mark.numpy_only,
    pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning"),
]


def scaled(x):
    return (x - x.mean(axis=0)) / x.std(axis=0)


@pytest.fixture(scope="module")
def problems():
    """Name -> class of estimator, X, y. y of "two" are strings, of "several labels" rows of 0 and 1."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    cancer, diagnosis = load_breast_cancer(return_X_y=True)
    diabetes, progress = load_diabetes(return_X_y=True)
    several, labels = make_multilabel_classification(n_samples=150, n_features=8, n_classes=4, random_state=0)
    diabetes, progress = scaled(diabetes)[:200], scaled(progress)[:200]
    return {
        "ten classes": ("MLPClassifier", x[:300] / 16, y[:300]),
        "two": ("MLPClassifier", scaled(cancer)[:250], np.array(["ill", "well"])[diagnosis][:250]),
        "several labels": ("MLPClassifier", scaled(several), labels),
        "a number": ("MLPRegressor", diabetes, progress),
        "two numbers": ("MLPRegressor", diabetes, np.stack([progress, diabetes[:, 0] ** 2], axis=1)),
        "a count": ("MLPRegressor", diabetes, np.round(progress - progress.min())),
    }


KINDS = ["ten classes", "two", "several labels", "a number", "two numbers", "a count"]


def both(problem, **parameters):
    """Estimators of ours and of theirs, the same but for where they come from; and X and y."""
    kind, x, y = problem
    parameters = {"hidden_layer_sizes": (12, 7), "random_state": 3, "max_iter": 12, "batch_size": 64, **parameters}
    return getattr(ours, kind)(**parameters), getattr(theirs, kind)(**parameters), x, y


def weights_agree(mine, their, tolerance=1e-10):
    for a, b in zip(mine.coefs_ + mine.intercepts_, their.coefs_ + their.intercepts_, strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance)


def books_agree(mine, their, data_terms=1):
    """All that training leaves behind. `data_terms`: how many outputs our loss adds up, where theirs takes the mean."""
    for name in (
        "n_iter_",
        "t_",
        "n_layers_",
        "n_outputs_",
        "out_activation_",
        "n_features_in_",
        "_no_improvement_count",
    ):
        assert getattr(mine, name) == getattr(their, name), name
    if data_terms == 1:
        np.testing.assert_allclose(mine.loss_, their.loss_, rtol=1e-10)
    for name in ("loss_curve_", "validation_scores_", "best_loss_", "best_validation_score_"):
        a, b = getattr(mine, name), getattr(their, name)
        assert (a is None) == (b is None), name
        if a is not None and (data_terms == 1 or "loss" not in name):
            np.testing.assert_allclose(a, b, rtol=1e-10, err_msg=name)


def predictions_agree(mine, their, x):
    a, b = mine.predict(x), their.predict(x)
    assert a.shape == b.shape
    if a.dtype.kind == "f":
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)
    else:
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(mine.predict_proba(x), their.predict_proba(x), rtol=0, atol=1e-10)
        logs = their.predict_log_proba(x)
        np.testing.assert_allclose(mine.predict_log_proba(x), logs, rtol=0, atol=1e-9)


SETTINGS = {
    "adam": {},
    "adam, no shuffling": {"shuffle": False},
    "sgd": {"solver": "sgd", "learning_rate_init": 0.05},
    "sgd, plain momentum": {"solver": "sgd", "learning_rate_init": 0.05, "nesterovs_momentum": False},
    "sgd, momentum 1": {"solver": "sgd", "momentum": 1.0, "max_iter": 3},
    "sgd, invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.2, "power_t": 0.4},
    "sgd, adaptive": {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 2, "tol": 0.02, "max_iter": 25},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 2, "max_iter": 30, "learning_rate_init": 0.01},
    "penalty, tanh": {"alpha": 3.0, "activation": "tanh"},
    "logistic, one layer": {"activation": "logistic", "hidden_layer_sizes": 9},
    "identity, no hidden layer": {"activation": "identity", "hidden_layer_sizes": ()},
}


BEFORE_1_9 = sklearn.__version__.startswith(("1.7.", "1.8."))
WORDS_OF_1_9 = pytest.mark.skipif(BEFORE_1_9, reason="scikit-learn raises an error of another kind before 1.9")
NAMES_OF_1_9 = pytest.mark.skipif(BEFORE_1_9, reason="scikit-learn's error names no classes before 1.9")
STOPS_FROM_1_9 = pytest.mark.skipif(BEFORE_1_9, reason="scikit-learn's early stopping fails on names before 1.9")


def pairs():
    """All but early stopping on more than two classes, where we draw the validation rows by class and they do not."""
    pairs = [(kind, settings) for kind in KINDS for settings in SETTINGS]
    marks = {("two", "early stopping"): STOPS_FROM_1_9}
    return [pytest.param(*p, marks=marks.get(p, ())) for p in pairs if p != ("ten classes", "early stopping")]


@pytest.mark.parametrize(("kind", "settings"), pairs())
def test_training_goes_as_scikit_learns(problems, kind, settings):
    parameters = dict(SETTINGS[settings])
    if kind == "a count":
        parameters |= {"loss": "poisson", "learning_rate_init": 0.001}
    mine, their, x, y = both(problems[kind], **parameters)
    if kind == "two numbers" and "tol" in parameters:  # our loss is twice theirs, and so are its gains
        mine.set_params(tol=2 * parameters["tol"], alpha=0.0)
        their.set_params(alpha=0.0)
    mine.fit(x, y)
    their.fit(x, y)
    weights_agree(mine, their)
    books_agree(mine, their, data_terms=2 if kind == "two numbers" else 1)
    predictions_agree(mine, their, x)
    assert mine.score(x, y) == pytest.approx(their.score(x, y), rel=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_sample_weights_weigh_as_scikit_learns(problems, kind):
    loss = {"loss": "poisson"} if kind == "a count" else {}
    mine, their, x, y = both(problems[kind], alpha=0.5, **loss)
    weight = np.random.default_rng(0).uniform(0, 3, len(x))
    mine.fit(x, y, sample_weight=weight)
    their.fit(x, y, sample_weight=weight)
    weights_agree(mine, their)
    books_agree(mine, their, data_terms=2 if kind == "two numbers" else 1)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradient_are_scikit_learns_at_the_same_weights(problems, kind, weighted):
    loss = {"loss": "poisson"} if kind == "a count" else {}
    mine, their, x, y = both(problems[kind], alpha=2.0, max_iter=1, **loss)
    weight = np.random.default_rng(0).uniform(0.1, 3, len(x)) if weighted else None
    their.fit(x, y)
    mine = type(mine).from_sklearn(their)
    rows = their._label_binarizer.transform(y) if "classes" in kind or kind in ("two", "several labels") else y
    rows = rows.reshape(len(x), -1).astype(float)
    loss = mine._weighing_loss(incremental=False)
    value, grads = mine.net_.value_and_grad(x, rows, loss, sample_weight=weight, l2=2.0)
    n = len(their.coefs_)
    theirs_value, coefs, intercepts = their._backprop(
        x, rows, weight, [x] + [None] * n, [None] * n, [None] * n, [None] * n
    )
    expected = [g for pair in zip(coefs, intercepts, strict=True) for g in pair]
    for a, b in zip(grads.values(), expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-10)
    if kind != "two numbers":
        assert float(value) == pytest.approx(theirs_value, rel=1e-10)


def test_of_several_numbers_loss_and_gradient_agree_with_each_other(problems):
    mine, their, x, y = both(problems["two numbers"], max_iter=1)
    their.fit(x, y)
    mine = type(mine).from_sklearn(their)

    def loss(step):
        bias = dict(mine.net_.params)
        bias["0.bias"] = bias["0.bias"] + step * np.eye(12)[4]
        moved = mine.net_.clone()
        moved.set_params(bias)
        return float(moved.value_and_grad(x, y, mine._loss)[0])

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert slope == pytest.approx(mine.net_.value_and_grad(x, y, mine._loss)[1]["0.bias"][4], rel=1e-6)


@pytest.mark.parametrize("kind", ["ten classes", "two", "several labels", "a number", "a count"])
def test_lbfgs_finds_scikit_learns_optimum(problems, kind):
    more = {"loss": "poisson"} if kind == "a count" else {}
    if kind == "ten classes":  # of hundreds of iterations the ends differ by rounding, but for a convex loss
        more = {"hidden_layer_sizes": ()}
    settings = {"hidden_layer_sizes": (4,), "activation": "tanh", "alpha": 5.0, "tol": 1e-9, "max_iter": 2000}
    mine, their, x, y = both(problems[kind], solver="lbfgs", **settings | more)
    mine.fit(x, y)
    their.fit(x, y)
    assert mine.loss_ == pytest.approx(their.loss_, rel=1e-10)
    assert their.n_iter_ < 2000
    weights_agree(mine, their, 1e-5)  # the loss is flat at its optimum
    assert not hasattr(mine, "loss_curve_")
    assert not hasattr(mine, "partial_fit")


@pytest.mark.parametrize("limits", [{"max_iter": 2}, {"max_iter": 100, "max_fun": 5}], ids=str)
def test_lbfgs_warns_in_scikit_learns_words_where_it_does_not_converge(problems, limits):
    mine, their, x, y = both(problems["two"], solver="lbfgs", **limits)
    with pytest.warns(ConvergenceWarning) as told:
        their.fit(x, y)
    with pytest.warns(ConvergenceWarning, match=f"^{re.escape(str(told[0].message))}$"):
        mine.fit(x, y)
    assert mine.n_iter_ == their.n_iter_


def test_partial_fit_goes_on_as_scikit_learns(problems):
    for kind, more in [("ten classes", {"solver": "sgd"}), ("two", {}), ("several labels", {}), ("two numbers", {})]:
        mine, their, x, y = both(problems[kind], learning_rate="invscaling", learning_rate_init=0.01, **more)
        first = {"classes": np.unique(y)} if kind in ("ten classes", "two") else {}
        first = {"classes": np.arange(y.shape[1])} if kind == "several labels" else first
        for start in (0, 40, 80, 40):
            rows = slice(start, start + 70)
            mine.partial_fit(x[rows], y[rows], **first)
            their.partial_fit(x[rows], y[rows], **first)
            first = {}
        weights_agree(mine, their)
        books_agree(mine, their, data_terms=2 if kind == "two numbers" else 1)
        predictions_agree(mine, their, x)


def test_warm_start_goes_on_as_scikit_learns(problems):
    for kind in ("two", "a number"):
        mine, their, x, y = both(problems[kind], warm_start=True, max_iter=5)
        for _ in range(3):
            mine.fit(x, y)
            their.fit(x, y)
        assert len(mine.loss_curve_) == 15
        weights_agree(mine, their)
        books_agree(mine, their)


@pytest.mark.parametrize("more", [{}, {"batch_size": 1000}, {"batch_size": 1000, "shuffle": False}], ids=str)
@pytest.mark.filterwarnings("ignore:Got `batch_size` less than 1 or larger")
def test_a_random_state_object_moves_on_as_with_scikit_learns(problems, more):
    mine, their, x, y = both(problems["two"], **more)
    one, other = np.random.RandomState(5), np.random.RandomState(5)
    mine.set_params(random_state=one).fit(x, y)
    their.set_params(random_state=other).fit(x, y)
    weights_agree(mine, their)
    assert one.randint(1000) == other.randint(1000)


@pytest.mark.parametrize("settings", ["adam", "sgd, adaptive", pytest.param("early stopping", marks=STOPS_FROM_1_9)])
def test_it_prints_what_scikit_learns_prints(problems, capsys, settings):
    parameters = SETTINGS[settings] | {"max_iter": 60, "tol": 0.02, "n_iter_no_change": 3}
    mine, their, x, y = both(problems["two"], verbose=True, **parameters)
    mine.fit(x, y)
    printed = capsys.readouterr().out
    their.fit(x, y)
    assert printed == capsys.readouterr().out
    assert "Iteration 2, loss = " in printed
    assert ("Setting learning rate to" if "adaptive" in settings else "Stopping.") in printed


def test_sparse_x_gives_what_dense_x_gives(problems):
    for kind in ("ten classes", "a number"):
        mine, their, x, y = both(problems[kind])
        x = np.where(np.abs(x) > 0.4, x, 0.0)
        dense = mine.fit(x, y)
        expected = [w.copy() for w in dense.coefs_]
        for form in (sparse.csr_array, sparse.csc_matrix):
            mine.fit(form(x), y)
            for a, b in zip(mine.coefs_, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
            np.testing.assert_allclose(mine.transform(form(x)), mine.transform(x), rtol=0, atol=1e-12)
        weights_agree(mine, their.fit(sparse.csr_array(x), y))
        predictions_agree(mine, their, sparse.csr_array(x))


def test_sparse_x_is_never_made_dense(monkeypatch):
    x = sparse.random_array((400, 300_000), density=1e-4, format="csr", rng=np.random.default_rng(0))
    y = np.arange(400) % 2
    for name in ("toarray", "todense"):
        monkeypatch.setattr(sparse.csr_array, name, None)
    model = ours.MLPClassifier(2, max_iter=2, random_state=0).fit(x, y)
    assert model.predict_proba(x).shape == (400, 2)
    assert model.coefs_[0].shape == (300_000, 2)


@pytest.mark.parametrize("kind", ["array", "matrix"])
def test_sparse_label_rows_come_back_sparse_and_of_their_kind(problems, kind):
    """An array's rows are of one axis and its `*` is elementwise; a matrix has two and multiplies as matrices do."""
    mine, their, x, y = both(problems["several labels"])
    rows = getattr(sparse, f"csc_{kind}")(y)
    a, b = mine.fit(x, rows).predict(x), their.fit(x, rows).predict(x)
    assert type(a) is getattr(sparse, f"csr_{kind}")
    assert sparse.issparse(b)
    np.testing.assert_array_equal(a.toarray(), b.toarray())


def test_sparse_label_rows_may_come_in_parts(problems):
    mine, their, x, y = both(problems["several labels"])
    for model in (mine, their):
        model.partial_fit(x[:80], sparse.csc_array(y[:80]), classes=np.arange(4)).partial_fit(x[80:], y[80:])
    weights_agree(mine, their)
    assert sparse.issparse(mine.predict(x))
    np.testing.assert_array_equal(mine.predict(x).toarray(), their.predict(x).toarray())


def test_validation_rows_are_stratified_also_where_labels_are_strings():
    rng = np.random.default_rng(0)
    y = np.array(["rare"] * 20 + ["common"] * 160 + ["third"] * 20)
    x = rng.normal(size=(200, 3)) + 3 * (y == "rare")[:, None] - 3 * (y == "third")[:, None]
    model = ours.MLPClassifier(8, early_stopping=True, validation_fraction=0.1, max_iter=40, random_state=0)
    seen = []
    model._validation_score = lambda prediction, target, weight: seen.append(target.sum(axis=0)) or 0.0
    model.fit(x, y)
    np.testing.assert_array_equal(seen[0], [16, 2, 2])
    del model._validation_score
    model.fit(x, y)
    assert model.predict(x[:2]).tolist() == ["rare", "rare"]
    assert len(model.validation_loss_curve_) == len(model.validation_scores_) == model.n_iter_
    assert max(model.validation_scores_) == model.best_validation_score_


def test_validation_rows_are_drawn_as_scikit_learns_where_classes_are_too_small(problems):
    _, x, y = problems["ten classes"]
    alone = np.where(np.arange(len(x)) == 0, 2, y % 2)  # scikit-learn 1.7 takes no words with early stopping
    for rows, labels in [(90, y), (300, alone)]:  # nine rows held out of ten classes; a class of one row
        mine, their, *_ = both(problems["ten classes"], early_stopping=True)
        mine.fit(x[:rows], labels[:rows])
        their.fit(x[:rows], labels[:rows])
        weights_agree(mine, their)
        books_agree(mine, their)
    stream = ours.MLPClassifier(3, early_stopping=True, random_state=0)
    for part in (slice(0, 20), slice(20, 40)):
        stream.partial_fit(x[part], np.arange(len(x))[part] == 0, classes=[False, True])
    assert len(stream.validation_scores_) == 2


def test_early_stopping_puts_the_best_weights_back(problems):
    mine, their, x, y = both(
        problems["a number"], early_stopping=True, max_iter=60, n_iter_no_change=4, learning_rate_init=0.05
    )
    mine.fit(x, y)
    their.fit(x, y)
    assert mine.n_iter_ < 60
    assert np.argmax(mine.validation_scores_) < mine.n_iter_ - 1
    weights_agree(mine, their)


def test_validation_scores_of_a_constant_are_scikit_learns(problems):
    mine, their, x, _ = both(problems["a number"], early_stopping=True)
    y = np.stack([np.full(len(x), 3.0), x[:, 0]], axis=1)
    for target in (y[:, 0], y):  # by itself, and beside another
        mine.fit(x, target)
        their.fit(x, target)
        np.testing.assert_allclose(mine.validation_scores_, their.validation_scores_, rtol=1e-10)
    mine.fit(x, y[:, 0], sample_weight=np.linspace(1, 2, len(x)))
    assert mine.validation_scores_ == [0.0] * mine.n_iter_


def test_frames_give_names_to_the_features():
    import pandas as pd

    x = pd.DataFrame({"age": [20.0, 30, 40, 50], "dose": [1.0, 0, 1, 0]})
    model = ours.MLPRegressor(hidden_layer_sizes=3, max_iter=2, random_state=0).fit(x, [1.0, 2, 3, 4])
    assert model.feature_names_in_.tolist() == ["age", "dose"]
    assert model.n_features_in_ == 2
    with pytest.raises(ValueError, match="feature names should match"):
        model.predict(x.rename(columns={"dose": "weight"}))


@pytest.mark.parametrize("dtype", [object, "U20", ">i4", "int8", bool, "M8[D]"])
def test_classes_have_the_dtype_that_scikit_learn_gives_them(problems, dtype):
    """A column of a data frame holds words as objects, which NumPy's functions for words refuse."""
    mine, their, x, y = both(problems["two"])
    y = y.astype(dtype) if dtype in (object, "U20") else (y == "well").astype(int).astype(dtype)
    for fit in (lambda m: m.fit(x, y), lambda m: m.partial_fit(x[:64], y[:64], classes=np.unique(y))):
        for a, b in zip(*[(fit(m).classes_, m.predict(x)) for m in (mine, their)], strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_array_equal(a, b)
        mine, their, *_ = both(problems["two"])


# --- messages ---------------------------------------------------------------------------------------------------------

WRONG_PARAMETERS = [
    {"hidden_layer_sizes": -1},
    {"hidden_layer_sizes": (3, 0)},
    {"activation": 3},
    {"alpha": -1},
    {"batch_size": 0},
    {"batch_size": "all"},
    {"learning_rate_init": 0},
    {"power_t": "a"},
    {"max_iter": 0},
    {"shuffle": "yes"},
    {"random_state": "a"},
    {"tol": -1},
    {"momentum": 2},
    {"nesterovs_momentum": None},
    {"early_stopping": 3},
    {"validation_fraction": 1},
    {"beta_1": 1},
    {"beta_2": -0.5},
    {"epsilon": 0},
    {"n_iter_no_change": -1},
    {"max_fun": 0},
    {"early_stopping": True, "validation_fraction": 0.001},
]


def error_of(call, *arguments, **keywords):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            call(*arguments, **keywords)
        except Exception as error:
            return error
    return None


@pytest.mark.parametrize("wrong", WRONG_PARAMETERS, ids=str)
@pytest.mark.parametrize("kind", ["two", "a number"])
def test_wrong_parameters_get_scikit_learns_words(problems, kind, wrong):
    mine, their, x, y = both(problems[kind], **wrong)
    a, b = error_of(mine.fit, x, y), error_of(their.fit, x, y)
    assert a is not None
    assert type(a) is type(b)
    if "activation" in wrong:  # more is allowed here
        assert str(a).startswith(f"The 'activation' parameter of {type(mine).__name__} must be a str among {{")
    else:
        assert str(a) == str(b)


def wrong_inputs():
    x, y = np.ones((6, 3)), np.array([0, 1, 0, 1, 0, 1])
    inf = np.where(np.eye(6, 3) == 1, np.inf, x)
    return {
        "no rows": (x[:0], y[:0]),
        "no columns": (x[:, :0], y),
        "a vector": (x[:, 0], y),
        "three axes": (x[None], y),
        "NaN": (x * np.nan, y),
        "infinite": (inf, y),
        "complex": (x + 1j, y),
        "strings": (x.astype(str).astype(object) + "a", y),
        "lengths": (x, y[:4]),
        "no y": (x, None),
        "y NaN": (x, y * np.nan),
        "y of three axes": (x, y[:, None, None]),
        "ragged": ([[1, 2], [3]], [0, 1]),
    }


@pytest.mark.parametrize("name", wrong_inputs())
@pytest.mark.parametrize("kind", ["two", "a number"])
def test_wrong_inputs_get_scikit_learns_words(problems, kind, name):
    mine, their, *_ = both(problems[kind])
    x, y = wrong_inputs()[name]
    a, b = error_of(mine.fit, x, y), error_of(their.fit, x, y)
    assert a is not None
    assert type(a) is type(b)
    assert str(a) == str(b)


def test_what_predict_cannot_take_gets_scikit_learns_words(problems):
    for kind in ("two", "a number"):
        mine, their, x, y = both(problems[kind], max_iter=1)
        for model in (mine, their):
            assert "is not fitted yet" in str(error_of(model.predict, x))
            model.fit(x, y)
        for wrong in (x[:, :2], x[0], x * np.nan, x + 1j):
            a, b = error_of(mine.predict, wrong), error_of(their.predict, wrong)
            assert a is not None
            assert (type(a), str(a)) == (type(b), str(b))


def test_wrong_labels_get_scikit_learns_words(problems):
    mine, their, x, y = both(problems["two"], max_iter=1)
    other = np.where(y == "ill", "dead", y)
    for call in (
        lambda m: m.partial_fit(x, y),
        lambda m: m.fit(x, y).partial_fit(x, other),
        lambda m: m.set_params(warm_start=True).fit(x, y).fit(x, other),
        lambda m: m.set_params(solver="lbfgs").partial_fit,
    ):
        a, b = error_of(call, type(mine)(3)), error_of(call, type(their)(3))
        assert a is not None
        assert (type(a), str(a)) == (type(b), str(b))
    a = error_of(mine.fit, x, np.linspace(0, 1, len(x)))  # theirs prints all of y instead
    assert str(a).startswith("Unknown label type: continuous. Maybe you are trying to fit a classifier, which expects")
    a = error_of(mine.fit(x, y).partial_fit, x, np.linspace(0, 1, len(x)))
    assert str(a).startswith("Unknown label type: continuous. Maybe you are trying to fit a classifier, which expects")
    a = error_of(lambda: type(mine)(3, max_iter=1).partial_fit(x, y, classes=["a", "b"]))
    assert "`y` has classes not in `self.classes_`" in str(a)


@NAMES_OF_1_9
@pytest.mark.parametrize("names", [[False, True], ["common", "rare"], [3, 7]], ids=str)
def test_classes_too_rare_for_early_stopping_are_named(names):
    """scikit-learn names them 'False' and 'True', whatever they are."""
    x, y = np.eye(30), np.array(names)[(np.arange(30) == 0).astype(int)]
    error = error_of(ours.MLPClassifier(3, early_stopping=True).fit, x, y)
    assert type(error) is ValueError
    assert str(error).endswith(f"Classes with too few members are: {names[1:]}")


@pytest.mark.parametrize("weight", [[1.0], [[1.0] * 6], pytest.param([0.0] * 6, marks=WORDS_OF_1_9), [np.nan] * 6])
def test_wrong_sample_weights_get_scikit_learns_words(weight):
    x, y = np.arange(18.0).reshape(6, 3), np.array([0, 1, 0, 1, 0, 1])
    a = error_of(ours.MLPClassifier(3).fit, x, y, sample_weight=weight)
    b = error_of(theirs.MLPClassifier(3).fit, x, y, sample_weight=weight)
    assert a is not None
    assert (type(a), str(a)) == (type(b), str(b))


# --- a zoo of what programs give: taken or refused as by scikit-learn, and never the half of it -----------------------

ROWS = 12
FORMS = "csr", "csc", "coo", "lil", "dok", "dia", "bsr"
ZOO_X = np.random.default_rng(0).normal(size=(ROWS, 3))
ZOO_Y = {"MLPClassifier": np.arange(ROWS) % 2, "MLPRegressor": ZOO_X[:, 0] + 0.5}


def zoo_of_x():
    import pandas as pd

    x, eye = ZOO_X, np.eye(ROWS, 3) == 1
    frame = pd.DataFrame(x, columns=["a", "b", "c"])
    with_nan = np.where(eye, np.nan, x)
    return {
        **{
            f"sparse {form}": getattr(sparse, f"{form}_array")(x)
            for form in ["csr", "csc", "coo", "lil", "dok", "dia", "bsr"]
        },
        "sparse NaN": sparse.csr_array(with_nan),
        "sparse infinite": sparse.csc_array(np.where(eye, np.inf, x)),
        "sparse complex": sparse.csr_array(x + 1j),
        "sparse without columns": sparse.csr_array((ROWS, 0)),
        "None": None,
        "a word": "abc",
        "a number": 3,
        "ragged": [[1, 2], [3]] * (ROWS // 2),
        "an empty list": [],
        "lists of words": [["a", "b", "c"]] * ROWS,
        "lists of None": [[None] * 3] * ROWS,
        "objects": x.astype(object),
        "objects and None": np.where(eye, None, x),
        "masked": np.ma.masked_array(x, x > 1),
        "boolean": x > 0,
        "float16": x.astype("f2"),
        "of another byte order": x.astype(">f8"),
        "a matrix": np.matrix(x),
        "a record": np.zeros(ROWS, dtype=[("a", "f4")]),
        "a range": range(ROWS),
        "two rows": x[:2],
        "frame": frame,
        "frame with words": frame.assign(b="x"),
        "frame with categories": frame.assign(b=pd.Categorical(["x", "y"] * (ROWS // 2))),
        "frame with numbered categories": frame.assign(b=pd.Categorical([1, 2] * (ROWS // 2))),
        "frame with nullable numbers": frame.assign(b=pd.array(np.arange(ROWS), dtype="Int64")),
        "frame with missing ones": frame.assign(b=pd.array([1, None] * (ROWS // 2), dtype="Float64")),
        "frame with dates": frame.assign(b=pd.date_range("2000", periods=ROWS)),
        "frame of mixed names": frame.set_axis(["a", 1, 2], axis=1),
        "frame without columns": frame[[]],
        "series": frame["a"],
    }


def zoo_of_y(y):
    import pandas as pd

    words = np.array(["a", "b"] * (ROWS // 2))
    several = np.stack([ZOO_Y["MLPClassifier"]] * 2, axis=1)
    return {
        "None": None,
        "a word": "abc",
        "a number": 3,
        "a dict": {"a": 1},
        "a list": y.tolist(),
        "a column": y[:, None],
        "two columns": np.stack([y, y], axis=1),
        "lists of lists": several.tolist(),
        "frame": pd.DataFrame({"y": y}),
        "series with another index": pd.Series(y, index=range(5, 5 + ROWS)),
        "categories": pd.Series(pd.Categorical(y)),
        "nullable": pd.Series(pd.array(ZOO_Y["MLPClassifier"], dtype="Int64")),
        "nullable and missing": pd.Series(pd.array([0, 1, None] * (ROWS // 3), dtype="Int64")),
        "words": words,
        "bytes": words.astype("S1"),
        "words of pandas": pd.Series(words, dtype="string"),
        "words and None": np.where(words == "a", None, words.astype(object)),
        "words and numbers": np.array(["a", 1] * (ROWS // 2), dtype=object),
        "dates": np.where(words == "a", np.datetime64("2000-01-01"), np.datetime64("2001-01-01")),
        "a record": np.zeros(ROWS, dtype=[("a", "f4")]),
        "NaN": np.where(words == "a", np.nan, y),
        "infinite": np.where(words == "a", np.inf, y),
        "complex": y + 1j,
        "three axes": y[:, None, None],
        "0-d": np.array(1),
        "too few": y[:5],
        "none": y[:0],
        "without columns": np.zeros((ROWS, 0)),
        "ragged": [[1], [1, 2]] * (ROWS // 2),
        "sets": [{1}, {2}] * (ROWS // 2),
        "sparse": sparse.csr_array(several),
        "sparse column": sparse.csr_array(several[:, :1]),
        "one class": np.zeros(ROWS, dtype=int),
        "several of three": several + np.arange(ROWS)[:, None] % 3,
    }


def zoo_of_weights():
    import pandas as pd

    ones = np.ones(ROWS)
    return {
        "a number": 2.0,
        "a list": [1] * ROWS,
        "negative": -ones,
        "NaN": ones * np.nan,
        "infinite": ones * np.inf,
        "too few": ones[:3],
        "a word": "balanced",
        "words": np.full(ROWS, "a"),
        "words for numbers": np.full(ROWS, "1"),
        "a column": ones[:, None],
        "complex": ones + 1j,
        "boolean": ones > 0,
        "series": pd.Series(ones),
        "nullable": pd.Series(pd.array(ones, dtype="Float64")),
        "missing": pd.Series(pd.array([1, None] * (ROWS // 2), dtype="Float64")),
        "sparse": sparse.csr_array(ones[:, None]),
        "a dict": {0: 1},
        "ragged": [[1], [1, 2]] * (ROWS // 2),
        "beyond what sums hold": ones * 1e308,
    }


# what one of the two takes and the other does not; None where ours takes it
PARTS = {
    ("MLPRegressor", "y", "sparse"): TypeError,
    **{(kind, "sample_weight", name): ValueError for kind in ZOO_Y for name in ("negative", "beyond what sums hold")},
}


def contents(model):
    return {name: pickle.dumps(value) for name, value in vars(model).items()}


@pytest.mark.skipif(BEFORE_1_9, reason="scikit-learn before 1.9 takes and refuses other things")
@pytest.mark.filterwarnings("ignore:the matrix subclass:PendingDeprecationWarning")
@pytest.mark.parametrize("part", ["X", "y", "sample_weight"])
@pytest.mark.parametrize("kind", ZOO_Y)
def test_the_zoo_is_taken_or_refused_as_by_scikit_learn_and_a_refusal_changes_nothing(kind, part):
    y = ZOO_Y[kind]
    first = {"classes": np.unique(y)} if kind == "MLPClassifier" else {}
    calls = {
        "fit": lambda model, **given: model.fit(**given),
        "fit again": lambda model, **given: model.fit(**given),
        "partial_fit": lambda model, **given: model.partial_fit(**given, **first),
        "partial_fit again": lambda model, **given: model.partial_fit(**given),
    }
    if part == "X":
        calls["predict again"] = lambda model, X, **_: model.predict(X)
    if part == "y" and kind == "MLPClassifier":
        calls["partial_fit, classes"] = lambda model, y, **_: model.partial_fit(ZOO_X, ZOO_Y[kind], classes=y)

    unfitted = [getattr(module, kind)(hidden_layer_sizes=4, max_iter=2, random_state=0) for module in (ours, theirs)]
    fitted = [clone(model).fit(ZOO_X, y) for model in unfitted]

    wrong = []
    for name, thing in {"X": zoo_of_x, "y": lambda: zoo_of_y(y), "sample_weight": zoo_of_weights}[part]().items():
        given = {"X": ZOO_X, "y": y[: len(thing)] if name == "two rows" else y, "sample_weight": None} | {part: thing}
        for call, action in calls.items():
            mine, their = copy.deepcopy(fitted if "again" in call else unfitted)
            before = contents(mine)
            a, b = error_of(action, mine, **given), error_of(action, their, **given)
            expected = PARTS.get((kind, part, name), None if b is None else (ValueError, TypeError))
            if (a is not None) if expected is None else not isinstance(a, expected):
                wrong.append((name, call, a, b))
            if a is not None and contents(mine) != before:
                wrong.append((name, call, "has changed the estimator"))
    assert not wrong


def test_a_batch_larger_than_the_data_is_clipped_with_scikit_learns_warning(problems):
    mine, _, x, y = both(problems["two"], batch_size=10_000, max_iter=2)
    with pytest.warns(
        UserWarning, match="Got `batch_size` less than 1 or larger than sample size. It is going to be clip"
    ):
        mine.fit(x, y)
    assert mine.history_.steps == 2


@pytest.mark.filterwarnings("error::sklearn.exceptions.ConvergenceWarning")
def test_the_end_of_max_iter_is_warned_of_in_scikit_learns_words(problems):
    mine, _, x, y = both(problems["two"], max_iter=3)
    with pytest.warns(match=r"Maximum iterations \(3\) reached and the optimization hasn't converged yet\."):
        mine.fit(x, y)
    mine.set_params(max_iter=500, tol=0.1).fit(x, y)  # and not where it converged


def test_weights_that_do_not_stay_finite_raise_scikit_learns_error():
    x, y = np.random.default_rng(0).normal(size=(50, 3)) * 1e200, np.arange(50.0)
    model = ours.MLPRegressor(solver="sgd", random_state=0)
    with pytest.raises(ValueError, match="Solver produced non-finite parameter weights"):
        model.fit(x, y)
