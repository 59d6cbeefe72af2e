"""CUDA's runtime and driver, replaced in the tables of C functions through which CuPy's compiled code calls them."""

import atexit
import ctypes
import itertools
from collections.abc import Callable
from typing import Any

import cupy_backends.cuda.api.driver as driver
import cupy_backends.cuda.api.runtime as runtime

from .compiler import build_engine, current, modules
from .log import log

DEVICES = 2
VERSION = 13000
ATTRIBUTES = {16: 132, 75: 9, 76: 0}  # by number: multiprocessors, compute capability (major, minor)
PROPERTIES = {
    "name": b"the host",
    "warpSize": 32,
    "maxThreadsPerBlock": 1024,
    "maxThreadsPerMultiProcessor": 2048,
    "multiProcessorCount": ATTRIBUTES[16],
    "major": 9,
    "minor": 0,
}
TYPES = {
    "PyObject *": ctypes.py_object,
    "int": ctypes.c_int,
    "intptr_t": ctypes.c_ssize_t,
    "size_t": ctypes.c_size_t,
    "unsigned int": ctypes.c_uint,
    "float": ctypes.c_float,
    "uintmax_t": ctypes.c_ulonglong,
    "CUdevice": ctypes.c_int,
    "void": None,
}
OPTIONAL = "int __pyx_skip", "struct __pyx_opt"  # the last arguments, added by Cython

capsule = ctypes.pythonapi.PyCapsule_New
capsule.restype, capsule.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
name_of = ctypes.pythonapi.PyCapsule_GetName
name_of.restype, name_of.argtypes = ctypes.c_char_p, [ctypes.py_object]


def replace(module: Any, name: str, function: Callable[..., Any]) -> None:
    """Replace a function in this module's table, where other compiled modules find it."""
    signature = name_of(module.__pyx_capi__[name])
    result, _, rest = signature.decode().partition("(")
    names = [argument.strip() for argument in rest.rstrip(")").split(",") if argument.strip() != "void"]
    count = sum(not argument.startswith(OPTIONAL) for argument in names)
    types = [
        TYPES.get(argument, ctypes.c_int if argument.startswith(OPTIONAL[0]) else ctypes.c_void_p) for argument in names
    ]

    def call(*arguments: Any) -> Any:
        try:
            return function(*arguments[:count])
        except Exception as error:  # the caller is compiled code, which could not raise it
            log.faults.append(f"{name}: {error!r}")
            return None if TYPES[result.strip()] is ctypes.py_object else 0

    entry = ctypes.PYFUNCTYPE(TYPES[result.strip()], *types)(call)
    for each in (entry, signature):  # for ever: CuPy frees memory as late as Python's own end
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
    module.__pyx_capi__[name] = capsule(ctypes.cast(entry, ctypes.c_void_p).value, signature, None)
    if hasattr(module, name):
        setattr(module, name, lambda *arguments, **options: function(*arguments[:count]))


# --- the runtime ------------------------------------------------------------------------------------------------------

handles = itertools.count(16, 16)


def nothing(*arguments: Any) -> None:
    """Do nothing, for functions that have no effect here."""


def always(value: Any) -> Callable[..., Any]:
    """Return a function that returns this value."""
    return lambda *arguments: value


def handle(*arguments: Any) -> int:
    """Return a handle for a stream, event, module or kernel."""
    return next(handles)


def set_device(number: int) -> None:
    if not 0 <= number < DEVICES:
        raise runtime.CUDARuntimeError(101)  # invalid device ordinal
    current.device = number


def wait(*arguments: Any) -> None:
    log.waits.append("synchronize")


def allocate(size: int, *stream: Any) -> int:
    address: int = build_engine().allocate(size, current.device)
    return address


def allocate_on_host(size: int, *flags: Any) -> int:
    address: int = build_engine().allocate(size, -1)
    return address


ended: list[bool] = []
atexit.register(ended.append, True)


def free(address: int, *stream: Any, ended: list[bool] = ended) -> None:
    if address and not ended:  # at Python's own end, this module's names are gone
        build_engine().release_memory(address)
        told()


