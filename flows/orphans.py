"""Processes that a killed run left behind: found by a mark in their environment, and ended.

A stage's process must not go on writing outputs after its run died by `kill -9`.
"""

from __future__ import annotations

import os
from pathlib import Path

MARK = "GRAFT_STAGE_OF"


def mark(root: Path, run: str = "") -> str:
    """The value of the mark for the stages of one run of the repository at `root`; without `run`, of any."""
    return f"{os.fspath(root)}:{run}"


def sweep(marked: str) -> int:
    """Kill every process whose mark begins with `marked`; return how many there were.

    Of a whole repository only for the holder of its run lock, before it starts a stage.
    """
    import psutil

    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK, "").startswith(marked):
                process.kill()
                found.append(process)
        except psutil.Error:  # gone meanwhile, or another user's
            continue
    psutil.wait_procs(found, timeout=5)
    return len(found)
