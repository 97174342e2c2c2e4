"""placeholder"""

from pathlib import Path


def write(root: Path) -> None:
    pass
