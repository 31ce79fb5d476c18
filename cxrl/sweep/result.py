"""What a sweep shows: every variant by the judges, beside anchor and real films, paired with the first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrl.errors import CxrlError
from cxrl.metrics.names import KEYS
from cxrl.storage.layout import METRICS, SUMMARY
from cxrl.storage.reading import read_json, read_json_lines
from cxrl.sweep.runner import Job
from cxrl.sweep.variants import Variant, same_runs

_T: tuple[float, ...] = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)
"""Student's t, 97.5 %, of 1, 2, … 30 degrees of freedom."""


def mean_interval(values: Sequence[float]) -> tuple[float, list[float | None]]:
    """The mean over seeds, and its 95 % interval by Student's t; None twice of one value."""
    mean, num = sum(values) / len(values), len(values)
    if num < 2:
        return mean, [None, None]
    sd = math.sqrt(sum((v - mean) ** 2 for v in values) / (num - 1))
    half = (_T[num - 2] if num - 2 < len(_T) else 1.96) * sd / math.sqrt(num)
    return mean, [mean - half, mean + half]


def sweep_result(variants: Sequence[Variant], jobs: Sequence[Job], seeds: Sequence[int]) -> dict[str, Any]:
    """JSON of a sweep, from the runs that are done.

    Args:
        variants: In the order of the list; others are compared with the first.
        jobs: Its runs.
        seeds: That were asked for.

    Returns:
        ``variants``, each with ``changed``, ``same_as``, ``seeds``, and by judged number ``value`` and ``ci``
        over seeds, ``change`` from the anchor, ``difference`` from the first variant with its interval,
        paired by seed, and ``gap``; ``anchor`` and ``real``; ``updates``, what is not equal.

    Raises:
        CxrlError: No run is done, or a summary is damaged.
    """
    shared = same_runs(variants)
    done = {(job.variant, job.seed): job.folder for job in jobs if job.is_done()}
    if not done:
        raise CxrlError("no run of the sweep is done, so there is nothing to show")
    summaries = {key: read_json(folder / SUMMARY) for key, folder in done.items()}
    rows = []
    for variant in variants:
        own = {seed: summaries.get((shared[variant.name], seed)) for seed in seeds}
        first = {seed: summaries.get((shared[variants[0].name], seed)) for seed in seeds}
        rows.append(
            {
                "name": variant.name,
                "changed": variant.changed,
                "same_as": shared[variant.name] if shared[variant.name] != variant.name else None,
                "seeds": [seed for seed, summary in own.items() if summary is not None],
                "missing": [seed for seed, summary in own.items() if summary is None],
                **{key: _numbers(key, own, first) for key in KEYS},
            }
        )
    sides = {side: _side(side, list(summaries.values())) for side in ("anchor", "real")}
    some = next(iter(summaries.values()))
    told = {"num_reports": some.get("num_reports"), "num_images": some.get("num_images")}
    return {**told, "seeds": list(seeds), **sides, "variants": rows, "updates": _updates(done)}


def _numbers(
    key: str, own: Mapping[int, Mapping[str, Any] | None], first: Mapping[int, Mapping[str, Any] | None]
) -> dict[str, Any]:
    known = {seed: s for seed, s in own.items() if s is not None and s["policy"][key] is not None}
    if not known:
        return {"value": None}
    value, ci = mean_interval([s["policy"][key] for s in known.values()])
    changes = [s["change"][key] for s in known.values() if s["change"][key] is not None]
    change, change_ci = mean_interval(changes) if changes else (None, [None, None])
    if len(known) == 1:  # over reports, where there are no seeds
        (only,) = known.values()
        change_ci = only["change"]["ci"][key]
    gaps = [s["gap"][key] for s in known.values() if s.get("gap") and s["gap"][key] is not None]
    pairs = [(s["policy"][key], other["policy"][key]) for n, s in known.items() if (other := first[n])]
    differences = [a - b for a, b in pairs if b is not None]
    difference, difference_ci = mean_interval(differences) if differences else (None, [None, None])
    return {
        "value": value,
        "ci": ci,
        "change": change,
        "change_ci": change_ci,
        "difference": difference,
        "difference_ci": difference_ci,
        "gap": sum(gaps) / len(gaps) if gaps else None,
    }


def _side(side: str, summaries: Sequence[Mapping[str, Any]]) -> dict[str, float | None] | None:
    known = [s[side] for s in summaries if s.get(side)]
    if not known:
        return None
    means = {}
    for key in KEYS:
        values = [k[key] for k in known if k.get(key) is not None]
        means[key] = sum(values) / len(values) if values else None
    return means


def _updates(done: Mapping[tuple[str, int], Path]) -> dict[str, Any]:
    """Optimizer steps of the runs; ``unequal`` names those with others than most."""
    steps = {f"{name}, seed {seed}": _last_step(folder) for (name, seed), folder in done.items()}
    usual = max(set(steps.values()), key=list(steps.values()).count)
    return {"steps": usual, "unequal": {name: n for name, n in steps.items() if n != usual}}


def _last_step(folder: Path) -> int:
    records = read_json_lines(folder / METRICS)
    return int(records[-1]["step"]) if records else 0


def markdown(result: Mapping[str, Any], title: str) -> str:
    """The result as a page of tables."""
    lines = [f"# {title}", "", _about(result), ""]
    header = ["variant", *KEYS]
    lines += [_line(header), _line(["---"] * len(header))]
    for side, name in (("anchor", "anchor"), ("real", "real films")):
        if result[side]:
            lines.append(_line([f"*{name}*", *(_value(result[side][key]) for key in KEYS)]))
    for row in result["variants"]:
        lines.append(_line([row["name"], *(_cell(row[key], "value", "ci") for key in KEYS)]))
    first = result["variants"][0]["name"]
    lines += ["", f"Difference from *{first}*, paired by seed, with its 95 % interval over seeds:", ""]
    lines += [_line(header), _line(["---"] * len(header))]
    for row in result["variants"][1:]:
        name = row["name"] if row["same_as"] is None else f"{row['name']} (the same runs as {row['same_as']})"
        cells = (_cell(row[key], "difference", "difference_ci", "+") for key in KEYS)
        lines.append(_line([name, *cells]))
    return "\n".join(lines) + "\n"


def _about(result: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, result["seeds"]))
    words = (
        f"By judges that gave no reward, {result['num_images']} images of {result['num_reports']} reports "
    )
    words += (
        f"that chose nothing in these runs; seeds {seeds}; {result['updates']['steps']} optimizer steps each."
    )
    if len(result["seeds"]) == 1:
        words += " One seed: no interval over seeds."
    for name, steps in result["updates"]["unequal"].items():
        words += f" **Not at equal updates:** {name} made {steps}."
    for row in result["variants"]:
        if row["missing"]:
            words += f" **Missing:** {row['name']}, seeds {', '.join(map(str, row['missing']))}."
    return words


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(numbers: Mapping[str, Any], key: str, ci: str, sign: str = "") -> str:
    if numbers.get(key) is None:
        return "–"
    low, high = numbers[ci]
    interval = "" if low is None else f" [{_value(low, sign)}, {_value(high, sign)}]"
    return f"{_value(numbers[key], sign)}{interval}"


def _value(value: float | None, sign: str = "") -> str:
    if value is None:
        return "–"
    digits = ".3f" if abs(value) < 10 else ".1f"
    return f"{value:{sign}{digits}}".replace("-", "−")
