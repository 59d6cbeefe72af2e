"""Metrics against plain NumPy and counts by hand."""

import math
import tracemalloc

import numpy as np
import pytest

import xpnet as xn
from xpnet.common.checks import kind_of

N, K = 200, 6


RNG = np.random.default_rng(11)


SCORES = RNG.standard_normal((N, K))


CLASSES = RNG.integers(0, K, N)


CLASSES[::2] = SCORES.argmax(axis=1)[::2]  # half of them right


TAKEN = SCORES.argmax(axis=1)


FORMS = {
    "int64": CLASSES,
    "int32": CLASSES.astype("int32"),
    "uint8": CLASSES.astype("uint8"),
    "whole floats": CLASSES.astype("float32"),
    "column": CLASSES[:, None],
    "one-hot": np.eye(K)[CLASSES],
    "float32 one-hot": np.eye(K, dtype="float32")[CLASSES],
    "integer one-hot": np.eye(K, dtype=int)[CLASSES],
    "bool one-hot": np.eye(K, dtype=bool)[CLASSES],
}


every_form = pytest.mark.parametrize("form", FORMS)


def own_and_numpy(lib, target):
    """A target as the library's own array and as NumPy's."""
    return lib.asarray(target), target


def is_number(lib, a, expected, like):
    """Assert that a metric is 0-d, of the library, in the predictions' dtype, on their device, and right."""
    assert lib.backend.owns(a)
    assert (a.shape, a.dtype, a.device) == ((), like.dtype, like.device)
    np.testing.assert_allclose(lib.to_numpy(a), expected, rtol=4 * np.finfo(lib.to_numpy(like).dtype).eps)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_form
def test_accuracy_is_the_share_of_right_classes(lib, form, dtype):
    scores = lib.asarray(SCORES, dtype)
    for target in own_and_numpy(lib, FORMS[form]):
        is_number(lib, xn.accuracy(scores, target), (TAKEN == CLASSES).mean(), scores)


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "uint8", "bool"])
@pytest.mark.parametrize("shape", [(N,), (N, 1)], ids=str)
def test_accuracy_of_one_output_is_the_share_on_the_right_side(lib, shape, dtype):
    scores = lib.asarray(SCORES[:, :1])
    for target in own_and_numpy(lib, (CLASSES > 2).astype(dtype).reshape(shape)):
        for threshold in (0.5, 0.0, -1.0):
            expected = np.mean((SCORES[:, 0] > threshold) == (CLASSES > 2))
            is_number(lib, xn.accuracy(scores, target, threshold), expected, scores)
        is_number(
            lib, xn.accuracy(xn.ops.sigmoid(scores), target), np.mean((SCORES[:, 0] > 0) == (CLASSES > 2)), scores
        )


def test_accuracy_of_one_output_where_all_targets_are_1_is_no_matter_of_the_largest(lib):
    assert float(xn.accuracy(lib.asarray([[0.2], [0.7]]), [[1.0], [1.0]])) == 0.5


@pytest.mark.parametrize("dtype", ["float64", "float32", "int64", "bool"])
def test_accuracy_of_several_classes_at_once_counts_every_entry(lib, dtype):
    scores, several = lib.asarray(SCORES), np.random.default_rng(0).integers(0, 2, (N, K))
    for target in own_and_numpy(lib, several.astype(dtype)):
        for threshold in (0.5, 0.0):
            yes = np.greater(SCORES, threshold)
            is_number(lib, xn.accuracy(scores, target, threshold), np.mean(yes == several), scores)


