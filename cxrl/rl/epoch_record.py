"""What is kept of an epoch: the line of metrics.jsonl, which is also what is shown of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cxrl.rl.groups import group_mean
from cxrl.rl.records import Advantages, Comparison, RewardTable, Rollout, UpdateStats


def epoch_record(
    epoch: int,
    step: int,
    rollout: Rollout,
    rewards: RewardTable,
    prompt_of: Tensor,
    comparison: Comparison,
    advantages: Advantages,
    stats: UpdateStats,
) -> dict[str, Any]:
    """Numbers of an epoch, JSON.

    ``reward`` and ``reward_std`` (within prompts) and ``win_rate`` are by reward; ``diversity`` is the mean
    RMS pixel distance between images of a prompt, over this process's share; ``win_rate`` is empty without
    anchor.
    """
    names, values = rewards.names, rewards.values
    spread = (values - group_mean(values, prompt_of)).square().mean(0).sqrt()
    return {
        "epoch": epoch,
        "step": step,
        "reward": dict(zip(names, values.mean(0).tolist(), strict=True)),
        "reward_std": dict(zip(names, spread.tolist(), strict=True)),
        "win_rate": dict(zip(names, comparison.win_rate.tolist(), strict=False)),
        "score": float(comparison.score.mean()),
        "advantage_std": float(advantages.values.std(correction=0)),
        "advantage_clip_fraction": advantages.clip_fraction,
        "tied_groups": advantages.num_tied_groups,
        "loss": stats.loss,
        "ratio_mean": stats.ratio_mean,
        "ratio_max_dev": stats.ratio_max_dev,
        "clip_fraction": stats.clip_fraction,
        "approx_kl": stats.approx_kl,
        "kl": stats.kl,
        "grad_norm": stats.grad_norm,
        "by_step": stats.by_step,
        "learning_rate": stats.learning_rate,
        "num_rows": stats.num_rows,
        "diversity": rollout_diversity(rollout.images, rollout.batch.prompt_of),
    }


def rollout_diversity(images: Tensor, prompt_of: Tensor) -> float:
    """Mean RMS pixel distance between images of the same prompt, over all pairs; 0 without a pair."""
    total, pairs = 0.0, 0
    flat = images.flatten(1)
    for prompt in prompt_of.unique().tolist():
        own = flat[(prompt_of == prompt).to(flat.device)]
        distance = torch.pdist(own) / flat.shape[1] ** 0.5
        total, pairs = total + float(distance.sum()), pairs + distance.numel()
    return total / pairs if pairs else 0.0


def flat_numbers(record: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """Nested numbers as ``a/b`` → float, for trackers."""
    result: dict[str, float] = {}
    for key, value in record.items():
        if isinstance(value, Mapping):
            result |= flat_numbers(value, f"{prefix}{key}/")
        elif isinstance(value, int | float):  # no intervals, and nothing that is undefined
            result[f"{prefix}{key}"] = float(value)
    return result
