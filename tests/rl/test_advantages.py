from __future__ import annotations

import pytest
import torch

from cxrl.rl.advantages import advantages


def test_per_prompt_statistics_with_unequal_groups() -> None:
    score = torch.tensor([1.0, 10.0, 3.0, 20.0, 5.0, 60.0, 7.0])
    prompt_of = torch.tensor([0, 2, 0, 2, 0, 2, 0])
    result = advantages(score, prompt_of)
    a, b = score[[0, 2, 4, 6]], score[[1, 3, 5]]
    torch.testing.assert_close(result.values[[0, 2, 4, 6]], (a - a.mean()) / a.std(correction=0))
    torch.testing.assert_close(result.values[[1, 3, 5]], (b - b.mean()) / b.std(correction=0))
    assert (result.num_tied_groups, result.clip_fraction) == (0, 0.0)


@pytest.mark.parametrize("scale", ["std", "none"])
def test_ties_and_single_samples_get_exactly_zero(scale: str) -> None:
    # 0.1 + 0.2 and 0.3 tie to rounding; a blow-up would give ±1.
    score = torch.tensor([0.3, 0.1 + 0.2, 0.3 + 3e-8, 5.0, 1.0, 2.0, 0.0, 0.0])
    prompt_of = torch.tensor([0, 0, 0, 1, 2, 2, 3, 3])
    result = advantages(score, prompt_of, scale=scale)
    assert result.values[[0, 1, 2, 3, 6, 7]].eq(0).all()
    assert result.values[[4, 5]].tolist() == ([-1.0, 1.0] if scale == "std" else [-0.5, 0.5])
    assert result.num_tied_groups == 3


def test_large_offsets_do_not_hide_differences() -> None:
    score = torch.tensor([1000.0, 1001.0, 1002.0, 1003.0])
    values = advantages(score, torch.zeros(4, dtype=torch.int64)).values
    torch.testing.assert_close(values, torch.tensor([-3.0, -1.0, 1.0, 3.0]) / 5**0.5)


def test_batch_and_no_centring() -> None:
    score, prompt_of = torch.tensor([1.0, 2.0, 3.0, 6.0]), torch.tensor([0, 0, 1, 1])
    batch = advantages(score, prompt_of, center="batch")
    torch.testing.assert_close(batch.values, (score - 3) / score.std(correction=0))
    plain = advantages(score, prompt_of, center="none", scale="none")
    assert plain.values.tolist() == [1.0, 2.0, 3.0, 5.0]
    assert plain.clip_fraction == 0.25
    scaled = advantages(score, prompt_of, center="none")
    torch.testing.assert_close(scaled.values, score / score.square().mean().sqrt())
    alike = advantages(torch.full((3,), 2.0), torch.arange(3), center="none")
    assert alike.values.tolist() == [1.0, 1.0, 1.0]  # better than the anchor, all of them: no tie


def test_clipping() -> None:
    score = torch.zeros(40)
    score[0] = 1.0
    result = advantages(score, torch.zeros(40, dtype=torch.int64), clip=5.0)
    assert result.values[0] == 5.0
    assert result.clip_fraction == pytest.approx(1 / 40)


def test_no_samples() -> None:
    assert advantages(torch.zeros(0), torch.zeros(0, dtype=torch.int64)).values.shape == (0,)
