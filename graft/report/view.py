"""The words of the report: from findings to sentences and formatted numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graft.metrics import PairedTest

# Which contender stands for "without the transfer", best control first.
CONTROLS = ("random weights", "pixels alone", "frozen head", "commonest class")
CONTROL_WORDS = {
    "random weights": "the same network without pretraining",
    "pixels alone": "a classifier of raw pixels",
    "frozen head": "the head on frozen features",
    "commonest class": "always saying the commonest class",
}
LOWER_IS_BETTER = ("log_loss", "brier", "ece", "label_suspects", "near_duplicates")
SIGNIFICANT = 0.05
UPRIGHT = 3  # characters of a class name that fit above a narrow column
GAP = "\N{NO-BREAK SPACE}"  # between a number and its unit


@dataclass(frozen=True)
class Headline:
    """The gain of the transfer in one number and one sentence."""

    title: str
    sentence: str


def percent(value: float | None, digits: int = 1) -> str:
    """0.9875 as `98.8 %`; an unknown as a dash."""
    return "–" if value is None else f"{100 * value:.{digits}f}{GAP}%"


def points(value: float) -> str:
    """0.0312 as `3.1 points` (hundredths)."""
    return f"{100 * value:.1f}{GAP}points"


def signed(value: float) -> str:
    """0.0312 as `+3.1 points`."""
    return f"{100 * value:+.1f}{GAP}points".replace("-", "−")


def number(value: float | None, digits: int = 3) -> str:
    """A plain number, an unknown as a dash."""
    return "–" if value is None else f"{value:.{digits}f}"


def plain(value: Any) -> str:
    """A value of a metrics or parameters file as a person would write it there; a missing one as a dash."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(plain, value))}]"
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def size(value: int) -> str:
    """Bytes in the unit a person would choose."""
    return f"{value / 1e6:.1f} MB" if value >= 1e6 else f"{value / 1e3:.0f} kB"


def short(file: str) -> str:
    """The last two parts of a file's name: its class folder and itself."""
    return "/".join(file.split("/")[-2:])


def p_value(value: float) -> str:
    """`p = 0.013`, or a bound where more digits mean nothing."""
    return f"p{GAP}<{GAP}0.001" if value < 0.001 else f"p{GAP}={GAP}{value:.3f}"


def headline(record: Mapping[str, Any]) -> Headline:
    """What pretraining is worth on these pictures, measured against the best control there is."""
    rivals = {rival["name"]: rival for rival in record["contenders"][:-1]}
    control = next(name for name in CONTROLS if name in rivals)
    rival = rivals[control]
    against, accuracy = rival["against"], record["metrics"]["accuracy"]
    gain = against["difference"]
    title = f"The transfer gains {points(gain)}" if gain > 0 else f"The transfer gains nothing ({signed(gain)})"
    sure = "more than chance explains" if against["p_value"] < SIGNIFICANT else "which chance alone could explain"
    sentence = (
        f"{percent(accuracy)} of {record['metrics']['test_images']:,} test pictures are right, against "
        f"{percent(rival['value'])} with {CONTROL_WORDS[control]}: a difference of {signed(gain)} "
        f"(95 % interval {signed(against['low'])} to {signed(against['high'])}, {p_value(against['p_value'])}), {sure}."
    )
    if gain > 0 and "frozen head" in rivals and control != "frozen head":
        sentence += f" {_finetuning(rivals['frozen head'])}"
    return Headline(title, sentence)


def _finetuning(frozen: Mapping[str, Any]) -> str:
    share = frozen["against"]["difference"]
    if share == 0:
        return "Fine-tuning changed none of it."
    if share < 0:
        return f"Fine-tuning took {points(-share)} away: the frozen head alone has {percent(frozen['value'])}."
    return f"Fine-tuning accounts for {points(share)} of it."


def failings(record: Mapping[str, Any]) -> list[str]:
    """Where it fails: the weakest class, the commonest confusion, the worst corruption."""
    found = []
    known = [row for row in record["per_class"] if row["images"]]
    worst = min(known, key=lambda row: row["recall"])
    if worst["recall"] < 1:
        found.append(
            f"Weakest class: {worst['name']}, of whose {worst['images']} pictures {percent(worst['recall'])} are found."
        )
    confusion = np.array(record["confusion"]["counts"])
    off = confusion - np.diag(np.diag(confusion))
    if off.max():
        true, predicted = np.unravel_index(off.argmax(), off.shape)
        classes = record["classes"]
        times = "once" if off.max() == 1 else f"{off.max()} times"
        found.append(f"Commonest mistake: {classes[true]} taken for {classes[predicted]}, {times}.")
    if record["robustness"]:
        found.append(_worst_corruption(record["robustness"]))
    return found


