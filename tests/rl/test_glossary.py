"""docs/metrics.md explains every number that a run writes, no other, and its ranges are the measured ones."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cxrl.api import Run
from cxrl.config import Config
from cxrl.evaluation.judges import load_judges
from cxrl.metrics.names import KEYS
from cxrl.rl.trainer import Trainer
from cxrl.storage.layout import BOUNDS, SCORES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
RANGES = json.loads((ROOT / "benchmarks" / "results" / "metric_ranges.json").read_text())
BY_REWARD = ("reward", "reward_std", "win_rate", "eval_reward", "reward_ci", "eval_reward_ci")
BY_PARENT = {
    "auroc_per_finding": "FINDING",
    "ci_per_finding": "FINDING",
    "ci": "KEY",
    **dict.fromkeys(BY_REWARD, "NAME"),
}


def rows(title: str) -> dict[str, list[str]]:
    """What the tables below a heading have in their first column, by name → the other cells."""
    text = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("| `"):
            first, *rest = (cell.strip() for cell in line.removesuffix("|")[1:].split("|"))
            found |= dict.fromkeys(re.findall(r"`([^`]+)`", first), rest)
    return found


def names_of(data: Mapping[str, Any], *parents: str) -> set[str]:
    """The leaves as the page calls them: ``/`` between levels, a word for what differs from run to run."""
    names = set()
    for key, value in data.items():
        if isinstance(value, dict):
            names |= names_of(value, *parents, key)
        else:
            names.add("/".join((*parents, BY_PARENT.get(parents[-1], key) if parents else key)))
    return names


def span(row: Mapping[str, float]) -> str:
    def text(value: float) -> str:
        return f"{value:.2e}".replace("e-0", "e-") if 0 < abs(value) < 1e-3 else f"{value:.3g}"

    low, high = text(row["low"]), text(row["high"])
    return low if low == high else f"{low} to {high}"


@pytest.fixture(params=["lora", "full"])
def run(request: Any, make_config: Callable[..., Config], fakes: dict[str, Any], tmp_path: Path) -> Run:
    config = make_config(policy={"train": request.param}, train={"num_epochs": 2, "eval_every": 1})
    Trainer(config, tmp_path / "run", **fakes).run()
    return Run(tmp_path / "run")


def test_every_number_of_an_epoch(run: Run) -> None:
    produced = set().union(*map(names_of, run.metrics))
    # Of intervals the page has the names, not a word for all six.
    produced |= {f"eval_ci/{key}" for record in run.metrics for key in record.get("eval_ci", ())}
    both = {f"{key}/{group}" for key in ("grad_norm", "learning_rate") for group in ("lora", "unet")}
    assert len(produced) > 35
    assert produced | both == set(rows("metrics.jsonl")) | both
    assert len(produced & both) == 2


def test_every_number_of_the_bounds(run: Run) -> None:
    bounds = json.loads((run.path / BOUNDS).read_text())
    assert bounds["real"] is None
    bounds["real"] = bounds["anchor"]
    produced = {re.sub("^judges/.*", "judges/…", name) for name in names_of(bounds)}
    assert produced == set(rows("bounds.json"))


def test_every_number_of_the_summary(run: Run) -> None:
    summary = dict(run.summary or {})
    judges = set(summary.pop("judges")) | set(load_judges().description) | {"no_fid"}
    summary |= {"gap": summary["change"]}
    produced = {name for name in names_of(summary) if not re.match("(anchor|policy|real)(/|$)", name)}
    produced = {re.sub(f"^(change|gap)/({'|'.join(KEYS)})$", r"\1/KEY", name) for name in produced}
    produced |= {"anchor/…", "policy/…", "real/…"} | {f"judges/{name}" for name in judges}
    assert produced == set(rows("summary.json"))


def test_every_column_of_the_scores(run: Run) -> None:
    with (run.path / SCORES).open(newline="") as file:
        header = next(csv.reader(file))
    words = {"reward_": "reward_NAME", "p_": "p_FINDING", "label_": "label_FINDING"}
    produced = {
        next((word for start, word in words.items() if name.startswith(start)), name) for name in header
    }
    assert produced == set(rows("scores.csv"))


def test_the_ranges_are_the_measured_ones() -> None:
    checked = 0
    for name, (_, _, _, default, _) in rows("metrics.jsonl").items():
        if default:
            assert default == expected(name), name
            checked += 1
    assert checked > 25
    for name, (_, default) in rows("bounds.json").items():
        if name in RANGES["bounds"]:
            assert default == span(RANGES["bounds"][name]), name
    assert ", ".join(f"{key} {span(row)}" for key, row in RANGES["gap"].items()) in " ".join(PAGE.split())
    assert (RANGES["preset"], RANGES["seeds"]) == ("phantom", [0, 1, 2])


def expected(name: str) -> str:
    head = name.removesuffix("NAME")
    if head == name:
        return span(RANGES["metrics"][name])
    of: Iterable[str] = (key for key in RANGES["metrics"] if key.startswith(head))
    return "<br>".join(f"{key.removeprefix(head)} {span(RANGES['metrics'][key])}" for key in of)
