"""The arrays of a layer and of a network: set, assigned, written to, refused."""

import copy
import pickle

import numpy as np
import pytest

import xpnet as xn
from support.networks import INF, NAN, refused, snapshot


def test_arrays_keep_their_order_in_whichever_they_are_assigned(lib):
    """jax.jit gives them in that of their names; optimizers' memories lie in the order of the first assignment."""
    net = xn.Sequential(xn.Dense(3, 4), xn.BatchNorm(4), xn.Dense(4, 2)).initialize(lib.backend)
    params, state = list(net.params), list(net.state)
    net.assign(dict(sorted(net.params.items())), dict(sorted(net.state.items(), reverse=True)))
    assert (list(net.params), list(net.state)) == (params, state)


@pytest.mark.parametrize("dtype", ["float16", np.float16, "int32", "complex64", "real"])
def test_parameters_of_another_dtype_are_refused(lib, net, dtype):
    with refused(net, ValueError, "dtype", '"float32" or "float64"', repr(dtype)):
        net.initialize(lib.backend, dtype)
    with refused(net, ValueError, "dtype", '"float32" or "float64"', repr(dtype)):
        net.to(lib.backend, dtype=dtype)


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
        came = "got None" if bad is None else "got a"
        with refused(net, TypeError, f"{name} of a layer of a network is an array of", came):
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


def test_a_layer_that_has_no_parameters_yet_says_so(lib):
    x = lib.asarray(np.ones((2, 3)))
    for layer in (xn.Dense(3, 2), xn.BatchNorm(3), xn.Sequential(xn.Dense(3, 2))):
        with pytest.raises(RuntimeError, match=r"a layer has no (weight|mean) yet: call net.initialize"):
            layer.forward(x)
    with pytest.raises(TypeError, match="assign the whole dict"):
        xn.Dense(3, 2).params["weight"] = x
    assert not xn.Dense.params
