"""A network as a thing: predict, evaluate, initialize, copy, move, summary, nesting."""

import copy
import pickle
import re

import numpy as np
import pytest

import xpnet as xn
from support.cases import LAYERS, Scale, ready, tutorial_network
from support.layers import Linear, Twice
from support.networks import CALLS, good, refused
from support.training import (
    CROSS,
    T,
    X,
    Y,
    bits,
    fit,
    small,
)

# --- predict and evaluate ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [0, 2.5, True])
def test_a_batch_size_that_is_none_is_refused_by_the_name_of_who_was_asked(lib, batch_size):
    net = small(lib)
    for who, call in {
        "predict": lambda: net.predict(X, batch_size=batch_size),
        "evaluate": lambda: net.evaluate(X, Y, CROSS, batch_size=batch_size),
        "fit": lambda: fit(net, batch_size=batch_size),
    }.items():
        with pytest.raises(
            ValueError, match=f"^{who}: batch_size must be a whole number of at least 1, got {batch_size}$"
        ):
            call()


@pytest.mark.parametrize("batch_size", [1, 5, 6, 12, 100])
def test_predicting_in_batches_is_predicting_at_once(lib, batch_size):
    net = small(lib)
    fit(net)
    at_once = lib.to_numpy(net.predict(X))
    np.testing.assert_array_equal(lib.to_numpy(net(X)), at_once)
    lib.agrees(net.forward(lib.asarray(X))[0], at_once)  # JAX compiles the one and not the other
    lib.agrees(net.predict(X, batch_size=batch_size), at_once)
    expected = net.evaluate(X, Y, CROSS)
    assert net.evaluate(X, Y, CROSS, batch_size=batch_size) == pytest.approx(expected, rel=1e-12)


def test_evaluating_between_a_forward_and_its_backward_changes_nothing(lib):
    net, twin = (xn.Sequential(ready(LAYERS["network"](), lib)) for _ in range(2))
    x, other = lib.asarray(X), lib.asarray(X[:5] + 1)
    y, cache = net.forward(x, training=True)
    net.forward(other)
    net.forward(other, training=True)
    dx, grads = net.backward(y, cache)
    y, cache = twin.forward(x, training=True)
    expected, expected_grads = twin.backward(y, cache)
    for a, b in [(dx, expected), *((grads[k], expected_grads[k]) for k in twin.params)]:
        np.testing.assert_array_equal(lib.to_numpy(a), lib.to_numpy(b))


# --- layers within ----------------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
def test_a_layer_is_given_the_parameters_that_bear_its_name():
    class Gate(xn.ReLU):
        def initial_params(self, rng):
            return {"in.weight": np.ones(3), "0": np.ones(2)}

    net = xn.Sequential(Gate(), xn.Sequential(Gate(), xn.Sequential(Gate()))).initialize()
    names = [f"{layer}.{own}" for layer in ("0", "1.0", "1.1.0") for own in ("in.weight", "0")]
    assert list(net.params) == names
    given = {name: np.full(3, float(i)) for i, name in enumerate(names)}
    net.assign_params(dict(reversed(given.items())) | {"": 0, "0": 0, "2.weight": 0, "1.2.weight": 0, "weight": 0})
    assert net.params.keys() == given.keys()
    assert all(net.params[name] is a for name, a in given.items())


def test_a_nested_network_trains_as_the_flat_one(lib):
    flat = small(lib, xn.Dense(4, 8), xn.BatchNorm(8), xn.Dropout(0.2), xn.Tanh(), xn.Dense(8, 3))
    inner = xn.Sequential(xn.BatchNorm(8), xn.Sequential(xn.Dropout(0.2), xn.Tanh()))
    nested = small(lib, xn.Dense(4, 8), inner, xn.Dense(8, 3))
    assert list(nested.params) == ["0.weight", "0.bias", "1.0.gamma", "1.0.beta", "2.weight", "2.bias"]
    assert list(nested.state) == ["1.0.mean", "1.0.var", "1.1.0.key"]
    assert fit(nested, epochs=3) == fit(flat, epochs=3)
    assert list(bits(nested).values()) == list(bits(flat).values())


