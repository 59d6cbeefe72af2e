"""Kernels compiled by the host's C++ compiler, each once and for all in a folder, and launched."""

import contextlib
import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np

from .log import log

HERE = Path(__file__).parent
FOLDER = Path(os.environ.get("XPNET_KERNELS_ON_HOST") or Path.home() / ".cache" / "xpnet-kernels-on-host")
OPTIONS = ("-std=c++17", "-fPIC", "-ffp-contract=off", "-w", "-fpermissive")
BOUND = re.compile(r"__launch_bounds__\((\d+)\)")


@functools.cache
def compiler() -> str:
    """The host's C++ compiler."""
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        raise RuntimeError("CuPy on the host needs a C++ compiler: apt-get install g++ (or clang)")
    return found


def built(name: str, *arguments: str, source: Path) -> Path:
    """The file `name` in FOLDER, compiled from `source` unless it is there: written beside it and renamed."""
    path = FOLDER / name
    if not path.exists():
        FOLDER.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=FOLDER, suffix=path.suffix)
        os.close(handle)
        done = subprocess.run(
            [compiler(), *OPTIONS, *arguments, "-o", temporary, source], capture_output=True, text=True
        )
        if done.returncode:
            os.unlink(temporary)
            raise RuntimeError(f"{source} does not compile:\n{done.stderr}")
        os.replace(temporary, path)
    return path


def signature(*texts: str | bytes) -> str:
    """A name for what is compiled from these."""
    parts = [text.encode() if isinstance(text, str) else text for text in texts]
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:24]


@functools.cache
def build_engine() -> ctypes.CDLL:
    """engine.cpp, whose names the kernels' libraries find."""
    words = [(HERE / name).read_bytes() for name in ("device.h", "engine.cpp")]
    source = HERE / "engine.cpp"
    library = built(f"engine-{signature(*words)}.so", "-O2", "-shared", f"-I{HERE}", source=source)
    engine = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
    engine.allocate.restype = ctypes.c_void_p
    engine.allocate.argtypes = [ctypes.c_size_t]
    engine.release_memory.argtypes = [ctypes.c_void_p]
    engine.is_live.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    engine.take_fault.restype = ctypes.c_char_p
    return engine


@functools.cache
def headers() -> tuple[str, Path]:
    """The folder of CuPy's headers, and a precompiled one that has all that its kernels include."""
    import cupy

    folder = Path(cupy.__file__).parent / "_core" / "include"
    text = f'#include "{HERE}/device.h"\n' + "".join(
        f"#include <cupy/{name}>\n" for name in ("complex.cuh", "carray.cuh", "atomics.cuh", "math_constants.h")
    )
    every = [path.read_bytes() for path in sorted(HERE.rglob("*.*h"))] + [(folder / "cupy/carray.cuh").read_bytes()]
    name = f"cupy-{signature(text, *every)}.h"
    FOLDER.mkdir(parents=True, exist_ok=True)
    source = FOLDER / name
    with contextlib.suppress(FileExistsError), open(source, "x", encoding="utf-8") as file:
        file.write(text)
    include = [f"-I{HERE}/include", f"-I{folder}"]
    built(f"{name}.gch", "-O0", *include, "-x", "c++-header", source=source)
    return str(folder), source


class Module:
    """A kernel's source, as CuPy would give it to NVRTC."""

    def __init__(self, source: str, options: tuple[str, ...]):
        self.source = source
        self.defines = [option for option in options if option.startswith("-D")]
        bounds = BOUND.findall(source)
        self.most_threads = min(map(int, bounds), default=1024)
        self.kernels: dict[str, Kernel] = {}

    def __getitem__(self, name: str) -> "Kernel":
        if name not in self.kernels:
            self.kernels[name] = Kernel(self, name)
        return self.kernels[name]


class Kernel:
    """A kernel of a module; `types` are its arguments', as NumPy writes them."""

    def __init__(self, module: Module, name: str):
        folder, header = headers()
        text = (
            f'#include "{header}"\n{module.source}\n'
            f'extern "C" void run(void** arguments) {{ on_host::call({name}, arguments); }}\n'
            f'extern "C" const char* types() {{ return on_host::types({name}); }}\n'
        )
        source = FOLDER / f"{signature(text, *module.defines)}.cpp"
        if not source.exists():
            FOLDER.mkdir(parents=True, exist_ok=True)
            source.write_text(text, encoding="utf-8")
        include = [f"-I{HERE}/include", f"-I{folder}", f"-I{FOLDER}"]
        level = "-O1" if "<" in name else "-O0"  # templates are our own kernels, which are most of the work
        options = [level, "-shared", *include, *module.defines]
        library = ctypes.CDLL(str(built(f"{source.stem}.so", *options, source=source)))
        library.types.restype = ctypes.c_char_p
        self.name, self.run, self.module = name, library.run, module
        self.types = library.types().decode().split()
        self.alone = "__syncthreads" not in module.source
        kind = name if "<" in name else module.source
        self.in_float = "float" in kind and "double" not in kind

    def launch(self, grid: tuple[int, ...], block: tuple[int, ...], arguments: int) -> None:
        log.launches.append(self.name)
        most = self.module.most_threads
        if not (0 < grid[0] < 2**31 and 0 < grid[1] < 2**16 and 0 < grid[2] < 2**16):
            log.faults.append(f"{self.name}: a grid of {grid}")
        elif min(block) < 1 or np.prod(block) > most:
            log.faults.append(f"{self.name}: a block of {block}, where {most} threads are the most")
        else:
            sizes = [(ctypes.c_uint * 3)(*size) for size in (grid, block)]
            engine = build_engine()
            engine.launch(self.run, *sizes, ctypes.c_void_p(arguments), int(self.in_float), int(self.alone))
            if fault := engine.take_fault():
                log.faults.append(f"{self.name}: {fault.decode()}")


modules: list[Module] = []


def compile_module(source, options=(), *, name_expressions=None, **others):  # type: ignore[no-untyped-def]
    """In place of CuPy's compilation: a module whose binary is its number in `modules`."""
    from cupy.cuda import function

    modules.append(Module(source, tuple(options)))
    module = function.Module()
    module.load(b"module %d" % (len(modules) - 1))
    if name_expressions:
        module._set_mapping({name: name for name in name_expressions})
    return module


def install() -> None:
    """Have CuPy compile here, and check what is passed to kernels of our own as CUDA does not."""
    from cupy.cuda import compiler as cupys

    cupys._compile_module_with_cache = compile_module
