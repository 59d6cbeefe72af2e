"""An x that is large, and memory-mapped or of integers, is cast batch by batch; a first layer may take integers."""

import subprocess
import sys

import numpy as np
import pytest

import xpnet as xn
from support.layers import Table
from xpnet.training import batches, inputs
from xpnet.training.batches import Uncast
from xpnet.training.identity import fingerprint

ROWS, FEATURES = 50, 6
LOSS = xn.SoftmaxCrossEntropy()


@pytest.fixture(params=["auto", "reference"])
def kernels(request, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", request.param)
    return request.param


@pytest.fixture(params=["one batch a chunk", "several"])
def large(request, monkeypatch):
    """Every array is large; and chunks hold a batch of 8 rows, or several."""
    for module in (batches, inputs):
        monkeypatch.setattr(module, "LARGE", 60)
    monkeypatch.setattr(batches, "GATHER", 1 if request.param == "one batch a chunk" else 2**17)


def mapped(tmp_path, a):
    file = np.memmap(tmp_path / "x", dtype=a.dtype, mode="w+", shape=a.shape)
    file[...] = a
    file.flush()
    return np.memmap(tmp_path / "x", dtype=a.dtype, mode="r", shape=a.shape)


GIVEN = {
    "uint8": lambda path, a: a.astype("uint8"),
    "int64": lambda path, a: a.astype("int64"),
    "bool": lambda path, a: a > 100,
    "uint8, mapped": lambda path, a: mapped(path, a.astype("uint8")),
    "float32, mapped": lambda path, a: mapped(path, a.astype("float32")),
    "float64, mapped": lambda path, a: mapped(path, a),
    "big-endian, mapped": lambda path, a: mapped(path, a.astype(">i2")),
    "a view of a map": lambda path, a: np.asarray(mapped(path, np.repeat(a, 2, axis=0).astype("uint8")))[::2],
}


def network(backend):
    layers = xn.Dense(FEATURES, 8), xn.BatchNorm(8), xn.Tanh(), xn.Dense(8, 3)
    return xn.Sequential(*layers).initialize(backend, "float32", seed=2)


def arrays_of(net):
    return {name: net.backend.to_numpy(a) for name, a in (net.params | net.state).items()}


@pytest.mark.parametrize("name", GIVEN)
@pytest.mark.parametrize("shuffle", [True, False])
def test_what_is_cast_by_batch_trains_to_the_same_bits(lib, rng, tmp_path, large, name, shuffle):
    x, y = GIVEN[name](tmp_path, rng.integers(256, size=(ROWS, FEATURES)).astype("float64")), rng.integers(3, size=ROWS)
    how = {"loss": LOSS, "optimizer": xn.SGD(1e-5), "epochs": 2, "batch_size": 8, "shuffle": shuffle}
    seen = []

    class See(xn.Callback):
        def train_begin(self, run):
            seen.append(type(run.x))

    ends = []
    for each in (x, np.array(x, "float32")):
        net = network(lib.backend)
        assert net.fit(each, y, callbacks=[See()], validation_data=(each, y), **how)["loss"]
        ends.append(arrays_of(net))
    assert seen == [Uncast, type(lib.backend.asarray(np.zeros(1)))]
    for key, a in ends[0].items():
        np.testing.assert_array_equal(a, ends[1][key])


@pytest.mark.parametrize("name", GIVEN)
def test_predictions_and_measures_are_those_of_the_whole(lib, rng, tmp_path, large, name):
    x, y = GIVEN[name](tmp_path, rng.integers(256, size=(ROWS, FEATURES)).astype("float64")), rng.integers(3, size=ROWS)
    net, cast = network(lib.backend), np.array(x, "float32")
    for size in (None, 8, 10**6):
        assert net.predict(x, size).dtype == net.params["0.weight"].dtype
        lib.agrees(net.predict(x, size), lib.to_numpy(net.predict(cast, size)), rtol=1e-5)
        ours, theirs = (net.evaluate(a, y, LOSS, batch_size=size) for a in (x, cast))
        assert ours == pytest.approx(theirs, rel=1e-5)
    (value, grads), (expected, slopes) = (net.value_and_grad(a, y, LOSS) for a in (x, cast))
    assert float(value) == float(expected)
    for key, g in grads.items():
        np.testing.assert_array_equal(lib.to_numpy(g), lib.to_numpy(slopes[key]))


@pytest.mark.parametrize("at", [[(7, 2)], [(31, 5), (40, 0), (49, 3)]])
@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_what_is_not_finite_in_a_map_is_found_before_the_first_step(lib, rng, tmp_path, large, at, value):
    a = rng.normal(size=(ROWS, FEATURES))
    for entry in at:
        a[entry] = value
    net, x = network(lib.backend), mapped(tmp_path, a)
    before = arrays_of(net)
    words = rf"x has {len(at)} NaN or infinite entries in float32, the first in row {at[0][0]}, column {at[0][1]};"
    for call in (lambda: net.fit(x, np.zeros(ROWS, int), loss=LOSS, optimizer=xn.SGD()), lambda: net.predict(x)):
        with pytest.raises(ValueError, match=words):
            call()
    for key, b in arrays_of(net).items():
        np.testing.assert_array_equal(b, before[key])


def test_a_callback_takes_rows_of_a_large_x(lib, rng, large):
    x, y = rng.integers(256, size=(ROWS, FEATURES)).astype("uint8"), rng.integers(3, size=ROWS)
    doctor = xn.Doctor(log=None)

    class See(xn.Callback):
        def epoch_end(self, run):
            assert run.x.shape == (ROWS, FEATURES)
            lib.agrees(run.x[3:9, ...], x[3:9].astype("float32"))

    network(lib.backend).fit(x, y, loss=LOSS, optimizer=xn.SGD(1e-5), batch_size=None, callbacks=[See(), doctor])
    assert doctor.vitals
    assert not [finding for finding in doctor.findings if finding.kind == "no look"]


def test_a_checkpoint_knows_a_large_x_from_others_and_from_no_copy(lib, rng, tmp_path, large):
    x, y = rng.integers(256, size=(ROWS, FEATURES)).astype("uint8"), rng.integers(3, size=ROWS)
    how = {"loss": LOSS, "optimizer": xn.SGD(1e-5), "batch_size": 8}
    network(lib.backend).fit(x, y, checkpoint=xn.Checkpoint(tmp_path), **how)
    net = network(lib.backend)
    net.fit(x.astype("float32"), y, checkpoint=xn.Checkpoint(tmp_path), resume=True, epochs=2, **how)
    other = x.copy()
    other[-1, -1] ^= 1
    with pytest.raises(ValueError, match=r"differs in \n  x: "):
        network(lib.backend).fit(other, y, checkpoint=xn.Checkpoint(tmp_path), resume=True, **how)


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    "a", [np.arange(24.0).reshape(4, 6), np.arange(24.0).reshape(6, 4).T, np.float32(3), np.ones(0)]
)
def test_a_fingerprint_by_blocks_is_that_of_the_whole(a, monkeypatch):
    whole = fingerprint(a)
    monkeypatch.setattr(batches, "LARGE", 7)
    assert fingerprint(a) == whole


