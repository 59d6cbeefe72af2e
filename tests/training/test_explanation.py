"""`net.explain`: every output and gradient of one step, the network left alone; as text, HTML and arrays."""

import html.parser
import math

import numpy as np
import pytest

import xpnet as xn
from support.cases import FEATURES, LAYERS, Scale
from support.layers import Linked, SideBySide, Table, Twice
from support.networks import snapshot
from xpnet.training.explanation import number, share, statistics

CROSS = xn.SoftmaxCrossEntropy()
X, Y = np.random.default_rng(0).normal(size=(6, FEATURES)), np.arange(6) % 3


class Gated(xn.Layer):
    """A user's block that calls its Dense twice: y = sigmoid(dense(dense(x))) x."""

    def __init__(self):
        self.dense, self.gate = xn.Dense(FEATURES, FEATURES), xn.Sigmoid()

    def forward(self, x, training=False):
        z, first = self.dense.forward(x, training)
        z, second = self.dense.forward(z, training)
        g, gate = self.gate.forward(z, training=training)
        return x * g, (x, g, first, second, gate)

    def backward(self, dy, cache):
        x, g, first, second, gate = cache
        dz, _ = self.gate.backward(dy * x, gate)
        dz, late = self.dense.backward(dz, second)
        dx, early = self.dense.backward(dz, first)
        return dx + dy * g, self.prefixed(dense={name: early[name] + late[name] for name in early})


EACH = {name: lambda make=make: [make()] for name, make in LAYERS.items()}
NETWORKS = {
    "a chain": lambda: [xn.Dense(FEATURES, 5), xn.Sequential(xn.BatchNorm(5), xn.ReLU()), xn.Dense(5, 3)],
    "frozen": lambda: [xn.Dense(FEATURES, 5, trainable=False), xn.Dropout(0.3), xn.Dense(5, 3)],
    "a network of one's own": lambda: [SideBySide(xn.Dense(FEATURES, 4), xn.Dense(FEATURES, 4))],
    "another": lambda: [Twice(xn.Dense(FEATURES, 4), xn.BatchNorm(4))],
    "a block of one's own": lambda: [Gated(), xn.Dense(FEATURES, 3)],
}


def explained(net):
    """The network's explanation with X and numbers for targets, and these targets."""
    shape = tuple(net.predict(X).shape)
    target = np.linspace(-1.0, 1.0, math.prod(shape)).reshape(shape)
    return net.explain(X, target, xn.MeanSquaredError()), target


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NETWORKS, *(pytest.param(name, marks=pytest.mark.numpy_only) for name in EACH)])
def test_the_gradients_are_those_of_value_and_grad_and_nothing_changes(strict_lib, name):
    lib = strict_lib
    net = xn.Sequential(*(NETWORKS | EACH)[name]()).initialize(lib.backend, "float64", seed=1)
    before, attributes = snapshot(net), [*vars(net.layers[0])]
    e, target = explained(net)
    value, gradients = net.value_and_grad(X, target, xn.MeanSquaredError())
    assert float(e.value) == float(value)
    assert e.gradients.keys() == gradients.keys()
    for key, gradient in gradients.items():
        np.testing.assert_array_equal(lib.to_numpy(e.gradients[key]), lib.to_numpy(gradient))
        layer, _, own = key.rpartition(".")
        if layer in e:  # not one of a network whose arrays have names of its own
            np.testing.assert_array_equal(lib.to_numpy(e[layer].gradients[own]), lib.to_numpy(gradient))
    assert snapshot(net) == before
    assert [*vars(net.layers[0])] == attributes
    assert str(e).count("\n") > 10


