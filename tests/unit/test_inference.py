"""Opening an exported file: what is asked for is what runs, and a wrong file is one clear line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from onnx_models import colour_model

from graft import providers
from graft.errors import GraftError, InputError
from graft.inference import Bound, find_file, open_model


@pytest.fixture
def model_path(tmp_path: Path) -> Path:
    return colour_model(tmp_path / "model.onnx")


def test_a_model_says_what_it_is_and_predicts(model_path: Path) -> None:
    model = open_model(model_path, "cpu", threads=1)
    images = np.zeros((2, 32, 32, 3), np.uint8)
    images[0, ..., 0] = images[1, ..., 2] = 255
    probabilities = model.predict(images)
    assert (model.name, model.classes, model.image_size) == ("colours", ["red", "green", "blue"], (32, 32))
    assert model.metadata["metrics"] == {"validation_accuracy": 0.987}
    assert probabilities.argmax(axis=1).tolist() == [0, 2]
    assert probabilities.sum(axis=1) == pytest.approx(1)


# In a process without other threads. Its output: the cores of the session's threads, those of the caller in a run and
# afterwards, and how many answers come when the caller may not go to its core any more. A thread goes to its core when
# it first runs, which on a busy machine is after the session is there.
PLACES = """
import dataclasses, json, os, sys, time
from pathlib import Path
import numpy as np
from graft.inference import open_model

def threads():
    return {int(entry.name) for entry in Path("/proc/self/task").iterdir()}

class Watched:
    def run(self, *given):
        seen.append(sorted(os.sched_getaffinity(0)))
        return model.session.run(*given)
    def get_inputs(self):
        return model.session.get_inputs()

cores, seen, before = os.sched_getaffinity(0), [], threads()
model = open_model(Path(sys.argv[1]), "cpu")
end = time.monotonic() + 60
while True:
    places = [sorted(os.sched_getaffinity(thread)) for thread in threads() - before]
    if sorted(cores) not in places or time.monotonic() > end:
        break
    os.sched_yield()
picture = np.zeros((1, 32, 32, 3), np.uint8)
dataclasses.replace(model, session=Watched()).predict(picture)
after = sorted(os.sched_getaffinity(0))
os.sched_setaffinity(0, cores - {model.core})
print(json.dumps([places, seen, after, len(model.predict(picture))]))
"""


def test_a_run_on_all_cores_gives_every_thread_a_core_of_its_own(model_path: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    done = subprocess.run([sys.executable, "-c", PLACES, model_path], capture_output=True, text=True, check=True)
    places, seen, after, answers = json.loads(done.stdout)
    assert sorted(places + seen) == [[core] for core in cores]
    assert after == cores
    assert answers == 1
    assert open_model(model_path, "cpu", threads=1).core is None


def test_auto_names_the_provider_in_use(model_path: Path) -> None:
    in_use = open_model(model_path).session.get_providers()[0]
    assert {"cuda": "CUDAExecutionProvider", "cpu": "CPUExecutionProvider"}[open_model(model_path).provider] == in_use


def test_cuda_without_a_gpu_is_an_error(model_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "count_gpus", lambda: 0)
    with pytest.raises(GraftError, match="cuda was asked for"):
        open_model(model_path, "cuda")
    assert open_model(model_path, "auto").provider == "cpu"


# In a process of its own, where CUDA finds no GPU even where there is one, though the driver is said to have one.
# Its output: the provider that came up and its note, or why there is none.
OUT_OF_REACH = """
import sys
from pathlib import Path
from graft import providers
from graft.errors import GraftError
from graft.inference import open_model

providers.count_gpus, providers.preload = lambda: 1, lambda: sys.argv[3]
try:
    model = open_model(Path(sys.argv[1]), sys.argv[2])
    print(model.provider, model.note)
except GraftError as error:
    print("refused:", error)
