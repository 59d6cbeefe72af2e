"""A stand-in for CuPy where there is no GPU: NumPy's arrays behind CuPy's names, as far as xpnet uses them.

It writes down every launch, every wait for the device and every transfer to it, and refuses what CuPy refuses: a NumPy
array among its own, a kernel's argument of another type than the kernel's. The CUDA kernels do run, compiled for the
CPU by way of cuda_on_cpu.h. Memory that `empty` gives is full of NaN. What it cannot show is that a device does as CUDA
says, nor how fast.
"""

import contextlib
import ctypes
import functools
import shutil
import subprocess
import sys
import tempfile
import types
from pathlib import Path

import array_api_compat.numpy as numpy_namespace
import numpy as np
import pytest

import xpnet
from xpnet import backend
from xpnet.kernels.cupy import kernel

SOURCE = Path(xpnet.__file__).parent / "kernels" / "cupy.cu"
CODE = SOURCE.read_text(encoding="utf-8").encode("ascii", "ignore").decode()  # without its comments' formulas
SHIM = Path(__file__).with_name("cuda_on_cpu.h")
COMPILER = shutil.which("g++") or shutil.which("clang++")

OVER_ROWS = "activation", "activation_backward", "batch_norm", "batch_norm_backward"
FUNCTIONS = "Identity", "Sigmoid", "Tanh", "ReLU", "LeakyReLU", "ELU"
OTHERS = "statistics", "dropout", "softmax_cross_entropy", "gradient_norm", "sgd", "look_ahead"
EXPRESSIONS = [f"{k}<{t}, {f}>" for t in ("float", "double") for k in OVER_ROWS for f in FUNCTIONS]
EXPRESSIONS += [f"{k}<{t}>" for t in ("float", "double") for k in (*OTHERS, "root_mean_square", "adam")]


class Launches(list):
    """Names, and those of launches outside any device's scope: arrays may lie on another than the current device."""

    def __init__(self):
        self.outside = []

    def append(self, name):
        super().append(name)
        if not Device.entered:
            self.outside.append(name)


class Log:
    """What the device was asked for: names of launches and waits, shapes of transfers to it."""

    def __init__(self):
        self.launches, self.waits, self.transfers = Launches(), [], []


log = Log()


# --- arrays -----------------------------------------------------------------------------------------------------------


def waits(name):
    """A method of NumPy's for which the host waits for the device."""

    def wait(self, *args):
        log.waits.append(name)
        return getattr(self.a, name)(*args)

    return wait


