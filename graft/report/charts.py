"""Line charts as inline SVG that takes its colours from the page: light, dark and printed alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH, HEIGHT = 420, 250
LEFT, RIGHT, TOP, BOTTOM = 46, 24, 12, 38


@dataclass(frozen=True)
class Series:
    """A line: points in data units and a CSS class for its looks.

    Perhaps a band of (low, high), radii of dots, and what each dot says when it is pointed at.
    """

    name: str
    points: Sequence[tuple[float, float]]
    kind: str = "a"
    band: Sequence[tuple[float, float]] = ()
    dots: Sequence[float] = ()
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Axis:
    """Range, ticks and the words below or beside them."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    percent: bool = False

    def text(self, value: float) -> str:
        """A tick as a person writes it."""
        return f"{100 * value:.3g} %" if self.percent else f"{value:.3g}"


@dataclass(frozen=True)
class Frame:
    """Where data lies in the drawing."""

    x: Axis
    y: Axis
    width: int = WIDTH
    height: int = HEIGHT

    def place(self, x: float, y: float) -> tuple[float, float]:
        """Data to drawing."""
        across = (x - self.x.low) / (self.x.high - self.x.low)
        up = (min(max(y, self.y.low), self.y.high) - self.y.low) / (self.y.high - self.y.low)
        return (
            LEFT + across * (self.width - LEFT - RIGHT),
            self.height - BOTTOM - up * (self.height - TOP - BOTTOM),
        )

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        """`M… L…` through data points."""
        return "M" + "L".join("{:.1f} {:.1f}".format(*self.place(x, y)) for x, y in points)


def line_chart(title: str, frame: Frame, series: Sequence[Series], diagonal: bool = False) -> Markup:
    """An SVG with axes, grid and one path a series; `title` is what a screen reader says."""
    parts = [
        Markup('<svg class="chart" viewBox="0 0 {} {}" role="img" aria-label="{}">').format(
            frame.width, frame.height, title
        ),
        _axes(frame),
    ]
    if diagonal:
        parts.append(Markup('<path class="diagonal" d="{}"/>').format(frame.path([(0, 0), (1, 1)])))
    parts += [_line(frame, line) for line in series if line.points]
    parts.append(Markup("</svg>"))
    return Markup("").join(parts)


def course(title: str, axis: Axis, lines: Sequence[Series]) -> str:
    """What a screen reader says of lines that run from left to right: where each begins and ends."""
    told = [f"{line.name} from {axis.text(line.points[0][1])} to {axis.text(line.points[-1][1])}" for line in lines]
    return f"{title}: {', '.join(told)}"


def nice_axis(label: str, values: Sequence[float], percent: bool = False, at_most: float | None = None) -> Axis:
    """An axis over `values` in about four round steps, never beyond `at_most`."""
    low, high = min(values), max(values)
    if high - low < 1e-9:
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / 4)
    first, last = int(low // step), int(-(-high // step))
    ticks = [index * step for index in range(first, last + 1)]
    if at_most is not None:
        ticks = [tick for tick in ticks if tick <= at_most + 1e-9]
    top = ticks[-1] if at_most is None else max(ticks[-1], min(high, at_most))
    return Axis(label, ticks[0], top, ticks, percent)


def _round_step(rough: float) -> float:
    power = 10.0 ** (len(str(int(rough))) - 1 if rough >= 1 else -_leading_zeros(rough))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough)


def _leading_zeros(value: float) -> int:
    count = 0
    while value < 1:
        value, count = value * 10, count + 1
    return count


def _axes(frame: Frame) -> Markup:
    parts = []
    for tick in frame.y.ticks:
        (left, height), (right, _) = frame.place(frame.x.low, tick), frame.place(frame.x.high, tick)
        parts.append(
            Markup(
                '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>'
                '<text x="{:.1f}" y="{:.1f}" text-anchor="end">{}</text>'
            ).format(left, right, left - 6, height + 4, frame.y.text(tick), y=height)
        )
    for tick in frame.x.ticks:
        across, bottom = frame.place(tick, frame.y.low)
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="middle">{}</text>').format(
                across, bottom + 16, frame.x.text(tick)
            )
        )
    middle = (LEFT + frame.width - RIGHT) / 2
    parts.append(
        Markup('<text class="axis" x="{:.1f}" y="{}" text-anchor="middle">{}</text>').format(
            middle, frame.height - 4, escape(frame.x.label)
        )
    )
    return Markup("").join(parts)


def _line(frame: Frame, line: Series) -> Markup:
    parts = []
    if line.band:
        edge = [(x, low) for (x, _), (low, _) in zip(line.points, line.band, strict=True)]
        edge += [(x, high) for (x, _), (_, high) in reversed(list(zip(line.points, line.band, strict=True)))]
        parts.append(Markup('<path class="band {}" d="{}Z"/>').format(line.kind, frame.path(edge)))
    parts.append(
        Markup('<path class="line {}" d="{}"><title>{}</title></path>').format(
            line.kind, frame.path(line.points), line.name
        )
    )
    radii = line.dots or ([3.0] if len(line.points) == 1 else [])
    notes = line.notes or [line.name] * len(radii)
    parts += [
        Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{:.1f}"><title>{}</title></circle>').format(
            line.kind, *frame.place(*point), radius, note
        )
        for point, radius, note in zip(line.points, radii, notes, strict=bool(radii))
    ]
    return Markup("").join(parts)
