"""The page, the metrics and the plots of a whole evaluation: every number shown is one that was measured."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from scipy.stats import binom, binomtest
from sklearn import metrics as reference
from stand_in import LEFT_OUT, TEMPERATURE, write_model, write_prepared

from graft import params, report
from graft.errors import GraftError, InputError
from graft.evaluation import baselines, stage
from graft.evaluation.corruptions import CORRUPTIONS, corrupt
from graft.evaluation.robustness import stratified
from graft.evaluation.run import run
from graft.evaluation.study import Study
from graft.inference import open_model
from graft.report.changes import Changes, since_commit
from graft.report.page import render

Truth = tuple[np.ndarray, np.ndarray]


@pytest.fixture(scope="module")
def page(evaluated: Path) -> str:
    return (evaluated / "report/index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def truth(evaluated: Path) -> Truth:
    """Probabilities and labels, read again from the exported file and the pictures."""
    study = Study(evaluated)
    model = open_model(evaluated / "models/onnx/model.fp32.onnx", "cpu", 1)
    return model.predict(study.images("test").read()), study.labels("test")


@pytest.fixture(scope="module")
def barest(quick: params.Params) -> params.Params:
    """Without the one part that takes its time."""
    return quick.model_copy(update={"evaluate": quick.evaluate.model_copy(update={"baselines": ()})})


class Sections(HTMLParser):
    """The page by section: `tables[id][row][column]` and `words[id]`, both as a person reads them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.words: dict[str, str] = {}
        self._section, self._cell, self._silent = "", False, False
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        told = dict(attributes)
        if tag == "section":
            self._section = told.get("id") or str(told.get("class"))
        if tag == "tr":
            self.tables.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self.tables[self._section][-1].append("")
            self._cell = True
        self._silent |= tag in ("script", "style")
        label = told.get("aria-label") if tag == "svg" else None
        self._say(label or " ")

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False
        self._silent &= tag not in ("script", "style")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.tables[self._section][-1][-1] += " ".join(data.split())
        if not self._silent:
            self._say(data)

    def _say(self, text: str) -> None:
        self.words[self._section] = " ".join(f"{self.words.get(self._section, '')} {text}".split())


@pytest.fixture(scope="module")
def sections(page: str) -> Sections:
    return Sections(page)


