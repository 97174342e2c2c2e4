"""`graft run` leaves exactly what `dvc repro` leaves, on repositories it has never seen."""

from __future__ import annotations

import pytest

REPOSITORIES = ["chain", "sweep", "folders", "odd"]
# Stages that DVC runs every time, whatever happened before.
ALWAYS = {"odd": {"clock", "hello"}}
# Stages whose command never runs: what lies there is recorded.
FROZEN = {"odd": {"frozen"}}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_run_equals_dvc_repro_in_process_and_isolated_and_takes_over_from_it(repository, name):
    by_dvc, in_process, isolated = (repository(name, how) for how in ("dvc", "process", "isolated"))
    by_dvc.dvc("repro")
    for found in (in_process.states(in_process.graft("run")), isolated.work(isolate=True)):
        assert {stage for stage, state in found.items() if state != "Ran"} == FROZEN.get(name, set())
    assert in_process.lock() == isolated.lock() == by_dvc.lock()
    for by_graft in (in_process, isolated):
        again = by_graft.dvc("repro")
        rerun = {line.split("'")[1] for line in again.splitlines() if line.startswith("Running stage")}
        assert rerun == ALWAYS.get(name, set())
    after = by_dvc.work()
    assert {stage for stage, state in after.items() if state != "Unchanged"} == ALWAYS.get(name, set())


def test_nothing_to_do_starts_neither_prefect_nor_tensorflow(repository):
    made = repository("chain")
    made.dvc("repro")
    made.environment["PREFECT_API_URL"] = "http://127.0.0.1:9/api"  # nobody listens: a call would fail
    blocked = made.root / "blocked"
    for package in ("prefect", "tensorflow", "keras"):
        made.write(f"blocked/{package}.py", "raise SystemExit('must not be imported')\n")
    made.environment["PYTHONPATH"] += f":{blocked}"
    assert set(made.states(made.graft("run")).values()) == {"Unchanged"}
    assert not (made.root / ".dvc/tmp/graft/prefect.log").exists()


def test_targets_bring_what_they_need_and_no_more(repository):
    made = repository("sweep")
    assert set(made.work("pair@train-upper", "score")) == {
        "split@train",
        "pair@train-upper",
        "score@short",
        "score@long",
    }


def test_status_says_what_would_run_and_why(repository):
    made = repository("chain")
    assert "it has not run yet" in made.graft("status")
    made.dvc("repro")
    assert "Nothing to do." in made.graft("status")
    made.edit("params.yaml", "1.0e-5", "3.0e-5")
    out = made.graft("status")
    assert "head.learning_rate changed: 1e-5 → 3e-5" in out
    assert "train may change what it reads" in out


def test_a_run_takes_the_folders_own_dvc_yaml_and_what_it_needs(repository):
    made = repository("folders")
    made.write("elsewhere/dvc.yaml", "stages: {never: {cmd: 'false'}}")
    assert set(made.work("clean/dvc.yaml")) == {
        "fetch",
        "clean/dvc.yaml:even",
        "clean/dvc.yaml:odd",
    }
    assert set(made.work()) == {
        *("fetch", "clean/dvc.yaml:even", "clean/dvc.yaml:odd", "model/dvc.yaml:fit", "report"),
    }
