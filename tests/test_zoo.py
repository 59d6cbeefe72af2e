"""Every public function, class and method, each of its arguments in turn given a zoo of wrong values.

Each either works and gives a result of the right kind, or raises an error of the kinds that its docstring names, from
xpnet's own code, that says who refuses and what came. In both cases a network that refused is as it was, to the bit.
The table is made from the signatures: a new public name or argument without a row in it fails a test.
"""

import functools
import inspect
import re
import sys
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest

import xpnet as xn
from support.cases import Foreign
from support.networks import snapshot
from xpnet import files as xn_files

PACKAGE = str(Path(xn.__file__).parent)
ROWS, FEATURES, CLASSES = 6, 4, 3


# --- the zoo ----------------------------------------------------------------------------------------------------------


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).uniform(0.1, 0.9, shape)


def with_first(value: float) -> np.ndarray:
    x = numbers(ROWS, FEATURES)
    x[0, 0] = value
    return x


def read_only() -> np.ndarray:
    x = numbers(ROWS, FEATURES)
    x.flags.writeable = False
    return x


ZOO: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "True": lambda: True,
    "a word": lambda: "name",
    "bytes": lambda: b"x",
    "-1": lambda: -1,
    "0": lambda: 0,
    "1.5": lambda: 1.5,
    "NaN": lambda: np.nan,
    "infinity": lambda: np.inf,
    "10**400": lambda: 10**400,
    "1j": lambda: 1j,
    "[]": list,
    "(1,)": lambda: (1,),
    "ragged lists": lambda: [[1.0], [2.0, 3.0]],
    "a list of words": lambda: ["a", "b"],
    "{}": dict,
    "a set": lambda: {1, 2},
    "an object": object,
    "a class": lambda: xn.Dense,
    "a function": lambda: lambda *args: None,
    "a generator": lambda: (i for i in range(2)),
    "a layer": xn.ReLU,
    "a loss": xn.MeanSquaredError,
    "an optimizer": xn.SGD,
    "an empty array": lambda: np.ones((0, FEATURES)),
    "a 0-d array": lambda: np.array(1.5),
    "a flat array": lambda: numbers(FEATURES + 1),
    "a 3-D array": lambda: numbers(2, 2, 2),
    "an array of objects": lambda: numbers(ROWS, FEATURES).astype(object),
    "an array of lists": lambda: np.array([[1.0], [2.0, 3.0]], dtype=object),
    "complex numbers": lambda: numbers(ROWS, FEATURES) + 1j,
    "a masked array": lambda: np.ma.masked_greater(numbers(ROWS, FEATURES), 0.5),
    "an array of words": lambda: np.full((ROWS, FEATURES), "a"),
    "dates": lambda: np.full((ROWS, FEATURES), np.datetime64("2020-01-01")),
    "an array with NaN": lambda: with_first(np.nan),
    "an array with infinity": lambda: with_first(np.inf),
    "float16": lambda: numbers(ROWS, FEATURES).astype(np.float16),
    "long double": lambda: numbers(ROWS, FEATURES).astype(np.longdouble),
    "a read-only array": read_only,
    "a big-endian array": lambda: numbers(ROWS, FEATURES).astype(">f8"),
    "another library's array": lambda: Foreign(numbers(ROWS, FEATURES)),
    "a series": lambda: pd.Series(numbers(ROWS)),
    "a frame": lambda: pd.DataFrame(numbers(ROWS, FEATURES)),
    "a frame of words": lambda: pd.DataFrame({"a": ["x"] * ROWS}),
}
ITERABLE = frozenset(name for name, make in ZOO.items() if hasattr(make(), "__iter__"))
SHAPED = frozenset(name for name, make in ZOO.items() if isinstance(make(), np.ndarray)) | {"another library's array"}
ROWS_OF_ANYTHING = {
    "an array of objects", "complex numbers", "an array of words", "dates", "an array with NaN",
    "an array with infinity", "float16", "long double", "a series", "a frame of words", "a frame",
    "a read-only array", "a big-endian array", "a masked array",
}  # fmt: skip
ARRAYS = frozenset(["a read-only array", "a big-endian array", "a frame"])  # what fit and its like take


