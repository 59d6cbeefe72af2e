"""The script that trains on a text learns it, writes, goes on where it stopped, and says what is wrong with a file."""

import json
import re
import sys

import numpy as np
import pytest

import xpnet as xn
from support import ROOT
from xpnet.training.run import Run

pytestmark = pytest.mark.numpy_only

TEXT = "a quick brown fox jumps over the lazy dog; " * 40
SMALL = [
    "--layers",
    "1",
    "--heads",
    "2",
    "--features",
    "16",
    "--context",
    "8",
    "--batch-size",
    "8",
    "--backend",
    "numpy",
]


@pytest.fixture
def script(monkeypatch, tmp_path, capsys):
    """The script, called with arguments in an empty folder: what it printed."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import train_text

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text").write_text(TEXT, encoding="utf-8")

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["train_text.py", *map(str, arguments)])
        train_text.main()
        return capsys.readouterr().out

    run.module = train_text
    return run


def test_it_learns_a_text_and_writes_it_from_the_file_that_it_saved(script, tmp_path):
    said = script("text", *SMALL, "--steps", 300, "--learning-rate", 0.01, "--save", "net.st", "--plot", "losses.png")
    loss = float(said.partition("validation loss ")[2].split()[0])
    assert loss < 0.3  # after each eight characters but two or three the next is certain
    assert (tmp_path / "losses.png").stat().st_size > 5000
    assert json.loads((tmp_path / "net.st.characters.json").read_text()) == "".join(sorted(set(TEXT)))
    how = ["--backend", "numpy", "--load", "net.st", "--sample", 60, "--prompt", "a quick ", "--temperature", 0.01]
    assert script(*how) == TEXT[:68] + "\n"


def test_without_a_file_it_reads_the_prose_that_comes_with_python(script):
    said = script(*SMALL, "--steps", 2, "--sample", 5)
    words = script.module.text_of(None)
    assert f"{len(words):,} characters" in said
    assert words.count("Python") > 100


def test_a_run_that_is_cut_off_resumes_to_the_same_network(script, tmp_path, monkeypatch):
    def parameters(file):
        return xn.load(tmp_path / file).params

    script("text", *SMALL, "--steps", 200, "--dropout", 0.1, "--save", "whole.st")

    class StopError(Exception):
        pass

    end_epoch = Run.end_epoch

    def stop(run):
        end_epoch(run)
        if run.epoch == 2:
            raise StopError

    with monkeypatch.context() as patch:
        patch.setattr(Run, "end_epoch", stop)
        with pytest.raises(StopError):
            script("text", *SMALL, "--steps", 200, "--dropout", 0.1, "--checkpoint-dir", "run")
    resumed = ["text", *SMALL, "--steps", 200, "--dropout", 0.1, "--checkpoint-dir", "run", "--resume"]
    said = script(*resumed, "--save", "two.st")
    assert re.search(r"trained in [\d.]+ s: 100 steps after 100 before, ", said)
    for name, a in parameters("whole.st").items():
        np.testing.assert_array_equal(a, parameters("two.st")[name])
    assert "\n200 steps before, " in script(*resumed)
    with pytest.raises(ValueError, match="go on from it with --resume, or choose another folder"):
        script(*resumed[:-1])


BAD = {
    "no text": (b"\x89PNG\xff\xfe", [], "is no text in UTF-8: byte 0 is 0x89; convert it"),
    "short": (b"too short", [], "bad has 9 characters, and a context of 8 needs at least 90"),
    "heads": (TEXT.encode(), ["--heads", 3], "16 features do not divide by 3 heads"),
    "dropout": (TEXT.encode(), ["--dropout", 1.5], "Dropout: rate"),
    "prompt": (TEXT.encode(), ["--sample", 1, "--prompt", "aß"], "'ß' is not among the 28 characters"),
}


@pytest.mark.parametrize("bad", BAD)
def test_what_it_cannot_take_is_told(script, tmp_path, bad):
    content, options, words = BAD[bad]
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(ValueError, match=words):
        script("bad", *SMALL, *options)


def test_a_network_without_its_alphabet_is_refused(script, tmp_path):
    how = ["--backend", "numpy", "--load", "net.st", "--sample", 1]
    with pytest.raises(ValueError, match=r"there is no net\.st\.characters\.json beside it"):
        script(*how)
    (tmp_path / "net.st.characters.json").write_text('"abc"')
    xn.Sequential(xn.Embedding(4, 2)).initialize().save("net.st")
    with pytest.raises(ValueError, match=r"characters\.json is not the alphabet of net\.st"):
        script(*how)


def test_options_that_do_not_go_together_are_refused(script, capsys):
    for options, words in (
        (["--load", "net.st"], "--load needs --sample N"),
        (["text", "--resume"], "--resume needs --checkpoint-dir DIR"),
        (["text", "--temperature", "0"], "it must be above 0 and finite"),
        (["text", "--steps", "0"], "it must be at least 1"),
        (["text", "--plot", "losses.txt"], "must end in .png, .svg or .pdf"),
    ):
        with pytest.raises(SystemExit):
            script(*options)
        assert words in capsys.readouterr().err
