"""Choosing a backend: what each one says of itself, what it says when it cannot be had, and "auto"."""

import copy
import importlib
import os
import pickle
import re
import subprocess
import sys

import numpy as np
import pytest

import xpnet as xn
from support.cupy_on_host import log
from xpnet.backends import base as backend_module
from xpnet.backends.cupy import CuPy


@pytest.fixture
def fresh(monkeypatch):
    """No backend made yet, and none of CuPy's devices tried."""
    monkeypatch.setattr(backend_module, "_backends", {})
    CuPy._computes.cache_clear()
    yield
    CuPy._computes.cache_clear()


def test_backend_has_what_the_contract_says(lib):
    backend = lib.backend
    a = backend.asarray([[1.5, 2.0]], "float32")
    assert backend.name == lib.name
    assert backend.xp is lib.xp
    assert backend.owns(a)
    assert str(a.dtype).endswith("float32")
    host = backend.to_numpy(a)
    assert type(host) is np.ndarray
    np.testing.assert_array_equal(host, [[1.5, 2.0]])
    backend.synchronize()
    assert backend.describe().startswith(lib.name)
    assert lib.name in repr(backend)
    assert backend_module.backend_of(a).xp is lib.xp


def test_one_backend_is_made_once_and_survives_pickling(lib):
    assert xn.get_backend(lib.name, lib.device) is lib.backend
    if lib.device is None:
        assert pickle.loads(pickle.dumps(lib.backend)) is lib.backend


def test_arrays_in_any_memory_order_are_taken(lib):
    x = np.arange(24.0).reshape(4, 6)
    read_only = x.copy()
    read_only.flags.writeable = False
    for a in (x[::-1, ::2], np.asfortranarray(x), read_only):
        np.testing.assert_array_equal(lib.to_numpy(lib.backend.asarray(a)), a)


@pytest.mark.numpy_only
def test_what_use_backend_shows_at_a_prompt_is_the_backend():
    with (chosen := xn.use_backend("numpy")):
        assert repr(chosen) == "use_backend(Backend('numpy', device='cpu'))"


@pytest.mark.numpy_only
def test_unknown_name_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=r"no backend 'tensorflow'; there are 'numpy', 'cupy', 'torch'.*'auto'"):
        xn.get_backend("tensorflow")


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("cupy", r"pip install 'cupy-cuda13x\[ctk\]'"),
        ("torch", "pip install torch"),
        ("jax", "pip install jax"),
        ("array_api_strict", "pip install array-api-strict"),
    ],
)
def test_missing_library_is_named_with_the_command_that_installs_it(name, remedy, monkeypatch, fresh):
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(xn.BackendUnavailableError, match=f"backend '{name}': .*{remedy}"):
        xn.get_backend(name)


def test_device_that_is_not_there_is_refused(lib):
    with pytest.raises(
        xn.BackendUnavailableError, match=f"backend '{lib.name}': device 'no-such-device' cannot be used"
    ):
        xn.get_backend(lib.name, "no-such-device")


@pytest.mark.numpy_only
def test_auto_is_numpy_where_cupy_is_missing(monkeypatch, fresh):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert xn.get_backend("auto").name == "numpy"


# --- CuPy -------------------------------------------------------------------------------------------------------------


def answer_without_a_device(code):
    """What a Python says from which CUDA hides its devices, if there are any."""
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.cupy_only
def test_cupy_imports_and_says_in_the_drivers_words_that_no_device_answers():
    answer = answer_without_a_device("""
import cupy, xpnet
assert not cupy.is_available()
try:
    xpnet.get_backend("cupy")
except xpnet.BackendUnavailableError as error:
    print(error, type(error.__cause__).__name__)
""")
    assert re.search(r"no usable device .*(cuda|CUDA).*nvidia-smi.* CUDARuntimeError", answer)


@pytest.mark.cupy_only
def test_auto_falls_back_to_numpy_and_trains():
    answer = answer_without_a_device("""
import numpy, xpnet
net = xpnet.Sequential(xpnet.Dense(3, 2)).initialize("auto")
print(net.backend.name, type(net(numpy.ones((1, 3)))).__name__)
""")
    assert answer.split() == ["numpy", "ndarray"]


