"""Export of networks to ONNX files. Needs the `onnx` package."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from ..common import checks
from ..layers.activations import ELU, GELU, LeakyReLU, ReLU, Sigmoid, SiLU, Softmax, Softplus, Tanh
from ..layers.attention import MultiHeadAttention
from ..layers.base import Layer, Shape
from ..layers.blocks import Branches, Residual
from ..layers.container import shapes_of
from ..layers.convolution import Conv1d, Conv2d
from ..layers.dense import Dense
from ..layers.dropout import Dropout
from ..layers.embedding import Embedding, PositionalEmbedding
from ..layers.normalization import BatchNorm, GroupNorm, LayerNorm, RMSNorm
from ..layers.placed import Placed
from ..layers.pooling import AveragePool1d, AveragePool2d, GlobalAveragePool, MaxPool1d, MaxPool2d
from ..layers.shape import Flatten, Rescale, Reshape, Transpose
from .safetensors import Path, replacing

OPSET, IR_VERSION = 18, 9  # new enough for the operators used here, old enough for the runtimes in use
SIZE_LIMIT = 2**31 - 2**24  # bytes of parameters: a Protocol Buffers message is smaller than 2 GiB

Node = tuple[str, list[str], str, dict[str, Any]]  # operator, inputs, output, attributes
RAW = "raw"  # stands for the network's output among the inputs of an ending's nodes


class Ending(NamedTuple):
    """Nodes to add after the network's output, their constants, and the dtype and shape of each output of the file."""

    nodes: list[Node]
    constants: Mapping[str, np.ndarray]
    outputs: Mapping[str, tuple[Any, list[Any] | None]]


class Graph:
    """The nodes and arrays of a network's layers."""

    def __init__(self, who: str, dtype: str, host: Callable[[Any], np.ndarray]):
        self.who, self.dtype, self.host = who, dtype, host
        self.nodes: list[Node] = []
        self.arrays: dict[str, np.ndarray] = {}

    def chain(self, parts: Iterable[tuple[str, Layer]], x: str) -> str:
        """Add layers in sequence; return the name of the last one's output."""
        for prefix, layer in parts:
            x = self.layer(prefix, layer, x)
        return x

    def layer(self, prefix: str, layer: Layer, x: str) -> str:
        """Add a layer; return the name of its output."""
        if type(layer) not in OPERATORS:
            raise TypeError(
                f"{self.who}: {f'layer {prefix}, {layer!r},' if prefix else type(layer).__name__} has a forward of its "
                "own, for which ONNX has no operator; compose it of xpnet's layers, or apply it outside the file"
            )
        return OPERATORS[type(layer)](Nodes(self, prefix, layer), layer, x)


class Nodes:
    """Adds the nodes of one layer: `nodes.Add(x, y)` adds the ONNX operator Add and returns the name of its output.

    An input is the name of a node's output or of one of the layer's arrays (see `array`), a number or a NumPy array.
    """

    def __init__(self, graph: Graph, prefix: str, layer: Layer):
        self.graph, self.prefix, self.layer = graph, prefix, layer

    def __getattr__(self, operator: str) -> Callable[..., str]:
        return lambda *inputs, **attributes: self.add(operator, inputs, attributes)

    def add(self, operator: str, inputs: Iterable[Any], attributes: dict[str, Any]) -> str:
        """Add an operator; return the name of its output."""
        names = [each if isinstance(each, str) else self.constant(each) for each in inputs]
        output = f"{self.prefix}.{operator}.{len(self.graph.nodes)}"
        self.graph.nodes.append((operator, names, output, attributes))
        return output

    def array(self, name: str, convert: Callable[[np.ndarray], np.ndarray] = lambda a: a) -> str:
        """Add one of the layer's parameters or statistics, converted by a function; return its name."""
        full_name = f"{self.prefix}.{name}"
        self.graph.arrays[full_name] = convert(self.graph.host((self.layer.params | self.layer.state)[name]))
        return full_name

    def constant(self, value: Any) -> str:
        """Add a number or array, integers as int64 and floats in the network's dtype; return its name."""
        a = np.asarray(value)
        name = f"{self.prefix}.constant.{len(self.graph.arrays)}"
        self.graph.arrays[name] = (
            a if a.dtype.kind == "b" else a.astype("int64" if a.dtype.kind == "i" else self.graph.dtype)
        )
        return name


# --- layers -----------------------------------------------------------------------------------------------------------

Writer = Callable[[Nodes, Any, str], str]  # the nodes to add to, the layer, the name of x -> the name of y


def operator(name: str, *arrays: str, **attributes: Callable[[Any], Any]) -> Writer:
    """Return a writer for a layer that is one operator of x and these arrays; attributes are functions of the layer."""

    def write(nodes: Nodes, layer: Any, x: str) -> str:
        inputs = x, *(nodes.array(array) for array in arrays)
        return nodes.add(name, inputs, {key: value_of(layer) for key, value_of in attributes.items()})

    return write