def signs(value: object) -> list[str]:
    """What tells a reader of a message that this value came: one of them will do."""
    found = [" ".join(repr(value).split())[:40], "an integer of", type(value).__name__]
    if value is None:
        return ["None", "no rows", "missing", "neither"]
    if isinstance(value, type):
        return [value.__name__]
    if isinstance(value, bytes):  # of a path
        found += [repr(value.decode())]
    if isinstance(value, (int, float, complex, str, bytes)):  # of what NumPy makes of it
        found += ["()", "no rows", "1 names", "dtype <U", "dtype |S"]
    if isinstance(value, (list, tuple, dict, set)):
        n = len(value)
        found += [f"{n} names", f"{n} rows", f"y {n}", f"of {n}", f"({n},)", str(tuple(value)), *map(repr, value)]
        found += ["missing", "inhomogeneous", "empty", "nothing", "no rows", "another", "shape (1,)"]
        found += ["dtype str", "dtype <U", "int64"]
    if isinstance(value, np.ndarray | pd.DataFrame | pd.Series | Foreign):
        a = np.asarray(value.a if isinstance(value, Foreign) else value)
        found += [str(a.shape), str(a.dtype), a.dtype.name.rstrip("0123456789"), f"{a.size} names"]
        found += [f"{len(a)} rows", f"y {len(a)}", f"expected {a.shape[:1]}"] if a.ndim else []
        found += ["NaN", "masked", "fractions", "object", "no rows", "add up to 1"]
    return found


# --- the table --------------------------------------------------------------------------------------------------------


class Kind(NamedTuple):
    """A valid example, made anew for each call, and what in the zoo is one as well."""

    example: Callable[[], Any]
    taken: frozenset[str] = frozenset()
    errors: tuple[type[Exception], ...] = ()
    left: frozenset[str] = frozenset()  # to Python and the array library: nobody looks at these


def kind(example: Any, *taken: str, errors: tuple[type[Exception], ...] = (), left: Iterable[str] = ()) -> Kind:
    made = example if inspect.isfunction(example) or isinstance(example, type) else lambda: example
    return Kind(made, frozenset(taken), errors, frozenset(left))


def network() -> xn.Sequential:
    layers = xn.Dense(FEATURES, 5), xn.BatchNorm(5), xn.Tanh(), xn.Dropout(0.2), xn.Dense(5, CLASSES)
    return xn.Sequential(*layers).initialize("numpy", "float64")


def classes() -> np.ndarray:
    return np.arange(ROWS) % CLASSES


def sequences() -> np.ndarray:
    return numbers(ROWS, 3, FEATURES)


def figure() -> Any:
    from matplotlib.figure import Figure

    return Figure()


def axes() -> Any:
    return figure().add_subplot()


def explained() -> Any:
    return network().explain(numbers(ROWS, FEATURES), classes(), xn.SoftmaxCrossEntropy())


def history() -> xn.History:
    made = xn.History()
    made.record({"loss": 1.0, "val_loss": 2.0})
    return made


X = kind(lambda: numbers(ROWS, FEATURES), *ARRAYS)
OWN = "a read-only array", "a big-endian array", "an array with NaN"  # of the backend and a floating dtype
FLOATS = kind(
    lambda: numbers(ROWS, FEATURES), *OWN, "an array with infinity", "an empty array", "a flat array", "a 3-D array",
    left=["a 0-d array"],
)  # fmt: skip
MATRIX = kind(lambda: numbers(ROWS, FEATURES), *OWN, "an array with infinity", "an empty array")
PRODUCT = kind(
    lambda: numbers(ROWS, FEATURES), *OWN, "an array with infinity",
    left=["a 0-d array", "a flat array", "a 3-D array", "an empty array"],
)  # fmt: skip
PREDICTION = kind(lambda: numbers(ROWS, FEATURES), *OWN, "an array with infinity")
W = kind(lambda: numbers(ROWS, FEATURES), *OWN, "an array with infinity")
FRAMES = "a series", "a frame", "a frame of words", "a masked array"
ANYTHING = kind(classes, *ROWS_OF_ANYTHING - {*FRAMES}, left=FRAMES)  # split by rows, and frames stay frames
UNSEEN = kind(False, left=ZOO)
COUNT = kind(2)
MAYBE_COUNT = kind(2, "None")
SEED = kind(3, "0", "None", "10**400")
POSITIVE = kind(0.5, "1.5")
NOT_NEGATIVE = kind(0.5, "0", "1.5")
FRACTION = kind(0.5, "0")
FINITE = kind(0.5, "-1", "0", "1.5")
LIMIT = kind(0.5, "1.5", "None")
FLAG = kind(False, "True")
RATE = kind(0.5, "1.5", "a function", "a loss")
STEP = kind(3, "0")
LOSS = kind(xn.SoftmaxCrossEntropy)
MAYBE_LOSS = kind(None, "None", "a loss")
OPTIMIZER = kind(xn.Adam, "an optimizer")
PATH = kind("file", "a word", "bytes", errors=(OSError,))
NET = kind(network)
BACKEND = kind("numpy", "None", errors=(xn.BackendUnavailableError,))
DEVICE = kind(None, "None", errors=(xn.BackendUnavailableError,))
AXES = kind(axes, "None")
FIGURE = kind(figure, "None")

