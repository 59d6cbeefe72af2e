"""Compilation of kernels by the host's C++ compiler, cached in a folder, and their launches."""

import ctypes
import functools
import hashlib
import math
import os
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .log import log

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("XPNET_KERNELS_ON_HOST") or Path.home() / ".cache" / "xpnet-kernels-on-host")
OPTIONS = ("-std=c++17", "-fPIC", "-ffp-contract=off", "-w", "-fpermissive")
BOUND = re.compile(r"__launch_bounds__\((\d+)\)\s+(\w+)\(")


@functools.cache
def compiler() -> str:
    """Return the host's C++ compiler."""
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        raise RuntimeError(
            "CuPy on the host needs a C++ compiler, and neither g++ nor clang++ is here: apt-get install g++ on Debian "
            "and Ubuntu, dnf install gcc-c++ on Fedora, conda install -c conda-forge gxx with conda"
        )
    return found


def kept(name: str, make: Callable[[str], None]) -> Path:
    """Return the file `name` in FOLDER; if missing, it is made under a temporary name and renamed."""
    path = FOLDER / name
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=FOLDER)
        os.close(handle)
        try:
            make(temporary)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    return path


def compiled(name: str, text: str, *arguments: str) -> Path:
    """Return the file `name` in FOLDER, compiled from `text` with these arguments if missing."""

    def make(path: str) -> None:
        done = subprocess.run(
            [compiler(), *OPTIONS, *arguments, "-o", path], input=text, capture_output=True, text=True
        )
        if done.returncode:
            raise RuntimeError(f"{name} does not compile:\n{done.stderr}")

    return kept(name, make)


def signature(*texts: str | bytes) -> str:
    """Return a name for the result of compiling these texts."""
    parts = [text.encode() if isinstance(text, str) else text for text in (*OPTIONS, *texts)]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


@functools.cache
def build_engine() -> ctypes.CDLL:
    """Return the compiled engine.cpp, loaded so that the kernels' libraries find its symbols."""
    words = [(HERE / name).read_bytes() for name in ("device.h", "engine.cpp")]
    library = compiled(f"engine-{signature(*words)}.so", "", "-O2", "-shared", str(HERE / "engine.cpp"))
    engine = ctypes.PyDLL(str(library), mode=ctypes.RTLD_GLOBAL)  # PyDLL keeps the GIL during calls
    engine.allocate.restype = ctypes.c_void_p
    engine.allocate.argtypes = [ctypes.c_size_t, ctypes.c_int]
    engine.release_memory.argtypes = [ctypes.c_void_p]
    engine.holds.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    engine.take_fault.restype = ctypes.c_char_p
    return engine


@functools.cache
def include() -> list[str]:
    """Return the options for the folders of headers: xpnet's before CuPy's."""
    import cupy

    return [f"-I{HERE}/include", f"-I{Path(cupy.__file__).parent}/_core/include"]


@functools.cache
def header(level: str, source: str = "") -> Path:
    """Return a header of what CuPy's kernels include, and of the source, precompiled at this optimization level."""
    text = f'#include "{HERE}/device.h"\n' + "".join(
        f"#include <cupy/{name}>\n" for name in ("complex.cuh", "carray.cuh", "atomics.cuh", "math_constants.h")
    )
    carray = Path(include()[1].removeprefix("-I"), "cupy/carray.cuh")
    every = [path.read_bytes() for path in [*sorted(HERE.rglob("*.*h")), carray]]
    name = f"cupy-{signature(level, text, source, *every)}.h"
    path = kept(name, lambda path: Path(path).write_text(f"{text}{source}", encoding="utf-8"))
    compiled(f"{name}.gch", "", level, *include(), "-x", "c++-header", str(path))
    return path


class Module:
    """The source of kernels, as CuPy would give it to NVRTC."""

    def __init__(self, source: str, options: tuple[str, ...]):
        self.source = source
        self.defines = [option for option in options if option.startswith("-D")]
        self.most_threads = {name: int(most) for most, name in BOUND.findall(source)}
        self.kernels: dict[str, Kernel] = {}

    def __getitem__(self, name: str) -> "Kernel":
        if name not in self.kernels:
            self.kernels[name] = Kernel(self, name)
        return self.kernels[name]


