"""The compiled step is `step.Step`'s, compiles once, and leaves to `Step` what cannot be compiled."""

import importlib
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import xpnet as xn
from support.cases import FEATURES, LAYERS, LOSSES, OPTIMIZERS, Scale, probabilities
from support.layers import Twice
from xpnet.kernels import training_step
from xpnet.kernels.reference import Step
from xpnet.training.batches import Batch

pytestmark = pytest.mark.jax_only

STILL = xn.SGD(1e-30)
ROWS, BATCH, EPOCHS = 15, 6, 3  # batches of 6, 6 and 3 rows
STEPS = 9  # at most


@pytest.fixture
def kernels():
    """The module, imported late: other sessions have no JAX."""
    return importlib.import_module("xpnet.kernels.jit")


@pytest.fixture(params=["float32", "float64"])
def dtype(request, monkeypatch, kernels):
    """Each with its way to keep carries: in one vector, or as large networks do, in several that are written over.

    The epochs of the second end in a batch of other size, which takes a program of its own.
    """
    if request.param == "float32":
        monkeypatch.setattr(sys.modules[__name__], "ROWS", 2 * BATCH)
    else:
        monkeypatch.setattr(kernels, "ALONE", 6)
        monkeypatch.setattr(kernels, "DONATE", 1)
    return request.param


@pytest.fixture
def traces(monkeypatch, kernels):
    """The list that every tracing adds to; nothing is compiled before."""
    found, step = [], kernels.Recipe.step

    def counted(self, *args):
        found.append(self)
        return step(self, *args)

    kernels.program.cache_clear()
    monkeypatch.setattr(kernels.Recipe, "step", counted)
    yield found
    kernels.program.cache_clear()


def problem(outputs, target=None):
    rng = np.random.default_rng(1)
    x = rng.normal(size=(ROWS, FEATURES))
    return x, rng.normal(size=(ROWS, outputs)) if target is None else target(rng, ROWS, outputs)


def trained(backend, layers, data, loss, optimizer, dtype="float64", **options):
    """History and arrays of a network after a fit; `layers` makes them anew."""
    net = xn.Sequential(*layers()).initialize(backend, dtype, seed=3)
    how = {"epochs": EPOCHS, "batch_size": BATCH} | options
    history = net.fit(*data, loss=loss, optimizer=optimizer, **how)
    return history, {name: net.backend.to_numpy(a) for name, a in (net.params | net.state).items()}


def same_as_step(lib, monkeypatch, *how, dtype="float64", **options):
    """Train both ways, `Step` on NumPy, where it need not be compiled operation by operation, and compare.

    A step's sums are taken in another order, which may move a parameter by a unit in the last place of the largest,
    and these add up over the steps.
    """
    history, arrays = trained(lib.backend, *how, dtype=dtype, **options)
    monkeypatch.setenv("XPNET_KERNELS", "reference")
    expected, others = trained("numpy", *how, dtype=dtype, **options)
    monkeypatch.delenv("XPNET_KERNELS")
    rtol = STEPS * np.finfo(dtype).eps
    np.testing.assert_allclose(history["loss"], expected["loss"], rtol=rtol)
    assert arrays.keys() == others.keys()
    for name in arrays:
        assert arrays[name].dtype == others[name].dtype
        np.testing.assert_allclose(arrays[name], others[name], rtol=0, atol=rtol * max(1.0, np.abs(others[name]).max()))


# --- the same step ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_trains_as_with_step(lib, monkeypatch, name, dtype):
    width = LAYERS[name]().output_shape((FEATURES,))[-1]

    def layers():
        return xn.Dense(FEATURES, FEATURES), LAYERS[name](), xn.Tanh(), xn.Dense(width, 3)

    loss, optimizer = xn.MeanSquaredError(), xn.SGD(0.05)
    same_as_step(lib, monkeypatch, layers, problem(3), loss, optimizer, dtype=dtype)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_trains_as_with_step(lib, monkeypatch, name, reduction, dtype):
    make, prediction, target = LOSSES[name]

    def layers():
        return xn.Dense(FEATURES, 4), *([xn.Sigmoid()] if prediction is probabilities else [])

    loss, optimizer = make(reduction=reduction), xn.SGD(0.01)
    same_as_step(lib, monkeypatch, layers, problem(4, target), loss, optimizer, dtype=dtype, shuffle=False)


