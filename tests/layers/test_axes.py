"""Layers and losses of any number of axes, and shapes that are told. Axes: N batch, C features, T positions."""

import re

import numpy as np
import pytest

import xpnet as xn
from support import cases
from support.layers import assert_derivatives
from xpnet.training.inputs import outputs_of

SHAPES = [(5, 4), (5, 3, 4), (3, 2, 3, 4)]
LAST = {
    "dense": lambda: xn.Dense(4, 3),
    "softmax": xn.Softmax,
    "dropout": lambda: xn.Dropout(0.3),
    "relu": xn.ReLU,
    "elu": xn.ELU,
    "tanh": xn.Tanh,
}
CLASS_LOSSES = {
    "softmax cross-entropy": (xn.SoftmaxCrossEntropy, cases.logits),
    "categorical cross-entropy": (xn.CategoricalCrossEntropy, cases.probabilities),
}


@pytest.fixture(params=["auto", "generic", "reference"])
def kernels(request, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", request.param)
    return request.param


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LAST)
def test_derivatives_on_any_number_of_axes(lib, rng, name, shape):
    assert_derivatives(cases.ready(LAST[name](), lib), lib, rng.normal(size=shape))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("trainable", [True, False])
def test_derivatives_of_batch_norm_on_any_number_of_axes(lib, rng, shape, training, trainable):
    layer = cases.ready(xn.BatchNorm(shape[1], trainable=trainable), lib)
    assert_derivatives(layer, lib, rng.normal(size=shape), training)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dense_is_that_of_each_position(lib, rng, shape):
    layer, x = cases.ready(xn.Dense(4, 3), lib), rng.normal(size=shape)
    y, cache = layer.forward(lib.asarray(x))
    rows, of_rows = layer.forward(lib.asarray(x.reshape(-1, 4)))
    assert tuple(y.shape) == layer.output_shape(shape) == (*shape[:-1], 3)
    lib.agrees(y, lib.to_numpy(rows).reshape(y.shape))
    dy = rng.normal(size=(*shape[:-1], 3))
    dx, grads = layer.backward(lib.asarray(dy), cache)
    dx_rows, grads_rows = layer.backward(lib.asarray(dy.reshape(-1, 3)), of_rows)
    lib.agrees(dx, lib.to_numpy(dx_rows).reshape(shape))
    for name, g in grads.items():
        lib.agrees(g, lib.to_numpy(grads_rows[name]))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_normalises_axis_1_over_all_others(lib, rng, shape):
    layer = xn.BatchNorm(shape[1])
    xn.Sequential(layer).initialize(lib.backend, "float64")
    x = 3.0 + 2.0 * rng.normal(size=shape)
    y, cache = layer.forward(lib.asarray(x), training=True)
    others = tuple(i for i in range(x.ndim) if i != 1)
    mean, var = x.mean(axis=others, keepdims=True), x.var(axis=others, keepdims=True)
    lib.agrees(y, (x - mean) / np.sqrt(var + layer.eps))
    lib.agrees(layer.next_state(cache)["mean"], mean.ravel())
    lib.agrees(layer.next_state(cache)["var"], var.ravel())
    layer.assign_state(layer.next_state(cache))
    lib.agrees(layer.forward(lib.asarray(x))[0], (x - mean) / np.sqrt(var + layer.eps))


@pytest.mark.numpy_only
def test_batch_norm_tells_what_it_takes():
    layer = xn.BatchNorm(4)
    for shape in [(4,), (7, 4), ("N", 4), (None, 4, 9), (4, 5, 6), (2, 4, 5, 6)]:
        assert layer.output_shape(shape) == shape
    for shape, wanted in [((3,), "(n, 4)"), (("N", 3, 4), "(n, 4, ...)"), ((), "(n, 4)"), (("N",), "(n, 4)")]:
        with pytest.raises(ValueError, match=re.escape(f"expected input of shape {wanted}, got {shape}")):
            layer.output_shape(shape)
    with pytest.raises(ValueError, match=r"expected input of shape \(n, 4, \.\.\.\), got \(2, 3, 4\)"):
        layer.forward(np.ones((2, 3, 4)))
    with pytest.raises(ValueError, match="a batch of 1 has no variance"):
        xn.Sequential(layer).initialize("numpy").forward(np.ones((1, 4), "float32"), training=True)


