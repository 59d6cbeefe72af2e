"""Losses and what a network's last layer gives: probabilities or logits."""

import contextlib

import numpy as np
import pytest

import xpnet as xn
from support.layers import Linked, SideBySide
from support.training import (
    CROSS,
    SQUARED,
    STILL,
    Recorder,
    T,
    X,
    Y,
    bits,
    fit,
    small,
)


@pytest.fixture(params=["immediate", "waited for"])
def home(request, lib, monkeypatch):
    """The backend under test; and as one whose results come later, for which the host does not wait."""
    monkeypatch.setattr(lib.backend, "immediate", lib.backend.immediate and request.param == "immediate")
    return lib


PROBABLE = {
    "categorical": (
        xn.CategoricalCrossEntropy(),
        Y,
        r"Softmax\(\), or take the loss of logits, SoftmaxCrossEntropy\(\)",
    ),
    "binary": (
        xn.BinaryCrossEntropy(),
        T,
        r"Sigmoid\(\), or take the loss of logits, BinaryCrossEntropyWithLogits\(\)",
    ),
}


@pytest.mark.parametrize("name", PROBABLE)
@pytest.mark.parametrize(("batch_size", "epoch", "batch"), [(6, 1, 2), (None, 2, 1), (4, 1, 2)])
def test_a_loss_of_probabilities_refuses_the_first_batch_of_others(home, name, batch_size, epoch, batch):
    """The first step's outputs are all 1/2; the second's are not probabilities any more."""
    loss, y, remedy = PROBABLE[name]
    nets = [small(home, xn.Dense(4, 3)) for _ in range(2)]
    for net in nets:
        net.set_params({"0.weight": np.zeros((4, 3)), "0.bias": np.full(3, 0.5)})
    message = (
        rf"^fit: in epoch {epoch}, batch {batch}, the outputs run from -?\d.* to .*, and .*\(\) takes probabilities"
    )
    options = {"loss": loss, "optimizer": xn.SGD(50.0), "shuffle": False}
    with pytest.raises(ValueError, match=f"{message}.*: end the network in {remedy}$"):
        fit(nets[0], X, y, batch_size=batch_size, epochs=5, **options)
    first = slice(batch_size)
    fit(nets[1], X[first], y[first], batch_size=batch_size, epochs=1, **options)
    assert bits(nets[0]) == bits(nets[1])


@pytest.mark.parametrize("name", PROBABLE)
def test_outputs_that_are_no_probabilities_are_refused_wherever_the_loss_takes_them(lib, name):
    loss, y, remedy = PROBABLE[name]
    net = small(lib, xn.Dense(4, 3))
    before = bits(net)
    for who, call in {
        "evaluate": lambda: net.evaluate(X, y, loss),
        "value_and_grad": lambda: net.value_and_grad(X, y, loss),
        "fit: in epoch 1, batch 1,": lambda: fit(net, X, y, loss),
    }.items():
        with pytest.raises(ValueError, match=rf"^{who}:? the outputs run from .* takes probabilities.* {remedy}$"):
            call()
    assert bits(net) == before


def test_a_layer_of_ones_own_that_gives_probabilities_trains_as_the_known_one(home):
    """The outputs are looked at, and nothing else is different."""
    found = []
    for last in (xn.Sigmoid(), Linked()):
        net = small(home, xn.Dense(4, 3), last)
        history = fit(net, X, T, xn.BinaryCrossEntropy(), epochs=3, validation_data=(X, T))
        found.append([*history["loss"], *history["val_loss"], *home.to_numpy(net.predict(X)).ravel()])
    np.testing.assert_allclose(*found, rtol=1e-10)
    edge = small(home, xn.Dense(4, 3), Linked())
    edge.set_params({"0.weight": np.zeros((4, 3)), "0.bias": np.full(3, 1e4)})  # exactly 1
    fit(edge, X, np.ones((12, 3)), xn.BinaryCrossEntropy())


@pytest.mark.parametrize(("output", "sound"), [(1 + 5e-7, True), (1 + 2e-6, False), (-5e-7, True), (-2e-6, False)])
def test_a_probability_that_was_rounded_beyond_0_or_1_is_one(home, output, sound):
    net = small(home, xn.Dense(4, 3))
    net.set_params({"0.weight": np.zeros((4, 3)), "0.bias": np.full(3, output)})
    for call in (
        lambda: fit(net, X, T, xn.BinaryCrossEntropy(), STILL),
        lambda: net.evaluate(X, T, xn.BinaryCrossEntropy()),
    ):
        with contextlib.nullcontext() if sound else pytest.raises(ValueError, match="takes probabilities"):
            call()


@pytest.mark.numpy_only
def test_outputs_are_looked_at_only_where_nothing_else_tells_that_they_are_probabilities():
    from xpnet.kernels.reference import must_check_range

    dense, binary = xn.Dense(4, 3), xn.BinaryCrossEntropy()
    for last in (xn.Softmax(), xn.Sigmoid(), xn.Sequential(xn.Dense(3, 3), xn.Sequential(xn.Softmax()))):
        assert not must_check_range(xn.Sequential(dense, last), binary)
    for last in (xn.ReLU(), Linked(), SideBySide(xn.Dense(3, 4), xn.Sigmoid())):
        assert must_check_range(xn.Sequential(dense, last), binary)
        assert not must_check_range(xn.Sequential(dense, last), SQUARED)
    assert must_check_range(xn.Sequential(), binary)
    assert not must_check_range(xn.Sequential(dense), Recorder())


@pytest.mark.parametrize(
    ("last", "loss", "y", "twin"),
    [
        (xn.Softmax(), CROSS, Y, "CategoricalCrossEntropy"),
        (xn.Sequential(xn.Sigmoid()), CROSS, Y, "CategoricalCrossEntropy"),
        (xn.Sigmoid(), xn.BinaryCrossEntropyWithLogits(), T, "BinaryCrossEntropy"),
    ],
)
def test_a_loss_of_logits_on_probabilities_is_warned_of_once(lib, last, loss, y, twin):
    net = small(lib, xn.Dense(4, 3), last)
    for who, call in {
        "fit": lambda: net.fit(X, y, loss=loss, optimizer=STILL, epochs=3, validation_data=(X, y)),
        "evaluate": lambda: net.evaluate(X, y, loss),
    }.items():
        message = (
            rf"^{who}: the network ends in S\w+\(\), and .* takes logits, .*: leave that layer out, or take {twin}\(\)$"
        )
        with pytest.warns(UserWarning, match=message) as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]
