"""Each method of the kernels, calls and Numba's loops, against its formula in float64; and what they stand on."""

import itertools
import math
import threading
import warnings

import numpy as np
import pytest

import xpnet as xn
from support import HANG
from support.kernels import SIZES, Operations
from xpnet.kernels.cpu import threads

pytestmark = [pytest.mark.numpy_only, pytest.mark.torch_only, pytest.mark.usefixtures("small_blocks")]

SHAPES = [(1, 1), (1, 7), (4, 1), (3, 2), (5, 33), (2, 700), (40, 64), (20, 7000)]  # (H, N); the last is for threads
FUNCTIONS = {
    "none": None, "sigmoid": xn.Sigmoid(), "tanh": xn.Tanh(), "relu": xn.ReLU(), "leaky relu": xn.LeakyReLU(0.3),
    "leaky relu, downwards": xn.LeakyReLU(-2.0), "elu": xn.ELU(0.7), "silu": xn.SiLU(), "softplus": xn.Softplus(),
    "gelu": xn.GELU(), "gelu, approximate": xn.GELU(approximate=True),
}  # fmt: skip
LAYOUTS = {
    "as it is": lambda a: a,
    "turned": lambda a: np.ascontiguousarray(a.T).T,
    "part of a longer one": lambda a: np.concatenate([a, a], axis=1)[:, : a.shape[1]],
    "read-only": lambda a: np.frombuffer(a.tobytes(), a.dtype).reshape(a.shape),
}
LYING = [(shape, "as it is") for shape in SHAPES] + [
    (shape, layout) for shape in [(1, 1), (5, 33), (20, 7000)] for layout in LAYOUTS if layout != "as it is"
]


def formula(f, u):
    """y and dy/du in float64, du the derivative at u."""
    with np.errstate(over="ignore"):
        if isinstance(f, xn.Sigmoid):
            y = 1 / (1 + np.exp(-u))
            return y, y * (1 - y)
        if isinstance(f, xn.Tanh):
            return np.tanh(u), 1 - np.tanh(u) ** 2
        if isinstance(f, xn.GELU):
            if f.approximate:
                a, b = (2 / np.pi) ** 0.5, 0.044715
                c = np.clip(u, -10, 10)
                e = np.exp(-2 * a * (c + b * c**3))  # (1 + tanh v) / 2 = 1 / (1 + e⁻²ᵛ)
                return u / (1 + e), (1 + u * (e / (1 + e)) * 2 * a * (1 + 3 * b * c * c)) / (1 + e)
            below = np.vectorize(lambda v: math.erfc(-v / 2**0.5) / 2)(u)
            return u * below, below + u * np.exp(-u * u / 2) / (2 * np.pi) ** 0.5
        if isinstance(f, xn.SiLU):
            gate = 1 / (1 + np.exp(-u))
            return u * gate, gate * (1 + u * (1 - gate))
        if isinstance(f, xn.Softplus):
            return np.logaddexp(u, 0), 1 / (1 + np.exp(-u))
        if isinstance(f, xn.ELU):
            return np.where(u >= 0, u, f.alpha * np.expm1(u)), np.where(u >= 0, 1.0, f.alpha * np.exp(u))
    if isinstance(f, xn.ReLU):
        return np.maximum(u, 0.0), (u >= 0.0) * 1.0
    if isinstance(f, xn.LeakyReLU):
        return np.where(u >= 0, u, f.alpha * u), np.where(u >= 0, 1.0, f.alpha)
    return u, np.ones_like(u)


class Bench:
    """Kernels with a workspace, and arrays drawn for them."""

    def __init__(self, kernels, dtype, backend):
        self.backend, self.dtype, self.kernels = backend, dtype, Operations(kernels(), dtype, backend)
        self.eps = float(np.finfo(dtype).eps)
        self.rng = np.random.default_rng(0)

    def draw(self, *shape, scale=1.0):
        return (scale * self.rng.normal(size=shape)).astype(self.dtype)

    def put(self, a, layout="as it is"):
        """On the backend, lying as the layout says; PyTorch has no read-only arrays."""
        a = LAYOUTS[layout](np.array(a))
        return a if self.backend.name == "numpy" else self.backend.xp.asarray(a if a.flags.writeable else a.copy())

    def own(self, a, name="z"):
        """In the workspace, as a block's product."""
        place = self.kernels.work(name, a.shape)
        place[...] = self.put(a)
        return place

    def empty(self, *shape):
        return self.put(np.full(shape, np.nan, self.dtype))

    def agrees(self, a, expected, roundings, scale=None):
        """To so many roundings of `scale`, or of the largest entry."""
        a = self.backend.to_numpy(a)
        assert a.dtype == self.dtype
        assert a.shape == np.shape(expected)
        scale = scale or np.abs(expected).max(initial=0.0, where=np.isfinite(expected))
        atol = roundings * self.eps * scale + 4 * float(np.finfo(self.dtype).tiny)  # where exp ends
        np.testing.assert_allclose(a, expected, rtol=0, atol=atol)


