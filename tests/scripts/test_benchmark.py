"""The benchmark script runs its races and says what they came to; nothing here is timed."""

import argparse
import io
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest

from support import ROOT

pytestmark = pytest.mark.numpy_only

SCRIPTS = ROOT / "scripts"
QUICK = ("--turns", "1", "--steps", "1")


def run(*arguments, **environment):
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), *arguments]
    return subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)


def without(library, folder):
    """A PYTHONPATH on which the library cannot be imported."""
    (folder / f"{library}.py").write_text(f"raise ImportError('no {library} today')")
    return os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(SCRIPTS)


def test_a_race_is_in_the_table_the_json_and_the_picture(tmp_path):
    file, picture = tmp_path / "race.json", tmp_path / "race.png"
    done = run("mini", "--contestants", "xpnet", "plain", *QUICK, "--json", str(file), "--plot", str(picture))
    assert (done.returncode, done.stderr) == (0, "")
    out = json.loads(file.read_text())
    assert {"case", "machine", "dtype", "threads", "malloc", "turns", "steps", "versions", "absent"} <= out.keys()
    assert not out["tf32"]
    assert out["absent"] == {}
    (result,) = out["results"]
    assert (result["case"], result["batch"]) == ("mini", 32)
    xpnet, plain = result["contestants"]["xpnet"], result["contestants"]["plain"]
    np.testing.assert_allclose(xpnet["losses"], plain["losses"], rtol=1e-3)
    assert xpnet["losses"][4] < xpnet["losses"][0]
    assert xpnet["ratios"] == {"plain": xpnet["median"] / plain["median"]}
    assert len(xpnet["times"]) == 1

    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 100
    assert [line.split()[0] for line in lines[-2:]] == ["xpnet", "plain"]
    assert lines[-2].split()[1:] == [f"{xpnet['median']:,.3f}"] * 3 + [f"{xpnet['ratios']['plain']:.2f}"]
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["mini", "--contestants", "xpnet", "nobody"], r"'nobody' \(choose from .*xpnet.*products.*torch.*plain"),
        (["tiny"], "no case 'tiny'; choose from seed, mini, wide, cnn8, cnn28, cnn28s, gpt, large, batch, width,"),
        (["width:0"], "no case 'width:0'"),
        (["mini", "--turns", "0"], "0: it must be at least 1"),
        (["mini", "--plot", "nowhere/race.png"], "nowhere/race.png is a directory, or in one that is not there"),
        (["mini", "--plot", "race.txt"], "must end in .png"),
        (["memory", "--contestants", "plain"], "it takes neither --contestants nor --plot"),
        (["memory", "--predict"], "it does not take --predict"),
    ],
)
def test_what_it_cannot_do_is_refused_with_the_choices_named(scripts, monkeypatch, capsys, arguments, message):
    import benchmark

    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        benchmark.main()
    assert re.search(message, capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot", "nowhere/digits.png"], "argument --plot: nowhere/digits.png is a directory, or in one that is not"),
        (["--plot", "digits.txt"], "argument --plot: digits.txt must end in .png"),
        (["--save", "."], "argument --save: . is a directory"),
        (["--epochs", "0"], "argument --epochs: 0: it must be at least 1"),
        (["--model", "rnn"], "argument --model: invalid choice: 'rnn'"),
        (["--model", "cnn", "--tutorial"], "--tutorial has a model of its own: leave out --model"),
        (
            ["--source", "--tutorial"],
            "--tutorial trains on the images alone, without copies to make: leave out --source",
        ),
    ],
)
def test_the_digits_are_not_trained_for_a_file_that_cannot_be_written(scripts, monkeypatch, capsys, arguments, message):
    import train_digits

    monkeypatch.setattr(sys, "argv", ["train_digits.py", *arguments])
    with pytest.raises(SystemExit, match="2"):
        train_digits.main()
    out, err = capsys.readouterr()
    assert message in err
    assert not out


