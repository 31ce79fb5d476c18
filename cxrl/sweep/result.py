"""What a sweep shows: every variant by the judges, beside anchor and real films, paired with the first."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cxrl.errors import CxrlError
from cxrl.metrics.names import KEYS
from cxrl.presets import load_yaml
from cxrl.storage.layout import CONFIG, METRICS, SUMMARY
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
    half = _t(num - 1) * sd / math.sqrt(num)
    return mean, [mean - half, mean + half]


def _t(freedom: int) -> float:
    """Student's t, 97.5 %; beyond the table by Cornish and Fisher's expansion, right to 1e-5 there."""
    if freedom <= len(_T):
        return _T[freedom - 1]
    z = 1.959964
    first, second = z**3 + z, 5 * z**5 + 16 * z**3 + 3 * z
    return z + first / (4 * freedom) + second / (96 * freedom**2)


def sweep_result(variants: Sequence[Variant], jobs: Sequence[Job], seeds: Sequence[int]) -> dict[str, Any]:
    """JSON of a sweep, from the runs that are done.

    Args:
        variants: In the order of the list; others are compared with the first.
        jobs: Its runs.
        seeds: That were asked for.

    Returns:
        ``variants``, each with ``changed``, ``same_as``, ``seeds``, and by judged number ``value`` and ``ci``
        over seeds, ``change`` from the anchor, ``difference`` from the first variant with its interval,
        paired by seed, and ``gap``; ``anchor`` and ``real``, and ``unlike``, the variants whose are
        others; ``updates``, what is not equal; ``about`` and ``doubts``, both in words.

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
    one_a_seed = {seed: summary for (_, seed), summary in reversed(summaries.items())}
    sides = {side: _side(side, list(one_a_seed.values())) for side in ("anchor", "real")}
    unlike = dict.fromkeys(
        name for (name, seed), summary in summaries.items() if not _is_alike(summary, one_a_seed[seed])
    )
    some = next(iter(summaries.values()))
    told = {"num_reports": some.get("num_reports"), "num_images": some.get("num_images")}
    updates = _updates(done)
    result = {
        **told,
        "seeds": list(seeds),
        **sides,
        "unlike": list(unlike),
        "variants": rows,
        "updates": updates,
    }
    return {"about": _about(result), "doubts": _doubts(result), **result}


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
        "gap": _gap(key, list(known.values())),
    }


def _gap(key: str, summaries: Sequence[Mapping[str, Any]]) -> float | None:
    """Share of the mean way to real films that was gone: a mean of shares would be a seed's whose way is
    short.
    """
    sides = [[s[side][key] for side in ("anchor", "policy", "real")] for s in summaries if s.get("real")]
    sides = [each for each in sides if None not in each]
    way = sum(real - anchor for anchor, _, real in sides)
    return sum(policy - anchor for anchor, policy, _ in sides) / way if way else None


def _side(side: str, summaries: Sequence[Mapping[str, Any]]) -> dict[str, float | None] | None:
    known = [s[side] for s in summaries if s.get(side)]
    if not known:
        return None
    means = {}
    for key in KEYS:
        values = [k[key] for k in known if k.get(key) is not None]
        means[key] = sum(values) / len(values) if values else None
    return means


