"""Bad input and extreme numbers: errors that say who, what came and what was expected, and a network left as it was."""

import contextlib
import copy
import importlib
import math
import pickle

import numpy as np
import pandas as pd
import pytest

import xpnet as xn
from support.cases import FEATURES, LAYERS, Foreign, Scale, ready
from support.networks import snapshot

ROWS, OUTPUTS = 10, 3
NAN, INF = math.nan, math.inf


def network(backend, dtype="float32"):
    return xn.Sequential(xn.Dense(4, 5), xn.BatchNorm(5), xn.Tanh(), xn.Dense(5, 3)).initialize(backend, dtype)


@pytest.fixture
def net(lib):
    return network(lib.backend)


def good(rows=ROWS):
    rng = np.random.default_rng(0)
    return rng.normal(size=(rows, FEATURES)), np.arange(rows) % OUTPUTS


@contextlib.contextmanager
def refused(net, error, *words):
    """Exactly this error, all of these words in its message, and the network as it was, bit for bit."""
    before = snapshot(net)
    with pytest.raises(error) as caught:
        yield
    assert caught.type is error
    assert [word for word in words if word not in str(caught.value)] == []
    assert snapshot(net) == before


def fit(net, x, y, loss=None, optimizer=None, **options):
    return net.fit(x, y, loss=loss or xn.SoftmaxCrossEntropy(), optimizer=optimizer or xn.SGD(), **options)


HOT = np.eye(OUTPUTS)[good()[1]]
CALLS = {
    "fit: ": fit,
    "fit: validation data: ": lambda net, x, y, loss=None: fit(net, good()[0], HOT, loss, validation_data=(x, y)),
    "evaluate: ": lambda net, x, y, loss=None: net.evaluate(x, y, loss or xn.SoftmaxCrossEntropy()),
    "value_and_grad: ": lambda net, x, y, loss=None: net.value_and_grad(x, y, loss or xn.SoftmaxCrossEntropy()),
    "predict: ": lambda net, x, y, loss=None: net.predict(x),
}
WITH_TARGET = [call for call in CALLS if call != "predict: "]


def with_entry(value, a=None):
    a = good()[0] if a is None else np.array(a, float)
    a[2, 1] = value
    return a


def with_object(entry, a):
    a = a.astype(object)
    a[2, 1] = entry
    return a


# --- x ----------------------------------------------------------------------------------------------------------------

BAD_VALUES = {
    "NaN": (lambda x: with_entry(NAN), "x has 1 NaN or infinite", "row 2, column 1"),
    "inf": (lambda x: with_entry(INF), "x has 1 NaN or infinite", "row 2, column 1"),
    "-inf": (lambda x: with_entry(-INF), "x has 1 NaN or infinite", "row 2, column 1"),
    "too large for float32": (lambda x: with_entry(1e300), "infinite", "float32", "row 2, column 1"),
    "another width": (lambda x: np.ones((ROWS, 5)), "x has shape (10, 5)", "expected (n, 4)"),
    "images": (lambda x: x.reshape(-1, 2, 2), "x has shape (10, 2, 2)", "expected (n, 4); give x.reshape(len(x), -1)"),
    "one row, flat": (lambda x: x[0], "x has shape (4,)", "expected (n, 4)", "x[None, :]"),
    "one column, flat": (lambda x: x[:, 0], "x has shape (10,)", "expected (n, 4)"),
    "three axes": (lambda x: x[..., None], "x has shape (10, 4, 1)", "expected (n, 4); give x.reshape(len(x), -1)"),
    "a number": (lambda x: np.asarray(3.0), "x has shape ()", "expected (n, 4)"),
    "empty": (lambda x: x[:0], "x has shape (0, 4)", "at least one"),
}

BAD_TYPES = {
    "float16": (lambda a: a.astype(np.float16), "dtype float16"),
    "long double": (lambda a: a.astype(np.longdouble), f"dtype {np.dtype(np.longdouble).name}"),
    "complex64": (lambda a: a.astype(np.complex64), "dtype complex64"),
    "complex128": (lambda a: a.astype(complex), "dtype complex128"),
    "objects": (lambda a: a.astype(object), "dtype object, with nothing but numbers in it; expected"),
    "objects, one a name": (lambda a: with_object("a", a), "dtype object, with 'a' in it; expected float32"),
    "objects, one missing": (lambda a: with_object(pd.NA, a), "dtype object, with <NA> in it; expected float32"),
    "strings": (lambda a: a.astype(str), "dtype str"),
    "nothing": (lambda a: np.full(a.shape, None), "dtype object, with None in it"),
    "a table": (lambda a: np.rec.fromarrays(a.T), "dtype record"),
    "another library's": (Foreign, "support.cases.Foreign", "its own arrays and NumPy's", "net.to("),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("own", [False, True], ids=["from NumPy", "own"])
@pytest.mark.parametrize("bad", BAD_VALUES)
def test_x_of_a_wrong_shape_or_not_finite_is_refused(lib, net, bad, own, call):
    make, *words = BAD_VALUES[bad]
    x, y = good()
    x = make(x)
    with refused(net, ValueError, call, *words):
        CALLS[call](net, lib.asarray(x) if own else x, y)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("bad", BAD_TYPES)
def test_x_that_is_not_of_real_numbers_is_refused(net, bad, call):
    make, *words = BAD_TYPES[bad]
    x, y = good()
    with refused(net, TypeError, f"{call}x", *words):
        CALLS[call](net, make(x), y)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("bad", "came"),
    [(None, "None"), (iter([good()]), "a list_iterator"), ({"a": good()[0]}, "a dict")],
    ids=["None", "batches", "by name"],
)
def test_what_is_no_array_at_all_is_told_as_what_it_is(net, call, bad, came):
    with refused(net, TypeError, f"{call}x is {came}, expected an array, a list of rows or a pandas frame"):
        CALLS[call](net, bad, good()[1])


