"""The fast forms of the training step, calls and Numba's loops, against the plain one: the same numbers."""

import itertools
import math

import numpy as np
import pytest

import xpnet as xn
from support.cases import FEATURES, LAYERS, LOSSES, Scale, gpt, tutorial_network
from support.layers import Twice
from xpnet.kernels.planner import BufferedStep
from xpnet.kernels.reference import Step
from xpnet.kernels.table import POINTWISE
from xpnet.training.batches import Batch

pytestmark = [pytest.mark.numpy_only, pytest.mark.torch_only, pytest.mark.usefixtures("small_blocks")]

# A gradient here is a chain of some ten sums of up to 40 terms, and weights add up five of them: at most 10 · 40 · 5
# roundings of half an eps, each relative to the largest number in its sum.
ROUNDINGS = 1000
EPS = {"float32": float(np.finfo(np.float32).eps), "float64": float(np.finfo(np.float64).eps)}
SIZES = (33, 33, 5, 40, 2)  # of the batches: alike, smaller, and larger than any before
CROSS = xn.SoftmaxCrossEntropy()


@pytest.fixture
def backend(request):
    return xn.get_backend(request.config.getoption("--backend"))


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


def taken(step, batches):
    """The loss, weights, slots and statistics after each batch, as NumPy's own copies."""
    host, carry, seen = step.backend.to_numpy, step.start, []
    with step.backend.scope():
        for x, y in batches:
            value, carry = step.on_rows(carry, Batch(x, y), slice(0, x.shape[0]), (carry,))
            slots = {f"slot {name}": carry.slots[name] for name in getattr(step.optimizer, "memory", ())}
            arrays = {"weights": carry.weights} | slots | step.state(carry)
            seen.append((float(value), carry.slots["step"], {k: np.array(host(a)) for k, a in arrays.items()}))
    return seen


def assert_same_steps(kernels, backend, dtype, net, loss=CROSS, optimizer=None, sizes=SIZES, target=None, rtol=None):
    """Five steps of the fast form are the plain one's, to ROUNDINGS of each array's largest entry."""
    rng = np.random.default_rng(3)
    net = net.initialize(backend, dtype, seed=5)
    features = (net.input_shape or (FEATURES,))[0]
    with backend.scope():
        outputs = net.forward(backend.asarray(np.zeros((2, features)), dtype))[0].shape[1]
    target = target or (lambda rng, n, k: rng.integers(k, size=n))
    batches = []
    for n in sizes:
        x = backend.asarray(rng.normal(size=(n, features)), dtype)
        like = backend.asarray(np.zeros((n, outputs)), dtype)
        batches.append((x, loss.encode(target(rng, n, outputs), like)))
    before = [[np.array(backend.to_numpy(a)) for a in batch] for batch in batches]
    optimizer = optimizer or xn.SGD(0.1)
    with backend.scope():
        plain, fast = Step(net, loss, optimizer), BufferedStep(net, loss, optimizer, kernels())
    expected, seen = taken(plain, batches), taken(fast, batches)
    rtol = rtol or ROUNDINGS * EPS[dtype]
    for (value, count, arrays), (plain_value, plain_count, plain_arrays) in zip(seen, expected, strict=True):
        assert value == pytest.approx(plain_value, rel=rtol, abs=rtol)
        assert count == plain_count
        assert arrays.keys() == plain_arrays.keys()
        for name, a in plain_arrays.items():
            assert arrays[name].dtype == a.dtype
            np.testing.assert_allclose(arrays[name], a, rtol=0, atol=rtol * max(1.0, np.abs(a).max()), err_msg=name)
    for batch, numbers in zip(batches, before, strict=True):
        for a, b in zip(batch, numbers, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(a), b)


# --- layers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("more", [False, True], ids=["", "norm and pool"])
@pytest.mark.parametrize("row", POINTWISE.values(), ids=list(POINTWISE))
def test_every_function_after_convolutions(row, more, kernels, backend):
    f = () if row.layer is None else (row.layer(**dict(row.of)),)
    between = (xn.BatchNorm(3), *f, xn.MaxPool2d(2)) if more else f
    layers = xn.Conv2d(2, 3, 3, padding=1), *between, xn.Conv2d(3, 3, 2, stride=2), *f
    net = xn.Sequential(D(FEATURES, 32), xn.Reshape(2, 4, 4), *layers, xn.Flatten())
    assert_same_steps(kernels, backend, "float32", net)


class Same(xn.Layer):
    """The identity, handing on x and dy themselves."""

    def forward(self, x, training=False):
        return x, None

    def backward(self, dy, cache):
        return dy, {}


class Stop(xn.Layer):
    """The identity, whose dx is one and the same constant: `make` gives it from an array of zeros like dy."""

    def __init__(self, make):
        self.make, self.kept = make, {}

    def forward(self, x, training=False):
        return x, None

    def backward(self, dy, cache):
        shape = tuple(dy.shape)
        if shape not in self.kept:
            self.kept[shape] = self.make(0.0 * dy)
        kept = self.kept[shape]
        assert bool((kept == kept.ravel()[0]).all())  # nobody has written into it
        return kept, {}