@pytest.mark.parametrize(
    ("model", "batch_size", "layer"),
    [
        ("mlp", 64, "Dense(64, 256"),
        ("cnn", 128, "Conv2d(48, 96, 3"),
        ("attention", 128, "MultiHeadAttention(32, 4"),
    ],
)
def test_each_model_of_the_digits_trains(scripts, monkeypatch, capsys, digits, model, batch_size, layer):
    import train_digits

    x, y = digits
    monkeypatch.setattr(train_digits.xn.data, "load_digits", lambda: (x[:90], y[:90]))
    monkeypatch.setattr(train_digits, "TRAIN", 60)
    monkeypatch.setattr(sys, "argv", ["train_digits.py", "--model", model, "--epochs", "1", "--backend", "numpy"])
    train_digits.main()
    out = capsys.readouterr().out
    assert layer in out
    assert f"540 images train in batches of {batch_size}, 30 validate" in out
    assert re.search(r"accuracy after: \d+\.\d% \(\d+ of 30 right\)", out)


def test_the_digits_train_to_the_same_bits_from_a_source_of_moved_copies(scripts, monkeypatch, tmp_path, digits):
    import train_digits

    x, y = digits
    monkeypatch.setattr(train_digits.xn.data, "load_digits", lambda: (x[:90], y[:90]))
    monkeypatch.setattr(train_digits, "TRAIN", 60)
    files = [tmp_path / "arrays", tmp_path / "source"]
    for file, more in zip(files, ([], ["--source"]), strict=True):
        arguments = ["train_digits.py", "--epochs", "1", "--backend", "numpy", "--save", str(file), *more]
        monkeypatch.setattr(sys, "argv", arguments)
        train_digits.main()
    one, two = (file.read_bytes() for file in files)
    assert one == two


