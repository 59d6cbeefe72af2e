"""Layers, losses and optimizers of one's own that are not quite: the error says which method gives what."""

import numpy as np
import pytest

import xpnet as xn
from support.cases import Scale
from support.layers import Linear
from support.networks import refused
from support.training import SQUARED, T, X, bits, fit, small


@pytest.mark.parametrize(
    ("twist", "message"),
    [
        (lambda xp, g: {}, r"backward gave no gradient for 0\.inner\.w; it gave none"),
        (
            lambda xp, g: {"inner.w": g[:, :1]},
            r"gave 0\.inner\.w a gradient of shape \(4, 1\) and .*, expected \(4, 4\)",
        ),
        (lambda xp, g: {"inner.w": xp.astype(g, xp.float32)}, r"float32, expected \(4, 4\) and .*float64"),
    ],
    ids=["missing", "shape", "dtype"],
)
def test_gradients_that_are_not_the_parameters_do_not_train(lib, twist, message):
    net = small(lib, Linear(twist))
    before = bits(net)
    with pytest.raises(ValueError, match=message):
        fit(net, y=X, loss=xn.MeanSquaredError())
    assert bits(net) == before


class Counts(Scale):
    """A layer with everything, of which `gives` has something else than it should."""

    def __init__(self, features, gives=None):
        super().__init__(features)
        self.gives = gives or {}

    def given(self, method, right):
        return self.gives[method](right) if method in self.gives else right

    def initial_params(self, rng):
        return self.given("initial_params", super().initial_params(rng))

    def initial_state(self, rng):
        return self.given("initial_state", {"n": np.zeros(2)})

    def forward(self, x, training=False):
        return self.given("forward", super().forward(x, training))

    def backward(self, dy, cache):
        return self.given("backward", super().backward(dy, cache))

    def next_state(self, cache):
        return self.given("next_state", {"n": self.state["n"] + 1.0})


def in_float32(a):
    xp = xn.backends.namespace(a)
    return xp.astype(a, xp.float32)


NOT_QUITE = {
    "y: list": (
        "forward",
        lambda pair: ([1.0], pair[1]),
        r"forward gave a list for y, expected the tuple \(y, cache\)",
    ),
    "y: nothing": ("forward", lambda pair: (None, pair[1]), "forward gave None for y"),
    "gradients: list": (
        "backward",
        lambda pair: (pair[0], [*pair[1].values()]),
        r"backward gave a tuple with a list in the second place, expected the tuple \(dx, {name: gradient}\)",
    ),
    "gradients: nothing": ("backward", lambda pair: (pair[0], None), "a tuple with None in the second place"),
    "gradient: number": (
        "backward",
        lambda pair: (pair[0], {"a": 0.0}),
        r"backward gave \d\.a a gradient that is a float, expected \(4,\) and .*float64",
    ),
    "state: nothing": ("next_state", lambda state: None, "next_state gave None, expected {name: array}"),
    "state: empty": ("next_state", lambda state: {}, r"next_state gave no statistic for \d\.n; it gave none"),
    "state: name": ("next_state", lambda state: {"m": state["n"]}, r"no statistic for \d\.n; it gave \d\.m"),
    "state: list": ("next_state", lambda state: {"n": [1.0, 1.0]}, r"gave \d\.n a statistic that is a list"),
    "state: shape": (
        "next_state",
        lambda state: {"n": state["n"][:1]},
        r"next_state gave \d\.n a statistic of shape \(1,\) and .*float64, expected \(2,\) and .*float64",
    ),
    "state: dtype": (
        "next_state",
        lambda state: {"n": in_float32(state["n"])},
        r"next_state gave \d\.n a statistic of shape \(2,\) and .*float32, expected \(2,\) and .*float64",
    ),
}


@pytest.mark.parametrize("at", [0, 1], ids=["first", "amid"])
@pytest.mark.parametrize("mistake", NOT_QUITE)
def test_a_layer_that_gives_something_else_than_it_should_is_told(lib, mistake, at):
    method, spoil, message = NOT_QUITE[mistake]
    layer = Counts(4)
    net = small(lib, *[xn.Dense(4, 4)] * at, layer, xn.Dense(4, 3))
    layer.gives = {method: spoil}
    before = bits(net)
    with pytest.raises((TypeError, ValueError), match=message):
        fit(net, y=T, loss=SQUARED)
    assert bits(net) == before


@pytest.mark.parametrize("method", ["initial_params", "initial_state"])
@pytest.mark.parametrize("given", [None, np.ones(4)], ids=["nothing", "array"])
def test_initial_arrays_without_names_are_refused(lib, method, given):
    net = xn.Sequential(xn.Dense(4, 4), Counts(4, {method: lambda right: given}))
    with pytest.raises(TypeError, match=rf"Counts\(4.*\): {method} gave [\w ]+, expected {{name: array}}"):
        net.initialize(lib.backend)


