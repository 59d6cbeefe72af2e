"""What `check_gradients` and `compare_backends` tell of one's own layers and losses, right and wrong."""

import functools
import importlib
import importlib.util
import math
import re

import numpy as np
import pytest
from hypothesis import given, settings

import xpnet as xn
from support.cases import FEATURES, LAYERS, Scale, WrongScale, ready, seeds, some_inputs


def test_gradient_of_params_alone_is_the_same(lib, rng):
    for make in LAYERS.values():
        layer = ready(make(), lib)
        y, cache = layer.forward(lib.asarray(some_inputs(rng, 5)), training=True)
        dy = lib.asarray(rng.normal(size=y.shape))
        _, grads = layer.backward(dy, cache)
        alone = layer.backward_params(dy, cache)
        assert alone.keys() == grads.keys()
        for name, gradient in grads.items():
            lib.agrees(alone[name], lib.to_numpy(gradient), rtol=1e-15)


@pytest.mark.jax_only
def test_jax_is_checked_in_float64_also_where_nobody_has_asked_for_it_yet(lib, rng):
    config = importlib.import_module("jax").config
    before = config.jax_enable_x64
    x, net = lib.asarray(rng.normal(size=(3, 2)), "float32"), xn.Sequential(xn.Dense(2, 2)).initialize("jax")
    try:
        for check in (
            lambda: xn.check_gradients(net, x, [0, 1, 0], xn.SoftmaxCrossEntropy()),
            lambda: xn.check_gradients(xn.Sequential(xn.BatchNorm(2), xn.Tanh()), x),
            lambda: xn.check_gradients(xn.MeanSquaredError(), x, np.zeros(x.shape)),
        ):
            config.update("jax_enable_x64", False)
            assert max(check().values()) < 1e-6
    finally:
        config.update("jax_enable_x64", before)


def test_a_users_layer_is_proved(lib, rng):
    errors = xn.check_gradients(Scale(FEATURES), lib.asarray(rng.normal(size=(5, FEATURES))))
    assert errors.keys() == {"x", "a"}
    assert max(errors.values()) < 1e-6


def test_a_users_wrong_layer_is_named_with_the_entry(lib, rng):
    with pytest.raises(
        xn.GradientError, match=r"WrongScale\(4\): the gradient of x is wrong at \[\d, \d\]: backward says"
    ):
        xn.check_gradients(WrongScale(FEATURES), lib.asarray(rng.normal(size=(5, FEATURES))))


def test_a_users_wrong_loss_is_named(lib, rng):
    class Sloppy(xn.MeanSquaredError):
        def terms(self, prediction, target):
            terms, gradient = super().terms(prediction, target)
            return terms, gradient / 2

    with pytest.raises(xn.GradientError, match=r"Sloppy\(.*the gradient of prediction"):
        xn.check_gradients(Sloppy(), lib.asarray(rng.normal(size=(5, 3))), rng.normal(size=(5, 3)))


def test_a_value_that_is_nan_where_it_is_checked_hides_no_wrong_gradient(lib, rng):
    class Hole(xn.MeanSquaredError):
        def terms(self, prediction, target):
            xp = xn.ops.namespace(prediction)
            error = prediction - target
            return xp.where(error == 0.0, xp.nan, error * error), 3.0 * error + 1.0

    x = rng.normal(size=(1, 1))
    with pytest.raises(xn.GradientError, match="the value is NaN or infinite; choose another prediction"):
        xn.check_gradients(Hole(), lib.asarray(x), x)


def test_a_loss_that_is_not_derived_from_ours_is_checked_by_what_training_calls(lib, rng):
    class Bare:
        right = True

        def value_and_grad(self, prediction, target):
            error = prediction - lib.asarray(target)
            return xn.ops.sum_of_squares(error), (2.0 if self.right else 1.0) * error

    x, y = lib.asarray(rng.normal(size=(5, FEATURES))), rng.normal(size=(5, FEATURES))
    layer, loss = ready(xn.Dense(FEATURES, FEATURES), lib), Bare()
    assert xn.check_gradients(loss, x, y)["prediction"] < 1e-6
    assert max(xn.check_gradients(layer, x, y, loss).values()) < 1e-6
    loss.right = False
    with pytest.raises(xn.GradientError, match="the gradient of prediction is wrong"):
        xn.check_gradients(loss, x, y)
    with pytest.raises(xn.GradientError, match=r"Dense\(.*the gradient of \w+ is wrong"):
        xn.check_gradients(layer, x, y, loss)