def test_accuracy_by_hand(lib):
    p = lib.asarray([[0.6, 0.5, 0.1], [0.2, 0.3, 0.5]])
    assert float(xn.accuracy(p, [0, 1])) == 0.5
    assert float(xn.accuracy(p, [[1, 0, 0], [0, 0, 0]], 0.5)) == 1.0  # 0.5 is a no
    assert float(xn.accuracy(p, [[1, 0, 0], [0, 1, 1]], 0.5)) == pytest.approx(4 / 6)
    assert float(xn.accuracy(p, [[1, 0, 0], [0, 1, 0]], 0.4)) == pytest.approx(3 / 6)  # the same, label by label
    assert float(xn.accuracy(p, [[1, 0, 0], [0, 1, 0]])) == 0.5  # a single one in every row: classes


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_accuracy_takes_soft_targets_whose_rows_add_up_to_1_only_nearly(lib, dtype):
    soft = (0.9 * np.eye(K)[CLASSES] + 0.1 / K).astype(dtype)
    soft[0] = np.array([0.7, 0.1, 0.2, 0.0, 0.0, 0.0], dtype)
    soft[1] = np.array([0.1, 0.2, 0.3, 0.4 - 1e-7, 0.0, 1e-7], dtype)
    assert (soft.sum(axis=1) != 1).any()
    scores = lib.asarray(SCORES, dtype)
    is_number(lib, xn.accuracy(scores, soft), np.mean(soft.argmax(axis=1) == TAKEN), scores)


@every_form
def test_top_k_accuracy_is_the_share_among_the_k_largest(lib, form):
    scores = lib.asarray(SCORES)
    for target in own_and_numpy(lib, FORMS[form]):
        for k in range(1, K + 1):
            expected = np.mean([c in row.argsort()[-k:] for c, row in zip(CLASSES, SCORES, strict=True)])
            is_number(lib, xn.top_k_accuracy(scores, target, k), expected, scores)


@pytest.mark.parametrize(("k", "right"), [(1, 1), (2, 2), (3, 3), (4, 4)])
def test_a_tie_counts_against_the_target(lib, k, right):
    scores = lib.asarray([[9.0, 1.0, 2.0, 3.0], [7.0, 7.0, 1.0, 0.0], [5.0, 5.0, 5.0, 1.0], [2.0, 2.0, 2.0, 2.0]])
    assert float(xn.top_k_accuracy(scores, [0, 0, 0, 0], k)) == right / 4  # rank 1, 2, 3 and 4


@pytest.mark.parametrize("k", [0, -1, 5])
def test_a_k_beyond_the_outputs_is_refused(lib, k):
    with pytest.raises(ValueError, match=rf"^top_k_accuracy: k must lie between 1 and the 4 outputs, got {k}$"):
        xn.top_k_accuracy(lib.asarray(np.zeros((2, 4))), [0, 1], k)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "bool"])
def test_mean_squared_error_is_over_every_element(lib, dtype):
    scores, numbers = lib.asarray(SCORES, "float64"), (SCORES[::-1] * 2).astype(dtype)
    for target in own_and_numpy(lib, numbers):
        mse = xn.mean_squared_error(scores, target)
        lib.agrees(mse, ((SCORES - numbers.astype("float64")) ** 2).mean())
        is_number(lib, mse, lib.to_numpy(mse), scores)


def test_mean_squared_error_takes_a_flat_target_for_one_output(lib):
    scores = lib.asarray([[1.0], [2.0], [3.0]])
    for target in ([1.0, 0.0, 0.0], lib.asarray([1.0, 0.0, 0.0])):
        assert float(xn.mean_squared_error(scores, target)) == pytest.approx((0 + 4 + 9) / 3)


@every_form
def test_confusion_matrix_counts_what_was_taken_for_what(lib, form):
    expected = np.zeros((K, K), "int32")
    for truth, taken in zip(CLASSES, TAKEN, strict=True):
        expected[truth, taken] += 1
    for target in own_and_numpy(lib, FORMS[form]):
        matrix = xn.confusion_matrix(lib.asarray(SCORES), target)
        assert lib.backend.owns(matrix)
        np.testing.assert_array_equal(lib.to_numpy(matrix), expected, strict=True)
        assert lib.to_numpy(matrix).sum() == N
        assert lib.to_numpy(matrix).trace() == (TAKEN == CLASSES).sum()


@pytest.mark.jax_only
def test_confusion_matrix_counts_without_float64(lib):
    import jax

    with jax.enable_x64(False):
        matrix = xn.confusion_matrix(lib.asarray(SCORES, "float32"), CLASSES)
    assert lib.to_numpy(matrix).trace() == (TAKEN == CLASSES).sum()