def test_every_call_is_held_with_its_arrays(lib):
    net = xn.Sequential(xn.Dense(FEATURES, 5), xn.Residual(xn.Dense(5, 5), xn.ReLU()))
    net.initialize(lib.backend, "float64")
    e, target = explained(net)
    assert [*e] == ["0", "1", "1.0", "1.1"]
    x, y, inner, prediction = (lib.to_numpy(a) for a in (e.x, e["0"].y, e["1.0"].y, e.prediction))
    weight, bias = (lib.to_numpy(net.params[name]) for name in ("0.weight", "0.bias"))
    np.testing.assert_array_equal(x, X)
    lib.agrees(e["0"].y, x @ weight + bias)
    lib.agrees(e["1.1"].y, np.maximum(inner, 0.0))
    lib.agrees(e.prediction, y + np.maximum(inner, 0.0))
    lib.agrees(e.value, np.mean((prediction - target) ** 2))
    lib.agrees(e.dprediction, 2.0 * (prediction - target) / target.size)
    lib.agrees(e["1.1"].dx, lib.to_numpy(e.dprediction) * (inner >= 0.0))
    lib.agrees(e["1.0"].gradients["weight"], y.T @ lib.to_numpy(e["1.1"].dx))
    lib.agrees(e.dx, lib.to_numpy(e["1"].dx) @ weight.T)
    assert e["1"].y is e.prediction
    assert e["1"].dy is e["1.1"].dy is e.dprediction
    assert e["0"].dy is e["1"].dx
    assert e["0"].dx is e.dx
    with pytest.raises(KeyError, match=r"no layer '3' in this network, which has '0', '1', '1\.0', '1\.1'"):
        e["3"]


@pytest.mark.numpy_only
def test_the_second_call_of_a_layer_has_a_name_and_their_gradients_are_the_sum():
    net = xn.Sequential(Gated(), xn.Dense(FEATURES, 3)).initialize(dtype="float64")
    e = net.explain(X, Y, CROSS)
    assert [*e] == ["0", "0.dense", "0.dense#2", "0.gate", "1"]
    assert e["0.dense#2"].x is e["0.dense"].y
    total = sum(e[name].x.T @ e[name].dy for name in ("0.dense", "0.dense#2"))
    np.testing.assert_allclose(e["0.dense"].gradients["weight"], total, rtol=1e-12)
    assert e["0.dense#2"].gradients["weight"] is e.gradients["0.dense.weight"]


@pytest.mark.numpy_only
def test_a_forward_of_ones_own_is_the_first_call_and_its_layers_are_within_it():
    net = SideBySide(xn.Dense(FEATURES, 4), xn.Dense(FEATURES, 4)).initialize(dtype="float64")
    e = net.explain(X, np.zeros((6, 8)), xn.MeanSquaredError())
    assert [*e] == ["", "0", "1"]
    assert [trace.name for trace in e[""].inner] == ["0", "1"]
    np.testing.assert_array_equal(e[""].y, np.concatenate([e["0"].y, e["1"].y], axis=1))


ARRAYS = {
    "normal": np.random.default_rng(0).normal(3.0, 2.0, (5, 4, 3)),
    "float32": np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32),
    "zeros among them": np.array([[0.0, 1.0, -2.0], [0.0, 0.0, 5.0]]),
    "all alike": np.full((3, 3), 0.1),
    "integers": np.arange(12).reshape(3, 4),
    "one number": np.asarray(2.5),
    "huge": np.array([1e300, -1e300, 1e308, 0.0]),
    "tiny": np.array([1e-300, -2e-300, 0.0]),
}


@pytest.mark.numpy_only
@pytest.mark.parametrize("name", ARRAYS)
def test_the_statistics_are_numpys(name):
    a = ARRAYS[name]
    s = statistics(a)
    wide = a.astype(np.longdouble)  # its squares do not overflow
    assert (s.shape, s.min, s.max) == (a.shape, a.min(), a.max())
    assert (s.zeros, s.not_finite) == ((a == 0).mean(), 0)
    np.testing.assert_allclose([s.mean, s.std], [float(wide.mean()), float(wide.std())], rtol=1e-12, atol=1e-16 * s.max)


@pytest.mark.numpy_only
def test_entries_that_are_not_finite_are_counted_and_left_out():
    a = np.array([[1.0, np.nan, 3.0], [np.inf, -np.inf, 0.0]])
    assert statistics(a) == ((2, 3), 4 / 3, np.std([1.0, 3.0, 0.0]), 0.0, 3.0, 1 / 6, 3)
    nothing = statistics(np.full(3, np.nan))
    assert math.isnan(nothing.mean)
    assert math.isnan(nothing.max)
    assert nothing.not_finite == 3
    assert statistics(np.zeros((0, 2))).not_finite == 0


