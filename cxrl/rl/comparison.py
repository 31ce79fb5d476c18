"""From rewards to one score a sample: the comparative feedback of RLCF.

    score[n] = Σ_k w_k · compared_k(n)        for rewards that are compared with the anchor's
             + Σ_k w_k · (r_k(n) − m_k) / u_k for rewards that are not (``without_anchor``, or form
             ``direct``)

(m_k, u_k) is a fixed unit: mean and within-prompt standard deviation of reward k in the run's first rollout,
when the policy still is the anchor. It never changes afterwards, so it is a choice of scale and not a moving
baseline.

What the comparison changes. The anchor's mean is a constant of the prompt: after centring on the prompt's
own mean a ``difference`` differs from ``direct`` only in its scale, the prompt's bank sd in place of one
unit for all. Without that centring (``comparison.center`` batch or none) the anchor's mean is the baseline.
``win`` and ``bradley_terry`` saturate besides: overshooting the whole bank earns nothing more.

Every form is scaled so that near the bank's mean one bank sd counts about 1; so weights mean the same in all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cxrl.config import ComparisonConfig, Config
from cxrl.ops import pairwise_comparison
from cxrl.rl.groups import group_mean
from cxrl.rl.records import Comparison, RewardTable
from cxrl.storage.checkpoint import State
from cxrl.storage.layout import BANK_FILE


@dataclass(frozen=True)
class RewardUnits:
    """Fixed scale of the rewards.

    Attributes:
        mean: float32 [K].
        std: float32 [K], > 0.
    """

    mean: Tensor
    std: Tensor

    def state(self) -> State:
        """For a checkpoint; beside the bank, whose rewards they scale."""
        return State({BANK_FILE: {"unit_mean": self.mean, "unit_std": self.std}})

    @classmethod
    def load_state(cls, state: State, device: torch.device) -> RewardUnits | None:
        """What :meth:`state` gave; None where the run had no rollout yet."""
        tensors = state.tensors[BANK_FILE]
        if "unit_mean" not in tensors:
            return None
        return cls(tensors["unit_mean"].to(device), tensors["unit_std"].to(device))


def reward_units(rewards: RewardTable, prompt_of: Tensor) -> RewardUnits:
    """The units of a first rollout: overall mean, and standard deviation pooled within prompts.

    With one sample a prompt the overall standard deviation is used; a reward that never varies gets 1.
    """
    values = rewards.values.double()
    centred = values - group_mean(values, prompt_of)
    within = _spread(centred, values)
    overall = _spread(values - values.mean(0), values)
    std = torch.where(within > 0, within, overall)
    std = torch.where(std > 0, std, torch.ones_like(std))
    return RewardUnits(values.mean(0).float(), std.float())


def _spread(centred: Tensor, values: Tensor) -> Tensor:
    """Root mean square [K]; 0 where it is only rounding of the values."""
    rms = centred.square().mean(0).sqrt()
    return torch.where(rms > 1e-6 * values.abs().amax(0), rms, torch.zeros_like(rms))


def needs_anchor(config: Config) -> bool:
    """Whether any reward is compared with the anchor's, whose images are then drawn."""
    c = config.comparison
    return c.form != "direct" and not set(config.rewards.names) <= set(c.without_anchor)


def form_scale(form: str, temperature: float) -> float:
    """Factor after which a score rises by about 1 a bank sd near the mean of a Gaussian bank."""
    if form == "win":
        return math.sqrt(2 * math.pi)  # the share beaten rises with the normal density, 1/√(2π)
    if form == "bradley_terry":
        return 4 * math.sqrt(temperature**2 + math.pi / 8)  # logistic of a Gaussian, probit approximation
    return 1.0


def compare(
    rewards: RewardTable,
    anchors: Tensor | None,
    anchor_of: Tensor,
    weights: Sequence[float],
    units: RewardUnits,
    config: ComparisonConfig,
) -> Comparison:
    """Score every sample.

    Args:
        rewards: [N, K].
        anchors: float32 [P, M, K] rewards of anchor images; None when no reward is compared.
        anchor_of: int64 [N], the row of ``anchors`` that sample n is compared with.
        weights: K weights.
        units: Fixed scale of the rewards.
        config: Form, floor of the bank's sd (in units), rewards without anchor.

    Raises:
        ValueError: There are no anchors although a reward is compared.
    """
    values = rewards.values
    w = values.new_tensor(list(weights))
    direct = torch.tensor(
        [config.form == "direct" or name in config.without_anchor for name in rewards.names]
    )
    direct = direct.to(values.device)
    standard = (values - units.mean) / units.std
    score = standard @ (w * direct)
    if anchors is None:
        if not bool(direct.all()):
            raise ValueError(f"comparison.form: {config.form} needs anchor images, none were drawn")
        return Comparison(score, values.new_zeros(0))
    # One anchor image has no spread of its own: the fixed unit stands in for it.
    floor = units.std * (config.min_std if anchors.shape[1] > 1 else 1.0)
    compared, win_rate = pairwise_comparison(
        values,
        anchors,
        anchor_of,
        w * ~direct * form_scale(config.form, config.temperature),
        config.form,
        min_std=floor,
        temperature=config.temperature,
    )
    return Comparison(score + compared, win_rate)
