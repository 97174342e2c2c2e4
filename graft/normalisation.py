"""Batch normalisation for the training of networks that have none: put in without changing them, folded away after.

Ioffe and Szegedy 2015: at inference `gamma (x W - mean) / sqrt(variance + epsilon) + beta` is one affine map. VGG16 and
the heads are stored, exported and served without it, and train better with it.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

Array = npt.NDArray[Any]

# Of the moving statistics, that follow pretrained layers on the move.
MOMENTUM = 0.95


def folded(layer: layers.Layer, norm: layers.BatchNormalization) -> tuple[Array, Array]:
    """Kernel and bias (float64) of `layer` (dense or convolution, without bias) with `norm` behind it."""
    (kernel,) = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    gain, shift = _affine(norm)
    return kernel * gain, shift


def neutral(norm: layers.BatchNormalization, gain: Array, bias: Array) -> None:
    """Make `norm` (built) multiply by `gain` and add `bias` (its channels) at inference."""
    ones = np.ones_like(bias)
    norm.set_weights([gain * np.sqrt(ones + norm.epsilon), bias, 0 * ones, ones])


def inserted(model: keras.Model) -> keras.Model:
    """`model` with normalisation between each biased convolution and its ReLU; it computes the same at inference.

    Those convolutions are copies; all other layers are the model's own, its normalisations and dropouts in inference
    mode even while this is trained.
    """

    def form(layer: layers.Layer) -> layers.Layer:
        if _takes(layer):
            bare = layers.Conv2D.from_config(layer.get_config() | {"use_bias": False, "activation": None})
            bare.build(layer.input.shape)
            bare.set_weights(layer.get_weights()[:1])
            return bare
        return Inference(layer) if isinstance(layer, layers.BatchNormalization | layers.Dropout) else layer

    def call(layer: layers.Layer, *tensors: Any, **options: Any) -> Any:
        tensor = layer(*tensors) if isinstance(layer, Inference) else layer(*tensors, **options)
        if isinstance(layer, layers.Conv2D) and _takes(origin := model.get_layer(layer.name)):
            norm = layers.BatchNormalization(momentum=MOMENTUM, name=_name(layer))
            tensor = layers.ReLU(name=f"{layer.name}_relu")(norm(tensor))
            bias = origin.get_weights()[1]
            neutral(norm, np.ones_like(bias), bias)
        return tensor

    return keras.models.clone_model(model, clone_function=form, call_function=call)


def fold(trained: keras.Model, model: keras.Model) -> None:
    """Give the `model` that `trained` was made of by `inserted` what it has learnt."""
    for layer in model.layers:
        if _takes(layer):
            layer.set_weights(folded(trained.get_layer(layer.name), trained.get_layer(_name(layer))))


def settle(model: keras.Model, rows: Array, batch_size: int) -> Array:
    """Start each normalisation of `model` from the statistics of `rows` without changing what it computes.

    Returns the model's outputs for `rows`.
    """
    norms = [layer for layer in model.layers if isinstance(layer, layers.BatchNormalization)]
    looked_at = {norm.name: _moments(norm.input) for norm in norms} | {"output": model.output}
    found = keras.Model(model.input, looked_at).predict(rows, batch_size, verbose=0)
    for norm in norms:
        gain, shift = _affine(norm)
        mean, square = found[norm.name].mean(0, np.float64)
        variance = np.maximum(square - mean**2, 0)
        norm.set_weights([gain * np.sqrt(variance + norm.epsilon), shift + gain * mean, mean, variance])
    result: Array = found["output"]
    return result


def _moments(tensor: Any) -> Any:
    """Mean of the values and of their squares, a picture and channel (batch × 2 × channels)."""
    tensor = ops.cast(tensor, "float32")
    axes = tuple(range(1, len(tensor.shape) - 1))
    first, second = (ops.mean(values, axes) if axes else values for values in (tensor, ops.square(tensor)))
    return ops.stack([first, second], 1)


class Inference(layers.Layer):
    """`layer` as it answers after training, whatever `training` is."""

    def __init__(self, layer: layers.Layer) -> None:
        super().__init__(name=layer.name, dtype=layer.dtype_policy)
        self.layer = layer
        self.built = True

    def call(self, inputs: Any) -> Any:
        """What the layer gives."""
        return self.layer(inputs, training=False)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> Any:
        """As the layer's."""
        return self.layer.compute_output_shape(input_shape)


def _takes(layer: layers.Layer) -> bool:
    return type(layer) is layers.Conv2D and layer.use_bias and layer.activation is keras.activations.relu


def _name(layer: layers.Layer) -> str:
    return f"{layer.name}_norm"


def _affine(norm: layers.BatchNormalization) -> tuple[Array, Array]:
    gamma, beta, mean, variance = (np.asarray(weight, np.float64) for weight in norm.get_weights())
    gain = gamma / np.sqrt(variance + norm.epsilon)
    return gain, beta - mean * gain