def gelu(nodes: Nodes, layer: GELU, x: str) -> str:
    """x Φ(x), or its form with tanh"""
    if layer.approximate:
        cubed = nodes.Mul(nodes.Mul(nodes.Mul(x, x), x), 0.044715)
        share = nodes.Tanh(nodes.Mul(nodes.Add(x, cubed), math.sqrt(2.0 / math.pi)))
    else:
        share = nodes.Erf(nodes.Mul(x, math.sqrt(0.5)))
    return nodes.Mul(nodes.Mul(x, 0.5), nodes.Add(share, 1.0))


def convolution(nodes: Nodes, layer: Any, x: str) -> str:
    """W * x + b, a convolution"""
    arrays = nodes.array("weight"), nodes.array("bias")
    return nodes.Conv(x, *arrays, dilations=layer._dilation, group=layer.groups, **windows(layer))


def windows(layer: Any) -> dict[str, Any]:
    """Return the ONNX attributes of a convolution's or pooling layer's windows."""
    padding: dict[str, Any] = {"auto_pad": "SAME_UPPER"}
    if layer.padding != "same":
        each = layer._per_axis(0 if layer.padding == "valid" else layer.padding)
        padding = {"pads": [*each, *each]}
    return {"kernel_shape": layer._kernel, "strides": layer._stride} | padding


def max_pool(nodes: Nodes, layer: Any, x: str) -> str:
    """The maximum of each window."""
    return nodes.MaxPool(x, **windows(layer))


def average_pool(nodes: Nodes, layer: Any, x: str) -> str:
    """The mean of each window, without padding."""
    return nodes.AveragePool(x, count_include_pad=0, **windows(layer))


def over_root(nodes: Nodes, x: str, eps: float) -> str:
    """x / √(mean x² + eps), over the last axis"""
    squares = nodes.ReduceMean(nodes.Mul(x, x), np.array([-1]), keepdims=1)
    return nodes.Div(x, nodes.Sqrt(nodes.Add(squares, eps)))


def group_norm(nodes: Nodes, layer: GroupNorm, x: str) -> str:
    """γ (x − mean x) / √(var x + eps) + β, with mean and variance of each group of channels"""
    grouped = nodes.Reshape(x, np.array([0, layer.groups, -1]))
    for _ in range(2):  # centred twice, since the mean of large numbers has a rounding error
        grouped = nodes.Sub(grouped, nodes.ReduceMean(grouped, np.array([-1]), keepdims=1))
    channels = nodes.Reshape(over_root(nodes, grouped, layer.eps), np.array([0, layer.channels, -1]))
    gamma, beta = (nodes.array(name, lambda a: a[:, None]) for name in ("gamma", "beta"))
    return nodes.Reshape(nodes.Add(nodes.Mul(channels, gamma), beta), nodes.Shape(x))


def positional_embedding(nodes: Nodes, layer: PositionalEmbedding, x: str) -> str:
    """x + W[:T]"""
    positions = nodes.Shape(x, start=1, end=2)
    return nodes.Add(x, nodes.Slice(nodes.array("weight"), np.array([0]), positions, np.array([0])))


