"""The exported VGG16 on this CPU: fp32 against OpenVINO, torch and keras.predict, and int8 against fp32.

One network with the same random weights at full width, 13 convolutions and a linear layer, for pictures of 32, 64 and
224 pixels. Each engine has a process of its own that sleeps while another is measured, and all may use every core; the
rounds alternate between the engines, and the tables show medians. Engines that are not installed are named:
`pip install openvino torch` in any environment, and `GRAFT_PEERS=that/bin/python` lets the engines run in it.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

SIZES = (32, 64, 224)
BATCHES = (1, 8, 32)
ENGINES = ("graft fp32", "graft int8", "openvino", "torch", "keras")
ROUNDS = 5
SLOW_ROUNDS = 3  # where a batch takes seconds
SLOW_SECONDS = 1.0
BOUND = 0.95
INT8_BOUND = 1.8


class Engine:
    """A worker process that runs one engine and answers one line of JSON a request."""

    def __init__(self, name: str, folder: Path) -> None:
        python = os.environ.get("GRAFT_PEERS", sys.executable)
        command = [python, "-m", "benchmarks.inference_engines", name, str(folder)]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONPATH": str(Path.cwd())}
        self.name = name
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.missing = self._read().get("missing", "")

    def seconds(self, size: int, batch: int) -> float:
        """How long a batch took, the median of a third of a second of them."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([size, batch]) + "\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def close(self) -> None:
        """End the worker and wait for it."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        while line and not line.startswith("{"):  # MNN talks of the processor when it is loaded
            line = self._process.stdout.readline()
        return dict(json.loads(line)) if line else {"missing": f"ended with status {self._process.wait()}"}


def measure(engines: list[Engine], size: int, batch: int) -> dict[str, list[float]]:
    """Images a second in each round, by engine."""
    rounds: dict[str, list[float]] = {engine.name: [] for engine in engines}
    slowest = max(engine.seconds(size, batch) for engine in engines)  # warm-up: memory, kernels, graphs
    for _ in range(SLOW_ROUNDS if slowest > SLOW_SECONDS else ROUNDS):
        for engine in engines:
            rounds[engine.name].append(engine.seconds(size, batch))
    return {name: [batch / seconds for seconds in times] for name, times in rounds.items()}


def cell(rates: list[float]) -> str:
    """Median, and half the distance between the quartiles as a share of it."""
    low, median, high = statistics.quantiles(rates, n=4, method="inclusive")
    return f"{median:.1f} ±{(high - low) / 2 / median:.0%}"


def prepare(folder: Path, sizes: tuple[int, ...]) -> None:
    """Write the network for every size, once for all engines: ONNX files and the weights alone."""
    command = [sys.executable, "-m", "benchmarks.inference_engines", "prepare", str(folder), *map(str, sizes)]
    subprocess.run(command, check=True, env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}, stderr=subprocess.DEVNULL)


def main(sizes: tuple[int, ...] = SIZES, batches: tuple[int, ...] = BATCHES) -> None:
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as scratch:
        folder = Path(scratch)
        prepare(folder, sizes)
        engines = [Engine(name, folder) for name in ENGINES]
        for engine in engines:
            if engine.missing:
                print(f"{engine.name} is left out: {engine.missing}")
        present = [engine for engine in engines if not engine.missing]
        table(present, sizes, batches)
        for engine in present:
            engine.close()


def table(engines: list[Engine], sizes: tuple[int, ...], batches: tuple[int, ...]) -> None:
    names = [engine.name for engine in engines]
    print("Images a second, median ± half the quartiles' distance; `best` is fp32 against the fastest other float32")
    print("engine in the medians.\n")
    print(f"| pixels | batch | {' | '.join(names)} | best | int8 / fp32 |")
    print(f"|---|---|{'---|' * (len(names) + 2)}")
    short = []
    for size in sizes:
        for batch in batches:
            found = measure(engines, size, batch)
            speed = {name: statistics.median(rates) for name, rates in found.items()}
            peers = [rate for name, rate in speed.items() if not name.startswith("graft")]
            ratio = speed["graft fp32"] / max(peers) if peers else float("nan")
            gain = speed["graft int8"] / speed["graft fp32"]
            cells = " | ".join(cell(found[name]) for name in names)
            print(f"| {size} | {batch} | {cells} | {ratio:.2f} | {gain:.2f} |", flush=True)
            if peers and ratio < BOUND:
                short.append(f"{size} pixels, batch {batch}: fp32 at {ratio:.2f} of the best, bound {BOUND}")
            if batch == 32 and gain < INT8_BOUND:
                short.append(f"{size} pixels, batch {batch}: int8 at {gain:.2f} times fp32, bound {INT8_BOUND}")
    print("\n" + ("\n".join(short) if short else "Every bound is held."))


if __name__ == "__main__":
    main()
