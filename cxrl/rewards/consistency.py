"""Multimodal consistency, r_consist (PAPER: reward 3): cosine of the embeddings of film and report."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cxrl.data.prompts import PromptBatch
from cxrl.models.scorers import load_scorer
from cxrl.rewards.base import register_reward


@register_reward("consistency")
class ConsistencyReward:
    """r_consist of ``consistency.safetensors``, an image tower and a text tower trained on pairs."""

    name = "consistency"

    def __init__(self, path: Path, device: torch.device) -> None:
        self.model = load_scorer(path / "consistency.safetensors", device=device)

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        """Cosine similarity [N], less the probability that the image is no chest film: in [-2, 1]."""
        features = self.model.features(images)
        embeds = torch.nn.functional.normalize(self.model.head(features), dim=-1)
        validity = self.model.validity_head(features).squeeze(-1).sigmoid()
        texts = self.model.text_embeds([p.text for p in batch.prompts])[batch.group.to(images.device)]
        return (embeds * texts).sum(dim=-1) - (1.0 - validity)