MORE = {
    "clipped, decayed": lambda: xn.SGD(xn.StepDecay(0.1, 0.5, 2), weight_decay=0.01, clip_value=0.1, clip_norm=0.2),
    "nesterov, decayed": lambda: xn.Nesterov(xn.ExponentialDecay(0.1), weight_decay=0.01, clip_norm=0.2),
    "a schedule of one's own": lambda: xn.Adam(lambda step: 0.01 if step % 2 else 0.02),
    "adam, not corrected": lambda: xn.Adam(0.001, bias_correction=False),
}


@pytest.mark.parametrize("name", OPTIMIZERS | MORE)
def test_every_optimizer_and_schedule_trains_as_with_step(lib, monkeypatch, name, dtype):
    def layers():
        return xn.Dense(FEATURES, 8), xn.Tanh(), xn.Dense(8, 3)

    optimizer = (OPTIMIZERS | MORE)[name]()
    same_as_step(lib, monkeypatch, layers, problem(3), xn.MeanSquaredError(), optimizer, dtype=dtype)


@pytest.mark.parametrize("options", [{"batch_size": None}, {"batch_size": 5}, {"shuffle": False}, {"batch_size": 100}])
def test_every_way_of_batching_trains_as_with_step(lib, monkeypatch, options, dtype):
    def layers():
        return xn.Dense(FEATURES, 5, trainable=False), xn.BatchNorm(5, trainable=False), xn.ReLU(), xn.Dense(5, 3)

    same_as_step(lib, monkeypatch, layers, problem(3), xn.MeanSquaredError(), xn.SGD(0.05), dtype=dtype, **options)


def test_a_callback_may_change_the_settings_of_optimizer_and_loss(lib, monkeypatch):
    class Anneal(xn.Callback):
        def epoch_end(self, run):
            optimizer.learning_rate *= 0.5
            optimizer.momentum *= 0.5
            optimizer.clip_norm = 0.1
            loss.delta *= 0.5

    def layers():
        return (xn.Dense(FEATURES, 3),)

    results = []
    for choice in ("auto", "reference"):
        monkeypatch.setenv("XPNET_KERNELS", choice)
        loss, optimizer = xn.Huber(1.0), xn.SGD(0.1)
        results.append(trained(lib.backend, layers, problem(3), loss, optimizer, callbacks=[Anneal()])[1])
    for name, a in results[0].items():
        np.testing.assert_allclose(a, results[1][name], rtol=0, atol=STEPS * np.finfo(float).eps)


def test_float32_stays_float32_where_float64_is_switched_on(lib):
    lib.backend.dtype("float64")
    net = xn.Sequential(xn.Dense(FEATURES, 3)).initialize(lib.backend, "float32")
    step = training_step(net, xn.MeanSquaredError(), xn.Adam())
    value, carry = step(step.start, Batch(*(lib.asarray(a, "float32") for a in problem(3))))
    memory = [a for own in carry.slots["memory"] for a in own.values()]
    assert {a.dtype.name for a in (value, *carry.weights, *memory)} == {"float32"}


@pytest.mark.parametrize(
    ("choice", "kind"), [("auto", "CompiledStep"), ("generic", "CompiledStep"), ("reference", "Step")]
)
def test_xpnet_kernels_chooses(lib, monkeypatch, choice, kind):
    monkeypatch.setenv("XPNET_KERNELS", choice)
    net = xn.Sequential(xn.Dense(FEATURES, 3)).initialize(lib.backend)
    assert type(training_step(net, xn.MeanSquaredError(), xn.SGD())).__name__ == kind


