"""The doctor: what it says is what was tried, and each problem comes with its mend."""

from __future__ import annotations

import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from typer.testing import CliRunner

from graft import cli, doctor, params, providers
from graft.errors import GraftError

ROOT = Path(__file__).parents[2]


def test_here_the_cpu_runs_a_network() -> None:
    found = {finding.subject: finding for finding in doctor.computing(gpu=False)}
    assert found["cpu"].state == "fine"
    if not providers.count_gpus():
        assert found["cuda"].state == "absent"
        assert found["auto"].found == "takes cpu"


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_a_provider_that_is_not_what_it_says_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    # One that no ONNX Runtime installed here has: it takes another instead, with or without a GPU.
    monkeypatch.setitem(providers.FULL_NAMES, "cuda", "OpenVINOExecutionProvider")
    with pytest.raises(GraftError, match="could not load it"):
        doctor.try_provider("cuda")
    monkeypatch.setattr(doctor.np, "allclose", lambda *_, **__: False)
    with pytest.raises(GraftError, match="computes 3888 instead of 3888"):
        doctor.try_provider("cpu")


def test_a_gpu_whose_cuda_does_not_come_up_is_a_problem_with_a_mend(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")  # a GPU that is here is hidden from the process that tries
    monkeypatch.setattr(providers, "lacking", lambda _: "")
    monkeypatch.setattr(doctor, "_version", lambda _: "")
    found = {finding.subject: finding for finding in doctor.computing(gpu=True)}
    assert found["cuda"].state == "problem"
    assert "graft[serve-gpu]" in found["cuda"].mend
    assert found["tensorrt"].state == "absent"
    assert found["auto"].found == "takes cpu"


def test_libraries_are_missed_only_where_there_is_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_find_library", lambda *_: "")
    assert {finding.state for finding in doctor.cuda(needed=False)} == {"absent"}
    problems = doctor.cuda(needed=True)
    assert all(finding.state == "problem" and finding.mend for finding in problems)
    assert any(finding.found.startswith("wants CUDA 12") for finding in problems)


def test_a_card_without_a_driver_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_has_hardware", lambda: True)
    (finding,) = doctor.graphics(0)
    assert (finding.state, "driver" in finding.mend) == ("problem", True)


def test_packages_that_overwrite_each_other_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: "1.0")
    problems = [finding.subject for finding in doctor.packages() if finding.state == "problem"]
    assert problems == ["onnxruntime, onnxruntime-gpu", "nvidia-cudnn-cu12, nvidia-cudnn-cu13"]


def test_more_threads_than_a_container_grants_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(doctor, "_quota", lambda: 2.0)
    _, used = doctor.threads(None)
    assert used.mend == "set runtime.threads to 2 in params.yaml"


def test_the_command_ends_with_1_where_there_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = doctor.Finding("GPU", "NVIDIA", "no [driver]", "problem", "install it")
    monkeypatch.setattr(doctor, "examine", lambda _: [finding])
    result = CliRunner().invoke(cli.app, ["doctor"])
    assert result.exit_code == 1
    assert "no [driver]" in result.output
    assert "mend: install it" in result.output
    assert "1 problem found" in result.output


def test_the_extras_agree_on_cuda_12() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(line.startswith("tensorflow[and-cuda]==") for line in extras["gpu"])
    assert any(line.startswith("onnxruntime-gpu[cuda,cudnn]==") for line in extras["serve-gpu"])
    assert "tensorflow" not in " ".join(extras["serve"] + extras["serve-gpu"])
    wanted = [
        line
        for package, names in (("tensorflow", ("and-cuda",)), ("onnxruntime-gpu", ("cuda", "cudnn")))
        for line in metadata.requires(package) or ()
        if line.startswith("nvidia-") and any(f'extra == "{name}"' in line for name in names)
    ]
    assert wanted
    assert all(line.partition("<")[0].partition("~")[0].endswith("-cu12") for line in wanted), wanted


def test_a_serving_environment_is_examined_inside_a_project_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda _: "")  # nothing of the pipeline, so nothing that reads YAML
    monkeypatch.setattr(params, "load", lambda _: pytest.fail("it has no reader"))
    assert doctor.threads(ROOT)[-1].found.endswith("(every core)")


def test_wrong_parameters_are_a_finding_and_not_the_end(tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text("seed: [")
    (finding,) = doctor.threads(tmp_path)
    assert finding.state == "problem"
    assert "not valid YAML" in finding.found


def test_a_command_without_its_packages_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def absent() -> None:
        raise ModuleNotFoundError("No module named 'prefect'", name="prefect.flows")

    monkeypatch.setattr(cli, "app", absent)
    with pytest.raises(SystemExit, match="1"):
        cli.main()
    assert capsys.readouterr().err == (
        "graft: this needs prefect, which is not installed here; pip install 'graft[pipeline]'\n"
    )
