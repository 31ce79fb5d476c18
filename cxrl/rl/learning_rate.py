"""How large the optimizer's steps are in an epoch.

At a constant rate a run drifts once its batches' noise is as large as what is left to learn; rates that fall
let it settle. By epoch, so that what is resumed goes on with the rate that it would have had.
"""

from __future__ import annotations

import math

from cxrl.config import OptimConfig


def rate_share(config: OptimConfig, epoch: int, num_epochs: int) -> float:
    """The share of the learning rates that holds in an epoch.

    Args:
        config: ``schedule``, ``final_rate_share`` and ``warmup_epochs``.
        epoch: From 0.
        num_epochs: E, of the whole run.

    Returns:
        In (0, 1]: 1 (constant), 1 - epoch / E (linear) or ½ (1 + cos(π epoch / E)) (cosine), not below
        ``final_rate_share``; times (epoch + 1) / ``warmup_epochs`` in the first epochs.
    """
    done = epoch / num_epochs
    falling = {"constant": 1.0, "linear": 1 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}
    share = falling[config.schedule]
    if config.schedule != "constant":
        share = max(share, config.final_rate_share)
    return share * min(1.0, (epoch + 1) / config.warmup_epochs) if config.warmup_epochs else share
