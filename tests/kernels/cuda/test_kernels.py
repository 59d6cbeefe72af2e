"""Each CUDA kernel against the plain operation it stands for, on a GPU or, with --on-host, on the host."""

import numpy as np
import pytest

import xpnet as xn
from support.cases import EXTREMES, LAYERS, assert_extreme, tutorial_network
from support.cupy_on_host import log
from support.kernels import Operations
from xpnet.kernels import training_step
from xpnet.kernels.cuda import launching, optimizers
from xpnet.kernels.cuda.dropout import mask
from xpnet.kernels.cuda.kernels import CuPyKernels
from xpnet.kernels.cuda.launching import columns, threads
from xpnet.kernels.planner import BufferedStep
from xpnet.kernels.reference import Step

pytestmark = pytest.mark.cupy_only

ACTIVATIONS = {
    "none": None,
    "sigmoid": xn.Sigmoid(),
    "tanh": xn.Tanh(),
    "relu": xn.ReLU(),
    "leaky relu": xn.LeakyReLU(0.3),
    "leaky relu, downwards": xn.LeakyReLU(-2),
    "elu": xn.ELU(0.7),
    "gelu": xn.GELU(),
    "gelu, approximate": xn.GELU(approximate=True),
}
SHAPES = [(1, 1), (3, 2), (5, 33), (2, 700), (40, 64)]  # (H, N): less and more than a warp, and than a block
EPS = {"float32": np.finfo(np.float32).eps, "float64": np.finfo(np.float64).eps}
TINY = np.finfo(np.float32).tiny  # CuPy has kernels compiled so that a float below it is 0


@pytest.fixture
def cupy(monkeypatch):
    """CuPy's backend and its own kernels, unless a test says so."""
    monkeypatch.delenv("XPNET_KERNELS", raising=False)
    return xn.get_backend("cupy")


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


class Bench:
    """The kernels with a workspace, and arrays drawn for them."""

    def __init__(self, backend, dtype):
        self.backend, self.dtype = backend, dtype
        self.kernels = Operations(CuPyKernels(backend), dtype, backend)
        self.rng = np.random.default_rng(0)

    def draw(self, *shape, scale=1.0):
        return (scale * self.rng.normal(size=shape)).astype(self.dtype)

    def put(self, a):
        return self.backend.asarray(a)

    def empty(self, *shape):
        return self.put(np.full(shape, np.nan, self.dtype))

    def agrees(self, a, expected, factor=200, scale=None):
        """Sums of up to 700 numbers, in another order: `factor` roundings of `scale`, or of the largest entry."""
        a = self.backend.to_numpy(a)
        assert a.dtype == self.dtype
        assert a.shape == np.shape(expected)
        if scale is None:
            scale = np.abs(expected, where=np.isfinite(expected), out=np.zeros(np.shape(expected))).max(initial=0.0)
        np.testing.assert_allclose(a, expected, rtol=0, atol=factor * EPS[self.dtype] * (scale or 1.0))


@pytest.fixture
def bench(cupy, dtype):
    with cupy.scope():
        yield Bench(cupy, dtype)


def roundings(f):
    """Of a plain derivative; GELU's has that of 1 - Φ, times x u' of up to 100."""
    return 100 if isinstance(f, xn.GELU) else 8


def strided(a):
    """The same numbers, a feature's batch not in one row."""
    return np.ascontiguousarray(a.T).T


