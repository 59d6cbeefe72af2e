"""The estimators among scikit-learn's tools, on every backend; and its own checks of them."""

import collections
import copy
import os
import pickle
import threading
import warnings

import joblib
import numpy as np
import pytest
import sklearn
import skops.io
from scipy import sparse
from sklearn import clone
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin, is_classifier, is_regressor
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from sklearn.model_selection import GridSearchCV, KFold, cross_val_predict, cross_val_score
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import check_estimator

import xpnet as xn
from xpnet.estimators import MLPClassifier, MLPRegressor

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def cancer():
    x, y = load_breast_cancer(return_X_y=True)
    return ((x - x.mean(axis=0)) / x.std(axis=0))[:200], y[:200]


@pytest.fixture(scope="module")
def diabetes():
    x, y = load_diabetes(return_X_y=True)
    return (x / x.std(axis=0))[:200], ((y - y.mean()) / y.std())[:200]


def small(**more):
    return {"hidden_layer_sizes": (8,), "max_iter": 6, "random_state": 0} | more


ALL_ON = {"batch_norm": True, "dropout": 0.2, "early_stopping": True}


BEFORE_1_9 = sklearn.__version__.startswith(("1.7.", "1.8."))  # with dispatch on, it refuses lists itself, of anyone

# --- scikit-learn's checks --------------------------------------------------------------------------------------------

# why a check does not run: what the reason that it gives begins or ends with -> the checks
SKIPS = {
    "dpnp is not installed": {"check_array_api_input"},
    "array_api_strict is not installed": {
        "check_array_api_input",
        "check_array_api_mixed_inputs",
        "check_array_api_same_namespace",
    },
    "torch is not installed": {"check_array_api_input", "check_array_api_mixed_inputs"},
    "cupy is not installed": {"check_array_api_input", "check_array_api_mixed_inputs"},
    "PyTorch test requires cuda": {"check_array_api_input", "check_array_api_mixed_inputs"},
    "Skipping XPU device test": {"check_array_api_input"},
    "Skipping MPS device test": {"check_array_api_input", "check_array_api_mixed_inputs"},
    "does not have a decision_function": {"check_classifiers_multilabel_output_format_decision_function"},
}
# what cannot hold with batch norm and dropout: a batch's mean and variance are those of its rows, which weights do not
# enter, and every row has a mask of its own, so that a row of weight 2 is not the same as two rows
WITH_NORM_AND_DROPOUT = {
    "check_sample_weight_equivalence_on_dense_data": "statistics and masks are of rows, not of weights",
    "check_sample_weight_equivalence_on_sparse_data": "statistics and masks are of rows, not of weights",
}


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("all_on", "dispatch"), [(False, False), (True, True)], ids=["plain", "batch norm and dropout, dispatch"]
)
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_check_estimator(kind, all_on, dispatch):
    """All of scikit-learn's checks pass. Those that do not run, and why, in its own words:

    - check_array_api_input, check_array_api_mixed_inputs, check_array_api_same_namespace: for libraries that are not
      installed (dpnp here; in a session without them, PyTorch, CuPy or array_api_strict), for devices that are not
      there (CUDA, XPU, MPS), and for CuPy where it is installed and no driver answers;
    - check_classifiers_multilabel_output_format_decision_function: there is no decision_function, as in scikit-learn's.
    """
    more = {"max_iter": 40}  # 25 are enough
    if all_on:
        more |= {"batch_norm": True, "dropout": 0.1, "hidden_layer_sizes": 50}
    expected = WITH_NORM_AND_DROPOUT if all_on else {}
    with warnings.catch_warnings(), sklearn.config_context(array_api_dispatch=dispatch):
        warnings.simplefilter("ignore")
        results = check_estimator(kind(**more), on_fail=None, on_skip=None, expected_failed_checks=expected)
    count = collections.Counter(result["status"] for result in results)
    others = ["cudaError", *(["is not a supported array type"] if dispatch and BEFORE_1_9 else [])]  # faults
    failed = [r for r in results if r["status"] == "failed" and not any(o in str(r["exception"]) for o in others)]
    assert not failed, [(r["check_name"], r["exception"]) for r in failed]
    assert {r["check_name"] for r in results if r["status"] == "xfail"} == set(expected)
    assert count["passed"] > (50 if BEFORE_1_9 else 60)
    for result in results:
        if result["status"] == "skipped":
            reason = str(result["exception"])
            assert any(part in reason and result["check_name"] in names for part, names in SKIPS.items()), reason