def test_a_frozen_layer_keeps_its_bits_while_those_around_it_learn(lib):
    net = small(lib, xn.Dense(4, 6), xn.Sequential(xn.Dense(6, 6, trainable=False), xn.Tanh()), xn.Dense(6, 3))
    before = bits(net)
    fit(net, optimizer=xn.AdamW(0.01))
    changed = {name for name, a in bits(net).items() if a != before[name]}
    assert changed == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert net.value_and_grad(X, Y, CROSS)[1].keys() == net.params.keys()


def test_a_frozen_layer_passes_the_gradient_on_as_if_it_were_not(lib):
    free, frozen = (small(lib, xn.Dense(4, 6), xn.Dense(6, 6, trainable=t), xn.Dense(6, 3)) for t in (True, False))
    fit(free, batch_size=None)
    fit(frozen, batch_size=None)
    assert bits(free, "0.weight", "0.bias", "2.weight") == bits(frozen, "0.weight", "0.bias", "2.weight")
    assert bits(free, "1.weight") != bits(frozen, "1.weight")


@pytest.mark.numpy_only
def test_a_network_is_trainable_while_any_of_its_layers_is():
    net = xn.Sequential(xn.Dense(4, 4), xn.Sequential(xn.Dense(4, 3)))
    net.trainable = False
    assert not any(layer.trainable for _, layer in net.leaves())
    assert not net.trainable
    net.layers[1].trainable = True
    assert net.trainable


def test_a_sequential_of_ones_own_trains_by_its_own_backward(lib, tmp_path):
    net = small(lib, Twice(xn.Dense(4, 3)))
    plain = xn.Sequential(Twice(xn.Dense(4, 3)), xn.LeakyReLU(1.0)).initialize(
        lib.backend, "float64"
    )  # not the lowest alone
    _, grads = net.value_and_grad(X, T, xn.MeanSquaredError())
    cache = net.layers[0].forward(lib.asarray(X), True)[1]
    dy = xn.MeanSquaredError().value_and_grad(net(X), T)[1]
    for name, gradient in plain.layers[0].backward(dy, plain.layers[0].forward(lib.asarray(X), True)[1])[1].items():
        lib.agrees(grads[f"0.{name}"], lib.to_numpy(gradient))
    assert cache[0] is net.layers[0]
    lib.agrees(net(X), 2.0 * lib.to_numpy(net.layers[0].layers[0].forward(lib.asarray(X))[0]))
    xn.files.save_torch(net, tmp_path / "torch.safetensors")  # of a module with a forward of its own, and a Linear "0"
    twin = small(lib, Twice(xn.Dense(4, 3)), seed=1)
    lib.agrees(xn.files.load_torch(twin, tmp_path / "torch.safetensors")(X), lib.to_numpy(net(X)))
    net.save(tmp_path / "net.safetensors")
    lib.agrees(xn.load(tmp_path / "net.safetensors", lib.backend, custom_layers=[Twice])(X), lib.to_numpy(net(X)))


@pytest.mark.numpy_only
def test_the_summary_names_a_sequential_of_ones_own():
    block = Twice(xn.Dense(4, 3, trainable=False), xn.Sequential(xn.ReLU()))
    rows = [re.split("  +", line.strip()) for line in xn.Sequential(block, xn.Dense(3, 2)).summary().splitlines()[2:-2]]
    assert rows == [
        ["0", "Twice", "(N, 3)"],
        ["0.0", "Dense(4, 3, trainable=False)", "(N, 3)", "15 (frozen)"],
        ["0.1.0", "ReLU()", "(N, 3)", "0"],
        ["1", "Dense(3, 2)", "(N, 2)", "8"],
    ]
    assert block.summary().splitlines()[2].split() == ["Twice", "(N,", "3)"]
    assert ">Twice</td>" in block._repr_html_()


