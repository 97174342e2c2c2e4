"""`graft run` leaves exactly what `dvc repro` leaves, on repositories it has never seen."""

from __future__ import annotations

import pytest

REPOSITORIES = ["chain", "sweep", "folders", "odd"]
# Stages that DVC runs every time, whatever happened before.
ALWAYS = {"odd": {"clock", "hello"}}


@pytest.mark.parametrize("name", REPOSITORIES)
def test_a_run_equals_dvc_repro_in_process_and_isolated(repository, name):
    by_dvc = repository(name, "dvc")
    by_dvc.dvc("repro")
    for mode in ([], ["--isolate"]):
        by_graft = repository(name, "-".join(["graft", *mode]))
        out = by_graft.graft("run", *mode)
        assert set(by_graft.states(out).values()) == {"Ran"}
        assert by_graft.lock() == by_dvc.lock()
        again = by_graft.dvc("repro")
        rerun = {line.split("'")[1] for line in again.splitlines() if line.startswith("Running stage")}
        assert rerun == ALWAYS.get(name, set())


@pytest.mark.parametrize("name", REPOSITORIES)
def test_after_dvc_repro_there_is_nothing_to_do(repository, name):
    made = repository(name)
    made.dvc("repro")
    states = made.states(made.graft("run"))
    assert {stage for stage, state in states.items() if state != "Unchanged"} == ALWAYS.get(name, set())


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
    states = made.states(made.graft("run", "pair@train-upper", "score"))
    assert set(states) == {"split@train", "pair@train-upper", "score@short", "score@long"}


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
    assert set(made.states(made.graft("run", "clean/dvc.yaml"))) == {
        "fetch",
        "clean/dvc.yaml:even",
        "clean/dvc.yaml:odd",
    }
    assert set(made.states(made.graft("run"))) == {
        *("fetch", "clean/dvc.yaml:even", "clean/dvc.yaml:odd", "model/dvc.yaml:fit", "report"),
    }
