"""Small convolutions in training: what Conv2D computes, forward and backward, over the same variables."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from graft import winograd

Array = np.ndarray[Any, Any]
# Of the largest value: float32 rounding, a few times what Conv2D itself loses against float64.
ROUNDING = 1e-5


def network(height: int, width: int, **options: Any) -> keras.Model:
    entry = keras.Input((height, width, 6))
    settings = {"padding": "same", "activation": "relu", "name": "conv"} | options
    return keras.Model(entry, layers.Conv2D(10, settings.pop("kernel_size", 3), **settings)(entry))


def step(model: keras.Model, maps: Array, weights: Array) -> list[Array]:
    """Outputs, and the gradients of their weighted sum to maps, kernel and bias."""
    import tensorflow as tf

    entry = tf.constant(maps)
    with tf.GradientTape() as tape:
        tape.watch(entry)
        out = model(entry)
        total = tf.reduce_sum(out * weights)
    gradients = tape.gradient(total, [entry, *(v.value for v in model.trainable_variables)])
    return [np.asarray(out), *map(np.asarray, gradients)]


@pytest.mark.parametrize("sides", [(1, 1), (2, 2), (3, 3), (4, 4), (7, 7), (8, 8), (5, 2), (1, 6)], ids=str)
def test_a_small_convolution_has_the_values_and_gradients_of_conv2d(sides: tuple[int, int]) -> None:
    rng = np.random.default_rng(3)
    plain = network(*sides)
    plain.set_weights([rng.normal(size=weight.shape).astype(np.float32) for weight in plain.get_weights()])
    fast = winograd.trainable(plain)
    assert isinstance(fast.get_layer("conv"), winograd.SmallMapConvolution)
    maps = rng.normal(size=(5, *sides, 6)).astype(np.float32)
    weights = rng.normal(size=(5, *sides, 10)).astype(np.float32)
    for mine, reference in zip(step(fast, maps, weights), step(plain, maps, weights), strict=True):
        assert mine.shape == reference.shape
        assert np.abs(mine - reference).max() < ROUNDING * np.abs(reference).max()


def test_the_variables_are_the_models_own() -> None:
    plain = network(4, 4)
    fast = winograd.trainable(plain)
    assert [variable.path for variable in fast.variables] == [variable.path for variable in plain.variables]
    assert all(mine is theirs for mine, theirs in zip(fast.variables, plain.variables, strict=True))
    plain.get_layer("conv").trainable = False
    assert fast.trainable_variables == []


@pytest.mark.parametrize(
    "options",
    [
        {"strides": 2},
        {"padding": "valid"},
        {"kernel_size": 1},
        {"kernel_size": 5},
        {"dilation_rate": 2},
        {"groups": 2},
        {"dtype": "float16"},
    ],
    ids=str,
)
def test_other_convolutions_stay_as_they_are(options: dict[str, Any]) -> None:
    plain = network(8, 8, **options)
    assert winograd.trainable(plain).get_layer("conv") is plain.get_layer("conv")


def test_large_maps_stay_as_they_are() -> None:
    plain = network(8, winograd.LARGEST_MAP + 1)
    assert winograd.trainable(plain).get_layer("conv") is plain.get_layer("conv")
