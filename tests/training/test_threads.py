"""Networks that several threads train and read."""

import copy
import pickle
import threading
import unittest.mock

import numpy as np
import pytest

import xpnet as xn
from support.training import (
    On,
    X,
    bits,
    fit,
    small,
)


def test_threads_may_predict_at_the_same_time(lib):
    net, inputs = small(lib), [np.full((200, 4), float(i)) for i in range(4)]
    expected = [lib.to_numpy(net.predict(x)) for x in inputs]
    results = [None] * 4

    def work(i):
        results[i] = [lib.to_numpy(net.predict(inputs[i])) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in range(4):
        np.testing.assert_array_equal(results[i], [expected[i]] * 20)


def test_fit_works_in_a_thread(lib, ctrl_c):
    net, twin = small(lib), small(lib)
    thread = threading.Thread(target=fit, args=(net,))
    thread.start()
    thread.join()
    fit(twin)
    assert bits(net) == bits(twin)


def test_a_network_that_is_being_trained_is_not_trained_by_another(lib):
    refused = []

    def again(run):
        with pytest.raises(
            RuntimeError, match=r"layer 0, Dense\(4, .*\), is being trained by a fit that has not ended"
        ):
            fit(run.net, X[:, :1])  # refused before anything else is looked at, or a checkpoint restored
        with pytest.raises(RuntimeError, match=r"layer 0, BatchNorm\(8\), is being trained"):  # as a part of another
            fit(xn.Sequential(*net.layers[1:]), np.ones((12, 8)))
        refused.append(run.step)
        fit(copy.deepcopy(run.net))
        fit(small(lib))

    net, twin = small(lib), small(lib)
    fit(net, epochs=2, callbacks=[On(train_begin=again, step_end=again, epoch_end=again)])
    assert refused == [0, 1, 2, 3, 3, 4, 5, 6, 6]
    fit(twin, epochs=2)
    assert bits(net) == bits(twin)
    fit(net, callbacks=[On(train_end=lambda run: fit(run.net))])
    assert bits(net) != bits(twin)
    with pytest.raises(ZeroDivisionError):
        fit(net, callbacks=[On(step_end=lambda run: 1 / 0)])
    fit(net)


def test_a_frozen_layer_may_be_in_two_networks_that_train(lib):
    net = small(lib, xn.Dense(4, 8, trainable=False), xn.Tanh(), xn.Dense(8, 3))
    other = xn.Sequential(net.layers[0], *copy.deepcopy(net).layers[1:])
    twin, before = copy.deepcopy(net), bits(other)
    fit(net, callbacks=[On(epoch_end=lambda run: fit(other))])
    fit(twin)
    assert bits(other) != before
    assert bits(net) == bits(twin)


WORKS = {}  # what is to be done meanwhile


class Meanwhile(xn.Dense):
    """A Dense in the middle of whose work another thread gets its turn."""

    def interrupted(self, name):
        if work := WORKS.pop(name, None):
            thread = threading.Thread(target=work)
            thread.start()
            thread.join(0.1 if name == "assigned" else None)  # who waits for the arrays is not waited for
            WORKS["thread"] = thread

    def forward(self, x, training=False):
        self.interrupted("predicted")
        return super().forward(x, training)

    def assign_params(self, params):
        super().assign_params(params)
        self.interrupted("assigned")


def meanwhile(lib):
    return small(lib, xn.Dense(4, 8), Meanwhile(8, 8), xn.BatchNorm(8), xn.Dense(8, 3))


@pytest.mark.parametrize("batch_size", [None, 4])
def test_a_prediction_is_of_one_step_whatever_another_thread_trains(lib, batch_size):
    net = meanwhile(lib)
    before = lib.to_numpy(net.predict(X, batch_size))
    WORKS["predicted"] = lambda: fit(net)
    seen = lib.to_numpy(net.predict(X, batch_size))
    after = lib.to_numpy(net.predict(X, batch_size))
    assert "predicted" not in WORKS
    assert not np.array_equal(before, after)
    assert any(np.array_equal(seen, whole) for whole in (before, after))


READERS = {
    "params": lambda net: net.params,
    "save": xn.files.format.arrays_of,
    "copy": lambda net: both(copy.copy(net)),
    "deepcopy": lambda net: both(copy.deepcopy(net)),
    "pickle": lambda net: both(pickle.loads(pickle.dumps(net))),
    "clone": lambda net: both(net.clone()),
}


def both(net):
    return net.params | net.state


@pytest.mark.parametrize("reader", READERS)
def test_what_is_read_of_a_network_is_of_one_step_whatever_another_thread_trains(lib, reader):
    net, seen = meanwhile(lib), []
    before = hosts(net, READERS[reader](net))
    WORKS["assigned"] = lambda: seen.append(hosts(net, READERS[reader](net)))
    fit(net)
    WORKS.pop("thread").join()
    after = hosts(net, READERS[reader](net))
    assert before != after
    assert seen[0] in (before, after)


def hosts(net, arrays):
    return {
        k: np.asarray(a if isinstance(a, np.ndarray) else net.backend.to_numpy(a)).tolist() for k, a in arrays.items()
    }


class Claims(set):
    """`training.TRAINED` under watch: whether the look at it and the entry in it are under one lock."""

    looked = False

    def __contains__(self, layer):
        self.looked = xn.training.guards.CLAIMING.locked()
        return super().__contains__(layer)

    def update(self, layers):
        assert self.looked
        assert xn.training.guards.CLAIMING.locked()
        super().update(layers)


def test_of_two_threads_that_begin_to_train_a_network_one_is_refused(lib, monkeypatch):
    """The second passes the first look before the other begins, and reads the parameters only when it may train."""
    net, twin, usual = small(lib), small(lib), xn.training.loop.training_step
    weights_for, refused = xn.training.inputs.weights_for, []
    monkeypatch.setattr(xn.training.guards, "TRAINED", Claims())

    def begin_another(*given):
        monkeypatch.setattr(xn.training.inputs, "weights_for", weights_for)
        fit(net, callbacks=[On(train_begin=lambda run: refused.append(claimed_by_another()))])
        return weights_for(*given)

    def claimed_by_another():
        with pytest.raises(RuntimeError, match="is being trained"), xn.training.guards.claimed(net):
            pass
        return True

    def step(*given):
        assert xn.training.guards.TRAINED
        return usual(*given)

    monkeypatch.setattr(xn.training.inputs, "weights_for", begin_another)
    monkeypatch.setattr(xn.training.loop, "training_step", step)
    fit(net)
    fit(twin)
    fit(twin)
    assert refused == [True]
    assert bits(net) == bits(twin)  # the second has gone on from the other's work
    assert not xn.training.guards.TRAINED


@pytest.mark.parametrize("gap", ["training_step", "Run", "signals_stop"])
def test_a_network_whose_training_did_not_begin_can_be_trained(lib, monkeypatch, gap):
    net = small(lib)
    with monkeypatch.context() as patched:
        patched.setattr(xn.training.loop, gap, unittest.mock.Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            fit(net)
    fit(net)
    assert not xn.training.guards.TRAINED
