"""The doctor finds what is wrong, says nothing where all is well, and changes nothing."""

import numpy as np
import pytest

import xpnet as xn
from support.cases import FEATURES, tutorial_network
from support.layers import Twice
from support.training import bits
from xpnet.callbacks.doctor import ROWS
from xpnet.training.probe import Probe

CROSS = xn.SoftmaxCrossEntropy()
RNG = np.random.default_rng(0)
X = RNG.normal(size=(60, FEATURES))
Y = (X @ RNG.normal(size=(FEATURES, 3))).argmax(axis=1)


def fit(net, *callbacks, x=X, y=Y, loss=CROSS, optimizer=None, epochs=4, batch_size=4, **options):
    optimizer = optimizer or xn.SGD(0.05)
    return net.fit(
        x, y, loss=loss, optimizer=optimizer, epochs=epochs, batch_size=batch_size, callbacks=callbacks, **options
    )


def deep(activation, count=3, width=16, **dense):
    layers = [
        layer for i in range(count) for layer in (xn.Dense(width if i else FEATURES, width, **dense), activation())
    ]
    return xn.Sequential(*layers, xn.Dense(width, 3))


def on(lib, net, **params):
    """The network on the backend, float64, with some of its parameters given."""
    net.initialize(lib.backend, "float64", seed=0)
    net.set_params({name: params.get(name.replace(".", "_"), lib.to_numpy(a)) for name, a in net.params.items()})
    return net


def found(doctor):
    return [(finding.layer.partition(",")[0], finding.kind) for finding in doctor.findings]


# --- where all is well ------------------------------------------------------------------------------------------------

WELL = {
    "relu": lambda: deep(xn.ReLU, 2, initializer="he_normal"),
    "tanh": lambda: deep(xn.Tanh),
    "sigmoid": lambda: deep(xn.Sigmoid, 1),
    "leaky and elu": lambda: xn.Sequential(
        xn.Dense(4, 16), xn.LeakyReLU(), xn.Dense(16, 16), xn.ELU(), xn.Dense(16, 3)
    ),
    "batch norm, dropout": lambda: xn.Sequential(
        xn.Dense(4, 16), xn.Sequential(xn.BatchNorm(16), xn.ReLU(), xn.Dropout(0.3)), xn.Dense(16, 3)
    ),
}


@pytest.mark.parametrize(
    ("net", "batch_size"), [*((net, 4) for net in WELL), *((net, None) for net in list(WELL)[::2])]
)
def test_a_sound_training_gets_no_finding_and_is_the_same_to_the_bit(lib, net, batch_size):
    one, other = (on(lib, WELL[net]()) for _ in range(2))
    doctor = xn.Doctor(log=pytest.fail)
    options = {"batch_size": batch_size, "optimizer": xn.Adam(0.01), "validation_data": (X, Y), "epochs": 6}
    history = fit(one, doctor, **options)
    assert doctor.findings == []
    assert str(doctor).startswith("Doctor: nothing found\n")
    assert history == fit(other, **options)
    assert bits(one) == bits(other)
    leaves = [f"{name}  {layer!r}" for name, layer in one.leaves()]
    assert [vital.layer for vital in doctor.vitals] == leaves
    for vital in doctor.vitals:
        assert (vital.gradient is None) == (vital.ratio is None or "BatchNorm" in vital.layer)
        assert vital.ratio is None or 1e-5 < vital.ratio < 0.1


@pytest.mark.numpy_only
@pytest.mark.parametrize("optimizer", [xn.Adam(0.01), xn.SGD(0.1), xn.RMSprop(0.003), xn.Adagrad(0.03)], ids=repr)
@pytest.mark.parametrize("batch_size", [32, None])
def test_the_digits_train_without_a_finding(digits, optimizer, batch_size):
    net, doctor = tutorial_network().initialize("numpy", seed=0), xn.Doctor(every=2, log=pytest.fail)
    fit(net, doctor, x=digits[0][:1500], y=digits[1][:1500], optimizer=optimizer, batch_size=batch_size, epochs=5)
    assert doctor.findings == []


# --- what is wrong ----------------------------------------------------------------------------------------------------


def test_dead_units_are_counted_and_named(lib):
    bias = np.where(np.arange(16) < 6, -50.0, 0.5)
    net, lines = on(lib, deep(xn.ReLU, 1), **{"0_bias": bias}), []
    doctor = xn.Doctor(log=lines.append)
    fit(net, doctor)
    assert found(doctor) == [("layer 1", "dead units")]
    assert lines[0].startswith("Doctor: epoch 1, layer 1, ReLU(): 6 of 16 dead units: no gradient passes them for any")
    assert "Lower the learning rate" in lines[0]
    assert lines[1:] == [str(doctor)]  # once, though it stays so, and the table at the end
    assert doctor.vitals[1].shut == 6 / 16
    assert "dead units: layer 1, ReLU()" in str(doctor)
    assert "38%" in str(doctor)


