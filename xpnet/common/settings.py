"""Settings: what `repr`, copying and saving know of a layer, loss, optimizer or schedule."""

import copy
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from inspect import Signature

REQUIRED = object()
TAKES_ARGUMENTS = 0x04  # the flag of a function with *arguments
TAKES_KEYWORDS = 0x08  # the flag of a function with **keywords


class WrittenOut:
    """The `__signature__` of a class whose constructor hands **keywords on: with those of its bases, for `help`."""

    def __get__(self, thing: object, cls: type) -> "Signature | None":
        init: Any = cls.__init__  # type: ignore[misc]  # it is this very class's that is to be shown
        code = getattr(init, "__code__", None)
        if thing is not None or code is None or not code.co_flags & TAKES_KEYWORDS:
            return None
        from inspect import Parameter, signature

        own = signature(init)
        shown = [p for p in list(own.parameters.values())[1:] if p.kind is not Parameter.VAR_KEYWORD]
        names = {p.name for p in shown}
        more = [
            Parameter(name, Parameter.KEYWORD_ONLY, default=Parameter.empty if default is REQUIRED else default)
            for name, default in defaults(cls).items()
            if name not in names
        ]
        return own.replace(parameters=[*shown, *more])


class Configured:
    """A class that keeps its constructor's arguments under their own names; a user's own classes do the same."""

    __signature__ = WrittenOut()

    def settings(self) -> dict[str, Any]:
        """The constructor's arguments, by name."""
        return {name: getattr(self, name) for name in defaults(type(self))}

    def __repr__(self) -> str:
        """As one would write it: arguments without a default by position, others by name where they differ from it."""
        shown = []
        for name, default in defaults(type(self)).items():
            value = repr(getattr(self, name, "?"))  # repr must not fail: error messages are made of it
            if default is REQUIRED:
                shown.append(value)
            elif value != repr(default):
                shown.append(f"{name}={value}")
        return f"{type(self).__name__}({', '.join(shown)})"


class Adjustable(Configured):
    """Whose settings can be searched over, as by scikit-learn's GridSearchCV: an optimizer, a loss or a schedule."""

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The settings by name; with `deep`, also a schedule's, as in "learning_rate__factor"."""
        params = {name: getattr(self, name) for name in defaults(type(self)) if hasattr(self, name)}
        if deep:
            for name, value in list(params.items()):
                if isinstance(value, Adjustable):
                    params |= {f"{name}__{key}": inner for key, inner in value.get_params().items()}
        return params

    def set_params(self, **params: Any) -> Self:
        """Set settings, checked as the constructor checks them, by the names of `get_params`; returns the object.

        Raises ValueError for another name, and has then changed nothing.
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

    def __sklearn_clone__(self) -> Self:  # also of a class that keeps its arguments under other names
        return copy.deepcopy(self)


def takes_arguments(cls: type) -> bool:
    """Whether a constructor takes any number of arguments by position."""
    code = getattr(cls.__init__, "__code__", None)  # type: ignore[misc]  # this very class's
    return bool(code and code.co_flags & TAKES_ARGUMENTS)


def defaults(cls: type) -> dict[str, Any]:
    """A constructor's arguments by name, each with its default or REQUIRED; past **keywords, its base's as well."""
    found: dict[str, Any] = {}
    for base in cls.__mro__:
        code = getattr(vars(base).get("__init__"), "__code__", None)
        if code is None:
            continue
        init = vars(base)["__init__"]
        names = code.co_varnames[1 : code.co_argcount]
        defaults = init.__defaults__ or ()
        own = dict(zip(names, [REQUIRED] * (len(names) - len(defaults)) + list(defaults), strict=True))
        by_name = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
        own |= {name: (init.__kwdefaults__ or {}).get(name, REQUIRED) for name in by_name}
        found |= {name: default for name, default in own.items() if name not in found}
        if not code.co_flags & TAKES_KEYWORDS:
            break
    return found
