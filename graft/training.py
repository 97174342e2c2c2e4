"""One training loop for head and fine-tuning: batches from shards, a cosine rate, the best epoch kept.

In: a Keras model that ends in logits, inputs as shards, labels. Out: the model at its best validation loss
and a row an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from graft import progress
from graft.errors import GraftError
from graft.shards import ShardedArray

Array = npt.NDArray[Any]
Epoch = dict[str, float]

WARMUP_SHARE = 0.1
GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class Recipe:
    """What a training run is told: sizes, rates and limits."""

    name: str
    epochs: int
    batch_size: int
    learning_rate: float
    weight_decay: float
    label_smoothing: float
    patience: int
    seed: int


class Batches(keras.utils.PyDataset):
    """Batches of stored rows with their labels, shuffled anew each epoch if a seed is given.

    `labels` may be shorter than `rows` by a whole factor: the rows then hold several views of each picture,
    view by view.
    """

    def __init__(self, rows: ShardedArray, labels: Array, batch_size: int, seed: int | None = None) -> None:
        super().__init__()
        self._rows, self._labels = rows, np.tile(labels, len(rows) // len(labels))
        self._size = min(batch_size, len(rows))
        self._seed = seed
        self.start(0)

    def start(self, epoch: int) -> None:
        """Draw the order of `epoch`."""
        count = len(self._rows)
        shuffled = self._seed is not None
        self._order = np.random.default_rng((self._seed, epoch)).permutation(count) if shuffled else np.arange(count)

    def __len__(self) -> int:
        return math.ceil(len(self._rows) / self._size)

    def __getitem__(self, index: int) -> tuple[Array, Array]:
        chosen = self._order[index * self._size : (index + 1) * self._size]
        return self._rows.take(chosen).astype(np.float32), self._labels[chosen]


def crossentropy(classes: int, label_smoothing: float) -> Callable[[Any, Any], Any]:
    """Softmax cross-entropy of logits against integer labels, smoothed (Szegedy et al. 2016)."""

    def loss(labels: Any, logits: Any) -> Any:
        one_hot = keras.ops.one_hot(keras.ops.reshape(labels, (-1,)), classes)
        return keras.losses.categorical_crossentropy(
            one_hot, logits, from_logits=True, label_smoothing=label_smoothing
        )

    return loss


def cosine_rate(peak: float, steps: int, warmup_share: float = WARMUP_SHARE) -> Any:
    """A linear warm-up from a twentieth of `peak`, then a cosine to nearly zero (Loshchilov and Hutter 2017)."""
    warmup = max(1, int(warmup_share * steps))
    return keras.optimizers.schedules.CosineDecay(
        peak / 20, max(1, steps - warmup), alpha=1e-4, warmup_target=peak, warmup_steps=warmup
    )


def compile_for_evaluation(model: keras.Model, label_smoothing: float = 0.0) -> None:
    """Give `model` the loss and the metric, but no way to train."""
    model.compile(
        loss=crossentropy(model.output_shape[-1], label_smoothing),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )


def evaluate(model: keras.Model, batches: Batches) -> Epoch:
    """Loss and accuracy of a compiled `model`."""
    return {key: float(value) for key, value in model.evaluate(batches, verbose=0, return_dict=True).items()}


def fit(model: keras.Model, train: Batches, validation: Batches, recipe: Recipe) -> list[Epoch]:
    """Train with AdamW until the epochs or the patience end; `model` keeps its best epoch's weights.

    Raises:
        GraftError: the loss is no longer a number; the message names epoch and rate.
    """
    optimizer = keras.optimizers.AdamW(
        cosine_rate(recipe.learning_rate, recipe.epochs * len(train)),
        weight_decay=recipe.weight_decay,
        clipnorm=GRADIENT_NORM,
    )
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(
        optimizer,
        crossentropy(model.output_shape[-1], recipe.label_smoothing),
        metrics=[keras.metrics.SparseCategoricalAccuracy(name="accuracy")],
    )
    journal = Journal(train, recipe)
    best = keras.callbacks.EarlyStopping("val_loss", patience=recipe.patience, restore_best_weights=True)
    model.fit(
        train, validation_data=validation, epochs=recipe.epochs, shuffle=False, verbose=0, callbacks=[journal, best]
    )
    return journal.epochs


class Journal(keras.callbacks.Callback):
    """Reorders the batches each epoch, reports progress, keeps a row an epoch, stops at a loss that is no number."""

    def __init__(self, batches: Batches, recipe: Recipe) -> None:
        super().__init__()
        self._batches, self._recipe = batches, recipe
        self._meter = progress.Meter(recipe.name, recipe.epochs * len(batches), unit="batches")
        self._number = 0
        self.epochs: list[Epoch] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Shuffle."""
        self._number = epoch + 1
        self._batches.start(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Count, and look at the loss."""
        loss, accuracy = (logs or {})["loss"], (logs or {})["accuracy"]
        if not math.isfinite(loss):
            raise GraftError(
                f"{self._recipe.name}: the loss became {loss} in epoch {self._number} at a learning rate of "
                f"{self._rate():.2g}; lower {self._recipe.name}.learning_rate"
            )
        self._meter.advance(1, f"epoch {self._number}, loss {loss:.3f}, accuracy {accuracy:.3f}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keep the row."""
        row = {"epoch": self._number} | {key: round(float(value), 6) for key, value in (logs or {}).items()}
        self.epochs.append(row | {"learning_rate": float(f"{self._rate():.4g}")})

    def _rate(self) -> float:
        return float(self.model.optimizer.learning_rate)
