"""Feature extraction with VGG16 on this CPU: MNN as Graft runs it, against its peers and a matrix product.

One network with the same random weights at full width. Each engine has a process of its own; the rounds alternate, with
numpy's float32 product of two 2048 × 2048 matrices among them; tables show medians and the spread from least to
most. `GRAFT_PEERS=that/bin/python` names a Python with Graft's requirements, openvino, torch and MNN.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.inference import Engine, prepare
from graft.backbones import VGG16_BLOCKS

ENGINES = {
    "mnn": "Graft on MNN",
    "graft fp32": "ONNX Runtime",
    "openvino": "OpenVINO",
    "torch": "torch, channels last",
    "tf.function": "tf.function",
    "keras": "keras.Model.predict",
}
BATCHES = {32: 64, 224: 4}
ROUNDS = 5
SIDE = 2048
SGEMM_BOUND, KERAS_BOUND = 1.8, 2.5


def operations(size: int) -> float:
    """Floating point operations of one picture, a multiplication and an addition counted as two."""
    total, channels = 0, 3
    for filters, count in VGG16_BLOCKS:
        for _ in range(count):
            total += 2 * 9 * channels * filters * size * size
            channels = filters
        size //= 2
    return float(total)


def product(matrix: np.ndarray) -> float:
    """Seconds of one product."""
    start = time.perf_counter()
    matrix @ matrix
    return time.perf_counter() - start


def main(batches: dict[int, int] = BATCHES) -> None:
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as scratch:
        prepare(Path(scratch), tuple(batches))
        engines = [Engine(name, Path(scratch)) for name in ENGINES]
        for engine in engines:
            if engine.missing:
                print(f"{ENGINES[engine.name]} is left out: {engine.missing}")
        present = [engine for engine in engines if not engine.missing]
        for size, batch in batches.items():
            table(present, size, batch)
        for engine in present:
            engine.close()


def table(engines: list[Engine], size: int, batch: int) -> None:
    matrix = np.random.default_rng(0).random((SIDE, SIDE), np.float32)
    product(matrix)
    for engine in engines:
        engine.seconds(size, batch)
    ceiling: list[float] = []
    rounds: dict[str, list[float]] = {engine.name: [] for engine in engines}
    for _ in range(ROUNDS):
        ceiling.append(2 * SIDE**3 / product(matrix))
        for engine in engines:
            rounds[engine.name].append(batch / engine.seconds(size, batch))
    sgemm = statistics.median(ceiling)
    rates = {name: statistics.median(found) for name, found in rounds.items()}
    spread = f"{min(ceiling) / 1e9:.0f} to {max(ceiling) / 1e9:.0f}"
    print(f"\n{size} pixels, batch {batch}; sgemm {sgemm / 1e9:.0f} GFLOP/s ({spread})\n")
    print("| engine | images/s | spread | times sgemm | times keras.predict |\n|---|---|---|---|---|")
    for name, rate in rates.items():
        share, gain = rate * operations(size) / sgemm, rate / rates["keras"]
        found = rounds[name]
        print(f"| {ENGINES[name]} | {rate:.1f} | {min(found):.1f} to {max(found):.1f} | {share:.2f} | {gain:.2f} |")
        if name == "mnn" and (share < SGEMM_BOUND or gain < KERAS_BOUND):
            print(f"Short of {SGEMM_BOUND} times sgemm or {KERAS_BOUND} times keras.predict.")


if __name__ == "__main__":
    main()
