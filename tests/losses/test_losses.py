"""Losses: values and gradients against plain formulas, every form of target, the extremes. Axes: N batch, K classes."""

import numpy as np
import pytest

import xpnet as xn

N, K = 7, 4
RNG = np.random.default_rng(3)
REAL = RNG.standard_normal((N, K)) * 3  # predictions of numbers, or logits
PROBABILITIES = RNG.dirichlet(np.ones(K), N)
NUMBERS = REAL + RNG.standard_normal((N, K)) * 2  # targets on either side of Huber's corner
CLASSES = np.array([0, 3, 1, 1, 2, 0, 3])
ONE_HOT = np.eye(K)[CLASSES]
SOFT = RNG.dirichlet(np.ones(K), N)
SEVERAL = RNG.integers(0, 2, (N, K)).astype(float)  # any number of ones in a row


# --- plain formulas: the sum over every element, and its derivative ---------------------------------------------------


def squared(p, t):
    return ((p - t) ** 2).sum(), 2 * (p - t)


def absolute(p, t):
    return np.abs(p - t).sum(), np.sign(p - t)


def huber(p, t, delta=1.0):
    e = p - t
    small = np.abs(e) <= delta
    return np.where(small, e**2 / 2, delta * (np.abs(e) - delta / 2)).sum(), np.where(small, e, delta * np.sign(e))


def softmax_cross_entropy(z, t):
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    return -(t * np.log(p)).sum(), p - t


def categorical_cross_entropy(p, t):
    return -(t * np.log(p)).sum(), -t / p


def binary_cross_entropy(p, t):
    return -(t * np.log(p) + (1 - t) * np.log(1 - p)).sum(), (1 - t) / (1 - p) - t / p


def binary_cross_entropy_with_logits(z, t):
    p = 1 / (1 + np.exp(-z))
    return binary_cross_entropy(p, t)[0], p - t


TABLE = [  # the loss, its plain formula, a prediction and a target for it, what "mean" divides by
    (xn.MeanSquaredError, squared, REAL, NUMBERS, N * K),
    (xn.MeanAbsoluteError, absolute, REAL, NUMBERS, N * K),
    (xn.Huber, huber, REAL, NUMBERS, N * K),
    (xn.SoftmaxCrossEntropy, softmax_cross_entropy, REAL, SOFT, N),
    (xn.CategoricalCrossEntropy, categorical_cross_entropy, PROBABILITIES, SOFT, N),
    (xn.BinaryCrossEntropy, binary_cross_entropy, PROBABILITIES, SEVERAL, N),
    (xn.BinaryCrossEntropyWithLogits, binary_cross_entropy_with_logits, REAL, SEVERAL, N),
]
CLASS_LOSSES = [row[0] for row in TABLE[3:]]
every_loss = pytest.mark.parametrize(("kind", "formula", "p", "t", "count"), TABLE, ids=[r[0].__name__ for r in TABLE])
every_class_loss = pytest.mark.parametrize("kind", CLASS_LOSSES)
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def prediction_for(kind):
    return next(row[2] for row in TABLE if row[0] is kind)


def same(lib, loss, p, target, expected):
    """Assert that a target gives value and gradient of another, but for the order in which a sum is taken."""
    p = lib.asarray(p, "float64")
    for a, b in zip(loss.value_and_grad(p, target), loss.value_and_grad(p, expected), strict=True):
        lib.agrees(a, lib.to_numpy(b), rtol=1e-15)


# --- value and gradient -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@every_loss
def test_value_and_gradient_are_the_formulas(lib, kind, formula, p, t, count, reduction):
    """ "mean" is over the batch where an element alone is no loss, else over every element; "sum" adds all up."""
    loss = kind(reduction=reduction)
    value, gradient = loss.value_and_grad(lib.asarray(p, "float64"), lib.asarray(t, "float64"))
    expected, slope = formula(p, t)
    divisor = count if reduction == "mean" else 1
    lib.agrees(value, expected / divisor)
    lib.agrees(gradient, slope / divisor)
    lib.agrees(loss(lib.asarray(p, "float64"), lib.asarray(t, "float64")), expected / divisor)


@pytest.mark.parametrize("delta", [0.1, 0.5, 3.0])
def test_hubers_corner_is_at_delta(lib, delta):
    e = delta * np.array([[0.0], [0.5], [-1.0], [1.0], [-1.5], [40.0]])
    value, gradient = xn.Huber(delta, reduction="sum").value_and_grad(lib.asarray(e, "float64"), np.zeros_like(e))
    expected, slope = huber(e, 0.0, delta)
    lib.agrees(value, expected)
    lib.agrees(gradient, slope)


def test_the_absolute_errors_slope_is_0_where_there_is_none(lib):
    _, gradient = xn.MeanAbsoluteError().value_and_grad(lib.asarray(REAL, "float64"), REAL)
    np.testing.assert_array_equal(lib.to_numpy(gradient), np.zeros((N, K)))


@both_dtypes
@every_loss
def test_the_value_is_0d_and_all_stays_in_the_library_and_dtype(lib, kind, formula, p, t, count, dtype):
    prediction = lib.asarray(p, dtype)
    for target in (t, lib.asarray(t, "float64")):
        value, gradient = kind().value_and_grad(prediction, target)
        assert value.shape == ()
        assert gradient.shape == prediction.shape
        for a in (value, gradient, kind()(prediction, target)):
            assert lib.backend.owns(a)
            assert a.dtype == prediction.dtype
            assert a.device == prediction.device


@every_loss
def test_a_loss_changes_neither_prediction_nor_target(lib, kind, formula, p, t, count):
    prediction, target, host = lib.asarray(p, "float64"), lib.asarray(t, "float64"), t.copy()
    for given in (target, host):
        kind().value_and_grad(prediction, given)
    np.testing.assert_array_equal(lib.to_numpy(prediction), p)
    np.testing.assert_array_equal(lib.to_numpy(target), t)
    np.testing.assert_array_equal(host, t)


# --- targets ----------------------------------------------------------------------------------------------------------

CLASS_FORMS = {
    "int64": CLASSES,
    "int32": CLASSES.astype("int32"),
    "uint8": CLASSES.astype("uint8"),
    "column": CLASSES[:, None],
    "list": CLASSES.tolist(),
    "whole floats": CLASSES.astype(float),
    "float32": CLASSES.astype("float32"),
    "integer one-hot": np.eye(K, dtype=int)[CLASSES],
    "bool one-hot": np.eye(K, dtype=bool)[CLASSES],
    "float32 one-hot": ONE_HOT.astype("float32"),
}


@pytest.mark.parametrize("form", CLASS_FORMS)
@every_class_loss
def test_every_form_of_the_same_classes_is_the_same(lib, kind, form):
    same(lib, kind(), prediction_for(kind), CLASS_FORMS[form], ONE_HOT)
    same(lib, kind(), prediction_for(kind), lib.asarray(CLASS_FORMS[form]), ONE_HOT)


@every_class_loss
def test_booleans_are_classes_0_and_1_of_two(lib, kind):
    yes = np.array([True, False, True])
    p = np.array([[0.3, 0.7], [0.9, 0.1], [0.6, 0.4]])
    same(lib, kind(), p, yes, yes.astype(int))
    same(lib, kind(), p, lib.asarray(yes), yes.astype(int))


@pytest.mark.parametrize("yes", [np.array([1, 0, 1]), np.array([True, False, True]), [1.0, 0.0, 1.0]], ids=repr)
@pytest.mark.parametrize("kind", [xn.BinaryCrossEntropy, xn.BinaryCrossEntropyWithLogits])
def test_one_output_takes_yes_or_no_in_any_form(lib, kind, yes):
    same(lib, kind(), [[0.3], [0.9], [0.6]], yes, np.array([[1.0], [0.0], [1.0]]))


@pytest.mark.parametrize("kind", [row[0] for row in TABLE if row[0] not in CLASS_LOSSES[:2]])
def test_a_flat_target_fits_a_single_output(lib, kind):
    p, t = np.array([[0.3], [0.9], [0.6]]), np.array([0.25, 1.0, 0.0])
    same(lib, kind(), p, t, t[:, None])
    same(lib, kind(), p, lib.asarray(t), t[:, None])


@pytest.mark.parametrize("share", [0.1, 0.3])
@both_dtypes
def test_smoothed_targets_are_taken_though_their_rows_add_up_to_1_only_nearly(lib, share, dtype):
    k = 10
    t = (np.eye(k)[[0, 4]] * (1 - share) + share / k).astype(dtype)
    p = np.full((2, k), 1 / k)
    lib.agrees(xn.CategoricalCrossEntropy()(lib.asarray(p, dtype), t), np.log(k).astype(dtype), rtol=1e-6)


