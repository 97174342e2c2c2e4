"""The evaluation in a few lines of Markdown: for a Prefect artifact, a pull request, a terminal."""

from __future__ import annotations

from typing import Any

from graft.report.view import headline, percent, points


def markdown(record: dict[str, Any]) -> str:
    """A heading, the gain of the transfer and one table; no pictures, no scripts."""
    metrics, told = record["metrics"], headline(record)
    interval = f"{percent(metrics['accuracy_low'])} to {percent(metrics['accuracy_high'])}"
    rows = [
        ("Accuracy", f"{percent(metrics['accuracy'])} ({interval})"),
        *((f"Accuracy, {rival['name']}", percent(rival["value"])) for rival in record["contenders"][:-1]),
        ("F1, macro", percent(metrics["f1_macro"])),
        ("Log loss", f"{metrics['log_loss']:.3f}"),
        ("Calibration error", points(metrics["ece"])),
        *((("Accuracy, corrupted pictures", percent(metrics["corrupted_accuracy"])),) if record["robustness"] else ()),
        ("Labels worth a second look", str(metrics["label_suspects"])),
        ("Near duplicates across splits", str(metrics["near_duplicates"])),
    ]
    lines = [f"# {told.title}", "", told.sentence, "", "| | |", "|---|---|"]
    lines += [f"| {_cell(name)} | {value} |" for name, value in rows]
    lines += ["", *(f"- {note}" for note in record["notes"])] if record["notes"] else []
    return "\n".join([*lines, "", "The whole report: `graft report --open`."]) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")