@pytest.mark.parametrize("told", ["initialize", "a pickle", "jax", "jax's configuration"])
def test_the_network_stays_on_its_device(told):
    place = {
        "initialize": 'net.initialize("jax", device="cpu:1")',
        "a pickle": 'net = pickle.loads(pickle.dumps(net.initialize("jax", device="cpu:1")))',
        "jax": 'with jax.default_device(jax.devices()[1]): net.initialize("jax")',
        "jax's configuration": 'jax.config.update("jax_default_device", jax.devices()[1]); net.initialize("jax")',
    }[told]
    program = f"""
import jax, numpy as np, pickle, xpnet as xn
assert xn.get_backend("jax").device.id == 0
net = xn.Sequential(xn.Dense(4, 4), xn.BatchNorm(4), xn.Dropout(0.2), xn.Dense(4, 2))
{place}
x = np.random.default_rng(0).normal(size=(10, 4))
net.fit(x, x[:, :2], loss=xn.MeanSquaredError(), optimizer=xn.Adam(), epochs=2, batch_size=4)
print({{device.id for a in (net.params | net.state).values() for device in a.devices()}})
"""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PYTHONPATH": str(Path(xn.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", program], env=flags, capture_output=True, text=True, check=False)
    assert done.stdout == "{1}\n", done.stderr


# --- compiled once ----------------------------------------------------------------------------------------------------


def two_layers():
    return xn.Dense(FEATURES, 7), xn.BatchNorm(7), xn.ReLU(), xn.Dense(7, 3)


def test_a_second_fit_compiles_nothing(lib, traces):
    loss = xn.MeanSquaredError()
    trained(lib.backend, two_layers, problem(3), loss, xn.Adam(0.01))
    assert len(traces) == 2  # batches of 6 and of 3
    first = len(traces)
    for optimizer in (xn.Adam(0.01), xn.Adam(0.002), xn.Adam(xn.CosineDecay(0.1, 10))):
        trained(lib.backend, two_layers, problem(3), xn.MeanSquaredError(), optimizer)
    assert len(traces) == first


@pytest.mark.parametrize(
    ("layers", "loss", "optimizer"),
    [
        (two_layers, xn.MeanSquaredError(), xn.Adam(beta1=0.8)),
        (two_layers, xn.MeanSquaredError(), xn.AdamW()),
        (two_layers, xn.MeanSquaredError("sum"), xn.Adam()),
        (two_layers, xn.Huber(), xn.Adam()),
        (lambda: (*two_layers()[:2], xn.LeakyReLU(0.0), *two_layers()[3:]), xn.MeanSquaredError(), xn.Adam()),
        (lambda: (two_layers()[0], xn.BatchNorm(7, eps=0.02), *two_layers()[2:]), xn.MeanSquaredError(), xn.Adam()),
        (lambda: (xn.Dense(FEATURES, 7, trainable=False), *two_layers()[1:]), xn.MeanSquaredError(), xn.Adam()),
        (lambda: (xn.Sequential(*two_layers()[:2]), *two_layers()[2:]), xn.MeanSquaredError(), xn.Adam()),
    ],
    ids=["optimizer's setting", "optimizer", "loss's setting", "loss", "layer", "layer's setting", "frozen", "nested"],
)
def test_what_differs_is_compiled_anew(lib, monkeypatch, traces, layers, loss, optimizer):
    trained(lib.backend, two_layers, problem(3), xn.MeanSquaredError(), xn.Adam())
    first = len(traces)
    monkeypatch.setattr(Step, "fault", None)  # nothing diverges
    same_as_step(lib, monkeypatch, layers, problem(3), loss, optimizer)
    assert len(traces) > first


def test_inference_is_compiled_once(lib, monkeypatch, kernels):
    """For networks alike, other arrays among them; anew for other settings; not at all with a user's layer."""
    found, infer = [], kernels.Recipe.infer
    monkeypatch.setattr(kernels.Recipe, "infer", lambda self, *args: found.append(self) or infer(self, *args))
    kernels.outputs.cache_clear()
    x = lib.asarray(np.random.default_rng(0).normal(size=(5, FEATURES)))

    def network(alpha=0.2, *more, seed=0):
        layers = xn.Dense(FEATURES, 4), xn.BatchNorm(4), xn.LeakyReLU(alpha), *more, xn.Dense(4, 3)
        return xn.Sequential(*layers).initialize(lib.backend, "float64", seed=seed)

    def predict(net, traces):
        lib.agrees(net.predict(x), lib.to_numpy(net._infer(x)), rtol=1e-12)
        assert len(found) == traces

    net = network()
    predict(net, 1)
    net.set_params({name: 2.0 * a for name, a in net.params.items()})
    net.set_state({name: 3.0 * a for name, a in net.state.items()})
    predict(net, 1)
    predict(network(seed=1), 1)
    predict(network(0.3), 2)
    net.layers[2].alpha = 0.4
    predict(net, 3)
    predict(net.clone(), 3)
    predict(own := network(0.2, Twice()), 3)
    for _ in range(2):
        own.layers[3].note = np.arange(2)  # arrays as attributes are not compared by their entries
        predict(own, 3)
    monkeypatch.setenv("XPNET_KERNELS", "reference")
    predict(network(0.5), 3)


