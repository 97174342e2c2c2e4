"""The stages from pictures to the fine-tuned network on real CIFAR-10 pictures, a process for each run.

What `all_pictures`, `growth` and `learning_curve` have in common. `python -m benchmarks.cifar10 FOLDER KEY=VALUE …`
keeps what each stage makes in FOLDER and prints one line of JSON (`Run`). The pictures and the weights of the blocks 1
to 3 of VGG16 are looked for in `shared/` beside the checkout.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

SHARED = Path(__file__).parents[2] / "shared"
PICTURES = SHARED / "data" / "cifar10-images.zip"
WEIGHTS = SHARED / "weights" / "vgg16_blocks123.npz"
COMMON = ("data.source=folder", f"data.path={PICTURES}", "backbone.width=1.0", "backbone.layer=block3_pool")
SEEDS = (7, 1, 2)  # of validation pictures, initial weights, views and order
SAMPLE_SECONDS = 0.05


@dataclass(frozen=True)
class Run:
    """Accuracies on the whole test set, which network was kept, and what each stage took."""

    frozen: float
    tuned: float | None  # of the network kept; None where nothing was fine-tuned
    kept: str
    engine: str
    epochs: int  # of the head, early stopping counted
    seconds: dict[str, float]
    megabytes: dict[str, float]  # most anonymous memory during each stage


def missing() -> str:
    """Why nothing can be measured here, or nothing."""
    absent = [path.name for path in (PICTURES, WEIGHTS) if not path.is_file()]
    return f"Not measured: {' and '.join(absent)} is not in shared/ beside this checkout." if absent else ""


def run(folder: Path, *assignments: str) -> Run:
    """All stages with params.yaml as changed by `assignments`, in a process of their own."""
    command = [sys.executable, "-m", "benchmarks.cifar10", str(folder), *COMMON, *assignments]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"`{' '.join(command[1:])}` ended with {done.returncode}")
    return Run(**json.loads(done.stdout.splitlines()[-1]))


def pretrained(weights: bool) -> str:
    """The assignment for the real weights or random ones."""
    return f"backbone.weights={WEIGHTS if weights else 'none'}"


def spread(values: Sequence[float]) -> str:
    """Mean with lowest and highest."""
    return f"{statistics.mean(values):.3f} ({min(values):.3f} to {max(values):.3f})"


def stages(folder: Path, assignments: list[str]) -> Run:
    """Run every stage here."""
    from graft import params, runtime

    settings = params.parse(params.override(params.FILE.read_text(encoding="utf-8"), assignments))
    runtime.start(settings)
    from graft import adaptation, features, heads
    from graft.datasets import preparation

    prepared, stored, head, tuned = (folder / name for name in ("prepared", "features", "head", "finetuned"))
    work: dict[str, Callable[[], Any]] = {
        "prepare": lambda: preparation.prepare(settings, prepared),
        "extract": lambda: features.extract(settings, prepared, stored),
        "train": lambda: heads.train(settings, prepared, stored, head),
        "finetune": lambda: adaptation.finetune(settings, prepared, stored, head, tuned),
    }
    seconds, megabytes = {}, {}
    for name, stage in work.items():
        runtime.start(settings)
        with _watched() as most:
            start = time.perf_counter()
            stage()
            seconds[name] = round(time.perf_counter() - start, 2)
        megabytes[name] = round(most(), 1)
    return Run(
        frozen=_frozen(settings, prepared, stored, head),
        tuned=_tuned(settings, prepared, tuned) if settings.finetune.epochs else None,
        kept=json.loads((tuned / adaptation.DESCRIPTION).read_text(encoding="utf-8"))["kept"],
        engine=features.engine_of(stored),
        epochs=len(json.loads((head / heads.HISTORY).read_text(encoding="utf-8"))["epochs"]),
        seconds=seconds,
        megabytes=megabytes,
    )


def _frozen(settings: Any, prepared: Path, stored: Path, folder: Path) -> float:
    from graft import heads
    from graft.datasets import preparation
    from graft.shards import ShardedArray

    head = heads.restore(heads.load(folder), settings.head)
    rows = ShardedArray(stored, "test.features")
    found = [head.predict_on_batch(np.asarray(block, np.float32)).argmax(1) for _, block in rows.blocks()]
    return float(np.mean(np.concatenate(found) == preparation.load_split(prepared, "test")[1].read()))


def _tuned(settings: Any, prepared: Path, folder: Path) -> float:
    import keras

    from graft import adaptation, features
    from graft.datasets import preparation

    trunk, head = adaptation.restore(settings, folder)
    model = keras.Model(trunk.image, head(features.pooled(trunk.cut, settings.features.pooling)))
    images, labels = (stored.read() for stored in preparation.load_split(prepared, "test"))
    found = [model.predict_on_batch(images[i : i + 500]).argmax(1) for i in range(0, len(images), 500)]
    return float(np.mean(np.concatenate(found) == labels))


@contextmanager
def _watched() -> Iterator[Callable[[], float]]:
    """The most anonymous memory in MB from here on: pages of the stored shards can be dropped and do not count."""
    most, done = [0.0], threading.Event()

    def look() -> None:
        while not done.wait(SAMPLE_SECONDS):
            lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
            most[0] = max(most[0], next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024)

    watcher = threading.Thread(target=look)
    watcher.start()
    try:
        yield lambda: most[0]
    finally:
        done.set()
        watcher.join()


if __name__ == "__main__":
    print(json.dumps(asdict(stages(Path(sys.argv[1]), sys.argv[2:]))))
