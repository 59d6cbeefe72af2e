"""Programs in separate processes."""

import os
import subprocess
import sys
from pathlib import Path

import xpnet as xn
from support import HANG, ROOT, cupy_on_host


def python(code, *args, **env):
    """Return what a new interpreter prints, with this xpnet, and with CuPy on the host if this process has it."""
    folders = Path(xn.__file__).parents[1], ROOT / "tests", os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(map(str, folders))
    if cupy_on_host.installed():
        code = f"from support import cupy_on_host\ncupy_on_host.install()\n{code}"
    run = [sys.executable, "-c", code, *args]
    done = subprocess.run(
        run, env=os.environ | {"PYTHONPATH": path} | env, capture_output=True, text=True, timeout=HANG
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
