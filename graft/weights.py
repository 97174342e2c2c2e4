"""Pretrained weights: from the package, from Keras' download or from a file, into a backbone.

In: `params.Backbone` and a model cut at the wanted layer. Out: the same model, loaded; layers beyond the cut
are not asked for. No pickle is ever read.
"""

from __future__ import annotations

import zipfile
from importlib import resources
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from graft import backbones, params
from graft.errors import GraftError, InputError

BUNDLED = "vgg16_quarter.safetensors"
SUFFIXES = (".h5", ".keras", ".npz", ".safetensors")

Arrays = dict[str, list[npt.NDArray[Any]]]

# The weights of each layer kind in Keras' order, as named in .npz and .safetensors files.
PARTS = ("kernel", "depthwise_kernel", "gamma", "beta", "moving_mean", "moving_variance", "bias")


def load(model: keras.Model, settings: params.Backbone) -> None:
    """Fill the layers of `model` (a backbone up to its cut) with the weights that the parameters name.

    Raises:
        InputError: the file is missing, of an unknown kind, lacks a layer or has another shape.
        GraftError: the download fails.
    """
    if settings.weights == "none":
        return
    if settings.weights == "bundled":
        _check_bundled(settings)
        arrays = _read_safetensors(bundled_path())
    elif settings.weights == "imagenet":
        arrays = _download(settings)
    else:
        arrays = _read(Path(settings.weights))
    _assign(model, arrays, settings)


def bundled_path() -> Path:
    """The weights file inside the package."""
    return Path(str(resources.files("graft").joinpath("pretrained", BUNDLED)))


def licence(settings: params.Backbone) -> str:
    """Under which terms the weights may be used, as far as is known here."""
    known = {
        "bundled": "Apache-2.0 (trained by this project on CIFAR-10)",
        "imagenet": "CC-BY-4.0 (VGG; Simonyan and Zisserman 2014)" if settings.name.startswith("vgg") else "Apache-2.0",
        "none": "Apache-2.0 (random initial weights)",
    }
    return known.get(settings.weights, "as given with the file")


def _check_bundled(settings: params.Backbone) -> None:
    if (settings.name, settings.width) != ("vgg16", 0.25):
        raise InputError(
            "the bundled weights are those of vgg16 at width 0.25; set backbone.name=vgg16 backbone.width=0.25, "
            f"or other weights. Received: {settings.name} at width {settings.width:g}"
        )


def _read(path: Path) -> Arrays:
    if not path.is_file():
        raise InputError(
            "backbone.weights must be bundled, imagenet, none or an existing file "
            f"({', '.join(SUFFIXES)}). Received: {path}"
        )
    readers = {".npz": _read_npz, ".safetensors": _read_safetensors, ".h5": _read_h5, ".keras": _read_keras}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"weights are read from {', '.join(SUFFIXES)}. Received: {path}")
    try:
        return reader(path)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"the weights in {path} cannot be read ({reason}); fetch the file again") from error


def _read_npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as file:
        return _group({key: file[key] for key in file.files})


def _read_safetensors(path: Path) -> Arrays:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return _group(load_file(path))
    except SafetensorError as error:
        raise ValueError(error) from error


def _read_h5(path: Path) -> Arrays:
    """The layout of Keras Applications' downloads: a group a layer, its weights named in order."""
    import h5py

    with h5py.File(path, "r") as file:
        root = file.get("model_weights", file)
        if "layer_names" not in root.attrs:
            raise ValueError("no layer names in the file; save the model as .keras instead")
        arrays = {}
        for name in root.attrs["layer_names"]:
            group = root[name]
            arrays[_text(name)] = [np.asarray(group[weight]) for weight in group.attrs["weight_names"]]
        return arrays


def _read_keras(path: Path) -> Arrays:
    model = keras.saving.load_model(path, compile=False, safe_mode=True)
    return {layer.name: layer.get_weights() for layer in model.layers}


def _text(name: bytes | str) -> str:
    return name.decode() if isinstance(name, bytes) else name


def _group(flat: dict[str, npt.NDArray[Any]]) -> Arrays:
    layers: dict[str, dict[str, npt.NDArray[Any]]] = {}
    for key, array in flat.items():
        layer, _, part = key.rpartition("/")
        layers.setdefault(layer, {})[part] = array
    return {
        layer: [parts[part] for part in sorted(parts, key=lambda p: PARTS.index(p) if p in PARTS else len(PARTS))]
        for layer, parts in layers.items()
    }


def _download(settings: params.Backbone) -> Arrays:
    entry = backbones.architecture(settings)
    if settings.width != 1:
        raise InputError(f"ImageNet weights are full width; set backbone.width=1. Received: {settings.width:g}")
    try:
        model = getattr(keras.applications, entry.imagenet)(include_top=False, weights="imagenet")
    except Exception as error:  # urllib, socket and Keras' own errors all mean the same to a person
        raise GraftError(
            f"the ImageNet weights of {settings.name} cannot be downloaded ({error}); fetch Keras' "
            f"{entry.imagenet} 'notop' .h5 file on another machine and set backbone.weights to its path"
        ) from error
    return {layer.name: layer.get_weights() for layer in model.layers}


def _assign(model: keras.Model, arrays: Arrays, settings: params.Backbone) -> None:
    weighted = [layer for layer in model.layers if layer.weights]
    missing = [layer.name for layer in weighted if layer.name not in arrays]
    if missing:
        raise InputError(
            f"the weights {settings.weights} lack the layers {', '.join(missing)}; set backbone.layer to an earlier "
            "layer, or give weights that reach this far"
        )
    for layer in weighted:
        wanted = [tuple(weight.shape) for weight in layer.weights]
        given = [array.shape for array in arrays[layer.name]]
        if wanted != given:
            raise InputError(
                f"the weights {settings.weights} do not fit layer {layer.name}: {wanted} is wanted "
                f"(backbone.width={settings.width:g}). Received: {given}"
            )
        layer.set_weights([np.asarray(array, np.float32) for array in arrays[layer.name]])