def _worst_corruption(robustness: Mapping[str, Any]) -> str:
    mean = {name: sum(point["value"] for point in curve) / len(curve) for name, curve in robustness["curves"].items()}
    worst = min(mean, key=lambda name: mean[name])
    last = robustness["curves"][worst][-1]["value"]
    return (
        f"Hardest corruption: {worst}, {percent(mean[worst])} on average and {percent(last)} at full strength "
        f"(clean: {percent(robustness['clean']['value'])})."
    )


def trust(record: Mapping[str, Any]) -> list[str]:
    """Whether to believe it: honesty of the confidence, leaks, doubtful labels."""
    found = [confidence_sentence(record)]
    count = record["near_duplicates"]["count"]
    found.append(
        f"{count} of {record['metrics']['test_images']:,} test pictures look almost like one in training or validation."
        if count
        else "No test picture looks almost like one in training or validation."
    )
    suspects = record["label_errors"]["counts"]
    total = sum(suspects.values())
    found.append(
        f"{total:,} labels are worth a second look ({suspects['test']:,} in test, {suspects['train']:,} in training)."
        if total
        else "No label looks wrong."
    )
    return [*found, *record["notes"]]


def confidence_sentence(record: Mapping[str, Any]) -> str:
    """Is the network too sure or too shy, by how much, and what temperature scaling would mend."""
    calibration = record["calibration"]
    exported, other, temperature = (calibration[name] for name in ("exported", "other", "temperature"))
    total = sum(item["images"] for item in exported["bins"])
    gap = sum(item["images"] * (item["confidence"] - item["accuracy"]) for item in exported["bins"]) / total
    manner = "too sure" if gap > 0 else "too shy"
    sentence = f"Confidence is off by {points(exported['ece'])} on average, mostly {manner}."
    if other is None:
        return sentence
    scaling, changed = f"temperature of {temperature:.2f}", points(other["ece"])
    if calibration["inside"]:
        return f"{sentence} Without the {scaling} inside the file it would be {changed}."
    if other["ece"] < exported["ece"]:
        return f"{sentence} A {scaling} would bring that to {changed}: set export.calibrate."
    return f"{sentence} A {scaling} would not help: {changed}."


def calibration_rows(record: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The exported file and its alternative in words, each with its scores."""
    calibration = record["calibration"]
    inside, other = calibration["inside"], calibration["other"]
    if other is None:
        return [("as exported", calibration["exported"])]
    scaled = f"temperature {calibration['temperature']:.2f}"
    first, second = (f"as exported, {scaled}", "without scaling") if inside else ("as exported", scaled)
    return [(first, calibration["exported"]), (second, other)]


def compared(names: tuple[str, str], test: PairedTest) -> str:
    """Which of two models is better on the same pictures, and whether chance could explain it."""
    a, b = names
    sides = f"{test.only_b} of {test.images:,} test pictures are right only with {b}, {test.only_a} only with {a}"
    interval = f"95 % interval {signed(test.low)} to {signed(test.high)}, {p_value(test.p_value)}"
    if test.p_value >= SIGNIFICANT:
        return f"{sides}: a difference of {signed(test.difference)} that chance alone could explain ({interval})."
    winner = names[1] if test.difference > 0 else names[0]
    return f"{sides}: {winner} is better, by more than chance explains ({interval})."


def better(name: str, before: Any, after: Any) -> str:
    """`better`, `worse` or nothing, for a metric of that name."""
    if not isinstance(before, int | float) or not isinstance(after, int | float) or before == after:
        return ""
    last = name.rsplit(".", 1)[-1]
    if last in ("temperature", "test_images"):
        return ""
    lower = last.startswith(LOWER_IS_BETTER)
    return "better" if (after < before) == lower else "worse"


def class_rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The per-class table with the class each is most often taken for."""
    counts = record["confusion"]["counts"]
    rows = []
    for index, row in enumerate(record["per_class"]):
        others = [(count, other) for other, count in enumerate(counts[index]) if other != index and count]
        count, other = max(others, key=lambda pair: pair[0], default=(0, 0))
        rows.append({**row, "index": index, "taken_for": record["classes"][other] if count else None, "taken": count})
    return rows


def longest_name(record: Mapping[str, Any], shown: Sequence[int]) -> int:
    """Characters in the longest name of the classes `shown`."""
    return max(len(record["classes"][index]) for index in shown)


def shown_classes(record: Mapping[str, Any], most: int) -> Sequence[int]:
    """Classes the confusion matrix has room for: all, or those with the most mistakes, in class order."""
    counts = np.array(record["confusion"]["counts"])
    if len(counts) <= most:
        return list(range(len(counts)))
    wrong = counts.sum(axis=0) + counts.sum(axis=1) - 2 * np.diag(counts)
    return sorted(np.argsort(-wrong, kind="stable")[:most].tolist())
