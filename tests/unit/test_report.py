"""The page, the metrics and the plots of a whole evaluation: every number shown is one that was measured."""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from sklearn import metrics as reference
from stand_in import write_model, write_prepared, write_project

from graft import params, report
from graft.errors import GraftError, InputError
from graft.evaluation.run import run
from graft.evaluation.study import Study
from graft.inference import open_model
from graft.report.changes import since_commit

TEXT = (Path(__file__).parents[2] / "params.yaml").read_text(encoding="utf-8")
QUICK = ("evaluate.corruption_images=12", "evaluate.gallery=4", "evaluate.map_images=120", "evaluate.map=pca")


@pytest.fixture(scope="module")
def settings() -> params.Params:
    return params.parse(params.override(TEXT, QUICK))


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, settings: params.Params) -> Path:
    """An evaluated project of digits."""
    root = tmp_path_factory.mktemp("project")
    write_project(root)
    run(settings, root)
    return root


@pytest.fixture(scope="module")
def page(project: Path) -> str:
    return (project / "report/index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def truth(project: Path) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities and labels, read again from the exported file and the pictures."""
    study = Study(project)
    model = open_model(project / "models/onnx/model.fp32.onnx", "cpu", 1)
    return model.predict(study.images("test").read()), study.labels("test")


class Tables(HTMLParser):
    """The text of every table cell of a page, by section: `sections[id][row][column]`."""

    def __init__(self) -> None:
        super().__init__()
        self.sections: dict[str, list[list[str]]] = {}
        self._section, self._cell = "", False

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag == "section":
            self._section = dict(attributes).get("id") or "hero"
        if tag == "tr":
            self.sections.setdefault(self._section, []).append([])
        if tag in ("td", "th"):
            self.sections[self._section][-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = False

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.sections[self._section][-1][-1] += " ".join(data.split())


@pytest.fixture(scope="module")
def tables(page: str) -> dict[str, list[list[str]]]:
    parser = Tables()
    parser.feed(page)
    return parser.sections


def text_of(page: str) -> str:
    body = re.sub(r"<(script|style).*?</\1>", " ", page, flags=re.S)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", body)).split())


def share(value: float) -> str:
    return f"{100 * value:.1f} %"


def test_metrics_json_holds_scikit_learns_numbers(project: Path, truth: tuple[np.ndarray, np.ndarray]) -> None:
    found = json.loads((project / "metrics.json").read_text(encoding="utf-8"))
    probabilities, labels = truth
    predicted, wide = probabilities.argmax(axis=1), probabilities.astype(np.float64)
    wide /= wide.sum(axis=1, keepdims=True)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted), abs=1e-6)
    for kind in ("macro", "weighted"):
        wanted = reference.precision_recall_fscore_support(labels, predicted, average=kind)[:3]
        assert [found[f"{name}_{kind}"] for name in ("precision", "recall", "f1")] == pytest.approx(wanted, abs=1e-6)
    assert found["log_loss"] == pytest.approx(reference.log_loss(labels, wide), abs=1e-5)
    assert found["brier"] == pytest.approx(reference.brier_score_loss(labels, wide), abs=1e-5)
    auc = reference.roc_auc_score(labels, wide, multi_class="ovr", average="macro")
    assert found["roc_auc_macro"] == pytest.approx(auc, abs=1e-5)
    binary = np.eye(10)[labels]
    ap = reference.average_precision_score(binary, probabilities, average="macro")
    assert found["average_precision_macro"] == pytest.approx(ap, abs=1e-5)
    assert found["test_images"] == len(labels)
    assert "top5_accuracy" not in found  # half of ten classes says nothing


def test_the_class_table_of_the_page_is_scikit_learns(
    tables: dict[str, list[list[str]]], truth: tuple[np.ndarray, np.ndarray]
) -> None:
    probabilities, labels = truth
    predicted = probabilities.argmax(axis=1)
    wanted = reference.precision_recall_fscore_support(labels, predicted)
    for digit, row in enumerate(tables["classes"][1:11]):
        one = labels == digit
        assert row[:5] == [str(digit), str(wanted[3][digit]), *(share(wanted[n][digit]) for n in range(3))]
        assert row[5] == f"{reference.roc_auc_score(one, probabilities[:, digit]):.4f}"
        assert row[6] == f"{reference.average_precision_score(one, probabilities[:, digit]):.4f}"


