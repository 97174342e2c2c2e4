"""Who may import whom, read from the source: the rooms of the house keep their doors."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = {"graft", "tasks", "flows", "serving", "benchmarks", "tests"}
HEAVY = {"tensorflow", "keras", "prefect", "dvc", "gto", "tf2onnx"}
# A room, and the rooms and packages it must not reach.
FORBIDDEN = {
    "graft": (ROOMS - {"graft"}) | {"prefect", "dvc"},
    "tasks": (ROOMS - {"graft", "tasks"}) | {"prefect", "dvc"},
    "flows": {"tasks", "benchmarks", "tests", "tensorflow", "keras"},
    "serving": (ROOMS - {"serving", "graft"}) | HEAVY,
}
# The command line is a thin shell over all rooms.
SHELL = [ROOT / "graft" / "cli.py", *sorted((ROOT / "graft" / "commands").glob("*.py"))]
STAGES = sorted(path for path in (ROOT / "tasks").glob("*.py") if path.stem != "__init__")


def imports(path: Path) -> set[str]:
    """Every module that a file imports, at its top or inside a function, as dotted names."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).with_suffix("").parts[: -node.level] if node.level else ()
            base = ".".join([*package, *([node.module] if node.module else [])])
            found |= {base, *(f"{base}.{alias.name}" for alias in node.names)}
    return found


def files(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


@pytest.mark.parametrize("room", FORBIDDEN)
def test_a_room_imports_only_whom_it_may(room):
    assert files(room), f"no such room: {room}"
    for path in files(room):
        if path in SHELL:
            continue
        reached = {name.partition(".")[0] for name in imports(path)} & FORBIDDEN[room]
        assert not reached, f"{path.relative_to(ROOT)} imports {sorted(reached)}"


@pytest.mark.parametrize("path", SHELL, ids=lambda path: path.stem)
def test_the_command_line_imports_other_rooms_only_inside_its_commands(path):
    tops = {
        name.partition(".")[0]
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert not tops & ((ROOMS - {"graft"}) | HEAVY)


def closure(start: Path) -> set[Path]:
    """The files of our rooms that a file imports, and those that these import, and so on."""
    found: set[Path] = set()
    queue = [start]
    while queue:
        for name in imports(queue.pop()):
            path = ROOT.joinpath(*name.split("."))
            for file in (path.with_suffix(".py"), path / "__init__.py"):
                if file.is_file() and file not in found and name.partition(".")[0] in ("graft", "tasks"):
                    found.add(file)
                    queue.append(file)
    return found


# Code that shapes no output: what it holds is watched as parameters, or only says something.
SHAPELESS = {
    "graft/__init__.py",
    "graft/params.py",
    "graft/errors.py",
    "graft/progress.py",
    "tasks/__init__.py",
}


# Imported by a stage without shaping its outputs: all but `prepare` use the data sets' code only to read
# what `prepare` wrote (whose bytes they watch), and the page that `evaluate` renders is no output.
READING = {
    "graft/datasets": "prepare",
    "graft/images.py": "prepare",
    "graft/report": None,
    "graft/differences.py": None,
}


@pytest.mark.parametrize("path", STAGES, ids=lambda path: path.stem)
def test_a_stage_lists_the_library_modules_it_uses(path):
    """A module that is not among the deps can be edited without the stage being run again."""
    from ruamel.yaml import YAML

    stages = YAML(typ="safe").load(ROOT / "dvc.yaml")["stages"]
    stage = next(s for s in stages.values() if s["cmd"].split()[:3] == ["python", "-m", f"tasks.{path.stem}"])
    listed = [ROOT / dep for dep in stage["deps"] if "$" not in dep]
    used = {path, *closure(path)}
    missing = {
        file.relative_to(ROOT).as_posix()
        for file in used
        if not any(file == dep or dep in file.parents for dep in listed)
    }
    read_only = {
        name
        for name in missing
        for prefix, writer in READING.items()
        if path.stem != writer and (name == prefix or name.startswith(f"{prefix}/"))
    }
    unlisted = sorted(missing - SHAPELESS - read_only)
    assert not unlisted, f"stage {path.stem} must list {unlisted} in its deps"