@pytest.mark.parametrize("call", WITH_TARGET)
@pytest.mark.parametrize("bad", [None, {"a": 1}, [[1.0], [1.0, 2.0]]], ids=["None", "by name", "ragged"])
def test_a_y_that_is_no_array_at_all_is_told_as_what_it_is(net, call, bad):
    error, words = (ValueError, "is no array") if isinstance(bad, list) else (TypeError, "expected an array, a list of")
    with refused(net, error, f"{call}y", words):
        CALLS[call](net, good()[0], bad)


@pytest.mark.parametrize("call", CALLS)
def test_lists_that_are_not_of_one_length_are_no_array(net, call):
    with refused(net, ValueError, f"{call}x is no array", "inhomogeneous"):
        CALLS[call](net, [[1.0, 2.0, 3.0, 4.0], [1.0]], [0, 1])


@pytest.mark.parametrize("loss", [xn.SoftmaxCrossEntropy(), xn.BinaryCrossEntropyWithLogits()], ids=repr)
@pytest.mark.parametrize("shape", [(ROWS,), (ROWS, 1), (ROWS, 3)], ids=str)
@pytest.mark.parametrize(("kind", "name"), [(str, "str"), (object, "object, with 'a' in it"), ("S2", "bytes")])
def test_names_of_classes_are_refused_with_the_way_to_integers(net, loss, shape, kind, name):
    x, _ = good()
    words = f"the target has dtype {name};", "integers or booleans", "names, y = np.unique(y, return_inverse=True)"
    with refused(net, TypeError, type(loss).__name__, *words):
        fit(net, x, np.full(shape, "a").astype(kind), loss)


@pytest.mark.parametrize("call", CALLS)
def test_the_backends_own_complex_arrays_are_refused(lib, net, call):
    x, y = good()
    x = lib.xp.asarray(x.astype(complex), dtype=lib.xp.complex64, device=lib.backend.device)
    with refused(net, TypeError, f"{call}x has dtype complex64", "expected float32, float64"):
        CALLS[call](net, x, y)


@pytest.mark.torch_only
@pytest.mark.parametrize("layout", ["to_sparse", "to_mkldnn"])
def test_pytorchs_sparse_tensors_are_refused_with_the_way_to_a_dense_one(lib, net, layout):
    x, y = good()
    rows = getattr(lib.asarray(HOT, "float32"), layout)()
    for call in CALLS:
        with refused(net, TypeError, f"{call}x has the layout torch.", "expected a dense tensor: .to_dense()"):
            CALLS[call](net, getattr(lib.asarray(x, "float32"), layout)(), y)
    with refused(net, TypeError, "SoftmaxCrossEntropy: the target has the layout torch."):
        fit(net, x, rows)


@pytest.mark.torch_only
def test_pytorchs_tensors_without_numbers_are_refused(lib, net):
    x, y = good()
    bare = lambda a: lib.asarray(a, "float32").to("meta")  # noqa: E731
    for call in CALLS:
        with refused(net, TypeError, f'{call}x is a tensor on the device "meta"', 'make it on "cpu"'):
            CALLS[call](net, bare(x), y)
    with refused(net, TypeError, 'SoftmaxCrossEntropy: the target is a tensor on the device "meta"'):
        fit(net, x, bare(HOT))


def test_a_numpy_network_refuses_the_array_of_another_library(lib):
    net, x = network("numpy"), good()[0]
    stranger = Foreign(x) if lib.name == "numpy" else lib.asarray(x)
    with refused(net, TypeError, f"predict: x is a {type(stranger).__module__}", "net.to("):
        net.predict(stranger)
    with refused(net, TypeError, "MeanSquaredError: the target is a", "net.to("):
        net.evaluate(x, stranger, xn.MeanSquaredError())


KINDS = ["bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", ">i2", ">f4", ">f8"]


@pytest.mark.parametrize("kind", KINDS)
def test_whole_number_boolean_and_big_endian_x_and_y_are_cast(lib, net, kind):
    rng = np.random.default_rng(1)
    x, y = rng.integers(2, size=(ROWS, 4)), rng.integers(2, size=ROWS)
    rows = np.eye(3)[y]
    lib.agrees(net.predict(x.astype(kind)), lib.to_numpy(net.predict(x.astype(float))))
    for loss, target in [
        (xn.SoftmaxCrossEntropy(), y),
        (xn.SoftmaxCrossEntropy(), rows),
        (xn.MeanSquaredError(), rows),
        (xn.BinaryCrossEntropyWithLogits(), rows),
    ]:
        expected = net.evaluate(x.astype(float), target.astype(float), loss)
        assert net.evaluate(x.astype(kind), target.astype(kind), loss) == expected
        twin = network(lib.backend)
        fit(twin, x.astype(kind), target.astype(kind), loss)
        other = network(lib.backend)
        fit(other, x.astype(float), target.astype(float), loss)
        assert snapshot(twin) == snapshot(other)


def test_a_flat_x_for_one_feature_is_told_to_become_a_column():
    net = xn.Sequential(xn.Dense(1, 1)).initialize()
    with refused(net, ValueError, "fit: x has shape (10,), expected (n, 1); for a single feature give x[:, None]"):
        fit(net, np.arange(10.0), np.arange(10.0), xn.MeanSquaredError())