def test_frozen_parameters_are_those_of_the_network_that_is_trained(lib, traces):
    def weights(seed):
        net = xn.Sequential(xn.Dense(FEATURES, 7, trainable=False), xn.Dense(7, 3)).initialize(lib.backend, seed=seed)
        step = training_step(net, xn.MeanSquaredError(), xn.SGD())
        x, y = (lib.asarray(a, "float32") for a in problem(3))
        value, _ = step(step.start, Batch(x, y))
        return float(value), float(xn.MeanSquaredError()(net.predict(x), y))

    for seed in (0, 1):
        value, expected = weights(seed)
        assert value == pytest.approx(expected, rel=1e-5)
    assert len(traces) == 1


def test_fits_in_threads_train_as_one_by_one(lib, traces):
    def work(i):
        results[i] = trained(lib.backend, two_layers, problem(3), xn.MeanSquaredError(), xn.SGD(0.01 * (i + 1)))[1]

    results = [None] * 4
    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, found in enumerate(list(results)):
        work(i)
        for name, a in found.items():
            np.testing.assert_array_equal(a, results[i][name])


# --- whose arrays are whose -------------------------------------------------------------------------------------------


def donating(lib, monkeypatch, kernels, *layers):
    monkeypatch.setattr(kernels, "DONATE", 1)
    net = xn.Sequential(*layers).initialize(lib.backend, "float64", seed=3)
    return net, training_step(net, xn.MeanSquaredError(), xn.SGD(0.1))


def frozen_layers():
    return xn.Dense(FEATURES, 5), xn.BatchNorm(5, trainable=False), xn.Dropout(0.2), xn.Dense(5, 3)


def test_a_carry_is_written_over_unless_it_is_to_be_kept(lib, monkeypatch, kernels):
    net, step = donating(lib, monkeypatch, kernels, *frozen_layers())
    x, y = (lib.asarray(a, "float64") for a in problem(3))
    rows = slice(0, BATCH)
    _, kept = step.on_rows(step.start, Batch(x, y), rows, (step.start,))
    before = [lib.to_numpy(a).copy() for a in (*kept.weights, *kept.state.values())]
    _, middle = step.on_rows(kept, Batch(x, y), rows, (step.start, kept))
    _, last = step.on_rows(middle, Batch(x, y), rows, (step.start, kept))
    assert [step.finite(c) for c in (step.start, kept, middle, last)] == [True, True, False, True]
    for a, old in zip((*kept.weights, *kept.state.values()), before, strict=True):
        np.testing.assert_array_equal(lib.to_numpy(a), old)
    for a in (net.params | net.state).values():
        assert np.isfinite(lib.to_numpy(a)).all()


def test_what_is_published_is_never_written_over(lib, monkeypatch, kernels):
    monkeypatch.setattr(kernels, "DONATE", 1)
    published = []

    class Watch(xn.Callback):
        def step_end(self, run):
            arrays = run.net.params | run.net.state
            published.append((arrays, {name: lib.to_numpy(a).copy() for name, a in arrays.items()}))

    trained(lib.backend, frozen_layers, problem(3), xn.MeanSquaredError(), xn.SGD(0.1), callbacks=[Watch()])
    assert len(published) == STEPS
    for arrays, copies in published:
        for name, a in arrays.items():
            np.testing.assert_array_equal(lib.to_numpy(a), copies[name])
    assert any((published[0][1][name] != published[-1][1][name]).any() for name in published[0][1])


