"""Layers that hold layers: Residual, Branches, and a layer of one's own with layers as attributes."""

import copy
import pickle
import re

import numpy as np
import pytest

import xpnet as xn
from support.cases import Scale
from support.layers import assert_derivatives

X = np.random.default_rng(1).normal(size=(12, 4))
T = np.random.default_rng(2).normal(size=(12, 4))


class Block(xn.Layer):
    """x + g tanh(norm(dense(x))), its layers as attributes."""

    def __init__(self, features, first=None):
        self.features = features
        self.first = first
        self.dense = xn.Dense(features, features)
        self.inner = [xn.BatchNorm(features), {"f": xn.Tanh()}, Scale(features)]
        self.given = [] if first is None else [first]

    def _chain(self):
        return {
            "dense": self.dense,
            "inner.0": self.inner[0],
            "inner.1.f": self.inner[1]["f"],
            "inner.2": self.inner[2],
        }

    def forward(self, x, training=False):
        y, caches = x, []
        for layer in self._chain().values():
            y, cache = layer.forward(y, training)
            caches.append(cache)
        return x + y, caches

    def backward(self, dy, caches):
        dx, grads = dy, {}
        for (name, layer), cache in reversed(list(zip(self._chain().items(), caches, strict=True))):
            dx, own = layer.backward(dx, cache)
            grads |= self.prefixed(**{name: own})
        return dy + dx, grads

    def next_state(self, caches):
        return self.prefixed(**{"inner.0": self.inner[0].next_state(caches[1])})


class Plain(Block):
    """Without a setting that is a layer."""

    def __init__(self, features):
        super().__init__(features)
        del self.first, self.given


def side(*layers):
    return xn.Sequential(*layers)


NETWORKS = {
    "residual": lambda: xn.Sequential(xn.Dense(4, 4), xn.Residual(xn.Dense(4, 4), xn.BatchNorm(4), xn.Tanh())),
    "nested": lambda: xn.Sequential(xn.Residual(xn.Residual(xn.Dense(4, 4)), xn.Sigmoid()), xn.Dense(4, 4)),
    "the identity": lambda: xn.Sequential(xn.Dense(4, 4), xn.Residual()),
    "added": lambda: xn.Sequential(xn.Branches(side(xn.Dense(4, 5), xn.Tanh()), xn.Dense(4, 5)), xn.Dense(5, 4)),
    "one branch": lambda: xn.Sequential(xn.Branches(xn.Dense(4, 4))),
    "concatenated": lambda: xn.Sequential(
        xn.Branches(xn.Dense(4, 3), side(xn.Dense(4, 2), xn.BatchNorm(2)), xn.Sigmoid(), merge="concat"), xn.Dense(9, 4)
    ),
    "along the second axis": lambda: xn.Sequential(
        xn.Branches(xn.Dense(4, 3), xn.Tanh(), merge="concat", axis=1), xn.Dense(7, 4)
    ),
    "one's own": lambda: xn.Sequential(xn.Dense(4, 4), Plain(4), xn.Dense(4, 4)),
    "one's own in a block": lambda: xn.Sequential(
        xn.Residual(Plain(4), xn.ELU()), xn.Branches(Plain(4), xn.Dense(4, 4))
    ),
    "one's own before a branch that takes more features": lambda: xn.Sequential(
        xn.Branches(side(xn.Dense(4, 3), Plain(3)), xn.Dense(4, 3)), xn.Dense(3, 4)
    ),
}
CUSTOM = [Block, Plain, Scale]


@pytest.fixture(params=NETWORKS)
def net(request, lib):
    return NETWORKS[request.param]().initialize(lib.backend, "float64", seed=3)


def fit(net, **options):
    options = {"loss": xn.MeanSquaredError(), "optimizer": xn.SGD(0.05), "epochs": 3, "batch_size": 5} | options
    return net.fit(X, T, **options)


def host(net):
    return {name: net.backend.to_numpy(a) for name, a in (net.params | net.state).items()}


def assert_same(a, b, rtol=0.0):
    assert a.keys() == b.keys()
    for name, value in a.items():
        np.testing.assert_allclose(value, b[name], rtol=rtol, atol=rtol, err_msg=name)


def test_every_gradient_is_proved(net, lib):
    assert_derivatives(net, lib, X)
    for layer in net.layers:
        assert_derivatives(layer, lib, np.resize(X, (12, *(layer.input_shape or (4,)))))


def test_every_step_is_the_plain_step(net, monkeypatch):
    twin = net.clone()
    fit(net)
    monkeypatch.setenv("XPNET_KERNELS", "reference")
    before = host(twin)
    fit(twin)
    after = host(twin)
    assert all(not np.array_equal(before[name], a) for name, a in after.items() if "weight" in name or "mean" in name)
    assert_same(host(net), after, 1e-9)


