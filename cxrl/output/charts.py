"""Charts as inline SVG. Colours are CSS classes (``s0`` … ``s5``), so that a page is dark or light by itself;
the viewBox scales with the column, and every chart has a title for those who cannot see it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Pair = tuple[float, float]
WIDTH, HEIGHT = 340.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 12.0, 30.0


@dataclass(frozen=True)
class Line:
    """A named line.

    Attributes:
        name: For the legend.
        points: (x, y).
        style: CSS class.
        band: (x, low, high) around it.
        labels: A text at every point, "" for none.
        dots: Whether points are marked.
    """

    name: str
    points: Sequence[Pair]
    style: str
    band: Sequence[tuple[float, float, float]] = ()
    labels: Sequence[str] = ()
    dots: bool = True


@dataclass(frozen=True)
class Reference:
    """A horizontal line at a value."""

    name: str
    value: float
    style: str


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers from ``low`` to ``high``, at most ``most`` + 1."""
    span = high - low
    if not span > 0:
        return [low]
    raw = span / most
    unit = 10.0 ** math.floor(math.log10(raw))
    step = next(unit * m for m in (1, 2, 5, 10) if unit * m >= raw)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def tick_text(value: float) -> str:
    """A tick's number, with a true minus."""
    if abs(value) < 1e-12:
        return "0"
    text = f"{value:.4g}" if abs(value) >= 1e-3 else f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return text.replace("-", "−")


