"""Build the reference of everything public, with the guides: `nox -s docs`, or with pdoc installed

    python scripts/reference.py [FOLDER]

Each module's page has its guide, then its names: parameters, errors and an example of each, from the docstrings.
Warnings are errors, and so is a link that leads nowhere.
"""

import argparse
import functools
import inspect
import os
import re
import sys
import types
import warnings
from pathlib import Path
from types import ModuleType
from typing import Any

from parts.formulas import as_table, is_formulas

import xpnet

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (
    "backends", "callbacks", "data", "estimators", "files", "initializers", "kernels", "layers", "losses", "metrics",
    "ops", "optimizers", "plots", "schedules", "training",
)  # fmt: skip
GUIDES = ("backends", "kernels", "training")  # folders of which users read the guide alone
ALIGNED = re.compile(r"\S {2,}\S")  # parts that stand below one another


def as_markdown(text: str) -> str:
    """A docstring in Markdown: its formulas as tables, its examples in blocks of code."""
    text = re.sub(r"^([a-z_]+(?:, [a-z_]+)*) : ", r"- `\1`: ", inspect.cleandoc(text), flags=re.MULTILINE)
    blocks = re.split(r"\n\s*\n", text)
    return "\n\n".join(
        as_table(block)
        if is_formulas(block)
        else "\n".join("    " + line for line in block.splitlines())
        if block.startswith(">>>") or (ALIGNED.search(block) and not block.startswith("    "))
        else block
        for block in blocks
    )


def prepare(thing: Any, done: set[int]) -> None:
    """Bring the docstrings of a class or function, and of a class's methods and bases, into Markdown."""
    if id(thing) in done or not str(getattr(thing, "__module__", "")).startswith("xpnet"):
        return
    done.add(id(thing))
    if thing.__doc__:
        thing.__doc__ = as_markdown(thing.__doc__)
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            own = inspect.isfunction(member) or isinstance(member, property | functools.cached_property)
            if own and not member.__doc__ and name != "__init__":
                member.__doc__ = "@private"  # its base has it
        show_constructor(thing)
        for member in [*vars(thing).values(), *thing.__bases__]:
            if inspect.isfunction(member) or inspect.isclass(member):
                prepare(member, done)


def show_constructor(kind: type) -> None:
    """Give a class a constructor of its own, with the keywords that it passes on to its bases'."""
    own_bases = [base for base in kind.__mro__ if base.__module__.startswith("xpnet")]
    inits: list[Any] = [init for base in own_bases if inspect.isfunction(init := vars(base).get("__init__"))]
    if not inits:
        return
    given = inspect.signature(kind).parameters.values()
    own = types.FunctionType(inits[0].__code__, inits[0].__globals__, "__init__", None, inits[0].__closure__)
    own.__defaults__, own.__kwdefaults__ = inits[0].__defaults__, inits[0].__kwdefaults__  # of which `repr` is made
    own.__qualname__, own.__module__ = f"{kind.__qualname__}.__init__", kind.__module__
    own.__doc__ = next(filter(None, (init.__doc__ for init in inits)), "@public")
    me = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    own.__signature__ = inspect.Signature([me, *given])  # type: ignore[attr-defined]
    kind.__init__ = own  # type: ignore[misc]


def with_images_from(folder: Path, guide: Path) -> str:
    """A guide's text, its pictures found from this folder."""
    place = lambda match: f"{match[1]}({os.path.relpath(guide.parent / match[2], folder)})"  # noqa: E731
    return re.sub(r"(!\[[^\]]*\])\(([^)]+)\)", place, guide.read_text(encoding="utf-8"))


def prepare_module(module: ModuleType, done: set[int]) -> None:
    """Bring a module's docstrings into Markdown, and its guide to the head of its page."""
    assert module.__file__ is not None
    folder = Path(module.__file__).parent
    guide = ROOT / "README.md" if module is xpnet else folder / "README.md"
    if guide.is_file() and (module is xpnet or module.__file__.endswith("__init__.py")):
        module.__doc__ = with_images_from(folder, guide).partition("\n")[2]  # the page has a title
    else:
        module.__doc__ = as_markdown(module.__doc__ or "")
    if module.__name__.rpartition(".")[2] in GUIDES:
        module.__all__ = []  # type: ignore[attr-defined]
    for name in getattr(module, "__all__", []):
        thing = vars(module)[name] = getattr(module, name)  # found there, not by the module's `__getattr__`
        prepare(thing, done)


def fix_links(page: Path, top: Path) -> None:
    """Have the guides' links to one another lead to their pages; an error for one that leads nowhere."""

    def fixed(match: re.Match[str]) -> str:
        link = match[1]
        if re.match(r"[a-z]+:|[#$]", link) or (page.parent / link.partition("#")[0]).is_file():
            return match[0]
        name = Path(link).parent.name
        if Path(link).name == "README.md" and (top / "xpnet" / f"{name}.html").is_file():
            up = "" if page.parent == top / "xpnet" else "xpnet/"
            return f'href="{up}{name}.html"'
        if any((folder / link).is_file() for folder in (ROOT, ROOT / "xpnet" / page.stem)):
            return f'title="{link}"'  # in the clone
        raise ValueError(f"{page.name}: {link} leads nowhere")

    page.write_text(re.sub(r'href="([^"]+)"', fixed, page.read_text(encoding="utf-8")), encoding="utf-8")


def main() -> None:
    """Build it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", nargs="?", type=Path, default=Path("site"), metavar="FOLDER", help="default: site")
    folder = parser.parse_args().folder
    import pdoc
    import pdoc.render

    warnings.simplefilter("error")
    modules, done = [xpnet, *(__import__(f"xpnet.{name}", fromlist=["*"]) for name in FOLDERS)], set[int]()
    for module in modules:
        prepare_module(module, done)
    pdoc.render.configure(
        docformat="markdown",
        include_undocumented=False,
        show_source=False,
        footer_text=f"xpnet {xpnet.__version__}",
        template_directory=ROOT / "scripts" / "parts",  # custom.css
    )
    names = [module.__name__ for module in modules if module.__name__.rpartition(".")[2] not in xpnet.__all__]
    pdoc.pdoc(*names, "!xpnet.plots.explanation", output_directory=folder)  # a function, and a file of that name
    pages = sorted(folder.rglob("*.html"))
    for page in pages:
        fix_links(page, folder)
    print(f"{len(pages)} pages in {folder}, the first {folder / 'xpnet.html'}")


if __name__ == "__main__":
    try:
        main()
    except ImportError as error:
        sys.exit(f"reference: {error}; pip install pdoc")
