"""Batch normalisation for training only: putting it in and folding it away change nothing that is computed."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import pytest
from keras import layers

from graft import heads, normalisation, params, runtime

Array = npt.NDArray[Any]


@pytest.fixture
def suffix(tiny: params.Params) -> keras.Model:
    runtime.start(tiny)
    entry = tensor = keras.Input((8, 8, 6))
    for i in range(2):
        tensor = layers.Conv2D(10, 3, padding="same", activation="relu", name=f"block3_conv{i}")(tensor)
    model = keras.Model(entry, layers.MaxPooling2D()(tensor), name="suffix")
    rng = np.random.default_rng(5)
    model.set_weights([rng.normal(size=weight.shape).astype(np.float32) for weight in model.get_weights()])
    return model


def maps(count: int, seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(1, 3, (count, 8, 8, 6)).astype(np.float32)


def close(one: Any, other: Any) -> bool:
    return bool(np.abs(np.asarray(one) - np.asarray(other)).max() <= 1e-5 * np.abs(np.asarray(other)).max())


def test_a_network_with_normalisation_put_in_computes_the_same(suffix: keras.Model) -> None:
    expected = suffix.predict_on_batch(maps(16))
    bare = normalisation.inserted(suffix)
    assert [layer.name for layer in bare.layers if isinstance(layer, layers.BatchNormalization)] == [
        "block3_conv0_norm",
        "block3_conv1_norm",
    ]
    assert close(bare.predict_on_batch(maps(16)), expected)
    assert close(normalisation.settle(bare, maps(16), 4), expected)
    assert close(bare.predict_on_batch(maps(16)), expected)


def test_it_starts_from_the_statistics_of_the_rows(suffix: keras.Model) -> None:
    bare = normalisation.inserted(suffix)
    normalisation.settle(bare, maps(64), 16)
    # While training, normalised by the batch: the same if the batch is what the statistics were taken from.
    assert close(bare(maps(64), training=True), suffix(maps(64)))
    assert not close(bare(maps(64, seed=2) * 2, training=True), suffix(maps(64, seed=2) * 2))


def test_what_was_learnt_is_folded_back(suffix: keras.Model) -> None:
    before = suffix.get_weights()
    bare = normalisation.inserted(suffix)
    normalisation.settle(bare, maps(64), 16)
    bare.compile(keras.optimizers.SGD(0.01), "mse")
    for _ in range(3):
        bare.train_on_batch(maps(16), np.ones((16, 4, 4, 10), np.float32))
    assert all((mine == old).all() for mine, old in zip(suffix.get_weights(), before, strict=True))
    normalisation.fold(bare, suffix)
    assert close(suffix.predict_on_batch(maps(16)), bare.predict_on_batch(maps(16)))
    assert not any((mine == old).all() for mine, old in zip(suffix.get_weights(), before, strict=True))


def test_layers_without_a_fused_relu_are_the_models_own(tiny: params.Params) -> None:
    entry = keras.Input((8, 8, 6))
    tensor = layers.Conv2D(4, 3, name="linear")(entry)
    norm = layers.BatchNormalization(name="its_own")
    model = keras.Model(entry, layers.Conv2D(4, 3, use_bias=False, activation="relu", name="bare")(norm(tensor)))
    changed = normalisation.inserted(model)
    assert changed.get_layer("linear") is model.get_layer("linear")
    assert changed.get_layer("bare") is model.get_layer("bare")
    changed(maps(4), training=True)
    assert (norm.get_weights()[2] == 0).all()


def test_a_head_to_be_trained_further_computes_what_the_stored_one_does(tiny: params.Params) -> None:
    runtime.start(tiny)
    rng = np.random.default_rng(2)
    model = heads.build(12, 3, tiny.head, rng.normal(size=12), rng.uniform(1, 2, 12), normalised=True)
    rows = rng.normal(size=(64, 12)).astype(np.float32)
    normalisation.settle(model, rows, 16)
    stored = heads.folded(model, rng.normal(size=12).astype(np.float32), np.ones(12, np.float32))
    stored["dense_0/kernel"][:, 0] = 0  # a unit that looks at nothing
    plain, trainable = (heads.restore(stored, tiny.head, normalised) for normalised in (False, True))
    assert close(trainable.predict_on_batch(rows), plain.predict_on_batch(rows))
    lengths = np.linalg.norm(trainable.get_layer("dense_0").get_weights()[0], axis=0)
    assert np.allclose(lengths[1:], heads.UNIT_LENGTH)
    again = heads.folded(trainable, stored["mean"], stored["std"])
    assert all(close(again[name], stored[name]) for name in stored)
