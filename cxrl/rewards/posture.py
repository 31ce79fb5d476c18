"""Posture alignment, r_align (paper: reward 1): minus the distance of the film's pose from the canonical one.

A frozen model reads psi = (log s_x, log s_y, t_x, t_y, theta), the affine that would bring the film to
canonical pose; translations are in half widths of the film, theta in radians. The distance is the Euclidean
norm of psi, zero for a perfectly placed film, so the reward is at most 0. An image that is no chest film
loses up to ``NOT_A_FILM`` more.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cxrl.data.prompts import PromptBatch
from cxrl.metrics.posture import misalignment
from cxrl.rewards.base import register_reward
from cxrl.scorers.choice import ModelChoice, OpenedModel
from cxrl.scorers.protocols import load_posture

NOT_A_FILM = 2.0
"""Worse than any pose of a real film, whose distance is below 1."""


@register_reward("posture")
class PostureReward:
    """r_align of ``posture.safetensors``, or of the model that ``rewards.posture`` chooses."""

    name = "posture"

    def __init__(self, path: Path, device: torch.device, model: OpenedModel | None = None) -> None:
        self.model = load_posture(model or ModelChoice("rewards", self.name, "", path).open(), device)

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        """-misalignment [N] in about [-3, 0]; the prompts do not matter."""
        psi, validity = self.model.pose(images)
        return -misalignment(psi) - NOT_A_FILM * (1.0 - validity)
