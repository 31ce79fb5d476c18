from __future__ import annotations

from typing import Any

import pytest
import torch

from cxrl.config import TrainConfig
from cxrl.evaluation.summary import KEYS, Evaluation
from cxrl.rl.evaluation import Limits
from cxrl.rl.progress import rollout_diversity


def scores(**values: float) -> Evaluation:
    return Evaluation({**dict.fromkeys(KEYS, 1.0), **values}, {}, {}, 4)


def limits(**settings: Any) -> Limits:
    defaults = {"early_stop_diversity": 0.8, "early_stop_fid": 1.5, "patience": 2}
    return Limits(TrainConfig(**{**defaults, **settings}))


def test_within_the_limits() -> None:
    limit = limits()
    assert limit.check(scores(), scores(fid=1.5, diversity=0.8)) == ""
    assert limit.check(scores(), scores(fid=float("nan"), diversity=float("nan"))) == ""
    assert (limit.strikes, limit.reason) == (0, "")


@pytest.mark.parametrize(
    ("bad", "name"), [({"fid": 1.6}, "early_stop_fid"), ({"diversity": 0.7}, "diversity")]
)
def test_a_run_stops_after_strikes_in_a_row(bad: dict[str, float], name: str) -> None:
    limit = limits()
    assert name in limit.check(scores(), scores(**bad))
    assert limit.reason == ""
    limit.check(scores(), scores())
    limit.check(scores(), scores(**bad))
    assert limit.reason == ""
    limit.check(scores(), scores(**bad))
    assert name in limit.reason


def test_zero_is_never() -> None:
    limit = limits(early_stop_diversity=0.0, early_stop_fid=0.0, patience=1)
    assert limit.check(scores(), scores(fid=1e9, diversity=0.0)) == ""


def test_rollout_diversity_is_the_mean_rms_distance_within_prompts() -> None:
    images = torch.rand(5, 1, 3, 4)
    group = torch.tensor([0, 1, 0, 0, 2])
    pairs = [(0, 2), (0, 3), (2, 3)]
    expected = sum(float((images[a] - images[b]).square().mean().sqrt()) for a, b in pairs) / 3
    assert rollout_diversity(images, group) == pytest.approx(expected, rel=1e-5)
    assert rollout_diversity(images[:1], group[:1]) == 0.0