@pytest.fixture
def bench(kernels, dtype, request):
    backend = xn.get_backend(request.config.getoption("--backend"))
    with backend.scope():
        yield Bench(kernels, dtype, backend)


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


# --- activation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "layout"), LYING)
@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation(name, shape, layout, bench):
    """A handful of roundings an entry; dbias is a sum of N, of which rounding grows with N at most."""
    f, kernels = FUNCTIONS[name], bench.kernels
    z, dy, bias = bench.draw(*shape, scale=3), bench.draw(*shape), bench.draw(shape[0])
    y, slope = formula(f, z.astype("float64") + bias[:, None])
    dz = dy * slope
    on_z, on_dy, dbias = bench.own(z), bench.put(dy, layout), bench.empty(shape[0])
    on_y = kernels.activation(f, on_z, bench.put(bias))
    bench.agrees(on_y, y, 8)
    writable = layout == "as it is"  # then dz may be dy
    place = on_dy if writable else bench.empty(*shape)
    on_dz = kernels.activation_backward(on_dy, place, dbias)
    bench.agrees(on_dz, dz, 16, np.abs(dy).max())
    bench.agrees(dbias, dz.sum(axis=1), 16 + shape[1], np.abs(dz).sum(axis=1).max() / shape[1] + np.abs(dy).max())
    if not writable:
        np.testing.assert_array_equal(bench.backend.to_numpy(on_dy), dy)


@pytest.mark.parametrize("shape", [(5, 33), (20, 7000)])  # in one piece, in blocks of rows
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "relu"])
def test_activation_without_a_bias_is_that_of_a_bias_of_zero(name, shape, bench):
    """Then the bias is the product's work, and nothing is done about its gradient."""
    f, z, dy = FUNCTIONS[name], bench.draw(*shape, scale=3), bench.draw(*shape)
    ends = []
    for zero, dbias in ((None, None), (bench.put(np.zeros(shape[0], bench.dtype)), bench.empty(shape[0]))):
        y = bench.kernels.activation(f, bench.own(z), zero)
        dz = bench.kernels.activation_backward(bench.put(dy), bench.empty(*shape), dbias)
        ends.append([np.array(bench.backend.to_numpy(a)) for a in (y, dz)])
    np.testing.assert_array_equal(ends[0], ends[1])


FAR = [1e4, -1e4, 700.0, -700.0, 88.0, -88.0, 40.0, -40.0, np.inf, -np.inf]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_far_out_and_at_infinity(name, bench):
    f = FUNCTIONS[name]
    far = FAR[:-2] if name.startswith(("silu", "gelu")) else FAR  # x σ(x) at -infinity is infinity times 0
    z = np.array([far], bench.dtype)
    y, slope = formula(f, z.astype("float64"))
    zero, dbias = bench.put(np.zeros(1, bench.dtype)), bench.empty(1)
    on_y = bench.kernels.activation(f, bench.own(z), zero)
    bounded = name in ("sigmoid", "tanh")
    bench.agrees(on_y, y, 8, 1.0 if bounded else None)
    on_y = bench.backend.to_numpy(on_y)
    if bounded:
        assert np.isfinite(on_y).all()
    on_dz = bench.kernels.activation_backward(bench.put(np.ones_like(z)), bench.empty(*z.shape), dbias)  # fmt: skip
    bench.agrees(on_dz, slope, 8, 1.0)


def test_exponentials_of_numbers_beyond_the_dtypes_range_are_those_of_its_ends(bench):
    """From e^±80 to e^±1000: 2^n put together from n's bits would be any number at all."""
    far = np.arange(80.0, 1001.0).astype(bench.dtype)
    far = np.stack([far, -far])
    zero = bench.put(np.zeros(2, bench.dtype))
    y = bench.kernels.activation(xn.Sigmoid(), bench.own(far), zero)
    bench.agrees(y, np.repeat([[1.0], [0.0]], far.shape[1], axis=1), 1, 1.0)
    bench.kernels.new_workspace()  # each block has a workspace of its own
    target = np.stack([np.ones_like(far[0]), np.zeros_like(far[0])])
    for on_target, value in ((target, 0.0), (target[::-1].copy(), 2.0 * far[0].sum(dtype="float64"))):
        found, dz = bench.kernels.softmax_cross_entropy(bench.put(far), bench.put(on_target), 1.0)
        assert abs(float(found) - value) <= 8 * bench.eps * max(value, 1.0)
        bench.agrees(dz, target - on_target, 1, 1.0)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_activation_keeps_nan_and_what_stands_beside_it(name, bench):
    f = FUNCTIONS[name]
    z = np.array([[1.0, np.nan, -1.0, -np.nan, 0.5]], bench.dtype)
    zero = bench.put(np.zeros(1, bench.dtype))
    y = bench.kernels.activation(f, bench.own(z), zero)
    bench.agrees(y, formula(f, z.astype("float64"))[0], 8, 1.0)


