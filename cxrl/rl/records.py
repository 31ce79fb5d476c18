"""What the stages of a training epoch hand to each other. Frozen: a stage never edits what it was given.

Shape letters: N samples of this process's share, T denoising steps, T_p steps of the policy (σ > 0),
K rewards.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from cxrl.data.prompts import PromptBatch
from cxrl.rl.schedule import DDIMTable


@dataclass(frozen=True)
class Rollout:
    """Denoising trajectories and the images they end in.

    Attributes:
        batch: Prompt of every sample.
        latents: float32 [N, T+1, C, h, w], from x_T at index 0 to x_0 at index T.
        schedule: Timesteps and (c_x, c_e, σ) of every step.
        log_probs: float32 [N, T_p], mean over C·h·w of the log density of each step of the policy.
        images: float32 [N, 1, H, W] in [0, 1].
    """

    batch: PromptBatch
    latents: Tensor
    schedule: DDIMTable
    log_probs: Tensor
    images: Tensor

    def __post_init__(self) -> None:
        n, t = len(self.batch), len(self.schedule)
        if self.latents.dtype != torch.float32 or self.latents.shape[:2] != (n, t + 1):
            raise ValueError(
                f"latents must be float32 [{n}, {t + 1}, C, h, w], got {self.latents.dtype} "
                f"{tuple(self.latents.shape)}; low-precision latents make the importance ratio wrong"
            )
        if self.log_probs.dtype != torch.float32 or self.log_probs.shape != (
            n,
            self.schedule.num_policy_steps,
        ):
            raise ValueError(
                f"log_probs must be float32 [{n}, {self.schedule.num_policy_steps}], "
                f"got {self.log_probs.dtype} {tuple(self.log_probs.shape)}"
            )


@dataclass(frozen=True)
class RewardTable:
    """Rewards of every sample, higher is better.

    Attributes:
        names: The K rewards.
        values: float32 [N, K], finite.
    """

    names: tuple[str, ...]
    values: Tensor

    def __post_init__(self) -> None:
        if self.values.ndim != 2 or self.values.shape[1] != len(self.names):
            raise ValueError(f"rewards must be [N, {len(self.names)}], got {tuple(self.values.shape)}")


@dataclass(frozen=True)
class Comparison:
    """One number a sample, after the rewards were weighted and compared with the anchor's.

    Attributes:
        score: float32 [N].
        win_rate: float32 [K], mean share of the anchor's images that a sample beats, ties half; empty when
            there are no anchor images.
    """

    score: Tensor
    win_rate: Tensor


@dataclass(frozen=True)
class Advantages:
    """How much better a sample is than its peers.

    Attributes:
        values: float32 [N]; exactly 0 where a group ties or has one sample.
        num_tied_groups: Groups that got 0 because their scores tie.
        clip_fraction: Share of the samples whose advantage was clipped.
    """

    values: Tensor
    num_tied_groups: int
    clip_fraction: float


@dataclass(frozen=True)
class UpdateStats:
    """What the optimizer steps of an epoch did.

    Attributes:
        loss: Mean loss over the optimizer steps.
        ratio_mean: Mean importance ratio before the first step.
        ratio_max_dev: max |ratio − 1| before the first step; float rounding when all is right.
        clip_fraction: Share of (sample, timestep) rows whose ratio left the clip range, after the first step.
        approx_kl: Mean of ½ (log π − log π_old)² over all rows: how far the epoch has moved.
        kl: KL of a step to the anchor, mean per latent element, before the first step.
        grad_norm: Gradient norm before clipping by parameter group, mean over the optimizer steps.
        by_step: By step of the policy, noisiest first: ``clip_fraction``, and ``output_grad``, the mean norm
            of the gradient of a row's loss at the network's output.
        learning_rate: By parameter group.
        num_steps: Optimizer steps taken.
        num_rows: (sample, timestep) rows that went through the network; rows without advantage are left out.
    """

    loss: float
    ratio_mean: float
    ratio_max_dev: float
    clip_fraction: float
    approx_kl: float
    kl: float
    grad_norm: dict[str, float] = field(default_factory=dict)
    by_step: dict[str, list[float]] = field(default_factory=dict)
    learning_rate: dict[str, float] = field(default_factory=dict)
    num_steps: int = 0
    num_rows: int = 0
