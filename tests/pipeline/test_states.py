"""What a run says happened, and why: in the terminal and in Prefect."""

from __future__ import annotations

import base64
import io
import shutil

from PIL import Image


def test_states_and_reasons_reach_prefect_and_the_terminal(repository, api):
    made = repository("chain")
    made.work()
    made.edit("params.yaml", "1.0e-5", "3.0e-5")
    (made.root / "count.txt").unlink()
    out = made.graft("run")
    wanted = {
        "prepare": ("Unchanged", "nothing it depends on changed"),
        "extract": ("Unchanged", "nothing it depends on changed"),
        "count": ("Restored", "output count.txt missing; from the cache"),
        "train": ("Ran", "head.learning_rate changed: 1e-5 → 3e-5"),
        "evaluate": ("Ran", "model.txt changed by train"),
    }
    runs = api.settled(made.root.name)
    assert {name: (run["state"]["name"], run["state"]["message"]) for name, run in runs.items()} == wanted
    for stage, (state, why) in wanted.items():
        assert any(line.startswith(state) and stage in line and why in line for line in out.splitlines())
    assert api.flow_run(made.root.name)["state"]["type"] == "COMPLETED"


def test_old_parameters_are_restored_and_a_rerun_is_not_needed(repository):
    made = repository("chain")
    made.work()
    made.edit("params.yaml", "1.0e-5", "3.0e-5")
    made.work()
    made.edit("params.yaml", "3.0e-5", "1.0e-5")
    began = made.ran().count("begin train")
    assert made.work()["train"] == "Restored"
    assert made.ran().count("begin train") == began


def test_what_the_cache_lacks_is_pulled_from_the_remote(repository, tmp_path):
    made = repository("chain")
    made.dvc("remote", "add", "-d", "store", str(tmp_path / "store"))
    made.work()
    made.dvc("push")
    shutil.rmtree(made.root / ".dvc/cache")
    for name in ("prepared", "features"):
        shutil.rmtree(made.root / name)
    (made.root / "model.txt").unlink()
    began = len(made.ran())
    out = made.graft("run")
    states = made.states(out)
    assert {states[name] for name in ("prepare", "extract", "train")} == {"Restored"}
    assert "pulled from store" in out
    assert len(made.ran()) == began


def test_a_remote_that_cannot_be_asked_is_said_and_the_stage_computed(repository, tmp_path):
    made = repository("chain")
    made.work()
    made.dvc("remote", "add", "-d", "store", "ssh://127.0.0.1:9/store")
    shutil.rmtree(made.root / ".dvc/cache")
    shutil.rmtree(made.root / "prepared")
    out = made.graft("run")
    assert made.states(out)["prepare"] == "Ran"
    assert "remote store cannot be reached" in out


def test_a_stages_lines_appear_once_in_the_terminal_and_once_in_prefect(repository, api):
    made = repository("chain")
    made.edit("dvc.yaml", 'cmd: echo "begin count"', 'cmd: echo counting >&2; echo "begin count"')
    out = made.graft("run")
    logs = api.logs(made.root.name)
    for line in ("prepared 6 parts", "counting"):  # of a stage in this process, and of a process of its own
        assert (out.count(line), logs.count(line)) == (1, 1)


def test_artifacts_show_stages_metrics_parameters_confusion_progress_and_report(repository, api):
    made = repository("chain")
    report = "artifacts: {report: {path: page/index.html}, summary: {path: in-short.md}}\n"
    made.write("dvc.yaml", (made.root / "dvc.yaml").read_text() + report)
    made.write("page/index.html", "<title>report</title>")
    made.write("in-short.md", "**Right** in 9 of 10")
    made.work()
    made.run("git", "add", "-A")
    made.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "first")
    made.edit("params.yaml", "1.0e-5", "3.0e-5")
    made.graft("run")
    found = {artifact["key"] or artifact["type"]: artifact for artifact in api.artifacts(made.root.name)}
    assert "train" in found["stages"]["data"]
    assert "accuracy" in found["metrics"]["data"]
    assert "head.learning_rate" in found["parameters"]["data"]
    kind, _, picture = found["confusion"]["data"].partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(picture))).getcolors(1 << 20)
    assert "train 6/6 steps" in found["progress"]["description"]
    assert found["progress"]["data"] == 100.0
    assert f"({(made.root / 'page/index.html').as_uri()})" in found["report"]["data"]
    assert found["summary"]["data"] == "**Right** in 9 of 10"


def test_set_changes_the_parameters_file_before_the_run(repository):
    made = repository("chain")
    out = made.graft("run", "-S", "head.rate=1", code=2)
    assert "head.rate" in out
    assert "Traceback" not in out