class Images(xn.Layer):
    """Rows as small images and back, y = x + 0.1 (x's left neighbour): arrays of three axes inside."""

    def forward(self, x, training=False):
        images = x.reshape((x.shape[0], 2, -1))
        y = images * 1.0
        y[:, :, 1:] += 0.1 * images[:, :, :-1]
        return y.reshape(tuple(x.shape)), None

    def backward(self, dy, cache):
        images = dy.reshape((dy.shape[0], 2, -1))
        dx = images * 1.0
        dx[:, :, :-1] += 0.1 * images[:, :, 1:]
        return dx.reshape(tuple(dy.shape)), {}


class Folded(xn.Layer):
    """(N, D) as (N, 2, D / 2), or back: what comes between works on three axes."""

    def __init__(self, back=False):
        self.back = back

    def forward(self, x, training=False):
        return x.reshape((x.shape[0], -1) if self.back else (x.shape[0], 2, -1)), tuple(x.shape)

    def backward(self, dy, cache):
        return dy.reshape(cache), {}

    def output_shape(self, shape):
        return shape


class Split(Folded):
    """The same, and it tells its shape."""

    def output_shape(self, shape):
        return (shape[0], 8) if self.back else (*shape[:-1], 2, 4)


class Halfway(xn.Residual):
    """y = x + f(x) / 2"""

    def forward(self, x, training=False):
        y, cache = super().forward(x, training)
        return 0.5 * (x + y), cache

    def backward(self, dy, cache):
        dx, grads = super().backward(0.5 * dy, cache)
        return dx + 0.5 * dy, grads


def read_only(a):
    a = a + 0.25
    if isinstance(a, np.ndarray):
        a.flags.writeable = False
    return a


def broadcast(a):
    a = a + 0.25
    return np.broadcast_to(a[:1, :1], a.shape) if isinstance(a, np.ndarray) else a[:1, :1].expand(a.shape)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_in_the_middle_of_a_network(name, kernels, backend, dtype):
    layer = LAYERS[name]()
    (features,) = layer.output_shape((FEATURES,))
    net = xn.Sequential(xn.Dense(5, FEATURES), layer, xn.Dense(features, 3))
    assert_same_steps(kernels, backend, dtype, net)


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_at_the_ends_of_a_network(name, kernels, backend):
    first, last = LAYERS[name](), LAYERS[name]()
    (features,) = first.output_shape((FEATURES,))
    net = xn.Sequential(first, xn.Dense(features, FEATURES), last)
    assert_same_steps(kernels, backend, "float64", net, xn.MeanSquaredError(), xn.SGD(0.01), target=normal)


def normal(rng, n, k):
    return rng.normal(size=(n, k))


