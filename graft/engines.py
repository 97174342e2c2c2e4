"""What computes the frozen network: MNN where it is installed and fits, Keras everywhere else.

In: a Keras graph from uint8 pictures to named tensors, and a few of the pictures. Out: an `Engine`. Which one it is
follows from the environment, the network and the pictures alone, so that two runs on one machine take the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from graft import backbones, mnn, params, runtime
from graft.errors import InputError

logger = logging.getLogger("graft.engines")

# Of each output, the largest difference from Keras as a share of the largest activation.
TOLERANCE = 1e-4

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Engine:
    """`run` takes N×H×W×3 uint8 and gives the outputs by name; `name` is what provenance records."""

    name: str
    run: Callable[[Array], dict[str, Array]]


def choose(image: Any, outputs: dict[str, Any], settings: params.Params, sample: Array) -> Engine:
    """The engine that `features.engine` asks for, from the tensor `image` to `outputs`.

    `sample` (N×H×W×3 uint8) is what a candidate is tried with.

    Raises:
        InputError: MNN was asked for and cannot do it.
    """
    wanted = settings.features.engine
    if wanted == "keras":
        return on_keras(image, outputs)
    reason = _hindrance()
    if not reason:
        try:
            return on_mnn(image, outputs, settings.runtime.threads, sample)
        except mnn.UnsupportedError as error:
            reason = str(error)
    if wanted == "mnn":
        raise InputError(f"features.engine=mnn cannot be had: {reason}; set features.engine=auto")
    if mnn.installed():
        logger.warning("extract: Keras computes the features, not MNN: %s", reason)
    return on_keras(image, outputs)


def _hindrance() -> str:
    if not mnn.installed():
        return "MNN is not installed (pip install 'graft[mnn]')"
    if not runtime.on_cpu():
        return "a GPU is here, and Keras uses it"
    return ""


def on_keras(image: Any, outputs: dict[str, Any]) -> Engine:
    """Keras, which computes whatever it is."""
    model = keras.Model(image, outputs)

    def run(images: Array) -> dict[str, Array]:
        return {name: np.asarray(value) for name, value in model.predict_on_batch(images).items()}

    return Engine(f"keras {keras.__version__}", run)


def on_mnn(image: Any, outputs: dict[str, Any], threads: int, sample: Array) -> Engine:
    """MNN on everything behind the preprocessing, which stays Keras' own.

    Raises:
        mnn.UnsupportedError: no translation, a failed trial, or features that are not Keras' own.
    """
    whole = keras.Model(image, outputs)
    if backbones.PREPROCESSED not in {layer.name for layer in whole.layers}:
        raise mnn.UnsupportedError("nothing of the network itself is to be computed")
    pixels = whole.get_layer(backbones.PREPROCESSED).output
    preprocess = keras.Model(image, pixels)
    cores = threads or len(os.sched_getaffinity(0))
    shapes = {name: tensor.shape[1:] for name, tensor in outputs.items()}
    runner = mnn.load(image, outputs, pixels, np.asarray(preprocess.predict_on_batch(sample)), cores)

    def run(images: Array) -> dict[str, Array]:
        found = runner(np.asarray(preprocess.predict_on_batch(images)))
        return {name: values.reshape(len(values), *shapes[name]) for name, values in found.items()}

    engine = Engine(f"mnn {mnn.version()}", run)
    _check(engine.run(sample), on_keras(image, outputs).run(sample))
    return engine


def _check(found: dict[str, Array], expected: dict[str, Array]) -> None:
    for name, values in expected.items():
        difference = float(np.abs(found[name] - values).max() / max(float(np.abs(values).max()), 1e-30))
        if not difference <= TOLERANCE:
            raise mnn.UnsupportedError(
                f"MNN's {name} differs from Keras' by {difference:.1e} of the largest activation"
            )
