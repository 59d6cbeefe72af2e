"""Optimizers: each against its published formula, written plainly; pure; and they bring a loss down."""

import inspect
import math

import numpy as np
import pytest
import sklearn.base

import xpnet as xn
from support import cases

STEPS = 50
RNG = np.random.default_rng(7)
MATRIX, OFFSET, START = RNG.standard_normal((12, 8)) / 4, RNG.standard_normal(12), RNG.standard_normal(8)


def slope(w):
    """The gradient of Σ log cosh(Aw - b), A small enough that no run is chaotic: rounding stays rounding."""
    return MATRIX.T @ np.tanh(MATRIX @ w - OFFSET)


# --- the published formulas: g(w) is the gradient, η(t) the rate of step t = 1, 2, ..., λ AdamW's decay ---------------


def sgd(w, g, η, λ):
    v = 0.0
    for t in range(1, STEPS + 1):
        v = 0.9 * v + η(t) * g(w)
        w = w - v
    return w


def nesterov(w, g, η, λ):
    v = 0.0
    for t in range(1, STEPS + 1):
        v = 0.7 * v + η(t) * g(w - 0.7 * v)
        w = w - v
    return w


def adagrad(w, g, η, λ):
    total = 0.0
    for t in range(1, STEPS + 1):
        gradient = g(w)
        total = total + gradient**2
        w = w - η(t) * gradient / np.sqrt(total + 1e-3)  # epsilon inside the root, large enough to tell
    return w


def rmsprop(w, g, η, λ):
    average = 0.0
    for t in range(1, STEPS + 1):
        gradient = g(w)
        average = 0.8 * average + 0.2 * gradient**2
        w = w - η(t) * gradient / np.sqrt(average + 1e-3)
    return w


def adam(w, g, η, λ, corrected=True):
    m = v = 0.0
    for t in range(1, STEPS + 1):
        gradient = g(w)
        w = w - η(t) * λ * w
        m = 0.8 * m + 0.2 * gradient
        v = 0.95 * v + 0.05 * gradient**2
        m_hat, v_hat = (m / (1 - 0.8**t), v / (1 - 0.95**t)) if corrected else (m, v)
        w = w - η(t) * m_hat / (np.sqrt(v_hat) + 1e-3)
    return w


def adam_uncorrected(w, g, η, λ):
    return adam(w, g, η, λ, corrected=False)


BETAS = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3}
RULES = [  # the class, its settings, the formula
    (xn.SGD, {"momentum": 0.9}, sgd),
    (xn.Nesterov, {"momentum": 0.7, "clip_value": None}, nesterov),
    (xn.Adagrad, {"eps": 1e-3}, adagrad),
    (xn.RMSprop, {"rho": 0.8, "eps": 1e-3}, rmsprop),
    (xn.Adam, BETAS, adam),
    (xn.Adam, BETAS | {"bias_correction": False}, adam_uncorrected),
    (xn.AdamW, BETAS | {"weight_decay": 0.0}, adam),
]
COMMON = [  # settings that every optimizer takes; the slope's entries and norm are above these limits at first
    {},
    {"weight_decay": 0.3},
    {"clip_value": 0.2},
    {"clip_norm": 0.3},
    {"clip_value": 0.2, "clip_norm": 0.3, "weight_decay": 0.3},
    {"learning_rate": xn.ExponentialDecay(0.02, factor=0.5, every=20)},
]
every_rule = pytest.mark.parametrize(
    ("kind", "settings", "formula"), RULES, ids=[f"{k.__name__}-{f.__name__}" for k, _, f in RULES]
)
EVERY = [
    xn.SGD(),
    xn.Nesterov(),
    xn.Adagrad(),
    xn.RMSprop(),
    xn.Adam(),
    xn.Adam(bias_correction=False),
    xn.AdamW(),
    xn.Adam(weight_decay=0.1, clip_norm=0.1, clip_value=0.1),
]
every_optimizer = pytest.mark.parametrize("optimizer", EVERY, ids=repr)


def trained(lib, optimizer, w, gradient, steps, dtype="float64"):
    """w after some steps, the gradient taken on the host where the optimizer wants it."""
    w = lib.asarray(w, dtype)
    slots = optimizer.init(w)
    for _ in range(steps):
        point = lib.to_numpy(optimizer.lookahead(w, slots))
        w, slots = optimizer.update(w, lib.asarray(gradient(point), dtype), slots)
    return w