MEMORY = """
import sys, threading, time
import numpy as np
import xpnet as xn

def own():
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

path, backend = sys.argv[1:]
rows = 300 * 2**20 // 784
with open(path, "wb") as file:
    file.truncate(rows * 784)  # a hole: it takes no room
x, y = np.memmap(path, dtype="uint8", mode="r", shape=(rows, 784)), np.arange(rows) % 2
net = xn.Sequential(xn.Dense(784, 2)).initialize(backend)
how = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.SGD(), "batch_size": 1024}
calls = [lambda x, y: net.fit(x, y, **how), lambda x, y: net.predict(x), lambda x, y: net.evaluate(x, y, how["loss"])]
for call in calls:
    call(x[:5000], y[:5000])  # what is compiled and made once
most, done = [0.0], threading.Event()

def watch():
    while not done.wait(0.001):
        most[0] = max(most[0], own())

threading.Thread(target=watch, daemon=True).start()
for call in calls:
    before = most[0] = own()
    call(x, y)
    print(max(most[0], own()) - before)
done.set()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_300_megabytes_of_a_map_cost_less_than_40_beside_it(lib, tmp_path):
    """Of 401,000 rows, predictions and one-hot targets for two classes take 3 MB each."""
    if lib.name not in ("numpy", "torch") or lib.read_only:
        return  # JAX's compiler takes more for itself; the others are NumPy's again
    call = [sys.executable, "-c", MEMORY, str(tmp_path / "x"), lib.name]
    costs = list(map(float, subprocess.check_output(call, text=True).split()))
    assert len(costs) == 3
    assert max(costs) < 40.0, costs


# --- integers ---------------------------------------------------------------------------------------------------------


HEADS = {
    "of sequences": lambda: [Table(7, 5), xn.Dense(5, 4), xn.Tanh(), xn.Dense(4, 3)],
    "within": lambda: [xn.Sequential(Table(7, 5), xn.Dropout(0.1)), xn.Dense(5, 3)],
    "beside": lambda: [xn.Branches(Table(7, 5), Table(7, 5)), xn.Dense(5, 3)],
}


@pytest.mark.parametrize(
    ("name", "dtype"), [*zip(HEADS, ["uint8", "int32", "int64"], strict=True), ("of sequences", "list")]
)
def test_a_first_layer_may_take_integers(lib, rng, monkeypatch, kernels, name, dtype):
    x, y = rng.integers(7, size=(20, 4)), rng.integers(3, size=(20, 4))
    given = x.tolist() if dtype == "list" else x.astype(dtype)
    ends = []
    for choice in (kernels, "reference"):
        monkeypatch.setenv("XPNET_KERNELS", choice)
        net = xn.Sequential(*HEADS[name]()).initialize(lib.backend, "float64", seed=1)
        history = net.fit(given, y, loss=LOSS, optimizer=xn.Adam(0.05), epochs=5, batch_size=6)
        assert history["loss"][-1] < history["loss"][0]
        ends.append(arrays_of(net))
    for key, a in ends[0].items():
        np.testing.assert_allclose(a, ends[1][key], rtol=0, atol=1e-9)
    assert tuple(net.predict(given).shape) == (20, 4, 3)
    assert net.evaluate(given, y, LOSS)["accuracy"] > 1 / 3
    xn.check_gradients(net, x[:4], y[:4], LOSS)


def test_large_integers_are_cast_by_batch_for_a_layer_that_takes_them(lib, rng, tmp_path, large):
    x, y = rng.integers(7, size=(60, 4)).astype("uint8"), rng.integers(3, size=(60, 4))
    ends = []
    for each in (mapped(tmp_path, x), x.astype("int32")):
        net = xn.Sequential(Table(7, 5), xn.Dense(5, 3)).initialize(lib.backend, "float64", seed=1)
        net.fit(each, y, loss=LOSS, optimizer=xn.SGD(0.1), batch_size=7)
        ends.append(arrays_of(net) | {"predictions": lib.to_numpy(net.predict(each, batch_size=60))})
    for key, a in ends[0].items():
        np.testing.assert_array_equal(a, ends[1][key])


@pytest.mark.parametrize("x", [np.zeros((5, 4)), np.zeros((5, 4), bool)], ids=["floats", "yes and no"])
def test_what_is_no_integer_is_refused_by_the_layer_that_takes_them(lib, x):
    net = xn.Sequential(Table(7, 5), xn.Dense(5, 3)).initialize(lib.backend)
    words = rf"^{{}}: x has dtype {x.dtype}, and Table\(7, 5\) takes integers"
    with pytest.raises(TypeError, match=words.format("predict")):
        net.predict(x)
    with pytest.raises(TypeError, match=words.format("fit")):
        net.fit(x, np.zeros((5, 4), int), loss=LOSS, optimizer=xn.SGD())
    if x.dtype == float:
        with pytest.raises(TypeError, match=r"^check_gradients: .* takes integers, got x of float64$"):
            xn.check_gradients(net, x)


def test_a_step_on_ids_that_diverges_is_told_of(lib, rng, kernels):
    net = xn.Sequential(Table(7, 5), xn.Dense(5, 3)).initialize(lib.backend, "float32", seed=1)
    x, y = rng.integers(7, size=(20, 4)), rng.normal(size=(20, 4, 3))
    with pytest.raises(xn.DivergenceError, match="not finite in epoch"):
        net.fit(x, y, loss=xn.MeanSquaredError("sum"), optimizer=xn.SGD(1e30), epochs=9)
