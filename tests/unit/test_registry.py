"""Tags tell which versions there are, where each stage is, and where a rollback goes."""

from __future__ import annotations

import datetime
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from graft import differences, history, registry
from graft.errors import InputError
from graft.registry import Tag


def moved(*versions: str) -> registry.Registry:
    """A registry whose prod went through `versions`, each registered at its first use."""
    tags = [
        Tag(f"model@{name}", f"c{name}", "2026-01-01", registry.message("x", {"model": f"m{name}"}))
        for name in dict.fromkeys(versions)
    ]
    tags += [Tag(f"model#prod#{n}", f"c{name}", "2026-01-01", "") for n, name in enumerate(versions, 1)]
    return registry.read(reversed(tags))


def test_versions_are_in_the_order_of_their_numbers() -> None:
    found = moved("v1.9.0", "v1.10.0", "v1.2.0")
    assert [version.name for version in found.versions] == ["v1.2.0", "v1.9.0", "v1.10.0"]
    assert found.next_version == "v1.11.0"
    assert registry.Registry().next_version == "v1.0.0"


def test_other_tags_are_left_alone() -> None:
    strange = ["v2.0", "other@v9.0.0", "model@v1", "model@v1.0.0!", "model#prod#4", "model#prod!#5"]
    found = registry.read(Tag(name, "c", "", "") for name in strange)
    assert found == registry.Registry()


@pytest.mark.parametrize(
    ("path", "now", "before"),
    [
        (["v1.0.0"], "v1.0.0", None),
        (["v1.0.0", "v1.1.0", "v1.2.0"], "v1.2.0", "v1.1.0"),
        (["v1.0.0", "v1.1.0", "v1.2.0", "v1.1.0"], "v1.1.0", "v1.0.0"),
        (["v1.0.0", "v1.1.0", "v1.0.0", "v1.2.0"], "v1.2.0", "v1.0.0"),
        (["v1.0.0", "v1.1.0", "v1.0.0"], "v1.0.0", None),
    ],
)
def test_a_rollback_goes_back_and_never_forth_again(path: list[str], now: str, before: str | None) -> None:
    found = moved(*path)
    current = found.current()
    assert current is not None
    assert (current.version, current.number) == (now, len(path))
    assert found.previous() == before
    assert found.next_number == len(path) + 1
    assert found.stages(now) == ["prod"]


def test_a_misspelt_version_is_answered_with_the_nearest() -> None:
    assert moved("v1.0.0").version("1.0.0").name == "v1.0.0"
    with pytest.raises(InputError, match=r"did you mean v1\.0\.0"):
        moved("v1.0.0").version("v1.0")
    with pytest.raises(InputError, match="no version is registered yet"):
        registry.Registry().version("v1.0.0")


def test_a_tags_message_gives_its_record_back() -> None:
    record = {"model": "abc", "images": {"Übung": 3}, "text": "a\n{b"}
    assert registry.parse(registry.message("One sentence {with} braces", record)) == record
    assert registry.parse("by hand") == {}
    assert registry.parse("cut\n\n{ 1") == {}


def test_a_difference_shows_only_what_differs() -> None:
    before = differences.facts({"images": {"brick": 1}, "accuracy": 0.5}, "seed: 7\nhead:\n  epochs: 3\n")
    after = differences.facts({"images": {"brick": 2, "moss": 1}, "accuracy": 0.5}, "seed: 7\nhead:\n  epochs: 4\n")
    assert differences.rows(before, after) == [
        ("data", "pictures of brick", "1", "2"),
        ("data", "pictures of moss", "–", "1"),
        ("parameters", "head.epochs", "3", "4"),
    ]


def test_the_history_survives_a_line_cut_short(tmp_path: Path) -> None:
    history.append(tmp_path, {"n": 1})
    with (tmp_path / history.FILE).open("a") as file:
        file.write('{"n": 2, "outc')
    history.append(tmp_path, {"n": 3})
    assert [record["n"] for record in history.read(tmp_path)] == [1, 3]


def test_a_year_of_nights_is_one_readable_picture() -> None:
    start = datetime.datetime(2026, 1, 1, 2, tzinfo=datetime.UTC)
    records = [
        {
            "time": (start + datetime.timedelta(days=day)).isoformat(),
            "outcome": "promote" if day % 30 == 0 else "refuse" if day % 50 == 7 else "keep",
            "accuracy": None if day % 50 == 7 else 0.9 + day / 5000,
        }
        for day in range(365)
    ]
    picture = ET.fromstring(history.plot(records))  # noqa: S314 - our own text
    space = "{http://www.w3.org/2000/svg}"
    points = [c for c in picture.iter(f"{space}circle") if c.find(f"{space}title") is not None]
    assert len(points) == 365
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    assert all(0 <= float(c.attrib["cx"]) <= width and 0 <= float(c.attrib["cy"]) <= height for c in points)
    assert len(picture.findall(f"{space}text")) < 20
    assert len(history.plot(records)) < 100_000
    assert "No model has been judged yet" in history.plot([])
