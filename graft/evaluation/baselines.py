"""What the exported model is measured against: the frozen head, a classifier of raw pixels, the commonest class."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from graft.errors import InputError
from graft.evaluation.projection import SAMPLE, principal_components
from graft.evaluation.robustness import stratified
from graft.params import Params
from graft.shards import ShardedArray

Array = npt.NDArray[Any]

PIXEL_COMPONENTS = 64
PIXEL_IMAGES = 20_000  # training pictures of the pixel classifier at most: more change nothing it can learn
BATCH = 1024


def commonest_class(train_labels: Array, test: int) -> Array:
    """`test` predictions of the class that training saw most often: what knowing nothing is worth."""
    return np.full(test, np.bincount(train_labels).argmax())


def frozen_head(head: Path, features: Iterable[Array]) -> Array:
    """N×C float32 probabilities of the head trained on frozen features, before fine-tuning.

    `head` is the safetensors file with `mean`, `std` and `dense_<i>/kernel`, `dense_<i>/bias`, the last layer
    giving logits; `features` yields batches of n×D.

    Raises:
        InputError: the file is missing or holds no dense layers.
    """
    layers = _read_head(head)
    return np.concatenate([_apply_head(layers, batch) for batch in features])


def _read_head(head: Path) -> dict[str, Array]:
    from safetensors.numpy import load_file

    if not head.is_file():
        raise InputError(f"{head} is missing; run the train stage again. Received: no such file")
    layers: dict[str, Array] = load_file(head)
    if not {"mean", "std", "dense_0/kernel"} <= layers.keys():
        raise InputError(f"{head} must hold mean, std and dense layers. Received: {', '.join(sorted(layers))}")
    return layers


def _apply_head(layers: dict[str, Array], features: Array) -> Array:
    values = (features.astype(np.float32) - layers["mean"]) / layers["std"]
    depth = sum(name.endswith("/kernel") for name in layers)
    for index in range(depth):
        values = values @ layers[f"dense_{index}/kernel"] + layers[f"dense_{index}/bias"]
        if index < depth - 1:
            values = np.maximum(values, 0)
    values = np.exp(values - values.max(axis=1, keepdims=True))
    return np.asarray(values / values.sum(axis=1, keepdims=True))


def random_weights(settings: Params, root: Path) -> Array:
    """N×C test probabilities of a head trained on features of the same network with random weights.

    Everything but the pretrained weights is as in the pipeline, so the difference to the frozen head is what
    pretraining is worth. Takes as long as the stages `extract` and `train`, and is the one part that needs Keras.
    """
    from graft import runtime

    plain = settings.model_copy(
        update={
            "backbone": settings.backbone.model_copy(update={"weights": "none"}),
            "finetune": settings.finetune.model_copy(update={"epochs": 0}),
        }
    )
    runtime.start(plain)
    from graft import features, heads

    prepared = root / "data/prepared"
    with tempfile.TemporaryDirectory(prefix="graft-random-") as name:
        folder = Path(name)
        features.extract(plain, prepared, folder / "features")
        heads.train(plain, prepared, folder / "features", folder / "head")
        test = ShardedArray(folder / "features", "test.features")
        return frozen_head(folder / "head/head.safetensors", test.batches(BATCH))


def pixels(train: ShardedArray, train_labels: Array, test: ShardedArray, seed: int) -> Array:
    """N test predictions of a logistic regression on the pictures' own principal components: no network at all."""
    from sklearn.linear_model import LogisticRegression

    chosen = stratified(train_labels, PIXEL_IMAGES, seed)
    components = principal_components(train.take(stratified(train_labels, SAMPLE, seed)), PIXEL_COMPONENTS)
    starts = range(0, len(chosen), BATCH)
    # Lengths relative to the loudest component, not each its own: the quiet ones are mostly noise.
    lengths = components.scale / components.scale[0]
    rows = np.concatenate([components.apply(train.take(chosen[start : start + BATCH])) for start in starts]) * lengths
    if len(np.unique(train_labels[chosen])) < 2:
        return commonest_class(train_labels, len(test))
    # On CIFAR-10 Newton's method took 6 steps where the default solver took 49.
    classifier = LogisticRegression(solver="newton-cg").fit(rows, train_labels[chosen])
    return np.concatenate([classifier.predict(components.apply(batch) * lengths) for batch in test.batches(BATCH)])