def test_the_first_layer_that_is_not_finite_is_named(lib):
    net = xn.Sequential(xn.Dense(FEATURES, 3), xn.Residual(xn.Dense(3, 3), xn.ReLU()), xn.Dense(3, 3))
    net.initialize(lib.backend, "float64")
    params = {name: lib.to_numpy(a) for name, a in net.params.items()}
    net.set_params(params | {"1.0.weight": np.full((3, 3), 1e308), "0.bias": np.full(3, 100.0)})
    e = net.explain(X, Y, CROSS)
    assert (e.fault[0].name, e.fault[1]) == ("1.0", "its output is not finite")
    assert "the first that is not finite: layer 1.0, Dense(3, 3), its output is not finite" in e.text(200)
    lines = e.text(200).splitlines()
    assert lines[2].endswith("not finite")
    assert [line.split()[-1] for line in lines if line.startswith("    y ")] == ["18", "18"]
    assert "not finite" in e._repr_html_()


@pytest.mark.numpy_only
def test_outputs_that_are_no_probabilities_are_refused_as_value_and_grad_does():
    net = xn.Sequential(xn.Dense(FEATURES, 3)).initialize()
    with pytest.raises(ValueError, match=r"^explain: the outputs run from .* and CategoricalCrossEntropy\(\) takes"):
        net.explain(X, Y, xn.CategoricalCrossEntropy())


# --- text and HTML ----------------------------------------------------------------------------------------------------

TEXT = """\
2 rows through 2 layers, float64 on {backend}

Forward    shape    mean    std    min    max  zeros
----------------------------------------------------
input
  x        2×2     2.50    1.12   1.00   4.00
0  Dense(2, 2)    y = x W + b
  y        2×2     0.250   2.59  -3.00   4.00
1  Residual    y = x + f(x)
  y        2×2     1.50    4.15  -3.00   8.00
  1.0  ReLU()    y = max(x, 0)
    y      2×2     1.25    1.64   0      4.00    50%
MeanSquaredError()    L = Σ (p - t)², divided by 4
  target   2×2     0       0      0      0      100%
loss 19.5

Backward   shape    mean    std    min    max  zeros
----------------------------------------------------
MeanSquaredError()    dp = 2 (p - t), divided by 4
  dy       2×2     0.750   2.08  -1.50   4.00
1  Residual    dx = dy + f'(x)ᵀ dy
  dx       2×2     2.00    3.69  -1.50   8.00
  1.0  ReLU()    dx = dy where x >= 0, else 0
    dx     2×2     1.25    1.64   0      4.00    50%
0  Dense(2, 2)
    dx = dy Wᵀ, dW = xᵀ dy, db = Σ dy
  dweight  2×2    12.5    18.8   -7.00  36.0
  dbias    2       4.00    6.00  -2.00  10.0
  dx       2×2     4.25    3.21   1.00   9.50"""


def small():
    net = xn.Sequential(xn.Dense(2, 2), xn.Residual(xn.ReLU())).initialize("numpy", "float64")
    net.set_params({"0.weight": [[1.0, -1.0], [0.5, 0.0]], "0.bias": [-1.0, 0.0]})
    return net.explain([[1.0, 2.0], [3.0, 4.0]], np.zeros((2, 2)), xn.MeanSquaredError())


@pytest.mark.numpy_only
def test_the_text_shows_both_passes_with_formulas_and_aligned_numbers(monkeypatch):
    e = small()
    assert e.text(50) == TEXT.format(backend=e.net.backend.describe())
    monkeypatch.setenv("COLUMNS", "50")
    assert str(e) == repr(e) == e.text(50)
    monkeypatch.setenv("COLUMNS", "120")
    assert "0  Dense(2, 2)    dx = dy Wᵀ, dW = xᵀ dy, db = Σ dy" in str(e).splitlines()


