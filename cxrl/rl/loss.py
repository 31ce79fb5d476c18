"""The loss of a (sample, timestep) row: PPO's clipped objective and the KL of a step to the anchor.

    r     = exp(w (log π(x_prev | x_t) − log π_old))
    ppo   = max(−A·r, −A·clip(r, 1 ± ε))                                (Schulman et al. 2017)
    kl    = mean over C·h·w of (μ − μ_a)² / (2 σ²) = c_e² / (2 σ²) · mean((m − m_a)²)

Both steps have the same σ, so the KL of their Gaussians is the second line; with the table μ differs only
through the network's guided outputs m and m_a. It is a mean like the log-probability (Black et al. 2023).
"""

from __future__ import annotations

import torch
from torch import Tensor


def ppo_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    clip_range: float,
    weight: Tensor | float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Clipped objective.

    Args:
        log_prob: float32 [B], differentiable.
        old_log_prob: float32 [B], of the policy that sampled.
        advantage: float32 [B].
        clip_range: ε.
        weight: w of the steps, float32 [B], see :meth:`cxrl.rl.schedule.DDIMTable.step_weights`.

    Returns:
        (loss [B], importance ratio [B]).
    """
    ratio = torch.exp(weight * (log_prob - old_log_prob))
    clipped = ratio.clamp(1 - clip_range, 1 + clip_range)
    return torch.maximum(-advantage * ratio, -advantage * clipped), ratio


def step_kl(
    output: tuple[Tensor, Tensor | None],
    anchor_output: tuple[Tensor, Tensor | None],
    guidance: float,
    table_rows: Tensor,
) -> Tensor:
    """float32 [B] KL between a step of the policy and of the anchor, mean per latent element.

    Args:
        output: The policy's (conditional, unconditional or None), each [B, C, h, w].
        anchor_output: The anchor's.
        guidance: Scale of the guidance.
        table_rows: float32 [B, 3], (c_x, c_e, σ) with σ > 0.
    """
    difference = _guided(output, guidance) - _guided(anchor_output, guidance)
    c_e, sigma = table_rows[:, 1], table_rows[:, 2]
    return (c_e / sigma).square() / 2 * difference.square().flatten(1).mean(1)


def _guided(output: tuple[Tensor, Tensor | None], guidance: float) -> Tensor:
    conditional, unconditional = output[0].float(), output[1]
    if unconditional is None:
        return conditional
    return unconditional.float() + guidance * (conditional - unconditional.float())