"""


def with_a_gpu_out_of_reach(path: Path, provider: str, missing: str = "") -> str:
    command = [sys.executable, "-c", OUT_OF_REACH, path, provider, missing]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout


def test_a_session_that_fell_back_unseen_is_refused(model_path: Path) -> None:
    said = with_a_gpu_out_of_reach(model_path, "cuda")
    assert said.startswith("refused: ")
    assert "came up with CPUExecutionProvider" in said or "no CUDA" in said


def test_an_unknown_provider_points_to_the_nearest(model_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean cuda"):
        open_model(model_path, "cud")


def test_wrong_files_are_one_line(tmp_path: Path, model_path: Path) -> None:
    truncated = tmp_path / "truncated.onnx"
    truncated.write_bytes(model_path.read_bytes()[:200])
    text = tmp_path / "text.onnx"
    text.write_text("no model")
    for path, words in (
        (tmp_path / "none.onnx", "there is no model"),
        (truncated, "damaged"),
        (text, "damaged"),
    ):
        with pytest.raises(InputError, match=words) as caught:
            open_model(path, "cpu")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"classes": None}, "lacks the metadata graft.classes"),
        ({"format": "9"}, "graft.format 9"),
        ({"classes": "[not json"}, "not JSON"),
        ({"classes": ["one", "two"]}, "do not match its metadata"),
        ({"image_size": [16, 16]}, "do not match its metadata"),
        ({"image_size": "32"}, "graft.image_size"),
        ({"classes": {"a": 1}}, "graft.classes"),
    ],
)
def test_metadata_is_checked(tmp_path: Path, metadata: dict[str, object], words: str) -> None:
    path = colour_model(tmp_path / "model.onnx", metadata=metadata)
    with pytest.raises(InputError, match=words):
        open_model(path, "cpu")


@pytest.mark.parametrize("shape", [(1, 16, 16, 3), (32, 32, 3), (1, 32, 32, 4)])
def test_images_of_another_shape_are_refused(model_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="wants uint8 images of shape N×32×32×3"):
        open_model(model_path, "cpu").predict(np.zeros(shape, np.uint8))


def test_auto_that_cannot_have_the_gpu_says_why(model_path: Path) -> None:
    missing = "Failed to load libcudnn.so.9"
    said = with_a_gpu_out_of_reach(model_path, "auto", missing)
    assert said.startswith("cpu ")
    assert "provider cuda was asked for" in said
    said = with_a_gpu_out_of_reach(model_path, "tensorrt", missing)
    assert said.startswith("refused: ")
    assert "provider tensorrt was asked for" in said
    assert missing in said
    assert "damaged" not in said


def test_a_damaged_file_is_the_files_fault_on_a_gpu_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(providers, "count_gpus", lambda: 1)
    monkeypatch.setattr(providers, "preload", lambda: "")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(InputError, match="damaged"):
        open_model(tmp_path / "text.onnx", "auto")


def test_bound_buffers_give_the_same_answers(model_path: Path) -> None:
    model = open_model(model_path, "cpu")
    bound = Bound(model, 4)
    for seed in (1, 2):
        images = np.random.default_rng(seed).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
        assert np.array_equal(bound.predict(images), model.predict(images))
    with pytest.raises(InputError, match="exactly 4 images"):
        bound.load(np.zeros((3, 32, 32, 3), np.uint8))


def test_a_gpu_prefers_fp16_and_a_cpu_fp32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("fp32", "fp16", "int8")
    facts = {
        name: {"file": f"model.{name}.onnx", "shipped": name != "int8", "reason": "it lost too much"} for name in names
    }
    (tmp_path / "export.json").write_text(json.dumps({"precisions": facts}))
    assert find_file(tmp_path, "cpu").name == "model.fp32.onnx"
    monkeypatch.setattr(providers, "count_gpus", lambda: 1)
    assert find_file(tmp_path, "auto").name == "model.fp16.onnx"
    assert find_file(tmp_path, "auto", "fp32").name == "model.fp32.onnx"
    with pytest.raises(InputError, match=r"no int8 file was shipped .it lost too much.; choose fp32, fp16"):
        find_file(tmp_path, "cpu", "int8")
    with pytest.raises(InputError, match="graft run"):
        find_file(tmp_path / "none", "cpu")


def test_tensorrt_computes_in_the_files_own_precision() -> None:
    options = dict(providers.session_providers("tensorrt", (32, 48), "fp32")[0][1])
    assert options["trt_fp16_enable"] == "0"
    assert options["trt_profile_max_shapes"] == f"image:{providers.TENSORRT_BATCH}x32x48x3"
    assert dict(providers.session_providers("tensorrt", (32, 48), "fp16")[0][1])["trt_fp16_enable"] == "1"
    assert [name for name, _ in providers.session_providers("tensorrt", (32, 48))] == [
        "TensorrtExecutionProvider",
        "CUDAExecutionProvider",
    ]


@pytest.mark.gpu
def test_cuda_graphs_replay_the_same_answers(model_path: Path) -> None:
    if not providers.count_gpus():
        pytest.skip("SKIPPED ALOUD: no NVIDIA GPU here, CUDA graphs not tested")
    plain, replayed = open_model(model_path, "cuda"), open_model(model_path, "cuda", cuda_graphs=True)
    for batch in (1, 5, 1):
        images = np.random.default_rng(batch).integers(0, 256, (batch, 32, 32, 3), dtype=np.uint8)
        bound = Bound(replayed, batch)
        for _ in range(3):
            assert np.allclose(bound.predict(images), plain.predict(images), atol=1e-3)