SIGNALS = "Conv1d", "MaxPool1d", "AveragePool1d"  # whose settings are for one axis
FILES = "save_torch", "load_torch"  # of `xpnet.files`; the rest of it is for these and the checkpoints
PARAMETERS: dict[str, Kind] = {  # by name, or by owner and name where that is another's too
    "learning_rate": RATE,
    "then": RATE,
    "momentum": FRACTION,
    "rho": FRACTION,
    "beta1": FRACTION,
    "beta2": FRACTION,
    "Dropout.rate": FRACTION,
    "rate": POSITIVE,
    "factor": POSITIVE,
    "ReduceOnPlateau.factor": kind(0.5),
    "every": COUNT,
    "Checkpoint.every": COUNT,
    "steps": COUNT,
    "final": NOT_NEGATIVE,
    "step": STEP,
    "eps": POSITIVE,
    "delta": POSITIVE,
    "seconds": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "decays": kind("weights"),
    "clip_value": LIMIT,
    "clip_norm": LIMIT,
    "bias_correction": FLAG,
    "approximate": FLAG,
    "causal": FLAG,
    "vocabulary": COUNT,
    "length": COUNT,
    "heads": kind(1),
    "alpha": FINITE,
    "features": COUNT,
    "in_features": COUNT,
    "out_features": COUNT,
    "in_channels": COUNT,
    "out_channels": COUNT,
    "channels": COUNT,
    "groups": COUNT,
    **dict.fromkeys(("kernel_size", "dilation"), COUNT),
    **{f"Conv1d.{setting}": kind(2, "(1,)") for setting in ("kernel_size", "stride", "dilation")},
    "Conv2d.stride": COUNT,
    **{f"{name}1d.stride": kind(2, "(1,)", "None") for name in ("MaxPool", "AveragePool")},
    "stride": MAYBE_COUNT,
    **{f"{name}.padding": kind(1, "0", "(1,)") for name in SIGNALS},
    "padding": kind(1, "0"),
    "scale": FINITE,
    "offset": FINITE,
    "Transpose.axes": kind(1, "0"),
    "Reshape.shape": kind(4, "-1"),
    "trainable": FLAG,
    "initializer": kind("he_normal"),
    "reduction": kind("sum"),
    "ignore": kind(1, "None", "-1", "0"),
    "label_smoothing": FRACTION,
    "monitor": kind("val_loss", "a word"),
    "patience": COUNT,
    "min_delta": NOT_NEGATIVE,
    "mode": kind("min"),
    "restore_best": FLAG,
    "cooldown": kind(2, "0"),
    "min_rate": NOT_NEGATIVE,
    "append": FLAG,
    "log": kind(None, "None", "a function", "a class", "a loss"),
    "layers": kind(xn.Tanh, "a layer"),
    "path": PATH,
    "folder": PATH,
    "name": BACKEND._replace(taken=frozenset()),
    "backend": BACKEND,
    "Sequential.to.backend": BACKEND,
    "device": DEVICE,
    "dtype": kind("float32", left=["another library's array"]),  # which has a dtype
    "Sequential.to.dtype": kind("float32", "None", left=["another library's array"]),
    "Backend.asarray.x": kind(lambda: numbers(3), left=ZOO),  # as the library's own does; `adopt` is what checks
    "Backend.asarray.dtype": kind("float32", "None", left=["another library's array"]),
    "Backend.dtype.dtype": kind("float32", left=["another library's array", "None"]),
    "Backend.owns.x": kind(lambda: numbers(3), *ZOO),
    "Backend.to_numpy.a": kind(lambda: numbers(3), left=ZOO),
    "Backend.gatherer.order": kind(lambda: np.arange(3), left=ZOO),  # a permutation that the loop drew
    "seed": SEED,
    "check_gradients.x": X._replace(errors=(xn.GradientError,)),
    "compare_backends.optimizer": kind(None, "None", "an optimizer"),
    "tolerance": kind(0.5),
    "compare_backends.tolerance": kind(None, "None"),
    "fresh": FLAG,
    "custom_layers": kind(list, "None", "[]", left=["a generator"]),  # of wrong things: the first is named
    "x": X,
    **{
        f"{name}.x": X._replace(left=frozenset(["a list of words"]))
        for name in ("fit", "evaluate", "predict", "__call__")
    },
    "y": kind(classes),
    "loss": LOSS,
    "optimizer": OPTIMIZER,
    "epochs": COUNT,
    "batch_size": MAYBE_COUNT,
    "shuffle": FLAG,
    "validation_data": kind(lambda: (numbers(ROWS, FEATURES), classes()), "None", left=["a list of words"]),  # files
    **{f"{name}.names": kind(None, "None", "{}") for name in FILES},
    "metrics": kind(lambda: {"a": xn.accuracy}, "None", "{}", "[]"),
    "fit.metrics": kind(None, "None", "{}", "[]"),
    "callbacks": kind(lambda: [xn.Callback()], "None", "[]", "{}"),
    "progress": FLAG,
    "sample_weight": kind(lambda: numbers(ROWS), "None", "a series"),
    "l2": NOT_NEGATIVE,
    "slots": kind(None, "None"),
    "checkpoint": kind(None, "None"),
    "resume": kind(False),
    "prefetch": kind(2, "0"),
    "comm": kind(None, "None"),
    "shards": kind(None, "None"),
    **{f"ArraySource.{part}": kind(classes, *ROWS_OF_ANYTHING) for part in ("x", "y")},
    "ArraySource.weight": kind(classes, *ROWS_OF_ANYTHING, "None"),
    "paths": kind(lambda: ["npz"], "a list of words"),
    "NpzFiles.batch_size": COUNT,
    "read_npz.path": PATH._replace(example=lambda: "npz", taken=frozenset()),
    "source": kind(lambda: [(numbers(ROWS, FEATURES), classes())], left=ITERABLE),  # looked at as they are read
    "buffer": COUNT,
    "shuffled.seed": kind(3, "0"),
    "epoch": kind(3, "0"),
    "explained": kind(explained),
    "row": kind(2, "0", "-1"),
    "params": kind(lambda: network().params),
    "state": kind(lambda: network().state),
    "prediction": PREDICTION,
    "confusion_matrix.prediction": kind(lambda: numbers(ROWS, FEATURES), *OWN[:2], "an array with infinity"),
    "target": kind(lambda: np.eye(FEATURES)[np.arange(ROWS) % FEATURES], *ARRAYS),
    "top_k_accuracy.target": kind(classes, left=ARRAYS),
    "xn.accuracy.target": kind(classes, left=ARRAYS),
    "f1.target": kind(classes, left=ARRAYS),
    "roc_auc.target": kind(lambda: np.eye(FEATURES)[np.arange(ROWS) % FEATURES], left=ARRAYS),
    "xn.confusion_matrix.target": kind(classes),
    "threshold": FINITE._replace(taken=FINITE.taken | {"None"}),
    "confusion_matrix.threshold": kind(None, "None", left=["-1", "0", "1.5"]),
    "metrics.loss": kind(None, "None"),
    "accuracy.loss": MAYBE_LOSS,
    "roc_auc.threshold": FINITE._replace(left=frozenset(["None"])),  # then the outputs must be probabilities
    "compare_backends.learning_rate": POSITIVE._replace(left=frozenset(["a function", "a loss"])),  # schedules
    "f1.loss": MAYBE_LOSS,
    "roc_auc.loss": MAYBE_LOSS,
    "top_k_accuracy.loss": MAYBE_LOSS,
    "confusion_matrix.loss": MAYBE_LOSS,
    "k": kind(2),
    "training": UNSEEN,  # read as Python reads a condition, at each layer of each step
    "forward.x": FLOATS,
    "Dense.forward.x": MATRIX,
    "BatchNorm.forward.x": MATRIX,
    "LayerNorm.forward.x": MATRIX,
    "RMSNorm.forward.x": MATRIX,
    "Embedding.forward.x": kind(classes),
    "PositionalEmbedding.forward.x": kind(sequences),
    "MultiHeadAttention.forward.x": kind(sequences),
    "Embedding.backward.dy": kind(None),
    "PositionalEmbedding.backward.dy": kind(None),
    "MultiHeadAttention.backward.dy": kind(None),
    "PositionalEmbedding.output_shape.input_shape": kind((ROWS, 3, FEATURES)),
    "MultiHeadAttention.output_shape.input_shape": kind((ROWS, 3, FEATURES)),
    "GroupNorm.forward.x": MATRIX,
    "Reshape.forward.x": MATRIX._replace(taken=MATRIX.taken | {"a 3-D array"}),
    "Transpose.forward.x": MATRIX,
    "GlobalAveragePool.forward.x": FLOATS._replace(taken=FLOATS.taken - {"a flat array"}),
    "Layer.forward.x": MATRIX,
    "Sequential.forward.x": MATRIX,
    "Residual.forward.x": MATRIX,
    "Branches.forward.x": MATRIX,
    "dy": kind(None, *OWN, "an array with infinity"),
    "Layer.backward.dy": kind(None),
    "Dense.backward.dy": kind(None),
    "Sequential.backward.dy": kind(None),
    "Branches.backward.dy": kind(None),
    "merge": kind("add"),
    "axis": kind(-1, "-1", "1", "10**400"),
    "cache": kind(None),
    "input_shape": kind((ROWS, FEATURES)),
    **{
        f"{name}.output_shape.input_shape": kind(
            (ROWS, FEATURES), left=["[]", "(1,)", "a list of words", "ragged lists"]
        )
        for name in ("Layer", "Embedding", "Flatten", "GlobalAveragePool", "Reshape", "Transpose")
    },
    "check_gradients.y": kind(None, "None"),
    "check_gradients.loss": kind(None, "None"),
    "load_torch.path": PATH._replace(example=lambda: "torch"),
    "thing": kind(lambda: xn.Dense(FEATURES, 2), "a layer"),
    "net": NET,
    "backends": kind(("numpy", "array_api_strict")),
    "measures": kind({"loss": 1.0}, "{}"),
    "history": kind(history),
    "measure": kind("loss"),
    "ax": AXES,
    "figure": FIGURE,
    "counts": kind(lambda: np.eye(3, dtype=int)),
    "names": kind(None, "None"),
    "images": kind(
        lambda: numbers(ROWS, FEATURES),
        *ARRAYS,
        "an array with NaN",
        "an array with infinity",
        "float16",
        "long double",
        left=["a 3-D array"],
    ),
    "predicted": kind(classes, "a series"),
    "true": kind(classes, "a series"),
    "most": COUNT,
    "columns": COUNT,
    "shape": kind((4, 2)),
    "first_layer_weights.shape": kind((2, 2), "None"),
    "fit.y": kind(classes),
    "rng": kind(lambda: np.random.default_rng(0)),
    "test_size": kind(2),
    "rows": kind(6, "0"),
    "minibatches.batch_size": COUNT,
    "train_test_split.x": ANYTHING,
    "train_test_split.y": ANYTHING,
    "stratify": kind(lambda: np.arange(ROWS) % 2, "None"),
    "w": FLOATS,
    "lookahead.w": W,
    "update.w": W,
    "gradient": W,
    "Optimizer.update.slots": kind(lambda: xn.Adam().init(numbers(ROWS, FEATURES))),
    "Nesterov.lookahead.slots": kind(lambda: xn.Nesterov().init(numbers(ROWS, FEATURES))),
    "Optimizer.lookahead.w": kind(lambda: numbers(3), left=ZOO),
    "Optimizer.lookahead.slots": kind(dict, left=ZOO),
    "dot_over_batch.y": PRODUCT,
    "z": FLOATS,
    "ops.x": FLOATS,
    "dot_over_batch.x": PRODUCT,
    "linear.x": PRODUCT._replace(taken=frozenset(), left=SHAPED),  # the layers look at dtypes
    "linear.weight": PRODUCT._replace(example=lambda: numbers(FEATURES, 2), taken=frozenset(), left=SHAPED),
    "sum_over_batch.x": PRODUCT,
    "ops.z": FLOATS,
    "namespace.x": kind(lambda: numbers(3), left=SHAPED),
    "namespace.who": kind("namespace", left=ZOO),
    "low": kind(0.2, left=ZOO),
    "high": kind(0.3, left=ZOO),
    "labels": kind(classes, left=SHAPED),
    "classes": kind(3, left=ZOO),
    "one_hot.dtype": kind(lambda: np.float32, left=ZOO),
    "key": kind(lambda: np.array([1, 2], np.int32), left=SHAPED),
    "random_keep.shape": kind((2, 3), left=ZOO),
    "random_keep.rate": kind(0.5, left=ZOO),
    "first": kind(0, left=ZOO),
    "random_keep.rows": kind(None, left=ZOO),
    "arrays": kind(lambda: [numbers(2), numbers(3)], left=ZOO),
    "flat": kind(lambda: numbers(6), left=SHAPED),
    "shapes": kind([(2,), (2, 2)], left=ZOO),
    "all_finite.arrays": kind(lambda: numbers(3), left=SHAPED),
    "a": FLOATS,
}


