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
    """An array's dtype, shape and SHA-256, block by block."""
    import hashlib

    shape, digest = tuple(a.shape), hashlib.sha256()
    for rows in blocks(shape) if shape and 0 not in shape else [slice(None)]:
        block = to_numpy(a[rows, ...] if shape else a)
        digest.update(np.ascontiguousarray(block).data)
    return f"{block.dtype} {shape} {digest.hexdigest()[:16]}"


def own_code(value: object) -> str:
    """A digest of the user's code in `value`, with its defaults, closures, settings and globals; "" if there is none.

    It is the same in all processes of one version of Python, which it names.
    """
    walk = Walk()
    digest = walk.digest(value)
    return f"{digest}, Python {sys.version_info.major}.{sys.version_info.minor}" if walk.found else ""


class Walk:
    """A walk through values, functions and classes that visits each object once."""

    def __init__(self) -> None:
        self.found = False  # whether any code was the user's
        self.seen: dict[int, tuple[int, object]] = {}  # with the objects, so that ids are not reused

    def digest(self, value: object) -> str:
        import hashlib

        found = hashlib.sha256()
        for word in self.words(value):
            found.update(word.encode(errors="backslashreplace") + b"\0")
        return found.hexdigest()[:16]

    def element_digest(self, value: object) -> str:
        """A digest of an element of a set, independent of the order of elements."""
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
            yield hex(value)  # repr has a limit of digits
        elif kind is tuple:
            yield str(len(value))
            for each in value:
                yield from self.words(each)
        elif kind in (frozenset, set):  # their order differs between processes
            yield from sorted(map(self.element_digest, value))
        elif kind is types.CodeType:
            yield from self.words(code_of(value))
        elif id(value) in self.seen:
            yield f"again {self.seen[id(value)][0]}"
        else:
            self.seen[id(value)] = len(self.seen), value
            yield from self.words(self.parts(value))

    def parts(self, value: Any) -> tuple[Any, ...]:
        """The parts of an object that determine what it does."""
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
            own = tuple((name, a) for name, a in sorted(vars(value).items()) if not describes_class(name, a))
            return value.__qualname__, value.__bases__, own
        if isinstance(value, Configured):
            settings = tuple((name, getattr(value, name, None)) for name in (*defaults(type(value)), "layers"))
            return type(value), settings, self.own_attributes(value)
        wrapped = tuple((name, getattr(value, name)) for name in PARTS if hasattr(value, name))
        return type(value), getattr(value, "__name__", None), wrapped, self.own_attributes(value)

    def own_attributes(self, value: object) -> tuple[tuple[str, Any], ...]:
        """The attributes of an object of a user's class, without a layer's arrays, which change in training."""
        if of_a_library(type(value).__module__):
            return ()
        return tuple((k, v) for k, v in getattr(value, "__dict__", {}).items() if k not in ("params", "state", "rng"))


def describes_class(name: str, attribute: object) -> bool:
    """Whether a class's attribute describes the class, such as its module, and does not determine what it does."""
    describes = name.startswith("__") and not hasattr(attribute, "__get__")
    return describes or name.startswith(("__annot", "_abc_")) or isinstance(attribute, types.GetSetDescriptorType)


def code_of(code: types.CodeType) -> tuple[Any, ...]:
    """The parts of a code object that determine what it does: not its place and the names of its variables."""
    counts = code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount, code.co_flags
    arguments = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    return code.co_code, code.co_consts, code.co_names, arguments, counts, code.co_exceptiontable


def global_names(code: types.CodeType) -> set[str]:
    """The global names that a function's code, with the functions in it, looks up."""
    import dis

    names = {i.argval for i in dis.get_instructions(code) if i.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    return names.union(*(global_names(each) for each in code.co_consts if isinstance(each, types.CodeType)))


def contents(cell: types.CellType) -> Any:
    """The value in a closure's cell; the cell of a name that is not bound yet is empty."""
    try:
        return cell.cell_contents
    except ValueError:
        return "nothing yet"


@functools.cache
def of_a_library(module: str | None) -> bool:
    """Whether a module is of xpnet, the standard library or an installed package."""
    from pathlib import PurePath  # slow to import

    top = (module or "").partition(".")[0]
    if top in sys.stdlib_module_names or top == __name__.partition(".")[0]:
        return True
    file = getattr(sys.modules.get(module or ""), "__file__", None)
    installed = file is not None and not {"site-packages", "dist-packages"}.isdisjoint(PurePath(file).parts)
    return installed and top != "__main__"
