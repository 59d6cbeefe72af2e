"""Numerical checks: derivatives by central differences, and one backend by another."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from .backends import Array, Backend, backend_of, default_backend, is_array, on_host
from .common import checks
from .common.checks import brief, flag, integer, pair_from, proportion
from .layers.base import Layer
from .layers.placed import check_network
from .losses.losses import Loss
from .losses.objective import on_encoded
from .network import Sequential
from .optimizers import SGD, Optimizer, Slots

STEP = float(np.finfo(np.float64).eps ** (1 / 3))  # balances a central difference's truncation and rounding errors
ROUNDINGS = 2 * float(np.finfo(np.float64).eps)  # the least error of a difference of two values, relative to these
ZERO = 1e-3  # of the largest gradient: errors are relative to this if an array's own gradients are smaller
CORNER = "; the function has a corner there: if several units have theirs, move x a little"
HIDDEN = "; the value's rounding error hides it: scale down the large numbers, or choose other inputs"


class GradientError(AssertionError):
    """A wrong derivative, or two backends that disagree; the message has the array, the entry and both numbers.

    >>> class Wrong(xn.Tanh):
    ...     def backward(self, dy, cache):
    ...         return dy, {}
    >>> try:
    ...     xn.check_gradients(Wrong(), [[0.5, 1.0]])
    ... except xn.GradientError as error:
    ...     print("the gradient of x is wrong" in str(error))
    True
    """


Arrays = dict[str, np.ndarray]


def check_gradients(
    thing: Layer | Loss, x: Any, y: Any = None, loss: Loss | None = None, *,
    training: bool = True, tolerance: float = 1e-6, seed: int = 0,
) -> dict[str, float]:  # fmt: skip
    """Check every derivative of `thing` by central differences in float64; returns the worst error by name.

    check_gradients(layer, x)              a layer or network: the derivatives of Σ dy·y, for a random dy
    check_gradients(net, x, y, loss)       a network with its loss
    check_gradients(loss, prediction, y)   a loss

    The names are "x" or, for a loss, "prediction", and those of the parameters. Errors are relative to the largest
    entry of the array, or to a thousandth of the largest of all arrays if that is more. At a corner, such as ReLU's at
    0, any slope between those of the two sides is accepted; if several units have corners at one point, as in a row of
    zeros, a correct sum may lie outside, and the message says so. It also says if rounding hides the derivative because
    the value is large compared with its slopes, as with targets of millions.

    Integer x, such as the ids of an embedding, is not varied unless backward returns a derivative with respect to it;
    dx may be None or zeros.

    The check works on copies. Missing parameters are drawn from `seed`, with noise added, since ones and zeros hide
    errors. Between forward and backward the same rows go forward in reverse order, as an evaluation within a step
    would. On JAX it sets `jax_enable_x64`, without which there is no float64.

    Raises GradientError with the worst entry above `tolerance`, for gradients with other names or shapes than `params`,
    for writing into an array that was given, and if all derivatives are 0, which proves nothing; ValueError or
    TypeError for arguments of the wrong kind, such as an x that has no rows, or is complex or masked.

    `training` says in which mode forward runs.

    >>> import numpy as np
    >>> x = np.random.default_rng(0).normal(size=(5, 3))
    >>> errors = xn.check_gradients(xn.Dense(3, 2), x)
    >>> sorted(errors), max(errors.values()) < 1e-6
    (['bias', 'weight', 'x'], True)
    """
    tolerance = proportion("check_gradients: tolerance", tolerance)
    checks.seed("check_gradients: seed", seed)
    if isinstance(thing, Layer):
        return _check_layer(thing, x, y, loss, flag("check_gradients: training", training), tolerance, seed)
    if isinstance(thing, type) or not hasattr(thing, "value_and_grad"):
        raise TypeError(
            f"check_gradients: expected a layer, a network or a loss, such as xn.ReLU(), got {brief(thing)}"
        )
    if y is None:
        raise ValueError(f"check_gradients: {thing!r} needs a target: check_gradients(loss, prediction, target)")
    backend = _backend_for(x)
    arrays = {"prediction": _inputs("prediction", x).astype(np.float64)}
    prediction = backend.asarray(arrays["prediction"].copy(), "float64")
    _, gradient = thing.value_and_grad(prediction, y)
    value_of = _loss_for(thing, y, prediction)
    _check_untouched(repr(thing), arrays, {"prediction": prediction})
    return _compare(
        repr(thing), lambda changed: value_of(backend.asarray(changed["prediction"], "float64")), arrays,
        {"prediction": gradient}, tolerance,
    )  # fmt: skip


def _check_layer(
    layer: Layer, x: Any, y: Any, loss: Loss | None, training: bool, tolerance: float, seed: int
) -> dict[str, float]:
    if (y is None) != (loss is None):
        alone = f"the target {brief(y)}" if loss is None else f"the loss {brief(loss)}"
        raise ValueError(f"check_gradients: got {alone} alone; give both a target and a loss, or neither")
    twin = layer.clone()
    rng = np.random.default_rng(seed)
    params = layer.params or {k: a + rng.normal(0.0, 0.1, np.shape(a)) for k, a in layer.initial_params(rng).items()}
    state = layer.state or layer.initial_state(rng)
    layer._check_drawn(params)
    backend = _backend_for(next(iter(layer.params.values()), x))
    inputs = _inputs("x", x)
    whole_numbers = inputs.dtype.kind != "f"
    ours = isinstance(layer, Sequential) or type(layer).__module__.startswith("xpnet.")
    integers = layer.takes == "integers"
    if integers and not whole_numbers:
        raise TypeError(f"check_gradients: {layer!r} takes integers, got x of {inputs.dtype}")
    if not integers and (ours or not whole_numbers):  # networks and xpnet's layers take floating x
        inputs = inputs.astype(np.float64)
    arrays = {"x": inputs} | {name: _host(a) for name, a in params.items()}

    def place(a: np.ndarray) -> Array:
        return backend.asarray(a, "float64" if a.dtype.kind == "f" else None)

    placed = {name: place(a.copy()) for name, a in arrays.items()}
    twin.assign_state({k: backend.asarray(_host(a, dtype=None)) for k, a in state.items()})

    def forward(changed: Arrays) -> tuple[Array, Any]:
        current = {name: placed[name] if a is arrays[name] else place(a) for name, a in changed.items()}
        twin.assign_params({name: current[name] for name in params})
        return pair_from(twin, "forward", twin.forward(current["x"], training))

    output, cache = forward(arrays)
    if loss is None:
        dy = backend.asarray(rng.standard_normal(output.shape), "float64")

        def value_of(y: Array, /) -> float:
            return float(backend.xp.sum(dy * y))
    else:
        _, dy = loss.value_and_grad(output, y)
        value_of = _loss_for(loss, y, output)

    dy_before = _host(dy)
    forward(arrays | {"x": arrays["x"][::-1].copy()})  # overwrites anything that the layer kept outside of the cache
    dx, grads = pair_from(twin, "backward", twin.backward(dy, cache))
    _check_untouched(repr(layer), arrays | {"dy": dy_before}, placed | {"dy": dy})
    if grads.keys() != params.keys():
        raise GradientError(f"{layer!r}: backward gives gradients {sorted(grads)}, the parameters are {sorted(params)}")
    for name, alone in twin.backward_params(dy, cache).items():  # training calls this if it does not need dx
        exact = _host(grads[name])
        if np.shape(alone) != exact.shape or _largest(_host(alone) - exact) > tolerance * _largest(exact):
            raise GradientError(f"{layer!r}: backward_params gives another gradient of {name} than backward")
    if whole_numbers and not integers and dx is not None and _host(dx).any():  # differentiable after all
        return _check_layer(layer, arrays["x"].astype(np.float64), y, loss, training, tolerance, seed)
    varied = arrays if not whole_numbers else {name: arrays[name] for name in params}
    return _compare(
        repr(layer), lambda changed: value_of(forward(arrays | changed)[0]), varied, {"x": dx} | grads, tolerance
    )


def _loss_for(loss: Loss, y: Any, prediction: Array) -> Callable[[Array], float]:
    """Return the loss as a function of predictions of the same shape, with y checked and encoded once."""
    target = loss.encode(y, prediction) if hasattr(loss, "encode") else y
    backend = backend_of(prediction)

    def value_of(prediction: Array) -> float:
        with backend.scope():
            return float(on_encoded(loss, prediction, target)[0])

    return value_of


def _check_untouched(who: str, before: Arrays, after: Mapping[str, Array]) -> None:
    """Raise GradientError if arguments have changed, since other layers may have kept the same arrays."""
    for name, array in before.items():
        if not np.array_equal(_host(after[name]), array, equal_nan=True):
            raise GradientError(f"{who} writes into {name}, an array that it was given; return a new one")


def _compare(
    who: str, value: Callable[[Arrays], float], arrays: Arrays, gradients: Mapping[str, Array], tolerance: float
) -> dict[str, float]:
    """Return the worst relative error of each gradient. Raises GradientError, with the worst, if it is too large."""
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
                f"{who}: close to {name}'s entry {entry} the value is NaN or infinite; choose another {name}"
            )
    if not math.isfinite(value(arrays)):
        raise GradientError(f"{who}: the value is NaN or infinite; choose another {' or '.join(arrays)}")
    sizes = {name: _largest(exact[name], numeric[name]) for name in arrays}
    floor = ZERO * max(sizes.values(), default=0.0)
    errors, remarks = {}, {}
    for name in arrays:
        scale = max(sizes[name], floor) or 1.0
        errors[name] = error = np.abs(exact[name] - numeric[name]) / scale
        for entry in map(tuple, np.argwhere(error > tolerance).tolist()):
            gradient = float(exact[name][entry])
            slope = _slope(value, arrays, name, entry, tolerance * scale)
            off = max(slope.low - gradient, gradient - slope.high, 0.0)
            error[entry] = off / scale
            numeric[name][entry] = min(max(gradient, slope.low), slope.high)
            if slope.low < slope.high:
                remarks[name, entry] = "is wrong", CORNER
            elif off <= slope.doubt:
                remarks[name, entry] = "cannot be determined", HIDDEN
    report = {name: float(error.max(initial=0.0)) for name, error in errors.items()}
    worst = max(report, key=lambda name: report[name], default="")
    if worst and report[worst] > tolerance:
        entry = _worst_entry(errors[worst])
        verdict, hint = remarks.get((worst, entry), ("is wrong", ""))
        raise GradientError(
            f"{who}: the gradient of {worst} {verdict} at {list(entry)}: backward says {exact[worst][entry]:.9g}, "
            f"central differences {numeric[worst][entry]:.9g}, relative error {report[worst]:.2g} above "
            f"{tolerance:.2g}{hint}"
        )
    if not any(gradient.any() for gradient in exact.values()):
        raise GradientError(f"{who}: all derivatives are 0, which proves nothing: choose other inputs")
    return report


def _central_differences(value: Callable[[Arrays], float], arrays: Arrays, name: str) -> np.ndarray:
    """Return (f(v + h) - f(v - h)) / 2h for every entry v of one array, with h = STEP · max(1, |v|)."""
    slopes = np.empty(arrays[name].shape)
    for entry in np.ndindex(slopes.shape):
        h = STEP * max(1.0, abs(float(arrays[name][entry])))
        low, high = _values_around(value, arrays, name, entry, h)
        slopes[entry] = (high - low) / (2 * h)
    return slopes


def _values_around(
    value: Callable[[Arrays], float], arrays: Arrays, name: str, entry: tuple[int, ...], h: float
) -> tuple[float, float]:
    """Return f(v - h) and f(v + h)."""
    values = []
    for change in (-h, h):
        array = arrays[name].copy()
        array[entry] += change
        values.append(value(arrays | {name: array}))
    return values[0], values[1]


class Slope(NamedTuple):
    """Lower and upper bound of a derivative, which differ only at a corner, and their possible error, `doubt`."""

    low: float
    high: float
    doubt: float


def _slope(value: Callable[[Arrays], float], arrays: Arrays, name: str, entry: tuple[int, ...], sure: float) -> Slope:
    """Return the slope at an entry v at which a single step was not accurate enough, from steps h that shrink by
    factors of 4.

    For a smooth function the slopes of the two sides converge as h shrinks. Their mean D(h), the central difference,
    has a rounding error, which grows as h shrinks, and an error of order h², of which (16 D(h) - D(4h)) / 15 is free
    (Richardson 1911). The estimate that differs least from the two before it is taken, with this difference as its
    error, or the value's rounding error over h if that is more.

    If the error is above `sure`, there may be corners near v, as among the many units of a convolution. Then each
    side's slope is taken at the smallest h for which the rounding error, seen in the second differences at the finest
    steps, is below `sure`, provided that 4h gives the same slope: no corner lies between. One side is enough, since v
    is on its piece of the function. If both sides have slopes and these differ, the corner is at v, and any slope
    between them is right.
    """
    unit = 2.0 ** math.frexp(max(1.0, abs(float(arrays[name][entry]))))[1]  # v ± h are then exact
    steps = [unit * 2.0**-k for k in range(5, 53, 2)]
    middle = value(arrays)
    with np.errstate(all="ignore"):  # large steps may leave the function's domain
        values = [_values_around(value, arrays, name, entry, h) for h in steps]
    noise = max(abs(low + high - 2 * middle) for low, high in values[-4:])
    least = 0.0  # the least change of the value: the rounding unit of larger terms in its sum
    if all(pair == (middle, middle) for pair in values[-4:]):
        least = min((abs(v - middle) for pair in values for v in pair if v != middle), default=ROUNDINGS)
    best = Slope(0.0, 0.0, math.inf)
    slopes, difference, gap = [math.nan, math.nan], math.nan, math.nan
    sides, pair = [math.nan, math.nan], (math.nan, math.nan)
    for h, (low, high) in zip(steps, values, strict=True):
        before, pair = pair, ((middle - low) / h, (high - middle) / h)
        rounding = max(ROUNDINGS * max(abs(low), abs(middle), abs(high)), least) / h
        coarser, difference = difference, sum(pair) / 2
        wider, gap = gap, abs(pair[1] - pair[0])
        slopes.append((16 * difference - coarser) / 15)
        doubt = max(abs(slopes[-1] - slopes[-3]), abs(slopes[-1] - slopes[-2]), rounding)
        if gap <= wider / 2 + 2 * rounding and doubt < best.doubt:
            best = Slope(slopes[-1], slopes[-1], doubt)
        if max(rounding, noise / h) <= sure / 2:
            sides = [side if abs(side - was) <= sure / 2 else math.nan for side, was in zip(pair, before, strict=True)]
    seen = [side for side in sides if not math.isnan(side)]
    return best if best.doubt <= sure or not seen else Slope(min(seen), max(seen), sure)


# --- one backend against another --------------------------------------------------------------------------------------


def compare_backends(
    net: Sequential, x: Any, y: Any, loss: Loss, backends: Sequence[str | Backend] = ("numpy", "cupy"), steps: int = 5,
    tolerance: float | None = None, learning_rate: float = 0.01, optimizer: Optimizer | None = None,
) -> dict[str, float]:  # fmt: skip
    """Train copies of `net` side by side, on all rows at each step; return the worst difference by name.

    After each step the loss, every gradient and every parameter are compared with those of the first backend.
    Differences are relative to the largest entry of all losses, gradients or parameters, not of the single array.
    `tolerance` is 1e-10 in float64 and 1e-4 in float32 by default, `optimizer` SGD(learning_rate, momentum=0.0). Adam
    and the like divide a gradient by its own size, and so amplify a gradient that is nothing but rounding.

    Raises GradientError with the first step and array that differ by more, ValueError for fewer than two backends, for
    a backend that is given twice, and for numbers out of range.

    `x`, `y` and `loss` as in `fit`; `steps` is how many steps are compared.

    >>> net = xn.Sequential(xn.Dense(2, 3)).initialize(seed=0)
    >>> x, y = [[1.0, 2.0], [3.0, 4.0]], [0, 2]
    >>> worst = xn.compare_backends(net, x, y, xn.SoftmaxCrossEntropy(), ["numpy", xn.get_backend("numpy", "cpu")])
    >>> max(worst.values())
    0.0
    """
    check_network("compare_backends", net)
    steps = integer("compare_backends: steps", steps)
    tolerance = {"float64": 1e-10, "float32": 1e-4}[net.dtype] if tolerance is None else tolerance
    tolerance = proportion("compare_backends: tolerance", tolerance)
    if not isinstance(backends, (tuple, list)) or len(backends) < 2:
        raise ValueError(f"compare_backends: give at least two backends in a list, got {brief(backends)}")
    optimizer = SGD(learning_rate, momentum=0.0) if optimizer is None else optimizer
    x, y = (np.array(on_host(a, f"compare_backends: {name}")) for name, a in (("x", x), ("y", y)))
    twins = [net.clone().to(backend) for backend in backends]
    for i, twin in enumerate(twins):
        if any(twin.backend is other.backend for other in twins[:i]):
            raise ValueError(
                f"compare_backends: {twin.backend!r} occurs twice in backends and would be compared with itself; give "
                'different ones, such as ("numpy", "jax")'
            )
    names = [twin.backend.name for twin in twins]
    slots: list[Slots | None] = [None] * len(twins)
    report: dict[str, float] = {}
    for step in range(1, steps + 1):
        results = [_one_step(twin, x, y, loss, optimizer, old) for twin, old in zip(twins, slots, strict=True)]
        slots = [new for _, new in results]
        (reference, *others) = [arrays for arrays, _ in results]
        for where, other in zip(names[1:], others, strict=True):
            for name, expected in reference.items():
                kind = name.partition(" ")[0]
                scale = _largest(*(a for n, a in reference.items() if n.startswith(kind)))
                error = np.abs(other[name] - expected) / (scale or 1.0)
                worst = float(error.max(initial=0.0))
                if not worst <= tolerance:
                    entry = _worst_entry(error)
                    raise GradientError(
                        f"compare_backends: step {step}: {name} on {where} differs from {names[0]} at "
                        f"{list(entry)}: {other[name][entry]:.9g} and {expected[entry]:.9g}, relative difference "
                        f"{worst:.2g} above {tolerance:.2g}"
                    )
                report[name] = max(worst, report.get(name, 0.0))
    return report


def _one_step(
    net: Sequential, x: Any, y: Any, loss: Loss, optimizer: Optimizer, slots: Slots | None
) -> tuple[Arrays, Slots | None]:
    """Train for one step; return the loss, gradients and new parameters as NumPy arrays, and the next slots."""
    host = net.backend.to_numpy
    value, grads = net.value_and_grad(x, y, loss)
    history = net.fit(x, y, loss=loss, optimizer=optimizer, batch_size=None, slots=slots)
    arrays = (
        {"loss": np.asarray(float(value))}
        | {f"gradient {name}": host(g) for name, g in grads.items()}
        | {f"parameter {name}": host(a) for name, a in net.params.items()}
    )
    return arrays, history.slots


# --- arrays -----------------------------------------------------------------------------------------------------------


def _backend_for(x: Any) -> Backend:
    """Return the backend of an array; the default one for a list."""
    return backend_of(x, "check_gradients") if is_array(x) else default_backend()


def _inputs(name: str, x: Any) -> np.ndarray:
    """Return a NumPy copy of the inputs. Raises ValueError or TypeError unless they are real numbers, at least one."""
    array = np.array(on_host(_backend_for(x).adopt(f"check_gradients: {name}", x)))
    if not array.size:
        raise ValueError(f"check_gradients: {name} has shape {array.shape}, so nothing would be checked; give it rows")
    return array


def _host(a: Any, dtype: str | None = "float64") -> np.ndarray:
    """Return a NumPy copy."""
    return np.array(on_host(a), dtype=dtype)


def _worst_entry(error: np.ndarray) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(error.argmax(), error.shape))


def _largest(*arrays: np.ndarray) -> float:
    return max(float(np.abs(a).max(initial=0.0)) for a in arrays)
