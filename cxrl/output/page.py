"""One self-contained HTML page of runs: what they reached, by whom it was judged, and what it looks like.

``read_run`` → sections of plain text, numbers and charts → the template, which escapes everything. Only the
style and the script that ship may run: the page names their digests. Pictures are left out, those of the
gallery first, where the page would be larger than ``LARGEST``.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cxrl.config import Config
from cxrl.errors import CxrlError
from cxrl.metrics.names import KEYS
from cxrl.options import show
from cxrl.output import figures
from cxrl.output.charts import share_bar
from cxrl.output.figures import Chart
from cxrl.output.gallery import Card, Extreme, cards, data_uri, extremes
from cxrl.output.run_data import TASKS, Number, RunData, Side, read_run
from cxrl.presets import load_preset, presets
from cxrl.storage.layout import BOUNDS, GALLERY, METRICS, PROVENANCE, RESULT_GRID, SCORES
from cxrl.storage.run_dir import flat

LARGEST = 5_000_000
"""Bytes of a page."""
_RESERVE = 5_000
"""Of a run, for what stands around its pictures."""
_LARGEST_TABLES = 800_000
"""Bytes of all tables to download."""
TEMPLATES = Path(__file__).parent / "templates"
_PLAIN = "/,;:.()=-"
"""Stands in a data URI as it is."""
_NO_TEXT = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn the direction of what follows."""


@dataclass
class Section:
    """What the template shows of a run.

    Attributes:
        notes: Part of the page → why it is empty.
        every_card: The gallery; ``cards`` are those that are shown.
    """

    data: RunData
    state: str
    rows: list[dict[str, Any]]
    judge_curves: list[Chart]
    hacking: list[Chart]
    headroom: list[Chart]
    findings: Chart | None
    finding_rows: list[tuple[str, list[tuple[str, str]]]]
    pose: list[Chart]
    training: list[Chart]
    changed: list[tuple[str, str, str]]
    provenance: list[dict[str, Any]]
    downloads: list[tuple[str, str]]
    notes: dict[str, str]
    every_card: list[Card]
    cards: list[Card] = field(default_factory=list)
    wins: list[Extreme] = field(default_factory=list)
    losses: list[Extreme] = field(default_factory=list)
    grids: list[tuple[str, str]] = field(default_factory=list)

    @property
    def finding_names(self) -> list[str]:
        """What a gallery can be filtered by."""
        return sorted({name for card in self.cards for name in card.findings})

    @property
    def partings(self) -> list[str]:
        """Where a reward and its judge part, in words."""
        return [f"Epoch {epoch}: {parting}." for epoch, parting in figures.partings_of(self.data)]

    @property
    def unjudged(self) -> str:
        """Rewards without a judge, in words."""
        return ", ".join(figures.unjudged_rewards(self.data))

    @property
    def first_grid(self) -> int:
        """Which grid is shown first: the result, or the one whose weights were kept, else the last."""
        kept = [n for n, (title, _) in enumerate(self.grids) if "kept" in title or "result" in title]
        return kept[-1] if kept else len(self.grids) - 1


def runs_page(run_dirs: Sequence[Path]) -> str:
    """The page of one run or several, finished or not.

    Raises:
        CxrlError: There is no run, a file of it is damaged, or there are too many runs for a page.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    runs = distinct_names([read_run(path) for path in run_dirs])
    sections = [make_section(run, _LARGEST_TABLES // len(runs)) for run in runs]
    template = environment.get_template("report.html.j2")
    shown_card = environment.get_template("card.html.j2").module.card  # type: ignore[attr-defined]
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("report.css", "report.js"))
    about = {
        "keys": KEYS,
        "tasks": TASKS,
        "style": style,
        "script": script,
        "style_digest": _digest(style),
        "script_digest": _digest(script),
        "compared": comparison(sections) if len(sections) > 1 else None,
        "sections": sections,
    }
    room = LARGEST - len(_text(template.render(about)).encode()) - _RESERVE * len(sections)
    if room < 0:
        raise CxrlError(
            f"the page of {len(runs)} run{'s' * (len(runs) > 1)} would have {(LARGEST - room) / 1e6:.1f} MB "
            f"without a picture, expected at most {LARGEST / 1e6:g}; "
            + ("give fewer runs" if len(runs) > 1 else f"the names in {run_dirs[0]} are too long")
        )
    while True:
        left = room
        for others, section in zip(reversed(range(len(sections))), sections, strict=True):
            left -= fill(
                section, left // (others + 1), lambda card: len(str(shown_card(card, "x" * 20)).encode())
            )
        page = _text(template.render(about)) + "\n"
        if len(page.encode()) <= LARGEST or room <= 0:
            return page
        room = room * 9 // 10 - 1


def _digest(text: str) -> str:
    """As a Content-Security-Policy names a script or a style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}"


def _text(page: str) -> str:
    """Without control characters, and halves of characters, which JSON may hold and UTF-8 may not."""
    return _NO_TEXT.sub("\ufffd", page.encode("utf-8", "replace").decode("utf-8"))


