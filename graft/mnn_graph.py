"""A Keras network as ONNX with channels first, layer by layer, for MNN: `LAYERS` holds what is known.

Not the conversion that ships (`graft.export.conversion`): it keeps channels first throughout, needs no TensorFlow graph
and takes a fraction of a second. What comes out is compared with Keras before it is used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graft.mnn import UnsupportedError

OPSET = 13


def translate(image: Any, outputs: dict[str, Any], start: Any) -> onnx.ModelProto:
    """The graph from `start` (behind `image`) to `outputs` as ONNX with channels first; input `image`, names kept.

    Where Keras flattens a map, the map comes out, channels first; who reads it flattens it in Keras' order.

    Raises:
        UnsupportedError: a layer has no translation.
    """
    graph = _Graph()
    known = {id(start): "image"}
    order = list(keras.Model(image, outputs).operations)
    behind = next(i for i, operation in enumerate(order, 1) if operation.output is start)
    for operation in order[behind:]:
        kind = type(operation).__name__
        if kind not in LAYERS:
            raise UnsupportedError(f"{kind} ({operation.name}) has no translation for MNN")
        given = operation.input if isinstance(operation.input, list) else [operation.input]
        known[id(operation.output)] = LAYERS[kind](graph, operation, [known[id(tensor)] for tensor in given])
    ends = []
    for name, tensor in outputs.items():
        if id(tensor) not in known:
            raise UnsupportedError(f"{name} lies before the network's own layers")
        graph.nodes.append(helper.make_node("Identity", [known[id(tensor)]], [name], f"output/{name}"))
        ends.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    height, width, channels = start.shape[1:]
    entry = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", channels, height, width])
    made = helper.make_graph(graph.nodes, "trunk", [entry], ends, graph.constants)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)


class _Graph:
    """The nodes and constants gathered so far."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(values, dtype), name))
        return name

    def add(self, kind: str, name: str, given: list[str], **attributes: Any) -> str:
        value = f"{name}:0"  # no output of the whole graph is called so
        self.nodes.append(helper.make_node(kind, given, [value], name, **attributes))
        return value


def _convolution(graph: _Graph, layer: Any, given: list[str]) -> str:
    """Conv2D and DepthwiseConv2D: Keras' kernels are H×W×in×out and H×W×in×multiplier."""
    kernel = np.asarray(layer.kernel)
    depthwise = type(layer).__name__ == "DepthwiseConv2D"
    groups = kernel.shape[2] if depthwise else layer.groups
    if depthwise:
        kernel = kernel.reshape(*kernel.shape[:2], 1, -1)
    weights = [graph.constant(f"{layer.name}/kernel", kernel.transpose(3, 2, 0, 1))]
    if layer.use_bias:
        weights.append(graph.constant(f"{layer.name}/bias", np.asarray(layer.bias)))
    out = graph.add(
        "Conv",
        f"{layer.name}/sum",
        [*given, *weights],
        kernel_shape=kernel.shape[:2],
        strides=layer.strides,
        dilations=layer.dilation_rate,
        group=groups,
        auto_pad=_padding(layer),
    )
    return _activate(graph, layer.name, layer.activation, out)


def _padding(layer: Any) -> str:
    return {"same": "SAME_UPPER", "valid": "VALID"}[layer.padding]


def _activation(graph: _Graph, layer: Any, given: list[str]) -> str:
    return _activate(graph, layer.name, layer.activation, given[0])


def _activate(graph: _Graph, name: str, function: Any, value: str) -> str:
    kind = function.__name__
    if kind == "linear":
        return value
    if kind == "relu":
        return graph.add("Relu", f"{name}/relu", [value])
    if kind in ("sigmoid", "silu"):
        gate = graph.add("Sigmoid", f"{name}/sigmoid", [value])
        return gate if kind == "sigmoid" else graph.add("Mul", f"{name}/silu", [value, gate])
    raise UnsupportedError(f"the activation {kind} ({name}) has no translation for MNN")


def _relu(graph: _Graph, layer: Any, given: list[str]) -> str:
    if layer.negative_slope or layer.threshold:
        raise UnsupportedError(f"a ReLU with slope or threshold ({layer.name}) has no translation for MNN")
    if layer.max_value is None:
        return graph.add("Relu", layer.name, given)
    bounds = [graph.constant(f"{layer.name}/{end}", value) for end, value in (("low", 0.0), ("high", layer.max_value))]
    return graph.add("Clip", layer.name, [*given, *bounds])


