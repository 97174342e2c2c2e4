"""The most memory a process held at once, by its own account.

What the kernel tells a parent of its child begins with the parent's own peak. `python -m benchmarks.memory MODULE` runs
a module as `python -m MODULE` would and prints its peak in MB as the last line.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path


def peak() -> float:
    """The most memory this process held at once, in MB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    runpy.run_module(sys.argv[1], run_name="__main__", alter_sys=True)
    print(peak())