def test_a_diverging_epoch_ends_with_the_last_sound_parameters(lib, monkeypatch, kernels):
    monkeypatch.setattr(kernels, "DONATE", 1)
    x, y = problem(3)
    x, y = np.tile(x, (4, 1)), np.tile(y, (4, 1))
    y[45:] = 1e200  # the squares overflow
    net, twin = (xn.Sequential(xn.Dense(FEATURES, 3)).initialize(lib.backend, "float64", seed=3) for _ in range(2))
    how = {"loss": xn.MeanSquaredError(), "shuffle": False, "batch_size": 5}
    with pytest.raises(xn.DivergenceError, match="epoch 1, batch 10: the loss") as caught:
        net.fit(x, y, optimizer=xn.SGD(0.01), **how)
    assert caught.value.batch == 10
    twin.fit(x[:40], y[:40], optimizer=xn.SGD(0.01), **how)  # the ninth step's parameters gave no finite loss
    for name, a in net.params.items():
        np.testing.assert_array_equal(lib.to_numpy(a), lib.to_numpy(twin.params[name]))


def test_an_interruption_within_a_step_leaves_a_usable_network(lib, monkeypatch, kernels):
    monkeypatch.setattr(kernels, "DONATE", 1)
    net = xn.Sequential(*frozen_layers()).initialize(lib.backend, "float64", seed=3)
    on_rows, calls = kernels.CompiledStep.on_rows, []

    def interrupted(self, *args):
        calls.append(on_rows(self, *args))  # the old carry is gone, and the new one is not handed out
        if len(calls) == 5:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(kernels.CompiledStep, "on_rows", interrupted)
    how = {"loss": xn.MeanSquaredError(), "optimizer": xn.SGD(0.1), "batch_size": BATCH}
    with pytest.raises(KeyboardInterrupt):
        net.fit(*problem(3), epochs=EPOCHS, **how)
    assert calls[3][1].weights[0].is_deleted()
    assert np.isfinite(lib.to_numpy(net.predict(problem(3)[0]))).all()
    net.fit(*problem(3), epochs=1, **how)


def test_a_thousand_losses_come_in_order_whatever_they_are(lib):
    values = [lib.xp.asarray(float(i), dtype="float32") for i in range(999)]
    np.testing.assert_array_equal(lib.backend.stack([*values, 999.0]), np.arange(1000.0))
    assert lib.backend.stack(values).dtype == np.float64


# --- parts of one's own -----------------------------------------------------------------------------------------------


class Own(xn.Layer):
    """y = a x, as the base of layers that do more."""

    def initial_params(self, rng):
        return {"a": np.ones(FEATURES)}

    def forward(self, x, training=False):
        return self.params["a"] * x, x

    def backward(self, dy, cache):
        return self.params["a"] * dy, {"a": xn.ops.sum_over_batch(dy * cache)}


class Counts(Own):
    """Counts its calls, and acts on the count."""

    def __init__(self):
        self.calls = 0

    def forward(self, x, training=False):
        self.calls += training
        return super().forward(x * (1.0 + self.calls), training)


class Lists(Own):
    """The same by a list that its clones share."""

    def __init__(self):
        self.calls = []

    def forward(self, x, training=False):
        self.calls += [x.shape[0]] * training
        return super().forward(x, training)


class Noise(Own):
    """Adds numbers that the host draws, from a generator of its own or the library's."""

    def __init__(self, rng=None):
        self.rng = rng

    def forward(self, x, training=False):
        drawn = (self.rng or np.random).normal(size=tuple(x.shape))  # what users do
        return super().forward(x + training * xn.backends.backend_of(x).asarray(drawn, x.dtype), training)


class Looks(Own):
    """Looks at values."""

    def forward(self, x, training=False):
        return super().forward(2.0 * x if float(xn.backends.namespace(x).sum(x)) > 0.0 else x, training)


class Remembers(Own):
    """Keeps what backward needs on itself."""

    def forward(self, x, training=False):
        self.x = x
        return super().forward(x, training)

    def backward(self, dy, cache):
        return super().backward(dy, self.x)