@pytest.mark.parametrize("norm", [False, True], ids=["activation", "batch norm"])
def test_relus_derivative_at_zero_of_either_sign_is_one(norm, bench):
    z = np.array([[0.0, -0.0, 1.0, -1.0]], bench.dtype)
    bias = np.array([-0.0], bench.dtype)  # which leaves -0.0 what it is
    kernels, f, dy = bench.kernels, xn.ReLU(), np.ones_like(z)
    on_z, place, small, other = bench.own(z), bench.empty(1, 4), bench.empty(1), bench.empty(1)
    if not norm:
        y = kernels.activation(f, on_z, bench.put(bias))
        dz = kernels.activation_backward(bench.put(dy), place, small)
        np.testing.assert_array_equal(bench.backend.to_numpy(y), [[0.0, 0.0, 1.0, 0.0]])
        np.testing.assert_array_equal(bench.backend.to_numpy(dz), [[1.0, 1.0, 1.0, 0.0]])
        np.testing.assert_array_equal(bench.backend.to_numpy(small), [3.0])
        return
    one = bench.put(np.ones(1, bench.dtype))
    y = kernels.batch_norm(f, on_z, one, bench.put(bias), 0.01, small, other, True)
    dgamma, dbeta = bench.empty(1), bench.empty(1)
    kernels.batch_norm_backward(bench.put(dy), place, dgamma, dbeta, None)
    np.testing.assert_array_equal(bench.backend.to_numpy(dbeta), [3.0])


# --- batch norm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "layout", "own"), [
    *((shape, layout, own) for shape, layout in LYING[: len(SHAPES)] for own in (True, False)),
    *((*case, own) for case, own in zip(LYING[len(SHAPES) :], itertools.cycle([False, True]))),
])  # fmt: skip
@pytest.mark.parametrize("name", FUNCTIONS)
def test_batch_norm(name, shape, layout, own, bench):
    """Sums of N numbers of size 1 (rounding grows with N at most), over √(v + eps) >= 0.1."""
    f, kernels, n, eps = FUNCTIONS[name], bench.kernels, shape[1], 0.01
    z, dy, gamma, beta = bench.draw(*shape, scale=2), bench.draw(*shape), bench.draw(shape[0]), bench.draw(shape[0])
    if name == "relu":  # away from the kink, where a rounding would be a whole step
        beta = np.where(beta > 0, 50.0, -50.0).astype(bench.dtype)
    wide = z.astype("float64")
    mu, v = wide.mean(axis=1, keepdims=True), wide.var(axis=1, keepdims=True)
    scale = 1 / np.sqrt(v + eps)
    hat = (wide - mu) * scale
    y, slope = formula(f, gamma[:, None] * hat + beta[:, None])
    du = dy * slope
    dbeta, dgamma = du.sum(axis=1), (du * hat).sum(axis=1)
    dz = gamma[:, None] * scale * (du - dbeta[:, None] / n - hat * dgamma[:, None] / n)

    on_z = bench.own(z) if own else bench.put(z, layout)
    on_gamma, on_beta = bench.put(gamma), bench.put(beta)
    mean, var = bench.empty(shape[0]), bench.empty(shape[0])
    on_y = kernels.batch_norm(f, on_z, on_gamma, on_beta, eps, mean, var, own)
    roundings = 100 + n
    bench.agrees(mean, mu[:, 0], roundings, 2.0)
    bench.agrees(var, v[:, 0], roundings, 4.0)
    bench.agrees(on_y, y, roundings, 10.0 + np.abs(y).max())
    on_dy = bench.put(dy, layout)
    place = on_dy if layout == "as it is" else bench.empty(*shape)
    on_dgamma, on_dbeta, dbias = bench.empty(shape[0]), bench.empty(shape[0]), bench.put(np.ones(shape[0], bench.dtype))
    sums = on_dgamma, on_dbeta, dbias if own else None
    on_dz = kernels.batch_norm_backward(on_dy, place, *sums)
    assert bool((bench.backend.to_numpy(dbias) == 0.0).all()) is own
    bench.agrees(on_dbeta, dbeta, roundings, 1.0 + np.abs(du).sum(axis=1).max() / np.sqrt(n))
    bench.agrees(on_dgamma, dgamma, roundings, 10.0 + np.abs(du * hat).sum(axis=1).max() / np.sqrt(n))
    bench.agrees(on_dz, dz, roundings, 100.0)
    if not own:
        np.testing.assert_array_equal(bench.backend.to_numpy(on_z), z)