@pytest.mark.parametrize("common", COMMON, ids=lambda c: "+".join(c) or "plain")
@every_rule
def test_fifty_steps_are_the_published_formulas(lib, kind, settings, formula, common):
    settings = settings | common
    limit, largest = settings.get("clip_value"), settings.get("clip_norm")
    apart, decay = (settings["weight_decay"], 0.0) if kind is xn.AdamW else (0.0, settings.get("weight_decay", 0.0))

    def limited(w):
        g = slope(w)
        if limit is not None:
            g = np.clip(g, -limit, limit)
        if largest is not None:
            g = g * min(1.0, largest / math.sqrt((g**2).sum()))
        return g + decay * w

    def rate(t):
        return 0.02 * 0.5 ** ((t - 1) / 20) if "learning_rate" in common else 0.02

    optimizer = kind(**{"learning_rate": 0.02} | settings)
    expected = formula(START, limited, rate, apart)
    assert np.abs(expected - START).max() > 0.05  # it went somewhere
    lib.agrees(trained(lib, optimizer, START, slope, STEPS), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("optimizer", "first"),
    [  # after one step with gradient 2 from w = 1: what the defaults make of it, by hand
        (xn.SGD(), 1 - 0.01 * 2),
        (xn.Nesterov(), 1 - 0.001 * 1),  # its clip_value
        (xn.Adagrad(), 1 - 0.01 * 2 / math.sqrt(4 + 1e-8)),
        (xn.RMSprop(), 1 - 0.01 * 2 / math.sqrt(0.4 + 1e-8)),
        (xn.Adam(), 1 - 0.001 * 2 / (2 + 1e-8)),
        (xn.Adam(bias_correction=False), 1 - 0.001 * 0.2 / (math.sqrt(0.004) + 1e-8)),
        (xn.AdamW(), 1 - 0.001 * 0.01 - 0.001 * 2 / (2 + 1e-8)),
    ],
    ids=repr,
)
def test_the_first_step_with_the_defaults_by_hand(lib, optimizer, first):
    lib.agrees(trained(lib, optimizer, np.ones(1), lambda w: 2 * w, 1), [first])


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("optimizer", "defaults"),
    [
        (xn.SGD(), {"learning_rate": 0.01, "momentum": 0.8}),
        (xn.Nesterov(), {"learning_rate": 0.001, "momentum": 0.4, "clip_value": 1.0}),
        (xn.Adagrad(), {"learning_rate": 0.01, "eps": 1e-8}),
        (xn.RMSprop(), {"learning_rate": 0.01, "rho": 0.9, "eps": 1e-8}),
        (xn.Adam(), {"learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "bias_correction": True}),
        (
            xn.AdamW(),
            {"learning_rate": 0.001, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "bias_correction": True}
            | {"weight_decay": 0.01, "decays": "all", "memory": ("m", "v")},
        ),
    ],
    ids=lambda v: type(v).__name__,
)
def test_the_defaults_are_the_designs(optimizer, defaults):
    assert vars(optimizer) == {"weight_decay": 0.0, "clip_value": None, "clip_norm": None} | defaults


@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_a_decay_of_weights_spares_what_has_one_axis_and_embeddings(lib, monkeypatch, kernels):
    """With a gradient of 0 Adam's part is 0 and the decay alone is left."""
    monkeypatch.setenv("XPNET_KERNELS", kernels)
    net = xn.Sequential(
        xn.Embedding(3, 4), xn.PositionalEmbedding(2, 4), xn.LayerNorm(4), xn.Dense(4, 2), xn.Dense(2, 2)
    )
    net.layers[-1].trainable = False
    net.initialize(lib.backend, "float64")
    params = {k: np.ones(tuple(a.shape)) for k, a in net.params.items()} | {"4.weight": np.zeros((2, 2))}
    net.set_params(params)
    optimizer = xn.AdamW(0.1, weight_decay=0.5, decays="weights")
    how = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": optimizer, "epochs": 2, "batch_size": None}
    history = net.fit(np.array([[0, 1], [2, 2]]), np.zeros((2, 2), int), **how)
    for name, a in net.params.items():
        lib.agrees(a, params[name] * (0.95**2 if name == "3.weight" else 1.0))
    spared = lib.to_numpy(history.slots["spared"])
    assert (
        spared == np.concatenate([np.full(p.size, k != "3.weight") for k, p in params.items() if k[0] != "4"])
    ).all()
    net.fit(np.array([[0, 1]]), np.zeros((1, 2), int), slots=history.slots, **how)
    lib.agrees(net.params["3.weight"], np.full((4, 2), 0.95**4))


def test_a_decay_of_weights_is_by_hand_one_of_all(lib):
    ends = [trained(lib, xn.AdamW(0.1, weight_decay=0.5, decays=d), START, slope, 3) for d in ("all", "weights")]
    lib.agrees(ends[0], lib.to_numpy(ends[1]))
    with pytest.raises(ValueError, match="AdamW: decays must be"):
        xn.AdamW(decays="biases")
    optimizer = xn.AdamW(decays="weights")
    assert repr(optimizer) == "AdamW(decays='weights')"
    assert repr(optimizer.set_params(decays="all")) == "AdamW()"
    assert optimizer.memory == ("m", "v")


def test_the_tutorials_adam_is_adam_with_a_rescaled_rate(lib):
    η, β1, β2, eps = 0.01, 0.9, 0.999, 1e-8
    w, m, v = START, 0.0, 0.0
    for _ in range(STEPS):  # it divides by 1 - β at every step, not by 1 - βᵗ
        m, v = β1 * m + (1 - β1) * slope(w), β2 * v + (1 - β2) * slope(w) ** 2
        w = w - η * (m / (1 - β1)) / (np.sqrt(v / (1 - β2)) + eps)
    root = math.sqrt(1 - β2)
    ours = xn.Adam(η * root / (1 - β1), β1, β2, eps=eps * root, bias_correction=False)
    lib.agrees(trained(lib, ours, START, slope, STEPS), w, rtol=1e-12)


# --- pure -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_optimizer
def test_an_update_changes_nothing_it_was_given(lib, optimizer, dtype):
    w, gradient = lib.asarray(START, dtype), lib.asarray(slope(START), dtype)
    _, slots = optimizer.update(w, gradient, optimizer.init(w))  # one that holds something
    given = [w, gradient, *(slots[name] for name in optimizer.memory)]
    before, step, names = [lib.to_numpy(a).copy() for a in given], slots["step"], list(slots)

    optimizer.lookahead(w, slots)
    first = optimizer.update(w, gradient, slots)
    again = optimizer.update(w, gradient, slots)

    assert (slots["step"], list(slots)) == (step, names)
    for array, old in zip(given, before, strict=True):
        np.testing.assert_array_equal(lib.to_numpy(array), old, strict=True)
    np.testing.assert_array_equal(lib.to_numpy(first[0]), lib.to_numpy(again[0]), strict=True)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every_optimizer
def test_the_dtype_is_kept_and_slots_are_like_w(lib, optimizer, dtype):
    w = lib.asarray(START.reshape(4, 2), dtype)
    slots = optimizer.init(w)
    for _ in range(2):
        assert slots.keys() == {"step", *optimizer.memory}
        for array in (w, optimizer.lookahead(w, slots), *(slots[name] for name in optimizer.memory)):
            assert lib.backend.owns(array)
            assert array.dtype == getattr(lib.xp, dtype)
            assert array.shape == (4, 2)
            assert array.device == w.device
        w, slots = optimizer.update(w, w, slots)
    assert slots["step"] == 2


def test_slots_start_at_zero(lib):
    slots = xn.Adam().init(lib.asarray(START))
    assert slots["step"] == 0
    assert not lib.to_numpy(slots["m"]).any()
    assert not lib.to_numpy(slots["v"]).any()


# --- clipping ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dtype", "size"), [("float64", 1e200), ("float64", 1e-200), ("float32", 1e30), ("float32", 3e37)]
)
def test_clip_norm_neither_overflows_nor_underflows(lib, dtype, size):
    """Where the squares, and in the last case even the norm, leave the dtype."""
    g = np.full(400, size)
    limited = xn.SGD(clip_norm=0.5).limited(lib.asarray(g, dtype))
    expected = np.full(400, 0.5 / 20) if size > 1 else g
    np.testing.assert_allclose(lib.to_numpy(limited), expected, rtol=1e-5 if dtype == "float32" else 1e-12)


