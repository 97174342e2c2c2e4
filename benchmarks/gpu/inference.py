"""The exported VGG16 on an NVIDIA GPU: fp32, fp16 and TensorRT at 224 pixels against the chip's arithmetic limit.

Images a second at batch 1, 32 and 256, with the copies to and from the GPU counted (`predict`) and not counted (buffers
that stay there, the launches replayed as one CUDA graph). The limit is a matrix product of 8192² in the same precision,
measured in the same run by the same runtime. Without a GPU it says so and measures nothing.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper

from graft import providers
from graft.errors import GraftError
from graft.inference import Bound, open_model

SIZE = 224
BATCHES = (1, 32, 256)
ROUNDS = 20
PRODUCT = 8192
# Multiplications and additions of VGG16's 13 convolutions at 224 × 224 (Simonyan and Zisserman 2014, configuration D).
FLOP = 30.7e9


def main() -> None:
    if not providers.count_gpus():
        print("No NVIDIA GPU answers here: nothing was measured.")
        return
    providers.preload()
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as scratch:
        folder = Path(scratch)
        write(folder)
        print("| provider | precision | batch | images/s, copies counted | not counted | share of the limit |")
        print("|---|---|---|---|---|---|")
        limits = {"fp32": limit(TensorProto.FLOAT, np.float32), "fp16": limit(TensorProto.FLOAT16, np.float16)}
        for provider in ("cuda", "tensorrt"):
            for precision in ("fp32", "fp16"):
                lines(folder / f"{precision}.onnx", provider, precision, limits[precision])
        print(f"\nLimits: {', '.join(f'{name} {rate / 1e12:.0f} TFLOP/s' for name, rate in limits.items())}")


def write(folder: Path) -> None:
    """The network with random weights in both precisions."""
    from benchmarks.inference_engines import keras_model
    from graft.export import conversion, files, precisions

    fp32 = conversion.convert(keras_model(SIZE), ("probabilities",))
    names = [str(i) for i in range(10)]
    facts = {"format": "1", "name": "vgg16", "classes": names, "image_size": [SIZE, SIZE]}
    for precision, proto in (("fp32", fp32), ("fp16", precisions.half(fp32))):
        files.write_model(proto, facts | {"precision": precision}, folder / f"{precision}.onnx")


def lines(path: Path, provider: str, precision: str, most: float) -> None:
    try:
        model = open_model(path, provider)
        replayed = open_model(path, provider, cuda_graphs=True)
    except GraftError as error:
        print(f"| {provider} | {precision} | | {error} | | |", flush=True)
        return
    for batch in BATCHES:
        images = np.random.default_rng(0).integers(0, 256, (batch, SIZE, SIZE, 3), dtype=np.uint8)
        bound = Bound(replayed, batch)
        bound.load(images)
        expected = model.predict(images)
        bound.run()
        assert np.abs(bound.read() - expected).max() < 0.02, "the replayed graph gives other answers"
        copied = batch / median(lambda pixels=images: model.predict(pixels))
        resident = batch / median(bound.run)
        share = resident * FLOP / most
        print(f"| {provider} | {precision} | {batch} | {copied:.0f} | {resident:.0f} | {share:.0%} |", flush=True)


def limit(kind: int, dtype: type) -> float:
    """FLOP/s of one large matrix product."""
    values = [helper.make_tensor_value_info(name, kind, [PRODUCT, PRODUCT]) for name in "abc"]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "product", values[:2], values[2:])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CUDAExecutionProvider"], enable_fallback=0
    )
    assert session.get_providers()[0] == "CUDAExecutionProvider", "CUDA does not come up; see `graft doctor`"
    binding = session.io_binding()
    matrix = np.full((PRODUCT, PRODUCT), 0.01, dtype)
    for name in "ab":
        binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(matrix, "cuda", 0))
    out = onnxruntime.OrtValue.ortvalue_from_shape_and_type((PRODUCT, PRODUCT), dtype, "cuda", 0)
    binding.bind_ortvalue_output("c", out)
    return 2 * PRODUCT**3 / median(lambda: session.run_with_iobinding(binding))


def median(run: Callable[[], object]) -> float:
    """Median seconds of a run that waits for the GPU, after warm-up."""
    for _ in range(3):
        run()
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


if __name__ == "__main__":
    main()
