"""The fast steps in other processes: after a fork, after an import cut short, and where files fail them."""

import multiprocessing
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import xpnet as xn
from support import HANG

pytestmark = pytest.mark.numpy_only

CHILD = """
import multiprocessing, os, sys, threading
import numpy as np
import xpnet as xn
from xpnet.kernels.cpu import threads

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
    done = subprocess.run(
        [sys.executable, *arguments], cwd=place, env=env, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("choice", ["auto", "generic"])
@pytest.mark.parametrize("start", [m for m in multiprocessing.get_all_start_methods() if m != "forkserver"])
def test_a_process_started_after_a_fit_fits_too_and_in_as_many_threads(start, choice, tmp_path, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", choice)
    (tmp_path / "child.py").write_text(CHILD)
    assert run([str(tmp_path / "child.py"), start], tmp_path, OMP_NUM_THREADS="2") == "done"  # also on one core


LATE = """
import atexit, sys, threading
import numpy as np
import xpnet as xn
from xpnet.kernels.cpu import threads

threads.LARGE, threads.BLOCK = 2**16, 2**14

def fit():
    net = xn.Sequential(xn.Dense(300, 500), xn.ReLU(), xn.Dense(500, 10)).initialize("numpy", seed=0)
    x, y = np.ones((700, 300)), np.arange(700) % 10
    history = net.fit(x, y, loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(), batch_size=400)
    print(f"{history['loss'][0]:.3f}", flush=True)

def late():
    threading.main_thread().join()
    fit()

if "before" in sys.argv:
    fit()
if "atexit" in sys.argv:
    atexit.register(fit)
else:
    threading.Thread(target=late).start()
"""


@pytest.mark.parametrize("when", ["atexit", "thread"])
@pytest.mark.parametrize("before", ["before", "not before"])  # the threads beside the caller's are there, or not
def test_training_goes_on_when_the_main_thread_has_ended(before, when, tmp_path):
    losses = run(["-c", LATE, before, when], tmp_path, OMP_NUM_THREADS="2", XPNET_KERNELS="generic").split()
    assert len(losses) == 1 + (before == "before")
    assert len(set(losses)) == 1


FORKED = """
import os, sys, warnings
import numpy as np, xpnet as xn

def fit(net, folder, **options):
    x, y, checkpoint = np.ones((4, 3)), np.zeros((4, 2)), xn.Checkpoint(folder, every=1)
    return net.fit(x, y, loss=xn.MeanSquaredError(), optimizer=xn.SGD(), checkpoint=checkpoint, **options)

class Forks(xn.Callback):
    child = 0
    def step_end(self, run):
        go_on, over = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of threads and forks
            self.child = os.fork()
        if self.child:
            self.go_on = over
            return
        try:
            fit(net, "of the child")  # its copy of the network, which the parent is training
            os.close(over)
            os.read(go_on, 1)  # until the parent's fit has ended
        except BaseException as error:
            print(error, flush=True)
        finally:
            os._exit(0)

net, forks = xn.Sequential(xn.Dense(3, 2)).initialize("numpy"), Forks()
fit(net, "of the parent", callbacks=[forks])
fit(net, "of the parent", resume=True, epochs=2)  # the child is still there
os.close(forks.go_on)
os.waitpid(forks.child, 0)
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_process_forked_amid_a_fit_trains_its_copy_and_leaves_the_lock_to_its_parent(tmp_path):
    assert run(["-c", FORKED], tmp_path, XPNET_KERNELS="generic") == "done"


FIT = """
import numpy as np, xpnet as xn
net = xn.Sequential(xn.Dense(3, 2), xn.ReLU()).initialize("numpy")
net.fit(np.ones((4, 3)), np.zeros((4, 2)), loss=xn.MeanSquaredError(), optimizer=xn.SGD())
print(xn.__file__)
"""


NOTEBOOK = """
import builtins
builtins.input = lambda prompt="": prompt  # as a notebook replaces it: it cannot be pickled then
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


INTERRUPTED = """
import sys, warnings
import numpy as np, xpnet as xn
from xpnet.kernels import families
from xpnet.kernels.cpu.calls import Calls

class Fault:
    def __init__(self, module, error):
        self.module, self.error, self.seen = module, error, 0
    def find_spec(self, name, path=None, target=None):
        self.seen += name.partition(".")[0] == "numba"
        if self.seen == self.module:
            raise self.error("in the middle")

def kernels():
    return type(families.kernels_for(xn.get_backend("numpy"), True))

for module, error in ((20, KeyboardInterrupt), (120, KeyboardInterrupt), (120, AttributeError), (20, SystemError)):
    sys.meta_path.insert(0, Fault(module, error))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            assert kernels() is Calls
            assert f"Numba is installed and cannot be used ({error.__name__}: in the middle)" in str(told[0].message)
        except KeyboardInterrupt:
            assert error is KeyboardInterrupt and not told
    del sys.meta_path[0]
warnings.simplefilter("error")
net = xn.Sequential(xn.Dense(3, 2), xn.ReLU()).initialize("numpy")
net.fit(np.ones((4, 3)), np.zeros((4, 2)), loss=xn.MeanSquaredError(), optimizer=xn.SGD())
print(kernels().__name__)
"""


@pytest.mark.numba_only
def test_an_import_of_numba_that_ends_in_the_middle_leaves_the_next_fit_to_begin_it_anew(tmp_path):
    """Numba has some 230 modules."""
    assert run(["-c", INTERRUPTED], tmp_path) == "NumbaKernels"


@pytest.mark.numba_only
def test_compiled_code_that_is_damaged_is_compiled_anew_and_kept(tmp_path):
    fit = lambda: run(["-W", "error", "-c", NOTEBOOK + FIT], tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache"))  # noqa: E731
    fit()
    files = sorted((tmp_path / "cache").rglob("*.nb?"))
    whole = {path: path.stat().st_size for path in files}
    assert {path.suffix for path in files} == {".nbi", ".nbc"}
    for i, path in enumerate(files):  # each function's index, or its code: cut short, emptied, or of something else
        content = path.read_bytes()
        path.write_bytes([content[: len(content) // 2], b"", b"no pickle"][i % 3])
    fit()
    assert all(path.stat().st_size > 0.9 * size for path, size in whole.items())


NO_SPACE = """
import errno, warnings
from numba.core import caching
def save(*args):
    raise OSError(errno.ENOSPC, "No space left on device")
caching.IndexDataCacheFile.save = save
warnings.simplefilter("always")
"""


@pytest.mark.numba_only
def test_a_full_disk_ends_no_training(tmp_path):
    """The first function that is compiled says so, for the user's line."""
    code = NO_SPACE + "with warnings.catch_warnings(record=True) as told:\n    "
    code += FIT.strip().replace("\n", "\n    ") + "\nassert 'cannot be kept' in str(told[0].message), told"
    assert run(["-c", code], tmp_path, NUMBA_CACHE_DIR=str(tmp_path / "cache")) == xn.__file__