def test_batch_norm_keeps_a_variance_that_a_large_mean_would_drown(bench):
    z = np.array([[1e4, 1e4 + 1, 1e4 + 2, 1e4 + 3]], bench.dtype)  # exact in both types
    one, mean, var = bench.put(np.ones(1, bench.dtype)), bench.empty(1), bench.empty(1)
    bench.kernels.batch_norm(None, bench.own(z), one, one, 0.01, mean, var, True)
    bench.agrees(mean, [10001.5], 1)
    bench.agrees(var, [1.25], 4)


@pytest.mark.parametrize("own", [True, False], ids=["own", "another's"])
def test_batch_norm_takes_the_variance_about_what_the_sum_of_a_long_row_loses_of_its_mean(own, bench):
    n = 20_000
    z = 1e6 + np.arange(n, dtype=bench.dtype)[None, :] % 4  # exact in both types, and so is each square below
    one, mean, var = bench.put(np.ones(1, bench.dtype)), bench.empty(1), bench.empty(1)
    on_z = bench.own(z) if own else bench.put(np.repeat(z, 3, axis=0), "turned")[:1]  # scattered, summed one by one
    bench.kernels.batch_norm(None, on_z, one, one, 0.01, mean, var, own)
    bench.agrees(mean, [1e6 + 1.5], 1)
    bench.agrees(var, [1.25], n**0.5)  # a rounding at each of n sums, at random


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_batch_norm_shows_nan_in_its_own_feature_alone(name, poison, bench):
    z = bench.draw(3, 9)
    z[1, 4] = poison
    ones, mean, var = bench.put(np.ones(3, bench.dtype)), bench.empty(3), bench.empty(3)
    y = bench.kernels.batch_norm(FUNCTIONS[name], bench.own(z), ones, ones, 0.01, mean, var, True)
    y, var = bench.backend.to_numpy(y), bench.backend.to_numpy(var)
    assert np.isfinite(y[[0, 2]]).all()
    assert np.isnan(y[1]).all()
    np.testing.assert_array_equal(np.isfinite(var), [True, False, True])


@pytest.mark.parametrize("name", ["none", "relu", "sigmoid"])
def test_sums_of_a_million_rows_lose_no_digits(name, kernels, request):
    """Of a pixel's two values, whose roundings beside a long sum all go one way: without care by thousands of eps."""
    backend, f, n, eps = xn.get_backend(request.config.getoption("--backend")), FUNCTIONS[name], 10**6, 0.01
    with backend.scope():
        bench = Bench(kernels, "float32", backend)
        light = bench.rng.random((1, n)) < 0.5
        z, dy = np.where(light, 0.3, -0.2).astype("float32"), np.where(light, 0.7, 0.1).astype("float32")
        wide, v = z.astype("float64"), z.astype("float64").var()
        hat = (wide - wide.mean()) / np.sqrt(v + eps)
        for norm in True, False:
            du = dy * formula(f, (hat if norm else wide) + 1.0)[1]
            bench.kernels.new_workspace()
            place = bench.own(z)
            one, mean, var, dgamma, dbeta = (bench.put(np.ones(1, "float32")) for _ in range(5))
            if norm:
                bench.kernels.batch_norm(f, place, one, one, eps, mean, var, True)
                bench.kernels.batch_norm_backward(bench.put(dy), bench.put(dy), dgamma, dbeta)
                bench.agrees(mean, [wide.mean()], 100, 0.3)
                bench.agrees(var, [v], 100)
                bench.agrees(dgamma, [(du * hat).sum()], 100, np.abs(du * hat).sum())
            else:
                bench.kernels.activation(f, place, one)
                bench.kernels.activation_backward(bench.put(dy), bench.put(dy), dbeta)
            bench.agrees(dbeta, [du.sum()], 100)


def test_a_loss_of_a_million_rows_loses_no_digits(kernels, request):
    backend, n = xn.get_backend(request.config.getoption("--backend")), 10**6
    with backend.scope():
        bench = Bench(kernels, "float32", backend)
        z = np.where(bench.rng.random((1, n)) < 0.5, 0.3, -0.2).astype("float32") * np.array([[1.0], [-1.0]], "float32")
        target = np.stack([np.full(n, 0.25, "float32"), np.full(n, 0.75, "float32")])
        value, _ = bench.kernels.softmax_cross_entropy(bench.put(z), bench.put(target), 1.0)
    wide = z.astype("float64")
    expected = (np.logaddexp(*wide) - (target * wide).sum(axis=0)).sum()
    assert abs(float(value) - expected) < 100 * np.finfo("float32").eps * expected


