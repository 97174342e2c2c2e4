"""What the stage `evaluate` costs beside bare ONNX Runtime on the same test pictures, in time and in memory.

`python -m benchmarks evaluation` measures the project in this folder, whose stages must have run;
`python -m benchmarks.evaluation FOLDER` another. Bare inference and the stage take turns. On CIFAR-10's 10,000 test
pictures the stage may take 1.3 times the bare inference and 20 seconds, start and imports included, and its peak
memory must not grow with the test set.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from graft import params
from graft.evaluation.run import MAIN
from graft.evaluation.study import Study
from graft.inference import open_model
from graft.shards import ShardedArray, write

ALLOWED_RATIO, ALLOWED_SECONDS = 1.3, 20.0
ROUNDS = 2
FEW = 1000  # test pictures of the smaller run
GROWTH = 1.1  # of the peak, from these to all


def main(root: Path = Path()) -> None:
    root = root.resolve()
    settings = params.load(root / params.FILE)
    bare, stage, peaks = [bare_seconds(root, settings)], [], []
    for _ in range(ROUNDS):
        seconds, peak = run_stage(root)
        stage.append(seconds)
        peaks.append(peak)
        bare.append(bare_seconds(root, settings))
    total = len(Study(root).labels("test"))
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as scratch:
        shorten(root, Path(scratch), min(FEW, total))
        few_seconds, few_peak = run_stage(Path(scratch))
    allowed = ALLOWED_RATIO * statistics.median(bare) + ALLOWED_SECONDS
    print("| | test pictures | seconds (least to most) | peak, MB |\n|---|---|---|---|")
    print(f"| bare ONNX Runtime | {total:,} | {spread(bare)} | |")
    print(f"| stage `evaluate` | {total:,} | {spread(stage)} | {max(peaks):.0f} |")
    print(f"| stage `evaluate` | {min(FEW, total):,} | {few_seconds:.1f} | {few_peak:.0f} |")
    print(f"| allowed, 1.3 × bare + 20 s | {total:,} | {allowed:.1f} | |")
    held = statistics.median(stage) <= allowed
    print(f"\nTime {'held' if held else 'NOT HELD'}: {statistics.median(stage) / allowed:.2f} of what is allowed.")
    grown = max(peaks) / few_peak
    print(f"Memory {'flat' if grown <= GROWTH else 'NOT FLAT'}: {grown:.2f} of the peak with {min(FEW, total):,}.")


def spread(seconds: list[float]) -> str:
    return f"{statistics.median(seconds):.1f} ({min(seconds):.1f} to {max(seconds):.1f})"


def bare_seconds(root: Path, settings: params.Params) -> float:
    """Seconds for all test pictures through the file, after one batch to warm up."""
    study = Study(root)
    images = study.images("test")
    model = open_model(study.model_file(MAIN), "auto", settings.runtime.threads)
    size = settings.evaluate.batch_size
    model.predict(next(images.batches(size)))
    start = time.perf_counter()
    for batch in images.batches(size):
        model.predict(batch)
    return time.perf_counter() - start


def run_stage(root: Path) -> tuple[float, float]:
    """Seconds and peak MB of the stage in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "tasks.evaluate"]
    environment = os.environ | {"PYTHONPATH": os.fspath(Path(__file__).parents[1])}
    start = time.perf_counter()
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    seconds = time.perf_counter() - start
    assert done.returncode == 0, f"the stage failed in {root}:\n{done.stderr[-2000:]}"
    return seconds, float(done.stdout.splitlines()[-1])


def shorten(root: Path, scratch: Path, count: int) -> None:
    """In `scratch` the project of `root` with `count` of its test pictures, evenly drawn."""
    chosen = np.linspace(0, len(Study(root).labels("test")) - 1, count).astype(int)
    for name in ("data/prepared", "data/features"):
        (scratch / name).mkdir(parents=True)
        for path in (root / name).iterdir():
            if not path.name.startswith("test."):
                (scratch / name / path.name).symlink_to(path)
    (scratch / "models").symlink_to(root / "models")
    (scratch / params.FILE).write_bytes((root / params.FILE).read_bytes())
    for folder, part in (("prepared", "images"), ("prepared", "labels"), ("features", "features")):
        rows = ShardedArray(root / "data" / folder, f"test.{part}").take(chosen)
        write(scratch / "data" / folder / f"test.{part}-00000.npy", rows)
    names = Study(root).names("test")
    text = "".join(f"{names[row]}\n" for row in chosen)
    (scratch / "data/prepared/test.names.txt").write_text(text, encoding="utf-8")
    description = scratch / "data/prepared/dataset.json"
    dataset = json.loads(description.read_text(encoding="utf-8"))
    labels = Study(scratch).labels("test")
    each = np.bincount(labels, minlength=len(dataset["classes"])).tolist()
    dataset["splits"]["test"] = {"images": len(labels), "per_class": each}
    description.unlink()
    description.write_text(json.dumps(dataset), encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