@pytest.mark.parametrize(
    ("backward", "message"),
    [
        (lambda self, dy, cache: (2 * self.params["a"] * cache * dy, {}), "backward gives gradients"),
        (
            lambda self, dy, cache: (2 * self.params["a"] * cache * dy, {"a": dy}),
            r"of a has shape \(5, 4\), expected \(4,\)",
        ),
        (lambda self, dy, cache: (dy / (0 * dy), {"a": dy[0, :]}), "of x has NaN or infinite entries"),
    ],
)
@pytest.mark.numpy_only
@pytest.mark.filterwarnings("ignore:divide by zero")
def test_malformed_gradients_are_refused(backward, message, rng):
    layer = type("Mine", (Scale,), {"backward": backward})(FEATURES)
    with pytest.raises(xn.GradientError, match=message):
        xn.check_gradients(layer, rng.normal(size=(5, FEATURES)))


def test_a_value_that_overflows_is_told_without_a_warning(lib):
    with pytest.raises(xn.GradientError, match="the value is NaN or infinite"):
        xn.check_gradients(xn.MeanSquaredError(), lib.asarray([[1e200]]), [[0.0]])


@pytest.mark.parametrize("place", ["everywhere", "in one entry", "beside it"])
def test_a_value_that_is_not_finite_proves_nothing(lib, place, rng):
    """Whatever backward says: every comparison with NaN is false, that with the tolerance too."""

    class Broken(xn.Layer):
        def forward(self, x, training=False):
            return (x if place == "beside it" else x * scale) ** 0.5, x

        def backward(self, dy, cache):
            return 7.0 * dy, {}

    class Unsound(xn.MeanSquaredError):
        def terms(self, prediction, target):
            return (prediction * scale) ** 0.5, prediction

    x = rng.uniform(1.0, 2.0, size=(5, FEATURES))
    scale = np.ones(x.shape)
    scale[{"everywhere": ..., "in one entry": (2, 1), "beside it": (0, 0)}[place]] = np.nan
    scale = lib.asarray(scale)
    if place == "beside it":
        x[2, 1] = 1e-9
    who = r"close to {}'s entry \[\d, \d\] the value is NaN or infinite"
    with lib.backend.scope():
        with pytest.raises(xn.GradientError, match=r"Broken\(\): " + who.format("x")):
            xn.check_gradients(Broken(), lib.asarray(x))
        with pytest.raises(xn.GradientError, match=r"Unsound\(.*: " + who.format("prediction")):
            xn.check_gradients(Unsound(), lib.asarray(x), np.zeros(x.shape))


@pytest.mark.numpy_only
def test_a_layer_that_keeps_its_call_for_itself_is_found_out(rng):
    class Forgetful(xn.Layer):
        def forward(self, x, training=False):
            self.x = x
            return x**3, None

        def backward(self, dy, cache):
            return 3 * self.x**2 * dy, {}

    with pytest.raises(xn.GradientError, match=r"Forgetful\(\): the gradient of x is wrong"):
        xn.check_gradients(Forgetful(), rng.normal(size=(5, FEATURES)))


@pytest.mark.numpy_only
def test_what_writes_into_the_arrays_it_is_given_is_found_out(rng):
    """Its own derivative is right, but a layer before it may have kept x, or one after it dy."""

    class OverX(xn.ReLU):
        def forward(self, x, training=False):
            return super().forward(np.maximum(x, 0.0, out=x), training)

    class OverDy(xn.ReLU):
        def backward(self, dy, cache):
            dy *= cache[-1]
            return dy, {}

    class OverWeight(xn.Dense):
        def backward(self, dy, cache):
            dx, grads = super().backward(dy, cache)
            self.params["weight"] -= grads["weight"]
            return dx, grads

    class OverPrediction(xn.MeanSquaredError):
        def terms(self, prediction, target):
            prediction -= target
            return prediction * prediction, 2.0 * prediction

    x = rng.normal(size=(5, FEATURES))
    before = x.copy()
    for layer, name in ((OverX(), "x"), (OverDy(), "dy"), (OverWeight(FEATURES, 2), "weight")):
        with pytest.raises(xn.GradientError, match=rf"\) writes into {name}, an array that it was given"):
            xn.check_gradients(layer, x)
    with pytest.raises(xn.GradientError, match=r"OverPrediction\(.*writes into prediction"):
        xn.check_gradients(OverPrediction(), x, x + 1.0)
    np.testing.assert_array_equal(x, before)


