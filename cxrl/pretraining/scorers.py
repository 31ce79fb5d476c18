"""Training of the models that score: posture, diagnosis and consistency, once to reward and once to judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from cxrl.data.phantom.films import POSE_SD, Films
from cxrl.findings import PHANTOM_FINDINGS
from cxrl.pretraining.fit import FitOptions, fit
from cxrl.scorers.phantom_network import Scorer, ScorerConfig, words

EMBEDDING_SIZE = 48
BATCH_SIZE = 64
NUM_NEGATIVES = 8
TRUNKS = {"rewards": ("resnet", 16), "judges": ("convnext", 24)}


def non_films(images: Tensor, generator: torch.Generator) -> Tensor:
    """Images that are no chest film, float32 like ``images`` [N, 1, H, W]: each a corruption drawn at
    random.
    """
    n, _, height, width = images.shape
    kinds = torch.randint(7, (n,), generator=generator)
    out = torch.empty_like(images)
    for i, kind in enumerate(kinds.tolist()):
        image = images[i]
        level = float(torch.rand((), generator=generator))
        if kind == 0:
            out[i] = level
        elif kind == 1:
            out[i] = (level + 0.3 * torch.randn(image.shape, generator=generator)).clamp(0, 1)
        elif kind == 2:
            out[i] = 1.0 - image
        elif kind == 3:
            out[i] = image.flip(-2)
        elif kind == 4:  # a smooth blob pattern
            coarse = torch.rand((1, 1, 4, 4), generator=generator)
            out[i] = F.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)[0].clamp(
                0, 1
            )
        elif kind == 5:  # quarters swapped
            out[i] = image.roll((height // 2, width // 2), (-2, -1))
        else:  # almost no contrast
            out[i] = image.mean() + 0.12 * (image - image.mean())
    return out


def jitter(images: Tensor, generator: torch.Generator) -> Tensor:
    """Exposure, contrast, blur and noise a little off, so that generated images do not fall outside what
    was seen.
    """
    n = images.shape[0]
    gain = 1.0 + 0.08 * torch.randn((n, 1, 1, 1), generator=generator)
    offset = 0.03 * torch.randn((n, 1, 1, 1), generator=generator)
    soft = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="replicate"), 3, 1)
    mix = 0.6 * torch.rand((n, 1, 1, 1), generator=generator)
    noise = (
        0.025 * torch.rand((n, 1, 1, 1), generator=generator) * torch.randn(images.shape, generator=generator)
    )
    return ((images + mix * (soft - images)) * gain + offset + noise).clamp(0, 1)


def vocabulary_of(texts: tuple[str, ...]) -> tuple[str, ...]:
    """Every word of the reports, sorted."""
    return tuple(sorted({word for text in texts for word in words(text)}))


def _contrastive(scorer: Scorer, output: Tensor, texts: list[str], same: Tensor) -> Tensor:
    """Sigmoid loss (SigLIP, arXiv 2303.15343) with every pair of equal content positive; extra images
    match no text.
    """
    similarity = F.normalize(output, dim=-1) @ scorer.text_embeds(texts).T
    logits = similarity * scorer.log_scale.exp() + scorer.bias
    positive = torch.zeros_like(logits)
    positive[: same.shape[0]] = same
    return F.binary_cross_entropy_with_logits(logits, positive, reduction="sum") / len(texts)


def fit_scorer(
    task: str,
    role: str,
    films: Films,
    *,
    num_steps: int,
    seed: int,
    work_dir: Path,
    tell: Callable[[str], None] = print,
) -> Scorer:
    """Trains the scorer of ``task`` ("posture", "diagnosis", "consistency") for ``role`` ("rewards",
    "judges").
    """
    trunk, width = TRUNKS[role]
    outputs = {"posture": 5, "diagnosis": len(PHANTOM_FINDINGS), "consistency": EMBEDDING_SIZE}[task]
    vocabulary = vocabulary_of(films.texts) if task == "consistency" else ()
    torch.manual_seed(seed)
    scorer = Scorer(ScorerConfig(task, trunk, width, films.images.shape[-1], outputs, vocabulary))
    scorer.to(memory_format=torch.channels_last)
    keys: dict[str, int] = {}
    content = torch.tensor([keys.setdefault(key, len(keys)) for key in films.contents])
    scale = torch.from_numpy(POSE_SD)

    def loss_at(step: int, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(films), (BATCH_SIZE,), generator=generator)
        images = jitter(films.pixels(index), generator)
        bad = non_films(images[:NUM_NEGATIVES], generator)
        images = torch.cat([images, bad]).to(memory_format=torch.channels_last)
        output, validity = scorer(images)
        is_film = torch.zeros(len(images))
        is_film[:BATCH_SIZE] = 1.0
        loss = 0.2 * F.binary_cross_entropy_with_logits(validity, is_film)
        if task == "posture":
            return loss + F.smooth_l1_loss(output[:BATCH_SIZE] / scale, films.psi[index] / scale)
        if task == "diagnosis":
            return loss + F.binary_cross_entropy_with_logits(output[:BATCH_SIZE], films.labels[index])
        same = (content[index, None] == content[None, index]).float()
        return loss + _contrastive(scorer, output, [films.texts[i] for i in index.tolist()], same)

    options = FitOptions(num_steps, learning_rate=2e-3, weight_decay=0.02, ema_decay=0.995)
    fit(f"{role}-{task}", scorer, loss_at, options, seed=seed, work_dir=work_dir, tell=tell)
    return scorer