@pytest.mark.numpy_only
def test_repr_never_fails_and_knows_arguments_by_name_only():
    class Odd(Linear):
        def __init__(self, scale, *, n, start=1.0):
            self.scale, self.n, self.other = scale, n, start

    assert repr(Odd(np.ones(2), n=3)) == "Odd(array([1., 1.]), 3, start='?')"
    assert "start='?'" in xn.Sequential(Odd(1, n=2)).summary()


# --- summary, moving, copies ------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
def test_the_summary_tells_every_shape_where_it_is_told_that_of_a_row():
    net = xn.Sequential(xn.Conv2d(3, 4, 3), xn.Residual(xn.ReLU()), xn.MaxPool2d(2), xn.Flatten())
    shapes = [re.split("  +", line.strip())[2:3] for line in net.summary((3, 10, 8)).splitlines()[2:-2]]
    image = ["(N, 4, 8, 6)"]
    assert shapes == [image, image, image, ["(N, 4, 4, 3)"], ["(N, 48)"]]
    assert "?" in net.summary()
    with pytest.raises(ValueError, match=r"Conv2d\(3, 4, 3\): expected input of shape \(n, 3, height, width\)"):
        net.summary((10, 8, 3))
    with pytest.raises(ValueError, match="summary: each of input_shape must be a whole number"):
        net.summary(("3", 10, 8))


@pytest.mark.parametrize("columns", [40, 60, 120])
def test_the_summary_fits_a_narrow_terminal(monkeypatch, columns):
    net = xn.Sequential(xn.Conv2d(3, 64, 3, padding="same", initializer="he_normal"), xn.ReLU())
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = net.summary((3, 32, 32)).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert len(lines[0]) <= max(columns, 49)  # a layer has room for 16 letters
    column = slice(lines[0].index("layer"), lines[0].index("output"))
    shown = "".join(line[column] for line in lines[2:-3]).replace(" ", "")
    assert shown == "Conv2d(3,64,3,padding='same',initializer='he_normal')"
    assert (len(lines) == 6) is (columns == 120)


def test_the_summary_is_shown_as_it_is_printed():
    text = tutorial_network().summary()
    assert repr(text) == str(text) == "".join(text)


def test_the_summary_counts_the_tutorials_network():
    net = tutorial_network()
    net.layers[0].trainable = False
    lines = net.summary().splitlines()
    assert lines[0].split() == ["layer", "output", "shape", "parameters"]
    shapes = [(32, 2080), (32, 64), (32, 0), (16, 528), (16, 32), (16, 0), (10, 170), (10, 20)]
    for i, (line, layer, (width, count)) in enumerate(zip(lines[2:10], net.layers, shapes, strict=True)):
        frozen = r" \(frozen\)" if i == 0 else ""
        assert re.fullmatch(rf" *{i} +{re.escape(repr(layer))} +\(N, {width}\) +{count:,}{frozen}", line)
    assert lines[-1].strip() == "2,894 parameters, 2,080 of them frozen"
    assert tutorial_network().summary().endswith(" 2,894 parameters")
    assert "2,894 parameters, 2,080 of them frozen, not initialized" in net._repr_html_()
    assert len({len(line) for line in lines}) == 1
    assert net.parameter_count == 2894
    assert net.initialize("numpy").parameter_count == sum(a.size for a in net.params.values()) == 2894


@pytest.mark.numpy_only
def test_a_network_that_begins_with_one_of_activations_knows_its_inputs():
    net = xn.Sequential(xn.Sequential(xn.Tanh(), xn.Dropout(0.1)), xn.Dense(4, 3)).initialize("numpy")
    assert net.input_shape == (4,)
    assert "(N, 3)" in net.summary()
    with pytest.raises(ValueError, match=r"predict: x has shape \(4,\), expected \(n, 4\); for a single row give x"):
        net.predict(X[0])