# --- copies -----------------------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
@pytest.mark.parametrize("more", [{}, ALL_ON, {"solver": "lbfgs"}], ids=["plain", "all on", "lbfgs"])
def test_copies_predict_the_same(cancer, diabetes, more):
    for kind, (x, y) in [(MLPClassifier, cancer), (MLPRegressor, diabetes)]:
        model = kind(**small(**more)).fit(x, y)
        for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), clone(model).fit(x, y)):
            np.testing.assert_array_equal(other.predict(x), model.predict(x))
            np.testing.assert_array_equal(other.coefs_[0], model.coefs_[0])
        if not more:
            other = pickle.loads(pickle.dumps(model)).partial_fit(x, y)
            np.testing.assert_array_equal(other.coefs_[0], model.partial_fit(x, y).coefs_[0])


@pytest.mark.numpy_only
@pytest.mark.parametrize("more", [{}, ALL_ON, {"solver": "lbfgs"}], ids=["plain", "all on", "lbfgs"])
def test_equal_fits_have_equal_pickles(cancer, diabetes, more):
    for kind, (x, y) in [(MLPClassifier, cancer), (MLPRegressor, diabetes)]:
        one, two = (kind(**small(**more)).fit(x, y) for _ in range(2))
        assert joblib.hash(one) == joblib.hash(two)
        assert pickle.dumps(one) == pickle.dumps(two)


@pytest.mark.numpy_only
@pytest.mark.parametrize("more", [{}, ALL_ON, {"solver": "lbfgs"}], ids=["plain", "all on", "lbfgs"])
def test_skops_files_give_the_estimator_back_whole(cancer, diabetes, more):
    several = cancer[0], sparse.csr_array(np.stack([cancer[1], 1 - cancer[1]], axis=1))
    for kind, (x, y) in [(MLPClassifier, cancer), (MLPClassifier, several), (MLPRegressor, diabetes)]:
        model = kind(**small(**more)).fit(x, y)
        file = skops.io.dumps(model)
        strangers = skops.io.get_untrusted_types(data=file)
        assert all(name.startswith("xpnet.") for name in strangers)
        other = skops.io.loads(file, trusted=strangers)
        a, b = model.predict(x), other.predict(x)
        assert type(a) is type(b)
        np.testing.assert_array_equal(*[labels.toarray() if sparse.issparse(labels) else labels for labels in (a, b)])
        if "solver" not in more:
            assert (type(other.history_), other.history_) == (type(model.history_), model.history_)
            assert vars(other.history_).keys() == vars(model.history_).keys()
            assert (other.history_.steps, other.history_.seconds) == (model.history_.steps, 0.0)  # by no clock
            np.testing.assert_array_equal(other.partial_fit(x, y).coefs_[0], model.partial_fit(x, y).coefs_[0])


@pytest.mark.numpy_only
@pytest.mark.parametrize("more", [{}, {"early_stopping": True}, {"solver": "lbfgs"}], ids=str)
def test_a_fitted_models_size_is_not_the_datas(more):
    rng = np.random.default_rng(0)
    sizes = []
    for rows in (200, 4000):
        x = rng.normal(size=(rows, 3))
        model = MLPClassifier(**small(max_iter=3, **more)).fit(x, x[:, 0] > 0)
        sizes.append(len(pickle.dumps(model)))
    assert sizes[1] < sizes[0] + 100  # numbers of more digits


@pytest.mark.numpy_only
def test_one_random_state_gives_the_same_weights_to_the_bit_and_the_global_one_is_left_alone(cancer):
    x, y = cancer
    np.random.seed(3)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    for more in ({}, ALL_ON, {"solver": "lbfgs"}, {"solver": "sgd", "batch_size": 30}):
        one, other = (MLPClassifier(**small(**more)).fit(x, y) for _ in range(2))
        for a, b in zip(one.coefs_ + one.intercepts_, other.coefs_ + other.intercepts_, strict=True):
            np.testing.assert_array_equal(a, b)
        third = MLPClassifier(**small(**more) | {"random_state": 1}).fit(x, y)
        assert np.abs(third.coefs_[0] - one.coefs_[0]).max() > 0
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.numpy_only
def test_two_processes_predict_what_one_does(cancer):
    x, y = cancer
    model = make_pipeline(StandardScaler(), MLPClassifier(**small(**ALL_ON)))
    one, two = (cross_val_predict(model, x, y, cv=3, method="predict_proba", n_jobs=n) for n in (1, 2))
    np.testing.assert_array_equal(one, two)


