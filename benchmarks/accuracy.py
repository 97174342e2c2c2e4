"""Accuracy on CIFAR-10 with few pictures: frozen head and fine-tuned network, real VGG16 against random weights.

500 training pictures a class, VGG16's blocks 1 to 3 at 32×32, params.yaml as it is, three seeds, measured on the whole
test set of 10,000. The seed draws the validation pictures, the initial weights, the views and the order of training.
`python -m benchmarks.accuracy PER_CLASS SEED …` takes other numbers.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import cifar10

PER_CLASS = 500
SEEDS = (7, 1, 2)


def main(per_class: int = PER_CLASS, seeds: Sequence[int] = SEEDS) -> None:
    if reason := cifar10.missing():
        print(reason)
        return
    print(f"{per_class} training pictures a class; test accuracy, mean (lowest to highest) of the seeds {seeds}.\n")
    print("| weights | frozen head | after fine-tuning | kept frozen | seconds a run |\n|---|---|---|---|---|")
    for real in (True, False):
        runs = []
        for seed in seeds:
            with tempfile.TemporaryDirectory(prefix="graft-bench-") as folder:
                limit = f"data.limit_per_class={per_class}"
                runs.append(cifar10.run(Path(folder), cifar10.pretrained(real), limit, f"seed={seed}"))
        kept = sum(run.kept != "fine-tuned" for run in runs)
        seconds = statistics.median(sum(run.seconds.values()) for run in runs)
        cells = (spread([run.frozen for run in runs]), spread([run.tuned or 0.0 for run in runs]))
        print(f"| {'VGG16, ImageNet' if real else 'random'} | {cells[0]} | {cells[1]} | {kept} | {seconds:.0f} |")
        print(f"\nFeatures by {runs[0].engine}.\n" if not real else "", end="", flush=True)


def spread(values: Sequence[float]) -> str:
    """Mean with lowest and highest."""
    return f"{statistics.mean(values):.4f} ({min(values):.4f} to {max(values):.4f})"


if __name__ == "__main__":
    main(*([int(sys.argv[1]), [int(seed) for seed in sys.argv[2:]] or SEEDS] if len(sys.argv) > 1 else []))