def test_moving_a_network_there_and_back_keeps_every_bit(lib):
    net = small(lib, dtype="float32")
    fit(net)
    before, expected = bits(net), lib.to_numpy(net.predict(X))
    assert net.to("numpy", dtype="float64") is net
    assert (net.backend.name, net.dtype, net.predict(X).dtype) == ("numpy", "float64", np.float64)
    np.testing.assert_allclose(net.predict(X), expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    fit(copy.deepcopy(net))
    net.to(lib.backend, dtype="float32")
    assert bits(net) == before
    np.testing.assert_array_equal(lib.to_numpy(net.predict(X)), expected)


def test_a_move_that_fails_moves_nothing(lib):
    class Full(type(lib.backend)):
        def asarray(self, x, dtype=None):
            raise MemoryError("no room on the device")

    net = small(lib, dtype="float32")
    before, backend = bits(net), net.backend
    with pytest.raises(MemoryError):
        net.to(Full(lib.device), dtype="float64")
    assert net.backend is backend
    assert net.dtype == "float32"
    assert bits(net) == before


@pytest.mark.numpy_only
def test_a_pickle_of_an_earlier_version_has_its_placement_under_another_name(net):
    state = net.__getstate__()
    twin = xn.Sequential.__new__(xn.Sequential)
    twin.__setstate__({"_home" if name == "_placement" else name: value for name, value in state.items()})
    assert (twin.backend, twin.dtype) == (net.backend, net.dtype)
    assert "_home" not in vars(twin)


@pytest.mark.parametrize(
    "twin_of", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))], ids=["copy", "pickle"]
)
def test_a_copied_or_pickled_network_predicts_trains_and_stands_alone(lib, twin_of):
    net = small(lib)
    fit(net)
    twin, before = twin_of(net), bits(net)
    np.testing.assert_array_equal(lib.to_numpy(twin.predict(X)), lib.to_numpy(net.predict(X)))
    history = fit(twin, epochs=2)
    assert bits(net) == before != bits(twin)
    assert fit(net, epochs=2) == history  # the order of rows and the masks go on alike
    assert bits(net) == bits(twin)


# --- initialize -------------------------------------------------------------------------------------------------------


def test_layers_that_have_their_arrays_are_a_network_at_once(lib):
    net = small(lib, dtype="float32")
    body = xn.Sequential(*net.layers[:-1])
    hidden = body.predict(X)
    lib.agrees(net.layers[-1].forward(hidden)[0], lib.to_numpy(net.predict(X)))
    assert (body.backend.name, body.dtype) == (lib.name, "float32")
    assert "float32 on" in body._repr_html_()
    head = small(lib, xn.Dense(8, 2), dtype="float32")
    other = xn.Sequential(body, *head.layers)
    before = bits(net)
    fit(other, y=Y % 2)
    assert bits(net, "4.weight", "4.bias") == {name: before[name] for name in ("4.weight", "4.bias")}
    assert bits(net) != before  # the body is the same one
    assert [float(n) for n in lib.to_numpy(body.predict(X))[0]] != [float(n) for n in lib.to_numpy(hidden)[0]]


