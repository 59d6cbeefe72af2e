"""The README and the guides run, say what they say, and name what is there."""

import copy
import re

import numpy as np
import pandas as pd
import pytest

import xpnet as xn
from support import ROOT

pytestmark = pytest.mark.numpy_only

GUIDES = {path.parent.name: path for path in sorted((*ROOT.glob("xpnet/*/README.md"), ROOT / "scripts/README.md"))}
TEXTS = {name: path.read_text(encoding="utf-8") for name, path in GUIDES.items()}
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(text):
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


(SHORT,) = blocks(README)
FIRST, REGRESSION, TABLE, BY_HAND, PIECES, COLUMNS = blocks(TEXTS["training"])
IMAGES, DIFFERENCES, LAYER, OUTPUT_SHAPE, GATED = blocks(TEXTS["layers"])
(EXPLANATION,) = blocks(TEXTS["plots"])
(CHECKPOINT,) = blocks(TEXTS["files"])
(ESTIMATOR,) = blocks(TEXTS["estimators"])


def test_the_first_example_is_short_and_better_than_logistic_regression(capsys):
    assert len(SHORT.strip().splitlines()) <= 12
    exec(SHORT, {})
    assert float(capsys.readouterr().out) > 0.94  # the last digits of a long training differ from machine to machine
    assert 90 <= len(README.splitlines()) <= 150


def test_every_guide_is_on_the_map_and_every_link_leads_somewhere():
    for name, text in ((None, README), *TEXTS.items()):
        folder = ROOT if name is None else GUIDES[name].parent
        links = re.findall(r"\]\(([^)#:]+)\)", text)
        assert [link for link in links if not (folder / link).is_file()] == [], name
    assert {f"{path.relative_to(ROOT).as_posix()}" for path in GUIDES.values()} <= {
        *re.findall(r"\]\(([^)]+)\)", README)
    }


@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_names_only_files_that_are_there(name):
    named = set(re.findall(r"`(?:scripts/)?(\w+\.(?:py|sh))[` ]", TEXTS[name]))
    places = GUIDES[name].parent, ROOT / "scripts", ROOT
    assert [file for file in named if not any((place / file).is_file() for place in places)] == []


def test_the_guide_of_layers_runs_and_has_them_all():
    scope = {}
    for block in IMAGES, DIFFERENCES:
        exec(block, scope)
    assert not [name for name in xn.layers.__all__ if f"`{name}`" not in TEXTS["layers"]]


def test_the_guide_of_estimators_makes_one():
    scope = {}
    exec(ESTIMATOR, scope)
    assert isinstance(scope["model"], xn.estimators.MLPClassifier)


def test_a_source_of_ones_own_trains_as_shown():
    scope = {"xn": xn}
    exec(PIECES, scope)
    np.testing.assert_allclose(scope["adder"].params["0.weight"], 1.0, atol=0.05)


def test_a_set_with_columns_gives_rows_as_shown():
    class DataSet:
        def __len__(self):
            return 5

        def __getitem__(self, rows):
            return {"label": np.arange(5)[rows], "pixels": np.ones((5, 2))[rows]}

    scope = {}
    exec(COLUMNS, scope)
    net = xn.Sequential(xn.Dense(2, 5)).initialize()
    history = net.fit(scope["Columns"](DataSet()), loss=xn.SoftmaxCrossEntropy(), optimizer=xn.Adam(0.01), batch_size=2)
    assert history.steps == 3


def test_the_training_guides_network_trains_on_the_digits(capsys):
    assert len(FIRST.strip().splitlines()) <= 12
    exec(FIRST, {})
    accuracy, shape = capsys.readouterr().out.split(maxsplit=1)
    assert float(accuracy) > 0.88
    assert shape.strip() == "(297, 10)"


def test_the_regression_explains_some_of_the_variance(capsys):
    assert len(REGRESSION.strip().splitlines()) <= 12
    exec(REGRESSION, {})
    name, share = capsys.readouterr().out.split()
    assert name == "R²"
    assert 0.3 < float(share) < 1


def test_a_table_of_words_and_numbers_is_learned_as_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng, prices = np.random.default_rng(0), {"Bonn": 3000, "Kiel": 2500, "Ulm": 2800}
    rows = [(int(rng.integers(30, 200)), int(rng.integers(1, 7)), city) for city in prices for _ in range(100)]
    lines = [f"{area},{rooms},{city},{area * prices[city] + 10_000 * rooms}" for area, rooms, city in rows]
    (tmp_path / "houses.csv").write_text("\n".join(["area,rooms,city,price", *lines]), encoding="utf-8")
    scope = {"xn": xn}
    exec(TABLE, scope)
    assert capsys.readouterr().out.startswith("[")
    assert scope["net"].evaluate(scope["x_val"], scope["y_val"], xn.MeanSquaredError(), metrics=["r2"])["r2"] > 0.95


def test_the_class_and_the_probabilities_are_had_as_told(capsys):
    scope = {}
    exec(FIRST, scope)
    accuracy = float(capsys.readouterr().out.split()[0])
    z, y = scope["net"].predict(scope["x"][1500:]), scope["y"][1500:]
    assert "`z.argmax(axis=1)` is the class" in TEXTS["training"]
    assert (z.argmax(axis=1) == y).mean() == pytest.approx(accuracy)
    np.testing.assert_allclose(xn.ops.softmax(z).sum(axis=1), 1, rtol=1e-5)


