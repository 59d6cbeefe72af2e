"""Metrics in fit and evaluate: taken with the loss, and refused before the first step."""

import re
from functools import partial

import numpy as np
import pytest

import xpnet as xn
from support.training import CROSS, SQUARED, STILL, On, T, X, Y, bits, fit, small

YES = (X @ np.array([1.0, -2.0, 0.5, 1.0]) > 0).astype(int)


@pytest.mark.parametrize(
    ("last", "loss", "y"),
    [
        ((xn.Dense(4, 1),), xn.BinaryCrossEntropyWithLogits(), YES),
        ((xn.Dense(4, 1), xn.Sigmoid()), xn.BinaryCrossEntropy(), YES[:, None]),
        ((xn.Dense(4, 1),), xn.MeanSquaredError(), YES),
        ((xn.Dense(4, 3),), CROSS, Y),
        ((xn.Dense(4, 3), xn.Softmax()), xn.CategoricalCrossEntropy(), T),
        ((xn.Dense(4, 3),), xn.BinaryCrossEntropyWithLogits(), T),  # labels, of which each row happens to hold one
        ((xn.Dense(4, 3),), xn.BinaryCrossEntropyWithLogits(), Y),  # classes, each output for itself
    ],
)
def test_metrics_know_the_loss_they_are_taken_with(lib, last, loss, y):
    """By name, as a function, in a dict: as scikit-learn has it of what the outputs say."""
    net = small(lib, *(layer.clone() for layer in last))
    z = lib.to_numpy(net.predict(X))
    of_classes = y is Y or getattr(loss, "matrix", False)
    taken = z.argmax(axis=1) if of_classes else z > {"logits": 0.0}.get(loss.outputs, 0.5)
    truth = Y if of_classes else np.reshape(y, z.shape) == 1
    named = net.evaluate(X, y, loss, ["accuracy", "f1", "roc_auc"])
    assert named["accuracy"] == pytest.approx((taken == truth).mean())
    given = {"accuracy": xn.accuracy, "f1": "f1", "roc_auc": xn.roc_auc}
    assert net.evaluate(X, y, loss, list(given.values())) == net.evaluate(X, y, loss, given) == named
    for name in ("accuracy", "f1", "roc_auc"):
        assert float(getattr(xn, name)(net.predict(X), y, loss=loss)) == named[name]
    default = net.evaluate(X, y, loss)
    assert default == (
        {k: named[k] for k in ("loss", "accuracy")} if loss.threshold is not None else {"loss": named["loss"]}
    )
    history = fit(net, X, y, loss, STILL, metrics=["accuracy", "f1", "roc_auc"], validation_data=(X, y))
    assert {name: history[f"val_{name}"][0] for name in named} == pytest.approx(named)


@pytest.mark.numpy_only
def test_targets_of_any_form_serve_a_metric(lib):
    pandas = pytest.importorskip("pandas")
    net = small(lib)
    expected = net.evaluate(X, Y, CROSS, ["accuracy", "f1"])
    for y in (pandas.Series(Y), Y.tolist(), Y[:, None], pandas.DataFrame(T), Y.astype("uint8")):
        assert net.evaluate(X, y, CROSS, ["accuracy", "f1"]) == expected


@pytest.mark.parametrize("metric", [lambda p: 0.0, lambda p, t: 1 / 0], ids=["one", "0"])
def test_an_error_in_a_metric_names_it_and_what_it_was_given(lib, metric):
    net = small(lib)
    with pytest.raises((TypeError, ValueError, RuntimeError, ZeroDivisionError)) as caught:  # each library has its own
        net.evaluate(X, Y, CROSS, {"mine": metric})
    assert caught.value.__notes__ == [
        "in the metric 'mine', which evaluate calls with the prediction, of shape (12, 3), and the target as the loss "
        "has it, of shape (12, 3), for one number"
    ]


@pytest.mark.parametrize("shape", [(1,), (12, 3), (0,)], ids=str)
def test_a_metric_that_gives_an_array_is_named(lib, shape):
    with pytest.raises(
        TypeError, match=rf"^evaluate: the metric 'mine' gave an array of shape {re.escape(str(shape))}, "
    ):
        small(lib).evaluate(X, Y, CROSS, {"mine": lambda p, t: lib.xp.zeros(shape)})


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("value", "came"), [(None, "None"), ("0.5", "'0.5'"), ([0.5], r"\[0\.5\]"), (1j, "1j"), ("long" * 50, "a str")]
)
def test_a_metric_that_gives_no_number_is_named(value, came):
    net = xn.Sequential(xn.Dense(4, 3)).initialize()
    with pytest.raises(TypeError, match=f"^evaluate: the metric 'mine' gave {came}, expected one number$"):
        net.evaluate(X, Y, CROSS, {"mine": lambda p, t: value})


@pytest.mark.numpy_only
def test_a_data_frame_for_a_loss_or_a_metric_is_told_by_its_type():
    pandas = pytest.importorskip("pandas")
    frame, net = pandas.DataFrame(X), xn.Sequential(xn.Dense(4, 3)).initialize()
    with pytest.raises(
        TypeError, match=r"^fit: loss must be an object such as xn.SoftmaxCrossEntropy\(\), got a DataFrame$"
    ):
        fit(net, loss=frame)
    for metrics, expected in ((frame, "metrics must be a list such as"), ([frame], "a metric must be a name such as")):
        with pytest.raises(TypeError, match=rf"^evaluate: {expected} .*, got a DataFrame$"):
            net.evaluate(X, Y, CROSS, metrics)


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (["accurracy"], r"^fit: no metric 'accurracy' here; there are accuracy, top_k_accuracy, f1, roc_auc, mean_sq"),
        (["f1", xn.f1], r"^fit: two metrics are named 'f1'; give them names"),
        (["top_k"], r"^top_k_accuracy: k must lie between 1 and the 3 outputs, got 5"),
        ([partial(xn.top_k_accuracy, k=2)], "a metric needs a name"),
        ({"loss": "f1"}, r"^fit: a metric cannot be named 'loss'"),
    ],
)
def test_metrics_that_cannot_be_taken_are_found_before_the_first_step(lib, metrics, message):
    net = small(lib)
    before = bits(net)
    with pytest.raises((ValueError, TypeError), match=message):
        fit(net, metrics=metrics, validation_data=(X, Y), callbacks=[On(step_end=lambda run: pytest.fail("a step"))])
    assert bits(net) == before


def test_metrics_of_numbers_for_classes_are_found_before_the_first_step(lib):
    with pytest.raises(ValueError, match=r"^accuracy: a target's entries must lie in \[0, 1\]") as caught:
        fit(small(lib), y=X[:, :3], loss=SQUARED, metrics=["accuracy"], validation_data=(X, 5 * X[:, :3]), epochs=1)
    assert caught.value.__notes__[-1].startswith("in the metric 'accuracy', which fit calls")


@pytest.mark.numpy_only
def test_a_metric_does_not_take_the_losss_name():
    with pytest.raises(ValueError, match=r"^evaluate: a metric cannot be named 'loss'"):
        xn.Sequential(xn.Dense(4, 3)).initialize().evaluate(X, Y, CROSS, metrics={"loss": xn.accuracy})


def test_metrics_without_validation_data_are_refused_rather_than_never_taken(lib):
    net = small(lib)
    before = bits(net)
    with pytest.raises(ValueError, match=r"^fit: metrics are taken on validation_data alone, and there is none"):
        fit(net, metrics={"accuracy": xn.accuracy})
    assert bits(net) == before
    fit(net, metrics={})
