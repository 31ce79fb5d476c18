"""Statistics over the samples of one prompt."""

from __future__ import annotations

import torch
from torch import Tensor


def group_mean(values: Tensor, group: Tensor) -> Tensor:
    """Mean over the rows of the same group, at every row. [N, ...] → [N, ...]."""
    num = int(group.max()) + 1 if group.numel() else 0
    sums = values.new_zeros(num, *values.shape[1:]).index_add_(0, group, values)
    counts = torch.bincount(group, minlength=num).clamp(min=1).to(values.dtype)
    return (sums / counts.view(-1, *[1] * (values.ndim - 1)))[group]
