"""The registry of pretrained networks: how each is built, preprocessed, cut and loaded.

To add one, add an entry to `BACKBONES`. In: `params.Backbone` and an image size. Out: a Keras model from
uint8 pictures (batch × H × W × 3, RGB) through its preprocessing to every named layer.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from graft import params
from graft.errors import InputError, nearest

# ImageNet's channel means in BGR order, as VGG was trained with (Simonyan and Zisserman 2014, Caffe models).
CAFFE_MEANS = (103.939, 116.779, 123.68)

# The layer whose output is what the pretrained network proper begins with.
PREPROCESSED = "preprocessing"

# Channels and convolutions of each block (Simonyan and Zisserman 2014, configurations D and E).
VGG16_BLOCKS = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
VGG19_BLOCKS = ((64, 2), (128, 2), (256, 4), (512, 4), (512, 4))


@dataclass(frozen=True)
class Architecture:
    """One entry of the registry: from preprocessed pictures to the last feature map."""

    build: Callable[[Any, float], Any]
    preprocess: Callable[[Any], Any]
    minimum_size: int
    imagenet: str
    scalable: bool = False


def caffe(images: Any) -> Any:
    """RGB to BGR, minus the channel means, as plain layers that every exporter converts."""
    return layers.Rescaling(1.0, offset=[-mean for mean in CAFFE_MEANS], name=PREPROCESSED)(images[..., ::-1])


def plus_minus_one(images: Any) -> Any:
    """0 to 255 becomes -1 to 1."""
    return layers.Rescaling(1 / 127.5, offset=-1.0, name=PREPROCESSED)(images)


def inside(images: Any) -> Any:
    """The network scales its pictures itself."""
    return layers.Identity(name=PREPROCESSED)(images)


def vgg(
    blocks: tuple[tuple[int, int], ...], convolution: Callable[[Any, int, str], Any]
) -> Callable[[Any, float], Any]:
    """A VGG trunk of `blocks`, each convolution made by `convolution(tensor, channels, name)`."""

    def build(tensor: Any, width: float) -> Any:
        for block, (channels, count) in enumerate(blocks, 1):
            for i in range(1, count + 1):
                tensor = convolution(tensor, max(1, round(channels * width)), f"block{block}_conv{i}")
            tensor = layers.MaxPooling2D(2, name=f"block{block}_pool")(tensor)
        return tensor

    return build


def plain_convolution(tensor: Any, channels: int, name: str) -> Any:
    """VGG's own: 3×3, same padding, bias, ReLU."""
    return layers.Conv2D(channels, 3, padding="same", activation="relu", name=name)(tensor)


def _application(name: str) -> Callable[[Any, float], Any]:
    def build(tensor: Any, width: float) -> Any:
        options = {"include_preprocessing": True} if name.startswith("EfficientNetV2") else {}
        constructor = getattr(keras.applications, name)
        return constructor(include_top=False, weights=None, input_tensor=tensor, **options).output

    return build


BACKBONES = {
    "vgg16": Architecture(vgg(VGG16_BLOCKS, plain_convolution), caffe, 32, "VGG16", scalable=True),
    "vgg19": Architecture(vgg(VGG19_BLOCKS, plain_convolution), caffe, 32, "VGG19", scalable=True),
    "resnet50": Architecture(_application("ResNet50"), caffe, 32, "ResNet50"),
    "mobilenetv2": Architecture(_application("MobileNetV2"), plus_minus_one, 32, "MobileNetV2"),
    "efficientnetv2-b0": Architecture(_application("EfficientNetV2B0"), inside, 32, "EfficientNetV2B0"),
}


def architecture(settings: params.Backbone) -> Architecture:
    """The registry's entry, checked against the other parameters.

    Raises:
        InputError: no such backbone, or one that has only one width.
    """
    entry = BACKBONES.get(settings.name)
    if entry is None:
        raise InputError(f"there is no backbone.name {settings.name}; {nearest(settings.name, BACKBONES)}")
    if settings.width != 1 and not entry.scalable:
        raise InputError(f"{settings.name} has one width only; set backbone.width=1. Received: {settings.width:g}")
    return entry


def build(settings: params.Backbone, image_size: int) -> keras.Model:
    """The whole trunk with preprocessing, weights as initialised, from uint8 `image` (batch × S × S × 3).

    Raises:
        InputError: unknown backbone, or pictures smaller than it allows.
    """
    entry = architecture(settings)
    if image_size < entry.minimum_size:
        raise InputError(
            f"{settings.name} needs pictures of at least {entry.minimum_size} pixels; raise data.image_size. "
            f"Received: {image_size}"
        )
    image = keras.Input((image_size, image_size, 3), dtype="uint8", name="image")
    floating = entry.preprocess(keras.ops.cast(image, keras.config.floatx()))
    return keras.Model(image, entry.build(floating, settings.width), name=settings.name)


def cut(model: keras.Model, layer: str, key: str) -> Any:
    """The output tensor of the named layer.

    Raises:
        InputError: there is no such layer; `key` names the parameter at fault.
    """
    names = [entry.name for entry in model.layers]
    if layer not in names:
        raise InputError(f"there is no {key} {layer}; {nearest(layer, names)}")
    return model.get_layer(layer).output
