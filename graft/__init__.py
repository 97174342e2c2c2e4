"""Graft: a pretrained network grafted onto your own pictures, from a folder to a served ONNX model."""

__version__ = "0.1.0"
