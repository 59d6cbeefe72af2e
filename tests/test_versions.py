"""The versions that a report of a bug gives."""

import sys

import numpy as np
import pytest

import xpnet as xn

pytestmark = pytest.mark.numpy_only


def test_the_versions_of_all_that_takes_part_are_shown(capsys, monkeypatch):
    monkeypatch.setenv("XPNET_KERNELS", "generic")
    xn.show_versions()
    rows = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert rows["xpnet"] == xn.__version__
    assert (rows["numpy"], rows["python"]) == (np.__version__, sys.version.split()[0])
    assert rows["XPNET_KERNELS"] == "generic"
    assert "thread" in rows.get("BLAS", "threads")


def test_without_threadpoolctl_the_rest_is_shown(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "threadpoolctl", None)
    xn.show_versions()
    out = capsys.readouterr().out
    assert "BLAS" not in out
    assert "numpy" in out
