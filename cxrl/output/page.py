"""One self-contained HTML page of a run: table, curves as inline SVG, image grids as data URIs."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from cxrl.errors import CxrlError
from cxrl.output.terminal import summary_table
from cxrl.presets import load_yaml
from cxrl.storage.layout import CONFIG, METRICS, SAMPLES, SUMMARY

WIDTH, HEIGHT, MARGIN = 340, 150, 30
COLOURS = ("#1f6f8b", "#c2571a", "#4b7f52", "#7a4ea3", "#b08a00", "#444444")
CURVES = (
    ("Rewards, in units of the first epoch's spread", "reward"),
    ("Win-rate against the anchor", "win_rate"),
    ("Judges: change since the first evaluation, in percent", "eval"),
    ("Diversity within a prompt", "diversity"),
    ("KL to the anchor", "kl"),
    ("Share of clipped steps", "clip_fraction"),
)
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}"
    "pre{background:#f4f4f2;padding:1em;overflow-x:auto}img{max-width:100%}figure{display:inline-block;margin:.5em}"
    "figcaption{font-size:13px}strong{background:#fff3c4;padding:.1em .4em}"
)

TERMS = (
    "<p><strong>The captions quote reports of a restricted data set: do not pass this page on.</strong></p>"
)


def is_restricted(run_dir: Path) -> bool:
    """Whether the run's data set may not be passed on. A configuration that cannot be read counts as such."""
    try:
        return load_yaml(run_dir / CONFIG).data.is_restricted
    except CxrlError:
        return True


def run_page(run_dir: Path) -> str:
    """The page of a run, finished or not.

    Raises:
        CxrlError: There is no run there.
    """
    config = run_dir / CONFIG
    if not config.is_file():
        raise CxrlError(f"{run_dir} is not a run of cxrl.train: it has no {CONFIG}; see --run")
    records = read_metrics(run_dir / METRICS)
    summary = run_dir / SUMMARY
    table = "The run has not finished: no summary yet."
    if summary.is_file():
        try:
            table = summary_table(json.loads(summary.read_text(encoding="utf-8")))
        except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
            reason = " ".join(str(error).split())[:80]
            raise CxrlError(f"{summary} is damaged ({reason}); cxrl evaluate writes a new one") from None
    grids = sorted((run_dir / SAMPLES).glob("*.png"))
    body = [
        f"<h1>cxrl run {escape(run_dir.resolve().name)}</h1>",
        "<p><strong>All images are synthetic. Not for diagnosis.</strong></p>",
        *([TERMS] if is_restricted(run_dir) else []),
        f"<h2>Judges that gave no reward</h2><pre>{escape(table)}</pre>",
        "<h2>Curves</h2>",
        *(curve(title, series(records, key)) for title, key in CURVES),
        "<h2>Anchor above policy, same reports, same x_T</h2>",
        *(_picture(path) for path in reversed(grids)),
        f"<h2>Configuration</h2><details><pre>{escape(config.read_text(encoding='utf-8'))}</pre></details>",
    ]
    head = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>cxrl run</title><style>{STYLE}</style>'
    )
    return head + "\n".join(body) + "</html>\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The records of ``metrics.jsonl``; a last line that a kill cut short is left out."""
    lines = path.read_bytes().split(b"\n") if path.is_file() else []
    lines = [line for line in lines if line.strip()]
    records = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            if not _is_record(record):
                raise ValueError("not the record of an epoch")
        except (ValueError, RecursionError):
            if number < len(lines) or line.endswith(b"}"):
                raise CxrlError(f"{path} is damaged at line {number}; remove the line") from None
        else:
            records.append(record)
    return records


def _is_record(record: Any) -> bool:
    """Whether a record has an epoch, and what is drawn of it are numbers, or numbers by name."""
    if not isinstance(record, dict) or record.get("epoch") is None or not _is_number(record["epoch"]):
        return False
    drawn = [record.get(key) for key in ("reward_std", *(key for _, key in CURVES))]
    return all(
        all(map(_is_number, value.values())) if isinstance(value, dict) else _is_number(value)
        for value in drawn
    )


def _is_number(value: Any) -> bool:
    """A number that can be drawn, or none."""
    return value is None or (isinstance(value, int | float) and not abs(value) > 1e300)


def series(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[tuple[float, float]]]:
    """Name → (epoch, value) points of a number or of a mapping of numbers.

    Rewards are shown as (r − r_0) / sd_0, judges as percent of their first value, so that they share an axis.
    """
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        value = record.get(key)
        named = value if isinstance(value, Mapping) else {key: value}
        for name, number in named.items():
            if number is not None and number == number:
                points.setdefault(name, []).append((record["epoch"] + 1, number))
    spread = records[0].get("reward_std", {}) if records else {}
    for name, line in points.items():
        first = line[0][1]
        if key == "reward":
            points[name] = [(x, (y - first) / (spread.get(name) or 1.0)) for x, y in line]
        elif key == "eval":
            points[name] = [(x, 100 * (y - first) / (abs(first) or 1.0)) for x, y in line]
    return points


def curve(title: str, lines: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """A small chart with its extremes on the axes; empty when there is nothing to draw."""
    xs = [x for line in lines.values() for x, _ in line]
    ys = [y for line in lines.values() for _, y in line]
    if not xs:
        return ""
    left, right, low, high = min(xs), max(xs), min(ys), max(ys)

    def place(x: float, y: float) -> str:
        across = (x - left) / ((right - left) or 1.0) * (WIDTH - 2 * MARGIN)
        up = (y - low) / ((high - low) or 1.0) * (HEIGHT - 2 * MARGIN)
        return f"{MARGIN + 15 + across:.1f},{HEIGHT - MARGIN - up:.1f}"

    drawn, legend = [], []
    for (name, line), colour in zip(lines.items(), COLOURS * 2, strict=False):
        dots = " ".join(place(x, y) for x, y in line)
        dot_x, dot_y = dots.split()[-1].split(",")
        drawn.append(f'<polyline points="{dots}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        drawn.append(f'<circle cx="{dot_x}" cy="{dot_y}" r="2.4" fill="{colour}"/>')
        legend.append(f'<span style="color:{colour}">■</span> {escape(name)}')
    labels = (
        f'<text x="2" y="{MARGIN + 4}">{high:.3g}</text>'
        f'<text x="2" y="{HEIGHT - MARGIN + 4}">{low:.3g}</text>'
        f'<text x="{MARGIN + 15}" y="{HEIGHT - 8}">epoch {left:g}</text>'
        f'<text x="{WIDTH - MARGIN}" y="{HEIGHT - 8}" text-anchor="end">{right:g}</text>'
    )
    picture = (
        f'<svg width="{WIDTH}" height="{HEIGHT}" font-size="10" fill="#555">{"".join(drawn)}{labels}</svg>'
    )
    caption = f"<figcaption>{escape(title)}<br>{' '.join(legend)}</figcaption>"
    return f"<figure>{caption}{picture}</figure>"


def _picture(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return (
        f"<figure><figcaption>{escape(path.stem)}</figcaption>"
        f'<img alt="synthetic images, anchor above policy" src="data:image/png;base64,{data}"></figure>'
    )
