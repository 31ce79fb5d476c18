"""Does an image match its report? Cosine of the two embeddings of an image-text model."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def alignment(image_embeds: Tensor, text_embeds: Tensor) -> Tensor:
    """Cosine similarity of every image with its own report.

    Args:
        image_embeds: [N, E], any scale.
        text_embeds: [N, E], row n the report of image n.

    Returns:
        float32 [N] in [-1, 1].
    """
    if image_embeds.shape != text_embeds.shape or image_embeds.ndim != 2:
        raise ValueError(
            f"expected two [N, E], got images {tuple(image_embeds.shape)}, reports {tuple(text_embeds.shape)}"
        )
    return F.cosine_similarity(image_embeds.float(), text_embeds.float(), dim=1)


def retrieval_top1(image_embeds: Tensor, text_embeds: Tensor) -> float:
    """Share of images whose own report is the nearest of all rows, in [0, 1]; reports should be distinct.

    Args:
        image_embeds: [N, E].
        text_embeds: [N, E], row n the report of image n.
    """
    similarity = F.normalize(image_embeds.float(), dim=1) @ F.normalize(text_embeds.float(), dim=1).T
    hits = similarity.argmax(1) == torch.arange(similarity.shape[0], device=similarity.device)
    return float(hits.float().mean())
