"""Further precisions of an fp32 graph: fp16 for GPUs, int8 for CPUs. No TensorFlow, no second conversion.

In: the fp32 `onnx.ModelProto` that `graft.export.conversion` makes, and training pictures. Out: a proto with the
same inputs and outputs (uint8 in, float32 out).
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime

from graft.export import graphs
from graft.inference import INPUT

LAYERS = ("Conv", "MatMul", "Gemm")
# They hand int8 through, so that neighbouring layers need not go to float and back.
CARRIERS = ("Relu", "Clip", "MaxPool", "GlobalAveragePool", "Add")
CALIBRATION_BATCH = 32
# Below this the observed ranges say more about the few pictures than about the network.
MINIMUM_CALIBRATION = 32

Array = npt.NDArray[Any]


def half(fp32: onnx.ModelProto) -> onnx.ModelProto:
    """Weights and arithmetic in float16; preprocessing (values to 255 minus a mean) and softmax stay in float32."""
    from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

    with warnings.catch_warnings():
        # Weights below float16's smallest number become it, one warning a tensor: validation is the judge.
        warnings.simplefilter("ignore")
        fp16 = convert_float_to_float16(
            copy(fp32),
            keep_io_types=True,
            op_block_list=[*DEFAULT_OP_BLOCK_LIST, "Softmax"],
            node_block_list=sorted(_preprocessing(fp32)),
        )
    _drop_round_trips(fp16)
    # The converter puts its casts where it likes; a graph must list nodes after what they read.
    graphs.canonicalise(fp16)
    return fp16


def _drop_round_trips(fp16: onnx.ModelProto) -> None:
    """Between two float32 nodes the converter goes to float16 and back, which only loses digits."""
    narrowing = {n.output[0]: n.input[0] for n in fp16.graph.node if n.name.endswith("_cast_to_fp16_node")}
    for node in fp16.graph.node:
        if node.op_type == "Cast" and node.input[0] in narrowing and node.attribute[0].i == onnx.TensorProto.FLOAT:
            graphs.replace(fp16, node.output[0], narrowing[node.input[0]])


def quantise(fp32: onnx.ModelProto, batches: Iterable[Array], left_float: Iterable[str] = ()) -> onnx.ModelProto:
    """Static int8: signed weights a channel, signed activations a tensor, as QuantizeLinear/DequantizeLinear pairs.

    Ranges are the least and greatest values seen on `batches` (n×H×W×3 uint8). Layers named in `left_float` stay in
    float32, and so do preprocessing, standardisation and softmax.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows: Iterator[Array] = iter(batches)

        def get_next(self) -> dict[str, Array] | None:
            batch = next(self._rows, None)
            return None if batch is None else {INPUT: batch}

    with tempfile.TemporaryDirectory(prefix="graft-") as scratch:
        path = Path(scratch) / "int8.onnx"
        quantize_static(
            copy(fp32),
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            nodes_to_quantize=_quantisable(fp32, set(left_float)),
        )
        return onnx.load(path)


def sensitive_layers(fp32: onnx.ModelProto, int8: onnx.ModelProto, images: Array, share: float) -> list[str]:
    """The first and the last layer, and the `share` of the others where int8 adds the most noise on `images`.

    A layer's noise is the squared error of its int8 output over the squared output, less what came in with its input.
    """
    constants = {tensor.name for tensor in fp32.graph.initializer}
    layers = [node for node in fp32.graph.node if node.op_type in LAYERS and node.input[1] in constants]
    inner = layers[1:-1]
    noise = _noise(fp32, int8, images, {name for node in inner for name in (node.input[0], node.output[0])})
    added = {node.name: noise.get(node.output[0], 0.0) - noise.get(node.input[0], 0.0) for node in inner}
    worst = sorted(added, key=lambda name: (-added[name], name))[: round(share * len(inner))]
    return [node.name for node in layers if node in (layers[0], layers[-1]) or node.name in worst]


def _noise(fp32: onnx.ModelProto, int8: onnx.ModelProto, images: Array, names: set[str]) -> dict[str, float]:
    both = names & {name for node in fp32.graph.node for name in node.output}
    both &= {name for node in int8.graph.node for name in node.output}
    wanted = sorted(both)
    true, rounded = (_activations(proto, images, wanted) for proto in (fp32, int8))
    return {
        name: float(np.square(b - a).sum() / max(float(np.square(a).sum()), 1e-30))
        for name, a, b in zip(wanted, true, rounded, strict=True)
    }


def _activations(proto: onnx.ModelProto, images: Array, names: list[str]) -> list[Array]:
    probe = copy(proto)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = onnxruntime.InferenceSession(probe.SerializeToString(), providers=["CPUExecutionProvider"])
    return [np.asarray(values) for values in session.run(names, {INPUT: images})]


def _quantisable(fp32: onnx.ModelProto, left_float: set[str]) -> list[str]:
    constants = {tensor.name for tensor in fp32.graph.initializer}
    return [
        node.name
        for node in fp32.graph.node
        if (node.op_type in LAYERS and node.name not in left_float)
        # Additions of a constant are preprocessing, standardisation and biases, not residual connections.
        or (node.op_type in CARRIERS and (node.op_type != "Add" or not constants.intersection(node.input)))
    ]


def _preprocessing(proto: onnx.ModelProto) -> set[str]:
    """Names of the nodes between the input and the first layer."""
    from_picture, names = {INPUT}, set()
    for node in proto.graph.node:
        if node.op_type not in LAYERS and from_picture.intersection(node.input):
            from_picture.update(node.output)
            names.add(node.name)
    return names


def copy(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A model that can be changed without changing `proto`."""
    twin = onnx.ModelProto()
    twin.CopyFrom(proto)
    return twin
