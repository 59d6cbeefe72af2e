"""Numbers that are not finite end a fit: the error names the place, and the parameters are those before it."""

import math
import pickle

import numpy as np
import pytest

import xpnet as xn
from support.cases import EXTREMES, assert_extreme
from support.layers import SideBySide
from support.training import (
    SQUARED,
    On,
    T,
    X,
    Y,
    all_finite,
    bits,
    fit,
    small,
)
from xpnet.kernels import CHOICES


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_run_that_explodes_says_where_and_leaves_finite_parameters(lib, dtype):
    net = small(lib, xn.Dense(4, 3), dtype=dtype)
    with pytest.raises(xn.DivergenceError) as caught:
        fit(net, X, T, SQUARED, xn.SGD(1e30), epochs=20, batch_size=6)
    error = caught.value
    assert f"fit: not finite in epoch {error.epoch}, batch {error.batch}: the loss." in str(error)
    assert "learning rate" in str(error)
    assert (error.epoch, error.batch) == (1, 2) if dtype == "float32" else error.epoch > 1
    assert len(error.history.get("loss", [])) == error.epoch - 1
    assert all_finite(net)
    assert math.isfinite(net.evaluate(X, T, SQUARED)["loss"])
    net.initialize(lib.backend, dtype, fresh=True)
    assert len(fit(net, X, T, SQUARED)["loss"]) == 1  # nothing of it stays behind


class Faulty(xn.Layer):
    """The identity, but for rows with an entry above 100, of which `forward` or `backward` makes NaN."""

    def __init__(self, where):
        self.where = where

    def poisoned(self, a, x):
        xp = xn.backends.namespace(x)
        return xp.where(xp.max(x, axis=1, keepdims=True) > 100.0, math.nan, a)

    def forward(self, x, training=False):
        return (self.poisoned(x, x) if training and self.where == "output" else x), x

    def backward(self, dy, cache):
        return (self.poisoned(dy, cache) if self.where == "gradient" else dy), {}


@pytest.mark.parametrize("where", ["output", "gradient"])
def test_a_users_layer_that_returns_nan_in_the_third_batch_is_named(lib, where):
    x = X.copy()
    x[9, 2] = 1000.0
    net, twin = (small(lib, xn.Dense(4, 4), Faulty(where), xn.Dense(4, 3)) for _ in range(2))
    for n in (net, twin):
        values = list(n.params.values())
        n.set_params(dict(zip(n.params, [np.eye(4), *map(lib.to_numpy, values[1:])], strict=True)))
    with pytest.raises(
        xn.DivergenceError, match=rf"in epoch 1, batch 3: the {where} .*layer 1, Faulty\('{where}'\)\."
    ) as caught:
        fit(net, x, Y, optimizer=xn.SGD(1e-3), shuffle=False, epochs=2)
    assert (caught.value.epoch, caught.value.batch, caught.value.history) == (1, 3, {})
    assert caught.value.history.steps == 2
    good = 4 if where == "output" else 8  # the rows after which the loss was last finite
    fit(twin, x[:good], Y[:good], optimizer=xn.SGD(1e-3), shuffle=False)
    assert bits(net) == bits(twin)


class Flickering(xn.Layer):
    """The identity, but for its third batch in training: a fault that does not come again."""

    def __init__(self):
        self.calls = []

    def forward(self, x, training=False):
        self.calls += [1] * training
        return (x * math.nan if training and len(self.calls) == 3 else x), None

    def backward(self, dy, cache):
        return dy, {}


def test_a_fault_that_does_not_come_again_is_placed_where_it_came(lib):
    net = small(lib, Flickering(), xn.Dense(4, 3))
    with pytest.raises(xn.DivergenceError, match="epoch 1, batch 3") as caught:
        fit(net, shuffle=False, batch_size=2)
    assert caught.value.history.steps == 2
    assert "optimizer" not in str(caught.value)
    assert all_finite(net)


def test_statistics_that_overflow_do_not_pass_for_sound_ones(lib):
    net = small(lib, xn.BatchNorm(4), xn.Dense(4, 3), dtype="float32")
    with pytest.raises(xn.DivergenceError, match="layer 0, BatchNorm"):
        fit(net, X * 1e25)  # finite in float32, its variance not
    assert all_finite(net)


