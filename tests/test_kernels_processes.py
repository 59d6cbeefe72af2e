"""The fast steps in other processes: after a fork, and where the package's folder is not theirs to write to."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xpnet as xn

pytestmark = pytest.mark.numpy_only

CHILD = """
import multiprocessing, os, sys, threading
import numpy as np
import xpnet as xn
from xpnet.kernels import threads

threads.LARGE, threads.BLOCK = 2**16, 2**14  # the network below is large, and its work shared

def fit():
    rng = np.random.default_rng(0)
    net = xn.Sequential(xn.Dense(300, 500), xn.ReLU(), xn.Dense(500, 10)).initialize("numpy", seed=0)
    x, y = rng.normal(size=(700, 300)), rng.integers(10, size=700)
    net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(), batch_size=400)
    helpers = sum(thread.name.startswith("xpnet") for thread in threading.enumerate())
    return float(np.abs(net.params["0.weight"]).sum()), helpers

def child(pipe):
    pipe.send(fit())

if __name__ == "__main__":
    mine, helpers = fit()
    assert helpers == 1, f"{helpers} helping threads before there is a child, expected 1"
    context = multiprocessing.get_context(sys.argv[1])
    for _ in range(2):
        ours, theirs = context.Pipe()
        process = context.Process(target=child, args=(theirs,), daemon=True)
        process.start()
        assert ours.poll(60), "the child hangs"
        value, helpers = ours.recv()
        assert abs(value - mine) <= 1e-4 * mine
        assert helpers == 1, f"{helpers} helping threads in the child, expected 1"
        process.join()
    print("done")
"""


def run(arguments, place, package=Path(xn.__file__).parent, **env):
    """What a fresh interpreter prints, in this place and with this xpnet or another."""
    path = os.pathsep.join([str(package.parent), os.environ.get("PYTHONPATH", "")])
    env = os.environ | {"PYTHONPATH": path} | env
    done = subprocess.run([sys.executable, *arguments], cwd=place, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("choice", ["auto", "generic"])
@pytest.mark.parametrize("start", [m for m in multiprocessing.get_all_start_methods() if m != "forkserver"])
def test_a_process_started_after_a_fit_fits_too_and_in_as_many_threads(start, choice, tmp_path, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", choice)
    (tmp_path / "child.py").write_text(CHILD)
    assert run([str(tmp_path / "child.py"), start], tmp_path, OMP_NUM_THREADS="2") == "done"  # also on one core


FIT = """
import numpy as np, xpnet as xn
net = xn.Sequential(xn.Dense(3, 2), xn.ReLU()).initialize("numpy")
net.fit(np.ones((4, 3)), np.zeros((4, 2)), loss=xn.MeanSquaredError(), optimizer=xn.SGD())
print(xn.__file__)
"""


@pytest.mark.numba_only
@pytest.mark.parametrize("home", [True, False], ids=["home", "no home"])
def test_fit_works_where_the_package_cannot_be_written_to(home, tmp_path):
    """A file in the place of the folder for compiled code stands for a folder that is read-only."""
    package = tmp_path / "xpnet"
    shutil.copytree(Path(xn.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "kernels" / "__pycache__").touch()
    place = str(tmp_path / "home") if home else os.devnull
    env = {"HOME": place, "XDG_CACHE_HOME": place, "LOCALAPPDATA": place, "NUMBA_CACHE_DIR": ""}
    assert run(["-c", FIT], tmp_path, package, **env) == str(package / "__init__.py")