def test_a_class_that_never_occurs_has_an_empty_row(lib):
    matrix = xn.confusion_matrix(lib.asarray([[0.0, 1.0, 2.0], [3.0, 0.0, 1.0], [0.0, 0.0, 1.0]]), [0, 0, 2])
    np.testing.assert_array_equal(lib.to_numpy(matrix), [[1, 0, 1], [0, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_top_k_accuracy_counts_what_is_not_a_number_against_the_class(lib, k):
    """Every comparison with NaN is false: none would be larger than it."""
    p = lib.asarray([[np.nan] * 4, [np.nan, 0.1, 0.2, 0.3], [0.5, np.nan, 0.2, 0.3], [0.4, 0.1, 0.2, 0.3]])
    assert float(xn.top_k_accuracy(p, [0, 0, 0, 0], k)) == (0.25 if k == 1 else 0.5)


def test_accuracy_counts_what_is_not_a_number_as_wrong(lib):
    p = lib.asarray([[np.nan] * 3, [np.nan, 0.1, 0.2], [0.5, np.nan, 0.2], [0.4, 0.1, 0.2]])
    assert float(xn.accuracy(p, [0, 0, 0, 0])) == float(xn.top_k_accuracy(p, [0, 0, 0, 0], 1)) == 0.25
    assert float(xn.accuracy(p, np.zeros((4, 3)), 0.45)) == 6 / 12  # several at once, all of them no: 0.5 is wrong too
    assert float(xn.accuracy(p[:, :1], [0, 0, 0, 0], 0.45)) == 0.25


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    "metric", [xn.accuracy, xn.top_k_accuracy, xn.f1, xn.confusion_matrix], ids=lambda m: m.__name__
)
def test_metrics_of_classes_take_a_byte_for_each_output_at_most(metric):
    scores = np.random.default_rng(0).random((10_000, 100), dtype=np.float32)
    classes = np.arange(10_000) % 100
    tracemalloc.start()
    try:
        metric(scores, classes)
        assert tracemalloc.get_traced_memory()[1] < scores.size + 50 * len(classes)
    finally:
        tracemalloc.stop()


METRICS = [*xn.metrics.OF_CLASSES, *xn.metrics.OF_NUMBERS, xn.confusion_matrix]


PROBABLE = np.exp(SCORES) / np.exp(SCORES).sum(axis=1, keepdims=True)


every_metric = pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.__name__)


@every_metric
def test_metrics_change_neither_prediction_nor_target(lib, metric):
    host = np.eye(K)[CLASSES]
    scores, target = (lib.asarray(a, "float64") for a in (PROBABLE, host))
    metric(scores, target)
    metric(scores, host)
    np.testing.assert_array_equal(lib.to_numpy(scores), PROBABLE)
    np.testing.assert_array_equal(lib.to_numpy(target), np.eye(K)[CLASSES])
    np.testing.assert_array_equal(host, np.eye(K)[CLASSES])


@pytest.mark.parametrize(
    "target", [np.zeros((3, 4)), np.zeros((3, 2)), np.zeros((3, 5, 1))], ids=lambda t: str(t.shape)
)
@every_metric
def test_a_target_of_another_width_is_refused(lib, metric, target):
    with pytest.raises(ValueError, match=r"target of shape \(3, .*\) does not fit the prediction's \(3, 6\)"):
        metric(lib.asarray(SCORES[:3]), target)


@pytest.mark.parametrize(
    ("prediction", "target"),
    [((3, 6), (2,)), ((3, 6), (4, 6)), ((3, 6), ()), ((0, 6), (0,)), ((0,), (0,)), ((), ()), ((3, 6, 1), (3,))],
    ids=str,
)
@every_metric
def test_arrays_that_are_not_rows_of_one_batch_are_refused(lib, metric, prediction, target):
    with pytest.raises(ValueError, match=r"prediction must be \(n, outputs\) with n >= 1|does not fit"):
        metric(lib.asarray(np.zeros(prediction)), np.zeros(target))


@pytest.mark.parametrize("label", [-1, K])
@pytest.mark.parametrize("metric", [xn.top_k_accuracy, xn.confusion_matrix], ids=lambda m: m.__name__)
def test_a_label_that_is_no_class_is_refused_rather_than_left_out(lib, metric, label):
    with pytest.raises(ValueError, match=rf"labels run from .*{label}"):
        metric(lib.asarray(SCORES[:3]), [0, 1, label])


def test_a_target_that_holds_no_real_numbers_is_refused(lib):
    with pytest.raises(TypeError, match=r"^accuracy: the target has dtype"):
        xn.accuracy(lib.asarray(SCORES[:2]), ["a", "b"])


# --- what the loss says -----------------------------------------------------------------------------------------------


YES_NO = [(xn.BinaryCrossEntropy(), 0.5), (xn.BinaryCrossEntropyWithLogits(), 0.0), (xn.MeanSquaredError(), 0.5)]


@pytest.mark.numpy_only
def test_every_loss_says_what_its_outputs_are_and_where_a_yes_begins():
    told = {
        k: (k.outputs, k.threshold, k.matrix)
        for k in vars(xn).values()
        if isinstance(k, type) and issubclass(k, xn.Loss)
    }
    numbers = ("numbers", None, False)
    assert told == {
        xn.Loss: numbers,
        xn.MeanSquaredError: numbers,
        xn.MeanAbsoluteError: numbers,
        xn.Huber: numbers,
        xn.SoftmaxCrossEntropy: ("logits", 0.0, True),
        xn.CategoricalCrossEntropy: ("probabilities", 0.5, True),
        xn.BinaryCrossEntropy: ("probabilities", 0.5, False),
        xn.BinaryCrossEntropyWithLogits: ("logits", 0.0, False),
    }

    class Own(xn.MeanSquaredError):
        outputs = "logits"

    class Other(Own):
        threshold = 0.25

    assert (Own.threshold, Other.threshold, Other.outputs) == (0.0, 0.25, "logits")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("loss", "threshold"), YES_NO, ids=repr)
