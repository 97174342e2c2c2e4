"""Training: a step of each block against the arithmetic ceiling, and whole recipes against plain Keras ones.

Three tables, all measured in one run with two threads, in float32. The step of a block (forward and the gradients of
kernels and input, in a `tf.function`) against what numpy's product of two 2048 × 2048 matrices would need for the same
multiplications. Then, on real CIFAR-10 pictures where they stand beside this checkout: ten epochs of a head on stored
features, and fine-tuning the last block from the stored junction, against the recipes that run the whole network in
every epoch.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from graft import params, runtime

THREADS = 2
ROUNDS = 7
# The first is not counted: in it the graphs are built.
TUNING_EPOCHS = 6
BATCH = 64
# Side of the map, channels in, channels out of the three convolutions, at 32 × 32 pixels.
BLOCKS = {"block3": (8, 128, 256), "block4": (4, 256, 512), "block5": (2, 512, 512)}
BOUND = 3.0
EPOCHS = 10
HEAD_BOUND, TUNING_BOUND = 10.0, 3.0
SHARED = Path(__file__).parents[2] / "shared"
PICTURES = {"train": 500, "test": 100}  # a class
TUNING_PICTURES = 200  # of them for fine-tuning, whose plain recipe is slow

Array = np.ndarray[Any, Any]


def main() -> None:
    settings = _settings("backbone.weights=none")
    runtime.start(settings)
    steps()
    if not (SHARED / "data" / "cifar10-images.zip").is_file():
        print(
            "\nNo shared/data/cifar10-images.zip beside this checkout: the recipes on real pictures are not measured."
        )
        return
    with tempfile.TemporaryDirectory(prefix="graft-bench-") as scratch:
        pictures = unpack(Path(scratch) / "pictures")
        head_training(pictures, Path(scratch))
        fine_tuning(pictures, Path(scratch))


def _settings(*assignments: str) -> params.Params:
    common = ["backbone.width=1.0", f"runtime.threads={THREADS}", "features.views=1", "data.source=folder"]
    return params.parse(params.override(params.FILE.read_text(encoding="utf-8"), [*common, *assignments]))


def seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_turn(works: dict[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each round, after a round that is not counted; the rounds alternate, so that all see one machine."""
    for work in works.values():
        work()
    rounds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(ROUNDS):
        for name, work in works.items():
            rounds[name].append(seconds(work))
    return rounds


def steps() -> None:
    """The table of the three blocks."""
    square = np.random.default_rng(0).random((2048, 2048), dtype=np.float32)
    print(f"Milliseconds a step of {BATCH} pictures, median of {ROUNDS} (shortest to longest), times the ceiling.\n")
    print("| block | ceiling | " + " | ".join(FORMULATIONS) + " |")
    print("|---|---|" + "---|" * len(FORMULATIONS))
    worst = 0.0
    for block, (side, channels, filters) in BLOCKS.items():
        plain = block_of_three(side, channels, filters)
        works = {name: step(*formulate(plain)) for name, formulate in FORMULATIONS.items()}
        rounds = in_turn({"sgemm": lambda: square @ square} | works)
        kernels = channels * filters + 2 * filters * filters
        multiplications = 3 * BATCH * side * side * 9 * kernels
        ceiling = statistics.median(rounds.pop("sgemm")) * multiplications / 2048**3
        cells = [cell(times, ceiling) for times in rounds.values()]
        print(f"| {block}, {side}×{side} | {1e3 * ceiling:.1f} | {' | '.join(cells)} |", flush=True)
        worst = max(worst, statistics.median(rounds["Graft"]) / ceiling)
    print(
        f"\nGraft at most {worst:.2f} times the ceiling, bound {BOUND:g}: {'held' if worst <= BOUND else 'NOT held'}."
    )


def cell(times: list[float], ceiling: float) -> str:
    middle = statistics.median(times)
    return f"{1e3 * middle:.1f} ({1e3 * min(times):.1f} to {1e3 * max(times):.1f}), {middle / ceiling:.2f}"


def block_of_three(side: int, channels: int, filters: int) -> Any:
    import keras

    from graft.backbones import plain_convolution

    tensor = entry = keras.Input((side, side, channels))
    for i in range(3):
        tensor = plain_convolution(tensor, filters, f"conv{i}")
    return keras.Model(entry, tensor)


def sliced(plain: Any) -> Any:
    """Nine shifted slices and one product for each convolution, differentiated by TensorFlow."""
    import keras
    from keras import ops

    class Sliced(keras.layers.Layer):
        def __init__(self, convolution: Any) -> None:
            super().__init__(name=convolution.name)
            self.convolution = convolution

        def call(self, maps: Any) -> Any:
            height, width, channels = maps.shape[1:]
            padded = ops.pad(maps, ((0, 0), (1, 1), (1, 1), (0, 0)))
            slices = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
            kernel = ops.reshape(self.convolution.kernel, (9 * channels, -1))
            return ops.relu(ops.matmul(ops.concatenate(slices, -1), kernel) + self.convolution.bias)

    kind = keras.layers.Conv2D
    return keras.models.clone_model(plain, clone_function=lambda old: Sliced(old) if isinstance(old, kind) else old)