class Frame:
    """Axes: places of data in the picture, and the picture's beginning."""

    def __init__(
        self,
        xs: Iterable[float],
        ys: Iterable[float],
        *,
        x_name: str,
        whole_x: bool = False,
        margin: float = 0.08,
    ) -> None:
        xs, ys = list(xs), list(ys)
        self.x = _range(min(xs), max(xs), 0.0 if whole_x else margin)
        self.y = _range(min(ys), max(ys), margin)
        self.parts: list[str] = []
        for value in ticks(*self.y):
            y = self.up(value)
            self.parts.append(f'<path class="grid" d="M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}"/>')
            self.text(LEFT - 5, y + 3.5, tick_text(value), "end")
        marks = ticks(*self.x, most=6)
        if whole_x:
            marks = sorted({float(round(mark)) for mark in marks if self.x[0] <= round(mark) <= self.x[1]})
        for value in marks:
            self.text(self.across(value), HEIGHT - BOTTOM + 14, tick_text(value), "middle")
        self.text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 3, x_name, "middle")

    def across(self, x: float) -> float:
        low, high = self.x
        return LEFT + (x - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def up(self, y: float) -> float:
        low, high = self.y
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def text(self, x: float, y: float, words: str, anchor: str, style: str = "tick") -> None:
        self.parts.append(
            f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def svg(self, title: str) -> str:
        body = "".join(self.parts)
        return (
            f'<svg class="chart" viewBox="0 0 {WIDTH:.0f} {HEIGHT:.0f}" role="img">'
            f"<title>{escape(title)}</title>{body}</svg>"
        )


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str = "epoch",
    references: Sequence[Reference] = (),
    mark: float | None = None,
    whole_x: bool = True,
) -> str:
    """Lines with bands over x; "" where there is nothing to draw.

    Args:
        title: What it shows.
        lines: Some may be empty.
        x_name: Below the axis.
        references: Horizontal lines.
        mark: An x with a vertical line.
        whole_x: Whether x counts something.
    """
    lines = [line for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [r.value for r in references]
    ys += [v for line in lines for _, low, high in line.band for v in (low, high)]
    frame = Frame(xs, ys, x_name=x_name, whole_x=whole_x)
    if mark is not None:
        x = frame.across(mark)
        frame.parts.append(f'<path class="mark" d="M{x:.1f} {TOP:.0f}V{HEIGHT - BOTTOM:.0f}"/>')
    for reference in references:
        y = frame.up(reference.value)
        frame.parts.append(
            f'<path class="ref {reference.style}" d="M{LEFT:.0f} {y:.1f}H{WIDTH - RIGHT:.0f}"/>'
        )
        x, side = (LEFT + 4, "start") if reference.style == "anchor" else (WIDTH - RIGHT - 4, "end")
        frame.text(x, y - 3, reference.name, side, f"reftext {reference.style}")
    for line in lines:
        _draw(frame, line)
    return frame.svg(title)


def _draw(frame: Frame, line: Line) -> None:
    if len(line.band) > 1:
        edge = [(x, high) for x, _, high in line.band] + [(x, low) for x, low, _ in reversed(line.band)]
        frame.parts.append(f'<polygon class="band {line.style}" points="{_points(frame, edge)}"/>')
    frame.parts.append(f'<polyline class="line {line.style}" points="{_points(frame, line.points)}"/>')
    if line.dots:
        for x, y in line.points:
            place = f'cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}"'
            frame.parts.append(f'<circle class="dot {line.style}" {place} r="2.6"/>')
    for (x, y), label in zip(line.points, line.labels, strict=False):
        if label:
            frame.text(frame.across(x) + 5, frame.up(y) - 5, label, "start", "label")


def _points(frame: Frame, pairs: Iterable[Pair]) -> str:
    return " ".join(f"{frame.across(x):.1f},{frame.up(y):.1f}" for x, y in pairs)


Dot = tuple[str, float, float | None, float | None]
"""CSS class, value, and the ends of its interval where it has one."""


def dot_chart(title: str, rows: Sequence[tuple[str, Sequence[Dot]]]) -> str:
    """A row a name, with dots and whiskers; "" where there is nothing to draw."""
    values = [v for _, dots in rows for _, *numbers in dots for v in numbers if v is not None]
    if not values:
        return ""
    left, step = 118.0, 30.0
    height = TOP + step * len(rows) + 22
    low, high = _range(min(values), max(values), 0.04)
    parts = []

    def across(value: float) -> float:
        return left + (value - low) / (high - low) * (WIDTH - left - RIGHT)

    def text(style: str, x: float, y: float, anchor: str, words: str) -> None:
        place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
        parts.append(f'<text class="{style}" {place}>{escape(words)}</text>')

    for value in ticks(low, high, 4):
        x = across(value)
        parts.append(f'<path class="grid" d="M{x:.1f} {TOP:.0f}V{height - 20:.0f}"/>')
        text("tick", x, height - 6, "middle", tick_text(value))
    for row, (name, dots) in enumerate(rows):
        middle = TOP + step * (row + 0.5)
        text("name", left - 8, middle + 3.5, "end", name)
        for place, (style, value, below, above) in enumerate(dots):
            y = middle + (place - (len(dots) - 1) / 2) * 7
            if below is not None and above is not None:
                ends = f"M{across(below):.1f} {y:.1f}H{across(above):.1f}"
                parts.append(f'<path class="whisker {style}" d="{ends}"/>')
            parts.append(f'<circle class="dot {style}" cx="{across(value):.1f}" cy="{y:.1f}" r="2.8"/>')
    box = f'viewBox="0 0 {WIDTH:.0f} {height:.0f}" role="img"'
    return f'<svg class="chart" {box}><title>{escape(title)}</title>{"".join(parts)}</svg>'


def stacked_bars(title: str, names: Sequence[str], bars: Sequence[tuple[float, Sequence[float]]]) -> str:
    """At every x the parts of a whole on top of each other; part k has the class ``s``k."""
    totals = [sum(parts) for _, parts in bars]
    if not bars or not max(totals) > 0:
        return ""
    frame = Frame([bars[0][0] - 0.5, bars[-1][0] + 0.5], [0.0, max(totals)], x_name="epoch", whole_x=True)
    width = max(1.0, 0.7 * (frame.across(1.0) - frame.across(0.0)))
    for x, parts in bars:
        base = 0.0
        for k, part in enumerate(parts):
            top, bottom = frame.up(base + part), frame.up(base)
            frame.parts.append(
                f'<rect class="bar s{k % 6}" x="{frame.across(x) - width / 2:.1f}" y="{top:.1f}" '
                f'width="{width:.1f}" height="{max(0.0, bottom - top):.1f}"/>'
            )
            base += part
    return frame.svg(f"{title}: {', '.join(names)}")


def histogram_lines(sides: Sequence[tuple[str, str, Sequence[float]]], bins: int = 16) -> list[Line]:
    """The shares of values in common bins, a line for each (name, style, values)."""
    everything = [v for _, _, values in sides for v in values]
    if not everything:
        return []
    low, high = _range(min(everything), max(everything), 0.02)
    lines = []
    for name, style, values in sides:
        counts = [0] * bins
        for value in values:
            counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
        step = (high - low) / bins
        total = max(1, len(values))
        points = [(low + (k + 0.5) * step, 100 * count / total) for k, count in enumerate(counts)]
        lines.append(Line(name, points if values else [], style, dots=False))
    return lines


def _range(low: float, high: float, margin: float) -> Pair:
    span = high - low
    if not span > 0:
        span = abs(high) * 0.1 or 1.0
        return low - span / 2, high + span / 2
    return low - margin * span, high + margin * span
