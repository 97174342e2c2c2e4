"""The nearest mean colour of a class, as an ONNX file of Graft's form: what it learns is what the labels say."""

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

from graft import params
from graft.evaluation.study import Study

SHARPNESS = 60.0


def main() -> None:
    study = Study(Path())
    images, labels = study.images("train"), study.labels("train")
    colours = np.concatenate([batch.mean(axis=(1, 2)) for batch in images.batches(256)]) / 255
    centres = np.stack([colours[labels == index].mean(axis=0) for index in range(len(study.classes))])
    size = images.row_shape[0]
    constants = {
        "scale": np.float32(1 / 255),
        "axes": np.array([1, 2], np.int64),
        "weights": (2 * SHARPNESS * centres.T).astype(np.float32),
        "bias": (-SHARPNESS * (centres**2).sum(axis=1)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Cast", ["image"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "scale"], ["scaled"]),
        helper.make_node("ReduceMean", ["scaled", "axes"], ["colour"], keepdims=0),
        helper.make_node("MatMul", ["colour", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(study.classes)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    metadata = {
        "format": "1",
        "name": params.load().export.name,
        "classes": study.classes,
        "image_size": [size, size],
        "precision": "fp32",
    }
    helper.set_model_props(
        model, {f"graft.{k}": v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    )
    folder = Path("models/onnx")
    folder.mkdir(parents=True, exist_ok=True)
    save(model, folder / "model.fp32.onnx")


if __name__ == "__main__":
    main()
