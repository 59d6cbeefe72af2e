"""A layer, loss, optimizer or callback is one class, one line in its folder's list, and one row in each table here."""

import importlib
import pkgutil

import pytest

import xpnet as xn
from support import ROOT
from support.cases import CALLBACKS, LAYERS, LOSSES, OPTIMIZERS, SEQUENCES
from xpnet import callbacks, layers, losses, optimizers
from xpnet.files import load, onnx
from xpnet.losses.objective import Objective

pytestmark = pytest.mark.numpy_only

LISTS = {  # the module that has the list, and the class that those listed derive from
    "layers": (layers, xn.Layer),
    "losses": (losses, xn.Loss),
    "optimizers": (optimizers, xn.Optimizer),
    "callbacks": (callbacks, xn.Callback),
}
INNER = {Objective}  # made by fit, around the loss that it is given
GUIDES = {
    name: (ROOT / "xpnet" / name / "README.md").read_text(encoding="utf-8") for name in ("layers", "losses", "training")
}


def within(layer):
    """The names of the classes of a layer and of all those in it."""
    return {type(layer).__name__}.union(*(within(child) for child in getattr(layer, "layers", ())))


def with_formula(module, *methods):
    """The names of the listed classes that have a formula, their own or that of the class that has these methods."""
    kinds = {name: getattr(module, name) for name in module.__all__}
    return {name for name, kind in kinds.items() if kind.formula and kind._describes("formula", *methods)}


TABLES = {  # by list and by where a row is missing: the names that have one
    ("layers", "LAYERS or SEQUENCES in tests/support/cases.py"): set().union(
        *(within(make()) for make in [*LAYERS.values(), *(make for make, _ in SEQUENCES.values())])
    ),
    ("losses", "LOSSES in tests/support/cases.py"): {type(make()).__name__ for make, _, _ in LOSSES.values()},
    ("optimizers", "OPTIMIZERS in tests/support/cases.py"): {type(make()).__name__ for make in OPTIMIZERS.values()},
    ("callbacks", "CALLBACKS in tests/support/cases.py"): {type(make(ROOT)).__name__ for make in CALLBACKS.values()},
    ("layers", "OPERATORS in xpnet/files/onnx.py"): {cls.__name__ for cls in onnx.OPERATORS},
    ("layers", "the classes that xpnet/files/load.py builds"): set(load.known(None)),
    ("layers", "a `formula` of its forward and backward"): with_formula(layers, "forward", "backward"),
    ("losses", "a `formula` of its terms"): with_formula(losses, "terms"),
    **{
        (name, f"the tables of xpnet/{folder}/README.md"): {n for n in xn.__all__ if f"| `{n}(" in GUIDES[folder]}
        for name, folder in (
            ("layers", "layers"),
            ("losses", "losses"),
            ("optimizers", "training"),
            ("callbacks", "training"),
        )
    },
    **{(name, "xpnet.__all__"): set(xn.__all__) for name in LISTS},
}


@pytest.mark.parametrize("name", LISTS)
def test_every_class_is_in_its_folders_list(name):
    module, base = LISTS[name]
    files = [f"{module.__name__}.{file.name}" for file in pkgutil.iter_modules(getattr(module, "__path__", []))]
    own = {name: vars(importlib.import_module(name)) for name in [module.__name__, *files]}
    found, waiting = set(), [base]
    while waiting:
        waiting += (kinds := waiting.pop().__subclasses__())
        found |= {kind for kind in kinds if own.get(kind.__module__, {}).get(kind.__name__) is kind}
    listed = [getattr(module, each) for each in module.__all__]
    assert len(listed) == len(set(listed))
    bases = {base for kind in [*listed, xn.Sequential] for base in kind.__mro__[1:]}  # which are for deriving from
    missing = sorted(kind.__name__ for kind in found - {*listed} - bases - INNER if not kind.__name__.startswith("_"))
    assert not missing, f"__all__ of {module.__name__} lacks {missing}"
    assert {*listed} <= found


@pytest.mark.parametrize(("name", "table"), TABLES, ids=lambda key: key.replace(" ", "-"))
def test_every_listed_class_has_a_row(name, table):
    missing = [each for each in LISTS[name][0].__all__ if each not in TABLES[name, table]]
    assert not missing, f"{table}: no row for {missing}, listed in __all__ of xpnet.{name}"