def filtered(plain: Any) -> Any:
    from graft import winograd

    return winograd.trainable(plain)


FORMULATIONS: dict[str, Callable[[Any], tuple[Any, bool]]] = {
    "`Conv2D`": lambda plain: (plain, False),
    "`Conv2D`, XLA": lambda plain: (plain, True),
    "nine slices": lambda plain: (sliced(plain), False),
    "Graft": lambda plain: (filtered(plain), False),
}


def step(model: Any, compiled: bool) -> Callable[[], Any]:
    """Forward and all gradients on noise, as one graph."""
    import tensorflow as tf

    maps = tf.random.stateless_uniform((BATCH, *model.input_shape[1:]), (0, 0))
    towards = tf.random.stateless_normal((BATCH, *model.output_shape[1:]), (0, 1))
    variables = [variable.value for variable in model.trainable_variables]

    @tf.function(jit_compile=compiled)
    def gradients(maps: Any) -> Any:
        with tf.GradientTape() as tape:
            tape.watch(maps)
            total = tf.reduce_sum(model(maps) * towards)
        return tape.gradient(total, [maps, *variables])

    return lambda: gradients(maps)


def unpack(folder: Path) -> Path:
    """The first pictures of each class, in the layout of a folder source."""
    taken: Counter[str] = Counter()
    with zipfile.ZipFile(SHARED / "data" / "cifar10-images.zip") as archive:
        for name in sorted(archive.namelist()):
            kind, _, file = name.rpartition("/")
            split = kind.split("/")[1] if kind.count("/") == 2 else ""
            if file and split in PICTURES and taken[kind] < PICTURES[split]:
                taken[kind] += 1
                target = folder / Path(kind).relative_to("cifar10") / file
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    return folder


class Watch:
    """Notes when each epoch begins and the last one ends."""

    def __init__(self) -> None:
        self._marks: list[float] = []

    def mark(self, *_: Any) -> None:
        """An epoch begins here, or the last one has ended."""
        self._marks.append(time.perf_counter())

    def epochs(self) -> list[float]:
        """Seconds of each epoch, validation included, but the first, in which the graphs are built."""
        return list(np.diff(self._marks)[1:])


def prepare(pictures: Path, folder: Path, *assignments: str) -> params.Params:
    from graft.datasets import preparation

    settings = _settings(f"data.path={pictures}", *assignments)
    if not folder.is_dir():
        preparation.prepare(settings, folder)
    return settings


def split(prepared: Path, name: str) -> tuple[Array, Array]:
    from graft.datasets import preparation

    images, labels = preparation.load_split(prepared, name)
    return images.read(), labels.read()


def head_training(pictures: Path, scratch: Path) -> None:
    """Ten epochs: a head on stored features, and the recipe that runs the frozen base in each of them."""
    from graft import features, heads

    prepared, stored, folder = scratch / "prepared", scratch / "head-features", scratch / "head"
    real = f"backbone.weights={SHARED / 'weights' / 'vgg16_blocks123.npz'}"
    settings = prepare(
        pictures, prepared, real, "backbone.layer=block3_pool", f"head.epochs={EPOCHS}", "finetune.epochs=0"
    )
    extraction = seconds(lambda: features.extract(settings, prepared, stored))
    ours = [seconds(lambda: heads.train(settings, prepared, stored, folder)) for _ in range(5)]
    head = heads.restore(heads.load(folder), settings.head)
    rows = features.ShardedArray(stored, "test.features").read().astype(np.float32)
    _, expected = split(prepared, "test")
    accuracy = float((head.predict_on_batch(rows).argmax(1) == expected).mean())
    plain, plain_accuracy = plain_head(settings, prepared)
    count = len(split(prepared, "train")[0])
    theirs = EPOCHS * statistics.median(plain)
    middle = statistics.median(ours)
    print(f"\nA head on block3_pool, {count} CIFAR-10 pictures, {EPOCHS} epochs; accuracy on {len(expected)} others.\n")
    print("| recipe | seconds | accuracy |\n|---|---|---|")
    print(f"| the frozen base in every epoch (median epoch × {EPOCHS}) | {theirs:.1f} | {plain_accuracy:.3f} |")
    print(f"| on stored features, median of {len(ours)} | {middle:.2f} | {accuracy:.3f} |")
    print(f"| extraction before it, once (test pictures too) | {extraction:.1f} | |")
    verdict = "held" if theirs >= HEAD_BOUND * middle and accuracy >= plain_accuracy else "NOT held"
    print(f"\n{theirs / middle:.1f} times faster, with the extraction {theirs / (middle + extraction):.1f} times.")
    print(f"Bound: {HEAD_BOUND:g} times without it, at equal or better accuracy: {verdict}.")


