"""The tables of a sweep, from summaries whose numbers are known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cxrl.errors import CxrlError
from cxrl.metrics.names import KEYS
from cxrl.output.sweep_page import sweep_page
from cxrl.presets import load_preset
from cxrl.sweep.result import markdown, mean_interval, sweep_result
from cxrl.sweep.runner import jobs_of
from cxrl.sweep.variants import read_variants


def test_the_interval_is_students() -> None:
    assert mean_interval([2.0]) == (2.0, [None, None])
    mean, (low, high) = mean_interval([1.0, 2.0, 4.0])
    assert mean == pytest.approx(7 / 3)
    assert (low, high) == (pytest.approx(-1.4612, abs=1e-3), pytest.approx(6.1279, abs=1e-3))  # scipy.stats.t
    _, (low, high) = mean_interval([0.0, 1.0] * 40)
    assert high - low == pytest.approx(2 * 1.96 * 0.50315 / 80**0.5, rel=1e-3)


def write(folder: Path, value: float, step: int = 8, anchor: float = 0.1) -> None:
    def side(x: float) -> dict:
        return dict.fromkeys(KEYS, x)

    folder.mkdir(parents=True)
    change = side(value - anchor) | {"ci": {key: [value - 0.2, value] for key in KEYS}}
    summary = {"anchor": side(anchor), "policy": side(value), "real": side(1.1), "change": change}
    summary |= {"gap": side(value - anchor), "num_reports": 4, "num_images": 8, "epochs": 2}
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 1, "step": step}) + "\n")
    (folder / "config.yaml").write_text("preset: smoke\n")


@pytest.fixture
def sweep(tmp_path: Path):
    path = tmp_path / "s.yaml"
    path.write_text("- {name: full}\n- {name: '<b>other', policy: {num_ace_tokens: 0}}\n- {name: twin}\n")
    variants = read_variants(path, load_preset("smoke"))
    return variants, jobs_of(variants, [0, 1, 2], tmp_path)


def test_values_are_means_and_differences_are_paired(sweep) -> None:
    variants, jobs = sweep
    for job in jobs:  # seeds differ by much, the variants by 0.1 and a little
        write(job.folder, 0.3 * job.seed + (0.0 if job.variant == "full" else 0.1 + 0.01 * job.seed))
    found = sweep_result(variants, jobs, [0, 1, 2])
    full, other, twin = (row["auroc"] for row in found["variants"])
    assert full["value"] == pytest.approx(0.3)
    assert other["difference"] == pytest.approx(0.11)
    assert other["difference_ci"] == [pytest.approx(0.0852, abs=1e-3), pytest.approx(0.1348, abs=1e-3)]
    assert other["ci"][1] - other["ci"][0] > 10 * (other["difference_ci"][1] - other["difference_ci"][0])
    assert (twin["difference"], found["variants"][2]["same_as"]) == (0.0, "full")
    assert found["real"]["auroc"] == pytest.approx(1.1)
    assert found["updates"] == {"steps": 8, "unequal": {}}
    text = markdown(found, "Ablation")
    assert "| <b>other | +0.110 [+0.085, +0.135] |" in text
    assert "twin (the same runs as full)" in text
    page = sweep_page(found, "Ablation")
    assert "<b>other" not in page.replace("<b>other</b>", "")
    assert page.count("<svg") == 2 * len(KEYS), "values, and differences from the first"


def test_what_is_missing_and_what_is_not_equal_is_said(sweep) -> None:
    variants, jobs = sweep
    write(jobs[0].folder, 0.5)
    write(jobs[1].folder, 0.6, step=6)
    write(jobs[2].folder, 0.5)
    found = sweep_result(variants, jobs, [0, 1, 2])
    assert found["variants"][1]["missing"] == [1, 2]
    text = markdown(found, "Ablation")
    assert "**Not at equal updates:** <b>other, seed 0 made 6." in text
    assert "**Missing:** <b>other, seeds 1, 2." in text
    assert found["variants"][1]["auroc"]["change_ci"] == [pytest.approx(0.4), 0.6], (
        "of one seed, over reports"
    )


def test_nothing_done_is_nothing_to_show(sweep) -> None:
    variants, jobs = sweep
    with pytest.raises(CxrlError, match="no run of the sweep is done"):
        sweep_result(variants, jobs, [0])