# --- the entry points -------------------------------------------------------------------------------------------------

MODULES = {"xn": xn, **{m: getattr(xn, m) for m in ("ops", "data", "initializers", "metrics", "schedules", "plots")}}
INNER = {
    "what the package raises itself": {"DivergenceError", "FormatError", "BackendUnavailableError", "GradientError"},
    "for schedules and optimizers": {"checked_rate", "rate_at", "decayed"},
    "built by get_backend": {"Backend"},
    "the bases, which are abstract": {
        "Layer", "Layer.forward", "Layer.backward", "Layer.next_state", "Loss", "Optimizer",
    },
    "hooks, which fit calls with the run": {"train_begin", "epoch_begin", "step_end", "epoch_end", "train_end"},
    "what a class of one's own writes, for the methods that check": {
        "terms", "rule", "coefficients", "decayed", "initial_params", "initial_state", "param_shapes", "state_shapes",
        "prefixed",
    },
    "steps of training and loading, which give what is checked": {
        "advance", "limited", "rate", "reduced", "divisor", "counted", "encode", "assign_params",
        "assign_state", "hold", "place",
        "assign", "infer", "leaves",
        "parts", "backward_params", "saved", "check_features", "check_input", "check_memory",
        "kept", "open", "leave", "locked", "adopt", "checked", "brought",
        "in_spans", "weighted_r2", "stack", "scope", "at", "check_slots", "Checkpoint.save",
    },
    "what a library has beyond the standard, for `ops` and the layers": {"Backend.erf", "rows_added", "at_hand"},
}  # fmt: skip
TRUSTED = set().union(*INNER.values())
SEQUENTIAL = xn.PositionalEmbedding, xn.MultiHeadAttention
SUBJECTS: dict[str, Callable[[], Any]] = {
    "Layer": xn.ReLU,
    "Dense": lambda: placed(xn.Dense(FEATURES, 2)),
    "BatchNorm": lambda: placed(xn.BatchNorm(FEATURES)),
    "LayerNorm": lambda: placed(xn.LayerNorm(FEATURES)),
    "RMSNorm": lambda: placed(xn.RMSNorm(FEATURES)),
    "GroupNorm": lambda: placed(xn.GroupNorm(2, FEATURES)),
    "Reshape": lambda: xn.Reshape(FEATURES),
    "Transpose": lambda: xn.Transpose(1),
    "Rescale": lambda: xn.Rescale(2.0),
    "Dropout": lambda: placed(xn.Dropout(0.5)),
    "Embedding": lambda: placed(xn.Embedding(FEATURES, 2)),
    "PositionalEmbedding": lambda: placed(xn.PositionalEmbedding(ROWS, FEATURES)),
    "MultiHeadAttention": lambda: placed(xn.MultiHeadAttention(FEATURES, 1)),
    "Sequential": network,
    "Residual": lambda: placed(xn.Residual(xn.Dense(FEATURES, FEATURES))),
    "Branches": lambda: placed(xn.Branches(xn.Dense(FEATURES, 2), xn.Dense(FEATURES, 2))),
    "Loss": xn.MeanSquaredError,
    "Optimizer": xn.Adam,
    "History": history,
    "shuffled": lambda: xn.data.shuffled([(numbers(ROWS, FEATURES), classes())]),
    "Backend": lambda: xn.get_backend("numpy"),
    "BaseSchedule": lambda: xn.CosineDecay(0.1, 10),
}  # the classes that are made of nothing make their own


