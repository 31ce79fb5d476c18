"""Charts: where data lie, and what is written beside them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from cxrl.output.charts import (
    Line,
    Reference,
    dot_chart,
    histogram_lines,
    line_chart,
    stacked_bars,
    tick_text,
    ticks,
)


def points(svg: str, style: str) -> list[tuple[float, float]]:
    (found,) = re.findall(rf'class="line {style}" points="([^"]+)"', svg)
    return [tuple(map(float, p.split(","))) for p in found.split()]  # type: ignore[misc]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.0, 1.0, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-0.31, -0.19, [-0.3, -0.275, -0.25, -0.225, -0.2]),
        (3.0, 3.0, [3.0]),
    ],
)
def test_ticks_are_round(low: float, high: float, expected: list[float]) -> None:
    found = ticks(low, high)
    assert len(found) <= 6
    assert all(low - 1e-9 <= t <= high + 1e-9 for t in found)
    if expected[0] != -0.3:
        assert found == pytest.approx(expected)
    assert [tick_text(t) for t in (0.0, -0.25, 1500.0, 1.5e-4, 2e-5)] == [
        "0",
        "−0.25",
        "1500",
        "1.5e−4",
        "2e−5",
    ]


def test_lines_lie_where_their_values_are() -> None:
    svg = line_chart(
        "a < b",
        [Line("x", [(0, 5.0), (2, 7.0), (4, 6.0)], "policy", band=[(0, 4.0, 6.0), (2, 6.0, 8.0)])],
        references=[Reference("real films", 7.0, "real")],
        mark=2,
    )
    ET.fromstring(svg)
    assert "<title>a &lt; b</title>" in svg
    (x0, y0), (x1, y1), (x2, y2) = points(svg, "policy")
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y1 < y2 < y0
    assert f'd="M{x1:.1f}' in svg
    (reference,) = re.findall(r'class="ref real" d="M46 ([\d.]+)H', svg)
    assert float(reference) == pytest.approx(y1)
    assert "band policy" in svg


def test_nothing_and_a_single_point() -> None:
    assert line_chart("t", []) == ""
    assert line_chart("t", [Line("x", [], "s0")]) == ""
    svg = line_chart("t", [Line("x", [(1, 5.0)], "s0")])
    ET.fromstring(svg)
    assert "nan" not in svg
    assert dot_chart("t", []) == stacked_bars("t", [], []) == ""
    assert histogram_lines([("a", "s0", [])]) == []


def test_dots_have_whiskers_where_they_have_an_interval() -> None:
    svg = dot_chart("t", [("Edema <x>", [("anchor", 0.5, 0.4, 0.6), ("real", 0.9, None, None)])])
    ET.fromstring(svg)
    assert svg.count('class="whisker') == 1
    assert "Edema &lt;x&gt;" in svg
    places = {style: float(x) for style, x in re.findall(r'class="dot (\w+)" cx="([\d.]+)"', svg)}
    assert places["anchor"] < places["real"]


def test_bars_are_stacked() -> None:
    svg = stacked_bars("t", ["a", "b"], [(1, [1.0, 2.0]), (2, [2.0, 1.0])])
    ET.fromstring(svg)
    heights = [float(h) for h in re.findall(r'height="([\d.]+)"', svg)]
    assert heights[1] == pytest.approx(2 * heights[0], abs=0.2)
    assert sum(heights[:2]) == pytest.approx(sum(heights[2:]), abs=0.3)


def test_histograms_are_shares_in_common_bins() -> None:
    a, b = histogram_lines([("a", "s0", [0.0, 0.0, 1.0]), ("b", "s1", [1.0])], bins=4)
    assert [x for x, _ in a.points] == [x for x, _ in b.points]
    assert [round(y) for _, y in a.points] == [67, 0, 0, 33]
    assert [round(y) for _, y in b.points] == [0, 0, 0, 100]