def told() -> None:
    """Log the fault that the engine has found, if any."""
    if fault := build_engine().take_fault():
        log.faults.append(fault.decode())


def is_there(address: int, size: int) -> bool:
    """Whether these bytes of a device are within an array; if not, log a fault."""
    there = not size or bool(build_engine().holds(-1, address, size))
    if not there:
        log.faults.append(f"{size} bytes were to be copied to or from where no array has them")
    return there


TO_DEVICE, TO_HOST, ON_DEVICE = 1, 2, 3


def copy(to: int, origin: int, size: int, kind: int, *stream: Any) -> None:
    if kind in (TO_DEVICE, ON_DEVICE) and not is_there(to, size):
        return
    if kind in (TO_HOST, ON_DEVICE) and not is_there(origin, size):
        return
    ctypes.memmove(to, origin, size)
    if kind == TO_DEVICE:
        log.transfers.append(size)


def fill(address: int, value: int, size: int, *stream: Any) -> None:
    if is_there(address, size):
        ctypes.memset(address, value, size)


RUNTIME: dict[str, Callable[..., Any]] = {
    "getDevice": lambda: current.device,
    "setDevice": set_device,
    "getDeviceCount": always(DEVICES),
    "getDeviceProperties": always(PROPERTIES),
    "deviceGetAttribute": lambda attribute, device: ATTRIBUTES.get(attribute, 0),
    "deviceGetPCIBusId": always("none"),
    "deviceCanAccessPeer": always(0),
    "_deviceEnsurePeerAccess": nothing,
    "_ensure_context": nothing,
    "memGetInfo": always((2**33, 2**33)),
    "runtimeGetVersion": always(VERSION),
    "driverGetVersion": always(VERSION),
    "malloc": allocate,
    "mallocAsync": allocate,
    "hostAlloc": allocate_on_host,
    "free": free,
    "freeAsync": free,
    "freeHost": free,
    "memcpy": copy,
    "memcpyAsync": copy,
    "memset": fill,
    "memsetAsync": fill,
    "pointerGetMemoryType": always(0),
    "deviceSynchronize": wait,
    "streamSynchronize": wait,
    "eventSynchronize": wait,
    "eventCreate": handle,
    "eventCreateWithFlags": handle,
    "eventRecord": nothing,
    "eventDestroy": nothing,
    "eventQuery": always(0),
    "streamCreate": handle,
    "streamCreateWithFlags": handle,
    "streamDestroy": nothing,
    "streamWaitEvent": nothing,
    "streamIsCapturing": always(0),
    "streamGetPriority": always(0),
    "streamGetFlags": always(0),
}

# --- the driver -------------------------------------------------------------------------------------------------------

loaded: dict[int, int] = {}  # a module's number by its handle
functions: dict[int, tuple[int, str]] = {}  # a module's number and the kernel's name, by its handle


def load(binary: bytes) -> int:
    number = handle()
    loaded[number] = int(bytes(binary).split()[1])
    return number


def get_function(module: int, name: str | bytes) -> int:
    number = handle()
    functions[number] = loaded[module], name if isinstance(name, str) else name.decode()
    return number


def launch(function: int, *arguments: Any) -> None:
    number, name = functions[function]
    modules[number][name].launch(arguments[:3], arguments[3:6], arguments[8])


DRIVER: dict[str, Callable[..., Any]] = {
    "moduleLoadData": load,
    "moduleGetFunction": get_function,
    "moduleUnload": nothing,
    "launchKernel": launch,
    "ctxGetCurrent": always(1),
    "ctxSetCurrent": nothing,
    "funcGetAttribute": always(0),
    "occupancyMaxActiveBlocksPerMultiprocessor": always(4),
}


def install() -> None:
    """Replace all of these functions, before the modules that look them up are imported."""
    for module, functions_by_name in ((runtime, RUNTIME), (driver, DRIVER)):
        for name, function in functions_by_name.items():
            replace(module, name, function)
