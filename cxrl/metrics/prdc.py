"""Precision, recall, density and coverage of generated images, in the features of a named backbone.

A *ball* is around every image, out to its k-th nearest neighbour of its own side.

* precision: share of generated images inside a ball of a real one; recall: share of real images inside a ball
  of a generated one (Kynkäänniemi et al. 2019, arXiv 1904.06991);
* density: mean number of real balls that a generated image is inside of, over k; not bounded by 1; coverage:
  share of real balls that hold a generated image (Naeem et al. 2020, arXiv 2002.09797).

Recall and density change with the numbers of images, coverage with k: compare only values of equal numbers,
k and backbone. Distances are computed in blocks, so memory is linear in the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NEAREST_K = 5
WIDE = 512
"""Features from which distances are by inner products, in float64, an order of magnitude faster."""
_BLOCK = 2048


@dataclass(frozen=True)
class PRDC:
    """The four shares, and what they are made of.

    Attributes:
        precision, recall, coverage: In [0, 1].
        density: ≥ 0.
        num_balls: int64 [N], of every generated image, the real balls that it is inside of.
        is_recalled: bool [R], whether a real image is inside a generated ball.
        is_covered: bool [R], whether a real ball holds a generated image.
        nearest_k: k.
    """

    precision: float
    recall: float
    density: float
    coverage: float
    num_balls: Tensor
    is_recalled: Tensor
    is_covered: Tensor
    nearest_k: int


def prdc(real: Tensor, generated: Tensor, *, nearest_k: int = NEAREST_K) -> PRDC:
    """Precision, recall, density and coverage.

    Args:
        real: [R, D], finite.
        generated: [N, D].
        nearest_k: k, below R and N.

    Raises:
        ValueError: Shapes differ, a row is not finite, or a side has no k-th neighbour.
    """
    for name, side in (("real", real), ("generated", generated)):
        if side.ndim != 2 or len(side) <= nearest_k or nearest_k < 1:
            raise ValueError(
                f"{name}: expected [N, D] with more than nearest_k {nearest_k} rows, got {tuple(side.shape)}"
            )
        if not bool(side.isfinite().all()):
            row = int((~side.isfinite()).any(1).nonzero()[0])
            raise ValueError(f"{name}: row {row} is not finite")
    if real.shape[1] != generated.shape[1]:
        raise ValueError(
            f"real features have {real.shape[1]} columns, generated {generated.shape[1]}: another backbone?"
        )
    of_real, of_generated = (kth_distance(side, nearest_k) for side in (real, generated))
    num_balls = torch.zeros(len(generated), dtype=torch.int64)
    is_recalled = torch.zeros(len(real), dtype=torch.bool)
    is_covered = torch.zeros(len(real), dtype=torch.bool)
    for rows, distance in _blocks(real, generated):
        in_real = distance < of_real[rows, None]
        num_balls += in_real.sum(0)
        is_covered[rows] = in_real.any(1)
        is_recalled[rows] = (distance < of_generated[None]).any(1)
    return PRDC(
        precision=float((num_balls > 0).double().mean()),
        recall=float(is_recalled.double().mean()),
        density=float(num_balls.double().mean()) / nearest_k,
        coverage=float(is_covered.double().mean()),
        num_balls=num_balls,
        is_recalled=is_recalled,
        is_covered=is_covered,
        nearest_k=nearest_k,
    )


def kth_distance(features: Tensor, k: int) -> Tensor:
    """float64 [N]: from every row to its k-th nearest other row."""
    found = torch.empty(len(features), dtype=torch.float64)
    for rows, distance in _blocks(features, features):
        # A row's distance to itself is 0 but for rounding: it counts as the nearest, whatever comes out.
        distance[torch.arange(len(distance)), torch.arange(len(features))[rows]] = -1.0
        found[rows] = distance.kthvalue(k + 1, dim=1).values
    return found


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Rows of ``a`` and their float64 distances to all of ``b``."""
    b = b.detach().to("cpu", torch.float64)
    size = max(1, min(_BLOCK, 2**23 // max(1, len(b))))
    for start in range(0, len(a), size):
        rows = slice(start, min(start + size, len(a)))
        part = a[rows].detach().to("cpu", torch.float64)
        # Inner products round by 1e-7 of a norm, which of a narrow backbone can move images over an edge.
        exact = b.shape[1] < WIDE
        mode = "donot_use_mm_for_euclid_dist" if exact else "use_mm_for_euclid_dist"
        yield rows, torch.cdist(part, b, compute_mode=mode)
