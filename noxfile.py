"""Each backend's tests, and the checks: `nox -s tests-numpy tests-cupy`. `nox -l` lists them all."""

import ctypes
import os
import re
import subprocess
import sys

import nox

nox.needs_version = ">=2025.2.9"
nox.options.sessions = ["tests-numpy", "tests-cupy"]
nox.options.reuse_existing_virtualenvs = True

# uv installs ten times as fast as pip, but not from an index that pip is configured with
configured = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True).stdout
nox.options.default_venv_backend = "virtualenv" if re.search(r"\.index-url=", configured) else "uv|virtualenv"

PYPROJECT = nox.project.load_toml("pyproject.toml")
TORCH = "torch==2.13.0"


def group(name: str) -> list[str]:
    """The requirements of one of pyproject's dependency groups."""
    return nox.project.dependency_groups(PYPROJECT, name)


# a process for each core, each with one thread: their threads would wait for one another
PARALLEL = ["--numprocesses=auto", "--maxprocesses=8"]
# what Python compiles is kept, even if the environment says no: the tests start hundreds of processes
ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": None}


def suite(session: nox.Session, backend: str, *options: str, name: str | None = None) -> None:
    """The same suite, on one backend; with XPNET_COVERAGE=1 `coverage` adds up what the backends' runs have covered."""
    env = ENVIRONMENT | {"COVERAGE_FILE": f".coverage.{name or backend}"}
    measured = ("--cov", "--cov-report=") if os.environ.get("XPNET_COVERAGE") == "1" else ()
    session.run("pytest", f"--backend={backend}", *measured, *PARALLEL, *options, *session.posargs, env=env)


@nox.session(name="tests-numpy")
def tests_numpy(session: nox.Session) -> None:
    """On NumPy, without Numba."""
    session.install("-e", ".", *group("test"))
    suite(session, "numpy")


@nox.session(name="tests-numba", default=False)
def tests_numba(session: nox.Session) -> None:
    """On NumPy with the loops that Numba compiles: what trains; and once more in the plain step, its reference."""
    session.install("-e", ".[fast]", *group("test"))
    subjects = (
        *("kernels", "training", "callbacks", "scripts", "test_network.py", "test_readme.py"),
        "estimators/test_parity.py",
    )
    suite(session, "numpy", *[f"tests/{subject}" for subject in subjects], name="numba")
    session.run("pytest", "tests/training", *PARALLEL, env=ENVIRONMENT | {"XPNET_KERNELS": "reference"})


