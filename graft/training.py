"""One training loop for head and fine-tuning: batches from shards, a cosine rate, the best epoch kept.

In: a Keras model that ends in logits, inputs as shards, labels. Out: the model at its best validation accuracy
and a row an epoch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from graft import optimizer, progress
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
    """Batches of stored rows (float32) with their labels (one-hot), shuffled anew each epoch if a seed is given.

    `labels` may be shorter than `rows` by a whole factor: the rows then hold several views of each picture,
    view by view. `mixup` blends rows and labels of a shuffled batch (Zhang et al. 2018); 0 leaves them alone.
    """

    def __init__(
        self, rows: ShardedArray, labels: Array, batch_size: int, seed: int | None = None, mixup: float = 0.0
    ) -> None:
        super().__init__()
        self._rows, self._labels = rows, np.tile(labels, len(rows) // len(labels))
        self._one_hot = np.eye(int(labels.max()) + 1, dtype=np.float32)
        self._size = min(batch_size, len(rows))
        self._seed, self._mixup = seed, mixup
        self.start(0)

    def start(self, epoch: int) -> None:
        """Draw the order of `epoch`."""
        self._epoch, count = epoch, len(self._rows)
        self._order = np.arange(count) if self._seed is None else self._rng().permutation(count)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng((self._seed or 0, self._epoch, *stream))

    def __len__(self) -> int:
        # While training, a short last batch would give batch normalisation too few rows; the next epoch has them.
        whole = len(self._rows) // self._size
        return whole if self._seed is not None else math.ceil(len(self._rows) / self._size)

    def __getitem__(self, index: int) -> tuple[Array, Array]:
        chosen = self._order[index * self._size : (index + 1) * self._size]
        rows, targets = self._rows.take(chosen).astype(np.float32), self._one_hot[self._labels[chosen]]
        if self._mixup and self._seed is not None:
            rng = self._rng(index)
            share = rng.beta(self._mixup, self._mixup, len(chosen)).astype(np.float32)
            other = rng.permutation(len(chosen))
            rows, targets = _blend(rows, rows[other], share), _blend(targets, targets[other], share)
        return rows, targets


def _blend(one: Array, other: Array, share: Array) -> Array:
    share = share.reshape(-1, *[1] * (one.ndim - 1))
    blended: Array = share * one + (1 - share) * other
    return blended


def cosine_rate(peak: float, steps: int, warmup_share: float = WARMUP_SHARE) -> Any:
    """A linear warm-up from a twentieth of `peak`, then a cosine to nearly zero (Loshchilov and Hutter 2017)."""
    warmup = max(1, int(warmup_share * steps))
    return keras.optimizers.schedules.CosineDecay(
        peak / 20, max(1, steps - warmup), alpha=1e-4, warmup_target=peak, warmup_steps=warmup
    )


def evaluate(model: keras.Model, batches: Batches) -> Epoch:
    """Cross-entropy and accuracy of `model`, which ends in logits."""
    model.compile(loss=_crossentropy(0.0), metrics=[_accuracy()])
    return {key: float(value) for key, value in model.evaluate(batches, verbose=0, return_dict=True).items()}


def fit(model: keras.Model, train: Batches, validation: Batches, recipe: Recipe) -> list[Epoch]:
    """Train with AdamW until the epochs or the patience end; `model` keeps its best epoch's weights.

    Raises:
        GraftError: the loss is no longer a number; the message names epoch and rate.
    """
    model.compile(
        optimizer.adamw(
            cosine_rate(recipe.learning_rate, recipe.epochs * len(train)), recipe.weight_decay, GRADIENT_NORM
        ),
        _crossentropy(recipe.label_smoothing),
        metrics=[_accuracy()],
    )
    journal = Journal(train, recipe)
    best = BestEpoch(recipe.patience)
    model.fit(
        train, validation_data=validation, epochs=recipe.epochs, shuffle=False, verbose=0, callbacks=[journal, best]
    )
    return journal.epochs


def _crossentropy(label_smoothing: float) -> Any:
    """Softmax cross-entropy of logits, labels smoothed (Szegedy et al. 2016)."""
    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)


def _accuracy() -> Any:
    return keras.metrics.CategoricalAccuracy(name="accuracy")


class BestEpoch(keras.callbacks.Callback):
    """Stops after `patience` epochs without a better one, and gives the model the best epoch's weights back.

    Better is a higher validation accuracy, and at the same accuracy a lower loss. Not the loss alone: a head on few
    pictures grows overconfident long before it stops getting better. Not the accuracy alone: few validation pictures
    are soon all right, with a head that has hardly learned.
    """

    def __init__(self, patience: int) -> None:
        super().__init__()
        self._patience = patience
        self._best = (-math.inf, -math.inf)
        self._weights: list[Array] = []
        self._waited = 0

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Compare, keep, or count."""
        logs = logs or {}
        rank = (logs["val_accuracy"], -logs["val_loss"])
        self._waited += 1
        if rank > self._best:
            self._best, self._waited = rank, 0
            self._weights = self.model.get_weights()
        if self._waited >= self._patience:
            self.model.stop_training = True

    def on_train_end(self, logs: dict[str, float] | None = None) -> None:
        """Go back to the best."""
        self.model.set_weights(self._weights)


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