def test_the_confusion_matrix_of_the_page_is_scikit_learns(
    tables: dict[str, list[list[str]]], truth: tuple[np.ndarray, np.ndarray]
) -> None:
    probabilities, labels = truth
    wanted = reference.confusion_matrix(labels, probabilities.argmax(axis=1))
    shown = [[0 if cell == "·" else int(cell) for cell in row[1:]] for row in tables["mistakes"][1:]]
    assert shown == wanted.tolist()


def test_the_ladder_shows_every_contender_with_its_accuracy(
    project: Path, tables: dict[str, list[list[str]]], truth: tuple[np.ndarray, np.ndarray]
) -> None:
    probabilities, labels = truth
    train = Study(project).labels("train")
    rows = {row[0]: row[1] for row in tables["hero"]}
    assert rows["this model"] == share((probabilities.argmax(axis=1) == labels).mean())
    assert rows["commonest class"] == share((labels == np.bincount(train).argmax()).mean())
    assert {"pixels alone", "frozen head"} <= rows.keys()


def test_the_frozen_heads_accuracy_is_that_of_its_own_layers(project: Path) -> None:
    from safetensors.numpy import load_file

    layers = load_file(project / "models/head/head.safetensors")
    study = Study(project)
    values = (study.features("test").read().astype(np.float32) - layers["mean"]) / layers["std"]
    hidden = np.maximum(values @ layers["dense_0/kernel"] + layers["dense_0/bias"], 0)
    predicted = (hidden @ layers["dense_1/kernel"] + layers["dense_1/bias"]).argmax(axis=1)
    found = json.loads((project / "metrics.json").read_text(encoding="utf-8"))
    wanted = (predicted == study.labels("test")).mean()
    assert found["baseline"]["frozen_head_accuracy"] == pytest.approx(wanted, abs=1e-6)


def test_the_headline_and_figures_are_those_of_the_metrics(project: Path, page: str) -> None:
    found = json.loads((project / "metrics.json").read_text(encoding="utf-8"))
    words = text_of(page)
    gain = found["accuracy"] - found["baseline"]["pixels_alone_accuracy"]
    assert f"{100 * gain:+.1f} points".replace("-", "−") in words
    for name in ("accuracy", "accuracy_low", "accuracy_high", "f1_macro", "corrupted_accuracy"):
        assert share(found[name]) in words, name
    for name in ("log_loss", "log_loss_scaled"):
        assert f"{found[name]:.4f}" in words, name
    assert f"{found['brier']:.4f}" in words
    assert f"{100 * found['ece']:.2f} %" in words
    assert f"{100 * found['ece_scaled']:.2f} %" in words
    assert f"temperature of {found['temperature']:.2f}" in words
    assert f"{found['near_duplicates']} of {found['test_images']} test pictures" in words


def test_the_page_names_what_was_quarantined_and_removed(page: str) -> None:
    words = text_of(page)
    assert "Unreadable, quarantined: 1" in words
    assert "seven/torn.png" in words
    assert "the file ends early" in words
    assert "Exact copies, removed: 1" in words


def test_the_page_shows_sizes_and_speed_of_every_precision(project: Path, tables: dict[str, list[list[str]]]) -> None:
    speed = json.loads((project / "report/speed.json").read_text(encoding="utf-8"))
    rows = {row[0]: row for row in tables["precisions"][1:]}
    for name in ("fp32", "int8"):
        size = (project / f"models/onnx/model.{name}.onnx").stat().st_size
        assert rows[name][1] == f"{size / 1000:.0f} kB"
        assert rows[name][5] == f"{speed['precisions'][name]['images_per_second']:,.0f}"


def test_the_page_refers_to_nothing_outside_and_is_small(page: str) -> None:
    assert len(page.encode()) < 3_000_000
    assert not re.findall(r"""(?:src|href)=["']?(?!#|data:)[^"'>]+""", page)
    assert "http:" not in page
    assert "https:" not in page
    assert "default-src 'none'" in page


def test_two_evaluations_write_the_same_bytes(project: Path, settings: params.Params, tmp_path: Path) -> None:
    for folder in ("data", "models"):
        shutil.copytree(project / folder, tmp_path / folder, ignore=shutil.ignore_patterns("evaluation"))
    run(settings, tmp_path)
    outputs = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    written = [path for path in outputs if path.parts[0] in ("metrics.json", "plots") or "evaluation" in path.parts]
    assert len(written) >= 12
    for path in written:
        assert (tmp_path / path).read_bytes() == (project / path).read_bytes(), path


