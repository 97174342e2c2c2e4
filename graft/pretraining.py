"""Making the bundled weights: a narrow VGG16 trained on CIFAR-10, its batch normalisation folded away.

In: a prepared CIFAR-10. Out: `vgg16_quarter.safetensors` (half precision, keys `block1_conv1/kernel`, …)
and a card beside it. Batch normalisation (Ioffe and Szegedy 2015) makes the deep narrow network trainable
from scratch; folded into the convolutions, what ships is plain VGG16.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers
from safetensors.numpy import save_file

from graft import backbones, normalisation, progress
from graft.datasets import preparation
from graft.errors import GraftError
from graft.shards import ShardedArray

FILE = "vgg16_quarter.safetensors"
WIDTH = 0.25
CLASSES = 10
BATCH = 128
PEAK_RATE = 0.1
MOMENTUM = 0.9
WEIGHT_DECAY = 5e-4
LABEL_SMOOTHING = 0.05
WARMUP_SHARE = 0.15
PADDING = 4

Array = npt.NDArray[Any]


class AugmentedBatches(keras.utils.PyDataset):
    """Shuffled batches, each picture flipped by chance and shifted by up to `PADDING` pixels (reflected edges)."""

    def __init__(self, images: Array, labels: Array, seed: int) -> None:
        super().__init__()
        self._images, self._one_hot, self._seed = images, np.eye(CLASSES, dtype=np.float32)[labels], seed
        self.start(0)

    def start(self, epoch: int) -> None:
        """Draw the order of `epoch`: a resumed training sees what an uninterrupted one would have seen."""
        self._epoch = epoch
        self._order = np.random.default_rng((self._seed, epoch)).permutation(len(self._images))

    def __len__(self) -> int:
        return len(self._images) // BATCH

    def __getitem__(self, index: int) -> tuple[Array, Array]:
        rng = np.random.default_rng((self._seed, self._epoch, index))
        chosen = self._order[index * BATCH : (index + 1) * BATCH]
        return augment(self._images[chosen], rng), self._one_hot[chosen]


def augment(images: Array, rng: np.random.Generator) -> Array:
    """Flip (half of them) and shift each of N×H×W×3 pictures."""
    count, height, width, _ = images.shape
    padded = np.pad(images, ((0, 0), (PADDING, PADDING), (PADDING, PADDING), (0, 0)), mode="reflect")
    top, left = rng.integers(0, 2 * PADDING + 1, (2, count, 1))
    rows, columns = top + np.arange(height), left + np.arange(width)
    flipped = rng.random(count) < 0.5
    columns[flipped] = columns[flipped, ::-1]
    shifted: Array = padded[np.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return shifted


def pretrain(prepared: Path, output: Path, epochs: int, seed: int, command: str) -> dict[str, Any]:
    """Train on the prepared CIFAR-10, write weights and card into `output`, return what the card says.

    `command` is what a person typed, for the card.

    An interrupted training goes on from its last whole epoch when called again with the same arguments.

    Raises:
        GraftError: the loss is no longer a number.
    """
    output.mkdir(parents=True, exist_ok=True)
    keras.utils.set_random_seed(seed)
    images, labels = (part.read() for part in preparation.load_split(prepared, "train"))
    batches = AugmentedBatches(images, labels, seed)
    model = _trainable(len(batches), epochs)
    backup = keras.callbacks.BackupAndRestore(output / ".pretraining", delete_checkpoint=False)
    report = _EpochReport(batches, epochs)
    history = model.fit(batches, epochs=epochs, verbose=0, callbacks=[backup, keras.callbacks.TerminateOnNaN(), report])
    if not np.isfinite(history.history["loss"][-1]):
        raise GraftError(f"the loss became NaN in epoch {len(history.history['loss'])}; nothing was written")
    weights = fold(model)
    save_file(weights, output / FILE)
    test_images, test_labels = preparation.load_split(prepared, "test")
    description = preparation.describe(prepared)
    counts = {split: summary["images"] for split, summary in description["splits"].items()}
    card = {
        "architecture": f"VGG16 (Simonyan and Zisserman 2014) at width {WIDTH}: its 13 convolutions, half precision",
        "licence": "Apache-2.0",
        "data": {"name": "CIFAR-10 (Krizhevsky 2009)", "fingerprint": description["fingerprint"], **counts},
        "recipe": {
            "epochs": epochs,
            "batch_size": BATCH,
            "optimizer": f"SGD, Nesterov momentum {MOMENTUM}, decoupled weight decay {WEIGHT_DECAY}",
            "learning_rate": f"linear warm-up over {WARMUP_SHARE:.0%} to {PEAK_RATE}, cosine to zero",
            "augmentation": f"horizontal flip, shift by up to {PADDING} pixels",
            "label_smoothing": LABEL_SMOOTHING,
            "normalisation": "batch normalisation while training, folded into the convolutions",
            "seed": seed,
        },
        "command": command,
        "test_accuracy": round(_accuracy(_folded(model, weights), test_images, test_labels.read()), 4),
        "bytes": (output / FILE).stat().st_size,
        "sha256": hashlib.sha256((output / FILE).read_bytes()).hexdigest(),
    }
    (output / FILE).with_suffix(".json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return card


def normalised_convolution(tensor: Any, channels: int, name: str) -> Any:
    """3×3 convolution without bias, batch normalisation, ReLU."""
    tensor = layers.Conv2D(channels, 3, padding="same", use_bias=False, kernel_initializer="he_normal", name=name)(
        tensor
    )
    return layers.ReLU(name=f"{name}_relu")(layers.BatchNormalization(name=f"{name}_norm")(tensor))


def fold(model: keras.Model) -> dict[str, Array]:
    """Each convolution and its batch normalisation as one kernel and bias, in half precision."""
    weights = {}
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            kernel, bias = normalisation.folded(layer, model.get_layer(f"{layer.name}_norm"))
            weights[f"{layer.name}/kernel"] = np.ascontiguousarray(kernel, np.float16)
            weights[f"{layer.name}/bias"] = bias.astype(np.float16)
    return weights


def _classifier(convolution: Any) -> keras.Model:
    image = keras.Input((32, 32, 3), dtype="uint8", name="image")
    tensor = backbones.caffe(keras.ops.cast(image, "float32"))
    tensor = backbones.vgg(backbones.VGG16_BLOCKS, convolution)(tensor, WIDTH)
    return keras.Model(image, layers.Dense(CLASSES, name="logits")(layers.Flatten()(tensor)))


def _trainable(steps: int, epochs: int) -> keras.Model:
    model = _classifier(normalised_convolution)
    warmup = int(WARMUP_SHARE * steps * epochs)
    rate = keras.optimizers.schedules.CosineDecay(
        PEAK_RATE / 20, steps * epochs - warmup, alpha=1e-4, warmup_target=PEAK_RATE, warmup_steps=warmup
    )
    optimizer = keras.optimizers.SGD(rate, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY)
    optimizer.exclude_from_weight_decay(var_names=["gamma", "beta", "bias"])
    loss = keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=LABEL_SMOOTHING)
    model.compile(optimizer, loss, metrics=[keras.metrics.CategoricalAccuracy(name="accuracy")])
    return model


def _folded(trained: keras.Model, weights: dict[str, Array]) -> keras.Model:
    model = _classifier(backbones.plain_convolution)
    for layer in model.layers:
        if isinstance(layer, layers.Conv2D):
            layer.set_weights([weights[f"{layer.name}/{part}"].astype(np.float32) for part in ("kernel", "bias")])
    model.get_layer("logits").set_weights(trained.get_layer("logits").get_weights())
    return model


def _accuracy(model: keras.Model, images: ShardedArray, labels: Array) -> float:
    logits = np.concatenate([model.predict_on_batch(batch) for batch in images.batches(500)])
    return float((logits.argmax(1) == labels).mean())


class _EpochReport(keras.callbacks.Callback):
    def __init__(self, batches: AugmentedBatches, epochs: int) -> None:
        super().__init__()
        self._batches, self._epochs = batches, epochs

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._batches.start(epoch)
        self._meter = progress.Meter(f"pretrain, epoch {epoch + 1}/{self._epochs}", len(self._batches) * BATCH)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        note = f"loss {logs['loss']:.3f}, accuracy {logs['accuracy']:.3f}" if logs else ""
        self._meter.advance(BATCH, note)
