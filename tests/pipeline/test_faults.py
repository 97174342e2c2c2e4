"""Whatever breaks around a run: one clear sentence, nothing lost, and the next run goes on."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("SKIPPED ALOUD: this user may not mount a tmpfs, full and read-only disks not tested")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_an_exception_in_process_is_a_sentence_and_its_traceback_a_log(repository):
    made = repository("chain")
    made.edit("work/train.py", 'burn.ran("begin train")', 'raise KeyError("no such column")')
    out = made.graft("run", code=1)
    (line,) = [line for line in out.splitlines() if line.startswith("Failed")]
    assert "KeyError: 'no such column' (train.py:8)" in line
    assert "runpy" not in out
    made.edit("work/train.py", 'raise KeyError("no such column")', 'burn.ran("begin train")')
    states = made.work()
    assert (states["extract"], states["train"]) == ("Unchanged", "Ran")


@pytest.mark.parametrize("mode", [[], ["--isolate"]])
def test_an_error_that_a_person_can_mend_is_one_sentence_and_its_exit_code(repository, mode):
    made = repository("chain")
    raising = "from graft.errors import InputError\n\nif __name__ == '__main__':\n    "
    if mode:  # a process says its sentence on stderr and ends with the code
        raising += "raise SystemExit(print('rows must be even. Received: 3', file=__import__('sys').stderr) or 2)\n"
    else:
        raising += "raise InputError('rows must be even. Received: 3')\n"
    made.write("work/prepare.py", raising)
    out = made.graft("run", *mode, code=2)
    assert "rows must be even. Received: 3" in out
    assert "Traceback" not in out


def test_a_full_disk_under_the_cache(repository, small_disk):
    made = repository("chain")
    made.edit("work/extract.py", 'burn.ran("end extract")', 'Path("features/big").write_bytes(bytes(3 << 20))')
    made.dvc("cache", "dir", str(small_disk))
    out = made.graft("run", code=1)
    assert "no space is left on the device" in out
    assert "Traceback" not in out
    assert made.states(out)["prepare"] == "Ran"
    subprocess.run(["mount", "-o", "remount,size=20m", str(small_disk)], check=True)
    states = made.work()
    assert (states["prepare"], states["evaluate"]) == ("Unchanged", "Ran")
    assert "up to date" in made.dvc("repro")


def test_a_full_disk_under_a_stage(repository, small_disk):
    made = repository("chain")
    made.edit("work/train.py", 'open("model.txt", "w")', f'open("{small_disk}/model.txt", "w", 1)')
    made.edit("work/train.py", "burn.digest(", "'x' * (1 << 20) + burn.digest(")
    out = made.graft("run", code=1)
    assert "no space is left on the device" in out.lower()
    assert made.states(out)["extract"] == "Ran"


def test_a_read_only_cache(repository, small_disk):
    made = repository("chain")
    made.dvc("cache", "dir", str(small_disk))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    out = made.graft("run", code=1)
    assert "the file system is read-only" in out
    assert "Traceback" not in out
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert set(made.work().values()) == {"Ran"}


def test_an_edited_output_is_restored_and_the_edit_kept(repository):
    made = repository("chain")
    made.work()
    made.write("model.txt", "precious\n")
    out = made.graft("run")
    assert "output model.txt changed" in out
    assert made.states(out)["train"] == "Restored"
    assert "precious" not in (made.root / "model.txt").read_text()
    assert ".dvc/tmp/graft/edited/model.txt" in out
    assert (made.root / ".dvc/tmp/graft/edited/model.txt").read_text() == "precious\n"


def test_a_lock_file_with_merge_conflict_marks(repository):
    made = repository("chain")
    made.work()
    lock = made.root / "dvc.lock"
    good = lock.read_text()
    lines = good.splitlines()
    torn = "\n".join([*lines[:4], "<<<<<<< HEAD", *lines[4:8], "=======", *lines[4:8], ">>>>>>> other", *lines[8:]])
    lock.write_text(torn)
    for command in ("run", "status"):
        out = made.graft(command, code=2)
        assert "dvc.lock holds git's merge-conflict marks" in out
        assert "Traceback" not in out
    assert lock.read_text() == torn
    lock.write_text(good)
    assert set(made.states(made.graft("run")).values()) == {"Unchanged"}


def test_a_detached_head(repository):
    made = repository("chain")
    made.run("git", "checkout", "-q", "--detach")
    assert set(made.states(made.graft("run")).values()) == {"Ran"}
    assert "up to date" in made.dvc("repro")


def test_no_git_at_all(repository):
    made = repository("chain", git=False)
    out = made.graft("run")
    assert set(made.states(out).values()) == {"Ran"}
    assert "no git here" in out
    assert set(made.states(made.graft("run")).values()) == {"Unchanged"}


def test_no_dvc_repository(repository):
    made = repository("chain")
    shutil.rmtree(made.root / ".dvc")
    assert "dvc init" in made.graft("run", code=2)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("stages: {a: {cmd: 'true', deps: [x], outs: [y]}}", "x"),
        ("stages: {a: {cmd: 'true', outs: [y]}, b: {cmd: 'true', outs: [y]}}", "y"),
        ("stages: {a: {cmd: 'true', deps: [y], outs: [x]}, b: {cmd: 'true', deps: [x], outs: [y]}}", "both"),
        ("stages: {a: {command: 'true'}}", "dvc.yaml"),
        ("stages: [", "dvc.yaml"),
    ],
)
def test_a_wrong_dvc_yaml_is_a_sentence(repository, text, sentence):
    made = repository("chain")
    made.write("dvc.yaml", text)
    out = made.graft("run", code=2)
    assert sentence in out
    assert "Traceback" not in out