def test_clip_norm_of_a_zero_gradient_is_zero(lib):
    limited = lib.to_numpy(xn.SGD(clip_norm=0.5).limited(lib.asarray(np.zeros(5), "float64")))
    np.testing.assert_array_equal(limited, np.zeros(5))


def test_a_gradient_within_the_limits_passes_unchanged(lib):
    g = np.array([0.3, -0.4])
    limited = xn.SGD(clip_norm=0.5 + 1e-9, clip_value=0.4).limited(lib.asarray(g))
    np.testing.assert_array_equal(lib.to_numpy(limited), g)


@pytest.mark.parametrize("optimizer", [xn.SGD(), xn.SGD(clip_value=1.0), xn.SGD(clip_norm=1.0)], ids=repr)
def test_a_gradient_that_is_not_a_number_is_not_hidden(lib, optimizer):
    w = trained(lib, optimizer, np.ones(3), lambda w: np.array([1.0, np.nan, 1.0]), 1)
    assert np.isnan(lib.to_numpy(w)[1])


# --- they converge ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "factor"),  # by which Σ c_i w_i² / 2, c from 1 to 10, falls in 200 steps
    [
        (xn.SGD(0.01), 1e6),
        (xn.SGD(0.1, momentum=0.0), 1e12),
        (xn.Nesterov(0.02, momentum=0.8, clip_value=None), 1e12),
        (xn.Nesterov(0.02, momentum=0.8), 1e4),
        (xn.Adagrad(0.5), 1e6),
        (xn.RMSprop(xn.CosineDecay(0.05, 200)), 1e4),
        (xn.Adam(0.1), 1e4),
        (xn.Adam(0.05, bias_correction=False), 1e4),
        (xn.AdamW(0.1), 1e4),
    ],
    ids=repr,
)
def test_a_convex_loss_falls_by_the_stated_factor(lib, optimizer, factor):
    c = np.linspace(1.0, 10.0, START.size)
    w = lib.to_numpy(trained(lib, optimizer, START, lambda w: c * w, 200))
    assert (c * w**2).sum() * factor < (c * START**2).sum()