@pytest.mark.dask_only
@pytest.mark.numpy_only
def test_a_worker_of_dask_predicts_what_one_process_does(cancer):
    from distributed import Client, LocalCluster

    x, y = cancer
    model = make_pipeline(StandardScaler(), MLPClassifier(**small(**ALL_ON)))
    expected = cross_val_predict(model, x, y, cv=3, method="predict_proba")
    one = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": None}  # of one thread it would not be asked
    with LocalCluster(**one) as cluster, Client(cluster), joblib.parallel_config("dask"):
        found = cross_val_predict(model, x, y, cv=3, method="predict_proba")
        processes = cross_val_score(model, x, y, cv=2, scoring=lambda *given: os.getpid())
    assert os.getpid() not in processes
    np.testing.assert_array_equal(found, expected)


@pytest.mark.numpy_only
def test_threads_may_predict_at_once(cancer):
    x, y = cancer
    model = MLPClassifier(**small()).fit(x, y)
    expected, wrong = model.predict_proba(x), []

    def predict():
        wrong.extend(i for i in range(20) if not np.array_equal(model.predict_proba(x), expected))

    threads = [threading.Thread(target=predict) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# --- tools ------------------------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
def test_among_scikit_learns_tools():
    x, y = load_digits(return_X_y=True)
    x, y = x[:300], y[:300]
    model = make_pipeline(StandardScaler(), MLPClassifier(32, max_iter=40, learning_rate_init=0.01, random_state=0))
    assert cross_val_score(model, x, y, cv=3).min() > 0.8
    search = GridSearchCV(
        model, {"mlpclassifier__batch_norm": [False, True], "mlpclassifier__alpha": [1e-4, 1.0]}, cv=2
    )
    assert search.fit(x, y).best_score_ > 0.8
    calibrated = CalibratedClassifierCV(MLPClassifier(**small(class_weight="balanced")), cv=2).fit(x, y)
    np.testing.assert_allclose(calibrated.predict_proba(x).sum(axis=1), 1)
    assert OneVsRestClassifier(MLPClassifier(**small(max_iter=40))).fit(x, y).score(x, y) > 0.8
    tags = get_tags(MLPClassifier())
    assert tags.array_api_support
    assert tags.input_tags.sparse
    assert tags.classifier_tags.multi_label


@pytest.mark.numpy_only
def test_searches_reach_the_settings_of_optimizer_loss_and_schedule(diabetes):
    x, y = diabetes
    optimizer = xn.Adam(xn.StepDecay(0.01, every=100))
    model = MLPRegressor(xn.Huber(), **small(optimizer=optimizer, batch_size=50))
    grid = {"optimizer__learning_rate__rate": [1e-7, 0.03], "loss__delta": [1e-5, 1.0], "optimizer__beta1": [0.8]}
    search = GridSearchCV(make_pipeline(model), {f"mlpregressor__{k}": v for k, v in grid.items()}, cv=2).fit(x, y)
    best = search.best_estimator_[0]
    assert search.best_params_["mlpregressor__optimizer__learning_rate__rate"] == 0.03
    assert repr(best.optimizer) == "Adam(learning_rate=StepDecay(0.03, every=100), beta1=0.8)"
    again = MLPRegressor(best.loss, **small(optimizer=best.optimizer, batch_size=50)).fit(x, y)
    np.testing.assert_array_equal(again.coefs_[0], best.coefs_[0])
    assert repr((model.loss, optimizer)) == "(Huber(), Adam(learning_rate=StepDecay(0.01, every=100)))"
    with pytest.raises(
        ValueError, match=r"^Invalid parameter 'rate' for Adam\(.*Valid parameters are: \['learning_rate"
    ):
        model.set_params(optimizer__rate=0.1)


@pytest.mark.numpy_only
@pytest.mark.parametrize("kind", [MLPClassifier, MLPRegressor])
def test_it_is_one_of_scikit_learns_by_what_programs_ask(kind):
    model = kind(optimizer=xn.Adam(0.01))
    assert isinstance(model, BaseEstimator)
    assert (is_classifier(model), is_regressor(model)) == (kind is MLPClassifier, kind is MLPRegressor)
    assert isinstance(model, ClassifierMixin if kind is MLPClassifier else RegressorMixin)
    assert repr(model) == f"{kind.__name__}(optimizer=Adam(learning_rate=0.01))"
    assert "Adam(learning_rate=0.01)" in model._repr_html_()


# --- every backend ----------------------------------------------------------------------------------------------------


@pytest.fixture
def dispatch():
    with sklearn.config_context(array_api_dispatch=True):
        yield


def is_there(a, lib):
    """Whether an array is of the library and on its device."""
    return lib.backend.owns(a) and (lib.name == "numpy" or lib.xp.asarray(a).device == lib.backend.device)


FITS = [{}, ALL_ON, {"solver": "sgd", "batch_size": 50}, {"solver": "lbfgs", "max_iter": 4}]


@pytest.mark.parametrize(("more", "dtype"), [*[(more, "float64") for more in FITS], (ALL_ON, "float32")], ids=str)
def test_everything_follows_x(lib, dispatch, cancer, diabetes, more, dtype):
    tolerance = 1e-9 if dtype == "float64" else 1e-2
    for kind, (x, y) in [(MLPClassifier, cancer), (MLPRegressor, diabetes)]:
        x = x.astype(dtype)
        weight = np.random.default_rng(0).uniform(0.5, 2, len(x)) if "solver" in more else None
        host = kind(**small(**more)).fit(x, y, weight)
        a, b = lib.asarray(x, dtype), lib.asarray(y)
        model = kind(**small(**more)).fit(a, b, None if weight is None else lib.asarray(weight))
        for mine, theirs in zip(model.coefs_ + model.intercepts_, host.coefs_ + host.intercepts_, strict=True):
            assert is_there(mine, lib)
            assert str(mine.dtype).endswith(dtype)
            lib.agrees(mine, theirs, tolerance)
        methods = ["predict", "transform", "input_gradient"]
        methods += ["predict_proba", "predict_log_proba"] if kind is MLPClassifier else []
        for method in methods:
            predicted = getattr(model, method)(a)
            assert is_there(predicted, lib), method
            if dtype == "float64":
                lib.agrees(predicted, getattr(host, method)(x), 1e-6)
        if lib.name == "jax" and kind is MLPRegressor:
            continue  # scikit-learn's r2_score writes into arrays, which JAX's cannot bear
        assert isinstance(model.score(a, b), float)
        assert model.score(a, b) == pytest.approx(host.score(x, y), abs=max(tolerance, 1e-6))  # in float32 by some
        assert kind is MLPRegressor or is_there(model.classes_, lib)


def test_labels_may_be_strings_or_of_another_library(lib, dispatch, cancer):
    x, y = cancer
    names = np.array(["ill", "well"])[y]
    host = MLPClassifier(**small()).fit(x, names)
    model = MLPClassifier(**small(early_stopping=False)).fit(lib.asarray(x, "float64"), names)
    assert model.predict(lib.asarray(x, "float64")).tolist() == host.predict(x).tolist()
    mixed = MLPClassifier(**small()).fit(lib.asarray(x, "float64"), y, np.ones(len(x)))
    assert is_there(mixed.predict(lib.asarray(x, "float64")), lib)
    several = np.stack([y, 1 - y, y], axis=1)
    model = MLPClassifier(**small()).fit(lib.asarray(x, "float64"), lib.asarray(several))
    lib.agrees(model.predict(lib.asarray(x, "float64")), MLPClassifier(**small()).fit(x, several).predict(x))
    two = MLPRegressor(**small()).fit(lib.asarray(x, "float64"), x[:, :2])
    assert two.predict(lib.asarray(x, "float64")).shape == (200, 2)


@pytest.mark.parametrize("named", [False, True])
def test_a_single_class_is_predicted_on_either_side_of_the_threshold(lib, dispatch, cancer, named):
    x = lib.asarray(cancer[0], "float64")
    y = np.full(200, "well") if named else np.full(200, 7)
    model = MLPClassifier(**small()).fit(x, y if named else lib.asarray(y))
    for bias in (-100.0, 100.0):
        model.intercepts_ = [model.intercepts_[0], np.array([bias])]
        predicted = model.predict(x)
        np.testing.assert_array_equal(predicted if named else lib.to_numpy(predicted), y)


def test_training_goes_on_where_it_was(lib, dispatch, cancer):
    x, y = cancer
    a, b = lib.asarray(x, "float64"), lib.asarray(y)
    host, model = MLPClassifier(**small(warm_start=True)), MLPClassifier(**small(warm_start=True))
    for _ in range(2):
        host.partial_fit(x, y, classes=[0, 1])
        model.partial_fit(a, b, classes=lib.asarray(np.array([0, 1])))
    lib.agrees(model.coefs_[0], host.coefs_[0], 1e-9)
    lib.agrees(model.fit(a, b).coefs_[0], host.fit(x, y).coefs_[0], 1e-9)
    for other in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model)):
        lib.agrees(other.predict_proba(a), host.predict_proba(x), 1e-9)


