"""Splitting, decoding, checking and writing a data set: the work of the stage `prepare`.

In: `params.Params`. Out, in one folder: `{train,validation,test}.{images,labels}-*.npy` shards (uint8
N×S×S×3 RGB, int64), `{split}.names.txt` (one source name a row) and `dataset.json`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from graft import images, params, progress
from graft.datasets.sources import Source, open_source
from graft.errors import InputError
from graft.images import Pixels, UnreadableImage
from graft.shards import ShardedArray, ShardWriter

SPLITS = ("train", "validation", "test")
DESCRIPTION = "dataset.json"

# Test first: what it holds must be known before training pictures are accepted.
ORDER = ("test", "validation", "train")
CHUNK = 512


@dataclass
class Findings:
    """What was noticed on the way and is told in `dataset.json`."""

    quarantined: list[dict[str, str]] = field(default_factory=list)
    duplicates: list[dict[str, str]] = field(default_factory=list)
    seen: dict[bytes, tuple[str, str]] = field(default_factory=dict)


def prepare(settings: params.Params, folder: Path) -> dict[str, Any]:
    """Write the data set into `folder` and return what `dataset.json` says.

    Raises:
        InputError: the source is unusable, a class too small, or too many files are unreadable.
    """
    data = settings.data
    with open_source(data) as source:
        splits = assign_splits(source, data, settings.seed)
        findings = Findings()
        summaries = {}
        meter = progress.Meter("prepare", sum(map(len, splits.values())))
        for split in ORDER:
            summaries[split] = _write_split(source, split, splits[split], data.image_size, folder, findings, meter)
        _check_findings(source, summaries, findings, data)
        description: dict[str, Any] = {
            "format": 1,
            "source": data.source,
            "classes": source.classes,
            "image_size": data.image_size,
            "splits": {split: summaries[split] for split in SPLITS},
            "quarantined": findings.quarantined,
            "duplicates": findings.duplicates,
            "ignored": source.ignored,
        }
    description["fingerprint"] = _fingerprint(description)
    (folder / DESCRIPTION).write_text(json.dumps(description, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return description


def describe(folder: Path) -> dict[str, Any]:
    """What `dataset.json` in a prepared `folder` says."""
    description: dict[str, Any] = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    return description


def load_split(folder: Path, split: str) -> tuple[ShardedArray, ShardedArray]:
    """Images (N×S×S×3 uint8) and labels (N int64) of one split."""
    return ShardedArray(folder, f"{split}.images"), ShardedArray(folder, f"{split}.labels")


def assign_splits(source: Source, data: params.Data, seed: int) -> dict[str, list[int]]:
    """Item indices of each split, stratified by class; splits that the source gives are kept.

    The order within a class is that of hashed names, so that a picture that is added moves hardly any other: what
    a model was tested on yesterday is not trained on tomorrow.

    Raises:
        InputError: a class has too few pictures for the split.
    """
    has_test = any(item.split == "test" for item in source.items)
    has_validation = any(item.split == "validation" for item in source.items)
    splits: dict[str, list[int]] = {split: [] for split in SPLITS}
    by_class: list[dict[str | None, list[int]]] = [{} for _ in source.classes]
    for i, item in enumerate(source.items):
        by_class[item.label].setdefault(item.split, []).append(i)
    for name, given in zip(source.classes, by_class, strict=True):
        rest = sorted(given.get(None, []) + given.get("train", []), key=lambda i: _place(source.items[i].name, seed))
        test, rest = (given.get("test", []), rest) if has_test else _draw(rest, data.test_fraction)
        if data.limit_per_class is not None:
            rest = rest[: data.limit_per_class]
        validation, train = (
            (given.get("validation", []), rest) if has_validation else _draw(rest, data.validation_fraction)
        )
        if not (test and validation and train):
            raise InputError(
                f"class {name} has too few pictures for training, validation and test; add some or remove the class. "
                f"Received: {len(train)}, {len(validation)} and {len(test)}"
            )
        for split, chosen in (("train", train), ("validation", validation), ("test", test)):
            splits[split] += chosen
    return {split: sorted(chosen) for split, chosen in splits.items()}


def _place(name: str, seed: int) -> bytes:
    return hashlib.blake2b(f"{seed}/{name}".encode(errors="surrogateescape"), digest_size=8).digest()


def _draw(shuffled: list[int], fraction: float) -> tuple[list[int], list[int]]:
    count = max(1, round(len(shuffled) * fraction))
    return shuffled[:count], shuffled[count:]


def _write_split(
    source: Source,
    split: str,
    chosen: list[int],
    size: int,
    folder: Path,
    findings: Findings,
    meter: progress.Meter,
) -> dict[str, Any]:
    labels: list[int] = []
    names: list[str] = []
    content = hashlib.sha256()
    with ShardWriter(folder, f"{split}.images", (size, size, 3), np.uint8) as writer:
        for index, pixels in _decoded(source, chosen, size):
            meter.advance(1)
            name = source.items[index].name
            if isinstance(pixels, UnreadableImage):
                findings.quarantined.append({"file": name, "reason": str(pixels)})
            elif not _duplicate(pixels, split, name, findings):
                writer.append(pixels[None])
                content.update(pixels.tobytes())
                labels.append(source.items[index].label)
                names.append(name)
    with ShardWriter(folder, f"{split}.labels", (), np.int64) as writer:
        writer.append(np.array(labels, np.int64))
    (folder / f"{split}.names.txt").write_text("".join(f"{_one_line(n)}\n" for n in names), encoding="utf-8")
    counts = Counter(labels)
    return {
        "images": len(labels),
        "per_class": [counts[i] for i in range(len(source.classes))],
        "sha256": content.hexdigest(),
    }


def _decoded(source: Source, chosen: list[int], size: int) -> Iterator[tuple[int, Pixels | UnreadableImage]]:
    """Decode in a few threads (Pillow releases the GIL), in order, a bounded number of pictures ahead."""

    def load(index: int) -> tuple[int, Pixels | UnreadableImage]:
        try:
            return index, images.resize(source.read(index), size)
        except UnreadableImage as error:
            return index, error

    remaining = iter(chosen)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        while chunk := list(islice(remaining, CHUNK)):
            yield from pool.map(load, chunk, chunksize=32)


def _duplicate(pixels: Pixels, split: str, name: str, findings: Findings) -> bool:
    """Whether the same pixels already stand in a split that must stay unseen by this one.

    Repeats inside one split are kept: they bias nothing that is measured.
    """
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16).digest()
    first_split, first_name = findings.seen.setdefault(digest, (split, name))
    if first_split == split:
        return False
    findings.duplicates.append({"kept": first_name, "kept_split": first_split, "removed": name, "removed_split": split})
    return True


def _check_findings(source: Source, summaries: dict[str, Any], findings: Findings, data: params.Data) -> None:
    bad, total = len(findings.quarantined), sum(s["images"] for s in summaries.values())
    if bad > data.max_bad_fraction * (bad + total):
        first = findings.quarantined[0]
        raise InputError(
            f"{bad} of {bad + total} pictures are unreadable, more than data.max_bad_fraction "
            f"({data.max_bad_fraction:g}) allows; first {first['file']}: {first['reason']}"
        )
    for split, summary in summaries.items():
        empty = [name for name, n in zip(source.classes, summary["per_class"], strict=True) if n == 0]
        if empty:
            raise InputError(
                f"class {empty[0]} has no readable picture left for {split}; add pictures or remove the class"
            )


def _fingerprint(description: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


def _one_line(name: str) -> str:
    return name.replace("\n", "\\n").replace("\r", "\\r")
