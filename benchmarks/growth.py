"""How cost grows with the pictures: seconds of extraction and training, and memory, at 1,000 to 50,000 of CIFAR-10.

VGG16's blocks 1 to 3 at full width, one view, 10 epochs of the head, 2 of fine-tuning block3. The 10,000 test pictures
are extracted beside them every time and counted. Medians of three rounds through all sizes. Prints the table and draws
`docs/images/growth.svg`.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import cifar10
from benchmarks.drawing import draw
from graft.report.charts import Series, nice_axis

TOTALS = (1_000, 5_000, 20_000, 50_000)
CLASSES, TEST = 10, 10_000
EPOCHS = {"train": 10, "finetune": 2}
STAGES = {"extract": "a", "train": "b", "finetune": "c"}
ROUNDS = 3
MEMORY_BOUND = 1.1
PICTURE = Path("docs/images/growth.svg")


def main(totals: Sequence[int] = TOTALS) -> None:
    if reason := cifar10.missing():
        print(reason)
        return
    rounds = [[measure(total) for total in totals] for _ in range(ROUNDS)]
    runs = list(zip(*rounds, strict=True))  # of each size
    print(f"Features by {runs[0][0].engine}; median (lowest to highest) of {ROUNDS} runs.\n")
    print("| training pictures | " + " | ".join(f"{stage}, s | {stage}, MB" for stage in STAGES) + " |")
    print("|---|" + "---|---|" * len(STAGES))
    for total, same in zip(totals, runs, strict=True):
        cells = (f"{spread(seconds(same, stage), 1)} | {spread(megabytes(same, stage), 0)}" for stage in STAGES)
        print(f"| {total:,} | {' | '.join(cells)} |")
    print()
    medians = {stage: [statistics.median(seconds(same, stage)) for same in runs] for stage in STAGES}
    for stage, taken in medians.items():
        print(straight(stage, totals, taken))
    small, large = runs[totals.index(5_000)], runs[totals.index(50_000)]
    for stage in STAGES:
        times = statistics.median(megabytes(large, stage)) / statistics.median(megabytes(small, stage))
        verdict = "held" if times <= MEMORY_BOUND else "NOT held"
        print(f"{stage}: ten times the pictures take {times:.2f} times the memory, bound {MEMORY_BOUND}: {verdict}.")
    across = [total / 1000 for total in totals]
    lines = [
        Series(
            f"{stage}, seconds",
            list(zip(across, medians[stage], strict=True)),
            kind,
            [(min(seconds(same, stage)), max(seconds(same, stage))) for same in runs],
            dots=[3.0] * len(totals),
        )
        for stage, kind in STAGES.items()
    ]
    times_axis = nice_axis("", [0.0, *(y for line in lines for _, y in line.points)])
    draw(PICTURE, "Seconds", nice_axis("thousand training pictures", [0, max(totals) / 1000]), times_axis, lines)
    print(f"\nDrawn: {PICTURE}")


def measure(total: int) -> cifar10.Run:
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
        return cifar10.run(
            Path(folder),
            cifar10.pretrained(True),
            f"data.limit_per_class={total // CLASSES}",
            "features.views=1",
            f"head.epochs={EPOCHS['train']}",
            f"finetune.epochs={EPOCHS['finetune']}",
        )


def seconds(runs: Sequence[cifar10.Run], stage: str) -> list[float]:
    return [run.seconds[stage] for run in runs]


def megabytes(runs: Sequence[cifar10.Run], stage: str) -> list[float]:
    return [run.megabytes[stage] for run in runs]


def spread(values: Sequence[float], digits: int) -> str:
    """Median with lowest and highest."""
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def straight(stage: str, totals: Sequence[int], taken: Sequence[float]) -> str:
    """The best straight line, weighted so that relative errors count, and how far the points lie from it."""
    slope, start = np.polyfit(totals, taken, 1, w=1 / np.array(taken))
    off = max(abs(slope * total + start - found) / found for total, found in zip(totals, taken, strict=True))
    return (
        f"{stage}: {1000 * slope:.2f} ms a picture and {start:.1f} s, no point further from that line than {off:.0%}."
    )


if __name__ == "__main__":
    main()
