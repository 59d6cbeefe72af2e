"""Export of networks to ONNX files. Needs the `onnx` package."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..common import checks
from ..layers.activations import ELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from ..layers.base import Layer, Shape
from ..layers.blocks import Branches, Residual
from ..layers.dense import Dense
from ..layers.dropout import Dropout
from ..layers.normalization import BatchNorm, LayerNorm
from ..layers.placed import Placed
from .safetensors import Path, replacing

OPSET, IR_VERSION = 18, 9  # old enough for the runtimes in use, new enough for the operators here
SIZE_LIMIT = 2**31 - 2**24  # bytes of parameters: a Protocol Buffers message is below 2 GiB

# for each layer: the operator, its arrays in order, its attributes; without an operator the layer is left out. A second
# operator takes x and what the first gives
OPERATORS: dict[type[Layer], tuple[str, tuple[str, ...], Callable[[Any], dict[str, Any]]]] = {
    Dense: ("Gemm", ("weight", "bias"), lambda layer: {}),
    BatchNorm: ("BatchNormalization", ("gamma", "beta", "mean", "var"), lambda layer: {"epsilon": layer.eps}),
    LayerNorm: ("LayerNormalization", ("gamma", "beta"), lambda layer: {"axis": -1, "epsilon": layer.eps}),
    Dropout: ("", (), lambda layer: {}),
    Sigmoid: ("Sigmoid", (), lambda layer: {}),
    Tanh: ("Tanh", (), lambda layer: {}),
    ReLU: ("Relu", (), lambda layer: {}),
    LeakyReLU: ("LeakyRelu", (), lambda layer: {"alpha": layer.alpha}),
    ELU: ("Elu", (), lambda layer: {"alpha": layer.alpha}),
    SiLU: ("Sigmoid Mul", (), lambda layer: {}),
    Softplus: ("Softplus", (), lambda layer: {}),
    Softmax: ("Softmax", (), lambda layer: {"axis": -1}),
}

Node = tuple[str, list[str], str, dict[str, Any]]  # operator, inputs, output, attributes
RAW = "raw"  # the network's output, as an input of an ending's nodes


class Ending(NamedTuple):
    """Nodes after the network's output, their constants, and the dtype and shape of each output of the file."""

    nodes: list[Node]
    constants: Mapping[str, np.ndarray]
    outputs: Mapping[str, tuple[Any, list[Any]]]


class Graph:
    """The nodes of a network's layers, and their arrays."""

    def __init__(self, who: str, host: Callable[[Any], np.ndarray]):
        self.who, self.host = who, host
        self.nodes: list[Node] = []
        self.arrays: dict[str, np.ndarray] = {}

    def chain(self, parts: Iterable[tuple[str, Layer]], x: str) -> str:
        """Add layers in sequence; returns the name of their output."""
        for prefix, layer in parts:
            x = self.layer(prefix, layer, x)
        return x

    def layer(self, prefix: str, layer: Layer, x: str) -> str:
        """Add one layer; returns the name of its output."""
        if type(layer) is Residual:
            return self.node("Add", [x, self.chain(layer._flat(f"{prefix}."), x)], prefix)
        if type(layer) is Branches:
            outputs = [self.chain(child._parts(f"{prefix}.{name}."), x) for name, child in layer._children().items()]
            more = {"axis": layer.axis} if layer.merge == "concat" else {}
            return self.node("Concat" if more else "Sum", outputs, prefix, more)
        if type(layer) not in OPERATORS:
            raise TypeError(
                f"{self.who}: {f'layer {prefix}, {layer!r},' if prefix else type(layer).__name__} has a forward of its "
                "own, for which ONNX has no operator; put it together from xpnet's layers, or apply it outside the file"
            )
        operator, names, attributes = OPERATORS[type(layer)]
        if not operator:
            return x
        own = {f"{prefix}.{k}": self.host((layer.params | layer.state)[k]) for k in names}
        self.arrays |= own
        first, _, second = operator.partition(" ")
        if second:
            return self.node(second, [x, self.node(first, [x], f"{prefix}.{first}")], prefix)
        return self.node(first, [x, *own], prefix, attributes(layer))

    def node(self, operator: str, inputs: list[str], prefix: str, attributes: dict[str, Any] | None = None) -> str:
        """Add an operator; returns the name of its output."""
        self.nodes.append((operator, inputs, f"{prefix}.y", attributes or {}))
        return f"{prefix}.y"


def export_onnx(
    net: Placed, path: Path, who: str = "export_onnx", given: str = "x", ending: Ending | None = None
) -> None:
    """Write the network's inference to `path`, from "x" (N, features) to "y", for any N, in the network's dtype.

    `who` begins messages, `given` names the input, and an `ending` replaces "y" by other outputs.

    Raises TypeError for a layer without an ONNX operator, such as a custom one, ImportError without the `onnx` package,
    ValueError above the 2 GiB that such a file can have, OSError if the file system refuses.
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
    features: Shape = net.input_shape or ("features",)
    if ending is None:
        y = net.dtype, list(net.output_shape(("N", *features)))
        ending = Ending([("Identity", [RAW], "y", {})], {}, {"y": y})
    inside = Graph(who, host)
    at = inside.chain(net.parts(), given)
    arrays = dict(ending.constants) | inside.arrays
    nodes = inside.nodes
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
        graph, producer_name="xpnet", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    checker.check_model(model)
    with replacing(path) as file:
        file.write(model.SerializeToString())