def test_an_output_at_the_threshold_is_a_no_and_the_next_one_above_a_yes(lib, loss, threshold, dtype):
    beside = np.finfo(dtype).eps / 2 if threshold else np.finfo(dtype).tiny  # what is smaller may count as 0
    p = lib.asarray([[threshold - beside / 2], [threshold], [threshold + beside]], dtype)
    assert len(np.unique(lib.to_numpy(p))) == 3
    for options in ({"loss": loss}, {"threshold": threshold}):
        for i, yes in enumerate([0.0, 0.0, 1.0]):
            assert float(xn.accuracy(p[i : i + 1, :], [1], **options)) == yes
            assert float(xn.f1(p[i : i + 1, :], [1], **options)) == yes
        np.testing.assert_array_equal(
            lib.to_numpy(xn.confusion_matrix(p, [0, 1, 1], **options)), [[1, 0], [1, 1]], strict=False
        )
        both = xn.ops.namespace(p).concat([p, p], axis=1)
        assert float(xn.accuracy(both, [[0, 0], [0, 1], [1, 1]], threshold)) == pytest.approx(5 / 6)


def test_rows_of_several_labels_are_labels_also_where_each_holds_one(lib):
    p, rows = lib.asarray([[2.0, 1.0], [1.0, 2.0]]), np.eye(2)[[1, 0]]
    assert float(xn.accuracy(p, rows)) == float(xn.accuracy(p, rows, loss=xn.SoftmaxCrossEntropy())) == 0.0
    assert (
        float(xn.accuracy(p, rows, loss=xn.BinaryCrossEntropyWithLogits())) == float(xn.accuracy(p, rows, 0.0)) == 0.5
    )
    assert float(xn.accuracy(p, [1, 0], loss=xn.BinaryCrossEntropyWithLogits())) == 0.0  # classes are classes


def test_a_threshold_goes_before_the_losss_own_and_a_target_of_a_half_is_a_no(lib):
    p = lib.asarray([[0.4], [0.6], [0.2]])
    assert float(xn.accuracy(p, [1, 1, 0], loss=xn.BinaryCrossEntropy())) == pytest.approx(2 / 3)
    assert float(xn.accuracy(p, [1, 1, 0], 0.3, xn.BinaryCrossEntropy())) == 1.0
    assert float(xn.accuracy(p, [0.5, 0.51, 0.5])) == 1.0


