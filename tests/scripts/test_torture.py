"""The torture script: its short form holds, and each of its parts can fail."""

import re
import subprocess
import sys
import tracemalloc
from pathlib import Path

import pytest

import xpnet as xn
from support import ROOT
from xpnet.files import safetensors as container
from xpnet.training.run import Run

pytestmark = [
    pytest.mark.numpy_only,
    pytest.mark.skipif(sys.platform == "win32", reason="it kills by signals and limits processes as Unix does"),
]

SCRIPTS = ROOT / "scripts"


@pytest.fixture
def torture(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)
    import torture

    return torture


def test_the_short_form_holds():
    command = [sys.executable, "-W", "error", str(SCRIPTS / "torture.py"), "--short"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert list(lines) == ["mutations", "kills", "refusals", "resume"]
    refused = {kind: int(n.replace(",", "")) for kind, n in re.findall(r"(\w+), refused ([\d,]+)", lines["mutations"])}
    assert refused["flipped"] > 800
    assert refused["forged"] > 350
    assert refused["damaged"] > 250
    assert "nothing imported, started or opened" in lines["mutations"]
    assert lines["kills"].startswith("10 of 10 files sound")
    assert lines["refusals"].startswith("12 of 12 refused")
    assert lines["resume"].startswith("2 of 2 runs ended with the same bits in weights and history, after ")


def test_a_run_that_resumes_elsewhere_is_found(torture, tmp_path, monkeypatch):
    resume_from = Run.resume_from

    def forgetful(self, epoch, step, history, rng_state, *rest):
        resume_from(self, epoch, step, history, self.rng.bit_generator.state, *rest)

    monkeypatch.setattr(Run, "resume_from", forgetful)
    with pytest.raises(torture.BrokenPromise, match="the resumed run ended with other bits"):
        torture.resume(tmp_path, 10, 0)


def test_a_reader_that_skips_the_signature_is_found(torture, tmp_path, monkeypatch):
    read = container.read

    def lenient(path):
        arrays, metadata = read(path, signed=False)
        metadata.pop("sha256", None)
        return arrays, metadata

    monkeypatch.setattr(container, "read", lenient)
    with pytest.raises(torture.BrokenPromise, match="flipped by one bit: loaded"):
        torture.mutations(tmp_path, 1_000, 0)


def test_another_error_is_found(torture, tmp_path, monkeypatch):
    read = container.read
    networks = torture.networks()

    def fails(path):
        if fails.after:
            fails.after -= 1
            return read(path)
        raise KeyError("header")

    fails.after = len(networks)
    monkeypatch.setattr(container, "read", fails)
    with pytest.raises(torture.BrokenPromise, match=r"KeyError.'header'. instead of FormatError"):
        torture.mutations(tmp_path, 0, 0)


def test_a_reader_that_hoards_is_found(torture, tmp_path, monkeypatch):
    read = container.read
    monkeypatch.setattr(container, "read", lambda path: (bytearray(2**25), read(path))[1])
    with pytest.raises(torture.BrokenPromise, match="MiB more than twice the file's"):
        torture.mutations(tmp_path, 0, 0)
    assert not tracemalloc.is_tracing()


def test_an_import_a_program_and_a_process_are_found(torture):
    with torture.watched() as seen:
        with pytest.raises(ModuleNotFoundError):
            __import__("there_is_no_such_module")
        exec("1 + 1")
        subprocess.run([sys.executable, "-c", ""], check=True)
    subprocess.run([sys.executable, "-c", ""], check=True)  # outside, nothing is looked for
    events = [event.partition("(")[0] for event in seen]
    assert {"import", "exec", "compile", "subprocess.Popen"} <= set(events)
    assert events.count("subprocess.Popen") == 1


def test_a_writer_in_place_is_found(torture, tmp_path, monkeypatch):
    def write(path, arrays, metadata):
        path = Path(path)
        whole(path.with_suffix(".other"), arrays, metadata)
        with open(path, "wb") as file:
            file.write(path.with_suffix(".other").read_bytes())
        path.with_suffix(".other").unlink()

    whole = container.write
    monkeypatch.setattr(container, "write", write)
    with pytest.raises((torture.BrokenPromise, xn.FormatError)):
        torture.kills(tmp_path, 40, 0)
    with pytest.raises(torture.BrokenPromise):
        torture.refusals(tmp_path, 1, 0)
