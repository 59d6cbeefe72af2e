"""Every derivative against central differences, in any memory order; and mutants found out."""

import importlib
import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet as xn
from support.cases import FEATURES, LAYERS, LOSSES, ready, seeds, some_inputs, tutorial_network
from support.layers import assert_derivatives
from xpnet.layers.container import Container


def f_ordered(x):
    return np.asfortranarray(x)


def strided(x):
    """Every second entry of a larger array, backwards."""
    room = np.zeros((2 * x.shape[0], 3 * x.shape[1]))
    view = room[::-2, ::3]
    view[...] = x
    return view


def read_only(x):
    x = x.copy()
    x.flags.writeable = False
    return x


LAYOUTS = [f_ordered, strided, read_only]
CONTAINERS = [name for name, make in LAYERS.items() if isinstance(make(), Container)]


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("name", [name for name in LAYERS if name not in CONTAINERS])
@given(seed=seeds, n=st.integers(2, 6))
def test_layer_derivatives_are_those_of_its_forward(strict_lib, name, training, seed, n):
    x = some_inputs(np.random.default_rng(seed), n)
    assert_derivatives(ready(LAYERS[name](), strict_lib, seed=seed), strict_lib, x, training, seed)


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("name", CONTAINERS)
@settings(max_examples=max(2, settings().max_examples // 10))
@given(seed=seeds, n=st.integers(2, 6))
def test_a_containers_derivatives_are_those_of_its_forward(strict_lib, name, training, seed, n):
    """A tenth of the examples: what depends on the numbers is its layers', proved above."""
    x = some_inputs(np.random.default_rng(seed), n)
    assert_derivatives(ready(LAYERS[name](), strict_lib, seed=seed), strict_lib, x, training, seed)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
@given(seed=seeds, n=st.integers(1, 6), k=st.integers(2, 5))
def test_loss_derivative_is_that_of_its_value(strict_lib, name, reduction, seed, n, k):
    loss, prediction, target = LOSSES[name]
    rng = np.random.default_rng(seed)
    x = strict_lib.asarray(prediction(rng, n, k))
    errors = xn.check_gradients(loss(reduction=reduction), x, target(rng, n, k))
    assert errors["prediction"] < 1e-6


@pytest.mark.numpy_only
@pytest.mark.parametrize("name", LAYERS)
@given(seed=seeds, n=st.integers(2, 6))
def test_memory_order_changes_no_derivative(name, seed, n):
    rng = np.random.default_rng(seed)
    layer = ready(LAYERS[name](), seed=seed)
    x = some_inputs(rng, n)
    y, cache = layer.forward(x, training=True)
    dy = rng.normal(size=y.shape)
    dx, grads = layer.backward(dy, cache)
    for layout in LAYOUTS:
        y_too, cache = layer.forward(layout(x), training=True)
        dx_too, grads_too = layer.backward(layout(dy), cache)
        for one, other in [(y, y_too), (dx, dx_too), *((grads[k], grads_too[k]) for k in grads)]:
            np.testing.assert_allclose(one, other, rtol=0, atol=1e-13 * max(1.0, np.abs(one).max()))


@pytest.mark.not_on_host
def test_whole_digits_network_with_its_loss(strict_lib, digits):
    x, y = digits
    net = tutorial_network().initialize(strict_lib.backend, "float64")
    errors = xn.check_gradients(net, strict_lib.asarray(x[:12]), y[:12], xn.SoftmaxCrossEntropy())
    assert errors.keys() == {"x", *net.params}
    assert max(errors.values()) < 1e-6


# --- mutants: a line of a backward changed, and the check must see it -------------------------------------------------


MUTANTS = [  # module, the line's part, what stands there instead, the case that must turn red
    ("layers/normalization.py", "dx -= dbeta / n", "pass", "batch norm"),
    ("layers/normalization.py", "centred * (scale * dgamma / -n)", "0.0 * centred", "batch norm"),
    ("layers/normalization.py", "dx += dy", "pass", "batch norm"),
    ("layers/normalization.py", "dx *= slope", "pass", "batch norm"),
    ("layers/normalization.py", 'slope = self.params["gamma"] * scale', "slope = scale", "batch norm"),
    ("layers/normalization.py", "as_features(dy * slope,", "as_features(dy * scale,", "batch norm, frozen"),
    (
        "layers/normalization.py",
        "ops.dot_over_batch(dy, centred) * scale",
        "ops.dot_over_batch(dy, centred)",
        "batch norm",
    ),
    ("layers/normalization.py", "dx -= mean_of_last(g)", "pass", "layer norm"),
    ("layers/dense.py", "x.T @ dy", "x.T @ dy / dy.shape[0]", "dense"),
    ("layers/dense.py", '"bias": ops.sum_over_batch(dy)', '"bias": ops.sum_over_batch(dy) / dy.shape[0]', "dense"),
    ("layers/activations.py", "dx *= y\n", "pass\n", "sigmoid"),
    ("layers/activations.py", "1.0 - y * y", "1.0 - y", "tanh"),
    ("layers/activations.py", "where(positive, dy, 0.0)", "where(positive, dy, 0.001 * dy)", "relu"),
    ("layers/activations.py", "where(positive, dy, self.alpha * dy)", "where(positive, dy, 0.0 * dy)", "leaky relu"),
    ("layers/activations.py", "self.alpha * xp.exp(", "self.alpha * xp.expm1(", "elu"),
    ("layers/activations.py", "(below + x * density)", "below", "gelu"),
    ("layers/activations.py", "3.0 * ROOT * CUBIC", "ROOT * CUBIC", "gelu, approximate"),
    (
        "layers/activations.py",
        "y * (dy - namespace(y).sum(dy * y, axis=-1, keepdims=True))",
        "dy * y * (1.0 - y)",
        "softmax",
    ),
    ("layers/normalization.py", "dx -= normal * xp.mean(g * normal, axis=(1, 2), keepdims=True)", "pass", "group norm"),
    ("layers/convolution.py", "part, x.shape, before)", "part, x.shape, (0, 0))", "conv 2d, strided"),
    ("layers/convolution.py", "w = weight[i, ...]", "w = weight[-1 - i, ...]", "conv 2d"),
    (
        "layers/convolution.py",
        "part @ xp.matrix_transpose(columns)",
        "part @ xp.matrix_transpose(columns) / 2",
        "conv 1d",
    ),
    ("layers/pooling.py", "in reversed(range(len(taps)))", "in range(len(taps) - 1)", "max pool 2d"),
    ("layers/pooling.py", "part = batch_last(dy) * share", "part = batch_last(dy)", "average pool 2d"),
    ("layers/pooling.py", "batch_last(dy) / math.prod(sizes)", "batch_last(dy)", "global average pool"),
    ("layers/shape.py", "return dy * self.scale, {}", "return dy, {}", "rescale"),
    ("layers/dropout.py", "(dy if mask is None else dy * mask)", "dy", "dropout"),
]


@pytest.mark.numpy_only
@pytest.mark.parametrize(("module", "line", "instead", "case"), MUTANTS, ids=[f"{m[3]}: {m[1]}" for m in MUTANTS])
def test_a_mutant_is_found_out(module, line, instead, case, monkeypatch, rng):
    path = Path(xn.__file__).parent / module
    source = path.read_text()
    assert source.count(line) == 1
    spec = importlib.util.spec_from_file_location("xpnet.layers.mutant", path)
    mutant = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "xpnet.layers.mutant", mutant)
    exec(compile(source.replace(line, instead), str(path), "exec"), vars(mutant))

    def mutated(sound):
        if isinstance(sound, xn.Sequential):
            return xn.Sequential(*map(mutated, sound.layers))
        kind = getattr(mutant, type(sound).__name__, type(sound))
        return kind(*sound._arguments(), **sound.settings())

    layer = mutated(LAYERS[case]())
    with pytest.raises(xn.GradientError, match="the gradient of"):
        xn.check_gradients(ready(layer), rng.normal(size=(5, FEATURES)))
