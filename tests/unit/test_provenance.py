"""Where a model came from, read from a real repository."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from graft import provenance


def git(*arguments: str, date: str = "") -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
    dates = {"GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": "2001-01-01T00:00:00Z"}
    subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, env=os.environ | dates)


def test_the_revision_is_the_last_commit_of_the_code_and_dated_by_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert (provenance.revision(["code"]), provenance.revision_date(["code"])) == ("none", "none")
    git("init", "--quiet")
    for name, date in (("code", "2026-03-05T23:30:00-02:00"), ("notes", "2026-04-01T00:00:00Z")):
        Path(name).write_text("1")
        git("add", name)
        git("commit", "--quiet", "-m", name, date=date)
    commit = provenance.revision(["code"])
    assert len(commit) == 40
    assert provenance.revision_date(["code"]) == "2026-03-06T01:30:00+00:00"
    Path("code").write_text("2")
    assert provenance.revision(["code"]) == f"{commit}+changes"