def test_the_run_with_a_checkpoint_starts_and_resumes_with_the_first_examples_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scope = {}
    losses = []
    for block in FIRST, CHECKPOINT, CHECKPOINT:
        exec(block.replace("epochs=100", "epochs=9"), scope)
        losses.append(scope["history"]["loss"])
    assert len(losses[1]) == 9
    assert losses[1] == losses[2]
    assert (tmp_path / "runs" / "a").is_dir()


def test_an_epoch_by_hand_is_an_epoch_of_fit(capsys):
    scope = {}
    exec(FIRST.replace("epochs=20", "epochs=1"), scope)
    twin = copy.deepcopy(scope["net"])
    exec(BY_HAND, scope)
    options = {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.Adam(learning_rate=0.01)}
    twin.fit(scope["x"], scope["y"], **options, batch_size=128, shuffle=False)
    arrays, expected = (net.params | net.state for net in (scope["net"], twin))
    for name, a in arrays.items():
        np.testing.assert_allclose(a, expected[name], rtol=1e-3, atol=1e-4, err_msg=name)


def test_a_step_is_explained_as_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("COLUMNS", "100")
    scope = {}
    exec(FIRST, scope)
    exec(EXPLANATION, scope)
    printed = capsys.readouterr().out.splitlines()
    shown = TEXTS["plots"].partition("Part of what it prints:\n\n```\n")[2].partition("```")[0].splitlines()
    start = printed.index("2  Sigmoid()    dx = dy y (1 - y)")
    rows = [line.split()[:2] for line in printed[start : start + len(shown)]]
    assert rows == [line.split()[:2] for line in shown]  # the numbers differ from machine to machine
    assert len(rows) == 5
    assert max(map(len, printed)) <= 100
    assert (tmp_path / "explanation.png").stat().st_size > 10_000
    net, x, y = (scope[name] for name in ("net", "x", "y"))
    _, gradients = net.value_and_grad(x[:3], y[:3], xn.SoftmaxCrossEntropy())
    for name, gradient in scope["explanation"].gradients.items():
        np.testing.assert_array_equal(gradient, gradients[name])
    formula = 'formula = "y = a x²", "dx = 2 a x dy, da = Σ x² dy"'
    assert f"`{formula}`" in TEXTS["plots"]
    exec(LAYER.replace("    def __init__", f"    {formula}\n\n    def __init__"), scope)
    own = xn.Sequential(scope["Scale"](64), xn.Dense(64, 10)).initialize()
    assert "0  Scale(64)    y = a x²" in str(own.explain(x[:3], y[:3], xn.SoftmaxCrossEntropy())).splitlines()


def test_what_other_libraries_users_look_for_is_had_as_told(capsys):
    scope = {"np": np}
    exec(FIRST.replace("epochs=20", "epochs=1"), scope)
    hidden = "xn.Sequential(*net.layers[:-1]).predict(x)"
    assert f"`{hidden}`" in TEXTS["training"]
    assert eval(hidden, scope).shape == (1797, 16)
    head = "xn.Sequential(*net.layers[:-1], xn.Dense(16, 5)).initialize()"
    assert f"`{head}`" in TEXTS["training"]
    transferred = eval(head, scope)
    assert transferred.predict(scope["x"]).shape == (1797, 5)
    assert transferred.params["0.weight"] is scope["net"].params["0.weight"]
    assert "`net.layers[0].trainable = False`" in TEXTS["training"]
    assert pd.DataFrame(scope["history"]).shape == (1, 3)


def test_a_layer_that_changes_the_shape_says_so_as_shown():
    scope = {}
    exec(f"def own(self):\n{OUTPUT_SHAPE}    return output_shape(self, ('N', 3))", scope)
    assert scope["own"](xn.Dense(3, 2)) == ("N", 2) == xn.Dense(3, 2).output_shape(("N", 3))


def test_the_block_of_ones_own_is_proved_and_kept(capsys, tmp_path):
    scope = {"xn": xn, "np": np}
    exec(GATED, scope)
    assert {"x", "dense.weight", "dense.bias"} == eval(capsys.readouterr().out).keys()
    net = xn.Sequential(scope["Gated"](4), xn.Dense(4, 2)).initialize()
    net.save(tmp_path / "net.safetensors")
    twin = xn.load(tmp_path / "net.safetensors", custom_layers=[scope["Gated"]])
    np.testing.assert_array_equal(twin(np.ones((3, 4))), net(np.ones((3, 4))))


def test_the_layer_of_ones_own_is_proved(capsys):
    scope = {}
    exec(LAYER, scope)
    assert {"x", "a"} == eval(capsys.readouterr().out).keys()

    wrong = LAYER.replace("return 2 * self", "return self")
    assert wrong != LAYER
    with pytest.raises(xn.GradientError, match="the gradient of x is wrong"):
        exec(wrong, {})


def test_every_picture_is_told_of():
    assert [name for name in xn.plots.__all__ if name != "training" and f"`{name}(" not in TEXTS["plots"]] == []


def test_the_tutorials_adam_is_ours_with_other_settings():
    """As the table in the guide to the scripts says: dividing by 1 - beta at every step."""
    beta1, beta2, rate, eps = 0.9, 0.999, 0.001, 1e-8
    root = (1 - beta2) ** 0.5
    ours = xn.Adam(rate * root / (1 - beta1), eps=eps * root, bias_correction=False)
    w = theirs = np.linspace(-1, 1, 7)
    slots, m, v = ours.init(w), 0, 0
    for step in range(20):
        g = np.sin(step + theirs)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        theirs = theirs - rate * (m / (1 - beta1)) / (np.sqrt(v / (1 - beta2)) + eps)
        w, slots = ours.update(w, np.sin(step + w), slots)
    np.testing.assert_allclose(w, theirs, rtol=1e-12)
