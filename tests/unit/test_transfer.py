"""The transfer itself: features are the network's own, and neither head nor fine-tuning runs frozen layers."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_run import run_stages

from graft import adaptation, backbones, features, heads, params, runtime, training, weights
from graft.datasets import preparation
from graft.errors import GraftError, InputError
from graft.export import stage
from graft.inference import find_file, open_model
from graft.shards import ShardedArray


def changed(settings: params.Params, **sections: dict[str, object]) -> params.Params:
    document = settings.model_dump(mode="json")
    for section, values in sections.items():
        document[section] |= values
    return params.Params.model_validate(document)


def digest(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.iterdir())}


def test_stored_features_are_the_networks_activations(tiny: params.Params, prepared: Path, run: Path) -> None:
    runtime.start(tiny)
    trunk = features.load_trunk(tiny)
    model = keras.Model(trunk.image, features.pooled(trunk.cut, "flatten"))
    images, _ = preparation.load_split(prepared, "test")
    stored = ShardedArray(run / "features", "test.features").read().astype(np.float32)
    expected = np.asarray(model.predict_on_batch(images.read()))
    assert np.allclose(stored, expected, rtol=2e-3, atol=1e-3 * np.abs(expected).max())


def test_suffix_and_head_on_the_junction_equal_the_whole_network(
    tiny: params.Params, prepared: Path, run: Path
) -> None:
    exact = changed(tiny, features={"dtype": "float32"})
    runtime.start(exact)
    features.extract(exact, prepared, run / "exact")
    trunk, head = adaptation.restore(exact, run / "finetuned")
    network = adaptation.assemble(trunk.suffix(), head, exact)
    images, _ = preparation.load_split(prepared, "validation")
    whole = keras.Model(trunk.image, head(features.pooled(trunk.cut, "flatten")))
    junction = ShardedArray(run / "exact", "validation.junction").read()
    assert np.allclose(network.predict_on_batch(junction), whole.predict_on_batch(images.read()), atol=1e-4)


def test_the_head_learns_and_its_file_is_what_it_computes(tiny: params.Params, prepared: Path, run: Path) -> None:
    arrays = load_file(run / "head" / heads.WEIGHTS)
    rows = ShardedArray(run / "features", "train.features").read().astype(np.float32)
    _, labels = preparation.load_split(prepared, "train")
    hidden = np.maximum((rows - arrays["mean"]) / arrays["std"] @ arrays["dense_0/kernel"] + arrays["dense_0/bias"], 0)
    logits = hidden @ arrays["dense_1/kernel"] + arrays["dense_1/bias"]
    assert (logits.argmax(1) == labels.read()).mean() > 0.8
    assert len(json.loads((run / "head" / "history.json").read_text())["epochs"]) >= 1


def test_the_same_inputs_give_the_same_bytes(tiny: params.Params, prepared: Path, run: Path, tmp_path: Path) -> None:
    run_stages(tiny, prepared, tmp_path)
    for name in ("features", "head", "finetuned"):
        assert digest(tmp_path / name) == digest(run / name)


def test_an_interrupted_extraction_goes_on_with_its_whole_shards(
    tiny: params.Params, prepared: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.start(tiny)
    monkeypatch.setattr("graft.shards.SHARD_BYTES", 1)  # a shard a batch
    complete = tmp_path / "complete"
    features.extract(tiny, prepared, complete)
    shard_names = sorted(path.name for path in complete.glob("train.features-*"))
    assert len(shard_names) > 2
    before = digest(complete)
    removed = [complete / name for name in shard_names[1:]]
    kept_time = (complete / shard_names[0]).stat().st_mtime_ns
    for path in removed:
        path.unlink()
    runtime.start(tiny)
    features.extract(tiny, prepared, complete)
    assert digest(complete) == before
    assert (complete / shard_names[0]).stat().st_mtime_ns == kept_time


def test_shards_of_other_inputs_are_thrown_away(tiny: params.Params, prepared: Path, tmp_path: Path) -> None:
    runtime.start(tiny)
    features.extract(tiny, prepared, tmp_path / "a")
    first = digest(tmp_path / "a")
    other = changed(tiny, features={"pooling": "avg"})
    runtime.start(other)
    features.extract(other, prepared, tmp_path / "a")
    assert ShardedArray(tmp_path / "a", "train.features").row_shape == (32,)
    assert digest(tmp_path / "a") != first


def test_views_follow_the_originals_view_by_view(tiny: params.Params, prepared: Path, tmp_path: Path) -> None:
    seen = changed(tiny, features={"views": 3})
    runtime.start(seen)
    features.extract(seen, prepared, tmp_path / "views")
    runtime.start(tiny)
    features.extract(tiny, prepared, tmp_path / "one")
    rows = ShardedArray(tmp_path / "views", "train.features").read()
    originals = ShardedArray(tmp_path / "one", "train.features").read()
    count = len(originals)
    assert len(rows) == 3 * count
    assert (rows[:count] == originals).all()
    assert not (rows[count : 2 * count] == originals).all()
    assert not (rows[count : 2 * count] == rows[2 * count :]).all()


def test_several_layers_are_pooled_joined_tuned_restored_and_exported(
    tiny: params.Params, prepared: Path, tmp_path: Path
) -> None:
    several = changed(
        tiny,
        backbone={"layer": ["block2_pool", "block3_pool"]},
        features={"pooling": "avg", "dtype": "float32", "batch_size": 256},  # more than there are pictures
        finetune={"unfreeze_from": "block2_conv1"},
        export={"precisions": ["fp32"], "outputs": ["probabilities", "features"]},
    )
    run_stages(several, prepared, tmp_path)
    rows = ShardedArray(tmp_path / "features", "test.features").read()
    assert rows.shape[1:] == (16 + 32,)
    runtime.start(several)
    alone = features.load_trunk(changed(several, backbone={"layer": "block2_pool"}))
    images, _ = preparation.load_split(prepared, "test")
    first = keras.Model(alone.image, features.pooled(alone.cut, "avg")).predict_on_batch(images.read())
    assert np.allclose(rows[:, :16], first, rtol=1e-4, atol=1e-4 * np.abs(first).max())
    trunk, head = adaptation.restore(several, tmp_path / "finetuned")
    whole = keras.Model(trunk.image, head(trunk.cut))
    expected = keras.activations.softmax(whole.predict_on_batch(images.read()))
    stage.export(several, prepared, tmp_path / "finetuned", tmp_path / "onnx", "lock")
    exported = open_model(find_file(tmp_path / "onnx", "cpu"), "cpu")
    assert (exported.predict(images.read()).argmax(1) == np.asarray(expected).argmax(1)).all()
    assert [output.shape for output in exported.session.get_outputs()] == [["batch", 2], ["batch", 48]]


def test_fine_tuning_that_makes_it_worse_is_not_kept(
    tiny: params.Params, prepared: Path, run: Path, tmp_path: Path
) -> None:
    # A rate this high destroys what the head knew; the frozen head must come out untouched.
    ruinous = changed(tiny, finetune={"learning_rate": 10.0, "epochs": 1})
    runtime.start(ruinous)
    said = adaptation.finetune(ruinous, prepared, run / "features", run / "head", tmp_path)
    assert said["kept"] == "frozen head"
    stored, head = load_file(tmp_path / adaptation.WEIGHTS), load_file(run / "head" / heads.WEIGHTS)
    assert all((stored[name] == head[name]).all() for name in head)


def test_a_loss_that_is_no_number_stops_with_epoch_and_rate(tmp_path: Path, tiny: params.Params) -> None:
    from graft.shards import ShardWriter

    runtime.start(tiny)
    with ShardWriter(tmp_path, "rows", (3,), np.float32) as writer:
        writer.append(np.full((8, 3), np.inf, np.float32))
    entry = keras.Input((3,))
    model = keras.Model(entry, keras.layers.Dense(2)(entry))
    batches = training.Batches(ShardedArray(tmp_path, "rows"), np.arange(8) % 2, 2, 4, 1)
    recipe = training.Recipe("head", 2, 0.5, "cosine", 0.0, 0.0, None)
    with pytest.raises(GraftError, match=r"head: the loss became nan in epoch 1 at a learning rate of .* lower"):
        training.fit(model, batches, batches, recipe, training.BestEpoch(None))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"backbone": {"layer": "block9_pool"}}, "no backbone.layer block9_pool; did you mean block"),
        ({"backbone": {"name": "vgg17"}}, "no backbone.name vgg17; did you mean vgg1"),
        ({"backbone": {"name": "resnet50"}}, "one width only; set backbone.width=1"),
        ({"backbone": {"weights": "bundled"}}, "bundled weights are those of vgg16 at width 0.25"),
        ({"backbone": {"weights": "imagenet"}}, "ImageNet weights are full width"),
        ({"backbone": {"weights": "nowhere.npz"}}, "or an existing file"),
        ({"finetune": {"unfreeze_from": "block4_conv1"}}, "lies behind backbone.layer"),
        (
            {"backbone": {"layer": ["block1_pool", "block3_pool"]}},
            "does not lead to every backbone.layer (block1_pool, block3_pool); name the first of them",
        ),
        ({"backbone": {"layer": ["block2_pool", "block9_pool"]}}, "no backbone.layer block9_pool"),
        ({"finetune": {"unfreeze_from": "block3_conv9"}}, "did you mean block3_conv"),
    ],
)
def test_a_network_that_cannot_be_is_one_sentence(
    tiny: params.Params, sections: dict[str, dict[str, object]], message: str
) -> None:
    with pytest.raises(InputError) as caught:
        features.load_trunk(changed(tiny, **sections))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_junction_inside_a_branch_is_refused(tiny: params.Params) -> None:
    resnet = changed(
        tiny,
        backbone={"name": "resnet50", "width": 1.0, "layer": "conv2_block2_out"},
        finetune={"unfreeze_from": "conv2_block2_2_conv"},
    )
    with pytest.raises(InputError, match="inside a branch of resnet50"):
        features.load_trunk(resnet)


def test_pictures_smaller_than_the_backbone_are_refused(tiny: params.Params) -> None:
    with pytest.raises(InputError, match="at least 32 pixels"):
        backbones.build(tiny.backbone, 16)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".keras", ".h5"])
def test_weights_load_from_every_format(tiny: params.Params, tmp_path: Path, suffix: str) -> None:
    original = backbones.build(tiny.backbone, 32)
    path = tmp_path / f"weights{suffix}"
    flat = {
        f"{layer.name}/{part}": np.asarray(value)
        for layer in original.layers
        for part, value in zip(("kernel", "bias"), layer.get_weights(), strict=False)
    }
    if suffix == ".npz":
        np.savez(path, **flat)
    elif suffix == ".safetensors":
        save_file(flat, path)
    elif suffix == ".keras":
        original.save(path)
    else:
        write_applications_h5(path, flat)
    keras.utils.set_random_seed(99)
    other = backbones.build(tiny.backbone, 32)
    weights.load(other, tiny.backbone.model_copy(update={"weights": str(path)}))
    for mine, theirs in zip(other.get_weights(), original.get_weights(), strict=True):
        assert (mine == theirs).all()


def write_applications_h5(path: Path, flat: dict[str, np.ndarray]) -> None:
    """The layout of Keras Applications' files."""
    import h5py

    names = list(dict.fromkeys(key.split("/")[0] for key in flat))
    with h5py.File(path, "w") as file:
        file.attrs["layer_names"] = [name.encode() for name in names]
        for name in names:
            group = file.create_group(name)
            keys = [f"{name}_{part}_1:0" for part in ("W", "b")]
            group.attrs["weight_names"] = [key.encode() for key in keys]
            for key, part in zip(keys, ("kernel", "bias"), strict=True):
                group[key] = flat[f"{name}/{part}"]


