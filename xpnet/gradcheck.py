"""Proof by numbers: derivatives against central differences, and one backend against another."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .backend import Array, Backend, backend_of, default_backend, is_array, on_host
from .checks import flag, two
from .layers.base import Layer
from .losses import Loss, on_encoded
from .network import Sequential
from .optimizers import SGD

STEP = float(np.finfo(np.float64).eps ** (1 / 3))  # where a central difference's truncation and rounding balance
ROUNDINGS = 2 * float(np.finfo(np.float64).eps)  # of a value, that a difference of two of them has at least
ZERO = 1e-3  # of the largest gradient's size: an array whose own is smaller has its error measured against this
CORNER = "; a corner lies there: if several units have theirs, move x a little"
HIDDEN = "; the value's rounding hides it: scale what is large in it"


class GradientError(AssertionError):
    """A derivative that is not its function's, or two backends that disagree: which array, entry, and numbers."""


Arrays = dict[str, np.ndarray]


def check_gradients(
    thing: Layer | Loss,
    x: Any,
    y: Any = None,
    loss: Loss | None = None,
    *,
    training: bool = True,
    tolerance: float = 1e-6,
    seed: int = 0,
) -> dict[str, float]:
    """Hold every derivative of `thing` against central differences in float64; returns the worst error by name.

    check_gradients(layer, x)              a layer or network: the derivatives of Σ dy·y, for a random dy
    check_gradients(net, x, y, loss)       a network with its loss
    check_gradients(loss, prediction, y)   a loss

    Names: "x" for the input, "prediction" for a loss's, and the parameters'. An error is relative to the largest entry
    of its array, or to a thousandth of the largest of all where that is more. At a corner, such as ReLU's at 0, any
    slope between the two sides' is right; where several units have theirs at one point, as in a row of zeros, a right
    sum may lie outside them, and the error says so. It says, too, where nothing can be told: the value, as with targets
    of millions, is so large beside its slopes that its rounding hides them. It works on copies; parameters not yet
    there are drawn from `seed` and moved off the ones and zeros that hide errors. Between forward and backward comes a
    forward of the same rows in another order, as evaluating in the middle of a step would. On JAX it sets
    `jax_enable_x64`, without which there is no float64.

    Raises GradientError for the worst entry above `tolerance`, for gradients whose names or shapes are not `params`'
    own, and for what writes into the arrays it is given.
    """
    if isinstance(thing, Layer):
        return _check_layer(thing, x, y, loss, flag("check_gradients: training", training), tolerance, seed)
    if isinstance(thing, type) or not hasattr(thing, "value_and_grad"):
        raise TypeError(f"check_gradients: expected a layer, a network or a loss, such as xn.ReLU(), got {thing!r}")
    if y is None:
        raise ValueError("check_gradients: a loss needs a target: check_gradients(loss, prediction, target)")
    backend = _backend_for(x)
    arrays = {"prediction": _host(x)}
    prediction = backend.asarray(_host(x), "float64")
    _, gradient = thing.value_and_grad(prediction, y)
    value_at = _loss_for(thing, y, prediction)

    def value(changed: Arrays) -> float:
        return value_at(backend.asarray(changed["prediction"], "float64"))

    _check_untouched(repr(thing), arrays, {"prediction": prediction})
    return _compare(repr(thing), value, arrays, {"prediction": gradient}, tolerance)