# --- settings ---------------------------------------------------------------------------------------------------------


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        (xn.SGD, {"learning_rate": 0.0}),
        (xn.SGD, {"learning_rate": math.inf}),
        (xn.SGD, {"learning_rate": "fast"}),
        (xn.SGD, {"momentum": 1.0}),
        (xn.Nesterov, {"momentum": -0.1}),
        (xn.Nesterov, {"clip_value": 0.0}),
        (xn.Adagrad, {"eps": 0.0}),
        (xn.Adagrad, {"clip_norm": -1.0}),
        (xn.RMSprop, {"rho": 1.0}),
        (xn.Adam, {"beta1": 1.0}),
        (xn.Adam, {"beta2": 1.0}),
        (xn.AdamW, {"weight_decay": math.nan}),
    ],
)
def test_an_impossible_setting_is_refused_by_name(kind, settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=rf"^{kind.__name__}: {name} must be .*, got {value!r}$"):
        kind(**settings)


@pytest.mark.numpy_only
@pytest.mark.parametrize("kind", [xn.SGD, xn.Nesterov, xn.Adagrad, xn.RMSprop, xn.Adam, xn.AdamW])
def test_help_shows_every_setting(kind):
    shown = inspect.signature(kind).parameters
    assert {"learning_rate", "weight_decay", "clip_value", "clip_norm"} <= set(shown)
    assert {name: p.default for name, p in shown.items()} == kind().settings()


@pytest.mark.numpy_only
def test_help_shows_the_settings_of_ones_own_optimizer_and_of_a_schedules_call():
    class Own(xn.SGD):
        def __init__(self, *given, strength, **common):
            super().__init__(*given, **common)

    assert str(inspect.signature(Own)).startswith("(*given, strength, learning_rate=0.01, momentum=0.8, ")
    assert list(inspect.signature(xn.Constant(0.1)).parameters) == ["step"]


@pytest.mark.numpy_only
@pytest.mark.parametrize("kind", [xn.SGD, xn.Nesterov, xn.Adagrad, xn.RMSprop, xn.Adam, xn.AdamW])
def test_a_setting_that_there_is_not_is_refused_with_those_that_there_are(kind):
    there = ", ".join(kind().settings())
    assert there.startswith("learning_rate, ")
    with pytest.raises(TypeError, match=rf"^{kind.__name__}: no setting 'lr'; there are {there}$"):
        kind(lr=0.1)


@pytest.mark.parametrize("rate", [-0.1, math.nan, math.inf])
def test_a_schedule_that_leaves_its_range_is_refused_at_that_step(rate):
    optimizer = xn.Adam(lambda step: 0.1 if step < 3 else rate)
    w, slots = np.ones(2), optimizer.init(np.ones(2))
    for _ in range(3):
        w, slots = optimizer.update(w, w, slots)
    with pytest.raises(ValueError, match=r"^Adam: learning_rate's schedule at step 3 must be"):
        optimizer.update(w, w, slots)


