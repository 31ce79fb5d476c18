"""One self-contained HTML page of runs: what they reached, by whom it was judged, and what it looks like.

``read_run`` → sections of plain text, numbers and charts → the template, which escapes everything. Pictures
are left out, fewest first, where the page would be larger than ``LARGEST``.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.metrics.names import KEYS
from cxrl.options import show
from cxrl.output import figures
from cxrl.output.figures import Chart
from cxrl.output.gallery import Card, Extreme, cards, data_uri, extremes
from cxrl.output.run_data import Number, RunData, Side, read_run
from cxrl.presets import load_preset, presets
from cxrl.storage.run_dir import flat

LARGEST = 5_000_000
"""Bytes of a page."""
_RESERVE = 150_000
_LARGEST_TABLE = 400_000
TEMPLATES = Path(__file__).parent / "templates"


@dataclass
class Section:
    """What the template shows of a run."""

    data: RunData
    state: str
    rows: list[dict[str, Any]]
    judge_curves: list[Chart]
    hacking: list[Chart]
    findings: Chart | None
    pose: list[Chart]
    training: list[Chart]
    changed: list[tuple[str, str, str]]
    provenance: list[dict[str, Any]]
    downloads: list[tuple[str, str]]
    cards: list[Card] = field(default_factory=list)
    num_cards: int = 0
    wins: list[Extreme] = field(default_factory=list)
    losses: list[Extreme] = field(default_factory=list)
    grids: list[tuple[str, str]] = field(default_factory=list)
    num_grids: int = 0

    @property
    def finding_names(self) -> list[str]:
        """What a gallery can be filtered by."""
        return sorted({name for card in self.cards for name in card.findings})


def runs_page(run_dirs: Sequence[Path]) -> str:
    """The page of one run or several, finished or not.

    Raises:
        CxrlError: There is no run, or a file of it is damaged.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    sections = [make_section(read_run(path)) for path in run_dirs]
    template = environment.get_template("report.html.j2")
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js"))
    compared = comparison(sections) if len(sections) > 1 else None
    about = {"keys": KEYS, "style": style, "script": script, "compared": compared, "sections": sections}
    room = LARGEST - _RESERVE - len(_text(template.render(about)).encode())
    for section in sections:
        fill(section, room // len(sections))
    return _text(template.render(about)) + "\n"


def _text(page: str) -> str:
    """Without the halves of characters that JSON may hold and UTF-8 may not."""
    return page.encode("utf-8", "replace").decode("utf-8")


def make_section(data: RunData) -> Section:
    """Everything of a run but the pictures."""
    return Section(
        data=data,
        state=state(data),
        rows=summary_rows(data),
        judge_curves=figures.judge_curves(data),
        hacking=figures.reward_against_judge(data),
        findings=figures.auroc_per_finding(data),
        pose=figures.pose(data),
        training=figures.training(data),
        changed=changed_settings(data.config),
        provenance=data.sessions,
        downloads=downloads(data),
    )


def fill(section: Section, room: int) -> None:
    """Put in pictures while there is room: grids, wins and losses, then the gallery."""
    data = section.data
    section.num_grids = len(data.grids)
    for name, content in reversed(data.grids):  # the last is the result
        source = data_uri(content)
        if len(source) < room:
            section.grids.insert(0, (_grid_title(name), source))
            room -= len(source)
    every = list(cards(data))
    section.num_cards = len(every)
    for best in (True, False):
        kept = section.wins if best else section.losses
        for extreme in extremes(every, best=best):
            if extreme.card.size < room:
                kept.append(extreme)
                room -= extreme.card.size
    for card in every:
        if card.size < room:
            section.cards.append(card)
            room -= card.size


def _grid_title(name: str) -> str:
    """``epoch-000008-kept`` in words."""
    _, number, *kept = name.split("-")
    return f"epoch {int(number)}{', whose weights were kept' if kept else ''}"


def state(data: RunData) -> str:
    """Where the run is, in words."""
    if data.policy is None:
        done = len(data.records)
        whole = f" of {data.config.train.num_epochs}" if data.config else ""
        return f"not finished: {done}{whole} epochs"
    end = data.end
    words = "finished" if end["epochs"] is None else f"finished after {end['epochs']:.0f} epochs"
    if end["stopped_early"]:
        words += f"; stopped early: {end['stopped_early']}"
    if end["kept_epoch"] is not None and end["kept_epoch"] != end["epochs"]:
        words += f"; the weights of epoch {end['kept_epoch']:.0f}, the last within limits, were kept"
    return words


def summary_rows(data: RunData) -> list[dict[str, Any]]:
    """A row a judge: cells of anchor, policy, real films and change, and the share of the gap."""
    if data.anchor is None:
        return []
    rows = []
    for key in KEYS:
        share = None if data.gap is None else data.gap.values[key]
        low, high = (None, None) if data.gap is None else data.gap.ci[key]
        rows.append(
            {
                "key": key,
                "name": figures.NAMES[key],
                "better": figures.better(key, data.real is not None),
                "cells": [cell(side, key) for side in (data.anchor, data.policy, data.real)],
                "change": cell(data.change, key, "+"),
                "gap": "–" if share is None else percent(share),
                "gap_ci": "" if low is None or high is None else f"{percent(low)} to {percent(high)}",
                "bar": 0 if share is None else round(100 * min(1.0, max(0.0, share))),
            }
        )
    return rows


def cell(side: Side | None, key: str, sign: str = "") -> tuple[str, str]:
    """A value and its interval, "" where there is none."""
    if side is None or side.values[key] is None:
        return "–", ""
    low, high = side.ci[key]
    interval = "" if low is None or high is None else f"{plain(low, sign)} to {plain(high, sign)}"
    return plain(side.values[key], sign), interval


def plain(value: Number, sign: str = "") -> str:
    """A number in about five characters, with a true minus."""
    if value is None:
        return "–"
    digits = ".3f" if abs(value) < 10 else ".1f" if abs(value) < 1000 else ".3g"
    return f"{value:{sign}{digits}}".replace("-", "−")


def percent(share: float) -> str:
    """A share; one that is far outside of what can be meant is only said to be so."""
    text = f"{share:.0%}" if abs(share) < 10 else "> 1000%" if share > 0 else "< -1000%"
    return text.replace("-", "−")


def changed_settings(config: Config | None) -> list[tuple[str, str, str]]:
    """(name, the preset's value, the run's), where they differ; ``run`` says only where things went."""
    if config is None or config.preset not in presets():
        return []
    before, now = (flat(c.to_dict()) for c in (load_preset(config.preset), config))
    return [
        (name, show(_tuple(before[name])), show(_tuple(value)))
        for name, value in now.items()
        if value != before[name] and not name.startswith("run.")
    ]


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def downloads(data: RunData) -> list[tuple[str, str]]:
    """(file name, data URI) of tables."""
    tables = {"metrics.csv": metrics_csv(data.records)}
    path = data.path / "scores.csv"
    if data.scores:
        tables["scores.csv"] = path.read_text(encoding="utf-8")
    return [
        (f"{data.name}-{name}", f"data:text/csv;charset=utf-8,{quote(text, errors='replace')}")
        for name, text in tables.items()
        if text and len(text) < _LARGEST_TABLE
    ]


def metrics_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """metrics.jsonl with a column a number."""
    rows = [flat(record) for record in records]
    names = list(dict.fromkeys(name for row in rows for name in row))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue() if names else ""


def comparison(sections: Sequence[Section]) -> dict[str, Any]:
    """Several runs beside each other."""
    runs = [section.data for section in sections]
    settings = [flat(run.config.to_dict()) if run.config else {} for run in runs]
    every = dict.fromkeys(name for values in settings for name in values)
    differing = [
        (name, [show(_tuple(values[name])) if name in values else "–" for values in settings])
        for name in every
        if not name.startswith("run.") and len({str(values.get(name)) for values in settings}) > 1
    ]
    if any(run.anchor is None for run in runs):
        unjudged = ", ".join(run.name for run in runs if run.anchor is None)
        note = f"Not judged yet: {unjudged}."
    else:
        note = ""
    return {"settings": differing, "curves": figures.compared_curves(runs), "note": note}


def check_runs(run_dirs: Sequence[Path]) -> None:
    """Raises CxrlError where a run is given twice."""
    seen = set()
    for path in run_dirs:
        if path.resolve() in seen:
            raise CxrlError(f"--run: {path} is given twice; leave one out")
        seen.add(path.resolve())
