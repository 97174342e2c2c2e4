"""The engines behind `benchmarks.inference`, one a process.

`python -m benchmarks.inference_engines ENGINE FOLDER` prints `{}` when it is ready (or what is missing), then answers
each line `[size, batch]` with the seconds that a batch of noise took, picture to probabilities: the median of the
batches that fit into a third of a second, the first left out where there are more, for it wakes the threads.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

CLASSES = 10
ROUND_SECONDS = 1 / 3
MEANS = (103.939, 116.779, 123.68)
Array = np.ndarray[Any, Any]
Predict = Callable[[Array], Any]


def prepare(folder: Path, sizes: list[int]) -> None:
    """`{precision}.{size}.onnx` for every size, and `weights.npz`."""
    from graft.export import conversion, files, precisions

    for size in sizes:
        model = keras_model(size)
        if size == sizes[0]:
            np.savez(folder / "weights.npz", *model.get_weights())
        model.set_weights([*np.load(folder / "weights.npz").values()])
        fp32 = conversion.convert(model, ("probabilities",))
        noise = pictures(size, 8)
        names = [str(i) for i in range(CLASSES)]
        facts = {"format": "1", "name": "vgg16", "classes": names, "image_size": [size, size]}
        int8 = precisions.quantise(fp32, [noise, noise])
        for precision, proto in (("fp32", fp32), ("int8", int8)):
            files.write_model(proto, facts | {"precision": precision}, folder / f"{precision}.{size}.onnx")


def pictures(size: int, count: int) -> Array:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def keras_model(size: int) -> Any:
    import keras

    from graft import backbones, features, params

    keras.utils.set_random_seed(7)
    trunk = backbones.build(params.Backbone(name="vgg16", weights="none", width=1.0, layer=""), size)
    logits = keras.layers.Dense(CLASSES)(features.pooled(trunk.output, "avg"))
    return keras.Model(trunk.input, keras.layers.Softmax()(logits), name="net")


def graft(folder: Path, precision: str) -> Callable[[int], Predict]:
    from graft.inference import open_model

    return lambda size: open_model(folder / f"{precision}.{size}.onnx", "cpu").predict


def openvino(folder: Path) -> Callable[[int], Predict]:
    import openvino

    core = openvino.Core()
    # By itself it computes in bfloat16 where the processor can, which is no float32.
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": len(os.sched_getaffinity(0)),
        "INFERENCE_PRECISION_HINT": "f32",
    }

    def load(size: int) -> Predict:
        compiled = core.compile_model(str(folder / f"fp32.{size}.onnx"), "CPU", settings)
        return lambda images: compiled(images)[0]

    return load


def torch(folder: Path) -> Callable[[int], Predict]:
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    *convolutions, kernel, bias = np.load(folder / "weights.npz").values()
    layers: list[Any] = []
    for i in range(0, len(convolutions), 2):
        weight = torch.from_numpy(convolutions[i].transpose(3, 2, 0, 1).copy())
        layer = torch.nn.Conv2d(weight.shape[1], weight.shape[0], 3, padding=1)
        layer.weight.data, layer.bias.data = weight, torch.from_numpy(convolutions[i + 1])
        layers += [layer, torch.nn.ReLU(inplace=True)]
        if i // 2 in (1, 3, 6, 9, 12):
            layers.append(torch.nn.MaxPool2d(2))
    trunk = torch.nn.Sequential(*layers).to(memory_format=torch.channels_last).eval()
    dense, means = torch.from_numpy(kernel), torch.tensor(MEANS)

    def predict(images: Array) -> Any:
        with torch.inference_mode():
            pixels = torch.from_numpy(images).float().flip(-1) - means
            found = trunk(pixels.permute(0, 3, 1, 2)).mean((2, 3))
            return torch.softmax(found @ dense + torch.from_numpy(bias), 1).numpy()

    return lambda size: predict


def keras(folder: Path) -> Callable[[int], Predict]:
    import keras as library  # noqa: F401 - says at once that it is missing

    def load(size: int) -> Predict:
        model = keras_model(size)
        model.set_weights([*np.load(folder / "weights.npz").values()])
        return lambda images: model.predict(images, batch_size=len(images), verbose=0)

    return load


def mnn(folder: Path) -> Callable[[int], Predict]:
    import MNN  # noqa: F401 - says at once that it is missing

    from graft import engines

    def load(size: int) -> Predict:
        model = keras_model(size)
        model.set_weights([*np.load(folder / "weights.npz").values()])
        outputs = {"features": model.get_layer("features").output}
        engine = engines.on_mnn(model.input, outputs, len(os.sched_getaffinity(0)), pictures(size, 32))
        kernel, bias = model.layers[-2].get_weights()

        def predict(images: Array) -> Any:
            logits = engine.run(images)["features"] @ kernel + bias
            shares = np.exp(logits - logits.max(1, keepdims=True))
            return shares / shares.sum(1, keepdims=True)

        return predict

    return load


def tf_function(folder: Path) -> Callable[[int], Predict]:
    import tensorflow as tf

    def load(size: int) -> Predict:
        model = keras_model(size)
        model.set_weights([*np.load(folder / "weights.npz").values()])
        compiled = tf.function(lambda images: model(images, training=False))
        return lambda images: compiled(tf.constant(images)).numpy()

    return load


ENGINES: dict[str, Callable[[Path], Callable[[int], Predict]]] = {
    "graft fp32": lambda folder: graft(folder, "fp32"),
    "graft int8": lambda folder: graft(folder, "int8"),
    "openvino": openvino,
    "torch": torch,
    "keras": keras,
    "tf.function": tf_function,
    "mnn": mnn,
}


def answer(load: Callable[[int], Predict], folder: Path) -> None:
    loaded: dict[int, Predict] = {}
    for line in sys.stdin:
        size, batch = json.loads(line)
        if size not in loaded:
            loaded.clear()  # one network in memory at a time
            loaded[size] = load(size)
            check(loaded[size], folder, size)
        images = pictures(size, batch)
        times: list[float] = []
        while sum(times) < ROUND_SECONDS:
            start = time.perf_counter()
            loaded[size](images)
            times.append(time.perf_counter() - start)
        print(json.dumps({"seconds": statistics.median(times[1:] or times)}), flush=True)


def check(predict: Predict, folder: Path, size: int) -> None:
    """All engines compute the same network: what is compared is its speed."""
    images = pictures(size, 2)
    expected = graft(folder, "fp32")(size)(images)
    difference = float(np.abs(np.asarray(predict(images)) - expected).max())
    assert difference < 0.05, f"another answer than the exported file's, by {difference:.2g}"


def main_worker(name: str, folder: Path) -> None:
    try:
        load = ENGINES[name](folder)
    except ImportError as error:
        print(json.dumps({"missing": str(error)}), flush=True)
        return
    print("{}", flush=True)
    answer(load, folder)


if __name__ == "__main__":
    if sys.argv[1] == "prepare":
        prepare(Path(sys.argv[2]), [int(size) for size in sys.argv[3:]])
    else:
        main_worker(sys.argv[1], Path(sys.argv[2]))
