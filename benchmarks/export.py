"""The export itself: seconds and peak memory with one, two and three precisions, and the conversion tf2onnx's way.

The conversion is done once whatever is asked for, so peak memory must not grow with the number of files. Random
weights at full width, VGG16 and ResNet50; every line is a process of its own, and deriving another. Each process reads
its own clock without the imports, and its own peak.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.memory import peak

BACKBONES = ("vgg16", "resnet50")
CASES = (("fp32",), ("fp32", "fp16"), ("fp32", "fp16", "int8"), ("tf2onnx",))
GROWTH = 1.05


def main() -> None:
    print("| backbone | files | convert, s | derive, s | peak, MB (converting process) | peak, MB (deriving process) |")
    print("|---|---|---|---|---|---|")
    short = []
    for backbone in BACKBONES:
        peaks = []
        for case in CASES:
            found = run(backbone, case)
            print(
                f"| {backbone} | {', '.join(case)} | {found['convert']:.1f} | {found['derive']:.1f} "
                f"| {found['peak']:.0f} | {found['child']:.0f} |",
                flush=True,
            )
            if case[0] == "fp32":
                peaks.append(max(found["peak"], found["child"]))
        if max(peaks) > GROWTH * peaks[0]:
            short.append(f"{backbone}: peak memory grows from {peaks[0]:.0f} to {max(peaks):.0f} MB with the files")
    print("\n" + ("\n".join(short) if short else "Peak memory does not grow with the number of files."))


def run(backbone: str, case: tuple[str, ...]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.export", backbone, *case]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def export(backbone: str, case: tuple[str, ...]) -> dict[str, float]:
    """Convert here; derive in a child, as the stage does."""
    import keras
    import tensorflow as tf
    import tf2onnx

    from graft import backbones, features, params
    from graft.export import conversion, files

    trunk = backbones.build(params.Backbone(name=backbone, weights="none", width=1.0, layer=""), 32)
    logits = keras.layers.Dense(10)(features.pooled(trunk.output, "avg"))
    model = keras.Model(trunk.input, keras.layers.Softmax()(logits), name="net")
    start = time.perf_counter()
    if case == ("tf2onnx",):
        signature = [tf.TensorSpec((None, 32, 32, 3), tf.uint8, name="image")]
        tf2onnx.convert.from_keras(model, input_signature=signature, opset=conversion.OPSET)
        return {"convert": time.perf_counter() - start, "derive": 0.0, "peak": peak(), "child": 0.0}
    proto = conversion.convert(model, ("probabilities",))
    converted = time.perf_counter() - start
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as scratch:
        path = Path(scratch) / "model.onnx"
        names = [str(i) for i in range(10)]
        facts = {"format": "1", "name": "net", "classes": names, "image_size": [32, 32], "precision": "fp32"}
        files.write_model(proto, facts, path)
        del proto
        command = [sys.executable, "-m", "benchmarks.export", "derive", str(path), *case[1:]]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
    return {"convert": converted, "peak": peak(), **json.loads(done.stdout.splitlines()[-1])}


def derive(path: Path, names: list[str]) -> dict[str, float]:
    import numpy as np
    import onnx
    import onnxruntime.quantization  # noqa: F401 - its import is no part of the work

    from graft.export import precisions

    start = time.perf_counter()
    fp32 = onnx.load(path)
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 32, 3), dtype=np.uint8)
    for name in names:
        proto = precisions.half(fp32) if name == "fp16" else precisions.quantise(fp32, [noise] * 8)
        (path.parent / f"{name}.onnx").write_bytes(proto.SerializeToString())
    return {"derive": time.perf_counter() - start, "child": peak()}


if __name__ == "__main__":
    if len(sys.argv) == 1:
        main()
    elif sys.argv[1] == "derive":
        print(json.dumps(derive(Path(sys.argv[2]), sys.argv[3:])))
    else:
        print(json.dumps(export(sys.argv[1], tuple(sys.argv[2:]))))