def distinct_names(runs: Sequence[RunData]) -> list[RunData]:
    """With the folder above in the names of runs that have the same one."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{run.path.resolve().parent.name}/{run.name}")
        if names.count(run.name) > 1
        else run
        for run in runs
    ]


def make_section(data: RunData, largest_tables: int = _LARGEST_TABLES) -> Section:
    """Everything of a run but the pictures, and at most so many bytes of tables."""
    tables, too_large = downloads(data, largest_tables)
    return Section(
        data=data,
        state=state(data),
        rows=summary_rows(data),
        judge_curves=figures.judge_curves(data),
        hacking=figures.reward_against_judge(data),
        headroom=figures.headroom(data),
        findings=figures.auroc_per_finding(data),
        finding_rows=finding_rows(data),
        pose=figures.pose(data),
        training=figures.training(data),
        changed=changed_settings(data.config),
        provenance=data.sessions,
        downloads=tables,
        notes={**notes(data), "too large": too_large},
        every_card=list(cards(data)),
    )


def notes(data: RunData) -> dict[str, str]:
    """Part of the page → why it may be empty: what is missing, and when it is written."""
    gone = [name for name in (GALLERY, SCORES) if name in data.missing]
    at_the_end = "written when a run ends; earlier versions did not write it"
    bounds = f"{BOUNDS} is missing: earlier versions did not write it" if BOUNDS in data.missing else ""
    return {
        "real": data.told.get("real films") or bounds or "not known",
        "curves": f"No epoch in {METRICS} was judged (train.eval_every).",
        "hacking": f"{METRICS} has no eval_reward (rewards of judged images): earlier versions had none.",
        "findings": "No AUROC of single findings is known.",
        "gallery": f"Missing: {' and '.join(gone)}, {at_the_end}." if gone else "No report has a picture.",
        "grids": "There is no picture in samples/.",
        "pose": f"Missing: {SCORES}, {at_the_end}." if SCORES in data.missing else f"{SCORES} is empty.",
        "training": f"{METRICS} is missing or empty: no epoch has ended.",
        "provenance": f"Missing: {PROVENANCE}; earlier versions did not write it.",
    }


def fill(section: Section, room: int, size_of: Callable[[Card], int]) -> int:
    """Put in pictures while there is room: grids, wins and losses, then the gallery.

    Args:
        section: Whose pictures they are; those that it has go.
        room: Bytes.
        size_of: Bytes of a card on the page.

    Returns:
        The bytes taken.
    """
    data, whole = section.data, room
    section.grids, section.wins, section.losses, section.cards = [], [], [], []
    for name, content in reversed(data.grids):  # the last is the result
        title, source = _grid_title(name, data), data_uri(content)
        if (size := len(source) + 3 * len(title) + 200) < room:
            section.grids.insert(0, (title, source))
            room -= size
    for best in (True, False):
        kept = section.wins if best else section.losses
        for extreme in extremes(section.every_card, best=best):
            if (size := size_of(extreme.card) + 200) < room:
                kept.append(extreme)
                room -= size
    for card in section.every_card:
        size = size_of(card) + sum(len(name) + 20 for name in card.findings)
        if size < room:
            section.cards.append(card)
            room -= size
    return whole - room


def _grid_title(name: str, data: RunData) -> str:
    """``epoch-000008`` or ``result`` in words."""
    if name == Path(RESULT_GRID).stem:
        return "the result, on reports that chose nothing"
    number = int(name.split("-")[1])
    kept = name.endswith("-kept") or number == data.end.get("kept_epoch") != data.end.get("epochs")
    return f"epoch {number}{', whose weights were kept' if kept else ''}"


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
        known = data.real is not None and data.real.values[key] is not None
        rows.append(
            {
                "key": key,
                "name": figures.NAMES[key],
                "better": figures.better(key, known),
                "anchor": cell(data.anchor, key),
                "policy": cell(data.policy, key),
                "real": cell(data.real, key),
                "change": cell(data.change, key, "+"),
                "gap": "–" if share is None else percent(share),
                "gap_ci": "" if low is None or high is None else f"{percent(low)} to {percent(high)}",
                "bar": "" if share is None else share_bar(share, low, high),
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


def finding_rows(data: RunData) -> list[tuple[str, list[tuple[str, str]]]]:
    """Finding → AUROC with interval of anchor, policy and real films."""
    sides = (data.anchor, data.policy, data.real)
    names = dict.fromkeys(name for side in sides if side is not None for name in side.auroc)
    rows = []
    for name in names:
        cells = []
        for side in sides:
            low, high = (None, None) if side is None else side.auroc_ci.get(name, (None, None))
            interval = "" if low is None or high is None else f"{plain(low)} to {plain(high)}"
            cells.append((plain(None if side is None else side.auroc.get(name)), interval))
        rows.append((name, cells))
    return rows


def downloads(data: RunData, largest: int) -> tuple[list[tuple[str, str]], str]:
    """(file name, data URI) of tables, as many as take at most ``largest`` bytes; and what was left out."""
    tables = {"metrics.csv": metrics_csv(data.records)}
    if data.scores:
        tables[SCORES] = (data.path / SCORES).read_text(encoding="utf-8")
    links, left_out = [], []
    for name, text in tables.items():
        uri = f"data:text/csv;charset=utf-8,{quote(text, safe=_PLAIN, errors='replace')}"
        if text and len(uri) <= largest:
            links.append((f"{data.name.replace('/', '-')}-{name}", uri))
            largest -= len(uri)
        elif text:
            source = METRICS if name == "metrics.csv" else name
            left_out.append(f"{name} would take {len(uri) / 1e6:.1f} MB; {source} is in the run's folder.")
    return links, " ".join(left_out)


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
