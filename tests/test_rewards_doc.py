"""docs/rewards.md tells the truth: its reward runs, options and files exist, numbers are measured."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from cxrl.cli import train_parser
from cxrl.data.phantom.films import corpus
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.rewards import base as registry
from cxrl.rewards.base import build_rewards, score_all
from cxrl.scorers.choice import XRV_FILES

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "docs" / "rewards.md").read_text(encoding="utf-8")


def test_the_reward_of_ten_lines_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_REGISTRY", dict(registry._REGISTRY))
    (code,) = re.findall(r"^```python\n(.*?)^```$", TEXT, re.M | re.S)
    start = code.index("@register_reward")
    assert len([line for line in code[start:].splitlines() if line.strip()]) <= 10
    exec(compile(code, "rewards.md", "exec"), {})
    rewards = build_rewards(("bright_middle",), "phantom")
    batch = PromptBatch((ReportPrompt(0, "Normal.", ()),), torch.zeros(4, dtype=torch.int64))
    names, values = score_all(rewards, corpus(4, seed=1).pixels(), batch)
    assert names == ("bright_middle",)
    assert values.shape == (4, 1)


def test_options_and_files_exist() -> None:
    known = train_parser().format_help()
    for option in re.findall(r"--([a-z]+\.[a-z_0-9-]+)", TEXT):
        assert f"--{option.replace('_', '-')} " in known, option
    for name in re.findall(r"`((?:data|eval|rewards|run)\.[a-z_0-9]+)`", TEXT):
        assert f"--{name.replace('_', '-')} " in known, name
    for path in re.findall(r"`((?:cxrl|benchmarks)/[\w/.]+)`", TEXT):
        assert (ROOT / path).is_file(), path
    for name in re.findall(r"`(densenet121[\w-]+)`", TEXT):
        assert name in XRV_FILES


def test_the_digests_that_are_held_are_named() -> None:
    (held,) = re.findall(r"recorded in public, for (.*?)\. For", TEXT, re.S)
    names = {n.removeprefix("densenet121-res224") for n, f in XRV_FILES.items() if f.sha256}
    assert set(re.findall(r"`(-\w+)`", held)) == names - {"pspnet"}


def test_the_table_is_the_measured_one() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "rewards_validity.json").read_text())
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.*) \|$", TEXT, re.M))
    for name, refitted in result["cross_validated"].items():
        shipped = result["shipped"][name]
        share = "accepted" if name == "films" else "refused"
        expected = [f"{100 * row[key]:.1f} %" for row in (shipped, refitted) for key in (share,)]
        expected += [f"{row['mean']:.3f}" for row in (shipped, refitted)]
        assert rows[name].split(" | ") == expected, name
