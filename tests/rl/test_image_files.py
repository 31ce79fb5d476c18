"""scores.csv and gallery.safetensors: each judged image, pictures of their reports, no patient's film."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from cxrl.evaluation.real_films import RealFilms
from cxrl.images.png import SYNTHETIC
from cxrl.output.run_data import read_run
from cxrl.rl.evaluation import Evaluator
from cxrl.rl.image_files import thumbnails
from cxrl.rl.trainer import Trainer


def films(evaluator: Evaluator, *, is_phantom: bool) -> RealFilms:
    images = torch.rand(len(evaluator.batch), 1, *evaluator.sampler.policy.base.image_size)
    return RealFilms(images, evaluator.batch, "films of the test", is_phantom=is_phantom)


@pytest.mark.parametrize("is_phantom", [True, False])
def test_a_run_keeps_what_it_judged(
    make_config: Any, fakes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_phantom: bool
) -> None:
    trainer = Trainer(make_config(train={"num_epochs": 1}), tmp_path / "run", **fakes)
    evaluator = trainer.parts.evaluator
    monkeypatch.setitem(evaluator.__dict__, "films", films(evaluator, is_phantom=is_phantom))
    summary = trainer.run()
    with (tmp_path / "run" / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["side"] for row in rows] == ["anchor"] * 4 + ["policy"] * 4 + ["real"] * 4
    for side in ("anchor", "policy", "real"):
        own = [row for row in rows if row["side"] == side]
        assert [int(row["image"]) for row in own] == [0, 1, 2, 3]
        mean = sum(float(row["posture"]) for row in own) / 4
        assert mean == pytest.approx(summary[side]["posture"], rel=1e-4)
    texts = [p.text for p in evaluator.batch.prompts]
    assert [row["text"] for row in rows[:4]] == [texts[0], texts[0], texts[1], texts[1]]
    assert {"reward_posture", "reward_diagnosis", "theta"} <= rows[0].keys()
    assert all(math.isfinite(float(row["reward_posture"])) for row in rows)
    path = tmp_path / "run" / "gallery.safetensors"
    gallery = load_file(path)
    assert ("real" in gallery) == is_phantom, "a patient's film is on no page"
    assert gallery["image"].tolist() == [0, 2], "the first of each report"
    drawn = evaluator.anchor_images[[0, 2]]
    assert torch.equal(gallery["anchor"], thumbnails(drawn))
    with safe_open(path, "pt") as opened:
        assert opened.metadata()["Synthetic"] == SYNTHETIC
    run = read_run(tmp_path / "run")
    assert [point.epoch for point in run.points] == [0, 1]
    assert run.points[0].side.reward.keys() == {"posture", "diagnosis"}


def test_thumbnails_are_small() -> None:
    images = torch.rand(2, 1, 300, 200)
    small = thumbnails(images)
    assert small.shape == (2, 128, 85)
    assert small.dtype == torch.uint8
    same = thumbnails(torch.full((1, 1, 8, 8), 0.5))
    assert same.shape == (1, 8, 8)
    assert int(same[0, 0, 0]) == 128
