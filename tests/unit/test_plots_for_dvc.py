"""DVC's own commands read the metrics and draw the plots that an evaluation leaves."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def repository(evaluated: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluated project with this project's own plots section, its metrics committed, then changed."""
    root = tmp_path_factory.mktemp("plotted")
    shutil.copy(evaluated / "metrics.json", root)
    shutil.copytree(evaluated / "plots", root / "plots")
    whole = YAML(typ="safe").load((PROJECT / "dvc.yaml").read_text(encoding="utf-8"))
    with (root / "dvc.yaml").open("w", encoding="utf-8") as file:
        YAML().dump({"metrics": ["metrics.json"], "plots": whole["plots"]}, file)
    for command in (("git", "init", "-q"), (sys.executable, "-m", "dvc", "init", "-q"), ("git", "add", "-A")):
        subprocess.run(command, cwd=root, check=True, capture_output=True)
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    subprocess.run(["git", *identity, "commit", "-qm", "Evaluated"], cwd=root, check=True)
    return root


def dvc(root: Path, *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "dvc", *arguments], cwd=root, capture_output=True, text=True, check=True
    )
    return json.loads(done.stdout)


def test_dvc_draws_every_plot_with_its_templates(repository: Path) -> None:
    drawn = dvc(repository, "plots", "show", "--json")
    assert drawn.get("errors", []) == []
    plots = drawn.get("data", drawn)
    wanted = {
        "Confusion",
        "Head, accuracy",
        "Fine-tuning, accuracy",
        "Head, loss",
        "Calibration",
        "ROC, mean of classes",
        "F1 by class",
        "Robustness, accuracy by strength",
    }
    assert wanted <= set(plots)
    # A filled template holds its data as rows; 397 test pictures are 397 rows of the confusion matrix.
    content = plots["Confusion"][0]["content"]
    filled = json.loads(content) if isinstance(content, str) else content
    assert len(filled["data"]["values"]) == 397
    assert {"actual", "predicted"} <= set(filled["data"]["values"][0])


def test_dvc_tells_what_changed_in_the_metrics(repository: Path) -> None:
    path = repository / "metrics.json"
    before = path.read_text(encoding="utf-8")
    found = json.loads(before)
    path.write_text(json.dumps({**found, "accuracy": found["accuracy"] - 0.1}), encoding="utf-8")
    try:
        changes = dvc(repository, "metrics", "diff", "--json")
    finally:
        path.write_text(before, encoding="utf-8")
    assert changes["metrics.json"]["accuracy"]["diff"] == pytest.approx(-0.1)
    assert set(changes["metrics.json"]) == {"accuracy"}
