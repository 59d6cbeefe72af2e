"""One forward and backward on every backend: NumPy's numbers, layer by layer and over whole training runs."""

import contextlib
import subprocess
import sys

import numpy as np
import pytest

import xpnet as xn
from support.cases import FEATURES, LAYERS, LOSSES, OPTIMIZERS, Scale, ready, tutorial_network
from xpnet.kernels.reference import Step
from xpnet.training.batches import Batch

PRECISIONS = [("float64", None), ("float32", 1e-4)]  # None: what the library holds float64 to
IN_FLOAT32 = pytest.param("float32", 1e-4, marks=pytest.mark.not_on_jax)
NUMPY = xn.get_backend("numpy")


def beside_numpy(lib):
    """NumPy's backend and the library's, of NumPy's a second one."""
    return NUMPY, lib.backend if lib.backend is not NUMPY else type(NUMPY)()


@pytest.mark.parametrize(("dtype", "rtol"), [PRECISIONS[0], IN_FLOAT32], ids=["float64", "float32"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluating"])
@pytest.mark.parametrize("name", LAYERS)
def test_layer_agrees_with_numpy(lib, name, training, dtype, rtol, rng):
    x = rng.normal(size=(33, FEATURES)).astype(dtype)
    theirs, ours = ready(LAYERS[name](), lib, dtype), ready(LAYERS[name](), None, dtype)

    here = lib.asarray(x)
    y, cache = theirs.forward(here, training)
    expected, expected_cache = ours.forward(x, training)
    lib.agrees(y, expected, rtol)

    dy = rng.normal(size=expected.shape).astype(dtype)
    dx, grads = theirs.backward(lib.asarray(dy), cache)
    expected_dx, expected_grads = ours.backward(dy, expected_cache)
    lib.agrees(dx, expected_dx, rtol)
    assert grads.keys() == theirs.params.keys()
    for key, expected_grad in expected_grads.items():
        lib.agrees(grads[key], expected_grad, rtol)

    state, expected_state = theirs.next_state(cache), ours.next_state(expected_cache)
    assert state.keys() == expected_state.keys()
    for key in state:
        lib.agrees(state[key], expected_state[key], rtol)

    for a in (y, dx, *grads.values()):
        assert lib.backend.owns(a)
        assert str(a.dtype).endswith(dtype)
    np.testing.assert_array_equal(lib.to_numpy(here), x)


@pytest.mark.parametrize(("dtype", "rtol"), [PRECISIONS[0], IN_FLOAT32], ids=["float64", "float32"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_loss_agrees_with_numpy(lib, name, reduction, dtype, rtol, rng):
    make, prediction, target = LOSSES[name]
    loss = make(reduction=reduction)
    p, t = prediction(rng, 33, 4).astype(dtype), target(rng, 33, 4)
    if t.dtype.kind == "f":
        t = t.astype(dtype)
    here, there = lib.asarray(p), lib.asarray(t)
    value, gradient = loss.value_and_grad(here, there)
    expected_value, expected_gradient = loss.value_and_grad(p, t)
    lib.agrees(value, expected_value, rtol)
    lib.agrees(gradient, expected_gradient, rtol)
    for a in (value, gradient):
        assert lib.backend.owns(a)
        assert str(a.dtype).endswith(dtype)
    np.testing.assert_array_equal(lib.to_numpy(here), p)
    np.testing.assert_array_equal(lib.to_numpy(there), t)


@pytest.mark.parametrize("pixel", [False, True], ids=["normal", "two values"])
def test_a_sum_over_a_long_batch_keeps_its_digits(lib, pixel, rng):
    """Of two values the roundings beside a long sum all go one way."""
    x = rng.normal(size=(10**6, 2)).astype("float32")
    if pixel:
        x = np.where(x > 0.0, 0.7, 0.1).astype("float32")
    wide, on_x = x.astype("float64"), lib.asarray(x)
    with lib.backend.scope():
        sums, squares = xn.ops.sum_over_batch(on_x), xn.ops.dot_over_batch(on_x, on_x)
    rounding = 100 * float(np.finfo("float32").eps)
    np.testing.assert_allclose(lib.to_numpy(sums), wide.sum(axis=0), rtol=0, atol=rounding * np.abs(wide).sum())
    np.testing.assert_allclose(lib.to_numpy(squares), (wide**2).sum(axis=0), rtol=rounding)


@pytest.mark.parametrize(("dtype", "rtol"), PRECISIONS, ids=["float64", "float32"])
def test_digits_network_agrees_with_numpy(lib, digits, dtype, rtol):
    x, y = digits
    net = tutorial_network().initialize("numpy", dtype)
    report = xn.compare_backends(
        net, x[:300], y[:300], xn.SoftmaxCrossEntropy(), beside_numpy(lib), steps=3, tolerance=rtol or lib.rtol
    )
    assert {f"gradient {name}" for name in net.params} < report.keys()


@pytest.mark.parametrize(("name", "dtype", "rtol"), [
    *((name, *PRECISIONS[0]) for name in OPTIMIZERS), *((name, *PRECISIONS[1]) for name in ("nesterov", "adam")),
])  # fmt: skip
def test_twenty_training_steps_agree_with_numpy(lib, digits, name, dtype, rtol):
    x, y = digits

    def trained(backend):
        net = tutorial_network().initialize(backend, dtype, seed=1)
        how = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": OPTIMIZERS[name](), "epochs": 5, "batch_size": 50}
        history = net.fit(x[:200], y[:200], **how)
        assert history.steps == 20
        return history["loss"], net.params | net.state

    (losses, here), (expected_losses, there) = trained(lib.backend), trained(NUMPY)
    np.testing.assert_allclose(losses, expected_losses, rtol=rtol or lib.rtol)
    for key, expected in there.items():
        lib.agrees(here[key], expected, rtol)


@pytest.mark.parametrize("choice", ["auto", "generic", "reference"])
def test_every_array_of_the_first_example_stays_with_numpys(lib, digits, choice, monkeypatch):
    """The biases before a batch norm and the means that follow them, too, of whose rounding Adam would make full steps.

    Adam moves a weight by 0.01 g / |g| at first, so by 0.01 δ / |g| more for rounding δ: 24 steps make 1e-5 of the
    largest entry of it, while one full step would be 1e-2.
    """
    x, y = digits

    def trained(backend):
        layers = xn.Dense(64, 32), xn.BatchNorm(32), xn.Sigmoid(), xn.Dense(32, 16), xn.BatchNorm(16), xn.ReLU()
        net = xn.Sequential(*layers, xn.Dense(16, 10)).initialize(backend, seed=0)
        adam = xn.Adam(learning_rate=0.01)
        net.fit(x[:1500], y[:1500], loss=xn.SoftmaxCrossEntropy(), optimizer=adam, epochs=2, batch_size=128)
        return net.params | net.state

    monkeypatch.setenv("XPNET_KERNELS", "reference")
    expected = trained(NUMPY)
    monkeypatch.setenv("XPNET_KERNELS", choice)
    for name, a in trained(lib.backend).items():
        lib.agrees(a, expected[name], 1e-4)


IDLE = {  # layers, and the parameters whose gradient is 0 in training
    "dense, norm": (lambda: [xn.Dense(4, 5), xn.BatchNorm(5), xn.ReLU()], {"0.bias"}),
    "two dense, norm": (lambda: [xn.Dense(4, 6), xn.Dense(6, 5), xn.BatchNorm(5), xn.Tanh()], {"0.bias", "1.bias"}),
    "norm, dense, norm": (lambda: [xn.BatchNorm(4), xn.Dense(4, 5), xn.BatchNorm(5)], {"0.beta", "1.bias"}),
    "norm, norm": (lambda: [xn.BatchNorm(4), xn.BatchNorm(4)], {"0.beta"}),
    "frozen norm between": (
        lambda: [xn.Dense(4, 5), xn.BatchNorm(5, trainable=False), xn.BatchNorm(5)],
        {"0.bias", "1.beta"},
    ),
    "nested": (lambda: [xn.Sequential(xn.Dense(4, 5)), xn.Sequential(xn.BatchNorm(5), xn.ELU())], {"0.0.bias"}),
    "frozen norm": (lambda: [xn.Dense(4, 5), xn.BatchNorm(5, trainable=False), xn.ReLU()], set()),
    "a function between": (lambda: [xn.Dense(4, 5), xn.Sigmoid(), xn.BatchNorm(5)], set()),
}


@pytest.mark.parametrize("name", IDLE)
def test_what_a_batch_norm_subtracts_again_has_gradient_zero_and_stays(lib, name, rng):
    layers, idle = IDLE[name]
    net = ready(xn.Sequential(*layers()), lib, "float32")
    frozen = {f"{i}.{key}" for i, layer in net.leaves() if not layer.trainable for key in layer.params}
    x = rng.normal(size=(20, 4))
    y, loss = rng.normal(size=net.predict(x).shape), xn.MeanSquaredError()
    before = {key: lib.to_numpy(a).copy() for key, a in net.params.items()}

    def zero(grads):
        return {key for key, g in grads.items() if not lib.to_numpy(g).any()}

    assert zero(net.value_and_grad(x, y, loss)[1]) == idle
    with lib.backend.scope():
        for training in True, False:
            z, cache = net.forward(lib.asarray(x, "float32"), training)
            dy = lib.asarray(rng.normal(size=z.shape), "float32")
            assert zero(net.backward(dy, cache)[1]) == (idle if training else set())

    net.fit(x, y, loss=loss, optimizer=xn.Adam(), epochs=3, batch_size=None, l2=0.1)
    assert {key for key, a in net.params.items() if (lib.to_numpy(a) == before[key]).all()} == idle | frozen


def test_weight_decay_is_all_that_moves_a_bias_before_a_batch_norm(lib, rng):
    net = ready(xn.Sequential(xn.Dense(4, 5), xn.BatchNorm(5)), lib, "float32")
    before = lib.to_numpy(net.params["0.bias"]).copy()
    sgd = xn.SGD(0.1, momentum=0.0, weight_decay=0.5)
    net.fit(rng.normal(size=(20, 4)), rng.normal(size=(20, 5)), loss=xn.MeanSquaredError(), optimizer=sgd)
    lib.agrees(net.params["0.bias"], 0.95 * before, 1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_one_seed_gives_the_same_initial_weights_to_the_bit(lib, dtype):
    here = tutorial_network().initialize(lib.backend, dtype, seed=7)
    there = tutorial_network().initialize("numpy", dtype, seed=7)
    assert here.params.keys() == there.params.keys()
    for name, a in here.params.items():
        np.testing.assert_array_equal(lib.to_numpy(a), there.params[name])
        assert lib.to_numpy(a).dtype == there.params[name].dtype == dtype


def test_dropout_drops_the_same_entries(lib, rng):
    x = rng.normal(size=(40, FEATURES))
    here, there = ready(xn.Dropout(0.4), lib), ready(xn.Dropout(0.4))
    y, _ = here.forward(lib.asarray(x), training=True)
    np.testing.assert_array_equal(lib.to_numpy(y), there.forward(x, training=True)[0])


def test_parameters_share_no_memory_with_what_they_were_set_from(lib, rng):
    net = xn.Sequential(xn.Dense(3, 2), xn.BatchNorm(2)).initialize(lib.backend, "float64")
    params = {name: lib.to_numpy(a).copy() for name, a in net.params.items()}
    state = {name: lib.to_numpy(a).copy() for name, a in net.state.items()}
    net.set_params(params)
    net.set_state(state)
    for a in [*params.values(), *state.values()]:
        a[...] = 99.0
    for a in [*net.params.values(), *net.state.values()]:
        assert not np.any(lib.to_numpy(a) == 99.0)


def test_compare_backends_takes_a_users_layer(lib, digits):
    x, y = digits
    net = xn.Sequential(Scale(64), xn.Dense(64, 10)).initialize("numpy", "float64")
    xn.compare_backends(net, x[:50], y[:50], xn.SoftmaxCrossEntropy(), beside_numpy(lib), steps=2)


def test_compare_backends_goes_on_with_the_optimizers_memory(lib, digits):
    """Adam's third step is not its first, and its parameters are those of one run."""
    x, y = digits
    net = tutorial_network().initialize("numpy", "float64")
    data, loss, adam = (x[:100], y[:100]), xn.SoftmaxCrossEntropy(), xn.Adam(0.01)
    ends = []

    class Kept(xn.Adam):
        def update(self, w, gradient, slots):
            ends.append(slots["step"])
            return super().update(w, gradient, slots)

    report = xn.compare_backends(net, *data, loss, beside_numpy(lib), steps=3, optimizer=adam)
    assert {f"parameter {name}" for name in net.params} < report.keys()
    xn.compare_backends(net, *data, loss, beside_numpy(lib), steps=3, optimizer=Kept(0.01))
    assert ends == [0, 0, 1, 1, 2, 2]


def test_compare_backends_names_step_and_array_that_part(lib, digits):
    x, y = digits

    class Partial(Scale):
        """Right on one backend of the two."""

        def backward(self, dy, cache):
            dx, grads = super().backward(dy, cache)
            return dx, {"a": grads["a"] * (1.0 if xn.ops.namespace(dy) is lib.xp else 1.001)}

    other = xn.get_backend("torch" if lib.name == "torch" else "numpy")
    reference = NUMPY if other is not NUMPY else lib.backend
    net = xn.Sequential(Partial(64), xn.Dense(64, 10)).initialize("numpy", "float64")
    if lib.xp is NUMPY.xp:
        xn.compare_backends(net, x[:50], y[:50], xn.SoftmaxCrossEntropy(), beside_numpy(lib), steps=2)
        return
    with pytest.raises(xn.GradientError, match=r"step 1: gradient 0\.a on .* differs from .* relative difference"):
        xn.compare_backends(net, x[:50], y[:50], xn.SoftmaxCrossEntropy(), (reference, other), steps=2)


@pytest.mark.numpy_only
def test_compare_backends_finds_the_odd_one_out(digits, monkeypatch):
    """On one library alone: two backends of NumPy's, of which the second's copy of the layer is told to err."""
    x, y = digits
    other = type(NUMPY)()
    net = xn.Sequential(Scale(64), xn.Dense(64, 10)).initialize("numpy", "float64")
    copies = []

    def moved(self, place, move=xn.Sequential.to):
        copies.append(move(self, place))
        if place is other:
            copies[-1].layers[0].backward = lambda dy, cache: (
                dy,
                {"a": 1.001 * xn.ops.sum_over_batch(dy * cache * cache)},
            )
        return copies[-1]

    monkeypatch.setattr(xn.Sequential, "to", moved)
    with pytest.raises(
        xn.GradientError, match=r"step 1: gradient 0\.a on numpy differs from numpy at \[\d+\]: .* above 1e-10"
    ):
        xn.compare_backends(net, x[:50], y[:50], xn.SoftmaxCrossEntropy(), (NUMPY, other), steps=2)


@pytest.mark.numpy_only
def test_two_processes_train_the_same_weights_to_the_bit():
    program = """
import hashlib, numpy as np, xpnet as xn
rng = np.random.default_rng(0)
net = xn.Sequential(xn.Dense(8, 16), xn.BatchNorm(16), xn.ReLU(), xn.Dropout(0.2), xn.Dense(16, 3)).initialize(seed=3)
net.fit(rng.random((100, 8)), rng.integers(3, size=100), loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(), epochs=5)
print(hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in net.params.values())).hexdigest())
"""
    first, second = (subprocess.check_output([sys.executable, "-c", program]) for _ in range(2))
    assert first == second
    assert len(first) > 60


@pytest.mark.jax_only
def test_a_network_runs_within_the_users_jit_grad_and_vmap(lib, rng):
    import jax

    net = xn.Sequential(xn.Dense(4, 6), xn.BatchNorm(6), xn.Tanh(), xn.Dense(6, 3)).initialize(lib.backend, "float64")
    x, dy = lib.asarray(rng.normal(size=(5, 4))), lib.asarray(rng.normal(size=(5, 3)))
    expected, cache = net.forward(x)

    def output(x):
        return net.forward(x)[0]

    lib.agrees(jax.jit(output)(x), lib.to_numpy(expected))
    lib.agrees(jax.vmap(lambda row: output(row[None, :])[0])(x), lib.to_numpy(expected))
    lib.agrees(jax.grad(lambda x: (dy * output(x)).sum())(x), lib.to_numpy(net.backward(dy, cache)[0]))
    lib.agrees(
        jax.jit(lambda x, dy: net.backward(dy, net.forward(x)[1])[0])(x, dy), lib.to_numpy(net.backward(dy, cache)[0])
    )


@pytest.mark.jax_only
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_can_be_traced_by_jit(lib, digits, name):
    import jax

    x, y = digits
    net = xn.Sequential(xn.Dense(64, 16), xn.Tanh(), xn.BatchNorm(16), xn.Dropout(0.2), xn.Dense(16, 10))
    net.initialize(lib.backend, "float64")
    optimizer = OPTIMIZERS[name]()
    optimizer.learning_rate = 0.01  # a schedule is Python's to compute
    step = Step(net, xn.SoftmaxCrossEntropy(), optimizer)
    batch = Batch(lib.asarray(x[:50]), xn.ops.one_hot(lib.asarray(y[:50]), 10, lib.xp.float64))
    value, carry = step(step.start, batch)
    traced_value, traced = jax.jit(step)(step.start, batch)
    lib.agrees(traced_value, lib.to_numpy(value))
    lib.agrees(traced.weights, lib.to_numpy(carry.weights))


@pytest.mark.jax_only
def test_jax_arrays_of_other_devices_come_to_the_networks():
    program = """
import numpy as np, jax, xpnet as xn
jax.config.update("jax_num_cpu_devices", 2)
first, second = jax.devices()
rows = jax.sharding.NamedSharding(jax.make_mesh((2,), ("rows",)), jax.sharding.PartitionSpec("rows"))
x, y = np.random.default_rng(0).normal(size=(40, 6)).astype("float32"), np.arange(40) % 3
net = xn.Sequential(xn.Dense(6, 3)).initialize("jax")
expected = net.predict(x)
for place in (first, second, rows):
    found = net.predict(jax.device_put(x, place))
    assert found.devices() == {first}
    np.testing.assert_array_equal(found, expected)
how = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.SGD(), "batch_size": None}
with jax.default_device(second):
    net.fit(jax.numpy.asarray(x), jax.numpy.asarray(y), **how)
net.fit(jax.device_put(x, rows), jax.device_put(y, second), **how)
assert net.params["0.weight"].devices() == {first}
"""
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.numpy_only
def test_numpys_buffer_is_small_within_the_scope_alone(lib):
    before = np.getbufsize()
    with contextlib.suppress(KeyError), lib.backend.scope():
        assert np.getbufsize() == 1024
        with lib.backend.scope():
            pass
        assert np.getbufsize() == 1024
        raise KeyError
    assert np.getbufsize() == before
