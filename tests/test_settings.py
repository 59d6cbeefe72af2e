"""Settings of layers, losses, optimizers and schedules, refused when they are made."""

import numpy as np
import pytest

import xpnet as xn
from support.networks import INF, NAN


@pytest.mark.numpy_only
def test_a_number_beyond_any_float_is_refused_like_any_other():
    with pytest.raises(ValueError, match="SGD: learning_rate must be above 0 and finite, got an integer of 1329 bits"):
        xn.SGD(10**400)


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


@pytest.mark.numpy_only
def test_an_initializer_that_is_none_is_refused_with_those_there_are():
    names = '"fan_in_uniform", "glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "normal" or "orthogonal"'
    with pytest.raises(ValueError, match=f"Dense: initializer must be {names}, got 'zeros'"):
        xn.Dense(3, 2, initializer="zeros")