@pytest.mark.cupy_only
@pytest.mark.on_host_only
def test_cupys_arrays_are_made_in_its_devices_scope():
    import cupy

    backend = xn.get_backend("cupy", "cuda:1")
    a = backend.asarray([1.0, 2.0], "float32")
    assert (a.device.id, cupy.cuda.Device().id) == (1, 0)
    with backend.scope():
        assert cupy.cuda.Device().id == 1
    assert cupy.cuda.Device().id == 0
    assert type(backend.to_numpy(a)) is np.ndarray
    log.waits.clear()
    backend.synchronize()
    assert len(log.waits) == 1
    assert backend.describe() == f"cupy {cupy.__version__} on cuda:1 the host"
    assert xn.get_backend("auto").name == "cupy"


@pytest.mark.cupy_only
@pytest.mark.on_host_only
@pytest.mark.parametrize(
    ("device", "number"), [(None, 0), (0, 0), (1, 1), ("cuda", 0), ("cuda:0", 0), ("cuda:1", 1), ("1", 1)]
)
def test_cupys_device_is_named_or_numbered_or_cupys_own(device, number):
    import cupy

    assert xn.get_backend("cupy", device).device.id == number
    assert xn.get_backend("cupy", cupy.cuda.Device(number)).device.id == number


@pytest.mark.cupy_only
@pytest.mark.on_host_only
def test_cupys_default_is_its_current_device():
    import cupy

    first = xn.get_backend("cupy")
    with cupy.cuda.Device(1):
        second = xn.get_backend("cupy")
    assert (first.device.id, second.device.id) == (0, 1)
    assert xn.get_backend("cupy") is first


@pytest.mark.cupy_only
def test_cupy_that_computes_wrongly_or_has_no_such_device_cannot_be_used(monkeypatch, fresh):
    import cupy

    def no_device(number):
        raise cupy.cuda.runtime.CUDARuntimeError(101)

    with monkeypatch.context() as patch:
        patch.setattr(cupy, "arange", cupy.zeros)
        with pytest.raises(xn.BackendUnavailableError, match="a sum of three numbers came out wrong"):
            xn.get_backend("cupy")
    monkeypatch.setattr(cupy.cuda, "Device", no_device)
    with pytest.raises(xn.BackendUnavailableError, match=r"device 'cuda:7' cannot be used .*invalid device ordinal"):
        xn.get_backend("cupy", "cuda:7")


# --- PyTorch and JAX --------------------------------------------------------------------------------------------------


@pytest.mark.torch_only
def test_a_number_is_a_cuda_device_of_pytorchs():
    with pytest.raises(xn.BackendUnavailableError, match="device 0 cannot be used"):
        xn.get_backend("torch", 0)


@pytest.mark.torch_only
def test_pytorchs_default_device_is_the_default():
    import torch

    usual = xn.get_backend("torch")
    torch.set_default_device("cpu:0")
    try:
        assert xn.get_backend("torch").device == torch.device("cpu", 0)
        torch.set_default_device("meta")
        with pytest.raises(xn.BackendUnavailableError, match=r"no usable device .*meta"):
            xn.get_backend("torch")
    finally:
        torch.set_default_device(None)
    assert xn.get_backend("torch") is usual
    assert usual.device == torch.device("cpu")


@pytest.mark.torch_only
def test_a_copy_lives_where_the_network_does_whatever_the_default_is_by_now():
    import torch

    net = xn.Sequential(xn.Dense(3, 2)).initialize("torch")
    with torch.device("meta"):
        twin = copy.deepcopy(net)
        assert twin.backend is net.backend
        assert torch.equal(twin.predict(np.ones((1, 3))), net.predict(np.ones((1, 3))))


@pytest.mark.jax_only
def test_a_number_is_a_device_of_jaxs():
    assert xn.get_backend("jax", 0).device == xn.get_backend("jax").device
    with pytest.raises(xn.BackendUnavailableError, match="device 99 cannot be used"):
        xn.get_backend("jax", 99)