class Cells(html.parser.HTMLParser):
    """The cells of the tables, row by row."""

    def __init__(self, text):
        super().__init__()
        self.tables, self.cell, self.open = [], None, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] in ("td", "th"):
            self.tables[-1][-1][-1] += data


@pytest.mark.numpy_only
def test_a_notebook_shows_both_passes_as_tables():
    forward, backward = Cells(small()._repr_html_()).tables
    assert forward[0] == ["Forward", "layer", "formula", "array", "shape", "mean", "std", "min", "max", "zeros"]
    assert {len(row) for row in (*forward, *backward)} == {10}
    assert forward[2] == ["0", "Dense(2, 2)", "y = x W + b", "y", "2×2", "0.250", "2.59", "-3.00", "4.00", ""]
    assert forward[4][0] == "\u20031.0"
    assert [row[3] for row in backward[1:]] == ["dy", "dx", "dx", "dweight", "dbias", "dx"]


def test_a_first_layer_of_integers_has_no_dx(lib):
    net = xn.Sequential(Table(7, 5), xn.Dense(5, 3)).initialize(lib.backend, "float64")
    e = net.explain(np.array([0, 6, 6, 2]), [0, 1, 2, 0], CROSS)
    assert e.dx is None
    assert e["0"].dx is None
    assert "0  Table(7, 5)    no dx: its x is of integers" in e.text(100)
    assert e["0"].gradients["weight"].shape == (7, 5)


@pytest.mark.numpy_only
def test_a_mean_says_what_it_divides_by_and_a_sum_does_not():
    net = xn.Sequential(xn.Dense(FEATURES, 3)).initialize()
    lines = net.explain(X, Y, xn.SoftmaxCrossEntropy(ignore=1)).text(120).splitlines()
    assert "SoftmaxCrossEntropy(ignore=1)    dz = p - t, 0 where ignored, divided by 4" in lines
    lines = net.explain(X, np.eye(3)[Y], xn.MeanSquaredError()).text(120).splitlines()
    assert "MeanSquaredError()    L = Σ (p - t)², divided by 18" in lines
    assert "MeanSquaredError(reduction='sum')    L = Σ (p - t)²" in str(
        net.explain(X, np.eye(3)[Y], xn.MeanSquaredError("sum"))
    )


@pytest.mark.numpy_only
def test_a_layer_of_ones_own_shows_a_formula_only_if_it_is_its_own():
    class Loose(xn.Sigmoid):
        def forward(self, x, training=False):
            return super().forward(2.0 * x, training)

        def backward(self, dy, cache):
            dx, grads = super().backward(dy, cache)
            return 2.0 * dx, grads

    class Told(Scale):
        formula = "y = a x²", "dx = 2 a x dy, da = Σ x² dy"

    class Sum(xn.Loss):
        def terms(self, prediction, target):
            return prediction - target, 1.0 + 0.0 * prediction

    net = xn.Sequential(Told(4), Loose(), Scale(4), Linked()).initialize()
    lines = net.explain(X, np.zeros((6, 4)), Sum()).text(120).splitlines()
    assert {"0  Told(4)    y = a x²", "0  Told(4)    dx = 2 a x dy, da = Σ x² dy"} <= {*lines}
    assert {"1  Loose()", "2  Scale(4)", "Sum()"} <= {*lines}
    assert "3  Linked()    y = 1 / (1 + e⁻ˣ)" in lines  # it has changed neither pass


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (-0.0, "0"), (1.0, "1.00"), (-0.12345, "-0.123"), (99.96, "100.0"), (1234.6, "1235"),
     (0.001, "0.00100"), (9.99e-4, "9.99e-04"), (12345.0, "1.23e+04"), (math.nan, "nan"), (-math.inf, "-inf")],
)  # fmt: skip
def test_numbers_have_three_digits_or_four(value, text):
    assert number(value) == text


@pytest.mark.numpy_only
def test_a_share_is_0_or_100_percent_only_where_it_is():
    assert [share(v) for v in (0.0, 1e-6, 0.5, 0.9999, 1.0, math.nan)] == ["", "<1%", "50%", ">99%", "100%", ""]
