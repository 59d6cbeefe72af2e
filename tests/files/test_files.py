"""Model files: what is loaded is what was saved, to the bit; and anything else is refused, by name."""

import errno
import json
import os
import pathlib
import re
import stat
import subprocess
import sys
import traceback
import tracemalloc
import types
from collections import Counter

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import xpnet as xn
from support.golden_networks import FOLDER, GOLDEN, numbers
from xpnet.files import safetensors as container
from xpnet.files import save_torch
from xpnet.files.format import VERSION

X = np.random.default_rng(5).standard_normal((9, 6))


class Scale(xn.Layer):
    """One's own: y = x s, with a setting."""

    def __init__(self, features, start=1.5, trainable=True):
        self.features, self.start, self.trainable = features, start, trainable

    def initial_params(self, rng):
        return {"scale": np.full(self.features, self.start)}

    def forward(self, x, training=False):
        return x * self.params["scale"], x

    def backward(self, dy, cache):
        return dy * self.params["scale"], {"scale": (dy * cache).sum(axis=0)}


class Bare(Scale):
    """One's own without a constructor's argument for `trainable`, which every layer has."""

    def __init__(self, features):
        self.features, self.start = features, 2.0


NETWORKS = {
    "dense": lambda: xn.Sequential(xn.Dense(6, 4, initializer="he_normal")),
    "batch norm": lambda: xn.Sequential(xn.BatchNorm(6, momentum=0.5, eps=1e-4), xn.Dense(6, 2)),
    "activations": lambda: xn.Sequential(
        *(xn.Dense(6, 6), xn.Sigmoid(), xn.Tanh(), xn.LeakyReLU(0.3), xn.ELU(0.7), xn.ReLU(), xn.Softmax())
    ),
    "dropout": lambda: xn.Sequential(xn.Dense(6, 8), xn.Dropout(0.25), xn.Dense(8, 2), xn.Dropout()),
    "frozen": lambda: xn.Sequential(xn.Dense(6, 5, trainable=False), xn.BatchNorm(5, trainable=False), xn.Dense(5, 2)),
    "nested": lambda: xn.Sequential(
        xn.Sequential(xn.Dense(6, 5), xn.Sequential(xn.BatchNorm(5), xn.ReLU())), xn.Sequential(), xn.Dense(5, 2)
    ),
    "no parameters": lambda: xn.Sequential(xn.Softmax()),
    "one's own": lambda: xn.Sequential(xn.Dense(6, 5), Scale(5, 0.5), xn.Sequential(Scale(5, trainable=False))),
}
every_network = pytest.mark.parametrize("network", NETWORKS)


def bits(arrays, backend):
    """Names, dtypes and bytes."""
    hosts = {name: backend.to_numpy(a) for name, a in arrays.items()}
    return {name: (a.dtype, a.shape, np.ascontiguousarray(a).tobytes()) for name, a in hosts.items()}


def initialized(network, backend="numpy", dtype="float32"):
    """A network whose parameters and statistics are none of the starting ones."""
    net = NETWORKS[network]().initialize(backend, dtype, seed=3)
    rng = np.random.default_rng(4)
    net.set_params({k: rng.standard_normal(a.shape) for k, a in net.params.items()})
    net.set_state(
        {k: np.array([12345, 67]) if k.endswith("key") else rng.uniform(0.5, 2, a.shape) for k, a in net.state.items()}
    )
    return net


def leaves(net):
    return [(name, repr(layer), layer.trainable) for name, layer in net.leaves()]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_network
def test_a_loaded_network_is_the_saved_one_to_the_bit(lib, tmp_path, network, dtype):
    net = initialized(network, lib.backend, dtype)
    net.save(tmp_path / "net.safetensors")
    again = xn.load(tmp_path / "net.safetensors", lib.name, lib.device, custom_layers=[Scale])

    assert (repr(again), leaves(again), again.dtype) == (repr(net), leaves(net), dtype)
    assert again.backend is net.backend
    assert bits(again.params, lib.backend) == bits(net.params, lib.backend)
    assert bits(again.state, lib.backend) == bits(net.state, lib.backend)
    for training in (False, True):  # with the same entries dropped
        x = lib.asarray(X, dtype)
        expected, y = (lib.to_numpy(n.forward(x, training)[0]) for n in (net, again))
        np.testing.assert_array_equal(y, expected, strict=True)
    np.testing.assert_array_equal(lib.to_numpy(again.predict(X)), lib.to_numpy(net.predict(X)), strict=True)


