"""ONNX's own cases of single operators, run through the layers' forward."""

import warnings

import numpy as np
import pytest

import xpnet as xn

pytestmark = [pytest.mark.numpy_only, pytest.mark.onnx_only]

AXES = "normalises or sums over other axes than the last"
CANNOT = {  # the cases that no layer expresses, by why
    "three axes for windows": "averagepool_3d_* maxpool_3d_*",
    "integers": "maxpool_2d_uint8",
    "the odd padding at the beginning": "averagepool_2d_same_lower maxpool_2d_same_lower conv_with_autopad_same",
    "averages that count padding": "averagepool_2d_*count_include_pad averagepool_2d_ceil_last_window_starts_on_pad",
    "a last window beyond the end": "averagepool_2d_ceil maxpool_2d_ceil maxpool_2d_ceil_output_size_reduce_by_one",
    "dilated pools": "averagepool_2d_dilations maxpool_2d_dilations",
    AXES: "layer_normalization_*axis0* layer_normalization_*_negative_4 rms_normalization_*axis0* "
    "rms_normalization_*_negative_4 layer_normalization_4d_axis1 layer_normalization_4d_axis_negative_3 "
    "layer_normalization_4d_axis2 layer_normalization_4d_axis_negative_2 layer_normalization_2d_axis_negative_2 "
    "layer_normalization_3d_axis_negative_3_epsilon layer_normalization_3d_axis1_epsilon "
    "layer_normalization_3d_axis_negative_2_epsilon rms_normalization_4d_axis1 rms_normalization_4d_axis_negative_3 "
    "rms_normalization_4d_axis2 rms_normalization_4d_axis_negative_2 rms_normalization_2d_axis_negative_2 "
    "rms_normalization_3d_axis_negative_3_epsilon rms_normalization_3d_axis1_epsilon "
    "rms_normalization_3d_axis_negative_2_epsilon softmax_axis_0 softmax_axis_1",
    "ids along another axis than the first, and those that count from the end": "gather_1 gather_2d_indices "
    "gather_negative_indices",
}


def windows(given):
    """The settings of a layer with windows; None where it has none such."""
    axes = len(given["kernel_shape"])
    pads = given.get("pads", [0] * 2 * axes)
    auto = given.get("auto_pad", b"NOTSET")
    if axes > 2 or auto == b"SAME_LOWER" or pads[:axes] != pads[axes:] or given.get("ceil_mode"):
        return None
    padding = "same" if auto == b"SAME_UPPER" else tuple(pads[:axes])
    return {
        "kernel_size": tuple(given["kernel_shape"]),
        "stride": tuple(given.get("strides", [1] * axes)),
        "padding": padding,
    }


def pool(kind, given, x):
    settings = windows(given)
    if settings is None or "dilations" in given or given.get("count_include_pad") or x.dtype == np.uint8:
        return None
    return getattr(xn, f"{kind}Pool{len(given['kernel_shape'])}d")(**settings), {}


def convolution(given, x, weight):
    settings = windows(given)
    if settings is None:
        return None
    out, channels = weight.shape[:2]
    return xn.Conv2d(channels, out, **settings), {"weight": weight, "bias": np.zeros(out, weight.dtype)}


def norm(kind, given, x, gamma, *beta):
    if given.get("axis", -1) % x.ndim != x.ndim - 1:
        return None
    layer = kind(gamma.size, given.get("epsilon", 1e-5))
    return layer, dict(zip(("gamma", "beta"), (gamma, *beta), strict=False))


def softmax(given, x):
    return (xn.Softmax(), {}) if given.get("axis", -1) % x.ndim == x.ndim - 1 else None


def gather(given, weight, ids):
    if given["axis"] or (ids < 0).any():
        return None
    rows = weight.reshape(len(weight), -1)
    return xn.Embedding(*rows.shape), {"weight": rows}


MAKE = {
    "Conv": convolution,
    "MaxPool": lambda given, x: pool("Max", given, x),
    "AveragePool": lambda given, x: pool("Average", given, x),
    "GlobalAveragePool": lambda given, x: (xn.GlobalAveragePool(), {}),
    "LayerNormalization": lambda given, *arrays: norm(xn.LayerNorm, given, *arrays),
    "RMSNormalization": lambda given, *arrays: norm(xn.RMSNorm, given, *arrays),
    "GroupNormalization": lambda given, x, gamma, beta: (
        xn.GroupNorm(given["num_groups"], x.shape[1], given.get("epsilon", 1e-5)),
        {"gamma": gamma, "beta": beta},
    ),
    "Gelu": lambda given, x: (xn.GELU(approximate=given.get("approximate") == b"tanh"), {}),
    "Softmax": softmax,
    "Gather": gather,
}


@pytest.fixture(scope="module")
def cases():
    from onnx import helper
    from onnx.backend.test.loader import load_model_tests

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of cases with infinite numbers, which it makes now
        found = load_model_tests(kind="node")
    nodes = [(case, case.model.graph.node) for case in found if case.model is not None]
    return {
        case.name.removeprefix("test_").removeprefix("basic_"): (
            node.op_type, {a.name: helper.get_attribute_value(a) for a in node.attribute}, *case.data_sets[0]
        )
        for case, (node, *more) in nodes
        if not more and node.op_type in MAKE
    }  # fmt: skip


def test_every_case_that_a_layer_expresses_gives_the_stored_numbers(cases):
    from fnmatch import fnmatchcase

    left, kinds = set(), set()
    for name, (operator, given, inputs, outputs) in cases.items():
        made = MAKE[operator](given, *inputs)
        if made is None:
            left.add(name)
            continue
        layer, params = made
        layer.params = params
        x, y = inputs[operator == "Gather"], outputs[0]
        np.testing.assert_allclose(layer.forward(x)[0].reshape(y.shape), y, rtol=1e-5, atol=1e-6, err_msg=name)
        kinds.add(operator)
    assert kinds == MAKE.keys()
    told = [pattern for patterns in CANNOT.values() for pattern in patterns.split()]
    assert {name for name in cases if any(fnmatchcase(name, pattern) for pattern in told)} == left
    assert all(any(fnmatchcase(name, pattern) for name in left) for pattern in told)