@pytest.mark.parametrize("y", [np.arange(ROWS) % 2, np.arange(ROWS) + 1, np.linspace(0, 1, ROWS)])
def test_a_loss_of_classes_over_one_output_names_the_losses_for_it(y):
    net = xn.Sequential(xn.Dense(4, 1)).initialize()
    words = "an output for each class", "has 1", "BinaryCrossEntropyWithLogits()", "MeanSquaredError()"
    with refused(net, ValueError, "SoftmaxCrossEntropy: ", *words):
        fit(net, good()[0], y)


# --- y ----------------------------------------------------------------------------------------------------------------

CLASS, BINARY, SQUARED = xn.SoftmaxCrossEntropy, xn.BinaryCrossEntropyWithLogits, xn.MeanSquaredError
BAD_TARGETS = {
    "class too large": (CLASS, np.arange(ROWS) % 4, "labels run from 0 to 3", "3 outputs take 0 to 2"),
    "class too large, a column": (CLASS, np.arange(ROWS)[:, None] % 4, "labels run from 0 to 3"),
    "class negative": (CLASS, np.arange(ROWS) % 3 - 1, "labels run from -1 to 1", "0 to 2"),
    "class a fraction": (CLASS, np.arange(ROWS) % 3 / 2, "whole numbers 0 to 2", "fractions or NaN"),
    "class NaN": (CLASS, np.where(np.arange(ROWS) == 3, NAN, 1.0), "whole numbers 0 to 2", "fractions or NaN"),
    "class infinite": (CLASS, np.where(np.arange(ROWS) == 3, INF, 1.0), "whole numbers 0 to 2"),
    "class, for yes or no": (BINARY, np.arange(ROWS) % 4, "labels run from 0 to 3", "3 outputs take 0 to 2"),
    "one-hot of another width": (CLASS, np.eye(4)[np.arange(ROWS) % 4], "shape (10, 4)", "prediction's (10, 3)"),
    "one-hot too deep": (CLASS, HOT[..., None], "shape (10, 3, 1)", "prediction's (10, 3)"),
    "one-hot with two": (CLASS, with_entry(1.0, np.eye(3)[np.zeros(ROWS, int)]), "add up to 1"),
    "one-hot with none": (CLASS, np.zeros((ROWS, 3)), "add up to 1"),
    "one-hot above 1": (CLASS, with_entry(1.5, HOT), "[0, 1]"),
    "one-hot below 0": (CLASS, np.tile([1.5, -0.5, 0.0], (ROWS, 1)), "[0, 1]"),
    "one-hot NaN": (CLASS, with_entry(NAN, HOT), "NaN or infinite"),
    "yes or no above 1": (BINARY, with_entry(2.0, HOT), "[0, 1]"),
    "yes or no NaN": (BINARY, with_entry(NAN, HOT), "NaN or infinite"),
    "value NaN": (SQUARED, with_entry(NAN, HOT), "NaN or infinite"),
    "value infinite": (SQUARED, with_entry(-INF, HOT), "NaN or infinite"),
    "value too large for float32": (SQUARED, with_entry(1e300, HOT), "NaN or infinite"),
    "values flat": (SQUARED, HOT[:, 0], "shape (10,)", "(10, 3); give the last layer 1", "SoftmaxCrossEntropy()"),
    "values of another width": (SQUARED, HOT[:, :2], "shape (10, 2)", "prediction's (10, 3)"),
    "values that would broadcast": (SQUARED, HOT[:, :1], "shape (10, 1)", "prediction's (10, 3)"),
}


def itself(net, x, y, loss):
    return loss(net.predict(x), y)


@pytest.mark.parametrize("call", CALLS)
def test_masked_entries_are_refused(lib, net, call):
    x, y = good()
    with refused(net, ValueError, call + "x has masked entries", "fill them"):
        CALLS[call](net, np.ma.masked_greater(x, 1.0), y)
    CALLS[call](net, np.ma.masked_array(x), y)


@pytest.mark.parametrize("call", WITH_TARGET)
def test_masked_targets_are_refused(lib, net, call):
    x, y = good()
    with refused(net, ValueError, "the target has masked entries", "drop those rows"):
        CALLS[call](net, x, np.ma.masked_equal(y, 1))


@pytest.mark.parametrize("kind", ["int64", "uint64"])
def test_integers_beyond_32_bits_are_not_wrapped_around(lib, net, kind):
    with contextlib.ExitStack() as stack:
        if lib.name == "jax":
            stack.enter_context(importlib.import_module("jax").enable_x64(False))
        x = np.array([[2**40 + 1, 1, 2, 3], [4, 2**32, 5, 6]], kind)
        y = net.predict(x)
        np.testing.assert_array_equal(net.backend.to_numpy(y), net.backend.to_numpy(net.predict(x.astype("float32"))))
        with refused(net, ValueError, "class labels run from", str(2**32)):
            fit(net, good(2)[0], np.array([0, 2**32], kind))


@pytest.mark.parametrize("call", [*WITH_TARGET, "the loss itself"])
@pytest.mark.parametrize("bad", BAD_TARGETS)
def test_targets_that_the_loss_cannot_mean_are_refused(net, bad, call):
    loss, y, *words = BAD_TARGETS[bad]
    with refused(net, ValueError, f"{loss.__name__}: ", *words):
        CALLS.get(call, itself)(net, good()[0], y, loss())


