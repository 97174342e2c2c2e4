"""One training loop for head and fine-tuning: batches from shards, a rate that rises and falls, the best epoch kept.

In: a Keras model that ends in logits, inputs as shards, labels. Out: the model at its best validation accuracy
and a row an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
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

# Share of the steps in which the rate rises, and how far below the peak it starts.
SCHEDULES = {"cosine": (0.1, 20), "one-cycle": (0.3, 25)}


@dataclass(frozen=True)
class Recipe:
    """What a training run is told. `learning_rate` is the peak; `gradient_norm` None leaves gradients as they are."""

    name: str
    epochs: int
    learning_rate: float
    schedule: str
    weight_decay: float
    label_smoothing: float
    gradient_norm: float | None


class Batches(keras.utils.PyDataset):
    """Batches of rows as they are stored, labels (one-hot over `classes`) and, with `class_weights`, their weights.

    With a seed, for training: shuffled anew each epoch. `rows` may hold several views of each picture, view by view;
    an epoch shows every picture once and goes from each to its next view, so that it costs the same for any number
    of views. With `mixup` a batch's labels are blended with those of others (Zhang et al. 2018), and in the rows' place
    stands what `blended` needs to do the same to them; 0 leaves both alone.
    """

    def __init__(
        self,
        rows: ShardedArray,
        labels: Array,
        classes: int,
        batch_size: int,
        seed: int | None = None,
        mixup: float = 0.0,
        class_weights: Array | None = None,
    ) -> None:
        super().__init__()
        self._rows, self._labels = rows, labels
        self._one_hot = np.eye(classes, dtype=np.float32)
        self._views = len(rows) // len(labels)
        self._size = min(batch_size, len(labels))
        self._seed, self._mixup, self._class_weights = seed, mixup, class_weights
        self.start(0)

    def start(self, epoch: int) -> None:
        """Draw the order of `epoch`."""
        self._epoch, count = epoch, len(self._labels)
        self._order = np.arange(count)
        if self._seed is not None:
            first_view = np.random.default_rng(self._seed).integers(self._views, size=count)
            self._order = self._rng().permutation((first_view + epoch) % self._views * count + self._order)

    def _rng(self, *stream: int) -> np.random.Generator:
        return np.random.default_rng((self._seed or 0, self._epoch, *stream))

    def __len__(self) -> int:
        # While training, a short last batch would give batch normalisation too few rows; the next epoch has them.
        whole = len(self._labels) // self._size
        return whole if self._seed is not None else math.ceil(len(self._labels) / self._size)

    @property
    def mixes(self) -> bool:
        """Whether a batch's rows are still to be blended."""
        return bool(self._mixup) and self._seed is not None

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        chosen = self._order[index * self._size : (index + 1) * self._size]
        rows: Any = self._rows.take(chosen)
        targets = self._one_hot[self._labels[chosen % len(self._labels)]]
        if self.mixes:
            rng = self._rng(index)
            share = rng.beta(self._mixup, self._mixup, len(chosen)).astype(np.float32)
            other = rng.permutation(len(chosen))
            rows = {"rows": rows, "others": rows[other], "share": share}
            targets = share[:, None] * targets + (1 - share)[:, None] * targets[other]
        if self._class_weights is None:
            return rows, targets
        return rows, targets, targets @ self._class_weights


def blended(model: keras.Model) -> keras.Model:
    """`model` on what `Batches` gives with mixup: `share` (batch) of each of the `rows`, the rest of the `others`."""
    shape = model.input.shape[1:]
    rows, others = keras.Input(shape, name="rows"), keras.Input(shape, name="others")
    share = keras.Input((), name="share")
    portion = keras.ops.reshape(share, (-1, *[1] * len(shape)))
    mixed = portion * rows + (1 - portion) * others
    return keras.Model({"rows": rows, "others": others, "share": share}, model(mixed))


def balanced(labels: Array, classes: int) -> Array:
    """A weight a class (float32) that makes all classes count the same: N / (classes × its pictures)."""
    counts = np.bincount(labels, minlength=classes)
    weights: Array = (len(labels) / (classes * np.maximum(counts, 1))).astype(np.float32)
    return weights


def rate(kind: str, peak: float, steps: int) -> Any:
    """The learning rate at each of `steps` steps: a linear rise, then a cosine to nearly zero.

    `cosine` rises for a tenth (Loshchilov and Hutter 2017), `one-cycle` for three tenths (Smith and Topin 2018).
    """
    share, divisor = SCHEDULES[kind]
    rising = max(1, int(share * steps))
    return keras.optimizers.schedules.CosineDecay(
        peak / divisor, max(1, steps - rising), alpha=1e-4, warmup_target=peak, warmup_steps=rising
    )


