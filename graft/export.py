"""From the trained network to one self-contained ONNX file, checked against Keras in a child process.

In: the fine-tuned network and the prepared pictures. Out: `model.fp32.onnx` as `docs/model-file.md` describes,
`labels.txt`, `export.json`, and a Triton model repository around the same bytes.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import onnx
import tf2onnx
from keras import layers

from graft import adaptation, features, heads, params, provenance
from graft.datasets import preparation
from graft.errors import GraftError
from graft.inference import FORMAT, INPUT, OUTPUT

OPSET = 17
# Batches of one, odd and prime sizes: an axis that was fixed by mistake shows in one of them.
PARITY_BATCHES = (1, 3, 17)
HISTOGRAM_BINS = 10

Array = npt.NDArray[Any]


def export(settings: params.Params, prepared: Path, network: Path, folder: Path, lock: str) -> dict[str, Any]:
    """Write the model files into `folder`; returns what `export.json` says. `lock` is the hash of the inputs.

    Raises:
        GraftError: the file differs from Keras by more than `export.max_difference`, or does not convert.
    """
    description = preparation.describe(prepared)
    model = classifier(settings, network)
    metadata = _metadata(settings, description, network, model, prepared, lock)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "model.fp32.onnx"
    path.write_bytes(convert(model, metadata).SerializeToString(deterministic=True))
    images, _ = preparation.load_split(prepared, "test")
    parity = check_parity(model, path, images.take(np.arange(min(sum(PARITY_BATCHES), len(images)))))
    if parity["max_difference"] > settings.export.max_difference:
        raise GraftError(
            f"the exported file differs from Keras by {parity['max_difference']:.2g}, more than "
            f"export.max_difference ({settings.export.max_difference:g}) allows; nothing is shipped"
        )
    (folder / "labels.txt").write_text("".join(f"{name}\n" for name in description["classes"]), encoding="utf-8")
    _write_triton(settings.export.name, path, folder, description)
    # What was measured is rounded: its last digits carry no news and would differ from machine to machine.
    rounded = {key: float(f"{value:.1g}") if key == "max_difference" else value for key, value in parity.items()}
    summary = {"precisions": {"fp32": {"file": path.name, "bytes": path.stat().st_size, "shipped": True} | rounded}}
    heads.write_json(folder / "export.json", summary)
    return summary


def classifier(settings: params.Params, network: Path) -> keras.Model:
    """The whole trained network from uint8 `image` to softmax `probabilities`."""
    trunk, head = adaptation.restore(settings, network)
    logits = head(features.pooled(trunk.cut, settings.features.pooling))
    return keras.Model(trunk.image, layers.Softmax(name=OUTPUT)(logits), name=settings.export.name)


def convert(model: keras.Model, metadata: dict[str, Any]) -> onnx.ModelProto:
    """The model as ONNX with a batch axis named `batch` and `metadata` under `graft.` keys.

    Raises:
        GraftError: an operator has no counterpart in ONNX.
    """
    import tensorflow as tf

    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name=INPUT)]
    try:
        proto, _ = tf2onnx.convert.from_keras(model, input_signature=signature, opset=OPSET)
    except Exception as error:  # tf2onnx raises many kinds, with the operator's name in the text
        raise GraftError(f"the network does not convert to ONNX ({error}); choose another backbone.layer") from error
    _rename(proto)
    proto.producer_name, proto.producer_version, proto.doc_string = "graft", "", ""
    proto.graph.name = str(metadata["name"])
    for key, value in sorted(metadata.items()):
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
        proto.metadata_props.add(key=f"graft.{key}", value=text)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _rename(proto: onnx.ModelProto) -> None:
    old = proto.graph.output[0].name
    proto.graph.output[0].name = OUTPUT
    for node in proto.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                if name == old:
                    names[i] = OUTPUT
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # Inferred shapes still carry the converter's own axis names; readers infer them again.
    del proto.graph.value_info[:]


def check_parity(model: keras.Model, path: Path, images: Array) -> dict[str, Any]:
    """Largest difference and top-1 agreement between Keras and the file, run in a process without TensorFlow.

    Raises:
        GraftError: the child could not open or run the file.
    """
    starts = np.cumsum([0, *PARITY_BATCHES])
    batches = [images[a:b] for a, b in zip(starts, starts[1:], strict=False) if len(images[a:b])]
    with tempfile.TemporaryDirectory(prefix="graft-") as scratch:
        samples = Path(scratch) / "samples.npz"
        pairs: dict[str, Array] = {}
        for i, batch in enumerate(batches):
            pairs |= {f"image_{i}": batch, f"expected_{i}": np.asarray(model.predict_on_batch(batch))}
        np.savez(samples, **pairs)
        child = subprocess.run(
            [sys.executable, "-m", "graft.parity", str(path), str(samples)], capture_output=True, text=True, check=False
        )
    if child.returncode:
        reason = (child.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise GraftError(f"the exported file cannot be run by ONNX Runtime: {reason}")
    result: dict[str, Any] = json.loads(child.stdout)
    return result


def _metadata(
    settings: params.Params,
    description: dict[str, Any],
    network: Path,
    model: keras.Model,
    prepared: Path,
    lock: str,
) -> dict[str, Any]:
    trained = json.loads((network / adaptation.DESCRIPTION).read_text(encoding="utf-8"))
    size = settings.data.image_size
    return {
        "format": FORMAT,
        "name": settings.export.name,
        "classes": description["classes"],
        "image_size": [size, size],
        "precision": "fp32",
        "metrics": {"validation_accuracy": round(trained["validation_accuracy"], 4), "kept": trained["kept"]},
        "reference": _reference(model, prepared),
        "provenance": provenance.collect(settings, description["fingerprint"], lock),
    }


def _reference(model: keras.Model, prepared: Path) -> dict[str, Any]:
    """Shares of predicted classes and of confidence on the validation pictures, to compare served traffic with."""
    images, _ = preparation.load_split(prepared, "validation")
    probabilities = np.concatenate([np.asarray(model.predict_on_batch(batch)) for batch in images.batches(256)])
    shares = np.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]) / len(probabilities)
    histogram, _ = np.histogram(probabilities.max(1), bins=HISTOGRAM_BINS, range=(0, 1))
    return {
        "images": len(probabilities),
        "class_shares": [round(float(share), 4) for share in shares],
        "confidence_histogram": [round(float(count) / len(probabilities), 4) for count in histogram],
    }


def _write_triton(name: str, path: Path, folder: Path, description: dict[str, Any]) -> None:
    """The layout that Triton and KServe load: `{name}/1/model.onnx`, `config.pbtxt`, labels."""
    repository = folder / "triton" / name
    (repository / "1").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, repository / "1" / "model.onnx")
    shutil.copyfile(folder / "labels.txt", repository / "labels.txt")
    size, classes = description["image_size"], len(description["classes"])
    (repository / "config.pbtxt").write_text(
        f'name: "{name}"\n'
        'platform: "onnxruntime_onnx"\n'
        "max_batch_size: 256\n"
        f'input [{{ name: "{INPUT}" data_type: TYPE_UINT8 dims: [ {size}, {size}, 3 ] }}]\n'
        f'output [{{ name: "{OUTPUT}" data_type: TYPE_FP32 dims: [ {classes} ] label_filename: "labels.txt" }}]\n'
        "dynamic_batching { }\n",
        encoding="utf-8",
    )