@pytest.mark.numpy_only
def test_layers_of_which_one_has_no_arrays_or_others_are_no_network_yet():
    net = xn.Sequential(xn.Dense(4, 8), xn.Tanh()).initialize()
    head = xn.Sequential(xn.Dense(8, 3)).initialize(dtype="float64")
    for layers, message in [
        ((*net.layers, xn.Dense(8, 3)), r"^layer 2, Dense\(8, 3\), has no parameters yet: net\.initialize\(\) draws"),
        ((*net.layers, *head.layers), r"not all on one backend and of one dtype: move those that differ"),
        ((xn.Tanh(),), r"call net\.initialize"),
        ((), r"call net\.initialize"),
    ]:
        made = xn.Sequential(*layers)
        assert made.dtype == "float32"
        assert "not initialized" in made._repr_html_()
        with pytest.raises(RuntimeError, match=message):
            made.predict(X)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_new_head_is_drawn_and_the_trained_trunk_keeps_its_bits(lib, dtype):
    trunk = small(lib, xn.Dense(4, 8), xn.BatchNorm(8), xn.Dropout(0.1), dtype=dtype)
    fit(trunk, y=np.ones((12, 8)), loss=xn.MeanSquaredError())
    before = bits(trunk)
    net = xn.Sequential(*trunk.layers, xn.Sequential(xn.Tanh(), xn.Dense(8, 3)))
    with pytest.raises(RuntimeError, match=r"net\.initialize\(\) draws what is missing and keeps the others"):
        net.predict(X)
    assert net.initialize() is net
    assert (net.predict(X).shape, net.backend.name, net.dtype) == ((len(X), 3), lib.name, dtype)
    assert bits(trunk) == before
    assert all(a is net.params[name] for name, a in trunk.params.items())
    seed = xn.Sequential(xn.Dense(4, 8), xn.BatchNorm(8), xn.Dropout(0.1), xn.Tanh(), xn.Dense(8, 3))
    expected = seed.initialize(lib.backend, dtype).params["4.weight"]
    np.testing.assert_array_equal(lib.to_numpy(net.params["3.1.weight"]), lib.to_numpy(expected))  # one seed, one head
    fit(net)
    assert bits(trunk) != before


@pytest.mark.parametrize(
    "asked",
    [
        {"backend": "array_api_strict", "device": "device1"},
        {"device": "device1"},
        {"backend": xn.get_backend("array_api_strict", "device1")},
        {"dtype": "float32"},
        {"dtype": np.float32},
    ],
)
@pytest.mark.numpy_only
def test_a_new_head_is_not_drawn_elsewhere_than_the_trunk(asked):
    backend = "array_api_strict" if "dtype" not in asked else "numpy"
    trunk = xn.Sequential(xn.Dense(4, 8)).initialize(backend, "float64")
    net = xn.Sequential(*trunk.layers, xn.Dense(8, 3))
    with pytest.raises(ValueError, match=r"initialize: layers that have parameters have them .* net\.to\("):
        net.initialize(**asked)
    assert not net.layers[1].params
    net.initialize(backend, dtype=np.float64)
    assert net.backend.device == trunk.backend.device or backend == "numpy"


TOUCHED = {
    "fit": lambda net, path: fit(net),
    "set_params": lambda net, path: net.set_params(net.params),
    "set_state": lambda net, path: net.set_state(net.state),
    "a layer's array": lambda net, path: net.layers[0].params.update(bias=net.params["0.bias"] + 1),
    "a layer's dict": lambda net, path: setattr(net.layers[1], "params", dict(net.layers[1].params)),
    "a frozen layer": lambda net, path: (setattr(net.layers[0], "trainable", False), fit(net)),
    "load_torch": lambda net, path: (xn.files.save_torch(net, path), xn.files.load_torch(net, path)),
    "fit and to": lambda net, path: (fit(net), net.to(net.backend, dtype="float32")),
}


COPIED = {
    "itself": lambda net: net,
    "clone": lambda net: net.clone(),
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
    "of its layers": lambda net: xn.Sequential(*net.layers),
}


@pytest.mark.parametrize("copied", COPIED)
@pytest.mark.parametrize("touched", [*TOUCHED, "load"])
def test_what_was_trained_loaded_or_set_is_drawn_over_with_fresh_alone(lib, tmp_path, touched, copied):
    net, path = small(lib), tmp_path / "net.safetensors"
    if touched == "load":
        net.save(path)
        net = xn.load(path, lib.backend)
    else:
        TOUCHED[touched](net, path)
    net = COPIED[copied](net)
    before = bits(net)
    with pytest.raises(RuntimeError, match=r"net\.initialize\(fresh=True\) draws all anew"):
        net.initialize(lib.backend, "float64", seed=5)
    assert bits(net) == before
    net.clone().initialize(fresh=True)
    assert bits(net) == before
    net.initialize(lib.backend, "float64", seed=5, fresh=True)
    assert bits(net) == bits(small(lib, seed=5))


