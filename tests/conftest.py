"""The backend under test, chosen by `--backend`: one suite for all of them."""

import gc
import importlib.util
import os
import signal

os.environ["SCIPY_ARRAY_API"] = "1"  # before SciPy is imported: scikit-learn's array API dispatch asks for it

import numpy as np
import pytest
from hypothesis import settings

import xpnet as xn
from support import cupy_on_host, networks
from xpnet.kernels.cpu import attention, correlation, positions, threads
from xpnet.kernels.families import kernels_for

BACKENDS = ("numpy", "cupy", "torch", "jax", "array_api_strict")
NUMBA = importlib.util.find_spec("numba") is not None
ONNX = importlib.util.find_spec("onnxruntime") is not None
MPI = importlib.util.find_spec("mpi4py") is not None
DASK = importlib.util.find_spec("distributed") is not None


def pytest_addoption(parser):
    parser.addoption("--backend", choices=BACKENDS, default="numpy", help="the backend that the suite runs on")
    parser.addoption("--on-host", action="store_true", help="CuPy without a device: the host answers its calls")


def pytest_configure(config):
    # the proof by finite differences is NumPy's; where a call costs up to 100 times as much, and JAX compiles each for
    # each shape, a few of the examples show that it is the same code, and backends/test_agreement.py holds its numbers
    # to NumPy's
    examples = {"numpy": 20, "torch": 20}.get(config.getoption("--backend"), 3)
    settings.register_profile("xpnet", max_examples=examples, deadline=None, derandomize=True)
    settings.load_profile("xpnet")
    if config.getoption("--on-host"):
        try:
            cupy_on_host.install()
        except RuntimeError as error:
            raise pytest.UsageError(str(error)) from error
    config.addinivalue_line("markers", "torch_only: holds xpnet against PyTorch; runs in torch's session")
    config.addinivalue_line("markers", "jax_only: about jax.jit; runs in jax's session")
    config.addinivalue_line(
        "markers", "numba_only: about the loops that Numba compiles; runs on NumPy where it is there"
    )
    config.addinivalue_line("markers", "onnx_only: runs ONNX files; in onnx's session, where onnxruntime is there")
    config.addinivalue_line("markers", "mpi_only: runs processes with mpiexec; in mpi's session, where mpi4py is there")
    config.addinivalue_line("markers", "dask_only: starts processes of Dask; in mpi's session, where it is installed")
    config.addinivalue_line("markers", "cupy_only: about CuPy's own package; runs in cupy's session")
    config.addinivalue_line("markers", "on_host_only: about CuPy on the host; runs where --on-host is given")
    config.addinivalue_line("markers", "not_on_host: takes minutes there, and shows what each layer's own tests show")
    config.addinivalue_line(
        "markers", "not_on_jax: compiles every operation anew, and shows what kernels/test_jit.py shows in float32"
    )
    config.addinivalue_line("markers", "numpy_only: about the package rather than a backend; runs in numpy's session")


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """Of the millions of objects that the tests consist of, none is ever garbage: the collector need not look."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(config, items):
    """Leave out, rather than skip, what is not this session's: nothing that was asked for passes unrun."""
    backend, on_host = config.getoption("--backend"), config.getoption("--on-host")
    here = {"not_on_jax": backend != "jax", "not_on_host": not on_host, "on_host_only": on_host}
    here |= {"numba_only": backend == "numpy" and NUMBA, "onnx_only": ONNX, "mpi_only": MPI, "dask_only": DASK}
    elsewhere = {name for name, this in here.items() if not this}
    backends = {f"{name}_only" for name in BACKENDS}

    def wanted(item):
        names = {mark.name for mark in item.iter_markers()}
        return not names & elsewhere and (f"{backend}_only" in names or not names & backends)

    kept, others = [], []
    for item in items:
        (kept if wanted(item) else others).append(item)
    config.hook.pytest_deselected(items=others)
    items[:] = kept


def pytest_report_header(config):
    return f"xpnet on {xn.get_backend(config.getoption('--backend')).describe()}"