def placed(layer: xn.Layer) -> xn.Layer:
    """The layer with parameters and statistics."""
    xn.Sequential(layer).initialize("numpy", "float64")
    return layer


class Entry(NamedTuple):
    """A public function, class or method: how it is called, and the names of its arguments."""

    function: Callable[..., Any]
    owner: type | None  # of a method
    parameters: list[str]


def entry_points() -> dict[str, Entry]:
    """By name: the public functions and classes, and the methods that each class defines itself."""
    found: dict[str, Any] = {f"files.{name}": getattr(xn_files, name) for name in FILES}
    for name, module in MODULES.items():
        for key, value in ((key, getattr(module, key)) for key in dir(module)):
            own = not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
            if (key in module.__all__ if hasattr(module, "__all__") else own) and not inspect.ismodule(value):
                found[f"{name}.{key}"] = value
    entries, seen = {}, set()
    for name, value in found.items():
        key = name.partition(".")[2]
        if not inspect.isabstract(value) and key not in TRUSTED and value not in seen:
            entries[name] = Entry(value, None, list(inspect.signature(value).parameters))
        seen.add(value)
    for cls in [value for value in seen if isinstance(value, type)]:
        for key, method in vars(cls).items():
            name = f"{cls.__name__}.{key}"
            public = inspect.isfunction(method) and (key == "__call__" or not key.startswith("_"))
            if public and not {key, name} & TRUSTED:
                entries[name] = Entry(method, cls, list(inspect.signature(method).parameters)[1:])
    return dict(sorted(entries.items()))