@pytest.mark.numpy_only
def test_the_gradient_that_training_takes_where_no_dx_is_needed_is_checked_too(rng):
    class Contrary(xn.Dense):
        def backward_params(self, dy, cache):
            return {name: -g for name, g in super().backward_params(dy, cache).items()}

        def backward(self, dy, cache):
            return dy @ self.params["weight"].T, xn.Dense.backward_params(self, dy, cache)

    class OfAnotherShape(Contrary):
        def backward_params(self, dy, cache):
            return {name: g[None] for name, g in xn.Dense.backward_params(self, dy, cache).items()}

    for layer in (Contrary, OfAnotherShape):
        with pytest.raises(xn.GradientError, match="backward_params gives another gradient of weight than backward"):
            xn.check_gradients(layer(FEATURES, 3), rng.normal(size=(5, FEATURES)))


@pytest.mark.numpy_only
@pytest.mark.parametrize(("backends", "came"), [(("numpy",), r"\('numpy',\)"), ("torch", "'torch'")])
def test_compare_backends_needs_two(rng, backends, came):
    net = xn.Sequential(xn.Dense(2, 2)).initialize()
    with pytest.raises(ValueError, match=f"give at least two backends in a list, got {came}"):
        xn.compare_backends(net, rng.random((3, 2)), rng.random((3, 2)), xn.MeanSquaredError(), backends)


@pytest.mark.numpy_only
def test_a_corner_takes_any_slope_between_its_sides_and_no_other():
    x = np.array([[0.0, 1e-9, -1e-9, 2.0]])
    assert xn.check_gradients(xn.ReLU(), x)["x"] < 1e-6

    class TooSteep(xn.ReLU):
        def backward(self, dy, cache):
            dx, grads = super().backward(dy, cache)
            return dx * np.array([1.5, 1.0, 1.0, 1.0]), grads

    with pytest.raises(
        xn.GradientError, match=r"wrong at \[0, 0\].*; the function has a corner there: .*move x a little"
    ) as caught:
        xn.check_gradients(TooSteep(), x)
    said, found = map(float, re.findall(r"(?:says|differences) ([^,]+),", str(caught.value)))
    assert abs(said - 1.5 * found) < 1e-6 * abs(said)  # it is held against the steeper side's
    with pytest.raises(xn.GradientError) as caught:  # no corner, no hint
        xn.check_gradients(TooSteep(), x + 1.0)
    assert "corner" not in str(caught.value)


@pytest.mark.numpy_only
def test_corners_that_meet_are_told_of_and_gone_a_little_beside():
    net = xn.Sequential(xn.Dense(1, 3), xn.ReLU(), xn.Dense(3, 1)).initialize(dtype="float64", seed=0)
    x = np.array([[0.0], [1.0]])
    with pytest.raises(xn.GradientError, match="has a corner there: if several units have theirs, move x a little"):
        xn.check_gradients(net, x)
    assert max(xn.check_gradients(net, x + 0.01).values()) < 1e-6


class Told(xn.Layer):
    """A function of each entry, and whatever is said of its slope."""

    def __init__(self, function, slope):
        self.function, self.slope = function, slope

    def forward(self, x, training=False):
        return self.function(x), x

    def backward(self, dy, cache):
        return dy * self.slope, {}


@pytest.mark.numpy_only
def test_a_corner_beside_the_point_excuses_no_wrong_slope():
    beside = functools.partial(np.maximum, 0.0)  # from x = 1e-9 within reach of the first steps only
    assert xn.check_gradients(Told(beside, 1.0), np.array([[1e-9]]))["x"] < 1e-6
    with pytest.raises(xn.GradientError, match="is wrong"):
        xn.check_gradients(Told(beside, 0.5), np.array([[1e-9]]))

    def hidden(x):
        return np.abs(x - 1e-4) + 1e6  # steps of less than 1e-4 show the slope, -1, to 1e-5

    with pytest.raises(xn.GradientError, match=r"is wrong [^;]*$"):
        xn.check_gradients(Told(hidden, 0.5), np.array([[0.0]]))


