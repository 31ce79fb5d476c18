"""The charts of a page, each with a caption that says how to read it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cxrl.evaluation.parting import JUDGE_OF, Parting, Scored, partings
from cxrl.metrics.names import KEYS, LOWER_IS_BETTER, NEAR_TO_REAL, PSI
from cxrl.output.charts import Line, Reference, dot_chart, histogram_lines, line_chart, stacked_bars
from cxrl.output.run_data import Number, RunData, Side, number

NAMES = {
    "posture": "posture",
    "auroc": "AUROC",
    "consistency": "consistency",
    "fid": "Fréchet distance",
    "ms_ssim": "MS-SSIM within a report",
    "diversity": "diversity within a report",
    "pose_sd": "spread of poses",
}
STYLE = {"anchor": "anchor", "policy": "policy", "real": "real"}
POSE_NAMES = {
    "log_sx": "width (log)",
    "log_sy": "height (log)",
    "tx": "shift across",
    "ty": "shift down",
    "theta": "rotation (rad)",
}
_NARROW = 250.0
_HISTORY = (
    ("kl", "KL to the anchor", "Of a step, mean per latent element. It grows as the policy moves away."),
    ("clip_fraction", "Clipped share", "Of (image, step) rows whose ratio left the clip range."),
    ("ratio_max_dev", "Ratio before the first step", "Largest |ratio − 1|: rounding when all is right."),
    ("grad_norm", "Gradient norm", "Before clipping, mean over the steps."),
    ("diversity", "Diversity of rollouts", "RMS pixel distance between images of a report."),
)


@dataclass(frozen=True)
class Chart:
    """A figure.

    Attributes:
        title, note: Above it, and below.
        svg: Made by :mod:`cxrl.output.charts`, which escapes names.
        legend: (style, name).
    """

    title: str
    svg: str
    note: str = ""
    legend: list[tuple[str, str]] = field(default_factory=list)


def better(key: str, real: bool) -> str:
    """The direction of a judge's score."""
    if key in NEAR_TO_REAL and real:
        return "nearer to real films is better"
    if key == "posture" and real:  # nobody stands more upright than the canonical pose: beyond is overshot
        return "higher is better, up to real films"
    return "lower is better" if key in LOWER_IS_BETTER else "higher is better"


def _pairs(points: Sequence[tuple[float, Number]]) -> list[tuple[float, float]]:
    return [(x, y) for x, y in points if y is not None]


def _band(data: RunData, key: str) -> list[tuple[float, float, float]]:
    intervals = [(float(p.epoch), *p.side.ci.get(key, (None, None))) for p in data.points]
    return [(x, low, high) for x, low, high in intervals if low is not None and high is not None]


def _bounds(anchor: Side | None, real: Side | None, key: str) -> list[Reference]:
    sides = (("anchor", anchor), ("real", real))
    return [
        Reference(name, value, name)
        for name, side in sides
        if side is not None and (value := side.values[key]) is not None
    ]


def judge_curves(data: RunData) -> list[Chart]:
    """A chart a judge, from the anchor on, with interval, kept epoch, anchor and real films."""
    charts = []
    kept = data.end.get("kept_epoch")
    for key in KEYS:
        points = _pairs([(float(p.epoch), p.side.values[key]) for p in data.points])
        line = Line("policy", points, "policy", band=_band(data, key))
        real = data.ceiling is not None and data.ceiling.values[key] is not None
        references = _bounds(data.floor, data.ceiling, key)
        svg = line_chart(f"{NAMES[key]} by epoch", [line], references=references, mark=kept)
        if svg:
            charts.append(Chart(NAMES[key], svg, better(key, real)))
    return charts


