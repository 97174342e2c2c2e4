"""Preparing a data set: any source, stratified and repeatable, with nothing bad let in or silently dropped."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from graft import params
from graft.datasets import cifar10, preparation
from graft.errors import GraftError, InputError

TEXT = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")
NOISE = np.random.default_rng(0)


def settings(*assignments: str) -> params.Params:
    return params.parse(params.override(TEXT, assignments))


def picture(seed: int | None = None, kind: str = "PNG") -> bytes:
    rng = NOISE if seed is None else np.random.default_rng(seed)
    out = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 36, 3), np.uint8)).save(out, kind)
    return out.getvalue()


def class_folders(root: Path, count: int = 10, classes: tuple[str, ...] = ("cat", "dog")) -> Path:
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(count):
            (root / name / f"{i}.png").write_bytes(picture())
    return root


def prepared(tmp_path: Path, *assignments: str) -> dict[str, Any]:
    return preparation.prepare(settings(*assignments), tmp_path / "prepared")


def folder(path: Path) -> tuple[str, str]:
    return "data.source=folder", f"data.path={path}"


def test_digits_are_split_by_class_and_every_picture_is_used_once(tmp_path: Path) -> None:
    said = prepared(tmp_path)
    counts = {split: summary["images"] for split, summary in said["splits"].items()}
    assert sum(counts.values()) == 1797
    assert counts["test"] == pytest.approx(0.2 * 1797, abs=5)
    images, labels = preparation.load_split(tmp_path / "prepared", "test")
    assert images.row_shape == (32, 32, 3)
    assert np.bincount(labels.read()).tolist() == said["splits"]["test"]["per_class"]
    names = [(tmp_path / "prepared" / f"{s}.names.txt").read_text().splitlines() for s in counts]
    assert len({name for split in names for name in split}) == 1797


def test_the_same_seed_gives_the_same_bytes_and_another_seed_another_split(tmp_path: Path) -> None:
    def digest(where: str, seed: int) -> str:
        preparation.prepare(settings(f"seed={seed}"), tmp_path / where)
        files = sorted((tmp_path / where).iterdir())
        return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest()

    assert digest("a", 1) == digest("b", 1) != digest("c", 2)


def test_pictures_that_are_added_leave_the_others_in_their_split(tmp_path: Path) -> None:
    def tested(where: str, count: int) -> set[str]:
        root = class_folders(tmp_path / where, count)
        preparation.prepare(settings(*folder(root)), tmp_path / f"{where}-prepared")
        return set((tmp_path / f"{where}-prepared" / "test.names.txt").read_text().splitlines())

    before, after = tested("before", 40), tested("after", 50)
    # A fifth of each class: 2 × 8 pictures, then 2 × 10. A new draw would keep about 3 of the 16.
    assert len(before) == 16
    assert len(before & after) >= 13


@pytest.mark.parametrize("wrapping", ["", "photos/"])
@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz"])
def test_folders_and_archives_hold_the_same_pictures(tmp_path: Path, kind: str, wrapping: str) -> None:
    root = class_folders(tmp_path / "source" / wrapping)
    path = tmp_path / "source"
    if kind == "zip":
        path = tmp_path / "pictures.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for file in sorted(root.rglob("*.png")):
                archive.write(file, f"{wrapping}{file.relative_to(root)}")
    elif kind != "folder":
        path = tmp_path / f"pictures.{kind}"
        with tarfile.open(path, "w:gz" if kind == "tar.gz" else "w") as archive:
            archive.add(tmp_path / "source", arcname="source")
    said = prepared(tmp_path, *folder(path), "data.test_fraction=0.3")
    assert said["classes"] == ["cat", "dog"]
    assert [said["splits"][split]["per_class"] for split in preparation.SPLITS] == [[6, 6], [1, 1], [3, 3]]


def test_a_split_of_the_source_is_kept(tmp_path: Path) -> None:
    class_folders(tmp_path / "source" / "train", 10)
    class_folders(tmp_path / "source" / "test", 4)
    said = prepared(tmp_path, *folder(tmp_path / "source"))
    assert said["splits"]["test"]["per_class"] == [4, 4]
    assert said["splits"]["train"]["per_class"] == [9, 9]
    assert all(name.startswith("test/") for name in (tmp_path / "prepared/test.names.txt").read_text().splitlines())


def test_the_limit_counts_training_and_validation_but_not_test(tmp_path: Path) -> None:
    said = prepared(tmp_path, "data.limit_per_class=20")
    assert said["splits"]["train"]["per_class"] == [18] * 10
    assert said["splits"]["validation"]["per_class"] == [2] * 10
    assert sum(said["splits"]["test"]["per_class"]) > 300


def test_unreadable_pictures_are_quarantined_counted_and_listed(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "source", 30)
    (root / "cat" / "empty.jpg").write_bytes(b"")
    (root / "cat" / "cut.jpg").write_bytes(picture(kind="JPEG")[:300])
    (root / "dog" / "text.png").write_text("no picture")
    (root / "dog" / "notes.txt").write_text("not meant to be one")
    said = prepared(tmp_path, *folder(root), "data.max_bad_fraction=0.1")
    assert {Path(entry["file"]).name for entry in said["quarantined"]} == {"empty.jpg", "cut.jpg", "text.png"}
    assert all(entry["reason"] for entry in said["quarantined"])
    assert said["ignored"] == ["dog/notes.txt"]
    assert sum(summary["images"] for summary in said["splits"].values()) == 60


def test_too_many_unreadable_pictures_are_an_error(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "source", 10)
    for i in range(3):
        (root / "cat" / f"bad{i}.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"3 of 23 pictures are unreadable.*max_bad_fraction"):
        prepared(tmp_path, *folder(root))


def test_a_test_picture_is_removed_from_training_and_said(tmp_path: Path) -> None:
    class_folders(tmp_path / "source" / "train", 10)
    class_folders(tmp_path / "source" / "test", 4)
    copy = (tmp_path / "source/test/cat/0.png").read_bytes()
    (tmp_path / "source/train/cat/copy.png").write_bytes(copy)
    said = prepared(tmp_path, *folder(tmp_path / "source"))
    (found,) = said["duplicates"]
    assert (found["kept"], found["removed"]) == ("test/cat/0.png", "train/cat/copy.png")
    images, _ = preparation.load_split(tmp_path / "prepared", "test")
    test = {row.tobytes() for row in images.read()}
    for split in ("train", "validation"):
        images, _ = preparation.load_split(tmp_path / "prepared", split)
        assert not test & {row.tobytes() for row in images.read()}


def _empty(root: Path) -> None:
    root.mkdir()


def _one_class(root: Path) -> None:
    class_folders(root, classes=("cat",))


def _loose_files(root: Path) -> None:
    root.mkdir()
    (root / "a.png").write_bytes(picture())


def _tiny_class(root: Path) -> None:
    class_folders(root)
    (root / "bird").mkdir()
    (root / "bird" / "only.png").write_bytes(picture())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (_empty, "no pictures found"),
        (_one_class, "at least two class folders are needed .* Received: cat"),
        (_loose_files, "at least two class folders are needed .* Received: none"),
        (_tiny_class, "class bird has too few pictures"),
        (lambda root: None, "data.path does not exist"),
        (lambda root: root.write_text("no archive"), "must be a folder, a zip or a tar"),
    ],
)
def test_an_unusable_source_is_one_sentence_with_the_mend(tmp_path: Path, make: Any, message: str) -> None:
    make(tmp_path / "source")
    with pytest.raises(InputError, match=message) as caught:
        prepared(tmp_path, *folder(tmp_path / "source"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../evil.png", "/etc/evil.png", "cat/../../evil.png", "C:/evil.png"])
def test_an_archive_that_leaves_its_folder_is_refused(tmp_path: Path, name: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr(name, picture())
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        info = tarfile.TarInfo(name)
        tar.addfile(info, io.BytesIO())
    for path in (tmp_path / "evil.zip", tmp_path / "evil.tar"):
        with pytest.raises(InputError, match="leaves the archive"):
            prepared(tmp_path, *folder(path))
    assert not (tmp_path.parent / "evil.png").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_an_archive_with_links_is_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        info = tarfile.TarInfo("cat/link.png")
        info.type, info.linkname = kind, "/etc/passwd"
        tar.addfile(info)
    with zipfile.ZipFile(tmp_path / "links.zip", "w") as archive:
        entry = zipfile.ZipInfo("cat/link.png")
        entry.external_attr = 0o120777 << 16
        archive.writestr(entry, "/etc/passwd")
    for path in (tmp_path / "links.tar", tmp_path / "links.zip"):
        with pytest.raises(InputError, match="link"):
            prepared(tmp_path, *folder(path))


def test_a_link_inside_a_folder_is_not_followed(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "source")
    (tmp_path / "outside.png").write_bytes(picture())
    (root / "cat" / "link.png").symlink_to(tmp_path / "outside.png")
    (root / "cat" / "circle").symlink_to(root)
    said = prepared(tmp_path, *folder(root))
    assert sum(summary["images"] for summary in said["splits"].values()) == 20


def test_a_damaged_archive_is_one_sentence(tmp_path: Path) -> None:
    root = class_folders(tmp_path / "source")
    whole = tmp_path / "whole.tar.gz"
    with tarfile.open(whole, "w:gz") as tar:
        tar.add(root, arcname="source")
    (tmp_path / "cut.tar.gz").write_bytes(whole.read_bytes()[:-2000])
    with pytest.raises(InputError, match="not a readable tar archive"):
        prepared(tmp_path, *folder(tmp_path / "cut.tar.gz"))


def cifar10_archive(path: Path, per_batch: int = 40) -> Path:
    rng = np.random.default_rng(3)
    with tarfile.open(path, "w:gz") as tar:
        for name in [f"data_batch_{i}.bin" for i in range(1, 6)] + ["test_batch.bin"]:
            rows = rng.integers(0, 256, (per_batch, cifar10.RECORD), np.uint8)
            rows[:, 0] = np.arange(per_batch) % 10
            add(tar, f"cifar-10-batches-bin/{name}", rows.tobytes())
        add(tar, "cifar-10-batches-bin/batches.meta.txt", "\n".join(f"class{i}" for i in range(10)).encode())
    return path


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def test_cifar10_loads_from_a_local_archive(tmp_path: Path) -> None:
    path = cifar10_archive(tmp_path / "cifar.tar.gz")
    said = prepared(tmp_path, "data.source=cifar10", f"data.path={path}")
    assert said["classes"][0] == "class0"
    assert said["splits"]["test"]["images"] == 40
    assert said["splits"]["train"]["images"] + said["splits"]["validation"]["images"] == 200


def test_cifar10_pixels_are_red_green_blue_planes(tmp_path: Path) -> None:
    record = np.zeros(cifar10.RECORD, np.uint8)
    record[1 : 1 + 1024] = 200  # the red plane
    record[1] = 9
    np.concatenate([record, record]).tofile(tmp_path / "data_batch_1.bin")
    record.tofile(tmp_path / "test_batch.bin")
    (tmp_path / "batches.meta.txt").write_text("a\nb\n")
    pixels = cifar10.open_batches(tmp_path, tmp_path).pixels(1)
    assert pixels[0, 0].tolist() == [9, 0, 0]
    assert pixels[31, 31].tolist() == [200, 0, 0]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "www").mkdir()
    cifar10_archive(tmp_path / "www" / "cifar.tar.gz")

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=os.fspath(tmp_path / "www"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}/cifar.tar.gz"
        running.shutdown()
        thread.join()


def test_the_download_is_checked_cached_and_used_again(tmp_path: Path, server: str) -> None:
    original = (tmp_path / "www" / "cifar.tar.gz").read_bytes()
    md5 = hashlib.md5(original, usedforsecurity=False).hexdigest()
    path = cifar10.download(server, md5, tmp_path / "cache")
    assert path.read_bytes() == original
    assert cifar10.download("http://127.0.0.1:9/gone", md5, tmp_path / "cache") == path


def test_a_damaged_download_is_refused_and_leaves_nothing(tmp_path: Path, server: str) -> None:
    with pytest.raises(GraftError, match="damaged"):
        cifar10.download(server, "0" * 32, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_failed_download_says_how_to_bring_the_file(tmp_path: Path, server: str) -> None:
    with pytest.raises(GraftError, match=r"cannot be downloaded .* set data.path to it"):
        cifar10.download(server.replace("cifar.tar", "missing"), "0" * 32, tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_dataset_json_is_what_prepare_returned(tmp_path: Path) -> None:
    said = prepared(tmp_path)
    assert json.loads((tmp_path / "prepared" / "dataset.json").read_text()) == said


@pytest.mark.shared
def test_all_of_cifar10_as_jpeg_loads(tmp_path: Path, shared: Path) -> None:
    said = prepared(tmp_path, *folder(shared / "data" / "cifar10-images.zip"))
    assert [said["splits"][split]["images"] for split in preparation.SPLITS] == [45_000, 5_000, 10_000]
    assert said["quarantined"] == []


@pytest.mark.shared
def test_the_binary_subset_of_cifar10_loads(tmp_path: Path, shared: Path) -> None:
    path = shared / "data" / "cifar-10-binary-subset.tar.gz"
    said = prepared(tmp_path, "data.source=cifar10", f"data.path={path}")
    assert said["splits"]["test"]["images"] == 846
    assert said["splits"]["train"]["images"] + said["splits"]["validation"]["images"] == 4660