# --- layer norm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "layout"), LYING)
def test_layer_norm(shape, layout, bench):
    """Sums of D or N numbers of size 1, over √(v + eps) >= 0.1. A mean of 2,000 costs no digits in float32; in float64
    it would cost the formula's own.
    """
    (d, n), eps, kernels = shape, 0.01, bench.kernels
    z = bench.draw(d, n) + np.float32(2000.0 if bench.dtype == "float32" else 0.0)
    dy, gamma, beta = bench.draw(d, n), bench.draw(d), bench.draw(d)
    wide = z.astype("float64")
    scale = 1 / np.sqrt(wide.var(axis=0) + eps)
    hat = (wide - wide.mean(axis=0)) * scale
    g = gamma[:, None].astype("float64") * dy
    dz = (g - g.mean(axis=0) - hat * (g * hat).mean(axis=0)) * scale
    on_y = kernels.layer_norm(bench.put(z, layout), bench.put(gamma), bench.put(beta), eps)
    roundings = 100 + d
    bench.agrees(on_y, gamma[:, None] * hat + beta[:, None], roundings, 10.0)
    on_dgamma, on_dbeta = bench.empty(d), bench.empty(d)
    on_dz = kernels.layer_norm_backward(bench.put(dy, layout), bench.empty(d, n), on_dgamma, on_dbeta)
    bench.agrees(on_dz, dz, roundings, 100.0)
    bench.agrees(on_dgamma, (dy * hat).sum(axis=1), roundings + n, 10.0 + np.abs(dy * hat).sum(axis=1).max() / n**0.5)
    bench.agrees(on_dbeta, dy.sum(axis=1, dtype="float64"), roundings + n, 10.0)


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("mean", [True, False], ids=["mean", "sum"])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (2, 33), (10, 256), (10, 257), (100, 3), (3, 700)])
def test_softmax_cross_entropy(k, n, mean, layout, bench):
    """A row's value and derivative have some K roundings of numbers up to max |z|; the sum adds N rows."""
    z = bench.draw(k, n, scale=5)
    t = bench.rng.random((k, n)).astype(bench.dtype)
    t /= t.sum(axis=0)
    s = z.astype("float64") - z.max(axis=0)
    e = np.exp(s)
    scale = 1 / n if mean else 1.0
    value, dz = scale * (np.log(e.sum(axis=0)) - (t * s).sum(axis=0)).sum(), scale * (e / e.sum(axis=0) - t)
    on_z, on_t = bench.put(z, layout), bench.put(t, layout)
    for more in (1, 3, 1):  # times the scale, in the same workspace
        on_value, on_dz = bench.kernels.softmax_cross_entropy(on_z, on_t, more * scale)
        assert abs(float(on_value) - more * value) <= (20 + k + n) * bench.eps * 40 * n * more * scale
        bench.agrees(on_dz, more * dz, 20 + k, more * scale)
    np.testing.assert_array_equal(bench.backend.to_numpy(on_z), z)
    np.testing.assert_array_equal(bench.backend.to_numpy(on_t), t)


def test_softmax_cross_entropy_of_large_logits_is_exact_and_of_nan_is_nan(bench):
    z = np.array([[1e4, -1e4, 0.0, 0.0], [0.0, 1e4, 0.0, np.nan], [-1e4, 0.0, np.nan, 0.0]], bench.dtype)
    t = np.eye(3, 4, dtype=bench.dtype)
    value, dz = bench.kernels.softmax_cross_entropy(bench.put(z[:, :2]), bench.put(t[:, :2]), 1.0)
    assert float(value) == 0.0
    bench.agrees(dz, np.zeros((3, 2)), 0)
    value, dz = bench.kernels.softmax_cross_entropy(bench.put(z), bench.put(t), 1.0)
    assert np.isnan(float(value))
    np.testing.assert_array_equal(np.isnan(bench.backend.to_numpy(dz)), [[False, False, True, True]] * 3)
    value, dz = bench.kernels.softmax_cross_entropy(bench.put(-z[:, :2]), bench.put(t[:, :2]), 1.0)
    assert float(value) == 4e4  # of the wrong class, to the last bit: log 1 and two differences of 2e4


@pytest.mark.parametrize("sizes", [(40, 7, 40, 90, 7), (3, 300, 300, 3)])
def test_batches_of_changing_size_share_a_workspace(sizes, bench):
    for n in sizes:
        test_activation("tanh", (6, n), "turned", bench)
        bench.kernels.new_workspace()  # each block has a workspace of its own
        test_batch_norm("sigmoid", (6, n), "as it is", True, bench)
        bench.kernels.new_workspace()
        test_softmax_cross_entropy(6, n, True, "turned", bench)
        bench.kernels.new_workspace()


