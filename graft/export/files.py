"""What `models/onnx` holds: sealed model files, their labels, and a Triton model repository of the best one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from graft import checksum
from graft.inference import OUTPUT

TRITON_MAX_BATCH = 256
_TRITON_TYPES = {onnx.TensorProto.UINT8: "TYPE_UINT8", onnx.TensorProto.FLOAT: "TYPE_FP32"}


def model_file(precision: str) -> str:
    """The file's name for a precision."""
    return f"model.{precision}.onnx"


def write_model(proto: onnx.ModelProto, metadata: Mapping[str, Any], path: Path) -> None:
    """Write `proto` with `metadata` under `graft.` keys and its checksum; equal inputs give equal bytes."""
    del proto.metadata_props[:]
    # First, so that a file cut off anywhere behind the graph still holds the checksum that it misses.
    proto.metadata_props.add(key=checksum.KEY, value=checksum.BLANK)
    for key, value in sorted(metadata.items()):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
        proto.metadata_props.add(key=f"graft.{key}", value=text)
    path.write_bytes(checksum.seal(proto.SerializeToString(deterministic=True)))


def write_triton(name: str, model: Path, classes: list[str], folder: Path) -> None:
    """The layout that Triton and KServe load: `{name}/1/model.onnx`, `config.pbtxt`, `labels.txt`."""
    repository = folder / name
    (repository / "1").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, repository / "1" / "model.onnx")
    write_labels(classes, repository / "labels.txt")
    proto = onnx.load(model)
    inputs = [_tensor("input", value) for value in proto.graph.input]
    outputs = [_tensor("output", value) for value in proto.graph.output]
    (repository / "config.pbtxt").write_text(
        "\n".join(
            (
                f'name: "{name}"',
                'backend: "onnxruntime"',
                f"max_batch_size: {TRITON_MAX_BATCH}",
                *inputs,
                *outputs,
                "dynamic_batching { }",
                "",
            )
        ),
        encoding="utf-8",
    )


def _tensor(kind: str, value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    # Triton adds the batch axis itself; -1 is an axis of any size.
    sizes = ", ".join(str(axis.dim_value or -1) for axis in tensor.shape.dim[1:])
    labels = ' label_filename: "labels.txt"' if value.name == OUTPUT else ""
    return (
        f'{kind} [ {{ name: "{value.name}" data_type: {_TRITON_TYPES[tensor.elem_type]} dims: [ {sizes} ]{labels} }} ]'
    )


def write_labels(classes: list[str], path: Path) -> None:
    """One class name a line, in the order of the probabilities."""
    path.write_text("".join(f"{name}\n" for name in classes), encoding="utf-8")