@pytest.mark.numpy_only
def test_a_divergence_error_survives_the_way_back_from_a_worker_process():
    error = xn.DivergenceError("why", 2, 3, xn.History())
    twin = pickle.loads(pickle.dumps(error))
    assert (str(twin), twin.epoch, twin.batch, twin.history) == ("why", 2, 3, {})


@pytest.mark.parametrize("name", EXTREMES)
def test_what_is_not_finite_ends_the_training_at_the_same_step_in_every_form_of_it(name, lib, monkeypatch):
    """Also where the optimizer would hide it, and in no form where the derivative is 0 whatever stands above it."""
    for kernels in {"numpy": CHOICES, "torch": ("auto", "reference"), "jax": ("auto",)}.get(lib.name, ("reference",)):
        monkeypatch.setenv("XPNET_KERNELS", kernels)
        assert_extreme(name, lib.backend)


@pytest.mark.parametrize("epoch", [1, 32, 33, 40])
def test_a_divergence_amid_full_batches_is_placed(lib, epoch):
    net, twin = small(lib, xn.Dense(4, 3)), small(lib, xn.Dense(4, 3))
    rate = lambda step: 1e300 if step == epoch - 1 else 1e-22  # noqa: E731  # the gradient is of 1e18
    with pytest.raises(xn.DivergenceError, match=f"epoch {epoch}, batch 1: the optimizer's update") as caught:
        fit(net, 1e9 * X, T, SQUARED, xn.SGD(rate), batch_size=None, epochs=70)
    assert (caught.value.epoch, caught.value.batch, caught.value.history.steps) == (epoch, 1, epoch - 1)
    how = {"batch_size": None, "epochs": epoch - 1}
    assert caught.value.history == (fit(twin, 1e9 * X, T, SQUARED, xn.SGD(rate), **how) if epoch > 1 else {})
    assert bits(net) == bits(twin)


class SteepBack(xn.Layer):
    """The identity, whose gradient is infinite."""

    def forward(self, x, training=False):
        return x, None

    def backward(self, dy, cache):
        return dy * math.inf, {}


def test_a_gradient_that_is_not_finite_is_placed_at_its_layer(lib):
    net = small(lib, xn.Dense(4, 5), SteepBack(), xn.Dense(5, 3))
    before = bits(net)
    with pytest.raises(xn.DivergenceError, match=r"in epoch 1, batch 1: the gradient at layer 1, SteepBack\(\)\."):
        fit(net)
    assert bits(net) == before


def test_an_error_amid_a_diverging_epoch_leaves_finite_parameters(lib):
    net = small(lib, xn.Dense(4, 5), xn.Dense(5, 3))

    def fail(run):
        if run.step == 3:  # by then there is nothing finite, and where the device is ahead the check is yet to come
            raise ZeroDivisionError

    with pytest.raises(xn.DivergenceError if lib.backend.immediate else ZeroDivisionError):
        fit(net, loss=xn.MeanSquaredError(), y=T, optimizer=xn.SGD(1e300), batch_size=2, callbacks=[On(step_end=fail)])
    assert all_finite(net)


def test_an_update_that_overflows_is_told_from_a_gradient_that_does(lib):
    net = small(lib, xn.Dense(4, 3))
    before = bits(net)
    with pytest.raises(xn.DivergenceError, match="in epoch 1, batch 1: the optimizer's update"):
        fit(net, optimizer=xn.SGD(1e308), x=100 * X)
    assert bits(net) == before


def test_a_run_that_diverged_has_no_slots_to_give(lib):
    seen = []

    def look(run):
        with pytest.raises(RuntimeError, match=r"run\.slots: the step that was not finite has already updated"):
            run.slots  # noqa: B018
        seen.append(run)

    with pytest.raises(xn.DivergenceError):
        fit(
            small(lib),
            x=X * 1e200,
            loss=xn.MeanSquaredError(),
            y=np.full((12, 3), 1e200),
            callbacks=[On(train_end=look)],
        )
    assert len(seen) == 1


def test_a_sequential_of_ones_own_that_diverges_is_looked_at_by_its_own_forward(lib):
    net = SideBySide(xn.Dense(4, 4), xn.Dense(4, 4)).initialize(lib.backend)
    problem = {"y": np.ones((12, 8)), "loss": xn.MeanSquaredError()}
    fit(net, **problem)
    before = bits(net)
    with pytest.raises(xn.DivergenceError, match="in epoch 1, batch 1: the loss"):
        fit(net, X * 1e25, **problem)  # finite in float32, its square not
    assert bits(net) == before
