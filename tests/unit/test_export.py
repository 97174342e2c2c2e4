"""Export: every backbone becomes one file a precision that answers as Keras does, or is not shipped and says why."""

from __future__ import annotations

import json
import os
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

from graft import adaptation, backbones, checksum, features, heads, images, params, runtime
from graft.errors import GraftError, InputError
from graft.export import conversion, files, graphs, ladder, precisions, stage, variants
from graft.inference import find_file, open_model

CLASSES = ["checks", "stripes"]


def changed(settings: params.Params, **export: object) -> params.Params:
    document = settings.model_dump(mode="json")
    document["export"] |= export
    return params.Params.model_validate(document)


def small(name: str, outputs: tuple[str, ...] = ("probabilities",), size: int = 32) -> keras.Model:
    """A whole classifier on a backbone with random weights."""
    runtime.start(params.load(Path(__file__).parents[2] / "params.yaml"))
    width = 0.125 if backbones.BACKBONES[name].scalable else 1.0
    trunk = backbones.build(params.Backbone(name=name, weights="none", width=width, layer=""), size)
    vector = features.pooled(trunk.output, "avg")
    logits = keras.layers.Dense(2)(vector)
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


@pytest.fixture(scope="module")
def network(tiny: params.Params, prepared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny data set's network after its head's training, not fine-tuned further."""
    folder = tmp_path_factory.mktemp("network")
    runtime.start(tiny)
    features.extract(tiny, prepared, folder / "features")
    heads.train(tiny, prepared, folder / "features", folder / "head")
    adaptation.finetune(tiny, prepared, folder / "features", folder / "head", folder / "finetuned")
    return folder / "finetuned"


Exporter = Callable[..., tuple[Path, dict[str, Any]]]


@pytest.fixture
def exporter(tiny: params.Params, prepared: Path, network: Path, tmp_path: Path) -> Exporter:
    """Runs the stage with parameters of `export` changed; returns the folder and what `export.json` says."""

    def run(name: str = "onnx", **export: object) -> tuple[Path, dict[str, Any]]:
        runtime.start(tiny)
        folder = tmp_path / name
        summary = stage.export(changed(tiny, **export), prepared, network, folder, "lock")
        assert json.loads((folder / "export.json").read_text()) == summary
        return folder, summary["precisions"]

    return run


def test_the_stage_writes_what_was_asked_for(exporter: Exporter) -> None:
    folder, facts = exporter(calibration_images=32, precisions=["fp32", "fp16"])
    assert {path.name for path in folder.iterdir()} == {
        "export.json", "labels.txt", "model.fp16.onnx", "model.fp32.onnx", "triton"
    }  # fmt: skip
    assert all(fact["shipped"] and fact["top1_agreement"] == 1 for fact in facts.values())
    model = open_model(find_file(folder, "cpu"), "cpu")
    assert model.path.name == "model.fp32.onnx"
    assert model.metadata["provenance"]["lock"] == "lock"
    assert {"git", "date", "data_fingerprint", "parameters", "licence", "versions"} <= set(model.metadata["provenance"])
    assert model.metadata["input"] == {
        "name": "image", "type": "uint8", "shape": ["batch", 32, 32, 3], "channels": "RGB", "range": [0, 255],
        "resized_inside": False,
    }  # fmt: skip
    triton = folder / "triton" / "graft"
    assert (triton / "1" / "model.onnx").read_bytes() == model.path.read_bytes()
    assert (triton / "labels.txt").read_text().split() == CLASSES
    config = (triton / "config.pbtxt").read_text()
    assert 'input [ { name: "image" data_type: TYPE_UINT8 dims: [ 32, 32, 3 ] } ]' in config
    assert 'name: "probabilities" data_type: TYPE_FP32 dims: [ 2 ] label_filename: "labels.txt"' in config


def test_two_exports_are_equal_to_the_byte(exporter: Exporter) -> None:
    first, _ = exporter("first", precisions=["fp32", "fp16"], outputs=["probabilities", "logits"])
    second, _ = exporter("second", precisions=["fp32", "fp16"], outputs=["probabilities", "logits"])
    for path in sorted(first.rglob("*.onnx")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()


def test_too_few_pictures_leave_int8_out_and_say_so(exporter: Exporter) -> None:
    folder, facts = exporter()  # 28 training pictures
    assert not facts["int8"]["shipped"]
    assert "at least 32 training pictures" in facts["int8"]["reason"]
    assert not (folder / "model.int8.onnx").exists()
    with pytest.raises(InputError, match=r"no int8 file was shipped .*at least 32"):
        find_file(folder, "cpu", "int8")


def test_a_variant_that_misses_its_bound_is_not_shipped(exporter: Exporter) -> None:
    folder, facts = exporter(precisions=["fp32", "fp16"], max_difference_fp16=1e-9)
    assert not facts["fp16"]["shipped"]
    assert "export.max_difference_fp16 (1e-09)" in facts["fp16"]["reason"]
    assert not (folder / "model.fp16.onnx").exists()


def test_fp32_that_misses_its_bound_fails_the_stage(exporter: Exporter, tmp_path: Path) -> None:
    with pytest.raises(GraftError, match=r"model.fp32.onnx differs from Keras .*nothing is shipped"):
        exporter(precisions=["fp32"], max_difference=1e-12)
    assert not list((tmp_path / "onnx").rglob("*.onnx"))


def test_a_temperature_in_the_file_softens_its_answers_alone(exporter: Exporter, prepared: Path) -> None:
    plain, _ = exporter("plain", precisions=["fp32"], calibrate=False)
    scaled, _ = exporter("scaled", precisions=["fp32"], calibrate=True)
    temperature = json.loads((scaled / "export.json").read_text())["temperature"]
    pictures = noise(8)
    one, other = (open_model(find_file(folder, "cpu"), "cpu").predict(pictures) for folder in (plain, scaled))
    expected = np.exp(np.log(one) / temperature)
    assert temperature != 1
    assert np.allclose(other, expected / expected.sum(1, keepdims=True), atol=1e-5)


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


def test_a_child_that_dies_is_one_sentence(tmp_path: Path) -> None:
    job = tmp_path / "job.json"
    job.write_text("{}")
    with pytest.raises(GraftError, match=r"the exported files cannot be validated: ") as caught:
        list(stage._child(job))
    assert "\n" not in str(caught.value)
