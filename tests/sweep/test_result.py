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
    assert high - low == pytest.approx(2 * 1.9904502 * 0.50315283 / 80**0.5, rel=1e-5)  # scipy, 79 degrees


def write(folder: Path, value: float, step: int = 8, anchor: float = 0.1, kept: int = 1) -> None:
    def side(x: float) -> dict:
        return dict.fromkeys(KEYS, x)

    folder.mkdir(parents=True)
    change = side(value - anchor) | {"ci": {key: [value - 0.2, value] for key in KEYS}}
    summary = {"anchor": side(anchor), "policy": side(value), "real": side(1.1), "change": change}
    summary |= {
        "gap": side(value - anchor),
        "num_reports": 4,
        "num_images": 8,
        "epochs": 2,
        "kept_epoch": kept,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text(
        f'{{"epoch": 0, "step": {step}}}\n{{"epoch": 1, "step": {2 * step}}}\n'
    )
    (folder / "config.yaml").write_text("preset: smoke\n")  # 2 reports of 4 samples an epoch


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
    assert found["updates"] == {"steps": 8, "images": 8, "unequal": {}}
    text = markdown(found, "Ablation")
    assert r"| \<b>other | +0.110 [+0.085, +0.135] |" in text
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
    assert found["doubts"] == [
        "Not at equal updates: <b>other, seed 0 made 6 steps of 8 images, most 8 of 8.",
        "Missing: full, seed 2.",
        "Missing: <b>other, seeds 1, 2.",
        "Missing: twin, seed 2.",
    ]
    assert r"**Missing: \<b>other, seeds 1, 2.**" in text
    assert "Missing: &lt;b&gt;other, seeds 1, 2." in sweep_page(found, "Ablation")
    assert found["variants"][1]["auroc"]["change_ci"] == [pytest.approx(0.4), 0.6], (
        "of one seed, over reports"
    )


def test_nothing_done_is_nothing_to_show(sweep) -> None:
    variants, jobs = sweep
    with pytest.raises(CxrlError, match="no run of the sweep is done"):
        sweep_result(variants, jobs, [0])


def test_weights_that_were_kept_count_and_not_how_long_it_trained(sweep) -> None:
    variants, jobs = sweep
    write(jobs[0].folder, 0.5)
    write(jobs[1].folder, 0.5, kept=2)
    write(jobs[2].folder, 0.5)
    updates = sweep_result(variants, jobs, [0, 1])["updates"]
    assert updates == {"steps": 8, "images": 8, "unequal": {"<b>other, seed 0": [16, 16]}}


def test_bounds_are_one_a_seed_and_others_are_said(sweep) -> None:
    variants, jobs = sweep
    for job in jobs:
        other = job.variant != "full"
        write(job.folder, 0.5, anchor=0.1 * (job.seed + 1) + (0.05 if other and job.seed == 2 else 0))
    found = sweep_result(variants, jobs, [0, 1, 2])
    assert found["anchor"]["auroc"] == pytest.approx(0.2), "the first variant's, a value a seed"
    assert found["unlike"] == ["<b>other"]
    assert "Not between the same bounds" in found["doubts"][0]


def test_one_seed_shows_the_interval_over_reports(sweep) -> None:
    variants, _ = sweep
    jobs = jobs_of(variants, [0], sweep[1][0].folder.parents[2])
    for job in jobs:
        write(job.folder, 0.5)
    found = sweep_result(variants, jobs, [0])
    assert "One seed: no interval over seeds." in found["about"]
    assert "| full | +0.400 [+0.300, +0.500], 40% |" in markdown(found, "Ablation")


def test_a_name_breaks_no_table(tmp_path: Path) -> None:
    path = tmp_path / "s.yaml"
    path.write_text("- {name: 'a|b'}\n- {name: 'c`d', policy: {num_ace_tokens: 0}}\n")
    variants = read_variants(path, load_preset("smoke"))
    jobs = jobs_of(variants, [0], tmp_path)
    for job in jobs:
        write(job.folder, 0.5)
    lines = markdown(sweep_result(variants, jobs, [0]), "Ablation").splitlines()
    tables = [line.replace(r"\|", "").count("|") for line in lines if line.startswith("|")]
    assert set(tables) == {len(KEYS) + 2}


def test_the_share_of_the_gap_is_of_the_means(sweep) -> None:
    """A mean of shares would be a seed's whose way is short."""
    variants, jobs = sweep
    for job, anchor in zip(jobs[::2], (0.1, 0.1, 1.099), strict=True):
        write(job.folder, anchor + 0.1, anchor=anchor)
    found = sweep_result(variants, jobs, [0, 1, 2])
    assert found["variants"][0]["auroc"]["gap"] == pytest.approx(0.3 / 2.001)
