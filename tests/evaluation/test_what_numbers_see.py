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
    "training films again": ("reidentified",),
    "half of them black": ("posture", "auroc", "fid", "kid", "precision"),
}
SHOULD_NOT = {
    "one film a report": ("posture", "auroc", "consistency"),
    "films of other reports": ("posture", "fid", "kid", "precision", "recall", "coverage", "diversity"),
    "blurred": ("posture", "auroc", "reidentified"),
    "noisy": ("reidentified",),
    "training films again": ("posture", "auroc", "consistency", "fid", "ms_ssim", "diversity", "precision"),
}


@pytest.fixture(scope="module")
def module() -> Any:
    return script("what_numbers_see")


def script(name: str) -> Any:
    """A benchmark as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
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
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert module.table(result) in page
    for kind, told in result["planted"].items():
        if kind != "others_reidentified":
            assert f"| {kind} | {told['auroc']:.4f} | {told['reidentified']:.0%} |" in page


def test_planted_copies_are_found_and_other_films_are_not() -> None:
    planted = json.loads((ROOT / "benchmarks" / "results" / "what_numbers_see.json").read_text())["planted"]
    assert planted.pop("others_reidentified") <= 0.02
    assert {"exact", "flipped", "noised", "cropped"} <= set(planted)
    for kind, told in planted.items():
        assert told["auroc"] >= 0.99, kind


def test_copies_of_real_films_are_found() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "copies_real.json").read_text())
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert script("copies_real").table(result) in page
    unseen = {"turned by 8°", "inverted"}
    for kind, told in result["copies"].items():
        assert (told["auroc"] >= 0.99) == (kind not in unseen), kind


def test_the_page_shows_what_films_teach() -> None:
    result = json.loads((ROOT / "benchmarks" / "results" / "utility_phantom.json").read_text())
    page = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert script("utility").table(result) in page
    anchor, policy = (
        {arm["arm"]: arm for arm in result[source]["utility"]["arms"]} for source in ("anchor", "policy")
    )
    assert policy["generated"]["ci"][0] > anchor["generated"]["ci"][1], "alone they teach more"
    assert policy["mixed"]["minus_real_ci"][1] < 0, "and add nothing to real ones"


@pytest.mark.slow
def test_a_small_table_made_now_says_the_same(module: Any) -> None:
    expected = {
        "wide poses": "posture",
        "films of other reports": "consistency",
        "one film a report": "diversity",
        "training films again": "reidentified",
    }
    few = {"num_training": 208, "num_held_out": 100, "num_others": 60, "num_planted": 12}
    made = module.measure(52, num_draws=1, bootstrap=50, only=("real films", *expected), **few)
    assert all(told["auroc"] > 0.97 for kind, told in made["planted"].items() if "_" not in kind)
    found = made["caught_by"]
    assert not set(found["real films"]) & set(KEYS), "a draw is too few for the numbers of sets"
    for name, key in expected.items():
        assert key in found[name], (name, found[name])
