"""The flow called as a flow: by a schedule, by another flow, from Python; and what Prefect knows of a death."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from test_processes import gone, wait_for

# A program that calls the flow whenever it is told to: a flow run each, in one long-lived process.
CALLER = """
import json, sys
from flows.pipeline import pipeline
for line in sys.stdin:
    try:
        print("summary", json.dumps(pipeline(repo=line.strip())), flush=True)
    except Exception as error:
        print("raised", type(error).__name__, error, flush=True)
"""


@pytest.fixture
def call(environment, server) -> Iterator[Callable[[Path], str]]:
    """Calls the flow on a repository, as another program would; what it returned or raised."""
    settings = {**environment, "PREFECT_API_URL": server}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([sys.executable, "-c", CALLER], env=settings, text=True, cwd="/", **pipes) as caller:

        def once(root: Path) -> str:
            print(root, file=caller.stdin, flush=True)
            return next(line.strip() for line in caller.stdout if line.startswith(("summary", "raised")))

        yield once


def test_the_flow_returns_a_small_summary_and_raises_one_sentence(repository, call):
    made = repository("chain")
    summary = json.loads(call(made.root).removeprefix("summary "))
    assert [(stage["name"], stage["state"]) for stage in summary["stages"]] == [
        (name, "Ran") for name in ("prepare", "extract", "count", "train", "evaluate")
    ]
    assert summary["metrics"]["metrics.json"]["lines"] == 6
    again = json.loads(call(made.root).removeprefix("summary "))
    assert {stage["state"] for stage in again["stages"]} == {"Unchanged"}
    made.edit("work/train.py", 'burn.ran("begin train")', 'raise SystemExit("no luck today")')
    assert call(made.root) == "raised GraftError train: no luck today"
    made.write("dvc.yaml", "stages: [")
    assert call(made.root).startswith("raised GraftError ")


def test_prefect_learns_that_a_run_was_killed(repository, api):
    made = repository("chain")
    made.edit("work/train.py", "for step in range(1, 7):", "for step in range(1, 10**9):")
    process = made.start("run")
    wait_for(lambda: "begin train" in made.ran(), process)
    wait_for(lambda: _running(api, made.root.name), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    wait_for(lambda: api.flow_run(made.root.name)["state"]["type"] == "CRASHED")


@pytest.mark.parametrize("when", ["before the flow run", "within it"])
def test_a_stages_process_does_not_outlive_its_killed_run(repository, api, when):
    made = repository("chain")
    made.write("dvc.yaml", json.dumps({"stages": {"hangs": {"cmd": "echo $$ > pid; exec sleep 1000"}}}))
    process = made.start("run")
    pid = int(wait_for(lambda: (made.root / "pid").exists() and (made.root / "pid").read_text(), process))
    wait_for(lambda: when == "before the flow run" or _known(api, made.root.name, "hangs"), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    wait_for(lambda: gone(pid))


def _known(api, name: str, stage: str) -> bool:
    try:
        return stage in api.task_runs(name)
    except ValueError:  # the flow run does not exist yet
        return False


def _running(api, name: str) -> bool:
    try:
        return api.flow_run(name)["state"]["type"] == "RUNNING"
    except ValueError:  # the flow run does not exist yet
        return False
