"""Where a model came from: revision, inputs, parameters, versions. The same inputs give the same words.

No clock and no host name: they would make two equal builds differ. The only date is the commit's own.
"""

from __future__ import annotations

import datetime
import hashlib
import platform
import subprocess
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from graft import params, weights

# Committing a lock file or a metric must not change the revision of the code that made them.
CODE = ("graft", "tasks", "dvc.yaml", "params.yaml")
PACKAGES = ("tensorflow", "keras", "onnx", "tf2onnx", "numpy")


def collect(settings: params.Params, data_fingerprint: str, lock: str) -> dict[str, Any]:
    """Everything needed to make the same model again."""
    return {
        "git": revision(CODE),
        "date": revision_date(CODE),
        "lock": lock,
        "data_fingerprint": data_fingerprint,
        "parameters": settings.model_dump(mode="json"),
        "weights": settings.backbone.weights,
        "licence": weights.licence(settings.backbone),
        "versions": {name: metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
    }


def revision(paths: Sequence[str]) -> str:
    """The last commit that touched `paths`, `+changes` where the working tree differs, `none` without git."""
    commit = _git("log", "-1", "--format=%H", "--", *paths)
    if not commit:
        return "none"
    return f"{commit}+changes" if _git("status", "--porcelain", "--", *paths) else commit


def revision_date(paths: Sequence[str]) -> str:
    """When the last commit that touched `paths` was made, ISO 8601 in UTC; `none` without git."""
    seconds = _git("log", "-1", "--format=%ct", "--", *paths)
    if not seconds:
        return "none"
    return datetime.datetime.fromtimestamp(int(seconds), datetime.UTC).isoformat()


def lock_hash(path: Path, stages: Sequence[str]) -> str:
    """SHA-256 of what `dvc.lock` records of `stages`; empty where there is no lock file yet."""
    if not path.is_file():
        return ""
    from ruamel.yaml import YAML

    recorded = YAML(typ="safe").load(path.read_text(encoding="utf-8"))["stages"]
    known = {name: recorded[name] for name in stages if name in recorded}
    # Key order may differ between tools that write the file: the content counts.
    return hashlib.sha256(repr(_sorted(known)).encode()).hexdigest()


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return [(key, _sorted(value[key])) for key in sorted(value)]
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