def _check_layer(
    layer: Layer, x: Any, y: Any, loss: Loss | None, training: bool, tolerance: float, seed: int
) -> dict[str, float]:
    if (y is None) != (loss is None):
        raise ValueError("check_gradients: give both a target and a loss, or neither")
    twin = layer.clone()
    rng = np.random.default_rng(seed)
    params = layer.params or {k: a + rng.normal(0.0, 0.1, np.shape(a)) for k, a in layer.initial_params(rng).items()}
    state = layer.state or layer.initial_state(rng)
    backend = _backend_for(next(iter(layer.params.values()), x))
    arrays = {"x": _host(x)} | {name: _host(a) for name, a in params.items()}
    placed = {name: backend.asarray(a.copy(), "float64") for name, a in arrays.items()}
    twin.assign_state({k: backend.asarray(_host(a, dtype=None)) for k, a in state.items()})

    def forward(changed: Arrays) -> tuple[Array, Any]:
        here = {
            name: placed[name] if a is arrays[name] else backend.asarray(a, "float64") for name, a in changed.items()
        }
        twin.assign_params({name: here[name] for name in params})
        return two(twin, "forward", twin.forward(here["x"], training))

    output, cache = forward(arrays)
    if loss is None:
        dy = backend.asarray(rng.standard_normal(output.shape), "float64")

        def value(changed: Arrays) -> float:
            return float(backend.xp.sum(dy * forward(changed)[0]))
    else:
        _, dy = loss.value_and_grad(output, y)
        value_at = _loss_for(loss, y, output)

        def value(changed: Arrays) -> float:
            return value_at(forward(changed)[0])

    given = {"dy": _host(dy)}
    forward(arrays | {"x": arrays["x"][::-1].copy()})  # who keeps what a call needs has lost the first one's now
    dx, grads = two(twin, "backward", twin.backward(dy, cache))
    _check_untouched(repr(layer), arrays | given, placed | {"dy": dy})
    if grads.keys() != params.keys():
        raise GradientError(f"{layer!r}: backward gives gradients {sorted(grads)}, the parameters are {sorted(params)}")
    for name, alone in twin.backward_params(dy, cache).items():  # which training calls where it needs no dx
        exact = _host(grads[name])
        if np.shape(alone) != exact.shape or _largest(_host(alone) - exact) > tolerance * _largest(exact):
            raise GradientError(f"{layer!r}: backward_params gives another gradient of {name} than backward")
    return _compare(repr(layer), value, arrays, {"x": dx} | grads, tolerance)


def _loss_for(loss: Loss, y: Any, prediction: Array) -> Callable[[Array], float]:
    """The loss as a function of predictions like this one alone: y is checked and encoded once."""
    target = loss.encode(y, prediction) if hasattr(loss, "encode") else y
    backend = backend_of(prediction)

    def value_at(prediction: Array) -> float:
        with backend.scope():
            return float(on_encoded(loss, prediction, target)[0])

    return value_at


def _check_untouched(who: str, given: Arrays, now: Mapping[str, Array]) -> None:
    """Refuse what writes into the arrays it is given, which the layers beside it have kept."""
    for name, array in given.items():
        if not np.array_equal(_host(now[name]), array, equal_nan=True):
            raise GradientError(f"{who} writes into {name}, an array that it was given; return a new one")


