"""The frozen part of the network, computed once: activations of every picture at the cut and at the junction.

In: a prepared data set. Out: shards `{split}.features` (N×D, pooled activations at `backbone.layer`) and
`{split}.junction` (N×h×w×c, what enters the first unfrozen layer), so that neither head training nor
fine-tuning ever runs the frozen layers again. Augmented views of the training pictures follow the
originals, view by view.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers

from graft import augmentation, backbones, engines, params, progress, shards, weights
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
    cut = _cut(whole, settings)
    model = keras.Model(whole.input, cut, name="trunk")
    weights.load(model, backbone)
    if settings.finetune.epochs == 0:
        return Trunk(whole.input, None, cut)
    backbones.cut(whole, settings.finetune.unfreeze_from, "finetune.unfreeze_from")
    if settings.finetune.unfreeze_from not in {layer.name for layer in model.layers}:
        raise InputError(
            f"finetune.unfreeze_from lies behind backbone.layer ({', '.join(backbone.layers)}); name that layer or an "
            f"earlier one. Received: {settings.finetune.unfreeze_from}"
        )
    junction = model.get_layer(settings.finetune.unfreeze_from).input
    try:
        keras.Model(junction, cut)
    except ValueError as error:
        if len(backbone.layers) > 1:
            raise InputError(
                f"finetune.unfreeze_from={settings.finetune.unfreeze_from} does not lead to every backbone.layer "
                f"({', '.join(backbone.layers)}); name the first of them or a layer before it"
            ) from error
        raise InputError(
            f"finetune.unfreeze_from={settings.finetune.unfreeze_from} lies inside a branch of {backbone.name}; "
            "name the layer that begins a block"
        ) from error
    return Trunk(whole.input, junction, cut)


def _cut(whole: keras.Model, settings: params.Params) -> Any:
    """The map of the one layer named, or the pooled vectors of several side by side."""
    names = settings.backbone.layers
    maps = [backbones.cut(whole, name, "backbone.layer") for name in names]
    if len(maps) == 1:
        return maps[0]
    pooling = settings.features.pooling
    vectors = [pooled(values, pooling, f"features_{name}") for name, values in zip(names, maps, strict=True)]
    return layers.Concatenate(name="features")(vectors)


def pooled(tensor: Any, pooling: str, name: str = "features") -> Any:
    """A feature map as one vector a picture: flattened, or the average or maximum of each channel."""
    if len(tensor.shape) == 2:
        return tensor
    kinds = {
        "flatten": layers.Flatten,
        "avg": layers.GlobalAveragePooling2D,
        "max": layers.GlobalMaxPooling2D,
    }
    return kinds[pooling](name=name)(tensor)


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
    engine = _engine(trunk.image, outputs, settings, prepared)
    _start(folder, _identity(settings, description, model, engine.name), engine.name)
    counts = {split: description["splits"][split]["images"] for split in preparation.SPLITS}
    rows = _rows_per_shard(model, settings.features)
    views = settings.features.views
    meter = progress.Meter("extract", sum(counts.values()) + counts["train"] * (views - 1))
    for split in preparation.SPLITS:
        images, _ = preparation.load_split(prepared, split)
        wanted = [name for name in outputs if name == "features" or split != "test"]
        _extract_split(engine, rows, images, wanted, split, settings, folder, meter)


def _engine(image: Any, outputs: dict[str, Any], settings: params.Params, prepared: Path) -> engines.Engine:
    """What `features.engine` asks for, tried with the first training pictures."""
    pictures, _ = preparation.load_split(prepared, "train")
    count = min(settings.features.batch_size, len(pictures))
    return engines.choose(image, outputs, settings, pictures.take(np.arange(count)))


def _extract_split(
    engine: engines.Engine,
    rows: int,
    images: ShardedArray,
    wanted: list[str],
    split: str,
    settings: params.Params,
    folder: Path,
    meter: progress.Meter,
) -> None:
    views = settings.features.views if split == "train" else 1
    shards_wanted = itertools.product(range(views), range(0, len(images), rows))
    with ThreadPoolExecutor(1) as writer:
        writing: Future[None] = writer.submit(lambda: None)
        for number, (view, start) in enumerate(shards_wanted):
            chosen = np.arange(start, min(start + rows, len(images)))
            paths = {name: folder / f"{split}.{name}-{number:05d}.npy" for name in wanted}
            if all(path.exists() for path in paths.values()):
                meter.advance(len(chosen))
                continue
            blocks = list(_run(engine, _batches(images, chosen, view, settings), meter))
            writing.result()  # one shard waits for the disk at most, and its error is not passed over
            writing = writer.submit(_write, paths, blocks, settings.features.dtype)
        writing.result()


def _batches(images: ShardedArray, rows: Array, view: int, settings: params.Params) -> Iterator[Array]:
    """Pictures number `rows`, a batch at a time, as `view` shows them."""
    size = settings.features.batch_size
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        batch = images.take(chosen)
        if view:
            batch = augmentation.augment(batch, chosen, view, augmentation.kinds(settings), settings.seed)
        yield batch


def _run(engine: engines.Engine, batches: Iterator[Array], meter: progress.Meter) -> Iterator[dict[str, Array]]:
    """The engine on every batch, the next one read and augmented meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = reader.submit(next, batches, None)
            yield engine.run(batch)
            meter.advance(len(batch))


def _write(paths: dict[str, Path], blocks: list[dict[str, Array]], dtype: str) -> None:
    for name, path in paths.items():
        shards.write(path, _checked(np.concatenate([block[name] for block in blocks]), dtype))


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


def _identity(settings: params.Params, description: dict[str, Any], model: keras.Model, engine: str) -> str:
    digest = hashlib.sha256()
    parts = [settings.seed, settings.backbone.model_dump(), settings.features.model_dump(), description["fingerprint"]]
    parts += [sorted(augmentation.kinds(settings)), settings.finetune.unfreeze_from, sorted(model.output_names), engine]
    digest.update(json.dumps(parts, sort_keys=True).encode())
    for weight in model.weights:
        digest.update(np.ascontiguousarray(weight).tobytes())
    return digest.hexdigest()


def engine_of(folder: Path) -> str:
    """Name and version of the engine that computed the features in `folder`."""
    return str(json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["engine"])


def _start(folder: Path, identity: str, engine: str) -> None:
    """Keep the shards of an interrupted run only where they came from exactly these inputs."""
    manifest, said = folder / MANIFEST, {"identity": identity, "engine": engine}
    if manifest.is_file() and json.loads(manifest.read_text(encoding="utf-8")) == said:
        return
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    manifest.write_text(json.dumps(said) + "\n", encoding="utf-8")