@pytest.mark.numpy_only
def test_batch_norm_of_images_takes_no_copy_where_the_batch_is_contiguous():
    from xpnet.layers.normalization import as_columns, as_features

    x = np.empty((3, 5, 6, 8)).transpose(3, 0, 1, 2)  # (N, C, H, W), in memory (C, H, W, N)
    assert np.shares_memory(as_columns(x), x)
    assert np.shares_memory(as_features(as_columns(x), x.shape), x)
    assert as_features(as_columns(x), x.shape).strides == x.strides


def test_a_bias_that_batch_norm_does_not_subtract_has_its_gradient(lib, rng):
    """Behind Dense on (N, T, D) BatchNorm subtracts along T, and the bias lies along the last axis."""
    net = xn.Sequential(xn.Dense(3, 4), xn.BatchNorm(4), xn.Tanh()).initialize(lib.backend, "float64", seed=0)
    assert net.idle_parameters() == ["0.bias"]
    for shape, idle in [((5, 3), True), ((5, 4, 3), False)]:
        x = lib.asarray(rng.normal(size=shape))
        xn.check_gradients(net, x)
        y, cache = net.forward(x, training=True)
        _, grads = net.backward(lib.asarray(rng.normal(size=y.shape)), cache)
        assert (np.abs(lib.to_numpy(grads["0.bias"])).max() == 0.0) == idle


# --- losses and metrics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", CLASS_LOSSES)
def test_a_loss_of_classes_counts_each_position_as_a_row(lib, rng, name, reduction):
    make, draw = CLASS_LOSSES[name]
    loss, p, classes = make(reduction=reduction), draw(rng, 30, 3), cases.classes(rng, 30, 3)
    expected, slopes = loss.value_and_grad(lib.asarray(p), classes)
    for target in (classes.reshape(5, 6), classes.reshape(5, 6, 1), np.eye(3)[classes].reshape(5, 6, 3)):
        value, gradient = loss.value_and_grad(lib.asarray(p.reshape(5, 6, 3)), target)
        lib.agrees(value, lib.to_numpy(expected))
        lib.agrees(gradient, lib.to_numpy(slopes).reshape(5, 6, 3))
    xn.check_gradients(loss, lib.asarray(p.reshape(5, 2, 3, 3)), classes.reshape(5, 2, 3))


@pytest.mark.parametrize("loss", [xn.BinaryCrossEntropyWithLogits(), xn.Huber(), xn.MeanSquaredError()], ids=repr)
def test_other_losses_take_outputs_of_any_shape(lib, rng, loss):
    p = cases.logits(rng, 24, 3).reshape(4, 2, 3, 3)
    xn.check_gradients(loss, lib.asarray(p), cases.several(rng, 24, 3).reshape(p.shape))


@pytest.mark.parametrize(("target", "message"), [
    (np.zeros((5, 4), int), r"target of shape \(5, 4\) does not fit the prediction's \(5, 6, 3\)"),
    (np.full((5, 6), 3), "class labels run from 3 to 3, but 3 outputs take 0 to 2"),
    (np.full((5, 6, 3), 0.5), "each row of a one-hot target must add up to 1"),
])  # fmt: skip
def test_targets_that_do_not_fit_positions_are_refused(lib, target, message):
    with pytest.raises(ValueError, match=f"^SoftmaxCrossEntropy: .*{message}"):
        xn.SoftmaxCrossEntropy()(lib.asarray(np.zeros((5, 6, 3))), target)


@pytest.mark.parametrize("metric", [xn.accuracy, xn.f1, xn.confusion_matrix], ids=lambda f: f.__name__)
def test_metrics_count_each_position_as_a_row(lib, rng, metric):
    p, classes = rng.normal(size=(30, 3)), cases.classes(rng, 30, 3)
    expected = lib.to_numpy(metric(lib.asarray(p), classes))
    for target in (classes.reshape(5, 6), np.eye(3)[classes].reshape(5, 6, 3)):
        np.testing.assert_array_equal(lib.to_numpy(metric(lib.asarray(p.reshape(5, 6, 3)), target)), expected)
    with pytest.raises(ValueError, match=r"target of shape \(30,\) does not fit the prediction's \(5, 6, 3\)"):
        metric(lib.asarray(p.reshape(5, 6, 3)), classes)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weights_over", ["fit", "batch"])