@pytest.mark.parametrize("call", [*WITH_TARGET, "the loss itself"])
@pytest.mark.parametrize("loss", [CLASS, BINARY, SQUARED])
@pytest.mark.parametrize("bad", BAD_TYPES)
def test_targets_that_are_not_real_numbers_are_refused(net, bad, loss, call):
    make, *words = BAD_TYPES[bad]
    with refused(net, TypeError, f"{loss.__name__}: the target", *words):
        CALLS.get(call, itself)(net, good()[0], make(HOT), loss())


@pytest.mark.parametrize("call", WITH_TARGET)
@pytest.mark.parametrize(
    ("y", "came"),
    [(np.zeros(9), "9 rows"), (np.zeros(11), "11 rows"), ([], "0 rows"), (3, "no rows")],
)
def test_x_and_y_of_different_lengths_are_refused(net, call, y, came):
    with refused(net, ValueError, f"{call}x has 10 rows", came):
        CALLS[call](net, good()[0], y)


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rows", "batch_size"), [(1, 32), (1, None), (9, 4), (6, 1)])
def test_fit_refuses_a_batch_of_one_for_batch_norm_before_the_first_step(net, rows, batch_size):
    with refused(net, ValueError, f"fit: {rows} rows", "batch of 1", "layer 1, BatchNorm(5)", "at least 2"):
        fit(net, *good(rows), batch_size=batch_size)


def test_a_gradient_of_one_row_through_batch_norm_is_refused(net):
    with refused(net, ValueError, "BatchNorm(5)", "batch of 1", "at least 2 rows"):
        net.value_and_grad(*good(1), xn.SoftmaxCrossEntropy())


def test_one_row_will_do_for_inference_and_for_frozen_batch_norm(net):
    assert tuple(net.predict(good(1)[0]).shape) == (1, 3)
    assert math.isfinite(net.evaluate(*good(1), xn.SoftmaxCrossEntropy())["loss"])
    net.layers[1].trainable = False
    assert len(fit(net, *good(9), batch_size=4)["loss"]) == 1


@pytest.mark.parametrize("count", [0, -1, 2.5, True, "8", NAN])
def test_a_batch_size_or_number_of_epochs_that_is_no_count_is_refused(net, count):
    x, y = good()
    words = "must be a whole number of at least 1", f"got {count!r}"
    with refused(net, ValueError, "fit: epochs", *words):
        fit(net, x, y, epochs=count)
    with refused(net, ValueError, "fit: batch_size", *words):
        fit(net, x, y, batch_size=count)
    with refused(net, ValueError, "batch_size", *words):
        net.predict(x, batch_size=count)
    with refused(net, ValueError, "batch_size", *words):
        net.evaluate(x, y, xn.SoftmaxCrossEntropy(), batch_size=count)


FLAGS = {
    "fit: shuffle": lambda net, value: fit(net, *good(), shuffle=value),
    "fit: progress": lambda net, value: fit(net, *good(), progress=value),
    "fit: resume": lambda net, value: fit(net, *good(), resume=value),
    "EarlyStopping: restore_best": lambda net, value: xn.EarlyStopping(restore_best=value),
    "CSVLog: append": lambda net, value: xn.CSVLog("log.csv", append=value),
    "Adam: bias_correction": lambda net, value: xn.Adam(bias_correction=value),
    "AdamW: bias_correction": lambda net, value: xn.AdamW(bias_correction=value),
    "check_gradients: training": lambda net, value: xn.check_gradients(net, good()[0], training=value),
}


@pytest.mark.parametrize("value", ["False", 0, None, np.zeros(1, dtype=bool)], ids=repr)
@pytest.mark.parametrize("name", FLAGS)
def test_what_is_neither_true_nor_false_is_refused_where_one_of_them_is_meant(net, name, value):
    with refused(net, ValueError, f"{name} must be True or False, got {value!r}"):
        FLAGS[name](net, value)


# --- networks and layers ----------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
@pytest.mark.parametrize("made", [lambda t: xn.Dense(4, 3, t), lambda t: xn.BatchNorm(4, trainable=t)])
def test_a_word_where_trainable_stands_is_no_activation(made):
    with pytest.raises(ValueError, match=r": trainable must be True or False, got 'relu': an activation is a layer"):
        made("relu")
    with pytest.raises(ValueError, match=r": trainable must be True or False, got 1$"):
        made(1)
    layer = made(np.False_)
    assert layer.trainable is False
    for thing in (layer, xn.Sequential(layer)):
        with pytest.raises(ValueError, match=rf"^{type(layer).__name__}: trainable must be True or False, got 'no'"):
            thing.trainable = "no"
    assert layer.trainable is False


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: xn.Sequential(xn.Dense(4, 5), xn.Dense(6, 3)), ValueError, ["layer 1", "Dense(6, 3)", "6", "5"]),
        (lambda: xn.Sequential(xn.Dense(4, 5), xn.Tanh(), xn.BatchNorm(4)), ValueError, ["layer 2", "BatchNorm(4)"]),
        (lambda: xn.Sequential(xn.BatchNorm(4), xn.Sequential(xn.Dense(5, 3))), ValueError, ["layer 1", "Dense(5, 3)"]),
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


@pytest.mark.parametrize("dtype", ["float16", np.float16, "int32", "complex64", "real"])
def test_parameters_of_another_dtype_are_refused(lib, net, dtype):
    with refused(net, ValueError, "dtype", '"float32" or "float64"', repr(dtype)):
        net.initialize(lib.backend, dtype)
    with refused(net, ValueError, "dtype", '"float32" or "float64"', repr(dtype)):
        net.to(lib.backend, dtype=dtype)


