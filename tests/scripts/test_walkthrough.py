"""The walk through the tutorial's network shows its images, formulas and numbers."""

import re
import sys

import numpy as np
import pytest

import xpnet as xn
from support import ROOT
from support.cases import tutorial_network

BACKENDS = [pytest.param(name, marks=getattr(pytest.mark, f"{name}_only")) for name in ("numpy", "torch")]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs the script with these arguments; its output in lines."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    monkeypatch.setenv("COLUMNS", "100")
    import walkthrough

    def main(*arguments):
        monkeypatch.setattr(sys, "argv", ["walkthrough.py", *arguments])
        walkthrough.main()
        return capsys.readouterr().out.splitlines()

    return main


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_three_images_pass_through_the_network(run, digits, backend):
    lines = run("--backend", backend, "--seed", "1")
    x, y = digits[0][13:16] * 16.0, digits[1][13:16]
    assert y.tolist() == [3, 4, 5]
    net = tutorial_network().initialize(backend, "float64", seed=1)
    value, _ = net.value_and_grad(x, y, xn.SoftmaxCrossEntropy(reduction="sum"))
    assert f"loss {float(value):.2f}" in lines
    assert "2  Sigmoid()    dx = dy y (1 - y)" in lines
    assert lines[0].startswith(" .=@#=:        =@ ")
    rows = [re.findall(r"[\d.]+", line) for line in lines[-3:]]
    assert [row[:2] for row in rows] == [["13", "3"], ["14", "4"], ["15", "5"]]
    p = np.array([row[2:] for row in rows], float)
    np.testing.assert_allclose(p[:, :-1].sum(axis=1), 1.0, atol=0.005)
    np.testing.assert_allclose(p[:, -1].sum(), float(value), atol=0.002)
    assert max(map(len, lines)) <= 100


@pytest.mark.numpy_only
def test_it_trains_first_and_draws_where_asked_to(run, tmp_path):
    lines = run("--backend", "numpy", "--steps", "200", "--plot", str(tmp_path / "walk.png"))
    (loss,) = (float(line.removeprefix("loss ")) for line in lines if line.startswith("loss "))
    assert loss < 4.0  # 7.1 untrained
    assert (tmp_path / "walk.png").read_bytes().startswith(b"\x89PNG")
    assert lines[-1] == f"picture in {tmp_path / 'walk.png'}"


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "walk.txt"], "argument --plot: walk.txt must end in .png"),
        (["--steps", "0"], "argument --steps: 0: it must be at least 1"),
    ],
)
def test_a_picture_or_a_number_of_steps_that_cannot_be_is_refused_first(run, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        run(*arguments)
    out, err = capsys.readouterr()
    assert message in err
    assert not out
