"""dvc.lock as the engine writes it: DVC's own text, whole or not at all, at a cost that its length leaves alone."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from dvc.utils.serialize import _yaml

from flows.lockfile import LockFiles, beside

Modify = Callable[..., AbstractContextManager[Any]]


def entry(number: int, digest: str) -> dict[str, Any]:
    """What DVC records of a stage."""
    long = f"python -m work.step --number {number} --a-long-argument {'x' * 60} --another {'y' * 60}"
    deps = [{"path": f"in {number}.txt", "hash": "md5", "md5": digest, "size": number}]
    params = {"params.yaml": {"rate": 1.0e-5, "name": "yes", "sizes": [1, 2], "version": "1e5", "none": None}}
    return {"cmd": long, "deps": deps, "params": params, "outs": [{"path": "ü/out", "md5": digest + ".dir"}]}


def put(modify: Modify, path: Path, name: str, content: dict[str, Any]) -> None:
    """What `dvc.dvcfile.Lockfile.dump_stages` does."""
    with modify(path, _yaml.parse_yaml_for_update, _yaml._dump) as data:
        if not data:
            data.update({"schema": "2.0"})
        data["stages"] = data.get("stages", {})
        data["stages"].update({name: content})


NAMES = ["prepare", "split@train", "pair@a-1", "on", "prepare"]


def test_the_text_is_dvcs_own_to_the_letter(tmp_path: Path) -> None:
    ours, theirs, files = tmp_path / "dvc.lock", tmp_path / "theirs.lock", LockFiles()
    for number, name in enumerate(NAMES):
        for path, modify in ((ours, files.modify), (theirs, _yaml._modify_data)):
            put(modify, path, name, entry(number, f"{number:032x}"))
        assert ours.read_text() == theirs.read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"dvc.lock", "theirs.lock"}


@pytest.mark.parametrize("change", ["# by hand\n{}", "{}# at the end\n", "{}datasets:\n- name: d\n  type: dvc\n"])
def test_what_people_and_other_programs_write_meanwhile_is_kept(tmp_path: Path, change: str) -> None:
    ours, theirs, files = tmp_path / "dvc.lock", tmp_path / "theirs.lock", LockFiles()
    for path, modify in ((ours, files.modify), (theirs, _yaml._modify_data)):
        put(modify, path, "first", entry(1, "1"))
        path.write_text(change.format(path.read_text()))
        put(modify, path, "second", entry(2, "2"))
        put(modify, path, "first", entry(3, "3"))
    assert ours.read_text() == theirs.read_text()


def test_only_the_entry_that_changed_is_printed(tmp_path: Path) -> None:
    path, files, printed = tmp_path / "dvc.lock", LockFiles(), []

    def dumper(content: Any, stream: io.StringIO) -> None:
        printed.extend(content.get("stages", {}))
        _yaml._dump(content, stream)

    def parser(text: str, path: Path) -> Any:
        raise AssertionError("what was just written need not be read again")

    for number in range(20):
        with files.modify(path, parser, dumper) as data:
            data.setdefault("stages", {}).update({f"s{number}": entry(number, "0")})
    assert printed == [f"s{number}" for number in range(20)]


def test_a_failure_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path, files = tmp_path / "dvc.lock", LockFiles()

    def dumper(content: Any, stream: io.StringIO) -> None:
        if "second" in content.get("stages", {}):
            raise OSError("no space is left")
        _yaml._dump(content, stream)

    def modify(path: Path, parser: Any, _: Any) -> AbstractContextManager[Any]:
        return files.modify(path, parser, dumper)

    put(modify, path, "first", entry(1, "1"))
    path.chmod(0o640)
    before = path.read_text()
    with pytest.raises(OSError, match="no space"):
        put(modify, path, "second", entry(2, "2"))
    assert path.read_text() == before
    assert not beside(path).exists()
    put(modify, path, "third", entry(3, "3"))
    assert "second" not in path.read_text()
    assert path.stat().st_mode & 0o777 == 0o640
