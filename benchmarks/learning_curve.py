"""Accuracy against the number of labelled pictures on CIFAR-10: the real VGG16 against random weights.

10, 50, 100 and 500 pictures a class (a tenth of them for validation), params.yaml as it is, three seeds, frozen head
and after fine-tuning, on the whole test set of 10,000. Prints the table and draws `docs/images/learning-curve.svg`.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks import cifar10
from benchmarks.drawing import draw, log_axis
from graft.report.charts import Axis, Series

COUNTS = (10, 50, 100, 500)
TOGETHER = 2  # runs at a time: only their accuracy is of interest
PICTURE = Path("docs/images/learning-curve.svg")
NAMES = {
    (True, "tuned"): ("ImageNet weights, fine-tuned", "a"),
    (True, "frozen"): ("ImageNet weights, frozen head", "c"),
    (False, "tuned"): ("random weights, fine-tuned", "b"),
    (False, "frozen"): ("random weights, frozen head", "d"),
}

Key = tuple[bool, str]


def main(counts: Sequence[int] = COUNTS, seeds: Sequence[int] = cifar10.SEEDS) -> None:
    if reason := cifar10.missing():
        print(reason)
        return
    found: dict[Key, list[list[float]]] = {key: [] for key in NAMES}
    print(f"Test accuracy, mean (lowest to highest) of the seeds {', '.join(map(str, seeds))}.\n")
    print("| pictures a class | " + " | ".join(name for name, _ in NAMES.values()) + " |\n|---|---|---|---|---|")
    for count in counts:
        for real in (True, False):
            with ThreadPoolExecutor(TOGETHER) as pool:
                runs = list(pool.map(partial(measure, count, real), seeds))
            found[real, "frozen"].append([run.frozen for run in runs])
            found[real, "tuned"].append([run.tuned or 0.0 for run in runs])
        print(f"| {count} | " + " | ".join(cifar10.spread(found[key][-1]) for key in NAMES) + " |", flush=True)
    lines = [line(name, kind, counts, found[key]) for key, (name, kind) in NAMES.items()]
    accuracy = Axis("", 0.0, 0.9, [share / 10 for share in range(0, 10, 2)], percent=True)
    draw(PICTURE, "Test accuracy on CIFAR-10", log_axis("labelled pictures a class", counts), accuracy, lines)
    print(f"\nDrawn: {PICTURE}")


def measure(count: int, real: bool, seed: int) -> cifar10.Run:
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        limit = f"data.limit_per_class={count}"
        return cifar10.run(Path(folder), cifar10.pretrained(real), limit, f"seed={seed}")


def line(name: str, kind: str, counts: Sequence[int], found: Sequence[Sequence[float]]) -> Series:
    across = log_axis("", counts).ticks
    points = [(x, statistics.mean(values)) for x, values in zip(across, found, strict=True)]
    notes = [f"{count} a class: {y:.1%}" for count, (_, y) in zip(counts, points, strict=True)]
    band = [(min(values), max(values)) for values in found]
    return Series(name, points, kind, band, dots=[3.0] * len(points), notes=notes)


if __name__ == "__main__":
    main()
