"""`kill -9` at thirty points of a run: the next run completes and does nothing again that was finished."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time

import pytest

POINTS = 30


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_kill_at_thirty_points_loses_nothing(repository):
    undisturbed = repository("chain", "undisturbed")
    begin = time.monotonic()
    first = _first_line(process := undisturbed.start("run")) - begin
    process.communicate(timeout=300)
    seconds = time.monotonic() - begin
    wanted, outputs = undisturbed.lock(), _outputs(undisturbed)
    killed_while = set()
    made = repository("chain", "killed")
    for point in range(POINTS):
        _forget(made)
        process = made.start("run")
        _first_line(process)
        share = (point + 0.5) / POINTS
        try:
            process.wait(share * (seconds - first) * 0.8)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
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


def _first_line(process: subprocess.Popen[str]) -> float:
    """When the run began to work: its first line of output."""
    assert process.stdout is not None
    process.stdout.readline()
    return time.monotonic()


def _outputs(made) -> dict[str, bytes]:
    """What the stages left, file by file."""
    files = [made.root / name for name in ("count.txt", "model.txt", "metrics.json", "confusion.csv")]
    files += [*made.root.glob("prepared/*"), *made.root.glob("features/*")]
    return {str(file.relative_to(made.root)): file.read_bytes() for file in files}


def _forget(made) -> None:
    """The repository as it was before its first run."""
    made.run("git", "clean", "-fdxq", "--exclude", ".dvc/tmp")
    shutil.rmtree(made.root / ".dvc/cache", ignore_errors=True)
