"""Settings: the constructor's arguments of a layer, loss, optimizer or schedule, for `repr`, copies and files."""

import copy
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from inspect import Signature

REQUIRED = object()
TAKES_ARGUMENTS = 0x04  # the bit in `co_flags` of a function with *args
TAKES_KEYWORDS = 0x08  # and of one with **kwargs


class FullSignature:
    """A class's `__signature__`, for `help`: **kwargs are replaced by the keywords of the base that takes them."""

    def __get__(self, thing: object, cls: type) -> "Signature | None":
        init: Any = cls.__init__  # type: ignore[misc]  # of this class, not of a subclass
        if thing is not None or not _flags(cls) & TAKES_KEYWORDS:
            return None
        from inspect import Parameter, signature

        of_init = signature(init)
        parameters = [p for p in list(of_init.parameters.values())[1:] if p.kind is not Parameter.VAR_KEYWORD]
        names = {p.name for p in parameters}
        more = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=Parameter.empty if default is REQUIRED else default)
            for name, default in defaults(cls).items()
            if name not in names
        ]
        return of_init.replace(parameters=[*parameters, *more])


class Configured:
    """The base class of classes that keep each argument of the constructor as an attribute of the same name."""

    __signature__ = FullSignature()

    @classmethod
    def _describes(cls, name: str, *methods: str) -> bool:
        """Whether the class attribute `name` describes these methods: no subclass of its class overrides them."""
        place, *others = (next(i for i, c in enumerate(cls.__mro__) if each in vars(c)) for each in (name, *methods))
        return all(place <= other for other in others)

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments by name."""
        return {name: getattr(self, name) for name in defaults(type(self))}

    def _arguments(self) -> tuple[Any, ...]:
        """Return the constructor's *args, which are kept under their name; () if it has none."""
        cls = type(self)
        return getattr(self, arguments_name(cls), ()) if takes_arguments(cls) else ()

    def __repr__(self) -> str:
        """Return the constructor's call: required arguments, and by keyword those that differ from the default."""
        arguments = [repr(value) for value in self._arguments()]
        for name, default in defaults(type(self)).items():
            value = repr(getattr(self, name, "?"))  # repr must not fail: error messages use it
            if default is REQUIRED:
                arguments.append(value)
            elif value != repr(default):
                arguments.append(f"{name}={value}")
        return f"{type(self).__name__}({', '.join(arguments)})"


class Adjustable(Configured):
    """The base class of optimizers, losses and schedules, whose settings scikit-learn's GridSearchCV can search."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return the settings by name; with `deep`, also those of a schedule, as in "learning_rate__factor"."""
        params = {name: getattr(self, name) for name in defaults(type(self)) if hasattr(self, name)}
        if deep:
            for name, value in list(params.items()):
                if isinstance(value, Adjustable):
                    params |= {f"{name}__{key}": inner for key, inner in value.get_params().items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set settings by the names of `get_params`, with the constructor's checks; return the object.

        Raises ValueError for an unknown name. An error changes nothing.
        """
        settings = self.get_params(deep=False)
        nested: dict[str, dict[str, Any]] = {}
        for key, value in params.items():
            name, _, inner = key.partition("__")
            if name not in settings:
                raise ValueError(f"Invalid parameter {name!r} for {self!r}. Valid parameters are: {list(settings)}.")
            if inner:
                nested.setdefault(name, {})[inner] = value
            else:
                settings[name] = value
        for name, given in nested.items():
            if not isinstance(settings[name], Adjustable):
                raise ValueError(f"{self!r}: {name} is {settings[name]!r}, which has no parameters {list(given)}.")
            settings[name] = copy.deepcopy(settings[name]).set_params(**given)
        vars(self).update(vars(type(self)(**settings)))
        return self

    def __sklearn_clone__(self) -> Self:  # also for a class that keeps its arguments under other names
        return copy.deepcopy(self)


def takes_arguments(cls: type) -> bool:
    """Whether the constructor takes *args."""
    return bool(_flags(cls) & TAKES_ARGUMENTS)


def arguments_name(cls: type) -> str:
    """Return the name of the constructor's *args."""
    code = cls.__init__.__code__  # type: ignore[misc]  # of this class, not of a subclass
    name: str = code.co_varnames[code.co_argcount + code.co_kwonlyargcount]
    return name


def _flags(cls: type) -> int:
    code = getattr(cls.__init__, "__code__", None)  # type: ignore[misc]  # of this class, not of a subclass
    return code.co_flags if code else 0


def defaults(cls: type) -> dict[str, Any]:
    """Return the constructor's arguments by name, with default or REQUIRED; with **kwargs also those of its bases."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        code = getattr(vars(base).get("__init__"), "__code__", None)
        if code is None:
            continue
        init = vars(base)["__init__"]
        names = code.co_varnames[1 : code.co_argcount]
        defaults = init.__defaults__ or ()
        arguments = dict(zip(names, [REQUIRED] * (len(names) - len(defaults)) + list(defaults), strict=True))
        keyword_only = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        arguments |= {name: (init.__kwdefaults__ or {}).get(name, REQUIRED) for name in keyword_only}
        found |= {name: default for name, default in arguments.items() if name not in found}
        if not code.co_flags & TAKES_KEYWORDS:
            break
    return found