@pytest.mark.numpy_only
def test_a_library_that_breaks_on_import_is_unavailable_in_the_loaders_words(monkeypatch, fresh):
    found = importlib.import_module

    def broken(name, package=None):
        if package:  # the file here that is about the library
            return found(name, package)
        raise OSError("libcudart.so.13: cannot open shared object file")

    monkeypatch.setattr(backend_module.importlib, "import_module", broken)
    with pytest.raises(xn.BackendUnavailableError, match=r"backend 'torch': .*libcudart"):
        xn.get_backend("torch")


def test_a_backend_has_its_device_already(lib):
    with pytest.raises(ValueError, match=r"Backend\(.* has its device; give device='cuda:1' with a name, or neither"):
        xn.Sequential(xn.Dense(2, 2)).initialize(lib.backend, device="cuda:1")


@pytest.mark.torch_only
def test_autograd_records_nothing_of_ours():
    import torch

    x = torch.ones(2, 3, requires_grad=True)
    net = xn.Sequential(xn.Dense(3, 2)).initialize("torch")
    assert not net(x).requires_grad
    assert all(not a.requires_grad for a in net.params.values())
    with torch.no_grad():
        assert not xn.MeanSquaredError()(x, np.ones((2, 3))).requires_grad
    assert xn.MeanSquaredError()(x, np.ones((2, 3))).requires_grad


@pytest.mark.torch_only
@pytest.mark.parametrize("kernels", ["auto", "reference"])
def test_who_has_gone_through_forward_with_autograd_can_train_and_predict(monkeypatch, kernels):
    import torch

    monkeypatch.setenv("XPNET_KERNELS", kernels)
    x, y = torch.rand(6, 3), torch.arange(6) % 2
    net, other = (xn.Sequential(xn.Dense(3, 4), xn.Tanh(), xn.Dense(4, 2)).initialize("torch") for _ in range(2))
    for a in net.params.values():
        a.requires_grad_()
    loss = xn.SoftmaxCrossEntropy()
    loss(net.forward(x)[0], y).backward()
    assert all(a.grad is not None for a in net.params.values())
    assert not net.predict(x).requires_grad
    value, gradients = net.value_and_grad(x, y, loss)
    assert not any(a.requires_grad for a in (value, *gradients.values()))
    slots = net.fit(x, y, loss=loss, optimizer=xn.Adam(), epochs=2, validation_data=(x, y)).slots
    assert not any(a.requires_grad for a in (*net.params.values(), slots["m"], slots["v"]))
    other.fit(x, y, loss=loss, optimizer=xn.Adam(), epochs=2)
    assert all(torch.equal(a, b) for a, b in zip(net.params.values(), other.params.values(), strict=True))
    assert torch.is_grad_enabled()


@pytest.mark.torch_only
def test_what_inference_mode_leaves_behind_can_be_written_to():
    """Also the memory of predict, which later calls use again."""
    import torch

    net = xn.Sequential(xn.Conv2d(2, 32, 3, padding=1), xn.Flatten(), xn.Dense(2048, 2)).initialize("torch")
    x, y = np.ones((80, 2, 8, 8), dtype="float32"), np.ones((80, 2))
    with torch.inference_mode():
        expected = net.predict(x)
        assert not expected.is_inference()
        assert torch.is_inference_mode_enabled()
    np.testing.assert_array_equal(net.predict(x), expected)
    net.fit(x, y, loss=xn.MeanSquaredError(), optimizer=xn.SGD(0.01), epochs=1)


@pytest.mark.torch_only
def test_under_autocast_a_network_keeps_its_dtype():
    import torch

    x, y = torch.rand(8, 3), torch.arange(8) % 2
    net = xn.Sequential(xn.Dense(3, 4), xn.BatchNorm(4), xn.ReLU(), xn.Dense(4, 2)).initialize("torch")
    loss = xn.SoftmaxCrossEntropy()

    def results():
        value, gradients = net.value_and_grad(x, y, loss)
        return [net.predict(x), value, *gradients.values(), torch.tensor([*net.evaluate(x, y, loss).values()])]

    expected = results()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = results()
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(found, expected, strict=True))


def test_float64_is_float64(lib):
    net = xn.Sequential(xn.Dense(3, 2)).initialize(lib.backend, "float64")
    assert lib.to_numpy(net(np.ones((1, 3)))).dtype == np.float64
