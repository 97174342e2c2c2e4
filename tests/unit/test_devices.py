"""Training on more than one device, and in half precision: two logical CPU devices stand for two GPUs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import keras
import pytest

from graft import params, runtime
from graft.errors import InputError

# Logical devices must exist before TensorFlow starts, so the training has a process of its own.
SCRIPT = """
import sys
from pathlib import Path
import numpy as np
import tensorflow as tf
from safetensors.numpy import load_file
from graft import params, runtime

tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
text, prepared, scratch = Path(sys.argv[1]).read_text(encoding="utf-8"), Path(sys.argv[2]), Path(sys.argv[3])
for devices in (1, 2):
    settings = params.parse(params.override(text, [f"runtime.devices={devices}"]))
    runtime.start(settings)
    from graft import adaptation, features, heads

    folder, stored = scratch / str(devices), scratch / "features"
    features.extract(settings, prepared, stored)
    with runtime.training(settings):
        assert tf.distribute.get_strategy().num_replicas_in_sync == devices
        heads.train(settings, prepared, stored, folder / "head")
        adaptation.finetune(settings, prepared, stored, folder / "head", folder / "tuned")
    assert load_file(folder / "tuned" / "network.safetensors")
one, two = (load_file(scratch / devices / "head/head.safetensors")["dense_0/bias"] for devices in "12")
assert np.abs(one - two).max() < 1e-6, (one, two)
"""


def test_two_devices_train_what_one_trains(tiny: params.Params, prepared: Path, tmp_path: Path) -> None:
    """Without dropout and batch normalisation, which see one device's share only, the head is the same."""
    # The norm is short enough to clip every step: one over each device's share would clip other gradients.
    head = tiny.head.model_copy(update={"hidden": (), "dropout": 0.0, "gradient_norm": 0.05})
    finetune = tiny.finetune.model_copy(update={"epochs": 1, "block_decay": 0.5})
    plain = tiny.model_copy(update={"head": head, "finetune": finetune})
    (tmp_path / "params.yaml").write_text(json.dumps(plain.model_dump(mode="json")), encoding="utf-8")
    (tmp_path / "script.py").write_text(SCRIPT, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "script.py", "params.yaml", prepared, tmp_path],
        cwd=tmp_path,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def with_runtime(settings: params.Params, **changes: object) -> params.Params:
    return settings.model_copy(update={"runtime": settings.runtime.model_copy(update=changes)})


def test_half_precision_without_a_gpu_is_refused(tiny: params.Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["cpu:0"])
    with (
        pytest.raises(InputError, match="needs a GPU, and there is none"),
        runtime.training(with_runtime(tiny, precision="mixed_float16")),
    ):
        pass


def test_half_precision_holds_while_training_only(tiny: params.Params, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras.distribution, "list_devices", lambda: ["gpu:0"])
    with runtime.training(with_runtime(tiny, precision="mixed_bfloat16")):
        layer = keras.layers.Dense(2)
        assert (layer.compute_dtype, layer.variable_dtype) == ("bfloat16", "float32")
    assert keras.layers.Dense(2).compute_dtype == "float32"


def test_more_devices_than_there_are_is_one_sentence(tiny: params.Params) -> None:
    with (
        pytest.raises(InputError, match="asks for 64 devices, and there are"),
        runtime.training(with_runtime(tiny, devices=64)),
    ):
        pass
