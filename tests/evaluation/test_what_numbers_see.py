"""Every fault is caught by the number that should; and a small table made now says the same."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from cxrl.metrics.names import KEYS

ROOT = Path(__file__).parents[2]
SHOULD = {
    "one pose in all": ("pose_sd", "diversity", "ms_ssim", "fid", "recall", "density"),
    "wide poses": ("posture", "pose_sd", "fid", "kid", "precision"),
    "a few films for all reports": ("auroc", "consistency", "fid", "recall", "coverage", "diversity"),
    "one film a report": ("ms_ssim", "diversity", "recall"),
    "films of other reports": ("auroc", "consistency"),
    "blurred": ("ms_ssim", "diversity"),
    "noisy": ("ms_ssim", "diversity", "fid", "kid"),
    "half of them black": ("posture", "auroc", "fid", "kid", "precision"),
}
SHOULD_NOT = {
    "one film a report": ("posture", "auroc", "consistency"),
    "films of other reports": ("posture", "fid", "kid", "precision", "recall", "coverage", "diversity"),
    "blurred": ("posture", "auroc"),
}


@pytest.fixture(scope="module")
def module() -> Any:
    spec = importlib.util.spec_from_file_location("see", ROOT / "benchmarks" / "what_numbers_see.py")
    assert spec is not None
    assert spec.loader is not None
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    return made


def test_every_fault_is_caught_by_the_number_that_should() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "what_numbers_see.json").read_text())
    caught = result["caught_by"]
    assert caught["real films"] == [], "real against real"
    assert {name for name in caught if name != "real films"} == set(SHOULD)
    for name, keys in SHOULD.items():
        assert set(keys) <= set(caught[name]), name
    for name, keys in SHOULD_NOT.items():
        assert not set(keys) & set(caught[name]), name


def test_the_page_shows_the_committed_table(module: Any) -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "what_numbers_see.json").read_text())
    assert module.table(result) in (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_small_table_made_now_says_the_same(module: Any) -> None:
    expected = {
        "wide poses": "posture",
        "films of other reports": "consistency",
        "one film a report": "diversity",
    }
    made = module.measure(52, num_draws=1, bootstrap=50, only=("real films", *expected))
    found = made["caught_by"]
    assert not set(found["real films"]) & set(KEYS), "a draw is too few for the numbers of sets"
    for name, key in expected.items():
        assert key in found[name], (name, found[name])