@pytest.mark.numpy_only
def test_a_slope_is_told_beside_a_value_ten_million_times_as_large():
    """A central difference is off by 2e-9 / h + 1.5 h², at its best by more than 1e-6; what is free of h² by less."""

    def large(x):
        return np.sin(3.0 * x) / 3.0 + 1e7

    x = np.array([[0.1]])
    assert xn.check_gradients(Told(large, np.cos(3.0 * x)), x)["x"] < 1e-6


@pytest.mark.numpy_only
def test_steps_are_as_large_as_what_they_are_added_to():
    def far(x):
        return unit * np.sin((x - 2.0**60) / unit)

    unit = 2.0**40
    x = np.array([[2.0**60 + 0.5 * unit]])
    assert xn.check_gradients(Told(far, np.cos(0.5)), x)["x"] < 1e-6


def off_by_a_thousandth(thing):
    """The same with a backward that is wrong by that."""

    class Off(type(thing)):
        def backward(self, dy, cache):
            dx, grads = super().backward(dy, cache)
            return 1.001 * dx, grads

        def backward_params(self, dy, cache, *lowest):
            return self.backward(dy, cache)[1]

        def terms(self, prediction, target):
            terms, gradient = super().terms(prediction, target)
            return terms, 1.001 * gradient

    return Off(*getattr(thing, "layers", ()), **{} if hasattr(thing, "layers") else thing.settings())


@pytest.mark.numpy_only
@pytest.mark.parametrize("scale", [1e-12, 1e-9, 1e-5, 1.0, 1e4])
def test_what_varies_over_a_scale_of_its_own_is_told_right_from_wrong(scale, rng):
    """A step of 6e-6, or of that share of a number above 1, is then too long, or lost in the value's rounding."""
    x, p, y = rng.normal(size=(6, 3)), np.full((2, 3), min(scale, 0.5)), scale * (3.0 + rng.normal(size=(6, 1)))
    net = xn.Sequential(xn.Dense(3, 8), xn.Tanh(), xn.Dense(8, 1)).initialize(dtype="float64", seed=1)
    for thing, *data in (
        (xn.BatchNorm(3, eps=1e-30), scale * x),
        (xn.BatchNorm(3), x + 100.0 * scale),
        (xn.CategoricalCrossEntropy(), p, [0, 1]),
        (xn.BinaryCrossEntropy(), p, np.ones(p.shape)),
        (net, x, y, xn.MeanSquaredError()),
    ):
        assert max(xn.check_gradients(thing, *data).values()) < 1e-6
        with pytest.raises(xn.GradientError, match=r"the gradient of \w+ is wrong at"):
            xn.check_gradients(off_by_a_thousandth(thing), *data)


@pytest.mark.numpy_only
def test_what_the_values_rounding_hides_is_not_called_wrong(rng):
    x, y = rng.normal(size=(6, 3)), 1e9 * (3.0 + rng.normal(size=(6, 1)))
    net = xn.Sequential(xn.Dense(3, 8), xn.Tanh(), xn.Dense(8, 1)).initialize(dtype="float64", seed=1)
    for thing, *data in ((net, x, y, xn.MeanSquaredError()), (xn.Sigmoid(), 1e6 * np.abs(x) * [1.0, 1.0, -1.0])):
        with pytest.raises(
            xn.GradientError, match=r"cannot be determined at \[.*; the value's rounding error hides it: scale"
        ):
            xn.check_gradients(thing, *data)
    with pytest.raises(xn.GradientError, match="is wrong"):  # by more than what is hidden
        xn.check_gradients(Told(lambda x: x + 1e10, -1.0), x)


@pytest.mark.numpy_only
def test_check_gradients_says_what_it_was_not_given(rng):
    x = rng.normal(size=(5, FEATURES))
    for thing in (xn.ReLU, xn.MeanSquaredError, np.tanh):
        with pytest.raises(TypeError, match=r"expected a layer, a network or a loss, such as xn.ReLU\(\), got <"):
            xn.check_gradients(thing, x, x)
    with pytest.raises(ValueError, match=r"MeanSquaredError\(\) needs a target"):
        xn.check_gradients(xn.MeanSquaredError(), x)
    with pytest.raises(ValueError, match="both a target and a loss, or neither"):
        xn.check_gradients(Scale(FEATURES), x, x)


