"""Charts as inline SVG. Colours are CSS classes (``s0`` … ``s5``), so that a page is dark or light by itself;
the viewBox scales with the column. For those who cannot see it every chart has a title and its numbers in
words; a dot tells its own to the mouse. Long lines are thinned: a chart stays small however long the run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from html import escape
from typing import TypeVar

T = TypeVar("T")
Pair = tuple[float, float]
WIDTH, HEIGHT = 340.0, 210.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 10.0, 12.0, 30.0
MOST_POINTS = 200
_MOST_LABELS, _MOST_BARS = 8, 60
_BESIDE = 42.0
"""Right of the axes, for the names of horizontal lines."""
_MANY_TIMES = 30.0
"""A logarithmic axis needs such a ratio of its ends."""


@dataclass(frozen=True)
class Line:
    """A named line.

    Attributes:
        name: For the legend.
        points: (x, y).
        style: CSS class.
        band: (x, low, high) around it.
        labels: A text beside the points; where that would be too many, beside some.
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


def thinned(values: Sequence[T], most: int = MOST_POINTS) -> Sequence[T]:
    """At most ``most`` of the values, evenly, the last one among them."""
    step = -(-len(values) // most)
    return values if step <= 1 else values[::-1][::step][::-1]


class Frame:
    """Axes: places of data in the picture, and the picture's beginning.

    Args:
        xs, ys: What must lie within.
        x_name: Below the axis.
        whole_x: Whether x counts something.
        width: Of the picture; narrow ones keep their letters' size in narrow columns.
        right: Room beside the axes.
        log: Logarithmic upward, where every y is above 0 and they differ by a lot.
        floor: No y lies below; the axis starts there if any comes near.
    """

    def __init__(
        self,
        xs: Iterable[float],
        ys: Iterable[float],
        *,
        x_name: str,
        whole_x: bool = False,
        width: float = WIDTH,
        right: float = RIGHT,
        log: bool = False,
        floor: float | None = None,
    ) -> None:
        xs, ys = list(xs), list(ys)
        self.width, self.right = width, width - right
        self.log = log and min(ys) > 0 and max(ys) > _MANY_TIMES * min(ys)
        ys = [math.log10(y) for y in ys] if self.log else ys
        self.x = _range(min(xs), max(xs), 0.0 if whole_x else 0.08)
        self.y = _range(min(ys), max(ys), 0.08)
        if floor is not None and not self.log and self.y[0] < floor + 0.1 * (self.y[1] - floor):
            self.y = floor, self.y[1]
        self.parts: list[str] = []
        marks = range(math.ceil(self.y[0]), math.floor(self.y[1]) + 1)
        for value in [10.0**mark for mark in marks] if self.log else ticks(*self.y):
            y = self.up(value)
            self.parts.append(f'<path class="grid" d="M{LEFT:.0f} {y:.1f}H{self.right:.0f}"/>')
            self.text(LEFT - 5, y + 3.5, tick_text(value), "end")
        places = ticks(*self.x, most=6 if width >= WIDTH else 4)
        if whole_x:
            places = sorted({float(round(x)) for x in places if self.x[0] <= round(x) <= self.x[1]})
        for value in places:
            self.text(self.across(value), HEIGHT - BOTTOM + 14, tick_text(value), "middle")
        self.text((LEFT + self.right) / 2, HEIGHT - 3, x_name, "middle")

    def across(self, x: float) -> float:
        low, high = self.x
        return LEFT + (x - low) / (high - low) * (self.right - LEFT)

    def up(self, y: float) -> float:
        low, high = self.y
        y = math.log10(y) if self.log else y
        return HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def text(self, x: float, y: float, words: str, anchor: str, style: str = "tick") -> None:
        self.parts.append(
            f'<text class="{style}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def svg(self, title: str, words: str) -> str:
        return _svg(title, words, self.width, HEIGHT, self.parts)


def _svg(title: str, words: str, width: float, height: float, parts: Iterable[str]) -> str:
    """The element, with what it shows in words."""
    told = f"<title>{escape(title)}</title><desc>{escape(words)}</desc>"
    box = f'viewBox="0 0 {width:.0f} {height:.0f}" role="img"'
    return f'<svg class="chart" {box}>{told}{"".join(parts)}</svg>'


def value_text(value: float) -> str:
    """A number for reading, with a true minus."""
    return f"{value:.3g}".replace("-", "−")


def line_chart(
    title: str,
    lines: Sequence[Line],
    *,
    x_name: str = "epoch",
    references: Sequence[Reference] = (),
    mark: float | None = None,
    whole_x: bool = True,
    width: float = WIDTH,
    log: bool = False,
    floor: float | None = None,
) -> str:
    """Lines with bands over x; "" where there is nothing to draw.

    Args:
        title: What it shows.
        lines: Some may be empty.
        x_name: Below the axis.
        references: Horizontal lines, named beside the axes.
        mark: An x with a vertical line.
        whole_x, width, log, floor: As in :class:`Frame`.
    """
    lines = [_thin(line) for line in lines if line.points]
    if not lines:
        return ""
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points] + [r.value for r in references]
    ys += [v for line in lines for _, low, high in line.band for v in (low, high)]
    right = _BESIDE if references else RIGHT
    frame = Frame(xs, ys, x_name=x_name, whole_x=whole_x, width=width, right=right, log=log, floor=floor)
    if mark is not None:
        x = frame.across(mark)
        frame.parts.append(f'<path class="mark" d="M{x:.1f} {TOP:.0f}V{HEIGHT - BOTTOM:.0f}"/>')
    _refer(frame, references)
    for line in lines:
        _draw(frame, line)
    words = [_words(line, x_name) for line in lines]
    words += [f"{r.name}: {value_text(r.value)}" for r in references]
    return frame.svg(title, "; ".join(words))


def _thin(line: Line) -> Line:
    """With what a chart can show."""
    points = thinned(line.points)
    labels: list[str] = list(thinned(line.labels))
    if labels:
        shown = set(thinned(range(len(labels)), _MOST_LABELS)) | {0}
        labels = [label if k in shown else "" for k, label in enumerate(labels)]
    return replace(line, points=points, band=thinned(line.band), labels=labels)


def _words(line: Line, x_name: str) -> str:
    """The ends of a line."""
    (x0, y0), (x1, y1) = line.points[0], line.points[-1]
    first = f"{line.name}: {value_text(y0)} at {x_name} {value_text(x0)}"
    return first if len(line.points) == 1 else f"{first}, {value_text(y1)} at {value_text(x1)}"


def _refer(frame: Frame, references: Sequence[Reference]) -> None:
    """Horizontal lines; their names stand beside them, or as near as they can."""
    below = -math.inf
    for reference in sorted(references, key=lambda r: -r.value):
        y = frame.up(reference.value)
        frame.parts.append(f'<path class="ref {reference.style}" d="M{LEFT:.0f} {y:.1f}H{frame.right:.0f}"/>')
        below = max(y, below + 11)
        frame.text(frame.right + 4, below + 3.5, reference.name, "start", f"reftext {reference.style}")


def _draw(frame: Frame, line: Line) -> None:
    if len(line.band) > 1:
        edge = [(x, high) for x, _, high in line.band] + [(x, low) for x, low, _ in reversed(line.band)]
        frame.parts.append(f'<polygon class="band {line.style}" points="{_points(frame, edge)}"/>')
    frame.parts.append(f'<polyline class="line {line.style}" points="{_points(frame, line.points)}"/>')
    between = {x: (low, high) for x, low, high in line.band}
    for x, y in line.points if line.dots else ():
        place = f'cx="{frame.across(x):.1f}" cy="{frame.up(y):.1f}"'
        told = f"{line.name}, {value_text(x)}: {value_text(y)}"
        if x in between:
            told += f" ({value_text(between[x][0])} to {value_text(between[x][1])})"
        frame.parts.append(
            f'<circle class="dot {line.style}" {place} r="2.6"><title>{escape(told)}</title></circle>'
        )
    taken: list[Pair] = []
    for (x, y), label in zip(line.points, line.labels, strict=False):
        if label:
            left, top = frame.across(x), frame.up(y)
            # Below the point where a label stands above it already.
            crowded = any(abs(left - a) < 20 and abs(top - b) < 14 for a, b in taken)
            taken.append((left, top))
            frame.text(left + 5, top + (13 if crowded else -5), label, "start", "label")


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
        text("name", left - 8, middle + 3.5, "end", name if len(name) <= 20 else f"{name[:19]}…")
        for place, (style, value, below, above) in enumerate(dots):
            y = middle + (place - (len(dots) - 1) / 2) * 7
            if below is not None and above is not None:
                ends = f"M{across(below):.1f} {y:.1f}H{across(above):.1f}"
                parts.append(f'<path class="whisker {style}" d="{ends}"/>')
            parts.append(f'<circle class="dot {style}" cx="{across(value):.1f}" cy="{y:.1f}" r="2.8"/>')
    words = [f"{name}: {', '.join(f'{dot[0]} {value_text(dot[1])}' for dot in dots)}" for name, dots in rows]
    return _svg(title, "; ".join(words), WIDTH, height, parts)


def share_bar(share: float, low: float | None, high: float | None) -> str:
    """A share from 0 to 1 with its interval, on a small scale that has a mark at 1. What lies outside ends at
    the edge.
    """
    width, most = 84.0, 1.2

    def across(value: float) -> float:
        return min(max(value, 0.0), most) / most * width

    parts = [
        f'<rect class="track" x="0" y="3" width="{across(1.0):.1f}" height="5" rx="2"/>',
        f'<rect class="bar policy" x="0" y="3" width="{across(share):.1f}" height="5" rx="2"/>',
    ]
    if low is not None and high is not None:
        parts.append(f'<path class="between" d="M{across(low):.1f} 5.5H{across(high):.1f}"/>')
    parts.append(f'<path class="goal" d="M{across(1.0):.1f} 0V11"/>')
    return f'<svg class="meter" viewBox="0 0 {width:.0f} 11" aria-hidden="true">{"".join(parts)}</svg>'


def stacked_bars(title: str, names: Sequence[str], bars: Sequence[tuple[float, Sequence[float]]]) -> str:
    """At every x the parts of a whole on top of each other; part k has the class ``s``k. Many bars become
    fewer, each the mean of neighbours.
    """
    size = max(1, -(-len(bars) // _MOST_BARS))
    groups = [bars[k : k + size] for k in range(0, len(bars), size)]
    means = [
        (
            sum(x for x, _ in g) / len(g),
            [sum(parts) / len(g) for parts in zip(*(p for _, p in g), strict=True)],
        )
        for g in groups
    ]
    if not means or not max(sum(parts) for _, parts in means) > 0:
        return ""
    highest = max(sum(parts) for _, parts in means)
    ends = [bars[0][0] - 0.5, bars[-1][0] + 0.5]
    frame = Frame(ends, [0.0, highest], x_name="epoch", whole_x=True, floor=0.0)
    width = max(1.0, 0.7 * size * (frame.across(1.0) - frame.across(0.0)))
    for x, parts in means:
        base = 0.0
        for k, part in enumerate(parts):
            top, bottom = frame.up(base + part), frame.up(base)
            frame.parts.append(
                f'<rect class="bar s{k % 6}" x="{frame.across(x) - width / 2:.1f}" y="{top:.1f}" '
                f'width="{width:.1f}" height="{max(0.0, bottom - top):.1f}"/>'
            )
            base += part
    totals = [sum(parts[k] for _, parts in means) / len(means) for k in range(len(names))]
    words = [f"{name} {value_text(mean)}" for name, mean in zip(names, totals, strict=True)]
    return frame.svg(title, f"mean: {', '.join(words)}")


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