def test_arrays_of_another_library_are_refused(lib, dispatch, cancer):
    x, y = cancer
    model = MLPClassifier(**small()).fit(lib.asarray(x, "float64"), lib.asarray(y))
    if lib.name == "numpy":
        if not BEFORE_1_9:
            assert model.predict(x.tolist()).shape == (200,)
        return
    for method in ("predict", "predict_proba", "transform", "input_gradient"):
        with pytest.raises(ValueError, match=rf"MLPClassifier\.{method}\(\) must use the same namespace"):
            getattr(model, method)(x)
    with pytest.raises(ValueError, match="must use the same namespace"):
        model.partial_fit(x, y)


@pytest.mark.skipif(BEFORE_1_9, reason="scikit-learn moves estimators from 1.9 on")
def test_scikit_learn_moves_the_estimator(lib, dispatch, cancer):
    from sklearn.utils._array_api import get_namespace_and_device, move_estimator_to

    x, y = cancer
    model = MLPClassifier(**small(**ALL_ON)).fit(x, y)
    a = lib.asarray(x, "float64")
    xp, _, device = get_namespace_and_device(a)
    there = move_estimator_to(model, xp, device)
    assert is_there(there.coefs_[0], lib)
    lib.agrees(there.predict_proba(a), model.predict_proba(x), 1e-10)
    lib.agrees(there.predict(a), model.predict(x))