@pytest.mark.parametrize(("activation", "kind"), [(xn.Tanh, "saturated units"), (xn.Sigmoid, "saturated units"),
                                                  (xn.ELU, "dead units")])  # fmt: skip
def test_units_without_slope_are_found_in_other_activations(lib, activation, kind):
    bias = np.where(np.arange(16) < 8, -50.0, 0.0)
    doctor = xn.Doctor(log=None)
    fit(on(lib, deep(activation, 1), **{"0_bias": bias}), doctor, epochs=1)
    assert found(doctor) == [("layer 1", kind)]
    assert "8 of 16" in doctor.findings[0].text


def test_units_on_one_side_of_a_leaky_relu_are_found_where_they_are_many(lib):
    for negative, expected in [(4, []), (12, [("layer 1", "one-sided units")])]:
        bias = np.where(np.arange(16) < negative, -50.0, 0.0)
        doctor = xn.Doctor(log=None)
        fit(on(lib, deep(xn.LeakyReLU, 1), **{"0_bias": bias}), doctor, epochs=1, optimizer=xn.SGD(1e-4))
        assert found(doctor) == expected


def test_a_saturated_last_layer_is_no_fault(lib):
    net = xn.Sequential(xn.Dense(FEATURES, 3), xn.Sigmoid())
    doctor = xn.Doctor(log=None)
    fit(on(lib, net, **{"0_bias": np.full(3, -50.0)}), doctor, y=np.eye(3)[Y], loss=xn.MeanSquaredError(), epochs=1)
    assert "saturated units" not in [finding.kind for finding in doctor.findings]


def test_a_gradient_that_vanishes_is_placed_where_it_does(lib):
    net, doctor = on(lib, deep(xn.Sigmoid, 9)), xn.Doctor(log=None)
    fit(net, doctor, epochs=2)
    kinds = [finding.kind for finding in doctor.findings]
    assert kinds.count("vanishing gradient") == 1
    finding = doctor.findings[kinds.index("vanishing gradient")]
    gradients = {v.layer.partition(" ")[0]: v.gradient for v in doctor.vitals if v.gradient is not None}
    place = finding.layer.removeprefix("layer ").partition(",")[0]
    assert gradients[place] < 1e-3 * gradients["18"]
    assert gradients["0"] < gradients[place]
    assert "BatchNorm" in finding.remedy


def test_a_gradient_that_explodes_is_found(lib):
    """The derivative of a product of matrices with respect to the first is the product of the others."""
    net = xn.Sequential(*[xn.Dense(FEATURES, FEATURES) for _ in range(4)], xn.Dense(FEATURES, 3))
    small = {"0_weight": 1e-7 * np.eye(FEATURES)} | {f"{i}_weight": 30.0 * np.eye(FEATURES) for i in (1, 2, 3)}
    doctor = xn.Doctor(log=None)
    fit(on(lib, net, **small), doctor, epochs=1, optimizer=xn.SGD(1e-12))
    assert ("layer 0", "exploding gradient") in found(doctor)


def test_outputs_that_are_the_same_for_every_row_are_traced_to_their_layer(lib):
    net = on(lib, deep(xn.Tanh, 2), **{"2_weight": np.zeros((16, 16))})
    net.layers[2].trainable = False
    doctor = xn.Doctor(log=None)
    fit(net, doctor, epochs=1)
    assert found(doctor) == [("layer 2", "constant outputs")]


def test_units_that_a_high_rate_killed_bring_no_advice_to_raise_it(lib):
    net = on(lib, deep(xn.ReLU, 1), **{"0_bias": np.full(16, -1e3)})
    doctor = xn.Doctor(log=None)
    fit(net, doctor, optimizer=xn.SGD(1e-9), epochs=1)
    assert found(doctor) == [("layer 1", "dead units"), ("layer 1", "constant outputs")]


@pytest.mark.parametrize(
    ("rate", "kind", "remedy"),
    [(1e-9, "slow updates", "Raise the learning rate"), (20.0, "fast updates", "Lower the learning rate")],
)
def test_a_learning_rate_out_of_all_proportion_is_found(lib, rate, kind, remedy):
    doctor = xn.Doctor(log=None)
    fit(on(lib, deep(xn.Tanh, 1)), doctor, optimizer=xn.SGD(rate, momentum=0.0), epochs=2)
    told = [finding for finding in doctor.findings if finding.kind == kind]
    assert told
    assert {finding.remedy for finding in told} == {remedy}


