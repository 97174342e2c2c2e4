"""Export: every backbone becomes one file a precision that answers as Keras does, or is not shipped and says why."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from graft import backbones, checksum, features, images, params, provenance, runtime
from graft.datasets import preparation
from graft.errors import GraftError, InputError
from graft.export import conversion, files, graphs, ladder, precisions, stage, variants
from graft.inference import find_file, open_model

CLASSES = ["checks", "stripes"]


# Many random layers enlarge a rounding more than sixteen do. What int8 rounds then says no more than the form.
SWING = {"resnet50": 0.025, "mobilenetv2": 0.1, "efficientnetv2-b0": 0.2}


def changed(settings: params.Params, **export: object) -> params.Params:
    document = settings.model_dump(mode="json")
    document["export"] |= export
    return params.Params.model_validate(document)


def small(name: str, outputs: tuple[str, ...] = ("probabilities",), size: int = 32) -> keras.Model:
    """A whole classifier on a backbone with random weights, whose logits spread by `SWING` over pictures of noise.

    Normalised by statistics of its own: with those it is born with, activations fade to nothing on the way, every
    answer is one half, and there is nothing to compare.
    """
    runtime.start(params.load(Path(__file__).parents[2] / "params.yaml"))
    width = 0.125 if backbones.BACKBONES[name].scalable else 1.0
    trunk = backbones.build(params.Backbone(name=name, weights="none", width=width, layer=""), size)
    for layer in trunk.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.momentum = 0.0
    trunk(noise(32, size).astype(np.float32), training=True)
    vector = features.pooled(trunk.output, "avg")
    dense = keras.layers.Dense(2)
    logits = dense(vector)
    said = keras.Model(trunk.input, logits).predict_on_batch(noise(32, size))
    scale = SWING.get(name, 0.5) / said.std(axis=0)
    dense.kernel.assign(scale * dense.kernel)
    dense.bias.assign(-(scale * said).mean(axis=0))
    tensors = {"probabilities": keras.layers.Softmax()(logits), "logits": logits, "features": vector}
    return keras.Model(trunk.input, [tensors[output] for output in outputs], name="net")


def written(proto: onnx.ModelProto, path: Path, size: int = 32) -> Path:
    facts = {"format": "1", "name": "net", "classes": CLASSES, "image_size": [size, size], "precision": "fp32"}
    files.write_model(proto, facts, path)
    return path


def noise(count: int, size: int = 32, width: int = 0) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (count, size, width or size, 3), dtype=np.uint8)


@pytest.mark.parametrize("name", backbones.BACKBONES)
def test_every_backbone_exports_in_every_precision(name: str, tmp_path: Path) -> None:
    outputs = ("probabilities", "logits", "features")
    model = small(name, outputs)
    fp32 = conversion.convert(model, outputs)
    pictures = noise(32)
    pairs = [(pictures[:count], np.asarray(model.predict_on_batch(pictures[:count])[0])) for count in (1, 3, 17)]
    assert np.ptp(pairs[-1][1]) > SWING.get(name, 0.5) / 2
    made = {
        "fp32": (fp32, 1e-5),
        "fp16": (precisions.half(fp32), 0.02),
        "int8": (precisions.quantise(fp32, [pictures]), 0.2),
    }
    for precision, (proto, bound) in made.items():
        path = written(proto, tmp_path / files.model_file(precision))
        ladder.check_graph(path)
        opened = open_model(path, "cpu")
        ladder.check_axes(opened, outputs)
        difference, _ = ladder.compare(opened, pairs)
        assert difference < bound, precision
    assert {node.op_type for node in fp32.graph.node}.isdisjoint({"Shape", "Gather", "BatchNormalization"})
    sizes = {precision: proto.ByteSize() for precision, (proto, _) in made.items()}
    assert sizes["fp16"] < 0.55 * sizes["fp32"]
    assert sizes["int8"] < 0.33 * sizes["fp32"]


Exporter = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture(scope="module")
def exporter(tiny: params.Params, prepared: Path, run: Path, tmp_path_factory: pytest.TempPathFactory) -> Exporter:
    """Runs the stage with parameters of `export` changed; returns the folder and what `export.json` says.

    The revision is made up: somebody may be at work on the code meanwhile.
    """

    def export(**changes: object) -> tuple[Path, dict[str, Any]]:
        runtime.start(tiny)
        folder = tmp_path_factory.mktemp("onnx")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(provenance, "revision", lambda paths: f"revision of {paths}")
            patch.setattr(provenance, "revision_date", lambda paths: f"date of {paths}")
            summary = stage.export(changed(tiny, **changes), prepared, run / "finetuned", folder, "lock")
        assert json.loads((folder / "export.json").read_text()) == summary
        return folder, summary["precisions"]

    return export


Exported = tuple[Path, dict[str, Any]]


@pytest.fixture(scope="module")
def exported(exporter: Exporter) -> Exported:
    """What the stage makes as it is set, with the logits besides."""
    return exporter(outputs=["probabilities", "logits"])


def test_the_stage_writes_what_was_asked_for(exported: Exported) -> None:
    folder, facts = exported
    assert {path.name for path in folder.iterdir()} == {
        "export.json", "labels.txt", "model.fp16.onnx", "model.fp32.onnx", "triton"
    }  # fmt: skip
    assert all(facts[name]["shipped"] and facts[name]["top1_agreement"] == 1 for name in ("fp32", "fp16"))
    model = open_model(find_file(folder, "cpu"), "cpu")
    assert model.path.name == "model.fp32.onnx"
    assert model.metadata["input"] == {
        "name": "image", "type": "uint8", "shape": ["batch", 32, 32, 3], "channels": "RGB", "range": [0, 255],
        "resized_inside": False,
    }  # fmt: skip
    assert model.metadata["metrics"].keys() == {"validation_accuracy", "kept"}
    triton = folder / "triton" / "graft"
    assert (triton / "1" / "model.onnx").read_bytes() == model.path.read_bytes()
    assert (triton / "labels.txt").read_text().split() == CLASSES
    config = (triton / "config.pbtxt").read_text()
    assert 'input [ { name: "image" data_type: TYPE_UINT8 dims: [ 32, 32, 3 ] } ]' in config
    assert 'name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt"' in config
    assert 'name: "logits" data_type: TYPE_FP32 dims: [ 2 ]' in config


def test_a_file_says_where_it_came_from(exported: Exported, tiny: params.Params, prepared: Path) -> None:
    folder, _ = exported
    origin = open_model(folder / "model.fp16.onnx", "cpu").metadata["provenance"]
    assert origin["lock"] == "lock"
    assert origin["data_fingerprint"] == preparation.describe(prepared)["fingerprint"]
    assert origin["parameters"]["backbone"] == tiny.backbone.model_dump(mode="json")
    assert origin["git"] == f"revision of {provenance.CODE}"
    assert origin["date"] == f"date of {provenance.CODE}"
    assert origin["licence"]
    assert {"graft", "tensorflow", "keras", "tf2onnx", "onnx", "onnxruntime", "python"} <= origin["versions"].keys()


def test_two_exports_are_equal_to_the_byte(exported: Exported, exporter: Exporter) -> None:
    first, _ = exported
    second, _ = exporter(outputs=["probabilities", "logits"])
    paths = [path.relative_to(first) for path in sorted(first.rglob("*")) if path.is_file()]
    assert len(paths) == 7
    for path in paths:
        assert (first / path).read_bytes() == (second / path).read_bytes(), path


def test_too_few_pictures_leave_int8_out_and_say_so(exported: Exported) -> None:
    folder, facts = exported  # fewer than 32 training pictures
    assert not facts["int8"]["shipped"]
    assert "at least 32 training pictures" in facts["int8"]["reason"]
    assert not (folder / "model.int8.onnx").exists()
    with pytest.raises(InputError, match=r"no int8 file was shipped .*at least 32"):
        find_file(folder, "cpu", "int8")


@pytest.fixture(scope="module")
def plain(exporter: Exporter) -> Exported:
    """Without a temperature, and with a bound that no fp16 file can hold."""
    return exporter(precisions=["fp32", "fp16"], max_difference_fp16=1e-9, calibrate=False)


def test_a_variant_that_misses_its_bound_is_not_shipped(plain: Exported) -> None:
    folder, facts = plain
    assert facts["fp32"]["shipped"]
    assert not facts["fp16"]["shipped"]
    assert "export.max_difference_fp16 (1e-09)" in facts["fp16"]["reason"]
    assert not (folder / "model.fp16.onnx").exists()


def test_a_temperature_in_the_file_softens_its_answers_alone(exported: Exported, plain: Exported) -> None:
    temperature = json.loads((exported[0] / "export.json").read_text())["temperature"]
    pictures = noise(8)
    scaled, raw = (open_model(find_file(folder, "cpu"), "cpu").predict(pictures) for folder, _ in (exported, plain))
    expected = np.exp(np.log(raw) / temperature)
    assert temperature != 1
    assert np.allclose(scaled, expected / expected.sum(1, keepdims=True), atol=1e-5)


def test_fp32_that_misses_its_bound_fails_the_stage(
    tiny: params.Params, prepared: Path, run: Path, tmp_path: Path
) -> None:
    runtime.start(tiny)
    settings = changed(tiny, precisions=["fp32"], max_difference=1e-12)
    with pytest.raises(GraftError, match=r"model.fp32.onnx differs from Keras .*nothing is shipped"):
        stage.export(settings, prepared, run / "finetuned", tmp_path, "lock")
    assert not list(tmp_path.rglob("*.onnx"))


def test_an_accuracy_that_falls_too_far_is_a_reason(tiny: params.Params) -> None:
    results = {
        name: {"max_difference": 0.0, "test_images": 1000, "test_correct": correct, "bytes": 1}
        for name, correct in (("fp32", 900), ("int8", 890))
    }
    judged = stage._judge("int8", results, tiny.export)
    assert not judged["shipped"]
    assert (
        "loses 0.0100 of accuracy against fp32 on the test set, more than export.max_accuracy_loss" in judged["reason"]
    )
    assert stage._judge("int8", results, changed(tiny, max_accuracy_loss=0.01).export)["shipped"]


def test_an_accuracy_bound_counts_pictures_and_forgives_one() -> None:
    assert ladder.within(1, 20, 0.005)
    assert not ladder.within(2, 20, 0.005)
    assert ladder.within(50, 10000, 0.005)
    assert not ladder.within(51, 10000, 0.005)


def test_pictures_of_any_size_are_scaled_inside_as_pillow_does(tmp_path: Path) -> None:
    model = small("vgg16")
    proto = conversion.convert(model, ("probabilities",), resize=True)
    opened = open_model(written(proto, tmp_path / "any.onnx"), "cpu")
    assert opened.any_size
    for height, width in ((96, 57), (20, 200), (32, 32)):
        # A smooth picture: on noise Pillow's rounding between its two passes shows.
        pixels = np.asarray(Image.fromarray(noise(1, 8)[0]).resize((width, height), Image.Resampling.BICUBIC))
        outside = np.asarray(model.predict_on_batch(images.resize(pixels, 32)[None]))
        assert np.abs(opened.predict(pixels[None]) - outside).max() < 1e-3
    with pytest.raises(InputError, match=r"N×H×W×3"):
        opened.predict(np.zeros((1, 32, 32, 4), np.uint8))


def test_another_backend_than_tensorflow_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small("vgg16")
    monkeypatch.setattr(keras.backend, "backend", lambda: "jax")
    with pytest.raises(InputError, match="unset KERAS_BACKEND, which is jax"):
        conversion.convert(model, ("probabilities",))


def test_an_operator_without_counterpart_is_named() -> None:
    import tensorflow as tf

    image = keras.Input((32, 32, 3), dtype="uint8", name="image")
    floating = keras.layers.Lambda(lambda x: tf.raw_ops.Betainc(a=x, b=x, x=x / 256))(keras.ops.cast(image, "float32"))
    model = keras.Model(image, keras.layers.Softmax()(keras.layers.Flatten()(floating)))
    with pytest.raises(GraftError, match=r"does not convert to ONNX.*Betainc") as caught:
        conversion.convert(model, ("probabilities",))
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def vgg(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, Path]:
    """A small file as exported."""
    proto = conversion.convert(small("vgg16"), ("probabilities",))
    return proto, written(precisions.copy(proto), tmp_path_factory.mktemp("vgg") / "model.onnx")


@pytest.mark.parametrize("place", [0.1, 0.5, 0.999])
def test_one_changed_bit_is_found(vgg: tuple[onnx.ModelProto, Path], place: float, tmp_path: Path) -> None:
    data = bytearray(vgg[1].read_bytes())
    data[int(place * len(data))] ^= 1
    altered = tmp_path / "altered.onnx"
    altered.write_bytes(data)
    with pytest.raises(InputError, match=r"altered.onnx is damaged"):
        open_model(altered, "cpu")


def test_an_altered_weight_breaks_the_checksum(vgg: tuple[onnx.ModelProto, Path], tmp_path: Path) -> None:
    proto = onnx.load(vgg[1])
    weight = numpy_helper.to_array(proto.graph.initializer[-1]) + 1
    proto.graph.initializer[-1].CopyFrom(numpy_helper.from_array(weight, proto.graph.initializer[-1].name))
    altered = tmp_path / "altered.onnx"
    onnx.save(proto, altered)
    with pytest.raises(InputError, match=r"do not match its checksum"):
        open_model(altered, "cpu")


def test_a_file_that_was_cut_off_anywhere_is_found(vgg: tuple[onnx.ModelProto, Path], tmp_path: Path) -> None:
    data, cut = vgg[1].read_bytes(), tmp_path / "cut.onnx"
    # Behind each metadata entry, where a shorter file is still good protobuf; and somewhere in the weights.
    ends = [found.start() for found in re.finditer(rb"r.?.\x0a.graft\.", data, re.DOTALL)]
    assert len(ends) >= 5
    for end in (0, len(data) // 2, *ends, len(data) - 1):
        cut.write_bytes(data[:end])
        with pytest.raises(InputError, match=r"damaged|lacks the metadata"):
            open_model(cut, "cpu")


def test_a_checksum_wants_exactly_one_place() -> None:
    with pytest.raises(ValueError, match=r"one blank graft.sha256"):
        checksum.seal(b"nothing")


def test_a_newer_opset_than_the_runtime_reads_is_said(vgg: tuple[onnx.ModelProto, Path], tmp_path: Path) -> None:
    proto = precisions.copy(vgg[0])
    proto.opset_import[0].version = 99
    with pytest.raises(InputError, match=r"made for a newer ONNX than ONNX Runtime"):
        open_model(written(proto, tmp_path / "new.onnx"), "cpu")


def test_a_file_without_metadata_is_not_grafts(vgg: tuple[onnx.ModelProto, Path], tmp_path: Path) -> None:
    path = tmp_path / "bare.onnx"
    onnx.save(vgg[0], path)
    with pytest.raises(InputError, match=r"lacks the metadata .*only files exported by Graft"):
        open_model(path, "cpu")


def test_int8_leaves_named_layers_in_float(vgg: tuple[onnx.ModelProto, Path]) -> None:
    fp32, pictures = vgg[0], noise(32)
    whole = precisions.quantise(fp32, [pictures])
    assert precisions.quantise(fp32, [pictures]).SerializeToString() == whole.SerializeToString()
    left = precisions.sensitive_layers(fp32, whole, pictures, share=0.25)
    layers = [node.name for node in fp32.graph.node if node.op_type in precisions.LAYERS]
    assert left[0] == layers[0]
    assert left[-1] == layers[-1]
    assert len(left) == 2 + round(0.25 * (len(layers) - 2))
    partly = precisions.quantise(fp32, [pictures], left)

    def of_type(proto: onnx.ModelProto, kind: int) -> int:
        return sum(tensor.data_type == kind and len(tensor.dims) > 1 for tensor in proto.graph.initializer)

    assert of_type(whole, onnx.TensorProto.INT8) == len(layers)
    assert of_type(partly, onnx.TensorProto.INT8) == len(layers) - len(left)


def test_a_plan_that_loses_too_much_gives_way_to_the_next(
    vgg: tuple[onnx.ModelProto, Path],
    prepared: Path,
    tiny: params.Params,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[list[str]] = []
    honest = precisions.quantise

    def quantise(fp32: onnx.ModelProto, batches: Any, left_float: Any = ()) -> onnx.ModelProto:
        asked.append(list(left_float))
        return honest(fp32, batches, left_float)

    lost = iter([10, 10, 0, 10])
    monkeypatch.setattr(precisions, "quantise", quantise)
    monkeypatch.setattr(variants, "_correct", lambda path, *_: 10 if "fp32" in path.name else 10 - next(lost))
    job = variants.Job(settings=tiny, prepared=prepared, folder=tmp_path, samples=tmp_path)
    found = variants._quantise(vgg[0], noise(32), {"format": "1"}, tmp_path / "model.int8.onnx", job)
    assert [len(left) for left in asked] == [0, 2, 5]
    assert found == {"left_float": asked[-1]}


def test_half_precision_keeps_pixels_and_softmax_in_float(vgg: tuple[onnx.ModelProto, Path]) -> None:
    fp16 = precisions.half(vgg[0])
    shapes = onnx.shape_inference.infer_shapes(fp16).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*shapes.value_info, *shapes.output)}
    convolutions = [node for node in fp16.graph.node if node.op_type == "Conv"]
    softmax = next(node for node in fp16.graph.node if node.op_type == "Softmax")
    assert all(types[node.output[0]] == onnx.TensorProto.FLOAT16 for node in convolutions)
    assert types[softmax.input[0]] == onnx.TensorProto.FLOAT
    assert softmax.output[0] == "probabilities"
    casts = [node for node in fp16.graph.node if node.op_type == "Cast"]
    assert len(casts) == 3  # pixels to float32, into float16, out again before the softmax


def test_names_do_not_depend_on_what_was_converted_before(vgg: tuple[onnx.ModelProto, Path]) -> None:
    again = conversion.convert(small("vgg16"), ("probabilities",))
    assert [node.name for node in again.graph.node] == [node.name for node in vgg[0].graph.node]
    assert not any("__" in node.name for node in again.graph.node)


def test_replacing_an_output_keeps_its_name() -> None:
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Identity", ["a"], ["y"])]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    proto = helper.make_model(helper.make_graph(nodes, "g", values[:1], values[1:]))
    graphs.replace(proto, "y", "a")
    graphs.canonicalise(proto)
    assert [(node.op_type, list(node.output)) for node in proto.graph.node] == [("Relu", ["y"])]


def test_the_child_imports_no_tensorflow() -> None:
    program = "import graft.export.variants, sys; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), check=False)
    assert done.returncode == 0


def test_a_child_that_dies_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny: params.Params
) -> None:
    job = variants.Job(settings=tiny, prepared=tmp_path, folder=tmp_path, samples=tmp_path)
    with pytest.raises(GraftError, match=r"the exported files cannot be validated: ") as caught:  # noqa: SIM117
        with stage._validator([]) as validate:
            list(validate(job))
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(variants, "__name__", "graft.no_such_module")
    with pytest.raises(GraftError, match=r"cannot be validated: .*No module named graft.no_such_module"):  # noqa: SIM117
        with stage._validator([]) as validate:
            list(validate(job))


def test_a_child_that_is_asked_nothing_ends() -> None:
    with stage._validator([]) as validate:
        child = validate.args[0]
    assert child.returncode == 0
