"""Digests of the user's code, which tell functions and objects of the same name apart.

Code of xpnet, of Python and of installed packages is identified by its name alone.
"""

import functools
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..backends import on_host
from ..common.settings import Configured, defaults
from .batches import blocks

PARTS = "__func__", "__self__", "__wrapped__", "fget", "fset", "fdel", "func", "args", "keywords"  # of wrappers
PLAIN = (type(None), type(...), bool, float, complex, str, bytes)


def fingerprint(a: Any, to_numpy: Callable[[Any], np.ndarray] = np.asarray) -> str:
    """Return an array's dtype, shape and SHA-256, computed block by block."""
    import hashlib

    shape, digest = tuple(a.shape), hashlib.sha256()
    for rows in blocks(shape) if shape and 0 not in shape else [slice(None)]:
        block = to_numpy(a[rows, ...] if shape else a)
        digest.update(np.ascontiguousarray(block).data)
    return f"{block.dtype} {shape} {digest.hexdigest()[:16]}"


def own_code(value: object) -> str:
    """Return a digest of the user's code in `value`, with its defaults, closures, settings and globals; "" for none.

    It is the same in all processes of one version of Python, and names that version.
    """
    walk = Walk()
    digest = walk.digest(value)
    return f"{digest}, Python {sys.version_info.major}.{sys.version_info.minor}" if walk.has_user_code else ""


class Walk:
    """A walk through values, functions and classes that visits each object once."""

    def __init__(self) -> None:
        self.has_user_code = False
        self.visited: dict[int, tuple[int, object]] = {}  # number and object by id; holding it keeps the id unique

    def digest(self, value: object) -> str:
        import hashlib

        digest = hashlib.sha256()
        for word in self.words(value):
            digest.update(word.encode(errors="backslashreplace") + b"\0")
        return digest.hexdigest()[:16]

    def element_digest(self, value: object) -> str:
        """Return a digest of an element of a set, independent of the order of elements."""
        walk = Walk()
        walk.visited = dict(self.visited)
        digest = walk.digest(value)
        self.has_user_code |= walk.has_user_code
        return digest

    def words(self, value: Any) -> Iterator[str]:
        kind = type(value)
        yield kind.__name__
        if kind in PLAIN:
            yield repr(value)
        elif kind is int:
            yield hex(value)  # repr refuses very long integers
        elif kind is tuple:
            yield str(len(value))
            for each in value:
                yield from self.words(each)
        elif kind in (frozenset, set):  # their order differs between processes
            yield from sorted(map(self.element_digest, value))
        elif kind is types.CodeType:
            yield from self.words(code_of(value))
        elif id(value) in self.visited:
            yield f"again {self.visited[id(value)][0]}"
        else:
            self.visited[id(value)] = len(self.visited), value
            yield from self.words(self.parts(value))

    def parts(self, value: Any) -> tuple[Any, ...]:
        """Return the parts of an object that determine what it does."""
        if isinstance(value, types.ModuleType):
            return (value.__name__,)
        if isinstance(value, (list, dict)):
            return tuple(value.items() if isinstance(value, dict) else value)
        if hasattr(value, "dtype") and hasattr(value, "shape"):
            a = on_host(value)
            return (a.tolist(),) if a.dtype.hasobject else (fingerprint(a),)
        if isinstance(value, (types.FunctionType, type)):
            if of_a_library(value.__module__):
                return value.__module__, value.__qualname__
            self.has_user_code = True
        if isinstance(value, types.FunctionType):
            cells = tuple(contents(cell) for cell in value.__closure__ or ())
            names = sorted(global_names(value.__code__) & value.__globals__.keys())
            global_values = tuple((name, value.__globals__[name]) for name in names)
            return value.__code__, value.__defaults__, value.__kwdefaults__, cells, global_values
        if isinstance(value, type):
            members = tuple((name, a) for name, a in sorted(vars(value).items()) if not describes_class(name, a))
            return value.__qualname__, value.__bases__, members
        if isinstance(value, Configured):
            settings = tuple((name, getattr(value, name, None)) for name in (*defaults(type(value)), "layers"))
            return type(value), settings, self.own_attributes(value)
        wrapped = tuple((name, getattr(value, name)) for name in PARTS if hasattr(value, name))
        return type(value), getattr(value, "__name__", None), wrapped, self.own_attributes(value)

    def own_attributes(self, value: object) -> tuple[tuple[str, Any], ...]:
        """Return the attributes of an object of a user's class, without a layer's arrays, which change in training."""
        if of_a_library(type(value).__module__):
            return ()
        return tuple((k, v) for k, v in getattr(value, "__dict__", {}).items() if k not in ("params", "state", "rng"))


def describes_class(name: str, attribute: object) -> bool:
    """Whether a class attribute, such as `__module__`, only describes the class and does not affect what it does."""
    describes = name.startswith("__") and not hasattr(attribute, "__get__")
    return describes or name.startswith(("__annot", "_abc_")) or isinstance(attribute, types.GetSetDescriptorType)


def code_of(code: types.CodeType) -> tuple[Any, ...]:
    """Return the parts of a code object that determine what it does: not its location or local variables' names."""
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return code.co_code, code.co_consts, code.co_names, arguments, counts, code.co_exceptiontable


def global_names(code: types.CodeType) -> set[str]:
    """Return the global names that a function's code looks up, including functions nested in it."""
    import dis

    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(global_names(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def contents(cell: types.CellType) -> Any:
    """Return the value in a closure's cell, "nothing yet" if its name is not bound yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return "nothing yet"


@functools.cache
def of_a_library(module: str | None) -> bool:
    """Whether a module belongs to xpnet, the standard library or an installed package."""
    from pathlib import PurePath  # slow to import

    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    installed = file is not None and not {"site-packages", "dist-packages"}.isdisjoint(PurePath(file).parts)
    return installed and top != "__main__"