def test_the_formulas_are_those_of_the_parts(lib):
    x = lib.asarray(X)
    f, g = xn.Dense(4, 4), xn.Dense(4, 4)
    net = xn.Sequential(f, g).initialize(lib.backend, "float64")
    a, b = (lib.to_numpy(layer.forward(x)[0]) for layer in net.layers)
    for block, expected in [
        (xn.Residual(f), X + a),
        (xn.Branches(f, g), a + b),
        (xn.Branches(f, g, merge="concat"), np.concatenate([a, b], axis=1)),
    ]:
        lib.agrees(block.forward(x)[0], expected)
        lib.agrees(xn.Sequential(block).predict(X), expected)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda n: n.clone(), lambda n: pickle.loads(pickle.dumps(n))]
)
def test_a_copy_has_layers_of_its_own(net, copied):
    before = host(net)
    twin = copied(net)
    assert_same(host(twin), before)
    fit(twin)
    assert_same(host(net), before)
    assert any(not np.array_equal(a, before[name]) for name, a in host(twin).items())


def test_a_file_keeps_it_whole(net, lib, tmp_path):
    fit(net)
    net.leaves()[-1][1].trainable = False
    net.save(tmp_path / "net.safetensors")
    twin = xn.load(tmp_path / "net.safetensors", lib.backend, custom_layers=CUSTOM)
    assert repr(twin) == repr(net)
    assert twin.summary() == net.summary()
    assert_same(host(twin), host(net))
    assert [leaf.trainable for _, leaf in twin.leaves()] == [leaf.trainable for _, leaf in net.leaves()]


def test_a_run_goes_on_from_its_checkpoint_to_the_bit(net, tmp_path):
    whole, parts = net.clone(), net.clone()
    fit(whole, epochs=4)
    fit(parts, epochs=2, checkpoint=xn.Checkpoint(tmp_path))
    parts = net.clone()
    fit(parts, epochs=4, checkpoint=xn.Checkpoint(tmp_path), resume=True)
    assert_same(host(parts), host(whole))


def test_frozen_it_stays_and_passes_the_gradient_on(net):
    for layer in net.layers[1:]:
        layer.trainable = False
        assert layer.trainable is False
    before = host(net)
    if not net.layers[0].trainable:
        return
    fit(net)
    for name, a in net.params.items():
        same = np.array_equal(net.backend.to_numpy(a), before[name])
        assert same == (not name.startswith("0.")) or name.endswith(("bias", "beta"))


@pytest.mark.numpy_only
def test_arrays_are_named_by_number_or_by_attribute():
    net = NETWORKS["one's own in a block"]().initialize()
    own = ["dense.weight", "dense.bias", "inner.0.gamma", "inner.0.beta", "inner.2.a"]
    assert list(net.params) == [
        *(f"0.0.{name}" for name in own),
        *(f"1.0.{name}" for name in own),
        "1.1.weight",
        "1.1.bias",
    ]
    assert list(net.layers[0].layers[0].params) == own
    assert list(net.state) == [f"{i}.0.inner.0.{key}" for i in (0, 1) for key in ("mean", "var")]
    assert net.parameter_count == sum(a.size for a in net.params.values()) == 2 * 32 + 20


@pytest.mark.numpy_only
def test_setting_one_sets_its_layers():
    net = NETWORKS["one's own"]().initialize()
    given = {name: a + 1.0 for name, a in net.params.items()}
    net.set_params(given)
    assert_same(dict(net.params), given)
    with pytest.raises(TypeError, match=r"set arrays with net\.set_params"):
        net.layers[1].params["dense.weight"] = np.zeros((4, 4))
    with pytest.raises(AttributeError, match="the params of a layer that holds layers are those of the layers"):
        net.layers[1].params = {}


@pytest.mark.numpy_only
def test_the_summary_shows_the_tree():
    net = xn.Sequential(xn.Dense(4, 4), xn.Residual(xn.Dense(4, 4), xn.ReLU()), Plain(4), xn.Branches(xn.Dense(4, 2)))
    rows = [re.split("  +", line.strip()) for line in net.summary().splitlines()[2:-2]]
    assert rows == [
        ["0", "Dense(4, 4)", "(N, 4)", "20"],
        ["1", "Residual", "(N, 4)"],
        ["1.0", "Dense(4, 4)", "(N, 4)", "20"],
        ["1.1", "ReLU()", "(N, 4)", "0"],
        ["2", "Plain", "(N, 4)"],
        ["2.dense", "Dense(4, 4)", "?", "20"],
        ["2.inner.0", "BatchNorm(4)", "?", "8"],
        ["2.inner.1.f", "Tanh()", "?", "0"],
        ["2.inner.2", "Scale(4)", "?", "4"],
        ["3", "Branches", "(N, 2)"],
        ["3.0", "Dense(4, 2)", "(N, 2)", "10"],
    ]