@pytest.mark.parametrize("kind", CLASS_LOSSES)
def test_float32_targets_fit_a_float64_prediction(lib, kind):
    """Soft rows that add up to 1 as closely as float32 can are rows that add up to 1."""
    p, t = lib.asarray(prediction_for(kind), "float64"), SOFT.astype("float32")
    for a, b in zip(kind().value_and_grad(p, t), kind().value_and_grad(p, SOFT), strict=True):
        lib.agrees(a, lib.to_numpy(b), rtol=1e-6)
        assert a.dtype == p.dtype


def test_the_gradient_is_exact_where_a_targets_rows_add_up_to_1_only_nearly(lib):
    """A number added to all logits of a row changes no loss, so the row's derivatives add up to 0."""
    _, gradient = xn.SoftmaxCrossEntropy("sum").value_and_grad(lib.asarray(REAL, "float64"), SOFT.astype("float32"))
    np.testing.assert_allclose(lib.to_numpy(gradient).sum(axis=1), np.zeros(N), rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("kind", "target", "message"),
    [
        (xn.SoftmaxCrossEntropy, [0, 1, 4], r"labels run from 0 to 4, but 4 outputs take 0 to 3"),
        (xn.SoftmaxCrossEntropy, [-1, 1, 2], r"labels run from -1 to 2"),
        (xn.SoftmaxCrossEntropy, [0.5, 1.0, 2.0], r"labels must be whole numbers 0 to 3"),
        (xn.CategoricalCrossEntropy, [np.nan, 1.0, 2.0], r"labels must be whole numbers 0 to 3"),
        (xn.SoftmaxCrossEntropy, np.full((3, 4), 0.3), r"must add up to 1"),
        (xn.CategoricalCrossEntropy, np.zeros((3, 4)), r"must add up to 1"),
        (xn.BinaryCrossEntropy, np.full((3, 4), 1.5), r"entries must lie in \[0, 1\]"),
        (xn.BinaryCrossEntropyWithLogits, np.full((3, 4), -0.1), r"lie in \[0, 1\], got -0.1 to -0.1; give 0 for a no"),
        (xn.SoftmaxCrossEntropy, 2 * np.eye(4)[:3], r"lie in \[0, 1\], got 0 to 2; give integer classes \(n,\) or one"),
        (xn.SoftmaxCrossEntropy, np.eye(3), r"target of shape \(3, 3\) does not fit the prediction's \(3, 4\)"),
        (xn.MeanSquaredError, np.zeros(3), r"target of shape \(3,\) does not fit the prediction's \(3, 4\)"),
        (xn.MeanAbsoluteError, np.zeros((4, 3)), r"target of shape \(4, 3\) does not fit"),
        (xn.Huber, np.zeros((1, 4)), r"target of shape \(1, 4\) does not fit"),  # it is not broadcast
        (xn.MeanSquaredError, np.full((3, 4), np.inf), r"the target has NaN or infinite entries"),
    ],
)
def test_an_impossible_target_is_refused_by_name(lib, kind, target, message):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: .*{message}"):
        kind()(lib.asarray(np.full((3, 4), 0.25), "float64"), target)


@pytest.mark.parametrize("target", [np.full((3, 4), 1j), np.full((3, 4), "a"), np.zeros((3, 4), "float16")])
def test_a_target_that_holds_no_real_numbers_is_refused(lib, target):
    with pytest.raises(TypeError, match=r"^MeanSquaredError: the target has dtype .*; expected float32"):
        xn.MeanSquaredError()(lib.asarray(np.zeros((3, 4)), "float64"), target)


@pytest.mark.parametrize(
    ("kind", "shape"),
    [(xn.Huber, (0, 4)), (xn.Huber, ()), *((xn.SoftmaxCrossEntropy, s) for s in [(4,), (0, 4), (2, 0, 4), ()])],
)
def test_a_prediction_that_is_no_batch_is_refused(lib, kind, shape):
    message = rf"^{kind.__name__}: prediction must be \(n, outputs\) with n >= 1, got shape"
    with pytest.raises(ValueError, match=message):
        kind()(lib.asarray(np.zeros(shape), "float64"), np.zeros(shape))


@pytest.mark.parametrize("shape", [(6,), (6, 1), (3, 2), (1, 2, 3)])
def test_a_loss_of_single_elements_takes_any_shape(lib, shape):
    p, t = np.linspace(0.1, 0.9, 6).reshape(shape), np.array([0, 1, 1, 0, 1, 0.0]).reshape(shape)
    here = lib.asarray(p)
    for loss, expected in [
        (xn.MeanSquaredError(), np.mean((p - t) ** 2)),
        (xn.MeanAbsoluteError("sum"), np.sum(np.abs(p - t))),
        (xn.BinaryCrossEntropy(), -np.sum(np.log(np.where(t == 1, p, 1 - p))) / shape[0]),
    ]:
        value, gradient = loss.value_and_grad(here, t)
        lib.agrees(value, expected)
        assert tuple(gradient.shape) == shape