def test_a_peer_that_is_not_installed_is_named_and_skipped(tmp_path):
    path = without("jax", tmp_path)
    done = run("depth:2", "--contestants", "jax", "plain", *QUICK, PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    *_, plain, absent = done.stdout.splitlines()
    assert plain.startswith("plain ")
    assert absent == "jax is left out: no jax today. To install it: pip install jax"

    done = run("depth:2", "--contestants", "xpnet-jax", *QUICK, PYTHONPATH=path)
    assert done.returncode == 1
    assert "nobody takes part" in done.stderr
    assert "pip install jax" in done.stderr


def test_a_contestant_without_the_layers_is_left_out(scripts, monkeypatch):
    import benchmark

    said = io.StringIO()
    monkeypatch.setattr(benchmark.signal, "signal", lambda *_: None)
    for name, case in ("plain", "image:8"), ("torch-channels-last", "context:8"):
        monkeypatch.setattr(sys, "stdout", said)
        benchmark.work(name, benchmark.cases.case(case), "float32", 1, "wall", predict=False)
    assert said.getvalue().splitlines() == [
        '{"absent": "it is for features, and these are images"}',
        '{"absent": "it is for images, and these are texts"}',
    ]


def test_an_older_blas_kernel_is_named_with_the_remedy(scripts, monkeypatch):
    from parts import benchmark_report as report

    monkeypatch.setattr(report, "blas_kernels", lambda environment: "Zen" if environment else "Haswell")
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    (first, second) = report.warnings(report.machine())
    assert first.startswith("Warning: OPENBLAS_CORETYPE has NumPy's BLAS run its kernels for Haswell; left to itself")
    assert second.endswith("Zen on this processor: unset OPENBLAS_CORETYPE")
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    assert report.warnings(report.machine()) == []
    monkeypatch.setattr(report, "blas_kernels", lambda environment: None)
    assert report.warnings(report.machine()) == [
        "Which kernels NumPy's BLAS runs is not known: pip install threadpoolctl"
    ]


def test_contestants_whose_losses_part_are_named(scripts):
    import benchmark

    losses = {"a": [2.0, 1.0], "b": [2.0, 1.0], "c": [2.0, 1.05], "without": None}
    benchmark.same_work(losses, rtol=0.1)
    with pytest.raises(SystemExit, match=r"not the same work(.|\n)*median \[2.0, 1.0\]\nc \[2.0, 1.05\]$"):
        benchmark.same_work(losses, rtol=0.01)


def test_products_are_the_references_of_who_does_more(tmp_path):
    file, path = tmp_path / "race.json", without("cupy", tmp_path)
    names = ("--contestants", "xpnet", "products", "products-cupy")
    done = run("width:64", *names, *QUICK, "--tf32", "--json", str(file), PYTHONPATH=path)
    assert (done.returncode, done.stderr) == (0, "")
    out = json.loads(file.read_text())
    assert out["tf32"]
    assert out["results"][0]["contestants"]["products"]["losses"] is None
    (absent,) = out["absent"].values()
    assert "products-cupy is left out: " + absent in done.stdout
    assert "no cupy today" in absent


def test_inference_is_timed_of_those_who_have_it(tmp_path):
    file = tmp_path / "race.json"
    done = run("width:64", "--predict", "--contestants", "xpnet", "products", *QUICK, "--json", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    out = json.loads(file.read_text())
    assert out["predict"]
    assert out["absent"] == {"products": "it only trains"}
    assert [*out["results"][0]["contestants"]] == ["xpnet"]
    assert "inference" in done.stdout
    assert "ms/batch" in done.stdout


@pytest.mark.parametrize(("tf32", "switch"), [(False, ["0", "0", "float32"]), (True, ["1", "1", "tensorfloat32"])])
def test_every_library_is_told_whether_it_may_multiply_in_tf32(scripts, monkeypatch, tf32, switch):
    import benchmark

    given = []
    monkeypatch.setattr(benchmark.subprocess, "Popen", lambda command, env, **pipes: given.append(env))
    alike = {"threads": None, "malloc": False, "dtype": "float32", "steps": None, "clock": "wall", "predict": False}
    options = argparse.Namespace(tf32=tf32, **alike)
    benchmark.start("large", "xpnet-cupy", options)
    names = "CUPY_TF32", "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", "JAX_DEFAULT_MATMUL_PRECISION"
    assert [given[0][name] for name in names] == switch


def test_columns_are_as_wide_as_their_names(scripts):
    from parts import benchmark_report as report

    ratios = {"jax": 1.0, "torch-compile-cuda": 0.25}
    results = {name: {"median": 1.0, "min": 1.0, "max": 1.0, "ratios": ratios} for name in ratios}
    _, head, *rows = report.contestants(results)
    assert head.split() == ["contestant", "median", "min", "max", *ratios]
    assert {len(row) for row in rows} == {len(head)}


def test_memory_adds_up():
    done = run("mini", "--worker", "memory", "--dtype", "float64", XPNET_KERNELS="generic")
    assert (done.returncode, done.stderr) == (0, "")
    out = json.loads(done.stdout)
    parameters = 8 * (64 * 128 + 3 * 128 + 128 * 64 + 3 * 64 + 64 * 10 + 10)
    activations = 8 * 32 * (64 + 3 * 128 + 3 * 64 + 10)
    assert list(out["parts"].values()) == [parameters, parameters, 2 * parameters, activations]
    assert out["sum"] == 4 * parameters + activations
    assert all(out["peaks"][fit] > out["sum"] / 2 for fit in ("shuffled", "unshuffled", "single batch"))


def test_a_study_has_a_row_for_each_size_and_a_cost_for_each_layer(scripts, tmp_path):
    from parts import benchmark_report as report

    def result(study, size):
        times = {"xpnet": 0.5 + 0.02 * size, "torch": 1 + 0.05 * size}
        contestants = {name: {"median": time, "ratios": {}} for name, time in times.items()}
        return {"case": f"{study}:{size}", "multiplications": 1e6 * size, "contestants": contestants}

    results = [result(study, size) for study in ("depth", "depth-at-batch-1") for size in (1, 2, 4)]
    slopes = report.per_layer(results)
    assert slopes == pytest.approx({"xpnet": 20.0, "torch": 50.0})
    assert report.per_layer(results[:3]) == {}

    setting = {"case": "depth", "dtype": "float32", "tf32": True, "threads": 1, "malloc": True, "turns": 2, "steps": 3}
    setting |= {"clock": "cpu", "predict": False}
    versions = {"numpy": np.__version__}
    out = setting | {"machine": report.machine(), "versions": versions, "results": results, "per_layer_us": slopes}
    text = report.text(out)
    assert "2 turns of 3 steps, 1 thread, processor time, TF32, malloc's thresholds raised" in text
    assert [line.split() for line in text.splitlines()].count(["4", "4.000", "0.580", "1.200"]) == 2
    assert "xpnet 20.0 µs, torch 50.0 µs" in text.replace("\n", " ")
    report.plot(out, tmp_path / "depth.png")
    assert (tmp_path / "depth.png").read_bytes().startswith(b"\x89PNG")