def test_a_file_moves_a_network_to_another_library(lib, tmp_path):
    net = initialized("nested", lib.backend, "float64")
    net.save(tmp_path / "net.safetensors")
    host = xn.load(tmp_path / "net.safetensors", backend="numpy")
    assert bits(host.params, host.backend) == bits(net.params, lib.backend)
    lib.agrees(net.predict(X), host.predict(X))


@pytest.mark.numpy_only
def test_a_loaded_network_can_be_trained(tmp_path):
    net = initialized("nested")
    net.save(tmp_path / "net.safetensors")
    again = xn.load(str(tmp_path / "net.safetensors"))
    for n in (net, again):
        n.fit(X, X[:, :2], loss=xn.MeanSquaredError(), optimizer=xn.Adam(), epochs=2, batch_size=None)
    assert bits(again.params, net.backend) == bits(net.params, net.backend)


@pytest.mark.numpy_only
def test_a_frozen_layer_stays_frozen(tmp_path):
    initialized("frozen").save(tmp_path / "net.safetensors")
    assert [layer.trainable for layer in xn.load(tmp_path / "net.safetensors").layers] == [False, False, True]


@pytest.mark.numpy_only
def test_a_layer_frozen_after_it_was_made_stays_frozen(tmp_path):
    net = xn.Sequential(xn.Dense(6, 6), Bare(6)).initialize()
    net.trainable = False
    net.save(tmp_path / "net.safetensors")
    again = xn.load(tmp_path / "net.safetensors", custom_layers=[Bare])
    assert [layer.trainable for layer in again.layers] == [False, False]


@pytest.mark.numpy_only
@every_network
def test_any_safetensors_reader_reads_the_file(tmp_path, network):
    net = initialized(network, dtype="float64")
    net.save(tmp_path / "net.safetensors")
    arrays = load_file(tmp_path / "net.safetensors")
    expected = {f"params.{k}": a for k, a in net.params.items()} | {f"state.{k}": a for k, a in net.state.items()}
    assert bits(arrays, net.backend) == bits(expected, net.backend)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    "view", [np.asfortranarray, lambda a: np.repeat(a, 2, axis=1)[:, ::2], lambda a: a[::-1].copy()[::-1]]
)
def test_parameters_of_any_memory_order_are_saved_right(tmp_path, view):
    net = initialized("dense")
    expected = net.params["0.weight"].copy()
    net.layers[0].params["weight"] = view(expected)
    assert not net.params["0.weight"].flags.c_contiguous
    net.save(tmp_path / "net.safetensors")
    np.testing.assert_array_equal(xn.load(tmp_path / "net.safetensors").params["0.weight"], expected)


@pytest.mark.numpy_only
def test_saving_changes_nothing_in_the_network(tmp_path):
    net = initialized("nested")
    before = bits(net.params | net.state, net.backend)
    net.save(tmp_path / "net.safetensors")
    assert bits(net.params | net.state, net.backend) == before


# --- files that are none ----------------------------------------------------------------------------------------------


def resaved(path, change_arrays=dict, **change):
    """Write the file at `path` again, soundly signed, with other arrays or metadata."""
    arrays, metadata = container.read(path)
    metadata |= change
    container.write(path, change_arrays(arrays), {k: v for k, v in metadata.items() if v is not None})


def without(name):
    return lambda arrays: {k: a for k, a in arrays.items() if k != name}


def one_of(number):
    return np.array([1, number, -1, 0], "float32")


def layers(*described):
    return json.dumps({"dtype": "float32", "layers": described})


def truncated(path):
    path.write_bytes(path.read_bytes()[:-4])


