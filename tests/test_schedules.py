"""Schedules against their formulas."""

import math
import sys

import numpy as np
import pytest

import xpnet as xn

STEPS = [0, 1, 2, 9, 10, 11, 19, 20, 25, 99, 100, 101, 10**6]


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("schedule", "formula"),
    [
        (xn.Constant(0.3), lambda t: 0.3),
        (xn.StepDecay(0.3, factor=0.5, every=10), lambda t: 0.3 * 0.5 ** math.floor(t / 10)),
        (xn.StepDecay(0.3), lambda t: 0.3 * 0.1 ** math.floor(t / 1000)),
        (xn.ExponentialDecay(0.3, factor=0.5, every=10), lambda t: 0.3 * math.exp(math.log(0.5) * t / 10)),
        (xn.ExponentialDecay(0.3), lambda t: 0.3 * math.exp(math.log(0.96) * t / 1000)),
        (xn.CosineDecay(0.3, 20), lambda t: 0.3 * math.cos(math.pi * min(t, 20) / 40) ** 2),
        (xn.CosineDecay(0.3, 20, final=0.1), lambda t: 0.1 + 0.2 * math.cos(math.pi * min(t, 20) / 40) ** 2),
        (xn.WarmUp(0.3, 10), lambda t: 0.3 * min((t + 1) / 10, 1)),
        (
            xn.WarmUp(xn.CosineDecay(0.3, 20), 10),
            lambda t: 0.03 * (t + 1) if t < 10 else 0.3 * math.cos(math.pi * min(t - 10, 20) / 40) ** 2,
        ),
        (
            xn.WarmUp(xn.WarmUp(lambda t: 0.4 / (1 + t), 10), 10),
            lambda t: 0.004 * (t + 1) if t < 10 else 0.04 * (t - 9) if t < 20 else 0.4 / (t - 19),
        ),
    ],
    ids=lambda v: repr(v).split("<")[0] if hasattr(v, "settings") else "",  # of a function, no address
)
def test_a_schedule_is_its_formula(schedule, formula):
    assert [schedule(t) for t in STEPS] == pytest.approx([formula(t) for t in STEPS], rel=1e-12, abs=1e-17)


@pytest.mark.numpy_only
def test_the_ends_of_schedules():
    cosine = xn.CosineDecay(0.3, steps=20, final=0.1)
    assert (cosine(0), cosine(20), cosine(21)) == (pytest.approx(0.3), pytest.approx(0.1), pytest.approx(0.1))
    step = xn.StepDecay(0.3, factor=0.5, every=10)
    assert (step(9), step(10)) == (0.3, 0.15)
    warm = xn.WarmUp(0.3, steps=10)
    assert warm(0) > 0
    assert (warm(9), warm(10), warm(10**9)) == (0.3, 0.3, 0.3)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    "schedule",
    [
        kind(rate, factor, every)
        for kind in (xn.StepDecay, xn.ExponentialDecay)
        for rate in (5e-324, 0.1, 1.7e308)
        for factor in (5e-324, 0.96, 1.0, 1.5, 1.7e308)
        for every in (1, 10**18)
    ]
    + [
        xn.Constant(1.7e308),
        *[xn.CosineDecay(*pair, final=final) for pair in ((1.7e308, 1), (5e-324, 10**18)) for final in (0.0, 1.7e308)],
        *[xn.WarmUp(rate, steps) for rate in (5e-324, 1.7e308) for steps in (1, 10**9)],
        xn.WarmUp(xn.StepDecay(1.7e308, factor=1.5, every=1), 1000),
    ],
    ids=repr,
)
def test_a_schedule_is_finite_and_never_negative_at_any_step_and_setting(schedule):
    assert all(0.0 <= schedule(t) < math.inf for t in [*STEPS, 10**9])


@pytest.mark.numpy_only
def test_a_rate_that_grows_beyond_the_largest_float_stays_there():
    largest = sys.float_info.max
    assert [xn.StepDecay(1.0, factor=10.0, every=1)(t) for t in (308, 309, 10**9)] == [1e308, largest, largest]
    assert xn.ExponentialDecay(0.5, factor=4.0, every=2)(1024) == largest


@pytest.mark.numpy_only
def test_a_warm_up_hands_over_without_a_jump():
    then = xn.ExponentialDecay(0.3, every=100)
    warm = xn.WarmUp(then, steps=5)
    assert [warm(t) for t in range(5)] == pytest.approx([0.06, 0.12, 0.18, 0.24, 0.3])
    assert [warm(t) for t in range(5, 50)] == [then(t) for t in range(45)]


@pytest.mark.numpy_only
@pytest.mark.parametrize("rate", [1, np.float64(0.25), np.float32(0.25)], ids=repr)
def test_a_warm_up_takes_any_number(rate):
    warm = xn.WarmUp(rate, steps=2)
    assert [warm(0), warm(1), warm(2)] == [rate / 2, rate, rate]


def told(schedule):
    """What it is, with that within it."""
    return type(schedule), {k: told(v) if callable(v) else v for k, v in vars(schedule).items()}


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    "schedule",
    [
        xn.Constant(0.1),
        xn.StepDecay(0.1, every=7),
        xn.CosineDecay(0.1, 9, final=0.05),
        xn.WarmUp(xn.ExponentialDecay(0.1, 0.5), 3),
    ],
    ids=repr,
)
def test_repr_makes_the_same_schedule_again(schedule):
    assert told(eval(repr(schedule), vars(xn).copy())) == told(schedule)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("kind", "arguments", "name"),
    [
        (xn.Constant, (math.nan,), "rate"),
        (xn.StepDecay, (0.1, 0.5, 0), "every"),
        (xn.StepDecay, (0.1, -0.5), "factor"),
        (xn.ExponentialDecay, (0.1, 0.5, 0), "every"),
        (xn.ExponentialDecay, (-0.1,), "rate"),
        (xn.CosineDecay, (0.1, 0), "steps"),
        (xn.CosineDecay, (0.1, 10, -0.1), "final"),
        (xn.WarmUp, (0.1, 0), "steps"),
        (xn.WarmUp, ("fast", 10), "then"),
    ],
)
def test_an_impossible_setting_of_a_schedule_is_refused_by_name(kind, arguments, name):
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: {name} must be .*, got "):
        kind(*arguments)


def test_schedules_of_two_kinds_are_not_equal_for_their_numbers():
    assert xn.StepDecay(0.3, 0.5, 10) == xn.StepDecay(0.3, 0.5, 10) != xn.ExponentialDecay(0.3, 0.5, 10)


@pytest.mark.numpy_only
def test_schedules_compare_by_their_settings():
    assert xn.StepDecay(0.3) == xn.StepDecay(0.3, 0.1, 1000) != xn.StepDecay(0.3, 0.2)
    assert len({xn.StepDecay(0.3), xn.StepDecay(0.3), xn.Constant(0.3)}) == 2