@pytest.fixture(scope="module")
def found(evaluated: Path) -> dict[str, Any]:
    return json.loads((evaluated / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def record(evaluated: Path) -> dict[str, Any]:
    return report.read_record(evaluated)


def share(value: float, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %"


def signed(value: float) -> str:
    return f"{100 * value:+.1f} points".replace("-", "−")


def interval(hits: int, total: int) -> str:
    wanted = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    return f"{share(wanted.low)} – {share(wanted.high)}"


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """With 15 steps, as its definition says, picture by picture."""
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    steps = np.ceil(confidence * 15)
    return sum(
        abs(confidence[steps == step].mean() - right[steps == step].mean()) * (steps == step).mean()
        for step in np.unique(steps)
    )


def test_metrics_json_holds_scikit_learns_numbers(found: dict[str, Any], truth: Truth) -> None:
    probabilities, labels = truth
    predicted, wide = probabilities.argmax(axis=1), probabilities.astype(np.float64)
    wide /= wide.sum(axis=1, keepdims=True)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted), abs=1e-6)
    for kind in ("macro", "weighted"):
        wanted = reference.precision_recall_fscore_support(labels, predicted, average=kind)[:3]
        assert [found[f"{name}_{kind}"] for name in ("precision", "recall", "f1")] == pytest.approx(wanted, abs=1e-6)
    assert found["log_loss"] == pytest.approx(reference.log_loss(labels, wide), abs=1e-5)
    assert found["brier"] == pytest.approx(reference.brier_score_loss(labels, wide), abs=1e-5)
    assert found["ece"] == pytest.approx(calibration_error(probabilities, labels), abs=1e-5)
    auc = reference.roc_auc_score(labels, wide, multi_class="ovr", average="macro")
    assert found["roc_auc_macro"] == pytest.approx(auc, abs=1e-5)
    binary = np.eye(10)[labels]
    ap = reference.average_precision_score(binary, probabilities, average="macro")
    assert found["average_precision_macro"] == pytest.approx(ap, abs=1e-5)
    assert found["test_images"] == len(labels)
    assert "top5_accuracy" not in found  # half of ten classes says nothing


def test_the_headline_is_the_paired_test_worked_out_by_hand(sections: Sections, found: dict[str, Any]) -> None:
    words = sections.words["hero"]
    gain = found["accuracy"] - found["baseline"]["pixels_alone_accuracy"]
    assert f"{share(found['accuracy'])} of 397 test pictures are right" in words
    assert f"against {share(found['baseline']['pixels_alone_accuracy'])} with a classifier of raw pixels" in words
    assert f"a difference of {signed(gain)}" in words


def test_the_headlines_interval_and_p_are_those_of_the_pictures_that_differ(
    evaluated: Path, sections: Sections, truth: Truth, record: dict[str, Any]
) -> None:
    probabilities, labels = truth
    study = Study(evaluated)
    known = baselines.pixels(study.images("train"), study.labels("train"), study.images("test"), 7) == labels
    ours = probabilities.argmax(axis=1) == labels
    won, lost = int((ours & ~known).sum()), int((known & ~ours).sum())
    total = len(labels) + 2
    centre, both = (won - lost) / total, (won + lost + 2) / total
    half = 1.959964 * np.sqrt((both - centre**2) / total)
    p = binomtest(min(won, lost), won + lost).pvalue - binom.pmf(won, won + lost, 0.5)
    words = sections.words["hero"]
    assert f"95 % interval {signed(centre - half)} to {signed(centre + half)}" in words
    assert (f"p = {p:.3f}" if p >= 0.001 else "p < 0.001") in words


def test_the_ladder_shows_every_contender_with_its_accuracy(
    page: str, evaluated: Path, sections: Sections, truth: Truth, found: dict[str, Any]
) -> None:
    probabilities, labels = truth
    train = Study(evaluated).labels("train")
    rows = {row[0]: row[1] for row in sections.tables["hero"]}
    hits = int((probabilities.argmax(axis=1) == labels).sum())
    assert rows["this model"] == share(hits / 397)
    assert f"95 % interval {interval(hits, 397)}" in page.replace("\N{NO-BREAK SPACE}", " ")
    assert rows["commonest class"] == share((labels == np.bincount(train).argmax()).mean())
    assert rows["pixels alone"] == share(found["baseline"]["pixels_alone_accuracy"])
    assert rows["frozen head"] == share(found["baseline"]["frozen_head_accuracy"])


def test_the_frozen_heads_accuracy_is_that_of_its_own_layers(evaluated: Path, found: dict[str, Any]) -> None:
    from safetensors.numpy import load_file

    layers = load_file(evaluated / "models/head/head.safetensors")
    study = Study(evaluated)
    values = (study.features("test").read().astype(np.float32) - layers["mean"]) / layers["std"]
    hidden = np.maximum(values @ layers["dense_0/kernel"] + layers["dense_0/bias"], 0)
    predicted = (hidden @ layers["dense_1/kernel"] + layers["dense_1/bias"]).argmax(axis=1)
    wanted = (predicted == study.labels("test")).mean()
    assert found["baseline"]["frozen_head_accuracy"] == pytest.approx(wanted, abs=1e-6)


def test_the_figures_of_the_first_minute(
    evaluated: Path, sections: Sections, truth: Truth, found: dict[str, Any]
) -> None:
    probabilities, labels = truth
    predicted = probabilities.argmax(axis=1)
    matrix = reference.confusion_matrix(labels, predicted)
    recalls, off = matrix.diagonal() / matrix.sum(axis=1), matrix - np.diag(matrix.diagonal())
    true, said = np.unravel_index(off.argmax(), off.shape)
    speed = json.loads((evaluated / "report/speed.json").read_text(encoding="utf-8"))["precisions"]["fp32"]
    words = sections.words["minute"]
    for part in (
        f"Accuracy {share((predicted == labels).mean())} {interval(int((predicted == labels).sum()), 397)}",
        f"F1, macro {share(reference.f1_score(labels, predicted, average='macro'))}",
        f"Log loss {found['log_loss']:.3f}",
        f"ROC AUC, macro {found['roc_auc_macro']:.4f}",
        f"Corrupted pictures {share(found['corrupted_accuracy'])}",
        f"Images a second {speed['images_per_second']:,.0f}",
        f"Weakest class: {recalls.argmin()}, of whose {matrix[recalls.argmin()].sum()} pictures {share(recalls.min())}",
        f"Commonest mistake: {true} taken for {said}, {off.max()} times",
        f"Confidence is off by {100 * calibration_error(probabilities, labels):.1f} points",
        f"{found['near_duplicates']} of 397 test pictures look almost like one",
        f"{found['label_suspects']} labels are worth a second look",
    ):
        assert part in words, part


def test_the_learning_curves_begin_and_end_where_the_history_does(sections: Sections) -> None:
    words = sections.words["learning"]
    assert "Training the head, 12 epochs" in words
    assert "accuracy by epoch: train from 50 % to 95.8 %, validation from 40 % to 95 %" in words
    assert "loss by epoch: train from 1 to 0.25, validation from 1.1 to 0.275" in words


def test_the_confusion_matrix_of_the_page_is_scikit_learns(sections: Sections, truth: Truth) -> None:
    probabilities, labels = truth
    wanted = reference.confusion_matrix(labels, probabilities.argmax(axis=1))
    shown = [[0 if cell == "·" else int(cell) for cell in row[1:]] for row in sections.tables["mistakes"][1:]]
    assert shown == wanted.tolist()


def test_the_class_table_of_the_page_is_scikit_learns(sections: Sections, truth: Truth) -> None:
    probabilities, labels = truth
    predicted = probabilities.argmax(axis=1)
    wanted = reference.precision_recall_fscore_support(labels, predicted)
    off = reference.confusion_matrix(labels, predicted) * (1 - np.eye(10, dtype=int))
    table = sections.tables["classes"]
    for digit, row in enumerate(table[1:11]):
        one = labels == digit
        assert row[:5] == [str(digit), str(wanted[3][digit]), *(share(wanted[n][digit]) for n in range(3))]
        assert row[5] == f"{reference.roc_auc_score(one, probabilities[:, digit]):.4f}"
        assert row[6] == f"{reference.average_precision_score(one, probabilities[:, digit]):.4f}"
        assert row[7] == (f"{off[digit].argmax()} ({off[digit].max()})" if off[digit].any() else "–")
    for row, kind in zip(table[11:], ("macro", "weighted"), strict=True):
        means = reference.precision_recall_fscore_support(labels, predicted, average=kind)[:3]
        assert row[1:5] == ["397", *map(share, means)]
    auc = reference.roc_auc_score(np.eye(10)[labels], probabilities, average="macro")
    assert table[11][5:7] == [
        f"{auc:.4f}",
        f"{reference.average_precision_score(np.eye(10)[labels], probabilities, average='macro'):.4f}",
    ]


def test_the_confidence_is_judged_as_exported_and_without_the_temperature_inside(
    sections: Sections, truth: Truth, found: dict[str, Any]
) -> None:
    probabilities, labels = truth
    unscaled = probabilities.astype(np.float64) ** TEMPERATURE  # logits times T are probabilities to the power of T
    unscaled /= unscaled.sum(axis=1, keepdims=True)
    kinds = {f"as exported, temperature {TEMPERATURE}": probabilities.astype(np.float64), "without scaling": unscaled}
    for row, (kind, values) in zip(sections.tables["calibration"][1:], kinds.items(), strict=True):
        assert row == [
            kind,
            share(calibration_error(values, labels), 2),
            f"{reference.log_loss(labels, values / values.sum(axis=1, keepdims=True)):.4f}",
            f"{reference.brier_score_loss(labels, values / values.sum(axis=1, keepdims=True)):.4f}",
        ]
    assert found["temperature"] == TEMPERATURE
    assert f"{100 * calibration_error(unscaled, labels):.1f} points" in sections.words["calibration"]


def test_the_galleries_hold_the_surest_mistakes_and_the_least_sure_hits(sections: Sections, truth: Truth) -> None:
    probabilities, labels = truth
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    wrong, right = np.flatnonzero(predicted != labels), np.flatnonzero(predicted == labels)
    mistakes = wrong[np.argsort(-confidence[wrong], kind="stable")][:4]
    hits = right[np.argsort(confidence[right], kind="stable")][:4]
    words = sections.words["gallery"]
    for row in mistakes:
        assert f"{predicted[row]} {share(confidence[row])} label: {labels[row]} {labels[row]}/{row:04d}.png" in words
    for row in hits:
        assert f"{predicted[row]} {share(confidence[row])} {labels[row]}/{row:04d}.png" in words


def test_the_robustness_table_is_the_file_asked_again(
    evaluated: Path, sections: Sections, found: dict[str, Any]
) -> None:
    study = Study(evaluated)
    model = open_model(evaluated / "models/onnx/model.fp32.onnx", "cpu", 1)
    chosen = stratified(study.labels("test"), 12, 7)
    pictures, labels = study.images("test").take(chosen), study.labels("test")[chosen]
    means = []
    for name, row in zip(CORRUPTIONS, sections.tables["robustness"][1:], strict=True):
        shares = [
            (model.predict(corrupt(pictures, name, strength, 7)).argmax(axis=1) == labels).mean()
            for strength in range(1, 6)
        ]
        assert row == [name.replace("jpeg", "JPEG"), *map(share, shares), share(np.mean(shares))]
        means.append(np.mean(shares))
    clean = share((model.predict(pictures).argmax(axis=1) == labels).mean())
    assert "The same 12 test pictures made worse in five steps" in sections.words["robustness"]
    assert f"strength 0 is clean ({clean})" in sections.words["robustness"]
    assert found["corrupted_accuracy"] == pytest.approx(np.mean(means), abs=1e-6)


def test_every_precision_is_shown_with_size_accuracy_and_speed(
    evaluated: Path, sections: Sections, truth: Truth
) -> None:
    speed = json.loads((evaluated / "report/speed.json").read_text(encoding="utf-8"))["precisions"]
    images, labels = Study(evaluated).images("test").read(), truth[1]
    said = {
        name: open_model(evaluated / f"models/onnx/model.{name}.onnx", "cpu", 1).predict(images).argmax(axis=1)
        for name in speed
    }
    rows = {row[0]: row[1:] for row in sections.tables["precisions"][1:]}
    assert list(rows) == ["fp32", "int8"]
    for name, row in rows.items():
        hits = int((said[name] == labels).sum())
        assert row == [
            f"{(evaluated / f'models/onnx/model.{name}.onnx').stat().st_size / 1000:.0f} kB",
            share(hits / 397),
            interval(hits, 397),
            share((said[name] == said["fp32"]).mean()),
            {"fp32": "3e-07", "int8": "0.03"}[name],
            f"{speed[name]['images_per_second']:,.0f}",
            f"{speed[name]['latency_ms']:.2f} ms",
            f"{speed[name]['latency_p95_ms']:.2f} ms",
        ]
    assert f"Not shipped: {LEFT_OUT}." in sections.words["precisions"]


def test_suspects_and_near_duplicates_are_shown_with_their_own_numbers(
    evaluated: Path, sections: Sections, record: dict[str, Any]
) -> None:
    study, words = Study(evaluated), sections.words["fix"]
    items = record["pictures"]["items"]
    counts = record["label_errors"]["counts"]
    assert f"{counts['test']} in test, {counts['train']} in training" in words
    for suspect in record["label_errors"]["listed"]:
        file = "/".join(items[suspect["picture"]]["file"].split("/")[-2:])
        line = f"labelled {suspect['label']} → , more likely {suspect['suggested']} {share(suspect['probability'])}"
        assert f"{line} {items[suspect['picture']]['split']}: {file}" in words
    assert f"{record['near_duplicates']['count']} test pictures correlate by 0.93 or more" in words
    assert record["near_duplicates"]["listed"]
    for pair in record["near_duplicates"]["listed"]:
        one, other = (items[pair[side]] for side in ("test", "other"))
        pixels = [study.images(item["split"]).take(np.array([item["row"]]))[0].astype(float) for item in (one, other)]
        pixels[1] = pixels[1][:, ::-1] if pair["mirrored"] else pixels[1]
        wanted = np.corrcoef(pixels[0].ravel(), pixels[1].ravel())[0, 1]
        assert pair["similarity"] == pytest.approx(wanted, abs=1e-5)
        assert f"{wanted:.3f}" in words


def test_the_page_names_what_was_quarantined_and_removed(sections: Sections) -> None:
    words = sections.words["fix"]
    assert "Unreadable, quarantined: 1" in words
    assert "seven/torn.png" in words
    assert "the file ends early" in words
    assert "Exact copies, removed: 1" in words


def test_the_splits_and_the_sums_of_the_files_are_those_on_the_disk(evaluated: Path, sections: Sections) -> None:
    study = Study(evaluated)
    for row, split in zip(sections.tables["data"][1:], ("train", "validation", "test"), strict=True):
        each = np.bincount(study.labels(split))
        assert row == [split, f"{each.sum():,}", str(each.min()), str(each.max())]
    for name in ("fp32", "int8"):
        content = (evaluated / f"models/onnx/model.{name}.onnx").read_bytes()
        assert f"SHA-256 of {name} {hashlib.sha256(content).hexdigest()}" in sections.words["provenance"]
    assert f"Data fingerprint {'f' * 64}" in sections.words["provenance"]
    assert f"onnx {onnx.__version__}" in sections.words["provenance"]


def test_the_map_places_pictures_of_the_test_set(sections: Sections, record: dict[str, Any]) -> None:
    assert "120 test pictures as the frozen network sees them" in sections.words["map"]
    numbers = [point[2] for point in record["map"]["points"]]
    assert len(set(numbers)) == 120
    assert {record["pictures"]["items"][number]["split"] for number in numbers} == {"test"}


def test_what_changed_is_on_the_page(evaluated: Path, record: dict[str, Any]) -> None:
    changes = Changes(
        commit="abc-dirty",
        against="abc",
        subject="First",
        metrics=[("accuracy", 0.9, 0.95), ("log_loss", 0.2, 0.3), ("test_images", 397, None)],
        parameters=[("head.hidden", [512], [512, 128]), ("export.calibrate", False, True)],
    )
    sheet = (evaluated / "data/evaluation/pictures.webp").read_bytes()
    rows = Sections(render(record, sheet, changes, None)).tables["changes"][1:]
    assert rows == [
        ["accuracy", "0.9", "0.95", "▲ better"],
        ["log_loss", "0.2", "0.3", "▼ worse"],
        ["test_images", "397", "–", ""],
        ["head.hidden", "[512]", "[512, 128]", "parameter"],
        ["export.calibrate", "false", "true", "parameter"],
    ]


def test_among_many_classes_the_first_five_are_counted_and_shown(evaluated: Path, record: dict[str, Any]) -> None:
    draws = np.random.default_rng(3)
    probabilities, labels = draws.dirichlet(np.ones(20), 50), draws.integers(0, 20, 50)
    names = [str(number) for number in range(20)]
    scores = stage.summarise(stage.Judged(probabilities, labels, names, names), record)
    wanted = reference.top_k_accuracy_score(labels, probabilities, k=5, labels=range(20))
    assert scores["top5_accuracy"] == pytest.approx(wanted)
    sheet = (evaluated / "data/evaluation/pictures.webp").read_bytes()
    page = render({**record, "metrics": {**record["metrics"], "top5_accuracy": wanted}}, sheet, Changes(), None)
    assert f"Top five {share(wanted)}" in Sections(page).words["minute"]


def test_the_page_refers_to_nothing_outside_and_is_small(page: str) -> None:
    assert len(page.encode()) < 3_000_000
    assert not re.findall(r"""(?:src|href)=["']?(?!#|data:)[^"'>]+""", page)
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page


def test_two_evaluations_write_the_same_bytes(evaluated: Path, quick: params.Params, tmp_path: Path) -> None:
    copy(evaluated, tmp_path)
    run(quick, tmp_path)
    outputs = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    written = [path for path in outputs if path.parts[0] in ("metrics.json", "plots") or "evaluation" in path.parts]
    assert len(written) >= 12
    for path in written:
        assert (tmp_path / path).read_bytes() == (evaluated / path).read_bytes(), path


def test_plots_hold_a_row_a_picture_and_a_row_an_epoch(evaluated: Path, truth: Truth) -> None:
    probabilities, labels = truth
    with (evaluated / "plots/confusion.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["actual"]) for row in rows] == labels.tolist()
    assert [int(row["predicted"]) for row in rows] == probabilities.argmax(axis=1).tolist()
    head = (evaluated / "plots/history/head.csv").read_text(encoding="utf-8").splitlines()
    assert head[0] == "epoch,loss,accuracy,val_loss,val_accuracy,learning_rate"
    assert len(head) == 13


def test_the_mean_roc_curve_of_the_plots_is_scikit_learns(evaluated: Path, truth: Truth) -> None:
    probabilities, labels = truth
    rates = np.loadtxt(evaluated / "plots/roc.csv", delimiter=",", skiprows=1)
    wanted = []
    for digit in range(10):
        false_rate, true_rate, _ = reference.roc_curve(labels == digit, probabilities[:, digit])
        wanted.append(np.interp(rates[:, 0], false_rate, true_rate))
    assert rates[:, 1] == pytest.approx(np.mean(wanted, axis=0), abs=0.01)  # thinned to a point a percent


def test_the_summary_is_short_and_says_the_gain(evaluated: Path, found: dict[str, Any]) -> None:
    summary = (evaluated / "data/evaluation/summary.md").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    assert summary.startswith("# The transfer gains ")
    assert share(found["accuracy"]) in summary
    assert len(summary.splitlines()) < 30


def test_class_names_are_escaped(evaluated: Path, barest: params.Params, tmp_path: Path) -> None:
    copy_with_classes(evaluated, tmp_path, ["<script>alert(1)</script>", "a & b"])
    run(barest, tmp_path)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def copy(project: Path, root: Path) -> None:
    """What the stage reads of `project`."""
    for folder in ("data", "models"):
        shutil.copytree(project / folder, root / folder, ignore=shutil.ignore_patterns("evaluation"))


def copy_with_classes(
    project: Path, root: Path, classes: list[str], keep: slice = slice(None), labels: list[int] | None = None
) -> None:
    """`project` with fewer classes, its test split being what `keep` and `labels` leave of it."""
    copy(project, root)
    study = Study(root)
    splits = {}
    for name in ("train", "validation", "test"):
        values = study.labels(name) % len(classes)
        splits[name] = (study.images(name).read(), values)
    images, values = splits["test"]
    chosen = np.flatnonzero(np.isin(values, labels))[keep] if labels is not None else np.arange(len(values))[keep]
    splits["test"] = (images[chosen], values[chosen])
    for split in splits:
        for path in (root / "data/prepared").glob(f"{split}.*.npy"):
            path.unlink()
    write_prepared(root / "data/prepared", splits, classes)
    layers = dict(np.load(io_layers(root, len(classes))))
    for name in ("fp32", "int8"):
        write_model(root / f"models/onnx/model.{name}.onnx", layers, classes)
    narrow_head(root, len(classes))


def io_layers(root: Path, classes: int) -> Path:
    """The exported network's layers with as many outputs as there are classes."""
    from onnx import numpy_helper

    graph = onnx.load(root / "models/onnx/model.fp32.onnx").graph
    arrays = {item.name: numpy_helper.to_array(item) for item in graph.initializer if item.name.startswith("dense")}
    arrays["dense_1/kernel"] = arrays["dense_1/kernel"][:, :classes]
    arrays["dense_1/bias"] = arrays["dense_1/bias"][:classes]
    np.savez(root / "layers.npz", **arrays)
    return root / "layers.npz"


def narrow_head(root: Path, classes: int) -> None:
    from safetensors.numpy import load_file, save_file

    path = root / "models/head/head.safetensors"
    layers = load_file(path)
    layers["dense_1/kernel"] = np.ascontiguousarray(layers["dense_1/kernel"][:, :classes])
    layers["dense_1/bias"] = layers["dense_1/bias"][:classes]
    save_file(layers, path)


@pytest.mark.parametrize(
    ("labels", "keep", "words"),
    [
        ([1], slice(None), "All test pictures are of one class"),
        ([0, 1], slice(0, 1), "Only 1 test pictures"),
        ([0], slice(0, 30), "No test pictures of 1 of 2 classes (odd)"),
    ],
    ids=["one class", "one image", "a missing class"],
)
def test_a_poor_test_set_is_measured_and_the_page_says_so(
    evaluated: Path, quick: params.Params, tmp_path: Path, labels: list[int], keep: slice, words: str
) -> None:
    copy_with_classes(evaluated, tmp_path, ["even", "odd"], keep, labels)
    run(quick, tmp_path)
    assert words in Sections((tmp_path / "report/index.html").read_text(encoding="utf-8")).words["minute"]


def test_an_empty_test_set_is_one_sentence(evaluated: Path, barest: params.Params, tmp_path: Path) -> None:
    copy_with_classes(evaluated, tmp_path, ["even", "odd"], slice(0, 0))
    with pytest.raises(InputError, match="test split is empty"):
        run(barest, tmp_path)


def test_probabilities_that_are_not_numbers_are_one_sentence(
    evaluated: Path, barest: params.Params, tmp_path: Path
) -> None:
    copy(evaluated, tmp_path)
    layers = dict(np.load(io_layers(tmp_path, 10)))
    layers["dense_1/bias"] = np.full(10, np.nan)
    write_model(tmp_path / "models/onnx/model.fp32.onnx", layers, [str(digit) for digit in range(10)])
    with pytest.raises(GraftError, match="not numbers for 397 of 397 images"):
        run(barest, tmp_path)


@pytest.mark.parametrize(
    ("gone", "words"),
    [
        ("data/prepared/dataset.json", "run the prepare stage"),
        ("data/features/test.features-00000.npy", "run the extract stage"),
        ("models/head/head.safetensors", "run the train stage"),
        ("models/finetuned/history.json", "run the finetune stage"),
        ("models/onnx/export.json", "run the export stage"),
        ("models/onnx/model.fp32.onnx", "no model at"),
    ],
)
def test_a_missing_input_names_the_stage_that_makes_it(
    evaluated: Path, barest: params.Params, tmp_path: Path, gone: str, words: str
) -> None:
    copy(evaluated, tmp_path)
    (tmp_path / gone).unlink()
    with pytest.raises(InputError, match=words):
        run(barest, tmp_path)


def test_a_model_of_other_classes_is_refused(evaluated: Path, barest: params.Params, tmp_path: Path) -> None:
    copy(evaluated, tmp_path)
    layers = dict(np.load(io_layers(tmp_path, 3)))
    write_model(tmp_path / "models/onnx/model.fp32.onnx", layers, ["a", "b", "c"])
    with pytest.raises(InputError, match="made for other pictures"):
        run(barest, tmp_path)


def test_a_report_without_an_evaluation_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="graft run"):
        report.write(tmp_path)


def test_speed_of_other_files_is_not_shown(evaluated: Path, tmp_path: Path) -> None:
    for folder in ("data", "report"):
        shutil.copytree(evaluated / folder, tmp_path / folder)
    speed = json.loads((tmp_path / "report/speed.json").read_text(encoding="utf-8"))
    speed["files"]["fp32"] = "0" * 64
    (tmp_path / "report/speed.json").write_text(json.dumps(speed), encoding="utf-8")
    page = report.write(tmp_path).read_text(encoding="utf-8")
    assert "Speed was not measured on this machine" in page
    assert "Images a second" not in page


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """A git repository with one commit of metrics and parameters."""
    (tmp_path / "metrics.json").write_text('{"accuracy": 0.9, "baseline": {"pixels": 0.5}}', encoding="utf-8")
    (tmp_path / "params.yaml").write_text("seed: 7\nhead: {epochs: 3}\n", encoding="utf-8")
    commit(tmp_path, "First", new=True)
    return tmp_path


def commit(root: Path, subject: str, new: bool = False) -> None:
    identity = ("-c", "user.name=T", "-c", "user.email=t@example.org")
    for command in (("init", "-q"),) if new else ():
        subprocess.run(["git", *command], cwd=root, check=True)
    subprocess.run(["git", "add", "-A"], cwd=root, check=True)
    subprocess.run(["git", *identity, "commit", "-qm", subject], cwd=root, check=True)


def test_changes_since_the_last_commit_are_those_of_the_files(repository: Path) -> None:
    (repository / "metrics.json").write_text('{"accuracy": 0.95, "baseline": {"pixels": 0.5}}', encoding="utf-8")
    (repository / "params.yaml").write_text("seed: 7\nhead: {epochs: 5}\n", encoding="utf-8")
    found = since_commit(repository)
    assert found.subject == "First"
    assert found.metrics == [("accuracy", 0.9, 0.95)]
    assert found.parameters == [("head.epochs", 3, 5)]
    assert found.commit is not None
    assert found.commit.endswith("-dirty")


def test_once_committed_the_change_before_is_shown(repository: Path) -> None:
    (repository / "metrics.json").write_text('{"accuracy": 0.95}', encoding="utf-8")
    commit(repository, "Second")
    found = since_commit(repository)
    assert (found.subject, found.metrics[0]) == ("First", ("accuracy", 0.9, 0.95))
    assert ("baseline.pixels", 0.5, None) in found.metrics


def test_a_first_commit_has_nothing_before_it(repository: Path) -> None:
    assert since_commit(repository).against is None


def test_outside_git_there_is_nothing_to_compare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert since_commit(tmp_path).commit is None
