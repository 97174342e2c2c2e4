"""Two versions of a model out of a real git and DVC repository, compared on the same pictures."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from stand_in import digits, write_model, write_prepared
from typer.testing import CliRunner

from graft import cli, comparison
from graft.errors import InputError
from graft.evaluation.study import Study
from graft.inference import open_model

CLASSES = [str(digit) for digit in range(10)]
MODEL = "models/onnx/model.fp32.onnx"


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def layers(noise: float) -> dict[str, np.ndarray]:
    """A nearest-mean classifier of digits as an MLP, blurred by `noise`."""
    images, labels = digits()
    flat = images.reshape(len(images), -1) / 255.0
    means = np.stack([flat[labels == digit].mean(axis=0) for digit in range(10)])
    means = means + np.random.default_rng(0).normal(0, noise, means.shape)
    kernel, bias = 2 * means.T, -(means**2).sum(axis=1) + 1000
    return {
        "dense_0/kernel": kernel,
        "dense_0/bias": bias,
        "dense_1/kernel": np.eye(10) / 20,
        "dense_1/bias": np.zeros(10),
    }


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two commits: a rough model, then a better one; DVC holds the files."""
    from dvc.repo import Repo

    root = tmp_path_factory.mktemp("versions")
    git(root, "init", "-q")
    with Repo.init(str(root)) as repo:
        images, labels = digits()
        splits = {"train": slice(0, 50), "validation": slice(50, 60), "test": slice(60, 360)}
        write_prepared(
            root / "data/prepared", {name: (images[rows], labels[rows]) for name, rows in splits.items()}, CLASSES
        )
        (root / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
        (root / "params.yaml").write_text(
            (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8"), encoding="utf-8"
        )
        (root / ".gitignore").write_text("data\nreport\n", encoding="utf-8")
        for name, noise in (("rough", 1.5), ("better", 0.0)):
            write_model(root / MODEL, layers(noise), CLASSES)
            facts = {"fp32": {"file": "model.fp32.onnx", "bytes": 1, "shipped": True}}
            (root / "models/onnx/export.json").write_text(json.dumps({"precisions": facts}), encoding="utf-8")
            repo.add(str(root / "models/onnx"))
            git(root, "add", "-A")
            git(root, "commit", "-qm", name)
            git(root, "tag", name)
    return root


@pytest.fixture
def graft(repository: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    monkeypatch.chdir(repository)

    def call(*arguments: str) -> tuple[int, str]:
        done = CliRunner().invoke(cli.app, arguments, env={"COLUMNS": "160"})
        if isinstance(done.exception, InputError):
            return done.exception.exit_code, str(done.exception)
        return done.exit_code, done.output

    return call


def hits(path: Path, study: Study) -> np.ndarray:
    """Which test pictures a nearest-mean file gets right, worked out with numpy from its own numbers."""
    arrays = {item.name: numpy_helper.to_array(item) for item in onnx.load(path).graph.initializer}
    flat = study.images("test").read().reshape(len(study.labels("test")), -1) / 255.0
    logits = np.maximum(flat @ arrays["dense_0/kernel"] + arrays["dense_0/bias"], 0)
    return logits.argmax(axis=1) == study.labels("test")


def test_compare_names_the_better_version_and_the_pictures_that_changed_sides(
    repository: Path, graft: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    study = Study(repository)
    write_model(tmp_path / "rough.onnx", layers(1.5), CLASSES)
    rough, better = hits(tmp_path / "rough.onnx", study), hits(repository / MODEL, study)
    won, lost = np.flatnonzero(~rough & better), np.flatnonzero(rough & ~better)
    assert len(won) > len(lost)
    code, output = graft("compare", "rough", "better")
    assert code == 0, output
    words = " ".join(output.split())
    assert f"{len(won)} of 300 test pictures are right only with better, {len(lost)} only with rough" in words
    assert "better is better, by more than chance explains" in words
    assert f"{100 * better.mean():.1f} %" in words
    assert study.names("test")[won[0]] in words
    page = (repository / "report/compare.html").read_text(encoding="utf-8")
    assert page.count("<figure") == min(60, len(won)) + min(60, len(lost))


def test_a_version_against_itself_and_the_folder_differs_in_nothing(graft: Callable[..., tuple[int, str]]) -> None:
    code, output = graft("compare", "better")
    assert code == 0, output
    assert "chance alone could explain" in " ".join(output.split())
    assert "Right only with workspace: 0" in output


def test_an_unknown_revision_is_one_sentence(graft: Callable[..., tuple[int, str]]) -> None:
    code, output = graft("compare", "nonsense")
    assert code == 2
    assert output.startswith("git knows no revision nonsense")
    assert "\n" not in output.strip()


def test_a_revision_without_a_model_is_one_sentence(repository: Path, graft: Callable[..., tuple[int, str]]) -> None:
    git(repository, "branch", "-f", "kept")
    git(repository, "checkout", "-q", "--orphan", "empty")
    git(repository, "commit", "-q", "--allow-empty", "-m", "nothing")
    git(repository, "rm", "-rq", "--cached", ".")
    git(repository, "commit", "-qm", "empty")
    git(repository, "checkout", "-qf", "kept")
    code, output = graft("compare", "empty")
    assert code == 2
    assert "neither in DVC's cache nor in a remote" in output


def test_a_model_of_other_classes_cannot_be_compared(repository: Path, tmp_path: Path) -> None:
    other = {**layers(0), "dense_1/kernel": np.eye(10)[:, :3], "dense_1/bias": np.zeros(3)}
    write_model(tmp_path / "other.onnx", other, ["a", "b", "c"])
    models = open_model(repository / MODEL, "cpu", 1), open_model(tmp_path / "other.onnx", "cpu", 1)
    with pytest.raises(InputError, match="knows other classes"):
        comparison.compare(Study(repository), models, ("now", "other"), 64)


def test_a_report_without_an_evaluation_sends_one_to_graft_run(graft: Callable[..., tuple[int, str]]) -> None:
    code, output = graft("report")
    assert code == 2
    assert "run `graft run` first" in output