def test_a_single_class_is_always_right(lib):
    assert float(xn.accuracy(lib.asarray([[3.0], [-3.0]]), [0, 0], loss=xn.SoftmaxCrossEntropy())) == 1.0


@pytest.mark.parametrize("metric", [xn.accuracy, xn.f1, xn.confusion_matrix], ids=lambda m: m.__name__)
def test_one_output_that_is_no_probability_is_refused_without_threshold_or_loss(lib, metric):
    p = lib.asarray([[-3.0], [0.2]])
    with pytest.raises(ValueError, match=r"outputs run from 0\.2 to 3 and are not probabilities"):
        metric(lib.asarray([[3.0], [0.2]]), [0, 1])
    with pytest.raises(
        ValueError, match=r"outputs run from -3 to 0.2 and are not probabilities; .* threshold=0.0, or their"
    ):
        metric(p, [0, 1])
    metric(p, [0, 1], threshold=0.0)
    metric(p, [0, 1], loss=xn.BinaryCrossEntropyWithLogits())
    metric(xn.ops.sigmoid(p), [0, 1])


@pytest.mark.parametrize("metric", [xn.accuracy, xn.top_k_accuracy, xn.f1, xn.roc_auc, xn.confusion_matrix])
def test_rows_that_are_not_one_hot_are_refused_without_threshold_or_loss(lib, metric):
    p = lib.asarray([[0.9, 0.1, 0.0], [0.2, 0.3, 0.5]])
    for rows in ([[1, 1, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 1]]):
        with pytest.raises(ValueError, match=r"must add up to 1; for several classes at once give threshold= .*loss="):
            metric(p, rows)
    with pytest.raises(ValueError, match="must add up to 1"):
        metric(p, [[1, 1e-4, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match=r"entries must lie in \[0, 1\], got -1 to 2; give integer classes"):
        metric(p, [[2, -1, 0], [0, 0, 1]])
    with pytest.raises(ValueError, match=r"entries must lie in \[0, 1\], got 0 to 2; give 0 for a no and 1 for a yes"):
        metric(p[:, :1], [0, 2])


@pytest.mark.parametrize("metric", [xn.top_k_accuracy, xn.confusion_matrix], ids=lambda m: m.__name__)
def test_several_labels_a_row_are_no_class(lib, metric):
    with pytest.raises(ValueError, match=rf"^{metric.__name__}: .*(several labels|each output is a yes or no)"):
        metric(lib.asarray(PROBABLE), np.eye(K)[CLASSES], loss=xn.BinaryCrossEntropy())


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8"])
def test_confusion_matrix_takes_classes_for_predictions(lib, dtype):
    taken = lib.asarray(TAKEN, dtype)
    expected = lib.to_numpy(xn.confusion_matrix(lib.asarray(SCORES), CLASSES))
    for target in own_and_numpy(lib, CLASSES):
        np.testing.assert_array_equal(lib.to_numpy(xn.confusion_matrix(taken, target)), expected, strict=True)
    for wrong, message in (
        (-CLASSES, "labels run from -5"),
        (CLASSES / 2, "whole numbers"),
        (CLASSES[1:], "does not fit"),
    ):
        with pytest.raises(ValueError, match=message):
            xn.confusion_matrix(taken, wrong)


def test_confusion_matrix_refuses_what_is_not_a_number(lib):
    with pytest.raises(ValueError, match=r"^confusion_matrix: the prediction has NaN entries"):
        xn.confusion_matrix(lib.asarray([[np.nan, 0.1], [0.2, 0.3]]), [0, 1])


@pytest.mark.numpy_only
@every_metric
def test_a_data_frame_or_a_list_for_a_prediction_is_told(metric):
    pandas = pytest.importorskip("pandas")
    for given in (pandas.DataFrame(PROBABLE), PROBABLE.tolist(), None):
        with pytest.raises(TypeError, match=rf"^{metric.__name__}: prediction must be an array, got {kind_of(given)}"):
            metric(given, CLASSES)
        with pytest.raises(TypeError, match=r"prediction must be an array, got "):
            xn.MeanSquaredError()(given, CLASSES)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"loss": xn.SoftmaxCrossEntropy},
            TypeError,
            "loss must be an object such as xn.SoftmaxCrossEntropy.*got <class",
        ),
        ({"loss": "mse"}, TypeError, "loss must be an object such as .* got 'mse'"),
        ({"threshold": "0"}, ValueError, "threshold must be a finite number, got '0'"),
        ({"threshold": xn.SoftmaxCrossEntropy()}, ValueError, "threshold must be a finite number, got Softmax"),
        ({"threshold": math.nan}, ValueError, "threshold must be a finite number, got nan"),
    ],
)
@pytest.mark.parametrize("metric", [xn.accuracy, xn.f1, xn.roc_auc, xn.confusion_matrix], ids=lambda m: m.__name__)
def test_a_wrong_loss_or_threshold_is_told(metric, options, error, message):
    with pytest.raises(error, match=f"^{metric.__name__}: {message}"):
        metric(PROBABLE, CLASSES, **options)