def _compare(
    who: str,
    value: Callable[[Arrays], float],
    arrays: Arrays,
    gradients: Mapping[str, Array],
    tolerance: float,
) -> dict[str, float]:
    """The worst relative error of each gradient; GradientError naming the worst of all if it is too large."""
    exact = {name: _host(gradients[name]) for name in arrays}
    for name, array in arrays.items():
        if exact[name].shape != array.shape:
            raise GradientError(f"{who}: the gradient of {name} has shape {exact[name].shape}, expected {array.shape}")
        if not np.isfinite(exact[name]).all():
            raise GradientError(f"{who}: the gradient of {name} has NaN or infinite entries")
    numeric = {name: _central_differences(value, arrays, name) for name in arrays}
    for name, slopes in numeric.items():
        if not np.isfinite(slopes).all():
            entry = np.argwhere(~np.isfinite(slopes))[0].tolist()
            raise GradientError(
                f"{who}: beside {name}'s entry {entry} the value is NaN or infinite; move {name} to where it is not"
            )
    if not math.isfinite(value(arrays)):
        raise GradientError(f"{who}: the value is NaN or infinite; move {' or '.join(arrays)} to where it is not")
    sizes = {name: _largest(exact[name], numeric[name]) for name in arrays}
    floor = ZERO * max(sizes.values())
    errors, remarks = {}, {}
    for name in arrays:
        scale = max(sizes[name], floor) or 1.0
        errors[name] = error = np.abs(exact[name] - numeric[name]) / scale
        for entry in map(tuple, np.argwhere(error > tolerance).tolist()):
            said = float(exact[name][entry])
            found = _slope(value, arrays, name, entry, tolerance * scale)
            off = max(found.low - said, said - found.high, 0.0)
            error[entry] = off / scale
            numeric[name][entry] = min(max(said, found.low), found.high)
            if found.low < found.high:
                remarks[name, entry] = "is wrong", CORNER
            elif off <= found.doubt:
                remarks[name, entry] = "cannot be told", HIDDEN
    report = {name: float(error.max(initial=0.0)) for name, error in errors.items()}
    worst = max(report, key=lambda name: report[name])
    if report[worst] > tolerance:
        entry = _worst_entry(errors[worst])
        verdict, hint = remarks.get((worst, entry), ("is wrong", ""))
        raise GradientError(
            f"{who}: the gradient of {worst} {verdict} at {list(entry)}: backward says {exact[worst][entry]:.9g}, "
            f"central differences {numeric[worst][entry]:.9g}, relative error {report[worst]:.2g} above "
            f"{tolerance:.2g}{hint}"
        )
    return report


def _central_differences(value: Callable[[Arrays], float], arrays: Arrays, name: str) -> np.ndarray:
    """(f(v + h) - f(v - h)) / 2h for every entry v of one array, h being STEP times v's size."""
    slopes = np.empty(arrays[name].shape)
    for entry in np.ndindex(slopes.shape):
        h = STEP * max(1.0, abs(float(arrays[name][entry])))
        low, high = _beside(value, arrays, name, entry, h)
        slopes[entry] = (high - low) / (2 * h)
    return slopes


def _beside(
    value: Callable[[Arrays], float], arrays: Arrays, name: str, entry: tuple[int, ...], h: float
) -> tuple[float, float]:
    """f(v - h) and f(v + h)."""
    moved = []
    for change in (-h, h):
        array = arrays[name].copy()
        array[entry] += change
        moved.append(value(arrays | {name: array}))
    return moved[0], moved[1]


class Slope(NamedTuple):
    """What a derivative lies between, two numbers at a corner only, and how far they may be off."""

    low: float
    high: float
    doubt: float


def _slope(value: Callable[[Arrays], float], arrays: Arrays, name: str, entry: tuple[int, ...], sure: float) -> Slope:
    """The slope at one entry, where a single step did not show it: from steps h of every size, each a quarter of the
    one before.

    The central difference D is off by its rounding, which grows as h shrinks, and by a multiple of h², which
    (16 D(h) - D(4h)) / 15 is free of (Richardson 1911). Of those the one counts that parts least from the two before
    it. In a smooth function the two sides' slopes close up as h shrinks; at a corner they do not, and where nothing
    else is `sure`, the derivative may be anything between them.
    """
    unit = 2.0 ** math.frexp(max(1.0, abs(float(arrays[name][entry]))))[1]  # v ± h are then exact
    middle = value(arrays)
    best = corner = none = Slope(0.0, 0.0, math.inf)
    difference = gap = math.nan
    slopes = [math.nan, math.nan]
    for h in (unit * 2.0**-k for k in range(5, 53, 2)):
        with np.errstate(all="ignore"):  # a large step may leave the function's domain
            low, high = _beside(value, arrays, name, entry, h)
        left, right = (middle - low) / h, (high - middle) / h
        rounding = ROUNDINGS * max(abs(low), abs(middle), abs(high)) / h
        before, difference = difference, (left + right) / 2
        wider, gap = gap, abs(right - left)
        slopes.append((16 * difference - before) / 15)
        doubt = max(abs(slopes[-1] - slopes[-3]), abs(slopes[-1] - slopes[-2]), rounding)
        smooth = gap <= wider / 2 + 2 * rounding
        if smooth and doubt < best.doubt:
            best = Slope(slopes[-1], slopes[-1], doubt)
        if gap > 16 * rounding:  # more than rounding makes of it
            if smooth:
                corner = none
            elif rounding <= sure and h <= STEP * unit:
                corner = Slope(min(left, right), max(left, right), rounding)
    return corner if best.doubt > sure >= corner.doubt else best


