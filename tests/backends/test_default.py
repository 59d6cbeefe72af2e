"""The default backend: `use_backend` and XPNET_BACKEND."""

import contextlib
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

import xpnet as xn
from support import HANG
from support.processes import python


@pytest.fixture
def place(lib):
    """Name and device of the backend under test, which is not the default."""
    device = lib.device or ("cpu" if lib.name == "numpy" else None)
    yield lib.name, device
    xn.use_backend("numpy")


def default():
    return xn.Sequential(xn.Dense(2, 2)).initialize().backend


def test_use_backend_holds_within_its_block_or_for_the_process(place):
    wanted, numpy = xn.get_backend(*place), xn.get_backend("numpy")
    with xn.use_backend(*place) as entered:
        assert default() is entered is wanted is not numpy
        with xn.use_backend("numpy"):
            assert default() is numpy
        assert default() is wanted
    assert default() is numpy
    with contextlib.suppress(ZeroDivisionError), xn.use_backend(*place):
        _ = 1 / 0
    assert default() is numpy
    block = xn.use_backend("numpy")
    xn.use_backend(*place)
    with block:
        assert default() is numpy
    assert default() is wanted  # as was chosen for the process since


def test_a_block_of_use_backend_is_its_own_threads(place):
    """Blocks that end in the order they began in leave the default as it was."""
    wanted, numpy = xn.get_backend(*place), xn.get_backend("numpy")

    def other():
        before = default()
        with xn.use_backend("numpy"):
            begun.set()
            assert ended.wait(HANG)
            return before, default()

    begun, ended = threading.Event(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        with xn.use_backend(*place):
            seen = pool.submit(other)
            assert begun.wait(HANG)
            assert default() is wanted
        ended.set()
        assert seen.result() == (numpy, numpy)
    assert default() is numpy


def test_blocks_of_threads_that_interleave_leave_the_process_its_default(place):
    numpy = xn.get_backend("numpy")
    first, second = xn.use_backend(*place), xn.use_backend("array_api_strict")  # as two threads may come upon them
    with first:
        with second:
            assert default().name == "array_api_strict"
        assert default() is xn.get_backend(*place)
    assert default() is numpy
    for _ in range(3):
        xn.use_backend(*place)
    assert default() is xn.get_backend(*place)
    assert len(xn.backends.choice._process) <= 2  # choices that are past are let go


def test_xpnet_backend_sets_the_default_at_import(lib):
    code = "import xpnet as xn; print(xn.Sequential(xn.Dense(2, 2)).initialize().backend.name)"
    assert python(code, XPNET_BACKEND=lib.name) == lib.name


@pytest.mark.numpy_only
def test_an_xpnet_backend_that_is_none_is_refused_by_name_and_an_empty_one_is_unset():
    code = "import xpnet as xn\ntry: print(xn.Sequential().initialize().backend.name)\nexcept ValueError as e: print(e)"
    assert "no backend 'abacus'" in python(code, XPNET_BACKEND="abacus")
    assert python(code, XPNET_BACKEND="") == "numpy"