@pytest.mark.parametrize("copied", COPIED)
def test_what_is_as_drawn_is_drawn_again(lib, copied):
    net = COPIED[copied](small(lib))
    net.predict(X)
    net.evaluate(X, Y, CROSS)
    net.to("numpy", dtype="float32")
    for seed in (1, 2):
        assert bits(net.initialize(lib.backend, "float64", seed=seed)) == bits(small(lib, seed=seed))
    with pytest.raises(ValueError, match="fresh must be True or False"):
        net.initialize(fresh="yes")


# --- what makes no network --------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: xn.Sequential(xn.Dense(4, 5), xn.Dense(6, 3)), ValueError, ["layer 1", "Dense(6, 3)", "6", "5"]),
        (lambda: xn.Sequential(xn.Dense(4, 5), xn.Tanh(), xn.BatchNorm(4)), ValueError, ["layer 2", "BatchNorm(4)"]),
        (lambda: xn.Sequential(xn.BatchNorm(4), xn.Sequential(xn.BatchNorm(5))), ValueError, ["layer 1", "layer 0"]),
        (
            lambda: xn.Sequential(xn.Conv2d(1, 8, 3), xn.ReLU(), xn.Conv2d(4, 8, 3)),
            ValueError,
            ["layer 2", "Conv2d(4, 8, 3): expected input of shape (n, 4, height, width)", "layer 1, ReLU()"],
        ),
        (
            lambda: xn.Sequential(xn.Reshape(1, 8, 8), xn.Conv2d(1, 2, 3), xn.Flatten(), xn.Dense(64, 3)),
            ValueError,
            ["layer 3", "Dense(64, 3)", "got ('N', 72)", "layer 2, Flatten()"],
        ),
        (lambda: xn.Sequential(xn.Dense(4, 5), "relu"), TypeError, ["layer 1 is 'relu'", "expected a Layer"]),
        (lambda: xn.Sequential(xn.Dense(4, 5), xn.ReLU), TypeError, ["layer 1 is <class", "expected a Layer"]),
        (lambda: xn.Sequential([xn.Dense(4, 5)]), TypeError, ["layer 0 is [Dense(4, 5)]", "expected a Layer"]),
        (lambda: (lambda d: xn.Sequential(d, xn.Tanh(), d))(xn.Dense(4, 4)), ValueError, ["layer 2", "twice"]),
        (lambda: (lambda d: xn.Sequential(d, xn.Sequential(d)))(xn.Dense(4, 4)), ValueError, ["twice"]),
        (lambda: (lambda b: xn.Sequential(b, b))(xn.BatchNorm(4)), ValueError, ["layer 1", "BatchNorm(4)", "twice"]),
    ],
)
def test_layers_that_make_no_network_are_refused(build, error, words):
    with pytest.raises(error) as caught:
        build()
    assert caught.type is error
    assert [word for word in ["Sequential", *words] if word not in str(caught.value)] == []


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("layer", "end"),
    [
        ([xn.ReLU()], r"64, 32\); unpack a list of layers: Sequential\(\*layers\)"),
        (xn.ReLU, r"64, 32\): call the class, ReLU\(\.\.\.\)"),
        ("relu", r"64, 32\)"),
        (max, r"64, 32\)"),
    ],
    ids=["list", "class", "name", "function"],
)
def test_what_is_no_layer_is_refused_with_the_remedy_for_it(layer, end):
    with pytest.raises(TypeError, match=rf"^Sequential: layer 1 is .*, expected a Layer such as Dense\({end}$"):
        xn.Sequential(xn.Dense(4, 3), layer)


