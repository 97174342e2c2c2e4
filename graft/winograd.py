"""The 3×3 convolutions of small maps, for training: fewer multiplications than a convolution needs, all in `matmul`.

In: a Keras model. Out: the same model over the same variables, whose small 3×3 convolutions are computed by Winograd's
minimal filtering (Winograd 1980, Lavin and Gray 2016, arXiv 1509.09308). Forward and gradients are those of
`Conv2D` up to float32 rounding. For training on a CPU only: what is saved and exported keeps its plain convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
from keras import layers, ops

from graft import runtime

Array = npt.NDArray[Any]

TAPS = 3
# Outputs of one tile along an axis; 4 takes 36 products for 16 outputs of a plane, where a convolution takes 144.
TILES = (3, 4)
# Where the polynomials are evaluated, beside infinity. 0, ±1, ±2 of the literature lose four times as much in float32.
POINTS = (0.0, 0.75, -0.75, 1.5, -1.5)
# Longest side of a map up to which this is faster than `Conv2D`: docs/decisions/small-map-gradients.md.
LARGEST_MAP = 32


@dataclass(frozen=True)
class Axis:
    """One axis of a filtering, outputs = `gather` @ ((`kernel` @ taps) * (`spread` @ inputs)).

    `spread` is (points × tiles) × inputs, `kernel` points × taps, `gather` outputs × (points × tiles).
    """

    points: int
    tiles: int
    spread: Array
    kernel: Array
    gather: Array


@cache
def axis(size: int) -> Axis:
    """The transforms for `size` values, zero-padded by one at each end ("same")."""
    if size == 1:  # the ends of the kernel see zeros only
        return _axis([[1]], [[0, 1, 0]], [[1]])
    if size == 2:  # a 2×2 Toeplitz matrix in three products (Karatsuba and Ofman 1962)
        return _axis([[0, 1], [1, 1], [1, 0]], [[0, -1, 1], [0, 1, 0], [1, -1, 0]], [[1, 1, 0], [0, 1, 1]])
    tile = min(TILES, key=lambda outputs: -(-size // outputs) * (outputs + TAPS - 1))
    points, tiles = tile + TAPS - 1, -(-size // tile)
    interpolate = np.linalg.inv(_evaluation(points, points)).T
    spread = np.zeros((points, tiles, tiles * tile + TAPS - 1))
    gather = np.zeros((tiles * tile, points, tiles))
    for i in range(tiles):
        spread[:, i, i * tile : i * tile + points] = interpolate
        gather[i * tile : (i + 1) * tile, :, i] = _evaluation(points, tile).T
    inside = spread[:, :, 1 : size + 1].reshape(-1, size)
    return _axis(inside, _evaluation(points, TAPS), gather[:size].reshape(size, -1))


def _axis(spread: npt.ArrayLike, kernel: npt.ArrayLike, gather: npt.ArrayLike) -> Axis:
    forth, taps, back = (np.asarray(matrix, np.float32) for matrix in (spread, kernel, gather))
    return Axis(len(taps), len(forth) // len(taps), forth, taps, back)


def _evaluation(points: int, coefficients: int) -> Array:
    """Polynomials of so many coefficients at the first `POINTS` and, last, at infinity, as a matrix."""
    finite = [[point**power for power in range(coefficients)] for point in POINTS[: points - 1]]
    return np.vstack([finite, np.eye(coefficients)[-1]])


def convolve(maps: Any, kernel: Any) -> Any:
    """`maps` (batch × H × W × in) with `kernel` (3 × 3 × in × out), stride 1, zero-padded to the same size."""
    height, width, channels = maps.shape[1:]
    filters = kernel.shape[-1]
    rows, columns = axis(height), axis(width)
    # Positions first: then every transform is a product with a small matrix, and nothing is gathered.
    spread = ops.matmul(rows.spread, ops.reshape(ops.transpose(maps, (1, 2, 0, 3)), (height, -1)))
    spread = ops.matmul(columns.spread, ops.reshape(spread, (rows.points * rows.tiles, width, -1)))
    # (row point, row tile, column point, …) to points before tiles, and back below.
    spread = ops.transpose(ops.reshape(spread, (rows.points, rows.tiles, columns.points, -1)), (0, 2, 1, 3))
    points = rows.points * columns.points
    weights = ops.matmul(np.kron(rows.kernel, columns.kernel), ops.reshape(kernel, (TAPS * TAPS, -1)))
    weights = ops.reshape(weights, (points, channels, filters))
    products = ops.matmul(ops.reshape(spread, (points, -1, channels)), weights)
    products = ops.transpose(ops.reshape(products, (rows.points, columns.points, rows.tiles, -1)), (0, 2, 1, 3))
    products = ops.reshape(products, (rows.points * rows.tiles, columns.points * columns.tiles, -1))
    gathered = ops.reshape(ops.matmul(columns.gather, products), (rows.points * rows.tiles, -1))
    gathered = ops.reshape(ops.matmul(rows.gather, gathered), (height, width, -1, filters))
    return ops.transpose(gathered, (2, 0, 1, 3))


class SmallMapConvolution(layers.Layer):
    """Computes what `convolution` computes, from its variables."""

    def __init__(self, convolution: layers.Conv2D) -> None:
        super().__init__(name=convolution.name, dtype=convolution.dtype_policy)
        self.convolution = convolution
        self.built = True

    def call(self, maps: Any) -> Any:
        """Maps (batch × H × W × in) to maps (batch × H × W × out)."""
        result = convolve(maps, self.convolution.kernel)
        if self.convolution.use_bias:
            result = result + self.convolution.bias
        return self.convolution.activation(result)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """As the convolution's."""
        return (*input_shape[:-1], self.convolution.filters)


def trainable(model: keras.Model) -> keras.Model:
    """`model` for training: the same variables, its small convolutions computed here."""

    def swapped(layer: layers.Layer) -> layers.Layer:
        return SmallMapConvolution(layer) if fits(layer) else layer

    return keras.models.clone_model(model, clone_function=swapped)


def fits(layer: layers.Layer) -> bool:
    """Whether `layer` is faster here: on a CPU, float32, a 3×3 convolution with stride 1, same padding, a small map."""
    if type(layer) is not layers.Conv2D or not runtime.on_cpu():
        return False
    plain = (layer.kernel_size, layer.strides, layer.dilation_rate) == ((TAPS, TAPS), (1, 1), (1, 1))
    last = (layer.padding, layer.data_format, layer.groups) == ("same", "channels_last", 1)
    sides = layer.input.shape[1:3]
    return plain and last and layer.compute_dtype == "float32" and None not in sides and max(sides) <= LARGEST_MAP