class Library:
    """The backend under test, and how its tests make arrays: `read_only` NumPy arrays, or another device."""

    def __init__(self, name, device=None, read_only=False):
        self.backend = xn.get_backend(name, device)
        self.name, self.device, self.read_only = name, device, read_only
        self.xp = self.backend.xp
        self.rtol = 1e-10 if name == "cupy" else 1e-12  # float64, relative to the array's largest entry

    def asarray(self, x, dtype=None):
        a = self.backend.asarray(np.array(x), dtype)
        if self.read_only:
            a.flags.writeable = False
        return a

    def to_numpy(self, a):
        return self.backend.to_numpy(a)

    def agrees(self, a, expected, rtol=None):
        """Assert that `a` of this library is `expected` of NumPy, to `rtol` of its largest entry."""
        a, expected = self.to_numpy(a), np.asarray(expected)
        assert a.shape == expected.shape
        scale = np.abs(expected).max(initial=0.0) or 1.0
        np.testing.assert_allclose(a, expected, rtol=0, atol=(rtol or self.rtol) * scale)

    def __repr__(self):
        kind = " read-only" if self.read_only else f" {self.device}" if self.device else ""
        return f"{self.name}{kind}"


def pytest_generate_tests(metafunc):
    name = metafunc.config.getoption("--backend")
    if "kernels_of" in metafunc.fixturenames:
        of_cpu = ["calls", *["numba"] * (name == "numpy" and NUMBA)]
        metafunc.parametrize("kernels_of", ["cuda"] if name == "cupy" else of_cpu)
    if {"lib", "strict_lib"} & {*metafunc.fixturenames}:
        kinds = [{}]
        if name == "numpy":
            kinds.append({"read_only": True})
        if name == "array_api_strict":
            kinds.append({"device": "device1"})
        libraries = [Library(name, **kind) for kind in kinds]
        if "strict_lib" in metafunc.fixturenames:  # the one that refuses most, for what takes long
            metafunc.parametrize("strict_lib", libraries[-1:], ids=repr, scope="session")
        else:
            metafunc.parametrize("lib", libraries, ids=repr, scope="session")


@pytest.fixture(autouse=True)
def no_faults():
    """A device does not say that it was misused; the host in its place does."""
    cupy_on_host.log.clear()
    yield
    assert cupy_on_host.log.faults == []


@pytest.fixture
def small_blocks(monkeypatch):
    """A matrix of 2**17 numbers, or a vector, is large: gone through in blocks of 2**15, by several threads.

    Patches of images are gathered 2**11 at a time, positions and attention gone through in small blocks, too.
    """
    monkeypatch.setattr(threads, "LARGE", 2**17)
    monkeypatch.setattr(threads, "BLOCK", 2**15)
    monkeypatch.setattr(correlation, "BLOCK", 2**11)
    monkeypatch.setattr(attention, "BLOCK", 2**6)
    monkeypatch.setattr(attention, "LANES", 2)
    monkeypatch.setattr(positions, "BLOCK", 2**8)


@pytest.fixture
def kernels(kernels_of, request):
    """Makes the kernels under test, the calls, Numba's loops or CUDA's, on the backend under test."""
    backend = xn.get_backend(request.config.getoption("--backend"))
    return lambda: kernels_for(backend, kernels_of != "calls")


@pytest.fixture
def xp(lib):
    """The namespace of the backend under test."""
    return lib.xp


@pytest.fixture(scope="session")
def digits():
    return xn.data.load_digits()


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def net(lib):
    """A small network on the backend under test."""
    return networks.network(lib.backend)


@pytest.fixture
def ctrl_c():
    """Ctrl-C as an interactive Python has it, whatever started pytest."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield signal.default_int_handler
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def cupy(monkeypatch):
    """CuPy's backend, with its own kernels unless a test says otherwise."""
    monkeypatch.delenv("XPNET_KERNELS", raising=False)
    backend = xn.get_backend("cupy")
    with backend.scope():
        yield backend
