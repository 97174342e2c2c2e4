"""The training loop: what a batch holds, how the rate moves, what is trained when."""

from __future__ import annotations

import json
from pathlib import Path

import keras
import numpy as np
import pytest

from graft import adaptation, augmentation, features, heads, normalisation, params, runtime, training
from graft.shards import ShardedArray, ShardWriter

RECIPE = training.Recipe("head", 2, 0.05, "cosine", 0.0, 0.0, None)


def stored(folder: Path, rows: np.ndarray) -> ShardedArray:
    with ShardWriter(folder, "rows", rows.shape[1:], np.float32, rows_per_shard=5) as writer:
        writer.append(rows.astype(np.float32))
    return ShardedArray(folder, "rows")


def changed(settings: params.Params, **sections: dict[str, object]) -> params.Params:
    document = settings.model_dump(mode="json")
    for section, values in sections.items():
        document[section] |= values
    return params.Params.model_validate(document)


def test_an_epoch_shows_each_picture_once_and_each_view_has_its_turn(tmp_path: Path) -> None:
    rows = stored(tmp_path, np.arange(18).reshape(18, 1))  # six pictures in three views
    labels = np.arange(6)
    batches = training.Batches(rows, labels, 6, 2, seed=1)
    assert not batches.mixes
    seen = []
    for epoch in range(3):
        batches.start(epoch)
        shown = np.concatenate([batches[i][0].ravel() for i in range(len(batches))]).astype(int)
        told = np.concatenate([batches[i][1].argmax(1) for i in range(len(batches))])
        assert sorted(shown % 6) == list(range(6))
        assert (told == shown % 6).all()
        seen += list(shown)
    assert sorted(seen) == list(range(18))


def test_mixup_blends_rows_and_labels_alike(tmp_path: Path) -> None:
    rows = stored(tmp_path, np.repeat(np.eye(6), 2, axis=1).reshape(6, 3, 4))
    batches = training.Batches(rows, np.arange(6), 6, 6, seed=1, mixup=1.0)
    entry = keras.Input((3, 4))
    model = training.blended(keras.Model(entry, keras.layers.Flatten()(entry)))
    given, targets = batches[0]
    assert np.allclose(model.predict_on_batch(given)[:, ::2], targets)
    assert ((targets > 0.01).sum(1) == 2).any()
    assert np.allclose(targets.sum(1), 1)
    assert not training.Batches(rows, np.arange(6), 6, 6, mixup=1.0).mixes


def test_fewer_pictures_than_a_batch_make_one_batch(tmp_path: Path) -> None:
    rows = stored(tmp_path, np.arange(3).reshape(3, 1))
    batches = training.Batches(rows, np.array([0, 1, 0]), 2, 64, seed=1)
    assert len(batches) == 1
    assert len(batches[0][0]) == 3


def test_a_class_that_validation_lacks_still_has_its_column(tmp_path: Path) -> None:
    rows = stored(tmp_path, np.arange(4).reshape(4, 1))
    training_batches = training.Batches(rows, np.array([0, 1, 2, 2]), 3, 2, seed=1)
    validation = training.Batches(rows, np.array([0, 1, 0, 1]), 3, 4)
    entry = keras.Input((1,))
    model = keras.Model(entry, keras.layers.Dense(3)(entry))
    history = training.fit(model, training_batches, validation, RECIPE, training.BestEpoch(None))
    assert 0 <= history[-1]["val_accuracy"] <= 1