DENSE = {"layer": "Dense", "settings": {"in_features": 6, "out_features": 4}, "trainable": True}
UNSOUND = {  # what happens to a file of Dense(6, 4), and what the message says of it
    "empty": (lambda p: p.write_bytes(b""), ""),
    "truncated": (truncated, ""),
    "cut in its header": (lambda p: p.write_bytes(p.read_bytes()[:20]), ""),
    "random bytes": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(500)), ""),
    "text": (lambda p: p.write_text("weights: none\n" * 50), ""),
    "a file of another program": (
        lambda p: save_file({"w": np.ones(3)}, p),
        "it is not signed: .*; files.load_torch reads",
    ),
    "another program's metadata": (lambda p: container.write(p, {"w": np.ones(3)}, {"format": "pt"}), "does not say"),
    "a newer version": (lambda p: resaved(p, version="2"), "version '2', this xpnet reads '1'"),
    "no version": (lambda p: resaved(p, version=None), "version None, this xpnet reads '1'"),
    "metadata too many": (
        lambda p: resaved(p, module="os"),
        "its metadata has 'module'; expected format, network, ver",
    ),
    "no network": (lambda p: resaved(p, network=None), "network"),
    "network not JSON": (lambda p: resaved(p, network="{"), ""),
    "network a list": (lambda p: resaved(p, network="[1, 2]"), ""),
    "layers a number": (lambda p: resaved(p, network='{"dtype": "float32", "layers": 3}'), ""),
    "layers endlessly nested": (
        lambda p: resaved(p, network='{"dtype": "float32", "layers": ' + "[" * 10**5 + "]" * 10**5 + "}"),
        "",
    ),
    "a dtype that is none": (lambda p: resaved(p, network=layers(DENSE).replace("float32", "int8")), "int8"),
    "an unknown layer": (
        lambda p: resaved(p, network=layers(DENSE | {"layer": "Conv9D"})),
        r"'Conv9D' is unknown.*custom_layers=\[",
    ),
    "a layer that is a function": (
        lambda p: resaved(p, network=layers(DENSE | {"layer": "load"})),
        "'load' is unknown",
    ),
    "an unknown setting": (
        lambda p: resaved(p, network=layers(DENSE | {"settings": DENSE["settings"] | {"colour": 3}})),
        "colour",
    ),
    "an impossible setting": (
        lambda p: resaved(p, network=layers({"layer": "Dropout", "settings": {"rate": 2.0}, "trainable": True})),
        "Dropout: rate",
    ),
    "no settings": (lambda p: resaved(p, network=layers({"layer": "Dense", "trainable": True})), "settings"),
    "layers that do not chain": (lambda p: resaved(p, network=layers(DENSE, DENSE)), "layer 1 does not fit"),
    "a missing tensor": (lambda p: resaved(p, without("params.0.bias")), "0.bias missing"),
    "a tensor too many": (lambda p: resaved(p, lambda a: a | {"params.1.weight": a["params.0.bias"]}), "1.weight"),
    "a tensor of no kind": (lambda p: resaved(p, lambda a: a | {"momentum": a["params.0.bias"]}), "momentum"),
    "a wrong-shaped tensor": (
        lambda p: resaved(p, lambda a: a | {"params.0.weight": a["params.0.weight"].T.copy()}),
        r"0.weight has shape \(4, 6\), expected \(6, 4\)",
    ),
    "a tensor of another kind": (
        lambda p: resaved(p, lambda a: a | {"params.0.bias": np.zeros(4, "float16")}),
        "0.bias has dtype float16",
    ),
    "infinity": (lambda p: resaved(p, lambda a: a | {"params.0.bias": one_of(np.inf)}), "0.bias has NaN or inf"),
    "minus infinity": (lambda p: resaved(p, lambda a: a | {"params.0.bias": one_of(-np.inf)}), "0.bias has NaN or inf"),
    "NaN": (lambda p: resaved(p, lambda a: a | {"params.0.bias": one_of(np.nan)}), "0.bias has NaN"),
    "a network too large for any memory": (
        lambda p: resaved(p, network=layers(DENSE | {"settings": {"in_features": 2**40, "out_features": 2**40}})),
        "expected .1099511627776, 1099511627776",
    ),
}


