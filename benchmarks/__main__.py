"""Runs the benchmarks: `python -m benchmarks` all of them, `python -m benchmarks engine` one, `--list` names them.

Each module of this folder, and of `gpu` in it, with a `main()` is a benchmark; its first line says what it measures.
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

FOLDER = Path(__file__).parent


def benchmarks() -> dict[str, str]:
    """Name and first docstring line of every benchmark, read without importing it."""
    found = {}
    for path in sorted([*FOLDER.glob("*.py"), *FOLDER.glob("gpu/*.py")]):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in tree.body):
            name = ".".join(path.relative_to(FOLDER).with_suffix("").parts)
            found[name] = (ast.get_docstring(tree) or "").partition("\n")[0]
    found.pop("__main__", None)
    return found


def main(names: list[str]) -> int:
    known = benchmarks()
    if "--list" in names:
        for name, about in known.items():
            print(f"{name:<16} {about}")
        return 0
    unknown = [name for name in names if name not in known]
    if unknown:
        print(f"no benchmark {unknown[0]}; there are: {', '.join(known)}", file=sys.stderr)
        return 2
    for name in names or known:
        print(f"## {name}: {known[name]}\n", flush=True)
        importlib.import_module(f"benchmarks.{name}").main()
        print(flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
