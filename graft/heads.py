"""The new classifier on frozen features: standardisation, hidden layers with dropout, logits.

In: feature shards and labels. Out: `head.safetensors` (`mean`, `std`, `dense_0/kernel`, `dense_0/bias`, …, the
last layer gives logits), `head.json` and `history.json`.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers
from safetensors.numpy import load_file, save_file

from graft import normalisation, params, training
from graft.datasets import preparation
from graft.shards import ShardedArray

WEIGHTS = "head.safetensors"
DESCRIPTION = "head.json"
HISTORY = "history.json"

# A feature that hardly ever moves on the training pictures must not be blown up on a new one.
STD_FLOOR = 0.01

VALIDATION_BATCH = 256

# Of a hidden unit's weights when its training goes on: that of fresh ones (He et al. 2015), for folding has shortened
# them and the same rate would throw them about. Behind batch normalisation it changes nothing else.
UNIT_LENGTH = math.sqrt(2)

Array = npt.NDArray[Any]
Arrays = dict[str, Array]


def build(
    features: int, classes: int, settings: params.Head, mean: Array, std: Array, normalised: bool = False
) -> keras.Model:
    """A head from raw features (batch × D) to logits (batch × classes).

    `normalised` puts batch normalisation behind each hidden layer: for training, to be folded afterwards.
    """
    entry = keras.Input((features,), name="features")
    # In half precision too, the difference of large features and the logits are taken in full.
    tensor = layers.Rescaling(1 / std, offset=-mean / std, dtype="float32", name="standardised")(entry)
    for i, units in enumerate(settings.hidden):
        tensor = layers.Dropout(settings.dropout, name=f"dropout_{i}")(tensor)
        tensor = layers.Dense(units, use_bias=not normalised, name=f"dense_{i}")(tensor)
        if normalised:
            tensor = layers.BatchNormalization(name=f"norm_{i}")(tensor)
        tensor = layers.ReLU(name=f"relu_{i}")(tensor)
    tensor = layers.Dropout(settings.dropout, name=f"dropout_{len(settings.hidden)}")(tensor)
    logits = layers.Dense(classes, dtype="float32", name=f"dense_{len(settings.hidden)}")(tensor)
    return keras.Model(entry, logits, name="head")


def statistics(rows: ShardedArray) -> tuple[Array, Array]:
    """Mean and deviation (D, float32) of stored features, one shard in memory at a time."""
    total = np.zeros(rows.row_shape, np.float64)
    squares = np.zeros(rows.row_shape, np.float64)
    for _, block in rows.blocks():
        # float32 sums of a few rows, added up in float64: the variance is off by 1e-6 times (mean / deviation)².
        for start in range(0, len(block), 256):
            values = np.asarray(block[start : start + 256], np.float32)
            total += values.sum(0)
            squares += np.einsum("ij,ij->j", values, values)
    mean = total / len(rows)
    std = np.sqrt(np.maximum(squares / len(rows) - mean**2, 0))
    floor = STD_FLOOR * float(std.mean()) or 1.0
    return mean.astype(np.float32), np.maximum(std, floor).astype(np.float32)


def train(settings: params.Params, prepared: Path, features: Path, folder: Path) -> dict[str, Any]:
    """Train the head and write it into `folder`; returns what `head.json` says."""
    classes = len(preparation.describe(prepared)["classes"])
    rows = ShardedArray(features, "train.features")
    mean, std = statistics(rows)
    head = settings.head
    model = build(rows.row_shape[0], classes, head, mean, std, normalised=True)
    batches = training_batches(settings, prepared, rows, head.batch_size, head.mixup)
    validation = validation_batches(prepared, ShardedArray(features, "validation.features"))
    history = training.fit(model, batches, validation, recipe(settings), training.BestEpoch(head.patience))
    stored = folded(model, mean, std)
    best = training.evaluate(restore(stored, head), validation)
    description = {
        "features": rows.row_shape[0],
        "classes": classes,
        "hidden": list(head.hidden),
        "validation_accuracy": best["accuracy"],
        "validation_loss": best["loss"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(stored, folder / WEIGHTS)
    write_json(folder / DESCRIPTION, description)
    write_json(folder / HISTORY, {"epochs": history})
    return description


def recipe(settings: params.Params) -> training.Recipe:
    """How the head is trained; fine-tuning changes name, epochs and rate."""
    head = settings.head
    return training.Recipe(
        name="head",
        epochs=head.epochs,
        learning_rate=head.learning_rate,
        schedule=head.schedule,
        weight_decay=head.weight_decay,
        label_smoothing=head.label_smoothing,
        gradient_norm=head.gradient_norm,
    )


def training_batches(
    settings: params.Params, prepared: Path, rows: ShardedArray, size: int, mixup: float
) -> training.Batches:
    """Shuffled batches of `rows`, stored features or junctions of the training pictures and their views."""
    labels, classes = _labels(prepared, "train")
    weights = training.balanced(labels, classes) if settings.head.class_weights == "balanced" else None
    return training.Batches(rows, labels, classes, size, settings.seed, mixup, weights)


def validation_batches(prepared: Path, rows: ShardedArray) -> training.Batches:
    """All of `rows`, stored features or junctions of the validation pictures, in order."""
    return training.Batches(rows, *_labels(prepared, "validation"), VALIDATION_BATCH)


def _labels(prepared: Path, split: str) -> tuple[Array, int]:
    _, labels = preparation.load_split(prepared, split)
    return labels.read(), len(preparation.describe(prepared)["classes"])


def folded(model: keras.Model, mean: Array, std: Array) -> Arrays:
    """The numbers of a head trained with batch normalisation, as those of one without, under their file names."""
    out = {"mean": mean, "std": std}
    dense = [layer for layer in model.layers if isinstance(layer, layers.Dense)]
    for i, layer in enumerate(dense[:-1]):
        kernel, bias = normalisation.folded(layer, model.get_layer(f"norm_{i}"))
        out |= {f"{layer.name}/kernel": kernel.astype(np.float32), f"{layer.name}/bias": bias.astype(np.float32)}
    kernel, bias = dense[-1].get_weights()
    return out | {f"{dense[-1].name}/kernel": kernel, f"{dense[-1].name}/bias": bias}


def restore(stored: Arrays, settings: params.Head, normalised: bool = False) -> keras.Model:
    """A head with the numbers that `folded` gave; `normalised` to train it further, computing the same."""
    hidden, mean, std = len(settings.hidden), stored["mean"], stored["std"]
    model = build(len(mean), len(stored[f"dense_{hidden}/bias"]), settings, mean, std, normalised)
    for i in range(hidden + 1):
        kernel, bias = stored[f"dense_{i}/kernel"], stored[f"dense_{i}/bias"]
        if normalised and i < hidden:
            length = np.maximum(np.sqrt(np.square(kernel).sum(0)), np.finfo(np.float32).tiny) / UNIT_LENGTH
            model.get_layer(f"dense_{i}").set_weights([kernel / length])
            normalisation.neutral(model.get_layer(f"norm_{i}"), length, bias)
        else:
            model.get_layer(f"dense_{i}").set_weights([kernel, bias])
    return model


def load(folder: Path) -> Arrays:
    """The numbers of the trained head in `folder`, for `restore`."""
    stored: Arrays = load_file(folder / WEIGHTS)
    return stored


def write_json(path: Path, value: Any) -> None:
    """Write `value` as readable JSON, the same bytes for the same value."""
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
