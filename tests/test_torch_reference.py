"""Held against PyTorch: its layers and losses by autograd, its optimizers step for step. Axes: N batch, D in, H out."""

import copy
import types

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import xpnet as xn
from support.cases import gpt
from xpnet.kernels import training_step
from xpnet.losses.objective import Objective
from xpnet.training.batches import Batch

pytestmark = pytest.mark.torch_only

STEPS = 50
RTOL = 1e-12  # of the largest entry of each array

# sizes of a batch and its features, and a seed for the numbers in it
drawn = given(st.integers(2, 40), st.integers(1, 20), st.integers(0, 2**32 - 1))
often = settings(max_examples=15, deadline=None, derandomize=True)


@pytest.fixture(scope="module")
def torch():
    import torch

    return torch


def agree(ours, theirs):
    a, b = (np.asarray(x.detach()) for x in (ours, theirs))
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    np.testing.assert_allclose(a, b, rtol=0, atol=RTOL * (np.abs(b).max() or 1.0))


def agree_on_dx(layer, training, x, dy, dx, expected):
    spreads = {xn.BatchNorm: x.var(0), xn.LayerNorm: x.var(-1, correction=0), xn.RMSNorm: (x * x).mean(-1)}
    if type(layer) in spreads and (training or type(layer) is not xn.BatchNorm):  # what cancels: as large as its terms
        gamma = layer.params["gamma"].detach()
        scale = (gamma.abs().max() * dy.abs().max() / (spreads[type(layer)] + layer.eps).min().sqrt()).item()
        np.testing.assert_allclose(dx, expected, rtol=0, atol=RTOL * max(scale, 1.0))
    else:
        agree(dx, expected)


def on_torch(layer, rng):
    """The layer with parameters and statistics, float64: random ones, so that none is at a special value."""
    net = xn.Sequential(layer).initialize("torch", "float64")
    net.set_params({k: rng.standard_normal(a.shape) for k, a in net.params.items()})
    net.set_state({k: rng.uniform(0.5, 2.0, a.shape) for k, a in net.state.items()})
    return layer


# --- layers -----------------------------------------------------------------------------------------------------------