D = xn.Dense
NETWORKS = {
    "tutorial": tutorial_network,
    "dense alone": lambda: xn.Sequential(D(6, 3)),
    "dense, norm, function": lambda: xn.Sequential(D(6, 8), xn.BatchNorm(8), xn.Tanh(), D(8, 3)),
    "dense, function": lambda: xn.Sequential(D(6, 8), xn.Sigmoid(), D(8, 7), xn.ReLU(), D(7, 3), xn.Tanh()),
    "dense, function, norm": lambda: xn.Sequential(D(6, 8), xn.ReLU(), xn.BatchNorm(8), D(8, 3)),
    "dense, dense": lambda: xn.Sequential(D(6, 8), D(8, 9), D(9, 4), D(4, 3)),
    "norm first": lambda: xn.Sequential(xn.BatchNorm(6), D(6, 5), xn.BatchNorm(5), xn.ReLU(), D(5, 3)),
    "norm and function first": lambda: xn.Sequential(xn.BatchNorm(6), xn.Sigmoid(), D(6, 3)),
    "norm, norm": lambda: xn.Sequential(D(6, 5), xn.BatchNorm(5), xn.BatchNorm(5), xn.ReLU(), xn.BatchNorm(5)),
    "function first": lambda: xn.Sequential(xn.Tanh(), D(6, 5), xn.Sigmoid(), xn.ReLU(), D(5, 3)),
    "frozen dense first": lambda: xn.Sequential(D(6, 5, trainable=False), xn.BatchNorm(5), xn.ReLU(), D(5, 3)),
    "frozen dense within": lambda: xn.Sequential(D(6, 5), xn.ReLU(), D(5, 5, trainable=False), xn.Tanh(), D(5, 3)),
    "frozen norm": lambda: xn.Sequential(D(6, 5), xn.BatchNorm(5, trainable=False), xn.Sigmoid(), D(5, 3)),
    "dropout": lambda: xn.Sequential(
        xn.Dropout(0.1), D(6, 9), xn.Dropout(0.3), xn.BatchNorm(9), xn.Dropout(0.2), xn.ReLU(), D(9, 3)
    ),
    "nested": lambda: xn.Sequential(
        xn.Sequential(D(6, 8), xn.Sequential(xn.BatchNorm(8))), xn.Sequential(xn.ReLU(), D(8, 3)), xn.Sequential()
    ),
    "a Sequential of one's own": lambda: xn.Sequential(
        D(6, 8), xn.ReLU(), Twice(D(8, 8), xn.BatchNorm(8), xn.Dropout(0.2)), xn.BatchNorm(8), D(8, 3)
    ),
    "a Sequential of one's own first": lambda: xn.Sequential(Twice(xn.BatchNorm(6), D(6, 8)), xn.ReLU(), D(8, 3)),
    "a user's layer between blocks": lambda: xn.Sequential(D(6, 8), xn.ReLU(), Scale(8), xn.BatchNorm(8), D(8, 3)),
    "dy handed on": lambda: xn.Sequential(
        D(6, 7), xn.BatchNorm(7), xn.Tanh(), Same(), D(7, 9), Same(), Same(), D(9, 3)
    ),
    "dy handed on past dense layers": lambda: xn.Sequential(D(6, 30), D(30, 20), Same(), D(20, 10), Same(), D(10, 3)),
    "layer norms": lambda: xn.Sequential(
        xn.LayerNorm(6), D(6, 8), xn.LayerNorm(8), xn.ReLU(), D(8, 5), xn.LayerNorm(5), xn.Dropout(0.1), D(5, 3)
    ),
    "layer norms of three axes": lambda: xn.Sequential(
        D(6, 8), Split(), *(xn.LayerNorm(4), xn.LayerNorm(4), Same(), xn.LayerNorm(4), xn.Tanh()), Split(True), D(8, 3)
    ),
    "images": lambda: xn.Sequential(D(6, 8), xn.ReLU(), Images(), D(8, 3)),
    "three axes": lambda: xn.Sequential(D(6, 8), xn.ReLU(), Folded(), xn.Tanh(), Same(), Folded(back=True), D(8, 3)),
}
R, B = xn.Residual, xn.Branches
NETWORKS |= {
    "residuals": lambda: xn.Sequential(
        *(D(6, 8), R(D(8, 8), xn.ReLU(), D(8, 8)), R(xn.LayerNorm(8), D(8, 8)), xn.ReLU()),
        *(R(xn.BatchNorm(8), xn.Tanh(), xn.Dropout(0.2), D(8, 8), D(8, 8), xn.BatchNorm(8)), D(8, 3)),
    ),
    "residuals first": lambda: xn.Sequential(R(D(6, 6), xn.Tanh()), R(D(6, 6)), R(xn.ReLU(), R(D(6, 6))), D(6, 3)),
    "residuals last": lambda: xn.Sequential(D(6, 3), R(D(3, 3, trainable=False), xn.Tanh()), R(xn.LayerNorm(3))),
    "residuals of users' layers": lambda: xn.Sequential(
        *(R(D(6, 6)), R(Scale(6)), R(Same(), D(6, 6), Same()), R(Same()), R(D(6, 6), Scale(6), xn.BatchNorm(6))),
        *(Same(), R(), D(6, 3)),
    ),
    "residuals within one another": lambda: xn.Sequential(
        *(D(6, 8), R(R(D(8, 8), R(D(8, 8), xn.LayerNorm(8))), R(xn.LayerNorm(8)), R()), R(R(xn.LayerNorm(8)), D(8, 8))),
        D(8, 3),
    ),
    "branches": lambda: xn.Sequential(
        B(D(6, 8), xn.Sequential(D(6, 8), xn.Tanh()), xn.Sequential(R(D(6, 6)), D(6, 8), xn.BatchNorm(8))),
        *(B(xn.Sequential(), Same(), R(xn.LayerNorm(8)), R(D(8, 8))), B(D(8, 3))),
    ),
    "branches side by side": lambda: xn.Sequential(
        D(6, 4), B(D(4, 2), xn.Sequential(), R(xn.LayerNorm(4), D(4, 4)), xn.Tanh(), merge="concat"), xn.ReLU(),
        B(D(14, 3), xn.Sequential(D(14, 5), xn.BatchNorm(5)), merge="concat"), D(8, 3),
    ),
    "branches of three axes": lambda: xn.Sequential(
        *(D(6, 8), Split(), R(xn.LayerNorm(4), xn.Tanh()), R(xn.LayerNorm(4)), xn.LayerNorm(4)),
        *(B(xn.LayerNorm(4), xn.Sequential(), axis=1, merge="concat"), B(xn.Tanh(), xn.Sequential(), merge="concat")),
        *(xn.Flatten(), D(32, 3)),
    ),
    "dense layers of three axes": lambda: xn.Sequential(
        *(D(6, 8), Split(), D(4, 9), xn.GELU(), D(9, 5), xn.Tanh(), D(5, 6), xn.ReLU(), D(6, 6), D(6, 5), xn.ELU()),
        *(R(D(5, 5), xn.SiLU()), R(xn.LayerNorm(5), D(5, 7), xn.LeakyReLU(), D(7, 5)), D(5, 4), Split(True), D(8, 3)),
    ),
    "a dense layer of three axes first": lambda: xn.Sequential(
        xn.Reshape(2, 3), D(3, 4), xn.GELU(approximate=True), R(D(4, 4), xn.Softplus()), D(4, 4, trainable=False),
        *(xn.Sigmoid(), D(4, 4), Same(), D(4, 4), xn.Dropout(0.1), xn.Flatten(), D(8, 3)),
    ),
    "a function of positions at 0": lambda: xn.Sequential(
        xn.Reshape(2, 3), xn.Rescale(0.0), D(3, 4), xn.GELU(), xn.Flatten(), D(8, 3)
    ),
    "attention": lambda: xn.Sequential(
        *(D(6, 8), Split(), xn.MultiHeadAttention(4, 2), R(xn.LayerNorm(4), xn.MultiHeadAttention(4, 1, causal=True))),
        *(Same(), xn.MultiHeadAttention(4, 4, causal=True), Split(True), D(8, 3)),
    ),
    "attention first": lambda: xn.Sequential(
        *(xn.Reshape(3, 2), xn.MultiHeadAttention(2, 2, causal=True), xn.MultiHeadAttention(2, 1, trainable=False)),
        *(R(xn.MultiHeadAttention(2, 1)), xn.Flatten(), D(6, 3)),
    ),
    "a Residual of one's own": lambda: xn.Sequential(D(6, 8), Halfway(D(8, 8), xn.BatchNorm(8)), D(8, 3)),
}  # fmt: skip
for _name, _make in {"array": lambda a: a + 0.25, "read-only array": read_only, "broadcast array": broadcast}.items():
    NETWORKS[f"a constant {_name} as dx"] = lambda make=_make: xn.Sequential(
        D(6, 5), xn.BatchNorm(5), xn.ReLU(), Stop(make), D(5, 4), xn.Sigmoid(), Stop(make), D(4, 4), Stop(make), D(4, 3)
    )