def test_an_unknown_backend_is_refused_and_the_known_ones_are_named(net):
    unknown = "no backend 'tensorflow'", "numpy", "cupy", "torch", "jax", "auto"
    for call in [xn.get_backend, xn.use_backend, net.initialize, net.to]:
        with refused(net, ValueError, *unknown):
            call("tensorflow")
    assert xn.Sequential(xn.Dense(2, 2)).initialize().backend is xn.get_backend("numpy")


def entry(shape, value):
    a = np.zeros(shape)
    a.flat[-1] = value
    return a


BAD_ARRAYS = {
    "missing": (lambda old, key: {k: a for k, a in old.items() if k != key}, ValueError, "missing"),
    "unknown": (lambda old, key: old | {"9.weight": old[key]}, ValueError, "no 9.weight"),
    "shape": (lambda old, key: old | {key: np.zeros((7, 2))}, ValueError, "has shape (7, 2), expected"),
    "broadcastable": (lambda old, key: old | {key: np.zeros(1)}, ValueError, "has shape (1,), expected"),
    "NaN": (lambda old, key: old | {key: entry(old[key].shape, NAN)}, ValueError, "NaN or infinite"),
    "inf": (lambda old, key: old | {key: entry(old[key].shape, INF)}, ValueError, "NaN or infinite"),
    "too large": (lambda old, key: old | {key: entry(old[key].shape, 1e300)}, ValueError, "NaN or infinite"),
    "float16": (lambda old, key: old | {key: old[key].astype(np.float16)}, TypeError, "float16"),
    "strings": (lambda old, key: old | {key: old[key].astype(str)}, TypeError, "dtype str"),
    "a list": (lambda old, key: list(old), TypeError, "list"),
}


@pytest.mark.parametrize("bad", BAD_ARRAYS)
@pytest.mark.parametrize(("what", "key"), [("params", "3.weight"), ("state", "1.var")])
def test_set_params_and_set_state_take_all_or_nothing(lib, net, what, key, bad):
    make, error, word = BAD_ARRAYS[bad]
    fresh = {name: lib.to_numpy(a) + 1 for name, a in getattr(net, what).items()}
    named = [] if bad in ("unknown", "a list") else [key]
    with refused(net, error, f"set_{what}", word, *named):
        getattr(net, f"set_{what}")(make(fresh, key))


