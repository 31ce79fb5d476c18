"""Charts: where data lie, and what is written beside them."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

from cxrl.output.charts import (
    Line,
    Reference,
    dot_chart,
    histogram_lines,
    line_chart,
    share_bar,
    stacked_bars,
    thinned,
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


def test_references_have_their_names_beside_them_and_apart() -> None:
    close = [Reference("anchor", 5.0, "anchor"), Reference("real", 5.01, "real")]
    svg = line_chart("t", [Line("x", [(0, 4.0), (2, 7.0)], "policy")], references=close)
    names = dict(re.findall(r'class="reftext (\w+)" x="302.0" y="([\d.]+)"', svg))
    assert float(names["anchor"]) - float(names["real"]) == pytest.approx(11.0)


def test_an_axis_is_logarithmic_where_values_differ_by_a_lot() -> None:
    svg = line_chart("t", [Line("x", [(0, 1e-5), (1, 1e-4), (2, 1e-3)], "s0")], log=True)
    (_, y0), (_, y1), (_, y2) = points(svg, "s0")
    assert y0 - y1 == pytest.approx(y1 - y2, abs=0.2)
    assert re.findall(r'text-anchor="end">([^<]+)<', svg) == ["1e−5", "1e−4", "0.001"]
    for values in ([0.0, 1e-4, 1e-3], [1.0, 2.0, 3.0], [-1.0, 100.0, 1.0]):
        line = Line("x", list(enumerate(values)), "s0")
        assert line_chart("t", [line], log=True) == line_chart("t", [line]), values


def test_what_is_never_below_zero_has_an_axis_from_zero() -> None:
    svg = line_chart(
        "t",
        [Line("x", [(0, 0.0), (1, 0.0)], "s0")],
        references=[Reference("limit", 1e-5, "anchor")],
        floor=0.0,
    )
    assert re.findall(r'text-anchor="end">([^<]+)<', svg) == ["0", "5e−6", "1e−5"]
    assert points(svg, "s0")[0][1] == 180.0


def test_long_lines_are_thinned_and_end_where_they_end() -> None:
    for count in (1, 199, 200, 201, 1000, 12345):
        kept = thinned(range(count))
        assert len(kept) <= 200
        assert kept[-1] == count - 1
        assert len({b - a for a, b in pairwise(kept)}) <= 1
    line = Line(
        "x", [(n, float(n)) for n in range(5000)], "s0", band=[(n, n - 1.0, n + 1.0) for n in range(5000)]
    )
    svg = line_chart("t", [line])
    assert len(points(svg, "s0")) <= 200
    assert len(svg) < 60_000
    assert "0 at epoch" not in svg
    assert ", 5e+03 at 5e+03</desc>" in svg
    labelled = Line("x", [(n, float(n)) for n in range(50)], "s0", labels=[str(n) for n in range(50)])
    shown = re.findall(r'class="label"[^>]*>(\d+)<', line_chart("t", [labelled]))
    assert (shown[0], shown[-1]) == ("0", "49")
    assert len(shown) <= 9


def test_a_share_and_its_interval() -> None:
    svg = share_bar(0.5, 0.25, 1.5)
    ET.fromstring(svg)
    track, bar = (float(w) for w in re.findall(r'width="([\d.]+)" height', svg))
    assert bar == pytest.approx(track / 2)
    low, high = map(float, re.findall(r'class="between" d="M([\d.]+) 5.5H([\d.]+)"', svg)[0])
    assert (low, high) == (pytest.approx(track / 4, abs=0.1), 84.0), "cut at the edge"
    assert "between" not in share_bar(2.0, None, None)
    assert 'width="0.0"' in share_bar(-3.0, None, None)


def test_many_bars_become_means() -> None:
    svg = stacked_bars("t", ["a", "b"], [(n, [1.0 + n % 2, 2.0]) for n in range(1, 601)])
    heights = [float(h) for h in re.findall(r'class="bar s0"[^>]*height="([\d.]+)"', svg)]
    assert len(heights) == 60
    assert len(set(heights)) == 1
    assert "mean: a 1.5, b 2" in svg


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