@pytest.mark.parametrize("name", NETWORKS)
def test_runs_of_layers(name, kernels, backend, dtype):
    assert_same_steps(kernels, backend, dtype, NETWORKS[name]())


def images(*layers, channels=2, size=(7, 6), features=6):
    """A network of images inside, from rows of features."""
    shape = (channels, *size)
    net = xn.Sequential(D(features, math.prod(shape)), xn.Reshape(*shape), *layers, xn.Flatten())
    return xn.Sequential(net, D(net.output_shape(("N", features))[1], 3))


C = xn.Conv2d
IMAGES = {
    "convolution alone": lambda: images(C(2, 3, 3)),
    "function": lambda: images(C(2, 3, 3, padding=1), xn.Tanh()),
    "function of x": lambda: images(C(2, 3, 3, padding=1), xn.SiLU(), C(3, 2, 3, padding=2), xn.LeakyReLU()),
    "pool": lambda: images(C(2, 3, 3, padding="same"), xn.MaxPool2d(2), C(3, 4, 3)),
    "ReLU, pool": lambda: images(C(2, 3, 3, padding=1), xn.ReLU(), xn.MaxPool2d(2), C(3, 4, 3, padding=1), xn.ReLU()),
    "pool, function": lambda: images(C(2, 3, 2, padding="same"), xn.MaxPool2d((2, 3)), xn.ELU()),
    "pool, pool": lambda: images(C(2, 3, (1, 3), padding=(0, 2)), xn.MaxPool2d(2), xn.ReLU(), xn.MaxPool2d((3, 1))),
    "function, pool that are not joined": lambda: images(C(2, 3, 1), xn.Sigmoid(), xn.MaxPool2d(2), C(3, 3, 1)),
    "pools that overlap": lambda: images(C(2, 3, 4), xn.ReLU(), xn.MaxPool2d(3, 2, padding=1), C(3, 3, 2, padding=1)),
    "pool of one entry": lambda: images(C(2, 3, (5, 1)), xn.MaxPool2d(1), xn.ReLU(), xn.MaxPool2d((3, 1), 1)),
    "pool like another": lambda: images(C(2, 3, 3), xn.MaxPool2d(3, padding="same"), xn.AveragePool2d(1)),
    "stride": lambda: images(C(2, 4, 3, stride=2), xn.ReLU(), C(4, 4, 3, padding="same", stride=(2, 1)), xn.ReLU()),
    "stride, pool": lambda: images(
        *(C(2, 4, (3, 2), stride=(1, 3), padding=1), xn.ReLU(), xn.MaxPool2d((2, 1)), C(4, 3, 1, stride=2), xn.Tanh()),
        size=(9, 8),
    ),
    "norm, pool": lambda: images(
        *(C(2, 4, 3, padding=1), xn.BatchNorm(4), xn.ReLU(), xn.MaxPool2d(2)),
        *(C(4, 3, 2), xn.BatchNorm(3), xn.MaxPool2d((2, 1)), xn.ELU(), xn.BatchNorm(3), xn.SiLU()),
    ),
    "norm of a sequence": lambda: images(
        *(xn.Conv1d(2, 4, 3, stride=2), xn.BatchNorm(4), xn.Tanh(), xn.MaxPool1d(2), xn.MaxPool1d(2)), size=(21,)
    ),
    "dilation": lambda: images(C(2, 4, 2, dilation=(2, 1)), xn.ReLU(), C(4, 4, 3, padding=1), xn.MaxPool2d(2)),
    "groups": lambda: images(C(2, 4, 2, groups=2), xn.ReLU(), C(4, 4, 3, padding=1), xn.MaxPool2d(2)),
    "wide padding": lambda: images(C(2, 4, 3, padding=1), xn.ReLU(), C(4, 4, 2, padding=3), C(4, 2, 5, padding=4)),
    "frozen": lambda: images(C(2, 4, 3, trainable=False), xn.ReLU(), C(4, 4, 3), C(4, 3, 1, trainable=False)),
    "norm and dropout": lambda: images(
        C(2, 4, 3), xn.BatchNorm(4), xn.ReLU(), xn.Dropout(0.2), C(4, 2, 3), xn.Dropout(0.1)
    ),
    "residual": lambda: images(C(2, 3, 3), xn.Residual(C(3, 3, 3, padding=1), xn.ReLU()), xn.Tanh()),
    "sequence": lambda: images(
        *(xn.Conv1d(2, 4, 3, padding="same"), xn.ReLU(), xn.MaxPool1d(2), xn.Conv1d(4, 3, 5, padding=2), xn.Tanh()),
        size=(21,),
    ),
    "residuals": lambda: images(
        *(C(2, 3, 3, padding=1), xn.ReLU(), R(C(3, 3, 3, padding="same"), xn.BatchNorm(3)), R(C(3, 3, 1)), xn.ReLU()),
        *(B(C(3, 2, 1), C(3, 4, 3, padding=1), xn.Sequential(), merge="concat", axis=1), C(9, 2, 2)),
    ),
    "lowest": lambda: xn.Sequential(
        xn.Reshape(1, 6, 6), C(1, 4, 3), xn.ReLU(), xn.MaxPool2d(2), C(4, 3, 2), xn.Flatten(), D(3, 3)
    ),
    "maxima that are all 0": lambda: xn.Sequential(  # of black images, and of biases before the first step
        xn.Reshape(1, 6, 6), xn.ReLU(), C(1, 4, 1), xn.ReLU(), xn.MaxPool2d(2), xn.Flatten(), D(36, 3)
    ),
    "lowest sequence": lambda: xn.Sequential(xn.Reshape(2, 18), xn.Conv1d(2, 4, 4), xn.Flatten(), D(60, 3)),
}