def linear(torch, layer):
    theirs = torch.nn.Linear(layer.in_features, layer.out_features, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(layer.params["weight"].T)
        theirs.bias.copy_(layer.params["bias"])
    return theirs, lambda: {"weight": theirs.weight.grad.T, "bias": theirs.bias.grad}


def batch_norm(torch, layer):
    theirs = torch.nn.BatchNorm1d(layer.features, eps=layer.eps, dtype=torch.float64)
    with torch.no_grad():
        theirs.weight.copy_(layer.params["gamma"])
        theirs.bias.copy_(layer.params["beta"])
        theirs.running_mean.copy_(layer.state["mean"])
        theirs.running_var.copy_(layer.state["var"])
    return theirs, lambda: {"gamma": theirs.weight.grad, "beta": theirs.bias.grad}


def over_features(name):
    def norm(torch, layer):
        theirs = getattr(torch.nn, name)(layer.features, eps=layer.eps, dtype=torch.float64)
        ours = dict(zip(layer.params, theirs.parameters(), strict=True))
        with torch.no_grad():
            for key, p in ours.items():
                p.copy_(layer.params[key])
        return theirs, lambda: {key: p.grad for key, p in ours.items()}

    return norm


def plain(name, *settings):
    return lambda torch, layer: (getattr(torch.nn, name)(*(getattr(layer, s) for s in settings)), dict)


THEIRS = {  # (torch, our layer) -> their module with our parameters in it, and a function that names its gradients
    xn.Dense: linear,
    xn.BatchNorm: batch_norm,
    xn.LayerNorm: over_features("LayerNorm"),
    xn.RMSNorm: over_features("RMSNorm"),
    xn.Sigmoid: plain("Sigmoid"),
    xn.Tanh: plain("Tanh"),
    xn.ReLU: plain("ReLU"),
    xn.LeakyReLU: plain("LeakyReLU", "alpha"),
    xn.ELU: plain("ELU", "alpha"),
    xn.SiLU: plain("SiLU"),
    xn.GELU: lambda torch, layer: (torch.nn.GELU("tanh" if layer.approximate else "none"), dict),
    xn.Softplus: plain("Softplus"),
    xn.Softmax: lambda torch, layer: (torch.nn.Softmax(dim=-1), dict),
}
LAYERS = {  # ours for D features
    "Dense": lambda d: xn.Dense(d, 7),
    "Dense to 1": lambda d: xn.Dense(d, 1),
    "BatchNorm": lambda d: xn.BatchNorm(d),
    "BatchNorm(eps=1e-3)": lambda d: xn.BatchNorm(d, eps=1e-3),
    "LayerNorm": lambda d: xn.LayerNorm(d),
    "RMSNorm": lambda d: xn.RMSNorm(d),
    "Sigmoid": lambda d: xn.Sigmoid(),
    "Tanh": lambda d: xn.Tanh(),
    "ReLU": lambda d: xn.ReLU(),
    "LeakyReLU": lambda d: xn.LeakyReLU(),
    "LeakyReLU(-0.5)": lambda d: xn.LeakyReLU(-0.5),
    "ELU": lambda d: xn.ELU(),
    "ELU(1.5)": lambda d: xn.ELU(1.5),
    "SiLU": lambda d: xn.SiLU(),
    "GELU": lambda d: xn.GELU(),
    "GELU(approximate=True)": lambda d: xn.GELU(approximate=True),
    "Softplus": lambda d: xn.Softplus(),
    "Softmax": lambda d: xn.Softmax(),
}


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("name", LAYERS)
@often
@drawn
def test_a_layer_and_its_gradients_are_pytorchs_and_what_autograd_finds_in_our_own_forward(
    torch, name, training, n, d, seed
):
    rng = np.random.default_rng(seed)
    d += name == "LayerNorm"  # of one feature x̂ is 0, and PyTorch's a rounding error
    layer = on_torch(LAYERS[name](d), rng)
    module, their_grads = THEIRS[type(layer)](torch, layer)
    module.train(training)
    layer.params = {key: a.requires_grad_() for key, a in layer.params.items()}

    x = torch.tensor(rng.standard_normal((n, d)) * 3 + 1, requires_grad=True)
    y, cache = layer.forward(x, training)
    expected = module(x)
    agree(y, expected)

    dy = torch.tensor(rng.standard_normal(tuple(y.shape)))
    with torch.no_grad():
        dx, grads = layer.backward(dy, cache)
    for output, named in ((expected, their_grads), (y, lambda: {k: a.grad for k, a in layer.params.items()})):
        x.grad = None
        output.backward(dy)
        agree_on_dx(layer, training, x.detach(), dy, dx, x.grad)
        found = named()
        assert grads.keys() == found.keys() == layer.params.keys()
        for key, gradient in grads.items():
            agree(gradient, found[key])


# --- layers of sequences ----------------------------------------------------------------------------------------------


def attention_of(torch, x, params, heads, causal, prefix=""):
    """PyTorch's attention between our two products."""
    qkv = (x @ params[f"{prefix}qkv_weight"] + params[f"{prefix}qkv_bias"]).unflatten(-1, (3, heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (n, heads, t, d) each
    o = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
    return o @ params[f"{prefix}out_weight"] + params[f"{prefix}out_bias"]


def attention(rng):
    heads, causal = int(rng.integers(1, 4)), bool(rng.integers(2))
    layer = xn.MultiHeadAttention(heads * int(rng.integers(1, 5)), heads, causal)
    return layer, layer.features, lambda torch, x, p: attention_of(torch, x, p, heads, causal)


def over_features_of(kind, name, *keys):
    def drawn(rng):
        layer = kind(int(rng.integers(2, 9)), eps=10.0 ** rng.uniform(-6, -1))
        function, d = name, (layer.features,)
        return (
            layer,
            layer.features,
            lambda torch, x, p: getattr(torch.nn.functional, function)(x, d, *(p[key] for key in keys), eps=layer.eps),
        )

    return drawn


def gelu(rng):
    layer = xn.GELU(approximate=bool(rng.integers(2)))
    form = "tanh" if layer.approximate else "none"
    return layer, int(rng.integers(1, 9)), lambda torch, x, p: torch.nn.functional.gelu(x, approximate=form)


def embedding(rng):
    layer = xn.Embedding(int(rng.integers(1, 9)), int(rng.integers(1, 5)))
    return layer, None, lambda torch, x, p: torch.nn.functional.embedding(x, p["weight"])


def positions(rng):
    layer = xn.PositionalEmbedding(8, int(rng.integers(1, 5)))
    return layer, layer.features, lambda torch, x, p: x + p["weight"][torch.arange(x.shape[1])]


DRAWN = {  # a generator -> our layer, the features of x or None for ids, and the same of PyTorch's functions
    "attention": attention,
    "layer norm": over_features_of(xn.LayerNorm, "layer_norm", "gamma", "beta"),
    "rms norm": over_features_of(xn.RMSNorm, "rms_norm", "gamma"),
    "gelu": gelu,
    "embedding": embedding,
    "positional embedding": positions,
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_layer_of_sequences_is_pytorchs_in_200_settings(torch, name):
    for seed in range(200):
        rng = np.random.default_rng(seed)
        layer, features, theirs = DRAWN[name](rng)
        on_torch(layer, rng)
        n, t = rng.integers(1, 5), rng.integers(1, 9)
        if features is None:
            x = torch.tensor(rng.integers(layer.vocabulary, size=(n, t)))
        else:
            x = torch.tensor(rng.standard_normal((n, t, features)) * 2, requires_grad=True)
        params = {key: a.clone().requires_grad_() for key, a in layer.params.items()}
        with torch.no_grad():
            y, cache = layer.forward(x, training=True)
            dy = torch.tensor(rng.standard_normal(tuple(y.shape)))
            dx, grads = layer.backward(dy, cache)
        expected = theirs(torch, x, params)
        expected.backward(dy)
        found = [(y, expected.detach())] + [(grads[key], p.grad) for key, p in params.items()]
        for ours, other in found + [(dx, x.grad)] * (features is not None):
            np.testing.assert_allclose(ours, other, rtol=0, atol=1e-10 * max(1.0, float(other.abs().max())))


# --- losses -----------------------------------------------------------------------------------------------------------


def rows(rng, n, k):
    """Probabilities that add up to 1, none so small that 1/p leaves the accuracy."""
    p = rng.uniform(0.05, 1.0, (n, k))
    return p / p.sum(axis=1, keepdims=True)


def numbers(rng, n, k):
    return rng.standard_normal((n, k)) * 3


def classes(rng, n, k):
    return rng.integers(0, k, n)


def padded(rng, n, k):
    y = classes(rng, n, k)
    y[1:][rng.random(n - 1) < 0.4] = -100
    return y


def inside(rng, n, k):
    return rng.uniform(0.01, 0.99, (n, k))


def yes_or_no(rng, n, k):
    return rng.integers(0, 2, (n, k)).astype(float)


SMOOTHED = {"label_smoothing": 0.2}
LOSSES = [  # ours, prediction, target, PyTorch's, and whether its mean is over elements where ours is over rows
    (xn.MeanSquaredError, {}, numbers, numbers, "mse_loss", {}, False),
    (xn.MeanAbsoluteError, {}, numbers, numbers, "l1_loss", {}, False),
    (xn.Huber, {}, numbers, numbers, "huber_loss", {"delta": 1.0}, False),
    (xn.Huber, {"delta": 2.5}, numbers, numbers, "huber_loss", {"delta": 2.5}, False),
    (xn.SoftmaxCrossEntropy, {}, numbers, classes, "cross_entropy", {}, False),
    (xn.SoftmaxCrossEntropy, {}, numbers, rows, "cross_entropy", {}, False),
    (xn.SoftmaxCrossEntropy, SMOOTHED, numbers, classes, "cross_entropy", SMOOTHED, False),
    (xn.SoftmaxCrossEntropy, SMOOTHED, numbers, rows, "cross_entropy", SMOOTHED, False),
    (xn.SoftmaxCrossEntropy, {"ignore": -100}, numbers, padded, "cross_entropy", {}, False),
    (xn.SoftmaxCrossEntropy, {"ignore": -100} | SMOOTHED, numbers, padded, "cross_entropy", SMOOTHED, False),
    (xn.CategoricalCrossEntropy, {}, rows, classes, "nll_loss", {}, False),
    (xn.BinaryCrossEntropy, {}, inside, yes_or_no, "binary_cross_entropy", {}, True),
    (xn.BinaryCrossEntropy, {}, inside, inside, "binary_cross_entropy", {}, True),
    (xn.BinaryCrossEntropyWithLogits, {}, numbers, yes_or_no, "binary_cross_entropy_with_logits", {}, True),
    (xn.BinaryCrossEntropyWithLogits, {}, numbers, inside, "binary_cross_entropy_with_logits", {}, True),
]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(
    ("kind", "own", "predict", "aim", "function", "their", "per_row"),
    LOSSES,
    ids=[f"{row[4]}-{row[3].__name__}-{row[1] or ''}" for row in LOSSES],
)
@often
@drawn
def test_a_loss_and_its_gradient_are_pytorchs(
    torch, kind, own, predict, aim, function, their, per_row, reduction, n, k, seed
):
    rng = np.random.default_rng(seed)
    k += function in ("cross_entropy", "nll_loss")  # two classes at least
    p, t = torch.tensor(predict(rng, n, k), requires_grad=True), torch.tensor(aim(rng, n, k))
    value, gradient = kind(**own, reduction=reduction).value_and_grad(p.detach(), t)

    argument = torch.log(p) if function == "nll_loss" else p
    expected = getattr(torch.nn.functional, function)(argument, t, reduction=reduction, **their)
    if per_row and reduction == "mean":
        expected = expected * k
    expected.backward()
    agree(value, expected)
    agree(gradient, p.grad)

    p.grad = None
    kind(**own, reduction=reduction)(p, t).backward()  # autograd through our own value
    agree(p.grad, gradient)


# --- the whole network ------------------------------------------------------------------------------------------------


def tutorials_network():
    return xn.Sequential(
        *(xn.Dense(64, 32), xn.BatchNorm(32), xn.Sigmoid()),
        *(xn.Dense(32, 16), xn.BatchNorm(16), xn.ReLU()),
        *(xn.Dense(16, 10), xn.BatchNorm(10)),
    )


def pytorchs_network(torch, net):
    """The same in PyTorch, with the same parameters, and a function that gives its gradients under our names."""
    pairs = [THEIRS[type(layer)](torch, layer) for layer in net.layers]

    def grads():
        return {f"{i}.{name}": g for i, (_, own) in enumerate(pairs) for name, g in own().items()}

    return torch.nn.Sequential(*(module for module, _ in pairs)), grads


@pytest.mark.parametrize("batch", [2, 3, 128, 1500])
@pytest.mark.parametrize("soft", [False, True])
def test_the_tutorials_network_has_pytorchs_value_and_gradients(torch, batch, soft):
    rng = np.random.default_rng(batch)
    net = tutorials_network().initialize("torch", "float64", seed=3)
    net.set_params({k: a + 0.1 * torch.tensor(rng.standard_normal(tuple(a.shape))) for k, a in net.params.items()})
    x, y = rng.uniform(0, 1, (batch, 64)), rows(rng, batch, 10) if soft else rng.integers(0, 10, batch)
    value, ours = net.value_and_grad(x, y, xn.SoftmaxCrossEntropy())

    module, grads = pytorchs_network(torch, net)
    expected = torch.nn.functional.cross_entropy(module(torch.tensor(x)), torch.tensor(y))
    expected.backward()
    agree(value, expected)
    theirs = grads()
    assert ours.keys() == theirs.keys() == net.params.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    for name in ours:
        if name in ("0.bias", "3.bias", "6.bias"):  # under batch norm: zero, in PyTorch but for rounding
            assert not ours[name].any()
            assert float(theirs[name].abs().max()) < RTOL * largest
        else:
            agree(ours[name], theirs[name])


def test_the_tutorials_network_predicts_what_pytorch_does(torch):
    rng = np.random.default_rng(0)
    net = tutorials_network().initialize("torch", "float64")
    net.set_state({k: rng.uniform(0.5, 2.0, a.shape) for k, a in net.state.items()})
    module, _ = pytorchs_network(torch, net)
    x = torch.tensor(rng.standard_normal((50, 64)))
    agree(net.predict(x), module.eval()(x))


def pytorchs_gpt(torch, net, params, x):
    """The output of `cases.gpt` in PyTorch's functions."""
    functional = torch.nn.functional

    def norm(h, prefix):
        return functional.layer_norm(h, h.shape[-1:], params[f"{prefix}gamma"], params[f"{prefix}beta"], 1e-5)

    def dense(h, prefix):
        return h @ params[f"{prefix}weight"] + params[f"{prefix}bias"]

    h = functional.embedding(x, params["0.weight"]) + params["1.weight"][: x.shape[1]]
    last = len(net.layers) - 1
    for i in range(2, last - 1, 2):
        heads = net.layers[i].layers[1].heads
        h = h + attention_of(torch, norm(h, f"{i}.0."), params, heads, causal=True, prefix=f"{i}.1.")
        inner = functional.gelu(dense(norm(h, f"{i + 1}.0."), f"{i + 1}.1."))
        h = h + dense(inner, f"{i + 1}.3.")
    return dense(norm(h, f"{last - 1}."), f"{last}.")


@pytest.mark.parametrize("backend", ["numpy", "torch"])
@pytest.mark.parametrize("name", ["Adam", "AdamW", "AdamW of weights"])
def test_twenty_steps_of_a_small_gpt_are_pytorchs(torch, name, backend):
    """layers/test_sequences.py holds the other backends to NumPy's."""
    rng = np.random.default_rng(0)
    net = gpt(11, 8, 12, 3).initialize(backend, "float64", seed=4)
    net.set_params({k: rng.normal(0.0, 0.3, a.shape) for k, a in net.params.items()})
    params = {k: torch.tensor(net.backend.to_numpy(a)).requires_grad_() for k, a in net.params.items()}
    x, y = rng.integers(11, size=(20, 7)), rng.integers(11, size=(20, 7))

    groups, ours = [{"params": [*params.values()]}], getattr(xn, name.partition(" ")[0])(0.003)
    if name.endswith("weights"):
        weights = [k for k, a in params.items() if a.ndim > 1 and k not in ("0.weight", "1.weight")]
        groups = [
            {"params": [params[k] for k in weights], "weight_decay": 0.5},
            {"params": [a for k, a in params.items() if k not in weights], "weight_decay": 0.0},
        ]
        ours = xn.AdamW(0.003, weight_decay=0.5, decays="weights")
    optimizer = getattr(torch.optim, type(ours).__name__)(groups, lr=0.003)
    for first in 5 * [0, 5, 10, 15]:
        rows = slice(first, first + 5)
        optimizer.zero_grad()
        outputs = pytorchs_gpt(torch, net, params, torch.tensor(x[rows]))
        torch.nn.functional.cross_entropy(outputs.flatten(0, 1), torch.tensor(y[rows]).flatten()).backward()
        optimizer.step()

    how = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": ours, "batch_size": 5}
    net.fit(x, y, epochs=5, shuffle=False, **how)
    for key, a in net.params.items():
        ours, theirs = net.backend.to_numpy(a), params[key].detach().numpy()
        if key.endswith("qkv_bias"):  # a bias of the keys has no effect, and PyTorch's Adam follows its rounding
            ours, theirs = (np.delete(bias, slice(12, 24)) for bias in (ours, theirs))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-10, err_msg=key)


# --- optimizers -------------------------------------------------------------------------------------------------------

OPTIMIZERS = [  # ours, PyTorch's, its settings
    (xn.SGD(0.02, momentum=0.0), "SGD", {"lr": 0.02}),
    (xn.SGD(0.02, momentum=0.9), "SGD", {"lr": 0.02, "momentum": 0.9}),
    (xn.SGD(0.02, momentum=0.9, weight_decay=0.3), "SGD", {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.3}),
    (xn.Adam(0.02), "Adam", {"lr": 0.02}),
    (xn.Adam(0.02, 0.8, 0.95, eps=1e-3), "Adam", {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3}),
    (xn.Adam(0.02, weight_decay=0.3), "Adam", {"lr": 0.02, "weight_decay": 0.3}),
    (xn.AdamW(0.02), "AdamW", {"lr": 0.02}),
    (xn.AdamW(0.02, weight_decay=0.3), "AdamW", {"lr": 0.02, "weight_decay": 0.3}),
    (
        xn.AdamW(0.02, 0.8, 0.95, eps=1e-3, weight_decay=0.3),
        "AdamW",
        {"lr": 0.02, "betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3},
    ),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(
    ("ours", "name", "their"), OPTIMIZERS, ids=[f"{name}-{'-'.join(s)}" for _, name, s in OPTIMIZERS]
)
def test_fifty_steps_of_an_optimizer_are_pytorchs(torch, ours, name, their, seed):
    """On Σ log cosh(Aw - b), each at its own point."""
    rng = np.random.default_rng(seed)
    a, b = torch.tensor(rng.standard_normal((12, 8)) / 4), torch.tensor(rng.standard_normal(12))
    w = torch.tensor(rng.standard_normal(8))
    parameter = torch.nn.Parameter(w.clone())
    theirs = getattr(torch.optim, name)([parameter], **their)
    slots = ours.init(w)
    for _ in range(STEPS):
        w, slots = ours.update(w, a.T @ torch.tanh(a @ ours.lookahead(w, slots) - b), slots)
        theirs.zero_grad()
        torch.log(torch.cosh(a @ parameter - b)).sum().backward()
        theirs.step()
        agree(w, parameter)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("patience", "cooldown", "min_delta"), [(1, 0, 0.0), (3, 2, 0.0), (2, 3, 0.5), (4, 1, 0.25)])
def test_a_plateaus_rates_are_pytorchs_whose_patience_is_one_lower(torch, patience, cooldown, min_delta, seed):
    values = np.cumsum(np.random.default_rng(seed).integers(-4, 5, 60)) / 4
    ours = xn.ReduceOnPlateau(factor=0.5, patience=patience, cooldown=cooldown, min_delta=min_delta, min_rate=1e-3)
    run = types.SimpleNamespace(history=xn.History(), optimizer=xn.SGD(0.1), epoch=0)
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs, factor=0.5, patience=patience - 1, threshold=min_delta, threshold_mode="abs", cooldown=cooldown,
        min_lr=1e-3, eps=0.0,
    )  # fmt: skip
    ours.train_begin(run)
    for run.epoch, value in enumerate(values.tolist(), 1):
        run.history.record({"val_loss": value})
        ours.epoch_end(run)
        schedule.step(value)
        assert run.optimizer.learning_rate == theirs.param_groups[0]["lr"]


@pytest.mark.parametrize(("largest", "limit"), [(0.3, None), (None, 0.2), (1e6, None)])
def test_clipping_is_pytorchs(torch, largest, limit):
    g = torch.tensor(np.random.default_rng(0).standard_normal(30))
    parameter = torch.nn.Parameter(torch.zeros(30, dtype=torch.float64))
    parameter.grad = g.clone()
    if largest is not None:
        torch.nn.utils.clip_grad_norm_(parameter, largest)
    if limit is not None:
        torch.nn.utils.clip_grad_value_(parameter, limit)
    ours = xn.SGD(clip_norm=largest, clip_value=limit).limited(g)
    # PyTorch divides by the norm + 1e-6
    np.testing.assert_allclose(ours, parameter.grad, rtol=2e-6 if largest else RTOL)


def test_a_training_run_is_pytorchs(torch, digits):
    """Five epochs of minibatches in order: forward, loss, backward, optimizer, together."""
    x, y = digits[0][:200], digits[1][:200]
    net = tutorials_network().initialize("torch", "float64", seed=1)
    module, _ = pytorchs_network(torch, net)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.8)
    net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.SGD(0.05, 0.8), epochs=5, batch_size=32, shuffle=False)
    for _ in range(5):
        for start in range(0, 200, 32):
            optimizer.zero_grad()
            part = slice(start, start + 32)
            logits = module(torch.tensor(x[part]))
            torch.nn.functional.cross_entropy(logits, torch.tensor(y[part])).backward()
            optimizer.step()
    agree(net.layers[0].params["weight"], module[0].weight.T)
    agree(net.layers[6].params["weight"], module[6].weight.T)
    agree(net.layers[7].params["gamma"], module[7].weight)


# --- a device that works on its own, as a GPU does: here the CPU, in a backend that is not told so --------------------


@pytest.mark.parametrize("name", ["SGD", "Nesterov", "Adagrad", "RMSprop", "Adam"])
def test_no_step_waits_for_a_device(torch, rng, monkeypatch, name):
    usual = xn.get_backend("torch")
    device = copy.copy(usual)
    device.immediate = False
    x, y = usual.asarray(rng.normal(size=(40, 6))), usual.asarray(np.eye(3)[np.arange(40) % 3])
    layers = xn.Dense(6, 8), xn.BatchNorm(8), xn.Sigmoid(), xn.Dropout(0.2), xn.Dense(8, 5), xn.ReLU(), xn.Dense(5, 3)
    found = {}

    def refuse(*anything):
        raise AssertionError("a step waited for the device")

    for backend in (usual, device):
        net = xn.Sequential(*layers).initialize(backend, "float64", seed=1)
        objective = Objective(xn.SoftmaxCrossEntropy(), l2=0.1)
        step = training_step(net, objective, getattr(xn, name)(0.05, clip_norm=1.0, weight_decay=0.01))
        assert type(step).__name__ == "BufferedStep"
        carry, values = step.start, []
        with monkeypatch.context() as patch:
            for method in ("__float__", "__bool__", "__int__", "item", "tolist", "numpy", "cpu"):
                if backend is device:
                    patch.setattr(torch.Tensor, method, refuse)
            for start in range(0, 40, 10):
                value, carry = step.on_rows(carry, Batch(x, y), slice(start, start + 10), keep=(step.start, carry))
                values.append(value)
        found[backend] = [*map(float, values), *usual.to_numpy(carry.weights)]
    np.testing.assert_array_equal(found[device], found[usual])