def attention(nodes: Nodes, layer: MultiHeadAttention, x: str) -> str:
    """softmax(Q Kᵀ / √d) V for each head, as in `MultiHeadAttention`"""
    d, h = layer.features, layer.heads
    qkv = nodes.Add(nodes.MatMul(x, nodes.array("qkv_weight")), nodes.array("qkv_bias"))
    parts = nodes.Transpose(nodes.Reshape(qkv, np.array([0, 0, 3, h, d // h])), perm=[2, 0, 3, 1, 4])
    q, k, v = (nodes.Gather(parts, i, axis=0) for i in range(3))  # (N, h, T, d / h)
    scores = nodes.MatMul(nodes.Mul(q, (d // h) ** -0.5), nodes.Transpose(k, perm=[0, 1, 3, 2]))
    if layer.causal:
        positions = nodes.Range(0, nodes.Gather(nodes.Shape(x), 1, axis=0), 1)
        visible = nodes.GreaterOrEqual(nodes.Unsqueeze(positions, np.array([1])), positions)
        scores = nodes.Where(visible, scores, -math.inf)
    mixed = nodes.Transpose(nodes.MatMul(nodes.Softmax(scores, axis=-1), v), perm=[0, 2, 1, 3])
    joined = nodes.Reshape(mixed, np.array([0, 0, d]))
    return nodes.Add(nodes.MatMul(joined, nodes.array("out_weight")), nodes.array("out_bias"))


def residual(nodes: Nodes, layer: Residual, x: str) -> str:
    """x + f(x)"""
    return nodes.Add(x, nodes.graph.chain(layer._flat(f"{nodes.prefix}."), x))


def branches(nodes: Nodes, layer: Branches, x: str) -> str:
    """The outputs of all branches, added or concatenated."""
    chain = nodes.graph.chain
    outputs = [chain(child._parts(f"{nodes.prefix}.{name}."), x) for name, child in layer._children().items()]
    return nodes.Sum(*outputs) if layer.merge == "add" else nodes.Concat(*outputs, axis=layer.axis)


OPERATORS: dict[type[Layer], Writer] = {
    Dense: lambda nodes, layer, x: nodes.Add(nodes.MatMul(x, nodes.array("weight")), nodes.array("bias")),
    Conv1d: convolution,
    Conv2d: convolution,
    MaxPool1d: max_pool,
    MaxPool2d: max_pool,
    AveragePool1d: average_pool,
    AveragePool2d: average_pool,
    GlobalAveragePool: lambda nodes, layer, x: nodes.Flatten(nodes.GlobalAveragePool(x), axis=1),
    Flatten: operator("Flatten", axis=lambda layer: 1),
    Reshape: lambda nodes, layer, x: nodes.Reshape(x, np.array([0, *layer.shape])),  # 0 is x's own size, the batch's
    Transpose: operator("Transpose", perm=lambda layer: [0, *layer.axes]),
    Rescale: lambda nodes, layer, x: nodes.Add(nodes.Mul(x, layer.scale), layer.offset),
    BatchNorm: operator("BatchNormalization", "gamma", "beta", "mean", "var", epsilon=lambda layer: layer.eps),
    LayerNorm: operator("LayerNormalization", "gamma", "beta", axis=lambda layer: -1, epsilon=lambda layer: layer.eps),
    RMSNorm: lambda nodes, layer, x: nodes.Mul(over_root(nodes, x, layer.eps), nodes.array("gamma")),
    GroupNorm: group_norm,
    Embedding: lambda nodes, layer, x: nodes.Gather(nodes.array("weight"), x, axis=0),
    PositionalEmbedding: positional_embedding,
    MultiHeadAttention: attention,
    Residual: residual,
    Branches: branches,
    Dropout: lambda nodes, layer, x: x,
    Sigmoid: operator("Sigmoid"),
    Tanh: operator("Tanh"),
    ReLU: operator("Relu"),
    LeakyReLU: operator("LeakyRelu", alpha=lambda layer: layer.alpha),
    ELU: operator("Elu", alpha=lambda layer: layer.alpha),
    GELU: gelu,
    SiLU: lambda nodes, layer, x: nodes.Mul(x, nodes.Sigmoid(x)),
    Softplus: operator("Softplus"),
    Softmax: operator("Softmax", axis=lambda layer: -1),
}


# --- the file ---------------------------------------------------------------------------------------------------------


def export_onnx(
    net: Placed, path: Path, who: str = "export_onnx", given: str = "x", ending: Ending | None = None
) -> None:
    """Write the network's inference to `path`, from "x" (N, ...) to "y", for any N, in the network's dtype.

    x is int64 if the first layer takes integers. Sizes that the layers leave open, such as an image's, are left open in
    the file, too.

    `who` begins error messages, `given` names the input, and an `ending` replaces "y" by other outputs.

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
    features = features_of(net)
    if ending is None:
        y = net.dtype, shape_after(net, features)
        ending = Ending([("Identity", [RAW], "y", {})], {}, {"y": y})
    inside = Graph(who, net.dtype, host)
    at = inside.chain(net.parts(), given)
    arrays = dict(ending.constants) | inside.arrays
    nodes = inside.nodes
    nodes += [(kind, [at if i == RAW else i for i in inputs], o, more) for kind, inputs, o, more in ending.nodes]

    def described(name: str, dtype: Any, shape: list[Any] | None) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), shape)

    graph = helper.make_graph(
        [helper.make_node(kind, inputs, [o], name=f"{o}.{kind}", **more) for kind, inputs, o, more in nodes],
        "xpnet",
        [described(given, "int64" if net.takes == "integers" else net.dtype, ["N", *named("x", features)])],
        [described(name, dtype, shape) for name, (dtype, shape) in ending.outputs.items()],
        [numpy_helper.from_array(np.asarray(a, order="C"), name) for name, a in arrays.items()],
    )
    model = helper.make_model(
        graph, producer_name="xpnet", opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION
    )
    checker.check_model(model)
    with replacing(path) as file:
        file.write(model.SerializeToString())


def features_of(net: Placed) -> Shape:
    """Return the shape of a row of x, with as few axes as all layers allow, and None for sizes that are left open."""
    wanted = net.input_shape
    if wanted is None:
        return (None,)
    shapes = [shape[1:] for shape in shapes_of(net)]
    if net.takes == "integers" and len(shapes) > 1:
        del shapes[0]  # for ids, prefer a sequence in each row to a single id
    return next((features for features in shapes if shape_after(net, features) is not None), wanted)


def shape_after(net: Placed, features: Shape) -> list[Any] | None:
    """Return the shape of y for rows of x of this shape, with names for open sizes; None if it cannot be determined."""
    try:
        n, *sizes = net.output_shape(("N", *features))
    except ValueError:  # a later layer needs one of the open sizes
        return None
    return [n, *named("y", sizes)]


def named(prefix: str, sizes: Iterable[Any]) -> list[Any]:
    """Return sizes, with names in place of None."""
    return [f"{prefix}{i}" if size is None else size for i, size in enumerate(sizes, 1)]
