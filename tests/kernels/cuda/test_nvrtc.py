"""NVIDIA's own compiler takes every CUDA kernel, for old and new GPUs. It needs none: the package nvidia-cuda-nvrtc."""

import ctypes
import re
import sys
from pathlib import Path

import pytest

from xpnet.kernels.cuda.source import KINDS, source
from xpnet.kernels.table import POINTWISE

pytestmark = [pytest.mark.cupy_only, pytest.mark.on_host_only]

POINTS, NORMS = ("pointwise", "pointwise_backward"), ("batch_norm", "batch_norm_backward")
OTHERS = "averaged", "dropout", "softmax_cross_entropy", "gradient_norm", "look_ahead", "gather", "pool", *KINDS
BOTH_WAYS = "embedding", "layer_norm"
WIDE = "Identity", "GELU", "GELUTanh"  # of the functions, the one that takes least and those that take most
PARTS = "OfPatches", "OfMaxima", "OfMeans"
OVER_COLUMNS = "pointwise_columns", "pointwise_columns_backward"
DTYPES = "float", "double"


def of_functions(kernels, functions, dtypes=DTYPES):
    return [f"{kernel}<{t}, {f}>" for t in dtypes for kernel in kernels for f in functions]


def attention(*heads):
    return [f"attention{way}<{each}>" for each in heads for way in ("", "_backward")]


EVERY = [f"{k}<{t}>" for t in DTYPES for k in OTHERS]
EVERY += [f"{k}{way}<{t}>" for t in DTYPES for k in BOTH_WAYS for way in ("", "_backward")]
EVERY += [f"spread<{t}, {part}>" for t in DTYPES for part in PARTS]
EVERY += of_functions(OVER_COLUMNS, WIDE)
MOST = ["AdamWSparing<double>", "spread<double, OfPatches>", "layer_norm_backward<double>"]  # registers, of these

# CuPy's options for a RawModule, and one that has the assembler say what each kernel takes
OPTIONS = ["-std=c++17", "-ftz=true", "--device-as-default-execution-space", "--ptxas-options=-v"]
REGISTERS = 128  # of the 65,536 that 512 threads share: no launch fails for want of them
SPILLED = 32  # bytes: the derivatives of batch norm and attention in double go some numbers beyond those allotted


class NVRTC:
    """NVIDIA's run-time compiler of this major version, from nvidia-cuda-nvrtc (13) or nvidia-cuda-nvrtc-cu12."""

    def __init__(self, major):
        places = (path for folder in sys.path for path in Path(folder).glob(f"nvidia/*/lib/libnvrtc.so.{major}"))
        path = next(places, None)
        assert path, f"NVRTC {major} is not here: pip install nvidia-cuda-nvrtc{'-cu12' * (major == 12)}"
        self.library = ctypes.CDLL(str(path))

    def architectures(self):
        """The numbers of those it compiles for, the newest last."""
        count = ctypes.c_int()
        self.library.nvrtcGetNumSupportedArchs(ctypes.byref(count))
        numbers = (ctypes.c_int * count.value)()
        self.library.nvrtcGetSupportedArchs(numbers)
        return list(numbers)

    def log_of(self, source, expressions, options):
        """What it says as it compiles these templates."""
        program, size = ctypes.c_void_p(), ctypes.c_size_t()
        assert self.library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"cupy.cu", 0, None, None) == 0
        for expression in expressions:
            assert self.library.nvrtcAddNameExpression(program, expression.encode()) == 0
        words = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        failed = self.library.nvrtcCompileProgram(program, len(options), words)
        self.library.nvrtcGetProgramLogSize(program, ctypes.byref(size))
        log = ctypes.create_string_buffer(size.value)
        self.library.nvrtcGetProgramLog(program, log)
        self.library.nvrtcDestroyProgram(ctypes.byref(program))
        assert not failed, log.value.decode()
        return log.value.decode()


@pytest.mark.parametrize(("major", "architecture", "expressions"), [
    (12, 70, EVERY + of_functions(POINTS + NORMS, WIDE) + attention("float, 128", "double, 64")),
    (13, 90, EVERY + of_functions(POINTS, POINTWISE) + of_functions(NORMS, WIDE)
     + attention("float, 32", "float, 128", "double, 64")),
    (13, "newest", MOST + of_functions(POINTS + NORMS + OVER_COLUMNS, WIDE, ["double"])
     + attention("float, 64", "double, 32", "double, 64")),
], ids=["12, 70", "13, 90", "13, newest"])  # fmt: skip
def test_nvrtc_compiles_every_kernel_with_few_registers(major, architecture, expressions, capsys):
    """Each of them by both compilers, each of its forms by one at least, and for the newest GPUs what takes most."""
    nvrtc = NVRTC(major)
    number = nvrtc.architectures()[-1] if architecture == "newest" else architecture
    log = nvrtc.log_of(source(), expressions, [f"-arch=sm_{number}", *OPTIONS])
    registers = list(map(int, re.findall(r"Used (\d+) registers", log)))
    spilled = list(map(int, re.findall(r"(\d+) bytes spill stores", log)))
    with capsys.disabled():
        most = f"at most {max(registers)} registers, {max(spilled)} bytes spilled"
        print(f"\nNVRTC {major}, sm_{number}: {len(registers)} kernels, {most}")
    assert len(registers) == len(spilled) == len(expressions)
    assert max(registers) <= REGISTERS
    assert max(spilled) <= SPILLED