# --- optimizers -------------------------------------------------------------------------------------------------------


def decay(o, g, w):
    return g + o.weight_decay * w


def sgd(o, w, g, m, t, rate):
    point = w - (o.momentum * m["velocity"] if isinstance(o, xn.Nesterov) else 0.0)
    v = o.momentum * m["velocity"] + rate * decay(o, g, point)
    return w - v, {"velocity": v}


def adagrad(o, w, g, m, t, rate):
    g = decay(o, g, w)
    s = m["squares"] + g * g
    return w - rate * g / np.sqrt(s + o.eps), {"squares": s}


def rmsprop(o, w, g, m, t, rate):
    g = decay(o, g, w)
    s = o.rho * m["squares"] + (1 - o.rho) * g * g
    return w - rate * g / np.sqrt(s + o.eps), {"squares": s}


def adam(o, w, g, m, t, rate):
    if isinstance(o, xn.AdamW):
        w = w - rate * o.weight_decay * w
    else:
        g = decay(o, g, w)
    first, second = o.beta1 * m["m"] + (1 - o.beta1) * g, o.beta2 * m["v"] + (1 - o.beta2) * g * g
    a, b = (1 - o.beta1**t, 1 - o.beta2**t) if o.bias_correction else (1.0, 1.0)
    return w - rate * (first / a) / (np.sqrt(second / b) + o.eps), {"m": first, "v": second}


class MySGD(xn.SGD):
    """One's own, with a rule that looks at the whole vector."""

    def rule(self, w, g, slots, rate):
        return super().rule(w, g / (1.0 + abs(g).max()), slots, rate)


def my_sgd(o, w, g, m, t, rate):
    g = decay(o, g, w)
    v = o.momentum * m["velocity"] + rate * g / (1 + np.abs(g).max())
    return w - v, {"velocity": v}


RULES = {
    "sgd": (xn.SGD, sgd),
    "nesterov": (lambda rate, **limits: xn.Nesterov(rate, **{"clip_value": None, **limits}), sgd),
    "adagrad": (xn.Adagrad, adagrad),
    "rmsprop": (xn.RMSprop, rmsprop),
    "adam": (xn.Adam, adam),
    "adam, uncorrected": (lambda rate, **limits: xn.Adam(rate, bias_correction=False, **limits), adam),
    "adamw": (xn.AdamW, adam),
    "one's own": (MySGD, my_sgd),
}
LIMITS = {
    "unlimited": {},
    "clip_value": {"clip_value": 0.5},
    "clip_norm": {"clip_norm": 0.5},
    "clip_norm beyond": {"clip_norm": 1e4},
    "all": {"clip_value": 0.8, "clip_norm": 2, "weight_decay": 0.1},
}


@pytest.mark.parametrize(
    ("limits", "size"),  # less than a block, one and a bit, several
    [*itertools.product(LIMITS, [1, 300]), ("unlimited", 2**15 + 1), ("all", 2**15 + 1), ("all", 2**18 + 1)],
)
@pytest.mark.parametrize("rule", RULES)
def test_optimizer(rule, limits, size, bench):
    """Some ten roundings a step, and those of a norm; three steps."""
    make, formula_of = RULES[rule]
    optimizer = make(xn.ExponentialDecay(0.1, 0.5, 2), **LIMITS[limits])
    w = bench.draw(size)
    on_w = bench.put(w)
    on_slots = optimizer.init(on_w)
    w, memory = w.astype("float64"), {name: np.zeros(size) for name in optimizer.memory}
    for step in range(3):
        g = bench.draw(size)
        new_w = bench.put(g)
        old = {name: bench.backend.to_numpy(on_slots[name]).copy() for name in memory}
        into = {name: bench.empty(size) for name in memory} if step == 1 else on_slots  # other slots, or the same
        new = bench.kernels.update(optimizer, on_w, on_slots, new_w, into)
        if step == 1:
            for name, a in old.items():
                np.testing.assert_array_equal(bench.backend.to_numpy(on_slots[name]), a)
        bench.agrees(on_w, w, 100)
        on_w, on_slots = new_w, new
        assert on_slots["step"] == step + 1
        g = g.astype("float64")
        if optimizer.clip_value is not None:
            g = np.clip(g, -optimizer.clip_value, optimizer.clip_value)
        if optimizer.clip_norm is not None:
            g = g * min(1.0, optimizer.clip_norm / np.sqrt((g * g).sum()))
        w, memory = formula_of(optimizer, w, g, memory, step + 1, 0.1 * 0.5 ** (step / 2))
        bench.agrees(on_w, w, 100)
        for name, a in memory.items():
            bench.agrees(on_slots[name], a, 100)