def compared_curves(runs: Sequence[RunData]) -> list[Chart]:
    """The judges' curves of several runs. Real films have a line where all runs have the same ones."""
    charts = []
    for key in KEYS:
        lines = [
            Line(run.name, _pairs([(float(p.epoch), p.side.values[key]) for p in run.points]), f"s{n % 6}")
            for n, run in enumerate(runs)
        ]
        real = {run.ceiling.values[key] if run.ceiling else None for run in runs}
        references = [Reference("real", value, "real") for value in real if value is not None]
        svg = line_chart(f"{NAMES[key]} by epoch", lines, references=references if len(real) == 1 else ())
        if svg:
            legend = [(f"s{n % 6}", run.name) for n, run in enumerate(runs)]
            charts.append(Chart(NAMES[key], svg, better(key, bool(references)), legend))
    return charts


def reward_against_judge(data: RunData) -> list[Chart]:
    """A path a task: what the reward model says of the images, and what the judge says; then diversity."""
    charts = []
    for reward, key in JUDGE_OF.items():
        both = [(p.epoch, p.side.reward.get(reward), p.side.values[key]) for p in data.points]
        known = [(epoch, r, j) for epoch, r, j in both if r is not None and j is not None]
        if len(known) < 2:
            continue
        labels = [str(epoch) for epoch, _, _ in known]
        path = Line("policy", [(r, j) for _, r, j in known], "policy", labels=labels)
        svg = line_chart(
            f"{reward}: the judge's {NAMES[key]} against the reward",
            [path],
            x_name="reward model",
            whole_x=False,
            width=_NARROW,
        )
        title = reward if reward == key else f"{reward}: {NAMES[key]}"
        charts.append(Chart(title, svg, "judge up, reward across"))
    points = _pairs([(float(p.epoch), p.side.values["diversity"]) for p in data.points])
    if charts and points:
        line = Line("policy", points, "policy", band=_band(data, "diversity"))
        references = _bounds(data.floor, data.ceiling, "diversity")
        svg = line_chart("diversity by epoch", [line], references=references, width=_NARROW)
        charts.append(Chart("diversity", svg, "of the same images, by epoch"))
    return charts


def partings_of(data: RunData) -> list[tuple[int, Parting]]:
    """(epoch, what parts there) of every evaluation at which a reward and its judge part."""

    def scored(epoch: int, side: Side) -> Scored:
        return Scored(epoch, side.values, side.reward, side.ci, side.reward_ci)

    real = None if data.ceiling is None else scored(0, data.ceiling)
    history = [scored(point.epoch, point.side) for point in data.points]
    return [
        (history[end - 1].epoch, parting)
        for end in range(2, len(history) + 1)
        for parting in partings(history[:end], real)
    ]


def headroom(data: RunData) -> list[Chart]:
    """A chart a reward: the judged number of the best of n images, by the reward, by all, by the judge."""
    charts: list[Chart] = []
    for reward, key in JUDGE_OF.items():
        lines: list[Line] = []
        for side in data.headroom:
            for rule, word in ((reward, "reward"), ("all rewards", "all"), (f"judge of {reward}", "judge")):
                rows = side["best"].get(rule, {}).get(key, [])
                points = _pairs([(math.log2(n), value) for n, value, _, _ in rows if n])
                lines.append(Line(f"{side['of']}, {word}", points, f"s{len(lines) % 6}"))
        real = [side["real"].get(key) for side in data.headroom]
        references = [Reference("real", value, "real") for value in real[:1] if value is not None]
        _add(
            charts,
            f"{NAMES[key]}, picked by {reward}",
            [line for line in lines if line.points],
            "by doublings of n: 0 is one image, drawn blindly",
            references=references,
            x_name="doublings of n",
        )
    return charts


def unjudged_rewards(data: RunData) -> list[str]:
    """Rewards that no judge stands against."""
    names = dict.fromkeys(name for point in data.points for name in point.side.reward)
    return [name for name in names if name not in JUDGE_OF]


