"""The trained network as one fp32 ONNX graph, from uint8 `image` to `probabilities`: the only conversion there is.

In: a Keras model. Out: an `onnx.ModelProto` with a batch axis named `batch`, fixed shapes everywhere else and
the metadata of `docs/model-file.md`. The other precisions are derived from it in `graft.export.precisions`.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime
import tf2onnx
from keras import layers
from onnx import TensorProto, helper, numpy_helper

from graft import adaptation, features, params
from graft.errors import GraftError, InputError
from graft.export import graphs
from graft.inference import INPUT, OUTPUT

# The first with an antialiased Resize; ONNX Runtime 1.14 and TensorRT 8.6 already read it.
OPSET = 18


def classifier(settings: params.Params, network: Path) -> keras.Model:
    """The whole trained network from uint8 `image` to softmax `probabilities`, and further outputs asked for."""
    trunk, head = adaptation.restore(settings, network)
    vector = features.pooled(trunk.cut, settings.features.pooling)
    logits = head(vector)
    outputs = {OUTPUT: layers.Softmax(name=OUTPUT)(logits), "logits": logits, "features": vector}
    return keras.Model(trunk.image, [outputs[name] for name in settings.export.outputs], name=settings.export.name)


def tempered(model: keras.Model, outputs: tuple[str, ...], temperature: float) -> keras.Model:
    """The same network, weights shared, with its logits divided by `temperature`; `outputs` are the model's names."""
    logits = layers.Rescaling(1 / temperature, name="temperature")(model.get_layer(OUTPUT).input)
    changed = {OUTPUT: layers.Softmax(name=OUTPUT)(logits), "logits": logits}
    tensors = [changed.get(name, tensor) for name, tensor in zip(outputs, model.outputs, strict=True)]
    return keras.Model(model.input, tensors, name=model.name)


def convert(model: keras.Model, outputs: tuple[str, ...], resize: bool = False) -> onnx.ModelProto:
    """The model as ONNX; its outputs get the names `outputs`. With `resize` pictures of any height and width go in.

    Raises:
        InputError: Keras does not run on TensorFlow, which alone converts.
        GraftError: an operator has no counterpart in ONNX.
    """
    if (backend := keras.backend.backend()) != "tensorflow":
        raise InputError(f"export needs Keras on TensorFlow; unset KERAS_BACKEND, which is {backend}, and run it again")
    proto = _from_keras(model)
    _check_operators(proto)
    for value, name in zip(proto.graph.output, outputs, strict=True):
        graphs.rename(proto, value.name, name)
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    _fix_shapes(proto)
    proto = _simplify(proto)
    if resize:
        _prepend_resize(proto, model.input_shape[1])
    proto.producer_name, proto.producer_version, proto.doc_string = "graft", "", ""
    proto.graph.name = model.name
    graphs.canonicalise(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def _from_keras(model: keras.Model) -> onnx.ModelProto:
    import tensorflow as tf

    # It reports what it cannot convert here and goes on; `_check_operators` says it in one sentence.
    logging.getLogger("tf2onnx").setLevel(logging.CRITICAL)
    # tf2onnx lowers TensorFlow's own log level for the whole process and leaves it so.
    level = os.environ.get("TF_CPP_MIN_LOG_LEVEL")
    signature = [tf.TensorSpec((None, *model.input_shape[1:]), tf.uint8, name=INPUT)]
    try:
        # Its own optimisers copy the whole graph, weights and all, again and again (ResNet50: 9 GB): see `_simplify`.
        proto, _ = tf2onnx.convert.from_keras(model, input_signature=signature, opset=OPSET, optimizers={})
    except Exception as error:  # tf2onnx raises many kinds, with the operator's name in the text
        reason = " ".join(str(error).split())[:300]
        raise GraftError(f"the network does not convert to ONNX ({reason}); choose another backbone.layer") from error
    finally:
        if level is not None:
            os.environ["TF_CPP_MIN_LOG_LEVEL"] = level
    return proto


def _check_operators(proto: onnx.ModelProto) -> None:
    versions = {entry.domain: entry.version for entry in proto.opset_import}
    known = {schema.name for schema in onnx.defs.get_all_schemas_with_history() if schema.domain == ""}
    foreign = sorted({node.op_type for node in proto.graph.node if node.domain or node.op_type not in known})
    if foreign:
        raise GraftError(
            f"the network does not convert to ONNX opset {versions['']}: nothing there does what {', '.join(foreign)} "
            "does; choose another backbone.layer or backbone"
        )


def _fix_shapes(proto: onnx.ModelProto) -> None:
    """Reshapes that compute their target from the batch at run time get it as a constant, `-1` for the batch.

    The little integer graphs that Keras' flattening leaves run on the CPU: they would split a graph on a GPU.
    """
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    known = {value.name: value.type.tensor_type.shape for value in (*inferred.value_info, *inferred.output)}
    constants = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type != "Reshape" or node.input[1] in constants or node.output[0] not in known:
            continue
        sizes = [axis.dim_value for axis in known[node.output[0]].dim]
        if all(sizes[1:]):
            name = f"{node.name}/shape"
            proto.graph.initializer.append(numpy_helper.from_array(np.array([-1, *sizes[1:]], np.int64), name))
            node.input[1] = name


def _simplify(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Constants folded, transposes cancelled, normalisation and padding drawn into convolutions, by ONNX Runtime.

    Its basic level writes standard operators only and does not depend on the processor.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    with tempfile.TemporaryDirectory(prefix="graft-") as scratch:
        options.optimized_model_filepath = str(Path(scratch) / "simple.onnx")
        onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        simple = onnx.load(options.optimized_model_filepath)
    _check_operators(simple)
    # It lists every domain it knows.
    del simple.opset_import[:]
    simple.opset_import.append(helper.make_opsetid("", OPSET))
    return simple


def _prepend_resize(proto: onnx.ModelProto, size: int) -> None:
    """Scale any height and width to `size` on uint8 pixels, antialiased bilinear as `graft.images.resize` does."""
    for node in proto.graph.node:
        for i, name in enumerate(node.input):
            if name == INPUT:
                node.input[i] = "resized"
    resize = helper.make_node(
        "Resize",
        [INPUT, "", "", "resized/size"],
        ["resized"],
        name="resize",
        mode="linear",
        antialias=1,
        axes=[1, 2],
        coordinate_transformation_mode="half_pixel",
    )
    proto.graph.node.insert(0, resize)
    proto.graph.initializer.append(numpy_helper.from_array(np.array([size, size], np.int64), "resized/size"))
    shape = ["batch", "height", "width", 3]
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info(INPUT, TensorProto.UINT8, shape))


def describe_input(size: int, resize: bool) -> dict[str, Any]:
    """The input in words for the metadata: what to send, so that nobody has to guess."""
    axes = ["height", "width"] if resize else [size, size]
    return {
        "name": INPUT,
        "type": "uint8",
        "shape": ["batch", *axes, 3],
        "channels": "RGB",
        "range": [0, 255],
        "resized_inside": resize,
    }