def test_weights_of_rows_are_those_of_all_their_positions(lib, rng, reduction, weights_over):
    loss, x, y = xn.SoftmaxCrossEntropy(reduction), rng.normal(size=(6, 5, 4)), rng.integers(3, size=(6, 5))
    loss.weights_over = weights_over
    weights = rng.uniform(0.0, 2.0, size=6)
    net = xn.Sequential(xn.Dense(4, 3)).initialize(lib.backend, "float64", seed=0)
    given = [weights, np.repeat(weights[:, None], 5, axis=1)]
    (a, slopes), (b, others) = (net.value_and_grad(x, y, loss, sample_weight=w, l2=0.1) for w in given)
    flat = net.value_and_grad(x.reshape(30, 4), y.ravel(), loss, sample_weight=given[1].ravel(), l2=0.0)[0]
    plain = net.value_and_grad(x, y, loss, sample_weight=given[1])[0]
    lib.agrees(a, lib.to_numpy(b))
    lib.agrees(plain, lib.to_numpy(flat))
    for name, g in slopes.items():
        lib.agrees(others[name], lib.to_numpy(g))
    for bad in (weights[:5], np.ones((6, 4)), np.ones((6, 5, 3)), 1.0):
        with pytest.raises(ValueError, match=r"one number for each row, \(6,\), or for each position, \(6, 5\)"):
            net.value_and_grad(x, y, loss, sample_weight=bad)


# --- training ---------------------------------------------------------------------------------------------------------


class Last(xn.Layer):
    """A user's layer: of (N, T, D) the last position. It tells its shape where `told`."""

    forwards = 0

    def forward(self, x, training=False):
        type(self).forwards += 1
        return x[:, -1, :], x.shape

    def backward(self, dy, cache):
        xp = xn.backends.namespace(dy)
        zeros = xp.zeros((cache[0], cache[1] - 1, cache[2]), dtype=dy.dtype, device=xn.backends.device_of(dy))
        return xp.concat([zeros, dy[:, None, :]], axis=1), {}


class Told(Last):
    def forward(self, x, training=False):
        return super().forward(x, training)

    def output_shape(self, input_shape):
        return (*input_shape[:-2], input_shape[-1])


NETWORKS = {
    "each position": lambda: (xn.Dense(4, 6), xn.Tanh(), xn.Dropout(0.2), xn.Dense(6, 3)),
    "batch norm over channels": lambda: (xn.Dense(4, 5), xn.BatchNorm(5), xn.Sigmoid(), xn.Dense(5, 3)),
    "one layer": lambda: (xn.Dense(4, 3),),
    "to a matrix": lambda: (xn.Dense(4, 6), xn.ReLU(), Told(), xn.Dense(6, 5), xn.BatchNorm(5), xn.Dense(5, 3)),
    "to a matrix, not told": lambda: (
        xn.Dense(4, 6), xn.ReLU(), Last(), xn.Residual(xn.Dense(6, 6), xn.Tanh()), xn.Dense(6, 3),
    ),
}  # fmt: skip


def trained(backend, name, **options):
    rng = np.random.default_rng(5)
    net = xn.Sequential(*NETWORKS[name]()).initialize(backend, "float64", seed=3)
    x = rng.normal(size=(20, 5, 4))
    y = rng.integers(3, size=20 if name.startswith("to a matrix") else (20, 5))
    how = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.Adam(0.01), "epochs": 3, "batch_size": 8} | options
    history = net.fit(x, y, validation_data=(x, y), metrics=["accuracy"], **how)
    return net, history, x, y