WRITES = {
    "an entry": lambda arrays, name, a: arrays.__setitem__(name, a),
    "del": lambda arrays, name, a: arrays.__delitem__(name),
    "update": lambda arrays, name, a: arrays.update({name: a}),
    "|=": lambda arrays, name, a: arrays.__ior__({name: a}),
    "setdefault": lambda arrays, name, a: arrays.setdefault("mine", a),
    "pop": lambda arrays, name, a: arrays.pop(name),
    "popitem": lambda arrays, name, a: arrays.popitem(),
    "clear": lambda arrays, name, a: arrays.clear(),
}
COPIES = {
    "itself": lambda net: net,
    "clone": lambda net: net.clone(),
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda net: pickle.loads(pickle.dumps(net)),
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize(("what", "name"), [("params", "0.weight"), ("state", "1.var")])
def test_the_dicts_of_a_networks_arrays_are_to_read_and_say_how_to_write(net, what, name, write):
    arrays = getattr(net, what)
    with refused(net, TypeError, f"net.set_{what}(net.{what} | {{name: array}})"):
        WRITES[write](arrays, name, arrays[name] + 1)
    getattr(net, f"set_{what}")(arrays | {name: arrays[name] + 1})
    assert type(arrays | {}) is type(arrays.copy()) is type(copy.deepcopy(arrays)) is dict


@pytest.mark.parametrize("copied", COPIES)
def test_writing_to_a_layer_of_a_network_takes_effect(lib, net, copied):
    before, other = snapshot(net), COPIES[copied](net)
    norm, x = other.layers[1], np.ones((1, 4))
    norm.params["beta"] = norm.params["beta"] + 1.0
    norm.params |= {"gamma": norm.params["gamma"] * 0.0}
    norm.state = {"mean": norm.state["mean"], "var": norm.state["var"] + 1.0}
    changed = xn.Sequential(*other.layers[:2]).predict(x)
    np.testing.assert_array_equal(lib.to_numpy(changed), lib.to_numpy(other.params["1.beta"])[None])
    assert (snapshot(net) == before) is (other is not net)


WRONG_ARRAYS = {
    "shape": lambda lib, a: a[:-1, ...],
    "broadcastable": lambda lib, a: a[:1, ...],
    "dtype": lambda lib, a: lib.asarray(lib.to_numpy(a), "float64"),
    "library": lambda lib, a: xn.get_backend("numpy" if lib.name == "array_api_strict" else "array_api_strict").asarray(
        np.zeros(a.shape, np.float32)
    ),
    "a list": lambda lib, a: lib.to_numpy(a).tolist(),
    "a number": lambda lib, a: 1.0,
    "None": lambda lib, a: None,
}


@pytest.mark.parametrize("copied", COPIES)
@pytest.mark.parametrize("wrong", WRONG_ARRAYS)
@pytest.mark.parametrize(("what", "name"), [("params", "gamma"), ("state", "var")])
def test_arrays_that_do_not_fit_are_not_written_to_a_layer_of_a_network(lib, net, what, name, wrong, copied):
    net = COPIES[copied](net)
    layer = net.layers[1]
    arrays = getattr(layer, what)
    bad = WRONG_ARRAYS[wrong](lib, arrays[name])
    for write in (
        lambda: arrays.__setitem__(name, bad),
        lambda: arrays.update({name: bad}),
        lambda: setattr(layer, what, arrays | {name: bad}),
    ):
        with refused(
            net, TypeError, f"{name} of a layer of a network is an array of", "got None" if bad is None else "got a"
        ):
            write()


@pytest.mark.parametrize("write", [*WRITES, "a name too many", "a name missing", "a list"])
def test_a_layer_of_a_network_keeps_its_arrays(net, write):
    layer = net.layers[1]
    new = layer.params["gamma"] + 1
    with refused(net, TypeError):
        if write in ("an entry", "update", "|="):
            WRITES[write](layer.params, "mine", new)
        elif write in WRITES:
            WRITES[write](layer.params, "gamma", new)
        else:
            wrong = {"a name too many": layer.params | {"mine": new}, "a name missing": {"gamma": new}}
            layer.params = wrong.get(write, [new])


@pytest.mark.numpy_only
@pytest.mark.parametrize("write", WRITES)
def test_a_layer_without_arrays_takes_a_whole_dict(write):
    layer = xn.Dense(3, 2)
    with pytest.raises(TypeError, match=r"assign the whole dict, as in layer\.params = "):
        WRITES[write](layer.params, "weight", np.ones((3, 2)))
    layer.params = {"weight": np.ones((3, 2)), "bias": np.ones(2)}
    np.testing.assert_array_equal(layer.forward(np.ones((1, 3)))[0], [[4.0, 4.0]])
    layer.params["bias"] = np.zeros(2, np.float32)  # no network holds it: its arrays are its owner's affair
    np.testing.assert_array_equal(layer.forward(np.ones((1, 3)))[0], [[3.0, 3.0]])


@pytest.mark.jax_only
def test_jax_looks_into_the_dicts_of_arrays(net):
    import jax

    for arrays in (net.params, net.layers[1].params):
        doubled = jax.tree.map(lambda a: 2 * a, arrays)
        assert type(doubled) is dict
        assert doubled.keys() == arrays.keys()
        np.testing.assert_array_equal(doubled[min(arrays)], 2 * arrays[min(arrays)])


BAD_STATISTICS = {
    "1.var": [[-1e-30, 1, 1, 1]],
    "2.key": [[7, -1], [7, 1.5], [7, NAN], [7, INF], [7, 2**31], [-(2**40), 7], [7, -0.5], [7, 1e300]],
}


@pytest.mark.parametrize(("key", "bad"), [(key, bad) for key, all_bad in BAD_STATISTICS.items() for bad in all_bad])
def test_statistics_are_what_their_layer_can_have(lib, key, bad):
    """Variances at least 0, counters whole numbers of at least 0 that fit their dtype."""
    net = xn.Sequential(xn.Dense(3, 4), xn.BatchNorm(4), xn.Dropout(0.5)).initialize(lib.backend)
    state = {name: lib.to_numpy(a) for name, a in net.state.items()}
    with refused(net, ValueError, "set_state", key):
        net.set_state(state | {key: np.array(bad)})
    net.set_state(state | {"1.var": np.zeros(4), "2.key": np.array([2**31 - 1, 0], np.int64)})
    net.set_state(state | {"2.key": [1.0, 2.0]})
    assert lib.to_numpy(net.state["2.key"]).tolist() == [1, 2]


# --- settings ---------------------------------------------------------------------------------------------------------

POSITIVE = 0, -1.0, NAN, INF, "0.1", 1j
NOT_NEGATIVE = -1e-9, NAN, INF, "0.1"
FRACTION = -0.1, 1.0, 1.5, NAN, "0.5", None
COUNT = 0, -1, 2.5, True, "3", None
SETTINGS = [  # what begins the message, how it is set, bad values
    *((f"{o.__name__}: learning_rate", o, (*POSITIVE, None))
      for o in (xn.SGD, xn.Nesterov, xn.Adagrad, xn.RMSprop, xn.Adam, xn.AdamW)),
    *((f"{o.__name__}: momentum", lambda v, o=o: o(momentum=v), FRACTION) for o in (xn.SGD, xn.Nesterov)),
    *((f"{o.__name__}: {beta}", lambda v, o=o, beta=beta: o(**{beta: v}), FRACTION)
      for o in (xn.Adam, xn.AdamW) for beta in ("beta1", "beta2")),
    *((f"{o.__name__}: eps", lambda v, o=o: o(eps=v), (*POSITIVE, None)) for o in (xn.Adagrad, xn.RMSprop, xn.Adam)),
    ("RMSprop: rho", lambda v: xn.RMSprop(rho=v), FRACTION),
    ("Nesterov: clip_value", lambda v: xn.Nesterov(clip_value=v), POSITIVE),
    ("SGD: clip_value", lambda v: xn.SGD(clip_value=v), POSITIVE),
    ("Adam: clip_norm", lambda v: xn.Adam(clip_norm=v), POSITIVE),
    ("SGD: weight_decay", lambda v: xn.SGD(weight_decay=v), NOT_NEGATIVE),
    ("AdamW: weight_decay", lambda v: xn.AdamW(weight_decay=v), NOT_NEGATIVE),
    ("Dense: in_features", lambda v: xn.Dense(v, 3), COUNT),
    ("Dense: out_features", lambda v: xn.Dense(3, v), COUNT),
    ("BatchNorm: features", xn.BatchNorm, COUNT),
    ("BatchNorm: momentum", lambda v: xn.BatchNorm(3, momentum=v), FRACTION),
    ("BatchNorm: eps", lambda v: xn.BatchNorm(3, eps=v), POSITIVE),
    ("Dropout: rate", xn.Dropout, FRACTION),
    ("LeakyReLU: alpha", xn.LeakyReLU, (NAN, INF, "1")),
    ("ELU: alpha", xn.ELU, (NAN, INF, "1")),
    ("Huber: delta", xn.Huber, POSITIVE),
    ("MeanSquaredError: reduction", xn.MeanSquaredError, ("max", None, 1)),
]  # fmt: skip


@pytest.mark.numpy_only
@pytest.mark.parametrize(("who", "build", "values"), SETTINGS, ids=[who for who, *_ in SETTINGS])
def test_a_setting_out_of_its_range_is_refused_when_it_is_made(who, build, values):
    for value in values:
        with pytest.raises(ValueError, match=f"{who}.* must be .*got ") as caught:
            build(value)
        assert str(caught.value).endswith(f"got {value!r}")


@pytest.mark.parametrize("rate", [NAN, -1e-3, INF, "fast", None])
def test_a_schedule_that_returns_no_rate_is_refused_at_its_step(net, rate):
    x, y = good()
    with refused(net, ValueError, "SGD: learning_rate", "schedule at step 0", f"got {rate!r}"):
        fit(net, x, y, optimizer=xn.SGD(lambda step: rate))
    with pytest.raises(ValueError, match="schedule at step 3"):
        fit(net, x, y, optimizer=xn.SGD(lambda step: rate if step == 3 else 0.1), batch_size=5, epochs=4)
    assert all(map(xn.ops.all_finite, (net.params | net.state).values()))


@pytest.mark.parametrize(
    ("what", "wrong"),
    [("loss", "mse"), ("loss", xn.MeanSquaredError), ("loss", abs), ("optimizer", "adam"), ("optimizer", xn.Adam)],
)
def test_a_loss_or_optimizer_that_is_none_is_refused_by_name(net, what, wrong):
    with refused(net, TypeError, what, repr(wrong)):
        fit(net, *good(), **{what: wrong})


@pytest.mark.parametrize("layers", [(), (xn.Tanh(),), (xn.Dense(4, 3, trainable=False), xn.Softmax())], ids=str)
def test_a_network_with_nothing_to_train_is_refused(lib, layers):
    net = xn.Sequential(*layers).initialize(lib.backend)
    x = good()[0]
    with refused(net, ValueError, "fit: ", "no parameters to train", "trainable=True"):
        fit(net, x, np.ones(net.predict(x).shape), xn.MeanSquaredError())


# --- extreme numbers --------------------------------------------------------------------------------------------------

EXTREMES = [("float32", 1e4), ("float32", 1e37), ("float64", 1e4), ("float64", 1e300)]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize(("dtype", "big"), EXTREMES)
@pytest.mark.parametrize("loss", [CLASS, BINARY])
def test_losses_from_logits_are_exact_at_extreme_logits(lib, loss, dtype, big, reduction):
    z = np.array([[big, 0, -big], [-big, big, 0], [0, -big, big], [big, -big, -big]])
    t = np.eye(3)[[0, 0, 1, 0]]
    if loss is CLASS:
        p, total = np.eye(3)[[0, 1, 2, 0]], 4 * big  # rows: 0, 2 big, 2 big, 0
    else:
        p, total = (1 + np.sign(z)) / 2, 4 * big  # the same, and log 2 for each zero
    n = len(z) if reduction == "mean" else 1
    value, gradient = loss(reduction).value_and_grad(lib.asarray(z, dtype), t)
    assert float(value) == pytest.approx(total / n, rel=1e-4)
    np.testing.assert_allclose(lib.to_numpy(gradient), (p - t) / n, rtol=0, atol=np.finfo(dtype).tiny)
    assert value.dtype == gradient.dtype == lib.backend.dtype(dtype)


B = 1e4
LIMITS = {  # y and dx / dy at -1e4, 0 and 1e4
    "sigmoid": ([0, 0.5, 1], [0, 0.25, 0]),
    "tanh": ([-1, 0, 1], [0, 1, 0]),
    "relu": ([0, 0, B], [0, 1, 1]),
    "leaky relu": ([-0.2 * B, 0, B], [0.2, 1, 1]),
    "elu": ([-0.1, 0, B], [0, 1, 1]),
    "softmax": ([0, 0, 1], [0, 0, 0]),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", LIMITS)
def test_activations_take_their_limits_far_out_without_a_warning(lib, name, dtype):
    layer = LAYERS[name]()
    x = np.array([[-B, 0, B]])
    y, cache = layer.forward(lib.asarray(x, dtype), training=True)
    dy = np.array([[0.3, -2.0, 0.7]])
    dx, _ = layer.backward(lib.asarray(dy, dtype), cache)
    for actual, expected in [(y, LIMITS[name][0]), (dx, dy[0] * LIMITS[name][1])]:
        assert actual.dtype == lib.backend.dtype(dtype)
        np.testing.assert_allclose(lib.to_numpy(actual)[0], expected, rtol=1e-6, atol=np.finfo(dtype).tiny)


@pytest.mark.numpy_only
def test_an_initializer_that_is_none_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError, match='Dense: initializer must be "fan_in_uniform", "glorot_uniform" or "he_normal", got'
    ):
        xn.Dense(3, 2, initializer="zeros")


def test_validation_data_that_is_no_pair_is_refused(net):
    x, y = good()
    with refused(net, ValueError, "fit: validation_data must be a pair (x, y)"):
        fit(net, x, y, validation_data=(x,))


def test_moving_to_a_dtype_too_narrow_for_the_parameters_is_refused(lib):
    net = xn.Sequential(xn.Dense(2, 2)).initialize(lib.backend, "float64")
    net.set_params({"0.weight": np.full((2, 2), 1e300), "0.bias": np.zeros(2)})
    with refused(net, ValueError, "0.weight", "NaN or infinite in float32"):
        net.to(lib.backend, dtype="float32")


def test_no_dtype_is_not_numpys_default(lib, net):
    with refused(net, ValueError, "dtype", "got None"):
        net.initialize(lib.backend, None)


def test_a_layer_that_has_no_parameters_yet_says_so(lib):
    x = lib.asarray(np.ones((2, 3)))
    for layer in (xn.Dense(3, 2), xn.BatchNorm(3), xn.Sequential(xn.Dense(3, 2))):
        with pytest.raises(RuntimeError, match=r"a layer has no (weight|mean) yet: call net.initialize"):
            layer.forward(x)
    with pytest.raises(TypeError, match="assign the whole dict"):
        xn.Dense(3, 2).params["weight"] = x
    assert not xn.Dense.params


def test_a_layer_that_is_made_in_a_call_says_so(lib):
    class Holder(Scale):
        def forward(self, x, training=False):
            return xn.Dense(4, 3).forward(x, training)

    with pytest.raises(RuntimeError, match="is to be an attribute of it, alone or in a list"):
        xn.Sequential(xn.Dense(4, 4), Holder(4)).initialize(lib.backend).predict(good()[0])


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("layer", "end"),
    [
        ([xn.ReLU()], r"64, 32\); the layers of a list are given one by one: Sequential\(\*layers\)"),
        (xn.ReLU, r"64, 32\): call the class, ReLU\(\.\.\.\)"),
        ("relu", r"64, 32\)"),
        (max, r"64, 32\)"),
    ],
    ids=["list", "class", "name", "function"],
)
def test_what_is_no_layer_is_refused_with_the_remedy_for_it(layer, end):
    with pytest.raises(TypeError, match=rf"^Sequential: layer 1 is .*, expected a Layer such as Dense\({end}$"):
        xn.Sequential(xn.Dense(4, 3), layer)