class OnTheHost(Own):
    """Computes in NumPy."""

    def forward(self, x, training=False):
        return super().forward(xn.backends.backend_of(x).asarray(np.tanh(np.asarray(x))), training)


OWN = {
    "counts": Counts,
    "lists": Lists,
    "noise of its own": lambda: Noise(np.random.default_rng(0)),
    "looks": Looks,
    "remembers": Remembers,
    "on the host": OnTheHost,
}


@pytest.mark.parametrize("name", OWN)
def test_a_layer_that_cannot_be_compiled_trains_to_the_bit_as_with_step(lib, monkeypatch, name, dtype):
    def layers():
        made.append(OWN[name]())
        return made[-1], xn.Dense(FEATURES, 3)

    made, results = [], []
    for choice in ("auto", "reference"):
        monkeypatch.setenv("XPNET_KERNELS", choice)
        results.append(trained(lib.backend, layers, problem(3), xn.MeanSquaredError(), xn.SGD(0.01), dtype))
    (history, arrays), (expected, others) = results
    assert history == expected
    for key, a in arrays.items():
        np.testing.assert_array_equal(a, others[key])
    if name == "lists":
        assert made[0].calls == made[1].calls != []


def test_numbers_that_the_host_draws_are_drawn_for_every_step(lib):
    def layers():
        return Noise(), xn.Dense(FEATURES, 3)

    losses = trained(lib.backend, layers, problem(3), xn.MeanSquaredError(), STILL, batch_size=None)[0]["loss"]
    assert len(set(losses)) == EPOCHS


def test_an_error_of_a_layers_own_is_raised_as_it_is(lib):
    class Fails(Own):
        def backward(self, dy, cache):
            raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        trained(lib.backend, lambda: (Fails(), xn.Dense(FEATURES, 3)), problem(3), xn.MeanSquaredError(), xn.SGD())


def test_an_error_that_only_tracing_brings_is_not_hidden(lib):
    """What is no question to a tracer is a fault, and going on without compiling would hide it."""
    import jax

    class Fails(Own):
        def forward(self, x, training=False):
            if training and isinstance(x, jax.core.Tracer):
                raise ArithmeticError("mine")
            return super().forward(x, training)

    with pytest.raises(ArithmeticError, match="mine"):
        trained(lib.backend, lambda: (Fails(), xn.Dense(FEATURES, 3)), problem(3), xn.MeanSquaredError(), xn.SGD())


def takes(lib, step):
    """The step after it was taken once."""
    step(step.start, Batch(*(lib.asarray(a, "float64") for a in problem(3))))
    return step


class Masked(Scale):
    """A layer of one's own with an array and a function among its settings."""

    def __init__(self, features):
        super().__init__(features)
        self.mask, self.function = np.arange(features) % 2, abs

    def forward(self, x, training=False):
        return super().forward(self.function(x) * xn.backends.backend_of(x).asarray(self.mask), training)


@pytest.mark.parametrize("make", [Scale, Masked])
def test_a_layer_of_ones_own_is_compiled_once_too(lib, monkeypatch, kernels, make):
    def layers():
        return xn.Dense(FEATURES, 6), make(6), xn.Dense(6, 3)

    same_as_step(lib, monkeypatch, layers, problem(3), xn.MeanSquaredError(), xn.SGD(0.01))
    compiled = kernels.program.cache_info().misses
    for rate in (0.01, 0.02):
        trained(lib.backend, layers, problem(3), xn.MeanSquaredError(), xn.SGD(rate))
        net = xn.Sequential(*layers()).initialize(lib.backend, "float64")
        assert takes(lib, training_step(net, xn.MeanSquaredError(), xn.SGD(rate))).compiles
    assert kernels.program.cache_info().misses == compiled + 1  # the whole batch that `takes` gives


