"""The frozen part of the network, computed once: activations of every picture at the cut and at the junction.

In: a prepared data set. Out: shards `{split}.features` (N×D, pooled activations at `backbone.layer`) and
`{split}.junction` (N×h×w×c, what enters the first unfrozen layer), so that neither head training nor
fine-tuning ever runs the frozen layers again. Augmented views of the training pictures follow the
originals, view by view.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from graft import augmentation, backbones, params, progress, shards, weights
from graft.datasets import preparation
from graft.errors import GraftError, InputError
from graft.shards import ShardedArray

MANIFEST = "features.json"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Trunk:
    """A loaded backbone: `image` to the tensors at the junction (if anything is to be fine-tuned) and the cut."""

    image: Any
    junction: Any | None
    cut: Any

    def suffix(self) -> keras.Model:
        """The layers between junction and cut, sharing the trunk's weights."""
        return keras.Model(self.junction, self.cut, name="suffix")


def load_trunk(settings: params.Params) -> Trunk:
    """Build the backbone, load its weights up to the cut, and find the junction.

    Raises:
        InputError: a layer that does not exist, lies behind the cut, or inside a branch.
    """
    backbone = settings.backbone
    # Random initial weights (`backbone.weights: none`) must be the same in every stage that builds the trunk.
    keras.utils.set_random_seed(settings.seed)
    whole = backbones.build(backbone, settings.data.image_size)
    cut = backbones.cut(whole, backbone.layer, "backbone.layer")
    model = keras.Model(whole.input, cut, name="trunk")
    weights.load(model, backbone)
    if settings.finetune.epochs == 0:
        return Trunk(whole.input, None, cut)
    backbones.cut(whole, settings.finetune.unfreeze_from, "finetune.unfreeze_from")
    if settings.finetune.unfreeze_from not in {layer.name for layer in model.layers}:
        raise InputError(
            f"finetune.unfreeze_from lies behind backbone.layer ({backbone.layer}); name that layer or an earlier "
            f"one. Received: {settings.finetune.unfreeze_from}"
        )
    junction = model.get_layer(settings.finetune.unfreeze_from).input
    try:
        keras.Model(junction, cut)
    except ValueError as error:
        raise InputError(
            f"finetune.unfreeze_from={settings.finetune.unfreeze_from} lies inside a branch of {backbone.name}; "
            "name the layer that begins a block"
        ) from error
    return Trunk(whole.input, junction, cut)


def pooled(tensor: Any, pooling: str) -> Any:
    """A feature map as one vector a picture: flattened, or the average or maximum of each channel."""
    if len(tensor.shape) == 2:
        return tensor
    kinds = {
        "flatten": layers.Flatten,
        "avg": layers.GlobalAveragePooling2D,
        "max": layers.GlobalMaxPooling2D,
    }
    return kinds[pooling](name="features")(tensor)


def extract(settings: params.Params, prepared: Path, folder: Path) -> None:
    """Write the features of all splits; whole shards of an interrupted run with the same inputs are kept.

    Raises:
        GraftError: an activation is too large for the stored type.
    """
    trunk = load_trunk(settings)
    outputs = {"features": pooled(trunk.cut, settings.features.pooling)}
    if trunk.junction is not None:
        outputs["junction"] = trunk.junction
    model = keras.Model(trunk.image, outputs)
    description = preparation.describe(prepared)
    _start(folder, _identity(settings, description, model))
    counts = {split: description["splits"][split]["images"] for split in preparation.SPLITS}
    views = settings.features.views
    meter = progress.Meter("extract", sum(counts.values()) + counts["train"] * (views - 1))
    for split in preparation.SPLITS:
        images, _ = preparation.load_split(prepared, split)
        wanted = [name for name in outputs if name == "features" or split != "test"]
        _extract_split(model, images, wanted, split, settings, folder, meter)


def _extract_split(
    model: keras.Model,
    images: ShardedArray,
    wanted: list[str],
    split: str,
    settings: params.Params,
    folder: Path,
    meter: progress.Meter,
) -> None:
    rows = _rows_per_shard(model, settings.features)
    views = settings.features.views if split == "train" else 1
    number = 0
    for view in range(views):
        for start in range(0, len(images), rows):
            chosen = np.arange(start, min(start + rows, len(images)))
            paths = {name: folder / f"{split}.{name}-{number:05d}.npy" for name in wanted}
            if not all(path.exists() for path in paths.values()):
                blocks = list(_run(model, images.take(chosen), chosen, view, settings, meter))
                for name, path in paths.items():
                    shards.write(path, _checked(np.concatenate([b[name] for b in blocks]), settings.features.dtype))
            else:
                meter.advance(len(chosen))
            number += 1


def _run(
    model: keras.Model, images: Array, indices: Array, view: int, settings: params.Params, meter: progress.Meter
) -> Iterator[dict[str, Array]]:
    size = settings.features.batch_size
    for start in range(0, len(images), size):
        batch = images[start : start + size]
        if view:
            batch = augmentation.augment(
                batch, indices[start : start + size], view, augmentation.kinds(settings), settings.seed
            )
        yield {name: np.asarray(value) for name, value in model.predict_on_batch(batch).items()}
        meter.advance(len(batch))


def _checked(rows: Array, dtype: str) -> Array:
    stored = rows.astype(dtype)
    if not np.isfinite(stored).all():
        raise GraftError(
            f"activations reach {np.abs(rows).max():.3g}, too large for {dtype}; set features.dtype=float32"
        )
    return stored


def _rows_per_shard(model: keras.Model, settings: params.Features) -> int:
    widest = max(int(np.prod(tensor.shape[1:])) for tensor in model.outputs)
    rows = shards.SHARD_BYTES // (widest * np.dtype(settings.dtype).itemsize)
    # Whole batches, so that every picture is computed in a batch of the same size on every run.
    return max(1, rows // settings.batch_size) * settings.batch_size


def _identity(settings: params.Params, description: dict[str, Any], model: keras.Model) -> str:
    digest = hashlib.sha256()
    parts = [settings.seed, settings.backbone.model_dump(), settings.features.model_dump(), description["fingerprint"]]
    parts += [sorted(augmentation.kinds(settings)), settings.finetune.unfreeze_from, sorted(model.output_names)]
    digest.update(json.dumps(parts, sort_keys=True).encode())
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def _start(folder: Path, identity: str) -> None:
    """Keep the shards of an interrupted run only where they came from exactly these inputs."""
    manifest = folder / MANIFEST
    if manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")) == {"identity": identity}:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    manifest.write_text(json.dumps({"identity": identity}) + "\n", encoding="utf-8")