def test_the_ratio_is_that_of_the_epochs_last_step(lib):
    class Steps(xn.Callback):
        def step_end(self, run):
            self.before = getattr(self, "after", None)
            self.after = {k: lib.to_numpy(a) for k, a in run.net.params.items()}

    for batch_size in (20, None):
        net, doctor, steps = on(lib, deep(xn.Tanh, 1)), xn.Doctor(log=None), Steps()
        fit(net, doctor, steps, batch_size=batch_size, epochs=3)
        for vital in doctor.vitals:
            name = vital.layer.partition(" ")[0]
            before, after = (
                np.concatenate([a.ravel() for k, a in arrays.items() if k.startswith(f"{name}.")] or [np.zeros(0)])
                for arrays in (steps.before, steps.after)
            )
            expected = np.linalg.norm(after - before) / np.linalg.norm(before) if before.size else None
            assert vital.ratio == (expected and pytest.approx(expected, rel=1e-9))


def test_a_training_that_diverges_is_looked_at_where_it_stopped(lib):
    net, doctor = on(lib, deep(xn.ReLU, 2)), xn.Doctor(log=None)
    with pytest.raises(xn.DivergenceError):
        fit(net, doctor, y=np.eye(3)[Y], loss=xn.MeanSquaredError(), optimizer=xn.SGD(1e60), epochs=5)
    assert doctor.vitals
    assert found(doctor) == [("the training", "divergence")]
    assert "batch 2: " in doctor.findings[0].text
    assert "Lower the learning rate" in doctor.findings[0].remedy

    try:  # a sound fit while another's error is being handled
        fit(net, y=np.eye(3)[Y], loss=xn.MeanSquaredError(), optimizer=xn.SGD(1e60))
    except xn.DivergenceError:
        fit(net, doctor, y=np.eye(3)[Y], loss=xn.MeanSquaredError())
    assert "divergence" not in [finding.kind for finding in doctor.findings]


class Reckless(xn.Layer):
    """A user's layer that counts its calls, and from some call on gives what is not finite, or fails."""

    def __init__(self, fails=False, fault=None):
        self.fails, self.fault, self.calls = fails, fault, 0

    def forward(self, x, training=False):
        self.calls += 1
        if self.fails and x.shape[0] > 8:  # batches are smaller: only a look comes with more
            raise RuntimeError("too many rows for me")
        if self.fault and x.shape[0] > 8:
            x = x * float("inf")
        return x, None

    def backward(self, dy, cache):
        return dy, {}


def test_the_first_layer_that_is_not_finite_is_named(lib):
    net = xn.Sequential(xn.Dense(FEATURES, 8), xn.Tanh(), Reckless(fault=True), xn.Dense(8, 3))
    doctor = xn.Doctor(log=None)
    fit(on(lib, net), doctor, epochs=2)
    assert found(doctor) == [("layer 2", "not finite")]
    assert "clip_norm" in doctor.findings[0].remedy


def test_a_validation_measure_that_is_not_finite_is_said(lib):
    doctor = xn.Doctor(log=None)
    odd = {"odd": lambda p, t: float("nan")}
    fit(on(lib, deep(xn.Tanh, 1)), doctor, epochs=2, validation_data=(X, Y), metrics=odd)
    assert found(doctor) == [("history['val_odd']", "not finite")]


def test_what_fails_in_a_look_is_a_finding_and_the_training_goes_on(lib):
    net = xn.Sequential(xn.Dense(FEATURES, 8), Reckless(fails=True), xn.Dense(8, 3))
    twin = xn.Sequential(xn.Dense(FEATURES, 8), Reckless(fails=True), xn.Dense(8, 3))
    doctor = xn.Doctor(log=None)
    fit(on(lib, net), doctor, epochs=3)
    fit(on(lib, twin), epochs=3)
    assert found(doctor) == [("the network", "inspection failed")]
    assert "RuntimeError: too many rows for me" in doctor.findings[0].text
    assert bits(net) == bits(twin)


def test_a_users_layer_and_loss_are_not_called_by_a_look(lib):
    class Counting(xn.MeanSquaredError):
        calls = 0

        def terms(self, prediction, target):
            self.calls += 1
            return super().terms(prediction, target)

    counts = []
    for callbacks in ([], [xn.Doctor(log=None)]):
        loss = Counting()
        net = on(lib, xn.Sequential(xn.Dense(FEATURES, 8), Reckless(), xn.Dense(8, 3)))
        fit(net, *callbacks, y=np.eye(3)[Y], loss=loss, epochs=3)
        counts.append((loss.calls, net.layers[1].calls))
    assert counts[0] == counts[1]