def test_a_class_or_setting_that_changes_is_compiled_anew(lib):
    """Two layers of one's own with the same name and settings, and one whose method is put on the instance."""

    def layer(factor):
        class Times(Own):
            def forward(self, x, training=False):
                return self.params["a"] * x * factor, x * factor

        return Times()

    def patched(factor):
        tanh = xn.Tanh()
        tanh.forward = lambda x, training=False: (factor * x, x)
        tanh.backward = lambda dy, cache: (factor * dy, {})
        return tanh

    loss = xn.MeanSquaredError()
    for make in (layer, patched):
        losses = [
            trained(lib.backend, lambda make=make, f=f: (make(f), xn.Dense(FEATURES, 3)), problem(3), loss, STILL)
            for f in (1.0, 2.0)
        ]
        assert losses[0][0] != losses[1][0]


class Cubes:
    """A loss of one's own, that derives from nothing."""

    def value_and_grad(self, prediction, target):
        error = prediction - target
        xp = xn.backends.namespace(error)
        return xp.sum(xp.abs(error) ** 3), 3 * error * xp.abs(error)


def test_a_loss_of_ones_own_is_compiled(lib, monkeypatch):
    def layers():
        return (xn.Dense(FEATURES, 3),)

    same_as_step(lib, monkeypatch, layers, problem(3), Cubes(), xn.SGD(0.001))
    net = xn.Sequential(*layers()).initialize(lib.backend, "float64")
    assert takes(lib, training_step(net, Cubes(), xn.SGD())).compiles


class Signs(xn.SGD):
    """An optimizer of one's own: steps of one size for all parameters."""

    def rule(self, w, g, slots, rate):
        xp = xn.backends.namespace(w)
        return w - rate * xp.max(xp.abs(g)) * xp.sign(g), {"velocity": slots["velocity"]}


class Slower(Signs):
    """One whose rule reads the count of steps."""

    def rule(self, w, g, slots, rate):
        return super().rule(w, g, slots, rate / (1 + slots["step"]))


class Counted(Signs):
    """One that writes down its rates."""

    def __init__(self, learning_rate):
        super().__init__(learning_rate)
        self.last = None

    def rate(self, step):
        self.last = 1.0 * super().rate(step) / (1 + step)
        return self.last


class Whole(xn.SGD):
    """One with an update of its own."""

    def update(self, w, gradient, slots):
        return w - self.rate(slots["step"]) * gradient, slots | {"step": slots["step"] + 1}


@pytest.mark.parametrize("make", [Signs, Slower, Counted, Whole])
def test_an_optimizer_of_ones_own_trains_as_with_step(lib, monkeypatch, make, dtype):
    def layers():
        return xn.Dense(FEATURES, 5), xn.Tanh(), xn.Dense(5, 3)

    same_as_step(lib, monkeypatch, layers, problem(3), xn.MeanSquaredError(), make(0.01), dtype=dtype)


@pytest.mark.parametrize(("make", "compiled"), [(Signs, True), (Slower, False), (Whole, False)])
def test_which_optimizers_of_ones_own_are_compiled(lib, make, compiled):
    net = xn.Sequential(xn.Dense(FEATURES, 3)).initialize(lib.backend, "float64")
    step = takes(lib, training_step(net, xn.MeanSquaredError(), make(0.01)))
    assert getattr(step, "compiles", False) is compiled


def test_a_network_of_ones_own_is_compiled_by_its_own_backward(lib, monkeypatch):
    def layers():
        return xn.Dense(FEATURES, 4), Twice(xn.Dense(4, 4), xn.Tanh()), xn.Dense(4, 3)

    same_as_step(lib, monkeypatch, layers, problem(3), xn.MeanSquaredError(), xn.SGD(0.01))
    net = xn.Sequential(*layers()).initialize(lib.backend, "float64")
    assert takes(lib, training_step(net, xn.MeanSquaredError(), xn.SGD())).compiles


def test_a_divergence_in_steps_that_are_not_compiled_is_placed(lib):
    x, y = problem(3)
    net = xn.Sequential(Lists(), xn.Dense(FEATURES, 3)).initialize(lib.backend, "float64")
    with pytest.raises(xn.DivergenceError, match=r"epoch 1, batch 2: the output of layer 1"):
        net.fit(x, y, loss=xn.MeanSquaredError(), optimizer=xn.SGD(1e300), batch_size=BATCH)
    assert all(np.isfinite(lib.to_numpy(a)).all() for a in net.params.values())
