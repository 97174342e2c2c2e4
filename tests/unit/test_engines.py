"""MNN gives Keras' own features, the same bytes each time, and is refused in words where it cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from absent import absent

from graft import backbones, engines, features, mnn, params, runtime
from graft.errors import InputError

needs_mnn = pytest.mark.usefixtures("mnn_installed")

# Enough pictures for the batches at which a graph that begins with a transpose wrote beyond its memory.
PICTURES = np.random.default_rng(3).integers(0, 256, (64, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def mnn_installed() -> None:
    if not mnn.installed():
        absent("no MNN here (pip install 'graft[mnn]'), its features were not tested")


def asking(settings: params.Params, engine: str) -> params.Params:
    return settings.model_copy(update={"features": settings.features.model_copy(update={"engine": engine})})


def network(name: str, width: float, layer: str, pooling: str) -> tuple[Any, dict[str, Any]]:
    whole = backbones.build(params.Backbone(name=name, weights="none", width=width, layer=layer), 32)
    cut = backbones.cut(whole, layer, "backbone.layer")
    return whole.input, {"features": features.pooled(cut, pooling), "junction": cut}


@needs_mnn
@pytest.mark.parametrize(
    ("name", "width", "layer"),
    [
        ("vgg16", 0.125, "block3_pool"),
        ("vgg19", 0.125, "block4_pool"),
        ("resnet50", 1.0, "conv3_block1_out"),
        ("mobilenetv2", 1.0, "block_6_expand_relu"),
        ("efficientnetv2-b0", 1.0, "block4b_add"),
    ],
)
@pytest.mark.parametrize("pooling", ["flatten", "avg"])
def test_mnn_gives_keras_own_features(tiny: params.Params, name: str, width: float, layer: str, pooling: str) -> None:
    runtime.start(tiny)
    image, outputs = network(name, width, layer, pooling)
    batch = PICTURES[:8] if width == 1 else PICTURES
    expected = engines.choose(image, outputs, asking(tiny, "keras"), batch).run(batch)
    engine = engines.choose(image, outputs, asking(tiny, "mnn"), batch)
    assert engine.name.startswith("mnn ")
    found, again = engine.run(batch), engine.run(batch)
    for key, values in expected.items():
        assert found[key].shape == values.shape
        assert np.abs(found[key] - values).max() <= 1e-4 * np.abs(values).max()
        assert (found[key] == again[key]).all()
    assert "MNN.tools" not in sys.modules, "importing it installs a package and calls home"


@needs_mnn
def test_a_stage_with_mnn_writes_the_same_bytes_in_another_process(
    tiny: params.Params, prepared: Path, tmp_path: Path
) -> None:
    settings = asking(tiny, "mnn")
    runtime.start(settings)
    features.extract(settings, prepared, tmp_path / "here")
    (tmp_path / "settings.json").write_text(settings.model_dump_json())
    script = (
        "import sys; from pathlib import Path; from graft import params, runtime\n"
        "folder, prepared = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "settings = params.Params.model_validate_json((folder / 'settings.json').read_text())\n"
        "runtime.start(settings)\n"
        "from graft import features\n"
        "features.extract(settings, prepared, folder / 'there')\n"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path), str(prepared)], check=True)
    files = sorted(path.name for path in (tmp_path / "here").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "there").iterdir())
    assert all((tmp_path / "here" / n).read_bytes() == (tmp_path / "there" / n).read_bytes() for n in files)
    manifest = json.loads((tmp_path / "here" / features.MANIFEST).read_text())
    assert manifest["engine"] == f"mnn {mnn.version()}"


@needs_mnn
def test_what_mnn_cannot_do_is_keras_under_auto_and_a_sentence_under_mnn(
    tiny: params.Params, caplog: pytest.LogCaptureFixture
) -> None:
    runtime.start(tiny)
    image = keras.Input((32, 32, 3), dtype="uint8")
    pixels = backbones.plus_minus_one(keras.ops.cast(image, "float32"))
    outputs = {"features": keras.layers.LayerNormalization(name="odd")(pixels)}
    assert engines.choose(image, outputs, asking(tiny, "auto"), PICTURES[:2]).name.startswith("keras ")
    assert "LayerNormalization (odd) has no translation" in caplog.text
    with pytest.raises(InputError, match=r"features\.engine=mnn cannot be had: .*set features\.engine=auto"):
        engines.choose(image, outputs, asking(tiny, "mnn"), PICTURES[:2])


@needs_mnn
def test_with_a_gpu_auto_is_keras_and_mnn_says_why(tiny: params.Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    image, outputs = network("vgg16", 0.125, "block2_pool", "avg")
    assert engines.choose(image, outputs, asking(tiny, "auto"), PICTURES).name.startswith("keras")
    with pytest.raises(InputError, match=r"a GPU is here, and Keras uses it; set features\.engine=auto"):
        engines.choose(image, outputs, asking(tiny, "mnn"), PICTURES)


def test_without_mnn_auto_is_keras_and_mnn_says_how_to_get_it(
    tiny: params.Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime.start(tiny)
    monkeypatch.setattr(mnn, "installed", lambda: False)
    image, outputs = network("vgg16", 0.125, "block1_pool", "avg")
    assert engines.choose(image, outputs, asking(tiny, "auto"), PICTURES[:2]).name.startswith("keras ")
    with pytest.raises(InputError, match=r"pip install 'graft\[mnn\]'"):
        engines.choose(image, outputs, asking(tiny, "mnn"), PICTURES[:2])