@pytest.mark.cupy_only
@pytest.mark.parametrize(("name", "dtype"), list(zip(IMAGES, itertools.cycle(["float32", "float64"]), strict=False)))
def test_images(name, kernels, backend, dtype):
    assert_same_steps(kernels, backend, dtype, IMAGES[name]())


@pytest.mark.parametrize("name", ["function of x", "pool", "ReLU, pool", "norm, pool", "wide padding", "residuals"])
def test_images_in_tiles(name, kernels, backend, dtype, monkeypatch):
    """With Winograd's sums, which networks of many channels take."""
    if hasattr(kernels(), "winograd"):
        monkeypatch.setattr(kernels().winograd, "least", (1, 1))
    assert_same_steps(kernels, backend, dtype, IMAGES[name]())


def test_a_product_is_never_put_over_its_own_factor(kernels, backend):
    """Where a layer hands on dy itself, from one dense layer to another: with sizes that are multiplied in parts."""
    net = xn.Sequential(D(5, 400), D(400, 300), Same(), D(300, 3))
    assert_same_steps(kernels, backend, "float64", net, sizes=(20, 20, 20), optimizer=xn.SGD(0.01))


@pytest.mark.parametrize("function", [xn.ReLU, xn.Sigmoid, xn.Tanh])
def test_a_layer_so_large_that_its_bias_is_always_the_products_work(function, kernels, backend, dtype):
    net = xn.Sequential(D(5, 300), function(), D(300, 300), function(), D(300, 300), D(300, 3))
    assert_same_steps(kernels, backend, dtype, net, optimizer=xn.SGD(0.01))


def test_a_layer_that_holds_its_bias_before_its_weight(kernels, backend, monkeypatch):
    """As one that was given them in that order does: weight and bias are then not one view of the vector."""
    place = xn.Sequential.place
    monkeypatch.setattr(xn.Sequential, "place", lambda net, b, d, p, s: place(net, b, d, dict(sorted(p.items())), s))
    net = xn.Sequential(D(5, 300), xn.ReLU(), D(300, 300), xn.Tanh(), D(300, 3))
    assert_same_steps(kernels, backend, "float64", net, optimizer=xn.SGD(0.01))
    assert list(net.params)[:2] == ["0.bias", "0.weight"]


def test_a_batch_of_one(kernels, backend, dtype):
    net = xn.Sequential(D(6, 5), xn.ReLU(), xn.BatchNorm(5, trainable=False), D(5, 1), xn.Sigmoid())
    assert_same_steps(kernels, backend, dtype, net, xn.MeanSquaredError(), sizes=(1, 4, 1), target=normal)


IDS = {
    "gpt": lambda: gpt(7, 5, 4, 2, blocks=1),
    "embedding": lambda: xn.Sequential(xn.Embedding(7, 4), D(4, 7)),
    "frozen embedding": lambda: xn.Sequential(
        xn.Embedding(7, 4, trainable=False), xn.PositionalEmbedding(6, 4), xn.Dropout(0.1), D(4, 7)
    ),
}


