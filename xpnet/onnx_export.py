"""A network as an ONNX file, for the runtimes that read one. Needs the `onnx` package."""

from collections.abc import Callable
from typing import Any

import numpy as np

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


def export_onnx(net: Sequential, path: Path) -> None:
    """Write the network's inference to `path`: from "x" (N, features) to "y", N free, in the network's dtype.

    Raises TypeError for a layer that ONNX has no operator for, such as a user's own, ImportError without the `onnx`
    package, ValueError for a network beyond the 2 GiB that such a file can have, OSError where the file system refuses.
    """
    try:
        from onnx import TensorProto, checker, helper, numpy_helper
    except ImportError as error:
        raise ImportError("export_onnx needs the onnx package: pip install 'xpnet[onnx]'") from error

    host = net.backend.to_numpy
    size = net.parameter_count * np.dtype(net.dtype).itemsize
    if size > SIZE_LIMIT:
        raise ValueError(f"export_onnx: the parameters take {size} bytes; an ONNX file holds at most {SIZE_LIMIT}")
    if not net.is_plain:
        raise TypeError(f"export_onnx: {type(net).__name__} is a Sequential of its own, with ways that ONNX has not")
    nodes, weights, at = [], [], "x"
    for prefix, layer in net.parts():
        if type(layer) not in OPERATORS:
            raise TypeError(
                f"export_onnx: layer {prefix}, {layer!r}, is a layer of your own, for which ONNX has no operator; put "
                "it together from xpnet's layers, or apply it outside the file"
            )
        operator, names, attributes = OPERATORS[type(layer)]
        if not operator:
            continue
        arrays = layer.params | layer.state
        weights += [numpy_helper.from_array(np.ascontiguousarray(host(arrays[k])), f"{prefix}.{k}") for k in names]
        inputs = [at, *(f"{prefix}.{k}" for k in names)]
        at = f"{prefix}.y"
        nodes.append(helper.make_node(operator, inputs, [at], name=f"{prefix}.{operator}", **attributes(layer)))
    nodes.append(helper.make_node("Identity", [at], ["y"], name="y"))

    features: Shape = net.input_shape or ("features",)
    kind = TensorProto.FLOAT if net.dtype == "float32" else TensorProto.DOUBLE
    x = helper.make_tensor_value_info("x", kind, ["N", *features])
    y = helper.make_tensor_value_info("y", kind, list(net.output_shape(("N", *features))))
    graph = helper.make_graph(nodes, "xpnet", [x], [y], weights)
    model = helper.make_model(
        graph,
        producer_name="xpnet",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    checker.check_model(model)
    with replacing(path) as file:
        file.write(model.SerializeToString())
