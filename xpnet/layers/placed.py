"""A chain of layers whose arrays are on one backend, in one dtype: their initialization, moves, assignment, summary."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from .. import ops
from ..backends import DTYPES, Array, Backend, backend_of, device_of, dtype_name, resolve
from ..common import checks
from ..common.checks import brief, flag, kind_of
from ..common.notebook import table
from ..common.publication import published
from .base import Layer, Shape, tree
from .container import Chain, Container, shapes_of

HEAD = "", "layer", "output shape", "parameters"  # of a summary
GAPS = 6  # spaces in all between a summary's four columns
NARROWEST = 16  # the least width of a summary's column of layers
NO_LEAST: Mapping[str, float] = {}
APART = (
    "the layers' arrays are not all on one backend and of one dtype: move those that differ, as in "
    'xn.Sequential(net.layers[-1]).to("numpy", dtype="float32")'
)


class DefaultDtype(str):
    """The type of `initialize`'s default dtype, to tell it from the same dtype given by a user."""


DEFAULT_DTYPE = DefaultDtype("float32")


class Table(str):
    """A str whose repr is the text itself, so that consoles and notebooks show it as `print` does."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Placed(Chain):
    """The base class of `Sequential`: a chain whose arrays are on one backend, in one dtype."""

    def __init__(self, *layers: Layer):
        super().__init__(*layers)
        self._placement: tuple[Backend, str] | None = None  # backend and dtype, once initialized
        self.rng = np.random.default_rng(0)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        vars(self).setdefault("_placement", vars(self).pop("_home", None))  # the name in pickles of earlier versions
        if self._placement is None:
            return
        backend = self._placement[0]
        for _, layer in self.leaves():  # pickle puts arrays on the library's current device
            for arrays in (layer.params, layer.state):
                if any(device_of(a) not in (backend.device, None) for a in arrays.values()):  # JAX's tracers have none
                    dict.update(arrays, {name: backend.asarray(a) for name, a in arrays.items()})

    # --- the layers in it -----------------------------------------------------------------------------------------

    def leaves(self) -> list[tuple[str, Layer]]:
        """Return the layers that hold no others, at any depth, each with its name."""
        return self._leaves()

    def parts(self) -> list[tuple[str, Layer]]:
        """Return the layers in sequence, each with its name: those of an inner Sequential one by one, but a layer that
        holds others and has a forward of its own as one.
        """
        return self._parts()

    # --- parameters and statistics --------------------------------------------------------------------------------

    def assign(self, params: Mapping[str, Array], state: Mapping[str, Array]) -> None:
        """Assign these arrays without copying, at once for other threads; layers that are not named keep theirs."""
        with published:
            self.assign_params(params)
            self.assign_state(state)

    def set_params(self, params: Mapping[str, Any]) -> None:
        """Copy in all parameters: finite arrays, NumPy's or the backend's, with the names and shapes of `params`.

        Raises ValueError or TypeError otherwise, and has then changed nothing.

        >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
        >>> net.set_params({"0.weight": [[1, 0, 0], [0, 1, 0]], "0.bias": [0, 0, 0]})
        >>> net.predict([[5.0, 7.0]])
        array([[5., 7., 0.]], dtype=float32)
        """
        self.assign_params(self._checked("set_params", params, self.params))

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Copy in all running statistics, the arrays by name in `state`, as `set_params` does with the parameters.

        Also raises ValueError for a negative variance, and for a counter that is not a whole number in its range.

        >>> net = xn.Sequential(xn.BatchNorm(2)).initialize()
        >>> net.set_state({"0.mean": [1, 2], "0.var": [3, 4]})
        >>> net.state["0.var"]
        array([3., 4.], dtype=float32)
        """
        self.assign_state(self._checked("set_state", state, self.state, self.least_entries()))

    def least_entries(self) -> dict[str, float]:
        """Return lower bounds of entries of the running statistics, by name."""
        return {f"{prefix}.{key}": least for prefix, layer in self.leaves() for key, least in layer.least_state.items()}

    def _checked(
        self, who: str, given: Mapping[str, Any], current: dict[str, Array], least: Mapping[str, float] = NO_LEAST
    ) -> dict[str, Array]:
        """Return copies of the given arrays on this backend, if they may replace the current ones."""
        backend = self.backend
        if not isinstance(given, Mapping):
            raise TypeError(f"{who}: expected a mapping from names to arrays, got {kind_of(given)}")
        if missing := current.keys() - given.keys():
            raise ValueError(f"{who}: {', '.join(sorted(missing))} missing; the names are {', '.join(current)}")
        if unknown := given.keys() - current.keys():
            raise ValueError(
                f"{who}: no {', '.join(sorted(map(str, unknown)))} in this network; the names are {', '.join(current)}"
            )
        copies = {}
        for name, old in current.items():
            with backend.scope():
                new = backend.adopt(f"{who}: {name}", given[name])
                if tuple(new.shape) != tuple(old.shape):
                    raise ValueError(f"{who}: {name} has shape {tuple(new.shape)}, expected {tuple(old.shape)}")
                if backend.xp.isdtype(old.dtype, "integral"):
                    check_whole(f"{who}: {name}", backend.to_numpy(new), dtype_name(old.dtype))
                copies[name] = backend.xp.astype(new, old.dtype)
                if not ops.all_finite(copies[name]):
                    raise ValueError(f"{who}: {name} has NaN or infinite entries")
                if name in least:
                    check_least(f"{who}: {name}", backend.to_numpy(copies[name]), least[name])
        return copies

    @property
    def parameter_count(self) -> int:
        """The number of entries of all parameters."""
        return sum(count(layer) for _, layer in self.leaves())

    def summary(self, input_shape: Sequence[int] | None = None) -> str:
        """Return a text table of the layers, with their settings, output shapes and numbers of parameters.

        `input_shape` is the shape of a row of x, without the batch, such as (3, 32, 32). Give it for a network that
        takes several, whose output shapes are not known otherwise. In a narrow terminal, long settings take several
        lines. Raises ValueError for a shape that the network cannot take.

        >>> xn.Sequential(xn.Dense(64, 10), xn.ReLU()).summary()
           layer          output shape  parameters
        ------------------------------------------
        0  Dense(64, 10)  (N, 10)              650
        1  ReLU()         (N, 10)                0
        ------------------------------------------
                                    650 parameters
        """
        import shutil

        rows = [HEAD, *self._rows(input_shape)]
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        columns = shutil.get_terminal_size((0, 0)).columns  # 0 if the output is not a terminal
        if 0 < columns < sum(widths) + GAPS:
            room = max(columns - GAPS - widths[0] - widths[2] - widths[3], NARROWEST)
            rows = [line for row in rows for line in wrapped(row, room)]
            widths[1] = max(len(row[1]) for row in rows)
        lines = [f"{a:>{widths[0]}}  {b:<{widths[1]}}  {c:<{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows]
        rule = "-" * len(lines[0])
        return Table("\n".join([lines[0], rule, *lines[1:], rule, self._counts().rjust(len(rule))]))

    def _counts(self) -> str:
        """Return the number of parameters, and of frozen ones if any, in words."""
        frozen = sum(count(layer) for _, layer in self.leaves() if not layer.trainable)
        return f"{self.parameter_count:,} parameters" + (f", {frozen:,} of them frozen" if frozen else "")

    def _rows(self, input_shape: Sequence[int] | None = None) -> list[tuple[str, str, str, str]]:
        """Return the cells of the summary, layer by layer."""
        if input_shape is not None:
            shape: Shape = ("N", *(checks.integer("summary: each of input_shape", n) for n in input_shape))
            self.output_shape(shape)
            return rows_of("", self, shape)
        shapes = [] if self.input_shape is None else shapes_of(self)
        return rows_of("", self, next((shape for shape in shapes if not self._misfit(shape)), None))

    def _repr_html_(self) -> str:
        """Return the summary as HTML for notebooks."""
        placement = self._find_placement()
        place = f"{placement[1]} on {placement[0].describe()}" if placement else "not initialized"
        caption = f"{self._counts()}, {place}"
        return table(HEAD, self._rows(), caption, left=2)

    # --- backend and dtype ------------------------------------------------------------------------------------------

    @property
    def backend(self) -> Backend:
        """The backend of the parameters. Raises RuntimeError before `initialize`."""
        if (placement := self._find_placement()) is None:
            raise RuntimeError(self._missing_arrays())
        return placement[0]

    @property
    def dtype(self) -> str:
        """The dtype of the parameters: "float32" or "float64"."""
        placement = self._find_placement()
        return "float32" if placement is None else placement[1]

    def _find_placement(self) -> tuple[Backend, str] | None:
        """Return the backend and dtype of the arrays; None if some are missing, or if they differ."""
        if self._placement is not None:
            return self._placement
        arrays = [*self.params.values(), *self.state.values()]
        placement = None if not arrays or self._undrawn() else placement_of(arrays)
        return None if placement is None or placement[1] is None else (placement[0], placement[1])

    def _undrawn(self) -> list[tuple[str, Layer]]:
        """Return the layers that still lack their arrays, each with its name."""
        bare = [(name, layer) for name, layer in self.leaves() if not (layer.params or layer.state)]
        return [(name, layer) for name, layer in bare if layer.param_shapes() or layer.state_shapes()]

    def _missing_arrays(self) -> str:
        """Return the error message for arrays that are missing or on different backends."""
        if not (self.params or self.state):
            return "this network has no parameters yet: call net.initialize(backend=...) first"
        if not (undrawn := self._undrawn()):
            return APART
        name, layer = undrawn[0]
        return (
            f"layer {name}, {layer!r}, has no parameters yet: net.initialize() draws what is missing and keeps the "
            "others'"
        )

    def initialize(
        self, backend: str | Backend | None = None, dtype: object = DEFAULT_DTYPE, seed: int | None = 0,
        device: Any = None, fresh: bool = False,
    ) -> Self:  # fmt: skip
        """Draw the parameters of layers that have none yet, place them on a backend, and return the network.

        `backend` is a name that `get_backend` takes (None: the default of `use_backend`), `dtype` is "float32" or
        "float64", and `device` is a device in the backend's own terms, such as "cuda:1". The numbers are drawn on the
        host in float64: the same `seed` gives the same network on every backend, and the same order of rows in `fit`.
        With None they differ each time.

        Layers that have parameters keep them where they are, and the others join them there. This puts a new head on
        a trained trunk: `Sequential(*net.layers[:-1], Dense(16, 5)).initialize()`. If all layers have parameters, they
        are drawn anew provided that nothing was trained, loaded or set since. `fresh=True` draws them anew in any case,
        also for other networks that share these layers; `net.clone().initialize(fresh=True)` spares those.

        Raises RuntimeError if training would be lost, BackendUnavailableError if there is no such backend or device,
        and ValueError for other wrong arguments.

        >>> net = xn.Sequential(xn.Dense(2, 3)).initialize("numpy", dtype="float64", seed=0)
        >>> net.params["0.weight"].dtype
        dtype('float64')
        """
        rng, shuffling, statistics = streams(seed)
        params, state = self.initial_params(rng), self.initial_state(statistics)
        self._check_drawn(params | state)
        kept: dict[str, Array] = {} if flag("initialize: fresh", fresh) else self.params | self.state
        if kept.keys() >= (names := params.keys() | state.keys()):
            if not all(layer.as_drawn for layer, _ in self._shares(params | state)):
                raise RuntimeError(
                    "initialize: this network has its parameters, and some were trained, loaded or set: "
                    "net.initialize(fresh=True) draws all anew, net.to(...) moves them"
                )
            kept = {name: a for name, a in kept.items() if name not in names}
        place, dtype = self._placement_with(kept, backend, device, dtype) if kept else (resolve(backend, device), dtype)
        params, state = ({k: a for k, a in new.items() if k not in kept} for new in (params, state))
        self.place(place, dtype, params, state)
        for layer, _ in self._shares(params | state):
            layer.as_drawn = True
        self.rng = shuffling
        return self

    def _placement_with(
        self, kept: dict[str, Array], backend: str | Backend | None, device: Any, dtype: object
    ) -> tuple[Backend, object]:
        """Return the backend and dtype of the kept arrays, for new ones. Raises ValueError if the arguments differ."""
        placement = placement_of(kept.values())
        if placement is None:
            raise ValueError(f"initialize: {APART}")
        place, kept_dtype = placement
        requested = place if backend is None and device is None else resolve(backend or place.name, device)
        with_device = device is not None or isinstance(backend, Backend)
        if requested.name != place.name or (with_device and requested.device not in (None, place.device)):
            raise ValueError(
                f"initialize: layers that have parameters have them on {place!r}, and {requested!r} is asked for: "
                "leave out backend and device, and move the network with net.to(...)"
            )
        if dtype is not DEFAULT_DTYPE and kept_dtype is not None and dtype_name(dtype) != kept_dtype:
            raise ValueError(
                f"initialize: layers that have parameters have them in {kept_dtype}, and dtype={dtype!r} is asked for: "
                "leave out dtype, and convert the network with net.to(backend, dtype=...)"
            )
        return place, kept_dtype or dtype

    def to(self, backend: str | Backend, device: Any = None, dtype: object = None) -> Self:
        """Move parameters and statistics to a backend, and return the network. On an error, nothing is moved.

        `backend` is a name or a Backend, `device` a device in its own terms. `dtype` is "float32", "float64" or None,
        which keeps it. Raises BackendUnavailableError or ValueError for a backend or device that does not exist.

        >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
        >>> net.to("numpy", dtype="float64").dtype
        'float64'
        """
        place, old = resolve(backend, device), self.backend
        with published.lock:
            both, drawn = (self.params, self.state), [layer for _, layer in self.leaves() if layer.as_drawn]
        params, state = ({k: old.to_numpy(a) for k, a in arrays.items()} for arrays in both)
        self.place(place, self.dtype if dtype is None else dtype, params, state)
        for layer in drawn:
            layer.as_drawn = True
        return self

    def place(self, backend: Backend, dtype: object, params: dict[str, Any], state: dict[str, Any]) -> None:
        """Move these NumPy arrays to the backend and assign them, the parameters as views of one vector.

        Raises ValueError for a dtype other than "float32" and "float64", and for entries that are not finite in it.
        """
        name = dtype_name(dtype)
        if name not in DTYPES:
            raise ValueError(f'Sequential: dtype must be "float32" or "float64", got {brief(dtype)}')

        arrays = {key: np.asarray(a) for key, a in (params | state).items()}
        with backend.scope():
            arrays = {key: a.astype(name if a.dtype.kind == "f" else a.dtype) for key, a in arrays.items()}  # copies
        if broken := [key for key, a in arrays.items() if not np.isfinite(a).all()]:
            raise ValueError(f"{', '.join(broken)}: NaN or infinite in {name}")
        placed = {}
        if params:
            flat = backend.asarray(np.concatenate([arrays[key].ravel() for key in params]), name)
            placed = dict(zip(params, ops.split(flat, [arrays[key].shape for key in params]), strict=True))
        self.assign_placed(backend, name, placed, {key: backend.asarray(arrays[key]) for key in state})

    def assign_placed(self, backend: Backend, dtype: str, params: dict[str, Array], state: dict[str, Array]) -> None:
        """Assign arrays that are already on this backend and in this dtype, without copies or checks."""
        with published:
            self._set_placement(backend, dtype)
            self.assign(params, state)

    def _set_placement(self, backend: Backend, dtype: str) -> None:
        for layer in tree(self):
            if isinstance(layer, Placed):
                layer._placement = backend, dtype


def check_network(who: str, net: object) -> None:
    """Raise TypeError for anything but a network, such as a single layer."""
    if not isinstance(net, Placed):
        raise TypeError(f"{who}: expected a network, xn.Sequential(...), got {brief(net)}")


def streams(seed: int | None) -> "tuple[np.random.Generator, ...]":
    """Return three generators from one seed: for parameters, for the order of rows, and for running statistics."""
    rng = np.random.default_rng(checks.seed("initialize: seed", seed))
    shuffling, statistics = rng.spawn(2)
    return rng, shuffling, statistics


def check_whole(name: str, a: np.ndarray, dtype: str) -> None:
    """Raise ValueError for entries that an integer dtype cannot hold."""
    with np.errstate(invalid="ignore"):
        integers = a.astype(dtype)
    if not np.array_equal(integers, a):
        limits = np.iinfo(dtype)
        raise ValueError(f"{name} has entries that are not whole numbers from {limits.min} to {limits.max}")


def check_least(name: str, a: np.ndarray, least: float) -> None:
    """Raise ValueError for entries below the lower bound of a statistic."""
    if a.min(initial=least) < least:
        raise ValueError(f"{name} has entries below {least:g}, expected at least that")


def rows_of(prefix: str, layer: Layer, shape: Shape | None) -> list[tuple[str, str, str, str]]:
    """Return the rows of a summary for a layer whose x has this shape. A chain has only the rows of its layers; other
    layers that hold some have a row of their own above those.
    """
    name = prefix.rstrip(".")
    if not layer._children() and not isinstance(layer, Container):
        frozen = "" if layer.trainable or not count(layer) else " (frozen)"
        return [(name, repr(layer), in_words(layer, shape), f"{count(layer):,}{frozen}")]
    parts = layer._parts(prefix)
    whole = [part for _, part in parts] == [layer]
    rows = [(name, type(layer).__name__, in_words(layer, shape), "")] if whole else []
    for key, child in layer._children().items():
        rows += rows_of(f"{prefix}{key}.", child, shape if isinstance(layer, Container) else None)
        if isinstance(layer, Chain) and shape is not None:
            shape = child.output_shape(shape)
    return rows


def wrapped(row: tuple[str, str, str, str], room: int) -> list[tuple[str, str, str, str]]:
    """Return a summary's row as several, with the layer wrapped to `room` characters."""
    import textwrap

    first, *more = textwrap.wrap(row[1], room, subsequent_indent="  ", break_on_hyphens=False)
    return [(row[0], first, row[2], row[3]), *(("", line, "", "") for line in more)]


def in_words(layer: Layer, input_shape: Shape | None) -> str:
    """Return the shape of a layer's output for a summary, with "?" for unknown sizes."""
    shape = None if input_shape is None else layer.output_shape(input_shape)
    return "?" if shape is None else f"({', '.join('?' if n is None else str(n) for n in shape)})"


def placement_of(arrays: Iterable[Array]) -> tuple[Backend, str | None] | None:
    """Return the backend of arrays, and the dtype of the floating ones (None without any); None if they differ."""
    backends = {backend_of(a) for a in arrays}
    dtypes = {name for a in arrays if (name := dtype_name(a.dtype)) in DTYPES}
    return (backends.pop(), next(iter(dtypes), None)) if len(backends) == 1 and len(dtypes) <= 1 else None


def count(layer: Layer) -> int:
    """Return the number of entries of a layer's parameters, also before it is initialized."""
    shapes = {name: tuple(a.shape) for name, a in layer.params.items()} or layer.param_shapes()
    return sum(map(math.prod, shapes.values()))
