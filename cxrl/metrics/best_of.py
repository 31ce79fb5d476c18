"""What the best of n images is like, from N that were drawn: exact expectations, not one draw.

Of N images of a report, ranked by a score, the one at rank i (0 is the best) is the best of a random n of
them with probability

    w_i = C(N − 1 − i, n − 1) / C(N, n)

so a weighted mean over the N images is the expected value of whatever else is known of the one that is
picked. It is unbiased for the best of n fresh images (the estimator of pass@k, Chen et al. 2021, arXiv
2107.03374, for a score). Images that tie share the weights of their ranks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def best_of_weights(scores: Tensor, n: int) -> Tensor:
    """Probability of every image to be the best of ``n`` of its report's.

    Args:
        scores: [P, N], higher is better, finite.
        n: From 1, all alike, to N, the best alone.

    Returns:
        float64 [P, N], rows sum to 1.

    Raises:
        ValueError: Of scores or n that are none.
    """
    if scores.ndim != 2 or not bool(scores.isfinite().all()):
        raise ValueError(f"expected finite scores [P, N], got shape {tuple(scores.shape)}")
    num = scores.shape[1]
    if not 1 <= n <= num:
        raise ValueError(f"n {n}: expected 1 to {num}, the images of a report")
    of_rank = [math.comb(num - 1 - i, n - 1) / math.comb(num, n) for i in range(num)]
    total = torch.tensor([0.0, *of_rank], dtype=torch.float64).cumsum(0)
    s = scores.detach().double().cpu()
    better = (s[:, None, :] > s[:, :, None]).sum(2)  # of every image, how many are better
    equal = (s[:, None, :] == s[:, :, None]).sum(2)  # and how many tie, with itself
    return (total[better + equal] - total[better]) / equal


def rank_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Spearman's correlation of two scores within every report, ties at their mean rank.

    Args:
        a: [P, N].
        b: [P, N].

    Returns:
        float64 [P] in [-1, 1]; nan where a score is the same for all images of a report.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(f"expected two [P, N], got {tuple(a.shape)} and {tuple(b.shape)}")
    ranks = []
    for scores in (a, b):
        s = scores.detach().double().cpu()
        above, equal = (s[:, :, None] > s[:, None, :]).double(), (s[:, :, None] == s[:, None, :]).double()
        rank = (above + 0.5 * equal).sum(2)
        ranks.append(rank - rank.mean(1, keepdim=True))
    return (ranks[0] * ranks[1]).sum(1) / (ranks[0].square().sum(1) * ranks[1].square().sum(1)).sqrt()
