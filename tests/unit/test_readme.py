"""The README tells the truth about parameters and commands."""

from __future__ import annotations

import re
from pathlib import Path

from ruamel.yaml import YAML
from typer.main import get_command

from graft import params
from graft.cli import app

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_every_parameter_is_listed_with_its_default() -> None:
    listed = dict(re.findall(r"^\| `([a-z_.0-9]+)` \| `([^`]*)` \|", README, re.MULTILINE))
    document = YAML(typ="safe").load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    assert set(params.keys()) == set(listed)
    for key, text in listed.items():
        value = document
        for part in key.split("."):
            value = value[part]
        assert YAML(typ="safe").load(text) == value, key


def test_every_command_is_named() -> None:
    names = set(get_command(app).commands)  # type: ignore[attr-defined]
    assert {name for name in names if f"`{name}`" not in README and f"graft {name}" not in README} == set()


def test_every_linked_file_exists() -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", README)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