@pytest.mark.parametrize("name", IDS)
def test_sequences_of_ids(name, kernels, backend, dtype):
    """Of several lengths, in batches of several sizes."""
    rng, rtol = np.random.default_rng(0), ROUNDINGS * EPS[dtype]
    net = IDS[name]().initialize(backend, dtype, seed=1)
    with backend.scope():
        batches = []
        for n, t in ((6, 5), (6, 5), (2, 3), (9, 5)):
            like = backend.asarray(np.zeros((n, t, 7)), dtype)
            batches.append(
                (backend.asarray(rng.integers(7, size=(n, t))), CROSS.encode(rng.integers(7, size=(n, t)), like))
            )
        plain, fast = Step(net, CROSS, xn.SGD(0.1)), BufferedStep(net, CROSS, xn.SGD(0.1), kernels(), ("N", 5))
    for (value, _, arrays), (expected, _, others) in zip(taken(fast, batches), taken(plain, batches), strict=True):
        assert value == pytest.approx(expected, rel=rtol)
        np.testing.assert_allclose(arrays["weights"], others["weights"], rtol=0, atol=rtol)


# --- losses and optimizers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, reduction, kernels, backend, dtype):
    make, prediction, target = LOSSES[name]
    last = [xn.Sigmoid()] if prediction.__name__ == "probabilities" else []
    net = xn.Sequential(D(6, 8), xn.Tanh(), D(8, 4), *last)
    assert_same_steps(kernels, backend, dtype, net, make(reduction=reduction), xn.SGD(0.01), target=target)


class Signs(xn.Optimizer):
    """One's own: a rule that is not elementwise, for it goes by the vector's largest gradient."""

    memory = ("last",)

    def rule(self, w, g, slots, rate):
        g = g / (abs(g).max() + 1.0) + 0.1 * slots["last"]
        return w - rate * g, {"last": g}


class AheadW(xn.AdamW):
    """One's own, which looks ahead."""

    def lookahead(self, w, slots):
        return w - 0.01 * slots["m"]


class Halved(xn.SGD):
    """One's own `update`."""

    def update(self, w, gradient, slots):
        return super().update(w, 0.5 * gradient, slots)


class Bare:
    """An optimizer that derives from nothing."""

    def init(self, w):
        return {"step": 0}

    def lookahead(self, w, slots):
        return w

    def update(self, w, gradient, slots):
        return w - 0.1 * gradient, {"step": slots["step"] + 1}


