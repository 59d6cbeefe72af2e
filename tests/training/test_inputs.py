"""Bad x, y and options: errors that say who, what came and what was expected, and a network left as it was."""

import contextlib
import importlib
import math

import numpy as np
import pandas as pd
import pytest

import xpnet as xn
from support.cases import Foreign
from support.networks import (
    CALLS,
    HOT,
    INF,
    NAN,
    ROWS,
    WITH_TARGET,
    fit,
    good,
    network,
    refused,
    snapshot,
    with_entry,
)

# --- x ----------------------------------------------------------------------------------------------------------------


def with_object(entry, a):
    a = a.astype(object)
    a[2, 1] = entry
    return a


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
    [(None, "None"), ({"a": good()[0]}, "a dict")],
    ids=["None", "by name"],
)
def test_what_is_no_array_at_all_is_told_as_what_it_is(net, call, bad, came):
    with refused(net, TypeError, f"{call}x is {came}, expected an array, a list of rows or a pandas frame"):
        CALLS[call](net, bad, good()[1])


@pytest.mark.parametrize("call", WITH_TARGET)
@pytest.mark.parametrize("bad", [None, {"a": 1}, [[1.0], [1.0, 2.0]]], ids=["None", "by name", "ragged"])
def test_a_y_that_is_no_array_at_all_is_told_as_what_it_is(net, call, bad):
    error, words = (
        (ValueError, "is not an array") if isinstance(bad, list) else (TypeError, "expected an array, a list of")
    )
    with refused(net, error, f"{call}y", words):
        CALLS[call](net, good()[0], bad)


@pytest.mark.parametrize("call", CALLS)
def test_lists_that_are_not_of_one_length_are_no_array(net, call):
    with refused(net, ValueError, f"{call}x is not an array", "inhomogeneous"):
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
        with refused(net, TypeError, f'{call}x is a tensor on the device "meta"', 'create it on "cpu"'):
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


def test_classes_given_for_outputs_are_told_from_them(lib, net):
    _, y = good()
    taken = lib.asarray(np.asarray(y, float))
    for call in (xn.accuracy, xn.f1, xn.SoftmaxCrossEntropy()):
        with pytest.raises(ValueError, match=r"got shape \(10,\): give the outputs as predict gives them, not classes"):
            call(taken, y)


# --- batches and options ----------------------------------------------------------------------------------------------


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


def test_validation_data_that_is_no_pair_is_refused(net):
    x, y = good()
    with refused(net, ValueError, "fit: validation_data must be a pair (x, y)"):
        fit(net, x, y, validation_data=(x,))


@pytest.mark.parametrize("watching", [xn.EarlyStopping(), xn.ReduceOnPlateau("val_accuracy")], ids=repr)
def test_watching_validation_without_any_is_refused_before_the_first_epoch(net, watching):
    words = f"{type(watching).__name__}: no {watching.monitor!r} in the history, which has 'loss'", "validation_data"
    with refused(net, ValueError, *words):
        fit(net, *good(), callbacks=[xn.TimeLimit(60.0), watching])

    class Records(xn.Callback):
        def epoch_end(self, run):
            run.history.record({watching.monitor: 1.0})

    assert watching.monitor in fit(net, *good(), callbacks=[Records(), watching])


def test_slots_and_init_are_of_one_array_and_of_an_earlier_fit(net):
    with refused(net, ValueError, "slots has nothing; SGD() keeps step, velocity: give an earlier history's"):
        fit(net, *good(), slots=xn.History())
    with pytest.raises(TypeError, match=r"SGD\(\)\.init takes one array, got a dict: call it for each of its arrays"):
        xn.SGD().init(net.params)


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