# --- one backend against another --------------------------------------------------------------------------------------


def compare_backends(
    net: Sequential,
    x: Any,
    y: Any,
    loss: Loss,
    backends: Sequence[str | Backend] = ("numpy", "cupy"),
    steps: int = 5,
    tolerance: float | None = None,
    learning_rate: float = 0.01,
) -> dict[str, float]:
    """Train copies of `net` side by side, full batch, plain gradient descent; returns the worst difference by name.

    After each step the loss, every gradient and every parameter of the other backends are held against the first's.
    A difference is relative to the largest of its kind, loss, gradients or parameters, not of its own array: the
    gradient of a bias under batch norm is zero, and only its rounding would be compared.
    `tolerance` None: 1e-10 in float64, 1e-4 in float32. Raises GradientError naming the first step and array
    that part by more.
    """
    tolerance = {"float64": 1e-10, "float32": 1e-4}[net.dtype] if tolerance is None else tolerance
    x, y = _host(x, dtype=None), _host(y, dtype=None)
    if isinstance(backends, str) or len(backends) < 2:
        raise ValueError(f"compare_backends: give at least two backends, got {backends!r}")
    twins = [net.clone().to(backend) for backend in backends]
    names = [twin.backend.name for twin in twins]
    report: dict[str, float] = {}
    for step in range(1, steps + 1):
        (reference, *others) = [_one_step(twin, x, y, loss, learning_rate) for twin in twins]
        for where, other in zip(names[1:], others, strict=True):
            for name, expected in reference.items():
                kind = name.partition(" ")[0]
                scale = _largest(*(a for n, a in reference.items() if n.startswith(kind)))
                error = np.abs(other[name] - expected) / (scale or 1.0)
                worst = float(error.max(initial=0.0))
                if not worst <= tolerance:
                    entry = _worst_entry(error)
                    raise GradientError(
                        f"compare_backends: step {step}: {name} on {where} parts from {names[0]} at "
                        f"{list(entry)}: {other[name][entry]:.9g} and {expected[entry]:.9g}, relative difference "
                        f"{worst:.2g} above {tolerance:.2g}"
                    )
                report[name] = max(worst, report.get(name, 0.0))
    return report


def _one_step(net: Sequential, x: Any, y: Any, loss: Loss, learning_rate: float) -> Arrays:
    """Train one step; the loss and gradients before it and the parameters after, on the host."""
    host = net.backend.to_numpy
    value, grads = net.value_and_grad(x, y, loss)
    net.fit(x, y, loss=loss, optimizer=SGD(learning_rate, momentum=0.0), batch_size=None)
    return (
        {"loss": np.asarray(float(value))}
        | {f"gradient {name}": host(g) for name, g in grads.items()}
        | {f"parameter {name}": host(a) for name, a in net.params.items()}
    )


# --- arrays -----------------------------------------------------------------------------------------------------------


def _backend_for(x: Any) -> Backend:
    """The backend of an array, the default one for a list."""
    return backend_of(x) if is_array(x) else default_backend()


def _host(a: Any, dtype: str | None = "float64") -> np.ndarray:
    """A copy in NumPy."""
    return np.array(on_host(a), dtype=dtype)


def _worst_entry(error: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))


def _largest(*arrays: np.ndarray) -> float:
    return max(float(np.abs(a).max(initial=0.0)) for a in arrays)
