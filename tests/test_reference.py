"""The reference: of every public name it tells the parameters, the errors and an example, and the examples run."""

import doctest
import inspect
import re
from xml.etree import ElementTree

import pytest

import xpnet as xn
from support import ROOT

pytestmark = pytest.mark.numpy_only

MODULES = "callbacks", "data", "estimators", "files", "initializers", "layers", "losses", "metrics", "ops", "optimizers"
METHODS = (
    "evaluate", "explain", "export_onnx", "fit", "initialize", "predict", "save", "set_params", "set_state", "summary",
    "to", "value_and_grad",
)  # fmt: skip


def public():
    """Every public name with what it stands for: functions, classes, and a network's methods."""
    found = {name: getattr(xn, name) for name in xn.__all__ if not inspect.ismodule(getattr(xn, name))}
    for folder in (*MODULES, "plots", "schedules"):
        module = getattr(xn, folder)
        found |= {f"{folder}.{name}": getattr(module, name) for name in module.__all__ if not hasattr(xn, name)}
    found |= {f"plots.{name}": getattr(xn.plots, name) for name in xn.plots.__all__}
    return found | {f"Sequential.{name}": getattr(xn.Sequential, name) for name in METHODS}


PUBLIC = public()


def documentation(thing):
    """What help shows of it: of a class its constructor's and its bases' as well."""
    kinds = [kind for kind in thing.__mro__ if kind.__module__.startswith("xpnet")] if inspect.isclass(thing) else []
    texts = [inspect.getdoc(thing), *(text for kind in kinds for text in (kind.__doc__, kind.__init__.__doc__))]
    return "\n".join(filter(None, texts))


def parameters(name, thing):
    """The names of its parameters, of an estimator those that scikit-learn's lacks."""
    if inspect.isclass(thing) and issubclass(thing, BaseException):
        return []
    names = [parameter for parameter in inspect.signature(thing).parameters if parameter not in ("self", "net")]
    if name.startswith("estimators."):
        names = [each for each in names if each not in OF_SKLEARN]
    return names


OF_SKLEARN = set(inspect.signature(__import__("sklearn.neural_network").neural_network.MLPClassifier).parameters)


def missing(what):
    return [name for name, thing in PUBLIC.items() if what(name, thing)]


def test_every_parameter_is_told_of():
    untold = {
        name: told
        for name, thing in PUBLIC.items()
        if (told := [p for p in parameters(name, thing) if not re.search(rf"\b{p}\b", documentation(thing))])
    }
    assert untold == {}


def test_what_can_be_refused_says_with_which_error():
    assert missing(lambda name, thing: parameters(name, thing) and "Error" not in documentation(thing)) == []


def test_everything_has_an_example():
    parser = doctest.DocTestParser()
    assert missing(lambda name, thing: not parser.get_examples(inspect.getdoc(thing) or "")) == []


@pytest.mark.parametrize("name", PUBLIC)
def test_the_example_runs(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    text = inspect.getdoc(PUBLIC[name]) or ""
    test = doctest.DocTestParser().get_doctest(text, {"xn": xn}, name, None, None)
    said = []
    doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
    assert "".join(said) == ""


def test_formulas_are_typeset(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from parts import formulas

    table = ElementTree.fromstring(formulas.as_table("forward:   y  = (x - μ) / √(v + eps)     (N, D)"))
    assert [cell.text for cell in table.iter() if cell.tag in ("th", "td")] == ["forward", None, "(N, D)"]
    (fraction,) = table.iter("mfrac")
    assert ["".join(part.itertext()) for part in fraction] == ["x−μ", "v+eps"]  # without the brackets around them
    typeset = set()
    for name, thing in PUBLIC.items():
        for block in filter(formulas.is_formulas, re.split(r"\n\s*\n", inspect.getdoc(thing) or "")):
            maths = ElementTree.fromstring(formulas.as_table(block)).iter("math")
            assert not re.search("[_{}√]", "".join("".join(each.itertext()) for each in maths)), name
            typeset.add(name)
    assert {"Dense", "Conv2d", "SoftmaxCrossEntropy", "AdamW", "WarmUp"} <= typeset
