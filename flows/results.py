"""What a run brought: metrics and parameters against the last commit, pictures, and where things lie.

In: an open DVC repository and its stages. Out: plain tables and paths; nothing here knows what they mean.
"""

from __future__ import annotations

import base64
import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# What an artifact in Prefect may weigh; larger pictures are left to the report.
PICTURE_BYTES = 400_000
_IMAGES = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".svg": "image/svg+xml"}


@dataclass(frozen=True)
class Results:
    """What a run brought; differences are table rows against the last commit, empty without one."""

    metrics: dict[str, dict[str, Any]]
    metrics_diff: list[dict[str, Any]]
    params_diff: list[dict[str, Any]]
    pictures: dict[str, str]
    places: dict[str, Path]
    brief: str | None


def collect(repo: Any, stages: Iterable[Any]) -> Results:
    """All of it, from an open and locked `dvc.repo.Repo` and its stages."""
    from dvc.scm import NoSCM

    committed = not isinstance(repo.scm, NoSCM) and not repo.scm.no_commits
    found = places(repo, stages)
    return Results(
        metrics=metrics(repo),
        metrics_diff=against_last_commit(repo.metrics.diff(all=True)) if committed else [],
        params_diff=against_last_commit(repo.params.diff()) if committed else [],
        pictures=pictures(stages),
        places=found,
        brief=brief(Path(repo.root_dir), found),
    )


def metrics(repo: Any) -> dict[str, dict[str, Any]]:
    """The numbers at the top level of each metrics file: `{file: {name: value}}`."""
    shown = repo.metrics.show().get("", {}).get("data", {})
    found = {}
    for file, content in shown.items():
        values = content.get("data")
        if isinstance(values, dict):
            found[file] = {name: value for name, value in values.items() if isinstance(value, int | float | str)}
    return found


def against_last_commit(diff: dict[str, Any]) -> list[dict[str, Any]]:
    """DVC's diff of metrics or parameters as table rows."""
    return [
        {"file": file, "name": name, "last commit": change.get("old"), "now": change.get("new")}
        for file, changes in diff.get("diff", {}).items()
        for name, change in changes.items()
    ]


def places(repo: Any, stages: Iterable[Any]) -> dict[str, Path]:
    """Where the artifacts named in dvc.yaml lie, and the report: an output that is, or holds, a page."""
    found: dict[str, Path] = {}
    root = Path(repo.root_dir)
    for file, artifacts in repo.artifacts.read().items():
        for name, artifact in artifacts.items():
            found[name] = root / Path(file).parent / artifact.path
    for stage in stages:
        for out in stage.outs:
            path = Path(out.fs_path)
            page = path / "index.html" if path.is_dir() else path
            if page.suffix == ".html":
                found.setdefault("report", page)
    return {name: path.relative_to(root) for name, path in found.items() if path.exists()}


def brief(root: Path, found: dict[str, Path]) -> str | None:
    """The text of the artifact named `summary`, where dvc.yaml names one in Markdown."""
    path = root / found["summary"] if "summary" in found else None
    return path.read_text(encoding="utf-8") if path and path.suffix == ".md" else None


def pictures(stages: Iterable[Any]) -> dict[str, str]:
    """Plots as `data:` addresses by artifact key: images as they are, confusion matrices drawn."""
    found: dict[str, str] = {}
    for path, options in _plots(stages):
        if path.suffix in _IMAGES and path.is_file() and path.stat().st_size <= PICTURE_BYTES:
            found[_key(path)] = _address(path.read_bytes(), _IMAGES[path.suffix])
        elif "confusion" in str(options.get("template", "")) and (pairs := _pairs(path, options)):
            found[_key(path)] = _address(draw_confusion(pairs), "image/png")
    return found


def _plots(stages: Iterable[Any]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every plot of the stages' outputs and of the files' `plots:` sections, with its options."""
    files = {}
    for stage in stages:
        files[stage.path] = stage.dvcfile
        for out in stage.outs:
            if out.plot:
                options = out.plot if isinstance(out.plot, dict) else {}
                inside = sorted(Path(out.fs_path).iterdir()) if Path(out.fs_path).is_dir() else [Path(out.fs_path)]
                yield from ((path, options) for path in inside)
    for file, dvcfile in files.items():
        for entry in dvcfile.plots or []:
            for name, options in entry.items() if isinstance(entry, dict) else [(entry, {})]:
                options = options or {}
                path, options = _top_level(name, options)
                yield Path(file).parent / path, options


def _top_level(name: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The file and plain `x` and `y` fields of a top-level plot, whose `y` may be `{file: field}`."""
    y = options.get("y")
    if isinstance(y, dict) and len(y) == 1:
        path, field = next(iter(y.items()))
        x = options.get("x")
        x = next(iter(x.values())) if isinstance(x, dict) else x
        return path, {**options, "x": x, "y": field}
    return name, options


def _pairs(path: Path, options: dict[str, Any]) -> Counter[tuple[str, str]]:
    """How often each (actual, predicted) pair of labels occurs in a CSV, TSV or JSON table."""
    rows = _rows(path) if path.is_file() else []
    if not rows:
        return Counter()
    fields = list(rows[0])
    x, y = options.get("x") or fields[0], options.get("y") or fields[-1]
    return Counter((str(row[x]), str(row[y])) for row in rows if x in row and y in row)


def _rows(path: Path) -> list[dict[str, Any]]:
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".csv", ".tsv"):
        return list(csv.DictReader(io.StringIO(text), delimiter="\t" if path.suffix == ".tsv" else ","))
    if path.suffix == ".json":
        content = json.loads(text)
        if isinstance(content, dict):
            content = next((value for value in content.values() if isinstance(value, list)), [])
        return [row for row in content if isinstance(row, dict)]
    return []


def draw_confusion(pairs: Counter[tuple[str, str]]) -> bytes:
    """A confusion matrix as PNG: a row for each actual label, its shares as shades of blue."""
    from PIL import Image, ImageDraw, ImageFont

    labels = sorted({label for pair in pairs for label in pair})
    font = ImageFont.load_default(14)
    cell = 44 if len(labels) <= 20 else 24
    margin = 20 + round(max(font.getlength(label) for label in labels))
    size = margin + cell * len(labels) + 10
    image = Image.new("RGB", (size, size), "white")
    draw = ImageDraw.Draw(image)
    for row, actual in enumerate(labels):
        total = sum(pairs[actual, label] for label in labels) or 1
        top = margin + row * cell
        draw.text((margin - 8, top + cell / 2), actual, "black", font, anchor="rm")
        draw.text((top + cell / 2, margin - 8), actual[: max(3, cell // 8)], "black", font, anchor="mb")
        for column, predicted in enumerate(labels):
            count = pairs[actual, predicted]
            share = count / total
            left = margin + column * cell
            shade = (round(247 - 239 * share), round(251 - 203 * share), round(255 - 148 * share))
            draw.rectangle((left, top, left + cell - 1, top + cell - 1), shade)
            if count:
                ink = "white" if share > 0.5 else "black"
                draw.text((left + cell / 2, top + cell / 2), str(count), ink, font, anchor="mm")
    draw.text((margin, 4), "rows: actual, columns: predicted", "grey", font)
    out = io.BytesIO()
    image.save(out, "PNG", optimize=True)
    return out.getvalue()


def _address(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _key(path: Path) -> str:
    """A Prefect artifact's key: lower case letters, digits and dashes."""
    return "".join(letter if letter.isalnum() else "-" for letter in path.stem.lower()).strip("-")
