"""What the stage `evaluate` costs beside bare ONNX Runtime on the same test pictures, in one run.

    python -m benchmarks.evaluation FOLDER

FOLDER is a project whose other stages have run. Expected on CIFAR-10's 10,000 test pictures: the stage takes at
most 1.3 times the bare inference and 20 seconds, and its memory hardly grows with the number of pictures.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

from graft import params
from graft.evaluation.run import MAIN
from graft.evaluation.study import Study
from graft.inference import open_model

ALLOWED_RATIO, ALLOWED_SECONDS = 1.3, 20.0


def bare_seconds(root: Path, settings: params.Params) -> tuple[float, int]:
    """Seconds and number of all test pictures through the file, after one batch to warm up."""
    study = Study(root)
    images = study.images("test")
    model = open_model(study.model_file(MAIN), "auto", settings.runtime.threads)
    size = settings.evaluate.batch_size
    model.predict(next(images.batches(size)))
    start = time.perf_counter()
    for batch in images.batches(size):
        model.predict(batch)
    return time.perf_counter() - start, len(images)


def stage_seconds(root: Path) -> tuple[float, float]:
    """Seconds and peak MB of the stage in a process of its own, start-up and imports included."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-m", "tasks.evaluate"], cwd=root, check=True)
    return time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def main() -> None:
    root = Path(sys.argv[1])
    settings = params.load(root / params.FILE)
    before, pictures = bare_seconds(root, settings)
    stage, memory = stage_seconds(root)
    after, _ = bare_seconds(root, settings)
    bare = (before + after) / 2
    allowed = ALLOWED_RATIO * bare + ALLOWED_SECONDS
    print(f"test pictures         {pictures:>10,}")
    print(f"bare ONNX Runtime     {bare:>10.1f} s  ({before:.1f} before, {after:.1f} after)")
    print(f"stage evaluate        {stage:>10.1f} s  peak {memory:.0f} MB")
    print(f"allowed, 1.3 × + 20 s {allowed:>10.1f} s  {'held' if stage <= allowed else 'NOT HELD'}")


if __name__ == "__main__":
    main()