def plain_head(settings: params.Params, prepared: Path) -> tuple[list[float], float]:
    """Seconds of the last epochs and test accuracy of the textbook's recipe; unnormalised it would not train."""
    import keras
    from keras import layers

    from graft import features

    keras.utils.set_random_seed(settings.seed)
    trunk = features.load_trunk(settings)
    base = keras.Model(trunk.image, trunk.cut)
    base.trainable = False
    tensor = layers.BatchNormalization()(layers.Flatten()(base(trunk.image, training=False)))
    tensor = layers.Dense(settings.head.hidden[0], activation="relu")(tensor)
    logits = layers.Dense(10)(layers.Dropout(settings.head.dropout)(tensor))
    model = keras.Model(trunk.image, logits)
    _compile(model, settings.head.learning_rate)
    times = fit(model, prepared, settings.head.batch_size, EPOCHS)
    images, expected = split(prepared, "test")
    found = model.predict(images, batch_size=settings.head.batch_size, verbose=0).argmax(1)
    return times, float((found == expected).mean())


def _compile(model: Any, rate: float) -> None:
    import keras

    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # Without XLA, which the first table shows to be slower for it.
    model.compile(keras.optimizers.Adam(rate), loss, metrics=["accuracy"], jit_compile=False)


def fit(model: Any, prepared: Path, batch: int, epochs: int) -> list[float]:
    """Seconds of the last epochs of plain `model.fit`."""
    import keras

    watch = Watch()
    callback = keras.callbacks.LambdaCallback(on_epoch_begin=watch.mark, on_train_end=watch.mark)
    images, labels = split(prepared, "train")
    model.fit(
        images,
        labels,
        batch_size=batch,
        epochs=epochs,
        verbose=0,
        validation_data=split(prepared, "validation"),
        callbacks=[callback],
    )
    return watch.epochs()


def fine_tuning(pictures: Path, scratch: Path) -> None:
    """The last block from the stored junction, and the recipe that runs all layers with the rest frozen."""
    real = f"backbone.weights={SHARED / 'weights' / 'vgg16_blocks123.npz'}"
    cases = {
        "block5 of VGG16 (random weights)": ("backbone.weights=none", "block5"),
        "block3 of VGG16 cut at block3_pool": (real, "block3"),
    }
    print(f"\nFine-tuning the last block: seconds an epoch, validation included, median of {TUNING_EPOCHS - 1}.\n")
    print("| trained | all layers in every epoch | from the stored junction | times faster |\n|---|---|---|---|")
    short = []
    for name, (weights, block) in cases.items():
        settings = prepare(
            pictures,
            scratch / "few",
            weights,
            f"data.limit_per_class={TUNING_PICTURES}",
            f"backbone.layer={block}_pool",
            f"finetune.unfreeze_from={block}_conv1",
            f"finetune.epochs={TUNING_EPOCHS}",
            "head.epochs=1",
        )
        theirs, ours = (statistics.median(times) for times in tune(settings, scratch, block))
        print(f"| {name} | {theirs:.2f} | {ours:.2f} | {theirs / ours:.1f} |", flush=True)
        if theirs < TUNING_BOUND * ours:
            short.append(f"{name}: {theirs / ours:.1f} times, bound {TUNING_BOUND:g}")
    print("\n" + ("\n".join(short) if short else f"The bound of {TUNING_BOUND:g} times is held."))


def tune(settings: params.Params, scratch: Path, block: str) -> tuple[list[float], list[float]]:
    """Seconds of each epoch of both recipes, from the same head."""
    import keras

    from graft import features, heads

    prepared, stored, folder = scratch / "few", scratch / f"{block}-features", scratch / f"{block}-head"
    features.extract(settings, prepared, stored)
    heads.train(settings, prepared, stored, folder)
    trunk = features.load_trunk(settings)
    head = heads.restore(heads.load(folder), settings.head)
    whole = keras.Model(trunk.image, head(features.pooled(trunk.cut, settings.features.pooling)))
    for layer in whole.layers:
        layer.trainable = layer.name.startswith(block) or layer is head
    _compile(whole, settings.finetune.learning_rate)
    theirs = fit(whole, prepared, settings.finetune.batch_size, settings.finetune.epochs)
    return theirs, from_the_junction(settings, prepared, stored, folder)


def from_the_junction(settings: params.Params, prepared: Path, stored: Path, head_folder: Path) -> list[float]:
    """Seconds of the last epochs of the stage `finetune`, by its own progress."""
    from graft import adaptation, progress

    done: dict[int, float] = {}

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.progress.description == "finetune":  # type: ignore[attr-defined]
                done[record.progress.done] = record.progress.seconds  # type: ignore[attr-defined]

    listener = Listener()
    progress.logger.addHandler(listener)
    progress.logger.setLevel(logging.INFO)
    progress.INTERVAL_SECONDS = 0  # every batch, so that the last one of each epoch is seen
    adaptation.finetune(settings, prepared, stored, head_folder, head_folder.with_name("tuned"))
    progress.logger.removeHandler(listener)
    batches = max(done) // settings.finetune.epochs
    ends = [done[batches * (epoch + 1)] for epoch in range(settings.finetune.epochs)]
    return list(np.diff(ends))


if __name__ == "__main__":
    main()
