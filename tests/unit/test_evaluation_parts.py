"""Corruptions, heat maps, maps, label suspects, near duplicates and the album, each on a case known beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sklearn.decomposition import PCA

from graft.evaluation import label_errors, near_duplicates, speed
from graft.evaluation.album import COLUMNS, Album, encode
from graft.evaluation.corruptions import CORRUPTIONS, STRENGTHS, corrupt
from graft.evaluation.heatmaps import GRID, occlusion
from graft.evaluation.projection import flat_map, principal_components, project
from graft.evaluation.robustness import curves, stratified
from graft.shards import ShardedArray, ShardWriter


@pytest.fixture
def pictures() -> np.ndarray:
    """Twenty pictures with structure at every scale."""
    draws = np.random.default_rng(0)
    coarse = draws.integers(30, 226, (20, 4, 4, 3))
    return np.clip(np.kron(coarse, np.ones((1, 8, 8, 1))) + draws.normal(0, 6, (20, 32, 32, 3)), 0, 255).astype(
        np.uint8
    )


def store(folder: Path, name: str, rows: np.ndarray) -> ShardedArray:
    with ShardWriter(folder, name, rows.shape[1:], rows.dtype, rows_per_shard=7) as writer:
        writer.append(rows)
    return ShardedArray(folder, name)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_grows_with_its_strength_and_keeps_the_shape(pictures: np.ndarray, name: str) -> None:
    distances = []
    for strength in range(1, STRENGTHS + 1):
        worse = corrupt(pictures, name, strength, seed=7)
        assert (worse.shape, worse.dtype) == (pictures.shape, np.uint8)
        distances.append(np.abs(worse.astype(float) - pictures).mean())
    assert distances[0] > 0
    assert distances == sorted(distances)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_the_same_seed_gives_the_same_pictures(pictures: np.ndarray, name: str) -> None:
    assert (corrupt(pictures, name, 3, seed=7) == corrupt(pictures, name, 3, seed=7)).all()


def test_another_seed_draws_other_noise(pictures: np.ndarray) -> None:
    assert (corrupt(pictures, "noise", 3, seed=7) != corrupt(pictures, "noise", 3, seed=8)).any()


def test_contrast_and_brightness_by_hand() -> None:
    picture = np.zeros((1, 2, 2, 3), np.uint8)
    picture[0, 0] = 200
    assert corrupt(picture, "contrast", 2, 0)[0, :, 0, 0].tolist() == [
        150,
        50,
    ]  # half the way to the mean of 100
    assert corrupt(picture, "brightness", 5, 0)[0, :, 0, 0].tolist() == [255, 76]  # 0.3 of 255 more


def test_robustness_counts_hits_on_the_corrupted_pictures(pictures: np.ndarray) -> None:
    def bright(batch: np.ndarray) -> np.ndarray:
        sure = (batch.mean(axis=(1, 2, 3)) > 140).astype(float)
        return np.stack([1 - sure, sure], axis=1)

    found = curves(bright, np.full((4, 32, 32, 3), 100, np.uint8), np.zeros(4, int), seed=0)
    assert [point.value for point in found["brightness"]] == [
        1,
        1,
        1,
        0,
        0,
    ]  # 13, 26, 38, then 51 and 77 brighter
    assert [point.value for point in found["contrast"]] == [1] * 5


def test_a_stratified_sample_keeps_shares_and_order() -> None:
    labels = np.repeat([0, 1, 2], [60, 30, 10])
    chosen = stratified(labels, 20, seed=1)
    assert np.bincount(labels[chosen]).tolist() == [12, 6, 2]
    assert (np.diff(chosen) > 0).all()
    assert stratified(labels, 500, seed=1).tolist() == list(range(100))
    assert len(stratified(labels, 0, seed=1)) == 0


def test_occlusion_lights_up_where_the_answer_comes_from() -> None:
    picture = np.zeros((32, 32, 3), np.uint8)
    picture[20:24, 4:8] = 255

    def spot(batch: np.ndarray) -> np.ndarray:
        seen = batch[:, 20:24, 4:8].mean(axis=(1, 2, 3)) / 255
        return np.stack([seen, 1 - seen], axis=1)

    heat = occlusion(spot, picture, 0)
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    assert heat.shape == (GRID, GRID)
    assert heat.max() > 0.9
    # The patch of 8 pixels that begins at 4·row, 4·column covers the spot.
    assert 4 * row <= 20
    assert 4 * row + 8 >= 24
    assert 4 * column <= 4
    assert heat[0, 6] == pytest.approx(0, abs=1e-6)


def test_principal_components_are_scikit_learns_up_to_sign() -> None:
    rows = np.random.default_rng(2).normal(size=(60, 200)) * np.linspace(3, 0.1, 200)
    found = principal_components(rows, 5)
    wanted = PCA(5).fit(rows)
    assert found.scale**2 == pytest.approx(wanted.explained_variance_, rel=1e-4)
    overlap = np.abs((found.axes.T * wanted.components_).sum(axis=1))
    assert overlap == pytest.approx(1, abs=1e-4)
    assert found.apply(rows).std(axis=0, ddof=1) == pytest.approx(1, rel=1e-4)


def test_projection_takes_only_the_rows_asked_for(tmp_path: Path) -> None:
    array = store(tmp_path, "train.features", np.random.default_rng(0).normal(size=(40, 6, 2)).astype(np.float16))
    assert project(array, 20, 3, seed=0).shape == (20, 3)


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_the_map_keeps_two_clusters_apart_and_is_the_same_twice(method: str) -> None:
    draws = np.random.default_rng(4)
    rows = draws.normal(size=(120, 30)) + 20 * (np.arange(120) % 2)[:, None]
    flat = flat_map(rows, method, seed=3)  # type: ignore[arg-type]
    assert np.abs(flat).max() == pytest.approx(1)
    one, other = flat[::2], flat[1::2]
    gap = np.linalg.norm(one.mean(axis=0) - other.mean(axis=0))
    assert gap > 2 * max(one.std(axis=0).max(), other.std(axis=0).max())
    assert (flat == flat_map(rows, method, seed=3)).all()  # type: ignore[arg-type]


def test_the_map_of_equal_rows_is_one_point() -> None:
    assert np.abs(flat_map(np.ones((5, 8)), "pca", seed=0)).max() == 0


def test_planted_label_errors_come_first() -> None:
    draws = np.random.default_rng(5)
    labels = draws.integers(0, 3, 300)
    rows = 4 * np.eye(3)[labels] + draws.normal(size=(300, 3)) * 0.5
    planted = [10, 50, 200]
    wrong = labels.copy()
    wrong[planted] = (wrong[planted] + 1) % 3
    found = label_errors.suspects(label_errors.out_of_fold(rows, wrong, 3), wrong)
    assert sorted(suspect.index for suspect in found[:3]) == planted
    assert all(suspect.suggested == labels[suspect.index] for suspect in found[:3])
    assert [s.margin for s in found] == sorted((s.margin for s in found), reverse=True)


def test_confident_learning_by_hand() -> None:
    # Mean confidence of class 0 in its own pictures: 0.6, of class 1: 0.7. The third picture clears 0.7 for class 1.
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.2, 0.8], [0.3, 0.7]])
    found = label_errors.suspects(probabilities, np.array([0, 0, 0, 1]))
    assert [(s.index, s.label, s.suggested) for s in found] == [(2, 0, 1)]
    assert found[0].margin == pytest.approx(0.6)


def test_out_of_fold_probabilities_stand_a_class_of_one_picture_and_one_class_alone() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 3))
    lone = label_errors.out_of_fold(rows, np.array([0] * 6 + [1] * 5 + [2]), 3)
    assert lone.sum(axis=1) == pytest.approx(1)
    assert label_errors.out_of_fold(rows, np.zeros(12, int), 2)[:, 0].tolist() == [1] * 12


def test_copies_across_splits_are_found_through_jpeg_brightness_and_mirrors(
    pictures: np.ndarray, tmp_path: Path
) -> None:
    train = np.random.default_rng(9).integers(0, 256, (30, 4, 4, 3))
    train = np.kron(train, np.ones((1, 8, 8, 1))).astype(np.uint8)
    train[3] = corrupt(pictures[:1], "jpeg", 2, 0)[0]
    train[4] = corrupt(pictures[1:2], "brightness", 1, 0)[0]
    train[5] = pictures[2, :, ::-1]
    test, other = store(tmp_path, "test.images", pictures), store(tmp_path, "train.images", train)
    found = near_duplicates.pairs(test, {"train": other}, 0.95)
    assert {(pair.test, pair.other, pair.mirrored) for pair in found} == {
        (0, 3, False),
        (1, 4, False),
        (2, 5, True),
    }
    assert [pair.similarity for pair in found] == sorted((pair.similarity for pair in found), reverse=True)


def test_pictures_that_are_all_alike_are_no_duplicates(tmp_path: Path) -> None:
    bar = np.zeros((32, 32, 3))
    bar[:, 14:18] = 200
    alike = np.clip(bar + np.random.default_rng(1).normal(0, 8, (60, 32, 32, 3)), 0, 255).astype(np.uint8)
    test, train = store(tmp_path, "test.images", alike[:20]), store(tmp_path, "train.images", alike[20:])
    assert near_duplicates.pairs(test, {"train": train}, 0.95) == []


def test_plain_pictures_are_like_none(tmp_path: Path) -> None:
    plain = np.full((3, 32, 32, 3), 80, np.uint8)
    assert near_duplicates.pairs(store(tmp_path, "a", plain), {"train": store(tmp_path, "b", plain)}, 0.95) == []


def test_the_album_stores_each_picture_once_in_its_place(pictures: np.ndarray, tmp_path: Path) -> None:
    array = store(tmp_path, "test.images", pictures)
    album = Album()
    assert [album.add("test", row) for row in (5, 0, 5)] == [0, 1, 0]
    sheet = album.sheet({"test": array}, 32)
    assert sheet.shape == (32, 32 * COLUMNS, 3)
    assert (sheet[:, :32] == pictures[5]).all()
    assert (sheet[:, 32:64] == pictures[0]).all()


def test_a_sheet_is_made_as_coarse_as_its_limit_wants() -> None:
    sheet = np.random.default_rng(0).integers(0, 256, (128, 1280, 3)).astype(np.uint8)
    fine, coarse = encode(sheet), encode(sheet, limit=60_000)
    assert len(coarse) <= 60_000 < len(fine)
    assert encode(sheet, limit=60_000) == coarse


def test_speed_is_that_of_a_model_that_takes_its_time() -> None:
    batches: list[int] = []

    def predict(batch: np.ndarray) -> np.ndarray:
        batches.append(len(batch))
        return np.zeros((len(batch), 2))

    found = speed.measure({"fp32": predict}, np.zeros((3, 8, 8, 3), np.uint8))["fp32"]
    assert batches == [speed.BATCH] * (1 + speed.BATCHES) + [1] * (1 + speed.SINGLES)
    assert found["images_per_second"] > 0
    assert found["latency_p95_ms"] >= found["latency_ms"] > 0