def test_balanced_weights_help_the_rare_class(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    labels = np.array([0] * 90 + [1] * 10)
    rows = stored(tmp_path, rng.normal(labels[:, None] * 1.5, 1.0))
    recall = {}
    for kind in ("none", "balanced"):
        keras.utils.set_random_seed(1)
        weights = training.balanced(labels, 2) if kind == "balanced" else None
        entry = keras.Input((1,))
        model = keras.Model(entry, keras.layers.Dense(2)(entry))
        batches = training.Batches(rows, labels, 2, 20, seed=1, class_weights=weights)
        # The last epoch is wanted, not the most accurate one, which ignores the rare class.
        model.compile(keras.optimizers.Adam(0.1), keras.losses.CategoricalCrossentropy(from_logits=True))
        model.fit(batches, epochs=15, verbose=0)
        recall[kind] = (model.predict(rows.read()[90:], verbose=0).argmax(1) == 1).mean()
    assert recall["balanced"] > recall["none"] + 0.2


def test_balanced_weights_make_all_classes_count_the_same() -> None:
    labels = np.array([0, 0, 0, 1, 2, 2])
    assert np.allclose(np.bincount(labels, training.balanced(labels, 3)[labels]), 2)


@pytest.mark.parametrize(("kind", "rising"), [("cosine", 10), ("one-cycle", 30)])
def test_the_rate_rises_and_then_falls_to_nearly_nothing(kind: str, rising: int) -> None:
    schedule = training.rate(kind, 0.5, 100)
    rates = [float(schedule(step)) for step in range(101)]
    assert int(np.argmax(rates)) == rising
    assert max(rates) == pytest.approx(0.5)
    assert rates[0] < 0.03
    assert rates[-1] < 1e-3


def test_shares_of_the_rate_move_variables_less(tmp_path: Path) -> None:
    rows = stored(tmp_path, np.random.default_rng(1).normal(size=(8, 3)))
    entry = keras.Input((3,))
    early, late = keras.layers.Dense(4, name="early"), keras.layers.Dense(2, name="late")
    model = keras.Model(entry, late(early(entry)))
    before = [layer.get_weights()[0] for layer in (early, late)]
    batches = training.Batches(rows, np.arange(8) % 2, 2, 4, seed=1)
    shares = {weight.path: 1e-3 for weight in early.trainable_weights}
    training.fit(model, batches, batches, RECIPE, training.BestEpoch(None), shares=shares)
    moved = [np.abs(layer.get_weights()[0] - b).max() for layer, b in zip((early, late), before, strict=True)]
    assert 0 < moved[0] < 0.01 * moved[1]


@pytest.mark.parametrize(
    ("names", "blocks"),
    [
        (["block2_conv1", "block2_conv2", "block3_conv1"], [2, 1]),
        (["conv1_conv", "conv2_block1_1_conv", "conv2_block2_1_conv", "conv3_block1_1_conv"], [1, 2, 1]),
        (["Conv1", "expanded_conv_project", "block_1_expand", "block_10_expand", "Conv_1"], [2, 1, 2]),
        (["stem_conv", "block1a_project_conv", "block6a_expand_conv", "block6h_add_bn", "top_conv"], [1, 1, 3]),
    ],
)
def test_layers_are_grouped_by_block(names: list[str], blocks: list[int]) -> None:
    entry = tensor = keras.Input((2,))
    for name in names:
        tensor = keras.layers.ReLU()(keras.layers.Dense(2, name=name)(tensor))
    grouped = adaptation.blocks(keras.Model(entry, tensor))
    assert [len(block) for block in grouped] == blocks
    assert [layer.name for block in grouped for layer in block] == names


def test_blocks_are_opened_from_behind(
    tiny: params.Params, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradual = changed(
        tiny,
        backbone={"layer": "block2_pool"},
        finetune={"unfreeze_from": "block1_conv1", "epochs": 2, "gradual_epochs": 1, "block_decay": 0.5},
        head={"epochs": 1},
    )
    runtime.start(gradual)
    features.extract(gradual, prepared, tmp_path / "features")
    heads.train(gradual, prepared, tmp_path / "features", tmp_path / "head")
    moved: list[set[str]] = []
    fit = training.fit

    def watched(model: keras.Model, *args: object) -> list[training.Epoch]:
        suffix = model.get_layer("suffix")
        before = {layer.name: layer.get_weights() for layer in suffix.layers}
        rows = fit(model, *args)  # type: ignore[arg-type]
        after = {layer.name: layer.get_weights() for layer in suffix.layers}
        moved.append({n for n in before if any((a != b).any() for a, b in zip(before[n], after[n], strict=True))})
        return rows

    monkeypatch.setattr(training, "fit", watched)
    # So that the last epoch is kept, whatever it is worth: the first block must be seen to move.
    monkeypatch.setattr(training.BestEpoch, "on_train_end", lambda self, logs=None: None)
    adaptation.finetune(gradual, prepared, tmp_path / "features", tmp_path / "head", tmp_path / "finetuned")
    first, second = (
        {f"{block}_conv{i}{part}" for i in (1, 2) for part in ("", "_norm")} for block in ("block1", "block2")
    )
    assert moved == [second, second | first]
    epochs = [row["epoch"] for row in json.loads((tmp_path / "finetuned/history.json").read_text())["epochs"]]
    assert epochs == [1, 2, 3]


def test_batch_normalisation_keeps_its_statistics_while_fine_tuning(tiny: params.Params) -> None:
    mobile = changed(
        tiny,
        backbone={"name": "mobilenetv2", "width": 1.0, "layer": "block_1_project_BN"},
        finetune={"unfreeze_from": "block_1_expand"},
    )
    runtime.start(mobile)
    suffix = features.load_trunk(mobile).suffix()
    size = int(np.prod(suffix.output.shape[1:]))
    head = heads.build(size, 2, mobile.head, np.zeros(size, np.float32), np.ones(size, np.float32))
    network = adaptation.assemble(normalisation.inserted(suffix), head, mobile)
    norms = [layer for layer in suffix.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [norm.get_weights() for norm in norms]
    network.compile(keras.optimizers.SGD(0.1), keras.losses.CategoricalCrossentropy(from_logits=True))
    rng = np.random.default_rng(1)
    network.train_on_batch(rng.normal(3, 2, (8, *suffix.input.shape[1:])), np.eye(2)[np.arange(8) % 2])
    assert len(norms) == 3
    for norm, (gamma, _, mean, variance) in zip(norms, before, strict=True):
        after = norm.get_weights()
        assert (after[0] != gamma).any()
        assert (after[2] == mean).all()
        assert (after[3] == variance).all()


def test_digits_are_never_flipped_unless_asked(tiny: params.Params) -> None:
    auto = changed(tiny, features={"augmentation": ["auto"]})
    assert augmentation.kinds(auto) == {"flip", "shift"}
    assert augmentation.kinds(changed(auto, data={"source": "digits"})) == {"shift"}
    assert augmentation.kinds(changed(tiny, data={"source": "digits"}, features={"augmentation": ["flip"]})) == {"flip"}