def test_check_gradients_changes_nothing(lib, rng):
    net = xn.Sequential(xn.Dense(3, 4), xn.BatchNorm(4), xn.Sigmoid(), xn.Dropout(), xn.Dense(4, 4))
    net.initialize(lib.backend, "float32")
    before = {name: lib.to_numpy(a).copy() for name, a in (net.params | net.state).items()}
    xn.check_gradients(net, lib.asarray(rng.random((4, 3))), [0, 1, 2, 3], xn.SoftmaxCrossEntropy())
    for name, a in (net.params | net.state).items():
        np.testing.assert_array_equal(lib.to_numpy(a), before[name])


# --- many corners, whole numbers, and proofs of nothing ---------------------------------------------------------------


class Convolution(xn.Layer):
    """A user's: 3 x 3 filters on images (N, C, H, W), ReLU, the maximum of each 2 x 2. `err` changes (dx, grads)."""

    def __init__(self, channels, filters, err=lambda dx, grads: (dx, grads)):
        self.channels, self.filters, self.err = channels, filters, err

    def initial_params(self, rng):
        return {"weight": rng.normal(size=(self.filters, self.channels, 3, 3)) / 3, "bias": np.zeros(self.filters)}

    def forward(self, x, training=False):
        patches = np.lib.stride_tricks.sliding_window_view(x, (3, 3), axis=(2, 3))  # (N, C, h, w, 3, 3)
        u = np.einsum("nchwij,fcij->nfhw", patches, self.params["weight"]) + self.params["bias"][:, None, None]
        n, f, h, w = u.shape
        fields = np.maximum(u, 0.0).reshape(n, f, h // 2, 2, w // 2, 2).swapaxes(3, 4).reshape(n, f, h // 2, w // 2, 4)
        first = fields.argmax(axis=-1)[..., None]
        return np.take_along_axis(fields, first, axis=-1)[..., 0], (patches, u, first, x.shape)

    def backward(self, dy, cache):
        patches, u, first, shape = cache
        n, f, h, w = u.shape
        fields = np.zeros((*dy.shape, 4))
        np.put_along_axis(fields, first, dy[..., None], axis=-1)
        du = fields.reshape(n, f, h // 2, w // 2, 2, 2).swapaxes(3, 4).reshape(u.shape) * (u >= 0.0)
        dx = np.zeros(shape)
        for i, j in np.ndindex(3, 3):
            dx[:, :, i : i + h, j : j + w] += np.einsum("nfhw,fc->nchw", du, self.params["weight"][:, :, i, j])
        return self.err(dx, {"weight": np.einsum("nchwij,nfhw->fcij", patches, du), "bias": du.sum(axis=(0, 2, 3))})


class Units(xn.Layer):
    """y = tanh(v max(x w + b, 0)) of a hundred thousand units, one of which has its corner within 1e-6 of any x."""

    def __init__(self, rng, factor=1.0):
        self.w, self.b, self.v, self.factor = *rng.normal(size=(2, 100_000)), rng.normal(size=100_000) / 300, factor

    def forward(self, x, training=False):
        u = x * self.w + self.b
        y = np.tanh(np.maximum(u, 0.0) @ self.v)[:, None]
        return y, (u, y)

    def backward(self, dy, cache):
        u, y = cache
        return self.factor * dy * (1.0 - y * y) * ((u >= 0.0) @ (self.v * self.w))[:, None], {}


IMAGES, IMAGE = (2, 2, 6, 6), (1, 2, 4, 4)  # a small one for what is wrong: each wrong entry is tried many times over


@pytest.mark.numpy_only
@given(seed=seeds)
@settings(max_examples=10)
def test_a_right_convolution_is_never_refused(seed):
    net = xn.Sequential(Convolution(2, 3), xn.Tanh())
    assert max(xn.check_gradients(net, np.random.default_rng(seed).normal(size=IMAGES), seed=seed).values()) < 1e-6


WRONG = {
    "twice as large": lambda dx, g: (dx, g | {"weight": 2.0 * g["weight"]}),
    "of the other sign": lambda dx, g: (-dx, g),
    "off by a ten-thousandth": lambda dx, g: (dx, g | {"bias": 1.0001 * g["bias"]}),
    "transposed": lambda dx, g: (dx, g | {"weight": g["weight"].swapaxes(2, 3)}),
    "without one term": lambda dx, g: (dx * (np.arange(dx.shape[-1]) > 0), g),
}


@pytest.mark.numpy_only
@pytest.mark.parametrize("err", WRONG.values(), ids=WRONG)
@given(seed=seeds)
@settings(max_examples=3)
def test_a_wrong_convolution_is_always_refused(err, seed):
    net = xn.Sequential(Convolution(2, 3, err), xn.Tanh())
    with pytest.raises(xn.GradientError, match=r"the gradient of \S+ is wrong"):
        xn.check_gradients(net, np.random.default_rng(seed).normal(size=IMAGE), seed=seed)


@pytest.mark.numpy_only
@pytest.mark.parametrize("seed", range(5))
def test_units_whose_corners_lie_within_every_step_decide_all_the_same(seed):
    """Those that are within 1e-8 of x, on one side at most, are told apart from x by the other side's slope."""
    x = np.random.default_rng(seed + 100).normal(size=(1, 1))
    assert xn.check_gradients(Units(np.random.default_rng(seed)), x)["x"] < 1e-6
    for factor in (2.0, -1.0, 1.0001, 0.9999):
        with pytest.raises(xn.GradientError, match="is wrong"):
            xn.check_gradients(Units(np.random.default_rng(seed), factor), x)


@pytest.mark.numpy_only
@pytest.mark.parametrize("right", [1e-10, 1e-9, 1e-8, 1e-6])
@pytest.mark.parametrize("left", [1e-8, 3e-7, 1e-5])
def test_corners_on_both_sides_hide_no_right_slope_and_excuse_no_wrong_one(left, right):
    """The nearer one may be too near for a step within it; the other side then tells."""

    def bent(x):
        return np.sin(x) + 3.0 * np.maximum(x - 0.3 - right, 0.0) + 2.0 * np.maximum(0.3 - left - x, 0.0)

    x, slope = np.array([[0.3]]), np.cos(0.3)
    assert xn.check_gradients(Told(bent, slope), x)["x"] < 1e-6
    for factor in (2.0, -1.0, 1.0001, 0.9999):
        with pytest.raises(xn.GradientError, match="is wrong"):
            xn.check_gradients(Told(bent, factor * slope), x)


class Embed(xn.Layer):
    """A user's: a row of the weight for each id, (N, T) -> (N, T D)."""

    gives = None

    def initial_params(self, rng):
        return {"weight": rng.normal(size=(5, 2))}

    def forward(self, x, training=False):
        ids = np.asarray(x, dtype=int)  # of whole numbers as floats, which a network is given by `fit`
        return self.params["weight"][ids].reshape(len(ids), -1), ids

    def backward(self, dy, cache):
        weight = np.zeros((5, 2))
        np.add.at(weight, cache, dy.reshape(*cache.shape, 2))
        return None if self.gives is None else np.full(cache.shape, self.gives), {"weight": weight}


class ForgetsRepeats(Embed):
    def backward(self, dy, cache):
        weight = np.zeros((5, 2))
        weight[cache] = dy.reshape(*cache.shape, 2)
        return None, {"weight": weight}


IDS = np.array([[0, 3, 3], [4, 3, 0]])


@pytest.mark.numpy_only
@pytest.mark.parametrize("gives", [None, 0.0])
def test_ids_are_not_varied_and_the_parameters_are_checked(gives, monkeypatch):
    monkeypatch.setattr(Embed, "gives", gives)
    assert xn.check_gradients(Embed(), IDS).keys() == {"weight"}
    assert xn.check_gradients(Embed(), IDS.astype("uint8")).keys() == {"weight"}
    net = xn.Sequential(Embed(), xn.Dense(6, 2))
    assert xn.check_gradients(net, IDS.tolist()).keys() == {"0.weight", "1.weight", "1.bias"}
    for thing in (ForgetsRepeats(), xn.Sequential(ForgetsRepeats(), xn.Dense(6, 2))):
        with pytest.raises(xn.GradientError, match=r"of (0\.)?weight is wrong"):
            xn.check_gradients(thing, IDS)


@pytest.mark.numpy_only
def test_whole_numbers_by_which_there_is_a_derivative_are_varied():
    assert xn.check_gradients(xn.Dense(3, 2), IDS).keys() == {"x", "weight", "bias"}
    with pytest.raises(xn.GradientError, match="the gradient of x is wrong"):
        xn.check_gradients(WrongScale(3), IDS + 1)


def test_derivatives_that_are_all_zero_prove_nothing(lib):
    for loss, prediction in ((xn.SoftmaxCrossEntropy(), [[1000.0, 0.0]]), (xn.MeanSquaredError(), [[1.0, 0.0]])):
        target = [0] if loss.threshold == 0.0 else prediction
        with pytest.raises(xn.GradientError, match=r"all derivatives are 0.* choose other inputs"):
            xn.check_gradients(loss, lib.asarray(prediction), target)
    with pytest.raises(xn.GradientError, match=r"^ReLU\(\): all derivatives are 0"):
        xn.check_gradients(xn.ReLU(), lib.asarray([[-1.0, -2.0]]))


@pytest.mark.numpy_only
@pytest.mark.parametrize("gap", [20.0, 36.0, 60.0])
def test_a_loss_whose_value_ends_in_rounding_is_not_called_wrong(gap):
    """Its slope is e^-gap beside a sum of which the 1 hides all that is below 2e-16."""
    with pytest.raises(xn.GradientError, match=r"cannot be determined.* or choose other inputs"):
        xn.check_gradients(xn.SoftmaxCrossEntropy(), [[gap, 0.0, -1.0]], [0])


@pytest.mark.numpy_only
@pytest.mark.parametrize("tolerance", [math.nan, math.inf, -1e-6, 0.0, 1.0, "tight"])
def test_a_tolerance_that_decides_nothing_is_refused(tolerance, rng):
    x, net = rng.normal(size=(3, 2)), xn.Sequential(xn.Dense(2, 2)).initialize()
    for who, check in (
        ("check_gradients", lambda: xn.check_gradients(xn.Tanh(), x, tolerance=tolerance)),
        ("check_gradients", lambda: xn.check_gradients(xn.MeanSquaredError(), x, x, tolerance=tolerance)),
        (
            "compare_backends",
            lambda: xn.compare_backends(net, x, x, xn.MeanSquaredError(), (net.backend,) * 2, tolerance=tolerance),
        ),
    ):
        with pytest.raises(ValueError, match=f"^{who}: tolerance must be above 0 and below 1, got "):
            check()


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("x", "error", "said"),
    [
        (np.zeros((0, 2)), ValueError, r"has shape \(0, 2\), so nothing would be checked"),
        (np.zeros((3, 0)), ValueError, r"has shape \(3, 0\), so nothing would be checked"),
        (np.ones((3, 2)) * 1j, TypeError, "has dtype complex128; expected float32"),
        (np.ma.array([[1.0, 2.0]], mask=[[False, True]]), ValueError, "has masked entries"),
        ([["a", "b"]], TypeError, "has dtype str; expected float32"),
        (None, TypeError, "is None, expected an array"),
    ],
    ids=["no rows", "no columns", "complex", "masked", "words", "nothing"],
)
def test_an_x_on_which_nothing_is_proved_is_refused(x, error, said):
    with pytest.raises(error, match=f"^check_gradients: x {said}"):
        xn.check_gradients(xn.Tanh(), x)
    with pytest.raises(error, match=f"^check_gradients: prediction {said}"):
        xn.check_gradients(xn.MeanSquaredError(), x, [[1.0, 2.0]])


@pytest.mark.numpy_only
@pytest.mark.parametrize("steps", [0, -3, 2.0, None])
def test_compare_backends_takes_steps(steps, rng):
    x, net = rng.random((3, 2)), xn.Sequential(xn.Dense(2, 2)).initialize()
    with pytest.raises(ValueError, match=f"^compare_backends: steps must be a whole number of at least 1, got {steps}"):
        xn.compare_backends(net, x, x, xn.MeanSquaredError(), (net.backend, type(net.backend)()), steps=steps)


@pytest.mark.numpy_only
def test_a_backend_is_not_compared_with_itself(rng):
    x, net = rng.random((3, 2)), xn.Sequential(xn.Dense(2, 2)).initialize()
    for backends in (("numpy", "numpy"), (net.backend, "numpy"), ("numpy", type(net.backend)(), net.backend)):
        with pytest.raises(ValueError, match=r"^compare_backends: Backend\('numpy'.* occurs twice in backends"):
            xn.compare_backends(net, x, x, xn.MeanSquaredError(), backends)
    with pytest.raises(ValueError, match=r"give at least two backends in a list, got \(\)"):
        xn.compare_backends(net, x, x, xn.MeanSquaredError(), ())
