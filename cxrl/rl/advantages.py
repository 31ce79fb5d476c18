"""From scores to advantages: centred on a baseline, scaled by the spread around it, clipped.

    A = clip((score − b) / rms(score − b))

``center`` chooses whose mean is b: the prompt's own samples, the batch, or 0 (then the anchor, or the fixed
unit, is the only baseline). The root mean square is over the same scope. A scope whose scores tie to
rounding gets exactly 0 and not a blow-up; so does a sample that is alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cxrl.rl.groups import group_mean
from cxrl.rl.records import Advantages

TIE = 1e-6
"""Spread relative to the scores' size below which they tie: float32 rounding."""


def advantages(
    score: Tensor, prompt_of: Tensor, *, center: str = "prompt", scale: str = "std", clip: float = 5.0
) -> Advantages:
    """Advantages of a batch.

    Args:
        score: float32 [N].
        prompt_of: int64 [N], the prompt of every sample; groups may be of any size.
        center: "prompt", "batch" or "none".
        scale: "std" divides by the root mean square of the scope, "none" does not.
        clip: Largest absolute advantage.
    """
    if not score.numel():
        return Advantages(score.clone(), 0, 0.0)
    scope = prompt_of if center == "prompt" else torch.zeros_like(prompt_of)
    s = score.double()
    centred = s if center == "none" else s - group_mean(s, scope)
    rms = group_mean(centred.square(), scope).sqrt()
    size = torch.zeros(int(scope.max()) + 1, dtype=s.dtype, device=s.device)
    size = size.scatter_reduce_(0, scope, s.abs(), "amax")[scope]
    tied = rms <= TIE * size
    if scale == "std":
        centred = centred / torch.where(tied, torch.ones_like(rms), rms)
    centred = torch.where(tied, torch.zeros_like(centred), centred)
    clipped = (centred.abs() > clip).double().mean()
    values = centred.clamp(-clip, clip).float()
    return Advantages(values, int(scope[tied].unique().numel()), float(clipped))
