"""Every program of the gallery runs, with few steps, and ends in its picture."""

import re

import pytest

from support import ROOT

pytestmark = pytest.mark.numpy_only

GALLERY = {path.stem: path for path in sorted((ROOT / "scripts" / "gallery").glob("*.py"))}
FEW = {"EPOCHS": 2, "STEPS": 20, "FOLDS": 2}


@pytest.mark.parametrize("name", GALLERY)
def test_it_ends_in_a_picture(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    import matplotlib.pyplot as plt

    program = GALLERY[name].read_text(encoding="utf-8")
    assert program.startswith("# %% [markdown]\n# # ")  # a notebook, to jupytext
    program, shortened = re.subn(rf"(?m)^({'|'.join(FEW)}) = \d+$", lambda m: f"{m[1]} = {FEW[m[1]]}", program)
    assert shortened
    try:
        exec(compile(program, GALLERY[name], "exec"), {"__name__": "__main__"})
    finally:
        plt.close("all")
    assert (tmp_path / f"{name}.png").stat().st_size > 10_000


def test_the_guide_lists_them_all():
    guide = (ROOT / "scripts" / "README.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `gallery/(\w+)\.py` \|", guide, re.M) == list(GALLERY)
