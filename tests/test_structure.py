"""What holds for the package as a whole: imports run downwards, one file knows the backends, importing is cheap."""

import ast
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import xpnet as xn
from support.processes import python
from xpnet.common.warn import warn

PACKAGE = Path(xn.__file__).resolve().parent
LIBRARIES = {"array_api_compat", "array_api_strict", "cupy", "torch", "jax"}
NAMING = ("backends.", "kernels.cuda.", "kernels.cpu.", "kernels.jit", "kernels.families")  # the modules that may


@pytest.fixture(scope="module")
def modules():
    """The package's modules, the tree of each by name."""
    paths = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
    assert {"__init__", "ops", "layers.dense"} <= paths.keys(), f"in {PACKAGE} there are only {list(paths)}"
    return {name: ast.parse(path.read_text()) for name, path in paths.items()}


def imports(modules):
    """Of each module those of the package that it imports anywhere, in functions and for type checkers too."""
    found = {name: set() for name in modules}
    for name, tree in modules.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level:
                package = name.split(".")[:-1]
                base = package[: len(package) + 1 - node.level] + (node.module or "").split(".")
                base = ".".join(filter(None, base))
                for alias in node.names:
                    full = f"{base}.{alias.name}".strip(".")
                    there = [n for n in (full, f"{full}.__init__", base, f"{base}.__init__") if n in modules]
                    found[name].add(there[0])
    return {name: others - {name, "__init__"} for name, others in found.items()}


@pytest.mark.numpy_only
def test_imports_go_round_in_no_circle(modules):
    left = imports(modules)
    assert sum(map(len, left.values())) > 200  # the walk does find them
    while free := [name for name, others in left.items() if not others & left.keys()]:
        left = {name: others for name, others in left.items() if name not in free}
    assert left == {}


@pytest.mark.numpy_only
def test_only_the_backends_and_kernels_name_a_library(modules):
    for name, tree in modules.items():
        if f"{name}.".startswith(NAMING):
            continue
        words = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                words |= {alias.name.partition(".")[0] for alias in node.names}
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                words.add(node.module.partition(".")[0])
        assert not words & LIBRARIES, name


@pytest.mark.numpy_only
def test_warnings_are_given_in_one_place_which_finds_the_users_line(modules):
    for name, tree in modules.items():
        asked = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not asked & {"warn", "warn_explicit"} or name == "common.warn", name


@pytest.mark.numpy_only
@pytest.mark.parametrize(("action", "times"), [("default", 2), ("module", 1), ("always", 6)])
def test_a_warning_is_shown_once_a_line_or_a_module_where_filters_say_so(action, times):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter(action)
        for _ in range(3):
            warn("the same", RuntimeWarning)
            warn("the same", RuntimeWarning)
    assert len(told) == times


@pytest.mark.numpy_only
def test_only_the_estimators_the_digits_and_the_names_of_scorers_take_from_scikit_learn(modules):
    for name, tree in modules.items():
        named = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
        named |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        if any(module.partition(".")[0] == "sklearn" for module in named):
            assert name in ("data", "callbacks.watching") or name.startswith("estimators."), name


@pytest.mark.numpy_only
def test_the_estimators_say_what_they_need_where_scikit_learn_is_not():
    program = "import sys; sys.modules['sklearn'] = None; import xpnet.estimators"
    failed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "ImportError: xpnet.estimators needs scikit-learn: pip install scikit-learn threadpoolctl" in failed.stderr


@pytest.mark.numpy_only
def test_importing_xpnet_imports_nothing_heavy():
    program = "import sys, xpnet; print(*{m.partition('.')[0] for m in sys.modules})"
    loaded = set(subprocess.check_output([sys.executable, "-c", program], text=True).split())
    assert "xpnet" in loaded
    assert not loaded & (LIBRARIES | {"sklearn", "matplotlib", "scipy", "tqdm", "safetensors"})


@pytest.fixture(scope="module")
def names_taken_from_xp(modules):
    """Every attribute that the package's code asks of a namespace."""
    names = set()
    for tree in modules.values():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            of = node.value
            if (isinstance(of, ast.Name) and of.id == "xp") or (isinstance(of, ast.Attribute) and of.attr == "xp"):
                names.add(node.attr)
            if isinstance(of, ast.Call) and isinstance(of.func, ast.Name) and of.func.id == "namespace":
                names.add(node.attr)
    assert {"exp", "where"} <= names
    return names - {"Device", "__name__"}  # array_api_strict's own, and a module's


@pytest.mark.cupy_only
def test_every_name_taken_from_xp_exists_in_cupy(names_taken_from_xp):
    import array_api_compat.cupy as cupy_namespace

    assert [name for name in sorted(names_taken_from_xp) if not hasattr(cupy_namespace, name)] == []


def test_every_name_taken_from_xp_exists(names_taken_from_xp, xp):
    assert [name for name in sorted(names_taken_from_xp) if not hasattr(xp, name)] == []


@pytest.mark.numpy_only
def test_public_names_are_all_there():
    assert [name for name in xn.__all__ if not hasattr(xn, name)] == []
    assert len(set(xn.__all__)) == len(xn.__all__)


@pytest.mark.numpy_only
def test_type_checkers_see_the_names_that_are_there(modules):
    taken = [node for node in ast.walk(modules["__init__"]) if isinstance(node, ast.ImportFrom) and node.level]
    names = {alias.asname or (node.module, alias.name) for node in taken for alias in node.names}
    names |= {name for each in xn.LISTS for name in getattr(xn, each).__all__}
    assert names == {*dir(xn), *((module, "*") for module in xn.LISTS)}


@pytest.mark.numpy_only
def test_completion_shows_what_a_user_types():
    folders = ("callbacks", "estimators", "files", "layers", "losses", "optimizers")
    assert sorted(dir(xn)) == sorted([*xn.__all__, *folders, "__version__"])
    for name in (*folders, "data", "initializers", "metrics", "ops", "plots", "schedules"):
        module = getattr(xn, name)
        assert sorted(dir(module)) == sorted(module.__all__), name
        assert [each for each in module.__all__ if not hasattr(module, each)] == [], name
    with pytest.raises(AttributeError, match="module 'xpnet' has no attribute 'Dens'"):
        xn.Dens  # noqa: B018
    assert python("import xpnet\ntry: xpnet.Linear\nexcept AttributeError as e: print(e)").endswith("is xpnet.Dense")
    assert [here for here in xn.ELSEWHERE.values() if here not in xn.__all__] == []


@pytest.mark.numpy_only
@pytest.mark.parametrize("version", ["1.26.4", "2.0.2", "2.1.0", "2.10.0.dev0+git"])
def test_a_numpy_that_is_too_old_is_told_at_import(version):
    code = "import sys, numpy; numpy.__version__ = sys.argv[1]\ntry: import xpnet\nexcept ImportError as e: print(e)"
    told = f"xpnet needs NumPy 2.1 or later, found {version}: pip install -U numpy"
    assert python(code, version) == (told if version < "2.1" else "")


@pytest.mark.numpy_only
def test_importing_xpnet_imports_no_backend_and_no_extra():
    extras = (
        "cupy",
        "torch",
        "jax",
        "array_api_strict",
        "sklearn",
        "matplotlib",
        "scipy",
        "tqdm",
        "safetensors",
        "pandas",
    )
    assert python("import sys, xpnet; print(*sorted(set(sys.argv) & set(sys.modules)))", *extras) == ""
    assert python("import sys, xpnet; print('numpy' in sys.modules)") == "True"
