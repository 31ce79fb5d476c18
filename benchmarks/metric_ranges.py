"""What every logged number was in finished runs of the default preset: the ranges of docs/metrics.md.

cxrl train --run-dir runs/0 --seed 0                         (and other seeds)
python benchmarks/metric_ranges.py runs/0 runs/1 runs/2      results/metric_ranges.json
python benchmarks/metric_ranges.py --table                   "name: low to high", from the committed file
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from cxrl.api import load_run
from cxrl.errors import CxrlError
from cxrl.metrics.names import KEYS
from cxrl.rl.epoch_record import flat_numbers
from cxrl.storage.layout import BOUNDS, METRICS, PROVENANCE
from cxrl.storage.reading import read_json, read_json_lines

RESULT = Path(__file__).parent / "results" / "metric_ranges.json"


def ranges(runs: list[Path]) -> dict[str, dict[str, float]]:
    """Flat name → lowest, median and highest over all epochs of all runs, and the medians at both ends."""
    found: dict[str, list[tuple[int, float]]] = {}
    for run in runs:
        for record in read_json_lines(run / METRICS):
            for name, value in flat_numbers(record).items():
                found.setdefault(name, []).append((record["epoch"], value))
    result = {}
    for name, values in sorted(found.items()):
        first, last = min(e for e, _ in values), max(e for e, _ in values)
        result[name] = {
            "low": min(v for _, v in values),
            "median": median([v for _, v in values]),
            "high": max(v for _, v in values),
            "first": median([v for e, v in values if e == first]),
            "last": median([v for e, v in values if e == last]),
        }
    return result


def median(values: list[float]) -> float:
    """The middle one, or the upper of the two."""
    return sorted(values)[len(values) // 2]


def measure(runs: list[Path]) -> dict[str, Any]:
    """The content of the result. Raises CxrlError where a run has no metrics or is of another preset."""
    loaded = [load_run(run) for run in runs]
    for run in loaded:
        if run.config.preset != "phantom" or run.summary is None:
            raise CxrlError(f"{run}: expected a finished run of preset phantom")
    bounds = [read_json(run / BOUNDS) for run in runs]
    gaps = [(run.summary or {})["gap"] for run in loaded]
    machine = read_json(runs[0] / PROVENANCE)["sessions"][-1]["machine"]
    return {
        "command": "python benchmarks/metric_ranges.py",
        "preset": "phantom",
        "seeds": [run.config.seed for run in loaded],
        "processor": machine["processor"],
        "threads": machine["threads"],
        "metrics": ranges(runs),
        "bounds": {
            f"{side}/{key}": over_runs([b[side][key] for b in bounds])
            for side in ("anchor", "real")
            for key in KEYS
        },
        "gap": {key: over_runs([gap[key] for gap in gaps]) for key in KEYS},
    }


def over_runs(values: list[float]) -> dict[str, float]:
    """The lowest and the highest."""
    return {"low": min(values), "high": max(values)}


def text(value: float) -> str:
    """Three digits, or a power of ten."""
    return f"{value:.2e}".replace("e-0", "e-") if 0 < abs(value) < 1e-3 else f"{value:.3g}"


def span(row: dict[str, float]) -> str:
    """The range in words, or the value where it never changes."""
    low, high = text(row["low"]), text(row["high"])
    return low if low == high else f"{low} to {high}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path)
    parser.add_argument("--table", action="store_true")
    args = parser.parse_args()
    if args.runs:
        RESULT.write_text(json.dumps(measure(args.runs), indent=1) + "\n")
    if args.table:
        saved = json.loads(RESULT.read_text())
        gaps = {f"gap/{key}": row for key, row in saved["gap"].items()}
        rows = saved["metrics"] | saved["bounds"] | gaps
        print("\n".join(f"{name}: {span(row)}" for name, row in rows.items()))


if __name__ == "__main__":
    main()
