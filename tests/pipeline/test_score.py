"""`graft score`: the live model over a folder of pictures, killed on the way and run again."""

from __future__ import annotations

import contextlib
import csv
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Api, Repository
from services import running, until

from flows import judging, promotion
from flows.registry import Store
from graft import params
from graft.evaluation.study import Study

# `graft` that halts in its fourth shard: however fast a machine is, a kill finds it at work.
HALTS = """
import signal
from graft import cli, scoring
score = scoring.Work.score
scoring.Work.score = lambda work, number: signal.pause() if number == 3 else score(work, number)
cli.main()
"""


@pytest.fixture
def live(project: Repository, server: str) -> Repository:
    """The project with its model live, and its runs on the real server."""
    store = Store(project.root)
    settings = params.load(project.root / params.FILE)
    decision, record = judging.judge(Study(project.root), store, None, settings)
    promotion.promote(store, store.register(decision.why, record), "because", ())
    return Repository(project.root, {**project.environment, "PREFECT_API_URL": server})


def test_a_killed_scoring_goes_on_and_every_picture_has_its_row(live: Repository, api: Api, tmp_path: Path) -> None:
    raw, out = live.root / "data/raw", tmp_path / "scores.csv"
    (raw / "test/moss/torn.png").write_bytes((raw / "test/moss/moss000.png").read_bytes()[:80])
    asked = ("score", str(raw), "--out", str(out), "--model", "prod", "--shard", "10")
    command = [sys.executable, "-c", HALTS, *asked]
    with subprocess.Popen(command, cwd=live.root, env=live.environment, stdout=subprocess.DEVNULL) as process:
        until(lambda: (tmp_path / "scores.csv.parts/000002.csv").exists(), live.root / "dvc.yaml")
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert not out.exists()
    said = live.graft(*asked)
    assert "361 pictures" in said
    assert "1 could not be read" in said
    assert "test/moss/torn.png: broken picture" in said
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert len(rows) == 361
    right = [row["label"] == row["file"].split("/")[1] for row in rows if not row["problem"]]
    assert sum(right) / len(right) > 0.7
    assert any("3 of 37 shards were done by a run that was interrupted" in line for line in api.logs("score raw"))
    assert {artifact["key"] for artifact in api.artifacts("score raw")} >= {"scored", "unreadable"}


def test_a_dask_cluster_does_the_shards(live: Repository, tmp_path: Path) -> None:
    command = [sys.executable, "-m"]
    known = tmp_path / "scheduler.json"
    scheduler = ["distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"]
    worker = ["distributed.cli.dask_worker", "--scheduler-file", str(known), "--nthreads", "1", "--no-dashboard"]
    with running(
        [*command, *scheduler, "--scheduler-file", str(known)], tmp_path, live.environment, tmp_path / "s.log"
    ):
        address = until(lambda: _address(known), tmp_path / "s.log")
        asked = ("score", "data/raw/test", "--out", "scores.csv", "--model", "prod", "--shard", "50", "--dask", address)
        with running([*command, *worker], tmp_path, live.environment, tmp_path / "w.log"):
            assert "180 pictures" in live.graft(*asked)
    rows = list(csv.DictReader((live.root / "scores.csv").read_text().splitlines()))
    assert sum(row["label"] == row["file"].split("/")[0] for row in rows) > 0.7 * 180
    out = live.graft(*asked, code=1)
    assert out.strip().startswith(f"graft: the Dask scheduler {address} does not answer")
    assert "Traceback" not in out


def _address(known: Path) -> str | None:
    """What a scheduler has written, once it has."""
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return str(json.loads(known.read_text())["address"])
    return None


def test_what_is_wrong_is_one_sentence(live: Repository, tmp_path: Path) -> None:
    out = live.graft("score", "nowhere", "--out", str(tmp_path / "scores.csv"), "--model", "prod", code=2)
    assert out.strip() == f"graft: there is no {live.root / 'nowhere'}; give a folder, zip or tar of pictures"
