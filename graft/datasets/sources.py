"""Sources of labelled pictures: the bundled digits, CIFAR-10's binary archive, folders of class folders.

In: `params.Data`. Out: a `Source`: class names, one `Item` a picture, and a way to read each item's pixels.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from graft import images, params
from graft.datasets import cifar10, files
from graft.datasets.files import Files
from graft.errors import InputError
from graft.images import Pixels

# Folder names that mean a split rather than a class.
SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("val", "valid", "validation"), "validation"
)


@dataclass(frozen=True)
class Item:
    """One picture: its name in the source, its class, and the split the source itself gives it, if any."""

    name: str
    label: int
    split: str | None = None


@dataclass(frozen=True)
class Source:
    """Labelled pictures; `read` gives item i's pixels (H×W×3 uint8) or raises `UnreadableImage`."""

    classes: list[str]
    items: list[Item]
    read: Callable[[int], Pixels]
    ignored: list[str] = field(default_factory=list)


@contextlib.contextmanager
def open_source(data: params.Data) -> Iterator[Source]:
    """Open the source that the parameters name; temporary files live as long as the context.

    Raises:
        InputError: nothing is there, or it holds no usable class folders.
    """
    with tempfile.TemporaryDirectory(prefix="graft-") as scratch:
        if data.source == "digits":
            yield _digits()
        elif data.source == "cifar10":
            yield _cifar10(Path(data.path), Path(scratch))
        else:
            with contextlib.ExitStack() as stack:
                yield _folder(Path(data.path), Path(scratch), stack)


def _digits() -> Source:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    # 8×8 grey values 0 to 16 (UCI optical recognition of handwritten digits, test part).
    grey = np.rint(bunch.images * (255 / 16)).astype(np.uint8)
    items = [Item(f"digits/{i:04d}", int(label)) for i, label in enumerate(bunch.target)]
    return Source([str(name) for name in bunch.target_names], items, lambda i: np.repeat(grey[i][..., None], 3, 2))


def _cifar10(path: Path, scratch: Path) -> Source:
    batches = cifar10.open_batches(path, scratch)
    items = [Item(f"{name}/{row:05d}", label, split) for name, row, label, split in batches.records()]
    return Source(batches.classes, items, batches.pixels)


def _folder(path: Path, scratch: Path, stack: contextlib.ExitStack) -> Source:
    if not path.exists():
        raise InputError(f"data.path does not exist; set it to a folder, zip or tar of class folders. Received: {path}")
    found = files.open_files(path, scratch, stack)
    if found is None:
        raise InputError(f"data.path must be a folder, a zip or a tar of class folders. Received: {path}")
    return _class_folders(found, str(path))


def _class_folders(found: Files, origin: str) -> Source:
    pictures = files.pictures(found.names)
    ignored = sorted(set(found.names) - set(pictures))
    if not pictures:
        raise InputError(
            f"no pictures found in {origin}; put them in one folder a class ({', '.join(sorted(images.SUFFIXES))})"
        )
    parts = _strip_common_root([PurePosixPath(name).parts for name in pictures])
    placed = [_place(part) for part in parts]
    classes = sorted({name for _, name in placed if name is not None})
    ignored += [name for name, (_, label) in zip(pictures, placed, strict=True) if label is None]
    chosen = [(name, place) for name, place in zip(pictures, placed, strict=True) if place[1] is not None]
    if len(classes) < 2:
        raise InputError(
            f"at least two class folders are needed in {origin}; put each class's pictures in a folder of its own. "
            f"Received: {', '.join(classes) or 'none'}"
        )
    index = {name: i for i, name in enumerate(classes)}
    items = [Item(name, index[str(label)], split) for name, (split, label) in chosen]
    return Source(classes, items, lambda i: images.decode(found.read(items[i].name)), ignored)


def _strip_common_root(parts: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Drop folders that only wrap everything else: `photos/cats/1.jpg` counts like `cats/1.jpg`."""
    while len({p[0] for p in parts}) == 1 and min(map(len, parts)) >= 3:
        parts = [p[1:] for p in parts]
    return parts


def _place(parts: tuple[str, ...]) -> tuple[str | None, str | None]:
    """The split and class that a file's folders name; no class for a file outside class folders."""
    folders = parts[:-1]
    split = SPLITS.get(folders[0].lower()) if folders else None
    if split is not None:
        folders = folders[1:]
    return split, folders[0] if folders else None