@pytest.mark.numpy_only
@pytest.mark.parametrize("kind", UNSOUND)
def test_an_unsound_file_is_refused_by_its_path_and_the_reason(tmp_path, kind):
    spoil, message = UNSOUND[kind]
    path = tmp_path / "net.safetensors"
    initialized("dense").save(path)
    spoil(path)
    with pytest.raises(xn.FormatError, match=rf"(?s)^{path} cannot be loaded: .*{message}"):
        xn.load(path)


@pytest.mark.numpy_only
def test_every_truncation_of_a_file_is_refused(tmp_path):
    path = tmp_path / "net.safetensors"
    initialized("dense").save(path)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(xn.FormatError):
            xn.load(path)


@pytest.mark.numpy_only
def test_ones_own_layer_must_be_passed_and_is_asked_for_by_name(tmp_path):
    path = tmp_path / "net.safetensors"
    initialized("one's own").save(path)
    with pytest.raises(xn.FormatError, match=r"layer 'Scale' is unknown; if it is yours, pass its class in custom_lay"):
        xn.load(path)
    assert isinstance(xn.load(path, custom_layers=[Scale]).layers[1], Scale)


@pytest.mark.numpy_only
def test_a_wrong_argument_of_load_is_not_blamed_on_the_file(tmp_path):
    initialized("dense").save(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="no backend 'nympu'") as caught:
        xn.load(tmp_path / "net.safetensors", backend="nympu")
    assert not isinstance(caught.value, xn.FormatError)


@pytest.mark.numpy_only
def test_loading_what_is_not_there_is_an_os_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        xn.load(tmp_path / "none.safetensors")
    with pytest.raises(IsADirectoryError):
        xn.load(tmp_path)


@pytest.mark.numpy_only
@pytest.mark.parametrize(("network", "name"), [("batch norm", "state.0.var"), ("dropout", "state.1.key")])
def test_statistics_that_a_layer_cannot_have_are_no_sound_file(tmp_path, network, name):
    path = tmp_path / "net.safetensors"
    initialized(network).save(path)
    resaved(path, lambda arrays: arrays | {name: -arrays[name]})
    with pytest.raises(xn.FormatError, match=f"{name} has entries below 0"):
        xn.load(path)


GREEDY = {"in_features": 2**40, "out_features": 2**40}
KERAS = {
    "class_name": "Lambda",
    "module": "os",
    "registered_name": "system",
    "config": {"function": {"class_name": "__lambda__", "config": {"code": "4wEAAA=="}}, "name": "id"},
}
ATTACKS = {  # layers in files that a stranger made, and what the refusal says
    "Keras's Lambda": (KERAS, r"\{'class_name': 'Lambda', .*is not a layer"),
    "Keras's Lambda under a name of ours": (DENSE | KERAS, "Dense has 'class_name', 'config', 'module', 'registered_n"),
    "a module and a function": (DENSE | {"layer": "os.system"}, "layer 'os.system' is unknown"),
    "a dict for a name": (DENSE | {"layer": {"module": "os", "name": "system"}}, "has no name under 'layer'"),
    "a function of the package's": (DENSE | {"layer": "use_backend"}, "layer 'use_backend' is unknown"),
    "the base class": (DENSE | {"layer": "Layer"}, "layer 'Layer' is unknown"),
    "a switch for safety": (DENSE | {"safe_mode": False}, "Dense has 'safe_mode'; expected layer, settings, trainable"),
    "a callable for a setting": (
        DENSE | {"settings": DENSE["settings"] | {"initializer": "builtins.eval"}},
        "initializer must be .*, got 'builtins.eval'",
    ),
    "a setting too many": (DENSE | {"settings": DENSE["settings"] | {"__class__": "os"}}, "__class__"),
    "settings that are none": (DENSE | {"settings": ["os"]}, "settings are"),
    "more than any memory": (DENSE | {"settings": GREEDY}, r"expected .1099511627776, 1099511627776."),
    "more statistics than any memory": (
        {"layer": "BatchNorm", "settings": {"features": 2**40}, "trainable": True},
        "params.0.beta, params.0.gamma, state.0.mean, state.0.var missing",
    ),
    "frozen and not": (DENSE | {"settings": DENSE["settings"] | {"trainable": False}}, "trainable is True"),
    "trainable by a word": (DENSE | {"trainable": "yes"}, "trainable is 'yes', expected true or false"),
    "a nest with settings": ({"layer": "Sequential", "layers": [DENSE], "settings": {}}, "Sequential has 'settings'"),
    "a nest without layers": ({"layer": "Sequential", "layers": None}, "layers are None, expected a list"),
}


