"""Softmax cross-entropy with positions that are ignored, and with smoothed labels; test_torch_reference has PyTorch's.

Axes: N batch, T positions, K classes.
"""

import numpy as np
import pytest

import xpnet as xn

N, T, K = 6, 5, 3


def padded(rng, ignore):
    """Logits, classes of which about a third is `ignore`, and which of them count."""
    z, y = 3 * rng.normal(size=(N, T, K)), rng.integers(K, size=(N, T))
    y[rng.random((N, T)) < 1 / 3] = ignore
    y[0] = ignore
    return z, y, y != ignore


@pytest.mark.parametrize("ignore", [-100, -1, 0, 2, K])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_ignored_positions_count_for_nothing(lib, rng, ignore, reduction):
    z, y, counted = padded(rng, ignore)
    loss, plain = xn.SoftmaxCrossEntropy(reduction, ignore=ignore), xn.SoftmaxCrossEntropy(reduction)
    value, gradient = loss.value_and_grad(lib.asarray(z), y)
    expected, slopes = plain.value_and_grad(lib.asarray(z[counted]), y[counted])
    lib.agrees(value, lib.to_numpy(expected))
    lib.agrees(lib.asarray(lib.to_numpy(gradient)[counted]), lib.to_numpy(slopes))
    assert (lib.to_numpy(gradient)[~counted] == 0.0).all()
    xn.check_gradients(loss, lib.asarray(z), y)
    for none in (np.full((N, T), ignore), np.full((N, T, 1), ignore)):
        value, gradient = loss.value_and_grad(lib.asarray(z), none)
        assert float(value) == 0.0
        assert (lib.to_numpy(gradient) == 0.0).all()


@pytest.mark.parametrize("ignore", [None, -100])
def test_smoothed_labels_are_a_share_of_every_class(lib, rng, ignore):
    z, y, counted = padded(rng, -100)
    y, counted = (y, counted) if ignore is not None else (np.abs(y) % K, np.ones((N, T), bool))
    loss = xn.SoftmaxCrossEntropy(ignore=ignore, label_smoothing=0.3)
    value, _ = loss.value_and_grad(lib.asarray(z), y)
    expected = xn.SoftmaxCrossEntropy()(lib.asarray(z[counted]), 0.7 * np.eye(K)[y[counted]] + 0.1)
    lib.agrees(value, lib.to_numpy(expected))
    xn.check_gradients(loss, lib.asarray(z), y)


@pytest.mark.parametrize(("reduction", "weights_over"), [("sum", "fit"), ("mean", "batch"), ("mean", "fit")])
def test_weights_are_those_of_the_positions_that_count(lib, rng, reduction, weights_over):
    _, y, counted = padded(rng, -100)
    x, weights = rng.normal(size=(N, T, 4)), np.array([7.0, 0, 1, 2, 1, 3])
    loss, net = xn.SoftmaxCrossEntropy(reduction, ignore=-100), xn.Sequential(xn.Dense(4, K))
    net.initialize(lib.backend, "float64", seed=1)
    loss.weights_over = weights_over
    repeats = weights.astype(int)
    expected, slopes = net.value_and_grad(np.repeat(x, repeats, axis=0), np.repeat(y, repeats, axis=0), loss)
    shares = weights[:, None] * counted
    for given in (weights, np.repeat(weights[:, None], T, axis=1)):
        scale = shares.sum() / counted.sum() / weights.mean() if (reduction, weights_over) == ("mean", "fit") else 1.0
        value, grads = net.value_and_grad(x, y, loss, sample_weight=given)
        lib.agrees(value, scale * lib.to_numpy(expected))
        for name, g in slopes.items():
            lib.agrees(grads[name], scale * lib.to_numpy(g))


def test_batches_weighted_by_what_counts_in_them_add_up_to_the_whole(lib, rng):
    z, y, counted = padded(rng, -100)
    loss = xn.SoftmaxCrossEntropy(ignore=-100)
    each = sum(float(loss(lib.asarray(z[i : i + 2]), y[i : i + 2])) * counted[i : i + 2].sum() for i in range(0, N, 2))
    assert each / counted.sum() == pytest.approx(float(loss(lib.asarray(z), y)), rel=1e-12)


@pytest.mark.parametrize(
    "metric", [xn.accuracy, xn.f1, xn.confusion_matrix, xn.top_k_accuracy], ids=lambda m: m.__name__
)
def test_metrics_of_classes_leave_ignored_positions_out(lib, rng, metric):
    z, y, counted = padded(rng, -100)
    loss, k = xn.SoftmaxCrossEntropy(ignore=-100), {"k": 2} if metric is xn.top_k_accuracy else {}
    expected = lib.to_numpy(metric(lib.asarray(z[counted]), y[counted], **k))
    np.testing.assert_array_equal(lib.to_numpy(metric(lib.asarray(z), y, loss=loss, **k)), expected)
    with pytest.raises(ValueError, match=f"^{metric.__name__}: every row is of class -100, which the loss ignores"):
        metric(lib.asarray(z), np.full((N, T), -100), loss=loss, **k)


@pytest.mark.parametrize("shape", [(N * T,), (N, T)], ids=["rows", "positions"])
@pytest.mark.parametrize(
    "settings", [{"ignore": -100}, {"label_smoothing": 0.2}, {"ignore": 1, "label_smoothing": 0.1}]
)
def test_every_step_trains_by_them(lib, rng, monkeypatch, settings, shape):
    """The quick softmax of some steps is of rows that add up to 1."""
    loss = xn.SoftmaxCrossEntropy(**settings)
    _, y, _ = padded(rng, settings.get("ignore", 0))
    x, y, ends = rng.normal(size=(*shape, 4)), y.reshape(shape), []
    for choice in ("auto", "generic", "reference"):
        monkeypatch.setenv("XPNET_KERNELS", choice)
        net = xn.Sequential(xn.Dense(4, 5), xn.Tanh(), xn.Dense(5, K)).initialize(lib.backend, "float64", seed=1)
        value, grads = net.value_and_grad(x, y, loss)
        slope = lib.to_numpy(grads["2.bias"]) + 0.0
        history = net.fit(x, y, loss=loss, optimizer=xn.SGD(0.1, momentum=0.0), epochs=2, batch_size=None)
        assert history["loss"][0] == pytest.approx(float(value), rel=1e-12)
        scores = net.evaluate(x, y, loss)
        ends.append([slope, *map(lib.to_numpy, net.params.values()), scores["loss"], scores["accuracy"]])
    for other in ends[1:]:
        for a, b in zip(ends[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.numpy_only
def test_what_can_be_neither_is_refused():
    for bad in (1.0, True, "-100", 2**31):
        with pytest.raises(ValueError, match="SoftmaxCrossEntropy: ignore must be a whole number"):
            xn.SoftmaxCrossEntropy(ignore=bad)
    for bad in (-0.1, 1.0, "0.1"):
        with pytest.raises((ValueError, TypeError), match="SoftmaxCrossEntropy: label_smoothing must be"):
            xn.SoftmaxCrossEntropy(label_smoothing=bad)
    with pytest.raises(ValueError, match="class labels run from -1 to 0, but 3 outputs take 0 to 2"):
        xn.SoftmaxCrossEntropy(ignore=-100)(np.zeros((3, 3)), np.array([-1, 0, -100]))
    assert repr(xn.SoftmaxCrossEntropy(ignore=-1)) == "SoftmaxCrossEntropy(ignore=-1)"