ENTRIES = entry_points()
ROWS_OF_THE_TABLE = [(name, parameter) for name, entry in ENTRIES.items() for parameter in entry.parameters]


def case(name: str, *parameter: str) -> Any:
    """A case of this entry point, which may need a package that not every session has."""
    marks = [pytest.mark.onnx_only] * name.endswith("_onnx")
    return pytest.param(name, *parameter, marks=marks, id=".".join((name, *parameter)))


def kind_of(name: str, parameter: str) -> Kind | None:
    owner, _, last = name.rpartition(".")
    keys = f"{name}.{parameter}", f"{last}.{parameter}", f"{owner}.{parameter}", parameter
    return next((PARAMETERS[key] for key in keys if key in PARAMETERS), None)


def example_for(layer: xn.Layer) -> np.ndarray:
    """An x that the layer takes."""
    if layer.takes == "integers":
        return classes()
    return sequences() if isinstance(layer, SEQUENTIAL) else numbers(ROWS, FEATURES)


class Call:
    """An entry point with a valid example of each argument."""

    def __init__(self, name: str):
        self.entry = ENTRIES[name]
        owner = self.entry.owner
        self.subject = None if owner is None else SUBJECTS.get(owner.__name__, owner)()
        self.module = name.partition(".")[0]
        self.given = {p: kind_of(name, p).example() for p in self.entry.parameters}
        if "cache" in self.given:
            dy, self.given["cache"] = self.subject.forward(example_for(self.subject), True)
            if "dy" in self.given:
                self.given["dy"] = dy
        self.before, self.spent = self.watched(), False

    def __call__(self, **changed: Any) -> Any:
        given = self.given | changed
        first = () if self.subject is None else (self.subject,)
        kinds = inspect.signature(self.entry.function).parameters.values()
        first += tuple(given.pop(p.name) for p in kinds if p.kind is p.VAR_POSITIONAL)
        result = self.entry.function(*first, **given)
        self.spent = True
        return result

    def watched(self) -> Any:
        """What no refusal may change."""
        nets = [a for a in (self.subject, *self.given.values()) if isinstance(a, xn.Sequential)]
        return [snapshot(net) for net in nets], repr(self.subject)

    def names(self) -> set[str]:
        """Of those who may refuse an argument, one begins the message or is in it."""
        parts = [self.subject, *self.given.values()]
        ours = [part for part in (*parts, *getattr(self.subject, "layers", ())) if is_ours(part)]
        names = {type(part).__name__ for part in ours} | {getattr(self.entry.owner, "__name__", "xn")}
        names |= {self.entry.function.__name__, *OTHERS.get(self.entry.function.__name__, ())}
        names |= {"xpnet.plots"} if self.module == "plots" else set()
        return names | {name.lower() for name in names}


