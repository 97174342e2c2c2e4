"""`kill -9` at thirty points of a run: the next run completes and does nothing again that was finished."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys

import pytest
from test_processes import wait_for

POINTS = 30
# `graft` that is killed where DVC has made a folder of its run-cache and not yet written the entry.
DIES = """
import os, signal
from dvc.utils import serialize
from graft import cli
serialize.dump_yaml = lambda *given: os.kill(os.getpid(), signal.SIGKILL)
cli.main()
"""
LATER = 0.03  # seconds: at what was just begun or ended, a little after, and later still


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kill_at_thirty_points_loses_nothing(repository):
    undisturbed = repository("chain", "undisturbed")
    undisturbed.graft("run")
    steps = len(undisturbed.ran())  # each stage begins and ends
    wanted, outputs = undisturbed.lock(), _outputs(undisturbed)
    killed_while = set()
    made = repository("chain", "killed")
    for point in range(POINTS):
        _forget(made)
        process = made.start("run")
        step, later = point % steps + 1, point // steps * LATER
        wait_for(lambda step=step: len(made.ran()) >= step, process)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(later)
        process.kill()
        process.communicate(timeout=60)
        finished = set(made.lock().get("dvc.lock", {}).get("stages", {}))
        killed_while.add(len(finished))
        already = made.ran()
        # Every tenth time the whole command goes on; else its worker alone, to spare Prefect's start.
        made.graft("run") if point % 10 == 0 else made.work()
        again = {line.split()[1] for line in made.ran()[len(already) :]}
        assert not again & finished, f"point {point}: {again & finished} done again"
        assert made.lock() == wanted, f"point {point}"
        assert _outputs(made) == outputs, f"point {point}"
    assert "up to date" in made.dvc("status")
    # The points must have fallen into different stages, or the test shows nothing.
    assert len(killed_while) >= 4, killed_while


def _outputs(made) -> dict[str, bytes]:
    """What the stages left, file by file."""
    files = [made.root / name for name in ("count.txt", "model.txt", "metrics.json", "confusion.csv")]
    files += [*made.root.glob("prepared/*"), *made.root.glob("features/*")]
    return {str(file.relative_to(made.root)): file.read_bytes() for file in files}


def _forget(made) -> None:
    """The repository as it was before its first run."""
    made.run("git", "clean", "-fdxq", "--exclude", ".dvc/tmp")
    shutil.rmtree(made.root / ".dvc/cache", ignore_errors=True)


def test_a_run_killed_while_dvc_wrote_its_run_cache_goes_on(repository):
    made = repository("chain")
    command = [sys.executable, "-c", DIES, "run"]
    died = subprocess.run(command, cwd=made.root, env=made.environment, capture_output=True, timeout=120, check=False)
    assert died.returncode == -signal.SIGKILL
    folders = list((made.root / ".dvc/cache/runs").glob("*/*"))
    assert [list(folder.iterdir()) for folder in folders] == [[]]
    assert set(made.work().values()) == {"Ran"}
