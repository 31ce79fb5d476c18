"""Area under the ROC curve of a classifier's findings on an image against the labels of its report."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def auroc(scores: Tensor, labels: Tensor) -> float:
    """Probability that a positive scores above a negative, ties half (Mann-Whitney).

    Args:
        scores: [N], any monotone score, finite.
        labels: [N], 1 present, 0 absent, nan unknown (left out).

    Returns:
        In [0, 1]; nan when a class is missing.
    """
    return float(weighted_auroc(scores[:, None], labels[:, None], torch.ones(1, scores.shape[0]))[0, 0])


def macro_auroc(scores: Tensor, labels: Tensor) -> tuple[float, Tensor]:
    """Mean over the findings that have both classes, and every finding's own value (nan without both).

    Args:
        scores: [N, F].
        labels: [N, F], 1, 0 or nan.

    Returns:
        The mean (nan when no finding has both classes) and float64 [F].
    """
    each = weighted_auroc(scores, labels, torch.ones(1, scores.shape[0]))[0]
    return float(each.nanmean()), each


def weighted_auroc(scores: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """AUROC per finding under B reweightings of the samples.

    Args:
        scores: [N, F].
        labels: [N, F], 1, 0 or nan.
        weights: [B, N] multiplicities.

    Returns:
        float64 [B, F]; nan where a class has no weight.
    """
    if scores.ndim != 2 or scores.shape != labels.shape or weights.shape[1:] != scores.shape[:1]:
        raise ValueError(
            f"expected scores [N, F], labels [N, F], weights [B, N]; got {tuple(scores.shape)}, "
            f"{tuple(labels.shape)}, {tuple(weights.shape)}"
        )
    known = labels[~labels.isnan()]
    if bool(((known != 0) & (known != 1)).any()):
        raise ValueError(f"labels: {float(known[(known != 0) & (known != 1)][0])} is not 0, 1 or nan")
    if not bool(torch.isfinite(scores).all()):
        raise ValueError(f"scores: sample {int((~torch.isfinite(scores)).any(1).nonzero()[0])} is not finite")
    s, known = scores.detach().cpu(), labels.cpu()
    return torch.stack([ranked_auroc(s[:, f], known[:, f], [weights]) for f in range(s.shape[1])], 1)


def ranked_auroc(scores: Tensor, labels: Tensor, pieces: Iterable[Tensor]) -> Tensor:
    """AUROC of one finding under reweightings, by ranks: linear in memory, unlike a matrix of all pairs.

    Args:
        scores: [N], finite.
        labels: [N], 1, 0 or nan (left out).
        pieces: Of [B, N] multiplicities.

    Returns:
        float64 [B]; nan where a class has no weight.
    """
    positive, negative = labels == 1, labels == 0
    levels, level = scores.double().unique(return_inverse=True)
    found = []
    for w in map(Tensor.double, pieces):
        zero = torch.zeros(len(w), len(levels), dtype=torch.float64)
        below = zero.index_add(1, level[negative], w[:, negative])
        beaten = below.cumsum(1) - 0.5 * below
        wins = (w[:, positive] * beaten[:, level[positive]]).sum(1)
        found.append(wins / (w[:, positive].sum(1) * w[:, negative].sum(1)))
    return torch.cat(found)
