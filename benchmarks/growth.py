"""How cost grows with the pictures: seconds of extraction and training, and memory, at 1,000 to 50,000 of CIFAR-10.

VGG16's blocks 1 to 3 at full width, one view, 10 epochs of the head, 2 of fine-tuning block3. The 10,000 test pictures
are extracted beside them every time and counted. Prints the table and draws `docs/images/growth.svg`.
"""

from __future__ import annotations

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
MEMORY_BOUND = 1.1
PICTURE = Path("docs/images/growth.svg")


def main(totals: Sequence[int] = TOTALS) -> None:
    if reason := cifar10.missing():
        print(reason)
        return
    runs = [measure(total) for total in totals]
    print(f"Features by {runs[0].engine}.\n")
    print("| training pictures | " + " | ".join(f"{stage}, s | {stage}, MB" for stage in STAGES) + " |")
    print("|---|" + "---|---|" * len(STAGES))
    for total, run in zip(totals, runs, strict=True):
        cells = (f"{run.seconds[stage]:.1f} | {run.megabytes[stage]:.0f}" for stage in STAGES)
        print(f"| {total:,} | {' | '.join(cells)} |")
    print()
    for stage in STAGES:
        print(straight(stage, totals, [run.seconds[stage] for run in runs]))
    small, large = runs[totals.index(5_000)], runs[totals.index(50_000)]
    for stage in STAGES:
        times = large.megabytes[stage] / small.megabytes[stage]
        verdict = "held" if times <= MEMORY_BOUND else "NOT held"
        print(f"{stage}: ten times the pictures take {times:.2f} times the memory, bound {MEMORY_BOUND}: {verdict}.")
    lines = [
        Series(
            f"{stage}, seconds",
            [(total / 1000, run.seconds[stage]) for total, run in zip(totals, runs, strict=True)],
            kind,
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


def straight(stage: str, totals: Sequence[int], seconds: Sequence[float]) -> str:
    """The best straight line, weighted so that relative errors count, and how far the points lie from it."""
    slope, start = np.polyfit(totals, seconds, 1, w=1 / np.array(seconds))
    off = max(abs(slope * total + start - taken) / taken for total, taken in zip(totals, seconds, strict=True))
    return (
        f"{stage}: {1000 * slope:.2f} ms a picture and {start:.1f} s, no point further from that line than {off:.0%}."
    )


if __name__ == "__main__":
    main()