@every_loss
def test_a_prediction_of_integers_is_refused_rather_than_the_target_cut_to_them(lib, kind, formula, p, t, count):
    with pytest.raises(TypeError, match=rf"^{kind.__name__}: .*prediction"):
        kind()(lib.asarray(np.array([[1, 0], [0, 1]])), np.array([[0.5, 0.5], [0.25, 0.75]]))


# --- extremes ---------------------------------------------------------------------------------------------------------


@both_dtypes
@pytest.mark.parametrize(
    ("kind", "formula"),
    [
        (xn.CategoricalCrossEntropy, categorical_cross_entropy),
        (xn.BinaryCrossEntropy, binary_cross_entropy),
    ],
)
def test_probabilities_of_0_and_1_are_taken_at_the_clipped_point(lib, kind, formula, dtype):
    p = np.array([[0.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.3, 0.7]], dtype)
    t = np.array([[1.0, 0.0], [1.0, 0.0], [0.25, 0.75], [0.0, 1.0]], dtype)
    eps = 1e-15 if dtype == "float64" else float(np.finfo("float32").eps)
    expected, slope = formula(np.clip(p, eps, 1 - eps), t)
    value, gradient = kind(reduction="sum").value_and_grad(lib.asarray(p, dtype), lib.asarray(t, dtype))
    rtol = 8 * np.finfo(dtype).eps
    assert np.isfinite(lib.to_numpy(gradient)).all()
    np.testing.assert_allclose(lib.to_numpy(value), expected, rtol=rtol)
    np.testing.assert_allclose(lib.to_numpy(gradient), slope, rtol=rtol)


LOGITS = np.array([[1.0, -1.0, 0.0], [-1.0, 1.0, 0.5], [1.0, 1.0, -1.0]])
SOFTMAX = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.5, 0.5, 0.0]])  # of LOGITS times a large number
SIGMOID = np.array([[1.0, 0.0, 0.5], [0.0, 1.0, 1.0], [1.0, 1.0, 0.0]])
EXTREMES = [  # the loss, its p, the classes, the sum in units of the large number and what is left beside it
    (xn.SoftmaxCrossEntropy, SOFTMAX, [0, 1, 0], 0, np.log(2)),
    (xn.SoftmaxCrossEntropy, SOFTMAX, [1, 2, 2], 2 + 0.5 + 2, np.log(2)),
    (xn.BinaryCrossEntropyWithLogits, SIGMOID, [0, 1, 0], 0 + 0.5 + 1, np.log(2)),
    (xn.BinaryCrossEntropyWithLogits, SIGMOID, [1, 2, 2], 2 + 1 + 3, np.log(2)),
]


@pytest.mark.parametrize(("kind", "p", "classes", "multiple", "rest"), EXTREMES)
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e4), ("float32", 5e37), ("float64", 1e300)])
@pytest.mark.parametrize(("reduction", "n"), [("sum", 1), ("mean", 3)])
def test_extreme_logits_give_finite_values_and_exactly_p_minus_t(
    lib, kind, p, classes, multiple, rest, dtype, size, reduction, n
):
    z = lib.asarray(LOGITS * size, dtype)
    value, gradient = kind(reduction).value_and_grad(z, np.array(classes))
    assert value.dtype == gradient.dtype == lib.backend.dtype(dtype)
    rtol = 4 * np.finfo(dtype).eps
    np.testing.assert_allclose(lib.to_numpy(value), (multiple * size + rest) / n, rtol=rtol)
    smallest = np.finfo(dtype).smallest_normal  # where e^-z ends, and the only rounding there is beside that of 1 / n
    np.testing.assert_allclose(lib.to_numpy(gradient), (p - np.eye(3)[classes]) / n, rtol=rtol * (n > 1), atol=smallest)


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1.6e38), ("float64", 0.8e308)])
def test_softmax_cross_entropy_of_a_right_answer_is_0_up_to_half_of_what_the_dtype_holds(lib, dtype, size):
    """Beyond, z - max z itself would overflow."""
    with lib.backend.scope():
        value, gradient = xn.SoftmaxCrossEntropy().value_and_grad(lib.asarray([[size, -size]], dtype), [0])
    np.testing.assert_array_equal(lib.to_numpy(value), 0.0)
    np.testing.assert_array_equal(lib.to_numpy(gradient), [[0.0, 0.0]])


