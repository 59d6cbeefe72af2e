"""A network as an ONNX file, for the runtimes that read one. Needs the `onnx` package."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from . import checks
from .container import Path, replacing
from .layers.activations import ELU, LeakyReLU, ReLU, Sigmoid, Softmax, Tanh
from .layers.base import Layer, Shape
from .layers.batchnorm import BatchNorm
from .layers.dense import Dense
from .layers.dropout import Dropout
from .network import Sequential

OPSET = 18  # and the file's version: old enough for the runtimes in use, new enough for every operator here
IR_VERSION = 9
SIZE_LIMIT = 2**31 - 2**24  # bytes of parameters: the file is one message of Protocol Buffers, which are below 2 GiB

# of each layer: the operator, its arrays in the operator's order, its attributes; "" is none at all
OPERATORS: dict[type[Layer], tuple[str, tuple[str, ...], Callable[[Any], dict[str, Any]]]] = {
    Dense: ("Gemm", ("weight", "bias"), lambda layer: {}),
    BatchNorm: ("BatchNormalization", ("gamma", "beta", "mean", "var"), lambda layer: {"epsilon": layer.eps}),
    Dropout: ("", (), lambda layer: {}),
    Sigmoid: ("Sigmoid", (), lambda layer: {}),
    Tanh: ("Tanh", (), lambda layer: {}),
    ReLU: ("Relu", (), lambda layer: {}),
    LeakyReLU: ("LeakyRelu", (), lambda layer: {"alpha": layer.alpha}),
    ELU: ("Elu", (), lambda layer: {"alpha": layer.alpha}),
    Softmax: ("Softmax", (), lambda layer: {"axis": -1}),
}

Node = tuple[str, list[str], str, dict[str, Any]]  # operator, inputs, output, attributes
RAW = "raw"  # as an ending's input: the network's output


class Ending(NamedTuple):
    """What a file does with the network's output: nodes, their constants, and of each output dtype and shape."""

    nodes: list[Node]
    constants: Mapping[str, np.ndarray]
    outputs: Mapping[str, tuple[Any, list[Any]]]


def export_onnx(
    net: Sequential, path: Path, who: str = "export_onnx", given: str = "x", ending: Ending | None = None
) -> None:
    """Write the network's inference to `path`: from "x" (N, features) to "y", N free, in the network's dtype.

    `who` begins the messages, `given` names the input, and an `ending` computes other outputs from "y".

    Raises TypeError for a layer that ONNX has no operator for, such as a user's own, ImportError without the `onnx`
    package, ValueError for a network beyond the 2 GiB that such a file can have, OSError where the file system refuses.
    """
    path = checks.path(f"{who}: path", path)
    try:
        from onnx import checker, helper, numpy_helper
    except ImportError as error:
        raise ImportError(f"{who} needs the onnx package: pip install onnx") from error

    host = net.backend.to_numpy
    size = net.parameter_count * np.dtype(net.dtype).itemsize
    if size > SIZE_LIMIT:
        raise ValueError(f"{who}: the parameters take {size} bytes; an ONNX file holds at most {SIZE_LIMIT}")
    if not net.is_plain:
        raise TypeError(f"{who}: {type(net).__name__} is a Sequential of its own, with ways that ONNX has not")
    features: Shape = net.input_shape or ("features",)
    if ending is None:
        y = net.dtype, list(net.output_shape(("N", *features)))
        ending = Ending([("Identity", [RAW], "y", {})], {}, {"y": y})
    nodes: list[Node] = []
    arrays: dict[str, np.ndarray] = dict(ending.constants)
    at = given
    for prefix, layer in net.parts():
        if type(layer) not in OPERATORS:
            raise TypeError(
                f"{who}: layer {prefix}, {layer!r}, is a layer of your own, for which ONNX has no operator; put "
                "it together from xpnet's layers, or apply it outside the file"
            )
        operator, names, attributes = OPERATORS[type(layer)]
        if not operator:
            continue
        own = {f"{prefix}.{k}": host((layer.params | layer.state)[k]) for k in names}
        arrays |= own
        nodes.append((operator, [at, *own], f"{prefix}.y", attributes(layer)))
        at = f"{prefix}.y"
    nodes += [(kind, [at if i == RAW else i for i in inputs], o, more) for kind, inputs, o, more in ending.nodes]

    def described(name: str, dtype: Any, shape: list[Any]) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [o], name=f"{o}.{kind}", **more) for kind, inputs, o, more in nodes],
        "xpnet",
        [described(given, net.dtype, ["N", *features])],
        [described(name, dtype, shape) for name, (dtype, shape) in ending.outputs.items()],
        [numpy_helper.from_array(np.ascontiguousarray(a), name) for name, a in arrays.items()],
    )
    model = helper.make_model(
        graph,
        producer_name="xpnet",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    checker.check_model(model)
    with replacing(path) as file:
        file.write(model.SerializeToString())
