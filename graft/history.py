"""What every retraining decided, kept for good: a line of JSON each, and a plot that stays readable over years.

In: `monitoring/retraining.jsonl`. Out: records, or one SVG picture.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = Path("monitoring/retraining.jsonl")
WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 34, 34
COLOURS = {"promote": "#1a7f37", "keep": "#8c959f", "refuse": "#cf222e"}
NAMES = {"promote": "promoted", "keep": "champion kept", "refuse": "refused"}
TICKS = 6


def append(root: Path, record: Mapping[str, Any]) -> None:
    """Add one record; a line that a kill cut short is left behind on a line of its own."""
    path = root / FILE
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, ensure_ascii=False)
    with path.open("a+b") as file:
        if file.seek(0, 2):
            file.seek(-1, 2)
            if file.read(1) != b"\n":
                text = f"\n{text}"
        file.write(f"{text}\n".encode())


def read(root: Path) -> list[dict[str, Any]]:
    """All records, old to new."""
    try:
        lines = (root / FILE).read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def plot(records: Sequence[Mapping[str, Any]]) -> str:
    """Accuracy by date as SVG: a point for each challenger by what became of it, a step line for the live model."""
    measured = [record["accuracy"] for record in records if record.get("accuracy") is not None]
    if not measured:
        return _svg(_text(WIDTH / 2, HEIGHT / 2, "No model has been judged yet", "middle"))
    low, high = _range(measured)
    times = [datetime.datetime.fromisoformat(record["time"]).timestamp() for record in records]
    # What was refused before it could be measured lies on the lower edge.
    values = [low if record.get("accuracy") is None else float(record["accuracy"]) for record in records]
    first, span = times[0], max(times[-1] - times[0], 1.0)

    def place(time: float, value: float) -> tuple[float, float]:
        share = (time - first) / span if len(times) > 1 else 0.5
        return (
            LEFT + share * (WIDTH - LEFT - RIGHT),
            TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM),
        )

    points = [place(time, value) for time, value in zip(times, values, strict=True)]
    # A year of nights is 365 points on 700 pixels: small ones then.
    radius = 4.5 if len(points) <= 60 else 2.2
    parts = [*_grid(low, high), *_dates(times, place), _champion(records, points)]
    for record, (x, y) in zip(records, points, strict=True):
        accuracy = "no accuracy" if record.get("accuracy") is None else f"{record['accuracy']:.2%}"
        title = f"{record['time'][:10]}: {accuracy}, {NAMES[record['outcome']]}"
        parts.append(
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{COLOURS[record["outcome"]]}">'
            f"<title>{title}</title></circle>"
        )
    return _svg("\n".join([*parts, *_legend()]))


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Round bounds, in steps of a twentieth, around all values."""
    low = max(0.0, int(min(values) * 20 - 1) / 20)
    high = min(1.0, int(max(values) * 20 + 2) / 20)
    return low, max(high, low + 0.05)


def _grid(low: float, high: float) -> list[str]:
    lines = []
    for step in range(5):
        value = low + (high - low) * step / 4
        y = TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)
        lines.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d8dee4"/>')
        lines.append(_text(LEFT - 8, y + 4, f"{value:.1%}", "end"))
    return lines


def _dates(times: Sequence[float], place: Any) -> list[str]:
    count = min(TICKS, len(times))
    lines = []
    for step in range(count):
        time = times[0] + (times[-1] - times[0]) * (step / (count - 1) if count > 1 else 0)
        date = datetime.datetime.fromtimestamp(time, datetime.UTC)
        span = times[-1] - times[0]
        style = "%H:%M:%S" if span < 3_600 else "%H:%M" if span < 2 * 86_400 else "%Y-%m-%d"
        x, _ = place(time, 0)
        anchor = "end" if step == count - 1 and count > 1 else "start" if step == 0 and count > 1 else "middle"
        lines.append(_text(x, HEIGHT - 12, date.strftime(style), anchor))
    return lines


def _champion(records: Sequence[Mapping[str, Any]], points: Sequence[tuple[float, float]]) -> str:
    path, level = "", None
    for record, (x, y) in zip(records, points, strict=True):
        if record["outcome"] == "promote":
            path += f"M{x:.1f} {y:.1f}" if level is None else f"H{x:.1f}V{y:.1f}"
            level = y
    if level is None:
        return ""
    return f'<path d="{path}H{WIDTH - RIGHT}" fill="none" stroke="{COLOURS["promote"]}" stroke-width="1.5"/>'


def _legend() -> list[str]:
    parts, x = [], float(LEFT)
    for outcome, colour in COLOURS.items():
        parts.append(f'<circle cx="{x + 5:.0f}" cy="14" r="4.5" fill="{colour}"/>')
        parts.append(_text(x + 15, 18, NAMES[outcome], "start"))
        x += 130
    parts.append(
        f'<line x1="{x:.0f}" x2="{x + 18:.0f}" y1="14" y2="14" stroke="{COLOURS["promote"]}" stroke-width="1.5"/>'
    )
    parts.append(_text(x + 24, 18, "live model when promoted", "start"))
    return parts


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text}</text>'


def _svg(body: str) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="sans-serif" font-size="12" fill="#57606a">\n<rect width="100%" height="100%" fill="white"/>\n'
        f"{body}\n</svg>\n"
    )
