"""Accuracy on the digits with few labels: pretrained features against random ones and raw pixels.

`python -m benchmarks.labels` prints the README's table: test accuracy of a linear classifier, mean and deviation
over six draws of the labelled pictures.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from graft import params, runtime
from graft.datasets import preparation

LABELS = (2, 5, 10)
DRAWS = 6
RAW = "raw pixels"
# Of the deviation's mean: with two pictures a class, many features hardly move.
STD_FLOOR = 0.05

Array = npt.NDArray[np.float32]


def main() -> None:
    settings = params.load()
    runtime.start(settings)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        digits = params.parse(params.override(params.FILE.read_text(encoding="utf-8"), ["data.source=digits"]))
        preparation.prepare(digits, folder)
        images = {split: preparation.load_split(folder, split)[0].read() for split in ("train", "test")}
        labels = {split: preparation.load_split(folder, split)[1].read() for split in ("train", "test")}
    kinds = {RAW: {split: rows.reshape(len(rows), -1) / np.float32(255) for split, rows in images.items()}}
    for weights in ("none", "bundled"):
        kinds[f"VGG16, weights {weights}"] = features(digits, weights, images)
    print("| labelled pictures a class | " + " | ".join(kinds) + " |")
    print("|---|" + "---|" * len(kinds))
    for count in LABELS:
        cells = [
            few_labels(rows["train"], labels["train"], rows["test"], labels["test"], count, kind == RAW)
            for kind, rows in kinds.items()
        ]
        print(f"| {count} | " + " | ".join(f"{mean:.3f} ± {deviation:.3f}" for mean, deviation in cells) + " |")


def features(settings: params.Params, weights: str, images: dict[str, npt.NDArray[np.uint8]]) -> dict[str, Array]:
    """Flattened activations at the cut."""
    import keras

    from graft.features import load_trunk

    backbone = settings.backbone.model_copy(update={"weights": weights})
    trunk = load_trunk(settings.model_copy(update={"backbone": backbone}))
    model = keras.Model(trunk.image, trunk.cut)
    return {
        split: np.concatenate(
            [
                np.asarray(model.predict_on_batch(rows[i : i + 256])).reshape(len(rows[i : i + 256]), -1)
                for i in range(0, len(rows), 256)
            ]
        )
        for split, rows in images.items()
    }


def few_labels(train: Array, labels: Array, test: Array, expected: Array, count: int, raw: bool) -> tuple[float, float]:
    """Mean and deviation of the test accuracy with `count` labelled pictures a class.

    Each kind gets what suits it best: features are standardised and regularised strongly, pixels neither.
    """
    from sklearn.linear_model import LogisticRegression

    accuracies = []
    for draw in range(DRAWS):
        rng = np.random.default_rng(draw)
        chosen = np.concatenate([rng.choice(np.flatnonzero(labels == c), count, replace=False) for c in range(10)])
        mean, std = (np.float32(0), np.float32(1)) if raw else (train[chosen].mean(0), train[chosen].std(0))
        std = np.maximum(std, STD_FLOOR * std.mean())
        model = LogisticRegression(C=1.0 if raw else 0.01, max_iter=300).fit(
            (train[chosen] - mean) / std, labels[chosen]
        )
        accuracies.append(model.score((test - mean) / std, expected))
    return float(np.mean(accuracies)), float(np.std(accuracies))


if __name__ == "__main__":
    main()
