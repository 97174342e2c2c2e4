"""Line charts of the report as pictures that stand alone, for the README and docs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup, escape

from graft.report.charts import LEFT, Axis, Frame, Series, course, line_chart

WIDTH, HEIGHT = 620, 340
KEY_LINE = 20
# Told apart by lightness and dashes too; on both of GitHub's backgrounds.
LINES = {"a": ("#1f6feb", ""), "b": ("#bc4c00", ""), "c": ("#1f6feb", "5 4"), "d": ("#bc4c00", "5 4")}


@dataclass(frozen=True)
class LogAxis(Axis):
    """An axis over the decadic logarithms of what its ticks say."""

    def text(self, value: float) -> str:
        """The number itself."""
        return f"{10**value:,.0f}"


def log_axis(label: str, values: Sequence[float]) -> LogAxis:
    """From the least to the most of `values`, each with a tick."""
    ticks = [math.log10(value) for value in sorted(values)]
    return LogAxis(label, ticks[0], ticks[-1], ticks)


def draw(path: Path, title: str, x: Axis, y: Axis, lines: Sequence[Series]) -> None:
    """Write the chart with a key below it; a line's kind is one of LINES."""
    chart = line_chart(course(title, y, lines), Frame(x, y, WIDTH, HEIGHT), lines)
    sized = str(chart).replace("<svg ", f'<svg width="{WIDTH}" height="{HEIGHT}" ', 1)
    height = HEIGHT + 8 + KEY_LINE * len(lines)
    style = "".join(
        f".line.{kind},.key.{kind}{{stroke:{colour};stroke-dasharray:{dashes or 'none'}}}"
        f".dot.{kind}{{fill:{colour}}}.band.{kind}{{fill:{colour};opacity:.15}}"
        for kind, (colour, dashes) in LINES.items()
    )
    key = Markup("").join(
        Markup('<line class="key {}" x1="{}" x2="{}" y1="{y}" y2="{y}"/><text x="{}" y="{}">{}</text>').format(
            line.kind, LEFT, LEFT + 28, LEFT + 36, HEIGHT + 16 + KEY_LINE * number, escape(line.name),
            y=HEIGHT + 12 + KEY_LINE * number,
        )
        for number, line in enumerate(lines)
    )  # fmt: skip
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12" fill="#57606a">\n<style>.line,.key{fill:none;stroke-width:2}'
        f".grid{{stroke:#8c959f;opacity:.35}}{style}</style>\n"
        f'<rect width="100%" height="100%" fill="white"/>\n{sized}{key}\n</svg>\n',
        encoding="utf-8",
    )
