from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from cxrl.data.phantom import films as phantom
from cxrl.data.phantom.films import Films, corpus
from cxrl.data.phantom.thorax import Array, Params
from cxrl.data.prompts import PromptBatch
from cxrl.rewards.base import Reward
from cxrl.rewards.posture import misalignment


@pytest.mark.parametrize(
    ("psi", "expected"),
    [
        ([0.0, 0.0, 0.0, 0.0, 0.0], 0.0),
        ([0.3, 0.0, 0.0, -0.4, 0.0], 0.5),
        ([0.0, 0.0, 0.0, 0.0, -0.25], 0.25),
        ([0.1, 0.1, 0.1, 0.1, 0.1], 0.05**0.5),
    ],
)
def test_misalignment_is_the_distance_from_the_canonical_pose(psi: list[float], expected: float) -> None:
    both = torch.tensor([psi, [0.0, 0.0, 0.6, 0.8, 0.0]])
    assert misalignment(both).tolist() == pytest.approx([expected, 1.0])


def posed(monkeypatch: pytest.MonkeyPatch, psi: tuple[float, ...]) -> Tensor:
    """float32 [24, 1, 64, 64]: the same 24 chests, all in the pose ``psi``."""
    draw = phantom.draw

    def draw_so(params: Params, _: Array, noise: Array) -> Array:
        return draw(params, np.tile(np.float32(psi), (len(noise), 1)), noise)

    with monkeypatch.context() as patch:
        patch.setattr(phantom, "draw", draw_so)
        return corpus(24, seed=8102, pose_scale=0.0).pixels()


@pytest.mark.parametrize(
    ("direction", "values"),
    [
        ("rotated clockwise", [(0, 0, 0, 0, t) for t in (0.0, 0.08, 0.16, 0.24)]),
        ("rotated the other way", [(0, 0, 0, 0, -t) for t in (0.0, 0.08, 0.16, 0.24)]),
        ("zoomed in", [(s, s, 0, 0, 0) for s in (0.0, 0.08, 0.16, 0.24)]),
        ("zoomed out", [(-s, -s, 0, 0, 0) for s in (0.0, 0.08, 0.16, 0.24)]),
        ("shifted right", [(0, 0, t, 0, 0) for t in (0.0, 0.08, 0.16, 0.24)]),
        ("shifted left", [(0, 0, -t, 0, 0) for t in (0.0, 0.08, 0.16, 0.24)]),
        ("shifted down", [(0, 0, 0, t, 0) for t in (0.0, 0.1, 0.2, 0.3)]),
        ("shifted up", [(0, 0, 0, -t, 0) for t in (0.0, 0.1, 0.2, 0.3)]),
    ],
)
def test_the_score_falls_with_every_step_away_from_the_canonical_pose(
    direction: str,
    values: list[tuple[float, ...]],
    rewards: dict[str, Reward],
    batch: PromptBatch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scores = [
        float(rewards["posture"].score(posed(monkeypatch, psi), batch.slice(0, 24)).mean()) for psi in values
    ]
    assert scores[0] > -0.12, scores
    for (psi, score), (_, further) in itertools.pairwise(zip(values, scores, strict=True)):
        assert further < score - 0.04, (direction, psi, scores)
    # The scale is right too, not only the order.
    distance = float(torch.tensor(values[-1]).norm())
    assert scores[-1] == pytest.approx(-distance, abs=0.25 * distance)


def test_the_score_agrees_with_the_true_pose(
    films: Films, batch: PromptBatch, rewards: dict[str, Reward]
) -> None:
    score = rewards["posture"].score(films.pixels(), batch)
    true = -misalignment(films.psi)
    assert float(torch.corrcoef(torch.stack([score, true]))[0, 1]) > 0.95
    assert float((score - true).abs().mean()) < 0.04


def test_what_is_no_film_never_scores_well(
    not_a_film: Tensor, films: Films, batch: PromptBatch, rewards: dict[str, Reward]
) -> None:
    real = rewards["posture"].score(films.pixels(), batch)
    bad = rewards["posture"].score(not_a_film, batch)
    assert float(bad.max()) < float(real.min())