def _is_alike(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether two runs stand between the same bounds: what is judged, and by whom, is then the same."""
    counted = all(one.get(name) == other.get(name) for name in ("num_reports", "num_images"))
    sides = ((one.get(side) or {}, other.get(side) or {}) for side in ("anchor", "real"))
    return counted and all(_near(a.get(key), b.get(key)) for a, b in sides for key in KEYS)


def _near(a: float | None, b: float | None) -> bool:
    """Equal but for rounding, which differs with the number of threads."""
    return a == b if a is None or b is None else math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-4)


def _updates(done: Mapping[tuple[str, int], Path]) -> dict[str, Any]:
    """Optimizer steps and policy images behind the weights that were judged; ``unequal`` names the runs with
    others than most, as steps and images.
    """
    spent = {f"{name}, seed {seed}": _spent(folder) for (name, seed), folder in done.items()}
    usual = max(spent.values(), key=list(spent.values()).count)
    unequal = {name: list(each) for name, each in spent.items() if each != usual}
    return {"steps": usual[0], "images": usual[1], "unequal": unequal}


def _spent(folder: Path) -> tuple[int, int]:
    kept = read_json(folder / SUMMARY).get("kept_epoch")
    records = read_json_lines(folder / METRICS)[:kept]
    train = load_yaml(folder / CONFIG).train
    images = len(records) * train.prompts_per_epoch * train.samples_per_prompt
    return (int(records[-1]["step"]) if records else 0), images


def markdown(result: Mapping[str, Any], title: str) -> str:
    """The result as a page of tables."""
    lines = [
        f"# {title}",
        "",
        " ".join((result["about"], *(f"**{_escaped(line)}**" for line in result["doubts"]))),
        "",
    ]
    header = ["variant", *KEYS]
    lines += [_line(header), _line(["---"] * len(header))]
    for side, name in (("anchor", "anchor"), ("real", "real films")):
        if result[side]:
            lines.append(_line([f"*{name}*", *(_value(result[side][key]) for key in KEYS)]))
    for row in result["variants"]:
        lines.append(_line([_escaped(row["name"]), *(_cell(row[key], "value", "ci") for key in KEYS)]))
    lines += ["", "Change from the anchor, with its 95 % interval over seeds (of one seed over reports)"]
    lines[-1] += ", and the share of the way to real films:" if result["real"] else ":"
    lines += ["", _line(header), _line(["---"] * len(header))]
    for row in result["variants"]:
        lines.append(_line([_escaped(row["name"]), *(_change(row[key]) for key in KEYS)]))
    first = _escaped(result["variants"][0]["name"])
    lines += ["", f"Difference from *{first}*, paired by seed, with its 95 % interval over seeds:", ""]
    lines += [_line(header), _line(["---"] * len(header))]
    for row in result["variants"][1:]:
        name = row["name"] if row["same_as"] is None else f"{row['name']} (the same runs as {row['same_as']})"
        cells = (_cell(row[key], "difference", "difference_ci", "+") for key in KEYS)
        lines.append(_line([_escaped(name), *cells]))
    return "\n".join(lines) + "\n"


def _change(numbers: Mapping[str, Any]) -> str:
    gap = numbers.get("gap")
    return _cell(numbers, "change", "change_ci", "+") + ("" if gap is None else f", {gap:.0%}")


def _escaped(name: str) -> str:
    return re.sub(r"([\\|`*_<\[\]])", r"\\\1", name)


def _about(result: Mapping[str, Any]) -> str:
    """What the numbers are of."""
    seeds, updates = ", ".join(map(str, result["seeds"])), result["updates"]
    words = (
        f"By judges that gave no reward, {result['num_images']} images of {result['num_reports']} reports "
        f"that chose nothing in these runs; seeds {seeds}; {updates['steps']} optimizer steps and "
        f"{updates['images']} images each."
    )
    return f"{words} One seed: no interval over seeds." if len(result["seeds"]) == 1 else words


def _doubts(result: Mapping[str, Any]) -> list[str]:
    """Where the rows cannot be compared, a sentence each: none where they can."""
    updates = result["updates"]
    found = [
        f"Not at equal updates: {name} made {steps} steps of {images} images, most "
        f"{updates['steps']} of {updates['images']}."
        for name, (steps, images) in updates["unequal"].items()
    ]
    if result["unlike"]:
        found.append(
            f"Not between the same bounds: anchor, real films or what is judged are others for "
            f"{', '.join(result['unlike'])}."
        )
    for row in result["variants"]:
        if row["missing"]:
            word = "seed" if len(row["missing"]) == 1 else "seeds"
            found.append(f"Missing: {row['name']}, {word} {', '.join(map(str, row['missing']))}.")
    return found


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