def told(thing):
    """What it is, with the schedule within it."""
    return type(thing), {k: told(v) if callable(v) else v for k, v in vars(thing).items()}


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("given", "end"),
    [
        (xn.CosineDecay, r"a schedule such as CosineDecay\(0.01, 1000\), got <class '.*CosineDecay'>"),
        ({"0.weight": np.ones((64, 32))}, "a number or a schedule, got a dict: the parameters are given by fit"),
    ],
    ids=["a class", "parameters"],
)
def test_what_is_no_rate_is_refused_when_the_optimizer_is_made(given, end):
    with pytest.raises(TypeError, match=f"^Adam: learning_rate must be .*{end}$"):
        xn.Adam(given)
    with pytest.raises(TypeError, match=f"^WarmUp: then must be .*{end}$"):
        xn.WarmUp(given, 10)


def test_a_rate_that_is_an_array_is_refused_with_the_remedy(lib):
    w = lib.asarray([1.0])
    optimizer = xn.SGD(lambda step: lib.asarray(0.1))
    with pytest.raises(
        ValueError, match=r"^SGD: learning_rate's schedule at step 0 .*: float\(\.\.\.\) of it is a number$"
    ):
        optimizer.update(w, w, optimizer.init(w))


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    "optimizer",
    [
        *EVERY,
        xn.Nesterov(clip_value=None),
        xn.AdamW(weight_decay=0.0, bias_correction=False),
        xn.SGD(xn.WarmUp(xn.CosineDecay(0.1, 9), 3), 0.5),
    ],
    ids=repr,
)
def test_repr_makes_the_same_optimizer_again(optimizer):
    assert told(eval(repr(optimizer), vars(xn).copy())) == told(optimizer)


# --- settings by name, as scikit-learn's searches read and set them ---------------------------------------------------

ADJUSTABLE = [
    *EVERY,
    xn.AdamW(xn.WarmUp(xn.StepDecay(0.1), 5), clip_norm=1.0),
    *(make() for make, _, _ in cases.LOSSES.values()),
    xn.ExponentialDecay(0.3),
    xn.CosineDecay(0.1, 9),
]


@pytest.mark.numpy_only
@pytest.mark.parametrize("thing", ADJUSTABLE, ids=repr)
def test_get_params_makes_the_same_thing_again_and_so_does_clone(thing):
    params = thing.get_params(deep=False)
    assert params == thing.settings()
    same = type(thing)(**params)
    assert told(same) == told(thing)
    assert all(same.get_params(deep=False)[name] is value for name, value in params.items())
    twin = sklearn.base.clone(thing)
    assert twin is not thing
    assert told(twin) == told(thing)
    assert told(twin.set_params(**thing.get_params())) == told(thing)


@pytest.mark.numpy_only
def test_set_params_reaches_the_schedule_within_and_leaves_another_optimizers_alone():
    schedule = xn.StepDecay(0.1)
    optimizer, other = xn.Adam(xn.WarmUp(schedule, 5)), xn.SGD(schedule)
    assert optimizer.get_params()["learning_rate__then__factor"] == 0.1
    assert optimizer.set_params(learning_rate__then__factor=0.5, learning_rate__steps=7, beta1=0.5) is optimizer
    assert repr(optimizer) == "Adam(learning_rate=WarmUp(StepDecay(0.1, factor=0.5), 7), beta1=0.5)"
    assert repr(other) == "SGD(learning_rate=StepDecay(0.1))"


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"rate": 0.1}, r"^Invalid parameter 'rate' for Adam\(\)\. Valid parameters are: \['learning_rate', 'beta1', "),
        ({"rate__factor": 0.1}, r"^Invalid parameter 'rate' for Adam\(\)\."),
        ({"learning_rate__factor": 0.1}, r"^Adam\(\): learning_rate is 0.001, which has no parameters \['factor'\]"),
        ({"learning_rate": -1.0}, "^Adam: learning_rate must be above 0 and finite, got -1.0"),
    ],
    ids=str,
)
def test_set_params_refuses_what_the_constructor_would_and_changes_nothing(params, words):
    optimizer = xn.Adam()
    before = told(optimizer)
    with pytest.raises(ValueError, match=words):
        optimizer.set_params(beta1=0.5, **params)
    assert told(optimizer) == before


@pytest.mark.numpy_only
def test_an_optimizer_that_keeps_its_arguments_under_other_names_is_cloned_all_the_same():
    class Own(xn.SGD):
        def __init__(self, strength):
            super().__init__(2 * strength)

    own = Own(0.1)
    assert own.get_params() == {}
    assert told(sklearn.base.clone(own)) == told(own)


def test_a_look_ahead_takes_the_arrays_alone(lib):
    """As jax.jit's step has them, which keeps the count of steps apart."""
    w, v = lib.asarray(np.ones(3), "float64"), lib.asarray(np.full(3, 0.5), "float64")
    lib.agrees(xn.Nesterov(momentum=0.4).lookahead(w, {"velocity": v}), np.full(3, 0.8))