def auroc_per_finding(data: RunData) -> Chart | None:
    """Dots with intervals: anchor, policy and real films for every finding."""
    sides = [(name, side) for name, side in _sides(data) if side is not None and side.auroc]
    names = list(dict.fromkeys(name for _, side in sides for name in side.auroc))
    rows = []
    for finding in names:
        dots = []
        for name, side in sides:
            value = side.auroc.get(finding)
            if value is not None:
                dots.append((STYLE[name], value, *side.auroc_ci.get(finding, (None, None))))
        rows.append((finding, dots))
    svg = dot_chart("AUROC of every finding", [row for row in rows if row[1]])
    legend = [(STYLE[name], "real films" if name == "real" else name) for name, _ in sides]
    return Chart("AUROC of every finding, with 95 % intervals", svg, "", legend) if svg else None


def _sides(data: RunData) -> list[tuple[str, Side | None]]:
    return [("anchor", data.anchor), ("policy", data.policy), ("real", data.real)]


def pose(data: RunData) -> list[Chart]:
    """The judge's pose of every image, before, after and of real films."""
    charts = []
    present = [name for name in STYLE if data.scores.get(name)]
    for component in PSI:
        of_side = {name: [image.scores[component] for image in data.scores[name]] for name in present}
        sides = [(n, STYLE[n], [v for v in values if v is not None]) for n, values in of_side.items()]
        svg = line_chart(
            f"{POSE_NAMES[component]} of every image",
            histogram_lines(sides),
            x_name="0 is the canonical pose",
            whole_x=False,
        )
        if svg:
            charts.append(Chart(POSE_NAMES[component], svg))
    return charts


def training(data: RunData) -> list[Chart]:
    """What training itself told."""
    records = data.records
    if not records:
        return []
    charts: list[Chart] = []
    spread: Mapping[str, Any] = records[0].get("reward_std") or {}
    lines = []
    for n, (name, points) in enumerate(named_series(records, "reward").items()):
        unit, first = number(spread.get(name)) or 1.0, points[0][1]
        lines.append(Line(name, [(x, (y - first) / unit) for x, y in points], f"s{n % 6}", dots=False))
    _add(charts, "Rewards", lines, "Of the training reports, in units of the first epoch's spread.")
    lines = _lines(records, "win_rate")
    half = [Reference("½", 0.5, "anchor")] if lines else []
    _add(
        charts,
        "Win-rate",
        lines,
        "Share of the anchor's images that are beaten; ½ is a draw.",
        references=half,
    )
    for key, title, note in _HISTORY:
        references = []
        if key == "ratio_max_dev" and data.config is not None:
            references = [Reference("limit", data.config.optim.ratio_tolerance, "anchor")]
        floor = 0.0 if key in ("kl", "clip_fraction", "ratio_max_dev", "grad_norm") else None
        _add(
            charts, title, _lines(records, key), note,
            references=references, floor=floor, log=key == "grad_norm",
        )  # fmt: skip
    seconds = named_series(records, "seconds")
    if seconds:
        names = list(seconds)
        bars = [
            (float(r["epoch"]) + 1, [float((r.get("seconds") or {}).get(n) or 0.0) for n in names])
            for r in records
        ]
        svg = stacked_bars("seconds of every stage", names, bars)
        legend = [(f"s{n % 6}", name) for n, name in enumerate(names)]
        if svg:
            charts.append(Chart("Seconds by stage", svg, "", legend))
    return charts


def _add(charts: list[Chart], title: str, lines: list[Line], note: str, **how: Any) -> None:
    svg = line_chart(title, lines, **how)
    if svg:
        legend = [(line.style, line.name) for line in lines] if len(lines) > 1 else []
        charts.append(Chart(title, svg, note, legend))


def _lines(records: Sequence[Mapping[str, Any]], key: str) -> list[Line]:
    found = named_series(records, key)
    return [Line(name, points, f"s{n % 6}", dots=False) for n, (name, points) in enumerate(found.items())]


def named_series(records: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[tuple[float, float]]]:
    """Name → (epoch, value) of a number, or of a mapping of numbers; unknown ones are left out."""
    points: dict[str, list[tuple[float, float]]] = {}
    for record in records:
        value = record.get(key)
        for name, found in (value if isinstance(value, Mapping) else {key: value}).items():
            if (known := number(found)) is not None:
                points.setdefault(str(name), []).append((float(record["epoch"]) + 1, known))
    return points
