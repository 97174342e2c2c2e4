"""The model registry's words: which git tag means what, and what a tag's message records.

Tags follow GTO's convention, so that `gto show` and `dvc artifacts get` read them too: `model@v1.2.0` is a
version, `model#prod#7` says that the stage `prod` moved, for the seventh time any stage did, to the version whose
commit it points at. In: tags as plain records. Out: `Registry`, a frozen view of them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from graft.errors import InputError, nearest

ARTIFACT = "model"  # the name in the section `artifacts` of dvc.yaml
PROD = "prod"
FIRST = "v1.0.0"

_VERSION = re.compile(r"(?P<artifact>[^@#]+)@v(?P<numbers>\d+\.\d+\.\d+)")
_ASSIGNMENT = re.compile(r"(?P<artifact>[^@#]+)#(?P<stage>[^@#!]+)#(?P<number>\d+)")


@dataclass(frozen=True)
class Tag:
    """One annotated git tag: the commit it points at, when it was made (ISO 8601), its message."""

    name: str
    commit: str
    created: str
    message: str


@dataclass(frozen=True)
class Version:
    """One registered model; `record` is what was known of it then, empty for tags made elsewhere."""

    name: str
    commit: str
    created: str
    record: Mapping[str, Any] = field(default_factory=dict)

    @property
    def numbers(self) -> tuple[int, ...]:
        """For sorting: v1.10.0 is newer than v1.9.0."""
        return tuple(int(part) for part in self.name.removeprefix("v").split("."))


@dataclass(frozen=True)
class Assignment:
    """A stage moved to `version`; `number` grows with every move, and names the folder that servers load."""

    number: int
    stage: str
    version: str
    created: str


@dataclass(frozen=True)
class Registry:
    """Versions from old to new, and every move of a stage in its order."""

    versions: tuple[Version, ...] = ()
    assignments: tuple[Assignment, ...] = ()

    def current(self, stage: str = PROD) -> Assignment | None:
        """Where `stage` is now."""
        return next((move for move in reversed(self.assignments) if move.stage == stage), None)

    def previous(self, stage: str = PROD) -> str | None:
        """The version to roll back to: what the stage was before the version it is now.

        A second rollback goes one further back, not forth again: moves that were undone do not count.
        """
        path: list[str] = []
        for move in self.assignments:
            if move.stage != stage:
                continue
            if move.version in path:
                del path[path.index(move.version) + 1 :]
            else:
                path.append(move.version)
        return path[-2] if len(path) > 1 else None

    def version(self, name: str) -> Version:
        """The version of that name; `1.2.0` and `v1.2.0` are the same.

        Raises:
            InputError: there is none.
        """
        wanted = name if name.startswith("v") else f"v{name}"
        for version in self.versions:
            if version.name == wanted:
                return version
        if not self.versions:
            raise InputError(f"no version is registered yet; `graft retrain` makes one. Received: {name}")
        raise InputError(f"there is no version {name}; {nearest(wanted, [v.name for v in self.versions])}")

    def stages(self, version: str) -> list[str]:
        """The stages that are at `version` now."""
        found = {move.stage: move.version for move in self.assignments}
        return [stage for stage, name in found.items() if name == version]

    def with_model(self, fingerprint: str) -> Version | None:
        """The newest version of this very model, if it is registered."""
        return next((v for v in reversed(self.versions) if v.record.get("model") == fingerprint), None)

    @property
    def next_version(self) -> str:
        """A minor step: the pipeline's inputs and outputs stay as they were."""
        if not self.versions:
            return FIRST
        major, minor, _ = self.versions[-1].numbers
        return f"v{major}.{minor + 1}.0"

    @property
    def next_number(self) -> int:
        """Of the next assignment."""
        return max((move.number for move in self.assignments), default=0) + 1


def read(tags: Iterable[Tag], artifact: str = ARTIFACT) -> Registry:
    """The registry that `tags` make; others are left alone, and so is a stage's move to no known version."""
    versions: list[Version] = []
    moves: list[tuple[int, str, Tag]] = []
    for tag in tags:
        if (match := _VERSION.fullmatch(tag.name)) and match["artifact"] == artifact:
            versions.append(Version(f"v{match['numbers']}", tag.commit, tag.created, parse(tag.message)))
        elif (match := _ASSIGNMENT.fullmatch(tag.name)) and match["artifact"] == artifact:
            moves.append((int(match["number"]), match["stage"], tag))
    versions.sort(key=lambda version: version.numbers)
    names = {version.commit: version.name for version in versions}
    return Registry(
        tuple(versions),
        tuple(
            Assignment(number, stage, names[tag.commit], tag.created)
            for number, stage, tag in sorted(moves, key=lambda move: move[0])
            if tag.commit in names
        ),
    )


def version_tag(version: str, artifact: str = ARTIFACT) -> str:
    """The tag's name, as GTO writes it."""
    return f"{artifact}@{version}"


def assignment_tag(stage: str, number: int, artifact: str = ARTIFACT) -> str:
    """The tag's name, as GTO writes it."""
    return f"{artifact}#{stage}#{number}"


def message(sentence: str, record: Mapping[str, Any]) -> str:
    """A tag's message: a sentence for people, then the record as JSON."""
    return f"{sentence}\n\n{json.dumps(record, indent=1, ensure_ascii=False, sort_keys=True)}\n"


def parse(text: str) -> dict[str, Any]:
    """The record in a tag's message; empty where there is none."""
    start = text.find("\n{")
    if start < 0:
        return {}
    try:
        found = json.loads(text[start:])
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
