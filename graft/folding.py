"""Batch normalisation folded into the layer before it: the same function with fewer layers.

Ioffe and Szegedy 2015: at inference `gamma (x W - mean) / sqrt(variance + epsilon) + beta` is one affine map.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def folded(layer: keras.layers.Layer, norm: keras.layers.BatchNormalization) -> tuple[Array, Array]:
    """Kernel and bias (float64) of `layer` (dense or convolution, without bias) with `norm` behind it."""
    (kernel,) = (np.asarray(weight, np.float64) for weight in layer.get_weights())
    gamma, beta, mean, variance = (np.asarray(weight, np.float64) for weight in norm.get_weights())
    gain = gamma / np.sqrt(variance + norm.epsilon)
    return kernel * gain, beta - mean * gain