def test_a_changed_picture_changes_what_is_written(project: Path) -> None:
    study = Study(project)
    record = report.read_record(project)
    assert record["pictures"]["items"][0]["file"] in study.names("test")


def test_plots_hold_a_row_a_picture_and_a_row_an_epoch(project: Path, truth: tuple[np.ndarray, np.ndarray]) -> None:
    probabilities, labels = truth
    with (project / "plots/confusion.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["actual"]) for row in rows] == labels.tolist()
    assert [int(row["predicted"]) for row in rows] == probabilities.argmax(axis=1).tolist()
    head = (project / "plots/history/head.csv").read_text(encoding="utf-8").splitlines()
    assert head[0] == "epoch,loss,accuracy,val_loss,val_accuracy,learning_rate"
    assert len(head) == 13


def test_the_summary_is_short_and_says_the_gain(project: Path) -> None:
    summary = (project / "data/evaluation/summary.md").read_text(encoding="utf-8").replace("\N{NO-BREAK SPACE}", " ")
    found = json.loads((project / "metrics.json").read_text(encoding="utf-8"))
    assert summary.startswith("# The transfer gains ")
    assert share(found["accuracy"]) in summary
    assert len(summary.splitlines()) < 30


def test_class_names_are_escaped(settings: params.Params, tmp_path: Path) -> None:
    copy_with_classes(tmp_path, ["<script>alert(1)</script>", "a & b"])
    run(settings, tmp_path)
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert" in page


def copy_with_classes(
    root: Path, classes: list[str], keep: slice = slice(None), labels: list[int] | None = None
) -> None:
    """A project of two classes whose test split is what `keep` and `labels` leave of it."""
    write_project(root)
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
    import onnx
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
    settings: params.Params, tmp_path: Path, labels: list[int], keep: slice, words: str
) -> None:
    copy_with_classes(tmp_path, ["even", "odd"], keep, labels)
    run(settings, tmp_path)
    assert words in text_of((tmp_path / "report/index.html").read_text(encoding="utf-8"))


def test_an_empty_test_set_is_one_sentence(settings: params.Params, tmp_path: Path) -> None:
    copy_with_classes(tmp_path, ["even", "odd"], slice(0, 0))
    with pytest.raises(InputError, match="test split is empty"):
        run(settings, tmp_path)


def test_probabilities_that_are_not_numbers_are_one_sentence(settings: params.Params, tmp_path: Path) -> None:
    write_project(tmp_path)
    layers = dict(np.load(io_layers(tmp_path, 10)))
    layers["dense_1/bias"] = np.full(10, np.nan)
    write_model(tmp_path / "models/onnx/model.fp32.onnx", layers, [str(digit) for digit in range(10)])
    with pytest.raises(GraftError, match="not numbers for 397 of 397 images"):
        run(settings, tmp_path)


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
    project: Path, settings: params.Params, tmp_path: Path, gone: str, words: str
) -> None:
    for folder in ("data", "models"):
        shutil.copytree(project / folder, tmp_path / folder)
    (tmp_path / gone).unlink()
    with pytest.raises(InputError, match=words):
        run(settings, tmp_path)


def test_a_model_of_other_classes_is_refused(project: Path, settings: params.Params, tmp_path: Path) -> None:
    for folder in ("data", "models"):
        shutil.copytree(project / folder, tmp_path / folder)
    layers = dict(np.load(io_layers(tmp_path, 3)))
    write_model(tmp_path / "models/onnx/model.fp32.onnx", layers, ["a", "b", "c"])
    with pytest.raises(InputError, match="made for other pictures"):
        run(settings, tmp_path)


def test_a_report_without_an_evaluation_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="graft run"):
        report.write(tmp_path)


def test_speed_of_other_files_is_not_shown(project: Path, tmp_path: Path) -> None:
    for folder in ("data", "report"):
        shutil.copytree(project / folder, tmp_path / folder)
    speed = json.loads((tmp_path / "report/speed.json").read_text(encoding="utf-8"))
    speed["files"]["fp32"] = "0" * 64
    (tmp_path / "report/speed.json").write_text(json.dumps(speed), encoding="utf-8")
    words = text_of(report.write(tmp_path).read_text(encoding="utf-8"))
    assert "Speed was not measured on this machine" in words
    assert "Images a second" not in words


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
