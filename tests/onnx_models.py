"""Tiny exported files, built node by node, so that tests of inference and serving need no TensorFlow."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, checker, helper, numpy_helper, save

COLOURS = ("red", "green", "blue")
METADATA: dict[str, Any] = {
    "format": "1",
    "precision": "fp32",
    "metrics": {"validation_accuracy": 0.987},
    "reference": {
        "images": 300,
        "class_shares": [0.5, 0.25, 0.25],
        "confidence_histogram": [0, 0, 0, 0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3],
    },
    "provenance": {
        "git": "0123456789abcdef0123456789abcdef01234567",
        "date": "2026-03-05T12:00:00+00:00",
        "licence": "Apache-2.0",
    },
}


def colour_model(
    path: Path,
    *,
    name: str = "colours",
    size: int = 32,
    classes: Sequence[str] = COLOURS,
    sharpness: float = 8.0,
    work: int = 0,
    metadata: dict[str, Any] | None = None,
) -> Path:
    """Write a model whose first three classes are the mean red, green and blue of the picture.

    `sharpness` scales the logits: a negative one turns the answer round, which tells two versions apart.
    `work` adds that many 3×3 convolutions of 32 channels, to make a run take longer.
    """
    outputs = np.zeros((3, len(classes)), np.float32)
    outputs[:3, :3] = np.eye(3) * sharpness
    constants = {"scale": np.float32(1 / 255), "weights": outputs, "mean_axes": np.array([2, 3], np.int64)}
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    for index in range(work):
        channels = 3 if index == 0 else 32
        constants[f"kernel{index}"] = np.full((32, channels, 3, 3), 1e-3, np.float32)
        nodes.append(helper.make_node("Conv", [f"x{index}", f"kernel{index}"], [f"x{index + 1}"], pads=[1, 1, 1, 1]))
    if work:
        constants["some"] = np.array([0], np.int64)
        constants["next"] = np.array([3], np.int64)
        constants["channel"] = np.array([1], np.int64)
        constants["nothing"] = np.float32(0)
        nodes += [
            helper.make_node("Slice", [f"x{work}", "some", "next", "channel"], ["slice"]),
            helper.make_node("Mul", ["slice", "nothing"], ["silence"]),
            helper.make_node("Add", ["x0", "silence"], ["last"]),
        ]
    nodes += [
        helper.make_node("ReduceMean", ["last" if work else "x0", "mean_axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(classes)])],
        [numpy_helper.from_array(np.asarray(value), key) for key, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    entries = {
        "name": name,
        "classes": list(classes),
        "image_size": [size, size],
        **METADATA,
        **(metadata or {}),
    }
    helper.set_model_props(
        model,
        {
            f"graft.{key}": value if isinstance(value, str) else json.dumps(value)
            for key, value in entries.items()
            if value is not None
        },
    )
    checker.check_model(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    save(model, path)
    return path
