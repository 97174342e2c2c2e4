"""What changed since the last commit: metrics and parameters of the working tree against git's.

Read with git's own commands, so that any clone can answer, with or without data.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graft.differences import flatten

METRICS = "metrics.json"
PARAMS = "params.yaml"

Change = tuple[str, Any, Any]


@dataclass(frozen=True)
class Changes:
    """`commit` is where the tree stands (`-dirty` if edited), `against` what it is compared with, or None.

    `metrics` and `parameters` hold (dotted name, before, after); None stands for missing.
    """

    commit: str | None = None
    against: str | None = None
    subject: str = ""
    metrics: list[Change] = field(default_factory=list)
    parameters: list[Change] = field(default_factory=list)


def since_commit(root: Path) -> Changes:
    """Compare with HEAD, or, where the metrics are those of HEAD, with the commit before that changed them."""
    head = _git(root, "describe", "--always", "--dirty", "--abbrev=10", "--exclude=*")
    if head is None:
        return Changes()
    against = _previous(root)
    if against is None:
        return Changes(commit=head.strip())
    short = _git(root, "log", "-1", "--format=%h\t%s", against) or "\t"
    name, _, subject = short.strip().partition("\t")
    return Changes(
        commit=head.strip(),
        against=name,
        subject=subject,
        metrics=differences(_json_at(root, against), _json_here(root)),
        parameters=differences(_yaml(_git(root, "show", f"{against}:./{PARAMS}")), _yaml(_read(root / PARAMS))),
    )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """Dotted names whose values differ, in the order of `after`, then what is gone."""
    old, new = flatten(before), flatten(after)
    names = [*new, *(name for name in old if name not in new)]
    return [(name, old.get(name), new.get(name)) for name in names if old.get(name) != new.get(name)]


def _previous(root: Path) -> str | None:
    commits = (_git(root, "log", "-2", "--format=%H", "--", METRICS) or "").split()
    if not commits:
        return None
    if _json_at(root, "HEAD") != _json_here(root):
        return "HEAD"
    return commits[1] if len(commits) > 1 else None


def _json_at(root: Path, revision: str) -> dict[str, Any]:
    text = _git(root, "show", f"{revision}:./{METRICS}")
    return dict(json.loads(text)) if text else {}


def _json_here(root: Path) -> dict[str, Any]:
    text = _read(root / METRICS)
    return dict(json.loads(text)) if text else {}


def _yaml(text: str | None) -> dict[str, Any]:
    from ruamel.yaml import YAML

    return dict(YAML(typ="safe").load(text) or {}) if text else {}


def _read(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.is_file() else None


def _git(root: Path, *arguments: str) -> str | None:
    """What git says, or None where there is no git, no repository or no such thing in it."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, encoding="utf-8", check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout
