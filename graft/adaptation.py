"""Fine-tuning: the unfrozen suffix and the head, trained together at a lower rate from the stored junction.

The suffix may be opened block by block from behind (Howard and Ruder 2018), earlier blocks at lower rates.
In: junction shards, labels, the trained head. Out: `network.safetensors` (the suffix's weights as
`suffix/{layer}/{i}` and the head's as in `heads`), `network.json` and `history.json`. The result is never worse
than the frozen head on the validation pictures: the better of the two is kept, and which one is said.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from graft import features, heads, normalisation, params, training, winograd
from graft.shards import ShardedArray

WEIGHTS = "network.safetensors"
DESCRIPTION = "network.json"

# How the backbones name their blocks: block3_conv1, conv4_block1_1_conv, block_13_expand, block6a_expand_conv.
BLOCK = re.compile(r"(block_?|conv)\d+")

# Training junctions that batch normalisation takes its first statistics from.
SAMPLE = 1024

Array = npt.NDArray[Any]


def finetune(settings: params.Params, prepared: Path, stored: Path, head_folder: Path, folder: Path) -> dict[str, Any]:
    """Train suffix and head from the junction and write the better network into `folder`."""
    trunk = features.load_trunk(settings)
    arrays = heads.load(head_folder)
    frozen = _frozen(head_folder)
    description: dict[str, Any] = {"kept": "frozen head", "frozen_head": frozen, "engine": features.engine_of(stored)}
    history: list[training.Epoch] = []
    suffix_weights: dict[str, Array] = {}
    if trunk.junction is not None:
        suffix = trunk.suffix()
        before = suffix.get_weights()
        history, tuned, tuned_arrays = _tune(suffix, arrays, settings, prepared, stored)
        description["finetuned"] = tuned
        if _better(tuned, frozen):
            description["kept"], arrays = "fine-tuned", tuned_arrays
        else:
            suffix.set_weights(before)
        suffix_weights = {
            f"suffix/{layer.name}/{i}": np.asarray(weight)
            for layer in suffix.layers
            for i, weight in enumerate(layer.get_weights())
        }
    description["validation_accuracy"] = max(frozen, description.get("finetuned", frozen), key=_rank)["accuracy"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(suffix_weights | arrays, folder / WEIGHTS)
    heads.write_json(folder / DESCRIPTION, description)
    heads.write_json(folder / heads.HISTORY, {"epochs": history, "kept": description["kept"]})
    return description


def assemble(suffix: keras.Model, head: keras.Model, settings: params.Params) -> keras.Model:
    """Junction to logits."""
    junction = keras.Input(suffix.input.shape[1:], name="junction")
    return keras.Model(junction, head(features.pooled(suffix(junction), settings.features.pooling)), name="network")


def restore(settings: params.Params, folder: Path) -> tuple[features.Trunk, keras.Model]:
    """The trunk with its fine-tuned suffix, and the head, from what `finetune` wrote."""
    trunk = features.load_trunk(settings)
    stored = load_file(folder / WEIGHTS)
    if trunk.junction is not None:
        for layer in trunk.suffix().layers:
            if layer.weights:
                layer.set_weights([stored[f"suffix/{layer.name}/{i}"] for i in range(len(layer.weights))])
    head = heads.restore({k: v for k, v in stored.items() if not k.startswith("suffix/")}, settings.head)
    return trunk, head


def blocks(suffix: keras.Model) -> list[list[keras.layers.Layer]]:
    """The suffix's layers with weights in order, grouped by the block that their names begin with.

    A layer outside any block (`Conv_1` of MobileNetV2, `top_conv` of EfficientNetV2) belongs to the one before it.
    """
    grouped: list[list[keras.layers.Layer]] = []
    current = None
    for layer in suffix.layers:
        if not layer.weights:
            continue
        found = BLOCK.match(layer.name)
        if not grouped or (found and found[0] != current):
            grouped.append([])
            current = found[0] if found else None
        grouped[-1].append(layer)
    return grouped


def _tune(
    suffix: keras.Model, arrays: heads.Arrays, settings: params.Params, prepared: Path, stored: Path
) -> tuple[list[training.Epoch], training.Epoch, heads.Arrays]:
    """Train `suffix` and the head of `arrays`: a row an epoch, the result on the validation pictures, the new head.

    Both are trained with batch normalisation, which is folded away before the result is measured.
    """
    rows = ShardedArray(stored, "train.junction")
    bare = normalisation.inserted(suffix)
    head = heads.restore(arrays, settings.head, normalised=True)
    size = settings.finetune.batch_size
    entry = keras.Model(bare.input, features.pooled(bare.output, settings.features.pooling))
    normalisation.settle(head, normalisation.settle(entry, _sample(rows, settings.seed), size), size)
    model = assemble(winograd.trainable(bare), head, settings)
    train = heads.training_batches(settings, prepared, rows, size, settings.finetune.mixup)
    validation = heads.validation_batches(prepared, ShardedArray(stored, "validation.junction"))
    history = _train(model, blocks(bare), settings, train, validation)
    normalisation.fold(bare, suffix)
    tuned = heads.folded(head, arrays["mean"], arrays["std"])
    network = assemble(winograd.trainable(suffix), heads.restore(tuned, settings.head), settings)
    return history, training.evaluate(network, validation), tuned


def _sample(rows: ShardedArray, seed: int) -> Array:
    chosen = np.random.default_rng(seed).permutation(len(rows))[:SAMPLE]
    return rows.take(np.sort(chosen)).astype(np.float32)


def _train(
    model: keras.Model,
    suffix: list[list[keras.layers.Layer]],
    settings: params.Params,
    train: training.Batches,
    validation: training.Batches,
) -> list[training.Epoch]:
    tuning = settings.finetune
    shares = {
        weight.path: tuning.block_decay**distance
        for distance, block in enumerate(reversed(suffix), 1)
        for layer in block
        for weight in layer.trainable_weights
    }
    recipe = dataclasses.replace(heads.recipe(settings), name="finetune", learning_rate=tuning.learning_rate)
    history: list[training.Epoch] = []
    best = training.BestEpoch(patience=None)
    for opened, epochs in _parts(len(suffix), tuning):
        for number, block in enumerate(suffix):
            for layer in block:
                layer.trainable = number >= len(suffix) - opened
        part = dataclasses.replace(recipe, epochs=epochs)
        history += training.fit(model, train, validation, part, best, len(history), shares)
    return history


def _parts(count: int, tuning: params.Finetune) -> Iterator[tuple[int, int]]:
    """How many blocks are open, and for how many epochs, in each part of the training."""
    if tuning.gradual_epochs:
        yield from ((opened, tuning.gradual_epochs) for opened in range(1, count))
    yield count, tuning.epochs


def _frozen(head_folder: Path) -> training.Epoch:
    description = json.loads((head_folder / heads.DESCRIPTION).read_text(encoding="utf-8"))
    return {"accuracy": description["validation_accuracy"], "loss": description["validation_loss"]}


def _rank(result: training.Epoch) -> tuple[float, float]:
    return result["accuracy"], -result["loss"]


def _better(tuned: training.Epoch, frozen: training.Epoch) -> bool:
    return _rank(tuned) > _rank(frozen)
