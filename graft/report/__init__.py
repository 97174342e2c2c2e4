"""The report: one self-contained page made from what `evaluate` found, and a short summary of it.

In: `data/evaluation/` and, for what only this machine and moment know, git and `report/speed.json`.
Out: `report/index.html`, which opens without a network.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from graft.errors import InputError
from graft.evaluation.stage import FORMAT
from graft.report.changes import since_commit
from graft.report.page import render
from graft.report.summary import markdown

__all__ = ["PAGE", "markdown", "read_record", "write"]

FOLDER = Path("data/evaluation")
PAGE = Path("report/index.html")
SPEED = Path("report/speed.json")


def read_record(root: Path) -> dict[str, Any]:
    """What the last evaluation of the project in `root` found.

    Raises:
        InputError: nothing was evaluated yet, or by another version of Graft.
    """
    path = root / FOLDER / "evaluation.json"
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise InputError(f"there is no evaluation in {FOLDER}; run `graft run` first") from None
    if record.get("format") != FORMAT:
        raise InputError(f"{FOLDER} is of another version; run `graft run` again. Received: {record.get('format')}")
    return record


def write(root: Path) -> Path:
    """Make the page of the project in `root` and return where it lies.

    Raises:
        InputError: nothing was evaluated yet.
    """
    record = read_record(root)
    sheet = (root / FOLDER / "pictures.webp").read_bytes()
    speed_file = root / SPEED
    speed = json.loads(speed_file.read_text(encoding="utf-8")) if speed_file.is_file() else None
    if speed and speed["files"] != record["model"]["files"]:
        speed = None  # measured on other files: no figure is better than a wrong one
    page = root / PAGE
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text(render(record, sheet, since_commit(root), speed), encoding="utf-8")
    return page
