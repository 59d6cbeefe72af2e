"""Every file in scripts/ is a program that says what it does."""

import os
import subprocess
import sys

import pytest

from support import ROOT

pytestmark = [
    pytest.mark.numpy_only,
    pytest.mark.skipif(sys.platform == "win32", reason="one of them is a shell script"),
]

PROGRAMS = sorted(path for path in (ROOT / "scripts").iterdir() if path.suffix in (".py", ".sh"))


def test_every_program_answers_help():
    started = [
        subprocess.Popen(
            [*([sys.executable] if path.suffix == ".py" else ["bash"]), path, "--help"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ,
        )
        for path in PROGRAMS
    ]  # fmt: skip
    for path, program in zip(PROGRAMS, started, strict=True):
        said, errors = program.communicate()
        assert (program.returncode, errors) == (0, ""), path.name
        assert len(said.splitlines()) >= 5, path.name