LIMITS = {"weight_decay": 0.1, "clip_value": 0.05, "clip_norm": 0.5}
OPTIMIZERS = {
    **{f"sgd, {name}": lambda name=name, v=v: xn.SGD(0.1, **{name: v}) for name, v in LIMITS.items()},
    "sgd, all": lambda: xn.SGD(0.1, momentum=0.5, **LIMITS),
    "sgd, schedule": lambda: xn.SGD(xn.WarmUp(xn.ExponentialDecay(0.1, 0.5, 2), 3)),
    "nesterov": lambda: xn.Nesterov(0.1, clip_value=None),
    "nesterov, all": lambda: xn.Nesterov(0.1, **LIMITS),
    "adagrad": lambda: xn.Adagrad(0.01, eps=1e-2, **LIMITS),
    "rmsprop": lambda: xn.RMSprop(xn.CosineDecay(0.01, 10), eps=1e-2, **LIMITS),
    "adam": lambda: xn.Adam(0.01, eps=0.1),
    "adam, uncorrected": lambda: xn.Adam(0.01, eps=0.1, bias_correction=False, **LIMITS),
    "adamw": lambda: xn.AdamW(xn.StepDecay(0.01, 0.5, 2), eps=0.1, clip_value=0.05, clip_norm=0.5),
    "adamw, sparing": lambda: xn.AdamW(0.01, eps=0.1, weight_decay=0.5, decays="weights", clip_value=0.05),
    "nesterov's lookahead, sparing": lambda: AheadW(0.01, eps=0.1, weight_decay=0.5, decays="weights"),
    "one's own rule": lambda: Signs(0.1, **LIMITS),
    "one's own update": lambda: Halved(0.1, **LIMITS),
    "derived from nothing": Bare,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(name, kernels, backend, dtype):
    """With an eps that keeps Adam's step of a gradient that is but rounding as small as the gradient."""
    net = xn.Sequential(D(6, 8), xn.BatchNorm(8), xn.Tanh(), xn.Dropout(0.1), D(8, 3))
    rtol = 10 * ROUNDINGS * EPS[dtype]  # Adagrad and RMSprop magnify by 1 / √eps, which is 10
    assert_same_steps(kernels, backend, dtype, net, optimizer=OPTIMIZERS[name](), rtol=rtol)


@pytest.mark.parametrize("optimizer", [Signs(0.1, **LIMITS), xn.Adam(0.01, eps=0.1), xn.Nesterov(0.1)], ids=repr)
def test_optimizers_on_a_vector_of_many_blocks(optimizer, kernels, backend):
    net = xn.Sequential(D(500, 400), xn.Tanh(), D(400, 3))
    assert_same_steps(kernels, backend, "float64", net, optimizer=optimizer, sizes=(5, 5, 5))


def test_a_bias_before_a_batch_norm_stays(kernels, backend, dtype):
    """Its gradient is 0. Of rounding there, which the layers one by one would give it, Adam would make whole steps."""
    rng = np.random.default_rng(0)
    net = xn.Sequential(D(6, 8), xn.BatchNorm(8), xn.Tanh(), D(8, 8), D(8, 8), xn.BatchNorm(8), D(8, 3))
    net.initialize(backend, dtype)
    net.set_params({name: rng.normal(size=tuple(a.shape)) for name, a in net.params.items()})
    biases = {name: np.array(backend.to_numpy(net.params[name])) for name in ("0.bias", "3.bias", "4.bias")}
    x = backend.asarray(rng.normal(size=(40, 6)), dtype)
    y = CROSS.encode(rng.integers(3, size=40), backend.asarray(np.zeros((40, 3)), dtype))
    ends = []
    with backend.scope():
        for step in (Step(net, CROSS, xn.Adam(0.01)), BufferedStep(net, CROSS, xn.Adam(0.01), kernels())):
            carry, twin = step.start, net.clone()
            for _ in range(5):
                _, carry = step(carry, Batch(x, y))
            step.publish(carry, twin)
            ends.append({name: np.array(backend.to_numpy(a)) for name, a in (twin.params | twin.state).items()})
            for name, bias in biases.items():
                np.testing.assert_array_equal(ends[-1][name], bias)
    # a weight whose gradient is a thousandth of the largest has a thousand times the relative rounding
    atol = 1000 * ROUNDINGS * EPS[dtype] * 0.01
    for name, a in ends[0].items():
        np.testing.assert_allclose(ends[1][name], a, rtol=0, atol=atol * np.abs(a).max(), err_msg=name)


def test_the_running_mean_holds_the_bias_that_the_batch_does_without(kernels, backend):
    net = xn.Sequential(xn.Dense(4, 5), xn.BatchNorm(5), xn.ReLU(), xn.Dense(5, 10)).initialize(backend, "float64")
    rng = np.random.default_rng(0)
    net.set_params({name: rng.normal(size=tuple(a.shape)) for name, a in net.params.items()})
    x, y = backend.asarray(rng.normal(size=(20, 4))), backend.asarray(np.eye(20, 10) + np.eye(20, 10, -10))
    means = []
    with backend.scope():
        for step in BufferedStep(net, CROSS, xn.SGD(0.1), kernels()), Step(net, CROSS, xn.SGD(0.1)):
            carry = step.start
            for _ in range(3):
                carry = step(carry, Batch(x, y))[1]
            means.append(backend.to_numpy(step.state(carry)["1.mean"]))
    atol = ROUNDINGS * EPS["float64"] * np.abs(means[1]).max()
    np.testing.assert_allclose(means[0], means[1], rtol=0, atol=atol)


@pytest.mark.parametrize(("mean", "var"), [(0.0, 4.0), (3.0, 1.0)])
def test_statistics_that_a_network_has_are_gone_on_from(mean, var, kernels, backend):
    """A mean of 0 with a variance of 1, and nothing else, is that of no batch yet."""
    net = xn.Sequential(D(6, 5), xn.BatchNorm(5), D(5, 3)).initialize(backend, "float64", seed=0)
    net.set_state({"1.mean": np.full(5, mean), "1.var": np.full(5, var)})
    rng = np.random.default_rng(0)
    x, y = backend.asarray(rng.normal(size=(20, 6))), backend.asarray(np.eye(3)[rng.integers(3, size=20)])
    with backend.scope():
        steps = BufferedStep(net, CROSS, xn.SGD(0.1), kernels()), Step(net, CROSS, xn.SGD(0.1))
        fast, plain = (step.state(step(step.start, Batch(x, y))[1]) for step in steps)
    for name, a in plain.items():
        np.testing.assert_allclose(backend.to_numpy(fast[name]), backend.to_numpy(a), rtol=0, atol=1e-13 * (mean + var))


def test_a_step_called_by_itself_keeps_the_start_and_what_it_is_given(kernels, backend):
    net = xn.Sequential(D(6, 5), xn.Tanh(), D(5, 3)).initialize(backend, "float64", seed=0)
    rng = np.random.default_rng(0)
    x, y = backend.asarray(rng.normal(size=(20, 6))), backend.asarray(np.eye(3)[rng.integers(3, size=20)])
    with backend.scope():
        step = BufferedStep(net, CROSS, xn.SGD(0.1), kernels())
        after = step(step.start, Batch(x, y))[1]
        carries = step.start, after
        before = [[np.array(backend.to_numpy(a)) for a in (c.weights, c.slots["velocity"])] for c in carries]
        step(after, Batch(x, y))
    for carry, arrays in zip(carries, before, strict=True):
        for a, kept in zip((carry.weights, carry.slots["velocity"]), arrays, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(a), kept)


def test_carries_that_are_to_be_kept_are(kernels, backend):
    net = NETWORKS["tutorial"]().initialize(backend, "float64")
    rng = np.random.default_rng(0)
    x, y = backend.asarray(rng.normal(size=(20, 64))), backend.asarray(np.eye(20, 10) + np.eye(20, 10, -10))
    with backend.scope():
        step = BufferedStep(net, CROSS, xn.Nesterov(0.1), kernels())
        kept = [step.start]
        for _ in range(4):
            kept.append(step.on_rows(kept[-1], Batch(x, y), slice(0, 20), tuple(kept))[1])
        expected = [step.start]
        twin = Step(net, CROSS, xn.Nesterov(0.1))
        carry = twin.start
        for _ in range(4):
            carry = twin(carry, Batch(x, y))[1]
            expected.append(carry)
    for a, b in zip(kept, expected, strict=True):
        for one, other in [(a.weights, b.weights), (a.slots["velocity"], b.slots["velocity"])]:
            atol = ROUNDINGS * EPS["float64"]
            np.testing.assert_allclose(backend.to_numpy(one), backend.to_numpy(other), rtol=0, atol=atol)


# --- what does not fit ------------------------------------------------------------------------------------------------


class Misfit(xn.Layer):
    """The identity, but for what `y` and `dx` make of x and dy."""

    def __init__(self, y=lambda a: a, dx=lambda a: a):
        self.y, self.dx = y, dx

    def forward(self, x, training=False):
        return self.y(x) if training else x, None

    def backward(self, dy, cache):
        return self.dx(dy), {}


def doubled(a):
    return xn.backends.namespace(a).astype(a, xn.backends.namespace(a).float64)


@pytest.mark.parametrize(
    "after", [lambda: D(6, 3), lambda: xn.BatchNorm(6), lambda: R(D(6, 6))], ids=["dense", "batch norm", "residual"]
)
@pytest.mark.parametrize("before", [xn.Tanh, lambda: xn.BatchNorm(6), xn.Sequential], ids=["tanh", "norm", "dense"])
@pytest.mark.parametrize(
    ("misfit", "message"),
    [
        ({"y": lambda a: a[:, :3]}, r"shape \(8, 3\), expected \(8, 6\)"),
        ({"y": lambda a: a[:, :, None]}, r"shape \(8, 6, 1\), expected \(.*6\)"),
        ({"y": doubled}, "float64, expected .*float32"),
        ({"dx": lambda a: a[:, :1]}, r"shape \(8, 1\), expected \(8, 6\)"),
        ({"dx": lambda a: a[:2, :]}, r"shape \(2, 6\), expected \(8, 6\)"),
        ({"dx": doubled}, "float64, expected .*float32"),
    ],
    ids=["few columns", "three axes", "y's dtype", "one column", "few rows", "dx's dtype"],
)
def test_arrays_that_do_not_fit_are_refused_and_no_kernel_sees_them(misfit, message, before, after, kernels, backend):
    net = xn.Sequential(D(5, 6), before(), Misfit(**misfit), after(), D(after().output_shape((6,))[0], 6))
    net.initialize(backend, "float32")
    step = BufferedStep(net, CROSS, xn.SGD(), kernels())
    x, y = backend.asarray(np.ones((8, 5)), "float32"), backend.asarray(np.eye(8, 6), "float32")
    who = rf"fit: layer \d, Misfit\(.*\): {'backward' if 'dx' in misfit else 'forward'} gave an array of "
    with backend.scope(), pytest.raises(ValueError, match=f"{who}.*{message}"):
        step(step.start, Batch(x, y))


class KeepsGradient(xn.SGD):
    """One's own: its slots hold the very gradient that it was given."""

    def update(self, w, gradient, slots):
        w, slots = super().update(w, gradient, {k: slots[k] for k in ("step", "velocity")})
        return w, slots | {"last": gradient}


def test_an_optimizer_may_keep_its_gradient(kernels, backend):
    net = xn.Sequential(xn.Dense(4, 3)).initialize(backend, "float64", seed=0)
    x, y = backend.asarray(np.ones((5, 4))), backend.asarray(np.eye(5, 3) + np.eye(5, 3, -3))
    with backend.scope():
        step = BufferedStep(net, CROSS, KeepsGradient(0.1), kernels())
        _, carry = step.on_rows(step.start, Batch(x, y), slice(0, 5), ())
    assert not np.array_equal(backend.to_numpy(carry.slots["last"]), backend.to_numpy(carry.weights))


class Follows(xn.Layer):
    """The identity, with the mean of its inputs as its statistics, which it takes from the cache after backward."""

    def initial_state(self, rng):
        return {"seen": np.zeros(4)}

    def forward(self, x, training=False):
        return x * 1.0, x

    def backward(self, dy, cache):
        return dy * 1.0, {}

    def next_state(self, cache):
        return {"seen": xn.ops.sum_over_batch(cache) / cache.shape[0]}


def test_a_layer_finds_its_inputs_as_they_were_after_backward(kernels, backend, dtype):
    assert_same_steps(kernels, backend, dtype, xn.Sequential(D(4, 4), xn.Tanh(), Follows(), D(4, 3)))
    assert_same_steps(kernels, backend, dtype, xn.Sequential(D(4, 4), xn.Tanh(), D(4, 4), Follows(), D(4, 3)))
    assert_same_steps(kernels, backend, dtype, xn.Sequential(D(4, 4), xn.LayerNorm(4), Follows(), D(4, 3)))
    assert_same_steps(kernels, backend, dtype, xn.Sequential(D(4, 4), xn.LayerNorm(4), xn.ReLU(), Follows(), D(4, 3)))
