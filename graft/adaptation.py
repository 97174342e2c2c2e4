"""Fine-tuning: the unfrozen suffix and the head, trained together at a lower rate from the stored junction.

In: junction shards, labels, the trained head. Out: `network.safetensors` (the suffix's weights as
`suffix/{layer}/{i}` and the head's as in `heads`), `network.json` and `history.json`. The result is never worse
than the frozen head on the validation pictures: the better of the two is kept, and which one is said.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file, save_file

from graft import features, heads, params, training, winograd
from graft.datasets import preparation
from graft.shards import ShardedArray

WEIGHTS = "network.safetensors"
DESCRIPTION = "network.json"

Array = npt.NDArray[Any]


def finetune(settings: params.Params, prepared: Path, stored: Path, head_folder: Path, folder: Path) -> dict[str, Any]:
    """Train suffix and head from the junction and write the better network into `folder`."""
    trunk = features.load_trunk(settings)
    head, arrays = heads.load(head_folder, settings.head)
    frozen = _frozen(head_folder)
    description: dict[str, Any] = {"kept": "frozen head", "frozen_head": frozen, "engine": features.engine_of(stored)}
    history: list[training.Epoch] = []
    suffix_weights: dict[str, Array] = {}
    if trunk.junction is not None:
        suffix = trunk.suffix()
        model = assemble(winograd.trainable(suffix), head, settings)
        before = [weight.copy() for weight in model.get_weights()]
        history, tuned = _train(model, settings, prepared, stored)
        description["finetuned"] = tuned
        if _better(tuned, frozen):
            description["kept"] = "fine-tuned"
        else:
            model.set_weights(before)
        suffix_weights = {
            f"suffix/{layer.name}/{i}": np.asarray(weight)
            for layer in suffix.layers
            for i, weight in enumerate(layer.get_weights())
        }
        arrays = heads.arrays(head, arrays["mean"], arrays["std"])
    description["validation_accuracy"] = max(frozen, description.get("finetuned", frozen), key=_rank)["accuracy"]
    folder.mkdir(parents=True, exist_ok=True)
    save_file(suffix_weights | arrays, folder / WEIGHTS)
    heads.write_json(folder / DESCRIPTION, description)
    heads.write_json(folder / heads.HISTORY, {"epochs": history, "kept": description["kept"]})
    return description


def assemble(suffix: keras.Model, head: keras.Model, settings: params.Params) -> keras.Model:
    """Junction to logits; batch normalisation and dropout of the backbone stay in inference mode."""
    junction = keras.Input(suffix.input.shape[1:], name="junction")
    vector = features.pooled(suffix(junction, training=False), settings.features.pooling)
    return keras.Model(junction, head(vector), name="network")


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


def _train(
    model: keras.Model, settings: params.Params, prepared: Path, stored: Path
) -> tuple[list[training.Epoch], training.Epoch]:
    tuning = settings.finetune
    recipe = training.Recipe(
        "finetune",
        tuning.epochs,
        tuning.batch_size,
        tuning.learning_rate,
        settings.head.weight_decay,
        settings.head.label_smoothing,
        tuning.epochs,
        settings.seed,
    )
    parts = {}
    for split, seed in (("train", settings.seed), ("validation", None)):
        _, labels = preparation.load_split(prepared, split)
        rows = ShardedArray(stored, f"{split}.junction")
        parts[split] = training.Batches(rows, labels.read(), tuning.batch_size, seed)
    history = training.fit(model, parts["train"], parts["validation"], recipe)
    return history, training.evaluate(model, parts["validation"])


def _frozen(head_folder: Path) -> training.Epoch:
    description = json.loads((head_folder / heads.DESCRIPTION).read_text(encoding="utf-8"))
    return {"accuracy": description["validation_accuracy"], "loss": description["validation_loss"]}


def _rank(result: training.Epoch) -> tuple[float, float]:
    return result["accuracy"], -result["loss"]


def _better(tuned: training.Epoch, frozen: training.Epoch) -> bool:
    return _rank(tuned) > _rank(frozen)