BACKENDS = ["get_backend", "backend 'numpy'"]
OTHERS = {  # what else may be who refuses: what a method is short for, or asks
    "__call__": ["predict"],
    "compare_backends": ["value_and_grad", "SGD", *BACKENDS],
    **dict.fromkeys(("use_backend", "initialize", "to", "load", "get_backend"), BACKENDS),
}


def is_class(cls: object, base: type) -> bool:
    return isinstance(cls, type) and issubclass(cls, base) and not inspect.isabstract(cls)


def is_ours(thing: object) -> bool:
    return type(thing).__module__.startswith("xpnet")


def same_kind(result: Any, expected: Any) -> bool:
    if isinstance(expected, tuple):
        return isinstance(result, tuple) and all(map(same_kind, result, expected))
    return isinstance(result, type(expected))


def faults(name: str, parameter: str) -> dict[str, str]:
    """What is wrong with how an entry point takes each of the zoo. A call that it has refused serves the next one."""
    kind, call, found = kind_of(name, parameter), Call(name), {}
    for animal in (animal for animal in ZOO if animal not in kind.left):
        if said := fault(name, parameter, animal, call):
            found[animal] = said
        if said or call.spent:
            call = Call(name)
    return found


def fault(name: str, parameter: str, animal: str, call: Call) -> str | None:
    """What is wrong with how a call takes this value, None if nothing."""
    kind, value = kind_of(name, parameter), ZOO[animal]()
    try:
        with np.errstate(invalid="ignore"):  # of infinity - infinity
            result = call(**{parameter: value})
    except Exception as error:  # whatever it is, it is judged
        place = traceback.extract_tb(error.__traceback__)[-1].filename
        said = f"{type(error).__name__}: {error}"
        if not isinstance(error, (ValueError, TypeError, *kind.errors)) or isinstance(error, UnicodeError):
            return f"raised {said}"
        if not place.startswith(PACKAGE):
            return f"left it to {place} to say {said}"
        if animal in kind.taken and not kind.errors:
            return f"refused what it should take: {said}"
        if not isinstance(error, OSError) and not any(who in str(error) for who in call.names()):
            return f"does not say who refuses: {said}"
        if not any(sign in str(error) for sign in signs(value)):
            return f"does not say what came: {said}"
        return None if call.watched() == call.before else "changed the network that it refused to work on"
    if animal not in kind.taken:
        return f"took it, and gave {result!r:.80}"
    expected = result_of(name)
    return None if same_kind(result, expected) else f"gave {result!r:.80}, a {type(result)}, not {type(expected)}"