# --- against scikit-learn ---------------------------------------------------------------------------------------------


TIED = np.round(2 * SCORES) / 2  # a quarter of the pairs


SEVERAL = RNG.integers(0, 2, (N, K))


SOFTMAX, LABELS = xn.SoftmaxCrossEntropy(), xn.BinaryCrossEntropyWithLogits()


TIED_PROBABLE = RNG.multinomial(16, np.full(K, 1 / K), N) / 16  # exact in float32 too


def cases_against_sklearn():
    """Our number and scikit-learn's, as functions of the metric's arrays."""
    from sklearn import metrics as theirs

    two, column = CLASSES > 2, TIED[:, :1]
    lone = np.where(CLASSES == 3, 0, CLASSES)  # class 3 is predicted and never true
    values = SCORES[::-1] * 2 + [0, 1, 2, 3, 4, 5]
    same = np.where(np.arange(K) == 2, 7.0, values)
    return [
        ("accuracy", xn.accuracy, SCORES, CLASSES, SOFTMAX, theirs.accuracy_score(CLASSES, TAKEN)),
        ("accuracy, labels", xn.accuracy, TIED, SEVERAL, LABELS, ((TIED > 0) == SEVERAL).mean()),
        ("top_k", xn.top_k_accuracy, SCORES, CLASSES, SOFTMAX, theirs.top_k_accuracy_score(CLASSES, SCORES, k=5)),
        ("f1, one output", xn.f1, column, two, LABELS, theirs.f1_score(two, column[:, 0] > 0)),
        ("f1, two classes", xn.f1, SCORES[:, :2], two, SOFTMAX, theirs.f1_score(two, SCORES[:, 0] < SCORES[:, 1])),
        ("f1, classes", xn.f1, SCORES, CLASSES, SOFTMAX, theirs.f1_score(CLASSES, TAKEN, average="macro")),
        ("f1, not all true", xn.f1, SCORES, lone, SOFTMAX, theirs.f1_score(lone, TAKEN, average="macro")),
        ("f1, some nowhere", xn.f1, -np.eye(K)[[0, 1]] + 0.1 * np.arange(K), [5, 4], SOFTMAX,
         theirs.f1_score([5, 4], [5, 5], average="macro")),
        ("f1, labels", xn.f1, TIED, SEVERAL, LABELS, theirs.f1_score(SEVERAL, TIED > 0, average="macro")),
        ("f1, never a yes", xn.f1, -np.abs(column), 0 * two, LABELS, 0.0),
        ("roc_auc, one output", xn.roc_auc, column, two, LABELS, theirs.roc_auc_score(two, column[:, 0])),
        ("roc_auc, two classes", xn.roc_auc, TIED[:, :2], two, SOFTMAX,
         theirs.roc_auc_score(two, TIED[:, 1] - TIED[:, 0])),
        ("roc_auc, two scores", xn.roc_auc, TIED[:, :2], two, xn.Huber(), theirs.roc_auc_score(two, TIED[:, 1])),
        ("roc_auc, logits", xn.roc_auc, SCORES, CLASSES, SOFTMAX,
         theirs.roc_auc_score(CLASSES, PROBABLE, multi_class="ovr")),
        ("roc_auc, probabilities", xn.roc_auc, TIED_PROBABLE, CLASSES, None,
         theirs.roc_auc_score(CLASSES, TIED_PROBABLE, multi_class="ovr")),
        ("roc_auc, labels", xn.roc_auc, TIED, SEVERAL, LABELS, theirs.roc_auc_score(SEVERAL, TIED)),
        ("roc_auc, infinite", xn.roc_auc, np.array([[-np.inf], [np.inf], [np.inf], [0.0]]), [0, 1, 0, 1], LABELS,
         0.625),
        ("r2", xn.r2, SCORES, values, None, theirs.r2_score(values, SCORES)),
        ("r2, one constant", xn.r2, SCORES, same, None, theirs.r2_score(same, SCORES)),
        ("r2, two rows", xn.r2, SCORES[:2], values[:2], None, theirs.r2_score(values[:2], SCORES[:2])),
        ("r2, constant and right", xn.r2, 0 * SCORES + 7, 0 * SCORES + 7, None, 1.0),
        ("r2, constant, whose mean rounds", xn.r2, 0 * SCORES[:7], 0 * SCORES[:7] + 0.1, None, 0.0),
        ("mean_absolute", xn.mean_absolute_error, SCORES, values, None, theirs.mean_absolute_error(values, SCORES)),
        ("mean_squared", xn.mean_squared_error, SCORES, values, None, theirs.mean_squared_error(values, SCORES)),
    ]  # fmt: skip