def test_weights_that_end_before_the_cut_name_the_missing_layers(tiny: params.Params, tmp_path: Path) -> None:
    model = backbones.build(tiny.backbone, 32)
    first = model.get_layer("block1_conv1")
    kernel, bias = first.get_weights()
    np.savez(tmp_path / "short.npz", **{"block1_conv1/kernel": kernel, "block1_conv1/bias": bias})
    with pytest.raises(InputError, match="lack the layers block1_conv2, block2_conv1"):
        weights.load(model, tiny.backbone.model_copy(update={"weights": str(tmp_path / "short.npz")}))


def test_weights_of_another_width_name_layer_and_shapes(tiny: params.Params, tmp_path: Path) -> None:
    wide = backbones.build(tiny.backbone.model_copy(update={"width": 0.25}), 32)
    wide.save(tmp_path / "wide.keras")
    with pytest.raises(
        InputError, match=r"do not fit layer block1_conv1: .*\(3, 3, 3, 8\).*Received: .*\(3, 3, 3, 16\)"
    ):
        weights.load(
            backbones.build(tiny.backbone, 32),
            tiny.backbone.model_copy(update={"weights": str(tmp_path / "wide.keras")}),
        )


@pytest.mark.parametrize("suffix", [".npz", ".safetensors", ".keras", ".h5", ".pkl"])
def test_a_damaged_weights_file_is_one_sentence(tiny: params.Params, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"nothing of the sort")
    with pytest.raises(InputError, match=r"cannot be read|weights are read from") as caught:
        weights.load(backbones.build(tiny.backbone, 32), tiny.backbone.model_copy(update={"weights": str(path)}))
    assert "\n" not in str(caught.value)
