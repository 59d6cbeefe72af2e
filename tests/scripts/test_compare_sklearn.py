"""The script that compares with scikit-learn says what it measured; nothing here is timed."""

import json
import subprocess
import sys

import pytest

from support import ROOT

pytestmark = pytest.mark.numpy_only

SCRIPT = ROOT / "scripts" / "compare_sklearn.py"


def run(*arguments):
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True)


def test_the_table_has_scores_times_and_versions(tmp_path):
    file = tmp_path / "figures.json"
    done = run("wine", "--repeats", "1", "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    out = json.loads(file.read_text())
    assert {"Python", "NumPy", "scikit-learn", "xpnet"} <= out["versions"].keys()
    (row,) = out["results"]
    assert (row["data"], row["rows"], row["features"]) == ("wine", 178, 13)
    assert row["scores"]["xpnet"] == pytest.approx(row["scores"]["scikit-learn"], abs=1e-12)
    assert row["epochs"]["xpnet"] == row["epochs"]["scikit-learn"]
    assert row["time"] == pytest.approx(row["seconds"]["xpnet"] / row["seconds"]["scikit-learn"])
    assert f"| {row['scores']['xpnet']:.4f} | " in done.stdout
    assert f"scikit-learn {out['versions']['scikit-learn']}" in done.stdout


def test_a_data_set_that_is_not_there_is_refused():
    done = run("iris")
    assert done.returncode == 2
    assert "no data set 'iris'; there are digits, breast cancer, wine, diabetes, generated" in done.stderr
