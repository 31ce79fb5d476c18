"""Statistics over the samples of one prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def group_mean(values: Tensor, prompt_of: Tensor) -> Tensor:
    """Mean over the samples of the same prompt, at every sample. [N, ...] → [N, ...]."""
    num = int(prompt_of.max()) + 1 if prompt_of.numel() else 0
    sums = values.new_zeros(num, *values.shape[1:]).index_add_(0, prompt_of, values)
    counts = torch.bincount(prompt_of, minlength=num).clamp(min=1).to(values.dtype)
    return (sums / counts.view(-1, *[1] * (values.ndim - 1)))[prompt_of]