@pytest.mark.numpy_only
@pytest.mark.parametrize("kind", ATTACKS)
def test_an_attack_is_refused_by_name_and_takes_no_memory(tmp_path, kind):
    layer, message = ATTACKS[kind]
    path = tmp_path / "net.safetensors"
    initialized("dense").save(path)
    resaved(path, network=layers(layer))
    tracemalloc.start()
    try:
        with pytest.raises(xn.FormatError, match=rf"(?s)^{path} cannot be loaded: .*{message}"):
            xn.load(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


ESCAPE = "\x1b]0;name\x07\x1b[31m\u202e\n"
LONG = {  # what an error could repeat of them: terminals obey some of it, and it may be long
    "a layer's name": DENSE | {"layer": ESCAPE},
    "a setting's name": DENSE | {"settings": DENSE["settings"] | {ESCAPE * 9000: 1}},
    "a setting": DENSE | {"settings": DENSE["settings"] | {"out_features": ESCAPE * 9000}},
    "a setting's parts": DENSE | {"settings": DENSE["settings"] | {"out_features": [[1]] * 9000}},
    "an initializer": DENSE | {"settings": DENSE["settings"] | {"initializer": ESCAPE * 9000}},
    "a key": DENSE | {ESCAPE * 9000: 1},
}


@pytest.mark.numpy_only
@pytest.mark.parametrize("kind", LONG)
def test_a_refusal_is_a_printable_line_and_so_is_its_traceback(tmp_path, kind):
    path = tmp_path / "net.safetensors"
    initialized("dense").save(path)
    resaved(path, network=layers(LONG[kind]))
    with pytest.raises(xn.FormatError) as caught:
        xn.load(path)
    shown = traceback.format_exception_only(caught.value)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()
    assert shown == [f"xpnet.files.safetensors.FormatError: {caught.value}\n"]
    assert caught.value.__suppress_context__  # or the traceback shows what it came from


@pytest.mark.numpy_only
def test_loading_a_network_takes_as_many_calls_as_it_has_layers(tmp_path):
    def calls(count):
        path = tmp_path / "net.safetensors"
        relu = {"layer": "ReLU", "settings": {}, "trainable": True}
        initialized("dense").save(path)
        deep = {"layer": "Sequential", "layers": [relu] * count}
        for _ in range(10):
            deep = {"layer": "Sequential", "layers": [deep, relu]}
        resaved(path, lambda arrays: {}, network=layers(deep))
        seen = Counter()
        sys.setprofile(lambda frame, event, argument: seen.update([event]))
        try:
            xn.load(path)
        finally:
            sys.setprofile(None)
        return seen.total()

    assert calls(400) < 2.2 * calls(200)


@pytest.mark.numpy_only
def test_a_file_that_is_larger_than_the_memory_is_refused(tmp_path, monkeypatch):
    path = tmp_path / "net.safetensors"
    initialized("dense").save(path)

    def empty(*arguments):
        raise MemoryError

    monkeypatch.setattr(container.np, "empty", empty)
    with pytest.raises(xn.FormatError, match="its arrays take 112 bytes, more than there is memory for"):
        xn.load(path)


@pytest.mark.numpy_only
def test_loading_draws_no_numbers(tmp_path, monkeypatch):
    net = initialized("dropout")
    net.save(tmp_path / "net.safetensors")
    monkeypatch.setattr(xn.Dense, "initial_params", None)
    again = xn.load(tmp_path / "net.safetensors")
    assert bits(again.params, again.backend) == bits(net.params, net.backend)


PATHS = [
    lambda net, path: net.save(path),
    lambda net, path: xn.load(path, custom_layers=None),
    lambda net, path: xn.files.save_torch(net, path),
    lambda net, path: xn.files.load_torch(net, path),
    lambda net, path: net.export_onnx(path),
    lambda net, path: xn.Checkpoint(path),
    lambda net, path: xn.CSVLog(path).train_begin(types.SimpleNamespace(step=0)),
]


@pytest.mark.numpy_only
@pytest.mark.parametrize("call", PATHS)
@pytest.mark.parametrize("path", [True, 1, None, 2.0, ["a"]])
def test_what_is_no_path_is_refused_before_a_file_is_touched(call, path):
    """Python's `open` takes a number for a file that is open, and True for standard output."""
    with pytest.raises(TypeError, match=f"must be a path, as str, bytes or os.PathLike, got {re.escape(repr(path))}"):
        call(initialized("dense"), path)
    os.fstat(1)


@pytest.mark.numpy_only
@pytest.mark.parametrize("as_path", [str, os.fsencode, pathlib.Path])
def test_a_path_may_be_text_bytes_or_a_path_of_pathlib(tmp_path, as_path):
    net, path = initialized("dense"), as_path(tmp_path / "a.safetensors")
    for call in [*PATHS[:4], PATHS[-1]]:
        call(net, path)
    assert xn.Checkpoint(path).folder == tmp_path / "a.safetensors"


def train(net):
    y = np.random.default_rng(6).integers(0, net.output_shape((6,))[0], len(X))
    net.fit(X, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(0.01), epochs=3, batch_size=2)
    return bits(net.params | net.state, net.backend)


@pytest.mark.parametrize("seed", [0, 3])
def test_training_goes_on_after_loading_as_if_it_had_not_been_saved(lib, tmp_path, seed):
    net = NETWORKS["dropout"]().initialize(lib.backend, seed=seed)
    for _ in range(2):
        net.save(tmp_path / "net.safetensors")
        again = xn.load(tmp_path / "net.safetensors", lib.name, lib.device)
        assert train(again) == train(net)


@pytest.mark.numpy_only
def test_a_file_without_the_order_of_rows_begins_with_a_new_networks(tmp_path):
    net = NETWORKS["dense"]().initialize(seed=3)
    net.save(tmp_path / "net.safetensors")
    resaved(tmp_path / "net.safetensors", order=None)
    assert xn.load(tmp_path / "net.safetensors").rng.random() == NETWORKS["dense"]().initialize(seed=0).rng.random()


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    "change",
    [
        {"bit_generator": "MT19937"},
        {"state": {"state": -1, "inc": 1}},
        {"state": {"state": 2**128, "inc": 1}},
        {"state": {"state": 1}},
        {"state": 1},
        {"has_uint32": True},
        {"has_uint32": 2},
        {"uinteger": 2**32},
        {"uinteger": 1.0},
        {"key": 1},
    ],
)
def test_a_forged_order_of_rows_is_no_sound_file(tmp_path, change):
    path, net = tmp_path / "net.safetensors", NETWORKS["dense"]().initialize(seed=3)
    net.save(path)
    resaved(path, order=json.dumps(net.rng.bit_generator.state | change))
    with pytest.raises(xn.FormatError, match="its order"):
        xn.load(path)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (Scale, TypeError, r"custom_layers is a list of classes: give \[Scale\]"),
        (7, TypeError, "custom_layers must be a list of classes of layers, got 7"),
        (["Scale"], TypeError, "custom_layers are classes of layers, got 'Scale'"),
        ([dict], TypeError, "custom_layers are classes of layers"),
        ([Scale(3)], TypeError, "custom_layers are classes of layers"),
        ([type("Dense", (Scale,), {})], ValueError, "custom_layers has a Dense besides xpnet's"),
        ([type("Sequential", (Scale,), {})], ValueError, "a Sequential besides xpnet's"),
        ([Scale, type("Scale", (Scale,), {})], ValueError, "a Scale besides"),
    ],
)
def test_custom_layers_that_are_none_or_ambiguous_are_not_blamed_on_the_file(tmp_path, given, error, message):
    initialized("dense").save(tmp_path / "net.safetensors")
    with pytest.raises(error, match=message) as caught:
        xn.load(tmp_path / "net.safetensors", custom_layers=given)
    assert not isinstance(caught.value, xn.FormatError)


