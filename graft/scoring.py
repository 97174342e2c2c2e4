"""Every picture of a folder, zip or tar through one exported file into one CSV, shard by shard.

In: a `Job`. Out: `OUT.parts/` while the work lasts, with the plan, the model and a part for each finished shard; in
the end the CSV in its place. A part appears whole or not at all: a killed run goes on at the shard it was in.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np

from graft.datasets import files
from graft.datasets.files import Files
from graft.errors import GraftError, InputError
from graft.images import Pixels, UnreadableImage, decode, resize
from graft.inference import Model, Probabilities, open_model

SHARD = 500  # pictures: seconds of a small network, minutes of a large one on a CPU
BATCH = 32
HEADER = ("file", "label", "probability", "problem")
PLAN, MODEL, UNPACKED = "plan.json", "model.onnx", "unpacked"  # in the folder of parts
LISTED = 50  # unreadable pictures named in a summary; the CSV names all


@dataclass(frozen=True)
class Job:
    """What is scored with what: plain values, so that another process or machine can work on a shard.

    `source` is a folder, zip or tar; `model` an exported file; `threads` 0 takes every core; with `labels_only` the
    classes' own probabilities are left out; `shard` is the pictures that a kill can lose.
    """

    source: Path
    out: Path
    model: Path
    provider: str = "auto"
    threads: int = 0
    labels_only: bool = False
    shard: int = SHARD

    @property
    def parts(self) -> Path:
        """Where the work lies until it is done."""
        return self.out.with_name(f"{self.out.name}.parts")


@dataclass
class Summary:
    """What a finished CSV holds; `problems` are the first of the unreadable pictures with their reasons."""

    pictures: int = 0
    unreadable: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    problems: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class Work:
    """A job that is laid out. `ignored` files are no pictures; `stale` says that an earlier run's parts did not fit."""

    job: Job
    identity: str
    names: Sequence[str]
    files: Files
    ignored: int = 0
    stale: bool = False

    @cached_property
    def model(self) -> Model:
        """The exported file as it was when the work was laid out."""
        copy = self.job.parts / MODEL
        try:
            return open_model(copy, self.job.provider, self.job.threads)
        except GraftError as error:
            raise type(error)(str(error).replace(str(copy), str(self.job.model))) from error

    @property
    def shards(self) -> range:
        """The numbers of all shards."""
        return range(-(-len(self.names) // self.job.shard))

    @property
    def left(self) -> list[int]:
        """The shards that are not done."""
        return [number for number in self.shards if not self.part(number).is_file()]

    @property
    def shared(self) -> Job:
        """The job for `joined`: a tar is read where it was unpacked."""
        unpacked = self.job.parts / UNPACKED
        return replace(self.job, source=unpacked) if unpacked.is_dir() else self.job

    def part(self, number: int) -> Path:
        """The rows of one shard."""
        return self.job.parts / f"{number:06d}.csv"

    def score(self, number: int, advance: Callable[[int], object] = lambda pictures: None) -> int:
        """Write the part of one shard and return the number of its pictures; `advance` is told of each batch.

        Raises:
            GraftError: the model fails, or the source is gone.
        """
        names = self.names[number * self.job.shard : (number + 1) * self.job.shard]
        partial = self.part(number).with_suffix(".partial")
        with _text(partial, "w") as file:
            table = csv.writer(file)
            for rows in self._rows(names):
                table.writerows(rows)
                advance(len(rows))
        if not self.job.source.exists():
            raise GraftError(f"{self.job.source} is gone; finished shards are kept: run again when it is back")
        partial.replace(self.part(number))
        return len(names)

    def _rows(self, names: Sequence[str]) -> Iterator[list[list[Any]]]:
        """The rows of each batch; the next one is decoded while the model is at work on this one."""
        size = self.model.image_size[0]
        with ThreadPoolExecutor(self.job.threads or len(os.sched_getaffinity(0))) as pool:
            ahead: Iterator[Pixels | str] = iter(())
            before: Sequence[str] = ()
            for start in range(0, len(names) + BATCH, BATCH):
                batch = names[start : start + BATCH]
                ready, ahead = list(ahead), pool.map(lambda name: self._pixels(name, size), batch)
                if before:
                    yield self._answers(before, ready)
                before = batch

    def _pixels(self, name: str, size: int) -> Pixels | str:
        """The picture as the model wants it, or why there is none."""
        try:
            return resize(decode(self.files.read(name)), size)
        except UnreadableImage as error:
            return str(error)
        except OSError as error:
            return f"cannot be read ({error.strerror})"

    def _answers(self, names: Sequence[str], pictures: Sequence[Pixels | str]) -> list[list[Any]]:
        good = [picture for picture in pictures if not isinstance(picture, str)]
        answers: Iterator[Probabilities] = iter(self.model.predict(np.stack(good)) if good else [])
        rows = []
        for name, picture in zip(names, pictures, strict=True):
            if isinstance(picture, str):
                rows.append([name, "", "", picture])
                continue
            shares = next(answers)
            best = int(shares.argmax())
            own = [] if self.job.labels_only else [f"{share:.6f}" for share in shares]
            rows.append([name, self.model.classes[best], f"{shares[best]:.6f}", "", *own])
        return rows

    def merge(self) -> Summary:
        """Put the parts together as the CSV, then remove them."""
        summary = Summary()
        partial = self.job.parts / "all.partial"
        with _text(partial, "w") as file:
            table = csv.writer(file)
            own = [] if self.job.labels_only else [f"probability of {name}" for name in self.model.classes]
            table.writerow([*HEADER, *own])
            for number in self.shards:
                with _text(self.part(number)) as part:
                    for row in csv.reader(part):
                        table.writerow(row)
                        _count(summary, *row[:4])
        partial.replace(self.job.out)
        (self.job.parts / PLAN).unlink()  # from here on the parts are nobody's
        shutil.rmtree(self.job.parts)
        return summary


@contextlib.contextmanager
def begun(job: Job) -> Iterator[Work]:
    """Lay out the work, on what an earlier run left where pictures, model and options are the same.

    Raises:
        InputError: no such source, no picture in it, no such model, or a place that cannot be written.
    """
    _check(job)
    with contextlib.ExitStack() as stack:
        shutil.rmtree(job.parts / UNPACKED, ignore_errors=True)  # of a run that was killed
        found = files.open_files(job.source, job.parts / UNPACKED, stack)
        if found is None:
            raise InputError(f"a folder, zip or tar of pictures is wanted. Received: {job.source}")
        names = files.pictures(found.names)
        if not names:
            raise InputError(f"no pictures found in {job.source}, only {len(found.names)} other files")
        model = job.model.read_bytes()  # once: a night may export another one meanwhile
        identity = _identity(job, names, model)
        stale = _lay_out(job, identity, names, model)
        yield Work(job, identity, names, found, len(found.names) - len(names), stale)


def joined(job: Job, identity: str, number: int) -> int:
    """`Work.score` of a `Work.shared` job, in another process or on another machine that sees the same folders.

    Raises:
        GraftError: as `Work.score`.
    """
    return _joined(job, identity).score(number)


@lru_cache(maxsize=1)
def _joined(job: Job, identity: str) -> Work:
    names = json.loads((job.parts / PLAN).read_text(encoding="utf-8"))["names"]
    found = files.open_files(job.source, job.parts / UNPACKED, contextlib.ExitStack())
    if found is None:
        raise GraftError(f"{job.source} is not there on this machine; all workers must see the same folders")
    return Work(job, identity, names, found)


def _check(job: Job) -> None:
    if not job.source.exists():
        raise InputError(f"there is no {job.source}; give a folder, zip or tar of pictures")
    if not job.model.is_file():
        raise InputError(f"there is no model at {job.model}; `graft run` makes one")
    if job.out.is_dir():
        raise InputError(f"the result is one CSV file. Received the folder {job.out}")
    if not job.out.parent.is_dir():
        raise InputError(f"there is no folder {job.out.parent} to write {job.out.name} to; make it first")


def _identity(job: Job, names: Sequence[str], model: bytes) -> str:
    """What must be equal for the parts of an earlier run to count."""
    digest = hashlib.sha256(model)
    digest.update(json.dumps([job.provider, job.labels_only, job.shard]).encode())
    marked = [job.source / name for name in names] if job.source.is_dir() else [job.source]
    for path in marked:
        facts = path.stat()
        digest.update(f"{path}\0{facts.st_size}\0{facts.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _lay_out(job: Job, identity: str, names: Sequence[str], model: bytes) -> bool:
    """Write the plan, unless it is there; whether another one was thrown away."""
    plan = job.parts / PLAN
    with contextlib.suppress(OSError, ValueError, KeyError):
        if json.loads(plan.read_text(encoding="utf-8"))["identity"] == identity:
            return False
    job.parts.mkdir(exist_ok=True)
    stale = plan.exists()
    plan.unlink(missing_ok=True)
    for part in job.parts.glob("*.csv"):
        part.unlink()
    (job.parts / MODEL).write_bytes(model)
    partial = plan.with_suffix(".partial")
    partial.write_text(json.dumps({"identity": identity, "names": names}), encoding="utf-8")
    partial.replace(plan)
    return stale


def _count(summary: Summary, name: str, label: str, _probability: str, problem: str) -> None:
    summary.pictures += 1
    if not problem:
        summary.labels[label] += 1
        return
    summary.unreadable += 1
    if len(summary.problems) < LISTED:
        summary.problems.append((name, problem))


def _text(path: Path, mode: str = "r") -> IO[str]:
    """A CSV file. A name from a foreign file system need not be text: it is written so that it can be told."""
    return path.open(mode, encoding="utf-8", errors="backslashreplace", newline="")
