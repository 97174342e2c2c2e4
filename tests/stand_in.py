"""A small project as the earlier stages leave it, made in a second: real pictures, a real ONNX file, no TensorFlow."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file
from sklearn.datasets import load_digits
from sklearn.neural_network import MLPClassifier

from graft.inference import open_model
from graft.shards import ShardWriter

SIZE = 32
HIDDEN = 32
LEFT_OUT = "fp16 differs from Keras by 0.05, more than export.max_difference_fp16 (0.02)"
TEMPERATURE = 1.25  # that the files are said to divide their logits by


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1,797 grey digits as N×32×32×3 uint8, and their labels."""
    bunch = load_digits()
    grey = np.rint(bunch.images * 255 / 16).astype(np.uint8)
    return np.repeat(np.kron(grey, np.ones((1, 4, 4), np.uint8))[..., None], 3, axis=3), bunch.target.astype(np.int64)


def write_prepared(folder: Path, splits: dict[str, tuple[np.ndarray, np.ndarray]], classes: list[str]) -> None:
    summary = {}
    for name, (images, labels) in splits.items():
        for part, rows in (("images", images), ("labels", labels)):
            with ShardWriter(folder, f"{name}.{part}", rows.shape[1:], rows.dtype, rows_per_shard=500) as writer:
                writer.append(rows)
        names = [f"{name}/{classes[label]}/{row:04d}.png" for row, label in enumerate(labels)]
        (folder / f"{name}.names.txt").write_text("".join(f"{line}\n" for line in names), encoding="utf-8")
        summary[name] = {
            "images": len(labels),
            "per_class": np.bincount(labels, minlength=len(classes)).tolist(),
        }
    description = {
        "format": 1,
        "source": "digits",
        "classes": classes,
        "image_size": SIZE,
        "splits": summary,
        "quarantined": [{"file": "seven/torn.png", "reason": "the file ends early"}],
        "duplicates": [{"kept": "test/1/0001.png", "removed": "train/1/0009.png"}],
        "fingerprint": "f" * 64,
    }
    (folder / "dataset.json").write_text(json.dumps(description), encoding="utf-8")


def write_model(path: Path, layers: dict[str, np.ndarray], classes: list[str], size: int = SIZE) -> None:
    """An MLP on pixels with the signature of docs/model-file.md: `dense_0` with ReLU, then `dense_1`, then softmax."""
    values = {key: np.asarray(value, np.float32) for key, value in layers.items()}
    values["scale"] = np.float32(1 / 255)
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels", "scale"], ["scaled"]),
        helper.make_node("Flatten", ["scaled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "dense_0/kernel"], ["product_0"]),
        helper.make_node("Add", ["product_0", "dense_0/bias"], ["sum_0"]),
        helper.make_node("Relu", ["sum_0"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "dense_1/kernel"], ["product_1"]),
        helper.make_node("Add", ["product_1", "dense_1/bias"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=1),
    ]
    graph = helper.make_graph(
        nodes,
        "stand_in",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", len(classes)])],
        [numpy_helper.from_array(value, key) for key, value in values.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    metadata: dict[str, Any] = {
        "format": "1",
        "name": "stand-in",
        "classes": json.dumps(classes),
        "image_size": json.dumps([size, size]),
        "precision": "fp32",
        "metrics": json.dumps({"validation_accuracy": 0.9}),
        "reference": json.dumps({"images": 1, "class_shares": [], "confidence_histogram": []}),
        "provenance": json.dumps({"data_fingerprint": "f" * 64, "versions": {"onnx": onnx.__version__}}),
    }
    helper.set_model_props(model, {f"graft.{key}": value for key, value in metadata.items()})
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(model, path)


def write_project(root: Path) -> None:
    """Everything that `evaluate` reads: the head sees half the pixels and so is the weaker of the two."""
    images, labels = digits()
    order = np.random.default_rng(0).permutation(len(labels))
    parts = {"train": order[:1200], "validation": order[1200:1400], "test": order[1400:]}
    splits = {name: (images[rows], labels[rows]) for name, rows in parts.items()}
    classes = [str(digit) for digit in range(10)]
    write_prepared(root / "data/prepared", splits, classes)
    pooled = {name: rows[0].mean(axis=3)[:, ::4, ::4].reshape(len(rows[0]), -1) for name, rows in splits.items()}
    for name, rows in pooled.items():
        with ShardWriter(root / "data/features", f"{name}.features", rows.shape[1:], np.float16) as writer:
            writer.append(rows)
    _write_training(root, pooled["train"], splits["train"])
    full = images[parts["train"]].reshape(1200, -1) / 255.0
    layers = _layers(_fit(full, labels[parts["train"]], 12))
    write_model(root / "models/onnx/model.fp32.onnx", layers, classes)
    small = {key: value.astype(np.float16) for key, value in layers.items()}
    write_model(root / "models/onnx/model.int8.onnx", small, classes)
    _write_export(root, *splits["test"])


def _write_export(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """`export.json` with what the export stage finds out about each file on the test pictures."""
    files = {name: root / f"models/onnx/model.{name}.onnx" for name in ("fp32", "int8")}
    said = {name: open_model(path, "cpu", 1).predict(images).argmax(axis=1) for name, path in files.items()}
    facts = {
        name: {
            "file": path.name,
            "bytes": path.stat().st_size,
            "shipped": True,
            "test_images": len(labels),
            "accuracy": float((said[name] == labels).mean()),
            "test_agreement": float((said[name] == said["fp32"]).mean()),
            "max_difference": {"fp32": 3e-7, "int8": 0.03}[name],
        }
        for name, path in files.items()
    }
    facts["fp16"] = {"shipped": False, "reason": LEFT_OUT}
    summary = {"precisions": facts, "temperature": TEMPERATURE}
    (root / "models/onnx/export.json").write_text(json.dumps(summary), encoding="utf-8")


def _write_training(root: Path, features: np.ndarray, train: tuple[np.ndarray, np.ndarray]) -> None:
    mean, std = features.mean(axis=0), features.std(axis=0) + 1
    layers = _layers(_fit((features - mean) / std, train[1], 3))
    (root / "models/head").mkdir(parents=True)
    (root / "models/finetuned").mkdir(parents=True)
    arrays = {"mean": mean, "std": std, **layers}
    save_file(
        {key: np.ascontiguousarray(value, np.float32) for key, value in arrays.items()},
        root / "models/head/head.safetensors",
    )
    for part, epochs in (("head", 12), ("finetuned", 4)):
        history = [
            {
                "epoch": n,
                "loss": 1 / n,
                "accuracy": 1 - 0.5 / n,
                "val_loss": 1.1 / n,
                "val_accuracy": 1 - 0.6 / n,
                "learning_rate": 1e-3 / n,
            }
            for n in range(1, epochs + 1)
        ]
        (root / f"models/{part}/history.json").write_text(
            json.dumps({"epochs": history, "kept": epochs}), encoding="utf-8"
        )


def _fit(rows: np.ndarray, labels: np.ndarray, steps: int) -> MLPClassifier:
    import warnings

    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return MLPClassifier((HIDDEN,), max_iter=steps, random_state=0).fit(rows, labels)


def _layers(model: MLPClassifier) -> dict[str, np.ndarray]:
    return {
        f"dense_{index}/{name}": value
        for index, pair in enumerate(zip(model.coefs_, model.intercepts_, strict=True))
        for name, value in zip(("kernel", "bias"), pair, strict=True)
    }
