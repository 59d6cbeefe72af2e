"""The host in place of a device: it counts CuPy's calls, and reports faults that CUDA does not."""

from pathlib import Path

import numpy as np
import pytest

import xpnet as xn
from support.cupy_on_host import log
from xpnet.kernels.cuda.launching import kernel

pytestmark = [pytest.mark.cupy_only, pytest.mark.on_host_only]

REVERSED = """
extern "C" __global__ void __launch_bounds__(64) reversed(const float* x, float* y) {
    __shared__ float all[64];
    all[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[threadIdx.x] = all[63 - threadIdx.x];
}
"""


@pytest.fixture
def cupy():
    import cupy

    return cupy


def run(cupy, source, *arguments, name="reversed", grid=(1,), block=(64,)):
    cupy.RawModule(code=source, options=("-std=c++17",)).get_function(name)(grid, block, arguments)


def taken():
    """Return and clear the faults so far, for tests that provoke them."""
    faults = list(log.faults)
    log.faults.clear()
    return faults


def test_what_waits_is_counted(cupy):
    backend, a = xn.get_backend("cupy"), cupy.ones(3)
    for wait in (lambda: bool(a[0] > 0), lambda: float(a[0]), lambda: int(a[0]), lambda: backend.to_numpy(a), a.tolist):
        log.waits.clear()
        wait()
        assert len(log.waits) == 1


def test_launches_and_transfers_are_counted(cupy):
    a = cupy.asarray(np.ones((3, 4)))
    (a + a) @ a.T
    assert log.transfers == [96]
    assert len(log.launches) == 2


def test_cupy_takes_no_array_of_numpys(cupy):
    with pytest.raises(TypeError):
        cupy.ones(3) + np.ones(3)
    with pytest.raises(TypeError):
        np.asarray(cupy.ones(3))


def test_memory_that_was_not_written_to_is_nan(cupy):
    assert cupy.isnan(cupy.empty(1000)).all()


def test_a_barrier_holds_and_without_it_a_kernel_is_wrong(cupy):
    x, y = cupy.arange(64, dtype="float32"), cupy.empty(64, "float32")
    run(cupy, REVERSED, x, y)
    np.testing.assert_array_equal(y.get(), np.arange(64)[::-1])
    run(cupy, REVERSED.replace("__syncthreads();", "if (gridDim.x == 2) __syncthreads();"), x, y)
    assert (y.get() != np.arange(64)[::-1]).any()


def test_the_order_of_threads_is_another_each_time(cupy):
    """The last one to write wins."""
    source = """
    extern "C" __global__ void race(int* winner) {
        __syncthreads();
        *winner = threadIdx.x;
    }
    """
    winner, found = cupy.zeros(1, "int32"), set()
    for _ in range(10):
        run(cupy, source, winner, name="race")
        found.add(int(winner[0]))
    assert len(found) > 1


WRONG = {
    "a barrier that some do not reach": (
        lambda text: text.replace("__syncthreads();", "if (threadIdx.x) __syncthreads();"),
        "threads wait at a barrier for others that never come",
    ),
    "a number beyond the array": (
        lambda text: text.replace("y[threadIdx.x]", "y[threadIdx.x + 1]"),
        "memory outside an array was written to",
    ),
    "a number before the array": (
        lambda text: text.replace("y[threadIdx.x]", "y[int(threadIdx.x) - 1]"),
        "memory outside an array was written to",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_kernel_that_goes_wrong_is_told(name, cupy):
    change, fault = WRONG[name]
    run(cupy, change(REVERSED), cupy.zeros(64, "float32"), cupy.zeros(64, "float32"))
    assert taken() == [f"reversed: {fault}"]


def test_what_is_read_beyond_an_array_is_nan(cupy):
    x, y = cupy.zeros(64, "float32"), cupy.zeros(64, "float32")
    run(cupy, REVERSED.replace("= x[threadIdx.x]", "= x[threadIdx.x + 1]"), x, y)
    np.testing.assert_array_equal(np.isnan(y.get()), [True] + [False] * 63)


def test_a_pointer_to_what_is_freed_or_on_another_device_is_refused(cupy):
    x, y = cupy.zeros(64, "float32"), cupy.zeros(64, "float32")
    address = np.uintp(x.data.ptr)
    del x
    run(cupy, REVERSED, address, y)
    assert taken() == ["reversed: argument 0 is no array on device 0, which is the current one"]
    with cupy.cuda.Device(1):
        run(cupy, REVERSED, cupy.zeros(64, "float32"), y)
    assert taken() == ["reversed: argument 1 is no array on device 1, which is the current one"]
    with cupy.cuda.Device(1):
        cupy.ones((2, 2)) @ cupy.ones((2, 2))
        with pytest.raises(ValueError, match="different from the current device"):
            y + 1


@pytest.mark.parametrize(("grid", "block"), [((2**31,), (64,)), ((1, 2**16), (64,)), ((1,), (96,))])
def test_a_launch_of_impossible_sizes_is_refused(grid, block, cupy):
    run(cupy, REVERSED, cupy.zeros(64, "float32"), cupy.zeros(64, "float32"), grid=grid, block=block)
    (fault,) = taken()
    assert "reversed: a grid of" in fault or "reversed: a block of" in fault


def test_arguments_of_other_types_than_the_kernels_are_refused(cupy):
    averaged, f = kernel("averaged<float>"), cupy.ones(3, "float32")
    for arguments, fault in [
        ((cupy.ones(3), f, f, np.int64(3), f), "argument 0 is *f8, expected *f4"),
        ((f, f, f, np.int32(3), f), "argument 3 is i4, expected i8"),
        ((f, f, f, f, f), "argument 3 is *f4, expected i8"),
        ((f, f, f, np.int64(3)), "it takes 5 arguments, got 4"),
    ]:
        averaged((1,), (32,), arguments)
        assert taken() == [f"averaged<float>: {fault}"]
    averaged((1,), (32,), (f, f, f, np.int64(3), f))
    assert taken() == []


def test_a_copy_to_where_no_array_is_is_told(cupy):
    a = cupy.ones(4)
    cupy.cuda.runtime.memcpy(a.data.ptr + 8, a.data.ptr, 32, cupy.cuda.runtime.memcpyDeviceToDevice)
    assert taken() == ["32 bytes were to be copied to or from where no array has them"]


def test_a_file_that_is_kept_is_whole_or_not_there(tmp_path, monkeypatch):
    """Several processes compile into the same folder."""
    from support.cupy_on_host import compiler

    monkeypatch.setattr(compiler, "FOLDER", tmp_path / "kernels")

    def make(path, fail):
        Path(path).write_text("half")
        assert not (tmp_path / "kernels" / "name").exists()
        if fail:
            raise KeyboardInterrupt
        Path(path).write_text("whole")

    with pytest.raises(KeyboardInterrupt):
        compiler.kept("name", lambda path: make(path, fail=True))
    assert list((tmp_path / "kernels").iterdir()) == []
    assert compiler.kept("name", lambda path: make(path, fail=False)).read_text() == "whole"
    assert [path.name for path in (tmp_path / "kernels").iterdir()] == ["name"]
    assert compiler.kept("name", lambda path: pytest.fail("made again")).read_text() == "whole"


def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    from support.cupy_on_host import compiler

    monkeypatch.setattr(compiler.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match=r"neither g\+\+ nor clang\+\+ is here: apt-get install g\+\+ .*dnf .*conda"):
        compiler.compiler.__wrapped__()