class Kernel:
    """A kernel of a module; `types` are those of its arguments, in NumPy's notation."""

    def __init__(self, module: Module, name: str):
        template = "<" in name  # one of our own many of one source, which are most of the work
        level = "-O1" if template else "-O0"
        before, source = (header(level, module.source), "") if template else (header(level), module.source)
        text = (
            f'#include "{before}"\n{source}\n'
            f'extern "C" void run(void** arguments) {{ on_host::call({name}, arguments); }}\n'
            f'extern "C" const char* types() {{ return on_host::types({name}); }}\n'
        )
        # of the standard libraries, the engine has loaded what there is to find
        options = [level, "-shared", "-nostdlib", *include(), *module.defines, "-x", "c++", "-"]
        library = ctypes.CDLL(str(compiled(f"{signature(text, *options)}.so", text, *options)))
        library.types.restype = ctypes.c_char_p
        self.name, self.run, self.module = name, library.run, module
        self.types = library.types().decode().split()
        self.alone = not any(word in module.source for word in ("__syncthreads", "return;"))  # which would end them all
        kind = name if template else module.source
        self.in_float = "float" in kind and "double" not in kind

    def launch(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: int) -> None:
        log.launches.append(self.name)
        if fault := self.fault(grid, block, arguments):
            log.faults.append(f"{self.name}: {fault}")
            return
        sizes = [(ctypes.c_uint * 3)(*size) for size in (grid, block)]
        engine = build_engine()
        engine.launch(self.run, *sizes, ctypes.c_void_p(arguments), int(self.in_float), int(self.alone))
        if found := engine.take_fault():
            log.faults.append(f"{self.name}: {found.decode()}")

    def fault(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: int) -> str | None:
        """Return an error that CUDA would refuse or not report, None if there is none."""
        most = self.module.most_threads.get(self.name.partition("<")[0], 1024)
        if not (0 < grid[0] < 2**31 and 0 < grid[1] < 2**16 and 0 < grid[2] < 2**16):
            return f"a grid of {grid}"
        if min(block) < 1 or math.prod(block) > most:
            return f"a block of {block}, where {most} threads are the most"
        given = current.arguments
        if given and len(given) != len(self.types):
            return f"it takes {len(self.types)} arguments, got {len(given)}"
        for i, (kind, expected) in enumerate(zip(given, self.types, strict=False)):
            if kind != expected and not (kind == NULL and expected[0] == "*"):
                return f"argument {i} is {kind}, expected {expected}"
        for i, expected in enumerate(self.types):
            if expected[0] == "*":
                place = ctypes.c_void_p.from_address(arguments + i * ctypes.sizeof(ctypes.c_void_p)).value
                pointer = ctypes.c_void_p.from_address(place).value
                if pointer and not build_engine().holds(current.device, pointer, 1):
                    return f"argument {i} is no array on device {current.device}, which is the current one"
        return None


class Current(threading.local):
    """A thread's device, and the types of the arguments while it calls a kernel of a RawModule."""

    device = 0
    arguments: tuple[str, ...] = ()


current = Current()
NULL = "u8"  # a pointer to nothing, as a number


def kind_of(argument: object) -> str:
    """Return the type of an argument as CuPy passes it to a kernel."""
    pointer = "" if np.isscalar(argument) else "*"
    dtype = np.asarray(argument).dtype if np.isscalar(argument) else argument.dtype
    return f"{pointer}{'u' if dtype.kind == 'b' else dtype.kind}{dtype.itemsize}"


def checked(kernel: Callable[..., None]) -> Callable[..., None]:
    """Return a kernel that records the types of its arguments, which the driver does not check."""

    def call(grid: tuple[int, ...], block: tuple[int, ...], args: tuple[Any, ...], **options: Any) -> None:
        current.arguments = tuple(map(kind_of, args))
        try:
            kernel(grid, block, args, **options)
        finally:
            current.arguments = ()

    return call


modules: list[Module] = []


def compile_module(source, options=(), *, name_expressions=None, **others):  # type: ignore[no-untyped-def]
    """Replace CuPy's compilation: return a module whose binary is its number in `modules`."""
    from cupy.cuda import function

    modules.append(Module(source, tuple(options)))
    module = function.Module()
    module.load(b"module %d" % (len(modules) - 1))
    if name_expressions:
        module._set_mapping({name: name for name in name_expressions})
    return module


def install() -> None:
    """Make CuPy compile here, and check the arguments of xpnet's kernels, which CUDA does not do."""
    import cupy
    from cupy.cuda import compiler as cupys

    class RawModule(cupy.RawModule):
        def get_function(self, name: str) -> Callable[..., None]:
            return checked(super().get_function(name))

    cupys._compile_module_with_cache = compile_module
    cupy.RawModule = RawModule
