"""Best-of-n expectations against brute force over all choices, and against known distributions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from cxrl.metrics.best_of import best_of_weights, rank_correlation


def by_hand(scores: Tensor, values: Tensor, n: int) -> float:
    """Mean over all subsets of n of the value of the best one; of several best, of any of them."""
    total = []
    for subset in itertools.combinations(range(len(scores)), n):
        best = max(float(scores[i]) for i in subset)
        picked = [float(values[i]) for i in subset if float(scores[i]) == best]
        total.append(sum(picked) / len(picked))
    return sum(total) / len(total)


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6])
def test_it_is_the_mean_over_all_choices(n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    scores, values = torch.rand(4, 6, generator=generator), torch.rand(4, 6, generator=generator)
    weights = best_of_weights(scores, n)
    assert weights.sum(1).tolist() == pytest.approx([1.0] * 4)
    for row in range(4):
        expected = by_hand(scores[row], values[row], n)
        assert float(weights[row] @ values[row].double()) == pytest.approx(expected)


def test_images_that_tie_share() -> None:
    scores = torch.tensor([[2.0, 1.0, 2.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    for n in (1, 2, 3, 4):
        weights = best_of_weights(scores, n)
        assert weights[0, 0] == weights[0, 2] >= weights[0, 1]
        assert weights[1].tolist() == pytest.approx([0.25] * 4), "a reward that never varies picks blindly"
        assert weights.sum(1).tolist() == pytest.approx([1.0, 1.0])
    # One of the two best is in every pair but {1, 3}.
    assert best_of_weights(scores, 2)[0].tolist() == pytest.approx([5 / 12, 1 / 6, 5 / 12, 0.0])


@pytest.mark.parametrize("rho", [0.0, 0.5, 1.0])
def test_the_gain_of_normal_scores_is_the_expected_maximum_times_their_correlation(rho: float) -> None:
    generator = torch.Generator().manual_seed(0)
    reward, noise = torch.randn(2, 40_000, 8, generator=generator, dtype=torch.float64)
    judge = rho * reward + math.sqrt(1 - rho**2) * noise
    for n, expected in ((1, 0.0), (2, 0.56419), (4, 1.02938), (8, 1.42360)):
        gain = float((best_of_weights(reward, n) * judge).sum(1).mean())
        assert gain == pytest.approx(rho * expected, abs=0.02)


def test_what_is_no_choice_is_refused() -> None:
    with pytest.raises(ValueError, match="n 5: expected 1 to 4"):
        best_of_weights(torch.zeros(2, 4), 5)
    with pytest.raises(ValueError, match="n 0: expected 1 to 4"):
        best_of_weights(torch.zeros(2, 4), 0)
    with pytest.raises(ValueError, match=r"expected finite scores \[P, N\]"):
        best_of_weights(torch.full((2, 4), math.nan), 1)


def test_rank_correlation_within_a_report() -> None:
    a = torch.tensor([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0], [1.0, 1.0, 1.0, 1.0], [1.0, 2.0, 2.0, 3.0]])
    b = torch.tensor(
        [[0.1, 5.0, 9.0, 99.0], [4.0, 3.0, 2.0, 1.0], [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 4.0]]
    )
    found = rank_correlation(a, b)
    assert found[:2].tolist() == pytest.approx([1.0, -1.0])
    assert bool(found[2].isnan())
    assert float(found[3]) == pytest.approx(0.9486833)  # scipy.stats.spearmanr
    with pytest.raises(ValueError, match="expected two"):
        rank_correlation(a, b[:2])