def _normalisation(graph: _Graph, layer: Any, given: list[str]) -> str:
    """Batch normalisation with its stored mean and variance."""
    scale = np.asarray(layer.gamma) if layer.scale else np.ones(layer.moving_mean.shape)
    shift = np.asarray(layer.beta) if layer.center else np.zeros(layer.moving_mean.shape)
    numbers = (scale, shift, np.asarray(layer.moving_mean), np.asarray(layer.moving_variance))
    parts = [graph.constant(f"{layer.name}/{i}", values) for i, values in enumerate(numbers)]
    return graph.add("BatchNormalization", layer.name, [*given, *parts], epsilon=layer.epsilon)


def _scaling(graph: _Graph, layer: Any, given: list[str]) -> str:
    """Rescaling: times a scale, plus an offset."""
    return _affine(graph, layer.name, given, layer.scale, layer.offset)


def _standardisation(graph: _Graph, layer: Any, given: list[str]) -> str:
    """Normalization with the mean and variance it was made with."""
    deviation = np.maximum(np.sqrt(np.asarray(layer.variance)), keras.config.epsilon())
    return _affine(graph, layer.name, given, 1 / deviation, -np.asarray(layer.mean) / deviation)


def _affine(graph: _Graph, name: str, given: list[str], scale: Any, offset: Any) -> str:
    scales = graph.constant(f"{name}/scale", np.reshape(scale, (1, -1, 1, 1)))
    offsets = graph.constant(f"{name}/offset", np.reshape(offset, (1, -1, 1, 1)))
    scaled = graph.add("Mul", f"{name}/scaled", [*given, scales])
    return graph.add("Add", name, [scaled, offsets])


def _pooling(graph: _Graph, layer: Any, given: list[str]) -> str:
    return graph.add(
        "MaxPool", layer.name, given, kernel_shape=layer.pool_size, strides=layer.strides, auto_pad=_padding(layer)
    )


def _global(graph: _Graph, layer: Any, given: list[str]) -> str:
    kind = type(layer).__name__.removesuffix("ing2D")
    out = graph.add(kind, f"{layer.name}/map", given)
    return out if layer.keepdims else graph.add("Flatten", layer.name, [out])


def _border(graph: _Graph, layer: Any, given: list[str]) -> str:
    (top, bottom), (left, right) = layer.padding
    pads = graph.constant(f"{layer.name}/pads", [0, 0, top, left, 0, 0, bottom, right], np.int64)
    return graph.add("Pad", layer.name, [*given, pads])


def _reshape(graph: _Graph, layer: Any, given: list[str]) -> str:
    """A vector as a map of one pixel, which is what squeeze and excitation needs."""
    if len(layer.target_shape) != 3 or tuple(layer.target_shape[:2]) != (1, 1):
        raise UnsupportedError(f"Reshape to {layer.target_shape} ({layer.name}) has no translation for MNN")
    sizes = graph.constant(f"{layer.name}/shape", [0, layer.target_shape[2], 1, 1], np.int64)
    return graph.add("Reshape", layer.name, [*given, sizes])


def _side_by_side(graph: _Graph, layer: Any, given: list[str]) -> str:
    """Vectors joined; flattened maps are not, for they come out unflattened."""
    if any(type(tensor._keras_history.operation).__name__ == "Flatten" for tensor in layer.input):
        raise UnsupportedError(f"flattened maps side by side ({layer.name}) have no translation for MNN")
    return graph.add("Concat", layer.name, given, axis=1)


LAYERS: dict[str, Callable[[_Graph, Any, list[str]], str]] = {
    "Activation": _activation,
    "Add": lambda graph, layer, given: graph.add("Add", layer.name, given),
    "BatchNormalization": _normalisation,
    "Concatenate": _side_by_side,
    "Conv2D": _convolution,
    "DepthwiseConv2D": _convolution,
    "Dropout": lambda graph, layer, given: given[0],
    "Flatten": lambda graph, layer, given: given[0],
    "GlobalAveragePooling2D": _global,
    "GlobalMaxPooling2D": _global,
    "MaxPooling2D": _pooling,
    "Multiply": lambda graph, layer, given: graph.add("Mul", layer.name, given),
    "Normalization": _standardisation,
    "ReLU": _relu,
    "Rescaling": _scaling,
    "Reshape": _reshape,
    "ZeroPadding2D": _border,
}
