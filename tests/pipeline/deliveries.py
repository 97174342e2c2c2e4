"""A project that a night of retraining takes seconds on, and deliveries of pictures: good, worse, broken."""

from __future__ import annotations

import json
import os
import runpy
import shutil
import sys
import zlib
from pathlib import Path

import numpy as np
from conftest import REPOSITORIES, ROOT, Repository
from PIL import Image

from flows.project import open_repository
from graft import params

CLASSES = {"brick": (0.6, 0.4, 0.4), "moss": (0.4, 0.6, 0.4), "slate": (0.4, 0.4, 0.6)}
SPREAD = 0.07  # of a picture's colour: about 96 % can be told right
TRAINING, TESTING = 60, 60  # pictures a class
SETTINGS = (
    "data.source=folder",
    "evaluate.batch_size=256",
    "retrain.drift_images=100",
)


def project(root: Path, environment: dict[str, str], *settings: str, remote: bool = True) -> Repository:
    """The repository `nightly` under git and DVC, with a DVC remote beside it."""
    shutil.copytree(REPOSITORIES / "nightly", root)
    made = Repository(root, environment)
    made.write(".dvc/.gitignore", "/config.local\n/tmp\n/cache\n")
    place = "    remote = store\n['remote \"store\"']\n    url = ../../store\n" if remote else ""
    made.write(".dvc/config", f"[core]\n    analytics = false\n{place}")
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    made.write("params.yaml", params.override(text, [*SETTINGS, *settings]))
    made.run("git", "init", "-q", "-b", "main")
    made.run("git", "add", "-A")
    made.run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "start")
    return made


def deliver(
    repository: Repository,
    night: str,
    *,
    cast: float = 0.0,
    classes: int = 3,
    turn: int = 0,
    corrupt: float = 0.0,
    more: int = 0,
) -> None:
    """Replace `data/raw` by the pictures of `night`.

    Args:
        repository: where to.
        night: names the draw of the training pictures; test pictures are the same every night.
        cast: how far the first class's training pictures are off, towards the second class: 1 is all the way.
        classes: how many of the classes come.
        turn: every picture stands under the class so many further on.
        corrupt: share of the files that are cut short.
        more: training pictures of each class besides the night's own.
    """
    raw = repository.root / "data/raw"
    shutil.rmtree(raw, ignore_errors=True)
    names = list(CLASSES)
    for split, count, seed in (("train", TRAINING, night), ("test", TESTING, "test")):
        rng = np.random.default_rng(zlib.crc32(f"{split}{seed}".encode()))
        for index, name in enumerate(names[:classes]):
            colour = np.array(CLASSES[name])
            if index == 0 and split == "train":
                colour = colour + cast * (np.array(CLASSES[names[1]]) - colour)
            folder = raw / split / names[(index + turn) % classes]
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                _draw(folder / f"{name}{number:03d}.png", colour, rng)
                if rng.random() < corrupt:
                    content = (folder / f"{name}{number:03d}.png").read_bytes()
                    (folder / f"{name}{number:03d}.png").write_bytes(content[: len(content) // 2])
    rng = np.random.default_rng(more)
    for name in names[:classes]:
        for number in range(more):
            _draw(raw / "train" / name / f"more{number:03d}.png", np.array(CLASSES[name]), rng)


def bring_up_to_date(repository: Repository) -> None:
    """What `dvc repro` does, without its processes: the stages' own code, and DVC caches what they wrote."""
    if (child := os.fork()) == 0:
        status = 1
        try:
            os.chdir(repository.root)
            sys.path.insert(0, os.fspath(repository.root))
            for stage in ("prepare", "export", "evaluate"):
                runpy.run_module(f"work.{stage}", run_name="__main__")
            with open_repository(repository.root) as repo:
                repo.commit(force=True)
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0, "a stage failed"


def _draw(path: Path, colour: np.ndarray, rng: np.random.Generator) -> None:
    own = rng.normal(colour, SPREAD)
    pixels = rng.normal(own, 0.05, (32, 32, 3)).clip(0, 1)
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path, compress_level=1)


def retrain(repository: Repository, *arguments: str, code: int = 0) -> str:
    """`graft retrain`; its last line, which says the outcome."""
    out = repository.graft("retrain", *arguments, code=code)
    return out.strip().splitlines()[-1]


def tags(repository: Repository, pattern: str = "*") -> list[str]:
    return repository.run("git", "tag", "--list", pattern).split()


def live(repository: Repository) -> Path:
    """The file that servers load."""
    home = repository.root / "models/served/prod"
    return home / max((p.name for p in home.iterdir()), key=int) / "model.onnx"


def history(repository: Repository) -> list[dict[str, object]]:
    lines = (repository.root / "monitoring/retraining.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def python(code: str) -> list[str]:
    """A command that runs `code`."""
    return [os.fspath(sys.executable), "-c", code]
