"""Shards hold rows in order, whole or not at all, and never pickles."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from graft.shards import ShardedArray, ShardWriter

ROWS = np.arange(23 * 6, dtype=np.int32).reshape(23, 2, 3)


@pytest.fixture
def stored(tmp_path: Path) -> ShardedArray:
    with ShardWriter(tmp_path, "rows", (2, 3), np.int32, rows_per_shard=5) as writer:
        for start in range(0, 23, 4):
            writer.append(ROWS[start : start + 4])
    assert len(list(tmp_path.glob("*.npy"))) == 5
    return ShardedArray(tmp_path, "rows")


def test_rows_come_back_in_order(stored: ShardedArray) -> None:
    assert len(stored) == 23
    assert (stored.read() == ROWS).all()


@pytest.mark.parametrize("size", [1, 3, 5, 7, 11, 23, 50])
def test_batches_cross_shards_and_only_the_last_is_short(stored: ShardedArray, size: int) -> None:
    batches = list(stored.batches(size))
    assert (np.concatenate(batches) == ROWS).all()
    assert all(len(batch) == size for batch in batches[:-1])


def test_rows_are_gathered_in_any_order(stored: ShardedArray) -> None:
    chosen = np.array([22, 0, 5, 4, 5])
    assert (stored.take(chosen) == ROWS[chosen]).all()


def test_a_failed_writer_leaves_only_whole_shards(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="rows of shape"):
        write_then_fail(tmp_path)
    assert ShardedArray(tmp_path, "rows").read().tolist() == [0, 1, 2, 3]


def write_then_fail(folder: Path) -> None:
    with ShardWriter(folder, "rows", (), np.int64, rows_per_shard=4) as writer:
        writer.append(np.arange(6))
        writer.append(np.zeros((2, 2)))


def test_no_rows_are_still_a_sequence(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "rows", (4,), np.float32):
        pass
    assert len(ShardedArray(tmp_path, "rows")) == 0


def test_pickles_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "rows-00000.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ValueError, match="Python objects"):
        ShardedArray(tmp_path, "rows")


def test_missing_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no shards of rows"):
        ShardedArray(tmp_path, "rows")