@nox.session(name="tests-oldest", default=False)
def tests_oldest(session: nox.Session) -> None:
    """On NumPy, with the oldest releases that pyproject.toml allows: training, files and the estimators."""
    project = PYPROJECT["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["sklearn"]]
    session.install("-e", ".", *group("test"), *[f"{one.replace('>=', '==')}.*" for one in needed])
    subjects = (
        *("training", "files", "estimators", "test_network.py"),
        *("kernels/test_fit.py", "kernels/test_step.py", "layers/test_arrays.py"),
    )
    session.run("pytest", *[f"tests/{subject}" for subject in subjects], *PARALLEL, env=ENVIRONMENT)


@nox.session(name="tests-cupy")
def tests_cupy(session: nox.Session) -> None:
    """On CuPy, where a CUDA device answers; elsewhere on CuPy whose calls the host answers, and it says so.

    The host compiles CuPy's kernels with g++ or clang++, each once, and keeps them in `~/.cache/xpnet-kernels-on-host`,
    or in the folder that XPNET_KERNELS_ON_HOST names.
    """
    driver = cuda_driver()
    wheel = f"cupy-cuda{os.environ.get('XPNET_CUDA') or driver or 13}x"
    session.install("-e", ".", *group("test"), f"{wheel}[ctk]>=14.2" if driver else f"{wheel}>=14.2")
    probe = "import xpnet; print(xpnet.get_backend('cupy').describe())"
    answer = session.run("python", "-c", probe, silent=True, success_codes=[0, 1]) or ""
    if "Error" not in answer:
        suite(session, "cupy", "--numprocesses=0")  # which share one device
        return
    reason = answer.strip().splitlines()[-1]
    if os.environ.get("XPNET_REQUIRE_GPU") == "1":
        session.error(f"XPNET_REQUIRE_GPU=1, and CuPy has no device: {reason}")
    session.install(*group("nvrtc"))
    suite(session, "cupy", "--on-host")
    session.warn(f"NO GPU TEST WAS RUN: NO CUDA DEVICE ANSWERS HERE ({reason})")


@nox.session(name="tests-strict", default=False)
def tests_strict(session: nox.Session) -> None:
    """On array_api_strict, which has nothing but the standard, and on its second device."""
    session.install("-e", ".", *group("test"))
    suite(session, "array_api_strict")


@nox.session(name="tests-torch", default=False, venv_backend="virtualenv")  # pip, which may find a build for the CPU
def tests_torch(session: nox.Session) -> None:
    """On PyTorch, and against its autograd and optimizers."""
    session.install(TORCH)
    session.install("-e", ".", *group("test"))
    suite(session, "torch")


@nox.session(name="tests-jax", default=False)
def tests_jax(session: nox.Session) -> None:
    """On JAX."""
    session.install("-e", ".[jax]", *group("test"))
    suite(session, "jax")


@nox.session(name="tests-onnx", default=False)
def tests_onnx(session: nox.Session) -> None:
    """ONNX files under onnxruntime; the two packages are 110 MB, so the other sessions do without."""
    session.install("-e", ".[onnx]", *group("test"), *group("onnxruntime"))
    suite(session, "numpy", "-k", "onnx", name="onnx")


@nox.session(name="tests-mpi", default=False)
def tests_mpi(session: nox.Session) -> None:
    """Trainings in several processes, started by MPICH's mpiexec; and the estimators in Dask's."""
    session.install("-e", ".[mpi]", *group("test"), *group("mpich"), *group("dask"))
    subjects = "tests/training/test_processes.py", "tests/estimators/test_tools.py"
    suite(session, "numpy", "-m", "mpi_only or dask_only", "--numprocesses=0", *subjects, name="mpi")


@nox.session(default=False)
def coverage(session: nox.Session) -> None:
    """After the tests on NumPy with and without Numba, CuPy, strict, PyTorch, JAX, ONNX: every line was run.

    But for the bodies of compiled functions, which Python never enters, and a branch now and then that only one order
    of the threads takes. Only tests run with XPNET_COVERAGE=1 are measured, which takes a fifth longer.
    """
    session.install("coverage")
    session.run("coverage", "combine")
    session.run("coverage", "report", "--fail-under=99")


@nox.session(default=False)
def lint(session: nox.Session) -> None:
    """Ruff, its format included."""
    session.install(*group("lint"))
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")


@nox.session(default=False)
def types(session: nox.Session) -> None:
    """Mypy, strict on the package."""
    session.install("-e", ".", *group("types"))
    session.run("mypy")


@nox.session(default=False)
def docs(session: nox.Session) -> None:
    """The reference of everything public, with the guides, in `site/`; warnings are errors."""
    session.install("-e", ".[sklearn,plots]", *group("docs"))
    session.run("python", "scripts/reference.py", *session.posargs)


@nox.session(default=False)
def digits(session: nox.Session) -> None:
    """Train on the digits: `nox -s digits -- --backend numpy --plot digits.png`."""
    session.install("-e", ".[sklearn,plots]")
    session.run("python", "scripts/train_digits.py", *session.posargs)


def cuda_driver() -> int | None:
    """The major version of CUDA that the driver here supports, None without a driver."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
        except OSError:
            continue
        version = ctypes.c_int()
        if cuda.cuDriverGetVersion(ctypes.byref(version)) == 0 and version.value:
            return 12 if version.value < 13000 else 13
    return None
