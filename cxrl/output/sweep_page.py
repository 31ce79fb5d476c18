"""A picture of a sweep: a chart a judge, a row a variant, with intervals; one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cxrl.metrics.names import KEYS
from cxrl.output.charts import dot_chart
from cxrl.output.figures import NAMES, Chart, better
from cxrl.output.page import TEMPLATES


def sweep_page(result: Mapping[str, Any], title: str) -> str:
    """The page of :func:`cxrl.sweep.result.sweep_result`."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    return environment.get_template("sweep.html.j2").render(
        title=title, style=style, charts=_charts(result), differences=_differences(result), result=result
    )


def _charts(result: Mapping[str, Any]) -> list[Chart]:
    charts = []
    for key in KEYS:
        rows = []
        for side, style in (("anchor", "anchor"), ("real", "real")):
            if result[side] and result[side][key] is not None:
                name = "real films" if side == "real" else side
                rows.append((name, [(style, result[side][key], None, None)]))
        rows += _rows(result["variants"], key, "value", "ci")
        known = bool(result["real"]) and result["real"][key] is not None
        svg = dot_chart(f"{NAMES[key]} of every variant", rows)
        if svg:
            charts.append(Chart(NAMES[key], svg, better(key, known)))
    return charts


def _differences(result: Mapping[str, Any]) -> list[Chart]:
    first = result["variants"][0]["name"]
    charts = []
    for key in KEYS:
        rows = _rows(result["variants"][1:], key, "difference", "difference_ci")
        svg = dot_chart(f"{NAMES[key]}, difference from {first}", rows)
        if svg:
            charts.append(Chart(NAMES[key], svg, f"minus {first}, paired by seed"))
    return charts


def _rows(variants: Sequence[Mapping[str, Any]], key: str, value: str, ci: str) -> list[Any]:
    known = [row for row in variants if row[key].get(value) is not None]
    return [(row["name"], [("policy", row[key][value], *row[key][ci])]) for row in known]