@pytest.mark.parametrize("name", [name for name in LAYERS if name != "a user's"])
def test_backward_refuses_another_cache_and_a_dy_that_does_not_fit(lib, name):
    layer, twin = ready(LAYERS[name](), lib), ready(LAYERS[name](), lib)
    x = lib.asarray(good(5)[0])
    y, cache = layer.forward(x, training=True)
    n, k = y.shape
    who = type(layer).__name__
    for foreign in (twin.forward(x, training=True)[1], None, (), ("cache",)):
        with pytest.raises(ValueError, match=f"{who}.*cache"):
            layer.backward(y, foreign)
    for shape in [(1, k), (n, k + 1), (n + 1, k), (k,), (n, k, 1)]:
        with pytest.raises(ValueError, match=rf"{who}.*dy of shape \({n}, {k}\)"):
            layer.backward(lib.asarray(np.ones(shape)), cache)


def test_a_network_without_parameters_says_how_to_get_them(tmp_path):
    net = xn.Sequential(xn.Dense(4, 3))
    x, y = good()
    for call in [
        *(lambda call=call: call(net, x, y) for call in CALLS.values()),
        lambda: net(x),
        lambda: net.to("numpy"),
        lambda: net.set_params({}),
        lambda: net.set_state({}),
        lambda: net.save(tmp_path / "net"),
    ]:
        with pytest.raises(RuntimeError, match="initialize"):
            call()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_backend_is_refused_and_the_known_ones_are_named(net):
    unknown = "no backend 'tensorflow'", "numpy", "cupy", "torch", "jax", "auto"
    for call in [xn.get_backend, xn.use_backend, net.initialize, net.to]:
        with refused(net, ValueError, *unknown):
            call("tensorflow")
    assert xn.Sequential(xn.Dense(2, 2)).initialize().backend is xn.get_backend("numpy")


@pytest.mark.numpy_only
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "cpu", "mps"])
def test_a_device_given_for_a_backend_is_told_where_it_belongs(net, name):
    with refused(net, ValueError, f"no backend '{name}'", f"that is a device, as in backend='torch', device='{name}'"):
        net.to(name)


def test_moving_to_a_dtype_too_narrow_for_the_parameters_is_refused(lib):
    net = xn.Sequential(xn.Dense(2, 2)).initialize(lib.backend, "float64")
    net.set_params({"0.weight": np.full((2, 2), 1e300), "0.bias": np.zeros(2)})
    with refused(net, ValueError, "0.weight", "NaN or infinite in float32"):
        net.to(lib.backend, dtype="float32")


def test_no_dtype_is_not_numpys_default(lib, net):
    with refused(net, ValueError, "dtype", "got None"):
        net.initialize(lib.backend, None)


@pytest.mark.numpy_only
def test_a_list_is_no_dtype():
    with pytest.raises(ValueError, match=r"""dtype must be "float32" or "float64", got \['float32'\]"""):
        xn.Sequential(xn.Dense(2, 2)).initialize(dtype=["float32"])


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_a_seed_that_is_none(lib, seed):
    with pytest.raises(ValueError, match="initialize: seed must be a whole number of at least 0, got "):
        xn.Sequential(xn.Dense(2, 2)).initialize(lib.backend, seed=seed)


def test_a_prediction_is_never_the_callers_own_array(lib):
    net = xn.Sequential(xn.Dropout(0.5)).initialize(lib.backend, "float64")
    x = lib.asarray(np.ones((2, 3)))
    y = net.predict(x)
    assert y is not x
    lib.agrees(y, np.ones((2, 3)))
    if lib.name == "numpy":
        assert not np.shares_memory(x, y)


def test_a_layer_that_is_made_in_a_call_says_so(lib):
    class Holder(Scale):
        def forward(self, x, training=False):
            return xn.Dense(4, 3).forward(x, training)

    with pytest.raises(RuntimeError, match="must be an attribute of it, alone or in a list"):
        xn.Sequential(xn.Dense(4, 4), Holder(4)).initialize(lib.backend).predict(good()[0])
