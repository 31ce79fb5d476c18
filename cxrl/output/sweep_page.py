"""A picture of a sweep: a chart a judge, a row a variant, with intervals; one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Mapping
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
        title=title, style=style, charts=_charts(result), result=result
    )


def _charts(result: Mapping[str, Any]) -> list[Chart]:
    charts = []
    for key in KEYS:
        rows = []
        for side, style in (("anchor", "anchor"), ("real", "real")):
            if result[side] and result[side][key] is not None:
                rows.append(
                    ("real films" if side == "real" else side, [(style, result[side][key], None, None)])
                )
        for row in result["variants"]:
            numbers = row[key]
            if numbers["value"] is not None:
                rows.append((row["name"], [("policy", numbers["value"], *numbers["ci"])]))
        svg = dot_chart(f"{NAMES[key]} of every variant", rows)
        if svg:
            known = bool(result["real"]) and result["real"][key] is not None
            charts.append(Chart(NAMES[key], svg, better(key, known)))
    return charts
