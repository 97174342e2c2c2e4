"""VGG16 as an exported file with random weights: speed does not depend on what it learnt."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))
CLASSES = [f"class {index}" for index in range(10)]
HIDDEN = 256


def vgg16(path: Path, width: float = 1.0, size: int = 32, seed: int = 7) -> Path:
    """Write VGG16 (Simonyan and Zisserman 2014) with `width` times its channels, `size` pixels a side.

    Preprocessing, thirteen convolutions, a hidden layer and softmax; seeded He-normal weights, batch axis free.
    """
    rng = np.random.default_rng(seed)
    constants: dict[str, np.ndarray] = {"means": np.array([103.939, 116.779, 123.68], np.float32).reshape(1, 3, 1, 1)}
    constants["bgr"] = np.array([2, 1, 0], np.int64)
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Transpose", ["real"], ["rgb"], perm=[0, 3, 1, 2]),
        helper.make_node("Gather", ["rgb", "bgr"], ["swapped"], axis=1),
        helper.make_node("Sub", ["swapped", "means"], ["x"]),
    ]
    tensor, channels = "x", 3
    for block, (layers, filters) in enumerate(BLOCKS, 1):
        for layer in range(1, layers + 1):
            name, out = f"block{block}_conv{layer}", round(filters * width)
            kernel = rng.normal(0, np.sqrt(2 / (channels * 9)), (out, channels, 3, 3))
            constants[f"{name}_w"], constants[f"{name}_b"] = kernel, np.zeros(out)
            nodes.append(helper.make_node("Conv", [tensor, f"{name}_w", f"{name}_b"], [name], pads=[1, 1, 1, 1]))
            nodes.append(helper.make_node("Relu", [name], [f"{name}_relu"]))
            tensor, channels = f"{name}_relu", out
        nodes.append(helper.make_node("MaxPool", [tensor], [f"pool{block}"], kernel_shape=[2, 2], strides=[2, 2]))
        tensor = f"pool{block}"
    features = channels * (size // 32) ** 2
    nodes.append(helper.make_node("Flatten", [tensor], ["flat"]))
    for name, given, inputs, units in (
        ("dense0", "flat", features, HIDDEN),
        ("dense1", "relu", HIDDEN, len(CLASSES)),
    ):
        constants[f"{name}_w"] = rng.normal(0, np.sqrt(2 / inputs), (inputs, units))
        constants[f"{name}_b"] = np.zeros(units)
        nodes.append(helper.make_node("Gemm", [given, f"{name}_w", f"{name}_b"], [name]))
        if name == "dense0":
            nodes.append(helper.make_node("Relu", [name], ["relu"]))
    nodes.append(helper.make_node("Softmax", ["dense1"], ["probabilities"]))
    graph = helper.make_graph(
        nodes,
        "vgg16",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(CLASSES)])],
        [
            numpy_helper.from_array(value if value.dtype == np.int64 else value.astype(np.float32), key)
            for key, value in constants.items()
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = {
        "format": "1",
        "name": "vgg16",
        "classes": json.dumps(CLASSES),
        "image_size": json.dumps([size, size]),
        "precision": "fp32",
    }
    helper.set_model_props(model, {f"graft.{key}": value for key, value in metadata.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)
    return path