@pytest.mark.parametrize(("name", "options"), [
    *((name, {}) for name in NETWORKS),
    *((name, {"sample_weight": np.linspace(0, 2, 20), "l2": 0.1}) for name in ("each position", "to a matrix")),
])  # fmt: skip
def test_training_on_sequences_is_the_plain_steps(lib, monkeypatch, kernels, name, options):
    net, history, x, y = trained(lib.backend, name, **options)
    assert history["loss"][-1] < history["loss"][0]
    assert history["val_accuracy"][-1] == net.evaluate(x, y, xn.SoftmaxCrossEntropy())["accuracy"]
    monkeypatch.setenv("XPNET_KERNELS", "reference")
    twin, expected, _, _ = trained(lib.backend, name, **options)
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=1e-10)
    for key, a in (net.params | net.state).items():
        np.testing.assert_allclose(lib.to_numpy(a), lib.to_numpy((twin.params | twin.state)[key]), rtol=0, atol=1e-8)


def test_a_shape_that_layers_tell_is_not_tried(lib, kernels):
    for layer, extra in ((Told, 0), (Last, 1)):
        net = xn.Sequential(layer(), xn.Dense(4, 3)).initialize(lib.backend, "float64")
        x = lib.asarray(np.random.default_rng(0).normal(size=(6, 5, 4)))
        before = layer.forwards
        assert outputs_of(net, x) == (3,)
        assert layer.forwards - before == extra
        assert net.evaluate(x, np.arange(6) % 3, xn.SoftmaxCrossEntropy()).keys() == {"loss", "accuracy"}


@pytest.mark.numpy_only
@pytest.mark.parametrize(("layers", "shape", "message"), [
    ([xn.Dense(4, 3)], (7, 5), r"x has shape \(7, 5\), expected \(n, 4\)$"),
    ([xn.Dense(4, 3)], (4,), r"x has shape \(4,\), expected \(n, 4\); for a single row give x\[None, :\]$"),
    ([xn.Dense(1, 3)], (4,), r"expected \(n, 1\); for a single feature give x\[:, None\]$"),
    ([xn.Dense(64, 3)], (2, 8, 8), r"expected \(n, 64\); give x.reshape\(len\(x\), -1\)$"),
    ([xn.Dense(4, 3)], (7, 2, 5), r"x has shape \(7, 2, 5\): Dense\(4, 3\): expected input of shape \(n, \.\.\., 4\)"),
    ([xn.BatchNorm(4)], (7, 5, 4), r"x has shape \(7, 5, 4\): BatchNorm\(4\): expected .* \(n, 4, \.\.\.\)"),
    ([xn.Dense(4, 3), xn.BatchNorm(3)], (7, 2, 4), r"x has shape \(7, 2, 4\): BatchNorm\(3\): expected input of shape"),
])  # fmt: skip
def test_an_x_that_does_not_fit_is_refused_with_the_layers_words(layers, shape, message):
    net = xn.Sequential(*layers).initialize("numpy")
    with pytest.raises(ValueError, match=f"^predict: .*{message}"):
        net.predict(np.ones(shape))


@pytest.mark.numpy_only
def test_a_network_is_refused_only_where_no_number_of_axes_fits():
    class Turned(xn.Layer):
        """(N, T, D) to (N, D, T)."""

        def forward(self, x, training=False):
            return x.transpose(0, 2, 1), None

        def backward(self, dy, cache):
            return dy.transpose(0, 2, 1), {}

        def output_shape(self, input_shape):
            if len(input_shape) < 3:
                raise ValueError("three axes are needed")
            return (*input_shape[:-2], input_shape[-1], input_shape[-2])

    net = xn.Sequential(xn.Dense(4, 5), Turned(), xn.BatchNorm(5)).initialize("numpy")
    assert net.predict(np.ones((2, 7, 4))).shape == (2, 5, 7)
    assert "(N, 5, ?)" in net.summary()
    with pytest.raises(ValueError, match=r"layer 2 does not fit the one before it: BatchNorm\(6\)|three axes"):
        xn.Sequential(xn.Dense(4, 5), Turned(), xn.BatchNorm(6))
    with pytest.raises(ValueError, match="expected input of shape"):
        xn.Sequential(xn.Dense(4, 5), xn.BatchNorm(6))
    net = xn.Sequential(xn.BatchNorm(4), xn.Dense(5, 3)).initialize("numpy")
    assert net.predict(np.ones((2, 4, 5))).shape == (2, 4, 3)
    assert "(N, 4, 3)" in net.summary()
