from __future__ import annotations

import pytest
import torch

from cxrl.rl.epoch_record import flat_numbers, rollout_diversity


def test_rollout_diversity_is_the_mean_rms_distance_within_prompts() -> None:
    images = torch.rand(5, 1, 3, 4)
    prompt_of = torch.tensor([0, 1, 0, 0, 2])
    pairs = [(0, 2), (0, 3), (2, 3)]
    expected = sum(float((images[a] - images[b]).square().mean().sqrt()) for a, b in pairs) / 3
    assert rollout_diversity(images, prompt_of) == pytest.approx(expected, rel=1e-5)
    assert rollout_diversity(images[:1], prompt_of[:1]) == 0.0


def test_flat_numbers() -> None:
    assert flat_numbers({"a": 1, "b": {"c": 2.5, "d": {"e": 3}}}) == {"a": 1.0, "b/c": 2.5, "b/d/e": 3.0}
