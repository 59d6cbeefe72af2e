"""What tells two functions or objects of the same name apart: their code and the constants it uses.

Code of xpnet, of Python and of installed packages counts by its name alone.
"""

import functools
import sys
import types
from collections.abc import Iterator
from pathlib import PurePath
from typing import Any

import numpy as np

from ..backends import on_host
from ..common.settings import Configured, defaults

PARTS = ("__func__", "__self__", "__wrapped__", "fget", "fset", "fdel", "func", "args", "keywords")  # of a wrapper
PLAIN = (type(None), type(...), bool, float, complex, str, bytes)


def fingerprint(a: np.ndarray) -> str:
    """What tells an array from others: dtype, shape and SHA-256."""
    import hashlib

    return f"{a.dtype} {a.shape} {hashlib.sha256(np.ascontiguousarray(a).data).hexdigest()[:16]}"


def own_code(value: object) -> str:
    """A digest of the user's own code in `value`, of its defaults, closures, settings and the globals that it reads;
    "" where there is none. Equal in all processes of one version of Python, whose name it bears.
    """
    walk = Walk()
    digest = walk.digest(value)
    return f"{digest}, Python {sys.version_info.major}.{sys.version_info.minor}" if walk.found else ""


class Walk:
    """A walk through values, functions and classes, each function, class and object once."""

    def __init__(self) -> None:
        self.found = False  # whether any code was the user's own
        self.seen: dict[int, tuple[int, object]] = {}  # with the objects, or their ids might be given anew

    def digest(self, value: object) -> str:
        import hashlib

        found = hashlib.sha256()
        for word in self.words(value):
            found.update(word.encode(errors="backslashreplace") + b"\0")
        return found.hexdigest()[:16]

    def apart(self, value: object) -> str:
        """A digest of what is one of a set, the same whichever came before it."""
        walk = Walk()
        walk.seen = dict(self.seen)
        digest = walk.digest(value)
        self.found |= walk.found
        return digest

    def words(self, value: Any) -> Iterator[str]:
        kind = type(value)
        yield kind.__name__
        if kind in PLAIN:
            yield repr(value)
        elif kind is int:
            yield hex(value)  # repr has a limit
        elif kind is tuple:
            yield str(len(value))
            for each in value:
                yield from self.words(each)
        elif kind in (frozenset, set):  # in an order that differs from process to process
            yield from sorted(map(self.apart, value))
        elif kind is types.CodeType:
            yield from self.words(code_of(value))
        elif id(value) in self.seen:
            yield f"again {self.seen[id(value)][0]}"
        else:
            self.seen[id(value)] = len(self.seen), value
            yield from self.words(self.parts(value))

    def parts(self, value: Any) -> tuple[Any, ...]:
        """What an object consists of, as far as it matters."""
        if isinstance(value, types.ModuleType):
            return (value.__name__,)
        if isinstance(value, (list, dict)):
            return tuple(value.items() if isinstance(value, dict) else value)
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            a = on_host(value)
            return (a.tolist(),) if a.dtype.hasobject else (fingerprint(a),)
        if isinstance(value, types.FunctionType):
            if of_a_library(value.__module__):
                return value.__module__, value.__qualname__
            self.found = True
            cells = tuple(contents(cell) for cell in value.__closure__ or ())
            names = sorted(global_names(value.__code__) & value.__globals__.keys())
            read = tuple((name, value.__globals__[name]) for name in names)
            return value.__code__, value.__defaults__, value.__kwdefaults__, cells, read
        if isinstance(value, type):
            if of_a_library(value.__module__):
                return value.__module__, value.__qualname__
            self.found = True
            own = tuple((name, a) for name, a in sorted(vars(value).items()) if not is_about(name, a))
            return value.__qualname__, value.__bases__, own
        if isinstance(value, Configured):
            settings = tuple((name, getattr(value, name, None)) for name in (*defaults(type(value)), "layers"))
            return type(value), settings, self.own_attributes(value)
        wrapped = tuple((name, getattr(value, name)) for name in PARTS if hasattr(value, name))
        return type(value), getattr(value, "__name__", None), wrapped, self.own_attributes(value)

    def own_attributes(self, value: object) -> tuple[tuple[str, Any], ...]:
        """The attributes of an object of the user's own class; a layer's arrays are its training's, not its own."""
        if of_a_library(type(value).__module__):
            return ()
        return tuple((k, v) for k, v in getattr(value, "__dict__", {}).items() if k not in ("params", "state", "rng"))


def is_about(name: str, attribute: object) -> bool:
    """Whether a class's attribute tells something of the class, such as its module, and is no part of what it does."""
    told = name.startswith("__") and not hasattr(attribute, "__get__")
    return told or name.startswith(("__annot", "_abc_")) or isinstance(attribute, types.GetSetDescriptorType)


def code_of(code: types.CodeType) -> tuple[Any, ...]:
    """What a code object does, wherever it stands and whatever its variables are called."""
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return code.co_code, code.co_consts, code.co_names, arguments, counts, code.co_exceptiontable


def global_names(code: types.CodeType) -> set[str]:
    """The names that a function's code, and the functions within it, look up in its module."""
    import dis

    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(global_names(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def contents(cell: types.CellType) -> Any:
    """What a closure holds; an empty cell is of a name that is not bound yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return "nothing yet"


@functools.cache
def of_a_library(module: str | None) -> bool:
    """Whether a module is xpnet's, Python's own or of an installed package."""
    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    return (
        top != "__main__"
        and file is not None
        and not {"site-packages", "dist-packages"}.isdisjoint(PurePath(file).parts)
    )