def test_it_looks_at_the_first_epoch_and_every_so_many_and_at_rows_from_all_of_the_data(lib):
    looks = []

    class Looks(xn.Doctor):
        def _inspect(self, run):
            looks.append((run.epoch, run.x[self.rows, ...].shape[0], float(run.x[self.rows, ...][-1, 0])))
            super()._inspect(run)

    x = np.tile(np.arange(700.0)[:, None], (1, FEATURES)) / 700
    fit(on(lib, deep(xn.Tanh, 1)), Looks(every=3, log=None), x=x, y=np.zeros(700, int), epochs=7, batch_size=350)
    assert [epoch for epoch, *_ in looks] == [1, 4, 7]
    assert {rows for _, rows, _ in looks} == {ROWS}
    assert looks[0][2] > 0.5


def test_a_subclass_with_its_own_forward_is_looked_at_as_a_whole(lib):
    doctor = xn.Doctor(log=None)
    fit(on(lib, Twice(*deep(xn.ReLU, 1).layers)), doctor, epochs=2)
    assert doctor.findings == []
    assert len(doctor.vitals) == 1
    assert doctor.vitals[0].ratio > 0


@pytest.mark.numpy_only
def test_it_prints_by_itself(capsys):
    net = on(type("", (), {"backend": "numpy", "to_numpy": staticmethod(np.asarray)}), deep(xn.ReLU, 1))
    net.set_params({k: a - 50.0 if k == "0.bias" else a for k, a in net.params.items()})
    doctor = xn.Doctor()
    fit(net, doctor, epochs=1)
    shown = capsys.readouterr().out
    assert shown.count("16 of 16 dead units") == 1
    assert shown.endswith(f"{doctor}\n")


def test_a_loss_that_is_not_finite_behind_outputs_that_are_is_the_first_fault(lib):
    probe = Probe(xn.Sequential(xn.ReLU()))
    assert probe.first_fault(lib.asarray(np.inf)) == (None, "it is not finite")
    assert probe.first_fault(lib.asarray(1.0)) is None


# --- fit, which points to the Doctor ----------------------------------------------------------------------------------


def dead_network(lib):
    net = xn.Sequential(xn.Dense(4, 6), xn.ReLU(), xn.Dense(6, 2)).initialize(lib.backend, "float64")
    net.set_params(net.params | {"0.bias": lib.asarray(np.full(6, -100.0), "float64")})
    return net


def trained(net, x, y, **options):
    options = {"epochs": 40, "optimizer": xn.SGD(0.1, momentum=0.0)} | options
    return net.fit(x, y, loss=xn.MeanSquaredError(), **options)


@pytest.mark.parametrize("weight", [None, np.arange(1.0, 21.0)], ids=["", "weighted"])
def test_a_training_that_ends_with_one_output_for_all_rows_points_to_the_doctor(lib, rng, weight):
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 2))
    net = dead_network(lib)
    with pytest.warns(RuntimeWarning, match=r"one output for all rows.*callbacks=\[xn\.Doctor\(\)\]") as told:
        trained(net, lib.asarray(x, "float64"), lib.asarray(y, "float64"), sample_weight=weight)
    assert [warning.filename for warning in told] == [__file__]
    doctor = xn.Doctor(log=None)  # which says so itself
    trained(dead_network(lib), x, y, callbacks=[doctor], sample_weight=weight)
    assert {finding.kind for finding in doctor.findings} >= {"dead units", "constant outputs"}


def test_a_training_whose_rows_or_targets_are_all_the_same_is_not_warned_of(lib, rng):
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 2))
    trained(dead_network(lib), np.repeat(x[:1], 20, axis=0), y)
    trained(dead_network(lib), x, np.repeat(y[:1], 20, axis=0))
    trained(dead_network(lib), x, np.repeat(y[:1], 20, axis=0), sample_weight=np.arange(1.0, 21.0))


def test_the_outputs_are_looked_at_only_where_the_loss_has_come_to_rest(lib, rng, monkeypatch):
    x, y = rng.normal(size=(20, 4)), rng.normal(size=(20, 2))
    net = xn.Sequential(xn.Dense(4, 6), xn.Tanh(), xn.Dense(6, 2)).initialize(lib.backend)
    looks = []
    infer = xn.Sequential._infer
    monkeypatch.setattr(xn.Sequential, "_infer", lambda net, x: looks.append(x) or infer(net, x))
    trained(net, x, y, epochs=1)
    trained(net, x, y, epochs=2)  # it falls
    assert not looks
    trained(net, x, y, epochs=2, optimizer=xn.SGD(1e-9))
    assert len(looks) == 1