@pytest.mark.torch_only
def test_tools_keep_torch_tensors(lib, dispatch, cancer, diabetes):
    x, y = (lib.asarray(a) for a in cancer)
    model = make_pipeline(StandardScaler(), MLPClassifier(**small(max_iter=30)))
    assert is_there(model.fit(x, y).predict_proba(x), lib)
    assert cross_val_score(model, x, y, cv=KFold(3)).min() > 0.8
    search = GridSearchCV(model, {"mlpclassifier__alpha": [1e-4, 1e-2]}, cv=KFold(2)).fit(x, y)
    assert is_there(search.best_estimator_[-1].coefs_[0], lib)
    assert is_there(search.predict(x), lib)
    calibrated = CalibratedClassifierCV(MLPClassifier(**small()), cv=KFold(2), method="temperature").fit(x, y)
    assert is_there(calibrated.predict_proba(x), lib)
    u, v = (lib.asarray(a) for a in diabetes)
    regressor = make_pipeline(StandardScaler(), MLPRegressor(**small(max_iter=30)))
    assert cross_val_score(regressor, u, v, cv=KFold(3)).shape == (3,)


@pytest.mark.torch_only
def test_without_dispatch_tensors_become_numpys(lib, cancer):
    x, y = cancer
    model = MLPClassifier(**small()).fit(lib.asarray(x, "float64"), lib.asarray(y))
    assert type(model.predict(lib.asarray(x, "float64"))) is np.ndarray
    np.testing.assert_array_equal(model.coefs_[0], MLPClassifier(**small()).fit(x, y).coefs_[0])