@pytest.mark.numpy_only
@pytest.mark.parametrize("name", ["cuda", "cuda:1", "cpu", "mps"])
def test_a_device_given_for_a_backend_is_told_where_it_belongs(net, name):
    with refused(net, ValueError, f"no backend '{name}'", f"that is a device, as in backend='torch', device='{name}'"):
        net.to(name)


@pytest.mark.parametrize("watching", [xn.EarlyStopping(), xn.ReduceOnPlateau("val_accuracy")], ids=repr)
def test_watching_validation_without_any_is_refused_before_the_first_epoch(net, watching):
    words = f"{type(watching).__name__}: no {watching.monitor!r} in the history, which has 'loss'", "validation_data"
    with refused(net, ValueError, *words):
        fit(net, *good(), callbacks=[xn.TimeLimit(60.0), watching])

    class Records(xn.Callback):
        def epoch_end(self, run):
            run.history.record({watching.monitor: 1.0})

    assert watching.monitor in fit(net, *good(), callbacks=[Records(), watching])


def test_classes_given_for_outputs_are_told_from_them(lib, net):
    _, y = good()
    taken = lib.asarray(np.asarray(y, float))
    for call in (xn.accuracy, xn.f1, xn.SoftmaxCrossEntropy()):
        with pytest.raises(ValueError, match=r"got shape \(10,\): give the outputs as predict gives them, not classes"):
            call(taken, y)