@pytest.mark.parametrize("size", [50, 140_001])
@pytest.mark.parametrize("rule", RULES)
def test_optimizer_keeps_nan_even_where_it_clips(rule, size, bench):
    make, _ = RULES[rule]
    optimizer = make(0.1, clip_value=1.0)
    if rule == "one's own":
        optimizer = xn.SGD(0.1, clip_value=1.0)
    g = np.zeros(size, bench.dtype)
    g[size // 2] = np.nan
    w, new_w = bench.put(np.ones(size, bench.dtype)), bench.put(g)
    bench.kernels.update(optimizer, w, optimizer.init(w), new_w, optimizer.init(w))
    new_w = bench.backend.to_numpy(new_w)
    assert np.isnan(new_w[size // 2])
    assert np.isfinite(np.delete(new_w, size // 2)).all()


def test_what_is_not_finite_shows_wherever_it_stands(bench, request):
    """However the steps look for it, in vectors of one block or many; numbers too large to add up are no fault."""
    from xpnet.kernels.planner import BufferedStep
    from xpnet.training.batches import Batch

    huge = float(np.finfo(bench.dtype).max) / 2
    for inputs in (3, 40_000):
        net = xn.Sequential(xn.Dense(inputs, 5)).initialize(bench.backend, bench.dtype)
        step = BufferedStep(net, xn.MeanSquaredError(), xn.SGD(1.0, momentum=0.0), bench.kernels.family)
        x, y = bench.put(np.zeros((4, inputs), bench.dtype)), bench.put(np.zeros((4, 5), bench.dtype))
        size = inputs * 5 + 5
        for at, poison in itertools.product([0, size // 2, size - 1], [np.nan, np.inf, -np.inf, None]):
            w = np.full(size, 0.5, bench.dtype) if poison is not None else np.full(size, huge, bench.dtype)
            g = np.zeros(size, bench.dtype)
            if poison is not None:
                g[at] = poison
            _, carry = step.on_rows(step.start, Batch(x, y), slice(0, 4), ())
            carry.weights[...] = bench.put(g)
            slots = {"step": 0, "velocity": bench.put(np.zeros(size, bench.dtype))}
            step.update(bench.put(w), slots, carry.weights, slots)
            assert step.sound(carry._replace(slots=slots)) is (poison is None)


# --- products ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "k", "n"), SIZES)
def test_product(m, k, n, bench):
    """Of turned matrices too; each entry is a sum of k numbers of size 1, whose rounding grows with k at most."""
    a, b = bench.draw(m, k), bench.draw(k, n)
    expected = a.astype("float64") @ b.astype("float64")
    for turned in (False, True):
        layout = "turned" if turned else "as it is"
        out = bench.empty(m, n)
        given = bench.kernels.product(bench.put(a, layout), bench.put(b, layout), out=out)
        assert given is out
        bench.agrees(out, expected, 10 + k, 5.0)


# --- workspaces and threads -------------------------------------------------------------------------------------------


def test_a_workspace_gives_one_memory_by_name_and_a_smaller_array_is_part_of_it(bench):
    work = bench.kernels.work
    large = work("a", (4, 10))
    assert tuple(large.shape) == (4, 10)
    large[...] = 1.0
    small, other = work("a", (4, 3)), work("b", (4, 10))
    small[...] = 2.0
    assert (bench.backend.to_numpy(large) == 2.0).sum() == 12
    assert (bench.backend.to_numpy(work("a", (4, 10))) == bench.backend.to_numpy(large)).all()
    other[...] = 3.0
    assert not (bench.backend.to_numpy(large) == 3.0).any()
    assert tuple(work("a", (5, 20)).shape) == (5, 20)
    work("a", (4, 10))[...] = 4.0
    assert not (bench.backend.to_numpy(large) == 4.0).any()
    assert work("mask", (2, 2), bench.backend.xp.bool).dtype == bench.backend.xp.bool
    assert bool((work.filled(0.5, (7,)) == 0.5).all())


@pytest.mark.parametrize(("size", "block"), [(0, 3), (1, 3), (3, 3), (4, 3), (100, 7), (1000, 1)])
def test_every_block_is_worked_on_once_and_results_come_in_order(size, block):
    seen = []
    results = threads.in_blocks(lambda part: seen.append(part.start) or part, size, block)
    assert [i for part in results for i in range(size)[part]] == list(range(size))
    assert sorted(seen) == [part.start for part in results]
    assert all(part.stop - part.start <= block for part in results)


def test_each_thread_gets_as_many_blocks_of_one_size(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    parts = threads.in_blocks(lambda part: part, 31, 10)
    assert parts == [slice(0, 8), slice(8, 16), slice(16, 24), slice(24, 31)]


def meeting(number):
    """For the work on blocks: the first of them are begun by as many threads, all of which then take part."""
    barrier = threading.Barrier(number, timeout=HANG)
    return lambda part: part.start < number and barrier.wait()


@pytest.mark.parametrize("fails", [0, 5, 9])
def test_an_exception_comes_back_when_nobody_is_at_work_any_more(fails, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    at_work, meet = [], meeting(2)

    def work(part):
        at_work.append(part.start)
        meet(part)
        at_work.remove(part.start)
        if part.start == fails:
            raise OverflowError(str(part.start))

    with pytest.raises(OverflowError, match=str(fails)):
        threads.in_blocks(work, 10, 1)
    assert at_work == []


def test_omp_num_threads_says_how_many_take_part(monkeypatch):
    def taking_part(number):
        names, meet = set(), meeting(number)

        def work(part):
            names.add(threading.current_thread().name)
            meet(part)

        threads.in_blocks(work, 20, 1)
        return names

    threads.workers.cache_clear()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert (threads.cores(), taking_part(1)) == (1, {threading.current_thread().name})
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert (threads.cores(), len(taking_part(3))) == (3, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", " 3 ,2")  # of regions within one another
    assert threads.cores() == 3
    for nonsense in ("", "0", "many", "-3", "1e9", "1000000000", "²", ",", "2.5"):
        monkeypatch.setenv("OMP_NUM_THREADS", nonsense)
        assert 1 <= threads.cores() <= threads.LIMIT
    monkeypatch.delattr("os.sched_getaffinity", raising=False)  # Linux alone has it
    assert 1 <= threads.cores() <= threads.LIMIT
    threads.workers.cache_clear()


def test_several_threads_share_the_helpers(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    results = {}

    def run(number):
        results[number] = [threads.in_blocks(lambda part: (number, part.start), 50, 1) for _ in range(20)]

    callers = [threading.Thread(target=run, args=(number,)) for number in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(timeout=HANG)
        assert not caller.is_alive()
    assert results == {number: [[(number, i) for i in range(50)]] * 20 for number in range(4)}


def test_helpers_heed_the_callers_errstate(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    meet = meeting(2)

    def work(part):
        meet(part)
        return np.float32(1e38) * np.float32(1e38)

    with warnings.catch_warnings(), np.errstate(over="ignore"):
        warnings.simplefilter("error")
        assert threads.in_blocks(work, 10, 1) == [np.inf] * 10


# --- Numba's own ------------------------------------------------------------------------------------------------------


@pytest.mark.numba_only
@pytest.mark.parametrize(("dtype", "low", "high"), [("float32", -87.0, 88.0), ("float64", -708.0, 709.0)])
def test_exp_is_within_2_ulp_over_its_whole_range_and_ends_there(dtype, low, high):
    from numba import njit

    from xpnet.kernels.cpu.numba import compiling as kernels

    one = kernels.exp32 if dtype == "float32" else kernels.exp64

    @njit(fastmath={"reassoc", "contract"})
    def table(x, y):
        for i in range(x.size):
            y[i] = one(x[i])

    rng = np.random.default_rng(0)
    tiny = np.array([0.0, -0.0, 1e-300, -1e-300, 1e-8, -1e-8])
    x = np.concatenate([np.linspace(low, high, 40_001), rng.uniform(low, high, 40_000), rng.normal(size=20_000), tiny])
    x = x.astype(dtype)
    y = np.empty_like(x)
    table(x, y)
    exact = np.exp(x.astype(np.longdouble))
    error = np.abs(y.astype(np.longdouble) - exact) / np.spacing(exact.astype(dtype)).astype(np.longdouble)
    assert error.max() <= 2.0
    ends = np.array([low, -1e4, -np.inf, high, 1e4, np.inf, np.nan], dtype)
    y = np.empty_like(ends)
    table(ends, y)
    assert y[0] == y[1] == y[2] > 0
    assert y[3] == y[4] == y[5] < np.inf
    assert np.isnan(y[6])


@pytest.mark.numba_only
@pytest.mark.parametrize("name", ["SOURCES", "SOURCE"])
def test_loops_are_compiled_anew_where_what_they_call_has_changed(name, monkeypatch):
    from xpnet.kernels.cpu.numba import batch_norm, compiling

    loop = batch_norm.averaged
    codegen, key = loop.targetctx.codegen(), loop._cache._index_key
    before = key((), codegen)
    assert key((), codegen) == before
    monkeypatch.setattr(compiling, name, "of another version")
    assert key((), codegen) != before
