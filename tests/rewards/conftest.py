"""Films that the reward models never saw, images that are no film, and the rewards that ship."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cxrl.data.phantom.films import Films, corpus
from cxrl.data.prompts import PromptBatch, ReportPrompt
from cxrl.rewards.base import Reward, build_rewards

NUM_FILMS = 48


def batch_of(films: Films) -> PromptBatch:
    """Every film with its own report."""
    prompts = tuple(
        ReportPrompt(i, text, tuple(labels.tolist()))
        for i, (text, labels) in enumerate(zip(films.texts, films.report_labels, strict=True))
    )
    return PromptBatch(prompts, torch.arange(len(films)))


@pytest.fixture(scope="session")
def films() -> Films:
    """Natural poses, correct reports in words the reward models know."""
    return corpus(NUM_FILMS, seed=8101)


@pytest.fixture(scope="session")
def batch(films: Films) -> PromptBatch:
    return batch_of(films)


@pytest.fixture(scope="session")
def rewards() -> dict[str, Reward]:
    """The three that ship."""
    return build_rewards(("posture", "diagnosis", "consistency"), "phantom")


def _noise(images: Tensor, mean: float, sd: float) -> Tensor:
    rng = torch.Generator().manual_seed(5)
    return (mean + sd * torch.randn(images.shape, generator=rng)).clamp(0, 1)


def _blobs(images: Tensor) -> Tensor:
    coarse = torch.rand(len(images), 1, 5, 5, generator=torch.Generator().manual_seed(6))
    return F.interpolate(coarse, images.shape[-2:], mode="bicubic", align_corners=False).clamp(0, 1)


NOT_A_FILM: dict[str, Callable[[Tensor], Tensor]] = {
    "black": torch.zeros_like,
    "grey": lambda images: torch.full_like(images, 0.5),
    "white": torch.ones_like,
    "gaussian_noise": lambda images: _noise(images, 0.5, 0.25),
    "faint_noise": lambda images: _noise(images, 0.4, 0.08),
    "inverted": lambda images: 1.0 - images,
    "upside_down": lambda images: images.flip(-2),
    "blobs": _blobs,
}


@pytest.fixture(params=list(NOT_A_FILM))
def not_a_film(request: pytest.FixtureRequest, films: Films) -> Tensor:
    """float32 [48, 1, 64, 64] of one kind of image that is no chest film."""
    return NOT_A_FILM[request.param](films.pixels())