class Own(xn.Dense):
    """Other arrays than its base's."""

    def initial_params(self, rng):
        return super().initial_params(rng) | {"more": np.ones(2)}


class Half(xn.Dense):
    """Its base's arrays."""

    def forward(self, x, training=False):
        return super().forward(0.5 * x, training)


@pytest.mark.numpy_only
def test_a_subclass_has_its_own_shapes(tmp_path):
    net = xn.Sequential(Own(6, 4), Half(4, 3)).initialize()
    net.save(tmp_path / "net.safetensors")
    again = xn.load(tmp_path / "net.safetensors", custom_layers=[Own, Half])
    assert bits(again.params, again.backend) == bits(net.params, net.backend)
    assert Half.param_shapes is xn.Dense.param_shapes


@pytest.mark.numpy_only
@pytest.mark.parametrize("network", NETWORKS)
def test_the_shapes_that_a_layer_tells_are_those_of_its_arrays(network):
    net = NETWORKS[network]()
    net.initialize()
    assert net.param_shapes() == {k: a.shape for k, a in net.params.items()}
    assert net.state_shapes() == {k: a.shape for k, a in net.state.items()}


WATCHED = """
import pathlib, sys
import xpnet as xn
from xpnet.files import load_torch
xn.load(sys.argv[1])
good = load_torch(xn.Sequential(xn.Dense(6, 4)).initialize(), sys.argv[2])
seen, refused = [], 0
events = (
    "import", "exec", "compile", "marshal.loads", "pickle.find_class", "code.__new__", "ctypes.dlopen", "os.exec",
    "os.fork", "os.posix_spawn", "os.spawn", "os.system", "subprocess.Popen", "socket.__new__", "os.rename", "os.remove"
)
sys.addaudithook(lambda event, arguments: seen.append((event, arguments)) if event in events else None)
for path in sorted(pathlib.Path(sys.argv[3]).iterdir()):
    for load in (xn.load, lambda path: load_torch(good, path)):
        try:
            load(path)
        except xn.FormatError:
            refused += 1
xn.load(sys.argv[1])
load_torch(good, sys.argv[2])
found = list(seen)
exec("1")  # and the hook does see
print(refused, found, len(seen) > len(found))
"""