@pytest.mark.parametrize("case", cases_against_sklearn(), ids=lambda c: c[0])
def test_a_metric_is_scikit_learns(lib, case):
    _, metric, prediction, target, loss, expected = case
    options = {"loss": loss} if loss else {}
    for dtype in ("float32", "float64"):
        p = lib.asarray(prediction, dtype)
        for own in own_and_numpy(lib, np.asarray(target)):
            found = metric(p, own, **options)
            assert lib.backend.owns(found)
            assert (found.shape, found.dtype, found.device) == ((), p.dtype, p.device)
            assert float(found) == pytest.approx(expected, rel=1e-12 if dtype == "float64" else 1e-5, abs=1e-12)


@pytest.mark.parametrize("metric", [xn.roc_auc, xn.r2, xn.mean_absolute_error], ids=lambda m: m.__name__)
def test_a_number_from_what_is_not_a_number_is_none(lib, metric):
    p = lib.asarray([[0.1], [np.nan], [0.3]])
    assert math.isnan(float(metric(p, [0.0, 1.0, 1.0])))


def test_f1_counts_what_is_not_a_number_as_no_prediction(lib):
    p = lib.asarray([[np.nan, 0.0], [0.0, 1.0], [1.0, 0.0]])
    assert float(xn.f1(p, [1, 1, 0])) == pytest.approx(2 / 3)
    assert float(xn.f1(p[:, :1], [1, 1, 1], 0.5)) == 0.5


@pytest.mark.parametrize(("target", "words"), [([0, 0, 0], "no row is a yes"), ([1, 1, 1], "every row is a yes")])
def test_a_curve_without_both_sides_is_refused(lib, target, words):
    with pytest.raises(ValueError, match=rf"^roc_auc: {words} for output 0, and a curve needs both"):
        xn.roc_auc(lib.asarray([[0.1], [0.2], [0.3]]), target)


def test_logits_for_a_curve_of_classes_are_refused_without_their_loss(lib):
    with pytest.raises(ValueError, match=r"do not add up to 1; for logits give loss=SoftmaxCrossEntropy\(\)"):
        xn.roc_auc(lib.asarray(SCORES), CLASSES)


def test_r2_of_one_row_is_refused(lib):
    with pytest.raises(ValueError, match=r"^r2: .* needs at least two, got 1"):
        xn.r2(lib.asarray([[1.0]]), [1.0])
