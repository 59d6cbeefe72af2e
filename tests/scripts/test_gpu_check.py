"""The check for those who have a GPU: what of it runs without one."""

import argparse
import os
import re
import subprocess
import sys

import pytest

from support import ROOT
from support.cupy_on_host import log
from xpnet.kernels.cuda.source import source

SCRIPTS = ROOT / "scripts"
KERNELS = set(re.findall(r"__global__ void __launch_bounds__\(\d+\) (\w+)\(", source()))


@pytest.fixture
def gpu_check(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import gpu_check

    return gpu_check


def launched():
    """The names of our kernels that were launched, without their templates' arguments."""
    return {name.partition("<")[0] for name in log.launches if "<" in name}


def outcome_of(program, tmp_path):
    """The check with another program in Python's place, and in nvidia-smi's."""
    (tmp_path / "nvidia-smi").symlink_to(f"/bin/{program}")
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": f"/bin/{program}"}
    command = ["bash", SCRIPTS / "gpu_check.sh", tmp_path / "report.txt"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    report = (tmp_path / "report.txt").read_text()
    assert done.stdout == report
    assert done.stderr == ""
    return done.returncode, report.partition("== outcomes")[2]


@pytest.mark.skipif(sys.platform != "linux", reason="it is for Linux")
@pytest.mark.numpy_only
def test_the_report_says_how_each_part_ended_and_the_status_whether_all_passed(tmp_path):
    status, outcomes = outcome_of("true", tmp_path)
    assert status == 0
    assert outcomes.count(" s  passed") >= 12
    assert "0 failed" in outcomes


@pytest.mark.skipif(sys.platform != "linux", reason="it is for Linux")
@pytest.mark.numpy_only
def test_where_a_part_fails_the_others_still_run(tmp_path):
    status, outcomes = outcome_of("false", tmp_path)
    assert status == 1
    assert outcomes.count("FAILED with status 1") >= 12
    assert "passed" not in outcomes


@pytest.mark.cupy_only
def test_its_fit_launches_every_kernel(gpu_check, monkeypatch):
    rows = gpu_check.rows
    monkeypatch.setattr(gpu_check, "rows", lambda n: rows(33))  # one batch
    gpu_check.fit(argparse.Namespace())
    assert not log.launches or launched() == KERNELS  # on a device nobody counts


@pytest.mark.cupy_only
def test_it_measures_every_kernel(gpu_check, capsys):
    gpu_check.bandwidth(argparse.Namespace(repeats=1, shapes=["5x33", "2x700"]))
    assert not log.launches or launched() == KERNELS
    table = capsys.readouterr().out
    assert [name for name in KERNELS if name not in table] == []


@pytest.mark.cupy_only
def test_a_wait_in_an_epoch_ends_it(gpu_check, capsys, monkeypatch):
    import cupyx

    gpu_check.waits(argparse.Namespace(steps=5))
    assert capsys.readouterr().out == "no wait in 5 steps\n"

    class Looks(gpu_check.NoWaits):
        def step_end(self, run):
            super().step_end(run)
            run.losses[-1]

    monkeypatch.setattr(gpu_check, "NoWaits", Looks)
    with pytest.raises(cupyx.DeviceSynchronized):
        gpu_check.waits(argparse.Namespace(steps=5))