class Array(np.lib.mixins.NDArrayOperatorsMixin):
    def __init__(self, a):
        self.a = np.asarray(a)

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if any(isinstance(x, np.ndarray) for x in inputs):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        log.launches.append(ufunc.__name__)
        target = {} if out is None else {"out": tuple(host(x) for x in out)}
        with np.errstate(all="ignore"):
            result = getattr(ufunc, method)(*map(host, inputs), **target, **options)
        return out[0] if out else device(result)

    def __array__(self, *args, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __getitem__(self, key):
        part = self.a[host(key)]
        if not np.shares_memory(part, self.a):
            log.launches.append("take")
        return Array(part)

    def __setitem__(self, key, value):
        if isinstance(value, np.ndarray):
            raise TypeError("Unsupported type <class 'numpy.ndarray'>")
        log.launches.append("copy")
        self.a[host(key)] = host(value)

    def __len__(self):
        return len(self.a)

    __bool__, __int__, __float__, __index__, item, tolist = map(
        waits, ("__bool__", "__int__", "__float__", "__index__", "item", "tolist")
    )

    def get(self):
        log.waits.append("get")
        return self.a.copy()

    def astype(self, dtype, copy=True):
        return self if self.dtype == dtype and not copy else made("astype", self.a.astype(dtype))

    def reshape(self, *shape):
        return made("reshape", self.a.reshape(*shape), self.a)

    def sum(self):
        return made("sum", self.a.sum())

    T = property(lambda self: Array(self.a.T))
    device = property(lambda self: Device(0))
    shape, dtype, ndim, size, strides, itemsize, flags = (
        property(lambda self, name=name: getattr(self.a, name))
        for name in ("shape", "dtype", "ndim", "size", "strides", "itemsize", "flags")
    )


def host(x):
    """What NumPy takes: an array's memory, within lists and tuples too."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(host, x))
    return x.a if isinstance(x, Array) else x


def device(x):
    """What CuPy would give: numbers of NumPy's as 0-d arrays."""
    if isinstance(x, (list, tuple)):
        return type(x)(map(device, x))
    return Array(x) if isinstance(x, (np.ndarray, np.generic)) else x


def made(name, result, *of):
    """The result of a function of this name as ours: a launch, unless it is a view of what it was made of."""
    if isinstance(result, (np.ndarray, np.generic)) and not any(np.shares_memory(result, a) for a in of):
        log.launches.append(name)
    return device(result)


def of_numpy(name, function):
    """A function of NumPy's that takes and gives our arrays."""

    @functools.wraps(function)
    def call(*args, **options):
        options.pop("device", None)
        flat = [b for a in args for b in (a if isinstance(a, (list, tuple)) else [a])]
        if any(isinstance(a, np.ndarray) for a in flat):
            raise TypeError(f"{name}: unsupported type <class 'numpy.ndarray'>")
        with np.errstate(all="ignore"):
            result = function(*host(args), **{key: host(value) for key, value in options.items()})
        return made(name, result, *[a.a for a in flat if isinstance(a, Array)])

    return call


def sign(x):
    """That of array_api_compat, which puts NaN back under a mask: CuPy counts a mask's entries on the host."""
    log.waits.append("sign")
    return made("sign", np.sign(x.a))


def empty(shape, dtype=float, device=None):
    a = np.empty(shape, dtype)
    a.fill(np.nan if a.dtype.kind == "f" else 99)
    return Array(a)


def empty_like(a, dtype=None, device=None):
    return empty(a.shape, dtype or a.dtype)


def asarray(x, dtype=None, device=None, copy=None):
    if not isinstance(x, Array):
        log.transfers.append(np.shape(x))
        return Array(np.array(x, dtype))
    return made("copy", np.array(x.a, dtype, copy=copy), x.a)


def dot(a, b, out=None):
    if out is not None and not (out.flags.c_contiguous and a.dtype == b.dtype == out.dtype):
        raise ValueError("Output array must be C-contiguous")
    for x in (a, b):
        if not (x.flags.c_contiguous or x.flags.f_contiguous):
            log.launches.append("copy")  # that cuBLAS can take it
    log.launches.append("dot")
    return device(np.dot(a.a, b.a, out=host(out)))


def ascontiguousarray(a, dtype=None):
    return made("copy", np.ascontiguousarray(a.a, dtype), a.a)


# --- kernels ----------------------------------------------------------------------------------------------------------


@functools.cache
def compiled():
    """All of EXPRESSIONS in a library for this machine's CPU."""
    entries = "".join(
        f'extern "C" int launch_{i}(const unsigned* grid, const unsigned* block, void** arguments) '
        f"{{ return on_cpu::launch({e}, grid, block, arguments); }}\n"
        f'extern "C" const char* types_{i}() {{ return on_cpu::types({e}); }}\n'
        for i, e in enumerate(EXPRESSIONS)
    )
    with tempfile.TemporaryDirectory() as folder:
        program, library = Path(folder, "kernels.cpp"), Path(folder, "kernels.so")
        program.write_text(f'#include "{SHIM}"\n#include "{SOURCE}"\n{entries}')
        options = ["-std=c++17", "-O1", "-shared", "-fPIC", "-ffp-contract=off", "-w"]
        subprocess.run([COMPILER, *options, "-o", library, program], check=True)
        return ctypes.CDLL(str(library))


class RawModule:
    def __init__(self, *, code, options=(), name_expressions=None):
        code.encode("ascii")  # CuPy writes it in the locale's encoding, Windows' cp1252 perhaps
        assert code == CODE
        assert options == ("-std=c++17",)
        self.names = name_expressions

    def get_function(self, name):
        assert name in self.names
        return functools.partial(run, name)


def run(name, grid, block, args, *, shared_mem=0):
    """A kernel launch, in which what CUDA would take amiss without a word is refused."""
    number = EXPRESSIONS.index(name)
    grid, block = ((*sizes, 1, 1)[:2] for sizes in (grid, block))
    assert 0 < grid[0] < 2**31
    assert 0 < grid[1] < 2**16
    assert min(block) > 0
    assert block[0] * block[1] <= 512  # what __launch_bounds__ says
    entry = getattr(compiled(), f"types_{number}")
    entry.restype = ctypes.c_char_p
    wanted = entry().decode().split()
    assert len(args) == len(wanted), f"{name} takes {len(wanted)} arguments, got {len(args)}"
    keep, pointers = [], (ctypes.c_void_p * len(args))()
    for i, (a, kind) in enumerate(zip(args, wanted, strict=True)):
        if isinstance(a, Array):
            assert kind == f"*{a.dtype.kind}{a.itemsize}", f"{name}: argument {i} is {a.dtype}, expected {kind}"
            value = np.uintp(a.a.ctypes.data)
        else:
            null = kind[0] == "*" and a.dtype == np.uintp and a == 0
            assert null or kind == f"{a.dtype.kind}{a.itemsize}", f"{name}: argument {i} is {a!r}, expected {kind}"
            value = a
        keep.append(np.array(value))
        pointers[i] = keep[-1].ctypes.data
    log.launches.append(name)
    sizes = [(ctypes.c_uint * 2)(*pair) for pair in (grid, block)]
    finished = getattr(compiled(), f"launch_{number}")(*sizes, pointers)
    assert finished == len(args), f"{name}: threads part at a barrier"


# --- the modules ------------------------------------------------------------------------------------------------------


class Device:
    entered = 0  # by scopes within one another

    def __init__(self, number):
        self.id = getattr(number, "id", number or 0)

    def __eq__(self, other):
        return self.id == other.id

    __hash__ = None

    def __repr__(self):
        return f"<CUDA Device {self.id}>"

    def __enter__(self):
        Device.entered += 1
        return self

    def __exit__(self, *error):
        Device.entered -= 1

    def synchronize(self):
        log.waits.append("synchronize")


@functools.cache  # array_api_compat remembers whose namespace is whose
def modules():
    """The stand-ins for `cupy` and `array_api_compat.cupy`."""
    cupy, namespace = types.ModuleType("cupy"), types.ModuleType("array_api_compat.cupy")
    runtime = types.SimpleNamespace(getDeviceProperties=lambda number: {"name": b"stand-in"})
    runtime.cudaDevAttrMultiProcessorCount, runtime.deviceGetAttribute = 16, lambda attribute, device: 132
    cupy.__version__ = "0.stand-in"
    cupy.cuda = types.SimpleNamespace(Device=Device, runtime=runtime)
    cupy.ndarray, cupy.RawModule, cupy.dot, cupy.ascontiguousarray = Array, RawModule, dot, ascontiguousarray
    for name in dir(numpy_namespace):
        thing = getattr(numpy_namespace, name)
        plain = isinstance(thing, type) or not callable(thing) or name in ("isdtype", "finfo", "iinfo", "result_type")
        setattr(namespace, name, thing if plain else of_numpy(name, thing))
    namespace.asarray, namespace.empty, namespace.empty_like, namespace.sign = asarray, empty, empty_like, sign
    for name in ("arange", "zeros", "empty", "empty_like", "asarray"):
        setattr(cupy, name, getattr(namespace, name))
    return {"cupy": cupy, "array_api_compat.cupy": namespace}


@contextlib.contextmanager
def installed():
    """In the block, CuPy is the stand-in: its backend, or a skipped test where no compiler is."""
    if COMPILER is None:
        pytest.skip("NO C++ COMPILER HERE (g++ OR clang++): THE CUDA KERNELS ARE NOT TESTED")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_made", "_namespaces"):
            patch.setattr(backend, name, {})
        for name, module in modules().items():
            patch.setitem(sys.modules, name, module)
        kernel.cache_clear()
        log.__init__()
        yield backend.get_backend("cupy")
    kernel.cache_clear()
