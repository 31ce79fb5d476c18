"""Distance of an image from the canonical pose, alike for reward and judge."""

from __future__ import annotations

import torch
from torch import Tensor


def misalignment(psi: Tensor) -> Tensor:
    """Distance of psi [N, 5] from the identity pose: [N], >= 0."""
    return psi.square().sum(dim=-1).sqrt()


def pose_sd(psi: Tensor, weights: Tensor) -> Tensor:
    """Root-mean-square distance of poses from their mean, under B reweightings of the images.

    Args:
        psi: [N, 5].
        weights: [B, N] multiplicities.

    Returns:
        float64 [B], ≥ 0.
    """
    psi, w = psi.detach().double().cpu(), weights.double()
    total = w.sum(1, keepdim=True)
    mean, square = w @ psi / total, w @ psi.square() / total
    return (square - mean.square()).sum(1).clamp_min(0.0).sqrt()


def posture_score(psi: Tensor) -> Tensor:
    """r_align of the paper: minus the distance of the pose from the identity.

    Args:
        psi: [N, 5] log s_x, log s_y, t_x, t_y, theta (radians); 0 is canonical.

    Returns:
        float64 [N], ≤ 0, higher is better.
    """
    if psi.ndim != 2 or psi.shape[1] != 5:
        raise ValueError(f"expected psi [N, 5], got {tuple(psi.shape)}")
    if not bool(torch.isfinite(psi).all()):
        raise ValueError(f"psi: sample {int((~torch.isfinite(psi)).any(1).nonzero()[0])} is not finite")
    return -misalignment(psi.detach().double().cpu())