class Own(xn.Loss):
    """A loss whose `terms` is any function."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def terms(self, prediction, target):
        return self.function(prediction, target)


class Alone:
    """A loss with nothing but its `value_and_grad`."""

    def __init__(self, function):
        self.value_and_grad = function

    def __repr__(self):
        return "Alone()"


class Rule(xn.Optimizer):
    def rule(self, w, g, slots, rate):
        return w - rate * g


def squares(prediction, target):
    return (prediction - target) ** 2


def total(a):
    return xn.backends.namespace(a).sum(a)


OWN_PARTS = {
    "terms: one": (
        {"loss": Own(squares)},
        TypeError,
        r"Own.*: terms gave [\w ]+, expected the tuple \(terms, gradient",
    ),
    "terms: added up": (
        {"loss": Own(lambda p, t: (total(squares(p, t)), p - t))},
        ValueError,
        r"Own.*: terms gave a loss of shape \(\) for a prediction of shape \(4, 3\); expected that of each element or",
    ),
    "alone: one": (
        {"loss": Alone(lambda p, t: total(squares(p, t)))},
        TypeError,
        r"Alone\(\): value_and_grad gave [\w ]+, expected the tuple \(value, gradient\)",
    ),
    "alone: elements": (
        {"loss": Alone(lambda p, t: (squares(p, t), 2 * (p - t)))},
        ValueError,
        r"Alone\(\): value_and_grad gave a value of shape \(4, 3\), expected one number",
    ),
    "rule: one": (
        {"optimizer": Rule(0.1)},
        TypeError,
        r"Rule\(0.1\): rule gave [\w ]+, expected the tuple \(w, {name: array}\)",
    ),
}


@pytest.mark.parametrize("part", OWN_PARTS)
def test_a_loss_or_an_optimizer_that_gives_too_little_is_told_what_is_missing(lib, part):
    options, error, message = OWN_PARTS[part]
    net = small(lib, xn.Dense(4, 3))
    before = bits(net)
    with pytest.raises(error, match=message):
        fit(net, y=T, **{"loss": SQUARED} | options)
    assert bits(net) == before


def test_a_parameters_own_name_may_have_dots(lib):
    net = small(lib, Linear(lambda xp, g: {"inner.w": g}))
    assert net.params.keys() == {"0.inner.w"}
    before = bits(net)
    fit(net, y=X, loss=xn.MeanSquaredError())
    assert bits(net) != before


class Forest(Scale):
    """A layer whose settings have the names of what a Sequential has."""

    def __init__(self, features, leaves=2, parts=3, layers=4, is_plain=True):
        super().__init__(features)
        self.leaves, self.parts, self.layers, self.is_plain = leaves, parts, layers, is_plain


def test_a_layer_may_call_its_settings_as_it_likes(lib):
    net, twin = (small(lib, xn.Dense(4, 3), layer(3), xn.Tanh()) for layer in (Forest, Scale))
    assert fit(net, loss=xn.MeanSquaredError(), y=T) == fit(twin, loss=xn.MeanSquaredError(), y=T)
    assert bits(net) == bits(twin)


# --- what is no pair --------------------------------------------------------------------------------------------------


class Odd(xn.Layer):
    """Twice x, whose methods give what they are told to."""

    def __init__(self, gives, gives_back=lambda dx: (dx, {})):
        self.gives, self.gives_back = gives, gives_back

    def forward(self, x, training=False):
        return self.gives(2 * x)

    def backward(self, dy, cache):
        return self.gives_back(2 * dy)


def both(y):
    return y, None


ODD_FORWARD = {
    "y alone": (lambda y: y, "forward gave a"),
    "three": (lambda y: (y, None, None), "forward gave a tuple of 3"),
    "a list": (lambda y: [y, None], "forward gave a list"),
    "nothing": (lambda y: None, "forward gave None"),
}


@pytest.mark.parametrize("case", ODD_FORWARD)
@pytest.mark.parametrize("rows", [1, 2, 3])  # an array of two rows would unpack
def test_a_forward_that_gives_no_pair_is_named(lib, case, rows):
    gives, words = ODD_FORWARD[case]
    net = xn.Sequential(xn.Dense(4, 3), Odd(gives)).initialize(lib.backend)
    x, y = np.ones((rows, 4)), np.zeros((rows, 3))
    for call in (
        lambda: net.predict(x),
        lambda: net.fit(x, y, loss=xn.MeanSquaredError(), optimizer=xn.SGD()),
        lambda: net.value_and_grad(x, y, xn.MeanSquaredError()),
        lambda: xn.check_gradients(net, x),
        lambda: xn.check_gradients(Odd(gives), x),
    ):
        with refused(net, TypeError, "Odd(", words, "(y, cache)"):
            call()


def test_a_forward_that_gives_no_pair_in_training_alone_is_named(lib):
    class Trains(Odd):
        def forward(self, x, training=False):
            return 2 * x if training else (2 * x, None)

    net = xn.Sequential(xn.Dense(4, 3), Trains(both)).initialize(lib.backend)
    with refused(net, TypeError, "Trains(", "forward gave a", "(y, cache)"):
        net.fit(np.ones((2, 4)), np.zeros((2, 3)), loss=xn.MeanSquaredError(), optimizer=xn.SGD())


def test_the_lowest_layers_backward_that_gives_no_pair_is_named(lib):
    class Only(Scale):
        def backward(self, dy, cache):
            return super().backward(dy, cache)[1]

    net = xn.Sequential(Only(4), xn.Dense(4, 3)).initialize(lib.backend)
    with refused(net, TypeError, "Only(4): backward gave a dict, expected the tuple (dx, {name: gradient})"):
        net.fit(np.ones((2, 4)), np.zeros((2, 3)), loss=xn.MeanSquaredError(), optimizer=xn.SGD())


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_backward_that_gives_no_pair_is_named(lib, rows, last):
    odd = Odd(both, lambda dx: dx)
    net = xn.Sequential(xn.Dense(4, 3), odd, *([] if last else [xn.Dense(3, 3)])).initialize(lib.backend)
    x, y = np.ones((rows, 4)), np.zeros((rows, 3))
    for call in (
        lambda: net.fit(x, y, loss=xn.MeanSquaredError(), optimizer=xn.SGD()),
        lambda: net.value_and_grad(x, y, xn.MeanSquaredError()),
        lambda: xn.check_gradients(net, x),
        lambda: xn.check_gradients(odd, x),
    ):
        with refused(net, TypeError, "Odd(", "backward gave a", "(dx, {name: gradient})"):
            call()
