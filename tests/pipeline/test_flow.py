"""The flow called as a flow: by a schedule, by another flow, from Python; and what Prefect knows of a death."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import psutil
from test_processes import wait_for

CALL = """
import json, sys
from flows.pipeline import pipeline
try:
    print("summary", json.dumps(pipeline(repo=sys.argv[1])))
except Exception as error:
    print("raised", type(error).__name__, error)
"""


def call(made, **options: object) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CALL, str(made.root)], env=made.environment, text=True, capture_output=True, cwd="/"
    )
    (line,) = [line for line in done.stdout.splitlines() if line.startswith(("summary", "raised"))]
    return line


def test_the_flow_returns_a_small_summary_and_raises_one_sentence(repository):
    made = repository("chain")
    summary = json.loads(call(made).removeprefix("summary "))
    assert [(stage["name"], stage["state"]) for stage in summary["stages"]] == [
        (name, "Ran") for name in ("prepare", "extract", "count", "train", "evaluate")
    ]
    assert summary["metrics"]["metrics.json"]["lines"] == 6
    again = json.loads(call(made).removeprefix("summary "))
    assert {stage["state"] for stage in again["stages"]} == {"Unchanged"}
    made.edit("work/train.py", 'burn.ran("begin train")', 'raise SystemExit("no luck today")')
    assert call(made) == "raised GraftError train: no luck today"
    made.write("dvc.yaml", "stages: [")
    assert call(made).startswith("raised GraftError ")


def test_prefect_learns_that_a_run_was_killed(repository, api):
    made = repository("chain")
    made.edit("work/train.py", "for step in range(1, 7):", "for step in range(1, 10**9):")
    process = made.start("run")
    wait_for(lambda: "begin train" in made.ran(), process)
    wait_for(lambda: _running(api, made.root.name), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    wait_for(lambda: api.flow_run(made.root.name)["state"]["type"] == "CRASHED")


def test_a_stages_process_does_not_outlive_its_killed_run(repository, api):
    made = repository("chain")
    made.write("dvc.yaml", json.dumps({"stages": {"hangs": {"cmd": "echo $$ > pid; exec tail -f /dev/null"}}}))
    process = made.start("run")
    wait_for(lambda: (made.root / "pid").exists() and (made.root / "pid").read_text().strip(), process)
    wait_for(lambda: _running(api, made.root.name), process)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=30)
    pid = int((made.root / "pid").read_text())
    wait_for(lambda: not psutil.pid_exists(pid))


def _running(api, name: str) -> bool:
    try:
        return api.flow_run(name)["state"]["type"] == "RUNNING"
    except ValueError:  # the flow run does not exist yet
        return False
