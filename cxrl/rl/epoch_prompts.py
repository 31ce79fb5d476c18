"""Which reports an epoch draws."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cxrl.data.prompts import ReportPrompt
from cxrl.rl.seeding import generator


def epoch_prompts(
    prompts: Sequence[ReportPrompt], per_epoch: int, *, seed: int, epoch: int
) -> list[ReportPrompt]:
    """The distinct prompts of an epoch: passes over a fresh shuffle, a function of (seed, epoch) alone."""
    per_pass = len(prompts) // per_epoch
    number, position = divmod(epoch, per_pass)
    order = torch.randperm(len(prompts), generator=generator(seed, "prompts", number)).tolist()
    return [prompts[i] for i in order[position * per_epoch : (position + 1) * per_epoch]]