# --- activation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_with_bias_and_its_derivatives(name, shape, bench):
    f = ACTIVATIONS[name]
    z, dy, bias = bench.draw(*shape, scale=3), bench.draw(*shape), bench.draw(shape[0])
    y, cache = f.forward((z + bias[:, None]).T) if f else ((z + bias[:, None]).T, None)
    dz = (f.backward(dy.T, cache)[0] if f else dy.T).T
    on_z, on_bias, on_dy, dbias = bench.put(z), bench.put(bias), bench.put(dy), bench.empty(shape[0])
    on_y = bench.kernels.activation(f, on_z, on_bias)
    bench.agrees(on_y, y.T, 8)
    on_dz = bench.kernels.activation_backward(on_dy, on_dy, dbias)
    bench.agrees(on_dz, dz, roundings(f))
    bench.agrees(dbias, dz.sum(axis=1))
    bench.agrees(on_z, z, 0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_takes_a_gradient_that_lies_otherwise_and_leaves_it(name, bench):
    f = ACTIVATIONS[name]
    z, bias, dy = bench.draw(5, 33), bench.draw(5), strided(bench.draw(5, 33))
    u = (z + bias[:, None]).T
    dz = (f.backward(dy.T, f.forward(u)[1])[0] if f else dy.T).T
    on_z, on_bias, on_dy, dbias = bench.put(z), bench.put(bias), bench.put(dy), bench.empty(5)
    bench.kernels.activation(f, on_z, on_bias)
    on_dz = bench.kernels.activation_backward(on_dy, bench.empty(5, 33), dbias)
    bench.agrees(on_dz, dz, roundings(f))
    bench.agrees(dbias, dz.sum(axis=1))
    bench.agrees(on_dy, dy, 0)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_at_zero_far_out_and_at_nan(name, bench):
    f = ACTIVATIONS[name]
    z = np.array([[0.0, -0.0, 1e-5, -1e-5, 1000.0, -1000.0, 50.0, -50.0, np.inf, -np.inf, np.nan]], bench.dtype)
    with np.errstate(all="ignore"):
        y, cache = f.forward(z.T) if f else (z.T, None)
        dz = f.backward(np.ones_like(z).T, cache)[0].T if f else np.ones_like(z)
    on_z, bias, dbias = bench.put(z), bench.put(np.zeros(1, bench.dtype)), bench.empty(1)
    on_y = bench.kernels.activation(f, on_z, bias)
    on_dy = bench.put(np.ones_like(z))
    on_dz = bench.kernels.activation_backward(on_dy, on_dy, dbias)
    np.testing.assert_allclose(bench.backend.to_numpy(on_y), y.T, rtol=8 * EPS[bench.dtype], atol=TINY)
    if not isinstance(f, xn.ELU):  # whose plain derivative at NaN goes through a minimum
        if isinstance(f, xn.GELU):  # whose plain derivative at infinity is NaN
            dz, on_dz = dz[np.isfinite(z)], on_dz[bench.put(np.isfinite(z))]
        np.testing.assert_allclose(bench.backend.to_numpy(on_dz), dz, rtol=8 * EPS[bench.dtype], atol=EPS[bench.dtype])


# --- batch norm -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_it_lies", [np.ascontiguousarray, strided])
@pytest.mark.parametrize("shape", SHAPES[1:])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_batch_norm_with_activation_and_its_derivatives(name, shape, as_it_lies, bench):
    f, norm, h = ACTIVATIONS[name], xn.BatchNorm(shape[0]), shape[0]
    z, dy = as_it_lies(3 + bench.draw(*shape, scale=2)), as_it_lies(bench.draw(*shape))
    gamma, beta, bias = (bench.draw(h) for _ in range(3))
    norm.params = {"gamma": gamma, "beta": beta}
    norm.state = {"mean": np.zeros(h, bench.dtype), "var": np.ones(h, bench.dtype)}
    u, norm_cache = norm.forward(z.T, training=True)
    y, cache = f.forward(u) if f else (u, None)
    du = f.backward(dy.T, cache)[0] if f else dy.T
    dx, grads = norm.backward(du, norm_cache)
    batch = norm.next_state(norm_cache)  # the first batch's statistics are the batch's own

    on = {key: bench.put(a) for key, a in {"z": z, "dy": dy, "gamma": gamma, "beta": beta, "bias": bias}.items()}
    mean, var, dgamma, dbeta = (bench.empty(h) for _ in range(4))
    dz = on["dy"] if as_it_lies is np.ascontiguousarray else bench.empty(*shape)
    on_y = bench.kernels.batch_norm(f, on["z"], on["gamma"], on["beta"], norm.eps, mean, var, False, on["bias"])
    bench.agrees(on_y, y.T)
    bench.agrees(mean, batch["mean"] + bias)
    bench.agrees(var, batch["var"])
    dz = bench.kernels.batch_norm_backward(on["dy"], dz, dgamma, dbeta, on["bias"])
    bench.agrees(on["bias"], np.zeros(h), 0)
    bench.agrees(dbeta, grads["beta"])
    bench.agrees(dgamma, grads["gamma"])
    bench.agrees(dz, dx.T, 400)
    bench.agrees(on["z"], z, 0)


def test_batch_norm_keeps_a_variance_that_a_large_mean_would_drown(bench):
    z = np.array([[1e4, 1e4 + 1, 1e4 + 2, 1e4 + 3]], bench.dtype)  # exact in both types
    ones, mean, var = bench.put(np.ones(1, bench.dtype)), bench.empty(1), bench.empty(1)
    bench.kernels.batch_norm(None, bench.put(z), ones, ones, 1e-5, mean, var, False)
    bench.agrees(var, [1.25], 4)
    bench.agrees(mean, [10001.5], 1)


def test_running_statistics(bench):
    old, batch, rates = bench.draw(700), bench.draw(700), bench.draw(700)
    new = bench.kernels.family.averaged(bench.put(old), bench.put(batch), bench.put(rates))
    bench.agrees(new, (1 - rates) * old + rates * batch, 4)


# --- dropout ----------------------------------------------------------------------------------------------------------


def test_dropout_keeps_a_number_whose_bits_are_the_least_that_are_kept(bench):
    """Found by halves: NumPy's layer keeps it at the rate `least` / 2²⁴, and at no higher one."""
    x, key = np.ones((1, 1), bench.dtype), np.array([5, 3], np.int32)

    def kept(least):
        layer = xn.Sequential(xn.Dropout(least / 2**24)).initialize("numpy", bench.dtype).layers[0]
        layer.state = {"key": key}
        return layer.forward(x, training=True)[0].item() > 0

    least, more = 0, 2**24
    while more - least > 1:
        middle = (least + more) // 2
        least, more = (middle, more) if kept(middle) else (least, middle)
    for count in (least, least + 1):
        y = bench.empty(1, 1)
        mask(bench.put(x), bench.backend.asarray(key), count / 2**24, y)
        assert (bench.backend.to_numpy(y).item() > 0) == kept(count) == (count == least)


# --- loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("as_it_lies", [np.ascontiguousarray, strided])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize(("k", "n"), [(1, 1), (2, 33), (10, 100), (100, 3), (3, 70)])
def test_softmax_cross_entropy_and_its_derivative(k, n, reduction, as_it_lies, bench):
    loss, z = xn.SoftmaxCrossEntropy(reduction), bench.draw(k, n, scale=5)
    t = bench.rng.random((k, n)).astype(bench.dtype)
    t /= t.sum(axis=0)
    value, dz = loss.reduced(z.T, t.T)
    scale = 1.0 if reduction == "sum" else 1.0 / n
    for _ in range(2):  # the count of blocks is 0 again
        on_value, on_dz = bench.kernels.softmax_cross_entropy(bench.put(as_it_lies(z)), bench.put(as_it_lies(t)), scale)
        bench.agrees(on_value, value)
        bench.agrees(on_dz, dz.T)


def test_softmax_cross_entropy_of_large_logits_is_exact_and_of_nan_is_nan(bench):
    z = np.array([[3e4, -3e4, 0.0], [0.0, 3e4, 0.0], [-3e4, 0.0, np.nan]], bench.dtype)
    t = np.eye(3, dtype=bench.dtype)
    value, dz = bench.kernels.softmax_cross_entropy(bench.put(z[:, :2]), bench.put(t[:, :2]), 1.0)
    bench.agrees(value, 0.0, 0)
    bench.agrees(dz, np.zeros((3, 2)), 0)
    value, dz = bench.kernels.softmax_cross_entropy(bench.put(z), bench.put(t), 1.0)
    assert np.isnan(bench.backend.to_numpy(value))
    np.testing.assert_array_equal(np.isnan(bench.backend.to_numpy(dz)), [[False, False, True]] * 3)


# --- long rows --------------------------------------------------------------------------------------------------------

# A thread adds up its terms within 2 roundings to nearest, a block its threads' in 20 additions, 5 in a warp and 15 for
# its warps: 11 eps of the terms' sizes. A row of several blocks adds up the blocks' sums in the same way.
TOTAL = 22


@pytest.fixture(params=[1, 132], ids=["one block a row", "several blocks a row"])
def multiprocessors(request):
    return request.param


@pytest.fixture
def long(cupy, multiprocessors):
    """The bench in float32, on a device with so many multiprocessors."""
    with cupy.scope():
        bench = Bench(cupy, "float32")
        bench.kernels.family.multiprocessors = multiprocessors
        yield bench


def derivative(f, u, dy):
    """dy f'(u), (H, N)"""
    return f.backward(dy.T, f.forward(u.T)[1])[0].T if f else dy


@pytest.mark.parametrize("name", ["none", "relu", "sigmoid"])
def test_sums_of_a_million_rows_lose_no_digits(name, long):
    """Of a pixel's two values, whose roundings beside a long sum all go one way: without care by thousands of eps.

    The terms themselves have some 25 roundings, since the variance's go into x̂; sigmoid's, with 1 - y, up to 75.
    """
    f, h, n, eps, terms = ACTIVATIONS[name], 2, 10**6 + 77, 0.01, 75 if name == "sigmoid" else 25
    light = long.rng.random((h, n)) < np.array([[0.5], [0.3]])
    z, dy = np.where(light, 0.3, -0.2).astype("float32"), np.where(light, 0.7, 0.1).astype("float32")
    on_z, on_dy, one, dz = long.put(z), long.put(dy), long.put(np.ones(h, "float32")), long.empty(h, n)
    wide, dy = z.astype("float64"), dy.astype("float64")

    du, dbias = derivative(f, wide + 1.0, dy), long.empty(h)
    on_y = long.kernels.activation(f, on_z, one)
    long.kernels.activation_backward(on_dy, dz, dbias)
    long.agrees(dbias, du.sum(axis=1), TOTAL + terms)

    mean, var, dgamma, dbeta = (long.empty(h) for _ in range(4))
    m, v = wide.mean(axis=1, keepdims=True), wide.var(axis=1, keepdims=True)
    hat, scale = (wide - m) / np.sqrt(v + eps), 1.0 / np.sqrt(v + eps)
    du = derivative(f, hat + 1.0, dy)
    y = f.forward((hat + 1.0).T)[0].T if f else hat + 1.0
    expected = scale * (du - du.mean(axis=1, keepdims=True) - hat * (du * hat).mean(axis=1, keepdims=True))
    on_y = long.kernels.batch_norm(f, on_z, one, one, eps, mean, var, False)
    long.agrees(mean, m[:, 0], 1, np.abs(m).max() + TOTAL * EPS["float32"])
    long.agrees(var, v[:, 0], TOTAL + 4)
    long.agrees(on_y, y, TOTAL)
    long.kernels.batch_norm_backward(on_dy, dz, dgamma, dbeta)
    long.agrees(dbeta, du.sum(axis=1), TOTAL + terms)
    long.agrees(dgamma, (du * hat).sum(axis=1), TOTAL + terms, np.abs(du * hat).sum(axis=1).max())
    long.agrees(dz, expected, TOTAL + terms, 3 * (scale * np.abs(du)).max() * np.abs(hat).max())


@pytest.mark.parametrize(("centre", "h", "n"), [(2100.0, 1, 10**6), (1e6, 1, 20_000), (2100.0, 64, 3001)])
def test_batch_norm_takes_mean_and_variance_of_a_long_row_about_its_mean(centre, h, n, long):
    """The sum of z, then of what that mean leaves of z, which is small: its roundings are the variance's own."""
    z = (centre + long.draw(h, n)).astype("float32")
    ones, mean, var, wide = long.put(np.ones(h, "float32")), long.empty(h), long.empty(h), z.astype("float64")
    long.kernels.batch_norm(None, long.put(z), ones, ones, 0.01, mean, var, False)
    long.agrees(mean, wide.mean(axis=1), 0.5 + TOTAL / centre)
    long.agrees(var, wide.var(axis=1), TOTAL + 8)


def test_no_variance_of_a_constant_is_below_0(bench):
    z = np.repeat(3 + bench.draw(64, 1), 701, axis=1)
    ones, mean, var = bench.put(np.ones(64, bench.dtype)), bench.empty(64), bench.empty(64)
    bench.kernels.batch_norm(None, bench.put(z), ones, ones, 0.01, mean, var, False)
    assert (bench.backend.to_numpy(var) >= 0).all()
    bench.agrees(mean, z[:, 0], 1)


def test_a_loss_of_many_rows_loses_no_digits(cupy):
    """Of two classes: its last block is one warp, where each thread adds up hundreds of the other blocks' sums."""
    with cupy.scope():
        bench, n = Bench(cupy, "float32"), 500_000
        z, t = np.full((2, n), [[0.3], [-0.2]], "float32"), np.full((2, n), [[0.25], [0.75]], "float32")
        value, _ = bench.kernels.softmax_cross_entropy(bench.put(z), bench.put(t), 1.0)
        wide = z.astype("float64")
        bench.agrees(value, (np.logaddexp(*wide) - (t * wide).sum(axis=0)).sum(), TOTAL + 8)


def test_long_sums_that_are_infinite_or_overflow_are_infinite(bench, multiprocessors):
    kernels, n, big = bench.kernels, 20_000, np.finfo(bench.dtype).max
    kernels.family.multiprocessors = multiprocessors
    dy = np.ones((3, n), bench.dtype)
    dy[0, 0], dy[1, :1024], dy[2, 0] = np.inf, -big, np.nan
    on_dy, dbias, zeros = bench.put(dy), bench.empty(3), bench.put(np.zeros(3, bench.dtype))
    kernels.activation(None, on_dy, zeros)
    kernels.activation_backward(on_dy, bench.empty(3, n), dbias)
    np.testing.assert_array_equal(bench.backend.to_numpy(dbias), [np.inf, -np.inf, np.nan])
    z, t = np.zeros((2, n), bench.dtype), np.full((2, n), [[1.0], [0.0]], bench.dtype)
    z[0, 0] = -np.inf
    value, _ = kernels.softmax_cross_entropy(bench.put(z), bench.put(t), 1.0)
    assert float(value) == np.inf


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_a_row_of_several_blocks_is_that_of_one(name, bench):
    """And has the same bits each time, whichever block comes last. z lies on a grid, not at an activation's kink."""
    f, (h, n) = ACTIVATIONS[name], (3, 20_001)
    z, dy = np.round(bench.draw(h, n, scale=16)) / 16, bench.draw(h, n)
    on_z, on_dy, gamma, beta = (bench.put(a.astype(bench.dtype)) for a in (z, dy, bench.draw(h), bench.draw(h)))

    def results(multiprocessors):
        bench.kernels.family.multiprocessors = multiprocessors
        bench.kernels.new_workspace()
        dz, *vectors = bench.empty(h, n), *(bench.empty(h) for _ in range(6))
        y = bench.kernels.activation(f, on_z, beta)
        yield bench.kernels.activation_backward(on_dy, dz, vectors[0])
        y = bench.kernels.batch_norm(f, on_z, gamma, beta, 0.01, *vectors[1:3], False, gamma)
        yield y
        sums = *vectors[3:5], vectors[5]
        yield bench.kernels.batch_norm_backward(on_dy, bench.empty(h, n), *sums)
        yield from vectors

    one, several, again = (list(results(count)) for count in (1, 132, 132))
    sizes = np.abs(bench.backend.to_numpy(one[0])).sum(axis=1).max()
    for a, b, c in zip(several, one, again, strict=True):
        b = bench.backend.to_numpy(b)
        bench.agrees(a, b, 2 * TOTAL, sizes if a.ndim == 1 else None)
        np.testing.assert_array_equal(*map(bench.backend.to_numpy, (a, c)))


# --- optimizers -------------------------------------------------------------------------------------------------------

RULES = {
    "sgd": lambda **limits: xn.SGD(0.1, **limits),
    "nesterov": lambda **limits: xn.Nesterov(0.1, **({"clip_value": None} | limits)),
    "adagrad": lambda **limits: xn.Adagrad(0.1, **limits),
    "rmsprop": lambda **limits: xn.RMSprop(xn.CosineDecay(0.1, 10), **limits),
    "adam": lambda **limits: xn.Adam(0.1, **limits),
    "adam, uncorrected": lambda **limits: xn.Adam(0.1, bias_correction=False, **limits),
    "adamw": lambda **limits: xn.AdamW(xn.WarmUp(xn.Constant(0.1), 2), **limits),
    "adamw, weights": lambda **limits: xn.AdamW(0.1, decays="weights", **limits),
}
LIMITS = {
    "unlimited": {},
    "clip_value": {"clip_value": 0.5},
    "clip_norm": {"clip_norm": 0.5},
    "clip_norm beyond": {"clip_norm": 1e4},
    "all": {"clip_value": 0.8, "clip_norm": 2, "weight_decay": 0.1},
}


@pytest.mark.parametrize("size", [1, 300, 2000])
@pytest.mark.parametrize("limits", LIMITS)
@pytest.mark.parametrize("rule", RULES)
def test_optimizer(rule, limits, size, bench):
    optimizer = RULES[rule](**LIMITS[limits])
    w, kernels = bench.draw(size), bench.kernels
    slots = optimizer.init(w)
    on_w, on_slots, point = bench.put(w), optimizer.init(bench.put(w)), bench.empty(size)
    if "spared" in slots:
        slots["spared"] = bench.rng.integers(2, size=size).astype(bench.dtype)
        on_slots["spared"] = bench.put(slots["spared"])
    for _ in range(3):
        g = bench.draw(size)
        kernels.look_ahead(optimizer, on_w, on_slots, point)
        bench.agrees(point, optimizer.lookahead(w, slots))
        w, slots = optimizer.update(w, g, slots)
        new_w = bench.put(g)
        on_slots = kernels.update(optimizer, on_w, on_slots, new_w, on_slots)
        on_w = new_w
        bench.agrees(on_w, w)
        assert on_slots["step"] == slots["step"]
        for name in optimizer.memory:
            bench.agrees(on_slots[name], slots[name])


GRADIENTS = {
    "zero": lambda big: np.zeros(3000),
    "huge": lambda big: np.full(3000, big),
    "tiny": lambda big: np.full(3000, 1 / big),
    "half of it zero": lambda big: np.arange(3000) % 2,
    "of all sizes": lambda big: np.geomspace(1 / big, big, 3000),
    "one infinite": lambda big: np.where(np.arange(3000) == 2999, np.inf, 1.0),
    "two infinite": lambda big: np.where(np.arange(3000) < 2, -np.inf, 0.0),
    "one nan": lambda big: np.where(np.arange(3000) == 0, np.nan, 0.0),
    "the last nan": lambda big: np.where(np.arange(3000) == 2999, np.nan, 1.0),
}


@pytest.mark.parametrize("blocks", [None, 1])
@pytest.mark.parametrize("name", GRADIENTS)
def test_clip_norm_of_any_gradient(name, blocks, bench, monkeypatch):
    """With one number for each thread, and with several."""
    if blocks:
        for module in (launching, optimizers):
            monkeypatch.setattr(module, "blocks", lambda size, most: blocks)
    g = GRADIENTS[name](1e300 if bench.dtype == "float64" else 1e36).astype(bench.dtype)
    optimizer = xn.SGD(1.0, momentum=0.0, clip_norm=3.0)
    w = np.zeros_like(g)
    with np.errstate(all="ignore"):
        expected, _ = optimizer.update(w, g, optimizer.init(w))
    on_w, new_w = bench.put(w), bench.put(g)
    slots = optimizer.init(on_w)
    bench.kernels.update(optimizer, on_w, slots, new_w, slots)
    np.testing.assert_allclose(bench.backend.to_numpy(new_w), expected, rtol=200 * EPS[bench.dtype], atol=TINY)


def test_clip_value_leaves_what_is_not_finite(bench):
    g = np.array([1.0, -1.0, 0.25, np.inf, -np.inf, np.nan], bench.dtype)
    optimizer, w = xn.SGD(1.0, momentum=0.0, clip_value=0.5), np.zeros_like(g)
    on_w, new_w = bench.put(w), bench.put(g)
    slots = optimizer.init(on_w)
    bench.kernels.update(optimizer, on_w, slots, new_w, slots)
    np.testing.assert_array_equal(bench.backend.to_numpy(new_w), [-0.5, 0.5, -0.25, np.nan, np.nan, np.nan])


def test_an_optimizer_of_ones_own_takes_its_own_step(bench):
    class Slower(xn.SGD):
        def rule(self, w, g, slots, rate):
            return super().rule(w, g, slots, rate / 2)

    w, g, optimizer = bench.draw(40), bench.draw(40), Slower(0.1)
    expected, _ = optimizer.update(w, g, optimizer.init(w))
    on_w, new_w = bench.put(w), bench.put(g)
    slots = optimizer.init(on_w)
    slots = bench.kernels.update(optimizer, on_w, slots, new_w, slots)
    bench.agrees(new_w, expected, 4)
    assert slots["step"] == 1


# --- the whole step ---------------------------------------------------------------------------------------------------


def every_layer():
    return xn.Sequential(
        xn.BatchNorm(6),
        xn.Tanh(),
        xn.Dense(6, 9),
        xn.BatchNorm(9),
        xn.Sigmoid(),
        xn.Dropout(0.2),
        xn.LeakyReLU(),
        xn.Dense(9, 8),
        xn.ELU(0.5),
        xn.Sequential(xn.Dense(8, 7), xn.ReLU(), xn.BatchNorm(7, trainable=False), LAYERS["softmax"]()),
        xn.BatchNorm(7),
        xn.Dense(7, 5),
    )


NETWORKS = {
    "tutorial": tutorial_network,
    "every layer": every_layer,
    "dense": lambda: xn.Sequential(xn.Dense(6, 5)),
    "dense to one": lambda: xn.Sequential(xn.Dense(6, 1)),
    "ends in an activation": lambda: xn.Sequential(xn.Dense(6, 5), xn.Tanh()),
    "blocks": lambda: xn.Sequential(
        xn.Residual(xn.LayerNorm(6), xn.Dense(6, 6), xn.BatchNorm(6), xn.ReLU()),
        xn.Branches(xn.Dense(6, 3), xn.Sequential(xn.Dense(6, 4), xn.Dropout(0.2)), merge="concat"),
        xn.Residual(xn.Dense(7, 7)), xn.ReLU(), xn.Dense(7, 5),
    ),
    "begins frozen": lambda: xn.Sequential(xn.Dense(6, 6, trainable=False), xn.ReLU(), xn.Dense(6, 5), xn.Dropout()),
}  # fmt: skip


def trained(net, backend, dtype, loss, optimizer, shuffle):
    """The losses, parameters and statistics after two epochs in batches of 33, 33 and 4."""
    rng = np.random.default_rng(1)
    net = net().initialize(backend, dtype, seed=3)
    x = rng.normal(size=(70, net.layers[0].input_shape[0]))
    outputs = net.layers[-1].features if isinstance(net.layers[-1], xn.BatchNorm) else net(x[:1]).shape[1]
    y = rng.integers(outputs, size=70) if outputs > 1 else rng.normal(size=(70, 1))
    history = net.fit(x, y, loss=loss, optimizer=optimizer, epochs=2, batch_size=33, shuffle=shuffle)
    return history["loss"], {name: net.backend.to_numpy(a) for name, a in (net.params | net.state).items()}


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("rule", ["sgd", "nesterov"])
@pytest.mark.parametrize("network", NETWORKS)
def test_training_is_the_plain_steps_on_numpy(network, rule, shuffle, cupy, dtype, monkeypatch):
    """With optimizers whose step grows with the gradient: others make rounding of a gradient of 0 a whole step."""
    loss = xn.MeanSquaredError() if network == "dense to one" else xn.SoftmaxCrossEntropy()
    task = dtype, loss, RULES[rule](clip_norm=2.0, weight_decay=0.01), shuffle
    losses, arrays = trained(NETWORKS[network], cupy, *task)
    monkeypatch.setenv("XPNET_KERNELS", "reference")
    expected, expected_arrays = trained(NETWORKS[network], "numpy", *task)
    rtol = 1e-9 if dtype == "float64" else 2e-4
    np.testing.assert_allclose(losses, expected, rtol=rtol)
    for name, a in expected_arrays.items():
        np.testing.assert_allclose(arrays[name], a, rtol=0, atol=rtol * max(np.abs(a).max(), 1.0), err_msg=name)


def test_divergence_is_found_and_undone(cupy):
    net = xn.Sequential(xn.Dense(3, 4), xn.ReLU(), xn.Dense(4, 1)).initialize(cupy, seed=0)
    x, y = np.ones((8, 3)), np.ones((8, 1))
    with pytest.raises(xn.DivergenceError):
        net.fit(x, y, loss=xn.MeanSquaredError(), optimizer=xn.SGD(1e30), epochs=3, batch_size=2)
    assert all(np.isfinite(cupy.to_numpy(a)).all() for a in net.params.values())


@pytest.mark.parametrize("name", EXTREMES)
def test_what_is_not_finite_ends_the_training_at_the_plain_steps_step(name, cupy):
    assert_extreme(name, cupy)


@pytest.mark.parametrize(("choice", "fused"), [("auto", True), ("", True), ("generic", False), ("reference", False)])
def test_xpnet_kernels_chooses_the_step(choice, fused, cupy, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", choice)
    with cupy.scope():
        step = training_step(tutorial_network().initialize(cupy), xn.SoftmaxCrossEntropy(), xn.Adam())
    assert type(step) is (BufferedStep if fused else Step)
    assert not fused or type(step.kernels) is CuPyKernels


def test_a_loss_whose_gradient_has_another_shape_is_refused(cupy):
    class Wrong:
        def value_and_grad(self, prediction, target):
            return xn.MeanSquaredError().value_and_grad(prediction, target)[0], prediction[:, :1]

    net = xn.Sequential(xn.Dense(3, 4), xn.ReLU()).initialize(cupy)
    with pytest.raises(
        ValueError, match=r"fit: the loss, .*Wrong.*, gave an array of shape \(8, 1\), expected \(8, 4\)"
    ):
        net.fit(np.ones((8, 3)), np.ones((8, 4)), loss=Wrong(), optimizer=xn.SGD(), epochs=1)


def test_few_long_rows_are_shared_by_blocks():
    shapes = {(32, 1500): 1, (1, 2**14 - 1): 1, (1, 2**14): 8, (3, 20_001): 9, (1, 10**6): 264, (133, 10**6): 1}
    assert {shape: columns(*shape, multiprocessors=132) for shape in shapes} == shapes
    assert columns(132, 10**6, multiprocessors=132) == 2


@pytest.mark.on_host_only
@pytest.mark.parametrize(("n", "launches"), [(2**14 - 1, (1, 1, 1)), (2**14, (1, 3, 2))])
def test_batch_norm_of_shared_rows_takes_a_launch_for_each_part(n, launches, bench):
    assert bench.kernels.family.multiprocessors == bench.backend.device.attributes["MultiProcessorCount"]
    kernels, z = bench.kernels, bench.put(bench.draw(1, n))
    kernels.activation(None, z, bench.put(np.ones(1, bench.dtype)))
    one, vectors, names = bench.put(np.ones(1, bench.dtype)), [bench.empty(1) for _ in range(3)], []
    for call in (
        lambda: kernels.activation_backward(z, z, vectors[0]),
        lambda: kernels.batch_norm(None, z, one, one, 0.01, *vectors[:2], False),
        lambda: kernels.batch_norm_backward(z, z, *vectors),
    ):
        log.launches.clear()
        call()
        names.append(len(log.launches))
    assert tuple(names) == launches


def test_blocks_are_whole_warps():
    assert [threads(n) for n in (1, 32, 33, 512, 10**9)] == [32, 32, 64, 512, 512]