@functools.cache
def result_of(name: str) -> Any:
    """What an entry point gives for the valid examples."""
    return Call(name)()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A network's files, and one of arrays."""
    folder = tmp_path_factory.mktemp("files")
    network().save(folder / "file")
    with open(folder / "npz", "wb") as file:
        np.savez(file, x=numbers(ROWS, FEATURES), y=classes())
    xn_files.save_torch(network(), folder / "torch")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def nothing_left_behind(files, tmp_path, monkeypatch):
    """In a folder with such files; pictures are closed."""
    monkeypatch.chdir(tmp_path)
    for name, content in files.items():
        Path(name).write_bytes(content)
    yield
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


@pytest.mark.numpy_only
@pytest.mark.parametrize("name", ENTRIES)
def test_every_public_argument_has_a_row(name):
    assert [p for p in ENTRIES[name].parameters if kind_of(name, p) is None] == []


@pytest.mark.numpy_only
@pytest.mark.parametrize("name", list(map(case, ENTRIES)))
def test_the_examples_work(name, nothing_left_behind):
    Call(name)()


@pytest.mark.numpy_only
@pytest.mark.parametrize(("name", "parameter"), [case(*row) for row in ROWS_OF_THE_TABLE])
def test_each_argument_takes_what_it_means_and_refuses_the_rest_in_words(name, parameter, nothing_left_behind):
    assert faults(name, parameter) == {}


# --- on every backend -------------------------------------------------------------------------------------------------

NO_ARRAYS = ["None", "a word", "1.5", "ragged lists", "{}", "a generator", "an array of objects", "complex numbers"]
NO_ARRAYS += ["float16", "an array of words", "another library's array", "a frame"]


@pytest.mark.parametrize("animal", NO_ARRAYS)
def test_layers_losses_and_optimizers_refuse_the_same_on_every_backend(lib, animal):
    layers = xn.Dense(FEATURES, 3), xn.BatchNorm(3), xn.Tanh(), xn.LeakyReLU(), xn.ELU(), xn.Dropout(), xn.Softmax()
    net = xn.Sequential(*layers).initialize(lib.backend)
    x = lib.asarray(numbers(ROWS, FEATURES), "float32")
    _, cache = net.forward(x, training=True)
    calls = {repr(layer): layer.forward for layer in layers if not isinstance(layer, xn.Softmax)}
    calls |= {repr(net): lambda bad: net.backward(bad, cache), "softmax": layers[-1].forward}
    adam = xn.Adam()
    calls |= {"Adam": adam.init, repr(adam): lambda bad: adam.update(x, bad, adam.init(x))}
    calls |= {
        "Huber": lambda bad: xn.Huber()(bad, numbers(ROWS, FEATURES)),
        "linear": lambda bad: xn.ops.linear(x, bad),
    }
    if animal in SHAPED:
        del calls["linear"]
    before = snapshot(net)
    for who, call in calls.items():
        with pytest.raises(TypeError) as caught:
            call(ZOO[animal]())
        assert str(caught.value).startswith(who)
    assert snapshot(net) == before


def test_slots_of_another_optimizer_or_array_are_refused(lib):
    w, other = lib.asarray(numbers(3)), lib.asarray(numbers(2))
    for slots, words in [
        (xn.Adam().init(w), "SGD(): slots has no 'velocity', only ['step', 'm', 'v']; init(w) gives what it takes"),
        (xn.SGD().init(other), "SGD(): slots has 'velocity' of shape (2,), expected w's (3,)"),
    ]:
        with pytest.raises(ValueError, match=f"^{re.escape(words)}$"):
            xn.SGD().update(w, w, slots)
    with pytest.raises(ValueError, match=r"SGD\(\): gradient of shape \(2,\), expected w's \(3,\)"):
        xn.SGD().update(w, other, xn.SGD().init(w))


@pytest.mark.numpy_only
@pytest.mark.parametrize(
    ("what", "given", "names"),
    [
        ("loss", "mse", [name for name, cls in vars(xn).items() if is_class(cls, xn.Loss)]),
        ("optimizer", "adam", [name for name, cls in vars(xn).items() if is_class(cls, xn.Optimizer)]),
        ("loss", network(), []),
        ("optimizer", xn.MeanSquaredError(), []),
    ],
    ids=["mse", "adam", "a network", "a loss"],
)
def test_a_loss_or_optimizer_that_is_none_is_told_which_there_are(what, given, names):
    net, parts = network(), {"loss": xn.SoftmaxCrossEntropy(), "optimizer": xn.Adam()}
    with pytest.raises(TypeError, match=f"fit: {what} must be an object such as xn") as caught:
        net.fit(numbers(ROWS, FEATURES), classes(), **parts | {what: given})
    assert [name for name in names if name not in str(caught.value)] == []