def test_slots_and_init_are_of_one_array_and_of_an_earlier_fit(net):
    with refused(net, ValueError, "slots has nothing; SGD() keeps step, velocity: give an earlier history's"):
        fit(net, *good(), slots=xn.History())
    with pytest.raises(TypeError, match=r"SGD\(\)\.init takes one array, got a dict: call it for each of its arrays"):
        xn.SGD().init(net.params)


def test_a_prediction_is_never_the_callers_own_array(lib):
    net = xn.Sequential(xn.Dropout(0.5)).initialize(lib.backend, "float64")
    x = lib.asarray(np.ones((2, 3)))
    y = net.predict(x)
    assert y is not x
    lib.agrees(y, np.ones((2, 3)))
    if lib.name == "numpy":
        assert not np.shares_memory(x, y)


# --- layers of one's own ----------------------------------------------------------------------------------------------


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


def test_an_optimizer_that_lacks_a_method_is_told_which(net):
    class Half:
        def init(self, w):
            return {"step": 0}

        def update(self, w, gradient, slots):
            return w, slots

    with refused(net, TypeError, "fit: optimizer has no lookahead, which xn.Adam(", "Half"):
        fit(net, *good(), optimizer=Half())


@pytest.mark.parametrize("number", [NAN, INF])
def test_parameters_that_are_not_finite_diverge_at_once(lib, number):
    net = network(lib.backend)
    weight = lib.to_numpy(net.params["0.weight"]).copy()
    weight[1, 2] = number
    net.layers[0].assign_params(net.layers[0].params | {"weight": lib.asarray(weight, "float32")})
    with refused(net, xn.DivergenceError, "not finite in epoch 1, batch 1: the output of layer 0"):
        fit(net, *good())


@pytest.mark.parametrize("seed", [-1, 1.5, "a"])
def test_a_seed_that_is_none(lib, seed):
    with pytest.raises(ValueError, match="initialize: seed must be a whole number of at least 0, got "):
        xn.Sequential(xn.Dense(2, 2)).initialize(lib.backend, seed=seed)


@pytest.mark.numpy_only
def test_a_list_is_no_dtype():
    with pytest.raises(ValueError, match=r"""dtype must be "float32" or "float64", got \['float32'\]"""):
        xn.Sequential(xn.Dense(2, 2)).initialize(dtype=["float32"])
