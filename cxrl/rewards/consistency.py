"""Multimodal consistency, r_consist (paper: reward 3): cosine of the embeddings of film and report."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cxrl.data.prompts import PromptBatch
from cxrl.rewards.base import register_reward
from cxrl.scorers.choice import ModelChoice, OpenedModel
from cxrl.scorers.protocols import load_consistency


@register_reward("consistency")
class ConsistencyReward:
    """r_consist of ``consistency.safetensors``, or of the model that ``rewards.consistency`` chooses: an
    image tower and a text tower trained on pairs.
    """

    name = "consistency"

    def __init__(self, path: Path, device: torch.device, model: OpenedModel | None = None) -> None:
        self.model = load_consistency(model or ModelChoice("rewards", self.name, "", path).open(), device)

    def score(self, images: Tensor, batch: PromptBatch) -> Tensor:
        """Cosine similarity [N], less the probability that the image is no chest film: in [-2, 1]."""
        embeds, validity = self.model.embed_images(images)
        texts = self.model.text_embeds([p.text for p in batch.prompts])
        texts = texts[batch.prompt_of.to(texts.device)]
        return (embeds * texts).sum(dim=-1) - (1.0 - validity)