def evaluate(model: keras.Model, batches: Batches) -> Epoch:
    """Cross-entropy and accuracy of `model`, which ends in logits."""
    model.compile(loss=_crossentropy(0.0), metrics=[_accuracy()])
    return {key: float(value) for key, value in model.evaluate(batches, verbose=0, return_dict=True).items()}


def fit(
    model: keras.Model,
    train: Batches,
    validation: Batches,
    recipe: Recipe,
    best: BestEpoch,
    first_epoch: int = 0,
    shares: Mapping[str, float] | None = None,
) -> list[Epoch]:
    """Train with AdamW for the recipe's epochs or until `best` stops; `model` keeps the best epoch's weights.

    `shares` gives variables (by their path) another rate: this share of the recipe's. Epochs are counted from
    `first_epoch`, for a training in several parts.

    Raises:
        GraftError: the loss is no longer a number; the message names epoch and rate.
    """
    steps = recipe.epochs * len(train)
    loss, optimizing = _crossentropy(recipe.label_smoothing), _optimizer(recipe, steps, shares or {})
    model.compile(loss=loss, metrics=[_accuracy()])
    trained = blended(model) if train.mixes else model
    trained.compile(optimizing, loss, metrics=[_accuracy()])
    journal = Journal(train, recipe, steps)
    trained.fit(
        train,
        initial_epoch=first_epoch,
        epochs=first_epoch + recipe.epochs,
        shuffle=False,
        verbose=0,
        callbacks=[Validation(model, validation), journal, best],
    )
    return journal.epochs


def _optimizer(recipe: Recipe, steps: int, shares: Mapping[str, float]) -> keras.optimizers.Optimizer:
    groups = {
        share: optimizer.adamw(
            rate(recipe.schedule, share * recipe.learning_rate, steps), recipe.weight_decay, recipe.gradient_norm
        )
        for share in sorted({1.0, *shares.values()})
    }
    if len(groups) == 1:
        return groups[1.0]
    return keras.optimizers.MultiOptimizer(lambda variable: groups[shares.get(variable.path, 1.0)])


def _crossentropy(label_smoothing: float) -> Any:
    """Softmax cross-entropy of logits, labels smoothed (Szegedy et al. 2016)."""
    return keras.losses.CategoricalCrossentropy(from_logits=True, label_smoothing=label_smoothing)


def _accuracy() -> Any:
    return keras.metrics.CategoricalAccuracy(name="accuracy")


class Validation(keras.callbacks.Callback):
    """Adds `val_loss` and `val_accuracy` of `network` to each epoch's numbers; stands before whoever reads them."""

    def __init__(self, network: keras.Model, batches: Batches) -> None:
        super().__init__()
        self._network, self._batches = network, batches

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Measure."""
        found = self._network.evaluate(self._batches, verbose=0, return_dict=True)
        if logs is not None:
            logs.update({f"val_{name}": value for name, value in found.items()})


class BestEpoch(keras.callbacks.Callback):
    """Stops after `patience` epochs without a better one (None: never), and gives the model the best one's weights.

    One instance sees all parts of a training and gives back the best epoch of all of them.

    Better is a higher validation accuracy, and at the same accuracy a lower loss. Not the loss alone: a head on few
    pictures grows overconfident long before it stops getting better. Not the accuracy alone: few validation pictures
    are soon all right, with a head that has hardly learned.
    """

    def __init__(self, patience: int | None) -> None:
        super().__init__()
        self._patience = math.inf if patience is None else patience
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

    def __init__(self, batches: Batches, recipe: Recipe, steps: int) -> None:
        super().__init__()
        self._batches, self._recipe = batches, recipe
        self._rate = rate(recipe.schedule, recipe.learning_rate, steps)
        self._meter = progress.Meter(recipe.name, steps, unit="batches")
        self._number = self._step = 0
        self.epochs: list[Epoch] = []

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Shuffle."""
        self._number = epoch + 1
        self._batches.start(epoch)

    def on_train_batch_end(self, batch: int, logs: dict[str, float] | None = None) -> None:
        """Count, and look at the loss."""
        loss, accuracy = (logs or {})["loss"], (logs or {})["accuracy"]
        self._step += 1
        if not math.isfinite(loss):
            raise GraftError(
                f"{self._recipe.name}: the loss became {loss} in epoch {self._number} at a learning rate of "
                f"{self._current_rate():.2g}; lower {self._recipe.name}.learning_rate"
            )
        self._meter.advance(1, f"epoch {self._number}, loss {loss:.3f}, accuracy {accuracy:.3f}")

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        """Keep the row."""
        row = {"epoch": self._number} | {key: round(float(value), 6) for key, value in (logs or {}).items()}
        self.epochs.append(row | {"learning_rate": float(f"{self._current_rate():.4g}")})

    def _current_rate(self) -> float:
        return float(self._rate(self._step))