@pytest.mark.numpy_only
def test_layers_among_the_settings_are_saved_with_them(tmp_path):
    class Given(Block):
        def forward(self, x, training=False):
            return self.first.forward(x, training)

        def backward(self, dy, cache):
            dx, grads = self.first.backward(dy, cache)
            zeros = {k: 0.0 * a for k, a in self.params.items()}
            return dx, zeros | self.prefixed(first=grads)

        def next_state(self, cache):
            return self.state

        def _children(self):
            return {name: layer for name, layer in super()._children().items() if not name.startswith("given")}

    net = xn.Sequential(Given(4, xn.Dense(4, 4, trainable=False))).initialize()
    assert "0.first.weight" in net.params
    net.save(tmp_path / "net.safetensors")
    twin = xn.load(tmp_path / "net.safetensors", custom_layers=[Given, Scale])
    assert repr(twin) == repr(net) == "Sequential(Given(4, first=Dense(4, 4, trainable=False)))"
    np.testing.assert_array_equal(twin(X), net(X))


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: xn.Residual(xn.Dense(4, 3)),
            ValueError,
            r"Residual\(Dense\(4, 3\)\): its layers turn \(4,\) into \(3,\)",
        ),
        (lambda: xn.Residual(xn.Dense(4, 3), xn.Dense(4, 4)), ValueError, "Residual: layer 1 does not fit"),
        (lambda: xn.Residual(xn.ReLU), TypeError, r"Residual: layer 0 is .*call the class, ReLU\(\.\.\.\)"),
        (lambda: xn.Branches(), ValueError, "Branches: expected at least one layer"),
        (
            lambda: xn.Branches(xn.Dense(4, 3), xn.Dense(4, 2)),
            ValueError,
            r"give \(3,\), \(2,\), and these cannot be added",
        ),
        (lambda: xn.Branches(xn.Dense(4, 3), xn.Dense(5, 3)), ValueError, r"expected input of shape \(n, 5\)"),
        (lambda: xn.Branches(xn.ReLU(), merge="stack"), ValueError, 'merge must be "add" or "concat", got \'stack\''),
        (lambda: xn.Branches(xn.ReLU(), axis=0), ValueError, "a whole number other than 0, the batch's axis, got 0"),
        (lambda: xn.Branches(xn.ReLU(), axis=True), ValueError, "a whole number other than 0"),
        (lambda: xn.Branches(xn.Dense(4, 3), merge="concat", axis=4), ValueError, r"of shape \(3,\) have no axis 4"),
        (lambda: xn.Sequential(*[xn.Dense(4, 4)] * 2), ValueError, "occurs twice; its arrays cannot be shared"),
        (lambda: xn.Branches(*[Plain(4)] * 2), ValueError, "occurs twice"),
    ],
)
def test_what_does_not_fit_is_refused_at_once(make, error, message):
    with pytest.raises(error, match=message):
        make()


@pytest.mark.numpy_only
def test_branches_of_sequences_may_begin_with_a_layer_of_any_positions():
    block = xn.Branches(xn.Dense(8, 8), xn.MultiHeadAttention(8, 2))
    assert xn.Sequential(block, xn.Dense(8, 3)).initialize()(np.zeros((2, 5, 8), "float32")).shape == (2, 5, 3)


def test_what_does_not_fit_is_refused_on_the_way(lib):
    class Cut(xn.ReLU):
        def forward(self, x, training=False):
            y, cache = super().forward(x, training)
            return y[:, :2], cache

    x = lib.asarray(X)
    with pytest.raises(ValueError, match=r"its layers turn \(12, 4\) into \(12, 2\)"):
        xn.Residual(Cut()).forward(x)
    with pytest.raises(ValueError, match=r"give \(12, 2\), \(12, 4\), and these cannot be added"):
        xn.Branches(Cut(), xn.ReLU()).forward(x)


@pytest.mark.numpy_only
def test_statistics_that_would_never_change_are_refused():
    class Forgets(Plain):
        next_state = xn.Layer.next_state

    net = xn.Sequential(Forgets(4)).initialize()
    with pytest.raises(TypeError, match=r"has no next_state, so they would never change: write one, as in return"):
        fit(net)


@pytest.mark.numpy_only
def test_arrays_beside_layers_are_refused():
    class Both(Plain):
        def initial_params(self, rng):
            return super().initial_params(rng) | {"scale": np.ones(4)}

    for use in (lambda: xn.Sequential(Both(4)).initialize(), lambda: xn.check_gradients(Both(4), X)):
        with pytest.raises(TypeError, match="A layer has arrays or layers, not both: put its arrays into a layer"):
            use()


@pytest.mark.numpy_only
def test_a_layer_of_ones_own_may_change_what_its_layers_draw():
    class Still(Plain):
        def initial_params(self, rng):
            drawn = super().initial_params(rng)
            return drawn | {"inner.2.a": 0.0 * drawn["inner.2.a"]}

    net = xn.Sequential(Still(4)).initialize(dtype="float64")
    np.testing.assert_array_equal(net(X), X)


@pytest.mark.onnx_only
@pytest.mark.parametrize("name", [name for name in NETWORKS if "own" not in name])
def test_onnxruntime_predicts_the_same(name, tmp_path):
    import onnxruntime

    net = NETWORKS[name]().initialize(seed=1)
    fit(net)
    net.export_onnx(tmp_path / "net.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "net.onnx")
    x = X.astype("float32")
    np.testing.assert_allclose(session.run(None, {"x": x})[0], net(x), rtol=0, atol=1e-6)