@pytest.mark.numpy_only
def test_loading_imports_nothing_and_starts_no_process(tmp_path):
    net = initialized("dense")
    net.save(tmp_path / "net.safetensors")
    save_torch(net, tmp_path / "torch.safetensors")
    folder = tmp_path / "unsound"
    folder.mkdir()
    for i, kind in enumerate(UNSOUND | ATTACKS):
        path = folder / f"{i}.safetensors"
        net.save(path)
        if kind in UNSOUND:
            UNSOUND[kind][0](path)
        else:
            resaved(path, network=layers(ATTACKS[kind][0]))
    command = [sys.executable, "-c", WATCHED, tmp_path / "net.safetensors", tmp_path / "torch.safetensors", folder]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert (done.stderr, done.stdout) == ("", f"{2 * len(UNSOUND | ATTACKS)} [] True\n")


@pytest.mark.numpy_only
def test_loading_takes_the_file_and_little_more_memory(tmp_path):
    net = xn.Sequential(*(xn.Dense(1000, 1000) for _ in range(8))).initialize()
    path = tmp_path / "net.safetensors"
    tracemalloc.start()
    try:
        net.save(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
        again = xn.load(path)
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size + 2**20
    finally:
        tracemalloc.stop()
    assert again.parameter_count == net.parameter_count


@pytest.mark.numpy_only
def test_statistics_do_not_keep_the_files_memory_once_the_parameters_are_trained(tmp_path):
    initialized("dropout").save(tmp_path / "net.safetensors")
    state = xn.load(tmp_path / "net.safetensors").state
    assert len(state) == 2
    for a in state.values():
        while a.base is not None:
            a = a.base
        assert a.nbytes == 8


# --- files of before --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", GOLDEN)
def test_a_golden_file_loads_to_exact_values(lib, name):
    expected = GOLDEN[name]()
    net = xn.load(FOLDER / f"{name}.safetensors", lib.name, lib.device)
    assert (repr(net), leaves(net), net.dtype) == (repr(expected), leaves(expected), expected.dtype)
    assert bits(net.params, lib.backend) == bits(expected.params, expected.backend)
    assert bits(net.state, lib.backend) == bits(expected.state, expected.backend)
    x = numbers(0, (3, *net.input_shape))
    lib.agrees(net.predict(x), expected.predict(x), rtol=1e-6 if net.dtype == "float32" else 1e-12)


@pytest.mark.numpy_only
def test_every_golden_file_is_read_and_a_file_of_today_is_as_its_version_says(tmp_path):
    assert {path.stem for path in FOLDER.glob("[0-9]*.safetensors")} == GOLDEN.keys()
    for name in GOLDEN:
        if name.startswith(f"{VERSION}-"):
            GOLDEN[name]().save(tmp_path / name)
            assert (tmp_path / name).read_bytes() == (FOLDER / f"{name}.safetensors").read_bytes(), name


# --- saving, whole or not at all --------------------------------------------------------------------------------------


@pytest.mark.numpy_only
def test_saving_where_it_cannot_is_an_os_error(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(FileNotFoundError):
        initialized("dense").save(tmp_path / "none" / "net.safetensors")
    with pytest.raises(IsADirectoryError):
        initialized("dense").save(tmp_path / "folder")
    assert os.listdir(tmp_path) == ["folder"]


def refuse(*arguments):
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupt(*arguments):
    raise KeyboardInterrupt


@pytest.mark.numpy_only
@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
@pytest.mark.parametrize(("failure", "error"), [(refuse, OSError), (interrupt, KeyboardInterrupt)])
def test_a_failed_save_leaves_the_file_before_and_no_other(tmp_path, monkeypatch, call, failure, error):
    path = tmp_path / "net.safetensors"
    initialized("dense").save(path)
    before = path.read_bytes()
    monkeypatch.setattr(os, call, failure)
    with pytest.raises(error):
        initialized("batch norm").save(path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == ["net.safetensors"]
    assert path.read_bytes() == before


@pytest.mark.numpy_only
def test_a_network_that_cannot_be_saved_touches_no_file(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(RuntimeError, match="initialize"):
        xn.Sequential(xn.Dense(6, 4)).save(path)
    with pytest.raises(TypeError, match="Scale"):  # whose setting is nothing that JSON knows
        xn.Sequential(Scale(6, start=np.float32(0.5))).initialize().save(path)
    assert os.listdir(tmp_path) == []


@pytest.mark.numpy_only
def test_saving_again_replaces_the_file(tmp_path):
    path = tmp_path / "net.safetensors"
    initialized("activations").save(path)
    initialized("dense").save(path)
    assert repr(xn.load(path)) == repr(NETWORKS["dense"]())
    assert os.listdir(tmp_path) == ["net.safetensors"]


@pytest.mark.numpy_only
def test_a_file_name_in_the_current_folder_will_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    initialized("dense").save("net.safetensors")
    assert xn.load("net.safetensors").parameter_count == 28


@pytest.mark.numpy_only
@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such file modes")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0o000, 0o666)])
def test_a_files_mode_is_what_the_umask_leaves(tmp_path, mask, mode):
    old = os.umask(mask)
    try:
        initialized("dense").save(tmp_path / "net.safetensors")
        assert os.umask(mask) == mask  # and that is as it was
    finally:
        os.umask(old)
    assert stat.S_IMODE((tmp_path / "net.safetensors").stat().st_mode) == mode