@pytest.mark.parametrize(("kind", "p"), [(row[0], row[2]) for row in TABLE])
def test_a_prediction_that_is_not_a_number_is_not_hidden(lib, kind, p):
    p = p.copy()
    p[0, 0] = np.nan
    with lib.backend.scope():
        value, gradient = kind().value_and_grad(lib.asarray(p, "float64"), ONE_HOT)
    assert np.isnan(lib.to_numpy(value))
    assert np.isnan(lib.to_numpy(gradient)[0, 0])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_small_probability_that_is_right_keeps_its_relative_accuracy(lib, dtype):
    """-log(1 - p) = p + p²/2 + ...: 1 - p would lose the digits of p."""
    p = 1e-6 if dtype == "float32" else 1e-12
    value = xn.BinaryCrossEntropy()(lib.asarray([[p]], dtype), np.zeros((1, 1)))
    np.testing.assert_allclose(lib.to_numpy(value), p + p**2 / 2, rtol=4 * np.finfo(dtype).eps)


def test_tiny_losses_keep_their_relative_accuracy(lib):
    """log(1 + e^-z) = e^-z for a large z: nothing is lost to 1."""
    z = np.array([[50.0]])
    value = xn.BinaryCrossEntropyWithLogits()(lib.asarray(z, "float64"), np.ones((1, 1)))
    np.testing.assert_allclose(lib.to_numpy(value), np.exp(-50), rtol=1e-12)
    value = xn.BinaryCrossEntropyWithLogits()(lib.asarray(-z, "float64"), np.zeros((1, 1)))
    np.testing.assert_allclose(lib.to_numpy(value), np.exp(-50), rtol=1e-12)


# --- one's own, and settings ------------------------------------------------------------------------------------------


class FourthPower(xn.Loss):
    def __init__(self, xp, reduction="mean"):
        super().__init__(reduction)
        self.xp = xp

    def terms(self, prediction, target):
        error = prediction - target
        return error**4, 4.0 * error**3


class FourthPowerPerRow(FourthPower):
    mean_over = "rows"


@pytest.mark.parametrize(
    ("kind", "reduction", "divisor"),
    [
        (FourthPower, "mean", N * K),
        (FourthPower, "sum", 1),
        (FourthPowerPerRow, "mean", N),
        (FourthPowerPerRow, "sum", 1),
    ],
)
def test_ones_own_loss_needs_only_total(lib, kind, reduction, divisor):
    loss = kind(lib.xp, reduction)
    p = lib.asarray(REAL, "float64")
    value, gradient = loss.value_and_grad(p, NUMBERS)
    lib.agrees(value, ((REAL - NUMBERS) ** 4).sum() / divisor)
    lib.agrees(gradient, 4 * (REAL - NUMBERS) ** 3 / divisor)
    xn.check_gradients(loss, p, NUMBERS)
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: target of shape"):
        loss(p, NUMBERS[:, :2])


@pytest.mark.numpy_only
@pytest.mark.parametrize("reduction", ["none", "MEAN", None])
@every_loss
def test_another_reduction_is_refused(kind, formula, p, t, count, reduction):
    with pytest.raises(ValueError, match=rf'^{kind.__name__}: reduction must be "mean" or "sum", got {reduction!r}$'):
        kind(reduction=reduction)


@pytest.mark.numpy_only
@pytest.mark.parametrize("delta", [0.0, -1.0, float("nan"), float("inf"), "1", None])
def test_an_impossible_delta_is_refused(delta):
    with pytest.raises(ValueError, match=rf"^Huber: delta must be above 0 and finite, got {delta!r}$"):
        xn.Huber(delta)


@pytest.mark.numpy_only
@pytest.mark.parametrize("loss", [*(row[0]("sum") for row in TABLE if row[0] is not xn.Huber), xn.Huber(2.5)], ids=repr)
def test_repr_makes_the_same_loss_again(loss):
    again = eval(repr(loss), vars(xn).copy())
    assert type(again) is type(loss)
    assert vars(again) == vars(loss)


@pytest.mark.numpy_only
def test_a_prediction_that_is_no_array_is_refused():
    with pytest.raises(TypeError, match="Huber: prediction must be an array, got a list"):
        xn.Huber()([[1.0]], [[1.0]])
